"""Training that can be stopped anywhere: what a checkpoint holds, how it is written, and going on from it as if nothing had been.

In: a Trainer class of 4.55's or 5's loop. Out: the same, whose checkpoints are whole or not there (asr.checkpoints), and which
goes on from one with the batches, dice, sums and counts that it would have had.

What the libraries leave out of a checkpoint, per rank in progress_<rank>.json: the loss that isn't logged yet, the sum of
those that are, what went through forward, seconds. What they do wrong when they go on within an epoch is mended here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from asr import checkpoints
from asr.agreement import Agreement
from asr.checkpoints import STATE_FILE, Checkpoint
from asr.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import TrainerCallback

log = logging.getLogger(__name__)

PROGRESS_FILE = "progress_{rank}.json"


class Participant(Protocol):
    """What has a say at the end of each optimizer step: ranks exchange its counts, and every rank acts on their sum."""

    def count(self) -> int:
        """Return this rank's number now."""

    def act(self, total: int) -> None:
        """Act on the sum over all ranks, the same on each; may raise."""


class Epochs:
    """A batch sampler whose epoch is begun by us alone, and whose length is what is left of it.

    Accelerate reaches the sampler's set_epoch in some wrappings, not in others, and gives a resumed loader's epoch 0
    (accelerate 1.10.1, data_loader.py:594). 4.55's loop finds an epoch's last batches, which may be too few for the accumulation,
    by comparing the number of batches since it resumed with the number of them all (transformers 4.55, trainer.py:2533;
    optimum-habana 1.21.2, trainer.py:1018): the last optimizer step was lost.
    """

    def __init__(self, batches: Any) -> None:
        self.batches = batches
        self.done = 0

    @property
    def plan(self) -> Any:
        """The plan of static shapes; None for batches without one."""
        return getattr(self.batches, "plan", None)

    def begin(self, epoch: int) -> None:
        if hasattr(self.batches, "set_epoch"):
            self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches) - self.done

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class ResumingMixin:
    """Stands before a Trainer class: checkpoints written whole, and training that goes on from one exactly."""

    args: Any
    state: Any
    control: Any
    model: Any
    accelerator: Any

    def __init__(self, *args: Any, on_save_error: str = "continue", **kwargs: Any) -> None:
        self.on_save_error = on_save_error
        self.agreed: list[Participant] = []
        self.after_save: list[Callable[[str | None], None]] = []
        """Called on every rank once a save is over, with what kept it from the disk; None where it is there."""
        self.protect: Callable[[], set[Path]] = set
        """Names checkpoints, beside the best, that save_total_limit must not delete."""
        self.save_errors = 0
        self.save_problem: str | None = None
        self.last_saved: Checkpoint | None = None
        self.resumed_step = 0
        self.train_epochs = Epochs([])
        self.steps_per_epoch = 1
        self.saves_unasked = False
        """This save is a preemption's, at a step at which the saving strategy asks for none."""
        self._best_saved: tuple[Any, ...] = (None, None, None)
        """Metric, step and place of the best checkpoint that is on the disk."""
        self._aside: Path | None = None
        self._problems: list[str] = []
        self._carried: dict[str, Any] = {}
        self._carried_loss: float | None = None
        self._unlogged: Any = None
        self._began = time.monotonic()
        super().__init__(*args, **kwargs)
        self.agreement = Agreement(self.args.world_size, timeout_seconds=self.args.ddp_timeout)
        self.add_callback(_step_end(self))  # type: ignore[attr-defined]

    # ---- what goes into a checkpoint ----

    def progress(self) -> dict[str, Any]:
        """Return what this rank knows beside the library's own files, as JSON; floats come back as they were."""
        return {
            "total_loss": self._total_loss_scalar,  # type: ignore[attr-defined]
            "unlogged_loss": 0.0 if self._unlogged is None else float(self._unlogged),
            "last_logged_step": self._globalstep_last_logged,  # type: ignore[attr-defined]
            "train_seconds": self.train_seconds,
            "ended": bool(self.control.should_training_stop),
            "best_checkpoint": Path(self.state.best_model_checkpoint).name if self.state.best_model_checkpoint else None,
        }

    def restore(self, progress: dict[str, Any]) -> None:
        """Take up what `progress` returned; called when the loop's own sums have been set to zero."""
        self._total_loss_scalar = progress["total_loss"]
        self._globalstep_last_logged = progress["last_logged_step"]
        self._carried_loss = progress["unlogged_loss"]

    @property
    def train_seconds(self) -> float:
        """How long this run has trained, all its sessions together, less what was lost with them."""
        return float(self._carried.get("train_seconds", 0.0)) + time.monotonic() - self._began

    @property
    def total_loss(self) -> float:
        """The sum of the losses of all optimizer steps, those before this session included; for after the training."""
        return float(self._total_loss_scalar) + (self._carried_loss or 0.0)  # carried still: there was no step left

    # ---- writing one ----

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._aside or super()._get_output_dir(trial))  # type: ignore[misc]

    @property
    def checkpoints(self) -> Path:
        """The folder of this run's checkpoints."""
        return Path(self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        first = self.args.process_index == 0
        self._problems = []
        self._aside = self.checkpoints / checkpoints.SAVING
        written = self._aside / f"checkpoint-{self.state.global_step}"
        try:
            if first:
                self._tried(checkpoints.begin, self.checkpoints)
            self.agreement.sums([0])  # the folder is there
            self._tried(super()._save_checkpoint, model, trial)  # type: ignore[misc]
            if self.saves_unasked:  # a run that never stopped couldn't take it for its best
                self.state.best_model_checkpoint = self._best_saved[2]
            self._tried(self._write_progress, written)
            failed = self._failed()
            if not failed:
                if first:
                    self._tried(self._publish, written)
                failed = self._failed()
        finally:
            self._aside = None
        if failed:
            self._give_up(written)
        else:
            self.save_errors, self.save_problem = 0, None
            self.last_saved = Checkpoint(self.checkpoints / written.name)
            self._name_best()
            self._best_saved = self._best
            if first:
                best = self.state.best_model_checkpoint
                protected = {Path(best)} if best else set()
                checkpoints.rotate(self.checkpoints, self.args.save_total_limit, protect=protected | self.protect())
        self.agreement.sums([0])  # no rank goes on, or ends, before the others' files are in their place

    def _write_progress(self, written: Path) -> None:
        path = written / PROGRESS_FILE.format(rank=self.args.process_index)
        path.write_text(json.dumps(self.progress(), allow_nan=True), encoding="utf-8")

    def _publish(self, written: Path) -> None:
        self._name_best()
        self.state.save_to_json(str(written / STATE_FILE))
        (written / "training_args.bin").unlink(missing_ok=True)  # a pickle, and never read: config.yaml says the same
        checkpoints.publish(written, self.checkpoints, world_size=self.args.world_size)

    @property
    def _best(self) -> tuple[Any, ...]:
        return self.state.best_metric, self.state.best_global_step, self.state.best_model_checkpoint

    def _name_best(self) -> None:
        """Write the best checkpoint by its place, which it has or will have, rather than by where it is being written."""
        best = self.state.best_model_checkpoint
        if best:
            self.state.best_model_checkpoint = str(self.checkpoints / Path(best).name)

    def _tried(self, write: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call what writes files, and remember what went wrong: other ranks wait for this one in the middle of a save."""
        try:
            return write(*args, **kwargs)
        except checkpoints.write_errors() as error:
            self._problems.append(" ".join(str(error).split())[:300])

    def _failed(self) -> bool:
        return bool(self.agreement.sums([len(self._problems)])[0])

    def _give_up(self, written: Path) -> None:
        """Say that a checkpoint couldn't be written; go on, or stop on every rank."""
        if self.args.process_index == 0:
            with contextlib.suppress(OSError):
                checkpoints.discard(written.parent)
        if self.state.best_global_step == self.state.global_step:  # the best is what can be loaded at the end
            self.state.best_metric, self.state.best_global_step, self.state.best_model_checkpoint = self._best_saved
        self.save_errors += 1
        last = f"{self.last_saved.path.name} stays" if self.last_saved else "there is no other yet"
        why = self.save_problem = "; ".join(self._problems) or "another rank says why"
        said = f"{written.name} can't be written into {self.checkpoints}: {why}. {last}"
        if self.on_save_error == "stop":
            raise CheckpointError(f"{said}. Make room and resume, or go on without with trainer.on_save_error=continue.")
        log.error(
            "%s; training goes on, and the next save tries again (%d failed in a row). Make room on the disk.", said, self.save_errors
        )

    # what super()._save_checkpoint calls between its barriers: an error must not keep other ranks waiting there

    def _save(self, *args: Any, **kwargs: Any) -> None:
        self._guarded(super()._save, *args, **kwargs)  # type: ignore[misc]

    def _save_optimizer_and_scheduler(self, *args: Any, **kwargs: Any) -> None:
        self._guarded(super()._save_optimizer_and_scheduler, *args, **kwargs)  # type: ignore[misc]

    def _save_scaler(self, *args: Any, **kwargs: Any) -> None:
        self._guarded(super()._save_scaler, *args, **kwargs)  # type: ignore[misc]

    def _save_rng_state(self, *args: Any, **kwargs: Any) -> None:
        self._guarded(super()._save_rng_state, *args, **kwargs)  # type: ignore[misc]

    def _guarded(self, write: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        if self._aside is None:  # no checkpoint: whoever saves wants to know at once
            write(*args, **kwargs)
        else:
            self._tried(write, *args, **kwargs)

    # ---- going on from one ----

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        self._carried, self.resumed_step = {}, 0
        if resume_from_checkpoint is not None:
            self._carried = self._read_progress(Path(resume_from_checkpoint))
            self.resumed_step = int(json.loads((Path(resume_from_checkpoint) / STATE_FILE).read_text(encoding="utf-8"))["global_step"])
            self.last_saved = Checkpoint(Path(resume_from_checkpoint))
        self._began = time.monotonic()
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)  # type: ignore[misc]

    def _read_progress(self, checkpoint: Path) -> dict[str, Any]:
        """Return this rank's progress; of another number of ranks, what they have together, with the first."""
        found = [
            json.loads(path.read_text(encoding="utf-8")) for path in sorted(checkpoint.glob(PROGRESS_FILE.format(rank="*")), key=_rank_of)
        ]
        if not found:  # a checkpoint of the library's own making
            return {}
        if len(found) == self.args.world_size:
            return dict(found[self.args.process_index])
        log.warning(
            "%s is of %d ranks, and %d go on: steps count on, the batches of its epoch are dealt anew, and so are the dice of dropout",
            *(checkpoint.name, len(found), self.args.world_size),
        )
        return self.merged(found)

    def merged(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the progress of a rank that goes on from a checkpoint of another number of ranks."""
        mean = sum(part["unlogged_loss"] for part in parts) / len(parts)
        return {**parts[0], "unlogged_loss": mean}

    def set_initial_training_values(self, *args: Any, **kwargs: Any) -> Any:
        values = list(super().set_initial_training_values(*args, **kwargs))  # type: ignore[misc]
        self.steps_per_epoch, max_steps = int(values[1]), int(values[-1])
        if self._carried.get("ended") or (self.resumed_step and self.resumed_step >= max_steps):
            values[0] = min(values[0], self.resumed_step // self.steps_per_epoch)  # otherwise it would take one step more
        return tuple(values)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        if self._carried_loss is None:
            return loss
        carried, self._carried_loss = self._carried_loss, None
        return loss.new_tensor(carried) + loss  # the loop's sum is zero: the same sum, added up in the same order

    def _maybe_log_save_evaluate(self, tr_loss: Any, *args: Any, **kwargs: Any) -> Any:
        self._unlogged = tr_loss  # set to zero in place once logged
        return super()._maybe_log_save_evaluate(tr_loss, *args, **kwargs)  # type: ignore[misc]

    def positioned(self, batches: Any) -> Epochs:
        """Return the batch sampler of training, its epochs begun by the loop."""
        self.train_epochs = Epochs(batches)
        return self.train_epochs

    def _re_anchor_best(self) -> None:
        """Find the best checkpoint where it is now: a run directory may have been moved, and a checkpoint lost."""
        name = self._carried["best_checkpoint"] if self._carried else None
        path = self.checkpoints / name if name else None
        if path is not None and not (path.is_dir() and Checkpoint(path).problem() is None):
            log.warning("the best checkpoint so far, %s, is not there any more or damaged; the best is looked for anew", path)
            path = self.state.best_metric = self.state.best_global_step = None
        self.state.best_model_checkpoint = str(path) if path else None
        self._best_saved = self._best


def _rank_of(path: Path) -> int:
    return int(path.stem.rpartition("_")[2])


def _step_end(trainer: Any) -> TrainerCallback:
    """Return the callback that begins epochs, lets ranks agree at the end of each step, and puts off saves to an epoch's end."""
    from transformers import TrainerCallback

    class StepEnd(TrainerCallback):  # type: ignore[misc]
        """A save at the last step of an epoch, or of all, comes after what else is due at the epoch's end.

        A checkpoint in between would lead past the epoch's evaluation: the loop goes on with the next epoch.
        """

        saves_at_epoch_end = False
        batches_per_epoch = 0  # of this rank
        counts_from_resume = not hasattr(trainer, "_run_epoch")  # transformers 5's loop counts what it skips (trainer.py:1855 of 5.23)

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            epochs = trainer.train_epochs
            self.batches_per_epoch = len(epochs) // args.world_size
            if trainer.resumed_step:
                if trainer._carried:
                    trainer.restore(trainer._carried)
                trainer._re_anchor_best()
                if self.counts_from_resume or args.ignore_data_skip:
                    steps = trainer.resumed_step % trainer.steps_per_epoch
                    epochs.done = steps * args.gradient_accumulation_steps * args.world_size
            trainer._began = time.monotonic()

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trainer.train_epochs.begin(state.global_step // trainer.steps_per_epoch)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if trainer.train_epochs.done:  # the loop has divided by what was left
                epoch, step = divmod(state.global_step - 1, trainer.steps_per_epoch)
                batches = min((step + 1) * args.gradient_accumulation_steps, self.batches_per_epoch)
                state.epoch = epoch + batches / self.batches_per_epoch
            asked = control.should_save
            for participant, total in zip(trainer.agreed, self._agreed(args.world_size) or (), strict=False):
                participant.act(total)
            trainer.saves_unasked = control.should_save and not asked
            ends = control.should_training_stop or state.global_step >= state.max_steps or state.global_step % trainer.steps_per_epoch == 0
            if ends and control.should_save:
                control.should_save, self.saves_at_epoch_end = False, True

        def _agreed(self, world_size: int) -> list[int] | None:
            """Return the sums of the exchange that began a step ago, and begin the next; a rank alone has its own counts at once."""
            counts = [participant.count() for participant in trainer.agreed]
            if world_size == 1:
                return counts
            sums: list[int] | None = trainer.agreement.end()
            trainer.agreement.begin(counts)
            return sums

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trainer.train_epochs.done = 0
            trainer.saves_unasked = trainer.saves_unasked and not control.should_save
            control.should_save = control.should_save or self.saves_at_epoch_end
            self.saves_at_epoch_end = False

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            for tell in trainer.after_save:
                tell(trainer.save_problem)

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            for participant, total in zip(trainer.agreed, trainer.agreement.end() or (), strict=False):
                participant.act(total)

    return StepEnd()
