"""Sequential tests for a change: against plain loops, on traffic that stays, and on traffic that changes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmctl.metrics import drift
from slmctl.metrics.drift import Bet, course, p_values

streams = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=60)


@given(streams)
@settings(deadline=None, max_examples=80)
def test_p_values_are_ranks_among_the_values_so_far(values: list[float]) -> None:
    chance = np.random.default_rng(0).random(len(values))
    expected = [
        (sum(other < value for other in values[: n + 1]) + chance[n] * values[: n + 1].count(value)) / (n + 1)
        for n, value in enumerate(values)
    ]
    assert p_values(np.array(values)) == pytest.approx(expected)


def test_p_values_do_not_depend_on_how_many_are_ranked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).normal(size=1500).round(1)
    whole = p_values(values)
    monkeypatch.setattr(drift, "_BLOCK", 7)
    assert np.array_equal(p_values(values), whole)


@pytest.mark.parametrize("kinds", [drift.LOWER, drift.EITHER, drift.PRESENT], ids=["lower", "either", "present"])
def test_a_bet_pays_its_stake_on_average(kinds: tuple[Bet, ...]) -> None:
    grid = (np.arange(100_000) + 0.5) / 100_000
    for bet in kinds:
        assert np.exp(bet.log_payoffs(grid)).mean() == pytest.approx(1, abs=1e-3)


def test_the_evidence_is_the_sum_over_all_bets_that_were_opened() -> None:
    values, bet = np.random.default_rng(5).random(90), Bet("low", 0.1, 2.0)
    seen = course(values, [bet], monthly=300, level=0.05, first=20)
    payoffs = np.exp(bet.log_payoffs(p_values(values)[20:]))
    for n in (0, 4, 5, 33, 69):  # 60 starts a month of 300 values: one at every fifth
        total = sum(math.prod(payoffs[start : n + 1]) for start in range(0, n + 1, 5))
        assert seen.evidence[20 + n] == pytest.approx(math.log(total / (60 / 0.05)))
    assert (seen.evidence[:20] == -np.inf).all()


def test_busy_traffic_opens_a_bet_every_200_values_and_asks_for_as_much_more() -> None:
    values, bet = np.random.default_rng(6).random(1000), Bet("low", 0.1, 2.0)
    seen = course(values, [bet], monthly=120_000, level=0.05, first=100)
    payoffs = np.exp(bet.log_payoffs(p_values(values)[100:]))
    total = sum(math.prod(payoffs[start:]) for start in range(0, 900, 200))
    assert seen.evidence[-1] == pytest.approx(math.log(total / (600 / 0.05)))


def test_later_values_change_nothing_before_them() -> None:
    values = np.random.default_rng(7).random(1200)
    whole = course(values, drift.LOWER, monthly=1000, level=0.05)
    part = course(values[:900], drift.LOWER, monthly=1000, level=0.05)
    assert np.array_equal(whole.evidence[:900], part.evidence)


def test_too_few_values_are_no_change() -> None:
    seen = course(np.zeros(drift.REFERENCE), drift.LOWER, monthly=1000, level=0.05)
    assert seen.change is None and not seen.stands
    assert len(seen.evidence) == drift.REFERENCE


def test_unchanged_traffic_is_silent_in_most_months() -> None:
    random = np.random.default_rng(11)
    months = [random.beta(8, 2, 2000).round(2) for _ in range(60)]  # a month each, with ties
    alarms = sum(course(month, drift.LOWER, monthly=1500, level=0.05).change is not None for month in months)
    assert alarms <= 6  # of 60 at most 3 are expected


def test_a_change_is_found_and_dated() -> None:
    random = np.random.default_rng(13)
    before, after = random.normal(size=2000), random.normal(size=1000) - 2.5 * (random.random(1000) < 0.1)
    seen = course(np.concatenate([before, after]), drift.LOWER, monthly=1500, level=0.05)
    assert seen.change is not None
    assert 2000 < seen.change.index < 2500
    assert abs(seen.change.since - 2000) < 200
    assert seen.change.bet.tail == "low"
    assert seen.stands


def test_a_label_that_comes_or_goes_is_found() -> None:
    random = np.random.default_rng(17)
    usual = (random.random(3000) < 0.05).astype(float)
    comes, goes = (random.random(1500) < 0.2).astype(float), np.zeros(1500)
    for after, times in ((comes, (1.4, 2.5, 5.0)), (goes, (0.3,))):
        change = course(np.concatenate([usual, after]), drift.PRESENT, monthly=3000, level=0.05).change
        assert change is not None and 3000 < change.index < 4000
        assert change.bet.times in times
