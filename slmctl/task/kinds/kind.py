"""A kind of task: the answers that it allows, their one form, and how they are compared; here, as for free texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.task.tool_calls import CallForm, Tool


class Contract(Protocol):
    """The parts of a task contract that its kind reads; see `contract.Task`."""

    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def schema(self) -> JsonObject | None: ...
    @property
    def tools(self) -> tuple[JsonObject, ...]: ...
    @property
    def call_form(self) -> CallForm | None: ...
    def defused(self, text: str) -> str: ...


@dataclass(frozen=True)
class CellLabels:
    """The labels that cells of a source may name.

    Attributes:
        label_of: Gives the label for which a name in the data stands; an unknown one is refused.
        names: All labels in their order; None where the data names them.
        separator: The text between the labels of a cell; None where the source names none.
    """

    label_of: Callable[[str], str]
    names: Sequence[str] | None = None
    separator: str | None = None


class TaskKind:
    """One kind of task, bound to the contract of one task.

    Attributes:
        name: The `kind` of the config and the contract.
        has_labels: True where answers are made of labels.
        chooses: True where the answer is one of the labels, found by label search: nothing is generated.
        is_free: True where any text is allowed.
        structured: True where the answer is JSON or a call.
        calls: True where the answer is a call of a tool, or none.
        primary: The metric by which models are compared.
        row_metric: The metric that the score of one row is.
        baselines: The baselines of a report, by name.
        empty: The answer that says least.
        right: The definition of a right answer, in words.
        instruction: The form of the answer, for a model that was not trained for the task.
    """

    name: ClassVar[str]
    has_labels: ClassVar[bool] = False
    chooses: ClassVar[bool] = False
    is_free: ClassVar[bool] = False
    structured: ClassVar[bool] = False
    calls: ClassVar[bool] = False
    primary: ClassVar[str] = "exact_match"
    row_metric: ClassVar[str]
    baselines: ClassVar[tuple[str, ...]]
    empty: ClassVar[str] = ""
    right: ClassVar[str]
    instruction: ClassVar[str]

    def __init__(self, task: Contract) -> None:
        self.task = task

    def fault(self) -> str:
        """The reason why the contract is none of this kind; empty for one that is."""
        return ""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of which answers are made, in their order."""
        return ()

    def offered(self, tools: Sequence[Any] | None = None) -> tuple[Tool, ...]:
        """The tools that an answer may call; see `contract.Task.offered`."""
        return ()

    def constraint(self, tools: Sequence[Any] | None = None) -> str:
        """The JSON Schema or the grammar that every answer satisfies; empty where there is none.

        Raises:
            DataError: `tools`, those of the conversation's own, are no tools.
        """
        return ""

    def read(self, text: str) -> Any:
        """The value of a stripped answer: a label, the parsed JSON, a ToolCall or None for no call, or the text.

        Raises:
            DataError: It is none.
        """
        return text

    def allows(self, value: Any, tools: Sequence[Any] | None = None) -> bool:
        """True for the value of an answer that satisfies the schema; `tools` are those of the conversation's own.

        Raises:
            DataError: It calls a tool that is not offered, or with arguments that do not fit.
        """
        return True

    def written(self, answer: str) -> str:
        """The text by which a model writes an answer that was kept: control tokens in it are broken up."""
        return self.task.defused(answer)

    def kept(self, text: str) -> str:
        """The answer in a text that a model has written, in the one form that all answers have."""
        return text

    def same(self, answer: str, other: str) -> bool:
        """True for equal answers: the same label, equal values, the same call, or the same words in their order."""
        return answer.strip() == other.strip()

    def schema_of(self, labels: Sequence[str]) -> JsonObject | None:
        """The JSON Schema of answers that are made of these labels; the contract's own where labels change nothing."""
        return self.task.schema

    def answer_of(self, cell: str, labels: CellLabels) -> str:
        """The answer in a row's cell, in the one form that all answers have.

        Raises:
            RowRejectedError: It holds none.
        """
        return cell

    def read_reply(self, text: str) -> str:
        """The answer in a stripped reply of a general model, read leniently."""
        return text
