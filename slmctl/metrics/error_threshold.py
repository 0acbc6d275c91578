"""Answers with signals -> a score for each answer, and a threshold: at most `max_error` of the answers above are wrong.

Some of the rows fit the score; the others, held out from the fit, test thresholds from the strictest to the loosest by
the exact bound of Clopper and Pearson. `calibrate` applies it to a model's answers, `label` to a teacher's.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from slmctl.config import CalibrateConfig
from slmctl.console import percent
from slmctl.errors import GateError
from slmctl.inference.escalation_policy import CurvePoint, FirstStep, Knots, PolicyFigures, linear
from slmctl.metrics.statistics import (
    chance_of_at_most,
    design_effect,
    effective_groups,
    error_bound,
    hashed_position,
    independent_rows,
    jackknife_effect,
)

MIN_ROWS = 200  # fewer cannot bound an error of a few percent
FIT_SHARE = 0.3  # share of the rows that fit the score; the others, held out from the fit, test the thresholds
RIDGE = 1.0  # L2 penalty of the weights, as strong as one row
STEPS = 100  # approximate number of thresholds that are tested
CURVE = 50  # approximate number of points of the curve
FIRST_SHARE = 0.5  # of max_error: the expected share of wrong answers among those that a first step keeps
CERTAIN = 1e9  # above every score: of answers that a first step keeps, which are kept at every threshold

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class CalibrationRows:
    """Answers to n calibration rows.

    Attributes:
        names: Names of the k signals.
        signals: (n, k), see `escalation_policy.signals`.
        right: (n,) true where the answer is right.
        outside: (n,) true where the reference answer is the out-of-scope label.
        says_outside: (n,) true where the answer is the out-of-scope label; such answers are never kept.
        fits: (n,) true for rows that fit the score; the others test thresholds.
        groups: (n,) the number of each row's group, which lies as a whole on one side of `fits`; None without groups.
    """

    names: tuple[str, ...]
    signals: Floats
    right: Mask
    outside: Mask
    says_outside: Mask
    fits: Mask
    groups: npt.NDArray[np.int64] | None = None

    def only(self, mask: Mask) -> CalibrationRows:
        right, outside, says_outside, fits = (
            values[mask] for values in (self.right, self.outside, self.says_outside, self.fits)
        )
        groups = self.groups[mask] if self.groups is not None else None
        return CalibrationRows(self.names, self.signals[mask], right, outside, says_outside, fits, groups)

    @property
    def good(self) -> Mask:
        """(n,) true where the answer is right to keep, which one to an out-of-scope row never is."""
        return self.right & ~self.outside

    def scores(self, weights: dict[str, float], bias: float) -> Floats:
        """(n,) linear scores."""
        rows = self.signals.tolist()
        return np.array([linear(weights, bias, dict(zip(self.names, row, strict=True))) for row in rows])


@dataclass(frozen=True)
class Cut:
    """A threshold, with counts on the rows that test it.

    Attributes:
        threshold: Least score of an answer that is kept.
        kept: Number of kept answers.
        expected: Number of wrong answers among the kept ones, as predicted from their scores.
        wrong: Number of wrong answers among the kept ones.
        outside_kept: Number of out-of-scope rows among the kept ones.
        effect: Design effect of the kept answers: rows of them that tell as much as one independent row.
        planned: The same as the rows that fit the score expect it; the order of the tests follows from it.
        outside_effect: Design effect of the out-of-scope rows, by their own groups.
    """

    threshold: float
    kept: int
    expected: float
    wrong: int
    outside_kept: int
    effect: float = 1.0
    planned: float = 1.0
    outside_effect: float = 1.0

    def bound(self, confidence: float) -> float:
        """Upper bound of the share of wrong answers among those that the threshold keeps."""
        return error_bound(*_independent(self.wrong, self.kept, self.effect), confidence)

    def outside_bound(self, outside: int, confidence: float) -> float:
        """Upper bound of the share of out-of-scope questions that the threshold keeps, from `outside` rows."""
        return error_bound(*_independent(self.outside_kept, outside, self.outside_effect), confidence)


class FittedThreshold(TypedDict):
    """A score, P(correct) and a threshold: the fields of `Policy` by name.

    Attributes:
        weights, bias: The score is bias + sum of weight * signal.
        threshold: Least score of an answer that is kept.
        knots: (score, P(correct)), both rising, to be interpolated.
        figures: Numbers of rows, kept share, error and its bound, and the curve.
    """

    weights: dict[str, float]
    bias: float
    threshold: float
    knots: Knots
    figures: PolicyFigures


def fit(rows: CalibrationRows, config: CalibrateConfig, *, least_p: float = 0.0) -> FittedThreshold:
    """Fit the score on the rows of `fits`, and choose the threshold on the other rows.

    Args:
        least_p: Least P(correct) of a kept answer, 0 to 1, whatever the average of the kept ones.

    Raises:
        GateError: No threshold keeps the error low enough.
    """
    weights, bias = _weights(rows)
    scores = rows.scores(weights, bias)
    knots = isotonic(scores, rows.good)
    threshold, figures = _tested(scores, scores, rows, config, floor_of(knots, least_p))
    return {"weights": weights, "bias": bias, "threshold": threshold, "knots": knots, "figures": figures}


def fit_first(
    first: CalibrationRows,
    rows: CalibrationRows,
    fitted: FittedThreshold,
    config: CalibrateConfig,
    *,
    least_p: float = 0.0,
) -> FirstStep:
    """Fit a first step, and choose the threshold behind it by all answers that both keep: one promise for them.

    The first threshold follows from scores that the rows of `fits` fitted: the loosest by which the first step is
    expected to be wrong in a part of `max_error`. The other rows test thresholds behind it, with what the first step
    keeps in every test.

    Args:
        first: The answers of the linear members to the same rows.
        rows: The answers of the sum.
        fitted: The fit of those.
        least_p: As in `fit`, for the answers of each step.

    Raises:
        GateError: The first step keeps nothing, or no threshold behind it keeps the error low enough.
    """
    weights, bias = _weights(first)
    sure, scores = first.scores(weights, bias), rows.scores(fitted["weights"], fitted["bias"])
    usable = np.sort(sure[~first.says_outside])[::-1]
    expected = np.cumsum(_chance_wrong(usable)) / np.arange(1, len(usable) + 1)
    few = usable[expected <= FIRST_SHARE * config.max_error]
    sure_knots = isotonic(sure, first.good)
    first_threshold = max(float(few[-1]), floor_of(sure_knots, least_p)) if len(few) else math.inf
    kept = (sure >= first_threshold) & ~first.says_outside
    if not kept[~rows.fits].any():
        raise GateError("the linear members are sure of too few answers", reason="max_error")
    pair = replace(rows, right=np.where(kept, first.right, rows.right), says_outside=rows.says_outside & ~kept)
    rest_knots = isotonic(scores[~kept], rows.good[~kept]) or fitted["knots"]
    both = np.where(kept, CERTAIN, scores)
    odds = np.where(kept, sure, scores)
    threshold, figures = _tested(both, odds, pair, config, floor_of(rest_knots, least_p))
    figures["first_kept"] = float(kept[~rows.fits].mean())
    return FirstStep(weights, bias, sure_knots, first_threshold, rest_knots, threshold, figures)


def _weights(rows: CalibrationRows) -> tuple[dict[str, float], float]:
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


def _tested(
    scores: Floats, odds: Floats, rows: CalibrationRows, config: CalibrateConfig, floor: float
) -> tuple[float, PolicyFigures]:
    """The threshold that the rows outside of `fits` choose, with its figures.

    Args:
        scores: (n,) by which answers are kept.
        odds: (n,) log odds that the answers are right, as expected from their signals.
        floor: Least score of an answer that may be kept.

    Raises:
        GateError: No threshold keeps the error low enough.
    """
    tests = rows.only(~rows.fits)
    likeness, planned = _likeness(rows), _likeness(rows.only(rows.fits), unknown=0.0)
    cuts = list(_cuts(scores[~rows.fits], odds[~rows.fits], tests, likeness=likeness, planned=planned))
    outside = int(tests.outside.sum())
    chosen = choose(cuts, outside, config)
    chance = max((_chance_to_pass(cut, config) for cut in _tried(cuts, config)), default=0.0)
    if chosen is None:
        raise _unreachable(cuts, outside, config, chance)
    above = [cut for cut in cuts if cut.threshold >= max(chosen.threshold, floor)]
    if not above:
        text = f"no answer is right with a chance of {percent(config.least_p_correct, 0)} and more"
        hint = "a smaller calibrate.min_p_correct, or a better model"
        raise GateError(text, reason="max_error", hint=hint)
    kept = above[-1]
    figures = _figures(kept, cuts, tests, config)
    # what the floor holds back is likelier wrong than the rest, so the bound of the test holds without it too
    figures["error_bound"] = min(each.bound(config.confidence) for each in (kept, chosen))
    figures |= {"rows": len(rows.right), "fitted_on": int(rows.fits.sum()), "chance_to_pass": chance}
    if rows.groups is not None:
        figures |= {"groups": len(np.unique(rows.groups)), "design_effect": chosen.effect}
    return kept.threshold, figures


def choose(cuts: Sequence[Cut], outside: int, config: CalibrateConfig) -> Cut | None:
    """The loosest threshold with an error bound within `max_error`, by fixed-sequence testing; None if none passes.

    The order of the tests follows from scores and groups alone and the first failure ends them, so each is made at full
    level (Bauer 1991, Statistics in Medicine 10; Angelopoulos et al. 2021, Learn then Test). The sequence starts where
    a test most likely passes: a stricter one keeps so few rows that a single wrong answer fails it, a looser one keeps
    more wrong answers. The start is predicted from scores, without the reference answers of the testing rows.

    `cuts` go from the strictest to the loosest; `outside` is the number of out-of-scope rows.
    """
    tried = _tried(cuts, config)
    if not tried:
        return None
    chosen = None
    for cut in tried[tried.index(_likeliest(tried, config)) :]:
        if cut.bound(config.confidence) > config.max_error:
            break
        limit = config.max_out_of_scope_kept
        if limit is not None and cut.outside_bound(outside, config.confidence) > limit:
            break
        chosen = cut
    return chosen


def _tried(cuts: Sequence[Cut], config: CalibrateConfig) -> list[Cut]:
    """The cuts that can be tested, from the strictest to the loosest."""
    least = _least(config)
    return _thinned([cut for cut in cuts if cut.kept / cut.planned >= least])


def _likeliest(tried: Sequence[Cut], config: CalibrateConfig) -> Cut:
    """The cut that most likely passes, at which the tests begin."""
    return max(tried, key=lambda cut: _chance_to_pass(cut, config))


def _chance_to_pass(cut: Cut, config: CalibrateConfig) -> float:
    """Predicted chance, 0 to 1, that this cut's number of wrong answers passes the error bound.

    The number is modelled as geometric with mean `expected`, a wide distribution: few rows fitted the scores, so
    `expected` may be far off. This favours cuts with more rows, which tolerate that.
    """
    kept, expected = math.floor(cut.kept / cut.planned), cut.expected / cut.planned
    refused = bisect.bisect_right(  # the smallest number of wrong answers that fails the bound
        range(kept), 1 - config.confidence, key=lambda wrong: chance_of_at_most(wrong, kept, config.max_error)
    )
    return 1 - (expected / (1 + expected)) ** refused


def logistic(x: Floats, good: Mask) -> tuple[list[float], float]:
    """Weights (k,) and bias of a logistic regression with a slight L2 penalty, by Newton's method; x: (n, k)."""
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1.0)  # a constant signal carries no information
    z = np.hstack([(x - mean) / scale, np.ones((len(x), 1))])
    pull = np.full(z.shape[1], RIDGE)
    w = np.zeros(z.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(z @ w, -30, 30)))
        gradient = z.T @ (p - good) + pull * w
        step = np.linalg.solve((z * (p * (1 - p))[:, None]).T @ z + np.diag(pull), gradient)
        w -= step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))  # bounded, for classes that are separable
        if np.abs(step).max() < 1e-8:
            break
    weights = w[:-1] / scale
    return [float(value) for value in weights], float(w[-1] - weights @ mean)


def isotonic(scores: Floats, good: Mask) -> Knots:
    """Isotonic regression of correctness on the score: pool adjacent violators (Ayer et al. 1955).

    Returns:
        (mean score, P(correct)) of each block, both rising, to be interpolated.
    """
    blocks: list[list[float]] = []  # rows, right rows, sum of scores
    levels, places = np.unique(scores, return_inverse=True)  # rows with equal scores are one block
    counts = np.bincount(places)
    for block in np.stack([counts, np.bincount(places, good), counts * levels], axis=1).tolist():
        blocks.append(block)
        while len(blocks) > 1 and blocks[-2][1] * blocks[-1][0] >= blocks[-1][1] * blocks[-2][0]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    return tuple((total / n, right / n) for n, right, total in blocks)


def floor_of(knots: Knots, least_p: float) -> float:
    """The least score with a P(correct) of `least_p` and more; infinite where there is none."""
    below = [score for score, p in knots if p < least_p]
    if not below:
        return -math.inf
    if len(below) == len(knots):
        return math.inf
    (x0, p0), (x1, p1) = knots[len(below) - 1], knots[len(below)]
    return x0 + (x1 - x0) * (least_p - p0) / (p1 - p0)


def _independent(wrong: int, total: int, effect: float) -> tuple[int, int]:
    """Counts of independent rows that tell as much, rounded so that the bound is not too small."""
    return (wrong, total) if effect == 1 else (math.ceil(wrong / effect), math.floor(total / effect))


def _likeness(rows: CalibrationRows, *, unknown: float = 1.0) -> float:
    """Correlation, 0 to 1, of right and wrong answers within groups, over all these rows: few kept answers are wrong.

    The design effect of rows in groups of equal size m is 1 + (m - 1) * correlation (Kish 1965). Where all answers are
    right, or all wrong, the correlation is `unknown`; a bound assumes 1, as in `design_effect`.
    """
    if rows.groups is None:
        return 0.0
    wrong = (~rows.good).astype(np.float64)
    if not np.ptp(wrong):
        return unknown
    size = len(wrong) / effective_groups(np.bincount(rows.groups).tolist())
    return min(max((jackknife_effect(wrong, rows.groups) - 1) / max(size - 1, 1e-9), 0.0), 1.0)


def _effects(groups: npt.NDArray[np.int64], likeness: float) -> Floats:
    """Design effect of the first k + 1 of some rows, for every k; groups: (n,), in the order of the rows."""
    seen: Counter[int] = Counter()
    squares = np.empty(len(groups))
    for k, group in enumerate(groups.tolist()):
        squares[k] = 2 * seen[group] + 1
        seen[group] += 1
    counts = np.arange(1, len(groups) + 1)
    sizes = np.cumsum(squares) / counts
    rounded = [float(f"{effective:.2g}") for effective in (counts / sizes).tolist()]
    widened = {each: each / independent_rows(each) for each in set(rounded)}
    return (1 + (sizes - 1) * likeness) * np.array([widened[each] for each in rounded])


def _chance_wrong(odds: Floats) -> Floats:
    """The chance that an answer is wrong, from the log odds that it is right."""
    chances: Floats = 1 / (1 + np.exp(np.clip(odds, -30, 30)))
    return chances


def _outside_effects(order: npt.NDArray[np.int64], outside: Mask, groups: npt.NDArray[np.int64]) -> Floats:
    """Design effect of the out-of-scope rows where the first k + 1 rows in this order are kept, for every k."""
    kept, effects = np.zeros(len(outside)), list[float]()
    for at in order.tolist():
        kept[at] = 1
        if outside[at] or not effects:
            effect = design_effect(kept[outside], groups[outside])
        effects.append(effect)
    return np.array(effects)


def _cuts(scores: Floats, odds: Floats, rows: CalibrationRows, *, likeness: float, planned: float) -> Iterator[Cut]:
    """Every distinct score as a threshold, from the strictest to the loosest; `scores`, `odds` as in `_tested`.

    `likeness` and `planned` are correlations of right answers within groups, for the bounds and for their order.
    """
    usable = np.flatnonzero(~rows.says_outside)
    order = usable[np.argsort(-scores[usable], kind="stable")]
    wrong = np.cumsum(~rows.good[order])
    outside = np.cumsum(rows.outside[order])
    expected = np.cumsum(_chance_wrong(odds[order]))
    effects = plans = np.ones(len(order))
    outside_effects = effects
    if rows.groups is not None:
        effects = _effects(rows.groups[order], likeness)
        plans = _effects(rows.groups[order], planned)
        outside_effects = _outside_effects(order, rows.outside, rows.groups)
    for k, at in enumerate(order):
        if k + 1 == len(order) or scores[order[k + 1]] < scores[at]:
            yield Cut(
                threshold=float(scores[at]),
                kept=k + 1,
                expected=float(expected[k]),
                wrong=int(wrong[k]),
                outside_kept=int(outside[k]),
                effect=float(effects[k]),
                planned=float(plans[k]),
                outside_effect=float(outside_effects[k]),
            )


def _thinned(cuts: Sequence[Cut]) -> list[Cut]:
    """About STEPS of the cuts, evenly spaced by kept rows; the strictest and the loosest are among them."""
    step = max(1, (cuts[-1].kept if cuts else 0) // STEPS)
    kept: list[Cut] = []
    for cut in cuts:
        if not kept or cut.kept >= kept[-1].kept + step or cut is cuts[-1]:
            kept.append(cut)
    return kept


def _least(config: CalibrateConfig) -> int:
    """Smallest number of rows with an error bound within `max_error` where none of their answers is wrong."""
    n = math.ceil(math.log(1 - config.confidence) / math.log(1 - config.max_error))
    return n if error_bound(0, n, config.confidence) <= config.max_error else n + 1


def _figures(chosen: Cut, cuts: Sequence[Cut], rows: CalibrationRows, config: CalibrateConfig) -> PolicyFigures:
    n, outside = len(rows.right), int(rows.outside.sum())
    inside = n - outside
    figures: PolicyFigures = {
        "tested_on": n,
        "kept": chosen.kept / n,
        "error": chosen.wrong / chosen.kept,
        "error_bound": chosen.bound(config.confidence),
        "max_error": config.max_error,
        "confidence": config.confidence,
        "accuracy": float((rows.right & ~rows.outside).sum() / max(inside, 1)),
        "curve": [_point(cut, n, outside, config) for cut in _spread(cuts)],
    }
    if outside:
        figures |= {
            "out_of_scope_rows": outside,
            "out_of_scope_kept": chosen.outside_kept / outside,
            "out_of_scope_bound": chosen.outside_bound(outside, config.confidence),
            "in_scope_kept": (chosen.kept - chosen.outside_kept) / max(inside, 1),
        }
    return figures


def _point(cut: Cut, n: int, outside: int, config: CalibrateConfig) -> CurvePoint:
    point: CurvePoint = {
        "threshold": cut.threshold,
        "kept": cut.kept / n,
        "error": cut.wrong / cut.kept,
        "error_bound": cut.bound(config.confidence),
    }
    if outside:
        point["out_of_scope_away"] = 1 - cut.outside_kept / outside
    return point


def _spread(cuts: Sequence[Cut]) -> list[Cut]:
    """About CURVE of the cuts, evenly spaced by kept rows; the loosest is among them."""
    shares = [cuts[-1].kept * k / CURVE for k in range(1, CURVE + 1)]
    spread: list[Cut] = []
    for cut in cuts:
        if cut.kept >= shares[0]:
            spread.append(cut)
            shares = [share for share in shares if share > cut.kept]
            if not shares:
                break
    return spread


def _unreachable(cuts: Sequence[Cut], outside: int, config: CalibrateConfig, chance: float) -> GateError:
    """The error where no cut passes: there are too few rows, too many wrong ones, or `outside` rows are kept."""
    hint = "a larger calibrate.max_error, more rows, or a better model"
    chances = f" (by the scores, {percent(chance, 0)} of such data sets pass)"
    tried, least = _tried(cuts, config), _least(config)
    if not tried or all(cut.kept / cut.effect < least for cut in tried):
        count, effect = (cuts[-1].kept, cuts[-1].effect) if cuts else (0, 1.0)
        alike = f", as many as {count / effect:.0f} independent ones by their groups," if effect > 1 else ""
        return GateError(
            f"an error of at most {percent(config.max_error)} cannot be shown: {count} rows{alike} "
            f"test it, and at least {least} rows without a wrong answer are needed{chances}",
            reason="max_error",
            hint=hint,
        )
    sure, start = percent(config.confidence, 0), _likeliest(tried, config)
    if config.max_out_of_scope_kept is not None and start.bound(config.confidence) <= config.max_error:
        return GateError(
            f"no threshold keeps at most {percent(config.max_out_of_scope_kept)} of the out-of-scope questions with "
            f"{sure} confidence: of {outside} such rows {start.outside_kept} are kept, so up to "
            f"{percent(start.outside_bound(outside, config.confidence))} may be",
            reason="out_of_scope",
            hint=f"a larger calibrate.max_out_of_scope_kept, or more rows with the label '{config.out_of_scope}'",
        )
    return GateError(
        f"no threshold keeps the error at or below {percent(config.max_error)} with {sure} confidence: "
        f"of the {tried[0].kept} most confident answers {tried[0].wrong} are wrong{chances}",
        reason="max_error",
        hint=hint,
    )


def fits_score(id: str) -> bool:
    """True for a row that fits the score. It depends on the row's id alone, so it is the same in every run.

    `id` is that of the row's group, where it has one: rows of one group would tell the score about those that test it.
    """
    return hashed_position(f"calibrate/{id}") < FIT_SHARE
