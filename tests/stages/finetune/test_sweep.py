"""Sweeps: what is tried, on which rows, what is chosen, and what is kept when one is stopped.

The trainings are made up here, adapters with the losses that a test says; tests/cli/test_sweep_command.py trains.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from support.handmade import leave, opened

from slmctl import config
from slmctl.artifacts import artifact
from slmctl.config import FinetuneConfig
from slmctl.errors import DataError, StageError, UsageError
from slmctl.metrics import trial_choice
from slmctl.pipeline.graph import Project
from slmctl.pipeline.runner import Outcome
from slmctl.stages.finetune import sweep
from slmctl.stages.finetune.sweep import SweepCandidate, SweepResult

CONFIG = "project: acme\nbase: base\nprepare: {sources: [{path: a.csv}]}\nfinetune: {epochs: 2, learning_rate: 4e-4}\n"
SPACE = ["finetune.learning_rate=2e-4,4e-4,8e-4", "finetune.lora.rank=16,32"]
FACTS = {
    "train": 6000, "validation": 320, "calibration": 0, "test": 900, "rejected": 0, "tokens": {"total": 300_000},
    "splits": {"by": "content"},
}  # fmt: skip


class Trainings:
    """Stands for the stage: adapters with made-up losses, and a record of what was trained."""

    def __init__(self) -> None:
        self.loss: Callable[[FinetuneConfig], float] = lambda section: 0.3 * (4e-4 / section.learning_rate) ** 0.5
        self.trained: list[FinetuneConfig] = []
        self.stops_after = 10**9

    def run_stage(self, project: Project, name: str) -> Outcome:
        request, section = project.stage(name).request(), project.config.finetune
        if request.path.exists():
            return Outcome(artifact.load(request.path), True, 0.0)
        if len(self.trained) == self.stops_after:
            raise StageError("training diverged")
        self.trained.append(section)
        loss = self.loss(section) * (1 + 0.002 * (section.seed - 0.5))
        blocks = [(32, 100, loss * 100 * (1 + 0.01 * (k % 3))) for k in range(10)]
        return Outcome(
            leave(request, metrics={"validation_loss": loss, "validation_blocks": blocks}, seconds=1), False, 1
        )


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose base and data set exist."""
    (tmp_path / "slmctl.yaml").write_text(CONFIG)
    (tmp_path / "a.csv").write_text("input,output\nhello,world\n")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    for stage, metrics in (("pull", {}), ("prepare", FACTS)):
        project = opened(tmp_path)
        leave(project.request(stage), metrics=metrics)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # of some hundred small files, which here need to survive nothing
    return tmp_path


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    """The higher the learning rate, the lower the loss; the rank changes nothing."""
    made = Trainings()
    monkeypatch.setattr(sweep.runner, "make", made.run_stage)
    monkeypatch.setattr(sweep.gc, "collect", int)  # no model is loaded here, and other tests have left much
    return made


def tried(root: Path, space: Sequence[str] = SPACE) -> list[SweepCandidate]:
    return sweep.candidates(lambda more: config.load(root / "slmctl.yaml", more), space)


def swept(root: Path, seeds: int = 2) -> SweepResult:
    project = opened(root)
    return sweep.run(project, tried(root), seeds=seeds, say=lambda line: None)


def test_every_combination_is_tried_with_the_settings_of_today_first(root: Path) -> None:
    made = tried(root)
    assert [candidate.name for candidate in made] == [
        "slmctl.yaml",
        "learning_rate=2e-4",
        "learning_rate=2e-4 lora.rank=32 lora.alpha=64",
        "lora.rank=32 lora.alpha=64",
        "learning_rate=8e-4",
        "learning_rate=8e-4 lora.rank=32 lora.alpha=64",
    ]  # alpha follows the rank
    assert made[5].section.lora.alpha == 64
    (_, same) = tried(root, ["finetune.lora.rank=16,32.0"])
    assert same.name == "lora.rank=32.0 lora.alpha=64"
    (_, modules) = tried(root, ["finetune.lora.target_modules=[q_proj, v_proj],all-linear"])
    assert modules.section.lora.target_modules == ["q_proj", "v_proj"]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (["finetune.learning_rate"], "no key of finetune"),
        (["quantize.types=Q8_0,Q4_0"], "no key of finetune"),
        (["finetune.learnin_rate=1e-4"], "did you mean 'learning_rate'"),
        (["finetune.learning_rate=fast"], "finetune.learning_rate: found 'fast'"),
        *(([f"finetune.learning_rate={text}"], "not a list of values") for text in ("1e-4,]", "", "[1", "1], [2")),
        (["finetune.seed=1,2"], "cannot be swept: it is no setting"),
        (["finetune.report_to=[],[mlflow]"], "cannot be swept: it does not change the result"),
        (["finetune.label_smoothing=0,0.1"], "cannot be swept: validation loss punishes"),
        (["finetune.epochs=2"], "nothing but the settings of today"),
        (["finetune.epochs=2,3", "finetune.epochs=4"], "stands twice"),
    ],
)
def test_a_space_that_cannot_be_swept_is_refused(root: Path, space: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tried(root, space)


def test_too_few_validation_rows_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = opened(root)
    sweep.require_validation(project)
    monkeypatch.setattr(trial_choice, "MIN_RECORDS", 321)
    with pytest.raises(DataError, match=r"320 validation rows are too few .* needs 321"):
        sweep.require_validation(project)


def test_the_better_settings_are_chosen_and_their_trial_is_what_finetune_makes(
    root: Path, trainings: Trainings
) -> None:
    result = swept(root, seeds=3)
    assert dict(result.chosen.values) == {"finetune.learning_rate": "8e-4"}  # of two ranks that are equal the lower
    assert [trial.seed for trial in result.trials] == [0, 1, 2] * 6
    project = opened(root, "finetune.learning_rate=8e-4")
    assert project.request("finetune").path.exists()
    assert '"chosen": {"finetune.learning_rate": "8e-4"}' in json.dumps(result.to_json())


def test_equal_candidates_leave_the_settings_of_today(root: Path, trainings: Trainings) -> None:
    trainings.loss = lambda section: 0.3 + 1e-5 * section.lora.rank
    result = swept(root)
    assert result.chosen.name == "slmctl.yaml"
    assert len(result.choice.verdicts) == 5


def test_a_candidate_that_auto_stands_for_is_trained_once(root: Path, trainings: Trainings) -> None:
    (root / "slmctl.yaml").write_text(CONFIG.replace("4e-4", "auto"))  # 4e-4 for 6,000 rows
    found = sweep.run(opened(root), tried(root, SPACE[:1]), seeds=2, say=lambda line: None)
    assert {trial.candidate for trial in found.trials} == {"slmctl.yaml", "learning_rate=2e-4", "learning_rate=8e-4"}
    assert found.chosen.name == "learning_rate=8e-4"


def test_a_sweep_that_was_stopped_goes_on_with_what_was_finished(root: Path, trainings: Trainings) -> None:
    trainings.stops_after = 8
    with pytest.raises(StageError, match="training diverged"):
        swept(root)
    trainings.stops_after = 10**9
    result = swept(root)
    assert len(trainings.trained) == 12 == len(result.trials)
    assert swept(root).to_json() == result.to_json()
    assert len(trainings.trained) == 12
