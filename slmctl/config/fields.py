"""Value types of config fields, and marks that say how a field enters a recipe."""

from __future__ import annotations

import datetime
import re
import types
import typing
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
)

from slmctl.config import quant_type

CONFIDENCE = 0.95


class Content:
    """Marks a path that enters a recipe by its content, not by its name."""


class Outside:
    """Marks a field that is not part of a recipe: it does not
    change the content of the artifact.
    """


class WhenSet:
    """Marks a field that enters a recipe only if it differs from its
    default, so that older recipe ids stay valid.
    """


class Inherited:
    """Marks a field that a section takes from the top of the file;
    it cannot be written in the section.
    """


def _as_text(value: object) -> object:
    """`version: 1.0` is the text `1.0` in a text field."""
    return getattr(value, "raw", value)


def _as_share(value: object) -> object:
    """`1%` means 0.01."""
    if isinstance(value, str) and (
        match := re.fullmatch(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*%\s*", value)
    ):
        return float(match[1]) / 100
    return value


_UNITS = {"": 1, "B": 1} | {
    f"{name}{ending}": (1024 if ending == "iB" else 1000) ** power
    for power, name in enumerate(("k", "M", "G", "T"), start=1)
    for ending in ("B", "iB")
}


def _as_bytes(value: object) -> object:
    """`3GiB` means 3 x 1024^3, `3GB` 3 x 10^9."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*([kKMGT]?i?B?)\s*", value)
        unit = (match[2] if match else "?").replace("K", "k")
        if match is None or unit not in _UNITS:
            raise ValueError(
                f"'{value[:40]}' is not a number of bytes such as 3GiB, 1500MB or 1500000000"
            )
        return int(float(match[1]) * _UNITS[unit])
    return value


def _is_quant_type(name: str) -> str:
    if not re.match(quant_type.PATTERN, name):
        raise ValueError(f"{name!r} is no quantization type of llama.cpp, such as Q8_0 or Q4_K_M")
    return name


def _is_moment(text: str) -> str:
    moment(text)
    return text


def moment(text: str) -> datetime.datetime:
    """Parse a date or time in ISO 8601; UTC if it has no time zone.

    Raises:
        ValueError: `text` is not ISO 8601.
    """
    try:
        value = datetime.datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(
            f"'{text[:40]}' is not a date or time such as 2026-05-01 or 2026-05-01T12:00:00Z"
        ) from None
    return value if value.tzinfo else value.replace(tzinfo=datetime.UTC)


def _as_url(text: str) -> str:
    urlsplit(text).port  # noqa: B018 - raises ValueError, here and not wherever the host is read
    return text


Text = Annotated[str, BeforeValidator(_as_text)]
Url = Annotated[Text, AfterValidator(_as_url)]
LocalPath = Annotated[Path, BeforeValidator(_as_text)]
SourcePath = Annotated[Path, BeforeValidator(_as_text), Content()]
Share = Annotated[
    float, BeforeValidator(_as_share, json_schema_input_type=float | str), Field(ge=0, lt=0.5)
]
Percent = Annotated[
    float, BeforeValidator(_as_share, json_schema_input_type=float | str), Field(ge=0, le=1)
]
Bytes = Annotated[
    int,
    BeforeValidator(_as_text),
    BeforeValidator(_as_bytes, json_schema_input_type=int | str),
    Field(gt=0),
]
Moment = Annotated[str, BeforeValidator(_as_text), AfterValidator(_is_moment)]
QuantTypeName = Annotated[
    str, AfterValidator(_is_quant_type), Field(json_schema_extra={"pattern": quant_type.PATTERN})
]


class Section(BaseModel):
    """A section of the config: unknown keys are faults, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def is_remote(base: str) -> bool:
    """True for a base of the package index or the hub, false for a path."""
    return base.startswith(("pypi:", "hf:"))


def bare_type(annotation: Any) -> Any:
    while typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    return annotation


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The section class in a field's type, directly, in a list or in a union; None without one."""
    annotation = bare_type(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (list, typing.Union, types.UnionType):
        return next(filter(None, map(section_in, typing.get_args(annotation))), None)
    return None


def named_section_in(annotation: Any) -> type[BaseModel] | None:
    """The section class in a field of the type `dict[str, SECTION]`, such
    as `serve.fleet`; None for other types.
    """
    annotation = bare_type(annotation)
    return (
        section_in(typing.get_args(annotation)[1])
        if typing.get_origin(annotation) is dict
        else None
    )


def marks(field: Any) -> list[Any]:
    """The marks of a field, and of the members of its union, such as `SourcePath | None`."""
    collected = list(field.metadata)
    for choice in typing.get_args(field.annotation):
        if typing.get_origin(choice) is Annotated:
            collected += typing.get_args(choice)[1:]
    return collected


def is_inherited(field: Any) -> bool:
    return any(isinstance(mark, Inherited) for mark in field.metadata)
