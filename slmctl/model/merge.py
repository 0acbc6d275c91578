"""base + adapter -> merged: the adapter folded into the base's weights, tensor by tensor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from slmctl import console
from slmctl.artifact import Artifact
from slmctl.base import Base
from slmctl.config import MergeConfig
from slmctl.errors import StageError

# Forms in which W + scale * B A is not the merged weight, or not all of it
REFUSED = ("use_dora", "modules_to_save", "alpha_pattern", "rank_pattern", "trainable_token_indices",
           "fan_in_fan_out", "lora_bias", "layer_replication")  # fmt: skip
PREFIX = "base_model.model."  # what PEFT puts before a module's own name


def run(config: MergeConfig, *, base: Artifact, adapter: Artifact, out: Path) -> dict[str, Any]:
    """Write the merged model: W + scale * B A in float32, then cast; one tensor in memory at a time.

    Raises:
        StageError: The adapter is of a form that plain addition would merge wrongly, or does not fit.
    """
    settings = json.loads(adapter.file("adapter_config.json").read_bytes())
    _refuse_other_forms(settings)
    updates = _pairs(load_file(adapter.file("adapter_model.safetensors")))
    scale = _scale(settings)
    used: set[str] = set()
    shards = base.files(".safetensors")
    with console.progress("merge", len(updates), "layers") as meter:
        for entry in shards:
            tensors = {}
            with safe_open(base.file(entry.path), framework="pt") as source:
                for name in source.keys():  # noqa: SIM118 - safe_open is no mapping
                    weight = source.get_tensor(name)
                    dtype = weight.dtype if config.dtype == "base" else getattr(torch, config.dtype)
                    module = name.removesuffix(".weight")
                    if module in updates:
                        weight = _merged(weight, *updates[module], scale=scale, name=module)
                        used.add(module)
                        meter.advance()
                    tensors[name] = _cast(weight, dtype, name=module)
            save_file(tensors, out / entry.path, metadata={"format": "pt"})
            (out / entry.path).chmod(0o644)
    if used != updates.keys():
        missing = sorted(updates.keys() - used)
        raise StageError(
            f"the adapter does not fit the base: it has no layer '{missing[0]}'", hint="give the base it was trained on"
        )
    for entry in base.manifest.files:
        if not entry.path.endswith((".safetensors", ".md")):
            shutil.copyfile(base.file(entry.path), out / entry.path)
    _write_card(Base.read(base.path), out)
    if config.dtype != "base":
        _write_dtype(out / "config.json", config.dtype)
    return {"layers": len(updates), "scale": scale}


def _refuse_other_forms(settings: dict[str, Any]) -> None:
    if settings.get("peft_type") != "LORA":
        raise StageError(f"an adapter of type {settings.get('peft_type')} cannot be merged", hint="LoRA adapters can")
    for form in REFUSED:
        if settings.get(form):
            raise StageError(f"an adapter with {form} cannot be merged", hint="train it without")
    if settings.get("bias", "none") != "none":
        raise StageError("an adapter with trained biases cannot be merged", hint="train it with bias none")


def _scale(settings: dict[str, Any]) -> float:
    rank, alpha = settings["r"], settings["lora_alpha"]
    return float(alpha / rank**0.5 if settings.get("use_rslora") else alpha / rank)


def _pairs(state: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Module name -> (A, B), of shapes (rank, in) and (out, rank)."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        module, _, side = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".lora_")
        if side not in ("A", "B"):
            raise StageError(f"the adapter holds '{name}', which is no LoRA weight")
        found.setdefault(module, {})[side] = tensor
    return {module: (sides["A"], sides["B"]) for module, sides in sorted(found.items())}


def _merged(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, scale: float, name: str) -> torch.Tensor:
    """weight (out, in), a (rank, in), b (out, rank) -> (out, in) in float32."""
    if weight.shape != (b.shape[0], a.shape[1]):
        raise StageError(f"the adapter does not fit the base at '{name}': {tuple(weight.shape)}")
    return weight.float() + scale * (b.float() @ a.float())


def _cast(weight: torch.Tensor, dtype: torch.dtype, *, name: str) -> torch.Tensor:
    cast = weight.to(dtype)
    if not bool(torch.isfinite(cast).all()):
        raise StageError(f"merging '{name}' gives values that {dtype} cannot hold", hint="--set merge.dtype=float32")
    return cast


def _write_card(base: Base, out: Path) -> None:
    """A front matter in place of the base's own card: the GGUF converter copies license and base from it."""
    fields = {
        "base_model": base.public_name,
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": base.license,
    }
    lines = [f"{key}: {value}" for key, value in fields.items() if value]
    text = "\n".join(["---", *lines, "---", "", f"{base.name}, fine-tuned with LoRA and merged by slmctl.", ""])
    (out / "README.md").write_text(text, encoding="utf-8")


def _write_dtype(path: Path, dtype: str) -> None:
    fields = json.loads(path.read_bytes())
    fields.pop("torch_dtype", None)
    path.write_text(json.dumps(fields | {"dtype": dtype}, indent=2, sort_keys=True) + "\n", encoding="utf-8")
