"""Rows and a model -> their answers, chunk by chunk and in order,
for `predict --input` and `Answerer`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypedDict

from slmctl.errors import StageError
from slmctl.inference import engine, supervised_child
from slmctl.inference.events import ValuePlace
from slmctl.models.prompts import PromptAnswerer, of_texts
from slmctl.sources.rows.cells import Row, as_text
from slmctl.task.contract import Task
from slmctl.task.draft_checks import in_words
from slmctl.task.records import Message

CHUNK = 512  # rows answered together; without windows, at most as many answers are lost to a kill
CUT = (
    "the answer to a part of it was cut at the longest answer: --set predict.max_tokens=N "
    "allows a longer one"
)
NOT_SENSITIVE = ("", "0", "no", "n", "false", "f", "off")  # any other mark withholds the row


@dataclass(frozen=True)
class RowInput:
    """The reading of a row as a question.

    Attributes:
        column: The column that holds the input.
        list_labels: Name the labels in the prompt, for a model that was not trained on them.
        withhold: Send no row that a column `sensitive` marks, since an endpoint answers.
    """

    column: str
    list_labels: bool = False
    withhold: bool = False


class AddedColumns(TypedDict, total=False):
    """The columns that a row gets, some of them by the task.

    Attributes:
        confidence: The model's probability of the whole answer, of an object that of all its values
            together.
        valid: For `extract` and `call`.
        places: Where long texts are asked in windows.
        faults: For `generate`; '' without any.
    """

    answer: str | None
    confidence: float | None
    error: str | None
    valid: bool
    places: list[ValuePlace]
    faults: str | None


AnswerRows = Callable[[Iterator[Row]], Iterator[list[AddedColumns]]]  # in order, chunk by chunk
# a text is the reason why the row was not sent
Outcome = engine.Answer | supervised_child.EngineError | str
Messages = tuple[Message, ...]  # that were sent, () for a row that was not


def answered(
    answerer: PromptAnswerer, task: Task, reading: RowInput, rows: Iterator[Row]
) -> Iterator[list[tuple[Outcome, Messages]]]:
    """The outcomes of rows with their conversations, in their order, chunk by chunk.

    Of a task with windows, whose documents take long, each comes alone, as soon as all before it
    have ended.

    Raises:
        StageError: Every row of a chunk ends the engine.
    """
    while block := list(itertools.islice(rows, CHUNK)):
        outcomes: dict[int, Outcome] = {
            k: why for k, row in enumerate(block) if (why := _problem(row, reading))
        }
        sent = [k for k in range(len(block)) if k not in outcomes]
        texts = (as_text(block[k].columns[reading.column]) for k in sent)
        prompts = [*of_texts(task, texts, list_labels=reading.list_labels)]
        messages = {k: prompt.messages for k, prompt in zip(sent, prompts, strict=True)}
        done = 0
        for index, answer in answerer.answer(prompts):
            outcomes[sent[index]] = answer
            while task.document is not None and _has_ended(outcomes.get(done)):
                yield [(outcomes[done], messages.get(done, ()))]
                done += 1
        if sent and all(isinstance(outcomes[k], supervised_child.EngineDiedError) for k in sent):
            raise StageError(
                f"every row ends the engine: {error_of(outcomes[sent[0]])}",
                hint="is the memory full?",
            )
        yield [(outcomes[k], messages.get(k, ())) for k in range(done, len(block))]


def _has_ended(outcome: Outcome | None) -> bool:
    """False for a row that is still asked, and for one that may be of
    a chunk that ends the engine whole.
    """
    return outcome is not None and not isinstance(outcome, supervised_child.EngineDiedError)


def answerer_of_rows(answerer: PromptAnswerer, task: Task, reading: RowInput) -> AnswerRows:
    """A function that gives rows the columns that a model adds to them."""

    def answer(rows: Iterator[Row]) -> Iterator[list[AddedColumns]]:
        for outcomes in answered(answerer, task, reading, rows):
            yield [columns(task, *outcome) for outcome in outcomes]

    return answer


def columns(task: Task, outcome: Outcome, messages: Messages) -> AddedColumns:
    """The columns that an outcome adds to its row."""
    fields: AddedColumns = {"answer": None, "confidence": None}
    if isinstance(outcome, engine.Answer):
        fields = {"answer": outcome.text.strip(), "confidence": outcome.confidence}
    if (
        task.document is not None
        and isinstance(outcome, engine.Answer)
        and outcome.finish == "length"
    ):
        return columns(task, CUT, messages)
    if task.document is not None:
        fields["places"] = list(outcome.places) if isinstance(outcome, engine.Answer) else []
    if task.rules.checks and isinstance(outcome, engine.Answer):
        fields["faults"] = in_words(
            task.rules.faults(outcome.text, messages, finish=outcome.finish)
        )
    elif task.rules.checks:
        fields["faults"] = None
    fields["error"] = error_of(outcome)
    if "valid" in names(task):
        return {
            "valid": isinstance(outcome, engine.Answer) and task.accepts(outcome.text),
            **fields,
        }
    return fields


def names(task: Task) -> list[str]:
    """The names of the added columns, in the order in which they are written."""
    added = ["valid"] if task.rules.structured else ["faults"] if task.rules.checks else []
    return [
        "answer",
        "confidence",
        *added,
        *(["places"] if task.document is not None else []),
        "error",
    ]


def error_of(outcome: Outcome) -> str | None:
    """Returns the reason why a row has no answer, or None."""
    if isinstance(outcome, engine.Answer):
        return None
    return outcome if isinstance(outcome, str) else outcome.message


def _problem(row: Row, reading: RowInput) -> str:
    """The reason why a row is not sent; empty for a row that is."""
    if row.fault:
        return row.fault
    if not as_text(row.columns.get(reading.column)):
        return f"'{reading.column}' is empty"
    if reading.withhold and _marked_sensitive(row):
        return "marked sensitive, so it is not sent to an endpoint"
    return ""


def _marked_sensitive(row: Row) -> bool:
    """True for a row that must not be sent; a mark that is not one
    of NOT_SENSITIVE counts as a yes.
    """
    cells = [cell for name, cell in row.columns.items() if name.strip().casefold() == "sensitive"]
    return any(
        cell.strip().casefold() not in NOT_SENSITIVE
        if isinstance(cell, str)
        else cell not in (None, False, 0)
        for cell in cells
    )
