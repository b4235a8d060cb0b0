"""SpecAugment masks drawn beside the batch, and given to the model as tensors.

In: a model's own mask_* values, and how many frames each row has. Out: boolean masks over time and features
drawn on the host in numpy, and a model whose forward takes them. A captured HPU training graph would freeze
what forward draws itself: six identical losses at learning rate 0 (optimum-habana 1.21.2). Source: Park et al.,
https://arxiv.org/abs/1904.08779, as in transformers' _compute_mask_indices.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    Mask = NDArray[np.bool_]
    Starts = NDArray[np.int64]


@dataclass(frozen=True)
class SpecAugment:
    """What is masked, and the seed: small and without torch, so that a loader's worker can hold it."""

    mask_time_prob: float
    """Share of a row's frames that spans cover, before overlaps; 0 gives no time masks."""
    mask_time_length: int
    """Frames a span, before any adapter."""
    mask_time_min_masks: int
    mask_feature_prob: float
    """The same over the width of the hidden states."""
    mask_feature_length: int
    mask_feature_min_masks: int
    hidden_size: int
    seed: int

    @classmethod
    def for_model(cls, model: PreTrainedModel, seed: int) -> SpecAugment | None:
        """Return what the config of the model, or of its encoder, asks for; None when nothing is to be masked, or the model can't be."""
        config = getattr(model.config, "encoder", model.config)
        if not getattr(config, "apply_spec_augment", True) or _masked_module(model) is None:
            return None
        return cls.of(config, config.hidden_size, seed)

    @classmethod
    def of(cls, config: Any, width: int, seed: int) -> SpecAugment | None:
        """Return what a config's mask_* values ask for, over features of a width; None where both probabilities are 0."""
        names = [f"mask_{axis}_{value}" for axis in ("time", "feature") for value in ("prob", "length", "min_masks")]
        values = {name: getattr(config, name, 0) for name in names}  # WavLMConfig has no mask_feature_min_masks (transformers 4.55)
        asked = values["mask_time_prob"] > 0 or values["mask_feature_prob"] > 0
        return cls(**values, hidden_size=width, seed=seed) if asked else None

    def draw(self, frames: Sequence[int], num_frames: int, *, epoch: int, rows: Sequence[int]) -> tuple[Mask | None, Mask | None]:
        """Return the masks over time [batch, num_frames] and over features [batch, hidden_size]; True is masked.

        `frames`: real frames of each row, at most `num_frames`. `rows`: row numbers, -1 for a filler. A row's masks
        are a function of (seed, epoch, row number) and its own frames, whatever workers, batch and padding it has.
        A filler, or a row without frames, has none. None stands for an axis whose probability is 0; otherwise the
        mask is there even if it is all False, so that the mask embedding has a gradient in every step.
        """
        import numpy as np

        philox = np.random.Philox(key=self.seed)  # counter-based: (epoch, row) names a stream for the price of setting the state
        dice, state = np.random.Generator(philox), philox.state
        times, features = [], []
        for row, real in zip(rows, frames, strict=True):
            assert real <= num_frames, f"row {row} has {real} frames in a batch of {num_frames}"
            size, width = (0, 0) if row < 0 or real == 0 else (real, self.hidden_size)
            state["state"]["counter"][2:] = epoch, max(row, 0)
            philox.state = state
            times.append(_spans(size, self.mask_time_prob, self.mask_time_length, self.mask_time_min_masks, dice))
            features.append(_spans(width, self.mask_feature_prob, self.mask_feature_length, self.mask_feature_min_masks, dice))
        return (
            _mask(times, num_frames, self.mask_time_length) if self.mask_time_prob > 0 else None,
            _mask(features, self.hidden_size, self.mask_feature_length) if self.mask_feature_prob > 0 else None,
        )


def _spans(size: int, share: float, length: int, min_masks: int, dice: np.random.Generator) -> Starts:
    """Return where spans of `length` start in a row of `size`, drawn as _compute_mask_indices does for a row that fills its batch.

    That function lets padding change a short row: its spans are then clamped to what the padded length holds.
    And it raises for a row shorter than one span, which gets none here.
    """
    import numpy as np

    if share <= 0 or size < length:
        return np.empty(0, np.int64)
    num_spans = max(int(share * size / length + dice.random()), min_masks)  # rounded up with the probability of the remainder
    return dice.choice(size - length + 1, min(num_spans, size // length), replace=False, shuffle=False)


def _mask(starts: Sequence[Starts], width: int, length: int) -> Mask:
    """Return a mask [rows, width] whose spans of `length` begin at each row's `starts`."""
    import numpy as np

    mask = np.zeros((len(starts), width), dtype=np.bool_)
    rows = np.repeat(np.arange(len(starts)), [len(row) for row in starts])
    mask[rows[:, None], np.concatenate(starts)[:, None] + np.arange(length)] = True
    return mask


def takes_masks(model: PreTrainedModel) -> PreTrainedModel:
    """Return the same model, whose forward also takes `mask_time_indices` and `mask_feature_indices`, both bool.

    Shapes are [batch, frames before any adapter] and [batch, hidden_size]. Nothing is masked that isn't given: forward
    draws nothing. The class keeps its name and the signature that Trainer reads; weights and config are untouched, so
    that what it saves is a plain model. Such a model can be deep-copied, but not pickled whole. Call it before Trainer
    or accelerate wrap the model's forward. A model without SpecAugment is returned as it is.
    """
    inner = _masked_module(model)
    if inner is None or hasattr(inner, "_given_masks"):
        return model
    inner._given_masks = _NO_MASKS
    inner.__class__ = _subclass(type(inner), _mask_hidden_states=_mask_given)  # type: ignore[arg-type]
    model.__class__ = _taking_masks(type(model))  # type: ignore[arg-type]
    return model


_NO_MASKS: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)


def _masked_module(model: PreTrainedModel) -> Any:
    """Return the encoder that masks its hidden states, if any. SEW-D's base_model is no way to it: the prefix is misspelt."""
    return next((module for module in model.modules() if hasattr(module, "_mask_hidden_states")), None)


def _mask_given(
    self: Any, hidden_states: torch.Tensor, mask_time_indices: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Stand in for `_mask_hidden_states`, with the same arguments; static shapes and no question to the device.

    optimum-habana's wav2vec2 (modeling_wav2vec2.py:287) calls it as transformers does, so its forward is served too.
    """
    import torch

    time, features = self._given_masks
    time = time if mask_time_indices is None else mask_time_indices
    if time is not None:
        assert time.shape == hidden_states.shape[:2], f"time masks {tuple(time.shape)} for hidden states {tuple(hidden_states.shape)}"
        hidden_states = torch.where(time[:, :, None], self.masked_spec_embed.to(hidden_states.dtype), hidden_states)
    if features is not None:
        hidden_states = hidden_states.masked_fill(features[:, None, :], 0)
    return hidden_states


@lru_cache
def _taking_masks(plain: type) -> type:
    """Return the class whose forward hands the masks to the encoder inside, for the time of the call."""

    def forward(
        self: Any,
        *args: Any,
        mask_time_indices: torch.Tensor | None = None,
        mask_feature_indices: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        inner = _masked_module(self)
        inner._given_masks = (mask_time_indices, mask_feature_indices)
        try:
            return plain.forward(self, *args, **kwargs)  # type: ignore[attr-defined]
        finally:
            inner._given_masks = _NO_MASKS

    # Trainer finds the labels in this signature, and takes **kwargs for "divides the loss by num_items_in_batch"
    signature = inspect.signature(plain.forward)  # type: ignore[attr-defined]
    taken = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in ("mask_time_indices", "mask_feature_indices")
    ]
    parameters = list(signature.parameters.values())
    last = len(parameters) - (parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
    forward.__signature__ = signature.replace(parameters=[*parameters[:last], *taken, *parameters[last:]])  # type: ignore[attr-defined]
    return _subclass(plain, forward=forward)


@lru_cache
def _subclass(plain: type, **methods: Any) -> type:
    """Return a subclass that goes by the name of `plain`: save_pretrained writes the class's name as the architecture."""
    return type(plain.__name__, (plain,), {"__module__": plain.__module__, "__qualname__": plain.__qualname__, **methods})
