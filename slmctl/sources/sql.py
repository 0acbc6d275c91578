"""The rows of a query, through SQLAlchemy: only read, streamed, bounded, and the password kept out of every text.

A child process asks the database (`sql_child`), since a driver in C hears no signal and knows no limit while the
database works.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, NoReturn

from slmctl import child_environment, console
from slmctl.config import SourceLimits, Sql
from slmctl.errors import DataError, MissingError, NetworkError, SlmctlError, UsageError
from slmctl.network import guard
from slmctl.sources import bounded_copy, sql_address

_ERRORS: dict[str, type[SlmctlError]] = {
    kind.__name__: kind for kind in (DataError, MissingError, NetworkError, UsageError)
}
# Variables that drivers read by themselves, such as PGPASSWORD; those that the address names are passed on too.
DRIVERS = ("PG", "MYSQL_", "MARIADB_", "ODBC", "ORACLE_", "TNS_", "MSSQL_", "SNOWFLAKE_")


def place(url: str) -> str:
    """The database of an address in words, with its host and without user and password."""
    address = sql_address.parse(url)
    where = f"on {address.host}" if address.host else "on this machine"
    return f"the {address.backend} database {where}"


def host(url: str) -> str:
    """The host of a database; empty for one on this machine."""
    name = sql_address.parse(url).host
    return "" if guard.is_local(name) else name


def write_rows(sql: Sql, out: IO[bytes], *, root: Path, limits: SourceLimits) -> int:
    """Write the rows of a query as JSON, one object a line; returns their number.

    The transaction is read-only where the database knows such (PostgreSQL, SQLite), and rolled back in any case.

    The path of an SQLite file starts from `root`.

    Raises:
        DataError: The query failed, has two columns of one name, or reached a limit.
        MissingError: The driver of this database is not installed.
        NetworkError: The database cannot be reached, or hung up.
        UsageError: The address is malformed, or a variable in it is not set.
    """
    sql_address.parse(sql.url).read_only(root)  # a fault in the address costs no process
    if not re.search(r"\border\s+by\b", sql.query, re.IGNORECASE):
        console.say("  note: the query has no ORDER BY; rows in another order are another data set")
    remote = host(sql.url)
    with guard.network(f"a query on {remote}", hosts={remote}) if remote else contextlib.nullcontext():
        if remote:
            guard.contacted.add(remote)  # the child's sockets are not counted here
            guard.uncounted.add(remote)
        return _ask(sql, out, root, limits, remote)


def _ask(sql: Sql, out: IO[bytes], root: Path, limits: SourceLimits, remote: str) -> int:
    request = {
        "url": sql.url, "query": sql.query, "root": str(root), "host": remote, "pid": os.getpid(),
        "file_bytes": int(min(limits.size_gb, 1e9) * 1e9),
    }  # fmt: skip
    title = f"the query on {place(sql.url)}"
    named = [name.upper() for name in re.findall(r"\$\{(\w+)\}", sql.url)]
    with tempfile.TemporaryFile() as status, tempfile.TemporaryFile() as log:
        # -P: a module that lies in the folder of the data is not ours
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "slmctl.sources.sql_child", str(status.fileno())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, pass_fds=[status.fileno()],
            env=child_environment.without_secrets(*DRIVERS, *named),
        )  # fmt: skip
        assert child.stdin is not None and child.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError), child.stdin as stdin:
                stdin.write(json.dumps(request).encode())
            with child.stdout as rows:
                bounded_copy.copy(rows.fileno(), out, limits, title=title)
            code = child.wait()
        finally:
            child.kill()
            child.wait()
        status.seek(0)
        reply = status.read()
        if not reply:
            log.seek(0)
            _explain(title, code, log.read().decode(errors="replace"))
        result = json.loads(reply)
    if "error" in result:
        raise _ERRORS[result["error"]](result["message"], hint=result["hint"])
    return int(result["rows"])


def _explain(title: str, code: int, log: str) -> NoReturn:
    """The child died without a reply."""
    if "ModuleNotFoundError: No module named" in log:
        name = log.rpartition("No module named")[2].strip(" '\n")
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)
    if code < 0 or "MemoryError" in log:
        why = "it takes too much memory" if "MemoryError" in log else f"its process was ended by signal {-code}"
        raise DataError(f"{title} cannot be read: {why}", hint="select fewer or smaller columns")
    raise RuntimeError(f"the process that asks a database ended with {code}")
