"""JSON answers -> a JSON Schema that all of them satisfy: keys, types, required keys, and enums of few values."""

from __future__ import annotations

from collections import Counter
from typing import Any

from slmctl.artifacts.bounded_json import JsonObject

MAX_CHOICES, LONGEST_CHOICE = 12, 40  # values of an enum, and characters of a value
ROWS_A_CHOICE = 8  # least number of rows for each value of an enum, so that the list is probably complete
MAX_KEYS = 60  # keys of an object; with more, the keys are treated as free names
_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array"}


class SchemaBuilder:
    """Collects values one by one, in memory that does not grow with their number."""

    def __init__(self) -> None:
        self.count = 0
        self._types: Counter[str] = Counter()
        self._texts: Counter[str] | None = Counter()
        self._objects = 0
        self._keys: dict[str, SchemaBuilder] | None = {}
        self._items: SchemaBuilder | None = None

    def add(self, value: Any) -> None:
        """Add a JSON value."""
        self.count += 1
        kind = "null" if value is None else _TYPES[type(value)]
        self._types[kind] += 1
        if isinstance(value, str):
            self._add_text(value)
        elif isinstance(value, dict):
            self._add_object(value)
        elif isinstance(value, list):
            self._items = self._items or SchemaBuilder()
            for item in value:
                self._items.add(item)

    def _add_text(self, text: str) -> None:
        if self._texts is not None:
            self._texts[text] += 1
            if len(self._texts) > MAX_CHOICES or len(text) > LONGEST_CHOICE:
                self._texts = None

    def _add_object(self, value: dict[str, Any]) -> None:
        self._objects += 1
        if self._keys is None:
            return
        for key, inner in value.items():
            self._keys.setdefault(key, SchemaBuilder()).add(inner)
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
            result["required"] = sorted(key for key, inner in self._keys.items() if inner.count == self._objects)
            result["additionalProperties"] = False
        if "array" in kinds and self._items is not None and self._items.count:
            result["items"] = self._items.schema()
        return result

    def _choices(self) -> list[str]:
        """The different texts, sorted, if they are few and frequent; else []."""
        if not self._texts or self._texts.total() < ROWS_A_CHOICE * len(self._texts) or len(self._texts) < 2:
            return []
        return sorted(self._texts)
