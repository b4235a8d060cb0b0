from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr import manifest
from asr.errors import DataError
from asr.sources import Source, Utterance


@dataclass(kw_only=True)
class Files(Source):
    rows: list = field(default_factory=list)

    def utterances(self, split):
        return iter(self.rows)


def wav(folder: Path, name: str, seconds: float) -> Path:
    path = folder / f"{name}.wav"
    soundfile.write(path, np.zeros(round(seconds * 16000)), 16000)
    return path


@pytest.fixture
def rows(tmp_path):
    return [Utterance(f"u{i}", wav(tmp_path, f"u{i}", i / 2), f"text {i}", "s") for i in range(1, 5)]


def test_durations_come_from_headers_and_rows_keep_their_order(rows):
    table = manifest.build(Files(rows=rows), "train", limit=None, normalise=str)
    assert [u.seconds for u in table.utterances] == [0.5, 1.0, 1.5, 2.0]
    assert table.hours == pytest.approx(5 / 3600)
    assert table.left_out == ()


def test_bounds_leave_out_and_say_why(rows):
    source = Files(rows=rows, min_duration_in_seconds=1.0, max_duration_in_seconds=1.5)
    table = manifest.build(source, "train", limit=None, normalise=str)
    assert [u.id for u in table.utterances] == ["u2", "u3"]
    assert dict(table.left_out) == {"u1": "shorter than min_duration_in_seconds (1)", "u4": "longer than max_duration_in_seconds (1.5)"}


def test_a_transcript_that_normalises_to_nothing_is_left_out(rows):
    table = manifest.build(Files(rows=rows), "train", limit=None, normalise=lambda t: t if "3" in t else "")
    assert [u.id for u in table.utterances] == ["u3"]


def test_less_than_a_frame_is_left_out(rows, tmp_path):
    short = [Utterance("none", wav(tmp_path, "none", 0), "a"), Utterance("short", wav(tmp_path, "short", 0.02), "a")]
    table = manifest.build(Files(rows=[*rows, *short]), "train", limit=None, normalise=str)
    assert dict(table.left_out) == dict.fromkeys(["none", "short"], "shorter than a frame of 0.025 s")


def test_a_limit_takes_the_first(rows):
    assert [u.id for u in manifest.build(Files(rows=rows), "train", limit=2, normalise=str).utterances] == ["u1", "u2"]


@pytest.mark.parametrize(("source", "reason"), [({"min_duration_in_seconds": 9}, "4 shorter than"), ({"rows": []}, "the split is empty")])
def test_nothing_left_is_an_error_with_the_counts(rows, source, reason):
    with pytest.raises(DataError, match=f"split 'train': no utterance is left .{reason}"):
        manifest.build(Files(**{"rows": rows, **source}), "train", limit=None, normalise=str)


def test_an_unreadable_file_is_named(rows, tmp_path):
    (tmp_path / "u2.wav").write_bytes(b"garbage")
    with pytest.raises(DataError, match=r"u2\.wav can't be read"):
        manifest.build(Files(rows=rows), "train", limit=None, normalise=str)


def test_saving_and_loading_lose_nothing(rows, tmp_path):
    table = manifest.build(Files(rows=rows, max_duration_in_seconds=1.6), "dev", limit=None, normalise=str)
    table.save(tmp_path / "m" / "eval.jsonl")
    assert manifest.Manifest.load(tmp_path / "m" / "eval.jsonl", "dev").utterances == table.utterances
    assert "u4" in (tmp_path / "m" / "eval.left_out.jsonl").read_text()
