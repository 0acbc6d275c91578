"""Tokens: the environment first, then a keyring, and a keyring that
is locked or missing is no failure.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from slmctl.network.credentials import SERVICE, secret

pytest.importorskip("keyring")

import keyring
import keyring.backend
import keyring.errors

NAME = "HF_TOKEN"
KEPT, SET = "kept" + "-in-a-keyring", "set" + "-in-the-environment"


class InMemory(keyring.backend.KeyringBackend):  # type: ignore[misc]
    """A keyring in memory, which can be locked."""

    priority = 1

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}
        self.locked = False

    def get_password(self, service: str, username: str) -> str | None:
        if self.locked:
            raise keyring.errors.KeyringLocked
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.kept[service, username]


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemory]:
    monkeypatch.delenv(NAME, raising=False)
    before, backend = keyring.get_keyring(), InMemory()
    keyring.set_keyring(backend)
    yield backend
    keyring.set_keyring(before)


def test_a_keyring_is_asked_under_the_service(ring: InMemory) -> None:
    assert secret(NAME) is None
    keyring.set_password(SERVICE, NAME, KEPT)
    keyring.set_password("another", "OTHER", "no")
    assert secret(NAME) == secret("OTHER", NAME) == KEPT
    assert secret("OTHER") is None


def test_the_environment_comes_first(ring: InMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    keyring.set_password(SERVICE, NAME, KEPT)
    monkeypatch.setenv(NAME, SET)
    assert secret(NAME) == SET
    monkeypatch.setenv(NAME, "")  # set to nothing is not set
    assert secret(NAME) == KEPT


def test_a_locked_keyring_has_no_answer(ring: InMemory) -> None:
    keyring.set_password(SERVICE, NAME, KEPT)
    ring.locked = True
    assert secret(NAME) is None
