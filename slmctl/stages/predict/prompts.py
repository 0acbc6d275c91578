"""Prompts: the rendered text, the beginning that all prompts share, and the messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from slmctl.inference import engine
from slmctl.task import untuned_prompt
from slmctl.task.contract import Task
from slmctl.task.records import Message, Record, without_weight


@dataclass(frozen=True)
class Prompt:
    """One question.

    Attributes:
        text: The rendered prompt.
        prefix: The text at its start that all questions share.
        messages: The turns that it is made of.
        constraint: The grammar of its answer, where the conversation has tools of its own; else the task's holds.
    """

    text: str
    prefix: str = ""
    messages: tuple[Message, ...] = ()
    constraint: str = ""


class PromptAnswerer(Protocol):
    """A model that answers prompts, many together, in any order."""

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, engine.Answer | engine.EngineError]]: ...


def prompt(task: Task, text: str, *, list_labels: bool = False) -> Prompt:
    """The prompt for one raw input, which is cleaned, and how much of it does not depend on the input."""
    turns = task.messages(task.cleaned_text(text)[0], list_labels=list_labels)
    return Prompt(task.prompt(turns), _shared(task, list_labels=list_labels), tuple(turns))


def few_shot(task: Task, examples: Sequence[Record], records: Sequence[Record]) -> list[Prompt]:
    """The prompts of records for a model that was not trained: the form of the answer in words, then examples."""
    head = untuned_prompt.opening(task, examples, local=True)
    mark = "\x00"
    shared = task.prompt(_messages([*head, {"role": "user", "content": mark}])).partition(mark)[0]
    turns = [_messages([*head, *untuned_prompt.turns(task, record, local=True)[:-1]]) for record in records]
    texts = task.prompts((messages, record.tools) for messages, record in zip(turns, records, strict=True))
    return [
        Prompt(text, shared if text.startswith(shared) else "", tuple(messages), _constraint(task, record))
        for text, messages, record in zip(texts, turns, records, strict=True)
    ]


def _messages(turns: Sequence[dict[str, str]]) -> list[Message]:
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def asked(task: Task, record: Record, *, list_labels: bool = False) -> Prompt:
    """The prompt of a record: its whole conversation before the answer, and the tools in it."""
    turns = [without_weight(message) for message in record.prompt_messages]
    turns = task.with_label_list(turns) if list_labels else turns
    text, shared = task.prompt(turns, tools=record.tools), _shared(task, list_labels=list_labels)
    return Prompt(text, shared if text.startswith(shared) else "", tuple(turns), _constraint(task, record))


def _constraint(task: Task, record: Record) -> str:
    return task.constraint_of(record.tools) if task.kind == "call" and record.tools else ""


def _shared(task: Task, *, list_labels: bool) -> str:
    """The beginning of every prompt that has the task's own system prompt."""
    mark = "\x00"
    return task.prompt(task.messages(mark, list_labels=list_labels)).partition(mark)[0]
