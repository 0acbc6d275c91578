"""The sure gain of one training over another: equal ones have none."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from slmctl.metrics.statistics import t_quantile
from slmctl.metrics.validation_gain import sure_gain


@pytest.mark.parametrize("freedom", [1, 2.5, 3, 11.8, 400, 1e7])
def test_quantiles_of_students_t_are_those_of_scipy(freedom: float) -> None:
    for share in (0.5, 0.84, 0.95, 0.9983):
        assert t_quantile(share, freedom) == pytest.approx(
            stats.t.ppf(share, freedom), rel=1e-3, abs=1e-6
        )


def test_trainings_on_other_records_are_not_compared() -> None:
    blocks = np.array([[16, 40, 10.0], [16, 50, 11.0], [9, 30, 6.0]])
    for other in (blocks * [1, 1.1, 1], blocks[:2]):
        with pytest.raises(ValueError, match="other records"):
            sure_gain(blocks, other, 0.95)


def blocks_of(losses: Sequence[float], tokens: int = 40) -> np.ndarray:
    return np.array([(16, tokens, loss * tokens) for loss in losses])


def test_a_gain_that_every_block_shows_is_no_chance_and_one_that_few_show_may_be() -> None:
    random = np.random.default_rng(1)
    # records differ much more than the trainings
    before = [1.0 + 0.3 * random.normal() for _ in range(12)]
    steady = sure_gain(blocks_of(before), blocks_of([loss - 0.05 for loss in before]), 0.95)
    assert steady == pytest.approx(0.05, abs=1e-6)
    noisy = [loss - 0.05 + 0.3 * random.normal() for loss in before]
    assert sure_gain(blocks_of(before), blocks_of(noisy), 0.95) < 0
    assert sure_gain(blocks_of(before), blocks_of(before), 0.95) == 0.0  # which is not above 0


def test_one_block_tells_nothing() -> None:
    assert sure_gain(blocks_of([1.0]), blocks_of([0.5]), 0.95) == -math.inf


def test_of_trainings_that_are_equal_few_are_taken_for_better() -> None:
    random = np.random.default_rng(2)
    taken = 0
    for _ in range(400):
        hard = 0.3 * random.normal(size=8)
        first, second = (blocks_of(list(1 + hard + 0.05 * random.normal(size=8))) for _ in range(2))
        taken += sure_gain(first, second, 0.95) > 0
    # 5 % are expected, 20, and two in three times as many are three standard deviations off
    assert taken <= 32
