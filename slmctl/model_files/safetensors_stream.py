"""Safetensors files as a stream: tensors read row by row, and a writer that holds none of them in
memory.

The format is a length (8 bytes, little-endian), a JSON header with name, type, shape and place of
every tensor, and then their bytes in that order: with sizes planned, files are written in one pass.
"""

from __future__ import annotations

import collections
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch

from slmctl.errors import IntegrityError
from slmctl.model_files import safetensors_header
from slmctl.model_files.safetensors_header import INDEX

BLOCK_BYTES = 16 << 20  # bytes moved or computed at once

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {kind: name for name, kind in DTYPES.items()}


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of a file: its name, type and shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.elements * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor(PlannedTensor):
    """A tensor in a file, with the offset of its bytes."""

    path: Path
    start: int

    @property
    def row(self) -> int:
        """Elements of one row; a vector has rows of one element."""
        return math.prod(self.shape[1:])

    def rows(self, first: int, last: int) -> torch.Tensor:
        """Rows `first` up to `last`, (last - first, …), read from the file into new memory."""
        width = self.row * self.dtype.itemsize
        raw = bytearray((last - first) * width)
        with self.path.open("rb", buffering=0) as stream:
            stream.seek(self.start + first * width)
            view = memoryview(raw)
            while view:
                got = stream.readinto(view)
                if not got:
                    raise IntegrityError(f"{self.path} ends inside '{self.name}'")
                view = view[got:]
        return torch.frombuffer(raw, dtype=self.dtype).reshape(last - first, *self.shape[1:])

    def blocks(self) -> Iterator[tuple[int, int]]:
        """(first, last) rows of pieces of about BLOCK_BYTES in float32."""
        length = self.shape[0] if self.shape else 1
        step = max(BLOCK_BYTES // max(4 * self.row, 1), 1)
        for first in range(0, length, step):
            yield first, min(first + step, length)


def stored_tensors(folder: Path) -> list[StoredTensor]:
    """Every tensor of a model folder, in the order of its files.

    Raises:
        DataError: The index cannot be read.
        IntegrityError: A file is not a safetensors file, or the index names a missing tensor.
    """
    tensors = [
        tensor for path in safetensors_header.weight_files(folder) for tensor in _in_file(path)
    ]
    listed = safetensors_header.weight_map(folder) or {}
    files = {tensor.name: tensor.path.name for tensor in tensors}
    wrong = sorted(name for name, file in listed.items() if files.get(name) != file)
    if wrong:
        raise IntegrityError(
            f"{folder / INDEX} says that '{wrong[0]}' is in {listed[wrong[0]]}, and it is not"
        )
    return tensors


def _in_file(path: Path) -> list[StoredTensor]:
    entries = safetensors_header.read(path)
    for entry in entries:
        if entry.dtype not in DTYPES:
            raise IntegrityError(
                f"{path} holds '{entry.name}' as {entry.dtype}, which slmctl cannot read"
            )
    return [
        StoredTensor(entry.name, DTYPES[entry.dtype], entry.shape, path, entry.start)
        for entry in entries
    ]


class ShardWriter:
    """Writes tensors in the planned order, into as many files as the limit requires.

    Args:
        folder: The folder for `model.safetensors`, or for `model-00001-of-0000N.safetensors` with
            their index.
        planned: All tensors, in order.
        limit: Largest file in bytes; a larger tensor has a file to itself.

    Raises:
        IntegrityError: Two tensors have the same name, of which a file would list one.
    """

    def __init__(self, folder: Path, planned: Sequence[PlannedTensor], *, limit: int) -> None:
        self.folder, self.planned = folder, list(planned)
        counts = collections.Counter(tensor.name for tensor in planned)
        if twice := [name for name, count in counts.items() if count > 1]:
            raise IntegrityError(f"two tensors of the model are named '{twice[0]}'")
        self.shards = _plan_shards(self.planned, limit)
        self._next = 0
        self._stream: BinaryIO | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._stream is not None:
            self._stream.close()
        if kind is None:
            assert self._next == len(self.planned), "every planned tensor is written"
            self._write_index()

    def begin(self) -> PlannedTensor:
        """Open the next tensor; its bytes follow through `write`."""
        planned = self.planned[self._next]
        for number, shard in enumerate(self.shards):
            if shard[0] is planned:
                self._open(number)
        self._next += 1
        return planned

    def write(self, piece: torch.Tensor) -> None:
        """Append rows to the open tensor."""
        assert self._stream is not None
        self._stream.write(piece.contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def copy(self, source: StoredTensor) -> None:
        """Fill the open tensor with the bytes of another; the kernel copies them."""
        assert self._stream is not None
        self._stream.flush()
        left, place = source.size, source.start
        with source.path.open("rb") as stream:
            while left:
                sent = os.sendfile(
                    self._stream.fileno(), stream.fileno(), place, min(left, BLOCK_BYTES)
                )
                if sent == 0:
                    raise IntegrityError(f"{source.path} ends inside '{source.name}'")
                left, place = left - sent, place + sent
        self._stream.seek(0, os.SEEK_END)

    def _open(self, number: int) -> None:
        if self._stream is not None:
            self._stream.close()
        shard = self.shards[number]
        place = 0
        header = {"__metadata__": {"format": "pt"}}
        for tensor in shard:
            entry: Any = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape)}
            header[tensor.name] = entry | {"data_offsets": [place, place + tensor.size]}
            place += tensor.size
        raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        raw += b" " * (-len(raw) % 8)
        self._stream = (self.folder / self._file(number)).open("wb")
        self._stream.write(len(raw).to_bytes(8, "little") + raw)

    def _file(self, number: int) -> str:
        many = len(self.shards)
        return (
            "model.safetensors"
            if many == 1
            else f"model-{number + 1:05d}-of-{many:05d}.safetensors"
        )

    def _write_index(self) -> None:
        if len(self.shards) == 1:
            return
        where = {
            tensor.name: self._file(number)
            for number, shard in enumerate(self.shards)
            for tensor in shard
        }
        totals = {
            "total_size": sum(tensor.size for tensor in self.planned),
            "total_parameters": sum(tensor.elements for tensor in self.planned),
        }
        text = json.dumps(
            {"metadata": totals, "weight_map": where}, indent=2, sort_keys=True, ensure_ascii=False
        )
        (self.folder / INDEX).write_text(text + "\n", encoding="utf-8")


def _plan_shards(planned: Sequence[PlannedTensor], limit: int) -> list[list[PlannedTensor]]:
    """Planned tensors in files of at most `limit` bytes each."""
    shards: list[list[PlannedTensor]] = [[]]
    filled = 0
    for tensor in planned:
        if shards[-1] and filled + tensor.size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.size
    return shards
