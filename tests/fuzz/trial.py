"""Cases tried in a child process: each has an outcome, also one that kills the child or never ends.

In: cases. Out: outcomes in their order, and whether each keeps the contract of exit codes and messages.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
HANGS_AFTER_SECONDS = 300
CODES = {0, 1, 2, 3, 75, 130, *(128 + number for number in range(1, 65))}
LONGEST_MESSAGE = 4000
MOST_LINES = 15


@dataclass(frozen=True)
class Outcome:
    """How one case ended: an exit code, or in words what is no exit code."""

    code: int | str
    err: str = ""
    seconds: float = 0.0
    num_err: int = 0
    peak_bytes: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    def breaks(self) -> str:
        """Return what of the contract for a launch it breaks; empty for a good end."""
        if self.code not in CODES:
            return f"ended with {self.code}"
        if "Traceback" in self.err:
            return "shows a traceback: " + self.err.strip().splitlines()[-1][:200]
        if self.code == 1:
            return "exit code 1 before a run began"
        if self.code == 2 and not any(line.startswith(("error: ", "launch.py: error: ")) for line in self.err.splitlines()):
            return "exit code 2 without a message"
        if max(self.num_err, len(self.err)) > LONGEST_MESSAGE:
            return f"a message of {max(self.num_err, len(self.err))} characters"
        if self.code == 2 and len(self.err.splitlines()) > MOST_LINES:
            return f"a message of {len(self.err.splitlines())} lines"
        return ""


def outcomes(kind: str, cases: Iterable[Any], cwd: Path) -> Iterator[Outcome]:
    """Yield the outcome of each case; one that kills its child or hangs is given to a new child no more."""
    child = _start(kind, cwd)
    try:
        for case in cases:
            answer = _asked(child, case)
            if isinstance(answer, Outcome):
                child.kill()
                child.wait()
                child = _start(kind, cwd)
                yield answer
            else:
                known = {name: answer.pop(name) for name in ("code", "err", "seconds", "num_err", "peak_bytes") if name in answer}
                yield Outcome(**known, facts=answer)
    finally:
        child.kill()
        child.wait()


def _start(kind: str, cwd: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        [sys.executable, str(HERE / "child.py"), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=cwd,
        env=environment,
        bufsize=0,
    )


def _asked(child: subprocess.Popen[bytes], case: Any) -> dict[str, Any] | Outcome:
    assert child.stdin is not None and child.stdout is not None
    answer = b""
    try:
        child.stdin.write(json.dumps(case).encode() + b"\n")
        with selectors.DefaultSelector() as ready:
            ready.register(child.stdout, selectors.EVENT_READ)
            while not answer.endswith(b"\n"):
                if not ready.select(HANGS_AFTER_SECONDS):
                    return Outcome(f"a hang of {HANGS_AFTER_SECONDS} s", seconds=HANGS_AFTER_SECONDS)
                part = os.read(child.stdout.fileno(), 1 << 16)
                if not part:
                    return Outcome(f"a child killed: {_ended(child.wait())}")
                answer += part
    except BrokenPipeError:
        return Outcome(f"a child killed: {_ended(child.wait())}")
    return dict(json.loads(answer))


def _ended(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def real_launch(arguments: Sequence[str], cwd: Path) -> Outcome:
    """Start a process as a user does, and time it."""
    import time

    command = [sys.executable, str(HERE.parents[1] / "launch.py"), *(os.fsencode(word) for word in arguments)]
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, capture_output=True, timeout=HANGS_AFTER_SECONDS, check=False)
    err = done.stderr.decode("utf-8", "backslashreplace")
    code = done.returncode if done.returncode >= 0 else 128 - done.returncode
    return Outcome(code, err, time.perf_counter() - begin)
