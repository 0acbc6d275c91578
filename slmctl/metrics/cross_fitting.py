"""Labelled rows in folds -> logistic regression on all of them, and what models without a row's
fold say of the row.

Few rows are too few to lay some aside: each row is judged by a model of the other folds, the
judgements choose the strength of the regularisation (and, in `label_sum`, the weights), and one
model learns all rows.

scikit-learn (the extra `evaluate`) is imported when models are fitted.
"""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slmctl.metrics.likelihood import Logprobs, sharpest

Indices = npt.NDArray[np.int64]
# Inverse regularisations (C), tried in this order until two in a row do no better on validation
# rows. On 300 and 1,000 training rows of Banking77 and of CLINC150 the first gave more right
# answers than 0.5.
STRENGTHS = (2.0, 8.0, 32.0, 128.0, 512.0, 2048.0)
FOLDS = 5
# rows that are dealt to folds; of more, the validation rows are the one fold, as models of all take
# long
MOST = 4_000


@dataclass(frozen=True)
class FoldRows:
    """Rows that one model learns, and those that it judges.

    Attributes:
        rows, labels: Features (n, features) and labels (n,), at least two different ones.
        judged, places: Features (m, features), and the places of these rows among all.
        weights: (n,) of the rows; None for 1 each.
    """

    rows: Any
    labels: npt.NDArray[np.str_]
    judged: Any
    places: Indices
    weights: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class CrossFit:
    """Models at the strength by which the judged rows are the likeliest.

    Attributes:
        models: Of each part.
        logprobs: (rows, L) of all labels, sorted, for each judged row; alike for any other row, and
            for a row whose label its model has not learned, so that such a row tells nothing.
        likelihood: Of the judged rows, at their best sharpness.
    """

    models: Sequence[Any]
    strength: float
    logprobs: Logprobs
    likelihood: float


def folds(
    labels: Sequence[str], groups: Sequence[Hashable], *, validation: int, apart: bool = False
) -> Indices:
    """The fold of each row, (n,), from 0; the rows of a group share one. -1 for a row that none
    judges.

    Of more than MOST rows, the last `validation` ones are the only fold; so are they where they are
    of another time or source than the rows before (`apart`): a model of their like would look
    better than it will be on the next.
    """
    if len(labels) > MOST or (apart and validation):
        return np.repeat([-1, 0], [len(labels) - validation, validation])
    numbers = {group: k for k, group in enumerate(dict.fromkeys(groups))}
    of_row = np.array([numbers[group] for group in groups], np.int64)
    _, first = np.unique(of_row, return_index=True)
    kinds = np.unique(np.array(labels)[first], return_inverse=True)[1]
    return dealt(kinds, FOLDS)[of_row]


def dealt(labels: Indices, count: int) -> Indices:
    """The fold of each row, (n,): the rows of a label go to the folds in
    turn; label k begins with fold k % count.
    """
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    begins = np.cumsum(counts) - counts
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(begins, counts)
    turn: Indices = (rank + labels) % count
    return turn


def splits(
    fold: Indices, labels: npt.NDArray[np.str_], *, whole: bool = True
) -> list[tuple[Indices, Indices]]:
    """(places of the rows that a model learns, of those that it judges) for each fold; at the end
    all rows, and none.

    A fold without which one label is left is not judged. Without `whole`, for judgements alone, the
    folds are all, unless none is judged.
    """
    able = []
    for k in np.unique(fold[fold >= 0]):
        learned, judged = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        if len(np.unique(labels[learned])) > 1:
            able.append((learned, judged))
    if whole or not able:
        able.append((np.arange(len(fold)), np.zeros(0, np.int64)))
    return able


def fit(
    parts: Sequence[FoldRows],
    labels: npt.NDArray[np.str_],
    *,
    strengths: Sequence[float] = STRENGTHS,
    **solver: Any,
) -> CrossFit:
    """Fit logistic regression on each part, with the strength by which the judged rows are the
    likeliest.

    Each strength begins at the weights of the one before. Strengths are tried until two in a row do
    no better.

    Args:
        parts: Those of the folds, and all rows at the end.
        labels: (rows,) the label of every row.
        strengths: Inverse regularisations, in the order in which they are tried.
        solver: Further settings of LogisticRegression.
    """
    from sklearn.linear_model import LogisticRegression

    names = np.unique(labels)
    judged = np.concatenate([part.places for part in parts])
    references = labels[judged].tolist()
    models = [LogisticRegression(warm_start=True, **solver) for _ in parts]
    table = _judged([], [], labels, names)
    best = CrossFit(models, strengths[0], table, -math.inf)
    worse = 0
    for strength in strengths:
        with one_thread():
            for part, model in zip(parts, models, strict=True):
                model.set_params(C=strength)
                model.fit(part.rows, part.labels, sample_weight=part.weights)
        table = _judged(parts, models, labels, names)
        _, likelihood = sharpest(list(names), table[judged], references)
        worse += 1
        if likelihood > best.likelihood:
            # a shallow copy is enough: the next fit gives a model new arrays
            copies = [copy.copy(model) for model in models]
            best = CrossFit(copies, strength, table, likelihood)
            worse = 0
        if worse == 2 or not likelihood:
            break
    return best


def _judged(
    parts: Sequence[FoldRows],
    models: Sequence[Any],
    labels: npt.NDArray[np.str_],
    names: npt.NDArray[np.str_],
) -> Logprobs:
    """`logprobs` of a `CrossFit`."""
    table = np.full((len(labels), len(names)), -math.log(len(names)))
    for part, model in zip(parts, models, strict=True):
        learned = np.isin(labels[part.places], model.classes_)
        if not learned.any():
            continue
        columns = np.searchsorted(names, model.classes_)
        chances = np.zeros((int(learned.sum()), len(names)))
        chances[:, columns] = model.predict_proba(part.judged[learned])
        table[part.places[learned]] = np.log(np.maximum(chances, 1e-12))
    return table


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Limit BLAS to one thread, and silence scikit-learn's ConvergenceWarning: 200 passes are
    enough to predict with.

    BLAS threads wait for each other at every product: on two busy cores, preparing a data set took
    57 to 97 s with two threads, and 13 s with one.
    """
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with warnings.catch_warnings(), threadpool_limits(1, user_api="blas"):
        warnings.simplefilter("ignore", ConvergenceWarning)
        # or in none
        warnings.filterwarnings("ignore", "Label .* is present in all training examples")
        # less than two rows a label
        warnings.filterwarnings("ignore", "The number of unique classes is greater")
        yield
