"""Small copies of the architectures that people pick: few layers, every
layer type, and a forward pass that works.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from benchmarks import architectures
from slmctl.model_files import tiny_copy


@pytest.mark.parametrize(
    ("name", "types"),
    [
        ("lfm2", {"conv", "full_attention"}),
        ("qwen3.5-text", {"linear_attention", "full_attention"}),
        ("gemma3-text", {"sliding_attention", "full_attention"}),
        ("granite4-h", {"linear_attention", "full_attention"}),
    ],
)
def test_every_layer_type_is_shown(name: str, types: set[str]) -> None:
    config: Any = architectures.config(name, vocabulary=640)
    assert set(config.layer_types) == types
    assert config.num_hidden_layers == len(config.layer_types) <= 6


def test_heads_keep_their_size_and_grouping() -> None:
    small: Any = tiny_copy.small_config(
        LlamaConfig(hidden_size=2048, num_attention_heads=32, num_key_value_heads=8)
    )
    assert small.hidden_size // small.num_attention_heads == 64
    assert (small.num_attention_heads, small.num_key_value_heads) == (2, 1)


def test_heads_that_fill_the_stream_fill_it_in_the_copy() -> None:
    shape = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8}
    small: Any = tiny_copy.small_config(LlamaConfig(**shape, head_dim=128))
    assert (small.hidden_size, small.num_attention_heads, small.head_dim) == (256, 2, 128)
    wide: Any = tiny_copy.small_config(LlamaConfig(**shape, head_dim=64))
    assert (wide.hidden_size, wide.num_attention_heads, wide.head_dim) == (128, 2, 64)


def test_a_copy_of_a_copy_is_the_same() -> None:
    once = tiny_copy.small_config(architectures.config("gemma4-text", vocabulary=640))
    assert tiny_copy.small_config(once).to_dict() == once.to_dict()


def test_the_same_seed_gives_the_same_weights() -> None:
    one, two = architectures.model("llama"), architectures.model("llama")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
