"""The file of keys: its forms and faults."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from slmctl.cli.main import cli
from slmctl.errors import IntegrityError, StageError, UsageError
from slmctl.server import api_keys
from slmctl.server.api_keys import KeyRing


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def keys(path: Path) -> tuple[str, str]:
    """The secrets of two keys, `crm` and `erp`."""
    return api_keys.add(path, "crm"), api_keys.add(path, "erp")


ENTRY = {"name": "crm", "sha256": "0a" * 32, "created": "2026-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    "change",
    [
        {"rate": "fast"},
        {"rate": -1},
        {"rate": True},
        {"concurrency": 1.5},
        {"concurrency": 0},
        {"concurrency": [1]},
        {"name": 5},
        {"name": "a b"},
        {"sha256": None},
        {"sha256": "xyz"},
        {"created": {}},
        {"more": 1},
        {"rate": 10**400},
    ],
)
def test_an_entry_with_a_wrong_type_is_named(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps({"schema": 1, "keys": [ENTRY | change]}))
    with pytest.raises(
        IntegrityError, match=f"cannot be read as a file of keys: keys.0.{next(iter(change))}: "
    ):
        api_keys.read(path)
    assert next(iter(change)) in KeyRing(path).fault  # and a server lets no client in


@pytest.mark.parametrize(
    "raw", [b"[]", b"{}", b"null", b'{"schema": 2, "keys": []}', b"[" * 100_000, b"\xff", b""]
)
def test_a_file_that_holds_no_keys_is_refused(path: Path, raw: bytes) -> None:
    path.write_bytes(raw)
    with pytest.raises(IntegrityError, match="cannot be read as a file of keys"):
        api_keys.read(path)


def test_a_key_opens_to_its_secret_alone_and_only_hashes_are_kept(
    path: Path, keys: tuple[str, str]
) -> None:
    ring, (secret, other) = KeyRing(path), keys
    assert [key.name for shown in keys if (key := ring.find(shown))] == ["crm", "erp"]
    end = "1" if secret.endswith("0") else "0"
    for wrong in (
        secret[:-1] + end,
        f"slm-crm-{other.rpartition('-')[2]}",
        "slm-crm-",
        "slm-nobody-x",
        "",
    ):
        assert ring.find(wrong) is None, wrong
    assert path.stat().st_mode & 0o777 == 0o600
    assert not [shown for shown in keys if shown.rpartition("-")[2] in path.read_text()]


def test_two_keys_of_one_name_are_refused(path: Path) -> None:
    path.write_text(json.dumps({"schema": 1, "keys": [ENTRY, ENTRY | {"sha256": "0b" * 32}]}))
    with pytest.raises(IntegrityError, match="two keys have the same name"):
        api_keys.read(path)


@pytest.fixture
def full_disk(keys: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(api_keys, "_write", write)


def test_a_file_without_a_key_locks_the_server_and_says_so(path: Path) -> None:
    def said(*words: str) -> str:
        return (
            CliRunner()
            .invoke(cli, ["keys", *words, "--keys", str(path)], catch_exceptions=False)
            .stderr
        )

    assert "refuses every request" not in said("list")  # without a file no key is asked for
    api_keys.add(path, "crm")
    assert "refuses every request" not in said("list")
    assert "refuses every request" in said("revoke", "crm")
    assert f"rm {path}" in said("list")


@pytest.mark.parametrize(
    ("serve", "known"),
    [
        ("{}", "desk"),
        ("{adapters: {mail: m.gguf}}", "desk, mail"),
        ("{fleet: {a: {release: r}}}", "a"),
    ],
)
def test_a_key_for_a_model_that_the_config_does_not_have_says_so(
    tmp_path: Path, serve: str, known: str
) -> None:
    def said(name: str, model: str) -> str:
        words = ["-C", str(tmp_path), "keys", "add", name, "--model", model]
        return CliRunner().invoke(cli, words, catch_exceptions=False).stderr

    # a folder without a project: any server may be meant
    assert "has no model" not in said("anywhere", "dsk")
    (tmp_path / "slmctl.yaml").write_text(f"{{project: desk, base: none, serve: {serve}}}")
    assert f"has no model dsk, but {known}; " in said("crm", "dsk")
    assert "has no model" not in said("erp", known.split(", ")[-1])


@pytest.mark.usefixtures("full_disk")
def test_a_key_is_crossed_out_where_there_is_no_room(path: Path, keys: tuple[str, str]) -> None:
    ring, (secret, other) = KeyRing(path), keys
    assert ring.find(secret)
    api_keys.revoke(path, "crm")
    assert ring.find(secret) is None
    assert ring.find(other) is not None
    assert [key.name for key in api_keys.read(path)] == ["erp"]
    with pytest.raises(UsageError, match="there is no key 'crm'"):
        api_keys.revoke(path, "crm")


@pytest.mark.usefixtures("full_disk")
def test_a_file_that_cannot_be_changed_is_said(
    path: Path, keys: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object) -> bool:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(api_keys, "_cross_out", read_only)
    with pytest.raises(
        StageError, match="Read-only file system; servers still let it in"
    ) as caught:
        api_keys.revoke(path, "crm")
    assert "slmctl keys revoke crm" in caught.value.hint
    assert KeyRing(path).find(keys[0]) is not None


def test_a_new_key_of_a_revoked_name_is_another_one(path: Path, keys: tuple[str, str]) -> None:
    ring = KeyRing(path)
    api_keys.revoke(path, "crm")
    assert ring.find(keys[0]) is None
    again = api_keys.add(path, "crm")
    assert (ring.find(keys[0]), ring.find(again)) == (None, api_keys.read(path)[1])
