"""Answers with signals -> a score for each answer, and a threshold: at most `max_error` of the
answers above are wrong.

Some of the rows fit the score; the others, held out from the fit, test thresholds from the
strictest to the loosest by the exact bound of Clopper and Pearson. `calibrate` applies it to a
model's answers, `label` to a teacher's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np

from slmctl.config import CalibrateConfig
from slmctl.console import percent
from slmctl.errors import GateError
from slmctl.inference.escalation_policy import WORDS, CurvePoint, FirstStep, Knots, PolicyFigures
from slmctl.metrics.answer_score import (
    FIT_SHARE,
    CalibrationRows,
    Floats,
    Mask,
    isotonic,
    least_score,
    weights_of,
)
from slmctl.metrics.statistics import (
    exact_interval,
    thousand,
)
from slmctl.metrics.threshold_cuts import (
    Cut,
    bounded_labels,
    by_score,
    chance_to_pass,
    chance_wrong,
    chances_of,
    choose,
    cuts_of,
    growing_effects,
    independent_counts,
    least_rows,
    likeliest_cut,
    likeness_of,
    testable,
)

MIN_ROWS = 200  # fewer cannot bound an error of a few percent
CURVE = 50  # approximate number of points of the curve
# of max_error: the expected share of wrong answers among those that a first step keeps
FIRST_SHARE = 0.5
# of a person's time: without costs, a question that is not kept is dearer than any member
PERSON_MS = 60_000.0
MORE_ROWS = 100  # calibration rows whose worth is foreseen
# above every score: of answers that a first step keeps, which are kept at every threshold
CERTAIN = 1e9


@dataclass(frozen=True)
class AnswerSequence:
    """Models that answer one after the other, before a person or a generalist does, and what that
    should cost.

    All but the answers of the rows outside of `fits` decides on it, so these can test the one that
    is chosen.

    Attributes:
        rows: n rows with the answers that the sequence gives.
        scores: (n,) by which they are kept.
        odds: (n,) log odds that they are right, as expected from their signals.
        ms: Milliseconds of a question.
    """

    rows: CalibrationRows
    scores: Floats
    odds: Floats
    ms: float = 0.0

    def foreseen(self, config: CalibrateConfig, *, more: float = 0.0) -> tuple[float, float]:
        """(share of kept answers, cost of a question), as expected at the threshold that should
        save most.

        A threshold saves with the chance that it passes. Without costs, they are milliseconds.

        Args:
            more: Number of rows that test thresholds beyond those that are there.
        """
        rows = self.rows
        n = int((~rows.fits).sum())
        order = by_score(self.scores, ~rows.fits & ~rows.says_outside)
        factor = np.full(len(order), 1 + more / max(n, 1))
        if rows.groups is not None:
            planned = likeness_of(rows.only(rows.fits), unknown=0.0)
            factor /= growing_effects(rows.groups[order], planned)
        kept = np.arange(1, len(order) + 1)
        wrongs = np.cumsum(chance_wrong(self.odds[order]))
        chances = chances_of(kept * factor, factor * wrongs, config)
        costs = config.unit_costs or (PERSON_MS, 0.0, 1.0)
        escalated, wrong = costs[:2]
        lost = rows.losses(config)[rows.fits & ~rows.good]
        mean_loss = wrong * (1 + lost.sum()) / (1 + len(lost))
        saved = chances * (escalated * kept - mean_loss * wrongs)
        best = int(np.argmax(saved))
        share = float(chances[best] * kept[best]) / n
        return share, escalated - float(saved[best]) / n + costs[2] * self.ms


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


def fit(
    rows: CalibrationRows, config: CalibrateConfig, *, least_p: float = 0.0, ms: float = 0.0
) -> FittedThreshold:
    """Fit the score on the rows of `fits`, and choose the threshold on the other rows.

    Args:
        least_p: Least P(correct) of a kept answer, 0 to 1, whatever the average of the kept ones.
        ms: Milliseconds of an answer.

    Raises:
        GateError: No threshold keeps the error low enough.
    """
    weights, bias = weights_of(rows)
    scores = rows.scores(weights, bias)
    knots = isotonic(scores, rows.good)
    sequence = AnswerSequence(rows, scores, scores, ms)
    threshold, figures = _tested(sequence, config, least_score(scores, rows, config, least_p))
    return {
        "weights": weights,
        "bias": bias,
        "threshold": threshold,
        "knots": knots,
        "figures": figures,
    }


def fit_first(
    looks: Mapping[str, CalibrationRows],
    rows: CalibrationRows,
    fitted: FittedThreshold,
    config: CalibrateConfig,
    *,
    least_p: float = 0.0,
    ms: Mapping[str, float] | None = None,
) -> FirstStep:
    """Fit the first step that should cost least, and the threshold behind it by all answers that
    both keep.

    Each of some members may look first, and its threshold follows from scores that the rows of
    `fits` fitted: the loosest by which it is expected to be wrong in a part of `max_error`. The
    step with the least foreseen cost is chosen. The other rows test thresholds behind it, with what
    the first step keeps in every test.

    Args:
        looks: The answers to the same rows of those that may look first, by name; WORDS for words
            alone.
        rows: The answers of the sum.
        fitted: The fit of those.
        least_p: As in `fit`, for the answers of each step.
        ms: Milliseconds of an answer by each look, and of the sum as ''.

    Raises:
        GateError: The first step keeps nothing, or no threshold behind it keeps the error low
            enough.
    """
    ms = ms or {}
    scores = rows.scores(fitted["weights"], fitted["bias"])
    behind = AnswerSequence(rows, scores, scores, ms.get("", 0.0))
    looked: list[_Look] = []
    for name, first in looks.items():
        step = _first_step(first, config, least_p, words_alone=name == WORDS)
        look = _look(step, first, behind, ms.get(name, 0.0))
        if look.kept[~rows.fits].any():
            looked.append(look)
    if not looked:
        raise GateError("the linear members are sure of too few answers", reason="max_error")
    best = min(looked, key=lambda look: look.sequence.foreseen(config)[1])
    left = ~best.kept
    rest = rows.only(left)
    rest_knots = isotonic(scores[left], rest.good) or fitted["knots"]
    floor = least_score(scores[left], rest, config, least_p)
    threshold, figures = _tested(best.sequence, config, floor)
    figures["first_kept"] = float(best.kept[~rows.fits].mean())
    return replace(best.step, rest_knots=rest_knots, rest_threshold=threshold, figures=figures)


def _first_step(
    first: CalibrationRows, config: CalibrateConfig, least_p: float, *, words_alone: bool
) -> FirstStep:
    """The first step by some members, with no threshold behind it yet."""
    weights, bias = weights_of(first)
    sure = first.scores(weights, bias)
    usable = np.sort(sure[~first.says_outside])[::-1]
    expected = np.cumsum(chance_wrong(usable)) / np.arange(1, len(usable) + 1)
    few = usable[expected <= FIRST_SHARE * config.max_error]
    threshold = math.inf
    if len(few):
        threshold = max(float(few[-1]), least_score(sure, first, config, least_p))
    knots = isotonic(sure, first.good)
    return FirstStep(weights, bias, knots, threshold, (), 0.0, words_alone=words_alone)


@dataclass(frozen=True)
class _Look:
    """A first step, (n,) true where it keeps its answer, and the sequence that it begins."""

    step: FirstStep
    kept: Mask
    sequence: AnswerSequence


def _look(step: FirstStep, first: CalibrationRows, behind: AnswerSequence, ms: float) -> _Look:
    """The sequence of a step, by its answers `first` in `ms` each, and what stands behind it."""
    sure = first.scores(step.weights, step.bias)
    kept = (sure >= step.threshold) & ~first.says_outside
    rows = behind.rows
    right = np.where(kept, first.right, rows.right)
    answers = replace(rows, right=right, says_outside=rows.says_outside & ~kept)
    scores = np.where(kept, CERTAIN, behind.scores)
    odds = np.where(kept, sure, behind.odds)
    ms += float((~kept).mean()) * behind.ms
    return _Look(step, kept, AnswerSequence(answers, scores, odds, ms))


def _tested(
    sequence: AnswerSequence, config: CalibrateConfig, floor: float
) -> tuple[float, PolicyFigures]:
    """The threshold that the rows outside of `fits` choose, with its figures.

    Args:
        floor: Least score of an answer that may be kept.

    Raises:
        GateError: No threshold keeps the error low enough.
    """
    rows = sequence.rows
    tests = rows.only(~rows.fits)
    cuts = list(_tested_cuts(sequence, tests))
    outside = int(tests.outside.sum())
    chosen = choose(cuts, outside, config)
    chance = max((chance_to_pass(cut, config) for cut in testable(cuts, config)), default=0.0)
    if chosen is None:
        raise _unreachable(cuts, outside, config, chance)
    least = max(chosen.threshold, floor)
    above = [cut for cut in cuts if cut.threshold >= least]
    if not above:
        text = f"no answer is right with a chance of {percent(config.least_p_correct, 0)} and more"
        if config.costs is not None:
            text += ", and cheaper to keep than to escalate"
        hint = "a smaller calibrate.min_p_correct, or a better model"
        raise GateError(text, reason="max_error", hint=hint)
    kept = above[-1]
    figures = _figures(kept, cuts, tests, config)
    # what the floor holds back is likelier wrong than the rest, so the bound of the test holds
    # without it too
    figures["error_bound"] = min(kept.bound(config.confidence), chosen.bound(config.confidence))
    figures["rows"] = len(rows.right)
    figures["fitted_on"] = int(rows.fits.sum())
    figures["chance_to_pass"] = chance
    figures |= _foreseen(sequence, config)
    if rows.groups is not None:
        figures["groups"] = len(np.unique(rows.groups))
        figures["design_effect"] = chosen.effect
    return kept.threshold, figures


def _foreseen(sequence: AnswerSequence, config: CalibrateConfig) -> PolicyFigures:
    """The milliseconds of a sequence, and the worth of MORE_ROWS calibration rows."""
    now, paid = sequence.foreseen(config)
    then, less = sequence.foreseen(config, more=MORE_ROWS * (1 - FIT_SHARE))
    figures: PolicyFigures = {"kept_by_more": max(then - now, 0.0), "ms": sequence.ms}
    if config.costs is not None:
        figures["saved_by_more"] = 1000 * max(paid - less, 0.0)
    return figures


def _tested_cuts(sequence: AnswerSequence, tests: CalibrationRows) -> Iterator[Cut]:
    """The cuts of a sequence on the rows that test them."""
    rows = sequence.rows
    scores, odds = sequence.scores, sequence.odds
    likeness = likeness_of(rows)
    planned = likeness_of(rows.only(rows.fits), unknown=0.0)
    missed = rows.only(rows.fits & ~rows.good).dear
    return cuts_of(
        scores[~rows.fits], odds[~rows.fits], tests, missed, likeness=likeness, planned=planned
    )


def _figures(
    chosen: Cut, cuts: Sequence[Cut], rows: CalibrationRows, config: CalibrateConfig
) -> PolicyFigures:
    n = len(rows.right)
    outside = int(rows.outside.sum())
    inside = max(n - outside, 1)
    figures: PolicyFigures = {"tested_on": n}
    figures["kept"] = chosen.kept / n
    figures["error"] = chosen.wrong / chosen.kept
    figures["error_bound"] = chosen.bound(config.confidence)
    figures["max_error"] = config.max_error
    figures["confidence"] = config.confidence
    figures["accuracy"] = float((rows.right & ~rows.outside).sum() / inside)
    figures["curve"] = [_point(cut, n, outside, config) for cut in _spread(cuts)]
    if outside:
        figures["out_of_scope_rows"] = outside
        figures["out_of_scope_kept"] = chosen.outside_kept / outside
        figures["out_of_scope_bound"] = chosen.outside_bound(outside, config.confidence)
        figures["in_scope_kept"] = (chosen.kept - chosen.outside_kept) / inside
    if config.costs is not None:
        figures["cost"] = _cost(chosen, n, config)
        figures["labels"] = {each.label: (each.wrong, each.rows) for each in chosen.missed}
        bounded = bounded_labels(chosen, config)
        figures["label_bounds"] = {each.label: each.bound(config.confidence) for each in bounded}
    return figures


def _cost(chosen: Cut, n: int, config: CalibrateConfig) -> tuple[float, float, float]:
    """The cost of a thousand questions with its interval, see `thousand`."""
    assert config.costs is not None and config.unit_costs is not None
    escalated, wrong = config.unit_costs[:2]
    other_wrong = chosen.wrong - sum(each.wrong for each in chosen.missed)
    counts = [(escalated, n - chosen.kept), (wrong, other_wrong)]
    counts += [(config.costs.label[each.label], each.wrong) for each in chosen.missed]
    parts = []
    for cost, count in counts:
        independent = independent_counts(count, n, chosen.effect)
        interval = exact_interval(*independent, config.confidence)
        parts.append((cost, count / n, *interval))
    return thousand(parts)


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


def _unreachable(
    cuts: Sequence[Cut], outside: int, config: CalibrateConfig, chance: float
) -> GateError:
    """The error where no cut passes: there are too few rows, too many
    wrong ones, or `outside` rows are kept.
    """
    hint = "a larger calibrate.max_error, more rows, or a better model"
    chances = f" (by the scores, {percent(chance, 0)} of such data sets pass)"
    tried = testable(cuts, config)
    least = least_rows(config)
    error = percent(config.max_error)
    if all(cut.kept / cut.effect < least for cut in tried):
        tests = _test_rows(cuts)
        needed = f"at least {least} rows without a wrong answer are needed{chances}"
        text = f"an error of at most {error} cannot be shown: {tests} test it, and {needed}"
        return GateError(text, reason="max_error", hint=hint)
    sure = percent(config.confidence, 0)
    start = likeliest_cut(tried, config)
    if start.bound(config.confidence) <= config.max_error:
        if config.max_out_of_scope_kept is not None:
            return _outside_kept(start, outside, config, config.max_out_of_scope_kept)
        for each in bounded_labels(start, config):
            if each.bound(config.confidence) > config.max_error:
                rule = f"no threshold keeps a wrong answer to at most {error} of the questions"
                rows = f"of {each.rows} such rows {each.wrong} have one"
                text = f"{rule} '{each.label}' with {sure} confidence: {rows}"
                hint = f"more rows with the label '{each.label}', or a larger calibrate.max_error"
                return GateError(text, reason="max_error", hint=hint)
    rule = f"no threshold keeps the error at or below {error} with {sure} confidence"
    strictest = tried[0]
    wrong = f"of the {strictest.kept} most confident answers {strictest.wrong} are wrong"
    return GateError(f"{rule}: {wrong}{chances}", reason="max_error", hint=hint)


def _test_rows(cuts: Sequence[Cut]) -> str:
    """The number of the rows that test an error."""
    if not cuts:
        return "0 rows"
    loosest = cuts[-1]
    text = f"{loosest.kept} rows"
    if loosest.effect > 1:
        independent = loosest.kept / loosest.effect
        text += f", as many as {independent:.0f} independent ones by their groups,"
    return text


def _outside_kept(cut: Cut, outside: int, config: CalibrateConfig, limit: float) -> GateError:
    """The error where a cut keeps too many of the `outside` out-of-scope rows."""
    rule = f"no threshold keeps at most {percent(limit)} of the out-of-scope questions"
    sure = percent(config.confidence, 0)
    most = percent(cut.outside_bound(outside, config.confidence))
    rows = f"of {outside} such rows {cut.outside_kept} are kept, so up to {most} may be"
    return GateError(
        f"{rule} with {sure} confidence: {rows}",
        reason="out_of_scope",
        hint="a larger calibrate.max_out_of_scope_kept, or more rows with the label "
        f"'{config.out_of_scope}'",
    )
