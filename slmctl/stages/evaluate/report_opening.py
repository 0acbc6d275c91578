"""The project around a report: its origin, today's gates, the training and the policy.

A report follows from predictions and data alone. What lies around it (gates, training, policy)
changes without a new measurement, so the page inside the artifact lacks it, and `slmctl evaluate`
writes a second one with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Training:
    """The training of the model to release; losses are (step, loss),
    `seconds` is the time of the whole stage.
    """

    steps: int
    best_step: int
    seconds: float
    loss_before: float | None
    loss: float | None
    train_losses: Sequence[tuple[int, float]] = ()
    validation_losses: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True)
class PolicyShares:
    """Share of answers that the policy keeps, and share of these that are wrong, on the rows that
    tested it.

    Attributes:
        cost: Of a thousand questions, with its interval, in `currency`; None without prices.
    """

    kept: float
    error: float
    rows: int
    cost: tuple[float, float, float] | None = None
    currency: str = ""


@dataclass(frozen=True)
class RowsCurve:
    """Right answers to the same validation rows, of cheap models by the rows that they learned and
    of the tuned model.

    Attributes:
        rows: Number of validation rows.
        points: (rows learned, right answers of encoder and words, of words alone); the last with
            the most rows.
        tuned: Right answers of the tuned file alone, which learned the training rows; None if it
            did not answer these.
        encoder: Right answers of words with the encoder that learned all training rows; None if the
            frozen one answers.
    """

    rows: int
    points: Sequence[tuple[int, int, int]]
    tuned: int | None
    encoder: int | None = None


@dataclass(frozen=True)
class Opening:
    """The project around a report; `gates` are the results of today's gates, a sentence each with
    its verdict, and `linear` is the instruction to take the linear model if that wins.
    """

    project: str
    base: str
    data: str
    date: str
    gates: Sequence[tuple[bool, str]] = ()
    training: Training | None = None
    policy: PolicyShares | None = None
    by_rows: RowsCurve | None = None
    linear: str = ""

    @property
    def failed(self) -> int:
        return sum(not passed for passed, _ in self.gates)
