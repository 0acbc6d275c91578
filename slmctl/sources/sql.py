"""The rows of a query, through SQLAlchemy: only read, streamed, and the password kept out of every text."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, quote_plus

from slmctl import console
from slmctl.config import mask
from slmctl.errors import DataError, MissingError, NetworkError, UsageError
from slmctl.network import guard
from slmctl.sources.rows.cells import column_names, plain
from slmctl.sources.rows.tables import first_line

_BATCH = 1000  # rows
_CONNECT_S = 30
_JSON = json.JSONEncoder(ensure_ascii=False)
_REFERENCE = re.compile(r"\$\{(\w+)\}")
_DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}


def place(url: str) -> str:
    """Where a query goes, in words: the host, without user and password."""
    address = _address(url)
    host = _host(address)
    kind = address.get_backend_name()
    return f"the {kind} database on {host}" if host else f"the {kind} database on this machine"


def host(url: str) -> str:
    """The host of a database; empty for one on this machine."""
    found = _host(_address(url))
    return "" if guard.is_local(found) else found


def write_rows(url: str, query: str, out: IO[bytes], *, root: Path) -> int:
    """Write the rows of a query as JSON, one object a line; returns how many.

    The transaction is read-only where the database knows such (PostgreSQL, SQLite), and rolled back in any case.

    Args:
        url: SQLAlchemy's address; `${NAME}` stands for a variable of the environment.
        query: One SELECT.
        out: Where the rows go.
        root: The folder that the path of an SQLite file starts from.

    Raises:
        DataError: The query failed, or has two columns of one name.
        MissingError: The driver of this database is not installed.
        NetworkError: The database cannot be reached, or hung up.
        UsageError: The address is malformed, or a variable in it is not set.
    """
    import sqlalchemy

    address = _read_only(_address(url), root)
    if not re.search(r"\border\s+by\b", query, re.IGNORECASE):
        console.say("  note: the query has no ORDER BY; rows in another order are another data set")
    count = 0
    asked = host(url)
    with guard.network(f"a query on {asked}", hosts={asked}) if asked else contextlib.nullcontext():
        if asked:
            guard.contacted.add(asked)  # drivers in C open sockets that the guard does not see
            guard.uncounted.add(asked)
        reached = False
        try:
            with _connected(address) as connection, contextlib.closing(_rows(connection, query)) as rows:
                reached = True
                for columns in rows:
                    line = _JSON.encode(columns) + "\n"
                    out.write(line.encode(errors="backslashreplace"))  # half of a surrogate pair: its escape in JSON
                    count += 1
        except sqlalchemy.exc.SQLAlchemyError as error:
            raise _failure(error, address, reached=reached) from None
    return count


def _connected(address: Any) -> Any:
    import sqlalchemy

    more = {"connect_timeout": _CONNECT_S} if address.get_driver_name() == "psycopg" else {}
    try:
        engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool, connect_args=more)
    except ModuleNotFoundError as error:
        raise MissingError(
            f"the database {address.drivername} needs the package '{error.name}', which is not installed",
            hint="pip install 'slmctl[data]'" if error.name == "psycopg" else "SQLAlchemy's manual names its drivers",
        ) from None
    options: dict[str, Any] = {"stream_results": True, "yield_per": _BATCH, "no_parameters": True}
    if address.get_backend_name() == "postgresql":
        options["postgresql_readonly"] = True
    return engine.connect().execution_options(**options)  # closing it rolls back


def _rows(connection: Any, query: str) -> Generator[dict[str, Any], None, None]:
    if connection.dialect.driver == "pysqlite":
        connection.connection.dbapi_connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)  # ATTACH makes new files
    # as it is: `:name` and `%` in it mean nothing here
    with contextlib.closing(connection.exec_driver_sql(query)) as result:
        if not result.returns_rows:
            raise DataError("the query gives no rows: it is no SELECT")
        names = column_names(list(result.keys()), "the query")
        for cells in result:
            yield {name: plain(cell) for name, cell in zip(names, cells, strict=True)}


def _address(url: str) -> Any:
    """A text as SQLAlchemy's URL, references to the environment filled in."""
    import sqlalchemy

    try:
        address = sqlalchemy.make_url(_filled(url))
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise UsageError(
            "the address of a database is malformed", hint="url: postgresql://USER:${DB_PASSWORD}@HOST/DATABASE"
        ) from None
    return address.set(drivername=_DRIVERS.get(address.drivername, address.drivername))


def _filled(url: str) -> str:
    """Put variables of the environment into an address; in user, password and parameters they are quoted."""
    if _REFERENCE.fullmatch(url.strip()):
        return _variable(url.strip()[2:-1])
    head, at, rest = url.rpartition("@")
    where, mark, parameters = rest.partition("?")
    quoted = partial(_REFERENCE.sub, lambda found: quote(_variable(found[1]), safe=""))
    as_it_is = partial(_REFERENCE.sub, lambda found: _variable(found[1]))
    return quoted(head) + at + as_it_is(where) + mark + quoted(parameters)


def _variable(name: str) -> str:
    try:
        return os.environ[name]
    except KeyError:
        raise UsageError(f"the variable {name} is not set, and the address of a database names it") from None


def _read_only(address: Any, root: Path) -> Any:
    """SQLite's file relative to the project, opened so that it can only be read; other addresses as they are."""
    if address.get_backend_name() != "sqlite" or not address.database or address.database.startswith("file:"):
        return address
    path = root / Path(address.database).expanduser()
    if not path.is_file():
        raise DataError(f"the database {path} does not exist", hint="sqlite:///FILE is relative to slmctl.yaml")
    return address.set(database=f"file:{quote(str(path))}", query={**address.query, "mode": "ro", "uri": "true"})


def _host(address: Any) -> str:
    """The host of an address; empty for a file or a Unix socket."""
    host = address.host or address.query.get("host") or ""
    host = host if isinstance(host, str) else host[0]
    return "" if host.startswith("/") else host


def _failure(error: Any, address: Any, *, reached: bool) -> DataError | NetworkError | UsageError:
    """What went wrong, in the driver's words less the password."""
    import sqlalchemy

    said = _without_secrets(first_line(getattr(error, "orig", None) or error), address)
    if isinstance(error, sqlalchemy.exc.ArgumentError):  # an unknown kind of database is one, too
        return UsageError(f"the database cannot be asked: {said}")
    if not reached or getattr(error, "connection_invalidated", False):
        if not _host(address) and address.get_backend_name() == "sqlite":
            return DataError(f"the database cannot be opened: {said}")
        return NetworkError(f"the database cannot be reached: {said}")
    return DataError(f"the query failed: {said}", hint="it must be one SELECT that the database takes")


def _without_secrets(text: str, address: Any) -> str:
    secrets = [address.password, *(value for name, value in address.query.items() if mask(f"?{name}=x")[-1] == "*")]
    for secret in filter(None, secrets):
        for form in {str(secret), quote(str(secret), safe=""), quote_plus(str(secret))}:
            text = text.replace(form, "***")
    return text
