"""Append-only files of JSON objects, a line each: what a kill tears is one line, which readers pass over.

The next writer cuts it off. Writers take turns by a lock on the open file. `rewrite` takes lines out while others
append: it replaces the file under that lock, and a writer that finds another file under its name goes on there, so no
line is lost.
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

_BLOCK = 1 << 20  # bytes that are read at once to find where a torn line begins


@dataclass(frozen=True)
class Line:
    """A line with known fields; further ones are passed over, since a later version may have written them."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = {"extra": "ignore", "allow_inf_nan": False}

    def to_json(self) -> JsonObject:
        """The line as it is written; fields that are empty are left out."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "", {}, [], ())}

    @classmethod
    def read(cls, path: Path) -> Iterator[Self]:
        """The lines of a file in order; those that are torn, or of another kind, are passed over.

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
    """A file that lines are added to; each is on the disk when `append` returns.

    Args:
        path: The file; it is created where there is none, and again where it was removed since.
        mode: Permissions of a new file.
        sync: Wait for the disk after each line; else when `flush` is called.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path, *, mode: int = 0o666, sync: bool = True) -> None:
        self._path, self._mode, self._sync = path, mode, sync
        self._stream = self._opened()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def append(self, fields: Mapping[str, object]) -> None:
        """Add a line. One that a kill has torn is cut off first.

        Raises:
            OSError: It could not be written, or not wholly; then nothing of it is there.
        """
        text = json.dumps(fields, ensure_ascii=False).encode("utf-8", "backslashreplace")  # a lone surrogate: \\udc80
        with self._held() as stream:
            _mend(stream.fileno())
            size = os.fstat(stream.fileno()).st_size
            try:
                if stream.write(text + b"\n") != len(text) + 1:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # a full disk takes a part and says no more
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(stream.fileno(), size)
                raise
            if self._sync:
                os.fsync(stream.fileno())

    def flush(self) -> None:
        """Have every line on the disk.

        Raises:
            OSError: The disk could not take them.
        """
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
        """The file that has the name now, locked."""
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
    """The objects of a file in order; lines that are no whole JSON object are passed over.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as stream:
        for line in stream:
            if (fields := _read_line(line)) is not None:
                yield fields


def torn(path: Path) -> Iterator[str]:
    """The lines of a file that are no whole JSON object.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as stream:
        yield from (line.decode("utf-8", "replace") for line in stream if _read_line(line) is None)


def rewrite(path: Path, keep: Callable[[JsonObject], bool], *, with_torn: bool = False) -> int:
    """Take the lines out that are not to be kept, and with them torn ones, which nobody can judge.

    The file is replaced at once, with its owner and permissions; those who append meanwhile lose no line. A file of
    which every line is kept stays as it is, torn lines too.

    Args:
        path: The file.
        keep: False for a line to take out; it is called twice for each.
        with_torn: Take torn lines out even where every whole one is kept.

    Returns:
        Number of whole lines that were taken out.

    Raises:
        OSError: The file cannot be read, or the new one not be written; then the old one is as it was.
    """
    while True:
        with path.open("rb") as old:
            fcntl.flock(old, fcntl.LOCK_EX)
            if not _has_name(old, path):
                continue
            removed = sum((fields := _read_line(line)) is not None and not keep(fields) for line in old)
            if removed or with_torn:
                status = os.fstat(old.fileno())
                old.seek(0)
                with atomic.file(path, stat.S_IMODE(status.st_mode)) as draft, draft.open("wb") as new:
                    draft.chmod(stat.S_IMODE(status.st_mode))
                    if (status.st_uid, status.st_gid) != (os.getuid(), os.getgid()):
                        os.chown(draft, status.st_uid, status.st_gid)  # else its server could not go on in it
                    for line in old:
                        if (fields := _read_line(line)) is not None and keep(fields):
                            new.write(line if line.endswith(b"\n") else line + b"\n")
            return removed


def _read_line(line: bytes) -> JsonObject | None:
    """The object of a line; None where it is no whole one."""
    try:
        fields = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _has_name(stream: IO[bytes], path: Path) -> bool:
    """True where an open file is the one that others find under a name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


def _mend(descriptor: int) -> None:
    """Cut off a last line that was torn; one that lacks nothing but its end gets that."""
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
