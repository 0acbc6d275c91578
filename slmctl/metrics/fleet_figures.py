"""Answers of a task router and its models together -> what is kept, how right that is, and one threshold for all.

A threshold is the same score for the router and every model. An answer is kept where both scores reach it, so the
smaller one orders the answers, and one fixed sequence tests the whole way: no level is spent twice. Where a larger
model is asked after a small one, the first answer whose score reaches the threshold is given.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from slmctl.config import NO_TASK, CalibrateConfig
from slmctl.inference.escalation_policy import PolicyFigures
from slmctl.metrics import error_threshold
from slmctl.metrics.error_threshold import CalibrationRows, Cut, Mask
from slmctl.metrics.statistics import error_bound, exact_interval


@dataclass(frozen=True)
class ModelOutcome:
    """One row as one model answered it.

    Attributes:
        model: Its name.
        right: The named model is the right one, and this answer is right.
        keep: The policies of router and model keep it, at their own thresholds.
        score: The smaller one of the scores of router and model; -inf where one of both answers has no log
            probabilities.
    """

    model: str
    right: bool
    keep: bool
    score: float


@dataclass(frozen=True)
class FleetOutcome:
    """One row as the fleet answered it.

    Attributes:
        task: The model that it is for, or NO_TASK.
        named: The router's answer.
        is_sure: The router's policy keeps that answer, at its own threshold.
        answers: Of the named model, then of its larger one where it has one; none where no model is named.
        fits: It fitted a score of one of the policies, so it tests no threshold.
        tokens: Of the prompt and the answer of the named model.
    """

    task: str
    named: str
    is_sure: bool
    answers: tuple[ModelOutcome, ...]
    fits: bool
    tokens: tuple[int, int]

    def kept(self, least: float | None) -> ModelOutcome | None:
        """The first answer that is kept from a score on, or by the policies' own thresholds; None where none is."""
        return next((each for each in self.answers if (each.keep if least is None else each.score >= least)), None)

    @property
    def asked(self) -> tuple[ModelOutcome, ...]:
        """The answers of the models that are asked with the policies' own thresholds."""
        first = next((place for place, each in enumerate(self.answers) if each.keep), len(self.answers))
        return self.answers[: first + 1] if self.is_sure else self.answers[:1]


class Kept(TypedDict):
    """Kept answers among some rows; shares from 0 to 1.

    Attributes:
        rows: Rows that are for a model.
        kept: Of them, those whose answer is kept.
        accuracy, interval: Right ones among all kept answers, None where nothing is kept, and the exact interval; kept
            ones for no task are wrong.
        error_bound: Exact upper bound of the error among kept answers.
        wrong, kept_rows: Numbers of wrong and of all kept answers.
        none_rows, none_kept: Rows for no model, and their share that is kept.
    """

    rows: int
    kept: float
    accuracy: float | None
    interval: list[float]
    error_bound: float
    wrong: int
    kept_rows: int
    none_rows: int
    none_kept: float


def threshold(rows: Sequence[FleetOutcome], config: CalibrateConfig) -> tuple[float, PolicyFigures]:
    """The loosest score that the router and every model may share, tested on rows that fitted no score.

    Raises:
        GateError: None keeps the error low enough.
    """
    answers = [_possible(row) for row in rows]
    scores = np.array([each[0].score if each else -math.inf for each in answers], dtype=float)  # there may be no rows
    table = CalibrationRows(
        ("score",), scores[:, None], _mask(bool(each) and each[-1].right for each in answers),
        _mask(row.task == NO_TASK for row in rows), _mask(not each for each in answers),
        _mask(row.fits for row in rows),
    )  # fmt: skip
    return error_threshold.passed(list(cuts([row for row in rows if not row.fits])), table, config)


def _possible(row: FleetOutcome) -> list[ModelOutcome]:
    """The answers to a row that some threshold gives, the surest one first.

    One that is no surer than an earlier one is never given, since that one is kept wherever it would be.
    """
    rising: list[ModelOutcome] = []
    for answer in row.answers:
        if answer.score > (rising[-1].score if rising else -math.inf):
            rising.append(answer)
    return rising[::-1]


def cuts(rows: Sequence[FleetOutcome]) -> Iterator[Cut]:
    """Every distinct score as a threshold, from the strictest to the loosest.

    A row is kept from the score of its surest answer on. From that of an earlier answer on that one is given in its
    place, so a row that is kept may turn from right to wrong, or back.
    """
    changes: list[tuple[float, int, float, int, int]] = []  # the score, and what is added to each field of a Cut
    for row in rows:
        outside, expected, wrong = row.task == NO_TASK, 0.0, 0
        for place, answer in enumerate(_possible(row)):
            now = 1 / (1 + math.exp(min(max(answer.score, -30.0), 30.0)))
            is_wrong, is_first = int(outside or not answer.right), place == 0
            changes.append((answer.score, int(is_first), now - expected, is_wrong - wrong, int(is_first and outside)))
            expected, wrong = now, is_wrong
    changes.sort(key=lambda change: -change[0])
    cut = Cut(math.inf, 0, 0.0, 0, 0)
    for score, together in itertools.groupby(changes, key=lambda change: change[0]):
        for _, kept, expected, wrong, away in together:
            cut = Cut(score, cut.kept + kept, cut.expected + expected, cut.wrong + wrong, cut.outside_kept + away)
        yield cut


def kept(rows: Sequence[FleetOutcome], *, least: float | None, confidence: float) -> Kept:
    """Kept answers among some rows.

    Args:
        least: The score from which on an answer is kept; None for the policies' own thresholds.
        confidence: Of the interval and of the bound.
    """
    held = [(row, answer) for row in rows if (answer := row.kept(least)) is not None]
    inside = sum(row.task != NO_TASK for row in rows)
    inside_kept = sum(row.task != NO_TASK for row, _ in held)
    wrong = sum(not answer.right for _, answer in held)
    outside = len(rows) - inside
    return {
        "rows": inside,
        "kept": inside_kept / max(inside, 1),
        "accuracy": 1 - wrong / len(held) if held else None,
        "interval": list(exact_interval(len(held) - wrong, len(held), confidence)),
        "error_bound": error_bound(wrong, len(held), confidence),
        "wrong": wrong,
        "kept_rows": len(held),
        "none_rows": outside,
        "none_kept": (len(held) - inside_kept) / max(outside, 1),
    }


def by_model(rows: Sequence[FleetOutcome]) -> list[tuple[str, int, int, int]]:
    """By model the numbers of rows that it was asked, whose answer of it is kept, and of wrong ones among these.

    With the policies' own thresholds.
    """
    rows_of = Counter(answer.model for row in rows for answer in row.asked)
    held = [answer for row in rows if (answer := row.kept(None)) is not None]
    kept, wrong = Counter(each.model for each in held), Counter(each.model for each in held if not each.right)
    return [(model, number, kept[model], wrong[model]) for model, number in sorted(rows_of.items())]


def _mask(values: Iterable[bool]) -> Mask:
    return np.array(list(values), dtype=bool)


def confusion(rows: Sequence[FleetOutcome]) -> list[tuple[str, str, int]]:
    """Numbers of rows by the model that they are for and the one that the router named."""
    return [(*pair, number) for pair, number in sorted(Counter((row.task, row.named) for row in rows).items())]
