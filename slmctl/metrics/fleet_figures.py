"""Answers of a task router and its models together -> what is kept, how right that is, and one threshold for all.

A threshold is the same score for the router and every model. An answer is kept where both scores reach it, so the
smaller one orders the answers, and one fixed sequence tests the whole way: no level is spent twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from slmctl.config import NO_TASK, CalibrateConfig
from slmctl.inference.escalation_policy import PolicyFigures
from slmctl.metrics import error_threshold
from slmctl.metrics.error_threshold import CalibrationRows, Mask
from slmctl.metrics.statistics import error_bound, exact_interval


@dataclass(frozen=True)
class FleetOutcome:
    """One row as the fleet answered it.

    Attributes:
        task: The model that it is for, or NO_TASK.
        named: The router's answer.
        right: The named model is the right one, and its answer is right.
        keep: Every policy keeps it, at its own threshold.
        score: The smaller one of the scores of router and model; -inf where no model is named, or one of both answers
            has no log probabilities.
        fits: It fitted a score of one of the policies, so it tests no threshold.
        tokens: Of the prompt and the answer of the model that answered.
    """

    task: str
    named: str
    right: bool
    keep: bool
    score: float
    fits: bool
    tokens: tuple[int, int]


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
    scores = np.array([row.score for row in rows], dtype=float)  # a type of its own: there may be no rows
    table = CalibrationRows(
        ("score",), scores[:, None], _mask(row.right for row in rows), _mask(row.task == NO_TASK for row in rows),
        _mask(row.named == NO_TASK or row.score == -float("inf") for row in rows), _mask(row.fits for row in rows),
    )  # fmt: skip
    return error_threshold.tested(scores, table, config)


def kept(rows: Sequence[FleetOutcome], *, least: float | None, confidence: float) -> Kept:
    """Kept answers among some rows.

    Args:
        least: The score from which on an answer is kept; None for the policies' own thresholds.
        confidence: Of the interval and of the bound.
    """
    held = [row for row in rows if (row.keep if least is None else row.named != NO_TASK and row.score >= least)]
    inside = sum(row.task != NO_TASK for row in rows)
    inside_kept = sum(row.task != NO_TASK for row in held)
    wrong = sum(not row.right for row in held)
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


def _mask(values: Iterable[bool]) -> Mask:
    return np.array(list(values), dtype=bool)


def confusion(rows: Sequence[FleetOutcome]) -> list[tuple[str, str, int]]:
    """Numbers of rows by the model that they are for and the one that the router named."""
    return [(*pair, number) for pair, number in sorted(Counter((row.task, row.named) for row in rows).items())]
