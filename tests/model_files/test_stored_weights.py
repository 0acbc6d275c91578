"""stored weights: what a model computes from 16-bit weights in its
file is what a float32 copy computes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from slmctl.model_files import hf_folder, stored_weights  # noqa: E402

SIZES = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
DENSE = SIZES | {"num_key_value_heads": 2, "intermediate_size": 96}
EXPERTS = DENSE | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
GEMMA = DENSE | {"head_dim": 16}
SHAPES: dict[str, dict[str, Any]] = {
    "LlamaConfig": DENSE | {"attention_bias": True},
    "Gemma3TextConfig": GEMMA | {"layer_types": ["sliding_attention", "full_attention"]},
    "GPT2Config": {"vocab_size": 300, "n_embd": 64, "n_layer": 2, "n_head": 4},
    "OPTConfig": SIZES | {"word_embed_proj_dim": 64, "ffn_dim": 96},
    "BloomConfig": {"vocab_size": 300, "hidden_size": 64, "n_layer": 2, "n_head": 4},
    "Qwen3MoeConfig": EXPERTS | {"head_dim": 16},
    "Lfm2Config": DENSE | {"layer_types": ["conv", "full_attention"]},
    "Mamba2Config": {
        "vocab_size": 300,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_heads": 8,
        "head_dim": 16,
        "n_groups": 1,
    },
    "MambaConfig": {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2},
}
IDS = torch.arange(24).view(2, 12)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_computes_what_a_float32_copy_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, dtype: torch.dtype
) -> None:
    # so that learned positions and experts are large
    monkeypatch.setattr(stored_weights, "SMALL_ELEMENTS", 1000)
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**SHAPES[kind])
    transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(tmp_path)
    copied, stored = hf_folder.load_model(tmp_path), hf_folder.load_model(tmp_path, dtype="stored")
    with torch.inference_mode():
        for cached in (False, True):
            expected, found = (model(IDS, use_cache=cached).logits for model in (copied, stored))
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    if kind not in ("MambaConfig", "Mamba2Config"):
        assert (
            stored.get_output_embeddings().weight.dtype
            == stored.get_input_embeddings().weight.dtype
            == dtype
        )


def test_a_large_matrix_is_multiplied_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_weights, "BLOCK_ELEMENTS", 64 * 7)
    layer = torch.nn.Linear(64, 100).to(torch.bfloat16)
    layer.bias.data = layer.bias.data.float()
    x = torch.randn(2, 5, 64)
    expected = torch.nn.functional.linear(x, layer.weight.float(), layer.bias)
    layer.__class__, layer.products = stored_weights.StoredLinear, torch.float32
    torch.testing.assert_close(layer(x), expected)
    layer.products = torch.bfloat16
    torch.testing.assert_close(layer(x), expected, rtol=0.05, atol=0.05)


def test_products_can_be_narrow_and_wide_again(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**SHAPES["LlamaConfig"])
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(
        tmp_path
    )
    model = hf_folder.load_model(tmp_path, dtype="stored")
    with torch.inference_mode():
        exact = model(IDS).logits
        stored_weights.multiply_in(model, torch.bfloat16)
        rounded = model(IDS).logits
        stored_weights.multiply_in(model, torch.float32)
        assert torch.equal(model(IDS).logits, exact)
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)


def test_a_copy_is_rounded_to_the_type_of_its_products_but_for_the_head(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**SHAPES["LlamaConfig"])
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(
        tmp_path
    )
    copied, stored = hf_folder.load_model(tmp_path), hf_folder.load_model(tmp_path, dtype="stored")
    assert stored_weights.multiply_in(copied, torch.bfloat16)
    assert stored_weights.multiply_in(stored, torch.bfloat16)
    assert copied.get_output_embeddings().weight.dtype == torch.float32
    assert copied.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    with torch.inference_mode():
        assert torch.equal(copied(IDS).logits, stored(IDS).logits)


def test_a_model_that_reads_the_type_of_its_weights_keeps_float32(tmp_path: Path) -> None:
    config = transformers.MambaConfig(**SHAPES["MambaConfig"])
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(
        tmp_path
    )
    model = hf_folder.load_model(tmp_path)
    assert not stored_weights.multiply_in(model, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
