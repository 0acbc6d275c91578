"""Described rows -> the proposal of a task: its kind, the columns of input
and answer, notes and open questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from slmctl.config import KindName, Source
from slmctl.console import percent, shown
from slmctl.errors import DataError, UsageError
from slmctl.init import answer_fields
from slmctl.init.answer_fields import AnswerFields
from slmctl.init.column_names import is_total, suggests
from slmctl.init.column_scores import LEAST, NO_DOUBT, first, likeliest, score
from slmctl.init.columns import Column, describe
from slmctl.init.look import FirstLook
from slmctl.sources.rows.cells import as_text
from slmctl.task import conversation_formats, label_sets
from slmctl.task.conversation_formats import reference
from slmctl.task.kinds import kind_of
from slmctl.task.kinds.kind import TaskKind
from slmctl.task.records import RowRejectedError, question_of

_ROWS = Source(path=Path("rows"))  # a dummy source for the readers of conversations and templates
ONE_CALL = 0.9  # least share of rows with at most one call in the answer, for the kind `call`


@dataclass(frozen=True)
class TaskProposal:
    """A task for the rows of a source.

    Attributes:
        input, output: A column or a template; '' if the rows are conversations. `output` may also
            be several columns, separated by commas, that form a JSON object.
        fields: The JSON object of several columns; None for another output.
        id, group, time: Columns; '' for none.
        is_conversation: True if the rows are conversations, in a layout that is recognised by its
            columns.
        answers: The answers, described as a column.
        pairs: (input, answer) of the rows of the sample that have both.
        usable: Share of the rows that have both.
        calls: Share of the rows with a tool call in one of their messages.
        unread: Answer -> number of rows of the sample without a text, which are not counted as
            labels.
        own_system: True if the rows have their own system prompts.
        notes: Sentences about the data.
        doubts: (flag, question) of each flag that the user must decide; empty if all is certain.
    """

    kind: KindName
    input: str
    output: str
    answers: Column
    pairs: tuple[tuple[str, str], ...] = field(repr=False)
    usable: float
    reason: str
    id: str = ""
    group: str = ""
    time: str = ""
    fields: AnswerFields | None = None
    is_conversation: bool = False
    tools: bool = False
    calls: float = 0.0
    unread: Mapping[str, int] = field(default_factory=dict)
    own_system: bool = False
    notes: tuple[str, ...] = ()
    doubts: tuple[tuple[str, str], ...] = ()

    @property
    def separator(self) -> str | None:
        """The text between the labels of a cell, if a row has several; None for JSON lists."""
        return self.answers.separator or None

    @property
    def rules(self) -> type[TaskKind]:
        """The class of the kind of task."""
        return kind_of(self.kind)

    @cached_property
    def labels(self) -> dict[str, int]:
        """Label -> number of rows, the most frequent first; over
        all counted rows, or over the sample.
        """
        if not self.rules.has_labels:
            return {}
        counts: Mapping[str, int] = self.answers.counts
        several = self.rules.structured
        if not counts or (self.answers.kind == "labels") != several:
            sets = (
                label_sets.read(cell, self.separator) if several else [cell]
                for _, cell in self.pairs
            )
            counts = Counter(label for labels in sets for label in set(labels))
        read = {
            label: rows
            for label, count in counts.items()
            if (rows := count - self.unread.get(label, 0)) > 0
        }
        return dict(sorted(read.items(), key=lambda item: (-item[1], item[0])))


def propose(
    look: FirstLook,
    title: str,
    *,
    input: str | None = None,
    output: str | None = None,
    kind: KindName | None = None,
) -> TaskProposal:
    """The task for a source; arguments that are set are kept. `title` names the source in errors.

    Raises:
        DataError: No task fits the rows: they have no answer, or all have the same answer.
        UsageError: A column does not exist, or does not fit the kind of the task.
    """
    if not look.rows:
        raise DataError(
            f"{title} holds no usable row" + (f"; {look.fault}" if look.fault else ""),
            hint="a header and rows with a text and its answer are needed",
        )
    columns = {column.name for column in look.columns}
    name = next(
        (name for name, needs in conversation_formats.NEEDS.items() if set(needs) <= columns), ""
    )
    if input is None and output is None and name:
        task = _of_conversations(look, name, kind)
    else:
        task = _of_columns(look, title, input, output, kind)
    if len(task.labels) == 1:
        raise DataError(
            f"every row of {title} has the answer '{shown(next(iter(task.labels)), 60)}', so there "
            "is nothing to "
            "tell apart",
            hint="add conversations that end in other answers"
            if task.is_conversation
            else "add rows of the other categories, or name another column: --output COLUMN",
        )
    return task


# Conversations


def _of_conversations(look: FirstLook, name: str, kind: KindName | None) -> TaskProposal:
    layout = conversation_formats.recognise(_ROWS, [column.name for column in look.columns])
    pairs: list[tuple[str, str]] = []
    faults: list[str] = []
    tools = own_system = called = 0
    calls: Counter[int] = Counter()  # rows by the number of calls in their answer
    for row in look.sample:
        try:
            conversation = layout.read(row)
        except RowRejectedError as error:
            faults.append(error.reason)
            continue
        messages = conversation.messages
        pairs.append(
            (
                question_of(messages[:-1]),
                messages[-1]["content"] or as_text(messages[-1].get("tool_calls")),
            )
        )
        tools += bool(conversation.tools)
        calls[len(messages[-1].get("tool_calls") or ())] += 1
        own_system += messages[0]["role"] == "system"
        called += any("tool_calls" in message for message in messages)
    answers = describe("assistant", [answer for _, answer in pairs])
    by_answer: KindName = "extract" if answers.kind == "JSON" and not tools else "generate"
    if answers.kind in ("label", "constant"):
        by_answer = "classify"
    if answers.kind == "labels" and not tools:
        by_answer = "tag"
    if tools and calls[1] and calls[0] + calls[1] >= ONE_CALL * len(pairs):
        by_answer = "call"
    notes = [f"{percent(tools / max(len(pairs), 1), 0)} of the rows offer tools"] if tools else []
    if called and not kind_of(kind or by_answer).calls:
        notes.append(f"{percent(called / len(pairs), 0)} of the rows hold calls of tools")
    notes += (
        ["the rows bring system prompts of their own, so slmctl.yaml has none"]
        if own_system
        else []
    )
    notes += (
        [f"{len(faults)} of {len(look.sample)} rows are no conversation: {faults[0]}"]
        if faults
        else []
    )
    return TaskProposal(
        kind=kind or by_answer,
        input="",
        output="",
        answers=answers,
        pairs=tuple(pairs),
        usable=len(pairs) / len(look.sample),
        reason=f"the rows are conversations in the form '{name}'",
        id=next((column.name for column in look.columns if column.kind == "id"), ""),
        is_conversation=True,
        tools=tools > 0,
        calls=called / max(len(pairs), 1),
        own_system=own_system > 0,
        notes=tuple(notes),
    )


# Columns


def _of_columns(
    look: FirstLook, title: str, input: str | None, output: str | None, kind: KindName | None
) -> TaskProposal:
    doubts: list[tuple[str, str]] = []
    notes: list[str] = []
    fields, chosen = answer_fields.named(look, output or ""), output is not None
    if output is None:
        choice = _choose_output(look, title, input, kind)
        output, fields = choice.output, choice.fields
        notes = choice.notes
        doubts += [("--output", choice.question)] if choice.question else []
    if input is None:
        input, question = _choose_input(look, title, fields.names if fields else [output])
        doubts += [("--input", question)] if question else []
    read_text, read_answer = (
        _reader(look, title, "--input", input),
        _reader(look, title, "--output", output, fields),
    )
    answer = look.column(output) or describe(output, [read_answer(row) for row in look.sample])
    kind = kind or ("extract" if fields else _kind_of(answer))
    _require_sense(look, input, answer, fields, kind, chosen=chosen)
    pairs: list[tuple[str, str]] = []
    unread: Counter[str] = Counter()
    for row in look.sample:
        text, value = read_text(row), read_answer(row)
        if text and value:
            pairs.append((text, value))
        elif value:
            unread[value] += 1
    columns = [column for column in look.columns if column.name not in {output, input}]
    free = [column for column in columns if fields is None or column.name not in fields.names]
    task = TaskProposal(
        kind=kind,
        input=input,
        output=output,
        fields=fields,
        answers=answer,
        pairs=tuple(pairs),
        usable=len(pairs) / len(look.sample),
        reason="",
        id=first(columns, "id"),
        group=first(free, "group"),
        time=first(free, "time"),
        unread=unread,
        notes=(
            *notes,
            *(_left_out(fields, free, columns_in(input, columns)) if fields and not chosen else ()),
            *_swapped(input, answer),
            *_odd_rows(pairs, fields if kind_of(kind).has("schema") else None),
        ),
        doubts=tuple(doubts),
    )
    where = f" in rows with a text (of {answer.different})" * (
        0 < len(task.labels) < answer.different
    )
    reason = {
        "classify": f"'{output}' has {len(task.labels)} different values{where}",
        "tag": f"a row may have several of {len(task.labels)} labels",
        "extract": f"{_and(fields.names)} make one JSON object"
        if fields
        else f"'{output}' holds JSON",
        "generate": f"'{output}' holds texts of {answer.words:.0f} words on average",
        "call": f"'{output}' holds calls",
    }[kind]
    return replace(task, reason=reason)


def _reader(
    look: FirstLook, title: str, flag: str, spec: str, fields: AnswerFields | None = None
) -> Callable[[Mapping[str, Any]], str]:
    """A function that returns the text of a row like `prepare`, '' for a row that `prepare`
    rejects.

    Raises:
        UsageError: A column does not exist, or a template is not valid.
    """
    source, columns = (
        _ROWS.model_copy(update={"name": title}),
        [column.name for column in look.columns],
    )
    try:
        for name in fields.names if fields else ():
            conversation_formats.require_column(source, columns, name)
        make = None if fields else conversation_formats.text_maker(source, spec, columns)
    except DataError as error:
        raise UsageError(f"{flag}: {error.message}", hint=error.hint) from None

    def read(row: Mapping[str, Any]) -> str:
        if make is None:
            assert fields is not None
            return as_text(fields.of(row))
        try:
            return make(row)
        except RowRejectedError:
            return ""

    return read


class _Output(NamedTuple):
    """A choice of `--output`: its fields, if it is JSON; a question if others are as likely."""

    output: str
    fields: AnswerFields | None
    question: str
    notes: list[str]


def _choose_output(
    look: FirstLook, title: str, input: str | None, kind: KindName | None
) -> _Output:
    held = _held_fields(look, title, input) if kind is None or kind_of(kind).has("schema") else None
    several = held if held is not None and (len(held.names) > 1 or kind) else None
    try:
        answer, question = _choose_answer(look, title, input or "", kind)
    except DataError:
        if several is None:
            raise
        question = (
            ""
            if kind
            else f"is the answer JSON of {_and(several.names)}, whose values the text holds?"
        )
        return _Output(several.spec, several, question, [])
    if several is None or kind:
        return _Output(answer.name, None, question, [])
    if answer.name in several.names and not (
        suggests(answer.name, "label") or suggests(answer.name, "likely label")
    ):
        # a text rarely contains its category
        question = question or f"is the answer in '{answer.name}'?"
    if question:
        question = (
            f"{question[:-1]}, or JSON of {_and(several.names)}, whose values the text holds?"
        )
        return _Output(several.spec, several, question, [])
    note = (
        f"the text holds the values of {_and(several.names)}: to extract these, --output "
        f"'{several.spec}'"
    )
    return _Output(answer.name, None, "", [note])


def _held_fields(look: FirstLook, title: str, input: str | None) -> AnswerFields | None:
    """The columns with values that the input text contains; None without one."""
    if input is None:
        if not likeliest(look.columns, "input"):
            return None
        input, _ = _choose_input(look, title, ())
    beside = [
        column.name
        for column in look.columns
        if column.name == input or reference(column.name) in input
    ]
    return answer_fields.found(look, _reader(look, title, "--input", input), beside=beside)


def _and(names: Sequence[str]) -> str:
    shown_names = [shown(name, 40) for name in names]
    return " and ".join(filter(None, (", ".join(shown_names[:-1]), shown_names[-1])))


def _left_out(
    fields: AnswerFields, others: Sequence[Column], read: Collection[str]
) -> Iterator[str]:
    """A note on the columns that the JSON object of the proposed
    `fields` lacks; `read` is the input.
    """
    kinds = ("constant", "empty", "id", "JSON")
    if names := [
        column.name for column in others if column.kind not in kinds and column.name not in read
    ]:
        whole = replace(fields, names=(*fields.names, *names)).spec
        yield (
            f"{_and(names)} stand in few texts as they are written; to take them too: --output "
            f"'{whole}'"
        )


def _odd_rows(pairs: Sequence[tuple[str, str]], fields: AnswerFields | None) -> Iterator[str]:
    """Notes about rows without any of the fields, and about a last row that is a sum."""
    empty = as_text(dict.fromkeys(fields.names)) if fields else ""
    if blank := sum(value == empty for _, value in pairs):
        yield (
            f"{percent(blank / len(pairs), 0)} of the rows have none of these values, so null is "
            "their right answer: "
            "take them out of the file if nobody has looked at them"
        )
    if pairs and is_total(pairs[-1][0]):
        yield (
            f"the last row looks like a sum ('{shown(pairs[-1][0], 40)}'): take it out of the "
            "file, or it is learned"
        )


def _choose_answer(
    look: FirstLook, title: str, input: str, kind: KindName | None
) -> tuple[Column, str]:
    """Returns (column of the answer, question if other columns are equally likely or '')."""
    others = [column for column in look.columns if column.name != input]
    texts = [column for column in others if column.kind == "text"]
    fitting = [
        column
        for column in others
        if _fits(column, kind) and (column.kind != "text" or len(texts) > 1)
    ]
    likely = likeliest(fitting, "answer")
    best = score(likely[0], "answer") if likely else 0.0
    doubt = best < NO_DOUBT or len(likely) > 1
    if best < LEAST:
        if len(texts) <= 1 - bool(input) or (kind is not None and not kind_of(kind).is_free):
            raise DataError(
                f"{title} has no column with an answer: {_what_there_is(look)}",
                hint="add a column with the right answer of each row (a category, JSON, or a "
                "text), or name it: "
                "--output COLUMN",
            )
        likely = texts[-2:]
    names = " or ".join(f"'{column.name}'" for column in likely)
    return likely[-1], f"is the answer in {names}?" if doubt else ""


def _fits(column: Column, kind: KindName | None) -> bool:
    """True for a column with values that are answers of this kind of task; None is any kind."""
    return kind in (None, _kind_of(column)) or (
        kind is not None and kind_of(kind).has("schema") and column.is_json
    )


def _kind_of(answer: Column) -> KindName:
    if answer.kind == "JSON":
        return "extract"
    if answer.kind == "labels":
        return "tag"
    return "generate" if answer.kind in ("text", "value") else "classify"


def _choose_input(look: FirstLook, title: str, taken: Collection[str]) -> tuple[str, str]:
    """Returns (column not in `taken`, or template, for the input;
    question if others are equally likely or '').
    """
    others = [column for column in look.columns if column.name not in taken]
    likely = sorted(likeliest(others, "input"), key=lambda column: -column.words)
    if not likely:
        raise DataError(
            f"{title} has no column with a text to read: {_what_there_is(look)}",
            hint="name one, or a template: --input '{{ first }} {{ second }}'",
        )
    chosen = likely[0]
    rivals = [repr(column.name) for column in likely if column.words > 0.5 * chosen.words]
    question = f"is the text in {' or '.join(rivals)}?" if len(rivals) > 1 else ""
    if subject := first((column for column in others if column is not chosen), "subject"):
        return f"{{{{ {reference(subject)} }}}}\n\n{{{{ {reference(chosen.name)} }}}}", question
    return chosen.name, question


def columns_in(spec: str, columns: Sequence[Column]) -> list[str]:
    """The columns in a template, in the order of `columns`; [spec] for the name of a column."""
    if not conversation_formats.is_template(spec):
        return [spec]
    names = [column.name for column in columns]
    named = set().union(*conversation_formats.names_in(_ROWS, spec, names))
    return [name for name in names if name in named]


def _require_sense(
    look: FirstLook,
    input: str,
    answer: Column,
    fields: AnswerFields | None,
    kind: KindName,
    *,
    chosen: bool,
) -> None:
    """Raise UsageError for columns that do not fit each other or the kind of task."""
    column = look.column(input)
    if column is answer or (fields is not None and input in fields.names):
        raise UsageError(
            f"'{input}' is named as input and as answer", hint="--input TEXT --output ANSWER"
        )
    rules = kind_of(kind)
    if fields is not None and (rules.calls or not rules.structured):
        raise UsageError(
            "several columns make one JSON object, which is the answer of extract, and the task "
            f"is {kind}",
            hint="--task extract, --task tag where they tick labels, or one column: --output "
            "COLUMN",
        )
    if rules.calls:
        raise UsageError(
            "init proposes a task of calls for conversations that offer tools, and these rows are "
            "a table",
            hint="slmctl init tool-calls shows a project; task.tools names the tools of a table",
        )
    if rules.has("schema") and not answer.is_json:
        raise UsageError(
            f"extract wants JSON in '{answer.name}', which holds '{shown(answer.example, 40)}'",
            hint="--output A,B for one JSON object of several columns, --task generate for texts, "
            "--task classify for "
            "few values",
        )
    if (
        chosen
        and column is not None
        and column.kind == "label"
        and answer.kind == "text"
        and not rules.is_free
    ):
        raise UsageError(
            f"the columns look swapped: '{input}' has {column.distinct} short values, and "
            f"'{answer.name}' holds texts",
            hint=f"--input {answer.name} --output {input}, or --task generate if that is what you "
            "want",
        )


def _swapped(input: str, answer: Column) -> Iterator[str]:
    """A note if the names of the columns suggest that input and answer are swapped."""
    named_text = suggests(answer.name, "text") and not suggests(answer.name, "label")
    if named_text and suggests(input, "label") and answer.kind in ("label", "constant"):
        yield (
            f"the columns look swapped: '{answer.name}' has {answer.different} short values, and "
            f"'{input}' holds "
            "the texts; they are taken by what they hold"
        )


def _what_there_is(look: FirstLook) -> str:
    """The first columns with their kinds, for an error."""
    return ", ".join(
        f"'{shown(column.name, 40)}' ({column.kind}, {column.reason})"
        for column in look.columns[:8]
    )
