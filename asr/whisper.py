"""Whisper models: a checkpoint, or a small one from scratch.

In: a checkpoint or an architecture, a language and a task. Out: transformers' WhisperForConditionalGeneration and its processor.
Source: Radford et al., https://arxiv.org/abs/2212.04356; https://huggingface.co/docs/transformers/model_doc/whisper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from asr import lora, pretrained, whisper_tokenizer
from asr.config import bounded, choice, free_form
from asr.errors import ConfigError, did_you_mean
from asr.features import InputLength
from asr.lora import LoRA
from asr.pretrained import PretrainedFiles, config_defaults
from asr.seq2seq import sequence_labels, set_generation
from asr.shrinking import NOT_OF_THE_PATH, small_decoder
from asr.spec_augment import SpecAugment

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

MODEL_TYPE = "whisper"
EXTRACTOR = "WhisperFeatureExtractor"
MOST_LABELS = 448
"""max_target_positions of every published Whisper."""
KNOBS = (
    "dropout attention_dropout activation_dropout encoder_layerdrop decoder_layerdrop "
    "mask_time_prob mask_time_length mask_feature_prob mask_feature_length"
).split()
"""Fields of WhisperModel that go into the model's own config when they are set."""


@dataclass(kw_only=True)
class WhisperModel:
    """A Whisper of transformers. Its input always has the same length, 30 s in the published ones. Null leaves a checkpoint's own value."""

    generates = True
    tokenizer_kind = "whisper"

    name_or_path: str | None = None
    """A local folder or hub name, such as openai/whisper-small."""
    revision: str | None = None
    cache_dir: str | None = None
    trust_remote_code: bool = False
    """Runs code that the hub repository brings; recorded in run.json."""
    attn_implementation: str | None = None
    """eager, sdpa, ... as in from_pretrained."""
    architecture: dict[str, Any] = free_form()
    """The config's values for a model from scratch; not used once name_or_path is given."""
    feature_extractor: dict[str, Any] = free_form()
    """Arguments of WhisperFeatureExtractor for a model from scratch; its chunk_length is the input's seconds."""
    config: dict[str, Any] = free_form()
    """Further values of the model's config, over a checkpoint's or an architecture's."""
    generation: dict[str, Any] = free_form()
    """Further values of the generation config, such as suppress_tokens or forced_decoder_ids."""
    language: str | None = None
    """Name or code of the language that is spoken (english, en); null for English-only checkpoints."""
    task: str | None = choice("transcribe", "transcribe", "translate")
    """null for English-only checkpoints."""
    timestamps: bool = False
    """Keeps timestamps (<|0.00|>) of the transcripts as labels and generates them; otherwise they are taken out. They are never scored."""
    freeze_encoder: bool = False
    """Keeps the encoder fixed."""
    lora: dict[str, Any] | None = free_form()
    """Trains small matrices beside frozen layers, as r, alpha, dropout, target_modules and modules_to_save say; empty, the layers."""
    dropout: float | None = bounded(None, at_least=0, at_most=1)
    attention_dropout: float | None = bounded(None, at_least=0, at_most=1)
    activation_dropout: float | None = bounded(None, at_least=0, at_most=1)
    encoder_layerdrop: float | None = bounded(None, at_least=0, at_most=1)
    decoder_layerdrop: float | None = bounded(None, at_least=0, at_most=1)
    apply_spec_augment: bool = False
    """Masks parts of the log-mel input, as mask_time_* (frames of 10 ms) and mask_feature_* (mel bins) say."""
    mask_time_prob: float | None = bounded(None, at_least=0, at_most=1)
    mask_time_length: int | None = bounded(None, at_least=1)
    mask_feature_prob: float | None = bounded(None, at_least=0, at_most=1)
    mask_feature_length: int | None = bounded(None, at_least=1)

    def __post_init__(self) -> None:
        LoRA.of(self.lora)
        known = whisper_tokenizer.languages()
        names = {*known, *known.values()}
        if self.language is not None and known and self.language.lower() not in names:
            raise ConfigError(
                f"Whisper knows no {self.language!r}; it knows {len(known)} languages, such as english or en."
                + did_you_mean(self.language, names),
                key="language",
            )
        if self.name_or_path is None:
            if not self.architecture:
                raise ConfigError("give a checkpoint, or an architecture for a model from scratch.", key="name_or_path")
            pretrained.check_config_keys(self.architecture, MODEL_TYPE, key="architecture")
            pretrained.check_extractor_keys({"feature_extractor_type": EXTRACTOR, **self.feature_extractor}, EXTRACTOR)
            self._check_window()
        pretrained.check_config_keys(self.config, MODEL_TYPE, key="config")

    def _check_window(self) -> None:
        """Raise ConfigError where the extractor's frames aren't those that the encoder has positions for: it convolves with stride 2."""
        frames, positions = self.input_length()(0.0), self.config_values().get("max_source_positions", 1500)
        if frames != 2 * positions:
            raise ConfigError(
                f"is {positions}, but the extractor gives {frames} frames, half of which reach the encoder: set it to {frames // 2}, or "
                f"feature_extractor.chunk_length to {positions / 50:g} seconds.",
                key="architecture.max_source_positions",
            )

    def check_reachable(self) -> None:
        """Read the checkpoint's config.json, from disk or the hub, and check it; raise ConfigError. Takes no torch."""
        if self.name_or_path is None:
            return
        model_type = self.files().config().get("model_type")
        if model_type != MODEL_TYPE:
            raise ConfigError(f"{self.name_or_path!r} is a {model_type!r}, no Whisper.", key="name_or_path")
        self.input_length()
        if not self._is_multilingual() and (self.language is not None or self.task not in (None, "transcribe")):
            raise ConfigError(
                f"{self.name_or_path!r} is an English-only checkpoint: leave it null, and model.task=null.",
                key="language" if self.language is not None else "task",
            )
        if self._is_multilingual() and self.language is None:
            raise ConfigError("is missing: name the language that is spoken, such as english or hi.", key="language")

    def files(self) -> PretrainedFiles:
        """Return what reads the checkpoint's files."""
        return PretrainedFiles(str(self.name_or_path), self.revision, self.cache_dir)

    def _is_multilingual(self) -> bool:
        """Say whether the checkpoint knows languages: only those of 51,864 tokens don't (transformers 4.55, generation_whisper.py)."""
        return self.name_or_path is None or int(self.config_values().get("vocab_size", 0)) != 51864

    def has_own_tokenizer(self) -> bool:
        """Say whether the checkpoint brings a tokenizer; from scratch one of bytes is made."""
        return self.name_or_path is not None

    def is_trained(self) -> bool:
        """Say whether the checkpoint can be evaluated without training."""
        return self.name_or_path is not None

    def tokenizer_files(self) -> tuple[str, dict[str, Any]]:
        """Return where the model's own tokenizer lies, and what else its from_pretrained needs."""
        return str(self.name_or_path), self.where()

    def where(self) -> dict[str, Any]:
        """Return what else a from_pretrained of this checkpoint's tokenizer needs."""
        return {"revision": self.revision, "cache_dir": self.cache_dir, "trust_remote_code": self.trust_remote_code}

    def fetch(self) -> None:
        """Have the checkpoint's files here, with its weights: from the cache or the hub; raise ConfigError."""
        if self.name_or_path is not None:
            self.files().folder(key="name_or_path")

    def input_length(self) -> InputLength:
        """Return how long the model's input is, whatever the seconds; takes no torch."""
        if self.name_or_path is not None:
            return InputLength.of(self.files().extractor())
        return InputLength.of({"feature_extractor_type": EXTRACTOR, **self.feature_extractor})

    def config_values(self) -> dict[str, Any]:
        """Return what the model's config will hold, as far as it can be read without torch."""
        values = self.architecture if self.name_or_path is None else self.files().config()
        return {**config_defaults(MODEL_TYPE), **values, **self.config, **self._knobs()}

    def shrunk(self) -> WhisperModel:
        """Return a Whisper of the same window and bounds, with a few small layers and random weights: what a rehearsal builds."""
        values, taken = self.config_values(), pretrained.config_parameters(MODEL_TYPE)
        said = {**(self.architecture if self.name_or_path is None else self.files().config()), **self.config}
        kept = {k: v for k, v in said.items() if k in taken and k not in NOT_OF_THE_PATH and not k.endswith("_token_id")}
        extractor = self.feature_extractor if self.name_or_path is None else self.files().extractor()
        takes = (*pretrained.extractor_parameters(EXTRACTOR),)
        return replace(
            self,
            name_or_path=None,
            architecture={**kept, **small_decoder(values)},
            feature_extractor={k: v for k, v in extractor.items() if k in takes and k != "feature_extractor_type"},
            config={},
        )

    def _knobs(self) -> dict[str, Any]:
        return {name: value for name in KNOBS if (value := getattr(self, name)) is not None}

    def known_layerdrop(self) -> Mapping[str, float]:
        """Return the share of layers that training skips, by its key, as far as it is known without a network."""
        if self.name_or_path is not None and not self.files().config_is_at_hand():
            return {}
        values = self.config_values()
        halves = ("decoder",) if self.freeze_encoder else ("encoder", "decoder")
        return {f"{half}_layerdrop": float(values.get(f"{half}_layerdrop") or 0.0) for half in halves}

    def most_labels(self) -> int | None:
        """Return the most labels that the decoder has positions for."""
        return int(self.config_values().get("max_target_positions") or MOST_LABELS)

    def most_seconds(self) -> float | None:
        """Return the longest audio that the model hears: the extractor would cut the rest off."""
        return self.input_length().window_seconds

    def frame_count(self) -> None:
        """Return none: a decoder writes as many labels as it likes, whatever the frames."""

    def input_masks(self, config: Any, seed: int) -> SpecAugment | None:
        """Return what masks the log-mel input, which the collator does; None where nothing is to be masked."""
        return SpecAugment.of(config, config.num_mel_bins, seed) if self.apply_spec_augment else None

    def start_token_id(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Return what the decoder is started with."""
        return int(tokenizer.convert_tokens_to_ids(whisper_tokenizer.START))

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Have the tokenizer begin with the language and the task; raise ConfigError for one that isn't Whisper's."""
        if not hasattr(tokenizer, "set_prefix_tokens"):
            raise ConfigError(f"{type(tokenizer).__name__} is no Whisper tokenizer.", key="vocabulary.tokenizer_name_or_path")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        if self._is_multilingual():
            tokenizer.set_prefix_tokens(language=self.language, task=self.task, predict_timestamps=self.timestamps)
        else:
            tokenizer.set_prefix_tokens(predict_timestamps=self.timestamps)

    def labels(self, tokenizer: PreTrainedTokenizerBase, transcript: str) -> list[int]:
        """Return the label ids of a normalised transcript: language, task, text and end."""
        text = transcript if self.timestamps else whisper_tokenizer.without_timestamps(transcript)
        return sequence_labels(tokenizer(text).input_ids, start=self.start_token_id(tokenizer), end=int(tokenizer.eos_token_id))

    def load(self, tokenizer: PreTrainedTokenizerBase, *, new_head: bool) -> PreTrainedModel:
        """Return the model, whose generation config names the language and the task."""
        import transformers

        attention = {"attn_implementation": self.attn_implementation} if self.attn_implementation else {}
        # masks are drawn with the batch (asr.collate): forward must not draw others
        values = {**self.config, **self._knobs(), "apply_spec_augment": False}
        with pretrained.made():
            if self.name_or_path is None:
                special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eos_token_id)
                own = {"vocab_size": len(tokenizer), "decoder_start_token_id": self.start_token_id(tokenizer), **special}
                silent = {"begin_suppress_tokens": None, "suppress_tokens": None}
                config = transformers.AutoConfig.for_model(MODEL_TYPE, **{**self.architecture, **values, **own, **silent})
                model, fresh = transformers.AutoModelForSpeechSeq2Seq.from_config(config, **attention), list[Any]()
            else:
                config = transformers.AutoConfig.from_pretrained(self.files().folder(), trust_remote_code=self.trust_remote_code)
                config.update(values)
                any_class, remote = transformers.AutoModelForSpeechSeq2Seq, {"trust_remote_code": self.trust_remote_code}
                model, fresh = pretrained.loaded(any_class, self.files().folder(), config=config, **remote, **attention)
        if len(tokenizer) > model.config.vocab_size:
            raise ConfigError(
                f"the model has {model.config.vocab_size} outputs, but the tokenizer {len(tokenizer)} tokens: take the model's own.",
                key="vocabulary.tokenizer_name_or_path",
            )
        self._set_generation(model.generation_config, model.config, tokenizer)
        if self.freeze_encoder:
            model.freeze_encoder()
        if asked := LoRA.of(self.lora):
            lora.apply(model, asked, fresh)
        return model

    def _set_generation(self, generation: Any, config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        """Have generation start with the language, the task and, where there are none, no timestamps."""
        # generate() would make one that is loaded anew from the model's config, without what is set here (generation/utils.py:1713)
        generation._from_model_config = False
        if self.name_or_path is None:
            numbers = {code: tokenizer.convert_tokens_to_ids(f"<|{code}|>") for code in whisper_tokenizer.languages()}
            generation.lang_to_id = {f"<|{code}|>": number for code, number in numbers.items()}
            generation.task_to_id = {task: tokenizer.convert_tokens_to_ids(f"<|{task}|>") for task in ("transcribe", "translate")}
            generation.no_timestamps_token_id = tokenizer.convert_tokens_to_ids("<|notimestamps|>")
            generation.is_multilingual, generation.max_initial_timestamp_index = True, 50
            generation.max_length, generation.begin_suppress_tokens, generation.suppress_tokens = config.max_target_positions, None, None
        generation.forced_decoder_ids = None  # language and task below take their place; both together are refused
        generation.return_timestamps = self.timestamps
        if self._is_multilingual():
            generation.language, generation.task = self.language, self.task
        set_generation(generation, self.generation)

    def processor(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> ProcessorMixin:
        """Return feature extractor and tokenizer as one processor, which a pipeline loads from the saved model."""
        import transformers

        files = None if self.name_or_path is None else self.files()
        extractor = pretrained.feature_extractor(
            files, self.feature_extractor, trust_remote_code=self.trust_remote_code, default="WhisperFeatureExtractor"
        )
        if type(extractor).__name__ != EXTRACTOR or extractor.feature_size != model.config.num_mel_bins:
            size = getattr(extractor, "feature_size", None)
            raise ConfigError(
                f"a {type(extractor).__name__} of {size} mel bins doesn't fit a Whisper of {model.config.num_mel_bins}.",
                key="model.feature_extractor" if files is None else "model.name_or_path",
            )
        return transformers.WhisperProcessor(feature_extractor=extractor, tokenizer=tokenizer)
