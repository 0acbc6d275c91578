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
from typing import Any, Literal

import numpy as np
from rapidfuzz import process

from slmctl import child_environment, console, sensitive
from slmctl.config import Source, moment
from slmctl.deduplication import minhash, row_fingerprints
from slmctl.deduplication.minhash import U8, U64
from slmctl.errors import DataError
from slmctl.network import guard
from slmctl.normal_forms import in_normal_form
from slmctl.sensitive import Applied, SensitivePolicy, Tally
from slmctl.sources.rows import read_rows
from slmctl.stages.prepare import calls
from slmctl.stages.prepare.token_lengths import CountableText, LengthEstimate, TokenCounter
from slmctl.task import conversation_formats, split, tool_calls
from slmctl.task.contract import Task
from slmctl.task.conversation_formats import ConversationFormat, Messages, named_cell
from slmctl.task.records import Message, Record, RowRejectedError

BATCH = 500  # rows that one worker takes at a time
BATCH_SIZE = 5_000_000  # characters of them, roughly; a single row may have twice as many
CELL_COST = 50  # characters added for each cell, so that empty cells count too
AHEAD = 3  # batches per worker that are read ahead
REMEMBERED = 4096  # system prompts and labels whose findings are cached
PARALLEL_BYTES = 4_000_000  # bytes of sources from which starting workers pays

# json.dumps would build an encoder for each row
_encode = json.JSONEncoder(ensure_ascii=False).encode
_NO_DIGIT = re.compile(r"\D")
# no letter, and none of the punctuation, currencies, letterlike signs and variation selectors that
# make no difference
_SIGN = re.compile(r"[^\w\s\0-\u02ff\u2000-\u218f\ufe00-\ufe0f\U000e0000-\U000e0fff]")
_KINDS = ("Mn", "Mc", "Me", "So")  # of signs: those of vowels and other marks, emoji and the like

RawRow = tuple[int, dict[str, Any], str]  # number, columns, fault
# a step of cleaning, a label that was renamed, or a kind of value with a mark in its place in the
# answer
Change = tuple[Literal["clean", "label", "answer"], str]


@dataclass(frozen=True)
class RejectedRow:
    """A row that becomes no record, with the rule that rejects it, and the file that it is of."""

    number: int
    rule: str
    reason: str
    file: str


@dataclass(frozen=True)
class RecordBatch:
    """The `n` records among some rows of one source, and the rejected rows.

    Attributes:
        lines: Each record as it is written, without its line break.
        texts: Its input, normalised.
        keys, compact: `minhash.band_keys` and `compact` of `texts`.
        measures: Arrays over the records, `(n,)` and `(n, …)`, by name:
            numbers: Of the rows.
            digests: `minhash.digest` of `texts`.
            old_digests, old_compact: Of the inputs as they came in, before cleaning and redaction.
            digits: A hash of the digits, vowel signs and emoji of each input, which are alike or
                missing in `texts`.
            answers: A hash of each answer.
            positions: Between 0 and 1, from which the split follows.
            moments: Seconds since 1970, NaN without a time column.
            tokens: Length in the base's tokens.
    """

    source: int
    rejected: tuple[RejectedRow, ...]
    lines: tuple[bytes, ...]
    texts: tuple[str, ...]
    labels: tuple[str | None, ...]  # the answer, as JSON for several labels; None without labels
    keys: U64
    compact: U64
    measures: Mapping[str, np.ndarray]
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
        self._tokens = (
            TokenCounter(plan.task, plan.tokenizer)
            if plan.tokenizer is not None
            else LengthEstimate()
        )
        self._labels = frozenset(plan.labels) if plan.labels is not None else None
        self._applied: dict[str, Applied] = {}

    def read(self, source: int, rows: Sequence[RawRow]) -> RecordBatch:
        """The records among some rows of a source.

        Raises:
            DataError: The policy refuses personal data or a secret of a row, or the base's template
                takes too long.
        """
        rejected: list[RejectedRow] = []
        tally, sensitive_rows = Tally(), 0
        changes, taken = Counter[Change](), list[_ReadRow]()
        origin = self.plan.sources[source]
        for number, columns, fault in rows:
            try:
                if fault:
                    raise RowRejectedError("unreadable", fault)
                record, original, system = self._record(source, number, columns, changes)
                record, has_findings = self._apply_policy(source, record, tally, changes)
                if self.plan.task.rules.calls and has_findings:
                    # a redacted value may break its schema
                    self._require_call(record.answer, record.tools)
                sensitive_rows += has_findings
                line = _encode(record.to_json()).encode()
                time = self._moment(source, columns)
                countable = self._tokens.countable(record)
                taken.append(_ReadRow(number, record, original, system, line, time, countable))
            except RowRejectedError as error:
                reason = self.plan.policy.apply(error.reason).text  # it may quote the row
                rejected.append(RejectedRow(number, error.rule, reason, origin.place(columns)))
            except UnicodeEncodeError:
                reason = "holds half a surrogate pair, which is no text"
                rejected.append(RejectedRow(number, "unreadable", reason, origin.place(columns)))
        return self._batch(source, rejected, taken, tally, sensitive_rows, changes)

    def _record(
        self, source: int, number: int, columns: dict[str, Any], changes: Counter[Change]
    ) -> tuple[Record, str, str]:
        """Returns (record before the policy, input as it came in, the row's own system prompt or
        '').

        The id and the split follow from the row as it came in, so that cleaning moves no row to
        another split.
        """
        conversation, origin = self.formats[source].read(columns), self.plan.sources[source]
        system, messages = self._with_task_system(conversation.messages)
        rules = self.plan.task.rules
        if rules.calls:
            reply: Message = {
                **messages[-1],
                "content": calls.answer_in(messages[-1], self.formats[source].name),
            }
            reply.pop("tool_calls", None)
            messages = [*messages[:-1], reply]
            self._require_call(reply["content"], conversation.tools)
        messages = self._with_calls_as_text(messages, conversation.tools)
        cell = messages[-1]["content"]
        label_of = functools.partial(self._label, changes=changes)
        answer = rules.answer_of(cell, label_of, order=self.plan.labels, separator=origin.separator)
        group = named_cell(columns, origin.group)
        record = Record(
            id="",
            messages=(*messages[:-1], {**messages[-1], "content": answer}),
            source={"file": origin.place(columns), "row": number},
            # a source of one label is for a router, which is asked with the conversation alone
            tools=self._tools(conversation.tools) if origin.label is None else None,
            label=answer if rules.chooses else None,
            group=split.group_id(group) if group else None,
        )
        original = record.input
        own_id = named_cell(columns, origin.id)
        identity = _encode([original, cell if rules.chooses else answer]).encode()
        record = dataclasses.replace(
            record,
            id=row_fingerprints.id_digits(own_id)
            if own_id
            else hashlib.sha256(identity).hexdigest()[:16],
            messages=self._cleaned(record.messages, changes),
        )
        return record, original, system

    def _label(self, name: str, changes: Counter[Change]) -> str:
        """The label for which a name in the data stands; a renamed one is counted.

        Raises:
            RowRejectedError: It is none of the labels of the task.
        """
        label = self.plan.label_map.get(name, name)
        changes["label", name] += label != name
        if self._labels is None or label in self._labels:
            return label
        near = process.extractOne(label, self.plan.labels or (), score_cutoff=60)
        suggestion = f"; did you mean '{near[0]}'?" if near else ""
        raise RowRejectedError(
            "unknown label", f"'{label[:60]}' is not one of the task's labels{suggestion}"
        )

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
        own = "\n".join(message["content"] for message in messages if message["role"] == "system")
        if not self.plan.task.system:
            return own, messages
        rest = [message for message in messages if message["role"] != "system"]
        return own, [{"role": "system", "content": self.plan.task.system}, *rest]

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

    def _apply_policy(
        self, source: int, record: Record, tally: Tally, changes: Counter[Change]
    ) -> tuple[Record, bool]:
        """Returns (record after the policy on personal data and secrets, True if there were
        findings).

        A label is searched but never changed, or it would be another label.

        Raises:
            RowRejectedError: The policy leaves the row out.
            DataError: The policy ends the run.
        """
        names = dict(zip(("user", "assistant"), self.formats[source].fields, strict=True))
        last, messages, left, has_findings = len(record.messages) - 1, [], False, False
        rules = self.plan.task.rules
        for at, message in enumerate(record.messages):
            is_label = at == last and rules.has_labels
            if message["role"] == "system" or is_label:
                applied = self._apply_remembered(message["content"])
            else:
                in_json = at == last and rules.structured
                applied = self._apply(message["content"], in_json=in_json)
            messages.append(message)
            if not applied.findings:
                continue
            has_findings = True
            role = message["role"]
            tally.add(names.get(role, role), applied, self.plan.policy)
            kinds = ", ".join(sorted({finding.kind for finding in applied.findings}))
            if applied.action == "refuse":
                where = console.place(record.source["file"], record.source["row"])
                raise DataError(
                    f"{where} holds what the config refuses: {kinds}", hint="prepare.sensitive"
                )
            if applied.action == "drop":
                raise RowRejectedError("sensitive", f"holds personal data or a secret: {kinds}")
            left = left or applied.sensitive or is_label
            if not is_label:
                messages[at] = {**message, "content": applied.text}
            if at == last and messages[at] != message:
                marked = {finding.kind for finding in applied.findings}
                changes.update(
                    ("answer", kind)
                    for kind in marked
                    if self.plan.policy.actions[kind] == "redact"
                )
        if not has_findings:
            return record, False
        return dataclasses.replace(record, messages=tuple(messages), sensitive=left), True

    def _apply_remembered(self, text: str) -> Applied:
        """Apply the policy to a text that many rows share, with a cache."""
        if text not in self._applied:
            if len(self._applied) == REMEMBERED:
                self._applied.clear()
            self._applied[text] = self.plan.policy.apply(text)
        return self._applied[text]

    def _apply(self, text: str, *, in_json: bool) -> Applied:
        """Apply the policy to a text; to each string of an
        answer in JSON, so that it stays JSON.
        """
        if not in_json:
            return self.plan.policy.apply(text)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return self.plan.policy.apply(text)
        parts: list[Applied] = []
        changed = self._in_values(value, parts)
        touched = [part for part in parts if part.findings]
        if not touched:
            return Applied(text)
        action = max((part.action for part in touched), key=sensitive.FATES.index)
        kept = any(part.sensitive for part in touched)
        findings = tuple(finding for part in touched for finding in part.findings)
        return Applied(json.dumps(changed, ensure_ascii=False), findings, action, kept)

    def _in_values(self, value: Any, parts: list[Applied], key: str = "") -> Any:
        """A JSON value with the policy applied to its texts; keys and numbers are searched, and
        stay what they are.

        A text or number that stays as it is is searched again behind its key: `{"password":
        "hunter2"}`.
        """
        if isinstance(value, dict):
            parts += (_unchanged(self._apply_remembered(name)) for name in value)
            return {name: self._in_values(inner, parts, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [self._in_values(inner, parts, key) for inner in value]
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return value
        head, written = f"{key}: ", str(value)
        applied = self.plan.policy.apply(written)
        if (
            key
            and (applied.action, applied.text) == ("keep", written)
            and not self._apply_remembered(key).findings
        ):
            named = self.plan.policy.apply(head + written)
            applied = named if named.findings else applied
        parts.append(applied if isinstance(value, str) else _unchanged(applied))
        return applied.text.removeprefix(head) if isinstance(value, str) else value

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
        self,
        source: int,
        rejected: list[RejectedRow],
        rows: list[_ReadRow],
        tally: Tally,
        sensitive_rows: int,
        changes: Counter[Change],
    ) -> RecordBatch:
        records = [row.record for row in rows]
        before = [minhash.normalise(row.original) or row.original for row in rows]
        texts = [
            old
            if row.record.input == row.original
            else minhash.normalise(row.record.input) or row.record.input
            for old, row in zip(before, rows, strict=True)
        ]
        signatures = minhash.sketch(texts)
        compact = minhash.compact(signatures)
        changed = [k for k, (old, new) in enumerate(zip(before, texts, strict=True)) if old != new]
        old_compact = compact.copy()
        if changed:
            old_compact[changed] = minhash.compact(minhash.sketch([before[k] for k in changed]))
        keys = [record.group or text for record, text in zip(records, before, strict=True)]
        title, named = (
            self.plan.sources[source].title,
            {row.number: row.record.source["file"] for row in rows},
        )
        measures: dict[str, np.ndarray] = {
            "numbers": np.array([row.number for row in rows], dtype=np.int64),
            "digests": _digests(texts),
            "old_digests": _digests(before),
            "old_compact": old_compact,
            "digits": np.array(
                [_hash(_digits(record.input)) for record in records], dtype=np.uint64
            ),
            "answers": np.array([_hash(record.answer) for record in records], dtype=np.uint64),
            "positions": np.array([split.position_of(key) for key in keys], dtype=float),
            "moments": np.array([row.moment for row in rows], dtype=float),
            "tokens": self._tokens.count([row.countable for row in rows]),
        }
        return RecordBatch(
            source=source,
            rejected=tuple(rejected),
            lines=tuple(row.line for row in rows),
            texts=tuple(texts),
            labels=tuple(
                record.answer if self.plan.task.rules.has_labels else None for record in records
            ),
            keys=minhash.band_keys(signatures),
            compact=compact,
            measures=measures,
            tally=tally,
            sensitive=sensitive_rows,
            changes=+changes,
            echoes=sum(record.answer == record.input for record in records),
            files={number: file for number, file in named.items() if file != title},
            systems=frozenset(row.system for row in rows if row.system),
        )


def _unchanged(applied: Applied) -> Applied:
    """The findings of a key or number, which stays, so that its row is
    sensitive whatever would replace them.
    """
    return dataclasses.replace(applied, sensitive=bool(applied.findings))


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
            size += sum(
                CELL_COST + len(cell if isinstance(cell, str) else str(cell))
                for cell in row.columns.values()
            )
            if len(rows) == BATCH or size > BATCH_SIZE:
                yield index, rows
                rows, size = [], 0
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


def _digests(texts: Sequence[str]) -> U8:
    return np.frombuffer(b"".join(map(minhash.digest, texts)), dtype=np.uint8).reshape(
        -1, minhash.DIGEST
    )


def _digits(text: str) -> str:
    """The digits of a text and, after them, its signs."""
    digits = _NO_DIGIT.sub("", text)
    if text.isascii():
        return digits
    signs = _SIGN.findall(in_normal_form(text, "NFC"))
    return digits + "".join(sign for sign in signs if unicodedata.category(sign) in _KINDS)


def _hash(text: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    )
