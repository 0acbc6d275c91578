"""Tokens and passwords: read from the environment or a keyring only, and
never written to an artifact or a log.
"""

from __future__ import annotations

import importlib
import os
import re
from typing import Any

SERVICE = "slmctl"  # service name in the keyring: keyring set slmctl HF_TOKEN


def secret(*names: str) -> str | None:
    """The value of the first environment variable that is set, else of the first name in the
    keyring; else None.

    The keyring is read only if the package `keyring` is installed.
    """
    for name in names:
        if os.environ.get(name):
            return os.environ[name]
    try:
        keyring: Any = importlib.import_module("keyring")
        errors: Any = importlib.import_module("keyring.errors")
    except ModuleNotFoundError:
        return None
    for name in names:
        try:
            value: str | None = keyring.get_password(SERVICE, name)
        except errors.KeyringError:  # no keyring on this machine, or a locked one
            return None
        if value:
            return value
    return None


def mask(url: str) -> str:
    """The address with `***` in place of its password and of every parameter that may hold a
    secret.

    A reference such as `${DB_PASSWORD}` is not a secret and stays.
    """
    url = re.sub(
        r"((?:\w://|^(?!\w+(?:\+\w+)?://))[^:/]*):(?!\$\{\w+\}@)(?:[^/?]*|[^@]*)@", r"\1:***@", url
    )
    return re.sub(
        r"(?i)([?&;][^=&;]*(?:pass|pwd|secret|token|key|connect)[^=&;]*)=[^&]*", r"\1=***", url
    )
