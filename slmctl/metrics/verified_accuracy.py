"""Reviewed rows -> the accuracy of all traffic, with an interval.

A row that was drawn with probability p stands for 1 / p rows of the traffic (Horvitz and Thompson
1952); shares are ratios of such sums (Hajek 1971). Where all rows have the same p, the interval is
exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slmctl.metrics.statistics import exact_interval


@dataclass(frozen=True)
class WeightedShare:
    """The share of right answers in all traffic, estimated from rows that were drawn from it.

    Attributes:
        rows: Number of drawn rows.
        right: Number of right answers among them.
        share: Estimated share of right answers in all traffic, 0 to 1; NaN without rows.
        low, high: The 95 % interval of `share`; (0, 1) without rows.
        effective_rows: Number of rows of one probability that tell as much (Kish 1965).
    """

    rows: int
    right: int
    share: float
    low: float
    high: float
    effective_rows: int = 0


def weighted_share(right: Sequence[bool], probabilities: Sequence[float]) -> WeightedShare:
    """The share of right answers in the traffic that rows were drawn from at random.

    The interval is that of Clopper and Pearson (1934), exact where all rows were drawn with the
    same probability. Else it is computed for the effective sample size (Kish 1965; Korn and
    Graubard 1998, Survey Methodology 24), rounded so that it is not too narrow.

    `probabilities`: probability with which each row was drawn, above 0 and up to 1.
    """
    n, hits = len(right), sum(right)
    if n == 0:
        return WeightedShare(0, 0, math.nan, 0.0, 1.0)
    weights = 1 / np.array(probabilities, dtype=np.float64)
    if np.ptp(weights) < 1e-9 * weights[0]:
        return WeightedShare(n, hits, hits / n, *exact_interval(hits, n), n)
    total = weights.sum()
    share = float(weights @ np.array(right, dtype=np.float64) / total)
    independent = float(total**2 / (weights**2).sum())
    as_many = max(1, math.floor(independent + 1e-9))
    low, _ = exact_interval(math.floor(share * as_many), as_many)
    _, high = exact_interval(math.ceil(share * as_many), as_many)
    return WeightedShare(n, hits, share, low, high, as_many)
