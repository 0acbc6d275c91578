"""The form that a client asks answers in: a JSON Schema, choices, a function's arguments, or a
place for a label.

Values are checked against a client's schema in bounded time.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import referencing
from jsonschema import Draft202012Validator, validators
from jsonschema.exceptions import UnknownType
from referencing.exceptions import Unresolvable

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.server.forms.options import Function
from slmctl.server.request_errors import RequestError
from slmctl.task.contract import Task

SCHEMA_BYTES = 1 << 16  # of a client's own schema or choices, as JSON
# keywords of a client's own schema that are applied to one answer: about a second
MAX_STEPS = 100_000
NAMED_LABELS = 3  # that do not fit, in the reason of a refusal
MAX_PROPERTIES = 100  # of a schema that a label is put into
# Keywords that hold no condition on a value.
NOTES = frozenset(
    {"title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated"}
)


@dataclass(frozen=True)
class AnswerForm:
    """The form that a client asks answers in.

    Attributes:
        schema: A JSON Schema that they are held to.
        choices: Texts of which one is the answer, as vLLM has them.
        label_property: The property of an object in which a label is wanted.
        ignored: The option, where the task's own answers satisfy it anyway.
    """

    schema: JsonObject | None = None
    choices: tuple[str, ...] = ()
    label_property: str = ""
    ignored: tuple[str, ...] = ()


def answer_form(body: JsonObject, task: Task, *, is_held: bool, option: str) -> AnswerForm:
    """The form that a client asks answers in, by its options `response_format` and
    `structured_outputs`.

    Args:
        body: The options of a chat.
        task: The contract of the model that is asked.
        is_held: Every answer is one that the task allows.
        option: The option that the form came from, for errors.

    Raises:
        RequestError: The form is not valid, or the task's answers cannot have it.
    """
    form, choices = body.get("response_format", {"type": "text"}), body.get("structured_outputs")
    kind = form.get("type") if isinstance(form, dict) else None
    if is_held:
        if choices is not None:
            raise _unheld("structured_outputs", task)
        return AnswerForm() if kind == "text" else _held_form(form, kind, task, option)
    if choices is not None:
        return AnswerForm(choices=_choices_of(choices))
    if kind == "text":
        return AnswerForm()
    if kind not in ("json_object", "json_schema"):
        raise RequestError(
            "'response_format' must have type text, json_object or json_schema", "response_format"
        )
    return AnswerForm(schema={"type": "object"} if kind == "json_object" else _schema_of(form))


def _held_form(form: JsonObject, kind: str | None, task: Task, option: str) -> AnswerForm:
    """The form of an answer that the task constrains itself: a
    property for its label, or its own schema.
    """
    if task.labels and kind == "json_schema":
        place, reason = label_property(json.dumps(_schema_of(form)), task.labels)
        if not place:
            raise _unheld(option, task, reason)
        return AnswerForm(label_property=place)
    if task.rules.constraint() and task.schema:
        satisfied = kind == "json_object" and task.schema.get("type") == "object"
        if satisfied or (kind == "json_schema" and is_task_schema(_schema_of(form), task.schema)):
            return AnswerForm(ignored=(option,) if option == "response_format" else ())
    raise _unheld(option, task)


def called_form(body: JsonObject, function: Function) -> JsonObject:
    """The form of an answer that is the arguments of a function."""
    if body.get("response_format", {"type": "text"}) != {"type": "text"}:
        raise RequestError(
            "'response_format' cannot be kept to where a function is called", "response_format"
        )
    if _size(function.parameters) > SCHEMA_BYTES:
        raise RequestError(f"'tools' has parameters of more than {SCHEMA_BYTES} bytes", "tools")
    return {
        "type": "json_schema",
        "json_schema": {"name": function.name, "schema": function.parameters},
    }


def _choices_of(choices: Any) -> tuple[str, ...]:
    listed = (
        choices.get("choice") if isinstance(choices, dict) and set(choices) == {"choice"} else None
    )
    texts = listed if isinstance(listed, list) and 1 <= len(listed) <= 1000 else [None]
    if not all(isinstance(text, str) and text for text in texts) or len(set(texts)) < len(texts):
        raise RequestError(
            "'structured_outputs' must be {\"choice\": [texts that differ]}", "structured_outputs"
        )
    if _size(texts) > SCHEMA_BYTES:
        raise RequestError(
            f"'structured_outputs' has choices of more than {SCHEMA_BYTES} bytes together",
            "structured_outputs",
        )
    return tuple(map(str, texts))


def _schema_of(form: JsonObject) -> JsonObject:
    """The client's own schema in a `response_format` of type json_schema."""
    schema = (
        form["json_schema"].get("schema") if isinstance(form.get("json_schema"), dict) else None
    )
    if not isinstance(schema, dict) or _size(schema) > SCHEMA_BYTES:
        raise RequestError(
            "'response_format' of type json_schema needs a schema: an object of at most "
            f"{SCHEMA_BYTES} bytes",
            "response_format",
        )
    return schema


def _unheld(
    name: str, task: Task, reason: str = "its release says what form answers have"
) -> RequestError:
    return RequestError(
        f"option '{name}' is not supported by a model of kind '{task.kind}': {reason}", name
    )


def _size(value: Any) -> int:
    """Bytes of a value as JSON; of one that is nested too deeply
    to be written, more than any bound.
    """
    try:
        return len(json.dumps(value))
    except RecursionError:
        return sys.maxsize


# Schemas


class EndlessError(Exception):
    """A schema takes too long to apply."""


def satisfies(schema: str, text: str) -> bool:
    """True where an answer satisfies a client's own schema, as far as that takes a bounded time.

    Regular expressions are left to the engine: matching one can take for ever. References lead
    nowhere else.
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
        # properties by expressions
        named = ("patternProperties", "additionalProperties", "unevaluatedProperties")
        skipped = {"pattern", *(named if '"patternProperties"' in written else ())}
        keywords = Draft202012Validator.VALIDATORS
        self._check = validators.extend(  # type: ignore[no-untyped-call]
            Draft202012Validator,
            {
                name: self._bounded((lambda *_: ()) if name in skipped else apply)
                for name, apply in keywords.items()
            },
        )

    def takes(self, value: Any) -> bool:
        """True for a value that satisfies the schema.

        Raises:
            EndlessError: All steps are used up.
        """
        try:
            return not any(
                self._check(self.form, registry=referencing.Registry()).iter_errors(value)
            )
        except (
            ValueError,
            TypeError,
            AttributeError,
            LookupError,
            ArithmeticError,
            RecursionError,
        ):
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
    """Returns the property of a client's schema that takes the label, or the reason why none does.

    An object with that property alone satisfies the whole schema for every label, and no other
    property holds a text.
    """
    form = json.loads(schema)
    properties = form.get("properties")
    if not isinstance(properties, dict) or len(properties) > MAX_PROPERTIES:
        return (
            "",
            "its schema must be an object with a property for the label, and at most "
            f"{MAX_PROPERTIES} of them",
        )
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
        return (
            "",
            f"{_some(others)} of the task's labels {'does' if len(others) == 1 else 'do'} not fit "
            f"'{name[:40]}'",
        )
    return name, ""


def is_task_schema(schema: JsonObject, own: JsonObject) -> bool:
    """True where a client's schema holds the same conditions as the
    task's own, whatever its titles are.
    """
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
