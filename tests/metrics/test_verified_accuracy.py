"""The accuracy of all traffic from decided rows: by hand, and how
often its interval holds the truth.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from slmctl.metrics.statistics import exact_interval
from slmctl.metrics.verified_accuracy import WeightedShare, weighted_share


def test_rows_of_one_probability_have_the_exact_interval() -> None:
    share = weighted_share([True] * 9 + [False], [0.02] * 10)
    assert (share.rows, share.right, share.share) == (10, 9, 0.9)
    assert (share.low, share.high) == exact_interval(9, 10)
    assert weighted_share([True], [1.0]) == WeightedShare(1, 1, 1.0, *exact_interval(1, 1), 1)


def test_rows_of_two_probabilities_stand_for_as_many_as_they_were_drawn_from() -> None:
    share = weighted_share([True, True, False, False], [0.1, 0.1, 0.5, 0.5])
    assert share.share == pytest.approx((10 + 10) / (10 + 10 + 2 + 2))
    assert share.low < share.share < share.high
    alike = weighted_share([True] * 30 + [False] * 10, [0.1] * 40)
    apart = weighted_share([True] * 30 + [False] * 10, [0.1, 0.4] * 20)
    assert apart.high - apart.low > alike.high - alike.low  # unequal weights tell less


def test_no_row_says_nothing() -> None:
    nothing = weighted_share([], [])
    assert (nothing.rows, nothing.low, nothing.high) == (0, 0.0, 1.0) and math.isnan(nothing.share)


def test_the_interval_holds_the_truth_when_the_drawing_changed_in_between() -> None:
    random, held = np.random.default_rng(1), 0
    for _ in range(100):
        right = random.random(3000) < np.repeat([0.95, 0.85], 1500)
        drawn_with = np.repeat([0.05, 0.15], 1500)
        drawn = random.random(3000) < drawn_with
        share = weighted_share(right[drawn].tolist(), drawn_with[drawn].tolist())
        held += share.low <= right.mean() <= share.high
    assert held >= 93
