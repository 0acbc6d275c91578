"""Vectors of texts with labels -> logistic regression on a frozen sentence encoder.

scikit-learn (the extra `evaluate`) is imported when a model is fitted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slmctl.metrics import label_spreading, linear_baseline
from slmctl.metrics.likelihood import Logprobs, normalised, sharpest
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


def gains(
    vectors: Floats, labels: Sequence[str], unlabelled: Floats, *, choosing: Floats, chosen: Sequence[str],
    named: Named | None = None,
) -> bool:  # fmt: skip
    """True where held-out rows are likelier by a head that learns the unlabelled rows too; arguments as of `fit_head`.

    Held out are, of each label, every second training row, and the `choosing` rows.
    """
    seen: Counter[str] = Counter()
    hidden = np.zeros(len(labels), bool)
    for k, label in enumerate(labels):
        hidden[k], seen[label] = seen[label] % 2, seen[label] + 1
    answers = np.array(labels)
    held, references = np.concatenate([vectors[hidden], choosing]), [*answers[hidden], *chosen]

    def likelihood(rows: Floats | None) -> float:
        head = fit_head(
            vectors[~hidden], list(answers[~hidden]), choosing=held, chosen=references, named=named, unlabelled=rows
        )
        return sharpest(head.labels, normalised(head.evidence(held)), references)[1]

    return likelihood(unlabelled) > likelihood(None)


def fit_head(
    vectors: Floats, labels: Sequence[str], *, choosing: Floats, chosen: Sequence[str], named: Named | None = None,
    unlabelled: Floats | None = None,
) -> EncoderHead:  # fmt: skip
    """Logistic regression over vectors, with the regularisation by which the `choosing` rows are the likeliest.

    Args:
        vectors, labels: Vectors (n, size) and labels of the training rows.
        choosing, chosen: Vectors and labels of the rows that choose the regularisation.
        named: (labels, vectors of their names), learned as rows too; other labels than those of the rows are left out.
        unlabelled: (m, size) vectors of rows without a label, learned with labels that a head without them, and
            neighbours, give them (`label_spreading`).
    """
    known_labels = set(labels)
    if named is not None and (learned := [k for k, label in enumerate(named[0]) if label in known_labels]):
        vectors, labels = np.concatenate([vectors, named[1][learned]]), [*labels, *(named[0][k] for k in learned)]
    head = _logistic(vectors, labels, choosing, chosen)
    if unlabelled is None or len(head.labels) < 2:
        return head
    sharpness, _ = sharpest(head.labels, normalised(head.evidence(choosing)), chosen)
    chances = np.exp(normalised(sharpness * head.evidence(unlabelled)))
    places, weights = label_spreading.spread(vectors, np.searchsorted(head.labels, labels), unlabelled, chances)
    answers = [*labels, *(head.labels[k] for k in places)]
    weights = np.concatenate([np.ones(len(labels), np.float32), weights])
    return _logistic(np.concatenate([vectors, unlabelled]), answers, choosing, chosen, weights)


def _logistic(
    vectors: Floats, labels: Sequence[str], choosing: Floats, chosen: Sequence[str], weights: Floats | None = None
) -> EncoderHead:
    if len(set(labels)) < 2:
        return EncoderHead((labels[0],), np.zeros((1, vectors.shape[1]), np.float32), np.zeros(1, np.float32))
    model, _ = linear_baseline.fitted(
        vectors, labels, choosing, chosen, likelihood=True, weights=weights, solver="lbfgs", max_iter=2000
    )
    coefficients, bias = model.coef_.astype(np.float32), model.intercept_.astype(np.float32)
    if len(coefficients) == 1:  # for two labels scikit-learn keeps one row of weights, of the second label
        coefficients, bias = np.concatenate([-coefficients, coefficients]) / 2, np.concatenate([-bias, bias]) / 2
    return EncoderHead(tuple(map(str, model.classes_)), coefficients, bias)
