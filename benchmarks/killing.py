"""A run in a child process that can be killed at any moment, and what two runs have in common when they are equal.

Children are forked from a process that has imported the libraries, which a launch takes ten seconds for: many kills take
minutes instead of hours. What a child does is a whole run (asr.experiment.start).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

TINY = [
    *(f"dataset.{key}" for key in ("num_train_utterances=24", "num_validation_utterances=4", "num_test_utterances=10")),
    *("dataset.num_train_speakers=4", "dataset.max_digits=3", "topology.environment={}", "seed=7"),
]
NINE_STEPS = [
    *TINY,
    *(f"trainer.args.{arg}" for arg in ("num_train_epochs=3", "gradient_accumulation_steps=3", "logging_steps=2", "warmup_steps=2")),
    *(f"trainer.args.{arg}" for arg in ("save_strategy=steps", "save_steps=1", "save_total_limit=3", "report_to=[]", "disable_tqdm=true")),
]
SHORT = [
    *NINE_STEPS,
    *(f"model.{key}" for key in ("hidden_dropout=0.1", "layerdrop=0.1", "mask_time_prob=0.2", "mask_feature_prob=0.1")),
    "augment.speed_factors=[0.9,1.0,1.1]",
]
"""A run of nine steps with partial accumulation, dropout, LayerDrop, SpecAugment and changes of speed: everything that throws dice."""
TIMED = ("runtime", "per_second", "_end_time", "_preparation_time")


def import_libraries() -> None:
    """Import what a run imports, before any fork; torch must start no threads in this process."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    from asr import engines, experiment  # noqa: F401

    for name in engines.names():
        if engines.engine(name).argument_fields():
            engines.engine(name).prepare()
            engines.engine(name).trainer_class()


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """Compose as launch.py does."""
    from asr import composition

    return composition.with_absolute_paths(composition.to_container(composition.compose(overrides)), Path.cwd())


def run(
    config: Mapping[str, Any],
    run_dir: Path,
    *,
    until: Callable[[], bool] | None = None,
    number: int = signal.SIGKILL,
    meanwhile: Callable[[int], None] | None = None,
    story: Callable[[], Any] | None = None,
) -> tuple[int, float]:
    """Run an experiment in a child, which gets signal `number` once `until()` is true; return its exit code and its seconds.

    `meanwhile` is called with its process number again and again; `story` is told instead of asr.experiment.start.
    """
    begin = time.monotonic()
    child = os.fork()
    if child == 0:
        _tell(story or (lambda: _start(config, run_dir)), run_dir)
    while not (ended := os.waitpid(child, os.WNOHANG if until or meanwhile else 0))[0]:
        if until is not None and until():
            os.kill(child, number)
            until = None
        if meanwhile is not None:
            meanwhile(child)
        time.sleep(0.002)
    return _code(ended[1]), time.monotonic() - begin


def _code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def _start(config: Mapping[str, Any], run_dir: Path) -> int:
    from asr import experiment

    return experiment.start(config, run_dir, overrides=[], in_child=False)[0]


def _tell(story: Callable[[], Any], run_dir: Path) -> None:
    """Tell a story as launch.py does, its output in a file beside the run directory, and end with its exit code."""
    from asr import stops
    from asr.errors import AsrError

    run_dir.parent.mkdir(parents=True, exist_ok=True)
    said = os.open(run_dir.with_suffix(".said"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # whatever stood there
    os.setpgid(0, 0)
    code: Any = 1
    try:
        code = story()
    except AsrError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        code = mistake.exit_code
    except (KeyboardInterrupt, stops.Terminated) as stop:
        code = stops.ended_by(stop).exit_code
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code or 0)


def results(run_dir: Path) -> dict[str, Any]:
    """Return what a run that was resumed must have in common with one that never stopped: weights, metrics, predictions, the log."""
    from safetensors.torch import load_file

    metrics = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
    return {
        "weights": load_file(str(run_dir / "model" / "model.safetensors")),
        "metrics": {key: value for key, value in metrics.items() if not key.endswith(TIMED)},
        "predictions": (run_dir / "predictions.jsonl").read_text(encoding="utf-8"),
        "logged": logged(run_dir),
    }


def logged(run_dir: Path) -> list[dict[str, float]]:
    """Return what training has logged, of its last checkpoint."""
    from asr import checkpoints

    last = checkpoints.every(run_dir / "checkpoints")[-1:]
    if not last:
        return []
    history = json.loads((last[0].path / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [{key: value for key, value in entry.items() if not key.endswith(TIMED)} for entry in history]


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return in what two runs' results differ, bit for bit; empty where they are equal."""
    import torch

    found = [f"{key}: {one[key]!r} and {other[key]!r}" for key in one if key != "weights" and one[key] != other[key]]
    weights, others = one["weights"], other["weights"]
    if weights.keys() != others.keys() or not all(torch.equal(weights[name], others[name]) for name in weights):
        found.append("weights")
    return found
