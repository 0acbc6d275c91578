"""The child that reads a file of tables within limits of memory and time, one JSON value a row on stdout.

    python -m slmctl.sources.rows.tables_child parquet FILE
    python -m slmctl.sources.rows.tables_child workbook FILE [SHEET]
    python -m slmctl.sources.rows.tables_child sqlite FILE [TABLE]

First comes an object, `{"columns": …, "sheets": …}`, as far as there are such. Then an array holds the cells of a row.
Another object is `{"fault": …}` for a row that cannot be used, or `{"error": …}` for a file that cannot be read on.
`lacking` in the first one is the name of a sheet or table that is not there; empty where a table must be named.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from slmctl.child import bound
from slmctl.sources.rows.cells import fault_of, first_line, plain
from slmctl.sources.rows.lines import MAX_RATIO, UNPACKED_ANYWAY

MEMORY = {"parquet": 2 << 30, "workbook": 3 << 30, "sqlite": 2 << 30}  # bytes of address space
SECONDS = 600  # of the processor, before the first row and for each further PIECE rows
PIECE = 1000  # rows
# Characters of rows by bytes of the file; a column of one value packs well.
RATIOS = {"parquet": 1000, "workbook": MAX_RATIO, "sqlite": MAX_RATIO}

_BATCH = 256  # rows of Parquet that are in memory at a time
_ROW_COST = 50  # characters that a row counts as beside its own: a billion empty ones fit a kilobyte
_MAX_CELL = 100_000_000  # bytes that SQLite may make of one value
_SMALL = 4 << 20  # bytes of a batch that is converted as a whole; a dictionary can make megabytes of each cell
_Reply = list[object] | dict[str, Any]
_encode = json.JSONEncoder(ensure_ascii=False).encode


def main() -> None:
    kind, path, *sheet = sys.argv[1:]
    bound(memory=MEMORY[kind])
    _renew_time()
    rows = _READERS[kind](path, *sheet)
    left = max(UNPACKED_ANYWAY, RATIOS[kind] * Path(path).stat().st_size)
    for number, row in enumerate(rows, 1):
        line = _encode(row)
        left -= len(line) + _ROW_COST
        if left < 0:
            _write({"error": f"it unpacks to more than {RATIOS[kind]} times its size"})
            return
        fault = fault_of(row) if isinstance(row, list) else ""
        _write({"fault": fault} if fault else line)
        if number % PIECE == 0:
            _renew_time()


def _write(value: dict[str, str] | str) -> None:
    line = value if isinstance(value, str) else _encode(value)
    sys.stdout.buffer.write(line.encode() + b"\n")


def _renew_time() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + SECONDS, hard))


def _of_parquet(path: str) -> Iterator[_Reply]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path, memory_map=False, pre_buffer=False) as file:
            yield {"columns": list(file.schema_arrow.names)}
            for batch in file.iter_batches(batch_size=_BATCH, use_threads=False):
                for cells in _rows_of(batch):
                    number += 1
                    yield [plain(cell) for cell in cells]
    except UnicodeDecodeError as error:
        yield {"error": f"it holds a text that is not UTF-8 near row {number + 1}: {error.reason}"}
    except MemoryError:  # Arrow's own is one, too
        yield {"error": "it takes too much memory"}
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        yield {"error": first_line(error)}


def _rows_of(batch: Any) -> Iterator[Sequence[object]]:
    """The rows of a batch as Python has them: all at once where they are small, else one by one."""
    if batch.nbytes <= _SMALL:
        try:
            yield from list(zip(*(column.to_pylist() for column in batch.columns), strict=True))
            return
        except (OverflowError, ValueError):
            pass
    for place in range(len(batch)):
        yield [_value(column[place]) for column in batch.columns]


def _value(scalar: Any) -> object:
    """A cell as Python has it; None for a date or time that no calendar reaches."""
    import pyarrow

    try:
        return scalar.as_py()
    except (UnicodeDecodeError, pyarrow.ArrowException):
        raise
    except OverflowError:
        return None
    except ValueError:  # nanoseconds, which Python's own type has not
        try:
            return scalar.cast(pyarrow.string()).as_py()
        except pyarrow.ArrowException:  # it stands in a list
            return None


def _of_workbook(path: str, sheet: str | None = None) -> Iterator[_Reply]:
    from python_calamine import CalamineError, CalamineWorkbook

    try:
        with CalamineWorkbook.from_path(path) as book:
            names = book.sheet_names
            if sheet is not None and sheet not in names:
                yield {"lacking": sheet, "sheets": names}
            elif not names:
                yield {"error": "it has no sheet"}
            else:
                yield {"sheets": names}
                for row in book.get_sheet_by_name(sheet or names[0]).iter_rows():
                    yield [_number(cell) for cell in row]
    except (CalamineError, OSError, ValueError) as error:
        yield {"error": first_line(error)}


def _of_sqlite(path: str, table: str | None = None) -> Iterator[_Reply]:
    """The rows of a table or view. The file is taken as it lies there: nothing beside it is read or made."""
    try:
        with contextlib.closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?immutable=1", uri=True)) as base:
            base.text_factory = bytes  # one that is not UTF-8 is empty, as elsewhere
            base.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_CELL)
            base.execute("PRAGMA trusted_schema = OFF")  # a view of another's making runs no function of ours
            listed = base.execute("SELECT name, type FROM sqlite_master WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'")
            kinds = {name.decode(errors="replace"): kind for name, kind in listed if kind in (b"table", b"view")}
            tables = [name for name, kind in kinds.items() if kind == b"table"] or list(kinds)
            chosen = table if table is not None else tables[0] if len(tables) == 1 else ""
            if chosen not in kinds:
                yield {"lacking": chosen, "sheets": tables}
                return
            quoted = chosen.replace('"', '""')
            rows = base.execute(f'SELECT * FROM "{quoted}"')  # noqa: S608  the database itself gave the name
            yield {"columns": [name for name, *_ in rows.description], "sheets": tables}
            for cells in rows:
                yield [plain(cell) for cell in cells]
    except sqlite3.Error as error:
        yield {"error": first_line(error)}


_READERS: dict[str, Callable[..., Iterator[_Reply]]] = {
    "parquet": _of_parquet,
    "workbook": _of_workbook,
    "sqlite": _of_sqlite,
}


def _number(cell: object) -> object:
    """A cell as JSON has it; a workbook keeps whole numbers as floats, and 10023.0 is no customer number."""
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53:
        return int(cell)
    return plain(cell)


if __name__ == "__main__":
    main()
