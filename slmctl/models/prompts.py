"""Prompts: the rendered text, the beginning that all prompts share, and the messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from slmctl.inference import engine
from slmctl.task import untuned_prompt
from slmctl.task.contract import Task
from slmctl.task.records import Message, Record, question_of, without_weight

MARK = "\x00"  # a question, to find the prefix that all prompts of a task share


@dataclass(frozen=True)
class Prompt:
    """One question.

    Attributes:
        prefix: The text at its start that all questions share.
        messages: The turns that it is made of.
        constraint: The grammar of its answer if the conversation lists its own tools; '' for the
            task's.
    """

    text: str
    prefix: str = ""
    messages: tuple[Message, ...] = ()
    constraint: str = ""

    @property
    def question(self) -> str:
        """The texts of its turns without the system prompt, as `Record.input` has them."""
        return question_of(self.messages)


class PromptAnswerer(Protocol):
    """A model that answers prompts, many together, in any order."""

    def answer(self, prompts: Sequence[Prompt]) -> engine.Outcomes: ...


def of_texts(task: Task, texts: Iterable[str], *, list_labels: bool = False) -> Iterator[Prompt]:
    """The prompts for raw inputs, which are cleaned; their common prefix is rendered once."""
    shared = _shared(task, task.messages(MARK, list_labels=list_labels))
    for text in texts:
        turns = task.messages(task.cleaned_text(text)[0], list_labels=list_labels)
        yield Prompt(task.prompt(turns), shared, tuple(turns))


def asked(task: Task, record: Record, *, list_labels: bool = False) -> Prompt:
    """The prompt of a record: its whole conversation before the answer, and the tools in it."""
    turns = [without_weight(message) for message in record.prompt_messages]
    turns = task.with_label_list(turns) if list_labels else turns
    shared = _shared(task, task.messages(MARK, list_labels=list_labels))
    return _of_record(task, record, turns, task.prompt(turns, tools=record.tools), shared)


def few_shot(task: Task, examples: Sequence[Record], records: Sequence[Record]) -> list[Prompt]:
    """The prompts of records for a model that was not trained: the form
    of the answer in words, then examples.
    """
    head = untuned_prompt.opening(task, examples, local=True)
    shared = _shared(task, [*head, {"role": "user", "content": MARK}])
    turns = [[*head, *untuned_prompt.turns(task, record, local=True)[:-1]] for record in records]
    texts = task.prompts(
        (messages, record.tools) for messages, record in zip(turns, records, strict=True)
    )
    return [_of_record(task, *parts, shared) for parts in zip(records, turns, texts, strict=True)]


def _of_record(
    task: Task, record: Record, turns: Sequence[Message], text: str, shared: str
) -> Prompt:
    constraint = task.rules.constraint(record.tools) if record.tools else ""
    return Prompt(text, shared if text.startswith(shared) else "", tuple(turns), constraint)


def _shared(task: Task, turns: Sequence[Message]) -> str:
    """The text of a prompt before the MARK in its question."""
    return task.prompt(turns).partition(MARK)[0]
