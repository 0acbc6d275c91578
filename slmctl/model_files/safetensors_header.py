"""The header of a safetensors file: name, type, shape and place of every tensor, checked against
the file.

The format is a length (8 bytes, little-endian), a JSON object of that length, and the tensors'
bytes without gaps: https://github.com/huggingface/safetensors#format. Every value of the header is
checked against the file before it is used.
"""

from __future__ import annotations

import collections
import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmctl.artifacts import bounded_json
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.errors import DataError, IntegrityError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_HEADER_BYTES = 8 << 20  # 60,000 tensors; the format itself allows 100 MB
MAX_DIMENSIONS = 8
# Bits of an element by safetensors' name of the type.
BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of a safetensors file: its name, safetensors' name of its
    type, its shape, the offset of its bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def read(path: Path) -> list[TensorEntry]:
    """Every tensor of a file, in the order of their bytes.

    Raises:
        IntegrityError: It is not a safetensors file, or its length does not fit its header.
    """
    try:
        return _entries(path)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path.name} is no readable safetensors file: {error}") from None


def weight_map(folder: Path) -> JsonObject | None:
    """{name of a tensor: name of its file} by the index of a model folder; None where transformers
    reads no index.

    Raises:
        DataError: The index cannot be read.
    """
    if (folder / WHOLE).exists() or not (folder / INDEX).exists():
        return None
    listed = bounded_json.read_object(folder / INDEX).get("weight_map")
    if not isinstance(listed, dict):
        raise DataError(f"{folder / INDEX} has no weight_map")
    return listed


def weight_files(folder: Path) -> list[Path]:
    """The files of weights that transformers loads: `model.safetensors`, or else those that the
    index names.

    A folder may hold more, such as `model.fp16.safetensors` or the `consolidated.safetensors` of
    another library.

    Raises:
        DataError: The index cannot be read.
    """
    listed = weight_map(folder)
    names = {WHOLE} if listed is None else {str(name) for name in listed.values()}
    return [path for path in sorted(folder.glob("*.safetensors")) if path.name in names]


def read_folder(folder: Path) -> list[TensorEntry]:
    """Every tensor in the `weight_files` of a folder; see `read`."""
    return [entry for path in weight_files(folder) for entry in read(path)]


def parameter_count(folder: Path) -> int:
    """Number of weights in the `weight_files` of a folder."""
    return sum(entry.elements for entry in read_folder(folder))


def main_type(folder: Path) -> str:
    """safetensors' name of the type that most weights of a folder are stored in; '' without
    weights.

    The `dtype` of a config may be another one.
    """
    by_type = collections.Counter[str]()
    for entry in read_folder(folder):
        by_type[entry.dtype] += entry.elements
    return max(by_type, key=by_type.__getitem__, default="")


def _entries(path: Path) -> list[TensorEntry]:
    # opening a pipe must not wait for its other end
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a plain file")
        length = int.from_bytes(stream.read(8), "little")
        if status.st_size < 8 or length > status.st_size - 8:
            raise ValueError(
                f"its header of {length} bytes does not fit its {status.st_size} bytes"
            )
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"its header has {length} bytes, at most {MAX_HEADER_BYTES} are read")
        header = json.loads(stream.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    header.pop("__metadata__", None)
    entries, end = [], 8 + length
    for name, fields, (begin, after) in sorted(
        ((n, f, _place(n, f)) for n, f in header.items()), key=_by_place
    ):
        entry = TensorEntry(name, *_type_and_shape(name, fields), 8 + length + begin)
        if entry.start != end or 8 * (after - begin) != entry.elements * BITS[entry.dtype]:
            raise ValueError(
                f"{name[:80]!r} does not lie where its shape and its neighbours put it"
            )
        entries.append(entry)
        end = 8 + length + after
    if end != status.st_size:
        raise ValueError(f"its tensors end after {end} of {status.st_size} bytes")
    return entries


def _by_place(item: tuple[str, Any, tuple[int, int]]) -> tuple[int, int, str]:
    return (*item[2], item[0])


def _place(name: str, fields: Any) -> tuple[int, int]:
    """Offsets of a tensor's first byte and of the end of its bytes, from the end of the header."""
    offsets = fields.get("data_offsets") if isinstance(fields, Mapping) else None
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(_is_size(offset) for offset in offsets)
    ):
        raise ValueError(f"{name[:80]!r} has no two data_offsets")
    return offsets[0], offsets[1]


def _type_and_shape(name: str, fields: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    dtype, shape = fields.get("dtype"), fields.get("shape")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"{name[:80]!r} has an unknown type")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMENSIONS
        or not all(_is_size(length) for length in shape)
    ):
        raise ValueError(f"{name[:80]!r} has no shape")
    return dtype, tuple(shape)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63
