"""A judge's verdicts beside people's decisions -> may the judge count, and the win rate that both
give together.

A score of a pair is 1 where the model in question wins it, 0 where it loses it, and 0.5 for a tie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slmctl.metrics.statistics import design_effect, drop_bound, effective_groups, t_quantile

FEWEST = 30  # people's pairs by which a judge may be admitted
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Agreement:
    """Agreement with people on the same pairs, of a judge and of two rules that read nothing.

    Attributes:
        right: Number on which the judge says what people said.
        same, longer: Numbers on which "always the same" and "always the longer answer" do.
        lead: Lower bound of the judge's share of such pairs less that of the better rule, -1 to 1.
    """

    pairs: int
    right: int
    same: int
    longer: int
    lead: float

    @property
    def is_admitted(self) -> bool:
        """True for a judge that surely agrees with people more
        often than both rules, on enough pairs.
        """
        return self.pairs >= FEWEST and self.lead > 0

    @classmethod
    def of(
        cls,
        people: Floats,
        judge: Floats,
        longer: Floats,
        groups: Ints,
        *,
        confidence: float = 0.95,
    ) -> Agreement:
        """The agreement of verdicts with people's decisions, all (n,) scores.

        Both rules must be beaten, so the chance that a judge which beats only one is admitted is at
        most 1 - confidence (Berger 1982, Technometrics 24).

        Args:
            longer: The scores of the rule that prefers the longer answer.
            groups: (n,) the number of each row's group.
            confidence: One-sided, of each of the two bounds.
        """
        right = judge == people
        says_same = people == 0.5
        says_longer = longer == people
        leads = [_lead(right, rule, groups, confidence) for rule in (says_same, says_longer)]
        return cls(
            pairs=len(people),
            right=int(right.sum()),
            same=int(says_same.sum()),
            longer=int(says_longer.sum()),
            lead=min(leads),
        )


def _lead(
    right: npt.NDArray[np.bool_], rival: npt.NDArray[np.bool_], groups: Ints, confidence: float
) -> float:
    """Lower bound of the share of `right` less that of `rival` on
    the same rows; see `drop_bound`.
    """
    if not len(right):
        return -1.0
    apart = right.astype(np.float64) - rival
    effect = design_effect(apart, groups)
    won = int((apart == 1).sum()) / effect
    lost = int((apart == -1).sum()) / effect
    return -drop_bound(lost, won, len(right) / effect, confidence)


@dataclass(frozen=True)
class CorrectedRate:
    """A win rate over all rows by prediction-powered inference: people's pairs correct the judge.

    Attributes:
        rate: Estimate, 0 to 1.
        weight: Weight of the judge, 0 for none to 1.
        centre, deviation, freedom: Of the t distribution whose quantiles are the bounds.
        worth: Number of pairs of people, without a judge, that would tell as much; never fewer than
            theirs.
    """

    rate: float
    weight: float
    centre: float
    deviation: float
    freedom: float
    worth: float

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        half = t_quantile((1 + confidence) / 2, self.freedom) * self.deviation
        return max(0.0, self.centre - half), min(1.0, self.centre + half)

    @classmethod
    def of(cls, people: Floats, judge: Floats, others: Floats, groups: Ints) -> CorrectedRate:
        """The rate that the scores of people and judge on n pairs, and of the judge on N others,
        give together.

        PPI++ (Angelopoulos, Duchi and Zrnic 2023, arXiv 2311.01453), which is efficient for win
        rates (arXiv 2601.05420) where corrections by the judge's error rates (arXiv 2511.21140) are
        not: mean(people) + weight (mean(others) - mean(judge)), with the weight of least variance.
        The variance is that of the groups' sums, so rows of a group may be among the n and the N;
        each sum is taken as the jackknife takes it. One pair that people alone have won and one
        that they alone have lost are added before, so that a few pairs on which all agree prove
        nothing (Bonett and Price 2012, Journal of Educational and Behavioral Statistics 37).

        Args:
            groups: (n + N,) the number of each row's group, people's pairs first.
        """
        n = len(people)
        count = int(groups.max()) + 3
        # an added pair weighs as much as one independent pair
        effect = design_effect(people, groups[:n])
        own = np.append(groups[:n], [count - 2, count - 1])
        weights = np.append(np.ones(n), [effect, effect])
        of_people = _sums(np.append(people, [1.0, 0.0]), own, weights, count)
        by_judge = _sums(np.append(judge, [0.0, 1.0]), own, weights, count)
        rest = _sums(others, groups[n:], np.ones(len(others)), count)
        apart = by_judge - rest
        best = float(of_people @ apart) / max(float(apart @ apart), 1e-12)
        weight = min(1.0, max(0.0, best))
        sizes = np.bincount(own, weights)[np.unique(own)]
        freedom = max(effective_groups(sizes.tolist()) - 2, 1.0)
        variance = float(((of_people - weight * apart) ** 2).sum()) * (freedom + 2) / freedom
        alone = float((of_people**2).sum()) * (freedom + 2) / freedom
        mean, by_judge_mean = float(people.mean()), float(judge.mean())
        others_mean = float(others.mean())
        added = 2 * effect / (n + 2 * effect)  # the share of the added pairs
        centre = (1 - added) * (mean - weight * by_judge_mean) + added * (0.5 - weight / 2)
        rate = mean + weight * (others_mean - by_judge_mean)
        worth = n * max(1.0, alone / variance)
        centre += weight * others_mean
        return cls(rate, weight, centre, math.sqrt(variance), freedom, worth)


def _sums(scores: Floats, groups: Ints, weights: Floats, count: int) -> Floats:
    """(count,) shares of each group in the deviation of a mean, as if
    the group were left out (Wolter 1985).
    """
    whole = weights.sum()
    share = np.bincount(groups, weights, count) / whole
    apart = scores - weights @ scores / whole
    sums = np.bincount(groups, weights * apart, count) / whole
    moved: Floats = sums / np.maximum(1 - share, 0.5)
    return moved


def preferred_longer(scores: Sequence[float] | Floats, longer: Floats) -> tuple[int, int]:
    """Number of decided pairs of which the longer answer won, and
    number of decided pairs of unlike lengths.
    """
    scores = np.asarray(scores)
    decided = (scores != 0.5) & (longer != 0.5)
    longer_won = decided & (scores == longer)
    return int(longer_won.sum()), int(decided.sum())
