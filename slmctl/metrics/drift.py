"""A stream of values -> the place where it stopped being like its beginning, with a bounded rate of false alarms.

Three steps, each exact where the values are exchangeable (drawn one like the other, in whatever way values spread):

1. The rank of each value among all that came before it, ties broken by chance, is a p-value, and the p-values are
   independent and uniform (Vovk, Gammerman and Shafer 2005, "Algorithmic Learning in a Random World", chapter 2).
   So nothing about the usual values needs to be known, and no margin is lost on estimating it.
2. A bet pays `times` its stake where a p-value lies in a tail, and takes some of it elsewhere, so that on average it
   pays 1. Its capital grows where values of that tail came to be more frequent, or rarer.
3. A bet is opened anew at K places a month (STARTS, or every APART values where that is more often), and the capital of
   all that are open is added up: an e-detector of Shiryaev-Roberts' kind (Shin, Ramdas and Rinaldo 2022, "E-detectors";
   with ranks: Vovk et al. 2021, "Retrain or not retrain"). While nothing changes, the expected sum at any moment is at
   most the number of bets that were opened.

So by Markov's inequality for the stopped sum, a sum of K / `level` is reached within a month of unchanged traffic with
a chance of at most `level`, and within k months of at most k x `level`; the mean time to a false alarm is at least
1 / `level` months. Several streams that share a level keep it together (union bound), and so do several bets in one
stream, whose sums are averaged. Traffic whose values depend on the hour or the weekday is not exchangeable: there an
alarm is about that, too, and the caller asks for a change of a size that matters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FALSE_ALARMS = 0.05  # chance of a false alarm in a month of unchanged traffic, of all streams together
STARTS = 60  # places a month at which bets are opened: more cost evidence, fewer find a change later
APART = 200  # values between two such places at most, so that busy traffic is not looked at too late
REFERENCE = 500  # values that come first and on which nothing is bet, since ranks among few say little
_BLOCK = 512  # values that are ranked among each other at once
_SEED = 0  # of the chance that breaks ties: the same values give the same alarms


@dataclass(frozen=True)
class Bet:
    """A bet that values of one tail became `times` as frequent.

    Attributes:
        tail: `low` bets on small values, `high` on large ones.
        share: Of the usual values, those in the tail, 0 to 1.
        times: Their factor; below 1 where they become rarer.
    """

    tail: Literal["low", "high"]
    share: float
    times: float

    def log_payoffs(self, p_values: Floats) -> Floats:
        """The log of the factor by which each p-value changes the capital; the factors of a uniform one average 1."""
        hits = p_values <= self.share if self.tail == "low" else p_values > 1 - self.share
        return np.where(hits, math.log(self.times), math.log((1 - self.share * self.times) / (1 - self.share)))


@dataclass(frozen=True)
class Change:
    """A change that was found.

    Attributes:
        index: Of the value at which there was evidence enough.
        since: Of the first value of the bet that gained most: about where the change began.
        bet: The bet that gained most.
    """

    index: int
    since: int
    bet: Bet


@dataclass(frozen=True)
class Course:
    """The evidence for a change of one stream, after each value.

    Attributes:
        evidence: (n,) log of the mean sum of all bets over the sum at which there is an alarm; 0 and more is an alarm.
        change: The first alarm; None where there was none.
    """

    evidence: Floats
    change: Change | None

    @property
    def stands(self) -> bool:
        """True where the last value still leaves evidence enough."""
        return self.change is not None and bool(self.evidence[-1] >= 0)


def bets(tails: Sequence[Literal["low", "high"]], shares: Sequence[float], times: Sequence[float]) -> tuple[Bet, ...]:
    """Every bet of these tails, shares and factors that always leaves some capital."""
    return tuple(Bet(*each) for each in product(tails, shares, times) if each[1] * each[2] <= 0.9)


LOWER = bets(("low",), (0.01, 0.03, 0.1, 0.3), (1.3, 1.8, 3.0))
HIGHER = bets(("high",), (0.01, 0.03, 0.1, 0.3), (1.3, 1.8, 3.0))
EITHER = LOWER + HIGHER
# Of something that is there or not, such as one label: more frequent or rarer, however frequent it was.
PRESENT = bets(("high",), tuple(2.0**-k for k in range(1, 9)), (0.3, 1.4, 2.5, 5.0))


def p_values(values: Floats) -> Floats:
    """The rank of each value among itself and those before it, over their number; ties are broken by chance.

    Returns:
        (n,) from 0 to 1; of exchangeable values independent and uniform.
    """
    below, equal = _counts_of_bits(values) if np.isin(values, (0.0, 1.0)).all() else _counts(values)
    chance = np.random.default_rng(_SEED).random(len(values))
    return (below + chance * equal) / np.arange(1, len(values) + 1)


def _counts_of_bits(values: Floats) -> tuple[Floats, Floats]:
    """Of each 0 or 1, the number of smaller values before it, and of equal ones up to it."""
    ones = np.cumsum(values)
    zeros = np.arange(1, len(values) + 1) - ones
    return np.where(values > 0, zeros, 0.0), np.where(values > 0, ones, zeros)


def _counts(values: Floats) -> tuple[Floats, Floats]:
    """Of each value, the number of smaller values before it, and of equal ones up to it."""
    n = len(values)
    below, equal = np.zeros(n), np.ones(n)  # a value is equal to itself
    seen = np.empty(0)
    for begin in range(0, n, _BLOCK):
        part = values[begin : begin + _BLOCK]
        here, earlier = slice(begin, begin + len(part)), np.tri(len(part), k=-1, dtype=bool)
        first = np.searchsorted(seen, part, "left")
        below[here] = first + ((part[None] < part[:, None]) & earlier).sum(axis=1)
        equal[here] += np.searchsorted(seen, part, "right") - first
        equal[here] += ((part[None] == part[:, None]) & earlier).sum(axis=1)
        seen = np.sort(np.concatenate([seen, part]), kind="stable")  # merges two runs
    return below, equal


def course(values: Floats, kinds: Sequence[Bet], *, monthly: float, level: float, first: int = REFERENCE) -> Course:
    """The evidence for a change of a stream, and the first alarm.

    Args:
        values: (n,) in the order of time.
        kinds: Bets, with equal shares of the stake.
        monthly: Number of values in a month, about.
        level: Largest chance of an alarm in a month without a change, 0 to 1.
        first: Number of values that are ranked and not bet on.
    """
    n = len(values)
    if n <= first:
        return Course(np.full(n, -np.inf), None)
    ranked = p_values(values)[first:]
    apart = min(APART, max(1, round(monthly / STARTS)))
    starts = np.arange(0, n - first, apart)
    opened = np.searchsorted(starts, np.arange(n - first), "right") - 1  # (n - first,) the latest start of each value
    total = np.full(n - first, -np.inf)
    for bet in kinds:
        total = np.logaddexp(total, _log_sum(bet.log_payoffs(ranked), starts, opened))
    alarm = math.log(len(kinds)) + math.log(max(STARTS, monthly / apart) / level)
    evidence = np.concatenate([np.full(first, -np.inf), total - alarm])
    crossed = np.flatnonzero(evidence >= 0)
    return Course(evidence, _change(ranked, kinds, starts, int(crossed[0]), first) if len(crossed) else None)


def _log_sum(payoffs: Floats, starts: npt.NDArray[np.int64], opened: npt.NDArray[np.int64]) -> Floats:
    """After each value the log of the capital of all bets opened so far, with a stake of 1 each."""
    grown = np.cumsum(payoffs)
    before = np.concatenate([[0.0], grown])[starts]
    return grown + np.logaddexp.accumulate(-before)[opened]


def _change(ranked: Floats, kinds: Sequence[Bet], starts: npt.NDArray[np.int64], index: int, first: int) -> Change:
    """The bet, and its start, that gained most up to an alarm."""
    gains = []
    for bet in kinds:
        grown = np.concatenate([[0.0], np.cumsum(bet.log_payoffs(ranked[: index - first + 1]))])
        open_ = starts[starts <= index - first]
        start = int(open_[np.argmin(grown[open_])])
        gains.append((float(grown[-1] - grown[start]), start, bet))
    _, start, bet = max(gains, key=lambda gain: gain[0])
    return Change(index, start + first, bet)
