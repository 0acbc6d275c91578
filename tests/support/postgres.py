"""A PostgreSQL server of a test's own: a new cluster on a free port
of the loopback, gone with the test.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.servers import free_port, settles

# Built here, so that no scanner takes them for somebody's; every character that an address gives a
# meaning to is there.
OWNER_PASSWORD = "owner" + "-of-a-test"
READER_PASSWORD = "p@s/w:" + "r%d?#&" + "x"


def binary(name: str) -> str | None:
    """A program of the newest PostgreSQL on this machine; Debian keeps it off the PATH."""
    installed = sorted(
        Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4])
    )
    return str(installed[-1]) if installed else shutil.which(name)


@dataclass(frozen=True)
class Server:
    """A running server, its port, and the folder of its Unix socket."""

    port: int
    folder: Path

    def execute(self, *statements: str) -> list[Any]:
        """Run statements as the owner; the rows of the last one."""

        with self._connect() as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def _connect(self) -> Any:
        import psycopg

        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user="owner",
            password=OWNER_PASSWORD,
            dbname="postgres",
            autocommit=True,
        )


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """Start a server, as an unprivileged user: PostgreSQL refuses to be root."""
    import psycopg

    user = _unprivileged() if os.geteuid() == 0 else None
    rights: dict[str, Any] = {"user": user, "extra_groups": []} if user else {}
    # pytest's own folders are closed to other users
    folder = Path(tempfile.mkdtemp(prefix="slmctl-pg-"))
    try:
        (folder / "password").write_text(OWNER_PASSWORD)
        if user:
            shutil.chown(folder, user)
            shutil.chown(folder / "password", user)
        initdb = [
            binary("initdb"),
            "-D",
            folder / "data",
            "-U",
            "owner",
            "-A",
            "scram-sha-256",
            "-E",
            "UTF8",
        ]
        subprocess.run(
            [*initdb, "--locale=C", "--no-sync", f"--pwfile={folder / 'password'}"],
            cwd=folder,
            check=True,
            capture_output=True,
            **rights,
        )
        port = free_port()
        with (folder / "log").open("wb") as log:
            command = [
                binary("postgres"),
                "-D",
                folder / "data",
                "-k",
                folder,
                "-p",
                str(port),
                "-c",
                "fsync=off",
            ]
            child = subprocess.Popen(
                [*command, "-c", "listen_addresses=127.0.0.1"],
                cwd=folder,
                stdout=log,
                stderr=log,
                **rights,
            )
        try:
            server = Server(port, folder)

            def answers() -> bool:
                assert child.poll() is None, (folder / "log").read_text()
                with contextlib.suppress(psycopg.OperationalError):
                    return bool(server.execute("select 1"))
                return False

            assert settles(answers), (folder / "log").read_text()
            yield server
        finally:
            child.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
            child.wait(timeout=60)
    finally:
        shutil.rmtree(folder)


def _unprivileged() -> str:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise RuntimeError("there is neither a user postgres nor a user nobody")
