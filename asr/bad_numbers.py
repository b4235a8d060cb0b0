"""A loss or a gradient that is NaN or infinite: found, named with its utterances, and the step left out or the run stopped.

In: the loss of each batch and the gradients of each step. Out: a TrainingError that names step and utterances (on_nan=stop), or a
step in which nothing moves, counted (on_nan=skip); and the batch itself (asr.bad_batches).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr import bad_batches
from asr.bad_batches import Watched
from asr.errors import DataError, TrainingError, listed

if TYPE_CHECKING:
    import torch
    from transformers import TrainerCallback

    from asr.agreement import Agreement
    from asr.collate import BatchFacts
    from asr.planning import Shape

log = logging.getLogger(__name__)

MOST_KEPT = 10  # batches saved, all ranks together
MOST_UNREAD = 500  # steps whose numbers lie on a device: no more memory than this, however seldom a run logs
MOST_IN_A_ROW = 50  # steps left out: no bad luck any more, the weights are of no use


@dataclass(frozen=True)
class Step:
    """An optimizer step whose numbers haven't been read: its batches, and the norm of its gradients where that is looked at."""

    number: int
    batches: tuple[Watched, ...]
    gradient_norm: torch.Tensor | None


@dataclass(frozen=True)
class BadBatch:
    """A batch of one rank and what is bad about it, as ranks tell each other."""

    step: int
    rank: int
    what: str
    utterances: tuple[str, ...]
    of_loss: bool
    """Its own loss is bad; otherwise the gradients of a step that it is part of."""
    path: Path


@dataclass(frozen=True)
class Found:
    """A bad batch of this rank, with what is needed to save it."""

    bad: BadBatch
    watched: Watched
    numbers: dict[str, Any]


@dataclass
class BadNumbers:
    """Watches one trainer's losses and gradients.

    When they are read: on a CPU before every optimizer step, so that the weights stay good. With on_nan=skip on every device at
    every step, which makes the host wait for the device each time. With on_nan=stop on a device (HPU, CUDA) where the host waits
    anyway, at steps that log, evaluate or save: by then later steps have spoilt the weights, but none of them is saved, and the
    message names the first. Every rank reads at the same steps, and they tell each other: DDP spreads a NaN over all.

    A step that is left out moves neither weights, nor momentum, nor the module's buffers, and its losses are in no mean that is
    logged; the schedule of the learning rate goes on.

    Only losses are looked at where gradients are another's: fp16's loss scaling makes them infinite on purpose, and leaves such a
    step out itself; DeepSpeed and FSDP keep them in shards. DeepSpeed steps within its backward (accelerate,
    utils/deepspeed.py:281), so that on_nan=skip is refused with it.
    """

    trainer: Any
    on_nan: str
    agreement: Agreement
    steps_skipped: int = 0
    _in_a_row: int = 0
    _batches: list[Watched] = field(default_factory=list)
    _unread: list[Step] = field(default_factory=list)
    _latest: Step | None = None
    _buffers: list[torch.Tensor] = field(default_factory=list)
    """The module's, as they were before the step: running statistics take in whatever forward sees."""
    _gradients: list[tuple[Any, torch.Tensor]] = field(default_factory=list)
    """Taken off their parameters while the optimizer steps over nothing."""
    _stepped: bool = False
    """The loop hasn't come to the step's end yet."""
    _left_out: bool = False
    """That step is left out."""
    _sum: torch.Tensor | float = 0.0
    """The loop's sum of losses that aren't logged yet, of the steps before this."""
    _current_sum: torch.Tensor | float = 0.0
    """The loop's own tensor, which logging sets to zero in place."""
    _unlogged: int = 0
    """Steps that aren't logged yet, and how many of them were left out."""
    _unlogged_skipped: int = 0
    _saved_paths: list[Path] = field(default_factory=list)
    """Of the latest bad batches, on all ranks; and why others aren't there."""
    _not_saved: list[str] = field(default_factory=list)

    # ---- what is watched ----

    def begin(self) -> None:
        """Forget what hasn't been read: a training begins."""
        self._batches, self._unread, self._latest = [], [], None

    def watch(self, loss: torch.Tensor, facts: BatchFacts, shape: Shape) -> None:
        """Take note of a training batch and its loss, without waiting for it."""
        self._batches.append(Watched(loss.detach(), facts, shape))

    def before_batches(self) -> None:
        """Keep what the forwards of a step may spoil, where it may have to be as before."""
        if self.on_nan == "skip":
            self._buffers = [buffer.detach().clone() for buffer in self.trainer.model.buffers()]

    def before_step(self) -> None:
        """Take note of what the optimizer is about to step by; read it, where that is due now."""
        gradients = (p.grad for p in self.trainer.model.parameters() if p.grad is not None)
        norm = None if self._gradients_are_anothers else _norm(gradients)
        self._latest = Step(self.trainer.state.global_step + 1, tuple(self._batches), norm)
        self._unread.append(self._latest)
        self._batches, self._stepped = [], True
        if self.on_nan == "skip" or self.trainer.args.device.type == "cpu" or len(self._unread) >= MOST_UNREAD:
            self.read()

    @property
    def _gradients_are_anothers(self) -> bool:
        accelerator = self.trainer.accelerator
        return accelerator.scaler is not None or _kind(accelerator) in ("DEEPSPEED", "FSDP")

    def before_saving(self) -> None:
        """Read what hasn't been read, and the weights, which a step of finite gradients can overflow; raise TrainingError."""
        self.read()
        model = self.trainer.model
        norm = float(_norm(t.detach() for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()))
        spoilt = not math.isfinite(norm) and self._latest is not None
        told = self._told(self._found(self._latest, f"the weights' norm is {norm} after a step", {}) if spoilt and self._latest else [])
        if told:
            raise TrainingError(self._explained(told))

    # ---- what follows ----

    def read(self) -> None:
        """Read what hasn't been read; leave the step out, or raise TrainingError. Every rank has to call it at the same step."""
        steps, self._unread = self._unread, []
        if not steps:
            return
        told = self._told([found for step, losses, norm in _numbers(steps) for found in self._judged(step, losses, norm)])
        if told and self.on_nan == "stop":
            raise TrainingError(self._explained(told))
        self._in_a_row = self._in_a_row + 1 if told else 0
        if told:
            self._leave_out(told)

    def _judged(self, step: Step, losses: Sequence[float], norm: float | None) -> list[Found]:
        """Return the step's batches whose loss is bad; all of them, where only the gradients are."""
        bad = [place for place, loss in enumerate(losses) if not math.isfinite(loss)]
        if bad:
            return [self._one_found(step, i, f"the loss is {losses[i]}", {"loss": losses[i], "gradient_norm": norm}) for i in bad]
        if norm is None or math.isfinite(norm):
            return []
        return self._found(step, f"the gradients' norm is {norm}", {"gradient_norm": norm}, losses)

    def _found(self, step: Step, what: str, numbers: dict[str, Any], losses: Sequence[float] = ()) -> list[Found]:
        each = [{**numbers, "loss": loss} for loss in losses] or [numbers] * len(step.batches)
        return [self._one_found(step, place, what, of_it, of_loss=False) for place, of_it in enumerate(each)]

    def _one_found(self, step: Step, place: int, what: str, numbers: dict[str, Any], of_loss: bool = True) -> Found:
        rank, watched = self.trainer.args.process_index, step.batches[place]
        of = f"-batch-{place}" if len(step.batches) > 1 else ""
        path = self._folder / f"step-{step.number}-rank-{rank}{of}.safetensors"
        bad = BadBatch(step.number, rank, what, watched.utterance_ids(self.trainer.train_dataset), of_loss, path)
        return Found(bad, watched, {"step": step.number, "rank": rank, "what": what, **numbers})

    @property
    def _folder(self) -> Path:
        return Path(self.trainer.args.output_dir).parent / bad_batches.FOLDER

    def _told(self, found: Sequence[Found]) -> list[BadBatch]:
        """Return what went bad first on any rank, once it is saved: the batches of bad loss, or all of the step where there are none."""
        if not self.agreement.sums([len(found)])[0]:
            return []
        each = self.agreement.gathered((bad_batches.num_kept(self._folder), [one.bad for one in found]))
        everything = [bad for _, of_rank in each for bad in of_rank]
        first = min(bad.step for bad in everything)
        told = [bad for bad in everything if bad.step == first]
        told = [bad for bad in told if bad.of_loss] or told
        room = max(0, MOST_KEPT - each[0][0])
        problems = [problem for one in found if one.bad in told[:room] for problem in self._saved(one)]
        self._not_saved = [problem for of_rank in self.agreement.gathered(problems) for problem in of_rank]
        self._saved_paths = [bad.path for bad in told[:room]]
        return told

    def _saved(self, one: Found) -> list[str]:
        """Save a batch; return why it couldn't be."""
        from safetensors import SafetensorError

        try:
            bad_batches.save(one.watched, one.bad.path, self.trainer.train_dataset, self.trainer.data_collator, one.numbers)
        except (OSError, SafetensorError, DataError) as error:
            return [f"{one.bad.path.name} can't be written: {error}"]
        return []

    def _described(self, told: Sequence[BadBatch]) -> str:
        """Return what went bad, where, and where to look at it."""
        names = [name for bad in told for name in bad.utterances]
        ranks = sorted({bad.rank for bad in told}) if self.trainer.args.world_size > 1 else []
        on = f" (rank {', '.join(map(str, ranks))})" if ranks else ""
        kept = f"; saved for inspection as {listed([str(path) for path in self._saved_paths], 1)}" if self._saved_paths else ""
        lost = f"; {self._not_saved[0]}" if self._not_saved else ""
        many = "batch" if len(told) == 1 else f"{len(told)} batches"
        return f"step {told[0].step}: {told[0].what}{on}. Utterances of its {many}: {listed(names) or 'none, fillers alone'}{kept}{lost}"

    def _explained(self, told: Sequence[BadBatch]) -> str:
        args = self.trainer.args
        kept = sorted(Path(args.output_dir).glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        last = f"{kept[-1].name} is from before it, and good" if kept else "No checkpoint was saved before"
        skip = ", or leave such steps out with trainer.on_nan=skip" if self.on_nan == "stop" else ""
        return (
            f"{self._described(told)}. Lower trainer.args.learning_rate ({args.learning_rate:g}) or trainer.args.max_grad_norm "
            f"({args.max_grad_norm:g}), look at these utterances{skip}. {last}."
        )

    def _leave_out(self, told: Sequence[BadBatch]) -> None:
        """Make the step one in which nothing moves."""
        self.steps_skipped += 1
        self._left_out = True
        if self.trainer.args.process_index == 0:
            log.warning("%s. The step is left out (trainer.on_nan=skip), %d so far", self._described(told), self.steps_skipped)
        if self._in_a_row >= MOST_IN_A_ROW:
            raise TrainingError(
                f"{self._in_a_row} steps in a row were left out, so nothing is learnt any more. The last: {self._explained(told)}"
            )
        accelerator, clips = self.trainer.accelerator, (self.trainer.args.max_grad_norm or 0) > 0
        if accelerator.scaler is not None and not clips:
            accelerator.unscale_gradients()  # the scaler wants to have seen gradients before it steps; clipping has shown them to it
        self._gradients = [(p, p.grad) for p in self.trainer.model.parameters() if p.grad is not None]
        for parameter, _ in self._gradients:
            parameter.grad = None
        for buffer, before in zip(self.trainer.model.buffers(), self._buffers, strict=True):
            buffer.data.copy_(before)

    def after_step(self) -> None:
        """Give parameters their gradients back: an HPU graph writes into these very tensors (optimum-habana, trainer.py:2764)."""
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        self._gradients = []

    # ---- what is logged ----

    def at_step_end(self, sum_of_losses: torch.Tensor, *, reads: bool) -> None:
        """Take the losses of a step that was left out from the loop's sum, in place; read where the host waits anyway."""
        if self._stepped:
            self._unlogged += 1
            if self._left_out:
                self._unlogged_skipped += 1
                sum_of_losses.fill_(self._sum)
        self._stepped = self._left_out = False
        self._current_sum = sum_of_losses
        if reads:
            self.read()

    def at_step_over(self, sum_of_losses: torch.Tensor) -> None:
        """Keep the loop's sum as it is before the next step."""
        if self.on_nan == "skip":
            self._sum = sum_of_losses.detach().clone()

    def correct(self, logs: dict[str, Any]) -> None:
        """Make the losses of a log line means over the steps that were taken; the loop divides by all of them."""
        if "loss" in logs:
            taken = self._unlogged - self._unlogged_skipped
            if taken and self._unlogged_skipped:
                logs["loss"] = round(logs["loss"] * self._unlogged / taken, 4)
            elif not taken and self._unlogged_skipped:
                del logs["loss"]
            if self._unlogged_skipped and not math.isfinite(logs.get("grad_norm", 0.0)):
                del logs["grad_norm"]
            self._unlogged = self._unlogged_skipped = 0
        if "train_loss" in logs:
            logs["num_train_steps_skipped"] = self.steps_skipped
            steps = self.trainer.state.global_step
            if self.steps_skipped and steps == self.steps_skipped:
                raise TrainingError(
                    f"all {steps} steps were left out (trainer.on_nan=skip): nothing was learnt. run.log names their utterances."
                )
            logs["train_loss"] *= steps / (steps - self.steps_skipped) if self.steps_skipped else 1

    # ---- what a resumed training takes up ----

    def progress(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold, as JSON."""
        return {
            "steps_skipped": self.steps_skipped,
            "in_a_row": self._in_a_row,
            "unlogged": self._unlogged,
            "unlogged_skipped": self._unlogged_skipped,
            "sum": float(self._current_sum),
        }

    def restore(self, progress: dict[str, Any]) -> None:
        """Take up what `progress` returned."""
        self.steps_skipped, self._in_a_row = progress["steps_skipped"], progress["in_a_row"]
        self._unlogged, self._unlogged_skipped = progress["unlogged"], progress["unlogged_skipped"]
        self._sum = self._current_sum = progress["sum"]


def _kind(accelerator: Any) -> str:
    return str(accelerator.distributed_type).rpartition(".")[2]


def _norm(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return the total norm of some tensors, on their device."""
    import torch

    return torch.nn.utils.get_total_norm(tensors)


def _numbers(steps: Sequence[Step]) -> list[tuple[Step, list[float], float | None]]:
    """Return losses and gradient norm of each step on the host, asked for at once."""
    import torch

    lying = [number for step in steps for number in (*(b.loss for b in step.batches), step.gradient_norm) if number is not None]
    values = iter(torch.stack([number.float() for number in lying]).tolist() if lying else ())
    return [(s, [next(values) for _ in s.batches], None if s.gradient_norm is None else next(values)) for s in steps]


def callback(watching: BadNumbers) -> TrainerCallback:
    """Return what a trainer's loop calls."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            watching.begin()

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            watching.before_batches()

        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            watching.before_step()

        def on_optimizer_step(self, *_: Any, **__: Any) -> None:
            watching.after_step()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            watching.before_saving()

    return Watch()
