"""Scored answers -> the thresholds that they allow, with counts on the rows that test them, and
the loosest one whose error is surely low enough.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from slmctl.config import CalibrateConfig
from slmctl.metrics.answer_score import CalibrationRows, Floats, Groups, Labels, Mask
from slmctl.metrics.statistics import (
    chance_of_at_most,
    design_effect,
    effective_groups,
    error_bound,
    independent_rows,
    jackknife_effect,
)

STEPS = 100  # approximate number of thresholds that are tested


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
        return error_bound(*independent_counts(self.wrong, self.rows, self.effect), confidence)


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
        return error_bound(*independent_counts(self.wrong, self.kept, self.effect), confidence)

    def outside_bound(self, outside: int, confidence: float) -> float:
        """Upper bound of the share of out-of-scope questions that the
        threshold keeps, from `outside` rows.
        """
        return error_bound(
            *independent_counts(self.outside_kept, outside, self.outside_effect), confidence
        )


def independent_counts(wrong: int, total: int, effect: float) -> tuple[int, int]:
    """Counts of independent rows that tell as much, rounded so that the bound is not too small."""
    if effect == 1:
        return wrong, total
    return math.ceil(wrong / effect), math.floor(total / effect)


def cuts_of(
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
    order = by_score(scores, ~rows.says_outside)
    levels = scores[order].tolist()
    wrong = np.cumsum(~rows.good[order]).tolist()
    outside = np.cumsum(rows.outside[order]).tolist()
    expected = np.cumsum(chance_wrong(odds[order]))
    effects = plans = np.ones(len(order))
    outside_effects = effects
    if rows.groups is not None:
        effects = growing_effects(rows.groups[order], likeness)
        plans = growing_effects(rows.groups[order], planned)
        outside_effects = _effects_among(order, rows.outside, rows.outside, rows.groups)
    names = sorted(set(rows.dear.tolist()) - {""}) if rows.dear is not None else []
    of_labels = [_misses(name, order, expected, rows, missed) for name in names]
    for k, level in enumerate(levels):
        if k + 1 < len(levels) and levels[k + 1] >= level:
            continue
        of_cut = tuple(each[k] for each in of_labels)
        effect, planned_effect = float(effects[k]), float(plans[k])
        outside_effect = float(outside_effects[k])
        counts = k + 1, float(expected[k]), wrong[k], outside[k]
        yield Cut(level, *counts, effect, planned_effect, outside_effect, of_cut)


def by_score(scores: Floats, among: Mask) -> Groups:
    """The rows of a mask, the highest score first."""
    rows = np.flatnonzero(among)
    order: Groups = rows[np.argsort(-scores[rows], kind="stable")]
    return order


def _misses(
    label: str, order: Groups, expected: Floats, rows: CalibrationRows, missed: Labels | None
) -> list[Missed]:
    """The rows of a label where the first k + 1 rows in this order are kept, for every k."""
    assert rows.dear is not None and missed is not None
    of_label = rows.dear == label
    total = int(of_label.sum())
    wrong = of_label & ~rows.good
    share = (int((missed == label).sum()) + 0.5) / (len(missed) + 1)  # of the wrong answers
    effects = np.ones(len(order))
    if rows.groups is not None:
        effects = _effects_among(order, wrong, of_label, rows.groups)
    tells = total / effects.max()
    counts = np.cumsum(wrong[order]).tolist()
    of_cuts = zip(counts, (share * expected).tolist(), effects.tolist(), strict=True)
    return [Missed(label, count, total, tells, *rest) for count, *rest in of_cuts]


def chance_wrong(odds: Floats) -> Floats:
    """The chance that an answer is wrong, from the log odds that it is right."""
    chances: Floats = 1 / (1 + np.exp(np.clip(odds, -30, 30)))
    return chances


def likeness_of(rows: CalibrationRows, *, unknown: float = 1.0) -> float:
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
    effect = jackknife_effect(wrong, rows.groups)
    correlation = (effect - 1) / max(size - 1, 1e-9)
    return min(max(correlation, 0.0), 1.0)


def growing_effects(groups: Groups, likeness: float) -> Floats:
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
    tried = testable(cuts, config)
    if not tried:
        return None
    chosen = None
    for cut in tried[tried.index(likeliest_cut(tried, config)) :]:
        if cut.bound(config.confidence) > config.max_error:
            break
        limit = config.max_out_of_scope_kept
        if limit is not None and cut.outside_bound(outside, config.confidence) > limit:
            break
        labels = bounded_labels(cut, config)
        if any(each.bound(config.confidence) > config.max_error for each in labels):
            break
        chosen = cut
    return chosen


def testable(cuts: Sequence[Cut], config: CalibrateConfig) -> list[Cut]:
    """The cuts that can be tested, from the strictest to the loosest."""
    least = least_rows(config)
    return _thinned([cut for cut in cuts if cut.kept / cut.planned >= least])


def _thinned(cuts: Sequence[Cut]) -> list[Cut]:
    """About STEPS of the cuts, evenly spaced by kept rows; the
    strictest and the loosest are among them.
    """
    kept = list(cuts[:1])
    for cut in cuts[1:]:
        last = cuts[-1]
        step = max(1, last.kept // STEPS)
        if cut.kept >= kept[-1].kept + step or cut is last:
            kept.append(cut)
    return kept


def least_rows(config: CalibrateConfig) -> int:
    """Smallest number of rows with an error bound within `max_error`
    where none of their answers is wrong.
    """
    n = math.ceil(math.log(1 - config.confidence) / math.log(1 - config.max_error))
    is_enough = error_bound(0, n, config.confidence) <= config.max_error
    return n if is_enough else n + 1


def bounded_labels(cut: Cut, config: CalibrateConfig) -> list[Missed]:
    """The labels with a cost of their own that have enough rows for a bound."""
    return [each for each in cut.missed if each.tells >= least_rows(config)]


def likeliest_cut(tried: Sequence[Cut], config: CalibrateConfig) -> Cut:
    """The cut that most likely passes, at which the tests begin."""
    return max(tried, key=lambda cut: chance_to_pass(cut, config))


def chance_to_pass(cut: Cut, config: CalibrateConfig) -> float:
    """Predicted chance, 0 to 1, that this cut passes all of its error bounds."""
    tests = [(cut.kept / cut.planned, cut.expected / cut.planned)]
    tests += [(each.tells, each.expected) for each in bounded_labels(cut, config)]
    kept, expected = np.array(tests).T
    return float(chances_of(kept, expected, config).prod())


def chances_of(kept: Floats, expected: Floats, config: CalibrateConfig) -> Floats:
    """Predicted chances, 0 to 1, that the wrong ones among these numbers of kept answers pass the
    error bound.

    Their number is modelled as geometric with mean `expected`, a wide distribution: few rows fitted
    the scores, so `expected` may be far off. This favours cuts with more rows, which tolerate that.
    """
    needed = (_needed(wrong, config.max_error, config.confidence) for wrong in itertools.count())
    most = kept.max(initial=0)
    steps = list(itertools.takewhile(lambda rows: rows <= most, needed))
    tolerated = np.searchsorted(np.array(steps), kept, side="right")
    chances: Floats = 1 - (expected / (1 + expected)) ** tolerated
    return chances


@functools.cache
def _needed(wrong: int, max_error: float, confidence: float) -> int:
    """Number of independent rows from which so many wrong ones pass the bound."""
    rows = range(wrong + 1, 1 << 24)
    level = 1 - confidence

    def passes(count: int) -> bool:
        return chance_of_at_most(wrong, count, max_error) <= level

    return rows[bisect.bisect_left(rows, True, key=passes)]
