"""Choice of the library that trains: unsloth where it is installed and there is an accelerator,
else transformers.

Decided without importing torch, since unsloth must be imported first.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from slmctl import hardware
from slmctl.errors import MissingError
from slmctl.installation import pip_line, user_cache


def choose(backend: str) -> str:
    """The library that trains, `unsloth` or `transformers`, for a value of `finetune.backend`.

    Raises:
        MissingError: unsloth is asked for by name, and it or an accelerator is missing.
    """
    installed = importlib.util.find_spec("unsloth") is not None
    if backend == "unsloth":
        if not installed:
            raise MissingError("backend unsloth is not installed", hint=pip_line("cuda"))
        if not hardware.accelerator():
            raise MissingError(
                "backend unsloth needs a GPU, and none is here",
                hint="--set finetune.backend=transformers",
            )
    if backend == "transformers":
        return "transformers"
    return "unsloth" if installed and hardware.accelerator() else "transformers"


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send prints of a library to stderr: stdout is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def import_first(backend: str) -> None:
    """Import unsloth, if it will train, before any stage imports transformers.

    Unsloth writes Python modules and imports them. Its default is a folder below the current one,
    which is the user's project: it would be litter there, and a stranger's project could contain
    code under that name.
    """
    if choose(backend) == "unsloth":
        cache = user_cache() or _scratch_folder()
        os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache / "unsloth"))
        with stdout_to_stderr():
            importlib.import_module("unsloth")


def _scratch_folder() -> Path:
    """A folder of this process alone, for a user without a cache; removed when the process ends."""
    scratch = tempfile.TemporaryDirectory(prefix="slmctl-")
    atexit.register(scratch.cleanup)
    return Path(scratch.name)
