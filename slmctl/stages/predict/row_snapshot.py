"""A source and a target -> the rows of the source, read once: later changes of the file reach no
answer.

A file can be rewritten, replaced, cut or appended to while its rows are answered, which may take
hours. So every row is parsed once and kept in a nameless temporary file; answers and output are
made of these rows alone.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from slmctl import console
from slmctl.artifacts import atomic
from slmctl.artifacts.artifact import state
from slmctl.config import Source, SourceLimits
from slmctl.errors import DataError, UsageError
from slmctl.installation import is_installed
from slmctl.sources.documents import folder as folder_of_documents
from slmctl.sources.rows import FORMATS, TextForm, format_of, read_rows, text_form
from slmctl.sources.rows.cells import Row
from slmctl.stages.predict import table_writer

STREAM = Path("-")  # stdin as a source, stdout as a target


@dataclass(frozen=True)
class RowSnapshot:
    """The rows of a source as they were read, or a part of them.

    Attributes:
        survey: Number and columns of all rows.
        digest: `sha256:…` of all rows, which binds answers to them.
        spool: Packed JSON Lines, `[number, columns, fault]` a row.
        format: The format of the source.
        form: The form of the source, if it is a text.
        first, last: The part: rows `first` to before `last`.
    """

    survey: table_writer.SourceSurvey
    digest: str
    spool: IO[bytes]
    format: str
    form: TextForm | None
    first: int
    last: int

    @property
    def count(self) -> int:
        """Number of rows of the part."""
        return self.last - self.first

    def read(self, skip: int = 0) -> Iterator[Row]:
        """The rows of the part but the first ones, in order; one iteration at a time."""
        self.spool.seek(0)
        with gzip.GzipFile(fileobj=self.spool, mode="rb") as lines:
            for line in itertools.islice(lines, self.first + skip, self.last):
                yield Row(*json.loads(line))


@contextlib.contextmanager
def snapshot(
    source: Path,
    *,
    format: str | None,
    folder: Path | None,
    sheet: str | None,
    encoding: str | None,
    shard: tuple[int, int],
) -> Iterator[RowSnapshot]:
    """Read a source once, and keep its rows until the context ends; see `file_prediction.Job` for
    the arguments.

    Args:
        folder: Folder of the packed rows; None for the system's folder for temporary files.

    Raises:
        DataError: The source cannot be read, or has changed while it was read.
    """
    with tempfile.TemporaryFile(dir=folder) as spool:
        before, digest = state(source), hashlib.sha256()
        kind = format or format_of(source)
        form = (
            text_form(source, format=format, encoding=encoding)
            if kind in ("csv", "tsv", "jsonl")
            else None
        )
        if form is not None and not form.encoding.certain:
            title, name = form.encoding.title, form.encoding.name
            console.say(f"  {source.name} is taken for {title}; to be certain: --encoding {name}")
        with gzip.GzipFile(fileobj=spool, mode="wb", compresslevel=1, mtime=0) as packed:

            def kept() -> Iterator[Row]:
                for row in read_rows(source, format=format, sheet=sheet, encoding=encoding):
                    line = json.dumps(row).encode() + b"\n"
                    digest.update(line)
                    packed.write(line)
                    yield row

            survey = table_writer.survey(kept())
        if state(source) != before:
            raise DataError(
                f"{source.name} has changed while it was read",
                hint="run it again when it is complete",
            )
        part, parts = shard
        first, last = survey.rows * (part - 1) // parts, survey.rows * part // parts
        yield RowSnapshot(survey, "sha256:" + digest.hexdigest(), spool, kind, form, first, last)


BESIDE_TABLES = {"text", "html"}  # kinds of documents that also lie beside tables, as a README does


def are_documents(source: Path, format: str | None) -> bool:
    """True for documents, a folder or pattern of them, and a folder with
    tables too, such as that of their answers.
    """
    if format is not None or source == STREAM:
        return False
    whole = Source(path=source)
    return folder_of_documents.is_documents(whole) or (
        source.is_dir() and bool(folder_of_documents.kinds(whole) - BESIDE_TABLES)
    )


@contextlib.contextmanager
def opened(source: Path, target: Path, format: str | None) -> Iterator[tuple[Path, str | None]]:
    """The file to read and its format, after the target was checked; stdin, pipes and documents
    become a file first.

    Raises:
        UsageError: The target cannot be written or is the source, or stdin is closed or a terminal.
    """
    require_target(source, target)
    if format is not None and format not in FORMATS.values():
        raise UsageError(
            f"--format names no format: '{format}'", hint=", ".join(dict.fromkeys(FORMATS.values()))
        )
    if are_documents(source, format):
        if target != STREAM and target.resolve().is_relative_to(source.resolve()):
            raise UsageError(
                f"--output {target} lies in the folder of --input", hint="--output ELSEWHERE"
            )
        with tempfile.TemporaryDirectory(prefix="slmctl-") as place:
            path = Path(place) / f"{source.name}.jsonl"
            with path.open("wb") as copy:
                folder_of_documents.write_rows(_documents_in(source), copy, SourceLimits())
            yield path, "jsonl"
    elif source == STREAM:
        if sys.stdin is None or sys.stdin.isatty():
            what = "closed" if sys.stdin is None else "a terminal"
            raise UsageError(
                f"--input - reads stdin, which is {what}",
                hint="pipe the rows in: … | slmctl predict",
            )
        with _copied(sys.stdin.buffer, "stdin") as path:
            yield path, format or "jsonl"
    elif _mode(source) == stat.S_IFIFO:
        with source.open("rb") as stream, _copied(stream, source.name) as path:
            named = any(
                source.name.lower().removesuffix(".gz").endswith(suffix) for suffix in FORMATS
            )
            yield path, format or (format_of(source) if named else "jsonl")
    else:
        yield source, format


def _documents_in(source: Path) -> Source:
    """Documents, of which scanned pages are read if the package for it is installed."""
    scanned = "read" if is_installed("rapidocr") else "reject"
    return Source.model_validate({"path": source, "documents": {"scanned": scanned}})


@contextlib.contextmanager
def _copied(stream: IO[bytes], name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="slmctl-") as folder:
        path = Path(folder) / name
        with path.open("wb") as copy:
            shutil.copyfileobj(stream, copy, 1 << 20)
        yield path


# The target


def journal_of(target: Path) -> Path:
    """Returns the path, next to a target, of the file with its answers until they are complete."""
    return target.with_name(f".{target.name}.answers")


def require_target(source: Path, target: Path) -> None:
    """Check, before any work, that a target can be written without harm to the source or to a
    device.

    Raises:
        UsageError: The target is the source under any name, no regular file, or cannot be written.
    """
    if target == STREAM:
        if sys.stdout is None:
            raise UsageError(
                "--output - writes to stdout, which is closed", hint="--output out.jsonl"
            )
        if _is_source(source, _identity(1)):
            raise UsageError("stdout is the file of --input", hint="redirect it to another file")
        return
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFSOCK: "a socket",
        stat.S_IFLNK: "a link",
    }
    for path in (target, journal_of(target), atomic.draft_of(target)):
        kind = _mode(path, follow=path == target)
        if _is_source(source, _identity(path)):
            what = (
                "is the file of --input"
                if path == target
                else f"keeps its answers in {path.name}, which is --input"
            )
            raise UsageError(
                f"--output {target} {what}",
                hint="--output ANOTHER_FILE: a source is never overwritten",
            )
        if kind not in (0, stat.S_IFREG):
            raise UsageError(
                f"{path} cannot be written: it is {kinds.get(kind, 'no file')}",
                hint="--output FILE, or --output - for JSON Lines on stdout",
            )
        if kind and not os.access(path, os.W_OK, effective_ids=True):
            raise UsageError(f"{path} cannot be written: it is read-only", hint=f"chmod u+w {path}")
    folder = target.parent
    if not folder.is_dir():
        raise UsageError(
            f"{target} cannot be written: there is no folder {folder}", hint=f"mkdir -p {folder}"
        )
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        raise UsageError(
            f"{target} cannot be written: the folder {folder} is read-only",
            hint="--output ELSEWHERE",
        )


def _mode(path: Path, *, follow: bool = True) -> int:
    """The type of the file at a path, as in `stat`; 0 where nothing is."""
    try:
        return stat.S_IFMT(path.stat(follow_symlinks=follow).st_mode)
    except FileNotFoundError:
        return 0
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{str(path)!r} cannot be used: {reason}") from None


def _identity(file: Path | int) -> tuple[int, int] | None:
    """Device and inode of a regular file, equal for every name and link of it."""
    try:
        now = os.fstat(file) if isinstance(file, int) else file.stat()
    except (OSError, ValueError):
        return None
    return (now.st_dev, now.st_ino) if stat.S_ISREG(now.st_mode) else None


def _is_source(source: Path, identity: tuple[int, int] | None) -> bool:
    return identity is not None and identity == _identity(0 if source == STREAM else source)
