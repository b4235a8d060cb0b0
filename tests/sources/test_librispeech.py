import pytest
from conftest import sound

from asr.audio import seconds_of
from asr.errors import ConfigError, DataError
from asr.sources.librispeech import LibriSpeech


@pytest.fixture
def root(tmp_path):
    for split, chapters in {"train-clean-100": ("103/1240", "103/1241", "19/198"), "dev-clean": ("84/121123",)}.items():
        for chapter in chapters:
            folder = tmp_path / "LibriSpeech" / split / chapter
            names = [f"{chapter.replace('/', '-')}-{number:04d}" for number in range(2)]
            for name in names:
                sound(folder / f"{name}.flac")
            lines = "".join(f"{name} SAID IN {name}\n" for name in names)
            (folder / f"{chapter.replace('/', '-')}.trans.txt").write_text(lines)
    (tmp_path / "LibriSpeech" / "SPEAKERS.TXT").write_text("; who")
    return tmp_path


def test_rows_come_in_the_order_of_speakers_chapters_and_transcripts(root):
    source = LibriSpeech(root=str(root))
    rows = list(source.utterances(source.train_split))
    assert [row.id for row in rows] == ["103-1240-0000", "103-1240-0001", "103-1241-0000", "103-1241-0001", "19-198-0000", "19-198-0001"]
    assert rows == list(source.utterances(source.train_split))
    assert (rows[0].text, rows[0].speaker, rows[4].speaker) == ("SAID IN 103-1240-0000", "103", "19")
    assert seconds_of(rows[0].audio) == pytest.approx(0.1)


def test_root_may_be_the_corpus_itself(root):
    inner = LibriSpeech(root=str(root / "LibriSpeech"))
    assert [row.id for row in inner.utterances("dev-clean")] == ["84-121123-0000", "84-121123-0001"]


def test_plus_joins_splits_in_order(root):
    rows = list(LibriSpeech(root=str(root)).utterances("dev-clean+train-clean-100"))
    assert [row.speaker for row in rows] == ["84", "84", "103", "103", "103", "103", "19", "19"]


@pytest.mark.parametrize(
    ("key", "split"), [("train_split", "train-clean-1oo"), ("eval_split", "dev-cleam"), ("train_split", "dev-clean+train-clean-10")]
)
def test_a_split_that_is_not_there_names_its_key_and_the_nearest(root, key, split):
    with pytest.raises(ConfigError, match=rf"^{key}: .*it has dev-clean, train-clean-100. Did you mean (train-clean-100|dev-clean)\?"):
        list(LibriSpeech(root=str(root), **{key: split}).utterances(split))


@pytest.mark.parametrize("root", [None, "/nowhere"])
def test_a_root_that_is_not_there_is_named(root):
    with pytest.raises(ConfigError, match=r"^root: "):
        list(LibriSpeech(root=root).utterances("dev-clean"))


def test_an_id_that_leads_out_of_the_corpus_is_refused(root):
    transcript = root / "LibriSpeech/dev-clean/84/121123/84-121123.trans.txt"
    transcript.write_text(transcript.read_text() + "../../x WORDS\n")
    with pytest.raises(DataError, match=r"84-121123\.trans\.txt:3: .*'\.\.'"):
        list(LibriSpeech(root=str(root)).utterances("dev-clean"))


def test_a_split_without_transcripts_and_bytes_that_are_no_text_are_named(root):
    (root / "LibriSpeech" / "test-clean").mkdir()
    with pytest.raises(DataError, match="test-clean holds no"):
        list(LibriSpeech(root=str(root)).utterances("test-clean"))
    transcript = root / "LibriSpeech/dev-clean/84/121123/84-121123.trans.txt"
    transcript.write_bytes(b"84-121123-0000 FINE\n84-121123-0001 \xff\n")
    with pytest.raises(DataError, match=r"trans\.txt:2 is not UTF-8"):
        list(LibriSpeech(root=str(root)).utterances("dev-clean"))


def test_audio_without_a_transcript_is_a_row_to_leave_out(root):
    sound(root / "LibriSpeech" / "dev-clean" / "84" / "121123" / "84-121123-0009.flac")
    assert [(row.id, row.text == "") for row in LibriSpeech(root=str(root)).utterances("dev-clean")][-1] == ("84-121123-0009", True)
