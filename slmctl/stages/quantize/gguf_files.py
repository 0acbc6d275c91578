"""One lossless GGUF, and a file of every type from it; what those files really are."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slmctl import console
from slmctl.artifacts.artifact import Artifact
from slmctl.config import QuantizeConfig
from slmctl.model_files import gguf_converter, gguf_header, quantizer
from slmctl.model_files.base_model import Base
from slmctl.model_files.gguf_header import Head
from slmctl.model_files.quantizer import Target

# Types that the importance matrix can help, and those that llama.cpp does not write without one.
WEIGHTED = re.compile(r"I?Q[1-5]_")
MUST_BE_WEIGHTED = re.compile(r"IQ[123]_|Q2_K_S")

Matrix = dict[str, npt.NDArray[np.float32]]  # importance of each input, by the name of a tensor


@dataclass(frozen=True)
class Lossless:
    """The merged model as one GGUF that lost nothing: where it is, its type, its head."""

    path: Path
    type: str
    head: Head


def convert(config: QuantizeConfig, merged: Artifact, base: Base, scratch: Path) -> Lossless:
    """The merged model as one GGUF, in the type that holds its weights without loss."""
    kind = _dtype(merged.path)
    path = scratch / file_name(config, base, kind.upper())
    gguf_converter.convert(merged.path, path, dtype=kind, metadata=metadata(config, base))
    return Lossless(path, kind.upper(), gguf_header.read(path))


def plan(config: QuantizeConfig, base: Base, out: Path, *, weighted: bool) -> list[Target]:
    """The files to write, each type once."""
    return [
        Target(name, out / file_name(config, base, name), weighted and WEIGHTED.match(name) is not None)
        for name in dict.fromkeys(config.types)
    ]


def has_choice(target: Target) -> bool:
    """Whether a file that is weighted could be written without the matrix too."""
    return target.weighted and MUST_BE_WEIGHTED.match(target.type) is None


def write(lossless: Lossless, targets: Sequence[Target], matrix: Matrix | None = None, *, rows: int = 0) -> None:
    """Write every target; the one that is of the lossless file's own type is that file.

    Raises:
        StageError: llama.cpp could not write one, or it is not whole.
    """
    vectors = lossless.path.with_name("importance.npz")
    if matrix:
        save(matrix, vectors)
    made = [target for target in targets if target.type != lossless.type]
    for target in targets:
        if target.type == lossless.type:
            os.link(lossless.path, target.path)
    if not made:
        return
    with console.progress("quantize", len(made), "files") as meter:
        for _ in quantizer.ladder(lossless.path, made, importance=vectors if matrix else None, rows=rows):
            meter.advance()


def save(matrix: Matrix, path: Path) -> None:
    """Write vectors by name as an `.npz`."""
    with path.open("wb") as stream:
        np.savez(stream, **matrix)  # type: ignore[arg-type]


def file_name(config: QuantizeConfig, base: Base, type_name: str) -> str:
    """A name by the GGUF convention: `SmolLM2-135M-acme-support-v1.0-Q4_K_M.gguf`."""
    stem = re.split(r"[-_](?=\d+(?:\.\d+)?[KMBT](?:[-_.]|$))", base.name, maxsplit=1, flags=re.IGNORECASE)[0]
    return f"{stem}-{base.size_label}-{config.project}-v{config.version}-{type_name}.gguf"


def measure(head: Head, type_name: str) -> dict[str, Any]:
    """Real bits a weight of a GGUF file, and how many matrices fell back to another type than asked.

    K-quants and their like need rows of a multiple of 256; matrices with other rows silently get a larger type.
    """
    matrices = [tensor for tensor in head.tensors if len(tensor.shape) > 1]
    types: dict[str, int] = {}
    for tensor in matrices:
        types[tensor.type] = types.get(tensor.type, 0) + 1
    in_blocks = ("_K" in type_name or type_name.startswith(("IQ", "TQ"))) and type_name != "IQ4_NL"
    total = sum(tensor.weights for tensor in head.tensors)
    return {
        "bits_per_weight": round(sum(tensor.size for tensor in head.tensors) * 8 / total, 3),
        "tensor_types": dict(sorted(types.items())),
        "fallback_tensors": sum(tensor.shape[0] % 256 != 0 for tensor in matrices) if in_blocks else 0,
        "matrices": len(matrices),
    }


def dominated(files: dict[str, Any]) -> list[str]:
    """A sentence for every file that is larger than another one and no closer to the merged model.

    Of files whose distance was not measured nothing is said.
    """
    notes = []
    measured = {name: entry for name, entry in files.items() if "kl_mean" in entry}
    for name, entry in measured.items():
        better = [
            other for other, its in measured.items()
            if its["size"] < entry["size"] and its["kl_mean"] <= entry["kl_mean"]
        ]  # fmt: skip
        if better:
            least = min(better, key=lambda other: files[other]["kl_mean"])
            notes.append(
                f"{name} ({console.size(entry['size'])}) is larger than {least} ({console.size(files[least]['size'])}) "
                "and no closer to the merged model: leave it out"
            )
    return notes


def metadata(config: QuantizeConfig, base: Base) -> dict[str, str]:
    """What a file says of itself, beside what the converter reads in the model card."""
    fields = {
        "general.name": f"{base.name} {config.project} {config.version}",
        "general.finetune": config.project,
        "general.version": f"v{config.version}",
        "general.license": base.license,
        "general.quantized_by": "slmctl",
    }
    return {key: value for key, value in fields.items() if value}


def _dtype(folder: Path) -> str:
    """The GGUF type that holds a model's weights without loss."""
    config = json.loads((folder / "config.json").read_bytes())
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return {"float16": "f16", "bfloat16": "bf16"}.get(dtype, "f32")
