"""Which utterances share a batch, and in what order.

In: durations and a batch size. Out: lists of row numbers, the same for the same seed and epoch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

POOL_BATCHES = 50  # batches sorted together: as in transformers' LengthGroupedSampler, enough to leave little padding


class LengthGroupedBatches:
    """Batches of rows of like length, padded to the longest by whoever collates them.

    Every row comes once an epoch. Rows are shuffled, sorted by length within pools of 50 batches, cut into
    batches, and the batches are shuffled with the longest first, so that memory runs out at the start or never.
    `set_epoch` reshuffles; (seed, epoch) decides everything.
    """

    def __init__(
        self,
        seconds: Sequence[float],
        batch_size: int,
        *,
        seed: int = 0,
        group_by_length: bool = True,
        drop_last: bool = False,
    ) -> None:
        self.seconds = seconds
        self.batch_size = batch_size
        self.seed = seed
        self.group_by_length = group_by_length
        self.drop_last = drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        full, rest = divmod(len(self.seconds), self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    def __iter__(self) -> Iterator[list[int]]:
        dice = random.Random(f"{self.seed}/{self.epoch}")
        rows = list(range(len(self.seconds)))
        dice.shuffle(rows)
        if self.drop_last:
            rows = rows[: len(self) * self.batch_size]
        if not self.group_by_length:
            yield from _cut(rows, self.batch_size)
            return
        batches = [
            batch
            for pool in _cut(rows, POOL_BATCHES * self.batch_size)
            for batch in _cut(sorted(pool, key=self.seconds.__getitem__, reverse=True), self.batch_size)
        ]
        dice.shuffle(batches)
        longest = max(range(len(batches)), key=lambda i: self.seconds[batches[i][0]])
        batches[0], batches[longest] = batches[longest], batches[0]
        yield from batches


class SortedBatches:
    """Batches for evaluation: every row once, longest first, no shuffling."""

    def __init__(self, seconds: Sequence[float], batch_size: int) -> None:
        self.rows = sorted(range(len(seconds)), key=seconds.__getitem__, reverse=True)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        return _cut(self.rows, self.batch_size)


def _cut(rows: list[int], size: int) -> Iterator[list[int]]:
    return (rows[i : i + size] for i in range(0, len(rows), size))
