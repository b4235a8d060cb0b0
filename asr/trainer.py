"""The trainer: our batches, losses and decoding mixed into GaudiTrainer.

In: a model, datasets and the trainer node. Out: a Trainer whose evaluation doesn't depend on batch size or padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr import gaudi, metrics
from asr.batching import LengthGroupedBatches, SortedBatches
from asr.collate import BATCH_FACTS, BatchFacts, UtteranceDataset
from asr.config import free_form, out_of_range
from asr.ctc import frame_lengths, greedy_tokens, utterance_losses
from asr.errors import ConfigError, DataError, did_you_mean
from asr.signatures import Parameter, dataclass_fields

if TYPE_CHECKING:
    from asr.topology import Topology

_POSITIVE, _COUNT, _SHARE = {"above": 0}, {"at_least": 1}, {"at_least": 0, "at_most": 1}
_NOT_NEGATIVE = {"at_least": 0}
RANGES: dict[str, Mapping[str, float]] = {
    "learning_rate": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "adam_beta1": {"at_least": 0, "below": 1},
    "adam_beta2": {"at_least": 0, "below": 1},
    "adam_epsilon": _POSITIVE,
    "max_grad_norm": _NOT_NEGATIVE,
    "num_train_epochs": _POSITIVE,
    "max_steps": {"at_least": -1},
    "warmup_ratio": _SHARE,
    "warmup_steps": _NOT_NEGATIVE,
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "eval_accumulation_steps": _COUNT,
    "logging_steps": _POSITIVE,
    "save_steps": _POSITIVE,
    "eval_steps": _POSITIVE,
    "save_total_limit": _COUNT,
    "dataloader_num_workers": _NOT_NEGATIVE,
    "dataloader_prefetch_factor": _COUNT,
    "throughput_warmup_steps": _NOT_NEGATIVE,
    "eval_delay": _NOT_NEGATIVE,
    "torch_empty_cache_steps": _COUNT,
}
"""Arguments that have a range, though their class doesn't check it."""

ELSEWHERE = {
    "output_dir": "hydra.run.dir says where a run lies",
    "seed": "`seed` at the top level seeds everything",
    "do_train": "`stages` says what runs",
    "do_eval": "`stages` says what runs",
    "do_predict": "`stages` says what runs",
    "use_cpu": "the topology group says on what",
    "no_cuda": "the topology group says on what",
    "use_habana": "the topology group says on what",
    "use_lazy_mode": "the topology group says on what",
    "gaudi_config_name": "the gaudi_config group holds its values",
    "resume_from_checkpoint": "a run trains from its start",
    "hub_token": "tokens come from the environment (HF_TOKEN) and are never written",
    "push_to_hub_token": "tokens come from the environment (HF_TOKEN) and are never written",
    "label_smoothing_factor": "CTC has no smoothed labels",
    "eval_do_concat_batches": "an evaluation is scored as a whole",
    "batch_eval_metrics": "an evaluation is scored as a whole",
    "prediction_loss_only": "trainer.eval_metrics says what is scored",
    "remove_unused_columns": "batches hold what the model takes and nothing else",
    "overwrite_output_dir": "a run never overwrites another",
}
"""Arguments that another key decides, with that key."""


@lru_cache
def arguments() -> Mapping[str, Parameter]:
    """Return the fields of the installed GaudiTrainingArguments, read without importing it."""
    return dataclass_fields(*gaudi.ARGUMENTS_CLASS)


def argument_names() -> list[str]:
    return sorted(set(arguments()) - set(ELSEWHERE))


@dataclass(kw_only=True)
class CTCTraining:
    """How a CTC model is trained and scored."""

    args: dict[str, Any] = free_form()
    """Any field of GaudiTrainingArguments, by its own name."""
    eval_metrics: list[str] = field(default_factory=lambda: ["wer", "cer"])
    """wer, cer, mer, or the .py file of another evaluate module."""

    def __post_init__(self) -> None:
        metrics.check_names(self.eval_metrics)
        self.args = {name: _checked_argument(str(name), value) for name, value in self.args.items()}
        best = self.args.get("metric_for_best_model")
        measured = ["loss", *(Path(name).stem for name in self.eval_metrics)]
        if best is not None and str(best).removeprefix("eval_") not in measured:
            near = did_you_mean(str(best), measured)
            raise ConfigError(f"{best!r} is not one of {', '.join(measured)}.{near}", key="args.metric_for_best_model")

    def build(
        self,
        *,
        model: Any,
        processor: Any,
        data_collator: Callable[..., Any],
        train_dataset: UtteranceDataset | None,
        eval_dataset: UtteranceDataset | None,
        compute_metrics: Callable[..., Any] | None,
        gaudi_config: gaudi.GaudiConfig,
        topology: Topology,
        seed: int,
        run_dir: Path,
    ) -> Any:
        """Return the trainer, ready to train and evaluate; raise ConfigError for arguments that clash."""
        ours = {
            "output_dir": str(run_dir / "checkpoints"),
            "logging_dir": str(run_dir / "tensorboard"),
            "seed": seed,
            "remove_unused_columns": False,
        }
        args = gaudi.training_arguments(**{**ours, **self.args, **topology.training_arguments()})
        try:
            return mixed_into(gaudi.trainer_class())(
                model=model,
                gaudi_config=gaudi_config.build(),
                args=args,
                data_collator=data_collator,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                compute_metrics=compute_metrics,
                processing_class=processor,
            )
        except (ValueError, RuntimeError, ImportError, OSError) as error:  # such as a tracker that isn't installed
            raise ConfigError(" ".join(str(error).split()), key="trainer.args") from error


def _checked_argument(name: str, value: Any) -> Any:
    """Return the value of one training argument, or raise ConfigError with its key."""
    key = f"args.{name}"
    if name in ELSEWHERE:
        raise ConfigError(f"is not set here: {ELSEWHERE[name]}.", key=key)
    known = arguments()
    if not known:  # optimum-habana isn't installed: its own message comes when it is imported
        return value
    if name not in known:
        raise ConfigError(f"GaudiTrainingArguments has no such field.{did_you_mean(name, known)}", key=key)
    parameter = known[name]
    if value is False and "no" in parameter.values:  # YAML and Hydra read a bare `no` as false
        value = "no"
    if not parameter.accepts(value):
        wanted = f"one of {', '.join(parameter.values)}" if parameter.values else f"of type {parameter.annotation}"
        raise ConfigError(f"{value!r} is not {wanted}.{did_you_mean(str(value), parameter.values)}", key=key)
    problem = out_of_range(value, RANGES.get(name, {}))
    if problem or (name == "max_steps" and value == 0):
        raise ConfigError(problem or "0 is out of range; -1 leaves the length to num_train_epochs.", key=key)
    return value


@dataclass
class Forwarded:
    """What went through the model's forward: counted from the tensors themselves, not from a plan."""

    shapes: set[tuple[int, ...]] = field(default_factory=set)
    real: int = 0
    padded: int = 0
    audio_seconds: float = 0.0

    def count(self, facts: BatchFacts, inputs: Any, labels: Any) -> None:
        self.shapes.add((*inputs.shape, *labels.shape))
        self.real += sum(facts.lengths)
        self.padded += inputs.shape[0] * inputs.shape[1]
        self.audio_seconds += sum(facts.seconds)

    @property
    def padding_efficiency(self) -> float:
        """The share of computed input that is audio and not padding."""
        return self.real / self.padded if self.padded else 0.0


class SpeechTrainerMixin:
    """Stands before a Trainer class: gives it our loaders, utterance losses and decoding of real frames only."""

    args: Any
    model: Any
    accelerator: Any
    data_collator: Any
    train_dataset: Any
    eval_dataset: Any
    _train_batch_size: int | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.forwarded = {"train": Forwarded(), "eval": Forwarded()}
        super().__init__(*args, **kwargs)

    def get_train_dataloader(self) -> Any:
        data_seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        batches = LengthGroupedBatches(
            [u.seconds or 0.0 for u in self.train_dataset.utterances],
            self._train_batch_size or self.args.train_batch_size,  # auto_find_batch_size changes the former
            seed=data_seed,
            group_by_length=self.args.group_by_length,
            drop_last=self.args.dataloader_drop_last,
        )
        if not len(batches):
            raise DataError(
                f"{len(self.train_dataset)} utterances make no full batch of {batches.batch_size}: lower "
                "trainer.args.per_device_train_batch_size or leave dataloader_drop_last out."
            )
        return self._loader(self.train_dataset, batches)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        return self._loader(data, SortedBatches([u.seconds or 0.0 for u in data.utterances], self.args.eval_batch_size))

    def _loader(self, data: UtteranceDataset, batches: Any) -> Any:
        from torch.utils.data import DataLoader

        workers = self.args.dataloader_num_workers
        options = {"persistent_workers": self.args.dataloader_persistent_workers, "prefetch_factor": self.args.dataloader_prefetch_factor}
        loader = DataLoader(
            data,  # type: ignore[arg-type]
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and not self.args.use_cpu,
            **(options if workers else {}),
        )
        self.accelerator.even_batches = False  # accelerate refuses batches of changing size otherwise
        return self.accelerator.prepare(loader)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        inputs = dict(inputs)
        self.forwarded["train"].count(inputs.pop(BATCH_FACTS), inputs[self._input_name], inputs["labels"])
        loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)  # type: ignore[misc]
        if not gaudi.divides_by_accumulation(self.args):
            loss = loss / self.current_gradient_accumulation_steps  # type: ignore[attr-defined]
        return loss

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """Return no loss, (losses [batch], tokens [batch, frames]) and, in the labels' place, row numbers [batch].

        The evaluation loop would repeat one loss batch_size times, which is wrong when batches differ in size
        (trainer.py:2133). So each utterance's own loss travels with its tokens, and the scorer takes the mean.
        Losses come first: the loop converts both to the first one's dtype.
        """
        import torch

        inputs = dict(inputs)
        facts: BatchFacts = inputs.pop(BATCH_FACTS)
        labels = inputs.pop("labels")
        self.forwarded["eval"].count(facts, inputs[self._input_name], labels)
        _, logits, _ = super().prediction_step(model, inputs, False, ignore_keys=ignore_keys)  # type: ignore[misc]
        frames = frame_lengths(self.model, facts.lengths)
        losses = utterance_losses(logits, labels.to(logits.device), frames, self.model.config)
        tokens = greedy_tokens(logits, frames, self.model.config.pad_token_id)
        return None, (losses, tokens), torch.tensor(facts.rows, device=logits.device)

    @property
    def _input_name(self) -> str:
        return str(self.data_collator.input_name)


@lru_cache
def mixed_into(base: type) -> type:
    """Return `base` with our mixin before it, under a name that shows both."""
    return type(f"Speech{base.__name__}", (SpeechTrainerMixin, base), {"__module__": __name__})


def class_path(trainer: object) -> str:
    """Return the full name of the library's trainer class that runs under our mixin."""
    base: Sequence[type] = type(trainer).__mro__
    real = next(c for c in base if c.__module__.partition(".")[0] in ("optimum", "transformers"))
    return f"{real.__module__}.{real.__qualname__}"
