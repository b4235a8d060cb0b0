"""The objects that a configuration describes, and whether they go together, exist, and fit this machine.

In: a composed configuration. Out: light objects; nothing is loaded until a stage needs it. Checks take no torch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from asr import (
    augment,
    batching,
    compatibility,
    config,
    ctc,
    engines,
    gaudi,
    launchers,
    lora,
    publishing,
    seq2seq,
    text,
    topology,
    trackers,
    trainer,
    vocabulary,
    whisper,
    whisper_tokenizer,
)
from asr.errors import ConfigError
from asr.sources import Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The objects that a configuration describes. All are light: nothing is loaded until a stage needs it."""

    experiment_name: str
    experiment_version: str
    seed: int
    stages: Sequence[str]
    dry_run: bool
    rehearse: bool
    resume: str
    publish: bool
    dataset: Source
    text: text.TextRules
    vocabulary: vocabulary.Vocabulary
    augment: augment.Augmentation
    batching: batching.Batching
    model: ctc.CTCModel | seq2seq.EncoderDecoderModel | whisper.WhisperModel
    gaudi_config: gaudi.GaudiConfig
    trainer: trainer.SpeechTraining
    topology: topology.Topology

    @classmethod
    def of(cls, composed: Mapping[str, Any]) -> Pipeline:
        """Build and check everything that can be checked without data, network or torch; raise ConfigError."""
        built = config.instantiate(composed)
        for name, kind in get_type_hints(cls).items():
            if name in config.NODES and _is_ours(built[name]) and not isinstance(built[name], kind):
                wanted = " or ".join(member.__name__ for member in get_args(kind) or (kind,))
                raise ConfigError(f"{composed[name]['_target_']!r} is no {wanted}; choose an option of its group.", key=f"{name}._target_")
        pipeline = cls(**built)
        pipeline.check_family()
        pipeline.check_publishable()
        if pipeline.only_evaluates and pipeline.model.name_or_path is None and not pipeline.rehearse:  # that evaluates random weights
            raise ConfigError(
                f"stages={list(pipeline.stages)} evaluates without training: name a trained model, such as <a run>/model.",
                key="model.name_or_path",
            )
        if pipeline.only_evaluates and pipeline.vocabulary.rebuild:
            raise ConfigError("a new vocabulary needs training; evaluation takes the model's own.", key="vocabulary.rebuild")
        pipeline.batching.check(pipeline.trainer.args)
        return pipeline

    def check_family(self) -> None:
        """Raise ConfigError for a CTC model under the sequence-to-sequence trainer, and the other way round."""
        generates = bool(getattr(self.model, "generates", False))
        if generates != bool(getattr(self.trainer, "generates", False)) and _is_ours(self.trainer):
            ours, other = ("seq2seq", "a sequence-to-sequence") if generates else ("ctc", "a CTC")
            raise ConfigError(f"doesn't train {other} model: choose trainer={ours}, or another model.", key="trainer")
        if generates and self.vocabulary.phoneme_language:
            raise ConfigError("is for CTC; a decoder writes text: leave it null.", key="vocabulary.phoneme_language")

    def check_publishable(self) -> None:
        """Raise ConfigError where `publish` has nothing to push, or nowhere."""
        if not self.publish:
            return
        without = "dry_run" if self.dry_run else "rehearse" if self.rehearse else None
        if without:
            raise ConfigError(f"is not for {without}=true, which trains no model: leave one of them out.", key="publish")
        if "train" not in self.stages:
            raise ConfigError(f"stages={list(self.stages)} trains no model to push: set it to false, or have it train.", key="publish")
        publishing.check_name(self.trainer.args.get("hub_model_id"))

    @property
    def works(self) -> bool:
        """Whether a trainer is needed; `stages=[prepare]` needs none."""
        return bool({"train", "evaluate"} & set(self.stages))

    @property
    def node(self) -> int:
        """The number of this server; 0 where nothing is started."""
        with config.under("topology"):
            return self.topology.node if self.works and not self.dry_run else 0

    def launch(self, run_dir: Path, node: int) -> launchers.Launch:
        """Return what starts the run's processes on a server."""
        with config.under("topology"):
            return launchers.launch(self.topology, run_dir, node=node, rehearse=self.rehearse)

    def launches(self, run_dir: Path) -> list[launchers.Launch]:
        """Return what would be started on every server where `python launch.py` is started."""
        return [self.launch(run_dir, node) for node in self.topology.started_nodes()]

    @property
    def only_evaluates(self) -> bool:
        return "evaluate" in self.stages and "train" not in self.stages

    def check_compatible(self, *, on_this_host: bool = True) -> None:
        """Raise ConfigError for a combination that can't work, as far as it is known without device, data or network."""
        found = compatibility.problems(self, on_this_host=on_this_host)
        if found:
            others = "".join(f"\nalso: {problem}" for problem in found[1:])
            raise ConfigError(found[0].problem + others, key=found[0].key)

    def check_reachable(self) -> None:
        """Check what the configuration names outside itself, and again whether it goes together; raise ConfigError.

        A rehearsal is told what doesn't go together, and isn't stopped by it.
        """
        for name in ("dataset", "model", "vocabulary", "augment"):
            with config.under(name):
                getattr(self, name).check_reachable()
        if self.vocabulary.phoneme_language and self.builds_vocabulary:
            raise ConfigError(
                "a vocabulary built here has characters; name a tokenizer that makes phonemes (vocabulary.tokenizer_name_or_path).",
                key="vocabulary.phoneme_language",
            )
        if not self.rehearse:
            self.check_compatible(on_this_host=False)  # a hub checkpoint's config.json is known only now
        if self.model.name_or_path is not None:
            self.check_evaluates()
        self.check_positions()

    def check_positions(self) -> None:
        """Raise ConfigError where batches are padded to more labels than the decoder has positions for."""
        padded, most = self.batching.most_labels, self.model.most_labels()
        if padded is not None and most is not None and padded > most:
            raise ConfigError(f"{padded} is more than the {most} labels that the decoder has positions for.", key="batching.labels")

    def check_evaluates(self) -> None:
        """Raise ConfigError where an evaluation without training would be of a model that was never trained for CTC."""
        if self.only_evaluates and not self.model.is_trained():
            raise ConfigError(
                f"{self.model.name_or_path!r} has no CTC output layer, so there is nothing to evaluate.", key="model.name_or_path"
            )

    def check_host(self) -> None:
        """Check what training needs of the machine that it runs on, and have there what it needs of the hub; raise ConfigError.

        Ranks that each ask the hub for a model's files would wait for it one by one: they find them in the cache.
        """
        if not self.works:
            return
        if getattr(self.model, "lora", None):
            lora.check_installed()
        engines.engine(self.trainer.engine).check_installed()
        trackers.check_installed(self.trainer.args.get("report_to"))
        if self.publish and self.node == 0:
            publishing.check(self.trainer.args["hub_model_id"])
        if not self.rehearse:
            self.check_compatible()
        with config.under("topology"):
            launchers.check_installed(self.topology)
            self.topology.check_host(has_devices=not self.rehearse)
        self.fetch()

    def fetch(self) -> None:
        """Have the weights and the tokenizer that the hub has here, in its cache; raise ConfigError."""
        if self.vocabulary.tokenizer_name_or_path is not None:
            with config.under("vocabulary"):
                self.vocabulary.fetch(**self._where_tokenizer_is())
        if self.rehearse:  # its weights are random
            return
        with config.under("model"):
            self.model.fetch()
            if self.takes_model_s_tokenizer:
                name, where = self.model.tokenizer_files()
                vocabulary.tokenizer_folder(name, key="name_or_path", **where)

    @property
    def splits(self) -> dict[str, str]:
        """The splits that are read, by their role: a vocabulary is built from both."""
        wanted = {"eval": self.dataset.eval_split}
        return {"train": self.dataset.train_split} | wanted if {"train", "prepare"} & set(self.stages) else wanted

    @property
    def streams(self) -> bool:
        """Whether the training split is read as it is trained on; a rehearsal takes a copy of its sample."""
        return self.dataset.streaming and not self.rehearse and "train" in self.splits

    @property
    def builds_vocabulary(self) -> bool:
        """Whether the tokenizer is made from transcripts, rather than given or the model's own."""
        if self.vocabulary.rebuild:
            return True
        return self.vocabulary.tokenizer_name_or_path is None and not self.model.has_own_tokenizer()

    def _where_tokenizer_is(self) -> dict[str, Any]:
        """Return with what a given tokenizer is loaded. A rehearsal's model has no checkpoint: its revision is that of the tokenizer."""
        return self.model.where() if self.rehearse else {**self.model.where(), "revision": None}

    @property
    def takes_model_s_tokenizer(self) -> bool:
        return not self.builds_vocabulary and self.vocabulary.tokenizer_name_or_path is None

    def tokenizer(self, run_dir: Path) -> PreTrainedTokenizerBase:
        """Return the tokenizer of this run, one that serves the model."""
        found = self._tokenizer(run_dir)
        self.model.check_tokenizer(found)
        return found

    def _tokenizer(self, run_dir: Path) -> PreTrainedTokenizerBase:
        if self.builds_vocabulary:
            if self.model.tokenizer_kind == "whisper":
                folder = str(run_dir / whisper_tokenizer.FOLDER)
                return self.vocabulary.tokenizer_of(folder, key="vocabulary")
            sequences = self.model.tokenizer_kind == "characters"
            return self.vocabulary.sequence_tokenizer_in(run_dir) if sequences else self.vocabulary.tokenizer_in(run_dir)
        if self.vocabulary.tokenizer_name_or_path is not None:
            return self.vocabulary.tokenizer_of(
                self.vocabulary.tokenizer_name_or_path, key="vocabulary.tokenizer_name_or_path", **self._where_tokenizer_is()
            )
        log.info("tokenizer: the model's own (vocabulary.rebuild=true would build one)")
        name, where = self.model.tokenizer_files()
        return self.vocabulary.tokenizer_of(name, key="model.name_or_path", **where)


def _is_ours(node: object) -> bool:
    """Whether a node's class is this package's; a team's own needn't descend from one of them."""
    return type(node).__module__.startswith("asr.")


def warnings_of(composed: Mapping[str, Any]) -> list[str]:
    """Return what would refuse a launch of this configuration, as far as it is known without device, data or network."""
    try:
        pipeline = Pipeline.of(composed)
    except ConfigError as error:
        return [str(error)]
    return [str(problem) for problem in compatibility.problems(pipeline)]
