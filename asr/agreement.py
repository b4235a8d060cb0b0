"""What the ranks of a run agree on at the end of each optimizer step: whether to save and stop, to skip, to give up.

In: each rank's own counts. Out: their sums over all ranks, the same on every rank at the same step. Exchanged between
the hosts through gloo, so that no device is waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any


class Agreement:
    """Sums of a few integers over all ranks; of one rank alone, its own. Every rank has to make it and to call it, in one order.

    `begin` starts an exchange and `end` waits for it: between them lies a step, so that no rank waits for another's step.
    """

    def __init__(self, world_size: int, *, timeout_seconds: float = 1800) -> None:
        self._group: Any = None
        if world_size > 1:
            import torch.distributed

            self._group = torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))
        self._begun: tuple[Any, Any] | None = None

    def begin(self, counts: Sequence[int]) -> None:
        """Start to exchange `counts`; an exchange that has begun must have ended."""
        assert self._begun is None, "an exchange goes on"
        self._begun = self._started(counts)

    def _started(self, counts: Sequence[int]) -> tuple[Any, Any]:
        import torch

        sums = torch.tensor(list(counts), dtype=torch.int64)
        work = torch.distributed.all_reduce(sums, group=self._group, async_op=True) if self._group is not None else None
        return work, sums

    def end(self) -> list[int] | None:
        """Return the sums of the exchange that has begun; None where none has."""
        if self._begun is None:
            return None
        begun, self._begun = self._begun, None
        return _ended(begun)

    def sums(self, counts: Sequence[int]) -> list[int]:
        """Exchange `counts` at once, also while another exchange goes on. Every rank waits for all: a barrier."""
        return _ended(self._started(counts))

    def gathered(self, said: Any) -> list[Any]:
        """Return what every rank says, by rank: a small object that can be pickled."""
        if self._group is None:
            return [said]
        import torch.distributed

        each: list[Any] = [None] * torch.distributed.get_world_size(self._group)
        torch.distributed.all_gather_object(each, said, group=self._group)
        return each


def _ended(begun: tuple[Any, Any]) -> list[int]:
    work, sums = begun
    if work is not None:
        work.wait()
    return [int(value) for value in sums]
