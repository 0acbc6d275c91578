"""base + adapter -> merged: the adapter folded into the base's weights, some rows at a time."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from slmctl import console
from slmctl.artifacts.artifact import Artifact
from slmctl.config import MergeConfig
from slmctl.errors import StageError
from slmctl.model_files import lora_adapter
from slmctl.model_files.base_model import Base
from slmctl.model_files.lora_adapter import LoraAdapter
from slmctl.model_files.safetensors_header import INDEX
from slmctl.model_files.safetensors_stream import (
    PlannedTensor,
    ShardWriter,
    StoredTensor,
    stored_tensors,
)

SHARD_BYTES = 5_000_000_000  # of the largest file of weights; a larger model is split
# Names of output heads, and of the embeddings whose weights they share when the base stores no
# head.
HEAD_NAMES = ("lm_head.weight", "embed_out.weight")
EMBEDDING_NAMES = (
    "embed_tokens.weight",
    "wte.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    ".embeddings.weight",
)


def run(config: MergeConfig, *, base: Artifact, adapter: Artifact, out: Path) -> dict[str, Any]:
    """Write the merged model: W + scale * B A in float32, then cast; a few rows in memory at a
    time.

    Raises:
        StageError: The adapter is of a form that cannot be merged, or does not fit the base.
    """
    tensors = stored_tensors(base.path)
    changes = _by_stored_name(lora_adapter.read(adapter.path), base.path, tensors)
    untied = _untie(tensors, changes)
    tensors += untied
    _require_fit(tensors, changes)
    planned = []
    for tensor in tensors:
        dtype = tensor.dtype
        if config.dtype != "base" and dtype.is_floating_point:
            dtype = getattr(torch, config.dtype)
        planned.append(PlannedTensor(tensor.name, dtype, tensor.shape))
    with (
        console.progress("merge", len(changes.names), "layers") as meter,
        ShardWriter(out, planned, limit=SHARD_BYTES) as writer,
    ):
        for tensor in tensors:
            _write(writer, tensor, changes)
            if tensor.name in changes.names:
                meter.advance()
    for entry in base.manifest.files:
        if not entry.path.endswith((".safetensors", ".md", INDEX)):
            shutil.copyfile(base.file(entry.path), out / entry.path)
    _write_card(Base.read(base.path), out)
    # a head that is stored beside a shared embedding was the same until now
    ends = (*HEAD_NAMES, *EMBEDDING_NAMES)
    apart = bool(untied) or any(name.endswith(ends) for name in changes.names)
    _write_config(out / "config.json", config.dtype, untied=apart)
    scales = {change.scale for change in changes.changes.values()}
    return {
        "layers": len(changes.changes),
        "replaced": len(changes.replaced),
        "scales": sorted(scales),
        "shards": len(writer.shards),
        "untied": bool(untied),
    }


def _by_stored_name(adapter: LoraAdapter, base: Path, tensors: list[StoredTensor]) -> LoraAdapter:
    """The adapter, with its tensors renamed as the base's files name them.

    An adapter uses the names of the model's modules, and transformers renames the tensors of some
    models on load.
    """
    stored = {tensor.name for tensor in tensors}
    if adapter.names <= stored:
        return adapter
    from slmctl.model_files import hf_folder  # seconds of imports that most bases do not need

    loaded = hf_folder.loaded_names(hf_folder.empty_model(base), stored)
    names = {name: file for file, name in loaded.items()}
    return LoraAdapter(
        {names.get(name, name): change for name, change in adapter.changes.items()},
        {names.get(name, name): tensor for name, tensor in adapter.replaced.items()},
    )


def _untie(tensors: list[StoredTensor], adapter: LoraAdapter) -> list[StoredTensor]:
    """The embedding again, as a tensor of the output head, if both share it
    and the adapter changes either; else [].
    """
    names = {tensor.name for tensor in tensors}
    embeddings = [tensor for tensor in tensors if tensor.name.endswith(EMBEDDING_NAMES)]
    if len(embeddings) != 1 or names & {*HEAD_NAMES}:
        return []
    shared = embeddings[0]
    trained = next((head for head in HEAD_NAMES if head in adapter.names), None)
    if trained is None and shared.name not in adapter.names:
        return []
    return [dataclasses.replace(shared, name=trained or HEAD_NAMES[0])]


def _require_fit(tensors: list[StoredTensor], adapter: LoraAdapter) -> None:
    there = {tensor.name: tensor for tensor in tensors}
    missing = sorted(adapter.names - there.keys())
    if missing:
        layer = missing[0].removesuffix(".weight")
        raise StageError(
            f"the adapter does not fit the base: it has no layer '{layer}'",
            hint="give the base it was trained on",
        )
    updates: dict[str, Any] = {**adapter.changes, **adapter.replaced}
    for name, update in updates.items():
        stored = there[name]
        shape = tuple(update.shape)
        if stored.shape != shape:
            raise StageError(
                f"the adapter does not fit the base at '{name}': {shape}, not {stored.shape}"
            )
        if not stored.dtype.is_floating_point or stored.dtype.itemsize < 2:
            raise StageError(
                f"the base holds '{name}' as {stored.dtype}, and an adapter cannot be added "
                "to that",
                hint="pull the base in 16 or 32 bits",
            )


def _write(writer: ShardWriter, source: StoredTensor, adapter: LoraAdapter) -> None:
    planned = writer.begin()
    whole = adapter.replaced.get(source.name)
    change = adapter.changes.get(source.name)
    if whole is not None:
        writer.write(_cast(whole, planned.dtype, name=source.name))
        return
    if change is None and planned.dtype == source.dtype:
        writer.copy(source)
        return
    by_rows = change is None or change.by_rows
    for first, last in source.blocks() if by_rows else [(0, source.shape[0])]:
        piece = source.rows(first, last)
        if change is not None:
            piece = change.apply(piece, first, last)
        writer.write(_cast(piece, planned.dtype, name=source.name))


def _cast(weight: torch.Tensor, dtype: torch.dtype, *, name: str) -> torch.Tensor:
    cast = weight.to(dtype)
    if not bool(torch.isfinite(cast).all()):
        raise StageError(
            f"merging '{name}' gives values that {dtype} cannot hold",
            hint="--set merge.dtype=float32",
        )
    return cast


def _write_card(base: Base, out: Path) -> None:
    """Write a model card whose front matter replaces the base's: the GGUF
    converter copies license and base from it.
    """
    fields = {
        "base_model": base.public_name,
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": base.license,
    }
    lines = [f"{key}: {_yaml(value)}" for key, value in fields.items() if value]
    if base.languages:
        lines.append("language:")
        # always quoted: `no` is Norwegian, and false in YAML
        lines += [f"- {json.dumps(code)}" for code in base.languages]
    front = "\n".join(["---", *lines, "---"])
    text = f"{front}\n\n{base.name}, fine-tuned with LoRA and merged by slmctl.\n"
    (out / "README.md").write_text(text, encoding="utf-8")


def _yaml(text: str) -> str:
    """A text as a YAML value, quoted unless it needs no quotes."""
    return text if re.fullmatch(r"[A-Za-z0-9][\w./+-]*", text) else json.dumps(text)


def _write_config(path: Path, dtype: str, *, untied: bool) -> None:
    """Record the type of the weights, and a head that no longer shares the embedding's."""
    change: dict[str, Any] = {} if dtype == "base" else {"dtype": dtype}
    if untied:
        change["tie_word_embeddings"] = False
    if not change:
        return
    fields = json.loads(path.read_bytes())
    if "dtype" in change:
        fields.pop("torch_dtype", None)
    text = json.dumps(fields | change, indent=2, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")
