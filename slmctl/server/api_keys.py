"""API keys and the limits of each. Only hashes are kept, in a file
that is read again when it changes.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import os
import re
import secrets
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from slmctl import console
from slmctl.artifacts import artifact, atomic, locks
from slmctl.errors import IntegrityError, StageError, UsageError

SCHEMA = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# in place of the hash of a key that was revoked where the file could not be rewritten
CROSSED_OUT = "0" * 64
_NO_KEY = hashlib.sha256(b"").hexdigest()  # compared with a key that no entry of the file matches


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Key:
    """One client: its name, the hash of its secret, and its limits where it has some.

    A secret has 256 random bits, so its plain hash cannot be reversed by guessing.

    Attributes:
        rate: Requests a minute; None for no limit.
        concurrency: Requests at the same time; None for no limit.
        models: Names of the models that it may ask; None for all.
    """

    name: Annotated[str, Field(pattern=rf"^({NAME.pattern})?$")]
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
    created: Annotated[str, Field(max_length=40)]
    rate: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    concurrency: Annotated[int | None, Field(ge=1)] = None
    models: Annotated[tuple[str, ...] | None, Field(min_length=1)] = None

    def may_ask(self, model: str) -> bool:
        """True for a model, by its own name, that the key is for."""
        return self.models is None or model in self.models


_Keys = TypeAdapter(list[Key])


def add(
    path: Path,
    name: str,
    *,
    rate: float | None = None,
    concurrency: int | None = None,
    models: Sequence[str] | None = None,
) -> str:
    """Make a key; returns its secret, which is kept nowhere.

    Raises:
        UsageError: The name is taken, has characters that no name may have, or a limit is none.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' is no name for a key", hint="letters, digits, '.', '_' and '-', at most 64"
        )
    if rate is not None and not math.isfinite(rate):
        raise UsageError(
            f"'{rate}' is no number of requests a minute", hint="leave --rate out for no limit"
        )
    for model in models or ():
        if not model or not model.isprintable():
            raise UsageError("a name of --model is empty, or holds characters that cannot be shown")
    secret = f"slm-{name}-{secrets.token_hex(32)}"
    created = console.timestamp()
    with _locked(path):
        keys = read(path) if path.exists() else []
        if any(key.name == name for key in keys):
            raise UsageError(f"there is a key '{name}' already", hint=f"slmctl keys revoke {name}")
        _write(
            path,
            [
                *keys,
                Key(
                    name,
                    _hash(secret),
                    created,
                    rate,
                    concurrency,
                    tuple(models) if models else None,
                ),
            ],
        )
    return secret


def revoke(path: Path, name: str) -> None:
    """Remove a key; on a full disk, its hash is overwritten in the existing file.

    Raises:
        UsageError: No key has this name.
        StageError: The file cannot be changed.
    """
    keys = read(path) if path.exists() else []
    if not any(key.name == name for key in keys):
        raise UsageError(f"there is no key '{name}' in {path}", hint="slmctl keys list")
    try:
        with _locked(path):
            _write(path, [key for key in read(path) if key.name != name])
    except OSError:
        try:
            _cross_out(path, name)
        except OSError as error:
            raise StageError(
                f"key '{name}' could not be removed from {path}: {error.strerror}; servers still "
                "let it in",
                hint=f"make room or make the file writable, then again: slmctl keys revoke {name}",
            ) from None


def _cross_out(path: Path, name: str) -> None:
    """Overwrite the hash of a key in place, which needs no room on the disk."""
    hashes = [key.sha256.encode() for key in read(path) if key.name == name]
    with path.open("r+b") as stream:
        place = stream.read().find(hashes[0]) if hashes else -1
        if place >= 0:
            stream.seek(place)
            stream.write(CROSSED_OUT.encode())
            stream.flush()
            os.fsync(stream.fileno())


def read(path: Path) -> list[Key]:
    """Every key in a file.

    Raises:
        IntegrityError: The file cannot be read as one of keys.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no regular file")
        fields = json.loads(path.read_bytes())
        if fields["schema"] != SCHEMA:
            raise ValueError(f"schema {fields['schema']}")
        keys = _Keys.validate_json(json.dumps(fields["keys"]))
        if len({key.name for key in keys}) < len(keys):
            raise ValueError("two keys have the same name")
        return [key for key in keys if key.sha256 != CROSSED_OUT]
    except FileNotFoundError:
        raise IntegrityError(
            f"there is no file of keys {path}", hint="slmctl keys add NAME"
        ) from None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = _first_fault(error) if isinstance(error, ValidationError) else str(error)
        raise IntegrityError(
            f"{path} cannot be read as a file of keys: {reason}",
            hint="restore it from a copy, or move it away and make new keys: slmctl keys add NAME",
        ) from None


def _first_fault(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"keys.{'.'.join(map(str, first['loc']))}: {first['msg']}"


class KeyRing:
    """The keys of a file, as they are now.

    The file is looked at with every request and read again when it has changed. While it is missing
    or cannot be read, no key is accepted: a file that was meant to hold none is the safer reading.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.fault = path, ""
        self._seen: tuple[int, ...] = ()
        self._keys: dict[str, Key] = {}
        self.reload()

    def reload(self) -> None:
        self._seen = self._stamp()
        try:
            self._keys, self.fault = {key.name: key for key in read(self.path)}, ""
        except IntegrityError as error:
            self._keys, self.fault = {}, error.message

    @property
    def keys(self) -> list[Key]:
        """Every key, as the file was when it was last read."""
        return list(self._keys.values())

    def find(self, secret: str) -> Key | None:
        """The key that a client has shown; compared in a time that
        does not tell how much of it was right.
        """
        if self._stamp() != self._seen:
            self.reload()
        key = self._keys.get(secret.removeprefix("slm-").rpartition("-")[0])
        same = hmac.compare_digest(key.sha256 if key else _NO_KEY, _hash(secret))
        return key if same else None

    def _stamp(self) -> tuple[int, ...]:
        try:
            state = self.path.stat()
        except OSError:
            return ()
        return state.st_mtime_ns, state.st_size, state.st_ino


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _locked(path: Path) -> AbstractContextManager[None]:
    if path.is_dir() or not path.name:
        raise UsageError(f"'{path}' names no file of keys", hint="--keys keys.json")
    return locks.lock(path.with_name(f".{path.name}.lock"), wait=True, on_wait=console.say)


def _write(path: Path, keys: Sequence[Key]) -> None:
    """Replace the file at once, readable by its owner alone."""
    with atomic.file(path, 0o600) as draft:
        draft.write_bytes(
            artifact.canonical({"schema": SCHEMA, "keys": [asdict(key) for key in keys]})
        )
