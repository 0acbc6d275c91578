"""Validation losses of trials -> a verdict on each candidate, and the one that replaces the current settings, if any.

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

CONFIDENCE = 0.95  # that no candidate replaces the current settings unless it is truly better
MIN_RECORDS = 20  # validation records; fewer cannot distinguish two trainings


@dataclass(frozen=True)
class Measured:
    """The trials of one candidate.

    Attributes:
        cost: Sort key of candidates, the cheapest first.
        blocks: An array for each seed, (blocks, 3): records, the weight of their answer tokens, and nats of a
            block of validation records.
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
        mean: Positive where the second candidate is better.
        error: Standard error of `mean` over records and seeds; infinite where it cannot be estimated.
        freedom: Degrees of freedom of `error`.
    """

    mean: float
    error: float
    freedom: float

    def bound(self, confidence: float) -> float:
        """One-sided lower confidence bound of the gain."""
        if not math.isfinite(self.error):
            return -math.inf
        return self.mean - t_quantile(confidence, self.freedom) * self.error


@dataclass(frozen=True)
class Verdict:
    """A candidate compared with the current settings.

    Attributes:
        gain: Gain over the current settings.
        bound: Lower bound of `gain`, with CONFIDENCE over all candidates together.
        near: True within one standard error of the best candidate.
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
    """The chosen candidate: the incumbent (the current settings), unless another is better by more than chance."""

    chosen: Measured
    incumbent: Measured
    verdicts: Sequence[Verdict]


def choose(incumbent: Measured, challengers: Sequence[Measured]) -> TrialChoice:
    """The cheapest challenger that beats the incumbent and is within one standard error of the best of these.

    The best of many equal candidates looks better than it is. So a challenger beats the incumbent only if the lower
    bound of its gain is above 0 with CONFIDENCE over all challengers together (Bonferroni), which is always more than
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
    """Gain of one training over another on the same validation records; its error does not include seeds.

    Args:
        first, second: Blocks of each training, (blocks, 3), as in `Measured`.
    """
    return gain(Measured("first", (), [first]), Measured("second", (), [second]), (0.0, 1))


def seed_variance(candidates: Sequence[Measured]) -> tuple[float, int]:
    """Returns (variance of a trial's loss over seeds, pooled over candidates; its degrees of freedom)."""
    residuals = [np.array(each.losses) - each.loss for each in candidates]
    freedom = sum(len(values) - 1 for values in residuals)
    return float(sum((values**2).sum() for values in residuals)) / max(freedom, 1), freedom


def _aligned(trials: Sequence[Floats]) -> list[Floats]:
    """Weight of the answer tokens, and nats, of each trial, (blocks, 2).

    Raises:
        ValueError: The trials do not validate on the same records.
    """
    first = trials[0]
    if any(trial.shape != first.shape or (trial[:, :2] != first[:, :2]).any() for trial in trials):
        raise ValueError("trials that validate on other records cannot be compared")
    return [trial[:, 1:] for trial in trials]
