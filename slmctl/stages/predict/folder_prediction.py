"""Many files and a model -> a file of answers each, of the same name, in a folder or a bucket; resumed by file.

A file is finished when its marker, `_slmctl/NAME.json` beside the answers, says so: it holds what decides the answers
and the sizes of both files, and is written last. A file whose marker is missing or of other work is answered again,
so half a file is never taken for a whole one.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from slmctl import console
from slmctl.artifacts.artifact import canonical, sha256_bytes
from slmctl.errors import DataError, UsageError
from slmctl.sources.rows import format_of
from slmctl.sources.stores import SMALL, Store, StoredFile
from slmctl.stages.predict import table_writer
from slmctl.stages.predict.file_prediction import Job
from slmctl.task.contract import Task

MARKERS = "_slmctl"  # readers of data sets pass over names that begin so
READERS = 16  # footers of Parquet files that are read at the same time
NAMED = 3  # files that an error names


class FileMarker(TypedDict):
    """A finished file, as its marker has it: the hash of the job, both files, and numbers of rows."""

    job: str
    input: list[int | str]
    output: list[int | str]
    rows: int
    errors: int


@dataclass(frozen=True)
class FolderWork:
    """The files to answer, and the store that the answers go to."""

    source: Store
    files: tuple[StoredFile, ...]
    target: Store


@dataclass(frozen=True)
class FolderPlan:
    """The size of a work.

    Attributes:
        files, bytes: Of all files.
        rows: Of the Parquet files, which say it; None where there is another file.
        finished: Number of files that need no work.
    """

    files: int
    bytes: int
    rows: int | None
    finished: int

    @property
    def words(self) -> str:
        rows = "" if self.rows is None else f", {self.rows:,} rows"
        done = f"; {self.finished} of them finished" if self.finished else ""
        return f"{self.files:,} files{rows}, {console.size(self.bytes)}{done}"


def shared(files: Sequence[StoredFile], shard: tuple[int, int]) -> tuple[StoredFile, ...]:
    """The k-th of n runs of files."""
    part, parts = shard
    return tuple(files[len(files) * (part - 1) // parts : len(files) * part // parts])


def require_fitting(work: FolderWork) -> None:
    """Refuse, before any work, what cannot be written, or would overwrite a source.

    Raises:
        UsageError: A file is of a kind that is not written, or the target is where the sources are.
    """
    for file in work.files:
        table_writer.format_of(Path(file.name))
    own, theirs = work.source.local(""), work.target.local("")
    same = own == theirs if own is not None and theirs is not None else work.source.title == work.target.title
    if same:
        raise UsageError(
            f"--output {work.target.title} is the folder of --input", hint="--output ANOTHER_FOLDER/: sources stay"
        )


def plan(work: FolderWork, task: Task, job: Job, *, count_rows: bool) -> FolderPlan:
    """The size of the work, and how much of it is done; rows only where the files say their number."""
    with ThreadPoolExecutor(READERS) as pool:
        finished = sum(pool.map(lambda file: _marker(work, file, _hash(job, task)) is not None, work.files))
        rows = None
        if count_rows and all(format_of(Path(file.name)) == "parquet" for file in work.files):
            rows = sum(pool.map(lambda file: _rows(work.source, file), work.files))
    return FolderPlan(len(work.files), sum(file.size for file in work.files), rows, finished)


def answer_files(answer: Callable[[Job], tuple[int, int]], task: Task, work: FolderWork, job: Job) -> tuple[int, int]:
    """Answer every file that is not finished.

    Args:
        answer: Answers one file; returns the numbers of rows and of rows with an error.
        task: The contract that answers are held to.
        work: The files.
        job: All that the answers to a file depend on; its source and target are those of each file.

    Returns:
        Number of rows of all files, and of rows with an error among them.

    Raises:
        DataError: A file cannot be answered; the others are.
    """
    require_fitting(work)
    rows = errors = 0
    failed: dict[str, DataError] = {}
    for place, file in enumerate(work.files, 1):
        marker = _marker(work, file, _hash(job, task))
        if marker is None:
            console.say(f"  {file.name} ({place} of {len(work.files)}, {console.size(file.size)})")
            try:
                marker = _answer(answer, work, file, job, _hash(job, task))
            except DataError as error:
                console.say(f"  {file.name}: {error.message}")
                failed[file.name] = error
                continue
        rows, errors = rows + marker["rows"], errors + marker["errors"]
    if failed:
        names = ", ".join(list(failed)[:NAMED]) + (" …" if len(failed) > NAMED else "")
        first = next(iter(failed.values()))
        raise DataError(
            f"{len(failed)} of {len(work.files)} files could not be answered ({names}): {first.message}",
            hint=first.hint or "the others are done, and the same command tries these again",
        )
    return rows, errors


def _answer(
    answer: Callable[[Job], tuple[int, int]], work: FolderWork, file: StoredFile, job: Job, job_hash: str
) -> FileMarker:
    """Answer one file, and write its marker last. Copies that cross the network lie in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="slmctl-") as folder:
        name = Path(file.name).name
        source, target = work.source.local(file.name), work.target.local(file.name)
        if source is None:
            source = Path(folder, "in", name)
            source.parent.mkdir()
            work.source.fetch(file, source)
        written = target or Path(folder, "out", name)
        written.parent.mkdir(parents=True, exist_ok=True)
        rows, errors = answer(dataclasses.replace(job, source=source, target=written))
        if target is None:
            work.target.put(file.name, written)
        there = work.target.state(file.name)
        if work.source.state(file.name) != file:
            raise DataError(f"{file.name} has changed while it was answered", hint="run it again when it is complete")
        if there is None or there.size != written.stat().st_size:
            raise DataError(f"{work.target.title} does not hold {file.name} after it was written", hint="run it again")
        marker = FileMarker(
            job=job_hash, input=[file.size, file.version], output=[there.size], rows=rows, errors=errors
        )
        record = Path(folder, "marker.json")
        record.write_bytes(canonical(marker))
        work.target.put(_marker_name(file), record)
    return marker


def _marker(work: FolderWork, file: StoredFile, job_hash: str) -> FileMarker | None:
    """The marker of a finished file; None for one that is to be answered."""
    there = work.target.state(_marker_name(file))
    output = work.target.state(file.name)
    if there is None or output is None or there.size > SMALL:
        return None
    with work.target.opened(there) as stream:
        raw = stream.read(SMALL)
    try:
        fields = json.loads(raw)
        made, rows, errors = (fields["job"], fields["input"], fields["output"]), fields["rows"], fields["errors"]
    except (ValueError, KeyError, TypeError):
        return None
    marker = FileMarker(
        job=job_hash, input=[file.size, file.version], output=[output.size], rows=int(rows), errors=int(errors)
    )
    return marker if made == (marker["job"], marker["input"], marker["output"]) else None


def _marker_name(file: StoredFile) -> str:
    return f"{MARKERS}/{file.name}.json"


def _hash(job: Job, task: Task) -> str:
    """`sha256:…` of all that decides the answers but the rows."""
    return sha256_bytes(canonical({
        "column": job.column, "format": job.format, "sheet": job.sheet, "encoding": job.encoding, "plain": job.plain,
        "list_labels": job.list_labels, "withhold": job.withhold, "task": task.digest, "identity": dict(job.identity),
    }))  # fmt: skip


def _rows(store: Store, file: StoredFile) -> int:
    """Number of rows of a Parquet file, by its footer."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with store.opened(file) as stream:
            return int(parquet.read_metadata(stream).num_rows)
    except pa.ArrowInvalid:
        return 0  # it is damaged, which is said when it is answered
