"""One raw row. Its cells hold JSON values, into which the types of every source are converted."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from slmctl.artifacts.bounded_json import JsonObject, is_deeper
from slmctl.errors import DataError

MAX_ROW = 10_000_000  # characters in one row; a longer row is a fault, and never held in memory
LOOK = 20  # number of non-empty rows at the start of a table in which its header is looked for
FAULT = "slmctl:fault"  # key of the reason why a row that slmctl copied cannot be used
MAX_DEPTH = 100  # levels of lists and objects; later readers of a cell recurse once for each


# The JSON value of a cell: null, a boolean, a number, a text, a list or an object.
Cell = None | bool | int | float | str | list[Any] | JsonObject


# a frozen dataclass takes three times as long to make, and a file has a million
class Row(NamedTuple):
    """One raw row: its number in the file, and its columns or a fault.

    The number is, in a text file, the line on which the row begins; in a workbook, the row number
    that the program shows; in a JSON array, Parquet and SQLite, the position from 1.
    """

    number: int
    columns: dict[str, Cell]
    fault: str = ""


class RawTable(NamedTuple):
    """The rows of a table below its header, and its recognised form.

    Attributes:
        rows: The rows, in order; to be read while the file is open.
        header_row: The number of the row with the column names, see `Row.number`; 0 for none.
        delimiter: The character between the fields of CSV or TSV.
        sheets: All sheets of the workbook, or tables of the database.
    """

    rows: Iterator[Row]
    header_row: int = 0
    delimiter: str | None = None
    sheets: tuple[str, ...] = ()


def header_place(rows: Sequence[Sequence[Cell]]) -> int:
    """The index of the header among the first non-empty rows of a table.

    Rows above it are titles: a title fills at most half as many cells as typical rows below it
    have, and does not reach their last column.
    """
    for place, cells in enumerate(rows[:-2]):
        below = sorted(len(without_tail(row)) for row in rows[place + 1 : place + 1 + LOOK])
        typical = below[(len(below) - 1) // 2]
        if (
            2 * sum(cell not in ("", None) for cell in cells) > typical
            or len(without_tail(cells)) >= typical
        ):
            return place
    return 0


def without_tail(cells: Sequence[Cell]) -> Sequence[Cell]:
    """A row without empty cells at its end, which formatting in a workbook leaves."""
    end = len(cells)
    while end and cells[end - 1] in ("", None):
        end -= 1
    return cells[:end]


def column_names(header: Sequence[object], where: str) -> list[str]:
    """The column names of a header; a column without a name is called `column N`. `where` begins
    the error.

    Raises:
        DataError: Two columns have the same name.
    """
    names = [
        str(name) if name not in ("", None) else f"column {place}"
        for place, name in enumerate(header, 1)
    ]
    if len(set(names)) < len(names):
        raise DataError(f"{where} names a column twice: {listed(names)}")
    return names


def listed(names: Sequence[str]) -> str:
    """Up to 20 names, each cut to 60 characters, in one line for an error."""
    shown = [" ".join(name.split())[:60] for name in names[:20]]
    return ", ".join(shown) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def plain(value: Any) -> Any:
    """A value of Parquet, a workbook or a database as a JSON value.

    Dates and times become ISO 8601, decimals and UUIDs text; a value without a JSON form (NaN,
    infinities, bytes that are not UTF-8) becomes None, like a missing value.
    """
    if type(value) in _JSON:  # fast path: this is called for every cell of a million rows
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return f"{value:f}" if value.is_finite() else None
    if isinstance(value, datetime.timedelta | uuid.UUID):
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            return None
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in value]
    return str(value)  # a database's own types: ranges, network addresses, points


_JSON = frozenset({str, int, bool, type(None)})


def as_text(cell: Any) -> str:
    """A cell as a stripped text; a missing value or NaN as '', any other value as JSON."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    return (
        cell.strip()
        if isinstance(cell, str)
        else json.dumps(cell, ensure_ascii=False, sort_keys=True)
    )


def fault_of(cells: Sequence[object]) -> str:
    """The reason why a row of typed cells cannot be used (too long,
    nested too deep); '' for a usable row.
    """
    size = 0
    for place, value in enumerate(cells, 1):
        if isinstance(value, str):
            size += len(value)
        elif isinstance(value, list | dict):
            if is_deeper(value, MAX_DEPTH):
                return f"cell {place} is nested more than {MAX_DEPTH} deep"
            size += len(str(value))
    return too_long(size) if size > MAX_ROW else ""


def too_long(size: int | None = None) -> str:
    """The fault text of a row with more than MAX_ROW characters;
    `size` is its number where known.
    """
    return (
        f"has {size:,} characters, more than {MAX_ROW:,}"
        if size
        else f"has more than {MAX_ROW:,} characters"
    )


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, at most 300 characters; the
    exception's name for an empty message.
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
