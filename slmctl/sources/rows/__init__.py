"""Raw rows of a file, in order: each with its number and columns, or with its fault; and rows out as CSV for people.

Reading any file gives rows and faults, or raises DataError, in bounded memory.
"""

from __future__ import annotations

import csv
import json
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from slmctl.errors import DataError, UsageError
from slmctl.sources.rows import delimited, lines, objects, tables
from slmctl.sources.rows.cells import MAX_ROW, Row, listed

__all__ = ["FORMATS", "MAX_ROW", "Row", "as_csv", "columns_of", "format_of", "listed", "read_rows", "require_file"]

FORMATS = {
    ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet",
    ".xlsx": "xlsx", ".xlsm": "xlsx", ".xlsb": "xlsx", ".xls": "xlsx", ".ods": "ods",
}  # fmt: skip
TEXTS = ("csv", "tsv", "jsonl", "json")  # these may be packed with gzip
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def read_rows(path: Path, *, sheet: str | None = None, format: str | None = None) -> Iterator[Row]:
    """The rows of a file, in order; an unusable one has its fault.

    Args:
        path: A CSV, TSV, JSONL or JSON file, each also packed with gzip, a Parquet file, or a workbook.
        sheet: The sheet of a workbook, by default the first; or the array of a JSON object.
        format: The format of the file, by default that of its name.

    Raises:
        DataError: The file is missing, of an unknown kind, damaged as a whole, or not UTF-8 or UTF-16.
        UsageError: The workbook has no such sheet, or the file is no workbook.
    """
    require_file(path)
    kind = format or format_of(path)
    if sheet is not None and kind not in ("xlsx", "ods", "json"):
        raise UsageError(f"{path.name} is no workbook and no JSON object, and has no sheet '{sheet}'")
    try:
        if kind == "parquet":
            yield from tables.parquet_rows(path)
        elif kind not in TEXTS:
            yield from tables.workbook_rows(path, sheet)
        else:
            yield from _text_rows(path, kind, sheet)
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror or error}") from None


def columns_of(path: Path, *, sheet: str | None = None, format: str | None = None) -> list[str]:
    """The column names of a file, from its header or its first good row.

    Raises:
        DataError: The file holds no row; and what `read_rows` raises.
    """
    for row in read_rows(path, sheet=sheet, format=format):
        if not row.fault:
            return list(row.columns)
    raise DataError(f"{path.name} holds no rows", hint="a header and at least one row are needed")


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


def _text_rows(path: Path, kind: str, key: str | None) -> Iterator[Row]:
    if kind == "json" and key is None:
        with lines.opened(path) as stream:
            kind = "jsonl" if objects.is_lines(stream) else "json"
    with lines.opened(path) as stream:
        if kind == "jsonl":
            yield from objects.line_rows(stream)
        elif kind == "json":
            yield from objects.array_rows(stream, path.name, key=key)
        else:
            yield from delimited.delimited_rows(stream, path.name, tabs=kind == "tsv")
