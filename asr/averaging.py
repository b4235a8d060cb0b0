"""The mean of several checkpoints' weights, as the weights that a run ends with.

In: the checkpoints of a run. Out: their mean in the trainer's model. Every rank reads the shared folder and computes
the same sums in the same order, so that all end with the same bits.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr import best, checkpoints
from asr.best import Best
from asr.checkpoints import Checkpoint
from asr.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

KEY = "average_checkpoints"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def check(k: int | None, by: str, args: Mapping[str, Any], eval_metrics: Sequence[str]) -> None:
    """Raise ConfigError, under the key of the trainer node, where there wouldn't be the checkpoints to take the mean of."""
    if k is None:
        return
    if args.get("load_best_model_at_end"):
        raise ConfigError("says what weights the model ends with, and so does args.load_best_model_at_end: set one of them only.", key=KEY)
    if args.get("save_strategy") == "no":
        raise ConfigError("there are no checkpoints with args.save_strategy=no: set it to epoch or steps.", key=KEY)
    if args.get("save_safetensors") is False:
        raise ConfigError("weights are read from safetensors only, never from pickles: leave args.save_safetensors out.", key=KEY)
    limit = args.get("save_total_limit")
    if by == "best":
        best.check_named(args, KEY, eval_metrics)
        best.check_evaluated_when_saved(args, KEY)
        if limit == 1:  # the libraries' loop then deletes all but one at its end (transformers 4.55, trainer.py:2756)
            raise ConfigError("only the best is kept with args.save_total_limit=1: set that to 2 or more, or to null.", key=KEY)
    elif limit is not None and k > limit:
        raise ConfigError(f"only args.save_total_limit={limit} are kept: set that to {k} or more, or to null.", key=KEY)


@dataclass(frozen=True)
class Averaging:
    """Which checkpoints' mean a run ends with: the k last, or the k best."""

    k: int
    best: Best | None = None
    """By what the best are chosen; None chooses the last."""

    def order(self, found: Sequence[Checkpoint]) -> list[Checkpoint]:
        """Return checkpoints in the order in which they are taken."""
        return list(reversed(found)) if self.best is None else self.best.order(found)

    def worth_keeping(self, trainer: Any) -> set[Path]:
        """Return the checkpoints that would be averaged if training ended now: save_total_limit must spare them."""
        return {checkpoint.path for checkpoint in self.order(_planned(trainer))[: self.k]}

    def apply(self, trainer: Any) -> list[str]:
        """Put the mean into the trainer's model and return the names of the checkpoints; every rank calls it, once training is over."""
        trainer.accelerator.wait_for_everyone()  # the first rank may still be writing the last
        whole = filter(_is_whole, self.order(_planned(trainer)))
        used = sorted(islice(whole, self.k), key=lambda each: each.step)
        if not used:
            why = f"none in {trainer.args.output_dir} is whole" + (" and was evaluated at its step" if self.best else "")
            raise CheckpointError(f"trainer.average_checkpoints={self.k}: there is no checkpoint to take; {why}.")
        if len(used) < self.k:
            log.warning("trainer.average_checkpoints=%d, and there are %d: the mean is of those", self.k, len(used))
        put_mean(trainer.model, [each.path for each in used])
        names = [each.path.name for each in used]
        how = "last" if self.best is None else f"best by {self.best.metric}"
        log.info("the model is the mean of the %d %s checkpoints: %s", len(names), how, ", ".join(names))
        return names


def put_mean(model: torch.nn.Module, folders: Sequence[Path]) -> None:
    """Write the mean of the weights in `folders`, the newest last, into a model in place.

    Tensor by tensor, so that no more than one of them is in memory beside the model. The mean is the newest's value plus the
    mean difference from it, in float32 (float64 where weights are): what never changed keeps its value to the last digit, and the
    rest is within a rounding of its own, and k of the differences, of the true mean. What isn't floating point is the newest's.
    """
    import torch

    targets = model.state_dict(keep_vars=True)
    with contextlib.ExitStack() as opened:
        sources = [_Weights(folder, opened) for folder in folders]
        newest = sources[-1]
        _check_names(model, targets, sources)
        for name in sorted(newest.files):
            value = newest.tensor(name)
            if value.is_floating_point():
                wide = value.to(torch.promote_types(value.dtype, torch.float32))
                total = torch.zeros_like(wide)
                for source in sources[:-1]:
                    total += source.tensor(name).to(wide.dtype) - wide
                value = wide + total / len(sources)
            with torch.no_grad():
                targets[name].copy_(value)


class _Weights:
    """One checkpoint's tensors by name, in one file or in shards, read when they are asked for. Never a pickle."""

    def __init__(self, folder: Path, opened: contextlib.ExitStack) -> None:
        from safetensors import SafetensorError, safe_open

        self.folder = folder
        try:
            shards: Mapping[str, str] = {}
            if not (folder / WEIGHTS_FILE).exists():
                shards = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(shards.values())) or [WEIGHTS_FILE]
            files = {name: opened.enter_context(safe_open(str(folder / name), framework="pt")) for name in names}
            self.files = {key: files[shards[key]] for key in shards} or dict.fromkeys(files[WEIGHTS_FILE].keys(), files[WEIGHTS_FILE])
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise CheckpointError(f"the weights of {folder} can't be read: {error}") from error

    def tensor(self, name: str) -> torch.Tensor:
        return self.files[name].get_tensor(name)


def _check_names(model: Any, targets: Mapping[str, torch.Tensor], sources: Sequence[_Weights]) -> None:
    """Raise CheckpointError unless every checkpoint has the model's tensors; one stored once for two names is there by one."""
    named = set(sources[-1].files)
    for source in sources:
        if set(source.files) != named:
            differs = sorted(named ^ set(source.files))[0]
            raise CheckpointError(f"{source.folder} and {sources[-1].folder.name} hold weights of different models: {differs}.")
    written = {id(targets[name]) for name in named if name in targets}
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    lacking = [name for name, value in targets.items() if name not in named | ignored and id(value) not in written]
    strange = sorted(named - set(targets)) + lacking
    if strange:
        raise CheckpointError(f"the weights of {sources[-1].folder} are not those of the model: {strange[0]}.")


def _planned(trainer: Any) -> list[Checkpoint]:
    """Return the checkpoints that args.save_strategy asked for, by step.

    A run that is preempted saves in between, too: it must end with the same weights as one that never stopped.
    """
    how, state = trainer.args.save_strategy, trainer.state
    found = checkpoints.every(Path(trainer.args.output_dir))
    if how == "best":
        return [each for each in found if Best.of(trainer.args).was_new(each)]
    every = trainer.steps_per_epoch if how == "epoch" else state.save_steps
    ends = {state.max_steps, state.global_step if how == "epoch" else None}  # an epoch that is broken off ends with a save
    return [each for each in found if each.step % every == 0 or each.step in ends]


def _is_whole(checkpoint: Checkpoint) -> bool:
    """Say whether a checkpoint's weights are as they were written; warn where they aren't."""
    problem = checkpoint.problem(only=lambda name: name.startswith("model") or name == checkpoints.STATE_FILE)
    if problem:
        log.warning("a checkpoint is damaged, and no part of the mean: %s", problem)
    return problem is None
