"""Environments for child processes, without the secrets of this process."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

# Variables for a child that only computes: paths of programs and libraries, settings of threads.
PASSED_ON = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "VIRTUAL_ENV",
    "PYTHONPATH",
    "PYTHONHASHSEED",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
)

_SECRET_NAME = re.compile(
    r"(?i)token|secret|passw|passphrase|pgpass|credential|authorization|cookie|dsn$|_pat$|"
    r"(?:api|access|private|signing|encryption|account|license|master)_?keys?(?:_|$)|_keys?$|^aws_|^azure_"
)
_SECRET_VALUE = re.compile(r"://[^/\s:@]*:[^/\s@]+@")  # an address with a password in it


def bare(**more: str) -> dict[str, str]:
    """The environment of a child that only computes: PASSED_ON,
    which hold no secrets, and `more`.
    """
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ} | more


def without_secrets(*kept: str, **more: str) -> dict[str, str]:
    """The environment of this process without secrets, for a child that may need unknown variables.

    Args:
        kept: Prefixes of names, in capitals, of variables that the child needs even with secrets,
            such as `PIP_`.
    """
    return {
        name: value for name, value in os.environ.items() if not is_secret(name, value, *kept)
    } | more


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Remove secrets from this process's environment inside the block,
    which starts processes that inherit it.
    """
    secrets = {name: value for name, value in os.environ.items() if is_secret(name, value)}
    for name in secrets:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(secrets)


def is_secret(name: str, value: str, *kept: str) -> bool:
    """True for a variable that may hold a secret, by its name or by a password in an address."""
    if name.upper().startswith(kept or ("\0",)):
        return False
    return bool(_SECRET_NAME.search(name) or _SECRET_VALUE.search(value))
