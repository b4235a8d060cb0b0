"""A process that tries cases one after another, so that what kills or stops it is seen and named.

In: lines of JSON on stdin, one case each; the first argument says of which kind. Out: a line of JSON for each.
The parent's end is `trial.outcomes`. Memory is bounded: what wants gigabytes is refused by the system.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

MEMORY_BYTES = 6 << 30
"""Of address space; what is used is reported."""


def launch_case(arguments: list[str]) -> dict[str, Any]:
    """Go through launch.py's main up to where a run would start; in a folder of its own."""
    import launch

    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["launch.py", *arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _as_it_was():
        try:
            code = launch.main()
        except SystemExit as end:  # argparse, and Hydra's --help
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException as error:  # noqa: BLE001 - what launch.py lets through is what is looked for
            code = f"{type(error).__name__}: {error}"[:2000]
    return {"code": code, "err": err.getvalue()[-20_000:], "num_err": len(err.getvalue())}


@contextlib.contextmanager
def _as_it_was() -> Iterator[None]:
    """Put back what Hydra leaves changed in a process that it takes for its own."""
    import logging

    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    environment, folder = dict(os.environ), os.getcwd()
    try:
        yield
    finally:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None
        logging.disable(logging.NOTSET)
        for handler in list(logging.root.handlers):
            logging.root.removeHandler(handler)


def no_run_starts() -> None:
    """Let launch.py do what it does, but for the run itself: that begins and ends with writing its configuration."""
    import launch
    from asr import experiment
    from asr.rehearsal import start as rehearsal

    experiment.start = rehearsal.start = _begin_and_end  # type: ignore[assignment]
    launch.run.__wrapped__.__module__ = "__main__"  # Hydra finds conf/ by that, as where launch.py is started


def _begin_and_end(composed: dict[str, Any], run_dir: Path, **_: Any) -> tuple[int, None]:
    import yaml

    from asr import runs

    assert json.loads(json.dumps(composed)) == json.loads(json.dumps(yaml.safe_load(yaml.safe_dump(composed, allow_unicode=True))))
    assert runs.config_sha256(composed) and run_dir.is_dir()
    return 0, None


def deadly_case(case: str) -> dict[str, Any]:
    """Die as a library's code may, for the test of the parent."""
    if case == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if case == "exit":
        os._exit(5)
    return {"code": 0}


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints doesn't mix with the answers
    kinds: dict[str, Callable[[Any], dict[str, Any]]] = {"launch": launch_case, "deadly": deadly_case}
    if sys.argv[1] == "launch":
        no_run_starts()
    elif sys.argv[1] == "sound":
        import fuzzed_sounds

        fuzzed_sounds.warm_up()
        kinds["sound"] = fuzzed_sounds.sound_case
    tried = kinds[sys.argv[1]]
    for line in sys.stdin:
        begin = time.perf_counter()
        try:
            answer = tried(json.loads(line))
        except Exception as error:  # noqa: BLE001 - likewise
            answer = {"code": f"{type(error).__name__}: {error}"[:500]}
        answer |= {"seconds": time.perf_counter() - begin, "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
