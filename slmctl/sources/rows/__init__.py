"""Raw rows of a file, in order: each with its number and columns, or with its fault; and rows out as CSV for people.

Reading any file gives rows and faults, or raises DataError, in bounded memory.
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, TextIO

from slmctl.errors import DataError, UsageError
from slmctl.sources.rows import delimited, lines, objects, tables
from slmctl.sources.rows.cells import MAX_ROW, Row, Table, listed
from slmctl.sources.rows.encodings import Encoding

__all__ = [
    "FORMATS", "MAX_ROW", "FileForm", "Row", "as_csv", "columns_of", "form_of", "format_of", "listed", "read_rows",
    "require_file",
]  # fmt: skip

FORMATS = {
    ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet",
    ".xlsx": "xlsx", ".xlsm": "xlsx", ".xlsb": "xlsx", ".xls": "xlsx", ".ods": "ods", ".sqlite": "sqlite",
    ".sqlite3": "sqlite", ".db": "sqlite",
}  # fmt: skip
TEXTS = ("csv", "tsv", "jsonl", "json")  # these have an encoding, and may be packed with gzip
_SHEETS = ("xlsx", "ods", "sqlite", "json")
_HEADERS = ("csv", "tsv", "xlsx", "ods")  # these have a header in a row of their own
_KINDS = {"parquet": "parquet", "sqlite": "sqlite", "xlsx": "workbook", "ods": "workbook"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class FileForm:
    """The form of a file of rows, as it is read.

    Attributes:
        format: One of the values of FORMATS.
        encoding: Python's name of the encoding of a text; None for what is no text.
        certain: False where the encoding is a guess.
        delimiter: The character between the fields of a text; None where there are none.
        sheets: The sheets of a workbook, or the tables and views of a database, in order.
        header_row: The number of the row, in a text of the line, that names the columns; 0 where none does.
        files: The number of files that are read as one source.
    """

    format: str
    encoding: str | None
    certain: bool
    delimiter: str | None
    sheets: tuple[str, ...]
    header_row: int
    files: int


class _Opened(NamedTuple):
    table: Table
    format: str
    encoding: Encoding | None


def read_rows(
    path: Path,
    *,
    sheet: str | None = None,
    format: str | None = None,
    encoding: str | None = None,
    header_row: int | None = None,
) -> Iterator[Row]:
    """The rows of a file, in order; an unusable one has its fault.

    Args:
        path: A CSV, TSV, JSONL or JSON file, each also packed with gzip, a Parquet file, a workbook or an SQLite
            database.
        sheet: The sheet of a workbook, by default the first; the table of a database, by default the only one; or
            the array of a JSON object.
        format: The format of the file, by default that of its name.
        encoding: The encoding of a text, by default the one that it shows.
        header_row: The row of a workbook, or the line of a text, that names the columns; by default it is found.

    Raises:
        DataError: The file is missing, of an unknown kind, damaged as a whole, or in an unknown encoding.
        UsageError: There is no such sheet or encoding, or the file has none.
    """
    with _opened(path, sheet, format, encoding, header_row) as opened:
        yield from (
            (row._replace(number=place) for place, row in enumerate(opened.table.rows, 1))
            if opened.format in _HEADERS
            else opened.table.rows
        )


def columns_of(
    path: Path,
    *,
    sheet: str | None = None,
    format: str | None = None,
    encoding: str | None = None,
    header_row: int | None = None,
) -> list[str]:
    """The column names of a file, from its header or its first good row.

    Raises:
        DataError: The file holds no row; and what `read_rows` raises.
    """
    for row in read_rows(path, sheet=sheet, format=format, encoding=encoding, header_row=header_row):
        if not row.fault:
            return list(row.columns)
    raise DataError(f"{path.name} holds no rows", hint="a header and at least one row are needed")


def form_of(
    path: Path,
    *,
    sheet: str | None = None,
    format: str | None = None,
    encoding: str | None = None,
    header_row: int | None = None,
) -> FileForm:
    """The form of a file: its format and encoding, its delimiter, sheets and header as `read_rows` finds them.

    Raises:
        What `read_rows` raises.
    """
    with _opened(path, sheet, format, encoding, header_row) as opened:
        table, recognised = opened.table, opened.encoding
        return FileForm(
            format=opened.format,
            encoding=recognised.name if recognised else None,
            certain=recognised is None or recognised.certain,
            delimiter=table.delimiter,
            sheets=table.sheets,
            header_row=table.header_row,
            files=1,
        )


def format_of(path: Path) -> str:
    """The format of a file, by its name: one of the values of FORMATS.

    Raises:
        DataError: The name ends in no known suffix.
    """
    suffix = path.suffix.lower()
    if suffix == ".gz":
        suffix = Path(path.stem).suffix.lower()
        if FORMATS.get(suffix) in TEXTS:
            return FORMATS[suffix]
        suffix += ".gz"
    if suffix not in FORMATS:
        suffixes = ", ".join(FORMATS)
        raise DataError(f"{path.name} has an unknown kind '{suffix}'", hint=f"known: {suffixes}; texts also as .gz")
    return FORMATS[suffix]


def require_file(path: Path) -> None:
    """Refuse a path that is not a regular file: reading a pipe would wait, and reading a device would not end.

    Raises:
        DataError: Something else is there, or nothing.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise DataError(f"{path} is not a file: {(error.strerror or str(error)).lower()}") from None
    except ValueError:  # a NUL in a name
        raise DataError(f"{str(path)!r} is not a file: its name holds a NUL") from None
    if stat.S_ISREG(mode):
        return
    what = "a folder" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "a device or socket"
    raise DataError(f"{path} is not a file: it is {what}", hint="a source may be a pipe: it is copied to a file first")


def as_csv(
    rows: Iterable[Mapping[str, Any]],
    *,
    columns: Sequence[str] | None = None,
    header: bool = True,
    separator: str = ",",
) -> str:
    """Rows as CSV for people: a cell that a spreadsheet would take for a formula gets an apostrophe before it."""
    all_rows = list(rows)
    if columns is None:
        columns = list(dict.fromkeys(name for row in all_rows for name in row))
    lines: list[str] = []
    # csv quotes what holds a character of its line end, and a CR that is not quoted ends a row for whoever reads it
    writer = csv.writer(SimpleNamespace(write=lines.append), delimiter=separator, lineterminator="\r\n")
    if header:
        writer.writerow([_escaped(name) for name in columns])
    writer.writerows([_escaped(row.get(name)) for name in columns] for row in all_rows)
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines)


def _escaped(cell: Any) -> Any:
    if isinstance(cell, dict | list | bool):
        return json.dumps(cell, ensure_ascii=False)
    if isinstance(cell, str) and cell.startswith(_FORMULA) and not _is_number(cell):
        return f"'{cell}"
    return cell


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?%?", text) is not None


@contextlib.contextmanager
def _opened(
    path: Path, sheet: str | None, format: str | None, encoding: str | None, header_row: int | None
) -> Iterator[_Opened]:
    """The table of a file, to be read while it is open."""
    require_file(path)
    kind = format or format_of(path)
    if sheet is not None and kind not in _SHEETS:
        raise UsageError(f"{path.name} is no workbook, database or JSON object, and has no sheet '{sheet}'")
    if encoding is not None and kind not in TEXTS:
        raise UsageError(f"{path.name} is no text, and has no encoding", hint="leave 'encoding' out")
    if header_row is not None and kind not in _HEADERS:
        raise UsageError(f"{path.name} has no row that names the columns", hint="leave 'header_row' out")
    try:
        if kind in TEXTS:
            known = lines.encoding_of(path, encoding)
            if kind == "json" and sheet is None:
                with lines.opened(path, known) as stream:
                    kind = "jsonl" if objects.is_lines(stream) else "json"
            with lines.opened(path, known) as stream:
                yield _Opened(_text_table(stream, path.name, kind, sheet, header_row), kind, known)
        else:
            with tables.opened(path, _KINDS[kind], sheet, header_row) as table:
                yield _Opened(table, kind, None)
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror or error}") from None


def _text_table(stream: TextIO, file: str, kind: str, key: str | None, header_row: int | None) -> Table:
    if kind == "jsonl":
        return Table(objects.line_rows(stream))
    if kind == "json":
        return Table(objects.array_rows(stream, file, key=key))
    return delimited.delimited_table(stream, file, tabs=kind == "tsv", header_row=header_row)
