"""Marked places of a text -> the JSON answer that they make."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.task.documents import allows_null, holds, properties_of, resolved
from slmctl.task.evidence import Evidence, Span
from slmctl.task.field_habits import Habit, key_of, read
from slmctl.task.spans import Field, SpanMark, bared, fields_of

ABSENT = object()  # a property that is left out


@dataclass(frozen=True)
class FieldValue:
    """A value of an answer, with the place that it was read from; None
    for one that was concluded, or is null.
    """

    path: str
    value: Any
    logprob: float
    span: Span | None = None

    def by_letter(self) -> float:
        """The log probability by letter of its place, since a longer one has more words to fail."""
        start, end = self.span or (0, 1)
        return self.logprob / max(end - start, 1)


@dataclass(frozen=True)
class ReadAnswer:
    """An answer with its values; those of null and empty lists are among them."""

    answer: JsonObject
    values: tuple[FieldValue, ...]

    @property
    def text(self) -> str:
        """The JSON in the form of answers."""
        return json.dumps(self.answer, ensure_ascii=False, sort_keys=True)


@dataclass(frozen=True)
class Reader:
    """A schema with the habits of its fields; it reads the marks of a text as the answer."""

    schema: JsonObject
    fields: tuple[Field, ...]
    habits: tuple[Habit, ...]

    @classmethod
    def of(cls, schema: JsonObject, habits: Sequence[Habit]) -> Reader:
        """The reader of a schema; raises what `fields_of` raises."""
        return cls(resolved(schema), fields_of(schema), tuple(habits))

    @property
    def pairs(self) -> list[tuple[Field, Habit]]:
        """The fields with their habits."""
        return list(zip(self.fields, self.habits, strict=True))

    def values(
        self,
        text: str,
        marks: Iterable[SpanMark],
        concluded: Mapping[int, tuple[Any, float]],
        absent: Sequence[float],
    ) -> ReadAnswer:
        """The answer to a text.

        Args:
            marks: Places by field; several of a field outside of lists are alternatives, and the
                likeliest counts.
            concluded: Value and log probability of fields that the whole text decides, by index.
            absent: Log probability of each field that it has no place in the text.
        """
        evidence, pairs = Evidence(text), self.pairs
        by_field: dict[int, list[FieldValue]] = {}
        for mark in sorted(marks, key=lambda mark: mark.start):
            each, habit = pairs[mark.field]
            value, span = read(each, habit, evidence, mark.span)
            if value is not None:
                by_field.setdefault(mark.field, []).append(
                    FieldValue(each.path, value, mark.logprob, span)
                )
        for number, (value, logprob) in concluded.items():
            decided = FieldValue(self.fields[number].path, value, logprob)
            by_field[number] = [decided] if value is not None else []
        return _Answer(self, by_field, absent).read()


class _Answer:
    """An answer that is built along the schema."""

    def __init__(
        self, reader: Reader, by_field: Mapping[int, list[FieldValue]], absent: Sequence[float]
    ) -> None:
        self._reader = reader
        self._by_field = by_field
        self._absent = absent
        self._number = {each.path: k for k, each in enumerate(reader.fields)}
        self._values: list[FieldValue] = []

    def read(self) -> ReadAnswer:
        answer = self._built(self._reader.schema, "")
        return ReadAnswer(answer, tuple(self._values))

    def _built(self, schema: Any, path: str) -> Any:
        bare, nullable = bared(schema, path)
        if properties := properties_of(bare):
            kept = {}
            for name in sorted(properties):
                value = self._property(bare, name, f"{path}.{name}" if path else name)
                if value is not ABSENT:
                    kept[name] = value
            return None if nullable and not holds(kept) else kept
        if bare.get("type") == "array":
            number = self._number.get(f"{path}[]")
            return self._items(bare["items"], f"{path}[]") if number is None else self._list(number)
        return self._scalar(self._number[path], nullable)

    def _property(self, schema: JsonObject, name: str, path: str) -> Any:
        """The value of a property; ABSENT if it is missing and may be:
        training rows left it out, or null is none.
        """
        inner = schema["properties"][name]
        value = self._built(inner, path)
        if value not in (None, []) or name in schema.get("required", ()):
            return value
        if value is None and not allows_null(inner):
            return ABSENT
        below = (f"{path}.", f"{path}[]")
        numbers = [k for at, k in self._number.items() if at == path or at.startswith(below)]
        return ABSENT if all(self._reader.habits[k].left_out for k in numbers) else value

    def _scalar(self, number: int, nullable: bool) -> Any:
        each, habit = self._reader.fields[number], self._reader.habits[number]
        if candidates := self._by_field.get(number, []):
            best = max(candidates, key=FieldValue.by_letter)
            self._values.append(best)
            return best.value
        self._values.append(FieldValue(each.path, None, self._absent[number]))
        return habit.common if each.kind == "choice" and not nullable else None

    def _list(self, number: int) -> list[Any]:
        """The values of a list of scalars, each once, in the order of the text."""
        values: dict[str, FieldValue] = {}
        for value in self._by_field.get(number, []):
            values.setdefault(key_of(value.value), value)
        if not values:
            self._values.append(
                FieldValue(self._reader.fields[number].path, [], self._absent[number])
            )
        self._values += values.values()
        return [value.value for value in values.values()]

    def _items(self, schema: Any, path: str) -> list[Any]:
        """The objects of a list: a value begins an item where its field
        stands before those of the last one.
        """
        numbers = [k for place, k in self._number.items() if place.startswith(f"{path}.")]
        listed = [(value, k) for k in numbers for value in self._by_field.get(k, [])]
        items: list[dict[int, FieldValue]] = []
        last = math.inf
        for value, number in sorted(listed, key=lambda pair: pair[0].span or (0, 0)):
            place = self._reader.habits[number].place
            if place <= last or number in items[-1]:
                items.append({})
            items[-1][number] = value
            last = place
        if not items:
            self._values.append(FieldValue(path, [], min(self._absent[k] for k in numbers)))
        made = [self._item(schema, path, item) for item in items]
        whole = [item for item in made if item is not None]
        return list({key_of(item): item for item in whole}.values())

    def _item(self, schema: Any, path: str, item: Mapping[int, FieldValue]) -> Any:
        """An item; None if it lacks a text. A number or an enum
        that it lacks is the commonest one.
        """
        inner = _Answer(self._reader, {k: [value] for k, value in item.items()}, self._absent)
        built = inner._built(schema, path)
        for number, each in enumerate(self._reader.fields):
            name = each.path.removeprefix(f"{path}.")
            if name not in built or built[name] is not None or each.nullable:
                continue
            if each.kind in ("text", "date"):
                return None
            built[name] = self._reader.habits[number].common
        self._values += inner._values
        return built
