"""Confidence intervals and tests for shares and for bootstrapped metrics, single and paired.

Plain arithmetic, tested against published values and scipy. Paired means that two models answered
the same rows, so smaller differences are significant.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # as in answer_metrics
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

RESAMPLES = 2000  # of a bootstrap
POWER = 0.8  # chance that a test finds a difference which counts as detectable
_CELLS = 4_000_000  # resample weights held at a time


def hashed_position(key: str) -> float:
    """A uniform pseudo-random number, 0 to 1, that depends on the text alone."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8]) / 2**64


def wilson(right: float, total: float, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a share (Wilson 1927); (0, 1) when nothing was counted."""
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = right / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    variance = share * (1 - share) / total + spread / (4 * total)
    half = z / (1 + spread) * math.sqrt(variance)
    return max(0.0, centre - half), min(1.0, centre + half)


def error_bound(wrong: int, total: int, confidence: float = 0.95) -> float:
    """The exact one-sided upper bound of a share (Clopper and Pearson 1934); 1 when nothing was
    counted.

    The true share is at or below the bound with a probability of at least `confidence`.
    """
    if wrong >= total:
        return 1.0
    low, high = wrong / total, 1.0
    for _ in range(50):  # bisection: the chance of at most `wrong` falls as the share grows
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


def thousand(parts: Sequence[tuple[float, float, float, float]]) -> tuple[float, float, float]:
    """The cost of a thousand questions, and its interval, from (price, share, low, high) of each
    kind of outcome.

    The interval is that of a sum by the intervals of its parts (Zou and Donner 2008, Statistics in
    Medicine 27).
    """
    cost = math.fsum(price * share for price, share, _, _ in parts)
    below = math.hypot(*(price * (share - low) for price, share, low, _ in parts))
    above = math.hypot(*(price * (high - share) for price, share, _, high in parts))
    return 1000 * cost, 1000 * max(cost - below, 0.0), 1000 * (cost + above)


def chance_of_at_most(k: int, n: int, share: float) -> float:
    """Binomial probability of at most k successes of n, each with the chance `share`."""
    import numpy as np

    counts = np.arange(1, k + 1, dtype=np.float64)
    steps = np.log((n - counts + 1) / counts)
    ways = np.concatenate([[0.0], np.cumsum(steps)])
    successes = np.arange(k + 1)
    logs = ways + successes * math.log(share or 1e-300) + (n - successes) * math.log1p(-share)
    return float(np.exp(logs).sum())


def batch_bound(wrong: int, tested: int, batch: int, confidence: float = 0.95) -> int:
    """Upper bound of the number of wrong rows in a batch, from `tested` rows drawn like it, of
    which `wrong` are wrong.

    Exact: if the batch had more, at most `wrong` of the tested rows would be wrong with a chance of
    no more than 1 - confidence (hypergeometric; Thatcher 1964, Journal of the Royal Statistical
    Society B 26).
    """
    for most in range(batch):
        chance = _drawn_at_most(wrong, tested, wrong + most + 1, tested + batch)
        if chance <= 1 - confidence:
            return most
    return batch


def _drawn_at_most(k: int, n: int, wrong: int, total: int) -> float:
    """Hypergeometric probability of at most k wrong rows among n that are
    drawn from `total`, `wrong` of them wrong.
    """

    def ways(a: int, b: int) -> float:
        return math.lgamma(a + 1) - math.lgamma(b + 1) - math.lgamma(a - b + 1)

    counts = range(max(0, n - total + wrong), min(k, n, wrong) + 1)
    logs = (ways(wrong, j) + ways(total - wrong, n - j) - ways(total, n) for j in counts)
    return math.fsum(map(math.exp, logs))


def drop_bound(
    only_first: float, only_second: float, total: float, confidence: float = 0.95
) -> float:
    """Upper bound of (share of right answers of the first model) - (share of the second).

    The one-sided score bound for the difference of two paired shares (Tango 1998, Statistics in
    Medicine 17). It is valid also where the two never differ; there a bootstrap would give 0.

    Args:
        only_first, only_second: Rows that exactly one of the models answered right, of `total` that
            both answered.
        confidence: One-sided, 0.5 to 1.
    """
    if total == 0:
        return 1.0
    z = NormalDist().inv_cdf(confidence)
    low, high = (only_first - only_second) / total, 1.0
    for _ in range(60):  # bisection: the statistic falls as the drop grows
        middle = (low + high) / 2
        if _tango(only_first, only_second, total, middle) > -z:
            low = middle
        else:
            high = middle
    return high


def _tango(b: float, c: float, n: float, drop: float) -> float:
    """Tango's score statistic of the null hypothesis that the drop is
    `drop`; b, c, n: the counts of `drop_bound`.
    """
    linear = -b - c + (2 * n - b + c) * drop
    constant = -c * drop * (1 - drop)
    discriminant = max(linear * linear - 8 * n * constant, 0.0)
    q21 = (math.sqrt(discriminant) - linear) / (4 * n)
    variance = n * (2 * q21 + drop * (1 - drop))
    numerator = b - c - n * drop
    if variance <= 0:
        return 0.0 if numerator == 0 else math.copysign(math.inf, numerator)
    return numerator / math.sqrt(variance)


def difference_interval(
    only_first: float, only_second: float, total: float, confidence: float = 0.95
) -> tuple[float, float]:
    """Tango's two-sided interval of (share of right answers of the
    second model) - (share of the first).
    """
    side = (1 + confidence) / 2
    low = -drop_bound(only_first, only_second, total, side)
    high = drop_bound(only_second, only_first, total, side)
    return low, high


def mcnemar(only_first: int, only_second: int, effect: float = 1.0) -> float:
    """Exact two-sided p-value of the null hypothesis that two models are right equally often
    (McNemar 1947, binomial).

    Counts are divided by the design effect `effect`, rounded so that p is not too small.
    """
    n = math.floor((only_first + only_second) / effect)
    least = math.ceil(min(only_first, only_second) / effect)
    if 2 * least >= n:
        return 1.0
    chances = []
    for k in range(least + 1):
        ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        chances.append(math.exp(ways - n * math.log(2)))
    return min(1.0, 2 * math.fsum(chances))


def detectable_share(discordant: float, total: float, confidence: float = 0.95) -> float:
    """The smallest true difference of two paired shares that a test on `total` rows finds with the
    chance POWER.

    Connor's sample size for McNemar's test (1987, Biometrics 43), solved for the difference. The
    share of discordant rows is the observed one, but at least the difference itself.

    `discordant`: rows that exactly one of the two models answered right; `confidence`: 1 - level of
    the two-sided test.
    """
    if total == 0:
        return 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    beta = NormalDist().inv_cdf(POWER)
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        differing = max(discordant / total, middle)
        variance = max(differing - middle**2, 0.0)
        needed = z * math.sqrt(differing) + beta * math.sqrt(variance)
        if math.sqrt(total) * middle >= needed:
            high = middle
        else:
            low = middle
    return high


def detectable(deviation: float, confidence: float = 0.95) -> float:
    """The smallest true difference that a two-sided test finds with the
    chance POWER, from its bootstrap deviation.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    beta = NormalDist().inv_cdf(POWER)
    return (z + beta) * deviation


def t_quantile(share: float, freedom: float) -> float:
    """Quantile of Student's t with `freedom` degrees of freedom at `share`, 0.5 to 1 (Student
    1908).

    With t = sqrt(freedom) tan(a) the density of the angle a is proportional to cos(a) ** (freedom -
    1).
    """
    import numpy as np

    # above, the density is narrower than the steps below, and t is normal
    freedom = min(freedom, 1e5)
    angles = np.linspace(0, math.pi / 2, 10_001)
    density = np.cos(angles) ** (freedom - 1)
    areas = (density[1:] + density[:-1]) / 2
    grown = np.concatenate([[0.0], np.cumsum(areas)])
    angle = np.interp(2 * share - 1, grown / grown[-1], angles)
    return math.sqrt(freedom) * math.tan(float(angle))


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted for multiple tests by Holm's method (1979), in the order of `values`."""
    result = [0.0] * len(values)
    least = 0.0
    rising = sorted(range(len(values)), key=lambda k: values[k])
    for rank, index in enumerate(rising):
        adjusted = (len(values) - rank) * values[index]
        least = max(least, min(1.0, adjusted))
        result[index] = least
    return result


def effective_groups(sizes: Collection[int]) -> float:
    """Number of groups of equal size that tell as much as groups of these
    `sizes`: (sum n)^2 / sum n^2 (Kish 1965).
    """
    return float(sum(sizes) ** 2 / sum(size * size for size in sizes))


def independent_rows(groups: float) -> float:
    """Number of independent rows that tell as much as `groups` effective groups of rows that are
    all alike.

    So few groups leave their variance uncertain: Student's t with one degree of freedom less stands
    for the normal quantile (Korn and Graubard 1998, Survey Methodology 24).
    """
    side = (1 + 0.95) / 2
    z = NormalDist().inv_cdf(side)
    t = t_quantile(side, max(groups - 1, 1))
    return groups * (z / t) ** 2


def design_effect(values: Floats, groups: npt.NDArray[np.int64]) -> float:
    """Number of grouped rows that tell as much about their mean as one independent row; at least 1.

    `jackknife_effect`, widened since groups are few. Where all values are equal, the correlation
    within groups is unknown and is assumed to be 1.

    Args:
        values: (n,) of the rows.
        groups: (n,) the number of each row's group.
    """
    import numpy as np

    sizes = np.bincount(groups)
    count = int((sizes > 0).sum())
    if count == len(values):
        return 1.0
    alike = effective_groups(sizes.tolist())
    if count < 2 or float(np.ptp(values)) < 1e-9:
        return len(values) / independent_rows(alike)
    return jackknife_effect(values, groups) * alike / independent_rows(alike)


def jackknife_effect(values: Floats, groups: npt.NDArray[np.int64]) -> float:
    """Variance of a mean over grouped rows, divided by that over independent rows; at least 1, also
    for equal values.

    The delete-a-group jackknife (Wolter 1985, Introduction to Variance Estimation), which holds
    where one group is much larger than the others.

    Args: As `design_effect`.
    """
    import numpy as np

    sizes = np.bincount(groups)
    present = sizes > 0
    shares = sizes[present] / len(values)
    count = len(shares)
    apart = values - values.mean()
    spread = float((apart**2).sum())
    if spread < 1e-12 or count < 2:
        return 1.0
    moved = np.bincount(groups, apart)[present] / (1 - shares)
    variance = (count - 1) / count * float((moved**2).sum())
    return max(1.0, variance / spread)


def resamples(
    n: int, *, count: int = RESAMPLES, seed: int = 0
) -> Iterator[npt.NDArray[np.float32]]:
    """Draw `count` bootstrap resamples of n rows, as the number of times that each row is drawn.

    The same seed gives the same resamples, so two models are always compared on the same ones.

    Yields:
        (some, n) float32, blocks of resamples that add up to `count`.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    some = max(1, min(count, _CELLS // max(n, 1)))
    for begin in range(0, count, some):
        rows = min(some, count - begin)
        begins = np.arange(rows)[:, None] * n
        drawn = random.integers(0, n, (rows, n)) + begins
        counts = np.bincount(drawn.ravel(), minlength=rows * n)
        yield counts.reshape(rows, n).astype(np.float32)


def percentiles(values: Floats, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval (low, high) of a metric's bootstrap values
    (Efron and Tibshirani 1993, chapter 13).
    """
    import numpy as np

    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def bootstrap_p_value(differences: Floats) -> float:
    """Two-sided p-value of the null hypothesis of no difference, from bootstrap values of the
    difference.

    1 minus the confidence at which the percentile interval just reaches 0, and at least 2 / (1 + n)
    for n resamples (Davison and Hinkley 1997, chapter 4).
    """
    below = int((differences <= 0).sum())
    above = int((differences >= 0).sum())
    return min(1.0, 2 * (1 + min(below, above)) / (1 + len(differences)))
