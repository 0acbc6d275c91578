"""Tokens and passwords: from the environment or a keyring, from nowhere else, and never into an artifact or a log."""

from __future__ import annotations

import importlib
import os
import re
from typing import Any

SERVICE = "slmctl"  # under which a keyring holds them: keyring set slmctl HF_TOKEN


def secret(*names: str) -> str | None:
    """The value of the first of some variables that is set, else what a keyring holds under one of their names.

    A keyring is asked where the package `keyring` is installed; a machine without one has no answer.
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
        except errors.KeyringError:  # there is none, or it is locked
            return None
        if value:
            return value
    return None


def mask(url: str) -> str:
    """An address with `***` for the password in it, and for every parameter that may hold a secret.

    A reference such as `${DB_PASSWORD}` is no secret and stays.
    """
    url = re.sub(r"((?:\w://|^(?!\w+(?:\+\w+)?://))[^:/]*):(?!\$\{\w+\}@)(?:[^/?]*|[^@]*)@", r"\1:***@", url)
    return re.sub(r"(?i)([?&;][^=&;]*(?:pass|pwd|secret|token|key|connect)[^=&;]*)=[^&]*", r"\1=***", url)
