"""What the tests of the promises share: sizes, and the server that forks stages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from forks import Forks

from slmctl.pipeline import STAGES

FULL = bool(os.environ.get("SLMCTL_TORTURE"))  # `make torture`: every instant, every corruption


@pytest.fixture(scope="session")
def preparing() -> Iterator[Forks]:
    """Forks that have what `prepare` needs; there in a second."""
    with Forks("slmctl.cli", "slmctl.pipeline", STAGES["prepare"].module) as forks:
        yield forks


@pytest.fixture(scope="session")
def stages() -> Iterator[Forks]:
    """Forks that have what every stage needs."""
    with Forks("slmctl.cli", "slmctl.pipeline", *(stage.module for stage in STAGES.values())) as forks:
        yield forks


@pytest.fixture
def before(tiny_run: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder for copies of `tiny_run`."""
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)
