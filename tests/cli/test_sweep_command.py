"""`slmctl sweep` as people run it: real trainings of a tiny model, the settings that it says, and its plan."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from click.testing import CliRunner
from support import tiny
from support.handmade import opened

from slmctl.cli import base_table
from slmctl.cli.main import cli
from slmctl.provenance import listing

CONFIG = tiny.CONFIG.replace(
    "epochs: 14, learning_rate: 4e-3, batch_size: 8", "epochs: 1, learning_rate: 1e-5, batch_size: 4"
)
CONFIG += "# a learning rate that is far too low\n"
OPENED: list[set[str]] | None = None  # names of the functions that open test.jsonl, while a test looks


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook, which nothing can open a file without; it cannot be removed, so it only looks when asked."""
    if event == "open" and OPENED is not None and str(arguments[0]).endswith("test.jsonl"):
        frame: FrameType | None = sys._getframe()
        names = set()
        while frame is not None:
            names.add(frame.f_code.co_name)
            frame = frame.f_back
        OPENED.append(names)


@dataclass(frozen=True)
class Swept:
    """A project after a sweep: its folder, its result, and who opened the test rows."""

    folder: Path
    result: dict[str, Any]
    opened: list[set[str]]


@pytest.fixture(scope="module")
def rates() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_table, "measured_rates", lambda: {"float32": 100.0, "bfloat16": 400.0})
        yield


@pytest.fixture(scope="module")
def swept(tiny_run: Path, rates: None, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """A project whose base and data set are current, after a sweep of two learning rates."""
    global OPENED
    folder = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("sweep") / "desk"))
    shutil.rmtree(folder / "runs" / "adapter")
    (folder / "slmctl.yaml").write_text(CONFIG, encoding="utf-8")
    sys.addaudithook(watch)
    OPENED = []
    done = invoke(folder, "--json", "finetune.learning_rate=1e-5,1e-2")
    opened, OPENED = OPENED, None
    return Swept(folder, json.loads(done.stdout), opened)


def invoke(folder: Path, *words: str, code: int = 0) -> Any:
    done = CliRunner().invoke(cli, ["-C", str(folder), "sweep", *words])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def test_the_better_settings_are_told_and_their_adapter_is_current_with_them(swept: Swept) -> None:
    assert swept.result["chosen"] == {"finetune.learning_rate": "1e-2"}
    assert (swept.folder / "slmctl.yaml").read_text() == CONFIG
    project = opened(swept.folder, "finetune.learning_rate=1e-2")
    assert project.request("finetune").path.exists()


def test_every_trial_is_an_adapter_that_ls_shows(swept: Swept) -> None:
    entries = listing.survey(swept.folder, ["adapter"])
    assert len(entries) == 4 == len(swept.result["trials"])
    settings = sorted((entry.changed["learning_rate"], entry.changed["seed"]) for entry in entries)
    assert settings == [("0.01", "0"), ("0.01", "1"), ("1e-05", "0"), ("1e-05", "1")]


def test_the_test_rows_are_hashed_with_their_artifact_and_never_read(swept: Swept) -> None:
    assert swept.opened  # so the hook sees them
    assert [names for names in swept.opened if "sha256_file" not in names] == []


@pytest.mark.slow
def test_the_same_sweep_again_tells_the_same_of_trials_that_exist(swept: Swept) -> None:
    done = invoke(swept.folder, "finetune.learning_rate=1e-5,1e-2")
    last = "better by more than chance; in slmctl.yaml: finetune.learning_rate: 1e-2"
    assert done.stdout.splitlines()[-1] == last
    done = invoke(swept.folder, "--set=finetune.learning_rate=1e-2", "finetune.learning_rate=1e-5")
    assert done.stdout.splitlines()[-1].startswith("no candidate is better than slmctl.yaml")
    assert len(listing.survey(swept.folder, ["adapter"])) == 4


def test_a_plan_costs_nothing_and_counts_the_trials(swept: Swept, rates: None) -> None:
    before = sorted((swept.folder / "runs").rglob("*"))
    words = ["--plan", "--seeds", "3", "finetune.learning_rate=1e-3,5e-3", "finetune.lora.rank=8,16"]
    done = invoke(swept.folder, *words)
    assert "learning_rate=1e-3 lora.rank=8" in done.stdout
    assert "15 trials, about" in done.stdout
    plan = json.loads(invoke(swept.folder, "--json", *words).stdout)
    assert (len(plan["candidates"]), plan["seeds"], plan["trials"]) == (5, 3, 15)
    assert plan["seconds"] > 0
    assert sorted((swept.folder / "runs").rglob("*")) == before
