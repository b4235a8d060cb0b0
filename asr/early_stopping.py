"""Training that stops once evaluations don't get better.

In: a patience. Out: transformers' own callback, whose count survives a resume, and the step at which it stopped a run.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from asr import best

if TYPE_CHECKING:
    from transformers import TrainerCallback

log = logging.getLogger(__name__)


def check(patience: int | None, args: Mapping[str, Any], eval_metrics: Sequence[str]) -> None:
    """Raise ConfigError where the callback would fail an assertion once training begins (transformers 4.55, trainer_callback.py:752)."""
    if patience is not None:
        best.check_named(args, "early_stopping_patience", eval_metrics)


def callback(patience: int, threshold: float) -> TrainerCallback:
    """Return a callback for the trainer."""
    return _callback_class()(early_stopping_patience=patience, early_stopping_threshold=threshold)


def stopped_at(trainer: Any) -> int | None:
    """Return the step at which a trainer's run was stopped early; None where it wasn't."""
    mine = next((each for each in trainer.callback_handler.callbacks if isinstance(each, _callback_class())), None)
    return None if mine is None else mine.stopped_at_step


@lru_cache
def _callback_class() -> type[Any]:
    from transformers import EarlyStoppingCallback

    class EarlyStopping(EarlyStoppingCallback):  # type: ignore[misc]
        """Counts evaluations of the training only, and remembers where it stopped.

        Its state is part of a checkpoint's trainer_state.json; a run that goes on makes another from it (Trainer._load_callback_state).
        """

        stopped_at_step: int | None = None
        trains = False

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.trains = True
            super().on_train_begin(args, state, control, **kwargs)

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.trains = False
            if self.stopped_at_step is not None:
                log.info("training stopped early, at step %d", self.stopped_at_step)

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
            if not self.trains:  # the evaluate stage, when all is done
                return
            super().on_evaluate(args, state, control, metrics, **kwargs)
            if self.early_stopping_patience_counter >= self.early_stopping_patience and state.global_step < state.max_steps:
                self.stopped_at_step = state.global_step
                name, value = args.metric_for_best_model, state.best_metric
                log.info("%d evaluations in a row without a %s better than %s", self.early_stopping_patience_counter, name, value)

        def state(self) -> dict[str, Any]:
            kept: dict[str, Any] = super().state()
            kept["attributes"]["stopped_at_step"] = self.stopped_at_step
            return kept

    return EarlyStopping
