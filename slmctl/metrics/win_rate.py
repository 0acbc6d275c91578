"""Judged pairs of two models -> win rate, its interval, the sign test, and the number of pairs that
are still needed.

A person saw two answers to one row and preferred one of them (decided), or found them the same or
both bad (a tie).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from slmctl.metrics.statistics import error_bound, mcnemar

MOST_MORE = 1000  # further pairs, above which no number is named


@dataclass(frozen=True)
class WinRate:
    """Counts of judged pairs: won and lost by the model in question, and ties.

    `effect`: the design effect, by which all counts are divided, since rows of one group are alike.
    """

    won: int
    lost: int
    ties: int
    effect: float = 1.0

    @property
    def pairs(self) -> int:
        return self.won + self.lost + self.ties

    @property
    def rate(self) -> float:
        """Share of pairs that are won, 0 to 1; a tie counts as half. 0.5 without pairs."""
        if not self.pairs:
            return 0.5
        return (self.won + self.ties / 2) / self.pairs

    @property
    def p(self) -> float:
        """p-value of the sign test (Dixon and Mood 1946): both are
        preferred equally often. Ties are left out.
        """
        return mcnemar(self.lost, self.won, self.effect)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Interval of the win rate, which leaves out 0.5 exactly where p is at most 1 - confidence.

        The rate is 0.5 + d (w - 0.5), with w the share of decided pairs that are won and d the
        share of pairs that are decided. Each end is that of the exact intervals of w and d (Clopper
        and Pearson 1934) which is farther out.
        """
        side = (1 + confidence) / 2
        decided = math.floor((self.won + self.lost) / self.effect)
        pairs = math.floor(self.pairs / self.effect)

        def most(count: int, total: int) -> float:
            return error_bound(math.ceil(count / self.effect), total, side)

        often = most(self.won + self.lost, pairs)
        seldom = 1 - most(self.ties, pairs)
        low, high = 0.5 - most(self.lost, decided), most(self.won, decided) - 0.5
        low *= seldom if low > 0 else often
        high *= often if high > 0 else seldom
        return 0.5 + low, 0.5 + high

    def more(self, level: float = 0.05) -> int | None:
        """Number of further pairs, judged in the same proportions, after which p is at most
        `level`; 0 if it is now.

        None for more than MOST_MORE, and where as many pairs are won as lost.
        """
        fewer, others = sorted((self.won, self.lost))
        if fewer == others:
            return None
        for more in range(MOST_MORE + 1):
            grown = (self.pairs + more) / self.pairs
            p = mcnemar(math.ceil(fewer * grown), math.floor(others * grown), self.effect)
            if p <= level:
                return more
        return None
