"""The trainer: our batches, losses and decoding mixed into an engine's Trainer class.

In: a model, datasets and the trainer node. Out: a Trainer whose evaluation doesn't depend on batch size or padding.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr import argument_checks, averaging, bad_numbers, best, early_stopping, engines, lora, metrics, shape_trial, trackers, undecodable
from asr.averaging import Averaging
from asr.batching import Batching, Buckets
from asr.best import Best
from asr.collate import BATCH_FACTS, BatchFacts, UtteranceDataset
from asr.config import bounded, choice, free_form
from asr.ctc_outputs import batch_loss, frame_lengths, greedy_tokens, utterance_losses
from asr.errors import ConfigError, DataError
from asr.planning import Shape
from asr.streaming.dataset import StreamedDataset
from asr.streaming.training import StreamingMixin, loader_options

if TYPE_CHECKING:
    from asr.engines import Engine
    from asr.topology import Topology

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class SpeechTraining:
    """How a model is trained and scored."""

    generates = False
    """Whether evaluations generate text: a class attribute, not a key."""

    engine: str = "gaudi"
    """gaudi: optimum-habana's GaudiTrainer, on HPUs and CPU. transformers: its own Trainer, without optimum-habana."""
    args: dict[str, Any] = free_form()
    """Any field of the engine's TrainingArguments, by its own name; names of transformers 4.55 and 5 both serve."""
    eval_metrics: list[str] = field(default_factory=lambda: ["wer", "cer"])
    """wer, cer, mer, or the .py file of another evaluate module."""
    max_hours: float | None = bounded(None, above=0)
    """Saves a checkpoint and ends as preempted (exit code 75) after so long; a resumed run has as long again. null sets no limit."""
    on_nan: str = choice("stop", "stop", "skip")
    """After a loss or gradient that is NaN or infinite: stop ends the run, skip goes on without that step, counted."""
    on_save_error: str = choice("continue", "continue", "stop")
    """When a checkpoint can't be written, as on a full disk: continue trains on and tries again at the next save, stop ends the run."""
    try_shapes: bool = True
    """Tries every planned shape once before the first step, the largest first: what doesn't fit into memory fails then."""
    early_stopping_patience: int | None = bounded(None, at_least=1)
    """Stops after so many evaluations without a better args.metric_for_best_model; null never does."""
    early_stopping_threshold: float = bounded(0.0, at_least=0)
    """What counts as better, for early stopping."""
    average_checkpoints: int | None = bounded(None, at_least=2)
    """Trains to the end, then takes the mean of so many checkpoints' weights for the model; null takes the weights as they are."""
    average_by: str = choice("last", "last", "best")
    """Which checkpoints are averaged: the last, or the best by args.metric_for_best_model."""

    def __post_init__(self) -> None:
        metrics.check_names(self.eval_metrics)
        engine = engines.engine(self.engine, generates=self.generates)
        self.args = argument_checks.checked(self.args, engine)
        trackers.check_names(self.args.get("report_to"))
        best.check(self.args, self.eval_metrics)
        early_stopping.check(self.early_stopping_patience, self.args, self.eval_metrics)
        averaging.check(self.average_checkpoints, self.average_by, self.args, self.eval_metrics)

    def _checkpointing(self, model: Any) -> dict[str, Any]:
        """Return what gradient checkpointing needs: reentrant, it stops at an input without a gradient, as frozen layers below the first
        LoRA give, and goes back through what a layer is handed by name, as a decoder's are what the encoder heard."""
        if lora.is_in(model):
            return argument_checks.without_reentrance(self.args, "reentrant checkpointing gives LoRA no gradients")
        if self.generates:
            return argument_checks.without_reentrance(self.args, "reentrant checkpointing goes back through the encoder once a layer")
        return {}

    @staticmethod
    def mixin() -> type:
        """Return what stands before the engine's Trainer class."""
        raise NotImplementedError

    def build(
        self,
        *,
        model: Any,
        processor: Any,
        data_collator: Callable[..., Any],
        train_dataset: UtteranceDataset | StreamedDataset | None,
        eval_dataset: UtteranceDataset | None,
        compute_metrics: Callable[..., Any] | None,
        gaudi_config: Any,
        batching: Batching,
        topology: Topology,
        seed: int,
        run_dir: Path,
    ) -> Any:
        """Return the trainer, ready to train and evaluate; raise ConfigError for arguments that clash."""
        ours = {
            "output_dir": str(run_dir / "checkpoints"),
            "logging_dir": str(run_dir / "tensorboard"),
            "run_name": "/".join(run_dir.resolve().parts[-2:]),  # what trackers call it; 4.55's own is the folder of checkpoints
            "seed": seed,
            "remove_unused_columns": False,
            "batch_eval_metrics": True,  # the scorer keeps a batch's text: the loop would keep every batch's tensors on the device
            "restore_callback_states_from_checkpoint": True,
            "ignore_data_skip": isinstance(train_dataset, StreamedDataset),  # it goes on by itself, and can't be skipped through
            **best.arguments(self.args),
            **self._checkpointing(model),
            "logging_nan_inf_filter": False,  # it would put the mean of other losses in the place of one that is NaN
        }
        engine = engines.engine(self.engine, generates=self.generates)
        args = engine.training_arguments({**ours, **self.args}, topology)
        try:
            trainer = mixed_into(engine.trainer_class(), self.mixin())(
                model=model,
                args=args,
                data_collator=data_collator,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                compute_metrics=compute_metrics,
                processing_class=processor,
                batching=batching,
                engine=engine,
                on_save_error=self.on_save_error,
                on_nan=self.on_nan,
                **engine.trainer_options(gaudi_config),
            )
        except (ValueError, RuntimeError, ImportError, OSError) as error:  # such as a tracker that isn't installed
            raise ConfigError(" ".join(str(error).split()), key="trainer.args") from error
        engine.ready(trainer)
        trackers.keep_open(trainer.callback_handler.callbacks)
        trainer.add_callback(_first_step_logger())
        if self.early_stopping_patience is not None:
            trainer.add_callback(early_stopping.callback(self.early_stopping_patience, self.early_stopping_threshold))
        if self.average_checkpoints is not None:
            averaged = Averaging(self.average_checkpoints, Best.of(args) if self.average_by == "best" else None)
            trainer.averaging, trainer.protect = averaged, lambda: averaged.worth_keeping(trainer)
        if self.try_shapes:
            trainer.add_callback(_shape_trial(trainer))
        trainer.add_callback(bad_numbers.callback(trainer.bad_numbers))
        return trainer


def _first_step_logger() -> Any:
    """Return a callback that logs the first optimizer step: how long everything before it took is what users wait for."""
    from transformers import TrainerCallback

    class FirstStep(TrainerCallback):  # type: ignore[misc]
        logged = False

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if not self.logged:
                log.info("first optimizer step done")
            self.logged = True

    return FirstStep()


def _shape_trial(trainer: Any) -> Any:
    """Return a callback that tries every planned shape before the first step."""
    from transformers import TrainerCallback

    class ShapeTrial(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            shape_trial.try_shapes(trainer, trainer.planned_shapes())

    return ShapeTrial()


MOST_SHAPES = 100
"""That run.json lists; with batching=longest nearly every step has its own."""


@dataclass
class Forwarded:
    """What went through the model's forward: counted from the tensors themselves, not from a plan."""

    shapes: set[tuple[int, ...]] = field(default_factory=set)
    batches: dict[Shape, list[int]] = field(default_factory=dict)
    """Of each shape: how many batches, and how much of their input was real."""
    real: int = 0
    padded: int = 0
    audio_seconds: float = 0.0
    bad: dict[str, str] = field(default_factory=dict)
    """Utterances met that couldn't be decoded, by id, each with its problem."""

    def count(self, facts: BatchFacts, inputs: Any, labels: Any, shape: Shape) -> None:
        self.shapes.add((*inputs.shape, *labels.shape))
        self._add(shape, 1, sum(facts.lengths))
        self.real += sum(facts.lengths)
        self.padded += shape.rows * shape.length
        self.audio_seconds += sum(facts.seconds)

    def _add(self, shape: Shape, batches: int, real: int) -> None:
        counted = self.batches.setdefault(shape, [0, 0])
        counted[0] += batches
        counted[1] += real

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "shapes": sorted(self.shapes), "batches": [[*shape, *counted] for shape, counted in self.batches.items()]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Forwarded:
        batches = {Shape(*row[:3]): row[3:] for row in content.get("batches", ())}  # checkpoints from before they were counted have none
        return cls(**{**content, "shapes": {tuple(shape) for shape in content["shapes"]}, "batches": batches})

    @classmethod
    def of(cls, parts: Sequence[Forwarded]) -> Forwarded:
        """Return what several ranks have forwarded together."""
        whole = cls()
        for part in parts:
            whole.shapes |= part.shapes
            for shape, counted in part.batches.items():
                whole._add(shape, *counted)
            whole.real += part.real
            whole.padded += part.padded
            whole.audio_seconds += part.audio_seconds
            whole.bad |= part.bad
        return whole

    @property
    def padding_efficiency(self) -> float:
        """The share of computed input that is audio and not padding."""
        return self.real / self.padded if self.padded else 0.0

    def describe(self) -> list[dict[str, Any]]:
        """Return what run.json says of the batches: their shapes, those of most batches first, and the share of input that was real."""
        rows = sorted(self.batches.items(), key=lambda item: (-item[1][0], item[0]))[:MOST_SHAPES]
        return [
            {**shape._asdict(), "batches": batches, "padding_efficiency": round(real / (batches * shape.rows * shape.length), 4)}
            for shape, (batches, real) in rows
        ]


_ENDED: list[Any] = []
"""Trainers of several ranks that have ended, kept from their destructors."""


class SpeechTrainerMixin(StreamingMixin):
    """Stands before a Trainer class: gives it our batches and counts what goes through forward.

    For GaudiTrainer, GaudiSeq2SeqTrainer and transformers' Trainer alike. Fillers must count for nothing in the loss:
    rows without labels do so in a model's own cross-entropy; CTCTrainerMixin sees to it for CTC.
    """

    data_collator: Any
    train_dataset: Any
    eval_dataset: Any
    compute_metrics: Any
    averaging: Averaging | None = None
    """Whose mean the weights become, once all steps are done."""
    _train_batch_size: int | None = None

    model_accepts_loss_kwargs: bool

    def __init__(self, *args: Any, engine: Engine, batching: Batching | None = None, on_nan: str = "stop", **kwargs: Any) -> None:
        self.engine = engine
        self.batching = batching or Buckets()
        self.forwarded = {"train": Forwarded(), "eval": Forwarded()}
        self._planned: list[UtteranceDataset] = []
        self.evaluation_seconds = 0.0  # within training: its runtime counts them
        self.latest: tuple[str, Shape] | None = None
        """Phase and shape of the batch that is, or was last, in work."""
        self.trying = False
        """That batch only tries whether its shape fits into memory."""
        self._train_plan: Any = None
        super().__init__(*args, **kwargs)
        self.bad_numbers = bad_numbers.BadNumbers(self, on_nan, self.agreement)
        self.undecodable = undecodable.Undecodable(self, self.agreement)
        self.agreed.append(self.undecodable)

    def get_train_dataloader(self) -> Any:
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        if self.streams:
            self._train_plan = self.train_dataset.plan
            return self.stream_loader(seed)
        batches = self.batching.train(
            self.train_dataset.sizes(),
            self._train_batch_size or self.args.train_batch_size,  # auto_find_batch_size changes the former
            seed=seed,
            world_size=self.args.world_size,
            args=self.args,
        )
        if not len(batches):
            raise DataError(
                f"{len(self.train_dataset)} utterances make no full batch of {batches.rows}: lower "
                "trainer.args.per_device_train_batch_size or leave dataloader_drop_last out."
            )
        _log_plan("training", batches)
        self._train_plan = getattr(batches, "plan", None)
        return self._loader(self.train_dataset, self.positioned(batches), self.data_collator)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        batches = self.batching.evaluate(data.sizes(), self.args.eval_batch_size, world_size=self.args.world_size)
        if data not in self._planned:  # an evaluation every few steps needn't repeat itself
            _log_plan("evaluation", batches)
            self._planned.append(data)
        return self._loader(data, batches, self.data_collator.for_evaluation())

    def planned_shapes(self) -> dict[str, Sequence[Shape]]:
        """Return the shapes that training and evaluation will have, as far as they are planned."""
        plans = {"train": self._train_plan}
        if self.eval_dataset is not None:
            batches = self.batching.evaluate(self.eval_dataset.sizes(), self.args.eval_batch_size, world_size=self.args.world_size)
            plans["eval"] = getattr(batches, "plan", None)
        return {phase: plan.shapes for phase, plan in plans.items() if plan is not None}

    def _loader(self, data: UtteranceDataset, batches: Any, collate: Callable[..., Any]) -> Any:
        from torch.utils.data import DataLoader

        loader = DataLoader(data, batch_sampler=batches, collate_fn=collate, **loader_options(self.args))  # type: ignore[arg-type]
        # accelerate refuses batches of changing size otherwise. Our samplers have no batch_size: it would take the last
        # batch for one that has to be cut down to the remainder of the dataset's length (Accelerator.gather_for_metrics).
        self.accelerator.even_batches = False
        return self.accelerator.prepare(loader)

    def progress(self) -> dict[str, Any]:
        return super().progress() | {
            "evaluation_seconds": self.evaluation_seconds,
            "forwarded": {phase: seen.to_json() for phase, seen in self.forwarded.items()},
            "bad_numbers": self.bad_numbers.progress(),
        }

    def restore(self, progress: dict[str, Any]) -> None:
        super().restore(progress)
        self.evaluation_seconds = progress["evaluation_seconds"]
        self.forwarded = {phase: Forwarded.from_json(seen) for phase, seen in progress["forwarded"].items()}
        self.bad_numbers.restore(progress["bad_numbers"])

    def merged(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """Let the first rank go on with what all have counted."""
        together = {}
        for phase in parts[0]["forwarded"]:
            counted = [Forwarded.from_json(part["forwarded"][phase]) for part in parts]
            together[phase] = (Forwarded.of(counted) if self.args.process_index == 0 else Forwarded()).to_json()
        return super().merged(parts) | {"forwarded": together}

    def gather_forwarded(self, phase: str) -> None:
        """Make this rank's counts those of all ranks together; every rank has to call it."""
        if self.args.world_size > 1:
            from accelerate.utils import gather_object

            self.forwarded[phase] = Forwarded.of(gather_object([self.forwarded[phase]]))
        if phase == "train":  # the last step's
            undecodable.check(self.forwarded[phase].bad, self.train_dataset, phase)

    def end(self) -> None:
        """Wait for the other ranks and leave them.

        With several ranks the trainer then lives as long as its process: the destructor of DDP's reducer waits, holding the
        GIL, for a thread of gloo's that waits for the GIL (torch 2.13, reducer.cpp; seen in a run that hung).
        """
        self.accelerator.end_training()
        if self.args.world_size > 1:
            _ENDED.append(self)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        if isinstance(self.compute_metrics, metrics.Scorer):
            self.compute_metrics.begin()  # one that was broken off may have left batches
        try:
            measured = super().evaluate(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.evaluation_seconds += time.perf_counter() - begin
        self.undecodable.after_evaluation()
        return measured

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        if BATCH_FACTS not in inputs:  # from an evaluation of the base class, already counted
            return super().compute_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)  # type: ignore[misc]
        inputs = dict(inputs)
        facts: BatchFacts = inputs.pop(BATCH_FACTS)
        shape = self._count("train", facts, inputs)
        facts = self.noted(facts)
        loss = self.batch_loss(model, inputs, facts, num_items_in_batch)
        self.bad_numbers.watch(loss, facts, shape)
        whole = self.model_accepts_loss_kwargs and num_items_in_batch is not None  # divided by the labels of all accumulated batches
        if whole or self.engine.divides_by_accumulation(self.args):
            return loss
        return loss / self.current_gradient_accumulation_steps  # type: ignore[attr-defined]

    def batch_loss(self, model: Any, inputs: dict[str, Any], facts: BatchFacts, num_items_in_batch: Any) -> Any:
        """Return the loss of a training batch, a scalar; here the model's own."""
        return super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)  # type: ignore[misc]

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = dict(inputs)
        self._count("eval", inputs.pop(BATCH_FACTS), inputs)
        return super().prediction_step(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def _maybe_log_save_evaluate(self, tr_loss: Any, *args: Any, **kwargs: Any) -> Any:
        waits = self.control.should_log or self.control.should_evaluate or self.control.should_save
        self.bad_numbers.at_step_end(tr_loss, reads=waits)
        done = super()._maybe_log_save_evaluate(tr_loss, *args, **kwargs)  # type: ignore[misc]
        self.bad_numbers.at_step_over(tr_loss)
        return done

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self._aside is None:  # no checkpoint, but what others load: without LoRA's layers
            state_dict = lora.merged(self.model, state_dict)
        super()._save(output_dir, state_dict=state_dict)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.bad_numbers.before_saving()
        super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        self.bad_numbers.correct(logs)
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _count(self, phase: str, facts: BatchFacts, inputs: Mapping[str, Any]) -> Shape:
        """Count a batch, and return its shape."""
        given = inputs[self.data_collator.input_name]
        shape = Shape(self.data_collator.padded_length(given), inputs["labels"].shape[1], given.shape[0])
        self.latest = phase, shape
        self.forwarded[phase].count(facts, given, inputs["labels"], shape)
        data = self.train_dataset if phase == "train" else self.eval_dataset
        for row, problem in facts.bad:
            name = facts.stream.ids[row] if facts.stream else data.utterances[row].id
            if name not in self.forwarded[phase].bad:
                log.warning("utterance %s counts for nothing: %s", name, problem)
            self.forwarded[phase].bad[name] = problem
        return shape


class CTCTrainerMixin(SpeechTrainerMixin):
    """Adds utterance losses, so that fillers count for nothing, and decoding of real frames only."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A forward that takes **kwargs makes Trainer believe that the loss is divided by the labels of all accumulated
        # batches; ours is a mean over the utterances of its batch, which is divided by the accumulation steps.
        self.model_accepts_loss_kwargs = False
        self.ctc_kernel = self.engine.ctc_kernel(self.args)

    def batch_loss(self, model: Any, inputs: dict[str, Any], facts: BatchFacts, num_items_in_batch: Any) -> Any:
        import torch

        labels = inputs.pop("labels")
        logits = model(**inputs).logits
        frames = frame_lengths(self.model, facts.lengths)
        # an HPU's autocast lowers mul and log_softmax, and has no rule for ctc_loss
        # (https://docs.habana.ai/en/latest/PyTorch/PyTorch_Mixed_Precision/index.html): the loss stays float32
        with torch.autocast(logits.device.type, enabled=False):
            return batch_loss(logits, labels, frames, facts, self.model.config, self.ctc_kernel)

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """Return no loss, (losses [batch], tokens [batch, frames]) and, in the labels' place, row numbers [batch].

        The evaluation loop would repeat one loss batch_size times, which is wrong when batches differ in size
        (trainer.py:2133). So each utterance's own loss travels with its tokens, and the scorer takes the mean. Both may
        reach it as float32, to which the loop converts what it gathers on an HPU (trainer.py:2165).
        """
        import torch

        inputs = dict(inputs)
        facts: BatchFacts = inputs[BATCH_FACTS]
        labels = inputs["labels"]
        self._count("eval", facts, inputs)
        for key in (BATCH_FACTS, "labels"):
            del inputs[key]
        _, logits, _ = super(SpeechTrainerMixin, self).prediction_step(model, inputs, False, ignore_keys=ignore_keys)  # type: ignore[misc]
        frames = frame_lengths(self.model, facts.lengths)
        losses = utterance_losses(logits, labels.to(logits.device), frames, facts.label_lengths, self.model.config)
        tokens = greedy_tokens(logits, frames, self.model.config.pad_token_id)
        return None, (losses, tokens), torch.tensor(facts.rows, device=logits.device)


@dataclass(kw_only=True)
class CTCTraining(SpeechTraining):
    """How a CTC model is trained and scored."""

    @staticmethod
    def mixin() -> type:
        return CTCTrainerMixin


def _log_plan(what: str, batches: Any) -> None:
    plan = getattr(batches, "plan", None)
    if plan is None:
        return
    shapes = ", ".join(f"{n} x {s.rows} of {s.length}/{s.labels}" for n, s in zip(plan.num_batches, plan.shapes, strict=True))
    log.info(
        "%s batches: %d shapes, %.1f %% audio, %.1f %% labels (batches x rows of length/labels: %s)",
        what,
        len(plan.shapes),
        100 * plan.padding_efficiency,
        100 * plan.label_efficiency,
        shapes,
    )


@lru_cache
def mixed_into(base: type, mixin: type) -> type:
    """Return `base` with a mixin of ours before it, under a name that shows both."""
    return type(f"Speech{base.__name__}", (mixin, base), {"__module__": __name__})


def class_path(trainer: object) -> str:
    """Return the full name of the library's trainer class that runs under our mixin."""
    base: Sequence[type] = type(trainer).__mro__
    real = next(c for c in base if c.__module__.partition(".")[0] != "asr")
    return f"{real.__module__}.{real.__qualname__}"
