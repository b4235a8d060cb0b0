"""Sizes that fit each other, and options that stay what they were."""

import pytest

from asr.shrinking import small_sizes

LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "conv_dim": (512,) * 7,
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "output_hidden_size": 1024,
    "adapter_attn_dim": None,
    "mask_feature_length": 64,
    "layerdrop": 0.1,
}


def test_a_large_model_becomes_small():
    assert small_sizes(LARGE) == {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "conv_dim": [16] * 7,
        "num_conv_pos_embeddings": 16,
        "output_hidden_size": 32,
        "mask_feature_length": 32,
    }
    assert small_sizes(LARGE | small_sizes(LARGE)) == {}


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 12, 20])
@pytest.mark.parametrize("groups", [1, 3, 16, 64])
def test_heads_and_groups_divide_the_width(heads, groups):
    before = {**LARGE, "hidden_size": 960, "num_attention_heads": heads, "num_conv_pos_embedding_groups": groups}
    small = before | small_sizes(before)
    assert small["hidden_size"] % small["num_attention_heads"] == small["hidden_size"] % small["num_conv_pos_embedding_groups"] == 0
    assert (small["num_attention_heads"] == 1) == (heads == 1)
    assert (small["num_conv_pos_embedding_groups"] == 1) == (groups == 1)


@pytest.mark.parametrize("width", [24, 768])
@pytest.mark.parametrize("same", [True, False])
def test_a_projection_is_there_if_it_was_there(width, same):
    last, out = (width, width) if same else (width // 2, width * 2)
    before = {**LARGE, "hidden_size": width, "num_attention_heads": 3, "conv_dim": [16, last], "output_hidden_size": out}
    small = before | small_sizes(before)
    assert (small["conv_dim"][-1] == small["hidden_size"]) == same
    assert (small["output_hidden_size"] == small["hidden_size"]) == same
    assert small["hidden_size"] % small["num_attention_heads"] == small["output_hidden_size"] % small["num_attention_heads"] == 0


@pytest.mark.parametrize(("kernel", "small"), [(128, 16), (19, 15), (5, 5), (16, 16)])
def test_a_position_kernel_stays_even_or_odd(kernel, small):
    assert small_sizes({**LARGE, "num_conv_pos_embeddings": kernel}).get("num_conv_pos_embeddings", kernel) == small
