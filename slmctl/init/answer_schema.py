"""JSON answers -> a JSON Schema that all of them satisfy: keys, types,
required keys, and enums of few words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from slmctl.artifacts.bounded_json import JsonObject

MAX_CHOICES, LONGEST_CHOICE = 12, 40  # values of an enum, and characters of a value
# least number of rows for each value of an enum, so that the list is probably complete
ROWS_A_CHOICE = 8
# of the rows may have a value that no other row has; about as many new rows have a new one
MOST_ONCE = 0.02
# least share of the rows in which the text holds the value, for values that are read from it
STANDING = 0.5
LEGAL_FORM = re.compile(  # of a company, at the end of its name
    r"\S (GmbH|mbH|AG|KG|KGaA|OHG|UG|SE|e\.? "
    r"?[KV]|Ltd|Limited|LLC|LLP|Inc|Corp|Co|PLC|plc|S\.?A\.?S?|SARL|S\.?r\.?l"
    r"|S\.?p\.?A|S\.?L|B\.?V|N\.?V|A/S|ApS|AB|AS|Oy|Kft|s\.r\.o|sp\. z o\.o)\.?$"
)
MAX_KEYS = 60  # keys of an object; with more, the keys are treated as free names
_TYPES = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    dict: "object",
    list: "array",
}


class SchemaBuilder:
    """Collects values one by one, in memory that does not grow with their number."""

    def __init__(self) -> None:
        self.count = self._standing = 0
        self._types: Counter[str] = Counter()
        self._texts: Counter[str] | None = Counter()
        self._objects = 0
        self._keys: dict[str, SchemaBuilder] | None = {}
        self._items: SchemaBuilder | None = None

    def add(self, value: Any, text: str = "") -> None:
        """Add a JSON value, and the text that it is the answer to."""
        self.count += 1
        kind = "null" if value is None else _TYPES[type(value)]
        self._types[kind] += 1
        if isinstance(value, str):
            self._add_text(value, text)
        elif isinstance(value, dict):
            self._add_object(value, text)
        elif isinstance(value, list):
            self._items = self._items or SchemaBuilder()
            for item in value:
                self._items.add(item, text)

    def _add_text(self, value: str, text: str) -> None:
        if self._texts is not None:
            self._texts[value] += 1
            self._standing += value in text
            if len(self._texts) > MAX_CHOICES or len(value) > LONGEST_CHOICE:
                self._texts = None

    def _add_object(self, value: dict[str, Any], text: str) -> None:
        self._objects += 1
        if self._keys is None:
            return
        for key, inner in value.items():
            self._keys.setdefault(key, SchemaBuilder()).add(inner, text)
        if len(self._keys) > MAX_KEYS:
            self._keys = None

    def schema(self) -> JsonObject:
        """The schema of all values so far; {}, which allows anything, without a value."""
        kinds = sorted(self._types)
        if "number" in kinds and "integer" in kinds:
            kinds.remove("integer")
        if not kinds:
            return {}
        result: JsonObject = {"type": kinds[0] if len(kinds) == 1 else kinds}
        if choices := self._choices():
            if kinds == ["string"]:
                result["enum"] = choices
            elif kinds == ["null", "string"]:
                result["enum"] = [*choices, None]
        if "object" in kinds and self._keys is not None:
            result["properties"] = {key: self._keys[key].schema() for key in sorted(self._keys)}
            result["required"] = sorted(
                key for key, inner in self._keys.items() if inner.count == self._objects
            )
            result["additionalProperties"] = False
        if "array" in kinds and self._items is not None and self._items.count:
            result["items"] = self._items.schema()
        return result

    def _choices(self) -> list[str]:
        """The different texts, sorted, if they are few, recur, and are no
        names that stand in the texts; else [].
        """
        texts = self._texts or Counter()
        total, once = texts.total(), sum(rows == 1 for rows in texts.values())
        is_complete = total >= ROWS_A_CHOICE * len(texts) and once <= MOST_ONCE * total
        if (
            len(texts) < 2
            or not is_complete
            or (self._standing >= STANDING * total and are_names(texts))
        ):
            return []
        return sorted(texts)


def are_names(values: Mapping[str, int]) -> bool:
    """True for values like names: one has a legal form, or most have
    several capitalised words of their own.
    """
    words = [value.split() for value in values]
    shared = set(words[0]).intersection(*words)
    capital = [sum(word[:1].isupper() for word in set(each) - shared) for each in words]
    return any(map(LEGAL_FORM.search, values)) or 2 * sum(number > 1 for number in capital) > len(
        words
    )


def closed_lists(schema: JsonObject, path: str = "") -> Iterator[tuple[str, list[str]]]:
    """(path of a field, its values) of every enum in a schema."""
    if "enum" in schema:
        yield path or "the answer", [value for value in schema["enum"] if value is not None]
    for key, inner in schema.get("properties", {}).items():
        yield from closed_lists(inner, f"{path}.{key}" if path else key)
    if "items" in schema:
        yield from closed_lists(schema["items"], f"{path}[]")
