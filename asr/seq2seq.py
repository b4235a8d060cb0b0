"""Sequence-to-sequence models of a speech encoder and a text decoder, each pretrained or from scratch.

In: an encoder, a decoder and a tokenizer. Out: transformers' SpeechEncoderDecoderModel, ready to train and to generate, and its processor.
Source: https://huggingface.co/docs/transformers/model_doc/speech-encoder-decoder.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from asr import lora, pretrained
from asr.config import bounded, free_form
from asr.errors import ConfigError, did_you_mean
from asr.features import InputLength
from asr.frames import MODEL_TYPES
from asr.lora import LoRA
from asr.pretrained import PretrainedFiles, config_defaults, config_parameters
from asr.shrinking import NOT_OF_THE_PATH, small_decoder, small_sizes
from asr.signatures import string_dict

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

log = logging.getLogger(__name__)

MODEL_TYPE = "speech-encoder-decoder"
ENCODER_KNOBS = (
    "attention_dropout activation_dropout feat_proj_dropout hidden_dropout final_dropout layerdrop "
    "mask_time_prob mask_time_length mask_feature_prob mask_feature_length add_adapter"
).split()
"""Fields encoder_<name> of EncoderDecoderModel that go into the encoder's own config when they are set."""


def sequence_labels(ids: Sequence[int], *, start: int, end: int) -> list[int]:
    """Return what a decoder is to say: a tokenizer's ids without the token that it is started with, and with one that ends them.

    >>> sequence_labels([0, 7, 8], start=0, end=2)
    [7, 8, 2]
    """
    listed = list(ids)
    if listed and listed[0] == start:
        listed = listed[1:]
    return listed if listed and listed[-1] == end else [*listed, end]


def freeze_feature_encoder(model: PreTrainedModel) -> None:
    """Keep the convolutions that turn waveforms into frames as they are; nothing where the encoder has none (log-mel features)."""
    convolutions = getattr(model.get_encoder(), "feature_extractor", None)
    if convolutions is not None:
        convolutions._freeze_parameters()


@dataclass(kw_only=True)
class EncoderDecoderModel:
    """A speech encoder with a text decoder, warm-started from one checkpoint each, from scratch, or a trained one that goes on.

    Null leaves a checkpoint's own value.
    """

    generates = True
    tokenizer_kind = "characters"

    name_or_path: str | None = None
    """A local folder or hub name of a whole SpeechEncoderDecoderModel, such as <a run>/model; wins over its two halves below."""
    revision: str | None = None
    cache_dir: str | None = None
    trust_remote_code: bool = False
    """Runs code that the hub repositories bring; recorded in run.json."""
    attn_implementation: str | None = None
    """eager, sdpa, ... as in from_pretrained."""
    encoder_name_or_path: str | None = None
    """A pretrained speech encoder, such as facebook/wav2vec2-base."""
    encoder_revision: str | None = None
    decoder_name_or_path: str | None = None
    """A pretrained text decoder, such as facebook/bart-base; its tokenizer is the model's."""
    decoder_revision: str | None = None
    encoder: dict[str, Any] = free_form()
    """Values of the encoder's config, over its checkpoint's. With model_type, an encoder from scratch, unless a checkpoint is given."""
    decoder: dict[str, Any] = free_form()
    """Values of the decoder's config, likewise."""
    feature_extractor: dict[str, Any] = free_form()
    """feature_extractor_type and its arguments for an encoder from scratch."""
    generation: dict[str, Any] = free_form()
    """Further values of the generation config, such as length_penalty; trainer.args.generation_* win in evaluations."""
    max_length: int | None = bounded(None, at_least=1)
    """Most tokens that are generated."""
    num_beams: int | None = bounded(None, at_least=1)
    """Beams that generate; 1 takes the best token each time."""
    freeze_feature_encoder: bool = True
    """Keeps the convolutional waveform encoder fixed (encoders on log-mel features have none)."""
    freeze_encoder: bool = False
    """Keeps the whole encoder fixed."""
    lora: dict[str, Any] | None = free_form()
    """Trains small matrices beside frozen layers, as r, alpha, dropout, target_modules and modules_to_save say; empty, the layers."""
    encoder_add_adapter: bool | None = None
    """Adds the convolutional adapter that shortens the encoder's output eightfold: a frame is then about as long as a token."""
    encoder_attention_dropout: float | None = bounded(None, at_least=0, at_most=1)
    encoder_activation_dropout: float | None = bounded(None, at_least=0, at_most=1)
    encoder_feat_proj_dropout: float | None = bounded(None, at_least=0, at_most=1)
    encoder_hidden_dropout: float | None = bounded(None, at_least=0, at_most=1)
    encoder_final_dropout: float | None = bounded(None, at_least=0, at_most=1)
    encoder_layerdrop: float | None = bounded(None, at_least=0, at_most=1)
    encoder_mask_time_prob: float | None = bounded(None, at_least=0, at_most=1)
    """Share of frames that SpecAugment masks, before overlaps."""
    encoder_mask_time_length: int | None = bounded(None, at_least=1)
    encoder_mask_feature_prob: float | None = bounded(None, at_least=0, at_most=1)
    encoder_mask_feature_length: int | None = bounded(None, at_least=1)

    def __post_init__(self) -> None:
        LoRA.of(self.lora)
        if self.name_or_path is not None:
            return
        for half, group in (("encoder", self.encoder), ("decoder", self.decoder)):
            if getattr(self, f"{half}_name_or_path") is None and group.get("model_type") is None:
                raise ConfigError(f"give a checkpoint, or {half}.model_type for one from scratch.", key=f"{half}_name_or_path")
        for half in ("encoder", "decoder"):
            if getattr(self, f"{half}_name_or_path") is None:
                self._check_half(half, str(getattr(self, half)["model_type"]))
        if self.encoder_name_or_path is None:
            pretrained.check_extractor_keys(self.feature_extractor)

    def check_reachable(self) -> None:
        """Read the checkpoints' config.json, from disk or the hub, and check them; raise ConfigError. Takes no torch."""
        if self.name_or_path is not None:
            model_type = self.files().config().get("model_type")
            if model_type != MODEL_TYPE:
                raise ConfigError(
                    f"{self.name_or_path!r} is a {model_type!r}, no {MODEL_TYPE}: a speech encoder alone is model.encoder_name_or_path.",
                    key="name_or_path",
                )
            self.input_length()
            return
        for half in ("encoder", "decoder"):
            if files := self._half_files(half):
                self._check_half(half, str(files.config().get("model_type")))
        self.input_length()

    def _check_half(self, half: str, model_type: str) -> None:
        """Raise ConfigError for a model type that can't be this half, or values that its config doesn't take."""
        key = f"{half}.model_type" if getattr(self, f"{half}_name_or_path") is None else f"{half}_name_or_path"
        if half == "encoder" and model_type not in MODEL_TYPES:
            raise ConfigError(
                f"{model_type!r} is no speech encoder; these are: {', '.join(MODEL_TYPES)}.{did_you_mean(model_type, MODEL_TYPES)}", key=key
            )
        decoders = string_dict("transformers.models.auto.modeling_auto", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")
        if half == "decoder" and decoders and model_type not in decoders:
            raise ConfigError(f"{model_type!r} is no text decoder (no causal language model).{did_you_mean(model_type, decoders)}", key=key)
        pretrained.check_config_keys(self._over(half), model_type, key=half)
        if half == "encoder":
            parameters = config_parameters(model_type)
            for name in ENCODER_KNOBS:
                if parameters and getattr(self, f"encoder_{name}") is not None and name not in parameters:
                    raise ConfigError(f"the config of {model_type} has no {name}; set it to null.", key=f"encoder_{name}")

    def files(self) -> PretrainedFiles:
        """Return what reads the whole model's files."""
        return PretrainedFiles(str(self.name_or_path), self.revision, self.cache_dir)

    def _half_files(self, half: str) -> PretrainedFiles | None:
        name = getattr(self, f"{half}_name_or_path")
        key = f"{half}_name_or_path"
        return None if name is None else PretrainedFiles(name, getattr(self, f"{half}_revision"), self.cache_dir, key)

    def has_own_tokenizer(self) -> bool:
        """Say whether the output layer belongs to a tokenizer that comes with it."""
        return self.name_or_path is not None or self.decoder_name_or_path is not None

    def is_trained(self) -> bool:
        """Say whether the checkpoint is a whole model, which can be evaluated without training."""
        return self.name_or_path is not None

    def tokenizer_files(self) -> tuple[str, dict[str, Any]]:
        """Return where the model's own tokenizer lies, and what else its from_pretrained needs."""
        if self.name_or_path is not None:
            return self.name_or_path, self.where()
        return str(self.decoder_name_or_path), {**self.where(), "revision": self.decoder_revision}

    def where(self) -> dict[str, Any]:
        """Return what else a from_pretrained of this checkpoint's tokenizer needs."""
        return {"revision": self.revision, "cache_dir": self.cache_dir, "trust_remote_code": self.trust_remote_code}

    def fetch(self) -> None:
        """Have the checkpoints' files here, with their weights: from the cache or the hub; raise ConfigError."""
        for files in [self.files()] if self.name_or_path is not None else [self._half_files("encoder"), self._half_files("decoder")]:
            if files:
                files.folder(key=files.key)

    def input_length(self) -> InputLength:
        """Return how long the model's input is for so many seconds, from the extractor's config alone; takes no torch."""
        return InputLength.of(self.feature_extractor if (files := self._extractor_files()) is None else files.extractor())

    def _extractor_files(self) -> PretrainedFiles | None:
        return self.files() if self.name_or_path is not None else self._half_files("encoder")

    def config_values(self, half: str) -> dict[str, Any]:
        """Return what the config of a half will hold, as far as it can be read without torch."""
        values = self._checkpoint_values(half)
        own = self._encoder_knobs() if half == "encoder" else {}
        given = self._over(half)
        model_type = str(given.get("model_type") or values.get("model_type"))
        return {**config_defaults(model_type), **values, **given, **own}

    def _checkpoint_values(self, half: str) -> Mapping[str, Any]:
        """Return what a checkpoint's config.json says of a half; empty for one from scratch."""
        if self.name_or_path is not None:
            return dict(self.files().config().get(half, {}))
        return files.config() if (files := self._half_files(half)) else {}

    def _over(self, half: str) -> dict[str, Any]:
        """Return the values of a half's config that are ours: what describes one from scratch isn't, where a checkpoint is given."""
        given = dict(getattr(self, half))
        has_checkpoint = self.name_or_path is not None or self._half_files(half) is not None
        return {} if has_checkpoint and "model_type" in given else given

    def _encoder_knobs(self) -> dict[str, Any]:
        return {name: value for name in ENCODER_KNOBS if (value := getattr(self, f"encoder_{name}")) is not None}

    def shrunk(self) -> EncoderDecoderModel:
        """Return the same classes, on the same path, with a few small layers and random weights: what a rehearsal builds.

        Reads the checkpoints' config.json and the extractor's, never weights. As many frames come out as before.
        """
        halves: dict[str, Any] = {}
        for half, sizes in (("encoder", small_sizes), ("decoder", small_decoder)):
            said = {**self._checkpoint_values(half), **self._over(half)}
            model_type = str(said["model_type"])
            taken, small = config_parameters(model_type), sizes(self.config_values(half))
            kept = {k: v for k, v in said.items() if k in taken and k not in NOT_OF_THE_PATH and not k.endswith("_token_id")}
            halves[half] = {"model_type": model_type, **kept, **small}
        extractor = dict(self.feature_extractor if (files := self._extractor_files()) is None else files.extractor())
        takes = pretrained.extractor_parameters(str(extractor.get("feature_extractor_type", "Wav2Vec2FeatureExtractor")))
        none: dict[str, Any] = dict.fromkeys(("name_or_path", "encoder_name_or_path", "decoder_name_or_path"))
        return replace(self, **halves, **none, feature_extractor={k: v for k, v in extractor.items() if k in (takes or extractor)})

    def known_layerdrop(self) -> Mapping[str, float]:
        """Return the share of layers that training skips, by its key, as far as it is known without a network."""
        found: dict[str, float] = {}
        for half, name in (("encoder", "layerdrop"), ("decoder", "decoder_layerdrop")):
            files = self.files() if self.name_or_path is not None else self._half_files(half)
            if files is None or files.config_is_at_hand():
                share = self.config_values(half).get(name)
                key = "encoder_layerdrop" if half == "encoder" else "decoder.decoder_layerdrop"
                found |= {} if share is None or (half == "encoder" and self.freeze_encoder) else {key: float(share)}
        return found

    def most_labels(self) -> int | None:
        """Return the most labels that the decoder has positions for; None where its config doesn't say."""
        values = self.config_values("decoder")
        most = next((values[name] for name in ("max_position_embeddings", "n_positions", "max_target_positions") if values.get(name)), None)
        return None if most is None else int(most)

    def most_seconds(self) -> float | None:
        """Return the longest audio that the model hears; None: any."""
        return None

    def frame_count(self) -> None:
        """Return none: a decoder writes as many labels as it likes, whatever the frames."""

    def input_masks(self, config: Any, seed: int) -> None:
        """Return none: masks are of hidden states, and forward is given them."""

    def start_token_id(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Return what the decoder is started with: a trained model's own, else the tokenizer's beginning of a sequence.

        As the published recipe has it (decoder.config.bos_token_id), not the decoder's own decoder_start_token_id.
        """
        if self.name_or_path is not None and (found := self.files().config().get("decoder_start_token_id")) is not None:
            return int(found)
        return int(tokenizer.bos_token_id)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise ConfigError for a tokenizer that lacks what starts, ends and pads a sequence."""
        name = getattr(tokenizer, "name_or_path", "") or "given"
        for token, what in (("bos", "starts"), ("eos", "ends"), ("pad", "pads")):
            if getattr(tokenizer, f"{token}_token_id") is None:
                raise ConfigError(
                    f"the tokenizer {name!r} has no {token} token, which {what} a sequence: choose a decoder whose tokenizer has one "
                    "(facebook/bart-base), or save it with one and name its folder as vocabulary.tokenizer_name_or_path.",
                    key="model.decoder_name_or_path",
                )

    def labels(self, tokenizer: PreTrainedTokenizerBase, transcript: str) -> list[int]:
        """Return the label ids of a normalised transcript, the end included."""
        return sequence_labels(tokenizer(transcript).input_ids, start=self.start_token_id(tokenizer), end=int(tokenizer.eos_token_id))

    def load(self, tokenizer: PreTrainedTokenizerBase, *, new_head: bool) -> PreTrainedModel:
        """Return the model, with what starts, ends and pads a sequence set, and its generation config.

        Raises ConfigError for an encoder and a decoder that don't fit, and a decoder with fewer outputs than the tokenizer has tokens.
        """
        import transformers

        attention = {"attn_implementation": self.attn_implementation} if self.attn_implementation else {}
        remote = {"trust_remote_code": self.trust_remote_code}
        with pretrained.made():
            if self.name_or_path is not None:
                config = transformers.AutoConfig.from_pretrained(self.files().folder(), **remote)
                config.encoder.update({**self._over("encoder"), **self._encoder_knobs()})
                config.decoder.update(self._over("decoder"))
                whole = transformers.SpeechEncoderDecoderModel
                model, fresh = pretrained.loaded(whole, self.files().folder(), config=config, **attention)
            else:
                masks = {"apply_spec_augment": True} if self.encoder_mask_time_prob or self.encoder_mask_feature_prob else {}
                knobs = {**masks, **self._over("encoder"), **self._encoder_knobs()}
                encoder, fresh = self._made_half("encoder", knobs, transformers.AutoModel, attention)
                size = {} if self.decoder_name_or_path else {"vocab_size": len(tokenizer)}
                special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
                crossed = {"is_decoder": True, "add_cross_attention": True}
                decoder, also_fresh = self._made_half(
                    "decoder", {**crossed, **special, **size, **self._over("decoder")}, transformers.AutoModelForCausalLM, attention
                )
                _check_takes_encoder(decoder)
                model = transformers.SpeechEncoderDecoderModel(encoder=encoder, decoder=decoder)
                between = [p for name, p in model.named_parameters() if not name.startswith(("encoder.", "decoder."))]
                fresh = [*fresh, *also_fresh, *between]
        self._check_fits(model, tokenizer)
        if self.name_or_path is None:  # a decoder's own habits (BART's forced end, no n-gram twice) aren't for transcripts
            model.generation_config = type(model.generation_config)()
        for config in (model.config, model.generation_config):
            config.decoder_start_token_id = self.start_token_id(tokenizer)
            config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
            config.bos_token_id = tokenizer.bos_token_id
        own = {"max_length": self.max_length, "num_beams": self.num_beams, **self.generation}
        set_generation(model.generation_config, {name: value for name, value in own.items() if value is not None})
        if self.freeze_feature_encoder or self.lora:  # as in asr.ctc
            freeze_feature_encoder(model)
        if self.freeze_encoder:
            model.get_encoder().requires_grad_(False)
        if asked := LoRA.of(self.lora):
            lora.apply(model, asked, fresh)
        # the library would divide by the labels of all accumulated batches, which this model's forward can't do: a TypeError
        model.accepts_loss_kwargs = False
        return model

    def _made_half(
        self, half: str, values: Mapping[str, Any], auto_class: Any, attention: Mapping[str, Any]
    ) -> tuple[Any, list[torch.nn.Parameter]]:
        """Return encoder or decoder, and its parameters that no checkpoint holds: all of them beside a half that has one."""
        import transformers

        files, remote = self._half_files(half), {"trust_remote_code": self.trust_remote_code}
        if files is None:
            given = dict(values)
            config = transformers.AutoConfig.for_model(str(given.pop("model_type")), **given)
            model, other = auto_class.from_config(config, **attention), {"encoder": "decoder", "decoder": "encoder"}[half]
            return model, list(model.parameters()) if self._half_files(other) else []
        config = transformers.AutoConfig.from_pretrained(files.folder(), **remote)
        config.update(dict(values))
        model, fresh = pretrained.loaded(auto_class, files.folder(), config=config, **remote, **attention)
        embeddings = model.get_input_embeddings().weight if half == "decoder" else None
        if any(p is embeddings for p in fresh):
            _take_shared_embeddings(model, files.folder())
        return model, [p for p in fresh if p is not embeddings]

    def _check_fits(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        outputs = model.decoder.config.vocab_size
        if len(tokenizer) > outputs:
            raise ConfigError(
                f"the decoder has {outputs} outputs, but the tokenizer {len(tokenizer)} tokens: take the decoder's own tokenizer.",
                key="vocabulary.tokenizer_name_or_path",
            )

    def processor(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> ProcessorMixin:
        """Return feature extractor and tokenizer as one processor, which a pipeline loads from the saved model."""
        import transformers

        files = self._extractor_files()
        extractor = pretrained.feature_extractor(
            files, self.feature_extractor, trust_remote_code=self.trust_remote_code, default="Wav2Vec2FeatureExtractor"
        )
        given, wanted = extractor.model_input_names[0], model.get_encoder().main_input_name
        if given != wanted:
            key = "model.feature_extractor" if files is None else f"model.{files.key}"
            raise ConfigError(f"{type(extractor).__name__} gives {given}, but the encoder takes {wanted}.", key=key)
        cls = transformers.Wav2Vec2BertProcessor if wanted == "input_features" else transformers.Wav2Vec2Processor
        return cls(feature_extractor=extractor, tokenizer=tokenizer)


def _check_takes_encoder(decoder: Any) -> None:
    """Raise ConfigError for a decoder that has no cross-attention to hear an encoder with."""
    if "encoder_hidden_states" not in inspect.signature(decoder.forward).parameters:
        raise ConfigError(
            f"{type(decoder).__name__} has no cross-attention, so that it hears no encoder: take a decoder such as facebook/bart-base.",
            key="model.decoder_name_or_path",
        )


def _take_shared_embeddings(decoder: Any, folder: str) -> None:
    """Give a decoder the embeddings that its checkpoint keeps once for encoder and decoder, as saved BARTs do (model.shared).

    A causal language model looks for its own alone, and would begin with random ones (run with transformers 4.55: BartForCausalLM from
    what BartForConditionalGeneration.save_pretrained wrote).
    """
    import torch
    import transformers

    whole = transformers.AutoModel.from_pretrained(folder)
    with torch.no_grad():
        decoder.get_input_embeddings().weight.copy_(whole.get_input_embeddings().weight)
    decoder.tie_weights()


def set_generation(generation_config: Any, values: Mapping[str, Any]) -> None:
    """Set values of a generation config; raise ConfigError for a name that it doesn't have."""
    for name, value in values.items():
        if not hasattr(generation_config, name):
            known = sorted(vars(generation_config))
            raise ConfigError(f"the generation config has no such value.{did_you_mean(name, known)}", key=f"model.generation.{name}")
        setattr(generation_config, name, value)
    try:
        generation_config.validate(strict=True)  # what doesn't go together is refused when the trained model is saved
    except ValueError as error:
        raise ConfigError(f"its values don't go together: {' '.join(str(error).split())[:400]}", key="model.generation") from error
