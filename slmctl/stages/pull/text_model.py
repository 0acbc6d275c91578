"""A base that also sees or hears, or whose weights are in FP8 -> its
text model alone, in a type that trains.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from slmctl.artifacts import bounded_json
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.errors import DataError
from slmctl.model_files.safetensors_stream import (
    PlannedTensor,
    ShardWriter,
    StoredTensor,
    stored_tensors,
)
from slmctl.stages.pull import fp8_weights
from slmctl.stages.pull.fp8_weights import ScaledMatrix

MAX_SHARD_BYTES = 5_000_000_000
# Prefixes of the text model's tensors in multimodal bases of different age; the first that fits is
# taken.
PREFIXES = (
    "language_model.model.",
    "model.language_model.",
    "model.text_model.",
    "language_model.",
)
HEADS = ("lm_head.weight", "language_model.lm_head.weight")
# Settings of the wrapper that its text model takes where it has none.
INHERITED_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class TextModel:
    """The text model of a base whose files cannot be taken as they are.

    Attributes:
        wrapper: The class of a multimodal base, such as `Gemma3ForConditionalGeneration`; empty for
            a text model.
        config: The text model's own config.
        names: {name of a tensor in the base's files: its name in the text model}.
        scaled: The matrices in FP8, by name in the base's files.
    """

    wrapper: str
    config: JsonObject
    names: dict[str, str]
    tensors: list[StoredTensor]
    scaled: dict[str, ScaledMatrix]

    @property
    def note(self) -> str:
        others = [tensor.name for tensor in self.tensors if tensor.name not in self.names]
        left = sum(not fp8_weights.is_scale(name) for name in others)
        parts = []
        if self.wrapper:
            parts.append(f"the text model of {self.wrapper} alone")
        if left:
            parts.append(f"{left} other tensors, of images or sound, were left out")
        if self.scaled:
            parts.append(f"{len(self.scaled)} matrices in FP8 became bfloat16")
        return "; ".join(parts)

    @staticmethod
    def replaces(name: str) -> bool:
        """True for a file of the base that `write` replaces."""
        return name == "config.json" or ".safetensors" in name

    def write(self, out: Path) -> None:
        """Write config and weights, some rows at a time; tensors that
        are not in FP8 are copied as bytes.
        """
        kept = [tensor for tensor in self.tensors if tensor.name in self.names]
        planned = []
        for tensor in kept:
            dtype = torch.bfloat16 if tensor.name in self.scaled else tensor.dtype
            planned.append(PlannedTensor(self.names[tensor.name], dtype, tensor.shape))
        with ShardWriter(out, planned, limit=MAX_SHARD_BYTES) as writer:
            for tensor in kept:
                writer.begin()
                if tensor.name not in self.scaled:
                    writer.copy(tensor)
                    continue
                for piece in self.scaled[tensor.name].pieces():
                    writer.write(piece)
        text = json.dumps(self.config, indent=2, sort_keys=True, ensure_ascii=False)
        (out / "config.json").write_text(text + "\n", encoding="utf-8")


def find(folder: Path) -> TextModel | None:
    """The text model of a base; None if the base is one already, and not in FP8.

    Raises:
        DataError: It holds no text model that transformers loads as a causal LM, FP8 weights
            without scales, or weights that are quantized otherwise.
        IntegrityError: Its weights are not valid safetensors files.
    """
    whole = bounded_json.read_object(folder / "config.json")
    own = whole.get("text_config")
    is_fp8 = _quantization(whole) == "fp8"  # no packing: its matrices have their own shapes
    inner = _quantization(own) if isinstance(own, dict) else ""
    if packed := inner if is_fp8 else _quantization(whole) or inner:
        raise DataError(
            f"the base's weights are quantized ({packed}), and an adapter cannot be merged into "
            "them",
            hint=fp8_weights.HINT,
        )
    if not isinstance(own, dict) and not is_fp8:
        return None
    tensors = stored_tensors(folder)
    scaled = fp8_weights.find(whole, tensors) if is_fp8 else {}
    stored = [tensor.name for tensor in tensors]
    if is_fp8:
        stored = [name for name in stored if not fp8_weights.is_scale(name)]
    if not isinstance(own, dict):
        names = {name: name for name in stored}
        return TextModel("", _trainable(whole), names, tensors, scaled)
    wrapper = _class_of(whole)
    kind = str(own.get("model_type", ""))[:80]
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    names = text_names(stored)
    if not architecture or not names:
        inside = f"of type '{kind}'" if kind else "without a model_type"
        raise DataError(
            f"the base is a {wrapper}, and its text model {inside} cannot be taken out of it",
            hint="take a base that is a text model alone, such as one named ...ForCausalLM in its "
            "config.json",
        )
    config = _config(whole, own, architecture, names.values())
    if is_fp8:
        config = _trainable(config)
    return TextModel(wrapper, config, names, tensors, scaled)


def _class_of(config: JsonObject) -> str:
    """The name of a model's class, else of its type."""
    listed = config.get("architectures")
    if isinstance(listed, list) and listed:
        return str(listed[0])[:80]
    return str(config.get("model_type"))[:80]


def _quantization(config: JsonObject) -> str:
    """The quantization method of a config's weights, or '' for none."""
    packed = config.get("quantization_config")
    if not packed:
        return ""
    method = packed.get("quant_method") if isinstance(packed, dict) else packed
    return str(method)[:40]


def _trainable(config: JsonObject) -> JsonObject:
    """A config of FP8 weights as one of bfloat16 weights."""
    left_out = ("quantization_config", "torch_dtype")
    kept = {key: value for key, value in config.items() if key not in left_out}
    return kept | {"dtype": "bfloat16"}


def text_names(stored: list[str]) -> dict[str, str]:
    """{name of a tensor in a multimodal base: its name in the text
    model}; empty if it has no text layers.
    """
    prefix = next((prefix for prefix in PREFIXES if _has_layers(stored, prefix)), None)
    if prefix is None:
        return {}
    inside = [name for name in stored if name.startswith(prefix)]
    names = {name: "model." + name.removeprefix(prefix) for name in inside}
    for head in HEADS:
        if head in stored:
            return names | {head: HEADS[0]}
    return names


def _has_layers(stored: list[str], prefix: str) -> bool:
    return any(name.startswith(f"{prefix}layers.") for name in stored)


def _config(
    whole: JsonObject, own: JsonObject, architecture: str, names: Iterable[str]
) -> JsonObject:
    config = dict(own) | {
        "architectures": [architecture],
        "tie_word_embeddings": HEADS[0] not in names,
    }
    for key in INHERITED_KEYS:
        if config.get(key) is None and whole.get(key) is not None:
            config[key] = whole[key]
    config.pop("torch_dtype", None)
    for level in (own, whole):
        dtype = level.get("dtype") or level.get("torch_dtype")
        if dtype:
            return config | {"dtype": dtype}
    return config
