"""Folders that are made once for all of pytest's processes, and copied by each."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """This process's own copy of a folder; the first process that asks makes it, the others wait
    for it.

    Args:
        name: Of the folder, the same in every process.
        make: Makes the folder at a path that does not exist yet.
    """
    base = factory.getbasetemp()
    common = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    whole = common / f"once-{name}" / name
    with (common / f"once-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            shutil.rmtree(whole.parent, ignore_errors=True)  # of a process whose attempt failed
            draft = whole.parent / "draft" / name
            draft.parent.mkdir(parents=True)
            make(draft)
            draft.rename(whole)
    return Path(shutil.copytree(whole, factory.mktemp(name) / name))
