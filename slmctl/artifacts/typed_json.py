"""JSON files of artifacts that people may edit, read by type, with every fault at once."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from slmctl.artifacts import bounded_json
from slmctl.errors import IntegrityError

T = TypeVar("T")
SHOWN = 8  # faults named in one error


def read_typed(path: Path, kind: type[T], *, hint: str = "", schema: int | None = None) -> T:
    """Read a JSON object from a file as the dataclass `kind`.

    Args:
        hint: Remedy in the error for a file that is not valid.
        schema: The value of the key `schema` that this version reads, where the file has this key.

    Raises:
        IntegrityError: The file cannot be read, is not JSON, or has keys or values that do not fit
            `kind` (the first SHOWN are named).
    """
    try:
        raw = bounded_json.read_bytes(path, follow=True)
        fields = bounded_json.parse(raw, where=str(path))
    except FileNotFoundError:
        raise IntegrityError(f"{path} does not exist", hint=hint) from None
    except IntegrityError as failure:
        raise IntegrityError(failure.message, hint=hint) from None
    number = fields.get("schema", schema)
    if schema is not None and type(number) is int and number != schema:
        raise IntegrityError(
            f"{path} has schema {number}, and this slmctl reads {schema}", hint=hint
        )
    try:
        return TypeAdapter(kind).validate_json(raw)
    except ValidationError as failure:
        faults = [
            _sentence(fault["loc"], fault["msg"]) for fault in failure.errors(include_url=False)
        ]
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise IntegrityError(
            f"{path} is not valid: {'; '.join(faults[:SHOWN])}{more}", hint=hint
        ) from None


def _sentence(place: tuple[int | str, ...], message: str) -> str:
    where = ".".join(map(str, place))[:80]
    text = message[:1].lower() + message[1:160]
    return f"{where}: {text}" if where else text
