"""Answers with signals -> a score for each answer, and a threshold: at most `max_error` of the
answers above are wrong.

Some of the rows fit the score; the others, held out from the fit, test thresholds from the
strictest to the loosest by the exact bound of Clopper and Pearson. `calibrate` applies it to a
model's answers, `label` to a teacher's.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections import Counter
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
    Groups,
    Labels,
    Mask,
    isotonic,
    least_score,
    weights_of,
)
from slmctl.metrics.statistics import (
    chance_of_at_most,
    design_effect,
    effective_groups,
    error_bound,
    exact_interval,
    independent_rows,
    jackknife_effect,
    thousand,
)

MIN_ROWS = 200  # fewer cannot bound an error of a few percent
STEPS = 100  # approximate number of thresholds that are tested
CURVE = 50  # approximate number of points of the curve
# of max_error: the expected share of wrong answers among those that a first step keeps
FIRST_SHARE = 0.5
# of a person's time: without costs, a question that is not kept is dearer than any member
PERSON_MS = 60_000.0
MORE_ROWS = 100  # calibration rows whose worth is foreseen
# above every score: of answers that a first step keeps, which are kept at every threshold
CERTAIN = 1e9


@dataclass(frozen=True)
class Missed:
    """The rows of a label with a cost of its own, where a threshold keeps some answers.

    Attributes:
        wrong: Number of wrong answers to them that are kept.
        rows, tells: Number of all of them, and of independent ones that tell as much where none is
            wrong.
        expected: The number of wrong ones, as the scores and the rows that fit them expect it.
        effect: Design effect of the rows, by their groups.
    """

    label: str
    wrong: int
    rows: int
    tells: float
    expected: float
    effect: float

    def bound(self, confidence: float) -> float:
        """Upper bound of the share of the label's questions to which a wrong answer is kept."""
        return error_bound(*_independent(self.wrong, self.rows, self.effect), confidence)


@dataclass(frozen=True)
class Cut:
    """A threshold, with counts on the rows that test it.

    Attributes:
        threshold: Least score of an answer that is kept.
        kept: Number of kept answers.
        expected: Number of wrong answers among the kept ones, as predicted from their scores.
        wrong: Number of wrong answers among the kept ones.
        outside_kept: Number of out-of-scope rows among the kept ones.
        effect: Design effect of the kept answers: rows of them that tell as much as one independent
            row.
        planned: The same as the rows that fit the score expect it; the order of the tests follows
            from it.
        outside_effect: Design effect of the out-of-scope rows, by their own groups.
        missed: Of each label with a cost of its own.
    """

    threshold: float
    kept: int
    expected: float
    wrong: int
    outside_kept: int
    effect: float = 1.0
    planned: float = 1.0
    outside_effect: float = 1.0
    missed: tuple[Missed, ...] = ()

    def bound(self, confidence: float) -> float:
        """Upper bound of the share of wrong answers among those that the threshold keeps."""
        return error_bound(*_independent(self.wrong, self.kept, self.effect), confidence)

    def outside_bound(self, outside: int, confidence: float) -> float:
        """Upper bound of the share of out-of-scope questions that the
        threshold keeps, from `outside` rows.
        """
        return error_bound(
            *_independent(self.outside_kept, outside, self.outside_effect), confidence
        )


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
        tests = np.flatnonzero(~self.rows.fits & ~self.rows.says_outside)
        order, n = (
            tests[np.argsort(-self.scores[tests], kind="stable")],
            int((~self.rows.fits).sum()),
        )
        factor = np.full(len(order), 1 + more / max(n, 1))
        if self.rows.groups is not None:
            planned = _likeness(self.rows.only(self.rows.fits), unknown=0.0)
            factor /= _effects(self.rows.groups[order], planned)
        kept, wrongs = (
            np.arange(1, len(order) + 1),
            factor * np.cumsum(_chance_wrong(self.odds[order])),
        )
        chances = _chances(kept * factor, wrongs, config)
        escalated, wrong, of_ms = config.unit_costs or (PERSON_MS, 0.0, 1.0)
        lost = self.rows.losses(config)[self.rows.fits & ~self.rows.good]
        mean_loss = wrong * (1 + lost.sum()) / (1 + len(lost))
        saved = chances * (
            escalated * kept - mean_loss * np.cumsum(_chance_wrong(self.odds[order]))
        )
        best = int(np.argmax(saved))
        return float(chances[best] * kept[best]) / n, escalated - float(
            saved[best]
        ) / n + of_ms * self.ms


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
    scores = rows.scores(fitted["weights"], fitted["bias"])
    behind = AnswerSequence(rows, scores, scores, (ms or {}).get("", 0.0))
    looked = [
        _look(name, first, behind, config, least_p, ms or {}) for name, first in looks.items()
    ]
    if not (steps := [look for look in looked if look is not None]):
        raise GateError("the linear members are sure of too few answers", reason="max_error")
    step, kept, sequence = min(steps, key=lambda look: look[2].foreseen(config)[1])
    rest = rows.only(~kept)
    rest_knots = isotonic(scores[~kept], rest.good) or fitted["knots"]
    threshold, figures = _tested(
        sequence, config, least_score(scores[~kept], rest, config, least_p)
    )
    figures["first_kept"] = float(kept[~rows.fits].mean())
    return replace(step, rest_knots=rest_knots, rest_threshold=threshold, figures=figures)


def _look(
    name: str,
    first: CalibrationRows,
    behind: AnswerSequence,
    config: CalibrateConfig,
    least_p: float,
    ms: Mapping[str, float],
) -> tuple[FirstStep, Mask, AnswerSequence] | None:
    """The first step of some members, (n,) true where it keeps its answer,
    and the sequence; None if it keeps none.
    """
    weights, bias = weights_of(first)
    sure = first.scores(weights, bias)
    usable = np.sort(sure[~first.says_outside])[::-1]
    expected = np.cumsum(_chance_wrong(usable)) / np.arange(1, len(usable) + 1)
    few = usable[expected <= FIRST_SHARE * config.max_error]
    threshold = (
        max(float(few[-1]), least_score(sure, first, config, least_p)) if len(few) else math.inf
    )
    kept = (sure >= threshold) & ~first.says_outside
    rows = behind.rows
    if not kept[~rows.fits].any():
        return None
    sequence = AnswerSequence(
        replace(
            rows,
            right=np.where(kept, first.right, rows.right),
            says_outside=rows.says_outside & ~kept,
        ),
        np.where(kept, CERTAIN, behind.scores),
        np.where(kept, sure, behind.odds),
        ms.get(name, 0.0) + float((~kept).mean()) * behind.ms,
    )
    knots = isotonic(sure, first.good)
    return (
        FirstStep(weights, bias, knots, threshold, (), 0.0, words_alone=name == WORDS),
        kept,
        sequence,
    )


@functools.cache
def _needed(wrong: int, max_error: float, confidence: float) -> int:
    """Number of independent rows from which so many wrong ones pass the bound."""
    rows = range(wrong + 1, 1 << 24)
    level = 1 - confidence
    return rows[
        bisect.bisect_left(
            rows, True, key=lambda n: chance_of_at_most(wrong, n, max_error) <= level
        )
    ]


def _chances(kept: Floats, expected: Floats, config: CalibrateConfig) -> Floats:
    """Predicted chances, 0 to 1, that the wrong ones among these numbers of kept answers pass the
    error bound.

    Their number is modelled as geometric with mean `expected`, a wide distribution: few rows fitted
    the scores, so `expected` may be far off. This favours cuts with more rows, which tolerate that.
    """
    needed = (_needed(wrong, config.max_error, config.confidence) for wrong in itertools.count())
    steps = [*itertools.takewhile(lambda rows: rows <= kept.max(initial=0), needed)]
    chances: Floats = 1 - (expected / (1 + expected)) ** np.searchsorted(
        np.array(steps), kept, side="right"
    )
    return chances


def _tested(
    sequence: AnswerSequence, config: CalibrateConfig, floor: float
) -> tuple[float, PolicyFigures]:
    """The threshold that the rows outside of `fits` choose, with its figures.

    Args:
        floor: Least score of an answer that may be kept.

    Raises:
        GateError: No threshold keeps the error low enough.
    """
    rows, scores, odds = sequence.rows, sequence.scores, sequence.odds
    tests = rows.only(~rows.fits)
    likeness, planned = _likeness(rows), _likeness(rows.only(rows.fits), unknown=0.0)
    missed = rows.only(rows.fits & ~rows.good).dear
    cuts = list(
        _cuts(
            scores[~rows.fits], odds[~rows.fits], tests, missed, likeness=likeness, planned=planned
        )
    )
    outside = int(tests.outside.sum())
    chosen = choose(cuts, outside, config)
    chance = max((_chance_to_pass(cut, config) for cut in _tried(cuts, config)), default=0.0)
    if chosen is None:
        raise _unreachable(cuts, outside, config, chance)
    above = [cut for cut in cuts if cut.threshold >= max(chosen.threshold, floor)]
    if not above:
        text = f"no answer is right with a chance of {percent(config.least_p_correct, 0)} and more"
        text += "" if config.costs is None else ", and cheaper to keep than to escalate"
        hint = "a smaller calibrate.min_p_correct, or a better model"
        raise GateError(text, reason="max_error", hint=hint)
    kept = above[-1]
    figures = _figures(kept, cuts, tests, config)
    # what the floor holds back is likelier wrong than the rest, so the bound of the test holds
    # without it too
    figures["error_bound"] = min(each.bound(config.confidence) for each in (kept, chosen))
    figures |= {
        "rows": len(rows.right),
        "fitted_on": int(rows.fits.sum()),
        "chance_to_pass": chance,
    }
    (now, paid), (then, less) = (
        sequence.foreseen(config, more=k * (1 - FIT_SHARE)) for k in (0, MORE_ROWS)
    )
    figures |= {"kept_by_more": max(then - now, 0.0), "ms": sequence.ms}
    if config.costs is not None:
        figures["saved_by_more"] = 1000 * max(paid - less, 0.0)
    if rows.groups is not None:
        figures |= {"groups": len(np.unique(rows.groups)), "design_effect": chosen.effect}
    return kept.threshold, figures


def choose(cuts: Sequence[Cut], outside: int, config: CalibrateConfig) -> Cut | None:
    """The loosest threshold with an error bound within `max_error`, by fixed-sequence testing; None
    if none passes.

    The order of the tests follows from scores and groups alone and the first failure ends them, so
    each is made at full level (Bauer 1991, Statistics in Medicine 10; Angelopoulos et al. 2021,
    Learn then Test). The sequence starts where a test most likely passes: a stricter one keeps so
    few rows that a single wrong answer fails it, a looser one keeps more wrong answers. The start
    is predicted from scores, without the reference answers of the testing rows.

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
        if any(each.bound(config.confidence) > config.max_error for each in _bounded(cut, config)):
            break
        chosen = cut
    return chosen


def _bounded(cut: Cut, config: CalibrateConfig) -> list[Missed]:
    """The labels with a cost of their own that have enough rows for a bound."""
    return [each for each in cut.missed if each.tells >= _least(config)]


def _tried(cuts: Sequence[Cut], config: CalibrateConfig) -> list[Cut]:
    """The cuts that can be tested, from the strictest to the loosest."""
    least = _least(config)
    return _thinned([cut for cut in cuts if cut.kept / cut.planned >= least])


def _likeliest(tried: Sequence[Cut], config: CalibrateConfig) -> Cut:
    """The cut that most likely passes, at which the tests begin."""
    return max(tried, key=lambda cut: _chance_to_pass(cut, config))


def _chance_to_pass(cut: Cut, config: CalibrateConfig) -> float:
    """Predicted chance, 0 to 1, that this cut passes all of its error bounds."""
    tests = [(cut.kept / cut.planned, cut.expected / cut.planned)]
    kept, expected = np.array(
        tests + [(each.tells, each.expected) for each in _bounded(cut, config)]
    ).T
    return float(_chances(kept, expected, config).prod())


def _independent(wrong: int, total: int, effect: float) -> tuple[int, int]:
    """Counts of independent rows that tell as much, rounded so that the bound is not too small."""
    return (
        (wrong, total) if effect == 1 else (math.ceil(wrong / effect), math.floor(total / effect))
    )


def _likeness(rows: CalibrationRows, *, unknown: float = 1.0) -> float:
    """Correlation, 0 to 1, of right and wrong answers within groups, over all these rows: few kept
    answers are wrong.

    The design effect of rows in groups of equal size m is 1 + (m - 1) * correlation (Kish 1965).
    Where all answers are right, or all wrong, the correlation is `unknown`; a bound assumes 1, as
    in `design_effect`.
    """
    if rows.groups is None:
        return 0.0
    wrong = (~rows.good).astype(np.float64)
    if not np.ptp(wrong):
        return unknown
    size = len(wrong) / effective_groups(np.bincount(rows.groups).tolist())
    return min(max((jackknife_effect(wrong, rows.groups) - 1) / max(size - 1, 1e-9), 0.0), 1.0)


def _effects(groups: Groups, likeness: float) -> Floats:
    """Design effect of the first k + 1 of some rows, for every k;
    groups: (n,), in the order of the rows.
    """
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


def _effects_among(order: Groups, counted: Mask, among: Mask, groups: Groups) -> Floats:
    """Design effect of some rows, of which `counted` count where they are
    kept: the first k + 1 in this order.
    """
    kept, effects = np.zeros(len(among)), list[float]()
    for at in order.tolist():
        kept[at] = counted[at]
        if counted[at] or not effects:
            effect = design_effect(kept[among], groups[among])
        effects.append(effect)
    return np.array(effects)


def _cuts(
    scores: Floats,
    odds: Floats,
    rows: CalibrationRows,
    missed: Labels | None,
    *,
    likeness: float,
    planned: float,
) -> Iterator[Cut]:
    """Every distinct score as a threshold, from the strictest to the loosest; `scores`, `odds` of
    an AnswerSequence.

    `missed` has the `dear` of wrong answers that fitted the score. `likeness` and `planned` are
    correlations of right answers within groups, for the bounds and for their order.
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
        outside_effects = _effects_among(order, rows.outside, rows.outside, rows.groups)
    names = sorted(set(rows.dear.tolist()) - {""}) if rows.dear is not None else []
    of_labels = [_misses(name, order, expected, rows, missed) for name in names]
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
                missed=tuple(each[k] for each in of_labels),
            )


def _misses(
    label: str, order: Groups, expected: Floats, rows: CalibrationRows, missed: Labels | None
) -> list[Missed]:
    """The rows of a label where the first k + 1 rows in this order are kept, for every k."""
    assert rows.dear is not None and missed is not None
    of_label = rows.dear == label
    wrong, total = of_label & ~rows.good, int(of_label.sum())
    share = (int((missed == label).sum()) + 0.5) / (len(missed) + 1)  # of the wrong answers
    effects = (
        np.ones(len(order))
        if rows.groups is None
        else _effects_among(order, wrong, of_label, rows.groups)
    )
    counted = zip(
        np.cumsum(wrong[order]).tolist(), (share * expected).tolist(), effects.tolist(), strict=True
    )
    return [Missed(label, count, total, total / effects.max(), *rest) for count, *rest in counted]


def _thinned(cuts: Sequence[Cut]) -> list[Cut]:
    """About STEPS of the cuts, evenly spaced by kept rows; the
    strictest and the loosest are among them.
    """
    step = max(1, (cuts[-1].kept if cuts else 0) // STEPS)
    kept: list[Cut] = []
    for cut in cuts:
        if not kept or cut.kept >= kept[-1].kept + step or cut is cuts[-1]:
            kept.append(cut)
    return kept


def _least(config: CalibrateConfig) -> int:
    """Smallest number of rows with an error bound within `max_error`
    where none of their answers is wrong.
    """
    n = math.ceil(math.log(1 - config.confidence) / math.log(1 - config.max_error))
    return n if error_bound(0, n, config.confidence) <= config.max_error else n + 1


def _figures(
    chosen: Cut, cuts: Sequence[Cut], rows: CalibrationRows, config: CalibrateConfig
) -> PolicyFigures:
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
    if config.costs is not None and config.unit_costs is not None:
        escalated, wrong, _ = config.unit_costs
        counts = [
            (escalated, n - chosen.kept),
            (wrong, chosen.wrong - sum(each.wrong for each in chosen.missed)),
        ]
        counts += [(config.costs.label[each.label], each.wrong) for each in chosen.missed]
        parts = [
            (cost, *_share(count, n, chosen.effect, config.confidence)) for cost, count in counts
        ]
        figures["cost"] = thousand(parts)
        figures["labels"] = {each.label: (each.wrong, each.rows) for each in chosen.missed}
        figures["label_bounds"] = {
            each.label: each.bound(config.confidence) for each in _bounded(chosen, config)
        }
    return figures


def _share(count: int, total: int, effect: float, confidence: float) -> tuple[float, float, float]:
    """A share with its interval."""
    return count / total, *exact_interval(*_independent(count, total, effect), confidence)


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
    tried, least = _tried(cuts, config), _least(config)
    if not tried or all(cut.kept / cut.effect < least for cut in tried):
        count, effect = (cuts[-1].kept, cuts[-1].effect) if cuts else (0, 1.0)
        alike = (
            f", as many as {count / effect:.0f} independent ones by their groups,"
            if effect > 1
            else ""
        )
        return GateError(
            f"an error of at most {percent(config.max_error)} cannot be shown: {count} rows{alike} "
            f"test it, and at least {least} rows without a wrong answer are needed{chances}",
            reason="max_error",
            hint=hint,
        )
    sure, start = percent(config.confidence, 0), _likeliest(tried, config)
    if (
        config.max_out_of_scope_kept is not None
        and start.bound(config.confidence) <= config.max_error
    ):
        return GateError(
            f"no threshold keeps at most {percent(config.max_out_of_scope_kept)} of the "
            "out-of-scope questions with "
            f"{sure} confidence: of {outside} such rows {start.outside_kept} are kept, so up to "
            f"{percent(start.outside_bound(outside, config.confidence))} may be",
            reason="out_of_scope",
            hint="a larger calibrate.max_out_of_scope_kept, or more rows with the label "
            f"'{config.out_of_scope}'",
        )
    missed = [
        each for each in _bounded(start, config) if each.bound(config.confidence) > config.max_error
    ]
    if missed and start.bound(config.confidence) <= config.max_error:
        return GateError(
            f"no threshold keeps a wrong answer to at most {percent(config.max_error)} of the "
            "questions "
            f"'{missed[0].label}' with {sure} confidence: of {missed[0].rows} such rows "
            f"{missed[0].wrong} have one",
            reason="max_error",
            hint=f"more rows with the label '{missed[0].label}', or a larger calibrate.max_error",
        )
    return GateError(
        f"no threshold keeps the error at or below {percent(config.max_error)} with {sure} "
        "confidence: "
        f"of the {tried[0].kept} most confident answers {tried[0].wrong} are wrong{chances}",
        reason="max_error",
        hint=hint,
    )
