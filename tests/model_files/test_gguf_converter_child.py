"""Configs as transformers writes them, read by llama.cpp's script."""

from __future__ import annotations

from benchmarks import architectures
from slmctl.model_files import gguf_converter_child


def test_layers_have_the_names_that_the_script_looks_for() -> None:
    # every layer of a Granite 4 was once written as one without attention, and llama.cpp missed its
    # tensors
    config = architectures.config("granite4-h", vocabulary=640).to_dict()
    gguf_converter_child.rename(config)
    assert set(config["layer_types"]) == {"mamba", "attention"}
    config = architectures.config("falcon-h1", vocabulary=640).to_dict()
    gguf_converter_child.rename(config)
    assert config["head_dim"] * config["num_attention_heads"] == config["hidden_size"]
