"""What a user names as recordings: files, folders, patterns and manifests."""

import json

import numpy as np
import pytest
import soundfile
from conftest import sound

from asr import recordings
from asr.errors import ConfigError, DataError


def names(found):
    return [recording.id for recording in found]


def test_files_folders_and_patterns(tmp_path):
    for name in ("b/one.WAV", "b/c/two.flac", "b/.hidden/no.wav", "three.mp3", "[4].wav"):
        sound(tmp_path / name, 1.0)
    (tmp_path / "b" / "notes.txt").write_text("no audio")
    folder = [str(tmp_path / "b" / name) for name in ("c/two.flac", "one.WAV")]
    assert names(recordings.find([str(tmp_path / "b")])) == folder
    assert names(recordings.find([str(tmp_path / "**" / "*.flac")])) == folder[:1]
    assert names(recordings.find([str(tmp_path / "[4].wav")])) == [str(tmp_path / "[4].wav")]  # a file, no pattern
    assert names(recordings.find([str(tmp_path / "three.mp3"), *folder, folder[1]])) == [str(tmp_path / "three.mp3"), *folder]


def test_what_leads_to_nothing_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, message in ((str(tmp_path / "empty"), "holds no audio"), (str(tmp_path / "*.wav"), "no file matches")):
        with pytest.raises(ConfigError, match=message):
            recordings.find([name])


def test_manifests_of_nemo_and_of_a_run(tmp_path):
    sound(tmp_path / "a.wav", 2.0)
    rows = [
        {"audio_filepath": "a.wav", "text": "never looked at", "duration": 99},
        {"audio_filepath": "a.wav", "offset": 0.5, "duration": 1.0},
        {"id": "mine", "audio": str(tmp_path / "a.wav"), "seconds": 2.0, "text": ""},
        {"audio": "a.wav", "start_seconds": 1.5, "seconds": 1.0},
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found, problems = recordings.measured(recordings.find([str(tmp_path / "m.jsonl")]))
    assert names(found) == [str(tmp_path / "a.wav"), f"{tmp_path / 'a.wav'}@0.5", f"{tmp_path / 'a.wav'}@1.5"]
    assert [recording.seconds for recording in found] == [2.0, 1.0, None]
    assert "ends after 2.00 s" in problems[2]


@pytest.mark.parametrize("row", [{}, {"audio": 3}, {"audio": "a.wav", "offset": 1}, {"audio": "a.wav", "row": "x"}, {"audio": "../a.wav"}])
def test_a_bad_line_of_a_manifest_is_named(tmp_path, row):
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=r"m\.jsonl:1"):
        recordings.find([str(tmp_path / "m.jsonl")])


def test_what_can_t_be_read_is_told_and_the_rest_measured(tmp_path):
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16000)
    (tmp_path / "text.wav").write_text("no audio")
    named = [str(sound(tmp_path / "good.wav", 1.0)), str(tmp_path / "gone.wav"), str(tmp_path / "text.wav"), str(tmp_path / "none.wav")]
    found, problems = recordings.measured(recordings.find(named))
    assert [recording.seconds for recording in found] == [1.0, None, None, 0.0]
    assert "gone.wav is not there" in problems[1]
    assert "text.wav can't be read" in problems[2]
    assert set(problems) == {1, 2}
