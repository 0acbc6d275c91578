"""The JSON Schema of `slmctl.yaml`, and the table of its keys."""

from __future__ import annotations

import itertools
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import (
    BaseModel,
)

from slmctl.config.fields import bare_type, is_inherited, named_section_in, section_in
from slmctl.config.prepare_section import Shares, Source
from slmctl.config.sections import Config
from slmctl.config.serve_section import Asking, Endpoint, MachinePrices, Prices

# Sections that occur in several places, with the place where `reference` shows their keys.
HOMES: dict[type[BaseModel], str] = {
    Source: "prepare.sources[]",
    Shares: "prepare.splits",
    Prices: "prices",
    MachinePrices: "prices",
    Endpoint: "serve.generalist",
    Asking: "label.teachers[]",
}


def schema() -> dict[str, Any]:
    """The JSON Schema of `slmctl.yaml`, for editors; without inherited keys."""
    document = Config.model_json_schema(by_alias=True)
    for model in _sections():
        for name, field in model.model_fields.items():
            if is_inherited(field):
                document["$defs"][model.__name__]["properties"].pop(name)
    document["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return document


def table() -> Iterator[tuple[str, str, str]]:
    """Every key of the config as (dotted name, default, help), in order."""
    yield from _table(Config, "", {})


def reference() -> Iterator[tuple[str, str, str]]:
    """`table` for docs/config.md: shows a section of several places once,
    and keys with equal help in one row.
    """
    rows = _table(Config, "", HOMES)
    for (_, help), alike in itertools.groupby(
        rows, key=lambda row: (row[0].rpartition(".")[0], row[2])
    ):
        names, defaults, _ = zip(*alike, strict=True)
        first, *others = names
        name = ", ".join([first, *(other.rpartition(".")[2] for other in others)])
        yield name, defaults[0] if len(set(defaults)) == 1 else ", ".join(defaults), help


def description(key: str) -> str:
    """The help of a key by its dotted name, such as `finetune.epochs`."""
    return next(text for name, _, text in table() if name == key)


def _table(
    model: type[BaseModel], prefix: str, homes: Mapping[type[BaseModel], str]
) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        if is_inherited(field):
            continue
        dotted = prefix + (field.alias or name)
        inner, named = section_in(field.annotation), named_section_in(field.annotation)
        # task.labels and answers of a source may be a text or a section
        plain = inner is None or isinstance(field.default, str) or _takes_a_word(field.annotation)
        if plain:
            default = (
                "required"
                if field.is_required()
                else str(field.get_default(call_default_factory=True))
            )
            yield (
                dotted,
                {"None": "", "True": "true"}.get(default, default),
                field.description or "",
            )
        if inner is not None:
            place = dotted + (
                "[]" if typing.get_origin(bare_type(field.annotation)) is list else ""
            )
            if homes.get(inner, place) != place:
                yield place, "", f"{field.description}; keys as {homes[inner]}"
            else:
                yield from _table(inner, place + ".", homes)
        if named is not None and named not in homes:
            yield from _table(named, f"{dotted}.NAME.", homes)


def _takes_a_word(annotation: Any) -> bool:
    """True for a union with a literal, such as `Literal["json"] | Section`."""
    return any(
        typing.get_origin(bare_type(choice)) is Literal for choice in typing.get_args(annotation)
    )


def _sections() -> Iterator[type[BaseModel]]:
    for field in Config.model_fields.values():
        inner = section_in(field.annotation)
        if inner is not None:
            yield inner
