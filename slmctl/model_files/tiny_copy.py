"""A small random copy of a base: its classes, layer types and vocabulary, with few layers and
narrow matrices.

The copy shows in seconds if a base's architecture trains, merges, converts, loads in llama.cpp and
answers there as in transformers. Its weights are the class's own default initialisation.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

WIDTH, INNER = 128, 256  # of the residual stream, and inside an MLP, unless heads need more
# attention heads, experts of a layer, columns of a recurrent state
HEADS = 2
EXPERTS = 4
STATES = 32
WINDOW = 32  # tokens of a sliding window
LEAST_LAYERS, MOST_LAYERS = 2, 16

# Keys of transformers' configs, by the size that they set.
_WIDTHS = ("hidden_size", "n_embd", "d_model")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_INNER = (
    "intermediate_size",
    "ffn_dim",
    "n_inner",
    "block_ff_dim",
    "moe_intermediate_size",
    "expert_ffn_hidden_size",
    "shared_intermediate_size",
    "shared_expert_intermediate_size",
    "moe_shared_expert_intermediate_size",
    "intermediate_size_mlp",
    "moe_latent_size",
)
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "moe_top_k", "top_k_experts", "moe_topk")
_ONES = (
    "n_group",
    "topk_group",
    "first_k_dense_replace",
    "moe_layer_start_index",
    "n_shared_experts",
)
_STATES = ("mamba_d_state", "state_size", "ssm_state_size")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers")


def small_config(config: PretrainedConfig) -> PretrainedConfig:
    """A config of the same architecture with few layers and narrow matrices; vocabulary and
    rotations stay.

    Args:
        config: The config of a text model; it is not changed.
    """
    old = config.to_dict()
    layers = _layers(old)
    new = _of_first_layers(old, layers)
    width, heads = _heads(old)
    new |= heads | _mixers(old, width)
    new |= {key: width for key in _WIDTHS if isinstance(old.get(key), int)}
    limits = (
        dict.fromkeys(_INNER, INNER) | dict.fromkeys(_EXPERTS, EXPERTS) | dict.fromkeys(_CHOSEN, 2)
    )
    limits |= (
        dict.fromkeys(_STATES, STATES) | dict.fromkeys(_ONES, 1) | dict.fromkeys(_LAYERS, layers)
    )
    limits |= {
        "sliding_window": WINDOW,
        "hidden_size_per_layer_input": 16,
        "num_kv_shared_layers": 0,
    }
    limits |= {"linear_num_value_heads": 2, "linear_num_key_heads": 1, "max_window_layers": layers}
    new |= {
        key: min(old[key], most) for key, most in limits.items() if isinstance(old.get(key), int)
    }
    fields = {
        key: value
        for key, value in (old | new).items()
        if key not in ("model_type", "transformers_version")
    }
    return type(config).from_dict(fields)


def _of_first_layers(old: dict[str, Any], layers: int) -> dict[str, Any]:
    """The settings that a config lists by layer, cut to its first layers."""
    new: dict[str, Any] = {}
    for key, value in old.items():
        if isinstance(value, list | str) and len(value) == _total(old) and len(value) > layers:
            new[key] = value[:layers]
        elif key.endswith("layer_indices") and isinstance(value, list):
            new[key] = [index for index in value if index < layers]
        elif key == "per_layer_config" and isinstance(value, dict):
            new[key] = {index: kept for index, kept in value.items() if int(index) < layers}
    return new


def _heads(old: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Returns (width of the residual stream, settings of attention with few heads)."""
    heads, hidden = _count(old, _HEADS), _count(old, _WIDTHS)
    if not heads or not hidden:
        return WIDTH, {}
    # rotations are made for this size
    few, size = min(heads, HEADS), old.get("head_dim") or hidden // heads
    new: dict[str, Any] = {key: few for key in _HEADS if isinstance(old.get(key), int)}
    if isinstance(kv := old.get("num_key_value_heads"), int):
        new["num_key_value_heads"] = max(1, few * kv // heads)
    if isinstance(old.get("num_global_key_value_heads"), int):
        new["num_global_key_value_heads"] = 1
    # Where all heads together are as wide as the stream, engines may rely on it (Command R in
    # llama.cpp).
    if heads * size != hidden:
        return WIDTH, new
    return few * size, new | ({"head_dim": size} if "head_dim" in old else {})


def _mixers(old: dict[str, Any], width: int) -> dict[str, Any]:
    """The settings of state-space layers, whose heads together
    are as wide as their expanded input.
    """
    if isinstance(old.get("mamba_num_heads"), int):  # as Nemotron-H has it
        return {"mamba_num_heads": 4, "n_groups": 1}
    if isinstance(old.get("mamba_n_heads"), int):
        inner = int(old["mamba_expand"]) * width
        size = math.gcd(int(old["mamba_d_head"]), inner)
        of_its_own = {"mamba_d_ssm": inner} if isinstance(old.get("mamba_d_ssm"), int) else {}
        return {
            "mamba_d_head": size,
            "mamba_n_heads": inner // size,
            "mamba_n_groups": 1,
        } | of_its_own
    if isinstance(old.get("expand"), int) and isinstance(old.get("num_heads"), int):
        inner = old["expand"] * width
        size = math.gcd(int(old["head_dim"]), inner)
        return {"head_dim": size, "num_heads": inner // size, "n_groups": 1}
    return {}


def _layers(old: dict[str, Any]) -> int:
    """The number of first layers that hold every type of layer,
    from LEAST_LAYERS to MOST_LAYERS.
    """
    total, most = _total(old), LEAST_LAYERS
    for key, value in old.items():
        if isinstance(value, list | str) and len(value) == total:
            kinds = {str(kind) for kind in value}
            if len(kinds) <= 4:  # other lists hold a number for each layer
                most = max(
                    most,
                    *(next(k for k, v in enumerate(value) if str(v) == kind) + 1 for kind in kinds),
                )
        elif key.endswith("layer_indices") and isinstance(value, list) and value:
            most = max(most, value[0] + 1)
    return min(most, MOST_LAYERS, total) if total else most


def _total(old: dict[str, Any]) -> int:
    """The number of layers of a config, for Nemotron-H by the length of its list of layer types."""
    return _count(old, _LAYERS) or len(
        old.get("layers_block_type") or old.get("hybrid_override_pattern") or ()
    )


def _count(fields: dict[str, Any], names: tuple[str, ...]) -> int:
    return next((fields[name] for name in names if isinstance(fields.get(name), int)), 0)


def random_model(config: PretrainedConfig, *, seed: int = 0) -> PreTrainedModel:
    """A model of a config with its class's own default
    initialisation, in float32 and evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def write(base: Path, out: Path) -> str:
    """Write the folder of a base's small copy, with the base's own tokenizer and description.

    Returns:
        The attention implementation that transformers takes for it, such as `sdpa`.
    """
    out.mkdir()
    for path in sorted(base.iterdir()):
        if path.is_file() and not path.name.endswith((".safetensors", ".safetensors.index.json")):
            shutil.copyfile(path, out / path.name)
    described: Any = AutoConfig.from_pretrained(
        base, local_files_only=True, trust_remote_code=False
    )
    dtype = described.dtype if isinstance(described.dtype, torch.dtype) else torch.float32
    model: Any = random_model(small_config(described.get_text_config()))
    attention = str(model.config._attn_implementation)
    model.to(dtype).save_pretrained(out)
    return attention
