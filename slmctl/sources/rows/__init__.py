"""Raw rows of a file, in order: each with number and columns, or with the reason why it cannot be
used.

Any file, whatever its content, gives rows or raises DataError, in bounded memory.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Unpack

from slmctl.errors import DataError, UsageError
from slmctl.sources.rows import delimited, lines, objects, tables
from slmctl.sources.rows.cells import MAX_ROW, RawTable, Row, listed
from slmctl.sources.rows.delimited import as_csv, unescaped
from slmctl.sources.rows.encodings import Encoding
from slmctl.sources.rows.files import FORMATS, TEXTS, files_of, format_of, is_several, require_file

if TYPE_CHECKING:  # a child that asks a database imports this package, and needs no pydantic
    from slmctl.config import ReadingOptions

__all__ = [
    "FORMATS",
    "MAX_ROW",
    "TEXTS",
    "FileForm",
    "Row",
    "TextForm",
    "as_csv",
    "columns_of",
    "files_of",
    "form_and_columns",
    "form_of",
    "format_of",
    "is_several",
    "listed",
    "opened",
    "read_rows",
    "require_file",
    "text_form",
    "unescaped",
]

_SHEETS = ("xlsx", "ods", "sqlite", "json")
_HEADERS = ("csv", "tsv", "xlsx", "ods")  # formats with a header row
# rows of JSON whose keys are the columns, since exporters leave a key without a value out; also
# keys
_SEEN = 2000


class FileForm(NamedTuple):
    """The form of a file of rows, as it is read.

    Attributes:
        format: One of the values of FORMATS.
        encoding: The encoding of a text file; None for other files.
        header_row: The number of the row (for a text file of the line) with the column names; 0 for
            none.
        delimiter: The character between fields of CSV or TSV; None for other formats.
        sheets: The sheets of a workbook, or the tables and views of a database, in order.
    """

    format: str
    encoding: Encoding | None = None
    header_row: int = 0
    delimiter: str | None = None
    sheets: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The form in words: `CSV in CP1252 (a guess), separated
        by semicolons, header in line 3`.
        """
        names = {"jsonl": "JSONL", "parquet": "Parquet", "sqlite": "SQLite", "xlsx": "Excel"}
        words = names.get(self.format, self.format.upper())
        if self.encoding is not None:
            words += f" in {self.encoding.title}" + ("" if self.encoding.certain else " (a guess)")
        if self.delimiter is not None and self.format == "csv":
            names = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
            words += f", separated by {names.get(self.delimiter, repr(self.delimiter))}"
        if self.header_row > 1:
            words += f", header in {'row' if self.encoding is None else 'line'} {self.header_row}"
        return words


class TextForm(NamedTuple):
    """The form in which a text file is written: encoding, field delimiter, line end."""

    encoding: Encoding = Encoding("utf-8")
    delimiter: str = ","
    line_end: str = "\n"


@contextlib.contextmanager
def opened(
    path: Path, **options: Unpack[ReadingOptions]
) -> Iterator[tuple[FileForm, Iterator[Row]]]:
    """Yield (form of a file, its rows in order), to be read inside the block; an unusable row has a
    `fault`.

    Args:
        path: A CSV, TSV, JSONL or JSON file, plain or packed with gzip, a Parquet file, a workbook
            or an SQLite database.
        sheet: The sheet of a workbook, by default the first; the table of a database, by default
            the only one; or the array of a JSON object.
        format: The format of the file, by default from its name.
        encoding: The encoding of a text file, by default recognised from its content.
        header_row: The row of a workbook, or the line of a text, with the column names; by default
            it is found.

    Raises:
        DataError: The file is missing, of an unknown kind, damaged as a whole, or in an unknown
            encoding.
        UsageError: The sheet or encoding does not exist, or the format has none.
    """
    sheet = options.get("sheet")
    encoding = options.get("encoding")
    header_row = options.get("header_row")
    require_file(path)
    kind = options.get("format") or format_of(path)
    if sheet is not None and kind not in _SHEETS:
        raise UsageError(
            f"{path.name} is no workbook, database or JSON object, and has no sheet '{sheet}'"
        )
    if encoding is not None and kind not in TEXTS:
        raise UsageError(
            f"{path.name} is no text, and has no encoding", hint="leave 'encoding' out"
        )
    if header_row is not None and kind not in _HEADERS:
        raise UsageError(
            f"{path.name} has no row that names the columns", hint="leave 'header_row' out"
        )
    try:
        if kind not in TEXTS:
            with tables.opened(path, kind, sheet, header_row) as table:
                yield FileForm(kind, None, *table[1:]), table.rows
            return
        recognised = lines.encoding_of(path, encoding)
        if kind == "json" and sheet is None:
            with lines.opened(path, recognised) as stream:
                kind = "jsonl" if objects.is_lines(stream) else "json"
        with lines.opened(path, recognised) as stream:
            if kind == "jsonl":
                table = RawTable(objects.line_rows(stream))
            elif kind == "json":
                table = RawTable(objects.array_rows(stream, path.name, key=sheet))
            else:
                table = delimited.delimited_table(
                    stream, path.name, tabs=kind == "tsv", header_row=header_row
                )
            yield FileForm(kind, recognised, *table[1:]), table.rows
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror or error}") from None


def read_rows(path: Path, **options: Unpack[ReadingOptions]) -> Generator[Row]:
    with opened(path, **options) as (_, rows):
        yield from rows


def columns_of(path: Path, **options: Unpack[ReadingOptions]) -> list[str]:
    """The column names of a file, see `form_and_columns`.

    Raises:
        DataError: The file holds no row; see also `opened`.
    """
    _, columns = form_and_columns(path, **options)
    if not columns:
        raise DataError(
            f"{path.name} holds no rows", hint="a header and at least one row are needed"
        )
    return columns


def form_of(path: Path, **options: Unpack[ReadingOptions]) -> FileForm:
    with opened(path, **options) as (form, _):
        return form


def form_and_columns(path: Path, **options: Unpack[ReadingOptions]) -> tuple[FileForm, list[str]]:
    """Returns (form of a file, column names of its first usable row, of
    JSON of many); an empty list without one.
    """
    with opened(path, **options) as (form, rows):
        names: dict[str, None] = {}
        usable = (row for row in rows if not row.fault)
        for row in itertools.islice(usable, _SEEN if form.format in ("jsonl", "json") else 1):
            names |= dict.fromkeys(row.columns)
            if len(names) > _SEEN:  # a hostile file has other keys in every row
                break
        return form, list(names)


def text_form(path: Path, **options: Unpack[ReadingOptions]) -> TextForm:
    """The form of a text file, so that another file can be written in the same form.

    Raises:
        DataError: The file is not a text file; see also `opened`.
    """
    form = form_of(path, **options)
    if form.encoding is None:
        raise DataError(f"{path.name} is no text")
    with lines.opened(path, form.encoding) as stream:
        first = next((line for line in lines.lines(stream) if line), "\n")
    end = next((end for end in ("\r\n", "\n", "\r") if first.endswith(end)), "\n")
    return TextForm(form.encoding, form.delimiter or ",", end)
