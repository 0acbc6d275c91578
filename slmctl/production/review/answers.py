"""Answers of people and models to one row: tests for allowed and for equal answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jsonschema

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.deduplication import minhash
from slmctl.errors import DataError
from slmctl.task.contract import Task

ALIKE = 0.9  # similarity from which two free texts say the same


def same_answer(task: Task, first: str, second: str) -> bool:
    """True for equal answers (as text or JSON), and for free texts
    with a similarity of at least ALIKE.
    """
    if equal_answer(task, first, second):
        return True
    return (
        task.rules.is_free
        and minhash.ratio(minhash.normalise(first), minhash.normalise(second)) >= ALIKE
    )


def equal_answer(task: Task, first: str, second: str) -> bool:
    """True for answers that are equal as text, or as JSON."""
    return first.strip() == second.strip() or (
        task.rules.structured and task.rules.same(first, second)
    )


def fault_of(task: Task, answer: str, *, tools: Sequence[JsonObject] = ()) -> str:
    """The reason why the task does not allow an answer, in one sentence; '' for an allowed answer.

    `tools` are those of the question, if its client sent any.
    """
    if not answer.strip():
        return "the answer is empty"
    try:
        value: Any = task.read_answer(answer)
        if task.rules.allows(value, tools):
            return ""
    except DataError as error:
        return error.message
    fault = jsonschema.exceptions.best_match(
        jsonschema.Draft202012Validator(task.schema or {}).iter_errors(value)
    )
    where = ".".join(map(str, fault.absolute_path)) if fault is not None else ""
    reason = fault.message[:200] if fault is not None else "it is no such value"
    return f"the answer does not fit the schema: {f'{where}: ' if where else ''}{reason}"
