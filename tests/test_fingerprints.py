"""The same data has the same fingerprint wherever it lies; other data has another."""

import shutil
from pathlib import Path

import pytest
from conftest import sound

from asr import fingerprints, manifest
from asr.sources.folder import Folder
from asr.streaming.shards import Unit


@pytest.fixture
def corpus(tmp_path):
    for number, text in enumerate(("one", "two", "three")):
        sound(tmp_path / "a" / "train" / f"{number}.wav", 0.2 + 0.1 * number)
        (tmp_path / "a" / "train" / f"{number}.txt").write_text(text)
    return tmp_path / "a"


def fingerprint(folder: Path, **options) -> str:
    return manifest.build(Folder(root=str(folder), **options), "train", limit=None, normalise=str).fingerprint


def test_a_corpus_that_was_moved_is_the_same(corpus, tmp_path):
    before = fingerprint(corpus)
    shutil.copytree(corpus, tmp_path / "elsewhere")  # its files have other times
    assert len(before) == 16
    assert fingerprint(tmp_path / "elsewhere") == before
    assert fingerprint(corpus, num_workers=2, on_bad="fail") == before


def rewritten(corpus: Path) -> None:
    """Other samples in a file of the same size."""
    path = corpus / "train" / "1.wav"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


CHANGES = {
    "a transcript": lambda corpus: (corpus / "train" / "1.txt").write_text("too"),
    "a sample": rewritten,
    "a duration": lambda corpus: sound(corpus / "train" / "1.wav", 0.25),
    "a name": lambda corpus: [(corpus / "train" / f"1.{x}").rename(corpus / "train" / f"9.{x}") for x in ("wav", "txt")],
    "one more": lambda corpus: [sound(corpus / "train" / "3.wav"), (corpus / "train" / "3.txt").write_text("four")],
    "one less": lambda corpus: (corpus / "train" / "2.wav").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_data_has_another(corpus, change):
    before = fingerprint(corpus)
    CHANGES[change](corpus)
    assert fingerprint(corpus) != before


def test_what_a_model_can_t_hold_is_no_other_data(corpus):
    table = manifest.build(Folder(root=str(corpus)), "train", limit=None, normalise=str)
    assert table.without({0: "too long"}).fingerprint == table.fingerprint == table.describe()["fingerprint"]
    assert fingerprint(corpus, max_duration_in_seconds=0.3) != table.fingerprint  # the dataset's own bounds are


def test_shards_are_told_by_their_bytes_and_parts(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.tar").write_bytes(b"12345678")
    units = {folder: [Unit(str(tmp_path / folder / "x.tar"), None, 0, None)] for folder in ("a", "b")}
    before = fingerprints.of_shards(units["a"])
    assert fingerprints.of_shards(units["b"]) == before
    assert fingerprints.of_shards([Unit(units["a"][0].shard, None, 0, 7)]) != before
    (tmp_path / "b" / "x.tar").write_bytes(b"12345679")
    assert fingerprints.of_shards(units["b"]) != before
    assert fingerprints.of_shards([Unit("hf://datasets/x@1/a.tar")]) != fingerprints.of_shards([Unit("hf://datasets/x@2/a.tar")])


def test_the_files_that_are_read_are_spread_over_the_split():
    assert list(fingerprints._spread(range(5))) == [0, 1, 2, 3, 4]
    found = list(fingerprints._spread(range(1000)))
    assert (found[0], len(found) <= fingerprints.READ_WHOLE, found[-1] > 900) == (0, True, True)
    assert list(fingerprints._spread([])) == []
