"""The config of a model made small: what a rehearsal builds in its place.

In: the values of a config: of a speech encoder (MODEL_TYPES), a text decoder, or Whisper. Out: the sizes that change. Class, options,
kernels and strides stay, so that the forward takes the same path and gives as many frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LAYERS = 2  # WavLM's first layer makes the position bias that the others are given
HIDDEN_SIZE = 32
MOST_HEADS = 4
DECODER_HEADS = 2
INTERMEDIATE_SIZE = 64
CONV_DIM = 16
POSITION_KERNEL = 16
ADAPTER_ATTN_DIM = 16
NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")

NOT_OF_THE_PATH = ("vocab_size", "id2label", "label2id", "architectures", "torch_dtype")
"""Keys of a checkpoint's config.json that say what it was, or that loading decides."""
DECODER_SIZES = (
    (HIDDEN_SIZE, ("d_model", "hidden_size", "n_embd")),
    (LAYERS, ("decoder_layers", "encoder_layers", "num_hidden_layers", "n_layer")),
    (DECODER_HEADS, ("decoder_attention_heads", "encoder_attention_heads", "num_attention_heads", "n_head", "num_key_value_heads")),
    (INTERMEDIATE_SIZE, ("decoder_ffn_dim", "encoder_ffn_dim", "intermediate_size", "n_inner")),
)
"""The names that configs of text decoders, and Whisper's, have for a size, each with how large it becomes at most."""


def small_decoder(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes of a text decoder, or of Whisper, that become smaller, by key."""
    named = [(name, size) for size, names in DECODER_SIZES for name in names]
    return {name: size for name, size in named if isinstance(config.get(name), int) and config[name] > size}


def small_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes that become smaller, and what has to go with them, by key; empty where the model is as small already.

    Raises KeyError for a config without one of NEEDED.
    """
    width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    small: dict[str, Any] = {
        "num_hidden_layers": min(int(config["num_hidden_layers"]), LAYERS),
        "hidden_size": min(width, HIDDEN_SIZE),
        "intermediate_size": min(int(config["intermediate_size"]), INTERMEDIATE_SIZE),
    }
    if width > HIDDEN_SIZE:  # otherwise these go with the width already
        small["num_attention_heads"] = _power_of_two(min(heads, MOST_HEADS))
        if "num_conv_pos_embedding_groups" in config:
            small["num_conv_pos_embedding_groups"] = _power_of_two(min(int(config["num_conv_pos_embedding_groups"]), HIDDEN_SIZE))
        if config.get("output_hidden_size") is not None:  # an adapter projects where it isn't the encoder's width
            small["output_hidden_size"] = HIDDEN_SIZE if config["output_hidden_size"] == width else 2 * HIDDEN_SIZE
    if "conv_dim" in config:
        small["conv_dim"] = _conv_dim(list(config["conv_dim"]), width, small["hidden_size"])
    if "num_conv_pos_embeddings" in config:
        kernel = int(config["num_conv_pos_embeddings"])
        small["num_conv_pos_embeddings"] = min(kernel, POSITION_KERNEL - kernel % 2)  # an even kernel's last frame is cut off
    if config.get("adapter_attn_dim") is not None:
        small["adapter_attn_dim"] = min(int(config["adapter_attn_dim"]), ADAPTER_ATTN_DIM)
    if "mask_feature_length" in config:  # no span that is longer than the row is ever drawn
        small["mask_feature_length"] = min(int(config["mask_feature_length"]), small["hidden_size"])
    return {key: value for key, value in small.items() if _differs(value, config[key])}


def _conv_dim(widths: list[int], hidden_before: int, hidden: int) -> list[int]:
    """Return narrow convolutions; SEW projects their output only where the encoder is another width (transformers, modeling_sew.py:709)."""
    narrow = [min(width, CONV_DIM) for width in widths]
    if widths[-1] == hidden_before:
        narrow[-1] = hidden
    elif narrow[-1] == hidden:
        narrow[-1] = 2 * hidden
    return narrow


def _power_of_two(at_most: int) -> int:
    """Return the largest power of two that is not above a number: it divides HIDDEN_SIZE."""
    return 1 << (at_most.bit_length() - 1)


def _differs(small: Any, before: Any) -> bool:
    return bool(small != (list(before) if isinstance(before, (list, tuple)) else before))
