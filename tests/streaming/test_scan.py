"""The bounded look at a corpus before it is streamed."""

from pathlib import Path

import pytest
from shards_made import encoded, parquet, seconds_of, tar, text_of

from asr.errors import DataError
from asr.sources import Source
from asr.streaming import shards as room
from asr.streaming.parquet import ParquetFormat, footer
from asr.streaming.scan import scan
from asr.streaming.shards import Shards, Unit
from asr.streaming.tar import TarFormat


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(room, "PAUSE_SECONDS", 0.0)


def shards_in(folder: Path) -> Shards:
    files = [str(file) for file in sorted(folder.iterdir())]
    if files[0].endswith(".tar"):
        return Shards(TarFormat(), tuple(map(Unit, files)))
    units = tuple(Unit(file, group, 0, count) for file in files for group, count in enumerate(footer(file).row_groups))
    return Shards(ParquetFormat("audio", "text", id_column="id"), units, sum(unit.num_rows or 0 for unit in units))


def scanned(shards: Shards, most: int, **source):
    return scan(shards, Source(**source), "train", most=most, order=list(range(len(shards.units))), normalise=str.strip)


@pytest.mark.parametrize("make", [parquet, tar])
def test_all_of_a_small_corpus(tmp_path, make):
    for most in (20, 50):
        found = scanned(shards_in(make(tmp_path, range(20))), most)
        assert {u.text for u in found.table.utterances} == {text_of(n) for n in range(20)}
        assert sorted(u.seconds for u in found.table.utterances) == pytest.approx(sorted(map(seconds_of, range(20))))
        assert found.shards.num_utterances == 20
        assert found.is_whole or make is tar  # an archive's end is known once it was looked for


@pytest.mark.parametrize("make", [parquet, tar])
def test_a_sample_is_from_all_shards_and_says_how_many_there_are(tmp_path, make):
    found = scanned(shards_in(make(tmp_path, range(60), shards=3)), 12)
    assert not found.is_whole
    assert len(found.table.utterances) == 12
    assert len({u.audio for u in found.table.utterances}) == 3
    assert found.shards.num_utterances == (60 if make is parquet else pytest.approx(60, rel=0.2))


def test_what_the_first_shards_lack_comes_from_others(tmp_path):
    shards = shards_in(tar(tmp_path, range(30), shards=3))
    short = tar(tmp_path / "short", range(2), shards=1)
    shards = Shards(TarFormat(), (Unit(str(short / "train-000000.tar")), *shards.units[1:]))
    assert len(scanned(shards, 18).table.utterances) == 18


def test_what_is_left_out_has_its_reason(tmp_path):
    tar(tmp_path, range(12), audio=lambda n: b"noise" if n == 3 else encoded(n), transcript=lambda n: {} if n == 5 else {"txt": b"one"})
    found = scanned(shards_in(tmp_path), 50, max_duration_in_seconds=0.5)
    assert found.table.reasons["unreadable audio"] == 1
    assert found.table.reasons["no transcript or no audio"] == 1
    assert found.table.reasons["longer than max_duration_in_seconds (0.5)"] == 2
    with pytest.raises(DataError, match=r"dataset\.on_bad=drop leaves it out"):
        scanned(shards_in(tmp_path), 50, on_bad="fail")


def test_a_shard_that_is_cut(tmp_path):
    shards = shards_in(tar(tmp_path, range(20)))
    path = Path(shards.units[0].shard)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = scanned(shards, 50)
    assert 10 < len(found.table.utterances) < 20
    assert found.table.reasons == {"rest of a shard that can't be read": 1}
    with pytest.raises(DataError, match=r"train-000000\.tar, row"):
        scanned(shards, 50, on_bad="fail")
