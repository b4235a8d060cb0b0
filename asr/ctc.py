"""CTC models: described in the configuration, loaded or built in the worker.

In: a checkpoint or an architecture, and a tokenizer. Out: a model of transformers' CTC mapping and its processor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from asr import lora, pretrained
from asr.config import bounded, choice, free_form
from asr.errors import ConfigError, did_you_mean
from asr.features import InputLength
from asr.frames import MODEL_TYPES, FrameCount
from asr.lora import LoRA
from asr.pretrained import PretrainedFiles, config_defaults, config_parameters, extractor_parameters
from asr.shrinking import NEEDED, NOT_OF_THE_PATH, small_sizes
from asr.signatures import string_dict

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

KNOBS = (
    "attention_dropout activation_dropout feat_proj_dropout hidden_dropout final_dropout "
    "mask_time_prob mask_time_length mask_feature_prob mask_feature_length "
    "layerdrop ctc_loss_reduction ctc_zero_infinity add_adapter"
).split()
"""Fields of CTCModel that go into the model's own config when they are set."""


@dataclass(kw_only=True)
class CTCModel:
    """A model of transformers' CTC mapping, from a checkpoint or from scratch. Null leaves a checkpoint's own value."""

    generates = False
    tokenizer_kind = "ctc"

    name_or_path: str | None = None
    """A local folder or hub name: a CTC model, or a pretrained encoder, which gets a new output layer."""
    revision: str | None = None
    cache_dir: str | None = None
    trust_remote_code: bool = False
    """Runs code that the hub repository brings; recorded in run.json."""
    attn_implementation: str | None = None
    """eager, sdpa, ... as in from_pretrained."""
    architecture: dict[str, Any] = free_form()
    """model_type and its config's values for a model from scratch; not used once name_or_path is given."""
    feature_extractor: dict[str, Any] = free_form()
    """feature_extractor_type and its arguments for a model from scratch; likewise."""
    config: dict[str, Any] = free_form()
    """Further values of the model's config, over a checkpoint's or an architecture's."""
    freeze_feature_encoder: bool = True
    """Keeps the convolutional waveform encoder fixed (models on log-mel features have none)."""
    lora: dict[str, Any] | None = free_form()
    """Trains small matrices beside frozen layers, as r, alpha, dropout, target_modules and modules_to_save say; empty, the layers."""
    attention_dropout: float | None = bounded(None, at_least=0, at_most=1)
    activation_dropout: float | None = bounded(None, at_least=0, at_most=1)
    feat_proj_dropout: float | None = bounded(None, at_least=0, at_most=1)
    hidden_dropout: float | None = bounded(None, at_least=0, at_most=1)
    final_dropout: float | None = bounded(None, at_least=0, at_most=1)
    mask_time_prob: float | None = bounded(None, at_least=0, at_most=1)
    """Share of frames that SpecAugment masks, before overlaps."""
    mask_time_length: int | None = bounded(None, at_least=1)
    mask_feature_prob: float | None = bounded(None, at_least=0, at_most=1)
    mask_feature_length: int | None = bounded(None, at_least=1)
    layerdrop: float | None = bounded(None, at_least=0, at_most=1)
    ctc_loss_reduction: str | None = choice(None, "mean", "sum")
    """mean divides each utterance's loss by its labels, then averages the batch; sum adds it up."""
    ctc_zero_infinity: bool | None = None
    """Zeroes the infinite losses of utterances with more labels than frames."""
    add_adapter: bool | None = None
    """Adds the convolutional adapter that shortens the encoder's output."""

    def __post_init__(self) -> None:
        LoRA.of(self.lora)
        if self.name_or_path is None:
            model_type = self.architecture.get("model_type")
            if model_type is None:
                raise ConfigError("give a checkpoint, or architecture.model_type for a model from scratch.", key="name_or_path")
            self._check_config_keys(str(model_type))

    def check_reachable(self) -> None:
        """Read the checkpoint's config.json, from disk or the hub, and check it; raise ConfigError when it can't be had.

        Takes no torch. Run before anything is written, so that a wrong name leaves nothing behind.
        """
        if self.name_or_path is None:
            return
        model_type = str(self.checkpoint_config().get("model_type"))
        if not self.trust_remote_code:
            self._check_config_keys(model_type)
        self.input_length()

    def checkpoint_config(self) -> dict[str, Any]:
        """Return the checkpoint's config.json."""
        return self.files().config()

    def files(self) -> PretrainedFiles:
        """Return what reads the checkpoint's files."""
        return PretrainedFiles(str(self.name_or_path), self.revision, self.cache_dir)

    def has_own_tokenizer(self) -> bool:
        """Say whether the checkpoint is a CTC model, whose output layer belongs to its tokenizer."""
        return self.name_or_path is not None and any(
            str(name).endswith("ForCTC") for name in self.checkpoint_config().get("architectures") or []
        )

    def is_trained(self) -> bool:
        """Say whether the checkpoint can be evaluated without training."""
        return self.has_own_tokenizer()

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise ConfigError for a tokenizer without a blank."""
        if tokenizer.pad_token_id is None:
            name = getattr(tokenizer, "name_or_path", "")
            raise ConfigError(f"the tokenizer of {name!r} has no pad token, which CTC takes as its blank.", key="vocabulary")

    def most_labels(self) -> int | None:
        """Return none: only the frames bound the labels."""
        return None

    def most_seconds(self) -> float | None:
        """Return none: audio of any length is heard."""
        return None

    def input_masks(self, config: Any, seed: int) -> None:
        """Return none: masks are of hidden states, and forward is given them."""

    def frame_count(self) -> FrameCount:
        """Return how many output frames the model gives, from its config alone; takes no torch."""
        return FrameCount.of(self.config_values())

    def config_values(self) -> dict[str, Any]:
        """Return what the model's config will hold, as far as it can be read without torch."""
        return self._planned_config(self.architecture if self.name_or_path is None else self.checkpoint_config())

    def shrunk(self) -> CTCModel:
        """Return the same model class, on the same path, with a few small layers and random weights: what a rehearsal builds.

        Reads a checkpoint's config.json and its feature extractor, never its weights. As many frames come out as before. Raises
        ConfigError for a model whose sizes aren't known here.
        """
        values = self.architecture if self.name_or_path is None else self.checkpoint_config()
        model_type, planned = str(values.get("model_type")), self._planned_config(values)
        remote = self.trust_remote_code and {"AutoConfig", "AutoModelForCTC"} & set(values.get("auto_map") or ())
        if remote or model_type not in MODEL_TYPES or not set(NEEDED) <= planned.keys():
            what = "the repository's own code" if remote else f"a {model_type!r}"
            raise ConfigError(
                f"is {what}, whose sizes a rehearsal can't shrink: rehearse with a model of {', '.join(MODEL_TYPES)}, or give "
                "model._target_ a class of your own that has a method shrunk().",
                key="architecture.model_type" if self.name_or_path is None else "name_or_path",
            )
        small, taken = small_sizes(planned), config_parameters(model_type)
        extractor = dict(self.feature_extractor if self.name_or_path is None else self.files().extractor())
        takes = extractor_parameters(str(extractor.get("feature_extractor_type", "Wav2Vec2FeatureExtractor")))
        kept = {k: v for k, v in values.items() if k in taken and k not in NOT_OF_THE_PATH and not k.endswith("_token_id")}
        return replace(
            self,
            name_or_path=None,
            architecture={"model_type": model_type, **kept, **small},
            feature_extractor={k: v for k, v in extractor.items() if k in (takes or extractor)},
            config={k: v for k, v in self.config.items() if k not in small},
            **{k: v for k, v in small.items() if k in KNOBS and getattr(self, k) is not None},
        )

    def known_layerdrop(self) -> Mapping[str, float]:
        """Return the share of layers that training skips, by its key; empty where the model has none.

        Reads no network: empty too while nothing here tells what a hub checkpoint's config.json says.
        """
        values = self.architecture
        if self.name_or_path is not None:
            values = self.checkpoint_config() if self.files().config_is_at_hand() else {}
        share = self._planned_config(values).get("layerdrop")
        return {} if share is None else {"layerdrop": float(share)}

    def _planned_config(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the model's config will hold: a checkpoint's or an architecture's values between defaults and our own."""
        own = {name: value for name in KNOBS if (value := getattr(self, name)) is not None}
        return {**config_defaults(str(values.get("model_type"))), **values, **self.config, **own}

    def input_length(self) -> InputLength:
        """Return how long the model's input is for so many seconds, from the extractor's config alone; takes no torch."""
        return InputLength.of(self.feature_extractor if self.name_or_path is None else self.files().extractor())

    def fetch(self) -> None:
        """Have the checkpoint's files here, with its weights: from the cache or the hub; raise ConfigError."""
        if self.name_or_path is not None:
            self.files().folder(key="name_or_path")

    def tokenizer_files(self) -> tuple[str, dict[str, Any]]:
        """Return where the checkpoint's own tokenizer lies, and what else its from_pretrained needs."""
        return str(self.name_or_path), self.where()

    def where(self) -> dict[str, Any]:
        """Return what else a from_pretrained of this checkpoint's tokenizer needs."""
        return {"revision": self.revision, "cache_dir": self.cache_dir, "trust_remote_code": self.trust_remote_code}

    def load(self, tokenizer: PreTrainedTokenizerBase, *, new_head: bool) -> PreTrainedModel:
        """Return the model with an output for each token.

        `new_head` starts the output layer afresh because its vocabulary was built anew.
        """
        from transformers import AutoConfig, AutoModelForCTC

        knobs = {name: getattr(self, name) for name in KNOBS if getattr(self, name) is not None}
        attention = {"attn_implementation": self.attn_implementation} if self.attn_implementation else {}
        remote = {"trust_remote_code": self.trust_remote_code}
        with pretrained.made():
            if self.name_or_path is None:
                config = AutoConfig.for_model(**self.architecture)
            else:
                config = AutoConfig.from_pretrained(self.files().folder(), **remote)
            masks = {"apply_spec_augment": True} if self.mask_time_prob or self.mask_feature_prob else {}
            config.update({**masks, **self.config, **knobs, "pad_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer)})
            if self.name_or_path is None:  # with LoRA that is a rehearsal: what a checkpoint would hold counts as held
                model, fresh = AutoModelForCTC.from_config(config, **attention), list[Any]()
            else:
                model, fresh = pretrained.loaded(
                    AutoModelForCTC, self.files().folder(), config=config, ignore_mismatched_sizes=new_head, **remote, **attention
                )
        if new_head and self.name_or_path is not None:  # rows of another vocabulary would be kept where the sizes agree
            for parameter in model.lm_head.parameters():
                parameter._is_hf_initialized = False  # transformers 5 leaves what it has loaded alone (initialization.py:45 of 5.23)
            model._init_weights(model.lm_head)
        # with LoRA its weights are frozen in any case: this spares it the way back of gradients to its input
        if (self.freeze_feature_encoder or self.lora) and hasattr(model, "freeze_feature_encoder"):
            model.freeze_feature_encoder()
        if asked := LoRA.of(self.lora):
            lora.apply(model, asked, [*fresh, *(model.lm_head.parameters() if new_head else ())])
        return model

    def processor(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> ProcessorMixin:
        """Return feature extractor and tokenizer as one processor, which a pipeline loads from the saved model.

        Raises ConfigError when there is no extractor, or one whose output isn't the model's input.
        """
        import transformers

        files = None if self.name_or_path is None else self.files()
        key = "model.feature_extractor" if files is None else "model.name_or_path"
        extractor = pretrained.feature_extractor(
            files, self.feature_extractor, trust_remote_code=self.trust_remote_code, default="Wav2Vec2FeatureExtractor"
        )
        given, wanted = extractor.model_input_names[0], model.main_input_name
        if given != wanted:
            raise ConfigError(f"{type(extractor).__name__} gives {given}, but {type(model).__name__} takes {wanted}.", key=key)
        width = getattr(model.config, "feature_projection_input_dim", None)
        if wanted == "input_features" and width != extractor.num_mel_bins * extractor.stride:
            raise ConfigError(
                f"num_mel_bins times stride is {extractor.num_mel_bins * extractor.stride}, "
                f"but the model's feature_projection_input_dim is {width}.",
                key=key,
            )
        cls = transformers.Wav2Vec2BertProcessor if wanted == "input_features" else transformers.Wav2Vec2Processor
        return cls(feature_extractor=extractor, tokenizer=tokenizer)

    def _check_config_keys(self, model_type: str) -> None:
        """Raise ConfigError for a model type without a CTC model, or a value its config class doesn't take."""
        known_types = string_dict("transformers.models.auto.modeling_auto", "MODEL_FOR_CTC_MAPPING_NAMES")
        key = "architecture.model_type" if self.name_or_path is None else "name_or_path"
        if known_types and model_type not in MODEL_TYPES:
            problem = "has a CTC model that isn't supported here" if model_type in known_types else "has no CTC model"
            near = did_you_mean(model_type, MODEL_TYPES)
            raise ConfigError(f"{model_type!r} {problem}; these have one that is: {', '.join(MODEL_TYPES)}.{near}", key=key)
        for name in ("architecture", "config") if self.name_or_path is None else ("config",):
            pretrained.check_config_keys(getattr(self, name), model_type, key=name)
        if self.name_or_path is None:
            pretrained.check_extractor_keys(self.feature_extractor)
        parameters = config_parameters(model_type)
        for knob in KNOBS:
            if parameters and getattr(self, knob) is not None and knob not in parameters:
                raise ConfigError(f"the config of {model_type} has no {knob}; set it to null.", key=knob)
