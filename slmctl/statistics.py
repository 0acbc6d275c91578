"""Intervals for shares, single and paired. Plain arithmetic, tested against published values."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson(right: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a share (Wilson 1927).

    Returns:
        Lower and upper bound, 0 to 1; (0, 1) when nothing was counted.
    """
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = right / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def drop_bound(only_first: int, only_second: int, total: int, confidence: float = 0.95) -> float:
    """Upper bound of how much the second model's share of right answers lies below the first's.

    The score bound for the difference of two paired shares (Tango 1998, Statistics in Medicine 17),
    one-sided. It stays honest where the two never differ, which a bootstrap does not.

    Args:
        only_first: Rows that only the first model answered right.
        only_second: Rows that only the second model answered right.
        total: Rows that both answered.
        confidence: One-sided, 0.5 to 1.
    """
    if total == 0:
        return 1.0
    z = NormalDist().inv_cdf(confidence)
    low, high = (only_first - only_second) / total, 1.0
    for _ in range(60):  # the statistic falls steadily as the supposed drop grows
        middle = (low + high) / 2
        if _tango(only_first, only_second, total, middle) > -z:
            low = middle
        else:
            high = middle
    return high


def _tango(b: int, c: int, n: int, drop: float) -> float:
    """Tango's score statistic for the hypothesis that the paired difference is `drop`."""
    linear = -b - c + (2 * n - b + c) * drop
    constant = -c * drop * (1 - drop)
    q21 = (math.sqrt(max(linear * linear - 8 * n * constant, 0.0)) - linear) / (4 * n)
    variance = n * (2 * q21 + drop * (1 - drop))
    numerator = b - c - n * drop
    if variance <= 0:
        return 0.0 if numerator == 0 else math.copysign(math.inf, numerator)
    return numerator / math.sqrt(variance)
