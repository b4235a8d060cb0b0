"""The course of a training: what was logged on the way, whatever became of it in the end.

In: what a Trainer has logged. Out: history.jsonl, a line for each log event, and the curves in it.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asr import runs

log = logging.getLogger(__name__)

HISTORY_FILE = "history.jsonl"


def keep(speech_trainer: Any, run_dir: Path) -> None:
    """Have a trainer write its history at each save, so that one that is killed leaves it too; the first rank's part.

    A resumed training has the lines of the sessions before: checkpoints hold them.
    """
    speech_trainer.after_save.append(lambda _problem: save(speech_trainer, run_dir))


def save(speech_trainer: Any, run_dir: Path) -> None:
    """Write history.jsonl; a disk that is full costs it, with a warning, and not the training."""
    events = speech_trainer.state.log_history
    if not events:
        return
    try:
        runs.write_text(run_dir / HISTORY_FILE, "".join(json.dumps(_finite(event)) + "\n" for event in events))
    except OSError as error:
        log.warning("%s can't be written: %s", run_dir / HISTORY_FILE, error)


def _finite(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return a log event as JSON has it: no NaN, no infinity."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in event.items()}


def load(run_dir: Path) -> list[dict[str, Any]]:
    """Return the log events of a run, none where it never logged; raise ConfigError for a line that is none."""
    path = run_dir / HISTORY_FILE
    return runs.read_lines(path) if path.is_file() else []


def curve(events: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Return the steps at which a value was logged, in order, and the values; of a step that was logged twice the last one.

    >>> curve([{"step": 2, "loss": 3.0}, {"step": 4, "loss": 1.5}, {"step": 4, "eval_loss": 2.0}], "loss")
    ([2, 4], [3.0, 1.5])
    """
    points = {int(event["step"]): float(event[key]) for event in events if _is_number(event.get(key)) and _is_number(event.get("step"))}
    steps = sorted(points)
    return steps, [points[step] for step in steps]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
