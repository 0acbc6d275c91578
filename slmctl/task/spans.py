"""A JSON Schema and a row -> the places of each field's values in the
text, for a model that tags words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.errors import DataError
from slmctl.task.documents import properties_of, resolved
from slmctl.task.evidence import Evidence, Span

FieldKind: TypeAlias = Literal["text", "number", "integer", "date", "choice"]
NAMED = "a schema of named fields: texts, numbers, dates, enums, and lists of these"
ARTICLES = frozenset(
    ["a", "an", "ein", "eine", "einen", "einem", "einer", "eines", "un", "une", "una"]
)
_COUNTED = (  # the first twelve numbers in English, German, French, Spanish and Italian
    "one eins uno",
    "two zwei deux dos due",
    "three drei trois tres tre",
    "four vier quatre cuatro quattro",
    "five fünf cinq cinco cinque",
    "six sechs seis sei",
    "seven sieben sept siete sette",
    "eight acht huit ocho otto",
    "nine neun neuf nueve nove",
    "ten zehn dix diez dieci",
    "eleven elf onze once undici",
    "twelve zwölf douze doce dodici",
)
COUNTS = {word: number for number, words in enumerate(_COUNTED, 1) for word in words.split()}
COUNTS |= dict.fromkeys(ARTICLES, 1)
FAR = 1e6  # characters: a gap that no two places have
_LETTERS = re.compile(r"[^\W\d_]+")
_ISO_DATES = ("2024-05-03", "2024-05")


@dataclass(frozen=True)
class Field:
    """A scalar of a schema.

    Attributes:
        path: Such as `supplier`, `items[].name` or `parts[]`.
        nullable: It may be null.
        choices: The values of an enum or a boolean.
        pattern: The regular expression of a text; empty for any.
    """

    path: str
    kind: FieldKind
    nullable: bool = False
    choices: tuple[Any, ...] = ()
    pattern: str = ""

    @property
    def listed(self) -> bool:
        """True for a field of a list."""
        return "[]" in self.path

    @property
    def group(self) -> str:
        """The path of the list of objects that it is part of; empty for any other field."""
        return self.path.partition("[].")[0] if "[]." in self.path else ""

    @property
    def is_number(self) -> bool:
        return self.kind in ("number", "integer")


@dataclass(frozen=True)
class SpanMark:
    """A place in a text that belongs to a field, by its index; the log
    probability is of a model that marked it.
    """

    field: int
    start: int
    end: int
    logprob: float = 0.0

    @property
    def span(self) -> Span:
        return self.start, self.end


@dataclass(frozen=True)
class Targets:
    """The places to learn of a row.

    Attributes:
        marks: In the order of the text; none overlaps another one.
        missing: The path of each value without a place.
    """

    marks: tuple[SpanMark, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Leaf:
    """A scalar of an answer, with the number of its item in a list; -1 outside of lists."""

    path: str
    item: int
    value: Any


# Schemas


def fields_of(schema: JsonObject) -> tuple[Field, ...]:
    """The fields of a schema.

    Raises:
        DataError: It has a part that cannot be tagged; the message says why.
    """
    whole = resolved(schema)
    if not properties_of(whole):
        raise DataError("the schema names no field", hint=NAMED)
    return tuple(_fields(whole, ""))


def _fields(schema: Any, path: str) -> Iterator[Field]:
    bare, nullable = bared(schema, path)
    if properties := properties_of(bare):
        for name, inner in properties.items():
            if "." in name or "[]" in name:
                raise DataError(f"the name '{name}' reads as a path", hint=NAMED)
            yield from _fields(inner, f"{path}.{name}" if path else name)
    elif bare.get("type") == "array":
        if "[]" in path:
            raise DataError(f"'{path}' is a list in a list", hint=NAMED)
        yield from _fields(bare.get("items", {}), f"{path}[]")
    else:
        yield _scalar(bare, path, nullable)


def bared(schema: Any, path: str) -> tuple[JsonObject, bool]:
    """Returns (a schema of one form without null, True if it takes null).

    Raises:
        DataError: It has several forms.
    """
    if not isinstance(schema, dict):
        raise DataError(f"'{path}' may be anything", hint=NAMED)
    for key in ("anyOf", "oneOf", "allOf"):
        if key not in schema:
            continue
        forms = [form for form in schema[key] if form != {"type": "null"}]
        if len(forms) != 1:
            raise DataError(f"'{path}' has {len(forms)} forms", hint=NAMED)
        bare, nullable = bared(forms[0], path)
        return bare, nullable or len(forms) < len(schema[key])
    kinds = schema.get("type")
    listed = kinds if isinstance(kinds, list) else [kinds]
    others = [kind for kind in listed if kind != "null"]
    if set(others) == {"integer", "number"}:
        others = ["number"]
    if len(others) != 1:
        raise DataError(f"'{path}' may be of {len(others)} types", hint=NAMED)
    nullable = "null" in listed or None in schema.get("enum", ())
    return {**schema, "type": others[0]}, nullable


def _scalar(schema: JsonObject, path: str, nullable: bool) -> Field:
    kind, choices = schema["type"], [value for value in schema.get("enum", ()) if value is not None]
    if "const" in schema:
        choices = [schema["const"]]
    if choices or kind == "boolean":
        return Field(path, "choice", nullable, tuple(choices or (True, False)))
    if kind in ("number", "integer"):
        return Field(path, kind, nullable)
    if kind != "string":
        form = "an object without named fields" if kind == "object" else "of no type"
        raise DataError(f"'{path}' is {form}", hint=NAMED)
    pattern = str(schema.get("pattern", ""))
    if schema.get("format") == "date" or _is_of_dates(pattern):
        return Field(path, "date", nullable)
    return Field(path, "text", nullable, pattern=pattern)


def _is_of_dates(pattern: str) -> bool:
    """True for a pattern of ISO dates or months alone."""
    return (
        bool(pattern)
        and any(fits(pattern, text) for text in _ISO_DATES)
        and not fits(pattern, "a word")
    )


def fits(pattern: str, text: str) -> bool:
    """True for a text that a pattern of a schema allows, or a pattern that is none of Python's."""
    try:
        return bool(re.search(pattern, text))
    except re.error:
        return True


# Places


def leaves(value: Any, path: str = "", item: int = -1) -> Iterator[Leaf]:
    """The scalars of an answer but for null, in its order."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else key, item)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{path}[]", number)
    elif value is not None:
        yield Leaf(path, item, value)


Places = dict[Leaf, list[Span]]


@dataclass(frozen=True)
class _Claim:
    """A place that a field claims, with the number of places that its value has."""

    field: int
    span: Span
    places: int

    @property
    def order(self) -> tuple[int, int, int]:
        """Longer places come first, then those of values with fewer places, then earlier fields."""
        return self.span[0] - self.span[1], self.places, self.field


def targets(fields: Sequence[Field], text: str, answer: Any) -> Targets:
    """The places of an answer's values.

    A value that stands several times has all its places; one in a list of objects has the place
    that is nearest to the other values of its item. Where fields claim one place, or parts of it,
    the longest claim wins, then the value with the fewest places, then the field that the schema
    names first.
    """
    number = {field.path: k for k, field in enumerate(fields)}
    listed = [leaf for leaf in leaves(answer) if leaf.path in number]
    evidence, places = Evidence(text), dict[Leaf, list[Span]]()
    for leaf in listed:
        if leaf not in places:
            places[leaf] = places_of(fields[number[leaf.path]], leaf.value, evidence)
    items: dict[str, dict[int, Places]] = {}
    for leaf in listed:
        if group := fields[number[leaf.path]].group:
            items.setdefault(group, {}).setdefault(leaf.item, {})[leaf] = places[leaf]
    for of_group in items.values():
        for arranged in _together(list(of_group.values())):
            places |= arranged
    claims = []
    for leaf, spans in places.items():
        claims += [_Claim(number[leaf.path], span, len(spans)) for span in spans]
    marks = _without_overlap(claims)
    held = {(mark.field, mark.span) for mark in marks}

    def stands(leaf: Leaf) -> bool:
        """True for a value that has kept a place."""
        return any((number[leaf.path], span) in held for span in places[leaf])

    missing = [leaf.path for leaf in listed if not stands(leaf)]
    return Targets(tuple(marks), tuple(missing))


def places_of(field: Field, value: Any, evidence: Evidence) -> list[Span]:
    """The places of a value; a small number may stand in words,
    and words may have another ending.
    """
    spans = evidence.spans(value)
    if field.is_number and (field.group or not spans):
        return sorted({*spans, *_counted(field, value, evidence.text)})
    if spans:
        return spans
    if isinstance(value, str) and field.kind != "date":
        return evidence.spans(value.replace("_", " ")) or evidence.inflected(value)
    return []


def _counted(field: Field, value: float, text: str) -> Iterator[Span]:
    """The places of a small number in words; an article is one in a
    list of objects, and within a sentence.
    """
    for match in _LETTERS.finditer(text):
        word = match.group().casefold()
        may_count = word not in ARTICLES or (field.group and match.group() == word)
        if may_count and COUNTS.get(word) == value:
            yield match.span()


def _together(items: Sequence[Places]) -> Iterator[Places]:
    """The places of each item's values nearest to its longest value: on one side in all items, if
    that is possible.

    The other side of a value is that of its neighbour: of `2 x oil can, two jugs` the first number
    is that of the can.
    """
    sides = [
        [_arranged(item, side) for item in items] for side in (_gap_before, _gap_after, distance)
    ]
    costs = [sum(cost for cost, _ in side) for side in sides]
    best = min((0, 1), key=lambda k: costs[k])
    chosen = sides[best if costs[best] < FAR else 2]
    yield from (places for _, places in chosen)


def _arranged(item: Places, gap: Callable[[Span, Span], float]) -> tuple[float, Places]:
    """Returns (the sum of gaps, the places) of an item's values."""
    standing = [leaf for leaf in item if item[leaf]]
    if len(standing) < 2:
        return 0, item
    anchor = max(standing, key=lambda leaf: len(str(leaf.value)))
    others = [leaf for leaf in standing if leaf is not anchor]

    def cost(anchored: Span) -> float:
        return sum(min(gap(span, anchored) for span in item[leaf]) for leaf in others)

    best = min(item[anchor], key=cost)
    nearest = {leaf: [min(item[leaf], key=lambda span: gap(span, best))] for leaf in others}
    return cost(best), {**{leaf: [] for leaf in item}, anchor: [best], **nearest}


def _gap_before(span: Span, anchored: Span) -> float:
    return anchored[0] - span[1] if span[1] <= anchored[0] else FAR


def _gap_after(span: Span, anchored: Span) -> float:
    return span[0] - anchored[1] if anchored[1] <= span[0] else FAR


def distance(span: Span, other: Span) -> int:
    """The characters between two places; 0 for places that touch or overlap."""
    return max(span[0] - other[1], other[0] - span[1], 0)


def _without_overlap(claims: Iterable[_Claim]) -> list[SpanMark]:
    kept: list[SpanMark] = []
    for claim in sorted(claims, key=lambda claim: claim.order):
        start, end = claim.span
        if all(end <= mark.start or mark.end <= start for mark in kept):
            kept.append(SpanMark(claim.field, start, end))
    return sorted(kept, key=lambda mark: mark.start)
