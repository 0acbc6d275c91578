"""Append-only files of JSON objects, a line each: what a kill tears is one line, which readers pass over."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from slmctl.artifacts.bounded_json import JsonObject


class JsonLines:
    """A file that lines are added to; each is on the disk when `append` returns.

    Args:
        path: The file; it is created where there is none.
        mode: Permissions of a new file.
        sync: Wait for the disk after each line.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path, *, mode: int = 0o666, sync: bool = True) -> None:
        self._sync = sync
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, mode)
        self._stream = os.fdopen(descriptor, "ab", buffering=0)
        self._torn = _is_torn(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def append(self, fields: Mapping[str, object]) -> None:
        """Add a line. One that was torn, by a kill or a full disk, is ended first.

        Raises:
            OSError: It could not be written, or not wholly; readers pass over what there is of it.
        """
        text = json.dumps(fields, ensure_ascii=False).encode("utf-8", "backslashreplace")  # a lone surrogate: \\udc80
        line = (b"\n" if self._torn else b"") + text + b"\n"
        self._torn = True
        if self._stream.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # a full disk takes a part and says no more
        self._torn = False
        if self._sync:
            os.fsync(self._stream.fileno())

    def fileno(self) -> int:
        """The open file, to lock it."""
        return self._stream.fileno()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def read(path: Path) -> Iterator[JsonObject]:
    """The objects of a file in order; lines that are no whole JSON object are passed over.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            try:
                fields = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(fields, dict):
                yield fields


def _is_torn(descriptor: int) -> bool:
    """True where the last line of a file has no end."""
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
