"""The answers of people and models to one row: which are allowed, and which are the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jsonschema

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.deduplication import minhash
from slmctl.errors import DataError
from slmctl.metrics import answer_metrics
from slmctl.task import tool_calls
from slmctl.task.contract import Task

ALIKE = 0.9  # similarity from which two free texts say the same


def same_answer(task: Task, first: str, second: str) -> bool:
    """True for answers between which nobody needs to decide: equal, equal as JSON, or free texts nearly the same."""
    if first.strip() == second.strip():
        return True
    if task.is_json:
        return answer_metrics.same_json(task.kept(first), task.kept(second))
    if task.kind == "call":
        return task.same_call(first, second)
    if task.kind == "generate":
        return minhash.ratio(minhash.normalise(first), minhash.normalise(second)) >= ALIKE
    return False


def equal_answer(task: Task, first: str, second: str) -> bool:
    """True for answers that are the same to the letter, or as JSON."""
    has_json = task.is_json or task.kind == "call"
    return first.strip() == second.strip() or (has_json and same_answer(task, first, second))


def fault_of(task: Task, answer: str, *, tools: Sequence[JsonObject] = ()) -> str:
    """The reason why the task does not allow an answer, in one sentence; empty for one that it allows.

    `tools` are those of the question, where its client sent some of its own.
    """
    if not answer.strip():
        return "the answer is empty"
    try:
        value: Any = task.read_answer(answer)
        if task.kind == "call":
            tool_calls.require_offered(value, task.offered(tools))
    except DataError as error:
        return error.message
    if not task.is_json or task.fits_schema(value):
        return ""
    fault = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(task.schema or {}).iter_errors(value))
    where = ".".join(map(str, fault.absolute_path)) if fault is not None else ""
    reason = fault.message[:200] if fault is not None else "it is no such value"
    return f"the answer does not fit the schema: {f'{where}: ' if where else ''}{reason}"
