"""API keys: who may ask, and how much. Only their hashes are kept, in a file that is read again when it changes."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from slmctl import console
from slmctl.artifacts import artifact, atomic, locks
from slmctl.errors import IntegrityError, UsageError

SCHEMA = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NOBODY = hashlib.sha256(b"").hexdigest()  # what a key without a file entry is compared with


@dataclass(frozen=True)
class Key:
    """One client: its name, the hash of its secret, and its own limits where it has some.

    A secret has 256 random bits, so that a plain hash of it tells nothing; there is no password to guess.

    Attributes:
        rate: Requests a minute; None for the server's own limit.
        concurrency: Requests at the same time; None for the server's own limit.
    """

    name: str
    sha256: str
    created: str
    rate: float | None = None
    concurrency: int | None = None


def add(path: Path, name: str, *, rate: float | None = None, concurrency: int | None = None) -> str:
    """Make a key; returns its secret, which is kept nowhere.

    Raises:
        UsageError: The name is taken, or is none.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"'{name}' is no name for a key", hint="letters, digits, '.', '_' and '-', at most 64")
    secret = f"slm-{name}-{secrets.token_hex(32)}"
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with _locked(path):
        keys = read(path) if path.exists() else []
        if any(key.name == name for key in keys):
            raise UsageError(f"there is a key '{name}' already", hint=f"slmctl keys revoke {name}")
        _write(path, [*keys, Key(name, _hash(secret), created, rate, concurrency)])
    return secret


def revoke(path: Path, name: str) -> None:
    """Remove a key; a running server lets it in no longer.

    Raises:
        UsageError: There is none of this name.
    """
    with _locked(path):
        keys = read(path) if path.exists() else []
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            raise UsageError(f"there is no key '{name}'", hint="slmctl keys list")
        _write(path, left)


def read(path: Path) -> list[Key]:
    """Every key in a file.

    Raises:
        IntegrityError: The file cannot be read as one of keys.
    """
    try:
        fields = json.loads(path.read_bytes())
        if fields["schema"] != SCHEMA:
            raise ValueError(f"schema {fields['schema']}")
        keys = [Key(**entry) for entry in fields["keys"]]
        if not all(re.fullmatch(r"[0-9a-f]{64}", key.sha256) and NAME.fullmatch(key.name) for key in keys):
            raise ValueError("a hash or a name that is none")
        return keys
    except FileNotFoundError:
        raise IntegrityError(f"there is no file of keys {path}", hint="slmctl keys add NAME") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise IntegrityError(
            f"{path} cannot be read as a file of keys: {error}",
            hint="restore it from a copy, or move it away and make new keys: slmctl keys add NAME",
        ) from None


class KeyRing:
    """The keys of a file, as they are now.

    The file is looked at with every request and read again when it has changed. While it is missing or
    cannot be read, nobody is let in: that it was to let nobody in is the safer reading.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.fault = path, ""
        self._seen: tuple[int, ...] = ()
        self._keys: dict[str, Key] = {}
        self.reload()

    def reload(self) -> None:
        """Read the file again, whether it has changed or not."""
        self._seen = self._stamp()
        try:
            self._keys, self.fault = {key.name: key for key in read(self.path)}, ""
        except IntegrityError as error:
            self._keys, self.fault = {}, error.message

    def find(self, secret: str) -> Key | None:
        """The key that a client has shown; compared in a time that does not tell how much of it was right."""
        if self._stamp() != self._seen:
            self.reload()
        key = self._keys.get(secret.removeprefix("slm-").rpartition("-")[0])
        same = hmac.compare_digest(key.sha256 if key else _NOBODY, _hash(secret))
        return key if same else None

    def _stamp(self) -> tuple[int, ...]:
        try:
            found = self.path.stat()
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_size, found.st_ino


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _locked(path: Path) -> AbstractContextManager[None]:
    return locks.lock(path.with_name(f".{path.name}.lock"), wait=True, on_wait=console.say)


def _write(path: Path, keys: Sequence[Key]) -> None:
    """Replace the file at once, readable by its owner alone."""
    with atomic.file(path, 0o600) as draft:
        draft.write_bytes(artifact.canonical({"schema": SCHEMA, "keys": [asdict(key) for key in keys]}))
