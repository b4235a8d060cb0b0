"""A stream's readers in torch's loader: each worker of each rank is one, and their batches come in turn.

In: a streamed dataset, shapes, a collator, the states of readers that go on. Out: what a training loop iterates over: batches without
end or length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from asr.agreement import Agreement
from asr.collate import BATCH_FACTS, Batch, Collator, Streamed
from asr.streaming.consumer import Consumer
from asr.streaming.dataset import StreamedDataset, number_of


@dataclass(frozen=True)
class Position:
    """Where a rank goes on: how many batches it has had, and its readers' states by number among them.

    `begins`: readers were others before, and all begin the epoch of this state.
    """

    taken: int = 0
    states: Mapping[str, Mapping[str, Any]] | None = None
    begins: Mapping[str, Any] | None = None


class Readers(IterableDataset):  # type: ignore[misc]
    """Batches of one rank: all of them without workers, those of one reader in a worker.

    Torch asks worker 0 for the first batch, whoever's turn it was when the run stopped: the readers move up.
    """

    def __init__(
        self, dataset: StreamedDataset, collate: Collator, *, seed: int, rank: int, world_size: int, workers: int, position: Position
    ) -> None:
        self.dataset = dataset
        self.collate = collate
        self.seed = seed
        self.rank, self.world_size, self.num_readers = rank, world_size, max(1, workers)
        self.position = position

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        reader = ((worker.id if worker else 0) + self.position.taken) % self.num_readers
        for items, shape, state in self._consumer(reader):
            batch = self.collate([self.dataset.row(item, shape) for item in items])
            ids = {number_of(item.ref): item.id for item in items}
            facts = replace(batch[BATCH_FACTS], stream=Streamed(reader, state, ids))
            yield Batch({**batch, BATCH_FACTS: facts})

    def _consumer(self, reader: int) -> Consumer:
        consumer = self.dataset.consumer(
            self.rank * self.num_readers + reader,
            self.world_size * self.num_readers,
            seed=self.seed,
            num_here=self.num_readers,
        )
        if self.position.begins is not None:
            consumer.begin_epoch(self.position.begins)
        elif self.position.states and str(reader) in self.position.states:
            consumer.go_on(self.position.states[str(reader)])
        return consumer


class StreamLoader:
    """A loader's batches, each with the mean numbers of rows and of labels that several ranks have in its step.

    Ranks fill their bins by themselves, so that a step's batches differ in shape; an utterance, or a label, weighs as much on whichever
    rank it is.
    The numbers of a batch are exchanged while the one before it is in work.
    """

    def __init__(self, loader: Any, agreement: Agreement, world_size: int) -> None:
        self.loader = loader
        self.agreement = agreement
        self.world_size = world_size

    def __iter__(self) -> Iterator[Batch]:
        if self.world_size == 1:
            yield from self.loader
            return
        batches = iter(self.loader)
        batch = self._fetched(batches)
        while True:
            sums = self.agreement.end()
            following = self._fetched(batches)
            assert sums is not None, "an exchange was begun when the batch was fetched"
            rows, labels = (total / self.world_size for total in sums)
            batch[BATCH_FACTS] = replace(batch[BATCH_FACTS], rows_per_rank=rows, labels_per_rank=labels)
            yield batch
            batch = following

    def _fetched(self, batches: Iterator[Batch]) -> Batch:
        batch = next(batches)
        facts = batch[BATCH_FACTS]
        self.agreement.begin([sum(facts.real), sum(facts.label_lengths)])
        return batch


def as_it_is(batch: Batch) -> Batch:
    """Return a batch: readers collate their own."""
    return batch
