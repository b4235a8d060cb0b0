"""Which checkpoint is best: by what metric, which way, and what each of them scored.

In: training arguments, and trainer_state.json of checkpoints. Out: ConfigErrors for a choice that couldn't be made, and the choice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asr.checkpoints import STATE_FILE, Checkpoint
from asr.errors import ConfigError, did_you_mean

LOWER_IS_BETTER = ("loss", "wer", "cer", "mer")


@dataclass(frozen=True)
class Best:
    """A metric of the evaluations during training, and which way it is better."""

    metric: str
    greater_is_better: bool

    @classmethod
    def of(cls, args: Any) -> Best:
        """Return what a library's arguments object says."""
        return cls(_bare(args.metric_for_best_model), bool(args.greater_is_better))

    def value_of(self, checkpoint: Checkpoint) -> float | None:
        """Return what was measured at a checkpoint's own step; None where there was no evaluation, or no number came of it."""
        step, value = (self._measured(checkpoint) or [(-1, math.nan)])[-1]
        return value if step == checkpoint.step and math.isfinite(value) else None

    def was_new(self, checkpoint: Checkpoint) -> bool:
        """Say whether a checkpoint was better than whatever had been measured before it."""
        value = self.value_of(checkpoint)
        before = [earlier for step, earlier in self._measured(checkpoint) if step < checkpoint.step]
        return value is not None and all(math.isnan(earlier) or self._sign * value < self._sign * earlier for earlier in before)

    def _measured(self, checkpoint: Checkpoint) -> list[tuple[int, float]]:
        """Return steps and values of all evaluations up to a checkpoint's."""
        name = f"eval_{self.metric}"
        try:
            state = json.loads((checkpoint.path / STATE_FILE).read_text(encoding="utf-8"))
            found = [(int(entry["step"]), float(entry[name])) for entry in state["log_history"] if name in entry]
        except (OSError, ValueError, KeyError, TypeError):  # damaged: checkpoints.newest_good says so where it matters
            return []
        return [(step, value) for step, value in found if step <= checkpoint.step]

    @property
    def _sign(self) -> int:
        return -1 if self.greater_is_better else 1

    def order(self, checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
        """Return checkpoints, the best first; of equal ones the later, and none that wasn't evaluated."""
        scored = [(self._sign * value, -each.step, each) for each in checkpoints if (value := self.value_of(each)) is not None]
        return [each for *_, each in sorted(scored, key=lambda row: row[:2])]


def check(args: Mapping[str, Any], eval_metrics: Sequence[str]) -> None:
    """Raise ConfigError for a metric that no evaluation measures, or that is better the other way."""
    metric = args.get("metric_for_best_model")
    if metric is None:
        return
    measured = ["loss", *(Path(name).stem for name in eval_metrics)]
    if _bare(metric) not in measured:
        near = did_you_mean(str(metric), measured)
        raise ConfigError(f"{metric!r} is not one of {', '.join(measured)}.{near}", key="args.metric_for_best_model")
    greater = args.get("greater_is_better")
    if _bare(metric) in LOWER_IS_BETTER and greater:
        raise ConfigError(f"a lower {_bare(metric)} is better: leave it out, or set it to false.", key="args.greater_is_better")
    if _bare(metric) not in LOWER_IS_BETTER and greater is None:
        raise ConfigError(f"is a greater {_bare(metric)} better, or a lower one? Say true or false.", key="args.greater_is_better")


def arguments(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the argument that says which way our own metrics are better.

    Left alone, transformers takes a greater one for better unless its name ends in "loss" (4.55, training_args.py:1708): the best
    checkpoint by wer would be the worst.
    """
    return {"greater_is_better": False} if _bare(args.get("metric_for_best_model")) in LOWER_IS_BETTER else {}


def check_named(args: Mapping[str, Any], key: str, eval_metrics: Sequence[str]) -> None:
    """Raise ConfigError with `key` where nothing says by what to compare, or nothing is measured on the way."""
    if args.get("metric_for_best_model") is None:
        measured = " or ".join(["loss", *(Path(name).stem for name in eval_metrics)])
        raise ConfigError(f"compares evaluations: say by what with trainer.args.metric_for_best_model ({measured}).", key=key)
    if args.get("eval_strategy", "no") == "no":
        raise ConfigError("compares evaluations, and there are none: set trainer.args.eval_strategy to epoch or steps.", key=key)


def check_evaluated_when_saved(args: Mapping[str, Any], key: str) -> None:
    """Raise ConfigError with `key` where checkpoints are saved at steps that aren't evaluated.

    The same is asked for load_best_model_at_end (transformers 4.55, training_args.py:1666-1694).
    """
    evaluates, saves = args.get("eval_strategy", "no"), args.get("save_strategy", "steps")
    if saves == "best":
        return
    if evaluates != saves:
        raise ConfigError(
            f"needs checkpoints that were evaluated: args.eval_strategy={evaluates} and args.save_strategy={saves} must be the same.",
            key=key,
        )
    each_eval, each_save = args.get("eval_steps") or args.get("logging_steps", 500), args.get("save_steps", 500)
    times = each_save / each_eval
    if evaluates == "steps" and ((each_eval < 1) != (each_save < 1) or round(times) < 1 or not math.isclose(times, round(times))):
        raise ConfigError(
            f"needs checkpoints that were evaluated: args.save_steps={each_save} is no multiple of args.eval_steps={each_eval}.", key=key
        )


def _bare(metric: Any) -> str:
    """Return a metric's name without the prefix that transformers puts before it."""
    return str(metric).removeprefix("eval_")
