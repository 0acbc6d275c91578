"""Vectors of texts with labels -> logistic regression on a frozen sentence encoder.

scikit-learn (the extra `evaluate`) is imported when a model is fitted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slmctl.metrics import linear_baseline
from slmctl.metrics.likelihood import Logprobs
from slmctl.metrics.stored_arrays import StoredArrays

NAME = "encoder_logistic"  # in reports and gates
Floats = npt.NDArray[np.float32]
Named = tuple[Sequence[str], Floats]  # labels, and the vectors (n, size) of their names and descriptions
_UNSPOKEN = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class EncoderHead:
    """Logistic regression over the vectors of an encoder.

    Attributes:
        labels: The L labels.
        weights, bias: (L, size) and (L,).
    """

    labels: tuple[str, ...]
    weights: Floats
    bias: Floats

    @classmethod
    def of(cls, kept: StoredArrays, labels: Sequence[str]) -> EncoderHead | None:
        """The head with these labels among stored arrays; None without one. Raises a ValueError for a bad one."""
        if "bias" not in kept:
            return None
        return cls(tuple(labels), kept.numbers("weights", len(labels), None), kept.numbers("bias", len(labels)))

    @property
    def size(self) -> int:
        """Numbers of a vector."""
        return self.weights.shape[1]

    def evidence(self, vectors: Floats) -> Logprobs:
        """The sum of each label by itself, (n, L); its softmax are the probabilities."""
        return (vectors @ self.weights.T + self.bias).astype(np.float64)


def spoken(label: str) -> str:
    """The name of a label as words, such as 'card arrival' for card_arrival."""
    return _UNSPOKEN.sub(" ", label).strip()


def fit_head(
    vectors: Floats, labels: Sequence[str], *, choosing: Floats, chosen: Sequence[str], named: Named | None = None
) -> EncoderHead:
    """Logistic regression over vectors, with the regularisation by which the `choosing` rows are the likeliest.

    Args:
        vectors, labels: Vectors (n, size) and labels of the training rows.
        choosing, chosen: Vectors and labels of the rows that choose the regularisation.
        named: (labels, vectors of their names), learned as rows too; other labels than those of the rows are left out.
    """
    known_labels = set(labels)
    if named is not None and (learned := [k for k, label in enumerate(named[0]) if label in known_labels]):
        vectors, labels = np.concatenate([vectors, named[1][learned]]), [*labels, *(named[0][k] for k in learned)]
    if len(set(labels)) < 2:
        return EncoderHead((labels[0],), np.zeros((1, vectors.shape[1]), np.float32), np.zeros(1, np.float32))
    model, _ = linear_baseline.fitted(vectors, labels, choosing, chosen, likelihood=True, solver="lbfgs", max_iter=2000)
    weights, bias = model.coef_.astype(np.float32), model.intercept_.astype(np.float32)
    if len(weights) == 1:  # for two labels scikit-learn keeps one row of weights, of the second label
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    return EncoderHead(tuple(map(str, model.classes_)), weights, bias)
