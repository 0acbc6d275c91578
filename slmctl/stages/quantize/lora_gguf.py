"""adapter -> GGUF file of the adapter alone, and base -> its own GGUF file,
for one base that serves many adapters.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slmctl import console
from slmctl.artifacts.artifact import Artifact
from slmctl.config import QuantizeConfig
from slmctl.errors import IntegrityError, StageError
from slmctl.model_files import gguf_converter, gguf_header, hf_folder, lora_adapter
from slmctl.model_files.base_model import Base
from slmctl.model_files.gguf_choice import gguf_file
from slmctl.stages.quantize import gguf_files, parity


def write(adapter: Artifact, merged: Artifact, target: Path) -> dict[str, Any]:
    """Write the adapter's matrices in float16; llama.cpp adds alpha / rank * B A to its base as it
    computes.

    The format holds one alpha for all layers, so each layer's own scale (rsLoRA, patterns) is
    multiplied into its B.

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
        (folder / lora_adapter.SETTINGS).write_text(
            json.dumps({"lora_alpha": alpha}), encoding="utf-8"
        )
        card = merged.path / "README.md"
        if card.exists():  # licence, base and languages go from the card into the file
            shutil.copyfile(card, folder / card.name)
        gguf_converter.convert_lora(folder, target, base=merged.path)
    _require_layers(target, len(read.changes), alpha)
    return gguf_files.listed(target) | {"layers": len(read.changes), "alpha": alpha}


def write_base(config: QuantizeConfig, base: Artifact, out: Path) -> dict[str, Any]:
    """Write the base's own GGUF file of each type; its results are checked with each adapter on it.

    Nothing of a project or of its data goes into it, so every adapter of the base finds the same
    file.
    """
    facts = Base.read(base.path)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        lossless = gguf_files.convert(config, base, facts, Path(scratch))
        targets = gguf_files.plan(config, facts, out, weighted=False)
        gguf_files.write(lossless, targets)
    facts.write(out)
    files = {target.type: gguf_files.entry(target) for target in targets}
    return {
        "files": files,
        "of_base": True,
        "converter_source_sha256": gguf_converter.source_hash(),
    }


def check_on_bases(
    lora: Path,
    bases: Sequence[Artifact],
    files: Mapping[str, Any],
    reference: parity.MergedModelReference,
    *,
    scratch: Path,
) -> dict[str, Any]:
    """Compare the adapter on the base's own file of each type with the merged model.

    Args:
        bases: The base's own files, an artifact a type.
        files: The merged model's files with their distances, by type.

    Returns:
        By type: the base's file, its size and sha256, the digest of its artifact, and the
        distances.

    Raises:
        IntegrityError: A type has no file of the base.
        StageError: The base with the adapter is too far from the merged model.
    """
    by_type = {name: base for base in bases for name in base.metrics["files"]}
    if missing := [name for name in files if name not in by_type]:
        raise IntegrityError(
            f"there is no {missing[0]} file of the base alone", hint="slmctl quantize writes it"
        )
    entries = {}
    for name, merged in files.items():
        entry = gguf_file(by_type[name], name)
        path = by_type[name].file(entry.path)
        distances = parity.check(path, reference, scratch=scratch, lora=lora)
        parity.check_adapter(distances, merged, lora.name, path.name)
        if "kl_mean" in distances:
            console.say(
                f"  adapter on {path.name}: {distances['kl_mean']:.4f} nats from the merged model"
            )
        entries[name] = {
            "file": entry.path,
            "size": entry.size,
            "sha256": entry.sha256,
            "artifact": by_type[name].digest,
            **distances,
        }
    return entries


def _refuse_other_forms(adapter: lora_adapter.LoraAdapter) -> None:
    forms = {
        "whole layers (modules_to_save)": bool(adapter.replaced),
        "magnitudes (DoRA)": any(
            change.magnitude is not None for change in adapter.changes.values()
        ),
        "an embedding, or layers stored as (in, out)": any(
            change.transposed for change in adapter.changes.values()
        ),
    }
    for form, there in forms.items():
        if there:
            raise StageError(
                f"an adapter that trained {form} cannot be a GGUF of its own",
                hint="--set quantize.lora_gguf=false",
            )


def _require_layers(path: Path, layers: int, alpha: float) -> None:
    """Raises StageError when a layer is missing from the file, or its alpha differs."""
    head = gguf_header.read(path)
    pairs = sum(tensor.name.endswith(".lora_a") for tensor in head.tensors)
    kept = float(head.metadata.get("adapter.lora.alpha", 0))
    if (
        head.metadata.get("adapter.type") != "lora"
        or pairs != layers
        or not np.isclose(kept, alpha)
    ):
        raise StageError(
            f"{path.name} holds {pairs} of {layers} layers with alpha {kept}, the adapter's is "
            f"{alpha}"
        )
