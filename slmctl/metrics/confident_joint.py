"""Out-of-fold probabilities and labels -> rows whose label is probably wrong, by confident learning.

Source: Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 70 (2021).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Indices = npt.NDArray[np.int64]

SLACK = 1e-6  # below a threshold that still reaches it: a mean of equal values is rounded
SURE = 0.8  # share of the labels that a model agrees with; one that knows less doubts mostly right labels
DIGITS = 4  # of a score, so that rows keep their order where another machine rounds the last bits differently


@dataclass(frozen=True)
class LabelErrors:
    """Rows whose label is probably wrong, the worst first.

    Attributes:
        rows: (k,) their indices.
        proposed: (k,) the label that fits best.
        scores: (k,) the probability of the proposed label, if it or the given one is right; above 0.5, at most 1.
    """

    rows: Indices
    proposed: Indices
    scores: npt.NDArray[np.float64]


def thresholds(chances: Floats, labels: Indices) -> npt.NDArray[np.float64]:
    """The mean probability of each label over the rows that have it, (labels,); 1 for a label without rows."""
    count = chances.shape[1]
    own = chances[np.arange(len(labels)), labels].astype(np.float64)
    rows = np.bincount(labels, minlength=count)
    sums = np.bincount(labels, weights=own, minlength=count)
    means: npt.NDArray[np.float64] = np.divide(sums, rows, out=np.ones(count), where=rows > 0)
    return means


def joint(chances: Floats, labels: Indices) -> npt.NDArray[np.int64]:
    """The confident joint, (labels, labels): rows by their label, and by the label that they confidently belong to.

    A row belongs to a label whose threshold its probability reaches, of several to the likeliest one, of none to
    nothing. Every label has at least one row of its own.
    """
    confident = chances >= thresholds(chances, labels) - SLACK  # (n, labels)
    belongs = np.where(confident.sum(axis=1) > 1, chances.argmax(axis=1), confident.argmax(axis=1))
    counted = confident.any(axis=1)
    counts = np.zeros((chances.shape[1], chances.shape[1]), np.int64)
    np.add.at(counts, (labels[counted], belongs[counted]), 1)
    np.fill_diagonal(counts, counts.diagonal().clip(min=1))
    return counts


def find(chances: Floats, labels: Indices) -> LabelErrors:
    """The rows whose label is probably wrong.

    Their number is the share off the diagonal of the confident joint, of the rows of each label. They are those whose
    own label is least likely beside the likeliest one. The paper orders by the difference of the two probabilities;
    by their ratio more of the errors come first (benchmarks/README.md).

    `chances` are (n, labels) probabilities of a model that was not trained on the row.
    """
    counts, rows = joint(chances, labels), np.arange(len(labels))
    right = counts.diagonal() / counts.sum(axis=1)
    expected = round(float((np.bincount(labels, minlength=len(counts)) * (1 - right)).sum()))
    likeliest = chances.argmax(axis=1)
    own, best = chances[rows, labels].astype(np.float64), chances[rows, likeliest].astype(np.float64)
    scores = np.round(best / (best + own), DIGITS)
    doubted = np.flatnonzero(likeliest != labels)
    worst = doubted[np.argsort(-scores[doubted], kind="stable")][:expected]
    return LabelErrors(worst, likeliest[worst], scores[worst])
