"""The admission of a judge, and the win rate that people's pairs and its verdicts give together."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from slmctl.metrics.judged_rate import Agreement, CorrectedRate, preferred_longer
from slmctl.metrics.statistics import drop_bound


def scores(text: str) -> np.ndarray:
    """w, l, s: won, lost, the same."""
    return np.array([{"w": 1.0, "l": 0.0, "s": 0.5}[letter] for letter in text])


def drawn(
    n: int, more: int, agrees: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(people's scores, the judge's on these, the judge's on others, groups of one row each)."""
    random = np.random.default_rng(seed)
    people = random.choice([0.0, 0.5, 1.0], n + more, p=[0.3, 0.2, 0.5])
    judge = np.where(
        random.random(n + more) < agrees, people, random.choice([0.0, 0.5, 1.0], n + more)
    )
    return people[:n], judge[:n], judge[n:], np.arange(n + more)


def test_a_judge_must_beat_both_rules() -> None:
    people, longer = scores("wl" * 15 + "s" * 10), scores("w" * 40)
    good = Agreement.of(people, people, longer, np.arange(40))
    assert (good.pairs, good.right, good.same, good.longer) == (40, 40, 10, 15)
    assert good.is_admitted and good.lead == pytest.approx(-drop_bound(0, 25, 40))
    assert not Agreement.of(people, longer, longer, np.arange(40)).is_admitted
    assert not Agreement.of(people, np.full(40, 0.5), longer, np.arange(40)).is_admitted
    # people like what is longer
    assert not Agreement.of(people, people, people, np.arange(40)).is_admitted


def test_few_pairs_admit_nobody() -> None:
    people = scores("wl" * 20)
    for pairs, admits in ((0, False), (29, False), (30, True)):
        some = people[:pairs]
        assert Agreement.of(some, some, scores("w" * pairs), np.arange(pairs)).is_admitted is admits


def test_rows_of_few_groups_admit_less() -> None:
    people, judge = scores("wlwl" * 10), scores("wlwl" * 6 + "ssss" * 4)
    rows = Agreement.of(people, judge, np.full(40, 0.5), np.arange(40))
    groups = Agreement.of(people, judge, np.full(40, 0.5), np.arange(40) // 8)
    assert rows.is_admitted and not groups.is_admitted and rows.right == groups.right


@pytest.mark.parametrize("agrees", [0.0, 0.6, 0.9])
def test_the_rate_is_that_of_ppi_plus_plus(agrees: float) -> None:
    people, judge, others, groups = drawn(80, 400, agrees)
    made = CorrectedRate.of(people, judge, others, groups)
    own, by = np.append(people, [1, 0]), np.append(judge, [0, 1])  # with the two added pairs
    ratio = 82 / 400
    weight = float(
        np.clip(np.cov(own, by)[0, 1] / (np.var(by, ddof=1) + ratio * np.var(others)), 0, 1)
    )
    assert made.weight == pytest.approx(weight, abs=0.02)
    assert made.rate == pytest.approx(people.mean() + made.weight * (others.mean() - judge.mean()))
    error = math.sqrt(np.var(own - made.weight * by) / 80 + made.weight**2 * np.var(others) / 400)
    assert made.deviation == pytest.approx(error, rel=0.05)
    low, high = made.interval(0.9)
    half = stats.t.ppf(0.95, 80) * made.deviation
    assert (low, high) == pytest.approx((made.centre - half, made.centre + half), abs=1e-4)
    assert low <= made.rate <= high


def test_a_better_judge_is_worth_more_and_a_useless_one_nothing() -> None:
    worth = [CorrectedRate.of(*drawn(80, 2000, agrees)).worth for agrees in (0.0, 0.6, 0.8, 0.95)]
    assert worth == sorted(worth) and worth[0] < 1.02 * 80 and worth[-1] > 2 * 80


def test_a_judge_that_always_errs_for_one_model_is_corrected() -> None:
    people, judge, others, groups = drawn(150, 4000, 1.0)
    biased = [np.maximum(verdicts, 0.5) for verdicts in (judge, others)]
    low, high = CorrectedRate.of(people, *biased, groups).interval()
    assert low <= 0.6 <= high < biased[1].mean()


def test_pairs_on_which_all_agree_prove_little() -> None:
    rate = CorrectedRate.of(np.ones(30), np.ones(30), np.ones(500), np.arange(530))
    low, high = rate.interval()
    assert rate.rate == 1 == high and low < 0.95  # 30 of 30: a true 95 % is likely enough


def test_groups_widen_the_interval() -> None:
    people, judge, others, groups = drawn(80, 400, 0.8)
    alike = np.repeat(np.arange(120), 4)
    whole = [np.repeat(values[::4], 4) for values in (people, judge, others)]
    assert (
        CorrectedRate.of(*whole, alike).deviation
        > 1.6 * CorrectedRate.of(people, judge, others, groups).deviation
    )


def test_the_longer_answer_counts_where_lengths_and_scores_differ() -> None:
    assert preferred_longer(scores("wwlsl"), scores("wlwws")) == (1, 3)
