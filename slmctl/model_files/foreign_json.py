"""JSON files that come with a model, read within bounds: `config.json`, a tokenizer's settings, an adapter's."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from slmctl.errors import DataError

MAX_BYTES = 8 << 20  # of a settings file; gemma-3's tokenizer_config.json, the longest known, has 1.2 MB
MAX_DEPTH = 32  # of nested lists and objects


def read_object(path: Path, *, limit: int = MAX_BYTES) -> dict[str, Any]:
    """The object that a JSON file of a model holds.

    Raises:
        DataError: It is no plain file, is longer than `limit` bytes, is not readable, or holds no object.
    """
    try:
        fields = json.loads(read_bytes(path, limit=limit))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name} of the model is not readable JSON: {error}") from None
    if not isinstance(fields, dict):
        raise DataError(f"{path.name} of the model holds {type(fields).__name__}, not an object")
    if _depth(fields) > MAX_DEPTH:
        raise DataError(f"{path.name} of the model nests more than {MAX_DEPTH} levels")
    return fields


def read_bytes(path: Path, *, limit: int) -> bytes:
    """The content of a plain file of at most `limit` bytes; its size is not believed, the file is read up to it.

    Raises:
        DataError: It is no plain file, or longer.
        OSError: It cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe must not wait for its other end
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DataError(f"{path.name} of the model is not a plain file")
        raw = stream.read(limit + 1)
    if len(raw) > limit:
        raise DataError(f"{path.name} of the model is longer than {limit} bytes")
    return raw


def _depth(value: Any) -> int:
    """Levels of nested lists and objects, counted without recursion and not beyond MAX_DEPTH + 1."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict | list):
                inner += item.values() if isinstance(item, dict) else item
        level = inner
        depth += 1
    return depth
