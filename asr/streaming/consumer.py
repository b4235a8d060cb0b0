"""One reader of a stream: units of one epoch after the other, shuffled in a buffer, put into bins, a batch wherever a bin is full.

In: shards, the units that are this reader's, the rules of what is used, shapes. Out: batches without end, each with the state after
it: plain JSON, from which another reader goes on with the very next batch. The state has no audio, only where it lies.

Shuffling: an utterance that comes in takes the place of a random one that goes out. At an epoch's end the buffer runs empty before
the next epoch is begun, so that an utterance comes twice only when its epoch does; bins are kept, and a batch may hold the end of
one epoch and the begin of the next.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from asr.errors import DataError
from asr.planning import Shape
from asr.streaming.dealing import Dealing
from asr.streaming.plans import StreamPlan
from asr.streaming.rules import BAD_SHARD, Item, LeftOut, Rules
from asr.streaming.shards import Ref, Sample, ShardError, Shards

FRUITLESS_EPOCHS = 2
"""Epochs without one usable utterance, after which more of them won't bring any."""
NO_SHAPE = "doesn't fit into any shape of the plan"


class Filled(NamedTuple):
    """A full bin: its rows, its shape (None: the longest row decides), and the state of its reader after it."""

    items: tuple[Item, ...]
    shape: Shape | None
    state: dict[str, Any]


@dataclass
class Consumer:
    """One of `dealing.num_consumers` readers."""

    number: int
    shards: Shards
    dealing: Dealing
    rules: Rules
    plan: StreamPlan
    length_of: Callable[[float], int]
    """The input length of seconds, as long as they may become."""
    buffer_size: int
    epoch: int = 0
    place: int = 0
    """Which of its units of the epoch it reads."""
    row: int = 0
    """Where in that unit it goes on, by row and byte."""
    offset: int = 0
    draws: int = 0
    """Dice that were thrown: their number names the next."""
    draining: bool = False
    """The epoch has been read, and the buffer runs empty."""
    kept: int = 0
    """Utterances of this epoch that are used."""
    fruitless: int = 0
    left_out: dict[str, list[Any]] = field(default_factory=dict)
    """How often utterances were left out, by reason, with the first case of each."""
    _buffer: list[Item] = field(default_factory=list)
    _waiting: list[list[Item]] = field(default_factory=list)
    _reading: Iterator[Sample] | None = None
    _dealt: tuple[int, list[int]] = (-1, [])
    """An epoch, and its units that are this reader's."""

    def __post_init__(self) -> None:
        self._waiting = [[] for _ in range(self.plan.num_bins)]

    def state(self) -> dict[str, Any]:
        """Return where it stands, as JSON."""
        names = ("epoch", "place", "row", "offset", "draws", "draining", "kept", "fruitless")
        return {
            **{name: getattr(self, name) for name in names},
            "left_out": {reason: list(told) for reason, told in self.left_out.items()},
            "buffer": [[item.epoch, *item.ref] for item in self._buffer],
            "bins": [[[item.epoch, *item.ref] for item in waiting] for waiting in self._waiting],
        }

    def go_on(self, state: Mapping[str, Any]) -> None:
        """Stand where `state` was taken; utterances that were waiting are read again, and nothing else that was read."""
        for name in ("epoch", "place", "row", "offset", "draws", "draining", "kept", "fruitless"):
            setattr(self, name, state[name])
        self.left_out = {reason: list(told) for reason, told in state["left_out"].items()}
        waiting = [state["buffer"], *state["bins"]]
        found = self._again({(epoch, Ref(*ref)) for refs in waiting for epoch, *ref in refs})
        self._buffer, *self._waiting = [[item for epoch, *ref in refs if (item := found.get((epoch, Ref(*ref))))] for refs in waiting]
        self._reading = None

    def begin_epoch(self, state: Mapping[str, Any]) -> None:
        """Begin the epoch of a state, with its counts: the units were dealt to another number of consumers before."""
        self.epoch = state["epoch"]
        self.left_out = {reason: list(told) for reason, told in state["left_out"].items()}

    def _again(self, wanted: set[tuple[int, Ref]]) -> dict[tuple[int, Ref], Item]:
        found: dict[tuple[int, Ref], Item] = {}
        by_unit: dict[int, list[tuple[int, Ref]]] = {}
        for epoch, ref in sorted(wanted):
            by_unit.setdefault(ref.unit, []).append((epoch, ref))
        for unit, refs in by_unit.items():
            try:
                samples = self.shards.taken({ref for _, ref in refs})
            except ShardError as error:
                self._skip(error)
                continue
            for epoch, ref in refs:
                item = self._ruled(samples[ref], epoch) if ref in samples else None
                if item is None:
                    raise DataError(f"{self.shards.units[unit].shard} has changed since this run began: row {ref.row} is another.")
                found[epoch, ref] = item
        return found

    # ---- batches ----

    def __iter__(self) -> Iterator[Filled]:
        while True:
            item = self._shuffled()
            number = self._bin_of(item)
            assert number is not None, "what fits nowhere isn't taken in"
            waiting = self._waiting[number]
            waiting.append(item)
            if len(waiting) == self.plan.rows_of(number):
                self._waiting[number] = []
                yield Filled(tuple(waiting), self.plan.shape(number), self.state())

    def _bin_of(self, item: Item) -> int | None:
        return self.plan.bin_of(self.length_of(item.seconds), len(item.labels))

    def _shuffled(self) -> Item:
        """Return the next utterance in shuffled order."""
        while True:
            if self.draining:
                if self._buffer:
                    place = self._thrown(len(self._buffer))
                    self._buffer[place], self._buffer[-1] = self._buffer[-1], self._buffer[place]
                    return self._buffer.pop()
                self._begin_next_epoch()
            item = self._read()
            if item is None:
                self.draining = True
            elif len(self._buffer) < self.buffer_size:
                self._buffer.append(item)
            else:
                place = self._thrown(self.buffer_size)
                out, self._buffer[place] = self._buffer[place], item
                return out

    def _thrown(self, sides: int) -> int:
        self.draws += 1
        return random.Random(f"{self.dealing.seed}/{self.number}/{self.draws}").randrange(sides)

    def _begin_next_epoch(self) -> None:
        self.fruitless = 0 if self.kept else self.fruitless + 1
        if self.fruitless == FRUITLESS_EPOCHS:
            told = "; ".join(f"{count} {reason} (the first: {detail})" for reason, (count, detail) in self.left_out.items())
            raise DataError(
                f"reader {self.number + 1} of {self.dealing.num_consumers} of the stream has no utterance to train on "
                f"({told or 'it is dealt none: lower trainer.args.dataloader_num_workers or the number of processes'})."
            )
        self.epoch, self.place, self.row, self.offset, self.kept, self.draining = self.epoch + 1, 0, 0, 0, 0, False

    # ---- reading ----

    def _read(self) -> Item | None:
        """Return the next utterance of this epoch that is used; None once all is read."""
        if self._dealt[0] != self.epoch:
            self._dealt = self.epoch, self.dealing.units(self.number, self.epoch)
        units = self._dealt[1]
        while self.place < len(units):
            unit = units[self.place]
            if self._reading is None:
                self._reading = self.shards.samples(Ref(unit, self.row, self.offset))
            try:
                sample = next(self._reading, None)
            except ShardError as error:
                self._skip(error)
                sample = None
            if sample is None:
                self._reading, self.place, self.row, self.offset = None, self.place + 1, 0, 0
                continue
            _, self.row, self.offset = sample.after
            if self.dealing.takes(self.number, self.epoch, unit, sample.ref.row):
                item = self._ruled(sample, self.epoch)
                if item is not None:
                    self.kept += 1
                    return item
        return None

    def _ruled(self, sample: Sample, epoch: int) -> Item | None:
        found = self.rules(sample, self.shards.units[sample.ref.unit].shard, epoch)
        if isinstance(found, Item) and self._bin_of(found) is None:
            found = LeftOut(NO_SHAPE, f"{found.id}: {found.seconds:.2f} s, {len(found.labels)} labels")
        if isinstance(found, Item):
            return found
        self._count(found.reason, found.detail)
        return None

    def _skip(self, error: ShardError) -> None:
        """Leave out the rest of a shard that can't be read, or stop there."""
        if self.rules.source.on_bad == "fail":
            raise error
        self._count(BAD_SHARD, str(error))

    def _count(self, reason: str, detail: str) -> None:
        told = self.left_out.setdefault(reason, [0, detail])
        told[0] += 1


def together(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the state in which consumers of another number begin: the epoch after all these, with what they have counted."""
    left_out: dict[str, list[Any]] = {}
    for state in states:
        for reason, (count, detail) in state["left_out"].items():
            left_out.setdefault(reason, [0, detail])[0] += count
    return {"epoch": max((state["epoch"] for state in states), default=-1) + 1, "left_out": left_out}
