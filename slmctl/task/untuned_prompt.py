"""The prompt for a model that was not trained for a task, its examples, and the lenient reading of its answer."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from slmctl.errors import UsageError
from slmctl.metrics import answer_metrics
from slmctl.network.decisions import CHAT, MOST_LABELS, Api, Choice
from slmctl.task import label_sets
from slmctl.task.contract import Task
from slmctl.task.records import Message, Record
from slmctl.task.tool_calls import NO_CALL

SHOTS = 8  # examples in a few-shot prompt, when nothing else is asked; for classify one for each label

INSTRUCTIONS = {  # added to the task's own system prompt
    "classify": "Answer with exactly one of these labels and nothing else: {labels}",
    "tag": "Answer with a JSON array of those of these labels that fit, [] for none, and nothing else: {labels}",
    "extract": "Answer with one JSON object and nothing else. It must satisfy this JSON Schema: {schema}",
    "generate": "Answer with the text and nothing else.",
    "call": 'Answer with one JSON object {{"arguments": {{…}}, "name": "…"}} that calls one of the tools and nothing '
    f"else, or with the word {NO_CALL} where no tool fits. The tools: {{tools}}",
}
INSTRUCTION = "Choose the label of the text."  # of a task without a system prompt, where labels go beside it
HELD = f"Call one of the tools, or answer with the word {NO_CALL} where no tool fits."  # where a grammar holds the form


def brief(task: Task, *, local: bool = False, tools: Sequence[Any] | None = None) -> str:
    """The system prompt: the task's own, the form of the answer, and the labels that are described, a line each.

    Args:
        task: The task.
        local: A model of this machine answers, whose prompt lists the tools and whose answer a grammar holds.
        tools: The tools of the conversation's own.
    """
    schema = json.dumps(task.schema, ensure_ascii=False) if task.schema else ""
    offered = json.dumps([tool.to_json()["function"] for tool in task.offered(tools)], ensure_ascii=False)
    labels = task.labels or task.label_set
    instruction = INSTRUCTIONS[task.kind].format(labels=", ".join(labels), schema=schema, tools=offered)
    if task.kind == "call" and local:
        instruction = HELD
    described = [f"{label}: {task.descriptions[label]}" for label in labels if label in task.descriptions]
    return "\n".join([task.system, instruction, *described]).strip()


def choice(task: Task, api: Api) -> Choice | None:
    """The question of a task for a decisions API, with the labels beside it; None for chats.

    Raises:
        UsageError: The task has no labels, or more than such an API takes.
    """
    if api == CHAT:
        return None
    if task.kind != "classify" or not 2 <= len(task.labels) <= MOST_LABELS:
        raise UsageError(
            f"a decisions API answers with one of 2 to {MOST_LABELS} labels, and this {task.kind} task has "
            f"{len(task.labels)}",
            hint="api: chat",
        )
    return Choice(task.system or INSTRUCTION, {label: task.descriptions.get(label, "") for label in task.labels})


def shots(task: Task, train: Sequence[Record], count: int | None) -> list[Record]:
    """The examples of a prompt: training rows in an order that their ids decide, so nobody picks them.

    For classify each label comes once before any comes twice, the commonest first, so that as many labels
    as possible are shown; `count` None shows every label once, or SHOTS rows for the other tasks.
    """
    if count == 0:
        return []
    free = sorted((record for record in train if not record.sensitive), key=lambda record: _order(record.id))
    if task.kind != "classify":
        return free[: SHOTS if count is None else count]
    common = Counter(record.answer for record in train)
    seen: Counter[str] = Counter()
    ranked = []
    for record in free:
        seen[record.answer] += 1
        ranked.append((seen[record.answer], -common[record.answer], _order(record.id), record))
    ranked.sort(key=lambda entry: entry[:3])
    chosen = [entry[3] for entry in ranked[: len({record.answer for record in free}) if count is None else count]]
    return sorted(chosen, key=lambda record: _order(record.id))


def _order(id: str) -> str:
    return hashlib.sha256(f"shot/{id}".encode()).hexdigest()


def opening(
    task: Task, examples: Sequence[Record], *, local: bool = False, tools: Sequence[Any] | None = None
) -> list[Message]:
    """The opening of every conversation with a generalist: the task in words, the examples as turns; see `brief`."""
    shown = [turn for example in examples for turn in turns(task, example, local=local)]
    return [{"role": "system", "content": brief(task, local=local, tools=tools)}, *shown]


def turns(task: Task, record: Record, *, local: bool = False) -> list[Message]:
    """A record's conversation without its system prompt, which the prompt has its own for.

    A call in its answer is in the form of this task's base where a model of this machine answers.
    """
    turns = [_turn(message) for message in record.messages if message["role"] != "system"]
    if task.kind == "call" and local:
        turns[-1]["content"] = task.written(turns[-1]["content"])
    return turns


def _turn(turn: Message) -> Message:
    """A turn for any endpoint: a call was made a text when the data was read, so what came of it is one too."""
    if turn["role"] == "tool":
        return {"role": "user", "content": f"{turn.get('name', 'The tool')} returned: {turn['content']}"}
    return {"role": turn["role"], "content": turn["content"]}


def read(task: Task, text: str) -> str:
    """The answer in a general model's reply, read leniently.

    classify: the label that equals the reply but for case and punctuation; else the only label in the text (a label
    inside a longer one does not count). tag: the labels of the list in the text, or of the text itself, in their order.
    extract: the content of a code fence, or the text from the first brace to
    the last. generate: the whole text. call: the call in the base's form, or in such JSON.
    """
    text = text.strip()
    if task.kind == "classify":
        return _label(task.labels, text) or text
    if task.kind == "tag":
        return _labels(task, text)
    if task.kind == "call":
        return _called(task, text)
    if task.kind == "extract" and answer_metrics.parse(text) is answer_metrics.INVALID:
        fenced = _fenced(text)
        inner = text[text.find("{") : text.rfind("}") + 1] if fenced is None else fenced
        return inner if answer_metrics.parse(inner) is not answer_metrics.INVALID else text
    return text


def _called(task: Task, text: str) -> str:
    """A call with its name and arguments, wherever the text has it; no call where the text is a word for that."""
    kept = task.kept(text)
    if task.accepts(kept) or text.casefold().rstrip(".") == NO_CALL:
        return kept if task.accepts(kept) else NO_CALL
    fenced = _fenced(text)
    value = answer_metrics.parse(text[text.find("{") : text.rfind("}") + 1] if fenced is None else fenced)
    if isinstance(value, dict) and value.keys() == {"name", "arguments"}:
        return json.dumps(value, ensure_ascii=False, sort_keys=True)
    return kept


def _fenced(text: str) -> str | None:
    """The inside of the first code fence that is of JSON or of no language; in linear time, as the text is foreign."""
    for part in text.split("```")[1:-1]:
        language, line_break, inner = part.partition("\n")
        if line_break and language.strip().lower() in ("", "json"):
            return inner.strip()
    return None


def _labels(task: Task, text: str) -> str:
    value = label_sets.parse(text[text.find("[") : text.rfind("]") + 1])
    parts = value if isinstance(value, list) else re.split(r"[,;|\n]", text)
    names = {name for part in parts if (name := _label(task.label_set, str(part))) is not None}
    return label_sets.written(names, task.label_set) if names or value == [] else text


def _label(labels: Sequence[str], text: str) -> str | None:
    if text in labels:
        return text
    words = answer_metrics.words(text)
    by_words: dict[tuple[str, ...], list[str]] = {}
    for label in labels:
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
