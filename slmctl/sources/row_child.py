"""The child process that reads rows of a workbook, Parquet file, SQLite file or query, within
limits.

    python -m slmctl.sources.row_child

The request is JSON on stdin: `kind`, and the arguments of the reader. Each line of stdout is a JSON
value. For a file, the first is `{"columns": …, "sheets": …}`; a key is left out where it does not
apply, and without columns a table must be named. Each further one is an array of a row's cells, or
`{"fault": …}` for a row that cannot be used. For a query each is an object, a row. An error ends
the child by `child.refuse`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmctl import child
from slmctl.errors import DataError, MissingError, NetworkError, SlmctlError, UsageError
from slmctl.sources.rows.cells import column_names, fault_of, first_line, listed, plain
from slmctl.sources.rows.lines import MAX_RATIO, UNPACKED_ANYWAY

if TYPE_CHECKING:
    from slmctl.sources.sql_address import DatabaseAddress

# Bytes of address space; some database clients hold a whole result in memory.
MEMORY = {"parquet": 2 << 30, "workbook": 3 << 30, "sqlite": 2 << 30, "query": 4 << 30}
SECONDS = 600  # CPU seconds until the first row of a file, and again for each further PIECE rows
PIECE = 1000  # rows
# Largest number of output characters for each byte of the file; a column with one value compresses
# well.
RATIOS = {"parquet": 1000, "workbook": MAX_RATIO, "sqlite": MAX_RATIO}
MAX_CELL = 100_000_000  # largest SQLite value in bytes

_BATCH = 256  # rows of Parquet in memory at a time
_FETCHED = 1000  # rows of a query in memory at a time
_ROW_COST = 50  # characters that are added for each row: a billion empty rows fit in a kilobyte
# bytes; a larger batch is converted row by row, since a dictionary can make megabytes of each cell
_SMALL = 4 << 20
_CONNECT_S = 30
_READS = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_RECURSIVE,
    sqlite3.SQLITE_TRANSACTION,
}
_PRAGMAS = {
    "table_info",
    "table_xinfo",
    "table_list",
    "index_list",
    "index_info",
    "index_xinfo",
    "foreign_key_list",
    "user_version",
    "application_id",
    "schema_version",
    "database_list",
    "encoding",
    "page_count",
    "page_size",
}
_Reply = list[object] | dict[str, Any]
_encode = json.JSONEncoder(ensure_ascii=False).encode


def main() -> None:
    request = json.load(sys.stdin)
    kind = request.pop("kind")
    try:
        for line in _query(**request) if kind == "query" else _file(kind, **request):
            # a lone surrogate is written as its JSON escape
            sys.stdout.buffer.write(line.encode(errors="backslashreplace") + b"\n")
    except SlmctlError as error:
        sys.stdout.buffer.flush()
        child.refuse(error)


# Files


def _file(kind: str, path: str, sheet: str | None) -> Iterator[str]:
    """The output lines for a file; their total size is bounded by RATIOS times the file's size."""
    child.bound(memory=MEMORY[kind])
    child.renew_cpu(SECONDS)
    left = max(UNPACKED_ANYWAY, RATIOS[kind] * Path(path).stat().st_size)
    for number, row in enumerate(_READERS[kind](path, sheet), 1):
        line = _encode(row)
        left -= len(line) + _ROW_COST
        if left < 0:
            raise DataError(f"it unpacks to more than {RATIOS[kind]} times its size")
        fault = fault_of(row) if isinstance(row, list) else ""
        yield _encode({"fault": fault}) if fault else line
        if number % PIECE == 0:
            child.renew_cpu(SECONDS)


def _of_parquet(path: str, _: str | None) -> Iterator[_Reply]:
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
        raise DataError(
            f"it holds a text that is not UTF-8 near row {number + 1}: {error.reason}"
        ) from None
    except MemoryError:  # includes ArrowMemoryError
        raise DataError("it takes too much memory") from None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(first_line(error)) from None


def _rows_of(batch: Any) -> Iterator[Sequence[object]]:
    """The rows of a batch as Python values; a large batch is converted row by row."""
    if batch.nbytes <= _SMALL:
        try:
            yield from list(zip(*(column.to_pylist() for column in batch.columns), strict=True))
            return
        except (OverflowError, ValueError):
            pass
    for place in range(len(batch)):
        yield [_value(column[place]) for column in batch.columns]


def _value(scalar: Any) -> object:
    """An Arrow scalar as a Python value; None for a date or time that Python cannot represent."""
    import pyarrow

    try:
        return scalar.as_py()
    except (UnicodeDecodeError, pyarrow.ArrowException):
        raise
    except OverflowError:
        return None
    except ValueError:  # nanoseconds, which Python's datetime does not have
        try:
            return scalar.cast(pyarrow.string()).as_py()
        except pyarrow.ArrowException:  # a list cannot be cast
            return None


def _of_workbook(path: str, sheet: str | None) -> Iterator[_Reply]:
    from python_calamine import CalamineError, CalamineWorkbook

    try:
        with CalamineWorkbook.from_path(path) as book:
            names = book.sheet_names
            if sheet is not None and sheet not in names:
                raise _lacking(path, "sheet", sheet, names)
            if not names:
                raise DataError("it has no sheet")
            yield {"sheets": names}
            for row in book.get_sheet_by_name(sheet or names[0]).iter_rows():
                yield [_number(cell) for cell in row]
    except (CalamineError, OSError, ValueError) as error:
        raise DataError(first_line(error)) from None


def _number(cell: object) -> object:
    """A cell as a JSON value. Workbooks keep whole numbers as floats:
    10023.0 becomes 10023, a customer number.
    """
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53:
        return int(cell)
    return plain(cell)


def _of_sqlite(path: str, table: str | None) -> Iterator[_Reply]:
    """The rows of a table or view. `immutable`: SQLite neither reads
    nor creates other files, such as a WAL.
    """
    try:
        with contextlib.closing(
            sqlite3.connect(f"{Path(path).absolute().as_uri()}?immutable=1", uri=True)
        ) as base:
            base.text_factory = bytes  # names of tables may not be UTF-8
            base.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_CELL)
            # views of an untrusted file must not run functions
            base.execute("PRAGMA trusted_schema = OFF")
            named = base.execute(
                "SELECT name, type FROM sqlite_master WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
            )
            kinds = {
                name.decode(errors="replace"): kind
                for name, kind in named
                if kind in (b"table", b"view")
            }
            tables = [name for name, kind in kinds.items() if kind == b"table"] or list(kinds)
            chosen = table if table is not None else tables[0] if len(tables) == 1 else ""
            if chosen not in kinds:
                if chosen:
                    raise _lacking(path, "table", chosen, tables)
                yield {"sheets": tables}
                return
            quoted = chosen.replace('"', '""')
            rows = base.execute(f'SELECT * FROM "{quoted}"')  # noqa: S608  the database itself gave the name
            yield {"columns": [name for name, *_ in rows.description], "sheets": tables}
            base.text_factory = _decoded
            for cells in rows:
                place = next(
                    (k for k, cell in enumerate(cells, 1) if isinstance(cell, UnicodeError)), 0
                )
                yield (
                    {"fault": f"cell {place} is not UTF-8"}
                    if place
                    else [plain(cell) for cell in cells]
                )
    except sqlite3.Error as error:
        raise DataError(first_line(error)) from None


def _decoded(text: bytes) -> str | UnicodeError:
    """A text of SQLite, or why it is none: an error that is raised here would end the table."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        return error


def _lacking(path: str, what: str, name: str, present: Sequence[str]) -> UsageError:
    return UsageError(
        f"{Path(path).name} has no {what} '{name}'",
        hint=f"its {what}s: {listed(present) or 'none'}",
    )


_READERS: dict[str, Callable[[str, str | None], Iterable[_Reply]]] = {
    "parquet": _of_parquet,
    "workbook": _of_workbook,
    "sqlite": _of_sqlite,
}


# Queries


def _query(url: str, query: str, root: str, host: str, pid: int, file_bytes: int) -> Iterator[str]:
    """The rows of a query, each a JSON object.

    The child ends with its parent, which has the id `pid`. A file that it writes (SQLite sorts on
    disk) has at most `file_bytes`, the limit of the rows' copy.
    """
    from slmctl.network import guard
    from slmctl.sources import sql_address

    child.end_with_parent()
    if os.getppid() != pid:  # the parent ended before `end_with_parent` took effect
        return
    guard.seal()
    child.bound(memory=MEMORY["query"], file_bytes=max(file_bytes, 1 << 20))
    import sqlalchemy

    reached = False
    with guard.network(f"a query on {host}", hosts={host}) if host else contextlib.nullcontext():
        address = sql_address.parse(url).read_only(Path(root))
        try:
            with _connected(address) as connection:
                reached = True
                yield from map(_encode, _rows(connection, query))
        except (sqlalchemy.exc.SQLAlchemyError, sqlite3.Error) as error:
            raise _failure(error, address, reached=reached) from None


def _connected(address: DatabaseAddress) -> Any:
    import sqlalchemy

    from slmctl.installation import pip_line

    url = address.url
    options: dict[str, Any] = (
        {"connect_timeout": _CONNECT_S} if url.get_driver_name() == "psycopg" else {}
    )
    try:
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=options)
    except ModuleNotFoundError as error:
        raise MissingError(
            f"the database {address.masked(url.drivername)} needs the package '{error.name}', "
            "which is not installed",
            hint=pip_line("data")
            if error.name == "psycopg"
            else "SQLAlchemy's manual names its drivers",
        ) from None
    streamed: dict[str, Any] = {
        "stream_results": True,
        "yield_per": _FETCHED,
        "no_parameters": True,
    }
    if address.backend == "postgresql":
        streamed["postgresql_readonly"] = True
    return engine.connect().execution_options(**streamed)  # closing it rolls back


def _rows(connection: Any, query: str) -> Iterator[dict[str, Any]]:
    if connection.dialect.name == "sqlite":
        _only_read(connection.connection.dbapi_connection)
    # without parameters, so `:name` and `%` in the query have no special meaning
    with contextlib.closing(connection.exec_driver_sql(query)) as result:
        if not result.returns_rows:
            raise DataError("the query gives no rows: it is no SELECT")
        names = column_names(list(result.keys()), "the query")
        for cells in result:
            yield {name: plain(cell) for name, cell in zip(names, cells, strict=True)}


def _only_read(connection: sqlite3.Connection) -> None:
    """Allow a connection only reads: ATTACH and VACUUM INTO create
    files even from a read-only database.
    """

    def allowed(action: int, name: str | None, argument: str | None, *_: object) -> int:
        if action == sqlite3.SQLITE_PRAGMA:
            fine = (name or "").lower() in _PRAGMAS
        elif action == sqlite3.SQLITE_FUNCTION:
            fine = (argument or "").lower() != "load_extension"
        else:
            fine = action in _READS
        return sqlite3.SQLITE_OK if fine else sqlite3.SQLITE_DENY

    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_CELL)
    connection.set_authorizer(allowed)


def _failure(
    error: Any, address: DatabaseAddress, *, reached: bool
) -> DataError | NetworkError | UsageError:
    """A driver's error as an error of slmctl, with the driver's message without secrets."""
    import sqlalchemy

    reason = address.masked(first_line(getattr(error, "orig", None) or error))
    if isinstance(error, sqlalchemy.exc.ArgumentError):  # includes an unknown kind of database
        return UsageError(f"the database cannot be asked: {reason}")
    if not reached or getattr(error, "connection_invalidated", False):
        if not address.host and address.backend == "sqlite":
            return DataError(f"the database cannot be opened: {reason}")
        return NetworkError(f"the database cannot be reached: {reason}")
    return DataError(
        f"the query failed: {reason}", hint="it must be one SELECT that the database takes"
    )


if __name__ == "__main__":
    main()
