"""What the tests of the promises share: servers that fork stages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import alone, shared, tiny
from support.forks import Forks


@pytest.fixture(scope="session")
def preparing() -> Iterator[Forks]:
    """Forks that have what `prepare` needs; there in a second."""
    with Forks(
        "slmctl.cli.main", "slmctl.pipeline.runner", "slmctl.stages.prepare.prepare"
    ) as forks:
        yield forks


@pytest.fixture(scope="session")
def calibrated_run(
    tiny_base: Path, stages: Forks, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A project after `slmctl calibrate`, with data enough for
    it; read it, copy it to change it.
    """
    return shared.made_once(
        tmp_path_factory, "calibrated", lambda at: tiny.calibrated(at, tiny_base, stages.run)
    )


@pytest.fixture(scope="session")
def chain(tiny_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project, `desk`, after everything in the default way: alone, under strace, with secrets in
    its environment.

    `alone/report.json` tells of each command.
    """
    short = (
        "--set",
        "finetune.max_steps=8",
        "--set",
        "evaluate.models=[gguf]",
        "--set",
        "quantize.types=[Q8_0]",
    )

    def make(folder: Path) -> None:
        desk = Path(shutil.copytree(tiny_project, folder / "desk"))
        (desk / "in.csv").write_text("text\nhello\n")
        steps: list[dict[str, Any]] = [
            {
                "command": tiny.command(desk, *args),
                "env": alone.bare(**alone.SECRETS),
                "serves": args[0] == "serve",
            }
            for args in (
                ("-v", "run", "--yes", *short),
                ("predict", "gguf", "--input", str(desk / "in.csv"), "--output", "-", *short),
                ("verify",),
                ("serve", "--port", "0", *short),
            )
        ]
        alone.run_alone(folder / "alone", steps)

    return shared.made_once(tmp_path_factory, "chain", make)
