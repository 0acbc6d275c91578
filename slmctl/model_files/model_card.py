"""License and languages in the front matter of a model card, read within bounds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MAX_FRONT_MATTER = 1 << 17  # bytes of the card's beginning that are read
MAX_DEPTH = 16  # of nested lists and mappings
# characters, entries, characters of an entry
MAX_LICENSE = 100
MAX_LANGUAGES = 256
MAX_CODE = 40


@dataclass(frozen=True)
class ModelCard:
    """The license that a card states, empty for none, and its language codes such as `en`."""

    license: str = ""
    languages: tuple[str, ...] = ()


def read(path: Path) -> ModelCard:
    """License and languages of a model card; empty without a card or readable front matter.

    The YAML may hold no aliases: a few of them stand for billions of values.
    """
    if not path.exists():
        return ModelCard()
    with path.open("rb") as stream:
        text = stream.read(MAX_FRONT_MATTER).decode(errors="replace")
    match = re.match(r"---\r?\n(.*?)\n---", text, re.DOTALL)
    fields = _load(match[1]) if match else None
    if not isinstance(fields, Mapping):
        return ModelCard()
    return ModelCard(license_of(fields.get("license")), languages_of(fields.get("language")))


def license_of(value: Any) -> str:
    """A license identifier as one line of printable text; empty for anything else."""
    text = value.strip() if isinstance(value, str) else ""
    return text if len(text) <= MAX_LICENSE and text.isprintable() else ""


def languages_of(value: Any) -> tuple[str, ...]:
    """Language codes of a text or a list of texts; other entries are left out."""
    entries = value[:MAX_LANGUAGES] if isinstance(value, list) else [value]
    return tuple(
        e for e in entries if isinstance(e, str) and 0 < len(e) <= MAX_CODE and e.isprintable()
    )


def _load(text: str) -> Any:
    """The value of a YAML document; None if it is malformed, has an
    alias or nests deeper than MAX_DEPTH.
    """
    depth = 0
    try:
        # one by one, before anything is built of them
        for event in yaml.parse(text, Loader=yaml.BaseLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > MAX_DEPTH:
                return None
        # BaseLoader makes texts of all scalars: `no` stays Norwegian, and a date cannot be out of
        # range
        return yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - it constructs texts, lists and dicts only
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
