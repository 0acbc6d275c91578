"""JSON that somebody else may have written: bounded in size and depth before it is believed, then read by type.

Manifests, tags, receipts and the like come from shares and registries. Whatever lies in their place ends in one
IntegrityError, and costs no more memory than its bound.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from slmctl.errors import IntegrityError

LARGEST = 16 << 20  # bytes; the largest manifest that we have seen has 40 kB
DEEPEST = 64  # levels of lists and objects; ours have 8


def read(path: Path, *, largest: int = LARGEST) -> bytes:
    """The content of a small plain file; a link at its name is not followed, and a pipe is not waited for.

    Raises:
        FileNotFoundError: There is none.
        IntegrityError: It is no plain file, cannot be read, or has more than `largest` bytes.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} does not exist") from None
    except OSError as error:  # a link is ELOOP
        raise IntegrityError(f"{path} cannot be read as a plain file: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise IntegrityError(f"{path} is not a plain file")
    with os.fdopen(descriptor, "rb") as stream:
        try:
            raw = stream.read(largest + 1)
        except OSError as error:
            raise IntegrityError(f"{path} cannot be read: {error.strerror}") from None
    if len(raw) > largest:
        raise IntegrityError(f"{path} has more than {largest} bytes, too many for what it should be")
    return raw


def parse(raw: bytes, *, where: str) -> dict[str, Any]:
    """A JSON object.

    Args:
        raw: At most LARGEST bytes.
        where: What to call it in an error.

    Raises:
        IntegrityError: It is not JSON, not an object, or nested deeper than DEEPEST.
    """
    if len(raw) > LARGEST:
        raise IntegrityError(f"{where} has more than {LARGEST} bytes, too many for what it should be")
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{where} is not readable JSON: {error}") from None
    if not isinstance(value, dict):
        raise IntegrityError(f"{where} does not hold a JSON object")
    if _is_deep(value):
        raise IntegrityError(f"{where} is nested deeper than {DEEPEST} levels")
    return value


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return any(isinstance(inner, dict | list) for inner in level)
