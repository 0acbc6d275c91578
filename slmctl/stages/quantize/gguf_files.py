"""GGUF files of a merged model: one lossless conversion, a file of every
type from it, their real types and sizes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slmctl import console
from slmctl.artifacts import atomic
from slmctl.artifacts.artifact import Artifact, sha256_file
from slmctl.config import QuantizeConfig
from slmctl.config.quant_type import WIDE_BLOCK, QuantType
from slmctl.model_files import gguf_converter, gguf_header, quantizer, safetensors_header
from slmctl.model_files.base_model import Base
from slmctl.model_files.gguf_header import GgufHeader
from slmctl.model_files.quantizer import QuantizedFile

# importance of each input, by the name of a tensor
ImportanceMatrix = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class LosslessFile:
    """The lossless conversion of the merged model: its path, its type and its header."""

    path: Path
    type: str
    head: GgufHeader


def convert(config: QuantizeConfig, model: Artifact, base: Base, scratch: Path) -> LosslessFile:
    """Convert a merged model, or a base, to one GGUF file, in the type
    that holds its weights without loss.
    """
    kind = _dtype(model.path)
    path = scratch / file_name(config, base, kind.upper())
    gguf_converter.convert(model.path, path, dtype=kind, metadata=metadata(config, base))
    return LosslessFile(path, kind.upper(), gguf_header.read(path))


def plan(config: QuantizeConfig, base: Base, out: Path, *, weighted: bool) -> list[QuantizedFile]:
    """The files to write, each type once."""
    return [
        QuantizedFile(
            name,
            out / file_name(config, base, name),
            weighted and QuantType(name).takes_matrix,
        )
        for name in dict.fromkeys(config.types)
    ]


def unweighted_twins(targets: Sequence[QuantizedFile], scratch: Path) -> dict[str, QuantizedFile]:
    """{type: a second file to write without the matrix}, for weighted
    files of types that can do without it.
    """
    able = [
        target for target in targets if target.weighted and not QuantType(target.type).needs_matrix
    ]
    return {target.type: QuantizedFile(target.type, scratch / target.path.name) for target in able}


def write(
    lossless: LosslessFile,
    targets: Sequence[QuantizedFile],
    matrix: ImportanceMatrix | None = None,
    *,
    rows: int = 0,
) -> None:
    """Write every target; one of the lossless file's own type becomes a link to it.

    Raises:
        StageError: llama.cpp could not write one.
    """
    vectors = lossless.path.with_name("importance.npz")
    if matrix:
        save(matrix, vectors)
    made = [target for target in targets if target.type != lossless.type]
    for target in targets:
        if target.type == lossless.type:
            atomic.link(lossless.path, target.path)
    if not made:
        return
    with console.progress("quantize", len(made), "files") as meter:
        for _ in quantizer.quantize_all(
            lossless.path, made, importance=vectors if matrix else None, rows=rows
        ):
            meter.advance()


def save(matrix: ImportanceMatrix, path: Path) -> None:
    """Write vectors by name as an `.npz`."""
    with path.open("wb") as stream:
        np.savez(stream, **matrix)  # type: ignore[arg-type]


def file_name(config: QuantizeConfig, base: Base, type_name: str) -> str:
    """A name by the GGUF convention without a version, which a release adds:
    `SmolLM2-135M-acme-support-Q4_K_M.gguf`; without a project `BASE-TYPE`.
    """
    if not config.project:
        return f"{base.name}-{type_name}.gguf"
    stem = re.split(
        r"[-_](?=\d+(?:\.\d+)?[KMBT](?:[-_.]|$))", base.name, maxsplit=1, flags=re.IGNORECASE
    )[0]
    return f"{stem}-{base.size_label}-{config.project}-{type_name}.gguf"


def listed(path: Path) -> dict[str, Any]:
    """Name, size in bytes and sha256 of a file, as the manifest's metrics list it."""
    sha256 = sha256_file(path).removeprefix("sha256:")
    return {"file": path.name, "size": path.stat().st_size, "sha256": sha256}


def entry(target: QuantizedFile) -> dict[str, Any]:
    """A written file as the manifest's metrics list it.

    It adds to `listed`: `importance`, `bits_per_weight`, `tensor_types` (matrices by type),
    `matrices` and `fallback_tensors`, which counts matrices with rows that are not a multiple of
    256: llama.cpp stores them in a larger type than the requested K, IQ or TQ type; 0 for other
    types.
    """
    head = gguf_header.read(target.path)
    matrices = [tensor for tensor in head.tensors if len(tensor.shape) > 1]
    types: dict[str, int] = {}
    for tensor in matrices:
        types[tensor.type] = types.get(tensor.type, 0) + 1
    broken = [tensor for tensor in matrices if tensor.shape[0] % WIDE_BLOCK]
    total = sum(tensor.weights for tensor in head.tensors)
    return listed(target.path) | {
        "importance": target.weighted,
        "bits_per_weight": round(sum(tensor.size for tensor in head.tensors) * 8 / total, 3),
        "tensor_types": dict(sorted(types.items())),
        "fallback_tensors": len(broken) if QuantType(target.type).is_wide else 0,
        "matrices": len(matrices),
    }


def dominated_files(files: dict[str, Any]) -> list[str]:
    """A sentence for every file that is larger than another and no closer to the merged model by KL
    divergence.

    Files without a measured divergence are left out.
    """
    notes = []
    measured = {name: entry for name, entry in files.items() if "kl_mean" in entry}
    for name, entry in measured.items():
        better = [
            other
            for other, its in measured.items()
            if its["size"] < entry["size"] and its["kl_mean"] <= entry["kl_mean"]
        ]
        if better:
            least = min(better, key=lambda other: files[other]["kl_mean"])
            notes.append(
                f"{name} ({console.size(entry['size'])}) is larger than {least} "
                f"({console.size(files[least]['size'])}) "
                "and no closer to the merged model: leave it out"
            )
    return notes


def metadata(config: QuantizeConfig, base: Base) -> dict[str, str]:
    """GGUF metadata, on top of the fields that the converter reads from the model card."""
    fields = {
        "general.name": f"{base.name} {config.project}".rstrip(),
        "general.finetune": config.project,
        "general.license": base.license,
        "general.quantized_by": "slmctl",
    }
    return {key: value for key, value in fields.items() if value}


def _dtype(folder: Path) -> str:
    """The GGUF type that holds a model's weights without loss."""
    return {"F16": "f16", "BF16": "bf16"}.get(safetensors_header.main_type(folder), "f32")
