"""A reader of a stream: what comes in an epoch, in which order, and that its state is all that it takes to go on."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from shards_made import encoded, parquet, seconds_of, tar

from asr.errors import DataError
from asr.fitting import Bounds
from asr.planning import Shape
from asr.sources import Source
from asr.streaming import shards as room
from asr.streaming.consumer import NO_SHAPE, Consumer, together
from asr.streaming.dealing import Dealing
from asr.streaming.parquet import ParquetFormat, footer
from asr.streaming.plans import StreamPlan
from asr.streaming.rules import Rules
from asr.streaming.shards import Shards, Unit
from asr.streaming.tar import TarFormat

SHAPES = (Shape(5000, 30, 3), Shape(8000, 30, 2), Shape(10000, 30, 2))


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(room, "PAUSE_SECONDS", 0.0)


def parquet_shards(folder: Path, count: int = 20) -> Shards:
    files = sorted(parquet(folder, range(count)).glob("*.parquet"))
    format = ParquetFormat("audio", "text", id_column="id")
    return Shards(format, tuple(Unit(str(f), g, 0, n) for f in files for g, n in enumerate(footer(str(f)).row_groups)), count)


def tar_shards(folder: Path, count: int = 20) -> Shards:
    return Shards(TarFormat(), tuple(Unit(str(f)) for f in sorted(tar(folder, range(count)).glob("*.tar"))))


@pytest.fixture(params=[parquet_shards, tar_shards])
def shards(request, tmp_path):
    return request.param(tmp_path)


def consumer(shards: Shards, *, number=0, of=1, seed=5, shapes=SHAPES, buffer=6, rows=3, **source) -> Consumer:
    rules = Rules(Source(**source), str.strip, lambda text: [ord(c) for c in text], Bounds())
    dealing = Dealing(len(shards.units), of, seed)
    return Consumer(number, shards, dealing, rules, StreamPlan(tuple(shapes), rows), lambda seconds: round(16000 * seconds), buffer)


def number_of(item) -> int:
    return int(item.id.rpartition("u")[2])


def first(stream, count: int):
    batches = iter(stream)
    return [next(batches) for _ in range(count)]


def test_batches_are_of_planned_shapes_and_full(shards):
    for items, shape, _ in first(consumer(shards), 30):
        assert len(items) == shape.rows
        for item in items:
            assert item.seconds == pytest.approx(seconds_of(number_of(item)))
            assert item.audio == encoded(number_of(item))
            fits = [s for s in SHAPES if 16000 * item.seconds <= s.length]
            assert shape == fits[0]


@pytest.mark.parametrize("of", [1, 2, 3, 8])
def test_every_utterance_comes_once_for_each_epoch(shards, of):
    seen = Counter()
    for number in range(of):
        one = consumer(shards, number=number, of=of, shapes=())
        for filled in one:
            seen.update((item.epoch, number_of(item)) for item in filled.items)
            if filled.state["epoch"] > 3:
                break
    for epoch in range(3):
        assert {n: seen[epoch, n] for n in range(20)} == dict.fromkeys(range(20), 1)


def test_order_is_shuffled_and_differs_by_epoch_and_seed(shards):
    def order(epoch, **options):
        items = (item for filled in consumer(shards, shapes=(), **options) for item in filled.items)
        found = []
        for item in items:
            if item.epoch == epoch:
                found.append(number_of(item))
            if len(found) == 20:
                return found

    assert order(0) == order(0)
    assert len({tuple(order(0)), tuple(order(1)), tuple(order(0, seed=6)), tuple(range(20))}) == 4
    in_order = order(0, buffer=1)
    assert np.abs(np.diff(in_order)).mean() < np.abs(np.diff(order(0, buffer=20))).mean()


def test_a_buffer_larger_than_the_corpus_holds_one_epoch(shards):
    one = consumer(shards, buffer=500, shapes=())
    for filled in first(one, 30):
        assert len({(item.epoch, item.id) for item in filled.items}) == len(filled.items)
        assert len(filled.state["buffer"]) < 20


@pytest.mark.parametrize("of", [1, 5])
@pytest.mark.parametrize("shapes", [SHAPES, ()])
def test_it_goes_on_from_any_state_with_the_same_batches(shards, shapes, of):
    options = {"of": of, "shapes": shapes, "number": of - 1}
    expected = first(consumer(shards, **options), 25)
    for stopped in range(0, 25, 3):
        again = consumer(shards, **options)
        again.go_on(json.loads(json.dumps(expected[stopped].state)))
        assert first(again, 25 - stopped - 1) == expected[stopped + 1 :]


def test_going_on_reads_the_waiting_again_and_nothing_else_of_an_archive(tmp_path, monkeypatch):
    shards = tar_shards(tmp_path, 60)
    *_, filled = first(consumer(shards, buffer=4), 12)
    waiting = sum(map(len, [filled.state["buffer"], *filled.state["bins"]]))
    read = []
    sample = TarFormat._sample
    monkeypatch.setattr(TarFormat, "_sample", lambda *args: read.append(args[2]) or sample(*args))
    again = consumer(shards, buffer=4)
    again.go_on(filled.state)
    assert len(read) == waiting < 15


def test_what_is_left_out_is_counted_with_its_reason(shards):
    one = consumer(shards, max_duration_in_seconds=0.5, shapes=(Shape(8000, 20, 2),))
    seen = {number_of(item) for filled in first(one, 12) for item in filled.items}
    assert all(seconds_of(n) <= 0.5 + 1e-9 for n in seen)
    assert one.left_out["longer than max_duration_in_seconds (0.5)"][0] > 0
    narrow = consumer(shards, shapes=(Shape(8000, 7, 2),))
    first(narrow, 4)
    count, detail = narrow.left_out[NO_SHAPE]
    assert count > 3
    assert "s, " in detail
    assert "labels" in detail


def test_an_utterance_without_a_transcript(tmp_path):
    tar(tmp_path, range(12), transcript=lambda n: {} if n == 5 else {"txt": b"one"})
    shards = Shards(TarFormat(), tuple(Unit(str(f)) for f in sorted(tmp_path.glob("*.tar"))))
    one = consumer(shards)
    seen = {number_of(item) for filled in first(one, 12) for item in filled.items}
    assert seen == set(range(12)) - {5}
    count, detail = one.left_out["no transcript or no audio"]
    assert count >= 2  # in each epoch
    assert "u5: there is no transcript" in detail
    with pytest.raises(DataError, match=r"u5: there is no transcript.*dataset.on_bad=drop leaves it out"):
        first(consumer(shards, on_bad="fail"), 12)


def test_audio_that_is_none(tmp_path):
    parquet(tmp_path, range(12), audio=lambda n: b"noise" if n == 5 else encoded(n))
    (a, b) = sorted(tmp_path.glob("*.parquet"))
    shards = Shards(ParquetFormat("audio", "text"), (Unit(str(a), 0, 0, 4), Unit(str(a), 1, 0, 2), Unit(str(b), 0, 0, 4)))
    one = consumer(shards)
    first(one, 6)
    assert "row 1, can't be read as audio" in one.left_out["unreadable audio"][1]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_the_rest_of_a_bad_shard_is_left_out_or_stops_it(tmp_path):
    shards = tar_shards(tmp_path)
    cut(Path(shards.units[1].shard))
    one = consumer(shards)
    seen = {number_of(item) for filled in first(one, 14) for item in filled.items}
    assert set(range(10)) < seen
    assert len(seen) < 20
    count, detail = one.left_out["rest of a shard that can't be read"]
    assert count >= 1
    assert "train-000001.tar, row" in detail
    with pytest.raises(DataError, match=r"train-000001.tar, row \d+: can't be read"):
        first(consumer(shards, on_bad="fail"), 14)


def test_a_reader_with_nothing_to_train_on_says_so(tmp_path):
    shards = tar_shards(tmp_path, 6)
    with pytest.raises(DataError, match=r"reader 1 of 1 of the stream has no utterance to train on \(12 longer than"):
        first(consumer(shards, max_duration_in_seconds=0.1), 1)
    with pytest.raises(DataError, match=r"it is dealt none: lower trainer\.args\.dataloader_num_workers"):
        for number in range(20):
            first(consumer(shards, number=number, of=20, shapes=()), 1)


def test_another_number_of_readers_begins_the_next_epoch(shards):
    states = [first(consumer(shards, number=n, of=2, max_duration_in_seconds=0.5), 6)[-1].state for n in range(2)]
    begun = together(states)
    assert begun["epoch"] == max(s["epoch"] for s in states) + 1
    (reason,) = begun["left_out"]
    assert begun["left_out"][reason][0] == sum(s["left_out"][reason][0] for s in states)
    one = consumer(shards)
    one.begin_epoch(begun)
    assert {item.epoch for item in first(one, 1)[0].items} == {begun["epoch"]}
    assert together([])["epoch"] == 0
