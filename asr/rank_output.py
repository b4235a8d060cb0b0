"""What ranks say, from their guards' end and from the parent's.

In: bytes of many processes in one pipe. Out: whole lines that name their rank, in run.log and on the terminal.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from asr.secrets import redacted
from asr.topology import Topology

LAST_LINES = 20
PIECE_BYTES = 4000
"""A pipe takes so much in one piece (PIPE_BUF, 4096): longer lines of several ranks would mix, so they are cut."""
_NAMED = re.compile(r"\[rank (\d+)\] (.*)", re.DOTALL)


class Lines:
    """Passes a rank's output on to our own stderr, a whole line at a time, with the rank's name before it.

    Ranks share a pipe, so a line is one write. A progress bar, which begins with a carriage return, ends in one here.
    """

    def __init__(self, rank: int) -> None:
        self.prefix = b"[rank %d] " % rank
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self.begun = self.bar = b""

    def forward(self, source: int) -> bool:
        """Pass on what has arrived; False at its end."""
        data = os.read(source, 1 << 16)
        *whole, begun = (self.begun + data).split(b"\n")
        for line in whole:
            self._line(line)
        begun = begun[max(begun.rstrip(b"\r").rfind(b"\r"), 0) :]  # a bar's former states
        bar = begun.rpartition(b"\r")[2][:PIECE_BYTES]
        if b"\r" in begun and bar and bar != self.bar:
            self.bar = bar
            self._write(bar + b"\r")
        *whole, self.begun = _pieces(begun)
        for piece in whole:
            self._line(piece)
        return bool(data)

    def flush(self) -> None:
        if self.begun:
            self._line(self.begun)
            self.begun = b""

    def _line(self, line: bytes) -> None:
        text = line.rstrip(b"\r").rpartition(b"\r")[2]
        if self.bar and text != self.bar and text.startswith(self.bar):
            text = text.removeprefix(self.bar)  # a message that came while the bar stood there
        elif text != self.bar and b"\r" in line.rstrip(b"\r"):  # the bar's last state
            self._write(text + b"\r")
        self.bar = b""
        for piece in _pieces(text):
            said = redacted(piece.decode("utf-8", errors="backslashreplace"))
            self.last.append(said)
            self._write(said.encode() + b"\n")

    def _write(self, text: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody listens any more; the record still counts
            os.write(2, self.prefix + text)


def _pieces(line: bytes) -> Iterator[bytes]:
    """Cut a line between its characters; nothing is cut from one that is short enough."""
    while len(line) > PIECE_BYTES:
        end = PIECE_BYTES
        while end > PIECE_BYTES - 3 and line[end] & 0xC0 == 0x80:  # within a character of UTF-8
            end -= 1
        yield line[:end]
        line = line[end:]
    yield line


class Output:
    """What the ranks of this server say: everything into run.log, the first rank's or all ranks' to the terminal."""

    def __init__(self, run_dir: Path, source: IO[bytes], topology: Topology, node: int) -> None:
        self.source = source
        self.shown = topology.shown_ranks
        self.first = node * topology.processes_here
        # servers that append to one file on a network file system overwrite each other: server 0 gathers the others' logs
        self.file = (run_dir / ("run.log" if node == 0 else f"ranks/node-{node}.log")).open("ab")
        self.of_launcher: deque[str] = deque(maxlen=5 * LAST_LINES)
        self.begun = b""
        self.bar = ""

    def forward(self, timeout_seconds: float) -> bool:
        """Pass on what arrives within a time; False once nothing can come any more."""
        if not select.select([self.source], [], [], timeout_seconds)[0]:
            return timeout_seconds > 0
        data = os.read(self.source.fileno(), 1 << 16)
        parts = re.split(rb"([\r\n])", self.begun + data)
        *pieces, self.begun = _pieces(parts.pop())
        for text, end in zip(parts[::2], parts[1::2], strict=True):
            self._line(text, is_bar=end == b"\r")
        for piece in pieces:  # a launcher's own, which is in no hurry to end its line
            self._line(piece, is_bar=False)
        return bool(data)

    def close(self) -> None:
        if self.begun:
            self._line(self.begun, is_bar=False)
            self.begun = b""
        self.file.close()

    def _line(self, line: bytes, *, is_bar: bool) -> None:
        said = redacted(line.decode("utf-8", errors="backslashreplace"))
        if not is_bar:
            self.file.write(said.encode() + b"\n")
            self.file.flush()
        named = _NAMED.match(said)
        if named is None:
            if not is_bar:
                self.of_launcher.append(said)
            return
        rank, text = int(named[1]), named[2]
        if self.shown == "all":
            self._show(f"[rank {rank}] {text}", is_bar=is_bar)
        elif rank == self.first:
            self._show(text, is_bar=is_bar)

    def _show(self, text: str, *, is_bar: bool) -> None:
        """Write to the terminal: a bar over the one before it, a line below the bar that stands there."""
        if is_bar and self.shown == "all":
            return
        said = f"{text}\n"
        if is_bar:
            said = f"\r{text.ljust(len(self.bar))}"  # over what is left of a longer one
        elif self.bar:
            said = "\n" if text == self.bar else f"\n{text}\n"
        self.bar = text if is_bar else ""
        with contextlib.suppress(OSError):  # a terminal, or a `| head`, that is gone; run.log has it
            sys.stderr.write(said)
            sys.stderr.flush()
