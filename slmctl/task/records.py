"""The record that all stages share, and JSONL in and out.

A record is one conversation with its answer:

    {"id": "9f2c…", "messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content":
    "…"}],
     "tools": […], "label": "…", "group": "…", "sensitive": false, "source": {"file": "tickets.csv",
     "row": 17}}

`tools`, `label` and `group` are there where the data has them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from slmctl.errors import DataError

SPLITS = ("train", "validation", "calibration", "test")


class RowRejectedError(DataError):
    """A row that becomes no record.

    Args:
        rule: The rule that rejects it, as the report and `rejected.jsonl` count it, such as `tool
            calls`.
    """

    def __init__(self, rule: str, reason: str) -> None:
        super().__init__(reason)
        self.rule, self.reason = rule, reason

    def __reduce__(self) -> tuple[type[RowRejectedError], tuple[str, str]]:
        return type(self), (self.rule, self.reason)  # an exception is pickled by its message alone


class FunctionCall(TypedDict):
    """The name of a function, and its arguments as JSON values."""

    name: str
    arguments: Any


class MessageCall(TypedDict):
    """A call of a function in an assistant's message, in the form that chat templates take."""

    type: str
    function: FunctionCall


class Message(TypedDict):
    """One message of a conversation.

    Attributes:
        role: `system`, `user`, `assistant` or `tool`.
        weight: Weight of an assistant's message in the loss; 1 by default.
        tool_calls: The calls in an assistant's message.
        name: The function that returned the content of a `tool` message.
    """

    role: str
    content: str
    weight: NotRequired[float]
    tool_calls: NotRequired[list[MessageCall]]
    name: NotRequired[str]


def without_weight(message: Message) -> Message:
    """A copy of a message as a model sees it: its weight in the loss is not part of it."""
    bare = message.copy()
    bare.pop("weight", None)
    return bare


def with_instruction(messages: Sequence[Message], text: str) -> list[Message]:
    """A copy of a conversation with a text at the end of its system
    prompt, which is added if there is none.
    """
    turns = [message.copy() for message in messages]
    if not turns or turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": ""})
    turns[0]["content"] = f"{turns[0]['content']}{text}".strip()
    return turns


class RecordSource(TypedDict):
    """The place of a record's row: the title of the file, and the row's number in it, from 1."""

    file: str
    row: int


class RecordFields(TypedDict):
    """A record as a line of JSON Lines; see `Record`."""

    id: str
    messages: list[Message]
    tools: NotRequired[list[Any]]
    label: NotRequired[str]
    group: NotRequired[str]
    sensitive: bool
    source: RecordSource


def question_of(turns: Iterable[Message]) -> str:
    """The contents of a conversation before its answer, without the system
    prompt, for encoders and linear models.
    """
    return "\n".join(turn["content"] for turn in turns if turn["role"] != "system")


@dataclass(frozen=True)
class Record:
    """One conversation whose last message is the reference answer.

    Attributes:
        messages: Each with `role` and `content`; an assistant's may have a `weight` in the loss.
        group: A hash of the name of the row's group.
        sensitive: True where personal data or secrets were found in it and left there.
        tools: JSON Schemas of the functions that the assistant may call.
    """

    id: str
    messages: tuple[Message, ...]
    source: RecordSource
    label: str | None = None
    group: str | None = None
    sensitive: bool = False
    tools: tuple[Any, ...] | None = None

    @property
    def input(self) -> str:
        """The contents of the messages before the answer, without the system prompt."""
        return question_of(self.messages[:-1])

    @property
    def answer(self) -> str:
        """The reference answer."""
        return self.messages[-1]["content"]

    @property
    def prompt_messages(self) -> tuple[Message, ...]:
        """The conversation up to the answer."""
        return self.messages[:-1]

    def to_json(self) -> RecordFields:
        fields: dict[str, Any] = {"id": self.id, "messages": list(self.messages)}
        if self.tools is not None:
            fields["tools"] = list(self.tools)
        if self.label is not None:
            fields["label"] = self.label
        if self.group is not None:
            fields["group"] = self.group
        # in this order
        return cast(RecordFields, fields | {"sensitive": self.sensitive, "source": self.source})

    @classmethod
    def from_json(cls, fields: RecordFields) -> Record:
        tools = tuple(fields["tools"]) if "tools" in fields else None
        values: dict[str, Any] = {**fields, "messages": tuple(fields["messages"]), "tools": tools}
        return cls(**values)


def read_records(path: Path) -> list[Record]:
    """The records of one split."""
    with path.open(encoding="utf-8") as stream:
        return [Record.from_json(json.loads(line)) for line in stream]


def require_records(path: Path) -> list[Record]:
    """The records of one split that has some.

    Raises:
        DataError: The split is empty.
    """
    records = read_records(path)
    if not records:
        raise DataError(
            f"the split '{path.stem}' of the data set is empty",
            hint=f"prepare.splits.{path.stem}: 0.15, or a source with split: {path.stem}",
        )
    return records


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write one JSON object a line; returns the number of lines."""
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count
