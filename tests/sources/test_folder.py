import json

import pytest
from conftest import sound

from asr.audio import seconds_of
from asr.errors import ConfigError, DataError
from asr.sources.folder import Folder


@pytest.fixture
def root(tmp_path):
    """Three ways at once: metadata.csv, metadata.jsonl and text files, a split each."""
    for name in ("train/b.wav", "train/deep/a.flac", "dev/c.wav", "test/e.wav", "test/d.ogg", "test/f.wav"):
        sound(tmp_path / name)
    (tmp_path / "train/metadata.csv").write_text('file_name,text,who\nb.wav,"one, two",s1\ndeep/a.flac,three,\n')
    (tmp_path / "dev/metadata.jsonl").write_text(json.dumps({"file_name": "c.wav", "text": "dört"}) + "\n\n")
    (tmp_path / "test/e.txt").write_text("five\n")
    (tmp_path / "test/d.txt").write_text("six\nseven\n")
    return tmp_path


def rows_of(root, split, **keys):
    return [(row.id, row.text, row.speaker) for row in Folder(root=str(root), **keys).utterances(split)]


def test_metadata_keeps_its_order_and_text_files_theirs(root):
    assert rows_of(root, "train", speaker_column="who") == [("train/b", "one, two", "s1"), ("train/deep/a", "three", "")]
    assert rows_of(root, "dev") == [("dev/c", "dört", "")]
    assert rows_of(root, "test") == [("test/d", "six seven", ""), ("test/e", "five", ""), ("test/f", "", "")]
    assert all(seconds_of(row.audio) == pytest.approx(0.1) for row in Folder(root=str(root)).utterances("train+dev+test"))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_one_metadata_in_root_serves_all_splits(tmp_path, kind):
    names = {"train/a.wav": "one", "dev/b.wav": "two", "train/c.wav": "three"}
    for name in names:
        sound(tmp_path / name)
    csv = "file_name,text\n" + "".join(f"{n},{t}\n" for n, t in names.items())
    jsonl = "".join(json.dumps({"file_name": n, "text": t}) + "\n" for n, t in names.items())
    (tmp_path / f"metadata.{kind}").write_text({"csv": csv, "jsonl": jsonl}[kind])
    assert rows_of(tmp_path, "train+dev") == [("train/a", "one", ""), ("train/c", "three", ""), ("dev/b", "two", "")]
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match=r"names no file in test/; .* as in test/a\.wav"):
        rows_of(tmp_path, "test")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_split": "tarin"}, r"^train_split: .*it has dev, test, train\. Did you mean train"),
        ({"text_column": "txet"}, r"^text_column: .*metadata\.csv has no column 'txet'; it has file_name, text, who\. Did you mean text"),
        ({"audio_column": "path"}, "^audio_column: "),
        ({"speaker_column": "speaker"}, "^speaker_column: "),
    ],
)
def test_what_is_not_there_names_its_key_and_the_nearest(root, arguments, message):
    source = Folder(root=str(root), **arguments)
    with pytest.raises(ConfigError, match=message):
        list(source.utterances(source.train_split))


def test_files_without_split_folders_are_told_how_to_lie(tmp_path):
    sound(tmp_path / "a.wav")
    with pytest.raises(ConfigError, match=r"^root: .*put the audio into .*/train and .*/test, each with its metadata\.csv"):
        rows_of(tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", "file_name,text\n../dev/c.wav,out\n", r"metadata\.csv:2: '\.\./dev/c\.wav' leads out"),
        ("metadata.csv", "file_name,text\nb.wav,one, two\n", r"metadata\.csv:2 has not as many fields"),
        ("metadata.csv", 'file_name,text\nb.wav,"one"x\n', r"metadata\.csv can't be read"),
        ("metadata.csv", "file_name,text\n", "has no rows"),
        ("metadata.jsonl", '{"file_name": "b.wav", "text": "a"}\n{"file_name": "b.wav"', r"metadata\.jsonl:2 is not JSON"),
        ("metadata.jsonl", '{"file_name": "b.wav", "text": "a"}\n{"file_name": "b.wav", "test": "a"}', r":2 has no 'text'.*mean test"),
        ("metadata.jsonl", '{"file_name": "b.wav", "text": 5}', r"metadata\.jsonl:1: 'text' is 5, not text"),
        ("a.jsonl", "", "holds no metadata"),
    ],
)
def test_bad_metadata_names_file_and_line(root, name, content, message):
    (root / "train/metadata.csv").unlink()
    (root / "train" / name).write_text(content)
    with pytest.raises(DataError, match=message):
        rows_of(root, "train")


def test_two_kinds_of_metadata_are_one_too_many(root):
    (root / "train/metadata.jsonl").write_text("")
    with pytest.raises(DataError, match="holds both"):
        rows_of(root, "train")


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_table_without_commas_says_so(tmp_path, mark):
    sound(tmp_path / "train" / "a.wav")
    (tmp_path / "train" / "metadata.csv").write_text(f"file_name{mark}text\na.wav{mark}one\n")
    with pytest.raises(DataError, match="separates its columns by something else than commas"):
        list(Folder(root=str(tmp_path)).utterances("train"))
