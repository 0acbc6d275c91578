"""One threshold for a task router and its models, and what it keeps."""

from __future__ import annotations

import random

import pytest

from slmctl.config import NO_TASK, CalibrateConfig
from slmctl.errors import GateError
from slmctl.metrics import fleet_figures
from slmctl.metrics.fleet_figures import FleetOutcome
from slmctl.metrics.statistics import error_bound


def outcome(score: float, *, right: bool = True, task: str = "a", named: str = "a", fits: bool = False) -> FleetOutcome:
    return FleetOutcome(task, named, right, score > 0, score, fits, (10, 2))


def rows(count: int, seed: int = 0) -> list[FleetOutcome]:
    """Rows whose answers are right the more often, the higher they score; a tenth is for no model."""
    draw = random.Random(seed)
    drawn = []
    for _ in range(count):
        score, task = draw.uniform(-3, 6), "a" if draw.random() > 0.1 else NO_TASK
        right = task == "a" and draw.random() < 1 / (1 + 2.7**-score)
        drawn.append(outcome(score, right=right, task=task, fits=draw.random() < 0.3))
    return drawn


def test_the_threshold_is_tested_on_rows_that_fitted_nothing_and_holds_the_bound() -> None:
    every = rows(1500)
    config = CalibrateConfig(max_error=0.2)
    least, figures = fleet_figures.threshold(every, config)
    held = [row for row in every if not row.fits and row.score >= least]
    wrong = sum(not row.right for row in held)
    assert figures["error_bound"] == pytest.approx(error_bound(wrong, len(held), 0.95))
    assert figures["error_bound"] <= 0.2
    assert figures["tested_on"] == sum(not row.fits for row in every)
    spoilt = [outcome(row.score, right=False, task=row.task, fits=True) if row.fits else row for row in every]
    assert fleet_figures.threshold(spoilt, config)[0] == least  # rows that fitted a score decide nothing


def test_what_the_router_gives_to_nobody_is_never_kept() -> None:
    every = [*rows(800), *(outcome(-float("inf"), right=False, task="a", named=NO_TASK) for _ in range(500))]
    least, _ = fleet_figures.threshold(every, CalibrateConfig(max_error=0.2))
    assert least > -float("inf")
    unknown = [outcome(1.0), *(outcome(-float("inf")) for _ in range(500))]  # right answers that nobody is sure of
    with pytest.raises(GateError, match="cannot be shown: 1 rows test it"):
        fleet_figures.threshold(unknown, CalibrateConfig())
    kept = fleet_figures.kept(every, least=-float("inf"), confidence=0.95)
    assert kept["kept_rows"] == 800


def test_no_threshold_is_no_promise() -> None:
    with pytest.raises(GateError, match="no threshold keeps the error at or below"):
        fleet_figures.threshold([outcome(1.0, right=k % 2 == 0) for k in range(400)], CalibrateConfig())


def test_without_calibration_rows_no_threshold_can_be_shown() -> None:
    with pytest.raises(GateError, match="cannot be shown: 0 rows test it"):
        fleet_figures.threshold([], CalibrateConfig())


def test_kept_answers_to_questions_for_no_model_are_wrong() -> None:
    every = [outcome(1.0)] * 3 + [outcome(1.0, right=False, task=NO_TASK), outcome(-1.0), outcome(-1.0, task=NO_TASK)]
    kept = fleet_figures.kept(every, least=None, confidence=0.95)
    assert (kept["rows"], kept["kept_rows"], kept["wrong"], kept["none_rows"]) == (4, 4, 1, 2)
    assert (kept["kept"], kept["accuracy"], kept["none_kept"]) == (0.75, 0.75, 0.5)
    assert kept["error_bound"] == pytest.approx(error_bound(1, 4, 0.95))
    assert fleet_figures.confusion(every) == [("a", "a", 4), (NO_TASK, "a", 2)]
