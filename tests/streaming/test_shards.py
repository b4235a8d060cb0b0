"""Shards of both kinds: read from any place on, by reference, and again after a read that failed."""

import tarfile
from pathlib import Path

import pytest
from shards_made import encoded, in_json, parquet, tar, text_of

from asr.errors import DataError
from asr.streaming import shards as room
from asr.streaming.parquet import ParquetFormat, footer
from asr.streaming.shards import Ref, Shards, Unit
from asr.streaming.tar import TarFormat

PARQUET = ParquetFormat("audio", "text", id_column="id")
FORMATS = {kind.__name__: kind for kind in (ParquetFormat, TarFormat)}


def parquet_shards(folder: Path) -> Shards:
    files = sorted(parquet(folder, range(20)).glob("*.parquet"))
    return Shards(PARQUET, tuple(Unit(str(f), g, 0, n) for f in files for g, n in enumerate(footer(str(f)).row_groups)), 20)


def tar_shards(folder: Path) -> Shards:
    return Shards(TarFormat(), tuple(Unit(str(f)) for f in sorted(tar(folder, range(20)).glob("*.tar"))))


@pytest.fixture(params=[parquet_shards, tar_shards])
def shards(request, tmp_path):
    return request.param(tmp_path)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(room, "PAUSE_SECONDS", 0.0)


def everything(shards: Shards):
    return [sample for unit in range(len(shards.units)) for sample in shards.samples(Ref(unit, 0))]


def test_every_utterance_comes_once_in_order_with_its_bytes(shards):
    found = everything(shards)
    assert [(s.id.rpartition("/")[2], s.text) for s in found] == [(f"u{n}", text_of(n)) for n in range(20)]
    assert [s.audio for s in found] == [encoded(n) for n in range(20)]


def test_reading_goes_on_behind_any_sample(shards):
    for unit in range(len(shards.units)):
        samples = list(shards.samples(Ref(unit, 0)))
        for i, sample in enumerate(samples):
            assert list(shards.samples(sample.after)) == samples[i + 1 :]
            assert next(shards.samples(sample.ref)) == sample


def test_utterances_by_reference(shards):
    found = everything(shards)
    wanted = [found[i].ref for i in (17, 2, 3, 9)]
    assert shards.taken(wanted) == {found[i].ref: found[i] for i in (17, 2, 3, 9)}
    assert shards.taken([]) == {}


def test_an_archive_is_not_read_between_two_references(tmp_path, monkeypatch):
    shards = tar_shards(tmp_path)
    found = list(shards.samples(Ref(0, 0)))
    read = []
    sample = TarFormat._sample
    monkeypatch.setattr(TarFormat, "_sample", lambda *args: read.append(args[2]) or sample(*args))
    shards.taken([found[0].ref, found[8].ref])
    assert [name.rpartition("/")[2] for name in read] == ["u0", "u8"]


def test_a_run_s_directory_holds_them(shards, tmp_path):
    shards.save(tmp_path / "units.json")
    assert Shards.load(tmp_path / "units.json", FORMATS) == shards


class Dropped:
    """A file whose connection goes down at some reads."""

    def __init__(self, path, failures):
        self.file, self.failures = Path(path).open("rb"), failures  # noqa: SIM115

    def read(self, *size):
        self.failures[0] += 1
        if self.failures[0] in self.failures[1]:
            raise ConnectionResetError("connection reset by peer")
        return self.file.read(*size)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def dropping(monkeypatch, at: set[int]):
    failures = [0, at]
    monkeypatch.setattr("asr.streaming.tar.opened", lambda shard: Dropped(shard, failures))
    monkeypatch.setattr("asr.streaming.parquet.opened", lambda shard: Dropped(shard, failures))


def test_a_dropped_connection_is_taken_up_behind_what_came(shards, monkeypatch, caplog):
    expected = list(shards.samples(Ref(1, 0)))
    dropping(monkeypatch, {2, 6, 40, 80})
    assert list(shards.samples(Ref(1, 0))) == expected
    assert "row 0: can't be read (connection reset by peer); tried again in 0 s" in caplog.text


def test_one_that_stays_away_is_an_error_that_names_shard_and_row(shards, monkeypatch):
    dropping(monkeypatch, set(range(4, 10**6)))
    with pytest.raises(DataError, match=r"train-0\S+, row \d+: can't be read \(connection reset by peer\) \(3 tries\)"):
        everything(shards)


def test_an_archive_that_is_cut_gives_what_it_has_and_is_found_out(tmp_path):
    shards = tar_shards(tmp_path)
    path = Path(shards.units[0].shard)
    whole = list(shards.samples(Ref(0, 0)))
    content = path.read_bytes()
    for cut in (whole[4].ref.offset + 700, whole[4].ref.offset + 100, whole[4].ref.offset):
        path.write_bytes(content[:cut])
        got = []
        with pytest.raises(DataError, match=r"train-000000.tar, row [34]: can't be read"):
            for sample in shards.samples(Ref(0, 0)):
                got.append(sample)
        assert got == whole[: len(got)]
        assert len(got) >= 3


def test_a_parquet_file_that_is_cut_has_no_footer(tmp_path):
    shards = parquet_shards(tmp_path)
    path = Path(shards.units[0].shard)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"train-00000-of-00002.parquet, row 0: can't be read \(.*[Pp]arquet"):
        list(shards.samples(Ref(0, 0)))
    with pytest.raises(room.read_errors()):
        footer(str(path))


def test_a_part_of_a_row_group(tmp_path):
    whole = parquet_shards(tmp_path)
    part = Shards(PARQUET, (Unit(whole.units[1].shard, 1, 1, 3),))
    assert [s.id for s in part.samples(Ref(0, 0))] == ["u5", "u6"]
    assert part.units[0].num_rows == 2


def test_transcripts_in_json_and_what_is_missing(tmp_path):
    def members(n: int) -> dict[str, bytes]:
        return {0: in_json(n), 1: {}, 2: {"json": b"{"}, 3: {"json": b'{"text": 1}'}, 4: {"txt": b"\xff"}}[n]

    (path,) = tar(tmp_path, range(5), shards=1, transcript=members).glob("*.tar")
    shards = Shards(TarFormat(text_column="sentence"), (Unit(str(path)),))
    first, *others = shards.samples(Ref(0, 0))
    assert (first.text, first.speaker, first.problem) == ("one", "s0", "")
    said = [sample.problem for sample in others]
    assert "part0/u1: there is no transcript: neither a .txt nor a .json with text in 'sentence'; it has .wav." in said[0]
    assert "u2: its transcript can't be read (Expecting" in said[1]
    assert "its .json has text." in said[2]
    assert "u4: its transcript can't be read ('utf-8' codec" in said[3]


def test_long_names_and_folders_in_an_archive(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        (tmp_path / "a.wav").write_bytes(encoded(1))
        (tmp_path / "a.txt").write_text("one")
        archive.add(tmp_path, "folder", recursive=False)
        for name in ("short", "n" * 150, "ü" * 90):
            for ending in ("wav", "txt"):
                archive.add(tmp_path / f"a.{ending}", f"folder/{name}.{ending}")
    shards = Shards(TarFormat(), (Unit(str(tmp_path / "x.tar")),))
    found = list(shards.samples(Ref(0, 0)))
    assert [s.id for s in found] == ["folder/short", "folder/" + "n" * 150, "folder/" + "ü" * 90]
    assert shards.taken([s.ref for s in found]) == {s.ref: s for s in found}
    assert list(shards.samples(found[1].ref)) == found[1:]
