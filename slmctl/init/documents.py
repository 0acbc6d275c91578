"""A folder of documents -> a source with the answers that stand in it or
beside it, and its rows for a first look.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from slmctl.config import AnswerTable, Source
from slmctl.errors import DataError, SlmctlError, UsageError
from slmctl.init.answer_fields import AnswerFields
from slmctl.sources.documents import answers, readers
from slmctl.sources.rows import read_rows
from slmctl.sources.rows.cells import as_text
from slmctl.sources.rows.files import files_below, known_format

TABLES = 20  # tables that are searched for names of files
LEAST = 0.5  # least share of the documents that a table of answers names


@dataclass(frozen=True)
class DocumentFolder:
    """A source of documents as init proposes it.

    Attributes:
        source: The path, with the answers that were found.
        words: Number and kinds of the documents.
    """

    source: Source
    words: str

    def output(self, columns: Sequence[str]) -> str:
        """The value of `--output`: the columns of the answers, or the folder.

        Raises:
            DataError: The documents have no answers.
        """
        own = [name for name in columns if name not in answers.COLUMNS]
        if not own and "folder" in columns:
            own = ["folder"]
        if not own:
            raise DataError(
                f"the documents of {self.source.local.name} have no answers",
                hint="a table beside the folder with a column of file names, a JSON file beside "
                "each, or a folder for "
                "each label",
            )
        return own[0] if len(own) == 1 else AnswerFields(tuple(own), frozenset()).spec


def documents_at(path: Path, sheet: str | None = None) -> DocumentFolder | None:
    """The source of documents at a path; None where its files are tables, or no file.

    Raises:
        DataError: There are too many files.
        UsageError: A sheet is named.
    """
    if not path.is_dir() and not any(mark in str(path) for mark in "*?["):
        return None
    root, paths = files_below(path)
    names = [name for name in paths if readers.kind_of(name)]
    tables = [file for file in paths.values() if known_format(file)]
    if not names:
        return None
    source = _answered(path, root, names, tables)
    if source is None:
        return None
    if sheet is not None:
        raise UsageError(
            f"{path.name} holds documents, and has no sheet '{sheet}'",
            hint="answers.sheet in slmctl.yaml",
        )
    counts = Counter(PurePosixPath(name).suffix.lower() for name in names)
    return DocumentFolder(
        source, "documents (" + ", ".join(f"{n} {kind}" for kind, n in counts.most_common()) + ")"
    )


def _answered(
    path: Path, root: Path, names: Sequence[str], tables: Sequence[Path]
) -> Source | None:
    """The source with its answers: JSON files beside, or the table in the
    folder or beside it that names most files.
    """
    jsons = [file for file in tables if file.suffix.lower() == ".json"]
    beside = [file.relative_to(root).as_posix()[: -len(".json")] for file in jsons]
    if answers.matched(beside, names) >= LEAST * len(names):
        return Source(path=path, answers="json")
    near = (
        sorted(file for file in root.parent.iterdir() if file.is_file() and known_format(file))
        if not tables
        else []
    )
    best = max((_table(file, names) for file in [*tables, *near][:TABLES]), default=(0, path, ""))
    if best[0] >= LEAST * len(names):
        return Source(path=path, answers=AnswerTable(path=best[1], file=best[2]))
    return None if tables else Source(path=path)


def _table(path: Path, names: Sequence[str]) -> tuple[int, Path, str]:
    """Returns (number of files that a column of a table names, the table, the column)."""
    try:
        rows = [
            row.columns
            for row in itertools.islice(read_rows(path), 2 * len(names) + 100)
            if not row.fault
        ]
    except SlmctlError:
        return 0, path, ""
    columns = rows[0] if rows else {}
    counts = [
        (answers.matched([as_text(row.get(name)) for row in rows], names), path, name)
        for name in columns
    ]
    return max(counts, default=(0, path, ""))
