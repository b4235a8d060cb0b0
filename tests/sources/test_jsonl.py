import json

import pytest
from conftest import sound

from asr.audio import read
from asr.errors import ConfigError, DataError
from asr.sources.jsonl import JsonLines


def written(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def root(tmp_path):
    sound(tmp_path / "m" / "wavs" / "b.wav", 1.0)
    sound(tmp_path / "a.wav", 0.5)
    written(
        tmp_path / "m" / "train.jsonl",
        {"audio_filepath": "wavs/b.wav", "duration": 0.25, "text": "first", "offset": 0},
        {"audio_filepath": "wavs/b.wav", "duration": 0.5, "text": "second", "offset": 0.25, "speaker": "s"},
        {"audio_filepath": str(tmp_path / "a.wav"), "duration": 9.0, "text": "üçüncü"},
    )
    written(tmp_path / "test.json", {"audio_filepath": "a.wav", "text": "x", "utt_id": "mine"})
    return tmp_path


def test_rows_keep_their_order_and_only_an_offset_sets_seconds(root):
    rows = list(JsonLines(root=str(root), train_split="m/train.jsonl").utterances("m/train.jsonl"))
    assert [(r.id, r.text, r.start_seconds, r.seconds, r.speaker) for r in rows] == [
        ("b@0.0", "first", 0.0, 0.25, ""),
        ("b@0.25", "second", 0.25, 0.5, "s"),
        ("a", "üçüncü", None, None, ""),
    ]
    assert len(read(rows[1].audio, 16000, start_seconds=rows[1].start_seconds, seconds=rows[1].seconds)) == 8000


def test_plus_joins_and_ids_are_kept(root):
    assert [r.id for r in JsonLines(root=str(root)).utterances("test.json+m/train.jsonl")] == ["mine", "b@0.0", "b@0.25", "a"]


def test_without_root_names_are_relative_to_the_working_directory(root, monkeypatch):
    monkeypatch.chdir(root / "m")
    assert len(list(JsonLines().utterances("train.jsonl"))) == 3
    assert len(list(JsonLines().utterances(str(root / "test.json")))) == 1
    assert all(row.audio.is_absolute() for row in JsonLines(root=".").utterances("train.jsonl"))


def test_files_that_share_a_name_keep_apart(tmp_path):
    written(tmp_path / "train.jsonl", *({"audio_filepath": f"{folder}/0.wav", "text": "a"} for folder in "xy"))
    assert [r.id for r in JsonLines(root=str(tmp_path)).utterances("train.jsonl")] == ["x/0", "y/0"]


def test_a_manifest_that_is_not_there_names_its_key_and_the_nearest(root):
    with pytest.raises(ConfigError, match=r"^train_split: .*it has m/train\.jsonl\. Did you mean m/train\.jsonl"):
        list(JsonLines(root=str(root), train_split="m/trian.jsonl").utterances("m/trian.jsonl"))
    with pytest.raises(ConfigError, match=r"^eval_split: .*it has test\.json\. Did you mean test\.json"):
        list(JsonLines(root=str(root)).utterances("test.jsonl"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"audio_filepath": "a.wav", "text": ', r"train\.jsonl:5 is not JSON"),
        ("[1]", "train.jsonl:5 holds list, not an object"),
        ('{"audio_filepath": "a.wav", "txt": "a"}', r"train\.jsonl:5 has no 'text'; it has audio_filepath, txt\. Did you mean txt"),
        ('{"audio_file": "a.wav", "text": "a"}', r"train\.jsonl:5 has no 'audio_filepath'.*Did you mean audio_file"),
        ('{"audio_filepath": "../a.wav", "text": "a"}', r"train\.jsonl:5: '\.\./a\.wav' leads out"),
        ('{"audio_filepath": "a.wav", "text": "a", "offset": 1}', r"train\.jsonl:5: 'duration' is None, not seconds"),
        ('{"audio_filepath": "a.wav", "text": "a", "offset": -1, "duration": 1}', "'offset' is -1, not seconds"),
        ('{"audio_filepath": "a.wav", "text": null}', "'text' is null, not text"),
    ],
)
def test_a_bad_line_is_named(root, line, message):
    manifest = root / "m" / "train.jsonl"
    manifest.write_text(manifest.read_text(encoding="utf-8") + "\n" + line + "\n", encoding="utf-8")  # line 4 is blank
    with pytest.raises(DataError, match=message):
        list(JsonLines(root=str(root)).utterances("m/train.jsonl"))


def test_other_fields_may_hold_audio_and_text(tmp_path):
    written(tmp_path / "train.jsonl", {"wav": "a.wav", "transcript": "yes"})
    (row,) = JsonLines(root=str(tmp_path), audio_column="wav", text_column="transcript").utterances("train.jsonl")
    assert (row.text, row.audio) == ("yes", tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"audio_filepath": "a.wav", "text": "half \\ud800"}', "half a surrogate pair"),
        ("[" * 100_000, "is not JSON"),
        ('{"audio_filepath": "a.wav", "text": "x", "offset": 1' + "0" * 400 + ', "duration": 1}', "'offset' is 1000"),
    ],
)
def test_hostile_lines_are_named(root, line, said):
    (root / "bad.jsonl").write_text('{"audio_filepath": "a.wav", "text": "x"}\n' + line + "\n")
    with pytest.raises(DataError, match=rf"bad\.jsonl:2.*{said}"):
        list(JsonLines(root=str(root)).utterances("bad.jsonl"))


def test_a_manifest_that_is_not_there_is_found_before_anything_is_written(root):
    with pytest.raises(ConfigError, match=r"^train_split: there is no split 'm/trian\.jsonl'"):
        JsonLines(root=str(root), train_split="m/trian.jsonl", eval_split="test.json").check_reachable()
    JsonLines(root=str(root), train_split="m/train.jsonl", eval_split="test.json").check_reachable()
