"""The file of keys: its forms and faults, and revoking where it cannot be written."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.serving import Gateway, chat, gateway, post

from slmctl.errors import IntegrityError, StageError, UsageError
from slmctl.server import api_keys, key_revocation
from slmctl.server.api_keys import KeyRing


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def keyed(tmp_path: Path, path: Path) -> Iterator[tuple[Gateway, str, str]]:
    """A server with two keys."""
    secrets = api_keys.add(path, "crm"), api_keys.add(path, "erp")
    with gateway(tmp_path, "--keys", str(path)) as server:
        server.healthy_s()  # it prints its address before it listens for anything
        yield server, *secrets


def status(server: Gateway, secret: str) -> int:
    return post(server.url, {"messages": chat("hello")}, authorization=f"Bearer {secret}").status_code


ENTRY = {"name": "crm", "sha256": "0a" * 32, "created": "2026-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    "change",
    [
        {"rate": "fast"}, {"rate": -1}, {"rate": True}, {"concurrency": 1.5}, {"concurrency": 0}, {"concurrency": [1]},
        {"name": 5}, {"name": "a b"}, {"sha256": None}, {"sha256": "xyz"}, {"created": {}}, {"more": 1},
        {"rate": 10**400},
    ],
)  # fmt: skip
def test_an_entry_with_a_wrong_type_is_named(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps({"schema": 1, "keys": [ENTRY | change]}))
    with pytest.raises(IntegrityError, match=f"cannot be read as a file of keys: keys.0.{next(iter(change))}: "):
        api_keys.read(path)
    assert next(iter(change)) in KeyRing(path).fault  # and a server lets no client in


@pytest.mark.parametrize("raw", [b"[]", b"{}", b"null", b'{"schema": 2, "keys": []}', b"[" * 100_000, b"\xff", b""])
def test_a_file_that_holds_no_keys_is_refused(path: Path, raw: bytes) -> None:
    path.write_bytes(raw)
    with pytest.raises(IntegrityError, match="cannot be read as a file of keys"):
        api_keys.read(path)


def test_two_keys_of_one_name_are_refused(path: Path) -> None:
    path.write_text(json.dumps({"schema": 1, "keys": [ENTRY, ENTRY | {"sha256": "0b" * 32}]}))
    with pytest.raises(IntegrityError, match="two keys have the same name"):
        api_keys.read(path)


def test_a_key_is_crossed_out_where_there_is_no_room(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret, other = api_keys.add(path, "crm"), api_keys.add(path, "erp")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    ring = KeyRing(path)
    monkeypatch.setattr(api_keys, "_write", full)
    assert api_keys.revoke(path, "crm") == 0
    assert ring.find(secret) is None
    assert ring.find(other) is not None
    assert [key.name for key in api_keys.read(path)] == ["erp"]
    with pytest.raises(UsageError, match="there is no key 'crm'"):
        api_keys.revoke(path, "crm")


def test_a_server_refuses_a_key_that_could_not_be_removed(keyed: tuple[Gateway, str, str], path: Path) -> None:
    """No byte can be written anywhere: the server is told by its socket, and the failure is said."""
    server, crm, erp = keyed
    assert (status(server, crm), status(server, erp)) == (200, 200)
    before = path.read_bytes()
    command = tiny.command(path.parent, "keys", "revoke", "crm", "--keys", str(path))
    done = subprocess.run(
        command, env=tiny.environment(), capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1)),
    )  # fmt: skip
    assert done.returncode == 6, done.stderr
    assert "Traceback" not in done.stderr
    assert "1 running servers refuse it already, and one that starts later would let it in" in done.stderr
    assert path.read_bytes() == before
    assert (status(server, crm), status(server, erp)) == (401, 200)
    assert api_keys.revoke(path, "crm") == 1  # there is room again
    again = api_keys.add(path, "crm")
    assert (status(server, crm), status(server, again)) == (401, 200)


def test_a_file_that_cannot_be_changed_and_no_server(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api_keys.add(path, "crm")

    def read_only(*_: object) -> bool:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(api_keys, "_write", read_only)
    monkeypatch.setattr(api_keys, "_cross_out", read_only)
    with pytest.raises(StageError, match="Read-only file system; no server runs with this file") as caught:
        api_keys.revoke(path, "crm")
    assert "slmctl keys revoke crm" in caught.value.hint


def test_a_server_that_hangs_is_said(keyed: tuple[Gateway, str, str], path: Path) -> None:
    server, _, _ = keyed
    os.kill(server.child.pid, signal.SIGSTOP)
    try:
        assert key_revocation.tell(path, "crm") == (0, 1)
    finally:
        os.kill(server.child.pid, signal.SIGCONT)


def test_servers_of_another_file_are_not_told(keyed: tuple[Gateway, str, str], tmp_path: Path, path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(path, other / "keys.json")
    assert key_revocation.tell(other / "keys.json", "crm") == (0, 0)
    assert key_revocation.tell(path, "nobody") == (1, 0)
    (tmp_path / "link").symlink_to(tmp_path)
    assert key_revocation.tell(tmp_path / "link" / "keys.json", "crm") == (1, 0)


@pytest.mark.skipif("os.geteuid() != 0", reason="needs root to send as another user")
def test_another_user_cannot_revoke(keyed: tuple[Gateway, str, str], path: Path) -> None:
    server, crm, _ = keyed
    program = (
        "import os, sys; from pathlib import Path; from slmctl.server import key_revocation as k;"
        "p = Path(sys.argv[1]); servers = k._servers(p); k._servers = lambda _: servers; os.setuid(65534);"
        "print(k.tell(p, 'crm'))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(0, 1)"
    assert status(server, crm) == 200
