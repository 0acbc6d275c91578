"""Out-of-fold probabilities and labels -> rows with a label that is probably wrong, by confident
learning.

Source: Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels",
JAIR 70 (2021).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Indices = npt.NDArray[np.int64]

# tolerance of the comparison with a threshold, since a mean of equal values is rounded
SLACK = 1e-6
# least share of labels that a model must agree with; a weaker model doubts mostly right labels
SURE = 0.8
# decimals of a score, so that the order of rows does not depend on a machine's last bits
DIGITS = 4


@dataclass(frozen=True)
class LabelErrors:
    """Rows with a label that is probably wrong, the worst first.

    Attributes:
        rows: (k,) indices of rows.
        proposed: (k,) index of the likeliest label.
        scores: (k,) p(proposed) / (p(proposed) + p(the row's label)); above 0.5, at most 1.
    """

    rows: Indices
    proposed: Indices
    scores: npt.NDArray[np.float64]


def thresholds(chances: Floats, labels: Indices) -> npt.NDArray[np.float64]:
    """The mean probability of each label over the rows that have it,
    (labels,); 1 for a label without rows.
    """
    count = chances.shape[1]
    own = chances[np.arange(len(labels)), labels].astype(np.float64)
    rows = np.bincount(labels, minlength=count)
    sums = np.bincount(labels, weights=own, minlength=count)
    means: npt.NDArray[np.float64] = np.divide(sums, rows, out=np.ones(count), where=rows > 0)
    return means


def joint(chances: Floats, labels: Indices) -> npt.NDArray[np.int64]:
    """The confident joint, (labels, labels): number of rows by their label, and by the label that
    is confidently true.

    A label is confidently true of a row if its probability reaches that label's threshold; of
    several the likeliest counts, and a row without one is not counted. Each cell of the diagonal is
    at least 1.
    """
    confident = chances >= thresholds(chances, labels) - SLACK  # (n, labels)
    several = confident.sum(axis=1) > 1
    belongs = np.where(several, chances.argmax(axis=1), confident.argmax(axis=1))
    counted = confident.any(axis=1)
    size = chances.shape[1]
    counts = np.zeros((size, size), np.int64)
    np.add.at(counts, (labels[counted], belongs[counted]), 1)
    np.fill_diagonal(counts, counts.diagonal().clip(min=1))
    return counts


def find(chances: Floats, labels: Indices) -> LabelErrors:
    """Find the rows with a label that is probably wrong.

    Their number: for each label, its rows times its share off the diagonal of the confident joint.
    Chosen are the rows with the highest `scores`. The paper orders by the difference of the two
    probabilities; ordered by their ratio, more of the first rows are errors (benchmarks/README.md).

    `chances`: (n, labels), out-of-fold probabilities; `labels`: (n,) indices.
    """
    counts = joint(chances, labels)
    right = counts.diagonal() / counts.sum(axis=1)
    wrong = np.bincount(labels, minlength=len(counts)) * (1 - right)
    expected = round(float(wrong.sum()))
    likeliest = chances.argmax(axis=1)
    rows = np.arange(len(labels))
    own = chances[rows, labels].astype(np.float64)
    best = chances[rows, likeliest].astype(np.float64)
    scores = np.round(best / (best + own), DIGITS)
    doubted = np.flatnonzero(likeliest != labels)
    order = np.argsort(-scores[doubted], kind="stable")
    worst = doubted[order][:expected]
    return LabelErrors(worst, likeliest[worst], scores[worst])
