"""Which library trains: unsloth where there is an accelerator and unsloth, else transformers.

Decided without importing torch, since unsloth asks to be imported before everything else.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from slmctl.errors import MissingError
from slmctl.hardware import accelerator


def choose(wanted: str) -> str:
    """`unsloth` or `transformers`, from what the config wants and what is here.

    Raises:
        MissingError: unsloth is asked for by name, and it or an accelerator is missing.
    """
    installed = importlib.util.find_spec("unsloth") is not None
    if wanted == "unsloth":
        if not installed:
            raise MissingError("backend unsloth is not installed", hint="pip install 'slmctl[cuda]'")
        if not accelerator():
            raise MissingError(
                "backend unsloth needs a GPU, and none is here", hint="--set finetune.backend=transformers"
            )
    if wanted == "transformers":
        return "transformers"
    return "unsloth" if installed and accelerator() else "transformers"


@contextlib.contextmanager
def stdout_spared() -> Iterator[None]:
    """What a library prints goes to stderr: stdout is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def import_first(wanted: str) -> None:
    """Import unsloth before any stage imports transformers, when it is what will train.

    Unsloth writes Python modules and imports them. Its default is a folder below the current one, which is the
    user's project: there it would be litter, and run whatever a stranger's project brings under that name.
    """
    if choose(wanted) == "unsloth":
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache / "slmctl" / "unsloth"))
        with stdout_spared():
            importlib.import_module("unsloth")
