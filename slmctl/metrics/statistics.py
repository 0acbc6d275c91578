"""Intervals and tests for shares and for figures of many rows, single and paired.

Plain arithmetic, tested against published values and scipy. Paired means that two models answered
the same rows, which is what makes small differences visible.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # as in answer_metrics
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

RESAMPLES = 2000  # of a bootstrap
POWER = 0.8  # chance with which the smallest difference that counts as detectable is seen
_CELLS = 4_000_000  # resample weights held at a time


def hashed_position(key: str) -> float:
    """A number between 0 and 1 that follows from a text alone; those of many texts are evenly spread."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8]) / 2**64


def wilson(right: float, total: float, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a share (Wilson 1927); (0, 1) when nothing was counted."""
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = right / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def error_bound(wrong: int, total: int, confidence: float = 0.95) -> float:
    """The exact one-sided upper bound of a share (Clopper and Pearson 1934); 1 when nothing was counted.

    The true share lies at or below the bound with at least the chance `confidence`.
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
    import numpy as np

    counts = np.arange(1, k + 1, dtype=np.float64)
    ways = np.concatenate([[0.0], np.cumsum(np.log((n - counts + 1) / counts))])
    logs = ways + np.arange(k + 1) * math.log(share or 1e-300) + (n - np.arange(k + 1)) * math.log1p(-share)
    return float(np.exp(logs).sum())


def batch_bound(wrong: int, tested: int, batch: int, confidence: float = 0.95) -> int:
    """The most wrong ones in a batch of rows that are drawn like the `tested` rows, of which `wrong` are wrong.

    Exact: with more wrong ones in the batch, so few of all would be among the tested rows with a chance of at most
    1 - confidence (hypergeometric; Thatcher 1964, Journal of the Royal Statistical Society B 26).
    """
    most = 0
    while most < batch and _drawn_at_most(wrong, tested, wrong + most + 1, tested + batch) > 1 - confidence:
        most += 1
    return most


def _drawn_at_most(k: int, n: int, wrong: int, total: int) -> float:
    """Chance that at most k of the wrong ones are among n rows that are drawn of `total` (hypergeometric)."""

    def ways(a: int, b: int) -> float:
        return math.lgamma(a + 1) - math.lgamma(b + 1) - math.lgamma(a - b + 1)

    counts = range(max(0, n - total + wrong), min(k, n, wrong) + 1)
    return math.fsum(math.exp(ways(wrong, j) + ways(total - wrong, n - j) - ways(total, n)) for j in counts)


def drop_bound(only_first: float, only_second: float, total: float, confidence: float = 0.95) -> float:
    """Upper bound of how much the second model's share of right answers lies below the first's.

    The score bound for the difference of two paired shares (Tango 1998, Statistics in Medicine 17),
    one-sided. It stays honest where the two never differ, which a bootstrap does not.

    Args:
        only_first, only_second: Rows that one of the models alone answered right, of `total` that both answered.
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


def _tango(b: float, c: float, n: float, drop: float) -> float:
    """Tango's score statistic for the hypothesis that the paired difference is `drop`."""
    linear = -b - c + (2 * n - b + c) * drop
    constant = -c * drop * (1 - drop)
    q21 = (math.sqrt(max(linear * linear - 8 * n * constant, 0.0)) - linear) / (4 * n)
    variance = n * (2 * q21 + drop * (1 - drop))
    numerator = b - c - n * drop
    if variance <= 0:
        return 0.0 if numerator == 0 else math.copysign(math.inf, numerator)
    return numerator / math.sqrt(variance)


def difference_interval(
    only_first: float, only_second: float, total: float, confidence: float = 0.95
) -> tuple[float, float]:
    """Tango's two-sided interval of the second model's share of right answers less the first's."""
    side = (1 + confidence) / 2
    return -drop_bound(only_first, only_second, total, side), drop_bound(only_second, only_first, total, side)


def mcnemar(only_first: int, only_second: int, effect: float = 1.0) -> float:
    """The exact two-sided p-value that two models are right equally often (McNemar 1947, binomial form).

    With a design effect the rows count as so many fewer, rounded to the safe side.
    """
    n = math.floor((only_first + only_second) / effect)
    least = math.ceil(min(only_first, only_second) / effect)
    if 2 * least >= n:
        return 1.0
    chances = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(least + 1))
    return min(1.0, 2 * math.fsum(math.exp(chance - n * math.log(2)) for chance in chances))


def detectable_share(discordant: float, total: float, confidence: float = 0.95) -> float:
    """The smallest true difference of two paired shares that so many rows would have shown.

    Connor's sample size for McNemar's test (1987, Biometrics 43), solved for the difference. The share
    of rows on which the two differ is taken as it was seen, but never below the difference itself.

    `discordant` rows are those that exactly one of the two models answered right; `confidence` is 1 less the level of
    the two-sided test.
    """
    if total == 0:
        return 1.0
    z, beta = NormalDist().inv_cdf((1 + confidence) / 2), NormalDist().inv_cdf(POWER)
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        differing = max(discordant / total, middle)
        needed = z * math.sqrt(differing) + beta * math.sqrt(max(differing - middle**2, 0.0))
        low, high = (low, middle) if math.sqrt(total) * middle >= needed else (middle, high)
    return high


def detectable(deviation: float, confidence: float = 0.95) -> float:
    """The smallest true difference that a two-sided test finds, given its standard deviation over resamples."""
    return (NormalDist().inv_cdf((1 + confidence) / 2) + NormalDist().inv_cdf(POWER)) * deviation


def t_quantile(share: float, freedom: float) -> float:
    """The value below which Student's t lies with a chance of `share`, 0.5 to 1 (Student 1908).

    With t = sqrt(freedom) tan(a) the density of the angle a is proportional to cos(a) ** (freedom - 1).
    """
    import numpy as np

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


def design_effect(values: Floats, groups: npt.NDArray[np.int64]) -> float:
    """The variance of a mean, in multiples of that of independent rows, where rows of one group are alike; at least 1.

    Source: Kish 1965, Survey Sampling.

    Where the values do not differ, nothing tells how alike they are: they are taken to be wholly so.

    Args:
        values: (n,) of the rows.
        groups: (n,) the number of each row's group.
    """
    import numpy as np

    sizes = np.bincount(groups)
    count = int((sizes > 0).sum())
    if count == len(values):
        return 1.0
    apart = values - values.mean()
    spread = float((apart**2).sum())
    if spread < 1e-12 or count < 2:
        return float((sizes**2).sum() / len(values))
    return max(1.0, count / (count - 1) * float((np.bincount(groups, apart) ** 2).sum()) / spread)


def resamples(n: int, *, count: int = RESAMPLES, seed: int = 0) -> Iterator[npt.NDArray[np.float32]]:
    """Draw `count` bootstrap resamples of n rows: how often each row is in each, some resamples at a time.

    The same seed gives the same resamples, so two models are always compared on the same ones.

    Yields:
        (some, n) float32; the first dimensions add up to `count`.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    some = max(1, min(count, _CELLS // max(n, 1)))
    for begin in range(0, count, some):
        rows = min(some, count - begin)
        drawn = random.integers(0, n, (rows, n)) + np.arange(rows)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float32)


def percentiles(values: Floats, confidence: float = 0.95) -> tuple[float, float]:
    """The percentile interval of a figure from its bootstrap values (Efron and Tibshirani 1993, chapter 13)."""
    import numpy as np

    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def bootstrap_p_value(differences: Floats) -> float:
    """Two-sided p-value of a difference of 0, from bootstrap values of the difference.

    It is 1 minus the confidence at which the percentile interval just reaches 0. Never 0: n resamples show no p-value
    below 2 / (1 + n) (Davison and Hinkley 1997, chapter 4).
    """
    below, above = int((differences <= 0).sum()), int((differences >= 0).sum())
    return min(1.0, 2 * (1 + min(below, above)) / (1 + len(differences)))
