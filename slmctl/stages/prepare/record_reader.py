"""Raw rows -> records, with the measures of each. A batch depends on its rows
alone, whatever the number of workers.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from rapidfuzz import process

from slmctl import child_environment
from slmctl.config import Source, moment
from slmctl.deduplication import minhash, row_fingerprints
from slmctl.deduplication.minhash import I64, U8, U64
from slmctl.errors import DataError
from slmctl.network import guard
from slmctl.normal_forms import in_normal_form
from slmctl.sensitive import SensitivePolicy, Tally
from slmctl.sources.rows import read_rows
from slmctl.stages.prepare import calls
from slmctl.stages.prepare.policy_search import Change, Findings, PolicySearch
from slmctl.stages.prepare.token_lengths import CountableText, LengthEstimate, TokenCounter
from slmctl.task import conversation_formats, split, tool_calls
from slmctl.task.contract import Task
from slmctl.task.conversation_formats import ConversationFormat, Messages, named_cell
from slmctl.task.records import Message, Record, RowRejectedError

BATCH = 500  # rows that one worker takes at a time
BATCH_SIZE = 5_000_000  # characters of them, roughly; a single row may have twice as many
CELL_COST = 50  # characters added for each cell, so that empty cells count too
AHEAD = 3  # batches per worker that are read ahead
PARALLEL_BYTES = 4_000_000  # bytes of sources from which starting workers pays

# json.dumps would build an encoder for each row
_encode = json.JSONEncoder(ensure_ascii=False).encode
_NO_DIGIT = re.compile(r"\D")
# no letter, and none of the punctuation, currencies, letterlike signs and variation selectors that
# make no difference
_SIGN = re.compile(r"[^\w\s\0-\u02ff\u2000-\u218f\ufe00-\ufe0f\U000e0000-\U000e0fff]")
_KINDS = ("Mn", "Mc", "Me", "So")  # of signs: those of vowels and other marks, emoji and the like

RawRow = tuple[int, dict[str, Any], str]  # number, columns, fault


@dataclass(frozen=True)
class RejectedRow:
    """A row that becomes no record, with the rule that rejects it, and the file that it is of."""

    number: int
    rule: str
    reason: str
    file: str


class Measures(NamedTuple):
    """Arrays over records, `(n,)` and `(n, …)`.

    Attributes:
        sources, numbers: The index of each row's source, and its number there.
        sizes: Bytes of its line.
        digests: `minhash.digest` of its input, normalised.
        old_digests, old_compact: Of the input as it came in, before cleaning and redaction.
        digits: A hash of the digits, vowel signs and emoji of its input, which are alike or
            missing in the normalised one.
        answers: A hash of its answer.
        positions: Between 0 and 1, from which the split follows.
        moments: Seconds since 1970, NaN without a time column.
        tokens: Length in the base's tokens.
    """

    sources: npt.NDArray[np.int32]
    numbers: I64
    sizes: I64
    digests: U8
    old_digests: U8
    old_compact: U64
    digits: U64
    answers: U64
    positions: npt.NDArray[np.float64]
    moments: npt.NDArray[np.float64]
    tokens: np.ndarray

    @classmethod
    def joined(cls, batches: Iterable[Self]) -> Self:
        """The measures of all records of some batches, in order."""
        return cls(*(np.concatenate(parts) for parts in zip(*batches, strict=True)))


@dataclass(frozen=True)
class RecordBatch:
    """The `n` records among some rows of one source, and the rejected rows.

    Attributes:
        lines: Each record as it is written, without its line break.
        texts: Its input, normalised.
        keys, compact: `minhash.band_keys` and `compact` of `texts`.
    """

    source: int
    rejected: tuple[RejectedRow, ...]
    lines: tuple[bytes, ...]
    texts: tuple[str, ...]
    labels: tuple[str | None, ...]  # the answer, as JSON for several labels; None without labels
    keys: U64
    compact: U64
    measures: Measures
    tally: Tally  # findings of personal data and secrets
    sensitive: int  # rows with findings
    changes: Counter[Change]  # rows with each
    echoes: int  # rows whose answer is their question
    files: Mapping[int, str]  # number of a row -> its document
    systems: frozenset[str]  # system prompts that rows bring


@dataclass(frozen=True)
class ReadingPlan:
    """The plan by which rows become records, in every worker.

    Attributes:
        task: The contract, as far as it is known before the rows are read.
        labels: The labels that are allowed; None allows all.
        by_time: True where the split needs the time of a row.
        policy: The action on personal data and secrets, by kind.
        tokenizer: The base's `tokenizer.json`; without one, tokens are estimated.
        label_map: A label of the rows -> the label that it is renamed to.
        forms: The form of each source's file, in words.
    """

    sources: tuple[Source, ...]
    columns: tuple[tuple[str, ...], ...]
    task: Task
    labels: tuple[str, ...] | None
    by_time: bool
    policy: SensitivePolicy
    tokenizer: Path | None
    label_map: Mapping[str, str] = field(default_factory=dict)
    forms: tuple[str, ...] = ()

    def formats(self) -> list[ConversationFormat]:
        """The conversation format of each source.

        Raises:
            DataError: A column is missing, or a template is not valid.
        """
        return [
            conversation_formats.recognise(source, columns, calls=self.task.rules.calls)
            for source, columns in zip(self.sources, self.columns, strict=True)
        ]


class _UnsearchedRow(NamedTuple):
    """A record before the policy, its input as it came in, and its row's own system prompt."""

    record: Record
    original: str
    system: str


@dataclass(frozen=True)
class _ReadRow:
    """One row as a record.

    Attributes:
        original: Its input as it came in, before cleaning and redaction.
        system: The row's own system prompt, or ''.
        countable: The text whose tokens are counted.
    """

    number: int
    record: Record
    original: str
    system: str
    line: bytes
    moment: float
    countable: CountableText


class RecordReader:
    def __init__(self, plan: ReadingPlan) -> None:
        self.plan = plan
        self.formats = plan.formats()
        self._tokens: TokenCounter | LengthEstimate = LengthEstimate()
        if plan.tokenizer is not None:
            self._tokens = TokenCounter(plan.task, plan.tokenizer)
        self._labels = frozenset(plan.labels) if plan.labels is not None else None
        self._search = PolicySearch(plan.policy, plan.task.rules)

    def read(self, source: int, rows: Sequence[RawRow]) -> RecordBatch:
        """The records among some rows of a source.

        Raises:
            DataError: The policy refuses personal data or a secret of a row, or the base's template
                takes too long.
        """
        findings = Findings()
        rejected: list[RejectedRow] = []
        taken: list[_ReadRow] = []
        origin = self.plan.sources[source]
        for number, columns, fault in rows:
            try:
                if fault:
                    raise RowRejectedError("unreadable", fault)
                taken.append(self._read_row(source, number, columns, findings))
            except RowRejectedError as error:
                reason = self.plan.policy.apply(error.reason).text  # it may quote the row
                rejected.append(RejectedRow(number, error.rule, reason, origin.place(columns)))
            except UnicodeEncodeError:
                reason = "holds half a surrogate pair, which is no text"
                rejected.append(RejectedRow(number, "unreadable", reason, origin.place(columns)))
        return self._batch(source, rejected, taken, findings)

    def _read_row(
        self, source: int, number: int, columns: dict[str, Any], findings: Findings
    ) -> _ReadRow:
        fields = self.formats[source].fields
        unsearched = self._record(source, number, columns, findings.changes)
        record, has_findings = self._search.apply(unsearched.record, fields, findings)
        if self.plan.task.rules.calls and has_findings:
            # a redacted value may break its schema
            self._require_call(record.answer, record.tools)
        findings.rows += has_findings
        return _ReadRow(
            number=number,
            record=record,
            original=unsearched.original,
            system=unsearched.system,
            line=_encode(record.to_json()).encode(),
            moment=self._moment(source, columns),
            countable=self._tokens.countable(record),
        )

    def _record(
        self, source: int, number: int, columns: dict[str, Any], changes: Counter[Change]
    ) -> _UnsearchedRow:
        """The record of a row before the policy.

        The id and the split follow from the row as it came in, so that cleaning moves no row to
        another split.
        """
        conversation = self.formats[source].read(columns)
        origin = self.plan.sources[source]
        system, messages = self._with_task_system(conversation.messages)
        rules = self.plan.task.rules
        if rules.calls:
            reply = self._call_of(source, messages[-1])
            messages = [*messages[:-1], reply]
            self._require_call(reply["content"], conversation.tools)
        messages = self._with_calls_as_text(messages, conversation.tools)
        cell = messages[-1]["content"]
        label_of = functools.partial(self._label, changes=changes)
        answer = rules.answer_of(cell, label_of, order=self.plan.labels, separator=origin.separator)
        last: Message = {**messages[-1], "content": answer}
        group = named_cell(columns, origin.group)
        group_id = split.group_id(group) if group else None
        # a source of one label is for a router, which is asked with the conversation alone
        tools = self._tools(conversation.tools) if origin.label is None else None
        record = Record(
            id="",
            messages=(*messages[:-1], last),
            source={"file": origin.place(columns), "row": number},
            tools=tools,
            label=answer if rules.chooses else None,
            group=group_id,
        )
        original = record.input
        own_id = named_cell(columns, origin.id)
        identity = _id_of(original, cell if rules.chooses else answer, own_id)
        cleaned = self._cleaned(record.messages, changes)
        record = dataclasses.replace(record, id=identity, messages=cleaned)
        return _UnsearchedRow(record, original, system)

    def _call_of(self, source: int, message: Message) -> Message:
        """An assistant's message with its call, or NO_CALL, as its text."""
        call = calls.answer_in(message, self.formats[source].name)
        reply: Message = {**message, "content": call}
        reply.pop("tool_calls", None)
        return reply

    def _label(self, name: str, changes: Counter[Change]) -> str:
        """The label for which a name in the data stands; a renamed one is counted.

        Raises:
            RowRejectedError: It is none of the labels of the task.
        """
        label = self.plan.label_map.get(name, name)
        changes["label", name] += label != name
        if self._labels is None or label in self._labels:
            return label
        reason = f"'{label[:60]}' is not one of the task's labels"
        near = process.extractOne(label, self.plan.labels or (), score_cutoff=60)
        if near:
            reason += f"; did you mean '{near[0]}'?"
        raise RowRejectedError("unknown label", reason)

    def _cleaned(
        self, messages: tuple[Message, ...], changes: Counter[Change]
    ) -> tuple[Message, ...]:
        """The messages with the user's texts cleaned; each step that
        changed one of them is counted once.
        """
        if not self.plan.task.cleans:
            return messages
        cleaned, steps = list(messages), set[str]()
        for at, message in enumerate(messages[:-1]):
            if message["role"] == "user":
                text, made = self.plan.task.cleaned_text(message["content"])
                cleaned[at] = {**message, "content": text}
                steps.update(made)
        changes.update(("clean", step) for step in steps)
        return tuple(cleaned)

    def _with_task_system(self, messages: Messages) -> tuple[str, Messages]:
        """Returns (the conversation's own system prompt, its messages with
        the task's instead, if the task has one).
        """
        own = [message["content"] for message in messages if message["role"] == "system"]
        if self.plan.task.system:
            rest = [message for message in messages if message["role"] != "system"]
            messages = [{"role": "system", "content": self.plan.task.system}, *rest]
        return "\n".join(own), messages

    def _with_calls_as_text(self, messages: Messages, tools: list[Any] | None) -> Messages:
        """The messages with every tool call as the text that the base's template makes of it."""
        before: Messages = []
        for message in messages:
            if "tool_calls" in message:
                message = self.plan.task.with_calls_as_text(before, message, tools)
            before.append(message)
        return before

    def _tools(self, tools: list[Any] | None) -> tuple[Any, ...] | None:
        """A conversation's own tools, for a `call` task in the form that
        calls are checked by; None without any.
        """
        if not tools or not self.plan.task.rules.calls:
            return tuple(tools) if tools else None
        return tuple(tool.to_json() for tool in self.plan.task.rules.offered(tools))

    def _require_call(self, answer: str, tools: Sequence[Any] | None) -> None:
        """Refuse an answer that is neither `none` nor a call of an offered tool with arguments that
        fit.

        Raises:
            RowRejectedError: The answer is neither, or no tools are offered at all.
        """
        try:
            offered = self.plan.task.rules.offered(tools)
        except DataError as error:
            raise RowRejectedError("bad tools", error.message) from None
        if not offered:
            raise RowRejectedError(
                "bad tools", "the row has no tools, and the task has none: task.tools names them"
            )
        if tools:  # the task's own tools are checked when the config is read
            calls.require_grammar(offered)
        tool_calls.require_offered(tool_calls.read_answer(answer), offered)

    def _moment(self, source: int, columns: dict[str, Any]) -> float:
        """The time of a row in seconds since 1970; NaN where the split does not need it."""
        column = self.plan.sources[source].time
        if not self.plan.by_time or column is None:
            return float("nan")
        try:
            return moment(named_cell(columns, column)).timestamp()
        except (ValueError, OverflowError) as error:
            raise RowRejectedError("unreadable time", f"'{column}': {error}") from None

    def _batch(
        self, source: int, rejected: list[RejectedRow], rows: list[_ReadRow], findings: Findings
    ) -> RecordBatch:
        before = [_normalised(row.original) for row in rows]
        texts = before.copy()
        for k, row in enumerate(rows):
            if row.record.input != row.original:
                texts[k] = _normalised(row.record.input)
        signatures = minhash.sketch(texts)
        compact = minhash.compact(signatures)
        changed = [k for k, text in enumerate(texts) if text != before[k]]
        old_compact = compact.copy()
        if changed:
            old_signatures = minhash.sketch([before[k] for k in changed])
            old_compact[changed] = minhash.compact(old_signatures)
        records = [row.record for row in rows]
        echoes = sum(record.answer == record.input for record in records)
        labels: tuple[str | None, ...] = (None,) * len(rows)
        if self.plan.task.rules.has_labels:
            labels = tuple(record.answer for record in records)
        origin = self.plan.sources[source]
        files = {row.number: row.record.source["file"] for row in rows}
        others = {number: file for number, file in files.items() if file != origin.title}
        lines = tuple(row.line for row in rows)
        systems = frozenset(row.system for row in rows if row.system)
        keys = minhash.band_keys(signatures)
        measures = self._measures(source, rows, texts, before, old_compact)
        return RecordBatch(
            source=source,
            rejected=tuple(rejected),
            lines=lines,
            texts=tuple(texts),
            labels=labels,
            keys=keys,
            compact=compact,
            measures=measures,
            tally=findings.tally,
            sensitive=findings.rows,
            changes=+findings.changes,
            echoes=echoes,
            files=others,
            systems=systems,
        )

    def _measures(
        self,
        source: int,
        rows: list[_ReadRow],
        texts: list[str],
        before: list[str],
        old_compact: U64,
    ) -> Measures:
        """The measures of some rows, whose inputs, normalised, are `texts`, and were `before`."""
        numbers = np.array([row.number for row in rows], np.int64)
        sizes = np.array([len(row.line) for row in rows], np.int64)
        moments = np.array([row.moment for row in rows], float)
        records = [row.record for row in rows]
        keys = [record.group or text for record, text in zip(records, before, strict=True)]
        positions = np.array([split.position_of(key) for key in keys], float)
        digits = _hashes(_digits(record.input) for record in records)
        answers = _hashes(record.answer for record in records)
        tokens = self._tokens.count([row.countable for row in rows])
        return Measures(
            sources=np.full(len(rows), source, np.int32),
            numbers=numbers,
            sizes=sizes,
            digests=_digests(texts),
            old_digests=_digests(before),
            old_compact=old_compact,
            digits=digits,
            answers=answers,
            positions=positions,
            moments=moments,
            tokens=tokens,
        )


def _id_of(original: str, answer: str, own_id: str) -> str:
    """A record's id, from its row's own id, or from its input as it came in and its answer."""
    identity = _encode([original, answer]).encode()
    if own_id:
        return row_fingerprints.id_digits(own_id)
    return hashlib.sha256(identity).hexdigest()[:16]


def read_batches(plan: ReadingPlan, workers: int) -> Generator[RecordBatch, None, None]:
    """Every row of every source, in order, read by this process, or by workers from PARALLEL_BYTES
    on.

    Raises:
        DataError: A source cannot be read.
    """
    size = sum(source.local.stat().st_size for source in plan.sources)
    if workers < 2 or size < PARALLEL_BYTES:
        reader = RecordReader(plan)
        for source, rows in _raw_batches(plan.sources):
            yield reader.read(source, rows)
        return
    # spawned: a fork would copy whatever threads and locks this process holds
    pool = ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=_start_worker, initargs=(plan,)
    )
    waiting: list[Future[RecordBatch]] = []
    try:
        for source, rows in _raw_batches(plan.sources):
            with child_environment.hidden():  # the first one starts the processes
                waiting.append(pool.submit(_read_in_worker, source, rows))
            if len(waiting) > AHEAD * workers:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
    finally:
        pool.shutdown(cancel_futures=True)


def _raw_batches(sources: Iterable[Source]) -> Iterator[tuple[int, list[RawRow]]]:
    for index, source in enumerate(sources):
        rows: list[RawRow] = []
        size = 0
        for row in read_rows(source.local, **source.reading):
            rows.append((row.number, row.columns, row.fault))
            cells = map(str, row.columns.values())
            size += sum(CELL_COST + len(cell) for cell in cells)
            if len(rows) == BATCH or size > BATCH_SIZE:
                yield index, rows
                rows = []
                size = 0
        if rows:
            yield index, rows


_reader: RecordReader  # of this worker


def _start_worker(plan: ReadingPlan) -> None:
    global _reader
    guard.seal()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a worker for each processor already
    _reader = RecordReader(plan)


def _read_in_worker(source: int, rows: list[RawRow]) -> RecordBatch:
    return _reader.read(source, rows)


def _normalised(text: str) -> str:
    return minhash.normalise(text) or text


def _digests(texts: Sequence[str]) -> U8:
    joined = b"".join(map(minhash.digest, texts))
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, minhash.DIGEST)


def _digits(text: str) -> str:
    """The digits of a text and, after them, its signs."""
    digits = _NO_DIGIT.sub("", text)
    if text.isascii():
        return digits
    signs = _SIGN.findall(in_normal_form(text, "NFC"))
    return digits + "".join(sign for sign in signs if unicodedata.category(sign) in _KINDS)


def _hashes(texts: Iterable[str]) -> U64:
    return np.array([_hash(text) for text in texts], dtype=np.uint64)


def _hash(text: str) -> int:
    written = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(written, digest_size=8).digest())
