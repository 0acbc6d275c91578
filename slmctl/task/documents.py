"""Documents longer than a prompt: the windows of a text, and the training records that windows
make.

A form feed stands between two pages, as `pdftotext` writes it: the page of a character follows from
the text alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.errors import DataError
from slmctl.task.evidence import Evidence, Span
from slmctl.task.records import Message, Record

PAGE = "\f"
MAX_DEPTH = 40  # of a schema
PLAIN_SCHEMA = "write the schema without references"
SMALLER = "a smaller task.document.window, or a shorter task.system"
# Places where a text may be cut, the best one first.
_BREAKS = tuple(
    map(re.compile, (r"\n[^\S\n]*\n\s*|\f\s*", r"\n\s*", r"[.!?;:]\s+|[。！？；]\s*", r"\s+"))
)
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class WindowForm:
    """The size of a window and the least that two windows share, in characters."""

    size: int
    overlap: int


class DocumentTask(Protocol):
    """The parts of a task contract that windows follow from; see `contract.Task`."""

    @property
    def document(self) -> WindowForm | None: ...
    @property
    def schema(self) -> JsonObject | None: ...
    @property
    def is_object(self) -> bool: ...


@dataclass(frozen=True)
class Window:
    """A part of a document.

    Attributes:
        start, end: Its place in the text, in characters.
        title: The line in front of it that says its place; empty for a document of one window.
        body: The text in it.
    """

    start: int
    end: int
    title: str
    body: str

    @property
    def text(self) -> str:
        """The text as a model is asked."""
        return self.title + self.body


def windows(text: str, form: WindowForm) -> list[Window]:
    """The windows of a text in order, which together hold every word of it.

    They end at a paragraph or page where there is one in their second half, else at a line, a
    sentence or a word. Text without spaces is cut between characters.
    """
    if len(text) <= form.size:
        return [Window(0, len(text), "", text.replace(PAGE, "\n"))]
    spans = list(_spans(text, form))
    breaks = page_breaks(text)
    made = []
    for number, (start, end) in enumerate(spans, 1):
        place = f"part {number} of {len(spans)}"
        if breaks:
            place = f"page {page_of(breaks, start)} of {len(breaks) + 1}"
        body = text[start:end].replace(PAGE, "\n").rstrip()
        made.append(Window(start, end, f"[{place}]\n", body))
    return made


def _spans(text: str, form: WindowForm) -> Iterator[Span]:
    start, length = _after_space(text, 0), len(text.rstrip())
    while length - start > form.size:
        limit = start + form.size
        end = _last_break(text, limit - form.size // 2, limit)
        yield start, end
        low = max(end - 3 * form.overlap, start + 1)
        high = max(end - form.overlap, start + 1)
        start = _last_break(text, low, high)
    yield start, length


def _last_break(text: str, low: int, high: int) -> int:
    """The end of the last break of the best kind that there is between two places; else `high`."""
    for pattern in _BREAKS:
        ends = [match.end() for match in pattern.finditer(text, low, high)]
        if ends:
            return ends[-1]
    return high


def _after_space(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    assert match is not None
    return match.end()


def page_breaks(text: str) -> list[int]:
    """The places of the page breaks of a text."""
    return [place for place, sign in enumerate(text) if sign == PAGE]


def page_of(breaks: Sequence[int], place: int) -> int:
    """The page of a place, from 1; `breaks` are those of `page_breaks`."""
    return bisect_right(breaks, place) + 1


# Training


def training(records: Iterable[Record], task: DocumentTask) -> list[Record]:
    """The records with those of several windows in their windows: what a model learns of them.

    A label is that of each window, and the windows of a document share one weight. An object holds
    the values that stand in the window and null for the others, but one of a closed list that
    stands nowhere (true, false, an `enum`) is that of each window, as a label is. Of windows in
    which no value stands there are at most as many as of others, drawn by a hash.
    """
    if (form := task.document) is None:
        return list(records)
    made: list[Record] = []
    for record in records:
        parts = windows(record.messages[-2]["content"], form)
        if len(parts) == 1:
            made.append(_asked(record, parts[0], record.answer, 1.0))
        elif task.is_object:
            made += _restricted(record, parts, resolved(task.schema or {}))
        else:
            made += [_asked(record, part, record.answer, 1 / len(parts)) for part in parts]
    return made


def _asked(record: Record, part: Window, answer: str, share: float) -> Record:
    question: Message = {**record.messages[-2], "content": part.text}
    reply: Message = {**record.messages[-1], "content": answer}
    if share != 1:
        reply["weight"] = round(share * reply.get("weight", 1), 6)
    return dataclasses.replace(record, messages=(*record.messages[:-2], question, reply))


def _restricted(record: Record, parts: Sequence[Window], schema: JsonObject) -> Iterator[Record]:
    evidence, answer = Evidence(record.messages[-2]["content"]), json.loads(record.answer)
    targets = [restricted(answer, schema, evidence, (part.start, part.end)) for part in parts]
    everywhere = restricted(answer, schema, evidence, (0, 0))
    holding = [k for k, target in enumerate(targets) if target != everywhere]
    without = set(range(len(parts))) - set(holding)
    empty = sorted(without, key=lambda k: _drawn(record, k))[: max(1, len(holding))]
    for k in sorted([*holding, *empty]):
        target = json.dumps(targets[k], ensure_ascii=False, sort_keys=True)
        yield _asked(record, parts[k], target, 1.0)


def _drawn(record: Record, number: int) -> bytes:
    return hashlib.sha256(f"window/{record.id}/{number}".encode()).digest()


def restricted(value: Any, schema: Any, evidence: Evidence, window: Span) -> Any:
    """The parts of a value that stand in a window; null in place of other scalars, and no other
    items of a list.

    A scalar of a closed list that stands nowhere in the text is kept in each window.
    """
    properties = properties_of(schema)
    if value is None and properties and not allows_null(schema):
        value = {}
    if value is None and isinstance(schema, dict) and schema.get("type") == "array":
        value = []
    if isinstance(value, dict):
        keys = sorted({*value, *properties})
        parts = {
            key: restricted(value.get(key), properties.get(key, {}), evidence, window)
            for key in keys
        }
        parts = {key: part for key, part in parts.items() if key in properties or part is not None}
        return parts if holds(parts) or not allows_null(schema) else None
    if isinstance(value, list):
        return [item for item in value if _stands(item, evidence, window)]
    stands = evidence.within(value, window) or (
        is_closed(value, schema) and not evidence.spans(value)
    )
    return value if stands else None


def is_closed(value: Any, schema: Any) -> bool:
    """True for a scalar of which the schema lists all values, so
    that a text need not hold its words.
    """
    return isinstance(value, bool) or (
        isinstance(schema, dict) and bool({"enum", "const"} & schema.keys())
    )


def _stands(item: Any, evidence: Evidence, window: Span) -> bool:
    """True for an item of which each scalar that stands in the text stands in the window."""
    standing = [leaf for _, leaf in scalars(item) if evidence.spans(leaf)]
    return bool(standing) and all(evidence.within(leaf, window) for leaf in standing)


def holds(value: Any) -> bool:
    """True for a value with anything but nulls in it."""
    return any(leaf is not None for _, leaf in scalars(value))


def scalars(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The scalars of a JSON value, each with its path such as `items[].name`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from scalars(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for inner in value:
            yield from scalars(inner, f"{path}[]")
    else:
        yield path or "$", value


def standing(records: Iterable[Record], schema: JsonObject) -> dict[str, list[int]]:
    """Counts, by field, of the values in reference answers, and of
    those that windows teach, see `training`.
    """
    counts: dict[str, list[int]] = {}
    schema = resolved(schema)
    for record in records:
        evidence, answer = Evidence(record.messages[-2]["content"]), json.loads(record.answer)
        everywhere = list(scalars(restricted(answer, schema, evidence, (0, 0))))
        for path, leaf in scalars(answer):
            if leaf is not None:
                count = counts.setdefault(path, [0, 0])
                count[0] += 1
                count[1] += bool(evidence.spans(leaf)) or (path, leaf) in everywhere
    return dict(sorted(counts.items()))


# Schemas


def resolved(schema: Any, root: JsonObject | None = None, depth: int = 0) -> Any:
    """A schema with what its local references name in their place, as pydantic writes them for
    nested models.

    Raises:
        DataError: A reference is of another form, or part of itself.
    """
    root = schema if root is None else root
    if depth > MAX_DEPTH:
        raise DataError(
            "the schema refers to itself, and a document in windows has no end then",
            hint=PLAIN_SCHEMA,
        )
    if isinstance(schema, list):
        return [resolved(each, root, depth + 1) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        target: Any = root
        for name in str(schema["$ref"]).removeprefix("#/").split("/"):
            target = target.get(name) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            raise DataError(
                f"the schema has a reference that is not local: {schema['$ref']}", hint=PLAIN_SCHEMA
            )
        return resolved(
            target | {key: each for key, each in schema.items() if key != "$ref"}, root, depth + 1
        )
    return {key: resolved(each, root, depth + 1) for key, each in schema.items() if key != "$defs"}


def properties_of(schema: Any) -> JsonObject:
    """The properties of an object's schema; none of any other schema."""
    properties = schema.get("properties") if isinstance(schema, dict) else None
    return properties if isinstance(properties, dict) else {}


def window_schema(schema: Any) -> Any:
    """The schema of a window's answer: each property is there, and
    may be null; a list may be empty.
    """
    if not isinstance(schema, dict):
        return schema
    schema = {
        key: value
        for key, value in schema.items()
        if key not in ("minItems", "uniqueItems", "contains")
    }
    if properties := properties_of(schema):
        schema["properties"] = {
            key: nullable(window_schema(value)) for key, value in properties.items()
        }
        schema["required"] = sorted(properties)
    return schema


def nullable(schema: Any) -> Any:
    """A schema of a scalar that takes null too; an object or a
    list is empty where nothing is known.
    """
    kinds = schema.get("type") if isinstance(schema, dict) else None
    if allows_null(schema) or properties_of(schema) or kinds in ("object", "array"):
        return schema
    if isinstance(kinds, str | list) and not {"enum", "const"} & schema.keys():
        return {**schema, "type": [*([kinds] if isinstance(kinds, str) else kinds), "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def allows_null(schema: Any) -> bool:
    """True for a schema that plainly takes null."""
    if not isinstance(schema, dict):
        return schema is not False
    if "anyOf" in schema:
        return any(map(allows_null, schema["anyOf"]))
    if "enum" in schema:
        return None in schema["enum"]
    kinds = schema.get("type", "null" if not schema else "")
    return kinds == "null" or (isinstance(kinds, list) and "null" in kinds)
