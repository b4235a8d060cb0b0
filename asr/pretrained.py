"""A pretrained model's files, from a folder or the hub, read without torch; and what a model type's config class takes.

In: a name. Out: its config.json, its feature extractor's config, the folder that transformers loads from; ConfigErrors in a user's words.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from asr import hub
from asr.errors import ConfigError, did_you_mean
from asr.signatures import constructor_defaults, constructor_parameters, string_dict

if TYPE_CHECKING:
    import torch

EXTRACTORS = {
    "Wav2Vec2FeatureExtractor": "wav2vec2",
    "SeamlessM4TFeatureExtractor": "seamless_m4t",
    "WhisperFeatureExtractor": "whisper",
}
"""Feature extractors whose output is known here, and the packages of transformers that hold them."""


@dataclass(frozen=True)
class PretrainedFiles:
    """What lies at a local folder or under a name of the hub. `key` names it in errors, below the model node."""

    name: str
    revision: str | None = None
    cache_dir: str | None = None
    key: str = "name_or_path"

    def json(self, file_name: str) -> dict[str, Any]:
        """Return a JSON file of it; raise ConfigError where there is none."""
        folder = Path(self.name).expanduser()
        if folder.is_dir():
            path = folder / file_name
            if not path.is_file():
                near = f" Did you mean {folder / 'model'}?" if (folder / "model" / file_name).is_file() else ""
                raise ConfigError(f"{self.name!r} has no {file_name}, so it is no saved model.{near}", key=self.key)
        elif self.name.startswith(("/", ".", "~")) or self.name.count("/") > 1:
            raise ConfigError(f"there is no folder {self.name!r}.", key=self.key)
        else:
            path = hub.file(self.name, file_name, key=self.key, revision=self.revision, cache_dir=self.cache_dir)
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ConfigError(f"{path} is not JSON ({error}).", key=self.key) from error

    def config(self) -> dict[str, Any]:
        """Return its config.json."""
        return self.json("config.json")

    def extractor(self) -> dict[str, Any]:
        """Return its feature extractor's config; processors of transformers 5 keep it in processor_config.json alone."""
        try:
            return self.json("preprocessor_config.json")
        except ConfigError:
            with contextlib.suppress(ConfigError, KeyError):
                return dict(self.json("processor_config.json")["feature_extractor"])
            raise

    def config_is_at_hand(self) -> bool:
        """Say whether config.json can be read without a network."""
        return self._at_hand() is not None

    def _at_hand(self) -> Path | None:
        """Return where it lies here: its folder, or the hub's cache of it; None where it would have to be fetched."""
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        folder = Path(self.name).expanduser()
        if folder.is_dir():
            return folder
        try:
            found = try_to_load_from_cache(self.name, "config.json", revision=self.revision, cache_dir=self.cache_dir)
        except HFValidationError:  # no name of the hub: check_reachable says so
            return None
        return Path(found).parent if isinstance(found, str) else None

    def weight_bytes(self) -> int | None:
        """Return how large its weights are; None where they aren't here."""
        folder = self._at_hand()
        for pattern in ("*.safetensors", "pytorch_model*.bin"):
            if folder and (size := sum(path.stat().st_size for path in folder.glob(pattern))):
                return size
        return None

    def folder(self, *, key: str = "") -> str:
        """Return the folder to load it from: the hub's names too are one, so that transformers asks no network for its dozen files."""
        if hub.is_name(self.name):
            return str(hub.model_folder(self.name, key=key or f"model.{self.key}", revision=self.revision, cache_dir=self.cache_dir))
        return str(Path(self.name).expanduser())


_PACKAGES = {"data2vec-audio": "data2vec"}
"""Model types that don't lie in a package of their name."""
_INHERITED = ("apply_spec_augment", "gradient_checkpointing", "id2label", "label2id", "architectures", "torch_dtype", "initializer_range")
_OF_DECODERS = ("cross_attention_hidden_size", "is_decoder", "add_cross_attention", "tie_word_embeddings")


def config_parameters(model_type: str) -> tuple[str, ...]:
    """Return the names that the config class of a model type takes; empty when its source isn't found."""
    parameters = constructor_parameters(*_config_class(model_type))
    return (*parameters, *_INHERITED, *_OF_DECODERS) if parameters else ()


@lru_cache
def config_defaults(model_type: str) -> dict[str, Any]:
    """Return the values that the config class of a model type has when none are given."""
    return constructor_defaults(*_config_class(model_type))


def _config_class(model_type: str) -> tuple[str, str]:
    classes = string_dict("transformers.models.auto.configuration_auto", "CONFIG_MAPPING_NAMES")
    package = _PACKAGES.get(model_type, model_type.replace("-", "_"))
    module = f"transformers.models.{package}.configuration_{model_type.replace('-', '_')}"
    return module, classes.get(model_type, "")


def check_config_keys(values: Mapping[str, Any], model_type: str, *, key: str) -> None:
    """Raise ConfigError for a value that the config class of a model type doesn't take."""
    parameters = config_parameters(model_type)
    for entry in values:
        if parameters and entry not in parameters and entry != "model_type":
            raise ConfigError(f"the config of {model_type} has no such key.{did_you_mean(entry, parameters)}", key=f"{key}.{entry}")


def extractor_parameters(name: str) -> tuple[str, ...]:
    """Return the arguments of a feature extractor's class; empty for one whose source isn't known here."""
    package = EXTRACTORS.get(name, "")
    parameters = constructor_parameters(f"transformers.models.{package}.feature_extraction_{package}", name)
    return (*parameters, "feature_extractor_type", "return_attention_mask", "padding_side") if parameters else ()


def check_extractor_keys(arguments: Mapping[str, Any], default: str = "Wav2Vec2FeatureExtractor") -> None:
    """Raise ConfigError for an argument that a feature extractor's class doesn't take."""
    name = str(arguments.get("feature_extractor_type", default))
    takes = extractor_parameters(name)
    for entry in arguments:
        if takes and entry not in takes:
            raise ConfigError(f"{name} has no such argument.{did_you_mean(entry, takes)}", key=f"feature_extractor.{entry}")


def feature_extractor(files: PretrainedFiles | None, arguments: Mapping[str, Any], *, trust_remote_code: bool, default: str) -> Any:
    """Return the feature extractor of a checkpoint, or one of a named class made from its arguments; raise ConfigError."""
    import transformers

    key = "model.feature_extractor" if files is None else f"model.{files.key}"
    try:
        if files is not None:
            return transformers.AutoFeatureExtractor.from_pretrained(files.folder(), trust_remote_code=trust_remote_code)
        given = {"feature_extractor_type": default, **arguments}
        return getattr(transformers, str(given.pop("feature_extractor_type")))(**given)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"no feature extractor can be had: {str(error).splitlines()[0]}", key=key) from error


def loaded(auto_class: Any, folder: str, **options: Any) -> tuple[Any, list[torch.nn.Parameter]]:
    """Return what a class loads from a folder, and its parameters that the checkpoint doesn't hold: chance has made them."""
    model, info = auto_class.from_pretrained(folder, output_loading_info=True, **options)
    parameters = dict(model.named_parameters())
    return model, [parameters[name] for name in sorted(info["missing_keys"]) if name in parameters]


@contextlib.contextmanager
def made(*, key: str = "model.name_or_path") -> Iterator[None]:
    """Turn what transformers raises for a model that can't be made, or whose weights are not to be loaded, into a ConfigError."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except UnpicklingError as error:
        raise ConfigError(
            "its weights are a pickle that holds more than weights, which is never loaded; save them as safetensors.", key=key
        ) from error
    except (OSError, ValueError, TypeError, RuntimeError, ImportError, StrictDataclassError) as error:
        raise ConfigError(f"the model can't be made: {' '.join(str(error).split())[:400]}", key="model") from error
