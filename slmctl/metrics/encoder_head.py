"""Texts, their vectors and labels -> linear models on a frozen sentence encoder and on TF-IDF, added up.

The two err on other rows: on Banking77 and CLINC150 their sum is better than each (`benchmarks/sharper.py`).
scikit-learn (the extra `evaluate`) is imported when a model is fitted, and where TF-IDF is part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slmctl.inference.second_opinion import OpinionHead
from slmctl.metrics import linear_baseline
from slmctl.metrics.linear_baseline import LinearModel

NAME = "encoder_logistic"  # in reports and gates
FILENAME, TFIDF = "head.npz", "tfidf.npz"
WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0)  # of TF-IDF beside the encoder; of equals the first
SHARPNESS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0)  # factors of the sum, from the least sure on
NEAREST = 10  # training rows whose distance counts
KEPT = 20_000  # vectors of training rows, at even distances
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class EncoderHead:
    """Logistic regression over the vectors of an encoder.

    Attributes:
        labels: The L labels.
        weights, bias: (L, size) and (L,).
        rows: (n, size), the vectors of training rows, each of length 1.
    """

    labels: tuple[str, ...]
    weights: Floats
    bias: Floats
    rows: Floats

    def logprobs(self, vectors: Floats) -> npt.NDArray[np.float64]:
        """The log probability of every label for each vector, (n, L)."""
        return _normalised((vectors @ self.weights.T + self.bias).astype(np.float64))

    def nearness(self, vectors: Floats) -> npt.NDArray[np.float64]:
        """The mean cosine of each vector to its NEAREST training rows, (n,): low for what was never seen."""
        if not len(vectors):
            return np.zeros(0)
        cosines = vectors @ self.rows.T
        count = min(NEAREST, cosines.shape[1])
        nearest = np.partition(cosines, -count, axis=1)[:, -count:]
        result: npt.NDArray[np.float64] = nearest.mean(axis=1, dtype=np.float64)
        return result


@dataclass(frozen=True)
class EncoderModel:
    """The head and a TF-IDF model of the same rows: their log probabilities, added and made a distribution anew.

    Attributes:
        tfidf: None where the encoder alone answers at least as many validation rows right.
        weight: Of TF-IDF beside the encoder.
        sharpness: Factor of the sum, by which the probabilities of validation rows are the likeliest.
    """

    head: EncoderHead
    tfidf: LinearModel | None
    weight: float
    sharpness: float

    @property
    def labels(self) -> tuple[str, ...]:
        return self.head.labels

    def logprobs(self, texts: Sequence[str], vectors: Floats) -> npt.NDArray[np.float64]:
        """The log probability of every label for each text, (n, L)."""
        scores = self.head.logprobs(vectors)
        if self.tfidf is not None and len(texts):
            scores = scores + self.weight * self.tfidf.logprobs(texts)
        return _normalised(self.sharpness * scores)

    def write(self, folder: Path, *, made_of: str) -> None:
        """Write `head.npz`, and `tfidf.npz` where it is used: arrays of numpy without a pickle."""
        head, mixed = self.head, np.array([self.weight, self.sharpness])
        rows, labels = head.rows.astype(np.float16), np.array(head.labels)
        with (folder / FILENAME).open("wb") as stream:
            np.savez_compressed(
                stream, labels=labels, weights=head.weights, bias=head.bias, rows=rows, mixed=mixed
            )  # fmt: skip
        if self.tfidf is not None:
            self.tfidf.save(folder / TFIDF, made_of=made_of)

    @classmethod
    def read(cls, folder: Path) -> EncoderModel:
        """The model that `write` left."""
        with np.load(folder / FILENAME, allow_pickle=False) as kept:
            labels, rows = tuple(map(str, kept["labels"])), kept["rows"].astype(np.float32)
            head = EncoderHead(labels, kept["weights"], kept["bias"], rows)
            weight, sharpness = map(float, kept["mixed"])
        tfidf = linear_baseline.read(folder / TFIDF) if (folder / TFIDF).exists() else None
        return cls(head, tfidf, weight, sharpness)


def _normalised(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Log probabilities (n, L) of scores."""
    scores = scores - scores.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return result


def fit(
    texts: Sequence[str], vectors: Floats, labels: Sequence[str], *, choosing: tuple[Sequence[str], Floats],
    chosen: Sequence[str],
) -> tuple[EncoderModel, LinearModel]:  # fmt: skip
    """The model of some rows, and its TF-IDF by itself; validation rows choose weight and sharpness.

    Args:
        texts, vectors, labels: The rows to train on; the vectors (n, size).
        choosing, chosen: Texts and vectors of the validation rows, and their labels.
    """
    others, references = choosing[0], np.array(chosen)
    head = fit_head(vectors, labels, choosing=choosing[1], chosen=chosen)
    tfidf = linear_baseline.fit(texts, labels, choosing=others, chosen=chosen)
    if tfidf.classifier is None or not len(references):
        return EncoderModel(head, None, 0.0, 1.0), tfidf
    parts = head.logprobs(choosing[1]), tfidf.logprobs(others)
    names = np.array(head.labels)

    def right(weight: float) -> int:
        return int((names[(parts[0] + weight * parts[1]).argmax(axis=1)] == references).sum())

    weight = max(WEIGHTS, key=right)
    sharpness = _sharpest(head.labels, parts[0] + weight * parts[1], chosen)
    return EncoderModel(head, tfidf if weight else None, weight, sharpness), tfidf


def opinion(head: EncoderHead, vectors: Floats, labels: Sequence[str]) -> OpinionHead:
    """The head alone as a second opinion, without a training row, sharpened on validation rows.

    Args:
        vectors, labels: Of the validation rows; the vectors (n, size).
    """
    factor = np.float32(_sharpest(head.labels, head.logprobs(vectors), labels) if labels else 1.0)
    return OpinionHead(head.labels, factor * head.weights, factor * head.bias)


def _sharpest(names: Sequence[str], scores: npt.NDArray[np.float64], references: Sequence[str]) -> float:
    """The factor of log probabilities (n, L) by which those of the references are the likeliest.

    Args:
        names: The labels, sorted as scikit-learn keeps classes.
    """
    learned = np.isin(references, names)
    places = np.searchsorted(np.array(names), np.array(references)[learned])

    def likelihood(sharpness: float) -> float:
        return float(_normalised(sharpness * scores[learned])[np.arange(len(places)), places].sum())

    return max(SHARPNESS, key=likelihood)


def fit_head(vectors: Floats, labels: Sequence[str], *, choosing: Floats, chosen: Sequence[str]) -> EncoderHead:
    """Logistic regression over vectors, of the strength that answers most of the `choosing` right.

    Args:
        vectors: (n, size) of the rows to train on, with their labels.
        choosing, chosen: Vectors and labels of the rows that choose the regularisation.
    """
    places = np.unique(np.linspace(0, len(vectors) - 1, min(KEPT, len(vectors))).round().astype(int))
    if len(set(labels)) < 2:
        only = np.zeros((1, vectors.shape[1]), np.float32)
        return EncoderHead((labels[0],), only, np.zeros(1, np.float32), vectors[places])
    model, _ = linear_baseline.fitted(vectors, labels, choosing, chosen, solver="lbfgs", max_iter=2000)
    weights, bias = model.coef_.astype(np.float32), model.intercept_.astype(np.float32)
    if len(weights) == 1:  # of two labels scikit-learn keeps the second's weights alone
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    return EncoderHead(tuple(map(str, model.classes_)), weights, bias, vectors[places])
