"""Texts, their vectors and labels -> the sum of two linear models: on a frozen sentence encoder, and on TF-IDF.

The two err on different rows: on Banking77 and CLINC150 the sum is better than either (`benchmarks/sharper.py`).
scikit-learn (the extra `evaluate`) is imported when a model is fitted, and where TF-IDF is part of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slmctl.inference import OPINION
from slmctl.metrics import linear_baseline, stored_arrays
from slmctl.metrics.likelihood import Logprobs, normalised, sharpest
from slmctl.metrics.linear_baseline import LinearModel
from slmctl.metrics.stored_arrays import StoredArrays

NAME = "encoder_logistic"  # in reports and gates
FILENAME, TFIDF = "head.npz", "tfidf.npz"
WEIGHTS = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0)  # candidates for the weight of TF-IDF (the encoder's is 1)
Floats = npt.NDArray[np.float32]
Named = tuple[Sequence[str], Floats]  # labels, and the vectors (n, size) of their names and descriptions
_UNSPOKEN = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class OpinionHead:
    """Logistic regression over the vectors of an encoder.

    Attributes:
        labels: The L labels.
        weights, bias: (L, size) and (L,).
    """

    labels: tuple[str, ...]
    weights: Floats
    bias: Floats

    def write(self, folder: Path) -> None:
        """Write `second_opinion.npz`, arrays of numpy without a pickle."""
        with (folder / OPINION).open("wb") as stream:
            np.savez_compressed(stream, labels=np.array(self.labels), weights=self.weights, bias=self.bias)

    @classmethod
    def read(cls, folder: Path, labels: Sequence[str] | None = None) -> OpinionHead:
        """The head that `write` left.

        Args:
            labels: The task's; None for any.

        Raises:
            IntegrityError: It is none, or has other labels.
        """
        with stored_arrays.opened(folder / OPINION) as kept:
            return cls._of(kept, labels)

    @classmethod
    def _of(cls, kept: StoredArrays, labels: Sequence[str] | None) -> OpinionHead:
        names = kept.labels(among=labels)
        return cls(names, kept.numbers("weights", len(names), None), kept.numbers("bias", len(names)))

    @property
    def size(self) -> int:
        """Numbers of a vector."""
        return self.weights.shape[1]

    def scored(self, texts: Sequence[str], vectors: Floats) -> tuple[Logprobs, Logprobs]:
        """The log probabilities, and as evidence what they are made of: the sum for each label, by itself.

        Where no label's sum is large, the text is unlike all training rows, however likely a label beside the others.
        """
        sums = (vectors @ self.weights.T + self.bias).astype(np.float64)
        return normalised(sums), sums


@dataclass(frozen=True)
class EncoderModel:
    """Two models of the same rows: softmax(sharpness * (log p of the head + weight * log p of TF-IDF)).

    Attributes:
        tfidf: None where its weight is 0.
        weight: Weight of TF-IDF; the head's is 1.
        sharpness: Inverse temperature. Both are chosen together, by the likelihood of the validation rows' labels.
    """

    head: OpinionHead
    tfidf: LinearModel | None
    weight: float
    sharpness: float

    @property
    def labels(self) -> tuple[str, ...]:
        return self.head.labels

    @property
    def size(self) -> int:
        return self.head.size

    def scored(self, texts: Sequence[str], vectors: Floats) -> tuple[Logprobs, Logprobs]:
        """Of every label the log probability for each text, and the head's evidence, each (n, L)."""
        scores, evidence = self.head.scored(texts, vectors)
        if self.tfidf is not None and len(texts):
            scores = scores + self.weight * self.tfidf.logprobs(texts)
        return normalised(self.sharpness * scores), evidence

    def write(self, folder: Path, *, made_of: str) -> None:
        """Write `head.npz`, and `tfidf.npz` where it is used: arrays of numpy without a pickle."""
        head, mixed = self.head, np.array([self.weight, self.sharpness])
        with (folder / FILENAME).open("wb") as stream:
            np.savez_compressed(stream, labels=np.array(head.labels), weights=head.weights, bias=head.bias, mixed=mixed)
        if self.tfidf is not None:
            self.tfidf.save(folder / TFIDF, made_of=made_of)

    @classmethod
    def read(cls, folder: Path, labels: Sequence[str] | None = None) -> EncoderModel:
        """The model that `write` left; arguments and errors as of `OpinionHead.read`."""
        with stored_arrays.opened(folder / FILENAME) as kept:
            head = OpinionHead._of(kept, labels)
            weight, sharpness = map(float, kept.numbers("mixed", 2))
        tfidf = linear_baseline.read(folder / TFIDF, head.labels) if (folder / TFIDF).exists() else None
        return cls(head, tfidf, weight, sharpness)


def spoken(label: str) -> str:
    """The name of a label as words, such as 'card arrival' for card_arrival."""
    return _UNSPOKEN.sub(" ", label).strip()


def fit(
    texts: Sequence[str], vectors: Floats, labels: Sequence[str], *, choosing: tuple[Sequence[str], Floats],
    chosen: Sequence[str], named: Named | None = None,
) -> tuple[EncoderModel, LinearModel]:  # fmt: skip
    """Returns (model of the rows, the TF-IDF model alone); validation rows choose strengths, weight and sharpness.

    They are chosen by likelihood, which uses how sure each answer is, so it finds the better sum with few rows, where
    the number of right answers often ties (`benchmarks/sharper.py`).

    Args:
        texts, vectors, labels: The training rows; vectors (n, size).
        choosing, chosen: (texts, vectors) of the validation rows, and their labels.
        named: (labels, vectors of their names), which the head learns as rows; other labels than those of the
            training rows are left out.
    """
    others = choosing[0]
    rows, answers, known_labels = vectors, list(labels), set(labels)
    if named is not None and (learned := [k for k, label in enumerate(named[0]) if label in known_labels]):
        rows, answers = np.concatenate([vectors, named[1][learned]]), [*labels, *(named[0][k] for k in learned)]
    head = fit_head(rows, answers, choosing=choosing[1], chosen=chosen)
    tfidf = linear_baseline.fit(texts, labels, choosing=others, chosen=chosen, likelihood=True)
    if tfidf.classifier is None or not len(chosen):
        return EncoderModel(head, None, 0.0, 1.0), tfidf
    own, its = head.scored(others, choosing[1])[0], tfidf.logprobs(others)
    fitting = {weight: sharpest(head.labels, own + weight * its, chosen) for weight in WEIGHTS}
    weight = max(WEIGHTS, key=lambda weight: fitting[weight][1])
    return EncoderModel(head, tfidf if weight else None, weight, fitting[weight][0]), tfidf


def opinion(head: OpinionHead, vectors: Floats, labels: Sequence[str]) -> OpinionHead:
    """The head alone as a second opinion, scaled by the sharpness that is best on validation rows.

    Args:
        vectors, labels: Vectors (n, size) and labels of the validation rows.
    """
    factor = np.float32(sharpest(head.labels, head.scored((), vectors)[0], labels)[0] if labels else 1.0)
    return OpinionHead(head.labels, factor * head.weights, factor * head.bias)


def fit_head(vectors: Floats, labels: Sequence[str], *, choosing: Floats, chosen: Sequence[str]) -> OpinionHead:
    """Logistic regression over vectors, with the regularisation by which the `choosing` rows are the likeliest.

    Args:
        vectors, labels: Vectors (n, size) and labels of the training rows.
        choosing, chosen: Vectors and labels of the rows that choose the regularisation.
    """
    if len(set(labels)) < 2:
        return OpinionHead((labels[0],), np.zeros((1, vectors.shape[1]), np.float32), np.zeros(1, np.float32))
    model, _ = linear_baseline.fitted(vectors, labels, choosing, chosen, likelihood=True, solver="lbfgs", max_iter=2000)
    weights, bias = model.coef_.astype(np.float32), model.intercept_.astype(np.float32)
    if len(weights) == 1:  # for two labels scikit-learn keeps one row of weights, of the second label
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    return OpinionHead(tuple(map(str, model.classes_)), weights, bias)
