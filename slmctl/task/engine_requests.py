"""A prompt of a task -> the request to the engine, restricted to answers that the task allows."""

from __future__ import annotations

from slmctl.inference.engine import Request
from slmctl.task.contract import Task


def engine_request(
    task: Task,
    text: str,
    *,
    prefix: str = "",
    constraint: str = "",
    max_tokens: int,
    adapter: str = "",
    temperature: float = 0.0,
    seed: int = 0,
    question: str = "",
    document: str = "",
) -> Request:
    """The request for one answer.

    Args:
        prefix: The beginning that other prompts share; ignored where `text` does not begin with it.
        constraint: The grammar of a conversation with own tools, in place of the task's.
        question: The text that the linear members of a sum read.
        document: The text in it that is asked in windows where the task has some.
    """
    return Request(
        text,
        prefix if text.startswith(prefix) else "",
        labels=task.labels,
        end=task.end,
        max_tokens=max_tokens,
        stop=(task.end,) if task.end else (),
        schema=constraint or task.rules.constraint(),
        adapter=adapter,
        temperature=temperature,
        seed=seed,
        question=question,
        document=document if task.document is not None else "",
        written_labels=task.written_labels(task.labels),
    )
