"""Vectors of texts with labels -> logistic regression on a sentence encoder.

scikit-learn (the extra `evaluate`) is imported when a model is fitted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from slmctl.metrics import cross_fitting, label_spreading
from slmctl.metrics.cross_fitting import FoldRows, Indices
from slmctl.metrics.likelihood import LEAST_GAIN, Logprobs, normalised, sharpest
from slmctl.metrics.stored_arrays import StoredArrays

Floats = npt.NDArray[np.float32]
# labels, and the vectors (n, size) of their names and descriptions
Named = tuple[Sequence[str], Floats]
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
        """The head with these labels among stored arrays; None without
        one. Raises a ValueError for a bad one.
        """
        if "bias" not in kept:
            return None
        weights = kept.numbers("weights", len(labels), None)
        bias = kept.numbers("bias", len(labels))
        return cls(tuple(labels), weights, bias)

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


@dataclass(frozen=True)
class HeadFit:
    """A head that learned all rows.

    Attributes:
        logprobs: Judgements as of `CrossFit`.
        learns_unlabelled: True where heads that learn the unlabelled rows too make the judged rows
            likelier, by LEAST_GAIN at the least.
        strength: The inverse regularisation of a head of the labelled rows alone.
    """

    head: EncoderHead
    logprobs: Logprobs
    learns_unlabelled: bool = False
    strength: float = cross_fitting.STRENGTHS[0]


def cross_fit(
    vectors: Floats,
    labels: Sequence[str],
    *,
    fold: Indices,
    named: Named | None = None,
    unlabelled: Floats | None = None,
    whole: bool = True,
    strengths: Sequence[float] = cross_fitting.STRENGTHS,
) -> HeadFit:
    """Fit logistic regression over vectors, with the regularisation by which the judged rows are
    the likeliest.

    Args:
        vectors, labels: Vectors (n, size) and labels of the rows.
        fold: (n,) of the rows, as `cross_fitting.folds` gives it.
        named: (labels, vectors of their names), learned as rows too; other labels than those of the
            rows are left out.
        unlabelled: (m, size) vectors of rows without a label, learned where that helps, with labels
            that a head without them, and neighbours, give them (`label_spreading`).
        whole: As in `cross_fitting.splits`; without, the head is that of the last fold.
        strengths: As in `cross_fitting.fit`.
    """
    answers = np.array(labels)
    names = np.unique(answers)
    if len(names) < 2:
        weights = np.zeros((1, vectors.shape[1]), np.float32)
        head = EncoderHead((labels[0],), weights, np.zeros(1, np.float32))
        return HeadFit(head, np.zeros((len(labels), 1)))
    parts = []
    for learned, judged in cross_fitting.splits(fold, answers, whole=whole):
        part = FoldRows(vectors[learned], answers[learned], vectors[judged], judged)
        parts.append(part if named is None else _with_names(part, *named))
    alone = cross_fitting.fit(parts, answers, strengths=strengths, solver="lbfgs", max_iter=2000)
    if unlabelled is not None:
        held = np.concatenate([part.places for part in parts])
        sharpness, _ = sharpest(names.tolist(), alone.logprobs[held], answers[held].tolist())
        more = []
        for part, model in zip(parts, alone.models, strict=True):
            more.append(_with_spread(part, _head(model), unlabelled, sharpness))
        both = cross_fitting.fit(more, answers, strengths=strengths, solver="lbfgs", max_iter=2000)
        if both.likelihood > alone.likelihood + LEAST_GAIN:
            return HeadFit(_head(both.models[-1]), both.logprobs, True, alone.strength)
    return HeadFit(_head(alone.models[-1]), alone.logprobs, strength=alone.strength)


def _with_names(part: FoldRows, names: Sequence[str], vectors: Floats) -> FoldRows:
    """The part with the names of its labels as rows."""
    learned = np.isin(names, part.labels)
    if not learned.any():
        return part
    rows = np.concatenate([part.rows, vectors[learned]])
    labels = np.concatenate([part.labels, np.array(names)[learned]])
    return replace(part, rows=rows, labels=labels)


def _with_spread(
    part: FoldRows, head: EncoderHead, unlabelled: Floats, sharpness: float
) -> FoldRows:
    """The part with unlabelled rows, whose labels follow from a head
    of its own rows and from neighbours.
    """
    chances = np.exp(normalised(sharpness * head.evidence(unlabelled)))
    own = np.searchsorted(head.labels, part.labels)
    places, weights = label_spreading.spread(part.rows, own, unlabelled, chances)
    rows = np.concatenate([part.rows, unlabelled])
    labels = np.concatenate([part.labels, np.array(head.labels)[places]])
    weights = np.concatenate([np.ones(len(part.labels), np.float32), weights])
    return replace(part, rows=rows, labels=labels, weights=weights)


def _head(model: Any) -> EncoderHead:
    """The head of a fitted logistic regression."""
    coefficients, bias = model.coef_.astype(np.float32), model.intercept_.astype(np.float32)
    # for two labels scikit-learn keeps one row of weights, of the second label
    if len(coefficients) == 1:
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        bias = np.concatenate([-bias, bias]) / 2
    return EncoderHead(tuple(map(str, model.classes_)), coefficients, bias)
