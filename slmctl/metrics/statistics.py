"""Intervals and tests for shares and for figures of many rows, single and paired.

Plain arithmetic, tested against published values and scipy. Paired means that two models answered
the same rows, which is what makes small differences visible.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 2000  # of a bootstrap
POWER = 0.8  # chance with which a "smallest effect that could have been seen" is seen
FURTHEST = 100_000  # rows that a sign test looks ahead
_CELLS = 4_000_000  # resample weights held at a time


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


def error_bound(wrong: int, total: int, confidence: float = 0.95) -> float:
    """The exact one-sided upper bound of a share (Clopper and Pearson 1934); 1 when nothing was counted.

    Args:
        wrong: Rows that were seen to be wrong.
        total: Rows that were seen.
        confidence: Chance that the true share lies at or below the bound, at least.
    """
    if wrong >= total:
        return 1.0
    low, high = wrong / total, 1.0
    for _ in range(50):  # the chance of so few falls steadily as the supposed share grows
        middle = (low + high) / 2
        if chance_of_at_most(wrong, total, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def exact_interval(right: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share (Clopper and Pearson 1934); (0, 1) when nothing was counted."""
    side = (1 + confidence) / 2
    return 1 - error_bound(total - right, total, side), error_bound(right, total, side)


def chance_of_at_most(k: int, n: int, share: float) -> float:
    """Chance of at most k of n when each has this chance (binomial)."""
    counts = np.arange(1, k + 1, dtype=np.float64)
    ways = np.concatenate([[0.0], np.cumsum(np.log((n - counts + 1) / counts))])
    logs = ways + np.arange(k + 1) * math.log(share or 1e-300) + (n - np.arange(k + 1)) * math.log1p(-share)
    return float(np.exp(logs).sum())


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


def difference_interval(only_first: int, only_second: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Tango's two-sided interval of the second model's share of right answers less the first's."""
    side = (1 + confidence) / 2
    return -drop_bound(only_first, only_second, total, side), drop_bound(only_second, only_first, total, side)


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value that two models are right equally often (McNemar 1947, binomial form).

    Args:
        only_first: Rows that only the first model answered right.
        only_second: Rows that only the second model answered right.
    """
    n, least = only_first + only_second, min(only_first, only_second)
    if only_first == only_second:
        return 1.0
    chances = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(least + 1))
    return min(1.0, 2 * math.fsum(math.exp(chance - n * math.log(2)) for chance in chances))


@dataclass(frozen=True)
class SignTest:
    """The state of a comparison of two models on rows that are decided one after the other.

    Attributes:
        better: `first` or `second`; empty while nothing is decided.
        p_value: An upper bound of the chance of such a difference between equal models, whenever one looks.
        more: About how many more rows decide it at the share seen so far; 0 once decided, None where that share shows
            no difference that FURTHEST rows would show.
    """

    better: str
    p_value: float
    more: int | None


def sign_test_decision(only_first: int, only_second: int, neither: int = 0, *, confidence: float = 0.95) -> SignTest:
    """The better one of two models, by the sign test that may be looked at after every row.

    `mcnemar` holds its level for one look at a number of rows that was set before. Who looks after each row and stops
    at the first p-value below 0.05 decides between equal models far more often than that. Here the binomial likelihood
    of the rows is averaged over every share from 0 to 1 and divided by that of one half (Robbins 1970, Annals of
    Mathematical Statistics 41). Of equal models this ratio ever reaches 20 with a chance of 1 / 20 at most (Ville
    1939), so it can be read at any time and the wrong one is named with a chance below 1 - `confidence`.

    Args:
        only_first: Rows that only the first model answered right.
        only_second: Rows that only the second model answered right.
        neither: Rows that were decided and tell the two not apart: both right, or both wrong.
        confidence: 1 less the chance to ever decide between equal models.
    """
    evidence, needed = _log_evidence(only_first, only_second), -math.log(1 - confidence)
    p_value = min(1.0, math.exp(-evidence))
    if evidence >= needed:
        return SignTest("first" if only_first > only_second else "second", p_value, 0)
    n = only_first + only_second
    share = (max(only_first, only_second) + 1) / (n + 2)  # a few rows that agree by chance promise too much
    furthest = _log_evidence(share * FURTHEST, (1 - share) * FURTHEST)
    if only_first == only_second or n >= FURTHEST or furthest < needed:
        return SignTest("", p_value, None)
    low, high = n, FURTHEST
    while high - low > 1:
        middle = (low + high) // 2
        enough = _log_evidence(share * middle, (1 - share) * middle) >= needed
        low, high = (low, middle) if enough else (middle, high)
    return SignTest("", p_value, math.ceil((high - n) * (n + neither) / n))


def _log_evidence(first: float, second: float) -> float:
    """The log of a binomial likelihood averaged over every share, against that of one half."""
    n = first + second
    return math.lgamma(first + 1) + math.lgamma(second + 1) - math.lgamma(n + 2) + n * math.log(2)


def cohen_kappa(pairs: Sequence[tuple[str, str]]) -> float:
    """The agreement of two people on the same rows beyond chance (Cohen 1960), -1 to 1.

    Args:
        pairs: The answers of the first and of the second to each row.

    Returns:
        1 where they always agree; NaN for no rows, and where both always gave one and the same answer, from which
        nothing follows.
    """
    n = len(pairs)
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    by_chance = sum(count * second[answer] for answer, count in first.items()) / (n * n) if n else 1.0
    if by_chance == 1:
        return math.nan
    return (sum(a == b for a, b in pairs) / n - by_chance) / (1 - by_chance)


def detectable_share(discordant: int, total: int, confidence: float = 0.95, power: float = POWER) -> float:
    """The smallest true difference of two paired shares that so many rows would have shown.

    Connor's sample size for McNemar's test (1987, Biometrics 43), solved for the difference. The share
    of rows on which the two differ is taken as it was seen, but never below the difference itself.

    Args:
        discordant: Rows that exactly one of the two models answered right.
        total: Rows that both answered.
        confidence: 1 less the level of the two-sided test.
        power: Chance that the test finds a difference of that size.
    """
    if total == 0:
        return 1.0
    z, beta = NormalDist().inv_cdf((1 + confidence) / 2), NormalDist().inv_cdf(power)
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        differing = max(discordant / total, middle)
        needed = z * math.sqrt(differing) + beta * math.sqrt(max(differing - middle**2, 0.0))
        low, high = (low, middle) if math.sqrt(total) * middle >= needed else (middle, high)
    return high


def detectable(deviation: float, confidence: float = 0.95, power: float = POWER) -> float:
    """The smallest true difference that a two-sided test finds, given its standard deviation over resamples."""
    return (NormalDist().inv_cdf((1 + confidence) / 2) + NormalDist().inv_cdf(power)) * deviation


def t_quantile(share: float, freedom: float) -> float:
    """The value below which Student's t lies with a chance of `share`, 0.5 to 1 (Student 1908).

    With t = sqrt(freedom) tan(a) the density of the angle a is proportional to cos(a) ** (freedom - 1).
    """
    freedom = min(freedom, 1e5)  # above, the density is narrower than the steps below, and t is normal
    angles = np.linspace(0, math.pi / 2, 10_001)
    density = np.cos(angles) ** (freedom - 1)
    grown = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(float(np.interp(2 * share - 1, grown / grown[-1], angles)))


def holm(values: Sequence[float]) -> list[float]:
    """p-values of several tests, raised so that the chance of any false alarm stays at the level (Holm 1979)."""
    result, least = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=lambda k: values[k])):
        least = max(least, min(1.0, (len(values) - rank) * values[index]))
        result[index] = least
    return result


def resamples(n: int, *, count: int = RESAMPLES, seed: int = 0) -> Iterator[npt.NDArray[np.float32]]:
    """Draw `count` bootstrap resamples of n rows: how often each row is in each, some resamples at a time.

    The same seed gives the same resamples, so two models are always compared on the same ones.

    Yields:
        (some, n) float32; the first dimensions add up to `count`.
    """
    random = np.random.default_rng(seed)
    some = max(1, min(count, _CELLS // max(n, 1)))
    for begin in range(0, count, some):
        rows = min(some, count - begin)
        drawn = random.integers(0, n, (rows, n)) + np.arange(rows)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float32)


def percentiles(values: Floats, confidence: float = 0.95) -> tuple[float, float]:
    """The percentile interval of a figure from its bootstrap values (Efron and Tibshirani 1993, chapter 13)."""
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def bootstrap_p_value(differences: Floats) -> float:
    """Two-sided p-value of a difference of 0, from bootstrap values of the difference.

    It is 1 minus the confidence at which the percentile interval just reaches 0. Never 0: n resamples show no p-value
    below 2 / (1 + n) (Davison and Hinkley 1997, chapter 4).
    """
    below, above = int((differences <= 0).sum()), int((differences >= 0).sum())
    return min(1.0, 2 * (1 + min(below, above)) / (1 + len(differences)))
