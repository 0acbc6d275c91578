"""JSON Schemas of clients: values checked against them in bounded time, and the place of a label in one."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import referencing
from jsonschema import Draft202012Validator, validators
from jsonschema.exceptions import UnknownType
from referencing.exceptions import Unresolvable

from slmctl.artifacts.bounded_json import JsonObject

MAX_STEPS = 100_000  # keywords of a client's own schema that are applied to one answer: about a second
NAMED_LABELS = 3  # that do not fit, in the reason of a refusal
MAX_PROPERTIES = 100  # of a schema that a label is put into
# Keywords that hold no condition on a value.
NOTES = frozenset({"title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated"})


class EndlessError(Exception):
    """A schema takes too long to apply."""


def satisfies(schema: str, text: str) -> bool:
    """True where an answer satisfies a client's own schema, as far as that takes a bounded time.

    Regular expressions are left to the engine: matching one can take for ever. References lead nowhere else.
    """
    check = _Check(json.loads(schema), schema)
    try:
        return check.takes(json.loads(text))
    except (ValueError, EndlessError):
        return False  # no JSON, or a schema without an end


class _Check:
    """A schema that is applied to values, within MAX_STEPS keywords for all of them together."""

    def __init__(self, form: JsonObject, written: str) -> None:
        self.form, self.left = form, MAX_STEPS
        named = ("patternProperties", "additionalProperties", "unevaluatedProperties")  # properties by expressions
        skipped = {"pattern", *(named if '"patternProperties"' in written else ())}
        keywords = Draft202012Validator.VALIDATORS
        self._check = validators.extend(  # type: ignore[no-untyped-call]
            Draft202012Validator,
            {name: self._bounded((lambda *_: ()) if name in skipped else apply) for name, apply in keywords.items()},
        )

    def takes(self, value: Any) -> bool:
        """True for a value that satisfies the schema.

        Raises:
            EndlessError: All steps are used up.
        """
        try:
            return not any(self._check(self.form, registry=referencing.Registry()).iter_errors(value))
        except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError):
            return False  # a schema that means nothing
        except (UnknownType, Unresolvable):
            return False

    def _bounded(self, apply: Callable[..., Any]) -> Callable[..., Any]:
        def applied(*args: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise EndlessError
            return apply(*args) or ()

        return applied


@functools.lru_cache(maxsize=64)
def label_property(schema: str, labels: tuple[str, ...]) -> tuple[str, str]:
    """The property of a client's schema that a label goes into; or why there is none.

    An object with that property alone satisfies the whole schema for every label, and no other property holds a text.

    Args:
        schema: The schema, as JSON.
        labels: Those of the task.

    Returns:
        The property, and an empty text; or an empty text, and the reason.
    """
    form = json.loads(schema)
    properties = form.get("properties")
    if not isinstance(properties, dict) or len(properties) > MAX_PROPERTIES:
        return "", f"its schema must be an object with a property for the label, and at most {MAX_PROPERTIES} of them"
    if '"pattern"' in schema or '"patternProperties"' in schema:
        return "", "a label is not compared with a pattern"
    texts = [name for name, part in properties.items() if _holds_text(part, form)]
    if len(texts) != 1:
        listed = ", ".join(f"'{name[:40]}'" for name in texts[:5])
        return "", f"its schema must have one string or enum property, and has {listed or 'none'}"
    check, name = _Check(form, schema), texts[0]
    try:
        others = [label for label in labels if not check.takes({name: label})]
    except EndlessError:
        return "", "its schema takes too long to apply"
    if others:
        return "", f"{_some(others)} of the task's labels {'does' if len(others) == 1 else 'do'} not fit '{name[:40]}'"
    return name, ""


def is_task_schema(schema: JsonObject, own: JsonObject) -> bool:
    """True where a client's schema holds the same conditions as the task's own, whatever its titles are."""
    try:
        return bool(_conditions(schema) == _conditions(own))
    except RecursionError:
        return False


def _some(labels: list[str]) -> str:
    listed = ", ".join(f"'{label[:40]}'" for label in labels[:NAMED_LABELS])
    more = len(labels) - NAMED_LABELS
    return f"{listed} and {more} more" if more > 0 else listed


def _holds_text(part: Any, form: JsonObject) -> bool:
    """True for the schema of a property that asks for a string, or for one of several.

    References lead to the definitions of the client's schema alone; each schema is looked at once.
    """
    waiting, seen = [part], set[int]()
    while waiting:
        schema = waiting.pop()
        if not isinstance(schema, dict) or id(schema) in seen:
            continue
        seen.add(id(schema))
        if _asks_text(schema):
            return True
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference.startswith(("#/$defs/", "#/definitions/")):
            _, place, name = reference.split("/", 2)
            definitions = form.get(place)
            waiting.append(definitions.get(name) if isinstance(definitions, dict) else None)
        for keyword in ("anyOf", "oneOf", "allOf"):
            waiting += schema[keyword] if isinstance(schema.get(keyword), list) else []
    return False


def _asks_text(part: JsonObject) -> bool:
    kind, values = part.get("type"), part.get("enum", [part.get("const")])
    strings = isinstance(values, list) and any(isinstance(value, str) for value in values)
    return strings or kind == "string" or (isinstance(kind, list) and "string" in kind)


def _conditions(schema: Any) -> Any:
    """A schema without its notes, and with the names that an object must have in one order."""
    if isinstance(schema, list):
        return [_conditions(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept: JsonObject = {}
    for name, value in schema.items():
        if name in ("properties", "$defs", "definitions") and isinstance(value, dict):
            kept[name] = {key: _conditions(part) for key, part in value.items()}
        elif name == "required" and isinstance(value, list):
            kept[name] = sorted(value, key=str)
        elif name not in NOTES:
            kept[name] = value if name in ("enum", "const") else _conditions(value)
    return kept
