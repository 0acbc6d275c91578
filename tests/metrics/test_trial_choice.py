"""The choice among trials: better ones are taken, lucky ones are not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from slmctl.metrics import trial_choice
from slmctl.metrics.statistics import t_quantile
from slmctl.metrics.trial_choice import Measured

BLOCKS, RECORDS, TOKENS = 10, 32, 3  # of a validation
RESIDUAL, SHIFT = 0.06, 0.005  # standard deviations of a block's loss, and of a whole trial's, from seed to seed


def measured(
    random: np.random.Generator, name: str, loss: float, hardness: np.ndarray, *, seeds: int = 2, cost: float = 1.0
) -> Measured:
    """Trials of a candidate of this true loss, with noise of a training by record and as a whole."""
    trials = []
    for _ in range(seeds):
        rate = loss + hardness + random.normal(0, RESIDUAL, BLOCKS) + random.normal(0, SHIFT)
        tokens = np.full(BLOCKS, RECORDS * TOKENS)
        trials.append(np.stack([np.full(BLOCKS, RECORDS), tokens, rate * tokens], axis=1))
    return Measured(name, (cost,), trials)


def sweep(seed: int, losses: dict[str, float]) -> str:
    """The candidate that a sweep chooses, each trained with two seeds."""
    random = np.random.default_rng(seed)
    hardness = random.normal(0, 0.2, BLOCKS)  # some records are hard for every model
    incumbent, *challengers = (measured(random, name, loss, hardness) for name, loss in losses.items())
    return trial_choice.choose(incumbent, challengers).chosen.name


@pytest.mark.parametrize("freedom", [1, 2.5, 3, 11.8, 400, 1e7])
def test_quantiles_of_students_t_are_those_of_scipy(freedom: float) -> None:
    for share in (0.5, 0.84, 0.95, 0.9983):
        assert t_quantile(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), rel=1e-3, abs=1e-6)


def test_among_twenty_equal_candidates_the_settings_of_today_stay() -> None:
    picks = [sweep(seed, {f"c{k}": 0.3 for k in range(20)}) for seed in range(100)]
    assert picks.count("c0") >= 99


def test_a_candidate_that_is_better_is_found_among_twenty() -> None:
    picks = [sweep(seed, {f"c{k}": 0.3 if k != 7 else 0.1 for k in range(20)}) for seed in range(50)]
    assert picks.count("c7") >= 48


def test_of_candidates_as_good_as_the_best_the_cheapest_is_taken() -> None:
    random = np.random.default_rng(0)
    hardness = random.normal(0, 0.2, BLOCKS)
    incumbent = measured(random, "today", 1.0, hardness)
    best = measured(random, "best", 0.2, hardness, cost=3)
    like = replace(best, name="like", cost=(1.0,), blocks=[block * [1, 1, 1.002] for block in best.blocks])
    worse = replace(best, name="worse", cost=(0.5,), blocks=[block * [1, 1, 1.6] for block in best.blocks])
    choice = trial_choice.choose(incumbent, [best, like, worse])
    assert all(verdict.better for verdict in choice.verdicts)
    assert [verdict.near for verdict in choice.verdicts] == [True, True, False]
    assert choice.chosen.name == "like"


def test_one_seed_and_one_block_tell_nothing() -> None:
    random = np.random.default_rng(0)
    hardness = np.zeros(BLOCKS)
    one_seed = [measured(random, name, loss, hardness, seeds=1) for name, loss in (("today", 0.5), ("other", 0.1))]
    assert trial_choice.choose(one_seed[0], one_seed[1:]).chosen.name == "today"
    two = [measured(random, name, loss, hardness) for name, loss in (("today", 0.5), ("other", 0.1))]
    blocks = [replace(each, blocks=[block[:1] for block in each.blocks]) for each in two]
    (verdict,) = trial_choice.choose(blocks[0], blocks[1:]).verdicts
    assert verdict.bound == -math.inf


def test_the_gain_of_a_constant_difference_has_no_error() -> None:
    block = np.array([[32, 90, 30.0], [32, 110, 50.0], [5, 20, 4.0]])
    first, second = (Measured(name, (1.0,), [block, block]) for name in ("a", "b"))
    lower = replace(
        second, blocks=[block - np.stack([0 * block[:, 0], 0 * block[:, 0], 0.1 * block[:, 1]], axis=1)] * 2
    )
    gain = trial_choice.gain(first, lower, trial_choice.seed_variance([first, lower]))
    assert gain.mean == pytest.approx(0.1)
    assert gain.error == pytest.approx(0, abs=1e-9)


def test_trials_on_other_records_are_not_compared() -> None:
    blocks = np.array([[16, 40, 10.0], [16, 50, 11.0], [9, 30, 6.0]])
    for other in (blocks * [1, 1.1, 1], blocks[:2]):
        with pytest.raises(ValueError, match="other records"):
            trial_choice.paired_gain(blocks, other)


def blocks_of(losses: Sequence[float], tokens: int = 40) -> np.ndarray:
    return np.array([(16, tokens, loss * tokens) for loss in losses])


def test_a_gain_that_every_block_shows_is_no_chance_and_one_that_few_show_may_be() -> None:
    random = np.random.default_rng(1)
    before = [1.0 + 0.3 * random.normal() for _ in range(12)]  # records differ much more than the trainings
    steady = trial_choice.paired_gain(blocks_of(before), blocks_of([loss - 0.05 for loss in before]))
    assert steady.mean == pytest.approx(0.05)
    assert steady.bound(0.95) > 0.049
    noisy = [loss - 0.05 + 0.3 * random.normal() for loss in before]
    assert trial_choice.paired_gain(blocks_of(before), blocks_of(noisy)).bound(0.95) < 0
    same = trial_choice.paired_gain(blocks_of(before), blocks_of(before))
    assert same.bound(0.95) == 0.0  # which is not above 0


def test_of_trainings_that_are_equal_few_are_taken_for_better() -> None:
    random = np.random.default_rng(2)
    taken = 0
    for _ in range(400):
        hard = 0.3 * random.normal(size=8)
        first, second = (blocks_of(list(1 + hard + 0.05 * random.normal(size=8))) for _ in range(2))
        taken += trial_choice.paired_gain(first, second).bound(0.95) > 0
    assert taken <= 32  # 5 % are expected, 20, and two in three times as many are three standard deviations off
