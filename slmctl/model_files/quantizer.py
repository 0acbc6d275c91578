"""llama.cpp on files, in a child process: a ladder of quantizations, and what a file reads and computes.

A child, since a crash of native code must not take the caller along; it gets no secrets in its environment.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmctl import child_environment
from slmctl.errors import MissingError, StageError
from slmctl.inference.engine import usable_cores


@dataclass(frozen=True)
class Target:
    """A file to write: its type, its place, and whether the importance matrix weighs its errors."""

    type: str
    path: Path
    weighted: bool = False


@dataclass(frozen=True)
class Row:
    """Token ids to compute, and the positions whose next-token logits are wanted."""

    tokens: list[int]
    positions: list[int]


def ladder(source: Path, targets: Sequence[Target], *, importance: Path | None = None, rows: int = 0) -> Iterator[str]:
    """Write a quantization of a lossless GGUF for every target; yields each type when its file is there.

    Args:
        source: A GGUF in F32, F16 or BF16.
        importance: An `.npz` of float32 vectors by tensor name, for the targets that are weighted.
        rows: How many records it was computed from, for the files' metadata.

    Raises:
        StageError: llama.cpp does not know a type, or could not write a file.
    """
    order = {
        "source": str(source), "threads": usable_cores(), "importance": str(importance) if importance else None,
        "rows": rows,
        "targets": [{"type": t.type, "path": str(t.path), "weighted": t.weighted} for t in targets],
    }  # fmt: skip
    left = [target.type for target in targets]
    try:
        for answer in _child("ladder", order):
            left.remove(answer["type"])
            yield answer["type"]
    except ChildError as error:
        raise StageError(f"quantizing to {left[0]} failed: {error}", hint=_hint(error.log)) from None


def probe(
    model: Path, *, texts: Sequence[str], end: str, rows: Sequence[Row] = (), logits: Path, lora: Path | None = None
) -> dict[str, Any]:
    """How a GGUF reads texts, what ends its answers, and what it computes.

    Returns:
        `vocabulary` (tokens), `end_token`, `end_of_turn` (token ids of `end`), `ends` (whether that stops an
        answer), `tokens` (ids of every text). The logits of all positions are then in the file `logits`, a
        float32 array (positions, vocabulary).

    Raises:
        StageError: The file cannot be loaded or computed.
    """
    order = {
        "model": str(model), "lora": str(lora) if lora else None, "threads": usable_cores(), "texts": list(texts),
        "end": end, "rows": [row.__dict__ for row in rows], "logits": str(logits),
    }  # fmt: skip
    found: dict[str, Any] = {}
    try:
        for answer in _child("probe", order):
            found |= answer
    except ChildError as error:
        raise StageError(f"{model.name} cannot be used: {error}") from None
    return found


class ChildError(StageError):
    """The child failed; `log` holds all that it said."""

    def __init__(self, message: str, log: str) -> None:
        super().__init__(message)
        self.log = log


def _child(task: str, order: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Answers of the child, one a line."""
    if importlib.util.find_spec("llama_cpp") is None:
        raise MissingError(
            "quantizing needs the package 'llama_cpp', which is not installed", hint="pip install 'slmctl[gguf]'"
        )
    with tempfile.TemporaryFile() as log, tempfile.TemporaryFile("w+", encoding="utf-8") as stdin:
        json.dump(order, stdin)
        stdin.seek(0)
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "slmctl.model_files.quantizer_child", task],
            stdin=stdin, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8",
            env=child_environment.bare(),
        )  # fmt: skip
        assert child.stdout is not None
        ended = False
        try:
            with child.stdout:
                for line in child.stdout:
                    yield json.loads(line)
            ended = True
        finally:
            if not ended:  # nobody wants the rest
                child.kill()
            code = child.wait()
        if code != 0:
            log.seek(0)
            said = log.read().decode(errors="replace")
            raise ChildError(_reason(said, code), said)


def _reason(log: str, code: int) -> str:
    """The line that says why: llama.cpp's own, else the last one."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    known = [line for line in lines if "failed to quantize:" in line or "error loading model" in line]
    if known:
        return known[-1].partition(": ")[2] or known[-1]
    killed = f"killed by signal {-code}" if code < 0 else f"exit {code}"
    return killed if not lines or code < 0 else lines[-1]


def _hint(log: str) -> str:
    if "requires an imatrix" in log or "Missing importance matrix" in log:
        return "--set quantize.importance_matrix=auto"
    if "no quantization type" in log:
        return "a type of llama.cpp: F16, Q8_0, Q6_K, Q5_K_M, Q4_K_M, IQ4_XS, Q3_K_M, ..."
    return "is the disk full? df -h ."
