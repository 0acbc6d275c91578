"""A user's file in, the same rows out with their answers: in order, in bounded memory, resumed after a kill.

The answers go to a journal beside the target, one line a row, bound to what was asked by a hash. When
the last one is there, the source is read once more and written out with them; the target appears under
its name only when it is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from slmctl import console
from slmctl.artifacts import atomic
from slmctl.artifacts.artifact import canonical, sha256_bytes, sha256_file
from slmctl.errors import DataError, LockedError, StageError, UsageError
from slmctl.inference import engine
from slmctl.sources.rows import listed, read_rows
from slmctl.sources.rows.cells import Row
from slmctl.stages.predict import table_writer
from slmctl.stages.predict.prompts import Answerer, prompt
from slmctl.task.contract import Task

CHUNK = 512  # rows asked together; as many are lost to a kill
NOT_SENSITIVE = ("", "0", "no", "n", "false", "f", "off")  # a mark in other words withholds the row


@dataclass(frozen=True)
class Job:
    """What is to be answered, and where it goes.

    Attributes:
        source, target: The files; `-` as the target is stdout.
        column: The column that is asked.
        format: What the source is, when its name does not say it.
        shard: Which part of how many, from (1, 1): a run of rows, so the parts in order are the whole.
        list_labels: Name the labels in the prompt, for a model that was not trained on them.
        withhold: Leave out rows that a column `sensitive` marks, since the answers come from elsewhere.
        identity: What else decides the answers, such as the model's digest; part of the journal's hash.
    """

    source: Path
    target: Path
    column: str
    format: str | None = None
    shard: tuple[int, int] = (1, 1)
    list_labels: bool = False
    withhold: bool = False
    identity: Mapping[str, Any] = field(default_factory=dict)

    def rows(self) -> Iterator[Row]:
        return read_rows(self.source, format=self.format)


def shard(text: str) -> tuple[int, int]:
    """`3/16` as (3, 16).

    Raises:
        UsageError: It is no part of a whole.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,6})/([1-9][0-9]{0,6})", text)
    if found is None or int(found[1]) > int(found[2]):
        raise UsageError(f"'{text}' is no part of a whole", hint="--shard 3/16 is the third of sixteen")
    return int(found[1]), int(found[2])


@contextlib.contextmanager
def spooled(source: Path, format: str | None) -> Iterator[tuple[Path, str | None]]:
    """The file to answer and its format; `-`, stdin, is copied to a file first, since it is read more than once."""
    if str(source) != "-":
        yield source, format
        return
    with tempfile.TemporaryDirectory(prefix="slmctl-") as folder:
        path = Path(folder) / "stdin"
        with path.open("wb") as stream:
            shutil.copyfileobj(sys.stdin.buffer, stream)
        yield path, format or "jsonl"


def answer_file(answerer: Answerer, task: Task, job: Job) -> tuple[int, int]:
    """Answer every row of a file: its columns are kept; `answer`, `confidence` and `error` are added.

    For `extract`, `valid` says whether the answer satisfies the schema. A bad row becomes a row with an error.

    Returns:
        Rows written, and how many of them have an error.

    Raises:
        DataError: The source has no such column, or one that would be overwritten, or cannot be read.
        LockedError: Another process writes the same target.
        UsageError: The target is of an unknown kind.
    """
    kind = "jsonl" if str(job.target) == "-" else table_writer.format_of(job.target)
    added = ["answer", "confidence", *(["valid"] if task.kind == "extract" else []), "error"]
    survey = table_writer.survey(job.rows(), job.source.name)
    _check_columns(job, survey, added)
    part, parts = job.shard
    first, last = survey.rows * (part - 1) // parts, survey.rows * part // parts
    with console.progress("predict", last - first, "rows") as meter:
        if str(job.target) == "-":
            wrong = 0
            for rows, answers in _answered(answerer, task, job, first, last):
                out = [row.columns | answer for row, answer in zip(rows, answers, strict=True)]
                console.write_json("".join(json.dumps(fields, ensure_ascii=False) + "\n" for fields in out))
                wrong += sum(bool(answer["error"]) for answer in answers)
                meter.advance(len(rows))
            return last - first, wrong
        with _journal(job, task) as journal:
            done = _take_up(journal, job, task)
            if done:
                console.say(f"  {done} of {last - first} rows were answered before; going on from there")
                meter.resume(done)
            for _, answers in _answered(answerer, task, job, first + done, last):
                journal.writelines(json.dumps(answer, ensure_ascii=False).encode() + b"\n" for answer in answers)
                journal.flush()
                os.fsync(journal.fileno())
                meter.advance(len(answers))
            wrong = _write_out(job, survey, kind, added, journal, first, last)
            Path(journal.name).unlink()
    return last - first, wrong


def _check_columns(job: Job, survey: table_writer.Survey, added: list[str]) -> None:
    if not survey.rows:
        raise DataError(f"{job.source.name} holds no rows")
    if survey.columns and job.column not in survey.columns:
        known = listed(list(survey.columns))
        raise DataError(f"{job.source.name} has no column '{job.column}'", hint=f"--column NAME; its columns: {known}")
    taken = [name for name in added if name in survey.columns]
    if taken:
        raise DataError(f"{job.source.name} already has a column '{taken[0]}'", hint="rename it: its values are kept")


def _answered(
    answerer: Answerer, task: Task, job: Job, first: int, last: int
) -> Iterator[tuple[list[Row], list[dict[str, Any]]]]:
    """The rows from `first` to before `last`, chunk by chunk, with what each one gets."""
    wanted = itertools.islice(job.rows(), first, last)
    while rows := list(itertools.islice(wanted, CHUNK)):
        found = {k: problem for k, row in enumerate(rows) if (problem := _problem(row, job))}
        asked = [k for k in range(len(rows)) if k not in found]
        prompts = [prompt(task, _question(rows[k], job), list_labels=job.list_labels) for k in asked]
        killed = []
        for index, answer in answerer.answer(prompts):
            found[asked[index]] = _fields(task, answer)
            if isinstance(answer, engine.EngineDiedError):
                killed.append(index)
        for index in killed:  # most of them were only in the company of the one that did it
            for _, answer in answerer.answer([prompts[index]]):
                found[asked[index]] = _fields(task, answer)
        errors = [found[asked[index]]["error"] for index in killed]
        if killed and len(killed) == len(prompts) and all(errors):
            raise StageError(f"every row ends the engine: {errors[0]}", hint="is the memory full?")
        extra = {"valid": False} if task.kind == "extract" else {}
        yield rows, [extra | found[k] for k in range(len(rows))]


def _problem(row: Row, job: Job) -> dict[str, Any] | None:
    """Why a row is not asked, if so."""
    error = row.fault
    if not error and not _question(row, job):
        error = f"'{job.column}' is empty"
    if not error and job.withhold and _marked_sensitive(row):
        error = "marked sensitive, so it is not sent to an endpoint"
    return {"answer": None, "confidence": None, "error": error} if error else None


def _question(row: Row, job: Job) -> str:
    """The cell that is asked, as `prepare` would read it."""
    cell = row.columns.get(job.column)
    if cell is None or isinstance(cell, str):
        return (cell or "").strip()
    return json.dumps(cell, ensure_ascii=False, sort_keys=True)


def _marked_sensitive(row: Row) -> bool:
    """Whether a row may not be sent. A mark in words that are not known says that it may not."""
    cells = [cell for name, cell in row.columns.items() if name.strip().casefold() == "sensitive"]
    return any(
        cell.strip().casefold() not in NOT_SENSITIVE if isinstance(cell, str) else cell not in (None, False, 0)
        for cell in cells
    )


def _fields(task: Task, answer: engine.Answer | engine.EngineError) -> dict[str, Any]:
    if isinstance(answer, engine.EngineError):
        return {"answer": None, "confidence": None, "error": answer.message}
    found: dict[str, Any] = {"answer": answer.text.strip(), "confidence": answer.confidence, "error": None}
    if task.kind == "extract":
        found["valid"] = task.accepts(answer.text)
    return found


# The journal


@contextlib.contextmanager
def _journal(job: Job, task: Task) -> Iterator[IO[bytes]]:
    """The file of answers so far, held against other processes."""
    path = job.target.with_name(f".{job.target.name}.answers")
    try:
        stream = path.open("a+b")
    except OSError as error:
        raise UsageError(f"{job.target} cannot be written: {error.strerror}") from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(f"{job.target} is being written by another process") from None
        yield stream


def _take_up(journal: IO[bytes], job: Job, task: Task) -> int:
    """Rows that an earlier run of the same job answered; the journal is cut to them, or begun."""
    head = canonical_line({"job": _hash(job, task)})
    journal.seek(0)
    if journal.readline() != head:
        journal.truncate(0)
        journal.write(head)
        journal.flush()
        return 0
    count, end = 0, len(head)
    for line in journal:
        if not line.endswith(b"\n"):
            break  # torn by a kill
        count, end = count + 1, end + len(line)
    journal.truncate(end)
    return count


def _hash(job: Job, task: Task) -> str:
    asked = {
        "source": sha256_file(job.source), "column": job.column, "format": job.format, "shard": list(job.shard),
        "list_labels": job.list_labels, "withhold": job.withhold, "task": task.digest, "identity": dict(job.identity),
    }  # fmt: skip
    return sha256_bytes(canonical(asked))


def canonical_line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True).encode() + b"\n"


def _write_out(
    job: Job, survey: table_writer.Survey, kind: str, added: list[str], journal: IO[bytes], first: int, last: int
) -> int:
    """Source and answers as the target; returns how many rows have an error."""
    journal.seek(0)
    journal.readline()
    answers = (json.loads(line) for line in journal)
    wrong = 0
    with (
        atomic.file(job.target) as draft,
        table_writer.writer(draft, kind, job.target, survey, added) as write,
    ):
        rows = itertools.islice(job.rows(), first, last)
        while block := list(itertools.islice(zip(rows, answers, strict=False), CHUNK)):
            write([{**row.columns, **answer} for row, answer in block])
            wrong += sum(bool(answer["error"]) for _, answer in block)
    return wrong
