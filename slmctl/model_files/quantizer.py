"""llama.cpp on GGUF files, in a child process: quantize one, and probe its tokens and logits.

A child, since a crash of native code must not end the caller; it gets no secrets in its
environment.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmctl import child
from slmctl.config.quant_type import QuantType
from slmctl.errors import StageError
from slmctl.hardware import usable_cores
from slmctl.installation import require, timings_folder


@dataclass(frozen=True)
class QuantizedFile:
    """A GGUF file to write: its quantization type and path; `weighted` if
    the importance matrix weighs its errors.
    """

    type: str
    path: Path
    weighted: bool = False


@dataclass(frozen=True)
class LogitRequest:
    """Token ids to compute, and the positions whose next-token logits are kept."""

    tokens: list[int]
    positions: list[int]


@dataclass(frozen=True)
class ProbeResult:
    """The results of `probe`, by llama.cpp.

    Attributes:
        end_of_turn: Token ids of the text that ends a turn.
        ends: That text's first token stops generation.
        tokens: Token ids of every text.
        expanded: The weights were held as BF16.
    """

    end_of_turn: list[int]
    ends: bool
    tokens: list[list[int]]
    expanded: bool


def quantize_all(
    source: Path, targets: Sequence[QuantizedFile], *, importance: Path | None = None, rows: int = 0
) -> Iterator[str]:
    """Write a quantization of a lossless GGUF for every target; yields each type when its file is
    there.

    Args:
        source: A GGUF in F32, F16 or BF16.
        importance: An `.npz` of float32 vectors by tensor name, for the weighted targets.
        rows: Number of records it was computed from, for the files' metadata.

    Raises:
        StageError: llama.cpp does not know a type, or could not write a file.
    """
    order = {
        "source": str(source),
        "threads": usable_cores(),
        "importance": str(importance) if importance else None,
        "rows": rows,
        "targets": [_order(target) for target in targets],
    }
    left = [target.type for target in targets]
    try:
        for answer in _child("quantize", order):
            left.remove(answer["type"])
            yield answer["type"]
    except child.DiedError as death:
        raise StageError(
            f"quantizing to {left[0]} failed: {_reason(death)}", hint=_hint(death.log)
        ) from None


def _order(target: QuantizedFile) -> dict[str, Any]:
    """A file as the child is asked to write it."""
    constant = QuantType(target.type).constant
    return {**target.__dict__, "path": str(target.path), "constant": constant}


def probe(
    model: Path,
    *,
    texts: Sequence[str],
    end: str,
    rows: Sequence[LogitRequest] = (),
    logits: Path,
    lora: Path | None = None,
    mostly_reads: bool = False,
) -> ProbeResult:
    """Tokenize texts with a GGUF file, and compute logits with it.

    Args:
        end: The text that ends a turn.
        logits: The file to write: float32 (positions of all rows, vocabulary), in the format of
            numpy.
        lora: An adapter to put on the model.
        mostly_reads: Hold the weights as BF16 if the engine of such a task would.

    Raises:
        StageError: The file cannot be loaded or computed.
    """
    order = {
        "model": str(model),
        "lora": str(lora) if lora else None,
        "threads": usable_cores(),
        "texts": list(texts),
        "timings": timings_folder() if mostly_reads else None,
        "end": end,
        "rows": [row.__dict__ for row in rows],
        "logits": str(logits),
    }
    fields: dict[str, Any] = {}
    try:
        for answer in _child("probe", order):
            fields |= answer
    except child.DiedError as death:
        raise StageError(f"{model.name} cannot be used: {_reason(death)}") from None
    return ProbeResult(
        **{field.name: fields[field.name] for field in dataclasses.fields(ProbeResult)}
    )


def _child(task: str, order: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Answers of the child, one a line."""
    require("quantizing", "gguf", "llama_cpp")
    module = "slmctl.model_files.quantizer_child"
    with child.output(module, task, request=json.dumps(order).encode()) as lines:
        yield from map(json.loads, lines)


def _reason(death: child.DiedError) -> str:
    """The reason by llama.cpp's log, else by the child's end."""
    lines = [line.strip() for line in death.log.splitlines()]
    reasons = [
        line for line in lines if "failed to quantize:" in line or "error loading model" in line
    ]
    return (reasons[-1].partition(": ")[2] or reasons[-1]) if reasons else str(death)


def _hint(log: str) -> str:
    if "requires an imatrix" in log or "Missing importance matrix" in log:
        return "--set quantize.importance_matrix=auto"
    if "no quantization type" in log:
        return "update llama-cpp-python, or name another type, such as Q8_0 or Q4_K_M"
    return "is the disk full? df -h ."
