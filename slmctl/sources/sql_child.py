"""The child that asks a database: the request as JSON on stdin, the rows as JSON lines on stdout.

    python -m slmctl.sources.sql_child DESCRIPTOR

Its last word, `{"rows": …}` or `{"error": …, "message": …, "hint": …}`, goes to the file behind DESCRIPTOR. It ends
with its parent, and no file that it makes (SQLite sorts on the disk) becomes larger than the copy itself may.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from slmctl import child
from slmctl.errors import DataError, MissingError, NetworkError, SlmctlError, UsageError
from slmctl.installation import pip_line
from slmctl.network import guard
from slmctl.sources import sql_address
from slmctl.sources.rows.cells import column_names, first_line, plain
from slmctl.sources.sql_address import DatabaseAddress

MEMORY = 4 << 30  # bytes of address space: a client that holds a whole result needs some
MAX_CELL = 100_000_000  # bytes that SQLite may make of one value

_BATCH = 1000  # rows
_CONNECT_S = 30
_JSON = json.JSONEncoder(ensure_ascii=False)
_READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE, sqlite3.SQLITE_TRANSACTION}
_PRAGMAS = {"table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo", "foreign_key_list",
            "user_version", "application_id", "schema_version", "database_list", "encoding", "page_count",
            "page_size"}  # fmt: skip


def main() -> None:
    child.end_with_parent()
    request = json.load(sys.stdin)
    if os.getppid() != request["pid"]:  # it has ended meanwhile
        return
    guard.seal()
    child.bound(memory=MEMORY, file_bytes=max(request["file_bytes"], 1 << 20))
    try:
        address = sql_address.parse(request["url"]).read_only(Path(request["root"]))
        remote = request["host"]
        with guard.network(f"a query on {remote}", hosts={remote}) if remote else contextlib.nullcontext():
            result: dict[str, Any] = {"rows": _write(address, request["query"], sys.stdout.buffer)}
    except SlmctlError as error:
        result = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    sys.stdout.buffer.flush()
    os.write(int(sys.argv[1]), json.dumps(result).encode())


def _write(address: DatabaseAddress, query: str, out: IO[bytes]) -> int:
    import sqlalchemy

    count, reached = 0, False
    try:
        with _connected(address) as connection:
            reached = True
            for columns in _rows(connection, query):
                line = _JSON.encode(columns) + "\n"
                out.write(line.encode(errors="backslashreplace"))  # half of a surrogate pair: its escape in JSON
                count += 1
    except (sqlalchemy.exc.SQLAlchemyError, sqlite3.Error) as error:
        raise _failure(error, address, reached=reached) from None
    return count


def _connected(address: DatabaseAddress) -> Any:
    import sqlalchemy

    url = address.url
    options: dict[str, Any] = {"connect_timeout": _CONNECT_S} if url.get_driver_name() == "psycopg" else {}
    try:
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=options)
    except ModuleNotFoundError as error:
        raise MissingError(
            f"the database {address.masked(url.drivername)} needs the package '{error.name}', which is not installed",
            hint=pip_line("data") if error.name == "psycopg" else "SQLAlchemy's manual names its drivers",
        ) from None
    streamed: dict[str, Any] = {"stream_results": True, "yield_per": _BATCH, "no_parameters": True}
    if address.backend == "postgresql":
        streamed["postgresql_readonly"] = True
    return engine.connect().execution_options(**streamed)  # closing it rolls back


def _rows(connection: Any, query: str) -> Iterator[dict[str, Any]]:
    if connection.dialect.name == "sqlite":
        _only_read(connection.connection.dbapi_connection)
    # as it is: `:name` and `%` in it mean nothing here
    with contextlib.closing(connection.exec_driver_sql(query)) as result:
        if not result.returns_rows:
            raise DataError("the query gives no rows: it is no SELECT")
        names = column_names(list(result.keys()), "the query")
        for cells in result:
            yield {name: plain(cell) for name, cell in zip(names, cells, strict=True)}


def _only_read(connection: sqlite3.Connection) -> None:
    """Forbid a connection all but reading: ATTACH and VACUUM INTO make files beside a database that is read-only."""

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


def _failure(error: Any, address: DatabaseAddress, *, reached: bool) -> DataError | NetworkError | UsageError:
    """A driver's error as a sentence in its words, less what is secret."""
    import sqlalchemy

    reason = address.masked(first_line(getattr(error, "orig", None) or error))
    if isinstance(error, sqlalchemy.exc.ArgumentError):  # an unknown kind of database is one, too
        return UsageError(f"the database cannot be asked: {reason}")
    if not reached or getattr(error, "connection_invalidated", False):
        if not address.host and address.backend == "sqlite":
            return DataError(f"the database cannot be opened: {reason}")
        return NetworkError(f"the database cannot be reached: {reason}")
    return DataError(f"the query failed: {reason}", hint="it must be one SELECT that the database takes")


if __name__ == "__main__":
    main()
