"""Append-only JSONL files: a killed writer leaves at most one torn line, which readers skip.

The next writer cuts it off. Writers take turns by a lock on the open file. `rewrite` removes lines
while others append: it replaces the file under that lock, and a writer that finds a new file at the
path appends to that, so no line is lost.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, ClassVar, Self

from slmctl.artifacts import atomic
from slmctl.artifacts.bounded_json import JsonObject

_BLOCK = 1 << 20  # bytes of a read, when looking for the start of a torn line


@dataclass(frozen=True)
class Line:
    """A line with known fields; unknown fields are ignored, since a
    later version may have written them.
    """

    __pydantic_config__: ClassVar[Mapping[str, object]] = {
        "extra": "ignore",
        "allow_inf_nan": False,
    }

    def to_json(self) -> JsonObject:
        """The fields as a JSON object, without empty ones."""
        return {
            name: value
            for name, value in asdict(self).items()
            if value not in (None, "", {}, [], ())
        }

    @classmethod
    def read(cls, path: Path) -> Iterator[Self]:
        """The lines of a file in order; torn lines and lines of another kind are skipped.

        Raises:
            OSError: The file cannot be read.
        """
        from pydantic import TypeAdapter, ValidationError

        adapter = TypeAdapter(cls)
        for fields in read(path):
            try:
                yield adapter.validate_python(fields)
            except ValidationError:
                continue


class JsonLines:
    """A JSONL file that is open for appending.

    Args:
        path: The file; it is created if it does not exist, and created again if it was removed
            meanwhile.
        mode: Permissions of a new file.
        sync: Sync to disk in each `append`; else only in `flush`.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, path: Path, *, mode: int = 0o666, sync: bool = True) -> None:
        self._path = path
        self._mode = mode
        self._sync = sync
        self._stream = self._opened()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def append(self, fields: Mapping[str, object]) -> None:
        """Add a line, after cutting off a torn one at the end.

        Raises:
            OSError: The line could not be written wholly; the file is as it was before.
        """
        # a lone surrogate: \\udc80
        text = json.dumps(fields, ensure_ascii=False).encode("utf-8", "backslashreplace")
        with self._held() as stream:
            _mend(stream.fileno())
            size = os.fstat(stream.fileno()).st_size
            try:
                if stream.write(text + b"\n") != len(text) + 1:
                    # a short write without error: disk full
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(stream.fileno(), size)
                raise
            if self._sync:
                os.fsync(stream.fileno())

    def flush(self) -> None:
        """Sync every line to disk.

        Raises:
            OSError: The disk failed or is full.
        """
        if not self._stream.closed:  # as where the folder is gone
            os.fsync(self._stream.fileno())

    def fileno(self) -> int:
        return self._stream.fileno()

    def close(self) -> None:
        self._stream.close()

    def _opened(self) -> IO[bytes]:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        return os.fdopen(os.open(self._path, flags, self._mode), "ab", buffering=0)

    @contextlib.contextmanager
    def _held(self) -> Iterator[IO[bytes]]:
        """Yield the file that is at the path now, locked."""
        while True:
            if self._stream.closed:
                self._stream = self._opened()
            fcntl.flock(self._stream, fcntl.LOCK_EX)
            if _has_name(self._stream, self._path):
                break
            self._stream.close()  # it was rewritten or removed
        try:
            yield self._stream
        finally:
            fcntl.flock(self._stream, fcntl.LOCK_UN)


def read(path: Path) -> Iterator[JsonObject]:
    """The objects of a file in order; lines that are not a whole JSON object are skipped.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as stream:
        for line in stream:
            if (fields := _read_line(line)) is not None:
                yield fields


def torn(path: Path) -> Iterator[str]:
    """The lines of a file that are not a whole JSON object.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as stream:
        yield from (line.decode("utf-8", "replace") for line in stream if _read_line(line) is None)


def rewrite(path: Path, keep: Callable[[JsonObject], bool], *, with_torn: bool = False) -> int:
    """Remove lines from a file, and with them its torn lines, which cannot be judged.

    The file is replaced atomically and keeps owner and permissions; lines that others append
    meanwhile are not lost. If every line is kept, the file stays as it is, including torn lines.

    Args:
        keep: False for a line to remove; called twice for each line.
        with_torn: Remove torn lines even if every whole line is kept.

    Returns:
        Number of whole lines that were removed.

    Raises:
        OSError: The file cannot be read, or the new one cannot be written; then the old one is
            unchanged.
    """
    while True:
        with path.open("rb") as old:
            fcntl.flock(old, fcntl.LOCK_EX)
            if not _has_name(old, path):
                continue
            removed = sum(
                (fields := _read_line(line)) is not None and not keep(fields) for line in old
            )
            if removed or with_torn:
                status = os.fstat(old.fileno())
                old.seek(0)
                with (
                    atomic.file(path, stat.S_IMODE(status.st_mode)) as draft,
                    draft.open("wb") as new,
                ):
                    draft.chmod(stat.S_IMODE(status.st_mode))
                    if (status.st_uid, status.st_gid) != (os.getuid(), os.getgid()):
                        # else the server that owns it could not append
                        os.chown(draft, status.st_uid, status.st_gid)
                    for line in old:
                        if (fields := _read_line(line)) is not None and keep(fields):
                            new.write(line if line.endswith(b"\n") else line + b"\n")
            return removed


def _read_line(line: bytes) -> JsonObject | None:
    """The JSON object of a line; None for a torn line."""
    try:
        fields = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _has_name(stream: IO[bytes], path: Path) -> bool:
    """True if `path` still leads to this open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


def _mend(descriptor: int) -> None:
    """Repair the last line if it has no newline: cut it off if it is torn, else add the newline."""
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return
    start, tail = size, b""
    while start > 0 and b"\n" not in tail:
        step = min(start, _BLOCK)
        start -= step
        tail = os.pread(descriptor, step, start) + tail
    line = tail.rpartition(b"\n")[2]
    if _read_line(line) is None:
        os.ftruncate(descriptor, size - len(line))
    else:
        os.write(descriptor, b"\n")
