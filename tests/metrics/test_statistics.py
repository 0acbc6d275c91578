"""Intervals and tests, against scipy, published values and what must hold of any of them."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from slmctl.metrics import statistics
from slmctl.metrics.statistics import (
    _tango,
    batch_bound,
    design_effect,
    difference_interval,
    drop_bound,
    effective_groups,
    exact_interval,
    holm,
    mcnemar,
    wilson,
)

counts = st.integers(1, 2000).flatmap(
    lambda total: st.tuples(st.integers(0, total), st.just(total))
)
confidences = st.floats(0.5, 0.999)
# rows only the first answered right, only the second, and all rows
pairs = st.integers(1, 500).flatmap(
    lambda n: st.integers(0, n).flatmap(
        lambda b: st.tuples(st.just(b), st.integers(0, n - b), st.just(n))
    )
)


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_published_values(right: int, total: int, low: float, high: float) -> None:
    assert wilson(right, total) == pytest.approx((low, high), abs=5e-5)


@given(counts, confidences)
@settings(deadline=None, max_examples=100)
def test_intervals_of_a_share_are_scipys(drawn: tuple[int, int], confidence: float) -> None:
    theirs = stats.binomtest(*drawn)
    for ours, method in ((wilson, "wilson"), (exact_interval, "exact")):
        interval = theirs.proportion_ci(confidence, method=method)
        assert ours(*drawn, confidence) == pytest.approx((interval.low, interval.high), abs=1e-6)


@given(counts, st.integers(1, 300), confidences)
@settings(deadline=None, max_examples=50)
def test_the_bound_on_a_batch_is_where_scipys_hypergeometric_tail_ends(
    drawn: tuple[int, int], batch: int, confidence: float
) -> None:
    wrong, tested = drawn
    most = batch_bound(wrong, tested, batch, confidence)

    def tail(more: int) -> float:
        return float(stats.hypergeom.cdf(wrong, tested + batch, wrong + more, tested))

    assert most == 0 or tail(most) > 1 - confidence - 1e-9
    assert most == batch or tail(most + 1) <= 1 - confidence + 1e-9


def test_nothing_counted_says_nothing() -> None:
    assert wilson(0, 0) == exact_interval(0, 0) == (0.0, 1.0)
    assert drop_bound(0, 0, 0) == 1.0


@pytest.mark.parametrize("total", [1, 10, 59, 400, 10_000])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_drop_bound_without_any_difference(total: int, confidence: float) -> None:
    # b = c = 0: the statistic is -n d / sqrt(n d (1 - d)), which meets -z where d = z^2 / (n + z^2)
    z2 = NormalDist().inv_cdf(confidence) ** 2
    assert drop_bound(0, 0, total, confidence) == pytest.approx(z2 / (total + z2), rel=1e-9)


@given(pairs, st.floats(0.6, 0.999))
@settings(deadline=None, max_examples=100)
def test_drop_bound_is_where_the_statistic_meets_z(
    drawn: tuple[int, int, int], confidence: float
) -> None:
    b, c, n = drawn
    bound, z = drop_bound(b, c, n, confidence), NormalDist().inv_cdf(confidence)
    assert (b - c) / n - 1e-9 <= bound <= 1
    assert _tango(b, c, n, bound - 1e-6) > -z - 1e-3
    assert bound == 1 or _tango(b, c, n, min(bound + 1e-6, 1)) <= -z + 1e-3


def score(b: int, c: int, n: int, drop: float) -> float:
    """Tango's statistic with its nuisance share found by search, not by the closed form."""
    low, high = max(0.0, -drop), (1 - drop) / 2 if drop >= 0 else 1.0
    best, nuisance = -math.inf, low
    # the likelihood of (b, c) given the drop, over the share of the second kind
    for k in range(20_001):
        q = low + (high - low) * k / 20_000
        p = q + drop
        rest = 1 - p - q
        if (p <= 0 < b) or (q <= 0 < c) or (rest <= 0 < n - b - c):
            continue
        value = sum(
            count * math.log(share) for count, share in ((b, p), (c, q), (n - b - c, rest)) if count
        )
        if value > best:
            best, nuisance = value, q
    return (b - c - n * drop) / math.sqrt(n * (2 * nuisance + drop - drop * drop))


@pytest.mark.parametrize(
    ("b", "c", "n"), [(12, 2, 44), (5, 3, 60), (3, 9, 100), (1, 1, 20), (30, 20, 400)]
)
@pytest.mark.parametrize("drop", [0.05, 0.2, 0.35])
def test_statistic_uses_the_most_likely_nuisance_share(b: int, c: int, n: int, drop: float) -> None:
    assert _tango(b, c, n, drop) == pytest.approx(score(b, c, n, drop), abs=2e-3)


@given(pairs, confidences, confidences)
@settings(deadline=None, max_examples=100)
def test_drop_bound_rises_with_confidence_and_lost_rows_and_falls_with_rows_of_the_same_kind(
    drawn: tuple[int, int, int], one: float, other: float
) -> None:
    b, c, n = drawn
    assert drop_bound(b, c, n, min(one, other)) <= drop_bound(b, c, n, max(one, other)) + 1e-9
    assert b + c == n or drop_bound(b, c, n) <= drop_bound(b + 1, c, n) + 1e-9
    assert b < c or b + c == n or drop_bound(4 * b, 4 * c, 4 * n) <= drop_bound(b, c, n) + 1e-9


# Two models on the same rows


@given(st.integers(0, 300), st.integers(0, 300))
@settings(deadline=None, max_examples=150)
def test_mcnemar_is_the_exact_binomial_test(b: int, c: int) -> None:
    theirs = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar(b, c) == mcnemar(c, b) == pytest.approx(theirs, rel=1e-9)


def test_mcnemar_of_many_rows() -> None:
    assert 0 <= mcnemar(20_000, 40_000) < 1e-300


@given(pairs)
@settings(deadline=None, max_examples=100)
def test_difference_interval_holds_what_was_seen_and_turns_round_with_the_models(
    drawn: tuple[int, int, int],
) -> None:
    b, c, n = drawn
    low, high = difference_interval(b, c, n)
    assert -1 <= low <= (c - b) / n + 1e-9
    assert (c - b) / n - 1e-9 <= high <= 1
    assert difference_interval(c, b, n) == pytest.approx((-high, -low))
    assert high == drop_bound(c, b, n, 0.975)


@pytest.mark.parametrize(("share", "difference"), [(0.1, 0.05), (0.2, 0.1), (0.3, 0.1)])
def test_detectable_is_connors_sample_size_turned_round(share: float, difference: float) -> None:
    """n = (1.96 sqrt(share) + 0.8416 sqrt(share - difference^2))^2 /
    difference^2 (Connor 1987, equation 4).
    """
    z, beta = 1.959964, 0.841621
    wanted = (z * math.sqrt(share) + beta * math.sqrt(share - difference**2)) ** 2 / difference**2
    rows = round(wanted)
    assert statistics.detectable_share(round(share * rows), rows) == pytest.approx(
        difference, rel=0.03
    )


@pytest.mark.parametrize(("n", "discordant"), [(400, 40), (1000, 50), (3000, 600)])
def test_a_detectable_difference_is_detected_as_often_as_said(n: int, discordant: int) -> None:
    """Draw data with that very difference: McNemar's test finds it in
    about 80 % (the exact one a little less).
    """
    difference = statistics.detectable_share(discordant, n)
    share = max(discordant / n, difference)
    random = np.random.default_rng(5)
    drawn = random.multinomial(
        n, [(share + difference) / 2, (share - difference) / 2, 1 - share], 1500
    )
    found = np.mean([mcnemar(int(b), int(c)) < 0.05 for b, c, _ in drawn])
    assert 0.70 < found < 0.84


def test_detectable_without_any_discordance_is_what_all_one_way_would_show() -> None:
    found = statistics.detectable_share(0, 500)
    assert 6 <= found * 500 <= 10  # six rows, all one way, are the fewest that are significant


def test_holm_by_hand() -> None:
    """Holm 1979: 0.01, 0.04, 0.03 and 0.005, raised and never falling."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert (holm([]), holm([0.9, 0.8])) == ([], [1.0, 1.0])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_nothing_and_bonferroni(values: list[float]) -> None:
    raised = holm(values)
    for p, q in zip(values, raised, strict=True):
        assert p <= q <= min(1.0, len(values) * p) + 1e-12
    order = sorted(range(len(values)), key=lambda k: values[k])
    assert [raised[k] for k in order] == sorted(raised)


def test_resamples_are_resamples_and_come_in_parts() -> None:
    weights, again = (
        np.concatenate(list(statistics.resamples(50, count=300, seed=1))) for _ in range(2)
    )
    assert weights.shape == (300, 50)
    assert np.all(weights.sum(axis=1) == 50)
    assert 0.9 < weights.var() < 1.1  # of a count that is nearly Poisson's
    assert np.array_equal(weights, again)
    parts = [len(part) for part in statistics.resamples(1_000_000, count=9)]
    assert sum(parts) == 9
    assert max(parts) <= 4


def test_percentile_bootstrap_is_scipys() -> None:
    random = np.random.default_rng(3)
    a, b = random.normal(0.3, 1, 200), random.normal(0.1, 1, 200)
    ours = np.concatenate([w @ (a - b) / 200 for w in statistics.resamples(200)])
    theirs = stats.bootstrap(
        (a, b),
        lambda x, y: np.mean(x - y),
        paired=True,
        method="percentile",
        n_resamples=2000,
        vectorized=False,
        rng=1,
    ).confidence_interval
    assert statistics.percentiles(ours) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_no_difference() -> None:
    """By hand, and of a bootstrap test at 5 % about 5 % are false alarms."""
    assert statistics.bootstrap_p_value(np.zeros(99)) == 1.0
    assert statistics.bootstrap_p_value(np.ones(99)) == pytest.approx(2 / 100)
    assert statistics.bootstrap_p_value(np.array([-1.0] * 5 + [1.0] * 94)) == pytest.approx(
        2 * 6 / 100
    )
    random = np.random.default_rng(11)
    weights = np.concatenate(list(statistics.resamples(80, count=400)))
    values = [statistics.bootstrap_p_value(weights @ random.normal(0, 1, 80)) for _ in range(600)]
    assert 0.025 < np.mean(np.array(values) < 0.05) < 0.085


def test_groups_of_unlike_sizes_leave_the_interval_its_level() -> None:
    # 27 % of the intervals missed where one of ten groups had half of the rows
    draw, missed = np.random.default_rng(0), 0
    for _ in range(300):
        sizes = np.maximum(1, np.round(3 * (1 + draw.pareto(1.5, 10)))).astype(int)
        groups = np.repeat(np.arange(10), sizes)
        values = (draw.random(len(groups)) < 0.12) * draw.choice([-1.0, 1.0], 10)[groups]
        effect = design_effect(values, groups)
        lost, won = (int((values == side).sum()) / effect for side in (-1, 1))
        low, high = difference_interval(lost, won, len(values) / effect)
        missed += low > 0 or high < 0
    assert missed <= 0.07 * 300
    assert effective_groups([10] * 18) == pytest.approx(18) and effective_groups([100, 1, 1]) < 1.1
