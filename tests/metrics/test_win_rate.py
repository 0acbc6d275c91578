"""Win rates of judged pairs: the sign test, its interval, and the pairs that would decide."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from slmctl.metrics.win_rate import WinRate

counts = st.tuples(st.integers(0, 120), st.integers(0, 120), st.integers(0, 60))


@pytest.mark.parametrize(("pairs", "won"), [(6, 6), (30, 21), (60, 39), (100, 61), (150, 88)])
def test_so_many_of_so_many_pairs_decide(pairs: int, won: int) -> None:
    assert WinRate(won, pairs - won, 0).p <= 0.05 < WinRate(won - 1, pairs - won + 1, 0).p


@given(counts, st.floats(0.6, 0.99), st.sampled_from([1.0, 1.7, 4.0]))
@settings(deadline=None, max_examples=200)
def test_the_interval_leaves_out_a_half_where_the_sign_test_decides(
    drawn: tuple[int, int, int], confidence: float, effect: float
) -> None:
    rate = WinRate(*drawn, effect)
    low, high = rate.interval(confidence)
    assert 0 <= low <= high <= 1
    if effect == 1:
        assert low - 1e-9 <= rate.rate <= high + 1e-9
    if abs(rate.p - (1 - confidence)) > 1e-6:
        assert (low > 0.5 or high < 0.5) is (rate.p < 1 - confidence)
    other = WinRate(drawn[1], drawn[0], drawn[2], effect).interval(confidence)
    assert other == pytest.approx((1 - high, 1 - low))


@given(counts.filter(any))
@settings(deadline=None, max_examples=50)
def test_the_sign_test_is_scipys(drawn: tuple[int, int, int]) -> None:
    won, lost, _ = drawn
    assert WinRate(*drawn).p == pytest.approx(
        stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
    )


@pytest.mark.parametrize(
    ("rate", "low", "high"),
    [
        (WinRate(60, 0, 0), 0.9141, 1.0),
        (WinRate(0, 0, 60), 0.4702, 0.5298),  # ties show that two models are alike
        (WinRate(0, 0, 0), 0.0, 1.0),
        (WinRate(39, 21, 0), 0.5152, 0.7685),
        (WinRate(39, 21, 30), 0.509, 0.705),
    ],
)
def test_intervals_are_exact(rate: WinRate, low: float, high: float) -> None:
    assert rate.interval() == pytest.approx((low, high), abs=5e-4)


@pytest.mark.parametrize(
    ("rate", "more"),
    [
        (WinRate(39, 21, 0), 0),
        (WinRate(20, 10, 0), 12),
        (WinRate(20, 10, 30), 24),
        (WinRate(10, 10, 4), None),
        (WinRate(101, 99, 0), None),  # over a thousand
        (WinRate(20, 10, 0, 4.0), 138),
    ],
)
def test_pairs_that_would_decide(rate: WinRate, more: int | None) -> None:
    assert rate.more() == more
