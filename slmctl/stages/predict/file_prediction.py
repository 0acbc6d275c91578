"""A file of rows and a model -> the same rows with answers: in order, in bounded memory, resumed
after a kill.

The rows come from a snapshot (`row_snapshot`). Their answers go to a journal next to the target,
one line a row, bound by a hash to the rows and to every setting that decides an answer. When the
journal is complete, rows and answers become the target, which appears under its name only when it
is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from slmctl import console
from slmctl.artifacts import atomic
from slmctl.artifacts.artifact import canonical, sha256_bytes
from slmctl.errors import DataError, LockedError, UsageError
from slmctl.sources.rows import listed
from slmctl.sources.rows.cells import as_text
from slmctl.stages.predict import row_answers, row_snapshot, table_writer, workbook_writer
from slmctl.stages.predict.answer_columns import AnswerColumns
from slmctl.stages.predict.row_answers import AnswerRows, RowInput
from slmctl.stages.predict.row_snapshot import STREAM, RowSnapshot
from slmctl.task.contract import Task
from slmctl.task.documents import windows


@dataclass(frozen=True)
class Job:
    """The rows to answer, and the file that the answers go to.

    Attributes:
        source: A file of rows.
        target: The file to write; `-` for JSON Lines on stdout.
        reading: The reading of a row as a question.
        format: The format of the source, when its name does not tell.
        sheet: The sheet of a workbook, the table of a database, or the array of a JSON object.
        encoding: The encoding of the source, when it does not show.
        plain: Write a text as UTF-8 with LF and, in CSV, commas, and not in the form that the
            source has.
        shard: (k, n): only the k-th of n runs of rows; the outputs in order are the whole.
        columns: The columns of the source that are written; None for all of them.
        identity: Further values that decide the answers, such as the model's digest; part of the
            journal's hash.
    """

    source: Path
    target: Path
    reading: RowInput
    format: str | None = None
    sheet: str | None = None
    encoding: str | None = None
    plain: bool = False
    shard: tuple[int, int] = (1, 1)
    columns: tuple[str, ...] | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)


def shard(text: str) -> tuple[int, int]:
    """`3/16` as (3, 16).

    Raises:
        UsageError: The text is not K/N with 1 <= K <= N.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,6})/([1-9][0-9]{0,6})", text)
    if match is None or int(match[1]) > int(match[2]):
        raise UsageError(
            f"--shard wants K/N with 1 <= K <= N, got '{text}'",
            hint="--shard 3/16: the third of sixteen",
        )
    return int(match[1]), int(match[2])


def answer_file(answered: AnswerRows, task: Task, job: Job) -> tuple[int, int]:
    """Answer every row of a file: its columns are kept; `answer`, `confidence` and `error` are
    added.

    For `extract` and `call`, `valid` says whether the answer satisfies its schema. A bad row
    becomes one with an error. Further columns depend on the task and the format, see
    `answer_columns`.

    Args:
        answered: Gives each row the columns that are added to it, in order.
        task: The contract that answers are held to.
        job: The rows, and the file that the answers go to.

    Returns:
        Number of rows written, and of rows with an error among them.

    Raises:
        DataError: The source has no such column, has one that would be overwritten, cannot be read,
            or has changed while it was read; nothing is written.
        LockedError: Another process writes the same target.
        UsageError: The target cannot be written, is the source, or has a suffix of no format.
    """
    row_snapshot.require_target(job.source, job.target)
    streamed = job.target == STREAM
    with row_snapshot.snapshot(
        job.source,
        format=job.format,
        folder=None if streamed else job.target.parent,
        sheet=job.sheet,
        encoding=job.encoding,
        shard=job.shard,
    ) as rows:
        added = _added(job, task, rows)
        _check_columns(job, rows.survey, added.names)
        if added.format == "xlsx":
            kept = (row._replace(columns=_written(job, row.columns)) for row in rows.read())
            workbook_writer.require_fits(
                kept, len(_written(job, rows.survey.columns)) + len(added.names)
            )
        if task.document is not None:
            console.say(f"  {_extent(job, task, rows)}")
        with console.progress(
            "predict", rows.count, "documents" if job.columns else "rows"
        ) as meter:
            errors = (
                _stream(answered, job, rows, meter)
                if streamed
                else _write(answered, task, job, rows, meter)
            )
    return rows.count, errors


def _added(job: Job, task: Task, rows: RowSnapshot) -> AnswerColumns:
    """The columns that the answers add to the target."""
    format = "jsonl" if job.target == STREAM else table_writer.format_of(job.target)
    return AnswerColumns.of(task, format, _written(job, rows.survey.columns))


def _extent(job: Job, task: Task, rows: RowSnapshot) -> str:
    """The work before it begins: `412 pages, 523 windows`, of a table the windows alone."""
    pages = parts = 0
    for row in rows.read():
        text = task.cleaned_text(as_text(row.columns.get(job.reading.column)))[0]
        parts += len(windows(text, task.document)) if text and task.document is not None else 0
        count = row.columns.get("pages")
        pages += count if isinstance(count, int) else 0
    return ", ".join(
        [*([console.count(pages, "page")] if job.columns else []), console.count(parts, "window")]
    )


def _stream(answered: AnswerRows, job: Job, rows: RowSnapshot, meter: console.Meter) -> int:
    """Answer rows to stdout; returns the number of rows with an error."""
    errors = 0
    ahead, behind = itertools.tee(rows.read())
    for answers in answered(ahead):
        block = itertools.islice(behind, len(answers))
        lines = [
            {**_written(job, row.columns), **answer}
            for row, answer in zip(block, answers, strict=True)
        ]
        console.write_json(
            "".join(json.dumps(fields, ensure_ascii=False) + "\n" for fields in lines)
        )
        errors += sum(bool(answer["error"]) for answer in answers)
        meter.advance(len(answers))
    return errors


def _write(
    answered: AnswerRows, task: Task, job: Job, rows: RowSnapshot, meter: console.Meter
) -> int:
    """Answer rows to a file, by way of the journal; returns the number of rows with an error."""
    with _journal(job.target) as journal:
        done = _resume(journal, _hash(job, task, rows.digest), rows.count)
        if done:
            console.say(
                f"  {done} of {console.count(rows.count, 'row')} answered by an earlier run, which "
                "is resumed"
            )
            meter.resume(done)
        try:
            for answers in answered(rows.read(done)):
                journal.writelines(
                    json.dumps(answer, ensure_ascii=False).encode() + b"\n" for answer in answers
                )
                journal.flush()
                os.fsync(journal.fileno())
                meter.advance(len(answers))
            errors = _write_target(job, rows, _added(job, task, rows), journal)
        except KeyboardInterrupt:
            kept = (
                "while it answered; the answers so far are kept, and the same command goes on "
                "from there"
            )
            raise KeyboardInterrupt(kept) from None
        row_snapshot.journal_of(job.target).unlink()
    return errors


def _check_columns(job: Job, survey: table_writer.SourceSurvey, added: list[str]) -> None:
    if not survey.rows:
        raise DataError(f"{job.source.name} holds no rows")
    column = job.reading.column
    if survey.columns and column not in survey.columns:
        names = listed(list(survey.columns))
        raise DataError(
            f"{job.source.name} has no column '{column}'",
            hint=f"--column NAME; its columns: {names}",
        )
    taken = [name for name in added if name in _written(job, survey.columns)]
    if taken:
        raise DataError(
            f"{job.source.name} already has a column '{taken[0]}'",
            hint="rename it: its values are kept",
        )


# The journal


@contextlib.contextmanager
def _journal(target: Path) -> Iterator[IO[bytes]]:
    """The file of answers so far, held against other processes."""
    path = row_snapshot.journal_of(target)
    try:  # a link under this name is not followed, and a pipe not waited for
        descriptor = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666
        )
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror} ({path.name})") from None
    with os.fdopen(descriptor, "a+b") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(f"{target} is being written by another process") from None
        state = os.fstat(descriptor)
        if not state.st_nlink:  # opened just before its holder was done with it
            raise LockedError(f"{target} is being written by another process")
        if not stat.S_ISREG(state.st_mode):
            raise UsageError(
                f"{target} cannot be written: {path.name} beside it is no regular file"
            )
        yield stream


def _resume(journal: IO[bytes], job_hash: str, rows: int) -> int:
    """Number of rows that an earlier run of the same job answered;
    the journal is cut to them, or begun.
    """
    head = json.dumps({"job": job_hash}).encode() + b"\n"
    journal.seek(0)
    if journal.readline() != head:
        journal.truncate(0)
        journal.write(head)
        journal.flush()
        return 0
    count, end = 0, len(head)
    for line in itertools.islice(journal, rows):
        if not _is_answer(line):
            break  # torn by a kill or a crash
        count, end = count + 1, end + len(line)
    journal.truncate(end)
    return count


def _is_answer(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and json.loads(line).keys() >= {"answer", "confidence", "error"}
    except (ValueError, AttributeError):
        return False


def _hash(job: Job, task: Task, rows: str) -> str:
    """`sha256:…` of everything that decides the answers: the
    rows, the job, the task and the model.
    """
    return sha256_bytes(
        canonical(
            {
                "rows": rows,
                **asdict(job.reading),
                "format": job.format,
                "shard": list(job.shard),
                "task": task.digest,
                "identity": dict(job.identity),
                **({"checks": task.rules.checks} if task.rules.checks else {}),
            }
        )
    )


def _answers(journal: IO[bytes]) -> Iterator[dict[str, Any]]:
    """The columns that each answer adds to its row, from the first on; one iteration at a time."""
    journal.seek(0)
    journal.readline()
    yield from map(json.loads, journal)


def _written(job: Job, cells: Mapping[str, Any]) -> dict[str, Any]:
    """The cells of a row that are written, of a survey its columns."""
    return {
        name: cell for name, cell in cells.items() if job.columns is None or name in job.columns
    }


def _cells(
    job: Job, added: AnswerColumns, columns: Mapping[str, Any], answer: Mapping[str, Any]
) -> dict[str, Any]:
    """A row of the target; in CSV and TSV with the control characters of
    documents and their names as escapes.
    """
    cells = {**_written(job, columns), **added.cells(answer)}
    if job.columns is None or added.format not in ("csv", "tsv"):
        return cells
    return {
        name: console.escaped(cell) if isinstance(cell, str) else cell
        for name, cell in cells.items()
    }


def _write_target(job: Job, rows: RowSnapshot, added: AnswerColumns, journal: IO[bytes]) -> int:
    """Rows and answers as the target; returns the number of rows with an error.

    Raises:
        DataError: There are fewer answers than rows; nothing is written.
    """
    form = table_writer.form_for(job.target, rows.format, None if job.plain else rows.form)
    form = table_writer.encodable(
        form, itertools.chain([dict(added.fields)], map(added.cells, _answers(journal)))
    )
    survey = table_writer.SourceSurvey(rows.survey.rows, _written(job, rows.survey.columns))
    written = errors = 0
    with (
        atomic.file(job.target) as draft,
        draft.open("wb") as raw,
        table_writer.writer(raw, job.target, survey, added.names, form) as write,
    ):
        pairs = zip(rows.read(), _answers(journal), strict=False)
        while block := list(itertools.islice(pairs, row_answers.CHUNK)):
            write([_cells(job, added, row.columns, answer) for row, answer in block])
            errors += sum(bool(answer["error"]) for _, answer in block)
            written += len(block)
        if written != rows.count:
            raise DataError(
                f"{written} of {console.count(rows.count, 'row')} would have been written",
                hint="run it again",
            )
    return errors
