"""Rows of Parquet files, workbooks and SQLite databases, read by a
child process with limits (`row_child`).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import zipfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from slmctl import child
from slmctl.errors import DataError, SlmctlError, UsageError
from slmctl.sources.rows.cells import (
    LOOK,
    Cell,
    RawTable,
    Row,
    column_names,
    header_place,
    listed,
    without_tail,
)
from slmctl.sources.rows.lines import MAX_RATIO, UNPACKED_ANYWAY

_Reply = list[Cell] | dict[str, Any]  # the cells of a row, or an object; see `row_child`
_CANNOT = {
    "parquet": "cannot be read as Parquet",
    "workbook": "cannot be read as a workbook",
    "sqlite": "cannot be read as an SQLite database",
}
_REMEDY = {
    "parquet": "write it again, in smaller row groups and without huge cells",
    "workbook": "save it again, or as CSV; does it have a cell far away from the others?",
    "sqlite": "does `sqlite3 FILE 'PRAGMA integrity_check'` say ok?",
}


@contextlib.contextmanager
def opened(
    path: Path, format: str, sheet: str | None = None, header_row: int | None = None
) -> Iterator[RawTable]:
    """Yield the rows of a Parquet file, a sheet of a workbook, or a table of an SQLite database, in
    order.

    A child process with limits of memory and time reads it: a file of a kilobyte can unpack to
    gigabytes of cells, one cell in the last corner of a sheet can need more memory than there is,
    and a damaged file can crash its reader.

    Raises:
        DataError: The file is damaged, or over the limits. When rows are read: it names a column
            twice.
        UsageError: It has no such sheet or table. When rows are read: it has several tables, and
            `sheet` is None.
    """
    kind = format if format in _CANNOT else "workbook"
    if kind == "workbook":
        _require_bounded(path)
    elif kind == "sqlite":
        _require_settled(path)
    with contextlib.closing(_replies_of(path, kind, sheet)) as replies:
        head = next(replies, {})
        assert isinstance(head, dict)
        sheets = tuple(head.get("sheets", ()))
        if kind == "workbook":
            where = (
                f"the header of the sheet {sheet or sheets[0]}" if len(sheets) > 1 else "the header"
            )
            try:
                table = _sheet(replies, f"{path.name}: {where}", header_row)
            except DataError as error:  # another sheet may be the one with the rows
                table = RawTable(_faulty(error))
            yield table._replace(sheets=sheets)
        elif "columns" not in head:
            yield RawTable(_faulty(_without_choice(path.name, sheets)), sheets=sheets)
        else:
            names = column_names(head["columns"], f"{path.name}: the schema")
            rows = (
                Row(number, {}, cells)
                if isinstance(cells, str)
                else Row(number, dict(zip(names, cells, strict=True)))
                for number, cells in enumerate(map(_cells, replies), 1)
            )
            yield RawTable(rows, sheets=sheets)


def _without_choice(file: str, tables: Sequence[str]) -> SlmctlError:
    if not tables:
        return DataError(f"{file} holds no table", hint="is it the right file?")
    return UsageError(
        f"{file} holds {len(tables)} tables: {listed(tables)}", hint=f"name one: sheet: {tables[0]}"
    )


def _faulty(error: SlmctlError) -> Iterator[Row]:
    raise error
    yield  # makes this a generator, so that the error is raised when rows are read


def _sheet(replies: Iterator[_Reply], where: str, header_row: int | None) -> RawTable:
    """The rows of a sheet below its header, by which errors begin
    as `where`; empty rows are skipped.
    """
    rows = (
        (number, cells)
        for number, cells in enumerate(map(_cells, replies), 1)
        if without_tail(cells)
    )
    ahead = list(itertools.islice(rows, 1 if header_row else LOOK + 1))
    if header_row:
        while ahead and ahead[0][0] < header_row:
            ahead = list(itertools.islice(rows, 1))
        at = 0
    else:
        # an unusable row ends the search, since it may be the header
        usable = list(
            itertools.takewhile(
                lambda cells: not isinstance(cells, str), (cells for _, cells in ahead)
            )
        )
        at = header_place([cells for cells in usable if not isinstance(cells, str)])
    if not ahead:
        return RawTable(iter(()))
    number, header = ahead[at]
    if isinstance(header, str):
        raise DataError(f"{where} {header}")
    names = column_names(without_tail(header), where)
    return RawTable(_rows_below(names, itertools.chain(ahead[at + 1 :], rows)), number)


def _rows_below(
    names: list[str], rows: Iterable[tuple[int, Sequence[Cell] | str]]
) -> Iterator[Row]:
    for number, cells in rows:
        if isinstance(cells, str):
            yield Row(number, {}, cells)
            continue
        cells = without_tail(cells) if len(cells) > len(names) else cells
        if len(cells) > len(names):
            yield Row(number, {}, f"has {len(cells)} cells, the header has {len(names)}")
        else:
            yield Row(
                number, dict(zip(names, [*cells, *[""] * (len(names) - len(cells))], strict=True))
            )


def _cells(reply: _Reply) -> Sequence[Cell] | str:
    return str(reply["fault"]) if isinstance(reply, dict) else reply


def _replies_of(path: Path, kind: str, sheet: str | None) -> Generator[_Reply, None, None]:
    """The lines of the child: first an object about the file, then
    the cells or the fault of each row.
    """
    request = json.dumps({"kind": kind, "path": str(path), "sheet": sheet}).encode()
    try:
        with child.output("slmctl.sources.row_child", request=request) as lines:
            for line in lines:
                if line.endswith(b"\n"):  # a killed child may leave half a line
                    yield json.loads(line)
    except child.DiedError as death:
        death.require_packages()
        if isinstance(refusal := death.refusal, UsageError):
            raise refusal from None
        # out of memory, or over its limit of CPU time
        killed = death.code in (-signal.SIGKILL, -signal.SIGXCPU)
        why = (
            "it takes too much memory or time"
            if killed or "memory" in death.log.lower()
            else "it is damaged"
        )
        raise _unreadable(path, kind, refusal or why) from None


def _unreadable(path: Path, kind: str, why: object) -> DataError:
    return DataError(f"{path.name} {_CANNOT[kind]}: {why}", hint=_REMEDY[kind])


def _require_bounded(path: Path) -> None:
    """Refuse a workbook with declared sizes of more than MAX_RATIO times
    the file (old .xls files are not zipped).
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _unreadable(path, "workbook", error) from None
    if unpacked > max(UNPACKED_ANYWAY, MAX_RATIO * path.stat().st_size):
        raise DataError(
            f"{path.name} unpacks to more than {MAX_RATIO} times its size, as a zip bomb does"
        )


def _require_settled(path: Path) -> None:
    """Refuse a database with recent changes in a WAL or journal file,
    since that is neither read nor hashed.
    """
    for suffix in ("-wal", "-journal"):
        beside = path.with_name(path.name + suffix)
        if beside.is_file() and beside.stat().st_size:
            raise DataError(
                f"{path.name} is being written: its last changes are still in {beside.name}",
                hint=f"close the program that writes it, or take a copy: sqlite3 {path.name} "
                '".backup copy.db"',
            )
