import pytest
from conftest import sound

from asr.audio import read
from asr.errors import ConfigError, DataError
from asr.sources.kaldi import Kaldi


@pytest.fixture
def root(tmp_path):
    """Kaldi's data/: train is cut from recordings, test is a file an utterance."""
    sound(tmp_path / "wav" / "rec1.wav", 1.0)
    sound(tmp_path / "wav" / "rec2.flac", 0.5)
    files = {
        "train/wav.scp": f"rec1 wav/rec1.wav\nrec2 {tmp_path}/wav/rec2.flac\n",
        "train/segments": "a-1 rec1 0.25 0.75\na-2 rec1 0.75 -1\nb-1 rec2 0.00 0.50\n",
        "train/text": "a-1 hello\tthere\na-2\tagain\nb-1 two  words\n",
        "train/utt2spk": "a-1 a\na-2 a\nb-1 b\n",
        "test/wav.scp": "x wav/rec1.wav\ny wav/rec2.flac\n",
        "test/text": "x one\ny\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def test_segments_are_parts_of_recordings_in_the_order_of_text(root):
    rows = list(Kaldi(root=str(root)).utterances("train"))
    assert [(r.id, r.text, r.speaker, r.start_seconds, r.seconds) for r in rows] == [
        ("a-1", "hello\tthere", "a", 0.25, 0.5),
        ("a-2", "again", "a", 0.75, None),  # the manifest knows where its file ends
        ("b-1", "two  words", "b", 0.0, 0.5),
    ]
    assert [len(read(r.audio, 16000, start_seconds=r.start_seconds, seconds=r.seconds)) for r in rows] == [8000, 4000, 8000]


def test_without_segments_an_utterance_is_a_file(root):
    rows = list(Kaldi(root=str(root)).utterances("test"))
    assert [(r.id, r.text, r.audio, r.start_seconds, r.seconds) for r in rows] == [
        ("x", "one", root / "wav/rec1.wav", None, None),
        ("y", "", root / "wav/rec2.flac", None, None),
    ]
    assert [r.id for r in Kaldi(root=str(root)).utterances("test+train")] == ["x", "y", "a-1", "a-2", "b-1"]


def test_a_directory_that_is_not_there_names_its_key_and_the_nearest(root):
    with pytest.raises(ConfigError, match=r"^eval_split: there is no split 'tset' .*it has test, train, wav\. Did you mean test"):
        list(Kaldi(root=str(root), eval_split="tset").utterances("tset"))


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("wav.scp", "rec3 sph2pipe -f wav x.sph |", r"wav\.scp:3 is a command, .*write the audio to files first"),
        ("wav.scp", "rec3 cat x.wav | sox - y", r"wav\.scp:3 is a command"),
        ("wav.scp", "rec3 ../x.wav", r"wav\.scp:3: '\.\./x\.wav' leads out"),
        ("wav.scp", "rec3", r"wav\.scp:3 has no path"),
        ("text", "c-1 nobody", r"text:4: 'c-1' is not in .*/segments"),
        ("segments", "c-1 rec9 0 1", r"segments:4: recording 'rec9' is not in .*/wav\.scp"),
        ("segments", "c-1 rec1 0.5 0.25", r"segments:4: from 0.5 s to 0.25 s"),
        ("segments", "c-1 rec1 0", r"segments:4: a line is: "),
    ],
)
def test_a_bad_line_is_named(root, name, line, message):
    file = root / "train" / name
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(DataError, match=message):
        list(Kaldi(root=str(root)).utterances("train"))


def test_missing_counterparts_and_files_are_named(root):
    (root / "train/utt2spk").write_text("a-1 a\n")
    with pytest.raises(DataError, match=r"text:2: 'a-2' is not in .*/utt2spk"):
        list(Kaldi(root=str(root)).utterances("train"))
    (root / "test/text").write_text("z one\n")
    with pytest.raises(DataError, match=r"text:1: 'z' is not in .*/wav\.scp"):
        list(Kaldi(root=str(root)).utterances("test"))
    (root / "test/wav.scp").unlink()
    with pytest.raises(DataError, match=r"wav\.scp can't be read \(No such file"):
        list(Kaldi(root=str(root)).utterances("test"))


@pytest.mark.parametrize(("file", "line"), [("wav.scp", "rec1 wav/rec2.flac"), ("segments", "a-1 rec1 0 0.5"), ("utt2spk", "a-1 someone")])
def test_a_key_that_comes_twice_is_refused(root, file, line):
    path = root / "train" / file
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=rf"{file}:\d+: .* has a line already"):
        list(Kaldi(root=str(root)).utterances("train"))


def test_a_segment_without_a_transcript_is_a_row_to_leave_out(root):
    path = root / "train" / "text"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith("a-1")))
    assert [(r.id, r.text == "") for r in Kaldi(root=str(root)).utterances("train")] == [("a-2", False), ("b-1", False), ("a-1", True)]
