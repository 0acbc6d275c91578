"""The system prompt for a model that was not trained for a task, and the lenient reading of its answer."""

from __future__ import annotations

import json
from collections.abc import Sequence

from slmctl.metrics import answer_metrics
from slmctl.task.contract import Task

INSTRUCTIONS = {  # added to the task's own system prompt
    "classify": "Answer with exactly one of these labels and nothing else: {labels}",
    "extract": "Answer with one JSON object and nothing else. It must satisfy this JSON Schema: {schema}",
    "generate": "Answer with the text and nothing else.",
}


def brief(task: Task) -> str:
    """The system prompt: the task's own, and the form of the answer."""
    schema = json.dumps(task.schema, ensure_ascii=False) if task.schema else ""
    instruction = INSTRUCTIONS[task.kind].format(labels=", ".join(task.labels), schema=schema)
    return f"{task.system}\n{instruction}".strip()


def read(task: Task, text: str) -> str:
    """The answer in a general model's reply, read leniently.

    classify: the label that equals the reply but for case and punctuation; else the only label in the text (a label
    inside a longer one does not count). extract: the content of a code fence, or the text from the first brace to
    the last. generate: the whole text.
    """
    text = text.strip()
    if task.kind == "classify":
        return _label(task, text) or text
    if task.kind == "extract" and answer_metrics.parse(text) is answer_metrics.INVALID:
        fenced = _fenced(text)
        inner = text[text.find("{") : text.rfind("}") + 1] if fenced is None else fenced
        return inner if answer_metrics.parse(inner) is not answer_metrics.INVALID else text
    return text


def _fenced(text: str) -> str | None:
    """The inside of the first code fence that is of JSON or of no language; in linear time, as the text is foreign."""
    for part in text.split("```")[1:-1]:
        language, line_break, inner = part.partition("\n")
        if line_break and language.strip().lower() in ("", "json"):
            return inner.strip()
    return None


def _label(task: Task, text: str) -> str | None:
    if text in task.labels:
        return text
    words = answer_metrics.words(text)
    by_words: dict[tuple[str, ...], list[str]] = {}
    for label in task.labels:
        by_words.setdefault(tuple(answer_metrics.words(label)), []).append(label)
    whole = by_words.get(tuple(words), [])
    if len(whole) == 1:
        return whole[0]
    runs = {tuple(words[k : k + size]) for size in set(map(len, by_words)) for k in range(len(words) - size + 1)}
    within = [key for key in by_words if key and key in runs]
    longest = [key for key in within if not any(key != other and _stands_in(key, list(other)) for other in within)]
    matches = [label for key in longest for label in by_words[key]]
    return matches[0] if len(matches) == 1 else None


def _stands_in(part: Sequence[str], text: Sequence[str]) -> bool:
    return any(tuple(text[k : k + len(part)]) == tuple(part) for k in range(len(text) - len(part) + 1))
