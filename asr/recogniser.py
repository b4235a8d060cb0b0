"""A trained model that hears chunks of audio: a run's, a folder's or the hub's; CTC, Whisper or an encoder with a decoder.

In: where the model lies; batches of samples. Out: the tokens of each chunk's frames, or its text.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr import ctc_outputs, engines, features, gaudi, seq2seq_outputs
from asr.batching import FILLER
from asr.collate import BATCH_FACTS, Collator, Row
from asr.config import node_of, under
from asr.ctc import CTCModel
from asr.decoding import BeamDecoder
from asr.errors import ConfigError
from asr.planning import Shape
from asr.pretrained import PretrainedFiles
from asr.runs import RUN_FILE, Run
from asr.seq2seq import MODEL_TYPE as SEQ2SEQ
from asr.seq2seq import EncoderDecoderModel
from asr.vocabulary import Vocabulary
from asr.whisper import MODEL_TYPE as WHISPER
from asr.whisper import WhisperModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Model = CTCModel | EncoderDecoderModel | WhisperModel

KEY = "MODEL"
DEVICES = ("auto", "cpu", "hpu", "cuda")
SHORTEST_SECONDS = 0.1
"""What is shorter is followed by silence: the convolutions of some models take no less."""
LONGEST_SECONDS = 30.0
USUAL_SECONDS = 20.0
"""Of a chunk, for a model of which it isn't known how long the utterances were that it was trained on."""
LENGTHS_PER_CHUNK = 4
"""Lengths that batches have on an HPU, which compiles each: quarters of a chunk."""


@dataclass(frozen=True)
class Heard:
    """What a model says of a chunk: `tokens` int32 [frames] of a CTC model, with float32 `log_probs` [frames, tokens] where they are
    asked for, or the `text` of a decoder."""

    tokens: NDArray[np.int32] | None = None
    log_probs: NDArray[np.float32] | None = None
    text: str = ""


@dataclass(frozen=True)
class Found:
    """Where a model lies, what kind it is, and how long the utterances were that it was trained on, where a run says so."""

    folder: str
    model: Model
    trained_seconds: tuple[float, float] | None = None
    """Of an utterance: the mean and the longest."""
    decoder: BeamDecoder | None = None
    """The search that the run was scored with."""

    @property
    def generates(self) -> bool:
        return self.model.generates

    @property
    def usual_seconds(self) -> float:
        """How long chunks had best be: no longer than what the model was trained on, or hears.

        A decoder that has seen few utterances of the longest leaves words out of them (docs/log.md, 2026-11-23): for it midway
        between their mean and the longest.
        """
        window = self.model.most_seconds()
        if self.trained_seconds is None:
            return min(window or USUAL_SECONDS, LONGEST_SECONDS)
        mean, longest = self.trained_seconds
        trained = (mean + longest) / 2 if self.generates else longest
        return min(max(trained, 1.0), window or LONGEST_SECONDS, LONGEST_SECONDS)


def find(name: str, *, language: str | None = None, task: str | None = None) -> Found:
    """Return the model of a run, a folder or the hub, described; raise ConfigError for what is none. Takes no torch.

    `language` and `task` are Whisper's; without them what was saved with the model counts.
    """
    path, trained_seconds, decoder = Path(name).expanduser(), None, None
    if (path / RUN_FILE).exists():
        run = Run.load(path)
        if not (path / "model").is_dir():
            raise ConfigError(f"{name} holds no model/: its run ended as {run.record['status']}, before it was saved.", key=KEY)
        trained_seconds = _lengths(run)
        decoder = _decoder(run)
        name = str(path / "model")
    files = PretrainedFiles(name)
    try:
        config = files.config()
    except ConfigError as error:
        raise ConfigError(error.problem, key=KEY) from error
    model_type, architectures = config.get("model_type"), [str(a) for a in config.get("architectures") or []]
    if model_type != WHISPER and (language or task):
        raise ConfigError(f"is Whisper's; {name} is a {model_type!r}.", key="--language" if language else "--task")
    if model_type == WHISPER:
        saved = _generation(files)
        language = language or saved.get("language")
        model: Model = WhisperModel(name_or_path=name, language=language, task=task or saved.get("task"))
        if saved.get("is_multilingual", True) and language is None:
            raise ConfigError("is missing: name the language that is spoken, such as english or hi.", key="--language")
    elif model_type == SEQ2SEQ:
        model = EncoderDecoderModel(name_or_path=name)
    elif any(a.endswith("ForCTC") for a in architectures):
        model = CTCModel(name_or_path=name)
    else:
        raise ConfigError(
            f"{name} is a {', '.join(architectures) or model_type!r}, which writes no text: name a fine-tuned model.", key=KEY
        )
    model.check_reachable()
    return Found(name, model, trained_seconds, decoder)


def _lengths(run: Run) -> tuple[float, float] | None:
    """Return the seconds of the mean and the longest utterance that a run was trained on; None where it didn't train."""
    seconds = run.record.get("dataset", {}).get("splits", {}).get("train", {}).get("seconds", {})
    return (seconds["mean"], seconds["max"]) if "mean" in seconds and "max" in seconds else None


def _decoder(run: Run) -> BeamDecoder | None:
    """Return the search of a run's configuration; None for one that is greedy, or a team's own, which isn't made here."""
    node = dict(run.config.get("decoder") or {})
    if node.pop("_target_", "") != f"{BeamDecoder.__module__}.{BeamDecoder.__qualname__}":
        return None
    with under("decoder"):
        return node_of(BeamDecoder, node)  # type: ignore[no-any-return]


def _generation(files: PretrainedFiles) -> dict[str, Any]:
    """Return what generation_config.json says; empty where there is none."""
    try:
        return files.json("generation_config.json")
    except ConfigError:
        return {}


def device_of(asked: str) -> str:
    """Return the device to compute on; raise ConfigError for one that isn't here. Imports torch."""
    import torch

    if asked not in DEVICES:
        raise ConfigError(f"{asked!r} is not one of {', '.join(DEVICES)}.", key="--device")
    here = {"cpu": True, "hpu": gaudi.habana_is_installed(), "cuda": torch.cuda.is_available()}
    if asked != "auto" and not here[asked]:
        raise ConfigError(f"this host has no {asked}; take another, or auto.", key="--device")
    return next(name for name in ("hpu", "cuda", "cpu") if here[name]) if asked == "auto" else asked


class Recogniser:
    """A model, loaded onto a device."""

    def __init__(self, found: Found, device: str = "auto") -> None:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        self.device = device_of(device)
        if self.device == "hpu":
            engines.engine("gaudi").prepare()  # model classes are replaced before any is imported
        self.found, model = found, found.model
        name, where = model.tokenizer_files()
        self.tokenizer = Vocabulary().tokenizer_of(name, key=KEY, **where)
        model.check_tokenizer(self.tokenizer)
        self.model = model.load(self.tokenizer, new_head=False).train(False).to(self.device)
        if self.device == "hpu" and found.generates:
            gaudi.reorder_beams(self.model)
        self.extractor = model.processor(self.tokenizer, self.model).feature_extractor
        self.collator = Collator.for_extractor(self.extractor)
        self.input_length = model.input_length()

    @property
    def rate_hz(self) -> int:
        return int(self.extractor.sampling_rate)

    @property
    def frame_samples(self) -> int:
        """How many samples a CTC model's frame stands for; 1 for a model that generates."""
        if self.found.generates:
            return 1
        samples = 1000 * self.rate_hz
        return round(samples / int(ctc_outputs.frame_lengths(self.model, [self.input_length.of_samples(samples)])[0]))

    @property
    def blank(self) -> int:
        return int(self.model.config.pad_token_id)

    def hear(self, batch: Sequence[NDArray[np.float32]], *, shape: Shape | None = None, log_probs: bool = False) -> list[Heard]:
        """Return what is heard in each of a batch of samples. `shape` pads the batch to a planned one, fillers included."""
        import torch

        rows = [self._row(i, samples, shape) for i, samples in enumerate(batch)]
        rows += [Row(FILLER, None, (), 0.0, 0, shape) for _ in range((shape.rows if shape else 0) - len(rows))]
        inputs = dict(self.collator(rows))
        facts = inputs.pop(BATCH_FACTS)
        del inputs["labels"]
        given = {name: value.to(self.device) for name, value in inputs.items()}
        with torch.no_grad():
            if self.found.generates:
                texts = self._generated(given)
                return [Heard(text=text.strip()) for text in texts[: len(batch)]]
            logits = self.model(**given).logits[: len(batch)].float()
            frames = ctc_outputs.frame_lengths(self.model, facts.lengths[: len(batch)])
            tokens = ctc_outputs.greedy_tokens(logits, frames, self.blank).to(torch.int32).cpu().numpy()
            scores = torch.log_softmax(logits, dim=-1).cpu().numpy() if log_probs else [None] * len(batch)
        counts = frames.tolist()
        return [Heard(t[:n], None if s is None else s[:n]) for t, s, n in zip(tokens, scores, counts, strict=True)]

    def _row(self, number: int, samples: NDArray[np.float32], shape: Shape | None) -> Row:
        import numpy as np

        seconds, least = len(samples) / self.rate_hz, round(SHORTEST_SECONDS * self.rate_hz)
        heard = np.pad(samples, (0, least - len(samples))) if len(samples) < least else samples
        return Row(number, features.extract(self.extractor, heard), (), seconds, shape=shape)

    def _generated(self, inputs: dict[str, Any]) -> list[str]:
        lazy = os.environ.get("PT_HPU_LAZY_MODE") == "1"
        on_hpu = {"lazy_mode": lazy, "hpu_graphs": False, "ignore_eos": False} if self.device == "hpu" else {}
        tokens = self.model.generate(**inputs, **on_hpu)
        return seq2seq_outputs.decoder(self.tokenizer, self.model.config.decoder_start_token_id)(tokens.cpu().numpy())

    def shape_of(self, longest_samples: int, window_samples: int, rows: int) -> Shape | None:
        """Return the shape that a batch is padded to: on an HPU one of a few, elsewhere none but its own."""
        if self.device != "hpu":
            return None
        step = -(-window_samples // LENGTHS_PER_CHUNK)
        padded = -(-max(longest_samples, 1) // step) * step
        return Shape(self.input_length.of_samples(padded), 1, rows)
