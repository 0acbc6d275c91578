"""Raw rows of a file, in order: each with its number and columns, or with its fault; and rows out as CSV for people.

Reading any file gives rows and faults, or raises DataError, in bounded memory.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, TextIO

from slmctl.errors import DataError, UsageError
from slmctl.sources.rows import delimited, lines, objects, tables
from slmctl.sources.rows.cells import MAX_ROW, RawTable, Row, listed
from slmctl.sources.rows.encodings import Encoding
from slmctl.sources.rows.files import FORMATS, TEXTS, files_of, format_of, is_several, require_file

__all__ = [
    "FORMATS", "MAX_ROW", "TEXTS", "FileForm", "Row", "TextForm", "as_csv", "columns_of", "files_of",
    "form_and_columns", "form_of", "format_of", "is_several", "listed", "read_rows", "require_file", "text_form",
]  # fmt: skip

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

    @property
    def words(self) -> str:
        """The form in words: `CSV in CP1252 (a guess), separated by semicolons, header in line 3`."""
        names = {"jsonl": "JSONL", "parquet": "Parquet", "sqlite": "SQLite", "xlsx": "Excel"}
        words = names.get(self.format, self.format.upper())
        if self.files > 1:
            words = f"{self.files} files of {words}"
        if self.encoding is not None:
            words += f" in {Encoding(self.encoding).title}" + ("" if self.certain else " (a guess)")
        if self.delimiter is not None and self.format == "csv":
            names = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
            words += f", separated by {names.get(self.delimiter, repr(self.delimiter))}"
        if self.header_row > 1:
            words += f", header in {'row' if self.encoding is None else 'line'} {self.header_row}"
        return words


class TextForm(NamedTuple):
    """The form in which a text is written: Python's name of its encoding, the mark before it, what ends its lines.

    `certain` is false where the encoding of a text that was read is a guess.
    """

    encoding: str = "utf-8"
    mark: bytes = b""
    delimiter: str = ","
    line_end: str = "\n"
    certain: bool = True


class _Opened(NamedTuple):
    table: RawTable
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
        yield from opened.table.rows


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
    _, columns = form_and_columns(path, sheet=sheet, format=format, encoding=encoding, header_row=header_row)
    if not columns:
        raise DataError(f"{path.name} holds no rows", hint="a header and at least one row are needed")
    return columns


def form_of(
    path: Path,
    *,
    sheet: str | None = None,
    format: str | None = None,
    encoding: str | None = None,
    header_row: int | None = None,
) -> FileForm:
    """The form of a file as `read_rows` finds it; of a folder or pattern, that of its first file.

    Raises:
        What `read_rows` and `files_of` raise.
    """
    files = [file for _, file in files_of(path, format)] if is_several(path) else [path]
    with _opened(files[0], sheet, format, encoding, header_row) as opened:
        return dataclasses.replace(_form(opened), files=len(files))


def form_and_columns(
    path: Path,
    *,
    sheet: str | None = None,
    format: str | None = None,
    encoding: str | None = None,
    header_row: int | None = None,
) -> tuple[FileForm, list[str]]:
    """The form of a file, and its columns as the first good row has them; no columns where there is none.

    Raises:
        What `read_rows` raises.
    """
    with _opened(path, sheet, format, encoding, header_row) as opened:
        return _form(opened), next((list(row.columns) for row in opened.table.rows if not row.fault), [])


def text_form(
    path: Path, *, format: str | None = None, encoding: str | None = None, header_row: int | None = None
) -> TextForm:
    """The form of a text, so that another can be written in it.

    Raises:
        DataError: The file is no text; and what `read_rows` raises.
    """
    with _opened(path, None, format, encoding, header_row) as opened:
        if opened.encoding is None:
            raise DataError(f"{path.name} is no text")
        recognised, delimiter = opened.encoding, opened.table.delimiter or ","
    with lines.opened(path, recognised) as stream:
        first = next((line for line in lines.lines(stream) if line), "\n")
    end = next((end for end in ("\r\n", "\n", "\r") if first.endswith(end)), "\n")
    return TextForm(recognised.name, recognised.mark, delimiter, end, recognised.certain)


def _form(opened: _Opened) -> FileForm:
    table, encoding = opened.table, opened.encoding
    return FileForm(
        format=opened.format,
        encoding=encoding.name if encoding else None,
        certain=encoding is None or encoding.certain,
        delimiter=table.delimiter,
        sheets=table.sheets,
        header_row=table.header_row,
        files=1,
    )


def as_csv(
    rows: Iterable[Mapping[str, Any]],
    *,
    columns: Sequence[str] | None = None,
    header: bool = True,
    separator: str = ",",
    line_end: str = "\n",
) -> str:
    """Rows as CSV for people: a cell that a spreadsheet would take for a formula gets an apostrophe before it."""
    all_rows = list(rows)
    if columns is None:
        columns = list(dict.fromkeys(name for row in all_rows for name in row))
    written: list[str] = []
    # csv quotes what holds a character of its line end, and a CR that is not quoted ends a row for whoever reads it
    writer = csv.writer(SimpleNamespace(write=written.append), delimiter=separator, lineterminator="\r\n")
    if header:
        writer.writerow([_escaped(name) for name in columns])
    writer.writerows([_escaped(row.get(name)) for name in columns] for row in all_rows)
    return "".join(line.removesuffix("\r\n") + line_end for line in written)


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
            recognised = lines.encoding_of(path, encoding)
            if kind == "json" and sheet is None:
                with lines.opened(path, recognised) as stream:
                    kind = "jsonl" if objects.is_lines(stream) else "json"
            with lines.opened(path, recognised) as stream:
                yield _Opened(_text_table(stream, path.name, kind, sheet, header_row), kind, recognised)
        else:
            with tables.opened(path, _KINDS[kind], sheet, header_row) as table:
                yield _Opened(table, kind, None)
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror or error}") from None


def _text_table(stream: TextIO, file: str, kind: str, key: str | None, header_row: int | None) -> RawTable:
    if kind == "jsonl":
        return RawTable(objects.line_rows(stream))
    if kind == "json":
        return RawTable(objects.array_rows(stream, file, key=key))
    return delimited.delimited_table(stream, file, tabs=kind == "tsv", header_row=header_row)
