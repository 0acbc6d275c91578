"""Arrays of numpy in an `.npz` file of a linear model, read without trust:
names, types, shapes, finite numbers.
"""

from __future__ import annotations

import contextlib
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.npyio import NpzFile

from slmctl.errors import IntegrityError

MOST_BYTES = 1 << 30  # of all arrays of a file
_COMPRESSIONS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
# The head of an array is Python, which numpy reads with `tokenize`; a cut one ends with EOFError,
# which click takes for Ctrl-D, an encrypted one with RuntimeError.
_FAULTS = (
    ValueError,
    KeyError,
    EOFError,
    RuntimeError,
    MemoryError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


class StoredArrays:
    """The arrays of an open file, each read when it is asked for; a
    ValueError says what is wrong with one.
    """

    def __init__(self, kept: NpzFile, prefix: str = "") -> None:
        self._kept = kept
        self._prefix = prefix

    def __contains__(self, name: str) -> bool:
        return f"{self._prefix}{name}" in self._kept

    def within(self, prefix: str) -> StoredArrays:
        """The arrays with names that begin so, by the rest of their names."""
        return StoredArrays(self._kept, f"{self._prefix}{prefix}")

    def numbers(self, name: str, *shape: int | None, half: bool = False) -> npt.NDArray[Any]:
        """A float array of a shape, in which None is any length; with `half`, of 16 bits."""
        array = self._read(name)
        types: tuple[type, ...] = (np.float32, np.float64)
        if half:
            types = (np.float16,)
        if array.dtype not in types or not _fits(array.shape, shape):
            raise ValueError(f"'{name}' is {array.dtype} of shape {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"'{name}' holds NaN or infinity")
        return array

    def places(self, name: str, below: int) -> npt.NDArray[np.int32]:
        """Different whole numbers from 0 on, rising."""
        array = self._read(name)
        is_list = array.dtype == np.int32 and array.ndim == 1
        if not is_list or not np.array_equal(array, np.unique(array)):
            raise ValueError(f"'{name}' is no rising list of whole numbers")
        if len(array) and not 0 <= array[0] <= array[-1] < below:
            raise ValueError(f"'{name}' holds a number beyond {below}")
        return array

    def labels(
        self, name: str = "labels", *, among: Sequence[str] | None = None
    ) -> tuple[str, ...]:
        """Different texts.

        Args:
            among: Those that there may be; None for any.
        """
        array = self._read(name)
        labels: tuple[str, ...] = ()
        if array.dtype.kind == "U" and array.ndim == 1:
            labels = tuple(map(str, array))
        if not labels or len(set(labels)) < len(labels):
            raise ValueError(f"'{name}' are no different texts")
        others = set() if among is None else set(labels) - set(among)
        if others:
            raise ValueError(f"'{min(others)[:100]}' is no label of the task")
        return labels

    def _read(self, name: str) -> npt.NDArray[Any]:
        array = self._kept[f"{self._prefix}{name}"]
        if not isinstance(array, np.ndarray):
            raise ValueError(f"'{name}' is no array")
        return array


def _fits(shape: tuple[int, ...], wish: tuple[int | None, ...]) -> bool:
    if len(shape) != len(wish):
        return False
    return all(b in (a, None) for a, b in zip(shape, wish, strict=True))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[StoredArrays]:
    """The arrays of a file, for the length of a block.

    Raises:
        IntegrityError: It holds none, or others than the block asks for.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES} bytes")
        if not {entry.compress_type for entry in entries} <= _COMPRESSIONS:
            raise ValueError("an unknown compression")
        with NpzFile(path.open("rb"), own_fid=True, allow_pickle=False) as kept:
            yield StoredArrays(kept)
    except _FAULTS as error:
        fault = str(error) or type(error).__name__
        raise IntegrityError(
            f"{path.name} holds no linear model that slmctl wrote: {fault}",
            hint=f"fetch the release of {path.parent} again, or make it again: slmctl encode",
        ) from None
