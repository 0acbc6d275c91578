"""A kind of task: the answers that it allows, their one form,
and how they are read and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.config import OWN_KEYS
from slmctl.task.draft_checks import Faults
from slmctl.task.records import Message
from slmctl.task.tool_calls import CallForm, Tool

# the label for which a name in the data stands; refuses an unknown one
LabelOf = Callable[[str], str]


class Contract(Protocol):
    """The parts of a task contract that its kind reads; see `contract.Task`."""

    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def schema(self) -> JsonObject | None: ...
    @property
    def tools(self) -> tuple[JsonObject, ...]: ...
    @property
    def system(self) -> str: ...
    @property
    def must(self) -> tuple[str, ...]: ...
    @property
    def must_not(self) -> tuple[str, ...]: ...
    @property
    def call_form(self) -> CallForm | None: ...
    @property
    def form(self) -> CallForm: ...
    def defused(self, text: str) -> str: ...


class TaskKind:
    """One kind of task, bound to the contract of one task; by default, any text is an answer.

    Attributes:
        name: The `kind` of the config and the contract.
        has_labels: True where answers are made of labels.
        chooses: True where the answer is one of them, found by label search: nothing is generated.
        is_free: True where any text is allowed.
        structured: True where the answer is JSON or a call.
        calls: True where the answer is a call of a tool, or none.
        primary: The metric by which models are compared.
        row_metric: The metric of one row's score.
        baselines: The baselines of a report, by name.
        empty: The answer of the baselines `empty` and `no_call`.
        right: The definition of a right answer, in words.
        instruction: The form of the answer, for a model that was not trained for the task.
        rubric: The better one of two answers in words, for a judge.
    """

    name: ClassVar[str]
    has_labels = chooses = is_free = structured = calls = False
    primary = "exact_match"
    row_metric: ClassVar[str]
    baselines: ClassVar[tuple[str, ...]]
    empty = ""
    right: ClassVar[str]
    instruction: ClassVar[str]
    rubric = "The better answer is right by the conversation, and complete."

    def __init__(self, task: Contract) -> None:
        self.task = task

    @classmethod
    def has(cls, key: str) -> bool:
        """True where the kind has a key of the config that only some kinds have."""
        return key in OWN_KEYS[cls.name]

    def fault(self) -> str:
        """The reason why the contract is not valid for this kind, or ''."""
        return ""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of which answers are made, in their order."""
        return ()

    def schema_of(self, labels: Sequence[str]) -> JsonObject | None:
        """The JSON Schema of answers that are made of these labels; the
        contract's own where labels change nothing.
        """
        return self.task.schema

    def offered(self, tools: Sequence[Any] | None = None) -> tuple[Tool, ...]:
        """The tools that an answer may call: the conversation's own, or else the task's; () unless
        the kind is `call`.

        Raises:
            DataError: The tools are not valid.
        """
        return ()

    def constraint(self, tools: Sequence[Any] | None = None) -> str:
        """The JSON Schema or grammar that every answer satisfies, or ''; `tools` are the
        conversation's own.

        Raises:
            DataError: The tools are not valid.
        """
        return ""

    def read(self, text: str) -> Any:
        """The value of a stripped answer; see `contract.Task.read_answer`."""
        return text

    def allows(self, value: Any, tools: Sequence[Any] | None = None) -> bool:
        """True for the value of an answer that satisfies the schema; `tools` are the conversation's
        own.

        Raises:
            DataError: It calls a tool that is not offered, or with arguments that do not fit.
        """
        return True

    def written(self, answer: str) -> str:
        """The text that a model writes for a kept answer: control tokens in it are broken up.

        A call is written in the model's form, with the form's own control tokens.
        """
        return self.task.defused(answer)

    def kept(self, text: str) -> str:
        """The answer in a model's text, as it is kept: a call or a list of
        labels in its one form; else the text.
        """
        return text

    def same(self, answer: str, other: str) -> bool:
        """True for equal answers: the same label, equal values, the same
        call, or the same words in their order.
        """
        return answer.strip() == other.strip()

    def is_right(self, answer: str, reference: str, min_token_f1: float | None = None) -> bool:
        """True for an answer that a policy counts as right; `min_token_f1`
        is that of the policy, for free texts.
        """
        return self.same(reference, answer)

    @property
    def checks(self) -> tuple[str, ...]:
        """The checks of an answer that need no reference, by the names of their metrics."""
        return ()

    def faults(
        self, answer: str, messages: Sequence[Message], *, finish: str | None = None
    ) -> Faults:
        """The faults of an answer to a conversation by check; see `draft_checks.faults`."""
        return {}

    def answer_of(
        self, cell: str, label_of: LabelOf, *, order: Sequence[str] | None, separator: str | None
    ) -> str:
        """The answer in the cell of a row, as answers are kept.

        `order` holds the labels in order, None if the data names them; `separator` stands between
        labels in a cell.

        Raises:
            RowRejectedError: The cell holds no answer of this kind.
        """
        return cell

    def read_reply(self, text: str) -> str:
        """The answer in a stripped reply of a general model, read leniently;
        the whole reply if no answer is found.
        """
        return text
