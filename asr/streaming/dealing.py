"""Which units whom: an epoch's units permuted and dealt over consumers, so that every utterance comes once for each epoch number.

In: how many units there are, how many read them, a seed. Out: a consumer's units of an epoch, in its order. A consumer is one loader's
worker of one rank.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Dealing:
    """Units go round; where there are fewer of them than consumers, each consumer reads all and takes every so-manieth row."""

    num_units: int
    num_consumers: int
    seed: int

    @property
    def by_row(self) -> bool:
        return self.num_units < self.num_consumers

    def order(self, epoch: int) -> list[int]:
        """Return all units in the order of an epoch."""
        units = list(range(self.num_units))
        random.Random(f"{self.seed}/{epoch}/units").shuffle(units)
        return units

    def units(self, consumer: int, epoch: int) -> list[int]:
        """Return the units that a consumer reads in an epoch, in order."""
        order = self.order(epoch)
        return order if self.by_row else order[consumer :: self.num_consumers]

    def takes(self, consumer: int, epoch: int, unit: int, row: int) -> bool:
        """Say whether a row of a unit that a consumer reads is its own. Who takes the first of a unit changes with unit and epoch."""
        return not self.by_row or (row + unit + epoch) % self.num_consumers == consumer
