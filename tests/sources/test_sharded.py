"""Corpora in shards: which shards a split has, what is refused, and the copy of the split that is evaluated."""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT

from asr import audio
from asr.errors import ConfigError, DataError
from asr.sources.folder import Folder
from asr.sources.hub import Hub
from asr.sources.webdataset import WebDataset
from asr.streaming import copying
from asr.streaming import shards as room
from asr.streaming.shards import Ref

sys.path.insert(0, str(ROOT / "tests" / "streaming"))
from shards_made import in_json, parquet, seconds_of, tar, text_of


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(room, "PAUSE_SECONDS", 0.0)


@pytest.fixture(params=["hub", "webdataset"])
def corpus(request, tmp_path):
    """A corpus of 20 + 6 utterances and the source that streams it."""
    make, kind = {"hub": (parquet, Hub), "webdataset": (tar, WebDataset)}[request.param]
    make(make(tmp_path / "corpus", range(20)), range(100, 106), split="test", shards=1)
    return lambda **options: kind(root=str(tmp_path / "corpus"), **{"streaming": True, **options})


def numbers(shards) -> list[int]:
    found = [sample for unit in range(len(shards.units)) for sample in shards.samples(Ref(unit, 0))]
    return [int(sample.audio != b"") * next(n for n in range(200) if text_of(n) == sample.text) for sample in found]


def test_the_shards_of_a_split(corpus):
    assert numbers(corpus().shards("train")) == list(range(20))
    assert numbers(corpus().shards("test+train")) == [*range(100, 106), *range(20)]


def test_row_groups_are_units_and_slices_are_rows(tmp_path):
    parquet(parquet(tmp_path, range(20)), range(100, 106), split="test", shards=1)
    source = Hub(root=str(tmp_path), streaming=True)
    whole = source.shards("train")
    assert [(unit.group, unit.first, unit.last) for unit in whole.units] == [(0, 0, 4), (1, 0, 4), (2, 0, 2)] * 2
    assert whole.num_utterances == 20
    assert numbers(source.shards("train[5:12]")) == [*range(5, 12)]
    assert numbers(source.shards("test[:2]+train[90%:]")) == [100, 101, 18, 19]
    assert source.shards("train[5:12]").num_utterances == 7


def test_archives_are_units_and_have_no_slices(tmp_path):
    source = WebDataset(root=str(tar(tmp_path, range(20))), streaming=True)
    shards = source.shards("train")
    assert [Path(unit.shard).name for unit in shards.units] == ["train-000000.tar", "train-000001.tar"]
    assert shards.num_utterances is None
    with pytest.raises(
        ConfigError, match=r"train_split: 'train\[:5\]' is a slice, and archives aren't counted: bound it by max_train_samples"
    ):
        WebDataset(root=str(tmp_path), train_split="train[:5]").shards("train[:5]")


def test_a_split_that_is_not_there(corpus):
    with pytest.raises(ConfigError, match=r"train_split: there is no split 'trian' in \S+; it has .*train.* Did you mean train\?"):
        corpus(train_split="trian").shards("trian")


def test_only_the_evaluated_split_is_copied_and_only_once(corpus, own_cache, monkeypatch):
    source = corpus()
    rows = list(source.utterances("test"))
    assert [row.text for row in rows] == [text_of(n) for n in range(100, 106)]
    measured = [audio.seconds_of(row.audio, column=row.column, row=row.row) for row in rows]
    assert measured == pytest.approx([seconds_of(n) for n in range(100, 106)], abs=1e-4)
    monkeypatch.setattr(copying, "_write", None)  # it isn't called again
    assert list(corpus().utterances("test")) == rows
    assert rows[0].audio.is_relative_to(own_cache / "copied")


def test_a_copy_is_bounded_and_made_anew_when_shards_change(corpus, tmp_path):
    assert len(list(corpus(max_eval_samples=2).utterances("test"))) == 2
    (shard,) = [path for path in (tmp_path / "corpus").iterdir() if path.name.startswith("test")]
    {".tar": tar, ".parquet": parquet}[shard.suffix](tmp_path / "corpus", range(110, 113), split="test", shards=1)
    assert [row.text for row in corpus(max_eval_samples=2).utterances("test")] == [text_of(110), text_of(111)]


def test_archives_without_streaming_are_copied_both(tmp_path):
    tar(tar(tmp_path, range(8), transcript=in_json), range(100, 103), split="test", shards=1, transcript=in_json)
    source = WebDataset(root=str(tmp_path), text_column="sentence", max_train_samples=5)
    rows = list(source.utterances("train"))
    assert [(row.text, row.speaker) for row in rows] == [(text_of(n), f"s{n % 3}") for n in range(5)]
    assert len(list(source.utterances("test"))) == 3


def test_a_transcript_that_is_missing(tmp_path):
    tar(tmp_path, range(6), split="test", shards=1, transcript=lambda n: {} if n == 3 else {"txt": b"one"})
    assert [row.text for row in WebDataset(root=str(tmp_path)).utterances("test")] == ["one"] * 3 + [""] + ["one"] * 2
    with pytest.raises(DataError, match=r"test-000000.tar, part0/u3: there is no transcript: .* it has .wav. \(dataset.on_bad=drop"):
        list(WebDataset(root=str(tmp_path), on_bad="fail").utterances("test"))


def test_a_column_that_is_not_there(tmp_path):
    parquet(tmp_path, range(6))
    with pytest.raises(
        ConfigError, match=r"text_column: \S+, split 'train', has no column 'txt'; it has id, audio, text. Did you mean text\?"
    ):
        Hub(root=str(tmp_path), streaming=True, text_column="txt").shards("train")
    with pytest.raises(ConfigError, match=r"audio_column: .* has no column 'sound'"):
        Hub(root=str(tmp_path), streaming=True, audio_column="sound").shards("train")
    with pytest.raises(ConfigError, match=r"text_column: column 'audio' of \S+ holds struct"):
        Hub(root=str(tmp_path), streaming=True, text_column="audio").shards("train")
    with pytest.raises(ConfigError, match=r"id_column: .* has no column 'name'"):
        Hub(root=str(tmp_path), streaming=True, id_column="name").shards("train")


def test_a_parquet_file_that_is_cut(tmp_path, caplog):
    parquet(tmp_path, range(20))
    path = tmp_path / "train-00000-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    shards = Hub(root=str(tmp_path), streaming=True).shards("train")
    assert numbers(shards) == list(range(10, 20))
    assert "a shard is left out: " in caplog.text
    for options, split in (({"on_bad": "fail"}, "train"), ({}, "train[:5]")):
        with pytest.raises(DataError, match=r"train-00000-of-00002.parquet can't be read .*; repair it, or take it out of the corpus."):
            Hub(root=str(tmp_path), streaming=True, **options).shards(split)
    (tmp_path / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match="can't be read"):
        Hub(root=str(tmp_path), streaming=True).shards("train")


def test_a_cut_archive_is_copied_as_far_as_it_goes(tmp_path, caplog):
    tar(tmp_path, range(10), split="test", shards=1)
    path = tmp_path / "test-000000.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    rows = list(WebDataset(root=str(tmp_path)).utterances("test"))
    assert 2 < len(rows) < 8
    assert "the rest of a shard is left out" in caplog.text
    with pytest.raises(DataError, match=r"test-000000\.tar, row"):
        list(WebDataset(root=str(tmp_path), on_bad="fail").utterances("test"))


def test_what_is_not_streamed_says_what_is(tmp_path):
    with pytest.raises(
        ConfigError, match=r"streaming: only Parquet files \(dataset=hub\) and tar archives \(dataset=webdataset\) are streamed"
    ):
        Folder(root=str(tmp_path), streaming=True)
    with pytest.raises(ConfigError, match="max_train_samples: a stream has no first utterances"):
        Hub(root=str(tmp_path), streaming=True, max_train_samples=5)
    with pytest.raises(ConfigError, match="parts: a stream is of one dataset"):
        Hub(streaming=True, parts=[{"path": "x"}])
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(ConfigError, match="was written by save_to_disk, which is memory-mapped anyway: set streaming=false"):
        Hub(root=str(tmp_path), streaming=True).shards("train")


def test_files_of_another_kind(tmp_path):
    tar(tmp_path / "tar", range(4))
    with pytest.raises(ConfigError, match=r"root: .*train-000000.tar, and only Parquet files are streamed .* dataset=webdataset"):
        Hub(root=str(tmp_path / "tar"), streaming=True).shards("train")
    parquet(tmp_path / "parquet", range(4))
    with pytest.raises(ConfigError, match=r"root: .*\.parquet, and only \.tar archives are read here"):
        WebDataset(root=str(tmp_path / "parquet")).shards("train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="root: "):
        WebDataset(root=str(tmp_path / "empty")).shards("train")


def test_the_speaker_s_column(tmp_path):
    parquet(tmp_path, range(4), shards=1, speaker_id=lambda n: n % 2)
    source = Hub(root=str(tmp_path), streaming=True)
    assert [sample.speaker for sample in source.shards("train").samples(Ref(0, 0))] == ["0", "1", "0", "1"]
    assert [row.speaker for row in source.utterances("train")] == ["0", "1", "0", "1"]


def test_a_cell_without_bytes(tmp_path):
    cells = pa.array([{"bytes": None, "path": "a.wav"}], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    pq.write_table(pa.table({"audio": cells, "text": ["one"]}), tmp_path / "train.parquet")
    (sample,) = Hub(root=str(tmp_path), streaming=True).shards("train").samples(Ref(0, 0))
    assert "column 'audio' holds no audio bytes" in sample.problem


def test_keys_of_streaming_change_no_fingerprint(tmp_path):
    one, other = (Hub(root=str(tmp_path), streaming=streaming, shuffle_buffer_size=size) for streaming, size in ((False, 500), (True, 7)))
    assert one.fingerprint() == other.fingerprint()
    assert "streaming" not in one.inputs()
