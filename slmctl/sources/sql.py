"""The rows of an SQL query, by SQLAlchemy: read-only, streamed and bounded; no message holds the
password.

A child process runs the query (`row_child`): a driver in C can be neither interrupted nor limited
while the database works.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path
from typing import IO

from slmctl import child, child_environment, console
from slmctl.config import SourceLimits, Sql
from slmctl.errors import DataError
from slmctl.network import guard
from slmctl.sources import bounded_copy, sql_address

# Prefixes of environment variables that drivers read, such as PGPASSWORD; variables in the address
# are passed on too.
DRIVERS = ("PG", "MYSQL_", "MARIADB_", "ODBC", "ORACLE_", "TNS_", "MSSQL_", "SNOWFLAKE_")


def place(url: str) -> str:
    """The database in words, such as `the postgresql database on
    HOST`; without user and password.
    """
    address = sql_address.parse(url)
    where = f"on {address.host}" if address.host else "on this machine"
    return f"the {address.backend} database {where}"


def host(url: str) -> str:
    """The host of a database; '' for this machine."""
    name = sql_address.parse(url).host
    return "" if guard.is_local(name) else name


def write_rows(sql: Sql, out: IO[bytes], *, root: Path, limits: SourceLimits) -> int:
    """Write the rows of a query as JSONL; returns their number.

    The transaction is read-only where the database supports it (PostgreSQL, SQLite), and always
    rolled back. The path of an SQLite file is relative to `root`.

    Raises:
        DataError: The query failed, has two columns of one name, or reached a limit.
        MissingError: The driver of this database is not installed.
        NetworkError: The database cannot be reached, or closed the connection.
        UsageError: The address is malformed, or a variable in it is not set.
    """
    # raises for a faulty address before a process is started
    sql_address.parse(sql.url).read_only(root)
    if not re.search(r"\border\s+by\b", sql.query, re.IGNORECASE):
        console.say("  note: the query has no ORDER BY; rows in another order are another data set")
    remote = host(sql.url)
    with (
        guard.network(f"a query on {remote}", hosts={remote})
        if remote
        else contextlib.nullcontext()
    ):
        if remote:
            guard.contacted.add(remote)  # the child's sockets are not counted here
            guard.uncounted.add(remote)
        return _ask(sql, out, root, limits, remote)


def _ask(sql: Sql, out: IO[bytes], root: Path, limits: SourceLimits, remote: str) -> int:
    request = {
        "kind": "query",
        "url": sql.url,
        "query": sql.query,
        "root": str(root),
        "host": remote,
        "pid": os.getpid(),
        "file_bytes": limits.size_bytes,
    }
    title = f"the query on {place(sql.url)}"
    named = [name.upper() for name in re.findall(r"\$\{(\w+)\}", sql.url)]
    env = child_environment.without_secrets(*DRIVERS, *named)
    try:
        with child.output(
            "slmctl.sources.row_child", request=json.dumps(request).encode(), env=env
        ) as rows:
            return bounded_copy.copy(rows.fileno(), out, limits, title=title)
    except child.DiedError as death:
        death.require_packages()
        if refusal := death.refusal:
            raise refusal from None
        why = "it takes too much memory" if "MemoryError" in death.log else death
        raise DataError(
            f"{title} cannot be read: {why}", hint="select fewer or smaller columns"
        ) from None
