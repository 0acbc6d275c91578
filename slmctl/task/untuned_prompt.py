"""The prompt for a model that was not trained for a task, its examples,
and the lenient reading of its answer.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from slmctl.errors import UsageError
from slmctl.network.decisions import CHAT, MOST_LABELS, Api, Choice
from slmctl.task.contract import Task
from slmctl.task.records import Message, Record
from slmctl.task.tool_calls import NO_CALL

SHOTS = 8  # examples in a few-shot prompt by default; for classify one for each label

# of a task without a system prompt; labels are sent apart from it
INSTRUCTION = "Choose the label of the text."
# where a grammar holds the form
HELD = f"Call one of the tools, or answer with the word {NO_CALL} where no tool fits."


def brief(task: Task, *, local: bool = False, tools: Sequence[Any] | None = None) -> str:
    """The system prompt: the task's own, the form of the answer, and the labels that are described,
    a line each.

    Args:
        local: A model on this machine answers: its prompt lists the tools, and a grammar holds its
            answer.
        tools: The conversation's own tools.
    """
    schema = json.dumps(task.schema, ensure_ascii=False) if task.schema else ""
    offered = json.dumps(
        [tool.to_json()["function"] for tool in task.rules.offered(tools)], ensure_ascii=False
    )
    rules, labels = task.rules, task.rules.labels
    instruction = rules.instruction.format(labels=", ".join(labels), schema=schema, tools=offered)
    if rules.calls and local:
        instruction = HELD
    described = [
        f"{label}: {task.descriptions[label]}" for label in labels if label in task.descriptions
    ]
    return "\n".join([task.system, instruction, *described]).strip()


def choice(task: Task, api: Api, examples: Sequence[tuple[str, str]] = ()) -> Choice | None:
    """The question of a task for a decisions API, with its labels; None for the chat API.

    Args:
        examples: Texts with their labels. Such an API has no place for them but the description of
            a label.

    Raises:
        UsageError: The task has no labels, or more than such an API takes.
    """
    if api == CHAT:
        return None
    if not task.rules.chooses or not 2 <= len(task.labels) <= MOST_LABELS:
        raise UsageError(
            f"a decisions API answers with one of 2 to {MOST_LABELS} labels, and this {task.kind} "
            "task has "
            f"{len(task.labels)}",
            hint="api: chat",
        )
    described = {
        label: [text] if (text := task.descriptions.get(label)) else [] for label in task.labels
    }
    for text, label in examples:
        described[label].append(f"For example: {text}")
    return Choice(
        task.system or INSTRUCTION, {label: "\n".join(texts) for label, texts in described.items()}
    )


def shots(task: Task, train: Sequence[Record], count: int | None) -> list[Record]:
    """The examples of a prompt: training rows in the order of a hash of their ids, so that none is
    hand-picked.

    For classify each label comes once before any comes twice, the commonest first, so that as many
    labels as possible are shown; `count` None shows every label once, or SHOTS rows for the other
    tasks.
    """
    if count == 0:
        return []
    free = sorted(
        (record for record in train if not record.sensitive), key=lambda record: _order(record.id)
    )
    if not task.rules.chooses:
        return free[: SHOTS if count is None else count]
    common = Counter(record.answer for record in train)
    seen: Counter[str] = Counter()
    ranked = []
    for record in free:
        seen[record.answer] += 1
        ranked.append((seen[record.answer], -common[record.answer], _order(record.id), record))
    ranked.sort(key=lambda entry: entry[:3])
    chosen = [
        entry[3]
        for entry in ranked[: len({record.answer for record in free}) if count is None else count]
    ]
    return sorted(chosen, key=lambda record: _order(record.id))


def _order(id: str) -> str:
    return hashlib.sha256(f"shot/{id}".encode()).hexdigest()


def opening(
    task: Task,
    examples: Sequence[Record],
    *,
    local: bool = False,
    tools: Sequence[Any] | None = None,
) -> list[Message]:
    """The opening of every conversation with a generalist: the task in
    words, the examples as turns; see `brief`.
    """
    shown = [turn for example in examples for turn in turns(task, example, local=local)]
    return [{"role": "system", "content": brief(task, local=local, tools=tools)}, *shown]


def turns(task: Task, record: Record, *, local: bool = False) -> list[Message]:
    """A record's conversation without its system prompt, since the prompt has its own.

    With `local`, a call in its answer is in the form of the task's base.
    """
    turns = [turn_of(message) for message in record.messages if message["role"] != "system"]
    if task.rules.calls and local:
        turns[-1]["content"] = task.rules.written(turns[-1]["content"])
    return turns


def turn_of(message: Mapping[str, Any]) -> Message:
    """A turn for any endpoint: a tool's result becomes a user's text, since
    calls became texts when they were read.
    """
    if message["role"] == "tool":
        return {
            "role": "user",
            "content": f"{message.get('name', 'The tool')} returned: {message['content']}",
        }
    return {"role": message["role"], "content": message["content"]}


def read(task: Task, text: str) -> str:
    """The answer in a general model's reply, read leniently by the rules of the task's kind."""
    return task.rules.read_reply(text.strip())
