"""Votes and gold rows -> accepted labels, with an exact bound on how many of them are wrong.

Signals of a row (agreement of votes and of teachers, token probabilities, a linear model) become a
score, and a threshold on it is tested on gold rows by the code of `calibrate`. Rows to label and
gold rows that test it are treated alike: the linear model learns from the teachers' labels of both,
never from the row that it judges, and never from a gold answer that tests.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from slmctl import console
from slmctl.config import CalibrateConfig, LabelConfig
from slmctl.console import percent
from slmctl.deduplication import minhash, near_duplicates
from slmctl.errors import GateError
from slmctl.inference.escalation_policy import PolicyFigures, linear
from slmctl.metrics import answer_metrics, cross_fitting, error_threshold, linear_baseline
from slmctl.metrics.answer_score import CalibrationRows
from slmctl.metrics.error_threshold import MIN_ROWS, FittedThreshold
from slmctl.metrics.statistics import batch_bound, error_bound
from slmctl.stages.label.rows import LabelRow
from slmctl.stages.label.teachers import Vote
from slmctl.task.kinds import kind_of

MIN_AGREEMENT = 0.7  # least mean pairwise token F1 of a row's free texts for one to be accepted
FOLDS = 5  # of the linear model that judges the teachers' labels
# accepted rows; with so many, the bound for all rows accepted in this way holds for them
BATCH = 300
FLOOR = 1e-4  # least share or probability, so that log odds are finite


@dataclass
class LabelledRow:
    """A row with the teachers' votes and the decision on them.

    Attributes:
        votes: Every answer, of all teachers.
        answer: The answer with the most votes, in a tie the first teacher's; '' without a valid
            vote.
        score: The linear score of its signals; None before one is fitted.
        p_correct: Probability that the answer is right.
    """

    row: LabelRow
    votes: list[Vote]
    answer: str = ""
    signals: dict[str, float] = field(default_factory=dict)
    score: float | None = None
    p_correct: float | None = None
    accepted: bool = False

    @property
    def agreement(self) -> float:
        """Share of the votes that the answer has."""
        return sum(same(vote.answer, self.answer) for vote in self.votes if vote.is_valid) / max(
            len(self.votes), 1
        )


@dataclass(frozen=True)
class Bound:
    """The bound on accepted labels; shares, unless they are numbers of rows.

    Attributes:
        reason: The reason why there is no bound; '' if there is one.
        tested_on: Gold rows that tested the threshold.
        kept, error, error_bound: Share of these rows at the threshold, share of wrong ones in it,
            its upper bound.
        accepted: Rows that are accepted; `most_wrong` is the bound on the wrong ones among them,
            None from BATCH on.
        fields: For objects, the error bound of each key, at the same threshold.
        curve: (kept, error, error_bound) of stricter and looser thresholds.
    """

    max_error: float
    confidence: float
    reason: str = ""
    tested_on: int = 0
    kept: float = 0.0
    error: float = 0.0
    error_bound: float = 1.0
    threshold: float = 0.0
    accepted: int = 0
    most_wrong: int | None = None
    fields: Mapping[str, float] = field(default_factory=dict)
    curve: Sequence[tuple[float, float, float]] = ()

    @property
    def at_most(self) -> float:
        """Largest share of wrong labels: of the accepted ones here, or from
        BATCH on of all accepted in this way.
        """
        return self.error_bound if self.most_wrong is None else self.most_wrong / self.accepted


def same(answer: str, other: str) -> bool:
    """True for equal labels or texts, and for equal JSON objects or lists."""
    if answer == other:
        return True
    return isinstance(answer_metrics.parse(answer), dict | list) and answer_metrics.same_json(
        answer, other
    )


def choose(kind: str, votes: Sequence[Vote]) -> str:
    """The answer with the most valid votes, or the free text most like
    the others; '' without a valid vote.
    """
    valid = [vote.answer for vote in votes if vote.is_valid]
    if not valid:
        return ""
    if kind_of(kind).is_free:
        return max(valid, key=lambda text: sum(_likeness(text, other) for other in valid))
    return max(valid, key=lambda answer: sum(same(answer, other) for other in valid))


def likeness(votes: Sequence[Vote]) -> float:
    """Mean pairwise token F1 of the valid votes, times their share
    of all votes; 0 for fewer than two.
    """
    texts = [vote.answer for vote in votes if vote.is_valid]
    pairs = [(a, b) for k, a in enumerate(texts) for b in texts[k + 1 :]]
    if not pairs:
        return 0.0
    return sum(_likeness(a, b) for a, b in pairs) / len(pairs) * len(texts) / len(votes)


def _likeness(text: str, other: str) -> float:
    return answer_metrics.token_f1(answer_metrics.words(text), answer_metrics.words(other))


def accept(config: LabelConfig, rows: Sequence[LabelledRow], gold: Sequence[LabelledRow]) -> Bound:
    """Set `score`, `p_correct` and `accepted` of every row, by the
    threshold that the gold rows bound.
    """
    promise = CalibrateConfig(max_error=config.max_error, confidence=config.confidence)
    bound = functools.partial(Bound, config.max_error, config.confidence)
    if kind_of(config.task.kind).is_free:
        for entry in rows:
            entry.accepted = bool(entry.answer) and likeness(entry.votes) >= MIN_AGREEMENT
        return bound(
            "two good free texts may share few words, so without a judge no text can be counted as "
            "right"
        )
    _measure(config, rows, gold)
    if len(gold) < MIN_ROWS:
        return bound(
            f"{len(gold)} gold rows are too few for a bound: at least {MIN_ROWS} are needed"
        )
    try:
        fitted = error_threshold.fit(_table(gold), promise)
    except GateError as error:
        return bound(error.message)
    _score([*rows, *gold], fitted)
    for entry in (*rows, *gold):
        entry.accepted = bool(entry.answer) and (entry.score or 0.0) >= fitted["threshold"]
    figures = fitted["figures"]
    accepted = [entry for entry in rows if entry.accepted]
    return bound(
        "",
        figures["tested_on"],
        figures["kept"],
        figures["error"],
        figures["error_bound"],
        fitted["threshold"],
        len(accepted),
        _most_wrong(accepted, figures, config.confidence),
        _fields(config, gold, figures),
        [(point["kept"], point["error"], point["error_bound"]) for point in figures["curve"]],
    )


def _table(gold: Sequence[LabelledRow]) -> CalibrationRows:
    """Gold rows as the code of calibrate reads them; a row without an answer is never kept."""
    names = tuple(gold[0].signals)
    none = np.zeros(len(gold), dtype=bool)
    groups = [entry.row.group or entry.row.id for entry in gold]
    numbers = np.unique(groups, return_inverse=True)[1]
    return CalibrationRows(
        names,
        signals=np.array([[entry.signals[name] for name in names] for entry in gold]),
        right=np.array([is_right(entry) for entry in gold]),
        outside=none,
        says_outside=np.array([not entry.answer for entry in gold]),
        fits=np.array([entry.row.is_pool for entry in gold]),
        groups=numbers if any(entry.row.group for entry in gold) else None,
    )


def _most_wrong(
    accepted: Sequence[LabelledRow], figures: PolicyFigures, confidence: float
) -> int | None:
    """Upper bound of the number of wrong labels among accepted rows; None for no rows, and from
    BATCH rows on.

    Near-duplicates and rows of one group are right or wrong together, so clusters are counted, and
    the largest ones assumed wrong.
    """
    if not 0 < len(accepted) < BATCH:
        return None
    tested, effect = (
        round(figures["kept"] * figures["tested_on"]),
        figures.get("design_effect", 1.0),
    )
    alike = near_duplicates.clusters(
        [minhash.normalise(entry.row.text) for entry in accepted]
    ).tolist()
    clusters = Counter(
        entry.row.group or place for entry, place in zip(accepted, alike, strict=True)
    )
    counts = math.ceil(round(figures["error"] * tested) / effect), math.floor(tested / effect)
    wrong = batch_bound(*counts, len(clusters), confidence)
    return sum(size for _, size in clusters.most_common(wrong))


def is_right(entry: LabelledRow) -> bool:
    """True if the answer to a gold row equals the people's, an object as a whole."""
    return bool(entry.answer) and same(entry.answer, entry.row.gold)


def _score(entries: Sequence[LabelledRow], fitted: FittedThreshold) -> None:
    scores = [knot[0] for knot in fitted["knots"]]
    chances = [knot[1] for knot in fitted["knots"]]
    for entry in entries:
        entry.score = linear(fitted["weights"], fitted["bias"], entry.signals)
        entry.p_correct = round(float(np.interp(entry.score, scores, chances)), 4)


def _fields(
    config: LabelConfig, gold: Sequence[LabelledRow], figures: PolicyFigures
) -> dict[str, float]:
    """Upper bound of the error of each key among the accepted
    objects; a key that both lack is right.
    """
    if not kind_of(config.task.kind).structured:
        return {}
    tested = [entry for entry in gold if entry.accepted and not entry.row.is_pool]
    pairs = [(json.loads(entry.row.gold), json.loads(entry.answer)) for entry in tested]
    keys = sorted(
        {key for pair in pairs for value in pair if isinstance(value, dict) for key in value}
    )
    wrong = {
        key: sum(not answer_metrics.equal(_field(a, key), _field(b, key)) for a, b in pairs)
        for key in keys
    }
    effect = figures.get("design_effect", 1.0)
    total = math.floor(len(pairs) / effect)
    return {
        key: error_bound(math.ceil(count / effect), total, config.confidence)
        for key, count in wrong.items()
    }


def _field(value: Any, key: str) -> Any:
    return value.get(key, "\x00absent") if isinstance(value, dict) else "\x00absent"


# Signals


def _measure(config: LabelConfig, rows: Sequence[LabelledRow], gold: Sequence[LabelledRow]) -> None:
    """Set the signals of every row: the same ones for all, in one order."""
    every = [*rows, *gold]
    has_tokens = any(vote.confidence is not None for entry in every for vote in entry.votes)
    chances = linear_chances(rows, gold) if kind_of(config.task.kind).chooses else {}
    for entry in every:
        entry.signals = {"votes": _log_odds(entry.agreement)}
        if len(config.teachers) > 1:
            entry.signals["teachers"] = _teachers(entry)
        if has_tokens:
            sure = [
                vote.confidence
                for vote in entry.votes
                if vote.is_valid and vote.confidence is not None and same(vote.answer, entry.answer)
            ]
            entry.signals["tokens"] = _log_odds(sum(sure) / len(sure)) if sure else 0.0
        if chances:
            entry.signals["linear"] = _log_odds(chances[entry.row.id])


def _teachers(entry: LabelledRow) -> float:
    """Share of the answering teachers that chose the answer, plus a
    little for each teacher after the first.
    """
    by_teacher: dict[int, Counter[bool]] = {}
    for vote in entry.votes:
        by_teacher.setdefault(vote.teacher, Counter())[
            vote.is_valid and same(vote.answer, entry.answer)
        ] += 1
    agreeing = sum(votes[True] > votes[False] for votes in by_teacher.values())
    # two that agree tell more than one alone
    return agreeing / max(len(by_teacher), 1) + 0.1 * (len(by_teacher) - 1)


def linear_chances(rows: Sequence[LabelledRow], gold: Sequence[LabelledRow]) -> dict[str, float]:
    """{row id: probability of its label}, by a linear model trained on the teachers' labels of
    other rows.

    Empty without gold rows of the pool, which choose its regularisation, or without scikit-learn.
    """
    every = [*rows, *gold]
    folds = [_fold(entry.row.id) for entry in every]
    chosen = [entry for entry in gold if entry.row.is_pool]
    if not chosen or not linear_baseline.is_installed():
        return {}
    chances = {entry.row.id: 0.0 for entry in every}
    strengths: Sequence[float] = cross_fitting.STRENGTHS
    with console.progress("linear model of the labels", FOLDS, "parts") as meter:
        for fold in range(FOLDS):
            inside = [k for k, entry in enumerate(every) if folds[k] == fold and entry.answer]
            others = [entry for k, entry in enumerate(every) if folds[k] != fold and entry.answer]
            if inside and others:
                model = linear_baseline.fit(
                    [entry.row.text for entry in others],
                    [entry.answer for entry in others],
                    choosing=[entry.row.text for entry in chosen],
                    chosen=[entry.row.gold for entry in chosen],
                    strengths=strengths,
                )
                strengths = (model.strength,)  # chosen once, on the first part
                probabilities = model.chances(
                    [every[k].row.text for k in inside], [every[k].answer for k in inside]
                )
                chances |= {
                    every[k].row.id: chance for k, chance in zip(inside, probabilities, strict=True)
                }
            meter.advance()
    return chances


def _fold(id: str) -> int:
    return hashlib.sha256(f"fold/{id}".encode()).digest()[0] % FOLDS


def _log_odds(share: float) -> float:
    return math.log(max(share, FLOOR) / max(1 - share, FLOOR))


def sentence(bound: Bound) -> str:
    if bound.reason:
        return f"no bound: {bound.reason}"
    tested = (
        f"wrong, with {percent(bound.confidence, 0)} confidence ({percent(bound.error)} of those "
        "that "
        f"{bound.tested_on} gold rows tested)"
    )
    if bound.most_wrong is None:
        return f"of labels accepted in this way at most {percent(bound.at_most)} are {tested}"
    return (
        f"of the {bound.accepted} accepted label{'s' * (bound.accepted != 1)} at most "
        f"{bound.most_wrong} "
        f"({percent(bound.at_most)}) {'is' if bound.most_wrong == 1 else 'are'} {tested}"
    )
