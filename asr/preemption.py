"""Preemption: one of a run's ranks was asked to end, or its time is over, and all save a checkpoint at the same step.

In: the signal that a training has noted (`stops.deferred`), the time limit, and the sums that ranks exchange at each step's end.
Out: `control.should_save` at the step on which all agree, and the end of the run as preempted once that step is saved.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from asr.stops import PREEMPTING, Asked, end_as_preempted

log = logging.getLogger(__name__)

RANK_BITS = 15
"""Of an agreed sum, for each reason: so many ranks may have it."""
TIME_IS_OVER = "trainer.max_hours"
REASONS = (*(number.name for number in PREEMPTING), TIME_IS_OVER)


class Preemption:
    """Takes part in what ranks agree on at a step's end. `wanted` says whether this step is to be saved, and the run then ends.

    `trainer` is anything with a `control`. `started` is when the session began, in seconds since 1970: its parent was earlier than
    this rank. From here on the monotonic clock counts, which nobody sets.
    """

    def __init__(
        self,
        trainer: Any,
        asked: Asked,
        run_dir: Path,
        *,
        started: float,
        max_hours: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.trainer, self.asked, self.run_dir, self.max_hours = trainer, asked, run_dir, max_hours
        self.clock = clock
        self.over_at = float("inf") if max_hours is None else clock() + max_hours * 3600 - (now() - started)
        self.wanted = False
        self.reasons: list[str] = []

    def count(self) -> int:
        """Return why this rank wants to end, as a number whose sum over the ranks says how many of them have each reason."""
        mine = [self.asked.number.name] if self.asked.number is not None else []
        if self.clock() >= self.over_at:
            mine.append(TIME_IS_OVER)
        return sum(1 << RANK_BITS * REASONS.index(reason) for reason in mine)

    def act(self, total: int) -> None:
        """Have this step saved where any rank wants to end: the same step on every rank, which all have the sum."""
        if total == 0 or self.wanted:
            return
        self.wanted = True
        self.reasons = [reason for i, reason in enumerate(REASONS) if total >> RANK_BITS * i & ((1 << RANK_BITS) - 1)]
        self.trainer.control.should_save = True
        if TIME_IS_OVER in self.reasons:
            log.info(
                "the %g hours of trainer.max_hours are over: a checkpoint is saved at the end of this step, then the run ends",
                self.max_hours,
            )

    def saved(self, step: int) -> NoReturn:
        """End the run on this rank; every rank has to know that the checkpoint is on disk."""
        end_as_preempted(f"preempted ({self._why}) after step {step}, which is saved; {self._go_on}")

    def not_saved(self, step: int, problem: object) -> NoReturn:
        """End the run all the same: the machine is wanted."""
        last = last_checkpoint(self.run_dir)
        there = "there is no checkpoint, so it begins anew" if last is None else f"the last checkpoint is that of step {last}"
        end_as_preempted(f"preempted ({self._why}) after step {step}, which can't be saved ({problem}); {there}; {self._go_on}")

    @property
    def _why(self) -> str:
        return ", ".join(f"{r}={self.max_hours:g}" if r == TIME_IS_OVER else r for r in self.reasons)

    @property
    def _go_on(self) -> str:
        return f"resume=auto goes on from there, or `asr resume {self.run_dir}`"


def last_checkpoint(run_dir: Path) -> int | None:
    """Return the step of a run's last checkpoint: they are complete under this name."""
    steps = [int(found.group(1)) for path in (run_dir / "checkpoints").glob("*") if (found := re.fullmatch(r"checkpoint-(\d+)", path.name))]
    return max(steps, default=None)
