"""What ranks say: floods, bytes that are no text, bars that run for days, a terminal that has gone."""

import os
import sys
import time

import pytest

from asr import rank_output
from asr.rank_output import PIECE_BYTES, Lines, Output
from asr.topology import Topology


@pytest.fixture
def said(monkeypatch):
    """Return what a rank's Lines write, each write an item."""
    written = []
    monkeypatch.setattr(rank_output.os, "write", lambda _, text: written.append(text))
    return written


def forwarded(*chunks: bytes) -> Lines:
    lines = Lines(3)
    for chunk in chunks:
        read, write = os.pipe()
        with os.fdopen(write, "wb") as pipe:
            pipe.write(chunk)
        lines.forward(read)
        os.close(read)
    return lines


def test_a_line_too_long_for_one_write_is_cut_between_its_characters(said):
    forwarded(b"x" * (PIECE_BYTES - 1) + "é".encode() * 10 + b"\nnext\n")
    assert max(map(len, said)) <= 4096
    assert [text.removeprefix(b"[rank 3] ") for text in said] == [b"x" * (PIECE_BYTES - 1) + b"\n", "é".encode() * 10 + b"\n", b"next\n"]


def test_a_flood_without_a_newline_is_passed_on_as_it_comes(said):
    lines = forwarded(*[b"y" * 60000] * 50)
    assert len(lines.begun) <= PIECE_BYTES
    lines.flush()
    assert b"".join(text.removeprefix(b"[rank 3] ").rstrip(b"\n") for text in said) == b"y" * 3_000_000


def test_a_bar_that_never_ends_takes_no_memory(said):
    lines = forwarded(*(b"".join(b"\r%d" % i for i in range(n, n + 1000)) for n in range(0, 5000, 1000)))
    assert lines.begun == b"\r4999"
    assert said[-1] == b"[rank 3] 4999\r"


@pytest.fixture
def shown(tmp_path):
    """Return a function that passes bytes through the parent's Output."""

    def show(data: bytes, **topology) -> Output:
        read, write = os.pipe()
        with os.fdopen(write, "wb") as pipe:
            pipe.write(data)
        with os.fdopen(read, "rb") as source:
            output = Output(tmp_path, source, Topology(**topology), 0)
            while output.forward(0):
                pass
            output.close()
        return output

    return show


def test_the_log_is_text_whatever_a_rank_says(shown, tmp_path, capfd):
    shown(b"[rank 0] \xff\x00 \xc3\xa9\n")
    assert (tmp_path / "run.log").read_text(encoding="utf-8") == "[rank 0] \\xff\x00 é\n"
    assert capfd.readouterr().err == "\\xff\x00 é\n"


def test_a_launcher_s_flood_is_logged_as_it_comes(shown, tmp_path):
    begin = time.monotonic()
    output = shown(b"z" * 50000)
    assert (tmp_path / "run.log").read_text().replace("\n", "") == "z" * 50000
    assert output.begun == b""
    assert time.monotonic() - begin < 5


def test_a_terminal_that_has_gone_ends_nothing(shown, tmp_path, monkeypatch):
    class Gone:
        def write(self, _):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    shown(b"[rank 0] one\n[rank 0] two\n")
    assert (tmp_path / "run.log").read_text().splitlines() == ["[rank 0] one", "[rank 0] two"]
