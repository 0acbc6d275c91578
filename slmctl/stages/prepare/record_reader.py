"""Raw rows -> records, with what is measured of each. A batch depends on its rows alone, so workers change nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rapidfuzz import process

from slmctl import child_environment, sensitive
from slmctl.config import Source, moment
from slmctl.deduplication import minhash, row_fingerprints
from slmctl.deduplication.minhash import U8, U64
from slmctl.errors import DataError
from slmctl.network import guard
from slmctl.sensitive import Applied, SensitivePolicy, Tally
from slmctl.sources.rows import read_rows
from slmctl.stages.prepare import conversation_formats
from slmctl.stages.prepare.split import position_of
from slmctl.stages.prepare.token_lengths import TokenCounter
from slmctl.task.contract import Task
from slmctl.task.records import Record

BATCH = 500  # rows that one worker takes at a time
BATCH_SIZE = 5_000_000  # characters of them, roughly; a single row may have twice as many
AHEAD = 3  # batches a worker that are read before they are needed
REMEMBERED = 4096  # system prompts and labels whose findings are remembered
PARALLEL_BYTES = 4_000_000  # bytes of sources from which starting workers pays

_encode = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would build an encoder for each row
_NO_DIGIT = re.compile(r"\D")

RawRow = tuple[int, dict[str, Any], str]  # number, columns, fault


@dataclass(frozen=True)
class RejectedRow:
    """A row that is left out, and the rule that says so."""

    number: int
    rule: str
    reason: str


@dataclass(frozen=True)
class RecordBatch:
    """What became of some rows of one source: `n` records, and the rows that are none.

    Attributes:
        lines: Each record as it is written, without its line break.
        texts: Its input, normalised.
        digests, keys, compact: `similar.digest`, `band_keys` and `compact` of `texts`.
        old_digests, old_compact: The same of the inputs as they came in, before anything was redacted.
        digits: `(n,)`, a hash of the digits of each input, which are all alike in `texts`.
        answers: `(n,)`, a hash of each answer.
        places: `(n,)`, where between 0 and 1 a record falls, of which its side follows.
        moments: `(n,)`, seconds since 1970, NaN without a time column.
        tokens: `(n,)`, length in the base's tokens.
    """

    source: int
    rejected: tuple[RejectedRow, ...]
    numbers: tuple[int, ...]
    lines: tuple[bytes, ...]
    texts: tuple[str, ...]
    labels: tuple[str | None, ...]
    digests: U8
    keys: U64
    compact: U64
    old_digests: U8
    old_compact: U64
    digits: U64
    answers: U64
    places: np.ndarray
    moments: np.ndarray
    tokens: np.ndarray
    tally: Tally = field(default_factory=Tally)  # personal data and secrets that were found
    sensitive: int = 0  # rows in which some were found
    echoes: int = 0  # rows whose answer is their question
    systems: frozenset[str] = frozenset()  # system prompts that rows brought with them


@dataclass(frozen=True)
class ReadingPlan:
    """How rows become records; what a worker is given.

    Attributes:
        columns: The columns of each source.
        task: The contract, as far as it is known before the rows are.
        labels: The labels that are allowed; None takes all.
        policy: What becomes of personal data and secrets.
    """

    sources: tuple[Source, ...]
    columns: tuple[tuple[str, ...], ...]
    task: Task
    labels: tuple[str, ...] | None
    by_time: bool
    policy: SensitivePolicy
    tokenizer: Path

    def shapes(self) -> list[conversation_formats.ConversationFormat]:
        """The shape of each source; raises what `_shapes.recognise` raises."""
        return [
            conversation_formats.recognise(source, known)
            for source, known in zip(self.sources, self.columns, strict=True)
        ]


class DataRefusedError(DataError):
    """A row holds what must not be in the data at all, so no row is taken."""


class RecordReader:
    """Turns rows into records."""

    def __init__(self, reading: ReadingPlan) -> None:
        self.reading, self.task = reading, reading.task
        self.shapes = reading.shapes()
        self._lengths = TokenCounter(self.task, reading.tokenizer)
        self._known = frozenset(reading.labels) if reading.labels is not None else None
        self._often: dict[str, Applied] = {}

    def read(self, source: int, rows: Sequence[RawRow]) -> RecordBatch:
        """The records among some rows of a source."""
        rejected: list[RejectedRow] = []
        tally, found = Tally(), 0
        numbers, lines, records, originals, moments, systems = [], [], [], [], [], set()
        for number, columns, fault in rows:
            try:
                if fault:
                    raise DataError(fault, hint="unreadable")
                record, original, system = self._record(source, number, columns)
                record, touched = self._cleared(source, record, tally)
                found += touched
                line = _encode(record.to_json()).encode()
                moments.append(self._moment(source, columns))
            except DataRefusedError:
                raise
            except DataError as error:
                reason = self.reading.policy.apply(error.message).text  # it may quote the row
                rejected.append(RejectedRow(number, getattr(error, "rule", error.hint), reason))
                continue
            except UnicodeEncodeError:
                rejected.append(RejectedRow(number, "unreadable", "holds half a surrogate pair, which is no text"))
                continue
            numbers.append(number)
            lines.append(line)
            records.append(record)
            originals.append(original)
            if system:
                systems.add(system)
        batch = self._measured(source, rejected, numbers, lines, records, originals, moments, systems)
        return dataclasses.replace(batch, tally=tally, sensitive=found)

    def _record(self, source: int, number: int, columns: dict[str, Any]) -> tuple[Record, str, str]:
        """One row as a record; its input as it came in; the system prompt that it brought."""
        conversation = self.shapes[source].read(columns)
        system, messages = self._opened(conversation.messages)
        messages = self._spoken(messages, conversation.tools)
        answer = messages[-1]["content"]
        if self.task.kind == "classify":
            self._require_label(answer)
        elif self.task.kind == "extract":
            answer = _as_json(answer)
            messages = [*messages[:-1], {**messages[-1], "content": answer}]
        origin = self.reading.sources[source]
        group = conversation_formats.cell(columns.get(origin.group)) if origin.group else ""
        record = Record(
            id="",
            messages=tuple(messages),
            source={"file": origin.title, "row": number},
            tools=tuple(conversation.tools) if conversation.tools else None,
            label=answer if self.task.kind == "classify" else None,
            group=hashlib.sha256(f"group/{group}".encode()).hexdigest()[:12] if group else None,
        )
        original = record.input
        own = conversation_formats.cell(columns.get(origin.id)) if origin.id else ""
        if own:
            return dataclasses.replace(record, id=row_fingerprints.id_digits(own)), original, system
        identity = _encode([original, answer]).encode()
        return dataclasses.replace(record, id=hashlib.sha256(identity).hexdigest()[:16]), original, system

    def _opened(self, messages: conversation_formats.Messages) -> tuple[str, conversation_formats.Messages]:
        """The system prompt that a conversation brought, and its messages with the task's in its place."""
        own = "\n".join(message["content"] for message in messages if message["role"] == "system")
        if not self.task.system:
            return own, messages
        rest = [message for message in messages if message["role"] != "system"]
        return own, [{"role": "system", "content": self.task.system}, *rest]

    def _spoken(
        self, messages: conversation_formats.Messages, tools: list[Any] | None
    ) -> conversation_formats.Messages:
        """The messages with every tool call as the text that the base's template makes of it."""
        said: conversation_formats.Messages = []
        for message in messages:
            if "tool_calls" in message:
                message = self.task.spoken(said, message, tools)
            said.append(message)
        return said

    def _cleared(self, source: int, record: Record, tally: Tally) -> tuple[Record, bool]:
        """The record after the policy on personal data and secrets, and whether any were found.

        A label is searched but never changed, or it would be another label.

        Raises:
            DataError: The row is to be left out.
            RefusedError: The run is to be ended.
        """
        names = dict(zip(("user", "assistant"), self.shapes[source].fields, strict=True))
        last, messages, left, touched = len(record.messages) - 1, [], False, False
        for at, message in enumerate(record.messages):
            if message["role"] == "system" or (at == last and record.label is not None):
                applied = self._applied_often(message["content"])
            else:
                applied = self._applied(message["content"], in_json=at == last and self.task.kind == "extract")
            messages.append(message)
            if not applied.findings:
                continue
            touched = True
            role = message["role"]
            tally.add(names.get(role, role), applied, self.reading.policy)
            kinds = ", ".join(sorted({finding.kind for finding in applied.findings}))
            if applied.action == "refuse":
                where = f"{record.source['file']} row {record.source['row']}"
                raise DataRefusedError(f"{where} holds what the config refuses: {kinds}", hint="prepare.sensitive")
            if applied.action == "drop":
                raise DataError(f"holds personal data or a secret: {kinds}", hint="sensitive")
            fixed = at == last and record.label is not None
            left = left or applied.sensitive or fixed
            if not fixed:
                messages[at] = {**message, "content": applied.text}
        if not touched:
            return record, False
        return dataclasses.replace(record, messages=tuple(messages), sensitive=left), True

    def _applied_often(self, text: str) -> Applied:
        """The policy on a text that many rows share."""
        if text not in self._often:
            if len(self._often) == REMEMBERED:
                self._often.clear()
            self._often[text] = self.reading.policy.apply(text)
        return self._often[text]

    def _applied(self, text: str, *, in_json: bool) -> Applied:
        """The policy on a text; of an answer in JSON, on each text in it, so that it stays JSON."""
        if not in_json:
            return self.reading.policy.apply(text)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return self.reading.policy.apply(text)
        parts: list[Applied] = []
        changed = self._in_values(value, parts)
        found = [part for part in parts if part.findings]
        if not found:
            return Applied(text)
        action = max((part.action for part in found), key=sensitive.FATES.index)
        kept = any(part.sensitive for part in found)
        findings = tuple(finding for part in found for finding in part.findings)
        return Applied(json.dumps(changed, ensure_ascii=False), findings, action, kept)

    def _in_values(self, value: Any, parts: list[Applied]) -> Any:
        """A JSON value with the policy applied to its texts; a number is searched and stays, or it would be none."""
        if isinstance(value, dict):
            return {key: self._in_values(inner, parts) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._in_values(inner, parts) for inner in value]
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return value
        applied = self.reading.policy.apply(str(value))
        if isinstance(value, str):
            parts.append(applied)
            return applied.text
        parts.append(dataclasses.replace(applied, sensitive=bool(applied.findings)))
        return value

    def _require_label(self, answer: str) -> None:
        if self._known is None or answer in self._known:
            return
        near = process.extractOne(answer, self.reading.labels or (), score_cutoff=60)
        more = f"; did you mean '{near[0]}'?" if near else ""
        raise DataError(f"'{answer[:60]}' is not one of the task's labels{more}", hint="unknown label")

    def _moment(self, source: int, columns: dict[str, Any]) -> float:
        column = self.reading.sources[source].time
        if not self.reading.by_time or column is None:
            return float("nan")
        try:
            return moment(conversation_formats.cell(columns.get(column))).timestamp()
        except (ValueError, OverflowError) as error:
            raise DataError(f"'{column}': {error}", hint="unreadable time") from None

    def _measured(
        self, source: int, rejected: list[RejectedRow], numbers: list[int], lines: list[bytes], records: list[Record],
        originals: list[str], moments: list[float], systems: set[str],
    ) -> RecordBatch:  # fmt: skip
        before = [minhash.normalise(text) or text for text in originals]
        texts = [
            old if record.input == text else minhash.normalise(record.input) or record.input
            for old, record, text in zip(before, records, originals, strict=True)
        ]
        signatures = minhash.sketch(texts)
        compact = minhash.compact(signatures)
        changed = [k for k, (old, new) in enumerate(zip(before, texts, strict=True)) if old != new]
        first = compact.copy()
        if changed:
            first[changed] = minhash.compact(minhash.sketch([before[k] for k in changed]))
        return RecordBatch(
            source=source,
            rejected=tuple(rejected),
            numbers=tuple(numbers),
            lines=tuple(lines),
            texts=tuple(texts),
            labels=tuple(record.label for record in records),
            digests=_digests(texts),
            keys=minhash.band_keys(signatures),
            compact=compact,
            old_digests=_digests(before),
            old_compact=first,
            digits=np.array([_hash(_NO_DIGIT.sub("", record.input)) for record in records], dtype=np.uint64),
            answers=np.array([_hash(record.answer) for record in records], dtype=np.uint64),
            places=np.array(
                [position_of(r.group or text) for r, text in zip(records, before, strict=True)], dtype=float
            ),
            moments=np.array(moments, dtype=float),
            tokens=self._lengths.of(records),
            echoes=sum(record.answer == record.input for record in records),
            systems=frozenset(systems),
        )


def _as_json(answer: str) -> str:
    """An answer in JSON as every one is written, which is the form that a model is later held to.

    Raises:
        DataError: It is not JSON.
    """
    try:
        return json.dumps(json.loads(answer), ensure_ascii=False, sort_keys=True, allow_nan=False)
    except (ValueError, RecursionError):
        raise DataError(f"the answer is not JSON: '{answer[:60]}'", hint="answer is not JSON") from None


def read_batches(reading: ReadingPlan, workers: int) -> Generator[RecordBatch, None, None]:
    """Every row of every source, in order, read by this process or, when there is much to do, by others.

    Raises:
        DataError: A source cannot be read.
    """
    size = sum(source.local.stat().st_size for source in reading.sources)
    if workers < 2 or size < PARALLEL_BYTES:
        reader = RecordReader(reading)
        for source, rows in _raw_batches(reading.sources):
            yield reader.read(source, rows)
        return
    # spawned: a fork would copy whatever threads and locks this process holds
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker, initargs=(reading,))
    waiting: list[Future[RecordBatch]] = []
    try:
        for source, rows in _raw_batches(reading.sources):
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
        for row in read_rows(source.local, sheet=source.sheet, format=source.format):
            rows.append((row.number, row.columns, row.fault))
            size += sum(len(cell if isinstance(cell, str) else str(cell)) for cell in row.columns.values())
            if len(rows) == BATCH or size > BATCH_SIZE:
                yield index, rows
                rows, size = [], 0
        if rows:
            yield index, rows


_reader: RecordReader  # of this worker


def _start_worker(reading: ReadingPlan) -> None:
    global _reader
    guard.seal()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a worker for each processor already
    _reader = RecordReader(reading)


def _read_in_worker(source: int, rows: list[RawRow]) -> RecordBatch:
    return _reader.read(source, rows)


def _digests(texts: Sequence[str]) -> U8:
    return np.frombuffer(b"".join(map(minhash.digest, texts)), dtype=np.uint8).reshape(-1, minhash.DIGEST)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
