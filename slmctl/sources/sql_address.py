"""The address of a database: fills in environment variables, makes SQLite
read-only, and masks secrets in errors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, unquote

from slmctl.errors import DataError, UsageError
from slmctl.network.credentials import mask

_REFERENCE = re.compile(r"\$\{(\w+)\}")
_DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
# parameters of an SQLite address that cannot create or change a file
_OF_SQLITE = {"timeout", "immutable", "nolock"}


@dataclass(frozen=True)
class DatabaseAddress:
    """An address of a database.

    Attributes:
        url: SQLAlchemy's `URL`, with passwords.
        written: The text in the config, with `${NAME}` for environment variables.
    """

    url: Any
    written: str

    @property
    def host(self) -> str:
        """The host; '' for a file or a Unix socket."""
        host = self.url.host or self.url.query.get("host") or ""
        host = host if isinstance(host, str) else host[0]
        return "" if host.startswith("/") else host

    @property
    def backend(self) -> str:
        """The kind of database, such as `postgresql`."""
        name: str = self.url.get_backend_name()
        return name

    def masked(self, text: str) -> str:
        """A driver's message without passwords and without values of
        environment variables in the address.
        """
        url = self.url
        secrets = [
            url.password,
            *(value for name, value in url.query.items() if mask(f"?{name}=x")[-1] == "*"),
        ]
        for secret in filter(None, secrets):
            for form in {str(secret), quote(str(secret), safe=""), quote_plus(str(secret))}:
                text = text.replace(form, "***")
        names = _REFERENCE.findall(self.written)
        values = [os.environ.get(name, "") for name in names]
        # the whole address is one variable; its host is printed anyway
        if _REFERENCE.fullmatch(self.written.strip()):
            values += [url.username, url.database, url.drivername]
            values += [] if self.backend == "sqlite" else map(str, url.query.values())
        for value in sorted(filter(None, values), key=len, reverse=True):
            text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", "***", text)
        return text

    def read_only(self, root: Path) -> DatabaseAddress:
        """The address with the SQLite file below `root`, opened read-only; other databases are
        unchanged.

        Raises:
            DataError: The file does not exist.
            UsageError: The address has a parameter that could write a file.
        """
        if self.backend != "sqlite" or not self.url.database:
            return self
        unknown = set(self.url.query) - _OF_SQLITE - {"mode", "uri"}
        if unknown:
            raise UsageError(
                f"the address of an SQLite file has the parameter '{min(unknown)}'",
                hint=f"it takes {', '.join(sorted(_OF_SQLITE))}; the file is always opened for "
                "reading alone",
            )
        path = root / os.path.expanduser(_file_of(self.url.database))  # noqa: PTH111 - pathlib's raises for an unknown user
        try:
            there = path.is_file()
        except (OSError, ValueError):  # a name that is too long, or has a NUL in it
            there = False
        if not there:
            raise DataError(
                f"the database file of '{mask(self.written)}' does not exist",
                hint="sqlite:///FILE is relative to slmctl.yaml",
            )
        kept = {name: value for name, value in self.url.query.items() if name in _OF_SQLITE}
        url = self.url.set(
            drivername="sqlite+pysqlite",  # other drivers cannot forbid writing
            database=f"file:{quote(os.fsencode(path))}",
            query={**kept, "mode": "ro", "uri": "true"},
        )
        return DatabaseAddress(url, self.written)


def with_file(written: str, change: Callable[[str], str]) -> str:
    """An SQLite address with the path `change(path)`; addresses of
    servers, or with variables, are unchanged.
    """
    parts = re.fullmatch(r"(sqlite(?:\+\w+)?:///)([^?$]+)(\?.*)?", written)
    if parts is None or parts[2].startswith(("file:", ":memory:", "~")):
        return written
    return f"{parts[1]}{change(parts[2])}{parts[3] or ''}"


def parse(written: str) -> DatabaseAddress:
    """Parse the address in a config.

    Raises:
        UsageError: It is malformed, or names a variable that is not set.
    """
    import sqlalchemy

    try:
        url = sqlalchemy.make_url(_filled(written))
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise UsageError(
            "the address of a database is malformed",
            hint="url: postgresql://USER:${DB_PASSWORD}@HOST/DATABASE",
        ) from None
    return DatabaseAddress(
        url.set(drivername=_DRIVERS.get(url.drivername, url.drivername)), written
    )


def _file_of(database: str) -> str:
    """The path in an SQLite URI, `file:PATH` or `file://HOST/PATH`; any other text unchanged."""
    if not database.startswith("file:"):
        return database
    rest = database.removeprefix("file:").partition("?")[0].partition("#")[0]
    return unquote("/" + rest[2:].partition("/")[2] if rest.startswith("//") else rest)


def _filled(url: str) -> str:
    """The address with environment variables filled in; URL-quoted
    in user, password and parameters.
    """
    if _REFERENCE.fullmatch(url.strip()):
        return _variable(url.strip()[2:-1])
    user, _, rest = url.rpartition("@")
    where, _, parameters = rest.partition("?")
    quoted = partial(_REFERENCE.sub, lambda match: quote(_variable(match[1]), safe=""))
    as_it_is = partial(_REFERENCE.sub, lambda match: _variable(match[1]))
    filled = as_it_is(where)
    if "@" in url:
        filled = f"{quoted(user)}@{filled}"
    return f"{filled}?{quoted(parameters)}" if "?" in rest else filled


def _variable(name: str) -> str:
    try:
        return os.environ[name]
    except KeyError:
        raise UsageError(
            f"the variable {name} is not set, and the address of a database names it"
        ) from None
