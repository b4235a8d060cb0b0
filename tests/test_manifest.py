import json
import re
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
    assert {row.id: row.reason for row in table.left_out} == {
        "u1": "shorter than min_duration_in_seconds (1)",
        "u4": "longer than max_duration_in_seconds (1.5)",
    }


def test_a_transcript_that_normalises_to_nothing_is_left_out(rows):
    table = manifest.build(Files(rows=rows), "train", limit=None, normalise=lambda t: t if "3" in t else "")
    assert [u.id for u in table.utterances] == ["u3"]


def test_less_than_a_frame_is_left_out(rows, tmp_path):
    short = [Utterance("none", wav(tmp_path, "none", 0), "a"), Utterance("short", wav(tmp_path, "short", 0.02), "a")]
    table = manifest.build(Files(rows=[*rows, *short]), "train", limit=None, normalise=str)
    assert table.reasons == {"shorter than a frame of 0.025 s": 2}


def test_a_limit_takes_the_first(rows):
    assert [u.id for u in manifest.build(Files(rows=rows), "train", limit=2, normalise=str).utterances] == ["u1", "u2"]


@pytest.mark.parametrize(("source", "reason"), [({"min_duration_in_seconds": 9}, "4 shorter than"), ({"rows": []}, "the split is empty")])
def test_nothing_left_is_an_error_with_the_counts(rows, source, reason):
    with pytest.raises(DataError, match=f"split 'train': no utterance is left .{reason}"):
        manifest.build(Files(**{"rows": rows, **source}), "train", limit=None, normalise=str)


BAD = {
    "missing": ("missing audio", "gone.wav is not there"),
    "text": ("unreadable audio", "text.wav can't be read as audio"),
    "duplicate": ("duplicate id", "'u1' names both"),
    "beyond": ("part beyond the end of its audio", "0.4 to 0.9 s is beyond its 0.50 s"),
}


def bad_row(kind, folder):
    if kind == "text":
        (folder / "text.wav").write_text("a transcript, named by mistake")
    return {
        "missing": Utterance("bad", folder / "gone.wav", "a"),
        "text": Utterance("bad", folder / "text.wav", "a"),
        "duplicate": Utterance("u1", folder / "u2.wav", "a"),
        "beyond": Utterance("bad", folder / "u1.wav", "a", start_seconds=0.4, seconds=0.5),
    }[kind]


@pytest.mark.parametrize("kind", BAD)
def test_bad_audio_is_left_out_and_listed(rows, tmp_path, kind):
    reason, detail = BAD[kind]
    table = manifest.build(Files(rows=[*rows, bad_row(kind, tmp_path)]), "train", limit=None, normalise=str)
    assert [u.id for u in table.utterances] == ["u1", "u2", "u3", "u4"]
    assert table.reasons == {reason: 1}
    table.save(tmp_path / "m" / "train.jsonl")
    (line,) = map(json.loads, (tmp_path / "m" / "train.left_out.jsonl").read_text().splitlines())
    assert line["reason"] == reason
    assert detail in line["detail"]


@pytest.mark.parametrize("kind", BAD)
def test_bad_audio_stops_at_once_where_that_is_asked_for(rows, tmp_path, kind):
    with pytest.raises(DataError, match="utterance '(bad|u1)'.*" + re.escape(BAD[kind][1])):
        manifest.build(Files(rows=[*rows, bad_row(kind, tmp_path)], on_bad="fail"), "train", limit=None, normalise=str)


def test_an_id_used_three_times_is_the_first_one_s(rows, tmp_path):
    twice = [Utterance("u1", tmp_path / f"u{i}.wav", "a") for i in (2, 3)]
    table = manifest.build(Files(rows=[*rows, *twice]), "train", limit=None, normalise=str)
    assert [row.detail.count("u1.wav") for row in table.left_out] == [1, 1]
    assert [u.audio.name for u in table.utterances if u.id == "u1"] == ["u1.wav"]


def test_nothing_but_bad_audio_names_the_first(tmp_path):
    with pytest.raises(DataError, match=r"no utterance is left \(1 missing audio; the first: .*gone\.wav is not there"):
        manifest.build(Files(rows=[bad_row("missing", tmp_path)]), "train", limit=None, normalise=str)


def test_parts_of_a_file(rows, tmp_path):
    parts = [
        Utterance("a", tmp_path / "u4.wav", "a", start_seconds=0.0, seconds=0.7),
        Utterance("b", tmp_path / "u4.wav", "b", start_seconds=0.7),
        Utterance("c", tmp_path / "u4.wav", "c", start_seconds=1.5, seconds=0.55),  # rounded by whoever wrote it
    ]
    table = manifest.build(Files(rows=parts), "train", limit=None, normalise=str)
    assert [u.seconds for u in table.utterances] == pytest.approx([0.7, 1.3, 0.5])


def test_one_utterance_is_a_table(rows):
    table = manifest.build(Files(rows=rows[:1]), "train", limit=None, normalise=str)
    assert table.describe()["seconds"] == {"min": 0.5, "mean": 0.5, "median": 0.5, "max": 0.5}


def test_a_split_is_described(rows):
    described = manifest.build(Files(rows=rows, max_duration_in_seconds=1.6), "train", limit=None, normalise=str).describe()
    assert described == {
        "utterances": 3,
        "hours": 0.0008,
        "seconds": {"min": 0.5, "mean": 1.0, "median": 1.0, "max": 1.5},
        "speakers": 1,
        "left_out": 1,
        "left_out_because": {"longer than max_duration_in_seconds (1.6)": 1},
        "fingerprint": described["fingerprint"],
    }


def test_rows_that_turn_out_unfit_are_left_out_later(rows):
    table = manifest.build(Files(rows=rows), "train", limit=None, normalise=str).without({1: "more labels than frames"})
    assert [u.id for u in table.utterances] == ["u1", "u3", "u4"]
    assert [(row.id, row.reason) for row in table.left_out] == [("u2", "more labels than frames")]


def test_saving_and_loading_lose_nothing(rows, tmp_path):
    table = manifest.build(Files(rows=rows, max_duration_in_seconds=1.6), "dev", limit=None, normalise=str)
    table.save(tmp_path / "m" / "eval.jsonl")
    assert manifest.Manifest.load(tmp_path / "m" / "eval.jsonl", "dev").utterances == table.utterances
    assert "u4" in (tmp_path / "m" / "eval.left_out.jsonl").read_text()
