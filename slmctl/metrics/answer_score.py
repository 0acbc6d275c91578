"""Answers with signals -> a score of each answer: a logistic regression, and P(correct) over it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slmctl.config import CalibrateConfig
from slmctl.errors import GateError
from slmctl.inference.escalation_policy import Knots, linear
from slmctl.metrics.statistics import hashed_position

# share of the rows that fit the score; the others, held out from the fit, test the thresholds
FIT_SHARE = 0.3
RIDGE = 1.0  # L2 penalty of the weights, as strong as one row

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Groups = npt.NDArray[np.int64]
Labels = npt.NDArray[np.str_]


@dataclass(frozen=True)
class CalibrationRows:
    """Answers to n calibration rows.

    Attributes:
        names: Names of the k signals.
        signals: (n, k), see `escalation_policy.signals`.
        right: (n,) true where the answer is right.
        outside: (n,) true where the reference answer is the out-of-scope label.
        says_outside: (n,) true where the answer is the out-of-scope label; such answers are never
            kept.
        fits: (n,) true for rows that fit the score; the others test thresholds.
        groups: (n,) the number of each row's group, which lies as a whole on one side of `fits`;
            None without groups.
        dear: (n,) the reference label where it has a cost of its own, else ''; None where no label
            has one.
    """

    names: tuple[str, ...]
    signals: Floats
    right: Mask
    outside: Mask
    says_outside: Mask
    fits: Mask
    groups: Groups | None = None
    dear: Labels | None = None

    def only(self, mask: Mask) -> CalibrationRows:
        fields = dict(vars(self))
        for name, value in fields.items():
            if isinstance(value, np.ndarray):
                fields[name] = value[mask]
        return CalibrationRows(**fields)

    @property
    def good(self) -> Mask:
        """(n,) true where the answer is right to keep, which one
        to an out-of-scope row never is.
        """
        return self.right & ~self.outside

    def losses(self, config: CalibrateConfig) -> Floats:
        """(n,) cost of a kept answer to each row, as a multiple of
        `wrong` of the costs: 0 where it is right.
        """
        bad = ~self.good
        losses = bad.astype(np.float64)
        if config.costs is None or self.dear is None:
            return losses
        for label, cost in config.costs.label.items():
            losses[bad & (self.dear == label)] = cost / config.costs.wrong
        return losses

    def scores(self, weights: dict[str, float], bias: float) -> Floats:
        """(n,) linear scores."""
        rows = (dict(zip(self.names, row, strict=True)) for row in self.signals.tolist())
        return np.array([linear(weights, bias, signals) for signals in rows])


def weights_of(rows: CalibrationRows) -> tuple[dict[str, float], float]:
    """The score's weights by signal, and its bias, from the rows of `fits`.

    Raises:
        GateError: There are none, as where rows are of few groups.
    """
    if not rows.fits.any():
        count = len(np.unique(rows.groups)) if rows.groups is not None else len(rows.fits)
        text = f"the rows are of {count} groups, of which none fits the score"
        raise GateError(text, reason="max_error", hint="rows of more groups")
    weights, bias = logistic(rows.signals[rows.fits], rows.good[rows.fits])
    return dict(zip(rows.names, weights, strict=True)), bias


def least_score(
    scores: Floats, rows: CalibrationRows, config: CalibrateConfig, least_p: float
) -> float:
    """Least score of an answer that is right with a chance of `least_p`,
    and cheaper to keep than to escalate.
    """
    floor = floor_of(isotonic(scores, rows.good), least_p)
    if config.unit_costs is None or not len(scores):
        return floor
    escalated, wrong = config.unit_costs[:2]
    gains = isotonic(scores, 1 - rows.losses(config))
    return max(floor, floor_of(gains, 1 - escalated / wrong))


def logistic(x: Floats, good: Mask) -> tuple[list[float], float]:
    """Weights (k,) and bias of a logistic regression with a slight L2
    penalty, by Newton's method; x: (n, k).
    """
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1.0)  # a constant signal carries no information
    z = np.hstack([(x - mean) / scale, np.ones((len(x), 1))])
    pull = np.full(z.shape[1], RIDGE)
    w = np.zeros(z.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(z @ w, -30, 30)))
        gradient = z.T @ (p - good) + pull * w
        weighted = z * (p * (1 - p))[:, None]
        step = np.linalg.solve(weighted.T @ z + np.diag(pull), gradient)
        longest = float(np.abs(step).max())
        # bounded, for classes that are separable
        w -= step * min(1.0, 2.0 / max(longest, 1e-12))
        if longest < 1e-8:
            break
    weights = w[:-1] / scale
    bias = float(w[-1] - weights @ mean)
    return weights.tolist(), bias


def isotonic(scores: Floats, good: Mask | Floats) -> Knots:
    """Isotonic regression of correctness on the score: pool adjacent violators (Ayer et al. 1955).

    Returns:
        (mean score, P(correct)) of each block, both rising, to be interpolated.
    """
    levels, places = np.unique(scores, return_inverse=True)  # rows with equal scores are one block
    counts = np.bincount(places)
    columns = [counts, np.bincount(places, good), counts * levels]
    blocks: list[list[float]] = []  # rows, right rows, sum of scores
    for block in np.stack(columns, axis=1).tolist():
        # a block that is right as seldom as the one before becomes part of it
        while blocks and blocks[-1][1] * block[0] >= block[1] * blocks[-1][0]:
            before = blocks.pop()
            block = [a + b for a, b in zip(before, block, strict=True)]
        blocks.append(block)
    return tuple((total / n, right / n) for n, right, total in blocks)


def floor_of(knots: Knots, least_p: float) -> float:
    """The least score with a P(correct) of `least_p` and more; infinite where there is none."""
    below = [score for score, p in knots if p < least_p]
    if not below:
        return -math.inf
    if len(below) == len(knots):
        return math.inf
    x0, p0 = knots[len(below) - 1]
    x1, p1 = knots[len(below)]
    return x0 + (x1 - x0) * (least_p - p0) / (p1 - p0)


def fits_score(id: str) -> bool:
    """True for a row that fits the score. It depends on the row's id alone, so it is the same in
    every run.

    `id` is that of the row's group, where it has one: rows of one group would tell the score about
    those that test it.
    """
    return hashed_position(f"calibrate/{id}") < FIT_SHARE
