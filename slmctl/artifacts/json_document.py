"""Reads the JSON files that artifacts carry and people may write, and tells every fault of one at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from slmctl.errors import IntegrityError

LARGEST = 64 << 20  # bytes
SHOWN = 8  # faults


def read_object(path: Path, kind: type, *, hint: str = "", schema: int | None = None) -> dict[str, Any]:
    """The object in a JSON file, whose keys and values have the types of the dataclass `kind`.

    Args:
        schema: The number under `schema` that this version reads, where the file has one.

    Raises:
        IntegrityError: The file cannot be read, is no JSON, or has keys or values that `kind` has not; all are named.
    """
    try:
        if path.stat().st_size > LARGEST or not path.is_file():
            raise IntegrityError(f"{path} is no file of at most {LARGEST >> 20} MB", hint=hint)
        raw = path.read_bytes()
        fields = json.loads(raw)
        number = fields.get("schema", schema) if isinstance(fields, dict) else schema
        if schema is not None and type(number) is int and number != schema:
            raise IntegrityError(f"{path} has schema {number}, and this slmctl reads {schema}", hint=hint)
        TypeAdapter(kind).validate_json(raw)
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error.strerror or error}", hint=hint) from None
    except ValidationError as error:
        faults = [_sentence(fault["loc"], fault["msg"]) for fault in error.errors(include_url=False)]
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise IntegrityError(f"{path} is not valid: {'; '.join(faults[:SHOWN])}{more}", hint=hint) from None
    except (ValueError, RecursionError) as error:
        text = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise IntegrityError(f"{path} is not valid JSON: {text}", hint=hint) from None
    assert isinstance(fields, dict)
    return fields


def _sentence(place: tuple[int | str, ...], message: str) -> str:
    where = ".".join(map(str, place))[:80]
    text = message[:1].lower() + message[1:160]
    return f"{where}: {text}" if where else text
