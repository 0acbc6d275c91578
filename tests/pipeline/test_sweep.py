"""Sweeps: what is tried, in which time, on which rows, and what is kept when one is stopped.

The trainings are made up here, adapters with the losses that a test says; tests/cli/test_sweep_command.py trains.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from support.left import leave

from slmctl import config
from slmctl.artifacts import artifact
from slmctl.config import FinetuneConfig
from slmctl.errors import DataError, FullError, IntegrityError, StageError, UsageError
from slmctl.metrics import trial_choice
from slmctl.pipeline import preflight, resolve, sweep, sweep_plan
from slmctl.pipeline.resolve import Project
from slmctl.pipeline.runner import Outcome
from slmctl.pipeline.stage_estimates import TrainingRate

CONFIG = "project: acme\nbase: base\nprepare: {sources: [{path: a.csv}]}\nfinetune: {epochs: 2}\n"
SPACE = ["finetune.learning_rate=2e-4,4e-4,8e-4", "finetune.lora.rank=16,32"]
FACTS = {"train": 6000, "validation": 320, "calibration": 0, "test": 900, "rejected": 0, "tokens": {"total": 300_000}}
ROW_S = 0.01
FULL_S = 6000 * 2 * ROW_S  # of a training on all rows

Loss = Callable[[FinetuneConfig], float]


class Trainings:
    """Stands for the stage: adapters with made-up losses, and a record of what was trained."""

    def __init__(self, loss: Loss, pace: float = 1.0) -> None:
        self.loss, self.pace = loss, pace
        self.trained: list[FinetuneConfig] = []
        self.fails: Callable[[FinetuneConfig], str] = lambda section: ""
        self.stops_after = 10**9

    def run_stage(self, project: Project, name: str, section: FinetuneConfig) -> Outcome:
        request = resolve.resolve_stage(project, name, section=section)
        if request.path.exists():
            return Outcome(artifact.load(request.path), True, 0.0)
        if len(self.trained) == self.stops_after:
            raise KeyboardInterrupt
        self.trained.append(section)
        if fault := self.fails(section):
            raise StageError(fault)
        seconds = self.pace * (sweep_plan.SETUP_S + FACTS["train"] * section.train_share * section.epochs * ROW_S)
        loss = self.loss(section) * (1 + 0.002 * (section.seed - 0.5))
        blocks = [(32, 100, loss * 100 * (1 + 0.01 * (k % 3))) for k in range(10)]
        return Outcome(
            leave(project, request, {"validation_loss": loss, "validation_blocks": blocks}, seconds), False, 1
        )


def project_of(root: Path) -> Project:
    return Project(root, config.load(root / "slmctl.yaml"))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose base and data set exist; a record takes ROW_S to train."""
    (tmp_path / "slmctl.yaml").write_text(CONFIG)
    (tmp_path / "a.csv").write_text("input,output\nhello,world\n")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    for stage, metrics in (("pull", {}), ("prepare", FACTS)):
        project = project_of(tmp_path)
        leave(project, resolve.resolve_stage(project, stage), metrics)
    monkeypatch.setattr(preflight, "training_rate", lambda *_: TrainingRate(ROW_S, 1000))
    monkeypatch.setattr(os, "fsync", lambda _: None)  # of some hundred small files, which here need to survive nothing
    return tmp_path


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    """The higher the learning rate, the lower the loss; the rank changes nothing."""
    made = Trainings(lambda section: 0.3 * (4e-4 / section.learning_rate) ** 0.5 / section.train_share**0.2)
    monkeypatch.setattr(sweep.chains, "run_stage", made.run_stage)
    return made


def asked(root: Path, budget_s: float, space: Sequence[str] = SPACE) -> sweep.SweepRequest:
    def read(more: Sequence[str]) -> config.Config:
        return config.load(root / "slmctl.yaml", more)

    return sweep.request(project_of(root), read, space, budget_s, {})


def ignore(_: str) -> None:
    """Takes a line of a sweep."""


# What is tried


def test_the_space_is_every_combination_with_the_settings_of_today_first(root: Path) -> None:
    tried = asked(root, 1e6).tried
    assert [candidate.name for candidate in tried] == [
        "slmctl.yaml",
        "learning_rate=2e-4",
        "learning_rate=2e-4 lora.rank=32 lora.alpha=64",
        "lora.rank=32 lora.alpha=64",
        "learning_rate=8e-4",
        "learning_rate=8e-4 lora.rank=32 lora.alpha=64",
    ]  # alpha follows the rank
    assert tried[5].section.lora.alpha == 64
    assert len(asked(root, 1e6, space=[]).tried) == 12  # three rates, two ranks, two lengths


def test_of_a_large_space_a_part_is_drawn(root: Path) -> None:
    wide = [f"finetune.learning_rate={','.join(f'{k}e-5' for k in range(1, 31))}"]
    tried = asked(root, 1e9, wide).tried
    assert len(tried) == sweep_plan.MOST_CANDIDATES
    assert tried[0].name == "slmctl.yaml"
    assert [one.name for one in asked(root, 1e9, wide).tried] == [one.name for one in tried]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (["finetune.learning_rate"], "no key of finetune"),
        (["quantize.types=Q8_0,Q4_0"], "no key of finetune"),
        (["finetune.learnin_rate=1e-4"], "did you mean 'learning_rate'"),
        (["finetune.learning_rate=fast"], "finetune.learning_rate: found 'fast'"),
        (["finetune.learning_rate=1e-4,]"], "not a list of values"),
        (["finetune.seed=1,2"], "cannot be swept: it is no setting"),
        (["finetune.report_to=mlflow,wandb"], "cannot be swept: it does not change the result"),
        (["finetune.label_smoothing=0,0.1"], "cannot be swept: validation loss punishes"),
        (["finetune.epochs=2"], "nothing but the settings of today"),
        (["finetune.epochs=2,3", "finetune.epochs=4"], "stands twice"),
    ],
)
def test_a_space_that_cannot_be_swept_is_refused(root: Path, space: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        asked(root, 1e6, space)


# Time


def test_rungs_keep_a_third_and_end_with_the_finalists() -> None:
    assert sweep_plan.sizes(2) == [2]
    assert sweep_plan.sizes(4) == [4, 3]
    assert sweep_plan.sizes(6) == [6, 3]
    assert sweep_plan.sizes(12) == [12, 4, 3]
    assert sweep_plan.sizes(27) == [27, 9, 3]


def test_a_budget_decides_on_which_share_finalists_train(root: Path) -> None:
    shares = {hours: asked(root, hours * 3600).planned() for hours in (1, 0.2, 0.1)}
    assert [rung.share for rung in shares[1] or ()] == [0.3333, 1]
    finals = [(rungs or ())[-1] for rungs in shares.values()]
    assert finals[0].share > finals[1].share > finals[2].share
    for hours, rungs in shares.items():
        assert (sweep_plan.seconds_of(rungs or ()) or 0) <= sweep.SPARE * hours * 3600


def test_a_budget_that_holds_no_plan_is_refused_with_one_that_does(root: Path) -> None:
    with pytest.raises(UsageError, match="the smallest sweep of 6 candidates takes about") as caught:
        asked(root, 60)
    minutes = int(caught.value.hint.removeprefix("--budget ").partition("m")[0])
    assert asked(root, minutes * 60).planned() is not None


def test_too_few_validation_rows_and_too_little_disk_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(trial_choice, "MIN_RECORDS", 321)
        with pytest.raises(DataError, match=r"320 validation rows are too few .* needs 321"):
            asked(root, 1e6)
    monkeypatch.setattr(preflight, "training_rate", lambda *_: TrainingRate(ROW_S, 10**12))
    with pytest.raises(FullError, match="the adapters of all trials take about"):
        asked(root, 1e6)


# Trials


def test_the_better_settings_are_chosen_and_the_trial_on_all_rows_is_what_finetune_makes(
    root: Path, trainings: Trainings
) -> None:
    result = sweep.run(asked(root, 3600), ignore)
    assert dict(result.chosen.values) == {"finetune.learning_rate": "8e-4"}  # of two ranks that are equal the lower
    assert [len(trials) for trials in result.rounds] == [6, 6]
    assert {trial.seed for trial in result.rounds[1]} == {0, 1}
    assert result.seconds <= 3600
    project = Project(root, config.load(root / "slmctl.yaml", ["finetune.learning_rate=8e-4"]))
    assert resolve.resolve_stage(project, "finetune").path.exists()
    listed = json.dumps(result.to_json())
    assert '"chosen": {"finetune.learning_rate": "8e-4"}' in listed


def test_equal_candidates_leave_the_settings_of_today(root: Path, trainings: Trainings) -> None:
    trainings.loss = lambda section: 0.3 + 1e-5 * section.lora.rank
    result = sweep.run(asked(root, 3600), ignore)
    assert result.chosen.name == "slmctl.yaml"
    assert result.choice is not None and len(result.choice.verdicts) == 2


def test_a_sweep_that_was_stopped_goes_on_with_what_was_finished(root: Path, trainings: Trainings) -> None:
    trainings.stops_after = 8
    with pytest.raises(KeyboardInterrupt):
        sweep.run(asked(root, 3600), ignore)
    trainings.stops_after = 10**9
    result = sweep.run(asked(root, 3600), ignore)
    assert len(trainings.trained) == 12 == len(result.trials)
    again = sweep.run(asked(root, 3600), ignore)
    assert len(trainings.trained) == 12
    assert again.to_json() == result.to_json()


def test_slower_trials_than_estimated_make_the_rest_smaller(root: Path, trainings: Trainings) -> None:
    said: list[str] = []
    planned = asked(root, 1500).planned()
    trainings.pace = 3.0
    result = sweep.run(asked(root, 1500), said.append)
    assert planned is not None
    assert result.rounds[0][0].share == planned[0].share
    assert result.rounds[1][0].share < planned[1].share
    assert result.seconds <= 1500
    assert said[0].startswith("rung 1 of 2: 6 candidates on 33 % of the rows")


def test_finalists_that_take_longer_than_estimated_go_on_with_fewer_rows(root: Path, trainings: Trainings) -> None:
    said: list[str] = []
    made = asked(root, 700, ["finetune.learning_rate=4e-4,8e-4"])
    (planned,) = made.planned() or ()
    trainings.pace = 2.0
    result = sweep.run(made, said.append)
    assert said[2].startswith("trials take longer than estimated: on ")
    assert planned.share > result.rounds[0][0].share
    assert len(result.rounds[0]) == 4  # one more was trained on the share that was planned
    assert len(trainings.trained) == 5
    assert dict(result.chosen.values) == {"finetune.learning_rate": "8e-4"}
    assert result.seconds <= 700


def test_a_budget_that_ends_compares_what_was_trained(root: Path, trainings: Trainings) -> None:
    slow = trainings.run_stage

    def slower_later(project: Project, name: str, section: FinetuneConfig) -> Outcome:
        trainings.pace = 2.2 if len(trainings.trained) > 6 else 1.0
        return slow(project, name, section)

    sweep.chains.run_stage = slower_later  # type: ignore[assignment] # undone with the fixture
    said: list[str] = []
    result = sweep.run(asked(root, 900), said.append)
    assert said[-1].startswith("the budget is used up")
    assert result.seconds <= 900
    assert len(result.rounds[1]) < 6


def test_a_budget_for_two_finalists_takes_the_best_challenger_alone(
    root: Path, trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_plan, "SHARES", (1,))  # of few rows there is no smaller share
    first, finals = asked(root, 1e6).smallest(pace=3.0)
    made = asked(root, (first.seconds or 0.0) + 0.75 * (finals.seconds or 0.0))  # four of six trials, with some spare
    said: list[str] = []
    trainings.pace = 3.0
    assert made.planned() is not None
    result = sweep.run(made, said.append)
    assert result.choice is not None
    finalists = {trial.candidate for trial in result.rounds[-1]}
    assert len(finalists) == 2
    assert sweep_plan.INCUMBENT in finalists
    assert result.seconds <= made.budget_s


def test_a_budget_that_ends_before_the_finalists_leaves_the_settings(root: Path, trainings: Trainings) -> None:
    said: list[str] = []
    trainings.pace = 20.0
    result = sweep.run(asked(root, 1500), said.append)
    assert said[-1].startswith("the budget is used up")
    assert (result.choice, result.chosen.name) == (None, "slmctl.yaml")
    assert result.to_json()["finalists"] == []


def test_settings_that_fail_leave_the_sweep_and_those_of_today_end_it(root: Path, trainings: Trainings) -> None:
    trainings.fails = lambda section: "no room"
    with pytest.raises(StageError, match="no room"):
        sweep.run(asked(root, 3600), ignore)
    trainings.fails = lambda section: "training diverged" if section.learning_rate == 8e-4 else ""
    result = sweep.run(asked(root, 3600), ignore)
    assert [trial.fault for trial in result.rounds[0]] == ["", "", "", "", "training diverged", "training diverged"]
    assert result.chosen.name == "slmctl.yaml"


def test_where_no_time_is_known_the_first_trial_tells_it(
    root: Path, trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "training_rate", lambda *_: TrainingRate(None, None))
    said: list[str] = []
    result = sweep.run(asked(root, 1800), said.append)
    assert said[0].startswith("timing a trial")
    assert dict(result.chosen.values) == {"finetune.learning_rate": "8e-4"}
    assert result.seconds <= 1800


def test_a_training_with_a_number_of_steps_takes_its_share_of_them(root: Path) -> None:
    (root / "slmctl.yaml").write_text(CONFIG.replace("epochs: 2", "max_steps: 900"))
    made = asked(root, 1e6, ["finetune.learning_rate=4e-4,8e-4"])
    section = made.rows.section(made.tried[1], 0.25, 3)
    assert (section.max_steps, section.train_share, section.validate_every, section.seed) == (225, 0.25, 119, 3)
    assert made.rows.section(made.tried[1], 1, 0) == made.tried[1].section


def test_a_journal_that_is_damaged_is_named(root: Path, trainings: Trainings) -> None:
    sweep.run(asked(root, 3600), ignore)
    (path,) = (root / "runs" / ".sweeps").iterdir()
    path.write_text("{}")
    with pytest.raises(IntegrityError, match="is not valid"):
        sweep.run(asked(root, 3600), ignore)


def test_an_adapter_of_an_earlier_release_has_to_be_trained_again(root: Path, trainings: Trainings) -> None:
    project = project_of(root)
    leave(project, resolve.resolve_stage(project, "finetune"), {"validation_loss": 0.3})
    with pytest.raises(IntegrityError, match="an earlier slmctl trained it"):
        sweep.run(asked(root, 3600), ignore)
