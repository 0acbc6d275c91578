"""JSON files from untrusted places, read within bounds of size and depth.

Manifests, tags, receipts, policies and the settings of a model come from shares, registries and
hubs. Any other content in their place ends in an expected error, and takes no more memory than the
bound.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

from slmctl.errors import DataError, IntegrityError, SlmctlError

MAX_BYTES = 16 << 20  # the largest known manifest has 40 kB, the largest settings of a model 1.2 MB
MAX_DEPTH = 64  # levels of lists and objects; those of slmctl have 8
# A JSON object with keys that its writer defines: a stage's config and metrics, a JSON Schema, a
# model's settings. Its values are checked where they are read. An object with keys that slmctl
# defines is a TypedDict or a dataclass.
JsonObject = dict[str, Any]


def read_bytes(
    path: Path,
    *,
    limit: int = MAX_BYTES,
    error: type[SlmctlError] = IntegrityError,
    follow: bool = False,
) -> bytes:
    """The content of a plain file of at most `limit` bytes; never blocks on a pipe.

    Args:
        error: Class of the error for a file that cannot be used.
        follow: Follow a link at `path`: true for paths that users type, false for paths that slmctl
            makes.

    Raises:
        FileNotFoundError: The file does not exist.
        SlmctlError: It is not a plain file, cannot be read, or is larger than `limit`; of the class
            `error`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
    except OSError as failure:  # a link is ELOOP
        raise error(f"{path} cannot be read as a plain file: {failure.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error(f"{path} is not a plain file")
    with os.fdopen(descriptor, "rb") as stream:
        try:
            raw = stream.read(limit + 1)
        except OSError as failure:
            raise error(f"{path} cannot be read: {failure.strerror}") from None
    if len(raw) > limit:
        raise error(f"{path} has more than {limit} bytes, too many for a file of its kind")
    return raw


def parse(raw: bytes, *, where: str, error: type[SlmctlError] = IntegrityError) -> JsonObject:
    """The JSON object in `raw`; `where` names it in errors.

    Raises:
        SlmctlError: It has more than MAX_BYTES, is not JSON, not an object, or nested deeper than
            MAX_DEPTH; of the class `error`.
    """
    if len(raw) > MAX_BYTES:
        raise error(f"{where} has more than {MAX_BYTES} bytes, too many for a file of its kind")
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as failure:
        reason = "it is nested too deeply" if isinstance(failure, RecursionError) else failure
        raise error(f"{where} is not valid: not JSON: {reason}") from None
    if not isinstance(value, dict):
        raise error(f"{where} is not valid: it holds {type(value).__name__}, not a JSON object")
    if is_deeper(value, MAX_DEPTH):
        raise error(f"{where} is not valid: nested deeper than {MAX_DEPTH} levels")
    return value


def read_object(path: Path) -> JsonObject:
    """The JSON object in a file that a user named, which may be a link.

    Raises:
        FileNotFoundError: The file does not exist.
        DataError: It cannot be read, or is not a JSON object; see `read_bytes` and `parse`.
    """
    return parse(read_bytes(path, error=DataError, follow=True), where=str(path), error=DataError)


def is_deeper(value: object, depth: int) -> bool:
    """True if lists and objects nest more than `depth` deep; counted without recursion."""
    level = [value]
    for _ in range(depth):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return any(isinstance(inner, dict | list) for inner in level)
