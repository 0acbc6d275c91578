"""What the tests of the promises share: servers that fork stages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import shared, tiny
from support.forks import Forks

from slmctl.pipeline.stage_table import STAGES


@pytest.fixture(scope="session")
def preparing() -> Iterator[Forks]:
    """Forks that have what `prepare` needs; there in a second."""
    with Forks("slmctl.cli.main", "slmctl.pipeline.runner", STAGES["prepare"].module) as forks:
        yield forks


@pytest.fixture(scope="session")
def calibrated_run(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after `slmctl calibrate`, with data enough for it; read it, copy it to change it."""
    return shared.made_once(tmp_path_factory, "calibrated", lambda folder: tiny.calibrated(folder, tiny_base))


@pytest.fixture
def before(tmp_path: Path) -> Iterator[Path]:
    """A folder for copies of a run."""
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)
