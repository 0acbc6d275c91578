"""adapter -> GGUF file of the adapter alone, for one base that serves many adapters."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from slmctl.artifacts.artifact import Artifact, sha256_file
from slmctl.errors import StageError
from slmctl.model_files import gguf_converter, gguf_header, hf_folder, lora_adapter


def write(adapter: Artifact, merged: Artifact, target: Path) -> dict[str, Any]:
    """Write the adapter's matrices in float16; llama.cpp adds alpha / rank * B A to its base as it computes.

    The format holds one alpha for all layers, so each layer's own scale (rsLoRA, patterns) is multiplied into its B.

    Args:
        merged: The merged model, for the architecture and the names of its tensors.

    Raises:
        StageError: The adapter is more than low-rank updates, or the converter failed.
    """
    read = lora_adapter.read(adapter.path)
    _refuse_other_forms(read)
    settings = json.loads(adapter.file(lora_adapter.SETTINGS).read_bytes())
    alpha = float(settings["lora_alpha"])
    state = {}
    for name, change in read.changes.items():
        module, rank = name.removesuffix(".weight"), change.left.shape[1]
        state[f"{lora_adapter.PREFIX}{module}.lora_A.weight"] = change.right.contiguous()
        state[f"{lora_adapter.PREFIX}{module}.lora_B.weight"] = (
            change.left * (change.scale * rank / alpha)
        ).contiguous()
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        folder = Path(scratch) / target.stem  # the converter takes the file's general.name from it
        folder.mkdir()
        hf_folder.save(state, folder / lora_adapter.WEIGHTS)
        (folder / lora_adapter.SETTINGS).write_text(json.dumps({"lora_alpha": alpha}), encoding="utf-8")
        card = merged.path / "README.md"
        if card.exists():  # licence, base and languages go from the card into the file
            shutil.copyfile(card, folder / card.name)
        gguf_converter.convert_lora(folder, target, base=merged.path, dtype="f16")
    _require_layers(target, len(read.changes), alpha)
    return {
        "file": target.name, "size": target.stat().st_size, "layers": len(read.changes), "alpha": alpha,
        "sha256": sha256_file(target).removeprefix("sha256:"),
    }  # fmt: skip


def _refuse_other_forms(adapter: lora_adapter.LoraAdapter) -> None:
    forms = {
        "whole layers (modules_to_save)": bool(adapter.replaced),
        "magnitudes (DoRA)": any(change.magnitude is not None for change in adapter.changes.values()),
        "an embedding, or layers stored as (in, out)": any(change.transposed for change in adapter.changes.values()),
    }
    for form, there in forms.items():
        if there:
            raise StageError(
                f"an adapter that trained {form} cannot be a GGUF of its own", hint="--set quantize.lora_gguf=false"
            )


def _require_layers(path: Path, layers: int, alpha: float) -> None:
    """Raises StageError when a layer is missing from the file, or its scale is another one."""
    head = gguf_header.read(path)
    pairs = sum(tensor.name.endswith(".lora_a") for tensor in head.tensors)
    kept = float(head.metadata.get("adapter.lora.alpha", 0))
    if head.metadata.get("adapter.type") != "lora" or pairs != layers or not np.isclose(kept, alpha):
        raise StageError(f"{path.name} holds {pairs} of {layers} layers with alpha {kept}, the adapter's is {alpha}")
