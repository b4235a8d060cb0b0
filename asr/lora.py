"""LoRA: small trained matrices beside a model's frozen layers, and the plain model that they amount to.

In: a loaded model and what model.lora says. Out: the same model, of which little is trained; and its weights with each product added.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from asr import config
from asr.config import bounded
from asr.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

ADAPTER = "default"
QUERY_AND_VALUE = (("q_proj", "v_proj"), ("linear_q", "linear_v"), ("query_proj", "value_proj"), ("query", "value"))
"""Names that models of the CTC mapping, Whisper, BART and BERT have for an attention's query and value projections."""


@dataclass(kw_only=True)
class LoRA:
    """What model.lora holds; its names are peft's (LoraConfig), without their prefix."""

    r: int = bounded(8, at_least=1)
    """Rank: a layer of m x n weights gets r (m + n) trained ones."""
    alpha: float = bounded(16, above=0)
    """The product counts alpha / r times."""
    dropout: float = bounded(0.0, at_least=0, below=1)
    """Of what goes into the small matrices, in training."""
    target_modules: list[str] | None = None
    """Linear layers that get them, by the end of their name; null takes the query and value projections of attention."""
    modules_to_save: list[str] | None = None
    """Modules that are trained whole, by the end of their name, beside what the checkpoint doesn't hold, such as a new output layer."""

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> LoRA | None:
        """Return what a model node's `lora` says, None where it is empty; raise ConfigError for what it can't."""
        if not given:
            return None
        with config.under("lora"):
            lora: LoRA = config.node_of(cls, given)
            for name in ("target_modules", "modules_to_save"):
                names = getattr(lora, name)
                if names is not None and not (names and all(names)):
                    raise ConfigError("is empty; give names of modules, or null.", key=name)
        return lora


def check_installed() -> None:
    """Raise ConfigError where peft isn't installed; imports nothing."""
    if find_spec("peft") is None:
        raise ConfigError("takes peft, which is not installed: pip install 'asr-gaudi[lora]', or leave it empty.", key="model.lora")


def apply(model: PreTrainedModel, lora: LoRA, fresh: Iterable[torch.nn.Parameter]) -> PreTrainedModel:
    """Put LoRA beside the model's target modules and freeze everything else but `fresh` and lora.modules_to_save; return the model.

    `fresh` is what no checkpoint holds: frozen, it would stay as chance made it. What is trained whole keeps its names and its place:
    peft's own modules_to_save would keep a copy of each beside it. What is frozen already stays so, and gets no LoRA.
    """
    import peft

    whole = [p for p in (*fresh, *(p for module in _whole(model, lora) for p in module.parameters())) if p.requires_grad]
    asked = peft.LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, bias="none", target_modules=_targets(model, lora, whole)
    )
    peft.inject_adapter_in_model(asked, model, ADAPTER)
    for parameter in whole:
        parameter.requires_grad_(True)
    return model


def _targets(model: PreTrainedModel, lora: LoRA, whole: list[torch.nn.Parameter]) -> list[str]:
    """Return the full names of the layers that get LoRA."""
    layers = _linear_layers(model)
    wanted = lora.target_modules or next((list(names) for names in QUERY_AND_VALUE if _ending(names[0], layers)), None)
    kinds = sorted({name.rpartition(".")[2] for name in layers})
    if wanted is None:
        raise ConfigError(f"has to be given: the model's linear layers are {', '.join(kinds)}.", key="model.lora.target_modules")
    for name in wanted:
        if not _ending(name, layers):
            raise ConfigError(
                f"{name!r} {_why_not(model, name)}; those that LoRA can stand beside are {', '.join(kinds)}.{did_you_mean(name, kinds)}",
                key="model.lora.target_modules",
            )
    found = sorted({layer for name in wanted for layer in _ending(name, layers)})
    trained = {id(p) for p in whole}
    both = [name for name in found if id(layers[name].weight) in trained]
    if both and lora.target_modules:
        raise ConfigError(
            f"{both[0]} is trained whole already (it is new, or of modules_to_save): leave it out.", key="model.lora.target_modules"
        )
    return [name for name in found if name not in both]


def _why_not(model: PreTrainedModel, name: str) -> str:
    """Return why no layer of a name can have LoRA."""
    import torch

    found = _ending(name, dict(model.named_modules()))
    if not found:
        return "is no layer of the model"
    kind = type(model.get_submodule(found[0]))
    return (
        "is frozen, or shares its weights with another" if issubclass(kind, torch.nn.Linear) else f"is a {kind.__name__}, no linear layer"
    )


def _linear_layers(model: PreTrainedModel, *, frozen: bool = False) -> dict[str, torch.nn.Linear]:
    """Return the linear layers by name, those frozen only if asked. What is tied would change elsewhere too, once merged: left out."""
    import torch
    from torch.nn.utils import parametrize

    owners: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and (frozen or module.weight.requires_grad)
        and not parametrize.is_parametrized(module)
        and owners[id(module.weight)] == 1
    }


def _whole(model: PreTrainedModel, lora: LoRA) -> list[torch.nn.Module]:
    """Return the modules that are trained whole because they are named."""
    modules = dict(model.named_modules())
    for name in lora.modules_to_save or []:
        if not _ending(name, modules):
            kinds = sorted({part.rpartition(".")[2] for part, module in modules.items() if any(True for _ in module.parameters())} - {""})
            raise ConfigError(
                f"{name!r} is no module of the model; it has {', '.join(k for k in kinds if not k.isdigit())}.{did_you_mean(name, kinds)}",
                key="model.lora.modules_to_save",
            )
    return [modules[found] for name in lora.modules_to_save or [] for found in _ending(name, modules)]


def _ending(name: str, modules: Mapping[str, Any]) -> list[str]:
    return [module for module in modules if module == name or module.endswith(f".{name}")]


def check_reached(model: PreTrainedModel, unreached: Iterable[str]) -> None:
    """Raise ConfigError where a forward passes LoRA by: WavLM's hands the weights on to a function of torch (modeling_wavlm.py:225)."""
    passed_by = sorted({name.partition(".lora_")[0] for name in unreached if ".lora_" in name})
    if not passed_by:
        return
    kinds = sorted({name.rpartition(".")[2] for name in passed_by})
    around = {name.rpartition(".")[0] for name in passed_by}
    layers = [name for name in _linear_layers(model, frozen=True) if ".lora_" not in name and not name.endswith(".base_layer")]
    others = sorted({name.rpartition(".")[2] for name in layers if name.rpartition(".")[0] not in around})
    raise ConfigError(
        f"{type(model).__name__} doesn't call {', '.join(kinds)}, so that LoRA there learns nothing: choose among {', '.join(others)}.",
        key="model.lora.target_modules",
    )


def is_in(model: torch.nn.Module) -> bool:
    """Say whether a model has LoRA."""
    return any(hasattr(module, "lora_A") for module in model.modules())


def merged(model: PreTrainedModel, weights: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """Return the weights of the plain model: each layer's own with the product of its small matrices added, under its own name.

    `weights` are the model's, where they are gathered from several ranks. The model stays as it is: what was captured or wrapped of it
    would go on with LoRA beside weights that have it in them. Returns `weights` for a model without LoRA.
    """
    import torch

    if not is_in(model):
        return None if weights is None else dict(weights)
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    plain = dict(model.state_dict() if weights is None else weights)
    for name, layer in layers.items():
        down, up = (plain.pop(f"{name}.lora_{half}.{ADAPTER}.weight") for half in "AB")
        for key in [key for key in plain if key.startswith(f"{name}.base_layer.")]:
            plain[f"{name}.{key.removeprefix(f'{name}.base_layer.')}"] = plain.pop(key)
        weight = plain[f"{name}.weight"]
        with torch.no_grad():
            product = up.float() @ down.float() * layer.scaling[ADAPTER]  # type: ignore[index]
            plain[f"{name}.weight"] = (weight.float() + product).to(weight.dtype)
    return plain
