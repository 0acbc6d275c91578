"""Validation losses of trials -> the candidates that go on, and the one that replaces the settings of today.

Every trial validates on the same records, so two are compared block by block of records, which shows small
differences. The one-standard-error rule (Breiman et al. 1984) takes the cheapest candidate that is as good as the best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from slmctl.metrics.statistics import t_quantile

if TYPE_CHECKING:
    from slmctl.metrics.statistics import Floats

CONFIDENCE = 0.95  # that none of all candidates which are no better replaces the settings of today
MIN_RECORDS = 20  # of validation: fewer tell too little of two trainings


@dataclass(frozen=True)
class Measured:
    """The trials of one candidate.

    Attributes:
        cost: Sorts candidates, the cheapest first.
        blocks: One array a seed, (blocks, 3): records, answer tokens and nats of each block of validation records.
    """

    name: str
    cost: tuple[float, ...]
    blocks: Sequence[Floats]

    @property
    def losses(self) -> list[float]:
        """The validation loss of each seed, in nats an answer token."""
        return [float(block[:, 2].sum() / block[:, 1].sum()) for block in self.blocks]

    @property
    def loss(self) -> float:
        return float(np.mean(self.losses))


@dataclass(frozen=True)
class Gain:
    """The fall in validation loss from one candidate to another, in nats an answer token.

    Attributes:
        mean: Positive where the second one is better.
        error: Its standard error, over records and seeds; infinite where nothing tells it.
        freedom: Degrees of freedom of `error`.
    """

    mean: float
    error: float
    freedom: float

    def bound(self, confidence: float) -> float:
        """The gain that there is at least, with one-sided confidence."""
        if not math.isfinite(self.error):
            return -math.inf
        return self.mean - t_quantile(confidence, self.freedom) * self.error


@dataclass(frozen=True)
class Verdict:
    """A candidate beside the settings of today.

    Attributes:
        gain: Over the settings of today.
        bound: The gain that there is at least, with CONFIDENCE over all candidates.
        near: It is within one standard error of the best candidate.
    """

    candidate: Measured
    gain: Gain
    bound: float
    near: bool

    @property
    def better(self) -> bool:
        return self.bound > 0


@dataclass(frozen=True)
class TrialChoice:
    """The candidate that is chosen, which is the incumbent unless another one is better by more than chance."""

    chosen: Measured
    incumbent: Measured
    verdicts: Sequence[Verdict]


def choose(incumbent: Measured, challengers: Sequence[Measured]) -> TrialChoice:
    """The cheapest of the challengers that beat the incumbent and are within one standard error of the best of them.

    The best of many that are equal looks better than it is. So a challenger beats the incumbent only where the lower
    bound of its gain is above 0 with CONFIDENCE over all of them together (Bonferroni), which is always more than
    one standard error.
    """
    everyone = [incumbent, *challengers]
    noise = seed_variance(everyone)
    confidence = 1 - (1 - CONFIDENCE) / max(len(challengers), 1)
    gains = {each.name: gain(incumbent, each, noise) for each in challengers}
    better = [each for each in challengers if gains[each.name].bound(confidence) > 0]
    best = min(better or everyone, key=lambda each: each.loss)
    near = {best.name}
    for each in everyone:
        behind = gain(each, best, noise)
        near |= {each.name} if behind.mean <= behind.error else set()
    chosen = min((each for each in better if each.name in near), key=lambda each: each.cost, default=incumbent)
    verdicts = [
        Verdict(each, gains[each.name], gains[each.name].bound(confidence), each.name in near) for each in challengers
    ]
    return TrialChoice(chosen, incumbent, verdicts)


def gain(first: Measured, second: Measured, noise: tuple[float, int]) -> Gain:
    """The gain of `second` over `first`, with a standard error over blocks of records and over seeds.

    Args:
        noise: The variance of a trial's loss over seeds, and its degrees of freedom, see `seed_variance`.
    """
    parts = _aligned([*first.blocks, *second.blocks])
    a, b = (np.mean(part, axis=0) for part in (parts[: len(first.blocks)], parts[len(first.blocks) :]))
    tokens, fall = a[:, 0], a[:, 1] - b[:, 1]  # (blocks,)
    total, count = tokens.sum(), len(tokens)
    mean = float(fall.sum() / total)
    variance, freedom = noise
    if count < 2 or freedom < 1:
        return Gain(mean, math.inf, 1)
    rows = float(count / (count - 1) * ((fall - mean * tokens) ** 2).sum() / total**2)
    seeds = variance * (1 / len(first.blocks) + 1 / len(second.blocks))
    error = rows + seeds
    if error == 0:
        return Gain(mean, 0.0, freedom)
    # degrees of freedom of a sum of two variances (Satterthwaite 1946)
    return Gain(mean, math.sqrt(error), error**2 / (rows**2 / (count - 1) + seeds**2 / freedom))


def paired_gain(first: Floats, second: Floats) -> Gain:
    """The gain of one training over another on the same validation records, as the two are: seeds are not in its error.

    Args:
        first, second: Blocks of each, (blocks, 3), as in `Measured`.
    """
    return gain(Measured("first", (), [first]), Measured("second", (), [second]), (0.0, 1))


def seed_variance(candidates: Sequence[Measured]) -> tuple[float, int]:
    """The variance of a trial's loss over seeds, pooled over candidates, and its degrees of freedom."""
    residuals = [np.array(each.losses) - each.loss for each in candidates]
    freedom = sum(len(values) - 1 for values in residuals)
    return float(sum((values**2).sum() for values in residuals)) / max(freedom, 1), freedom


def _aligned(trials: Sequence[Floats]) -> list[Floats]:
    """Tokens and nats, (blocks, 2), of each trial.

    Raises:
        ValueError: They do not validate on the same records.
    """
    first = trials[0]
    if any(trial.shape != first.shape or (trial[:, :2] != first[:, :2]).any() for trial in trials):
        raise ValueError("trials that validate on other records cannot be compared")
    return [trial[:, 1:] for trial in trials]
