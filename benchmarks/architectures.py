"""The architectures of the bases that companies pick, each as a small random model with its class's
initialisation.

    python -m benchmarks.architectures NAME FOLDER TOKENIZER

Every entry has the shape of a base that exists; `tiny_copy` makes it small. FOLDER then holds what
a download of that base would: config, safetensors, and the files of the folder TOKENIZER.
Multimodal bases come as they ship, with their vision tower.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)

from slmctl.model_files import tiny_copy

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "README.md",
)


@dataclass(frozen=True)
class Architecture:
    """A base that exists, as a config of transformers.

    Attributes:
        base: Its name.
        kind: `model_type` of its config.
        fields: Settings in which it differs from the class's defaults.
        family: Whose tokenizer and chat template it has, see `benchmarks.bases`.
        rows: Rows of its embedding, where it ships with others than its tokenizer has tokens,
            rounded up to 64.
    """

    base: str
    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    family: str = "llama3"
    rows: int = 0

    @property
    def multimodal(self) -> bool:
        return self.kind in ("gemma3", "gemma4", "mistral3", "qwen3_5")


def _every(count: int, total: int, kind: str, other: str = "full_attention") -> list[str]:
    """Types of layers of which each `count`-th is `other`."""
    return [other if (k + 1) % count == 0 else kind for k in range(total)]


_GRANITE: dict[str, Any] = {
    "hidden_size": 2560,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "shared_intermediate_size": 8192,
    "intermediate_size": 8192,
    "num_hidden_layers": 40,
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "embedding_multiplier": 12.0,
    "logits_scaling": 10.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.015625,
    "tie_word_embeddings": True,
}
ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(
        "Llama 3.2 1B",
        "llama",
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            "max_position_embeddings": 131072,
        },
    ),
    "smollm3": Architecture("SmolLM3 3B", "smollm3", family="smollm3"),
    "qwen2": Architecture(
        "Qwen2.5 0.5B",
        "qwen2",
        {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
        family="qwen3",
    ),
    "qwen3": Architecture(
        "Qwen3 0.6B",
        "qwen3",
        {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": True,
        },
        family="qwen3",
    ),
    "mistral": Architecture(
        "Mistral 7B", "mistral", {"sliding_window": None, "head_dim": 128}, family="llama2"
    ),
    "granite": Architecture(
        "Granite 3.3 2B",
        "granite",
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "embedding_multiplier": 12.0,
            "logits_scaling": 8.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.015625,
            "tie_word_embeddings": True,
        },
        family="granite",
    ),
    "granite4": Architecture(
        "Granite 4 micro",
        "granitemoehybrid",
        {**_GRANITE, "layer_types": ["full_attention"] * 40, "position_embedding_type": "rope"},
        family="granite",
    ),
    "granite4-h": Architecture(
        "Granite 4 h-micro",
        "granitemoehybrid",
        {
            **_GRANITE,
            "hidden_size": 2048,
            "num_attention_heads": 32,
            "mamba_n_heads": 64,
            "mamba_d_head": 64,
            "mamba_d_state": 128,
            "layer_types": _every(6, 40, "linear_attention"),
            "position_embedding_type": "nope",
        },
        family="granite",
    ),
    "olmo2": Architecture(
        "OLMo 2 1B", "olmo2", {"hidden_size": 2048, "num_attention_heads": 16}, family="olmo"
    ),
    "olmo3": Architecture("OLMo 3 7B", "olmo3", family="olmo"),
    "exaone4": Architecture(
        "EXAONE 4 1.2B",
        "exaone4",
        {
            "hidden_size": 2048,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_hidden_layers": 30,
        },
        family="exaone",
    ),
    "apertus": Architecture("Apertus 8B", "apertus", family="chatml"),
    "gemma2": Architecture("Gemma 2 2B", "gemma2", family="gemma3", rows=262144),
    "gemma3-text": Architecture(
        "Gemma 3 1B",
        "gemma3_text",
        {
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "num_hidden_layers": 26,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
        },
        family="gemma3",
        rows=262144,
    ),
    "gemma4-text": Architecture("Gemma 4 text", "gemma4_text", family="gemma3", rows=262144),
    "phi3": Architecture(
        "Phi-4-mini",
        "phi3",
        {
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 32,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "partial_rotary_factor": 0.75,
            "tie_word_embeddings": True,
        },
        family="phi",
    ),
    "lfm2": Architecture(
        "LFM2 350M",
        "lfm2",
        {
            "hidden_size": 1024,
            "intermediate_size": 6656,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "block_auto_adjust_ff_dim": False,
            "layer_types": [
                "full_attention" if k in (2, 5, 8, 10, 12, 14) else "conv" for k in range(16)
            ],
            "full_attn_idxs": None,
        },
        family="lfm2",
    ),
    "qwen3.5-text": Architecture("Qwen3.5 text", "qwen3_5_text", family="qwen3"),
    "falcon-h1": Architecture(
        "Falcon-H1 0.5B",
        "falcon_h1",
        {
            "hidden_size": 1024,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "mamba_n_heads": 24,
            "mamba_d_head": 64,
            "mamba_d_ssm": 1536,
            "mamba_d_state": 128,
        },
        family="chatml",
    ),
    "mamba2": Architecture(
        "Mamba 2 2.7B",
        "mamba2",
        {"hidden_size": 2560, "num_heads": 80, "n_groups": 1},
        family="none",
    ),
    "bamba": Architecture("Bamba 9B", "bamba", {"attn_layer_indices": [9, 18, 27]}, family="none"),
    "hunyuan": Architecture(
        "Hunyuan 0.5B",
        "hunyuan_v1_dense",
        {"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128},
        family="chatml",
    ),
    "ernie4.5": Architecture("ERNIE 4.5 0.3B", "ernie4_5", family="ernie"),
    "glm4": Architecture("GLM-4 9B", "glm4", family="glm"),
    "cohere2": Architecture("Command R7B", "cohere2", {"rotary_pct": 1.0}, family="command"),
    "qwen3-moe": Architecture("Qwen3 30B-A3B", "qwen3_moe", family="qwen3"),
    "granite-moe": Architecture("Granite 3.1 1B-A400M", "granitemoe", family="granite"),
    "olmoe": Architecture("OLMoE 1B-7B", "olmoe", family="olmo"),
    "deepseek-v3": Architecture("DeepSeek V3", "deepseek_v3", family="deepseek_v3"),
    "gpt-oss": Architecture("gpt-oss 20B", "gpt_oss", family="gptoss"),
    "nemotron-h": Architecture(
        "Nemotron-H",
        "nemotron_h",
        {
            "layers_block_type": [
                "linear_attention",
                "mlp",
                "linear_attention",
                "full_attention",
                "mlp",
            ]
        },
        family="chatml",
    ),
    "bloom": Architecture(
        "BLOOM 560M", "bloom", {"hidden_size": 1024, "n_head": 16, "n_layer": 24}, family="none"
    ),
    "mpt": Architecture("MPT 7B", "mpt", family="none"),
    "gemma3": Architecture("Gemma 3 4B", "gemma3", family="gemma3", rows=262144),
    "gemma4": Architecture("Gemma 4 E2B", "gemma4", family="gemma3", rows=262144),
    "ministral3": Architecture(
        "Ministral 3 3B", "mistral3", {"text_config": {"model_type": "ministral3"}}
    ),
    "qwen3.5": Architecture("Qwen3.5 0.8B", "qwen3_5", family="qwen3"),
}
# Of a vision tower, of which nothing is kept: the keys by which its config becomes small.
_VISION = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "depth": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_heads": 2,
    "head_dim": 32,
}


def config(
    name: str, *, vocabulary: int, bos: int = 1, eos: int = 2, small: bool = True
) -> PretrainedConfig:
    """The config of an architecture, small or of its base's whole size,
    for a vocabulary of so many tokens.
    """
    entry = ARCHITECTURES[name]
    tokens = {
        "vocab_size": vocabulary,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": eos,
    }
    whole = CONFIG_MAPPING[entry.kind](**entry.fields)
    text = whole.get_text_config()
    if hasattr(text, "eod_token_id"):  # by which the converter knows the end of an answer
        tokens["eod_token_id"] = eos
    for key, value in tokens.items():
        setattr(text, key, value)
    if hasattr(text, "vocab_size_per_layer_input"):
        text.vocab_size_per_layer_input = vocabulary
    shrunk = tiny_copy.small_config(text) if small else text
    if not entry.multimodal:
        return shrunk
    fields = whole.to_dict() | {"text_config": shrunk.to_dict()}
    vision = fields.get("vision_config") or {}
    vision |= {key: value for key, value in _VISION.items() if key in vision}
    if "out_hidden_size" in vision:
        vision["out_hidden_size"] = shrunk.hidden_size
    fields = {
        key: value
        for key, value in fields.items()
        if key not in ("model_type", "transformers_version")
    }
    made: PretrainedConfig = type(whole).from_dict(fields | {"vision_config": vision or None})
    return made


def model(
    name: str, *, vocabulary: int = 640, seed: int = 0, small: bool = True, **tokens: int
) -> PreTrainedModel:
    """A random model of an architecture, small or of its base's whole
    size, float32, in evaluation mode.
    """
    made = config(name, vocabulary=vocabulary, small=small, **tokens)
    if not ARCHITECTURES[name].multimodal:
        return tiny_copy.random_model(made, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        whole: PreTrainedModel = AutoModelForImageTextToText.from_config(made, dtype=torch.float32)
    return whole.eval()


def build(
    name: str,
    out: Path,
    tokenizer: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    small: bool = True,
) -> Path:
    """Write the HF folder of a random model with the tokenizer of another folder; returns `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for file in TOKENIZER_FILES:
        if (tokenizer / file).exists():
            shutil.copyfile(tokenizer / file, out / file)
    words: Any = AutoTokenizer.from_pretrained(tokenizer)
    largest = max(len(words), max(words.get_vocab().values()) + 1)
    eos = words.eos_token_id if words.eos_token_id is not None else 0
    bos = words.bos_token_id if words.bos_token_id is not None else eos
    rows = ARCHITECTURES[name].rows or -(-largest // 64) * 64
    made = model(name, vocabulary=rows, seed=seed, small=small, bos=bos, eos=eos)
    made.to(dtype).save_pretrained(out)
    return out


if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
