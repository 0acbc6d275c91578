"""One threshold for a task router and its models, and what it keeps."""

from __future__ import annotations

import dataclasses
import random

import pytest

from slmctl.config import NO_TASK, CalibrateConfig
from slmctl.errors import GateError
from slmctl.metrics import fleet_figures
from slmctl.metrics.fleet_figures import FleetOutcome, ModelOutcome
from slmctl.metrics.statistics import error_bound


def outcome(score: float, *, right: bool = True, task: str = "a", named: str = "a", fits: bool = False) -> FleetOutcome:
    answers = () if named == NO_TASK else (ModelOutcome(named, right, score > 0, score),)
    return FleetOutcome(task, named, True, answers, fits, (10, 2))


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
    held = [answer for row in every if not row.fits and (answer := row.kept(least)) is not None]
    wrong = sum(not answer.right for answer in held)
    assert figures["error_bound"] == pytest.approx(error_bound(wrong, len(held), 0.95))
    assert figures["error_bound"] <= 0.2
    assert figures["tested_on"] == sum(not row.fits for row in every)
    spoilt = [
        outcome(row.answers[0].score, right=False, task=row.task, fits=True) if row.fits else row for row in every
    ]
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


def cascade(count: int, seed: int = 1) -> list[FleetOutcome]:
    """Rows that a small model and a larger one have answered, each right the more often, the higher it scores."""
    draw = random.Random(seed)
    drawn = []
    for _ in range(count):
        task = "a" if draw.random() > 0.1 else NO_TASK
        router = draw.uniform(-1, 8) if task == "a" else draw.uniform(-4, 3)
        scores = {"a": min(router, draw.uniform(-3, 6)), "b": min(router, draw.uniform(-2, 7))}
        answers = tuple(
            ModelOutcome(name, task == "a" and draw.random() < 1 / (1 + 2.7**-score), min(router, score) > 2, score)
            for name, score in scores.items()
        )
        drawn.append(FleetOutcome(task, "a", router > 2, answers, draw.random() < 0.3, (10, 2)))
    return drawn


def test_one_threshold_of_a_cascade_is_tested_on_the_answer_that_it_gives() -> None:
    every = cascade(1500)
    tests = [row for row in every if not row.fits]
    for cut in fleet_figures.cuts(tests):  # each is what a fleet with this threshold does, row by row
        kept = fleet_figures.kept(tests, least=cut.threshold, confidence=0.95)
        assert (cut.kept, cut.wrong) == (kept["kept_rows"], kept["wrong"])
    least, figures = fleet_figures.threshold(every, CalibrateConfig(max_error=0.25))
    kept = fleet_figures.kept(tests, least=least, confidence=0.95)
    assert figures["error_bound"] == pytest.approx(kept["error_bound"])
    assert figures["error_bound"] <= 0.25
    alone = [dataclasses.replace(row, answers=row.answers[:1]) for row in every]
    assert kept["kept"] > fleet_figures.kept(alone, least=least, confidence=0.95)["kept"]


def test_a_larger_model_is_asked_where_the_smaller_one_is_unsure_and_the_router_sure() -> None:
    def answered(small: float, large: float, *, sure: bool = True) -> FleetOutcome:
        scores = {"a": (small, False), "b": (large, True)}
        answers = tuple(ModelOutcome(name, right, sure and score > 0, score) for name, (score, right) in scores.items())
        return FleetOutcome("a", "a", sure, answers, False, (10, 2))

    every = [answered(1, 2), answered(-1, 2), answered(-1, -2), answered(-1, 2, sure=False)]
    assert fleet_figures.by_model(every) == [("a", 4, 1, 1), ("b", 2, 1, 0)]
    kept = fleet_figures.kept(every, least=None, confidence=0.95)
    assert (kept["kept_rows"], kept["wrong"]) == (2, 1)
    given = [row.kept(1.5) for row in every]
    assert [answer and answer.model for answer in given] == ["b", "b", None, "b"]


@pytest.mark.slow
def test_the_promise_of_a_cascade_holds_on_new_rows() -> None:
    population, config = cascade(6000, seed=-1), CalibrateConfig(max_error=0.25)
    errors = []
    for seed in range(60):
        least, _ = fleet_figures.threshold(cascade(500, seed=seed), config)
        kept = fleet_figures.kept(population, least=least, confidence=0.95)
        errors.append(kept["wrong"] / kept["kept_rows"])
    assert sum(error > 0.25 for error in errors) <= 8  # of 60, where 3 are expected at most: chance 0.3 %
    assert max(errors) > 0.2  # and it is no stricter than it has to be
