"""A base that also sees or hears -> its text model alone, as a folder that loads as any other causal LM."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from slmctl.artifacts import bounded_json
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.errors import DataError
from slmctl.model_files.safetensors_stream import PlannedTensor, ShardWriter, StoredTensor, stored_tensors

MAX_SHARD_BYTES = 5_000_000_000
# What comes before the text model's own names, as wrappers of different age store them; the first that fits is taken.
PREFIXES = ("language_model.model.", "model.language_model.", "model.text_model.", "language_model.")
HEADS = ("lm_head.weight", "language_model.lm_head.weight")
# Settings of the wrapper that also hold for its text model, where that has none of its own.
INHERITED_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class TextModel:
    """The text model inside a multimodal base.

    Attributes:
        wrapper: The class of the whole base, such as `Gemma3ForConditionalGeneration`.
        config: The text model's own config.
        names: Names of its tensors by the names under which the base stores them.
    """

    wrapper: str
    config: JsonObject
    names: dict[str, str]
    tensors: list[StoredTensor]

    @property
    def note(self) -> str:
        left = len(self.tensors) - len(self.names)
        rest = f"; {left} other tensors, of images or sound, were left out" if left else ""
        return f"the text model of {self.wrapper} alone{rest}"

    @staticmethod
    def replaces(name: str) -> bool:
        """True for a file of the base in whose place `write` puts another."""
        return name == "config.json" or ".safetensors" in name

    def write(self, out: Path) -> None:
        """Write config and weights; bytes are copied, and no tensor is loaded."""
        kept = [tensor for tensor in self.tensors if tensor.name in self.names]
        planned = [PlannedTensor(self.names[tensor.name], tensor.dtype, tensor.shape) for tensor in kept]
        with ShardWriter(out, planned, limit=MAX_SHARD_BYTES) as writer:
            for tensor in kept:
                writer.begin()
                writer.copy(tensor)
        text = json.dumps(self.config, indent=2, sort_keys=True, ensure_ascii=False)
        (out / "config.json").write_text(text + "\n", encoding="utf-8")


def find(folder: Path) -> TextModel | None:
    """The text model of a multimodal base; None for a base that is a text model already.

    Raises:
        DataError: It holds no text model that transformers loads as a causal LM.
        IntegrityError: Its weights are no safetensors files.
    """
    whole = bounded_json.read_object(folder / "config.json", error=DataError, follow=True)
    own = whole.get("text_config")
    if not isinstance(own, dict):
        return None
    listed = whole.get("architectures")
    wrapper = str(listed[0] if isinstance(listed, list) and listed else whole.get("model_type"))[:80]
    kind = str(own.get("model_type", ""))[:80]
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    tensors = stored_tensors(folder)
    names = text_names([tensor.name for tensor in tensors])
    if not architecture or not names:
        inside = f"of type '{kind}'" if kind else "without a model_type"
        raise DataError(
            f"the base is a {wrapper}, and its text model {inside} cannot be taken out of it",
            hint="take a base that is a text model alone, such as one named ...ForCausalLM in its config.json",
        )
    return TextModel(wrapper, _config(whole, own, architecture, names.values()), names, tensors)


def text_names(stored: list[str]) -> dict[str, str]:
    """Names of the text model's tensors by their names in a multimodal base; empty if it has no layers of text."""
    prefix = next((p for p in PREFIXES if any(name.startswith(f"{p}layers.") for name in stored)), None)
    if prefix is None:
        return {}
    names = {name: "model." + name.removeprefix(prefix) for name in stored if name.startswith(prefix)}
    head = next((head for head in HEADS if head in stored), None)
    return names | ({head: HEADS[0]} if head else {})


def _config(whole: JsonObject, own: JsonObject, architecture: str, names: Iterable[str]) -> JsonObject:
    config = dict(own) | {"architectures": [architecture], "tie_word_embeddings": HEADS[0] not in names}
    for key in INHERITED_KEYS:
        if config.get(key) is None and whole.get(key) is not None:
            config[key] = whole[key]
    dtype = next((c[key] for c in (own, whole) for key in ("dtype", "torch_dtype") if c.get(key)), None)
    config.pop("torch_dtype", None)
    return config | ({"dtype": dtype} if dtype else {})
