"""Members that say how likely each label is -> their weighted sum, with weights by the likelihood
of held-out rows.

The members of a task with labels: the GGUF file, the head of a sentence encoder, and a linear model
on hashed words. They err on different rows, so a sum of those that help is usually better than each
(`benchmarks/sharper.py`): a logarithmic opinion pool, softmax(sum of weight * log probability). A
weight holds a member's sharpness too. No text of a row is part of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slmctl.errors import DataError
from slmctl.inference import FILE
from slmctl.metrics import encoder_head, linear_baseline, stored_arrays
from slmctl.metrics.cross_fitting import Indices
from slmctl.metrics.encoder_head import EncoderHead, Floats, HeadFit, Named
from slmctl.metrics.likelihood import Logprobs, normalised
from slmctl.metrics.linear_baseline import LinearModel
from slmctl.metrics.stored_arrays import StoredArrays

ENCODER, WORDS = "encoder", "words"
MEMBERS = (FILE, ENCODER, WORDS)
# of a label's log probability by a member, so that none overrules the others for good
LEAST = math.log(1e-6)
RIDGE = 1.0  # L2 penalty of the weights, as strong as one row
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LabelSum:
    """The linear members with the weights of all members.

    Attributes:
        labels: The L labels.
        weights: By member; a member without a weight has no part in the answer.
        head, words: None where they have no weight.
    """

    labels: tuple[str, ...]
    weights: Mapping[str, float]
    head: EncoderHead | None
    words: LinearModel | None

    @property
    def size(self) -> int:
        """Numbers of a vector of the encoder; 0 for none."""
        return self.head.size if self.head is not None else 0

    @property
    def of_file(self) -> float:
        """The weight of a GGUF file's log probabilities."""
        return self.weights.get(FILE, 0.0)

    def logprobs(self, texts: Sequence[str], vectors: Floats) -> dict[str, Logprobs]:
        """The log probabilities (n, L) of each linear member for n
        texts, whose vectors are (n, size).
        """
        members = {}
        if self.head is not None:
            members[ENCODER] = normalised(self.head.evidence(vectors))
        if self.words is not None and len(texts):
            members[WORDS] = self.words.logprobs(texts)
        return members

    def scored(self, texts: Sequence[str], vectors: Floats) -> tuple[Logprobs, Logprobs]:
        """The weighted sum of the linear members and, as evidence, what one of them says of each
        label by itself.

        Where the evidence of no label is large, the text is unlike all training rows, however
        likely a label beside the others. Both are (n, L).
        """
        members = self.logprobs(texts, vectors)
        summed = weighted(members, self.weights)
        if self.head is None:
            return summed, members[WORDS]
        return summed, self.head.evidence(vectors)

    def only(self, weights: Mapping[str, float]) -> LabelSum:
        """The members that have one of these weights, with it."""
        kept = {name: weight for name, weight in weights.items() if weight > 0}
        head = self.head if ENCODER in kept else None
        words = self.words if WORDS in kept else None
        return LabelSum(self.labels, kept, head, words)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All of it as arrays of numpy without a pickle; `of` gives it back."""
        weights = np.array([self.weights.get(name, 0.0) for name in MEMBERS])
        arrays: dict[str, Any] = {"labels": np.array(self.labels), "sum": weights}
        if self.head is not None:
            arrays |= {"weights": self.head.weights, "bias": self.head.bias}
        if self.words is not None:
            arrays |= self.words.arrays()
        return arrays

    def write(self, path: Path) -> None:
        with path.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **self.arrays())

    @classmethod
    def read(cls, path: Path, labels: Sequence[str] | None = None) -> LabelSum:
        """The sum that `write` left.

        Args:
            labels: The task's; None for any.

        Raises:
            IntegrityError: It is none, or has other labels.
        """
        with stored_arrays.opened(path) as kept:
            return cls.of(kept, labels)

    @classmethod
    def of(cls, kept: StoredArrays, labels: Sequence[str] | None = None) -> LabelSum:
        """The sum in the arrays of a file; raises a ValueError if they hold none."""
        names = kept.labels(among=labels)
        numbers = map(float, kept.numbers("sum", len(MEMBERS)))
        weights = dict(zip(MEMBERS, numbers, strict=True))
        head = EncoderHead.of(kept, names)
        words = LinearModel.of(kept, names)
        is_empty = head is None and words is None and not weights[FILE]
        lacks_head = head is None and weights[ENCODER]
        lacks_words = words is None and weights[WORDS]
        if is_empty or lacks_head or lacks_words or min(weights.values()) < 0:
            raise ValueError("its weights are of other members than it holds")
        positive = {name: weight for name, weight in weights.items() if weight > 0}
        return cls(names, positive, head, words)


@dataclass(frozen=True)
class Weighing:
    """The weights of a sum, and what each member brings.

    Attributes:
        weights: By member that is kept.
        gains: By member, the share of right answers that the sum expects to lose without it, by its
            own probabilities on the rows that chose the weights. Few rows differ, so this tells
            more than counting them; it is never below 0, and too high more often than too low.
    """

    weights: dict[str, float]
    gains: dict[str, float]


@dataclass(frozen=True)
class SumFit:
    """The linear members of some rows.

    Attributes:
        logprobs: By member (n, L), of each row by a model that has not learned it; see `CrossFit`.
        head: The fit of the encoder's head; None without one.
    """

    model: LabelSum
    logprobs: dict[str, Logprobs]
    head: HeadFit | None = None


def fit(
    texts: Sequence[str],
    vectors: Floats | None,
    labels: Sequence[str],
    *,
    fold: Indices,
    named: Named | None = None,
    unlabelled: Floats | None = None,
    whole: bool = True,
) -> SumFit:
    """The linear members of some rows, and the weights of both by rows that a member judged before
    it learned them.

    Args:
        texts, vectors, labels: The n rows; vectors (n, size) of an encoder, None without one.
        fold: (n,) of the rows, as `cross_fitting.folds` gives it.
        named, unlabelled: As in `encoder_head.cross_fit`.
        whole: True for a model of all rows; without, for judgements alone, it is that of the last
            fold.

    Raises:
        DataError: Neither member can learn anything.
    """
    head = None
    if vectors is not None:
        head = encoder_head.cross_fit(
            vectors, labels, fold=fold, named=named, unlabelled=unlabelled, whole=whole
        )
    words = linear_baseline.cross_fit(texts, labels, fold=fold, whole=whole)
    if head is None and words is None:
        raise DataError(
            "there is nothing to learn from: one label, or texts without a word that two rows have"
        )
    names = sorted(set(labels))
    model = LabelSum(tuple(names), {}, None, None)
    logprobs = {}
    if head is not None:
        model = replace(model, head=head.head)
        logprobs[ENCODER] = head.logprobs
    if words is not None:
        model = replace(model, words=words[0])
        logprobs[WORDS] = words[1]
    judged = np.flatnonzero(fold >= 0).tolist()
    references = np.array(labels)[judged].tolist()
    tables = {name: table[judged] for name, table in logprobs.items()}
    weights = choose(tables, names, references).weights
    return SumFit(replace(model, weights=weights), logprobs, head)


def choose(
    members: Mapping[str, Logprobs],
    names: Sequence[str],
    references: Sequence[str],
    *,
    floor: float = 0.0,
) -> Weighing:
    """The weights by which held-out rows are the likeliest, without a file or encoder that brings
    less than the floor.

    Where both bring less, the file goes first, the dearer to serve; then the others are judged
    anew. Words cost next to nothing and stay while they have a weight: few held-out rows seldom
    show their gain. The likelihood is concave in the weights. Where no row tells, the first member
    answers alone, and where each one misleads, the last one: a sum has a member.

    Args:
        members: By name, log probabilities (n, L), in the order of `MEMBERS`.
        names: The L labels, sorted.
        references: The n right labels; a reference that is none of the names counts for nothing.
        floor: Least gain of a file or an encoder that is kept, see `Weighing`.
    """
    learned = np.isin(references, names)
    if not members or not learned.any():
        return Weighing(dict.fromkeys(list(members)[:1], 1.0), {})
    places = np.searchsorted(np.array(names), np.array(references)[learned])
    rows = {name: np.maximum(logprobs[learned], LEAST) for name, logprobs in members.items()}
    gains: dict[str, float] = {}
    while True:
        weights = _likeliest(rows, places)
        gains |= _gains(rows, weights, places)
        idle = [
            name for name in rows if weights[name] <= 0 or (gains[name] < floor and name != WORDS)
        ]
        if len(rows) == 1 or not idle:
            break
        del rows[idle[0]]
    if not any(weights.values()):
        weights = dict.fromkeys(rows, 1.0)
    return Weighing(weights, gains)


def _gains(
    rows: Mapping[str, Logprobs], weights: Mapping[str, float], places: Places
) -> dict[str, float]:
    """The gain of each member beside the others, see `Weighing`."""
    shares = np.exp(normalised(weighted(rows, weights)))
    best = shares.max(axis=1)
    gains = {}
    for left in rows:
        others = {name: table for name, table in rows.items() if name != left}
        gain = best
        if others:
            answers = weighted(others, _likeliest(others, places)).argmax(axis=1)
            gain = best - shares[np.arange(len(places)), answers]
        gains[left] = float(gain.mean())
    return gains


def weighted(members: Mapping[str, Logprobs], weights: Mapping[str, float]) -> Logprobs:
    """The weighted sum (n, L) of log probabilities, not normalised; a
    member without a weight has no part in it.
    """
    parts = [
        weights[name] * np.maximum(table, LEAST)
        for name, table in members.items()
        if name in weights
    ]
    result: Logprobs = np.sum(parts, axis=0)
    return result


def right(names: Sequence[str], table: Logprobs, references: Sequence[str]) -> int:
    """The number of rows whose likeliest label is the reference; not one with all labels alike.

    Args:
        names, table: The L labels, and scores (n, L).
        references: The n right labels.
    """
    tells = (np.ptp(table, axis=1) > 0) | (len(names) == 1)
    answers = np.array(names)[table.argmax(axis=1)]
    is_right = tells & (answers == np.array(references))
    return int(is_right.sum())


def spread(reached: Mapping[str, float], labels: Sequence[str]) -> npt.NDArray[np.float64]:
    """Log probabilities of all labels, from those that a model reached;
    the others share what is left alike.
    """
    left = max(0.0, 1.0 - sum(reached.values()))
    other = left / max(1, len(labels) - len(reached))
    shares = np.array([reached.get(label, other) for label in labels], np.float64)
    logprobs = np.log(np.maximum(shares, 1e-300))
    result: npt.NDArray[np.float64] = np.maximum(logprobs, LEAST)
    return result


def _likeliest(members: Mapping[str, Logprobs], places: Places) -> dict[str, float]:
    """The weights, none below zero, with the highest penalised
    likelihood of the labels at `places`.
    """
    from scipy.optimize import minimize

    tables = np.stack(list(members.values()))  # (members, n, L)
    rows = np.arange(len(places))

    def loss(weights: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        logprobs = normalised(np.tensordot(weights, tables, 1))
        expected = (np.exp(logprobs) * tables).sum(axis=2)
        surplus = tables[:, rows, places] - expected
        value = RIDGE * weights @ weights - logprobs[rows, places].sum()
        return value, 2 * RIDGE * weights - surplus.sum(axis=1)

    start = np.full(len(tables), 1 / len(tables))
    best = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(tables))
    return {name: float(f"{weight:.4g}") for name, weight in zip(members, best.x, strict=True)}
