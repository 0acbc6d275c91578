"""training records -> answers of the baselines, which cost next to nothing and which every model should beat."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from slmctl.stages.evaluate.scoring import Answers
from slmctl.task.contract import Task
from slmctl.task.records import Record

SMALL = 200_000  # weights that the solver lbfgs fits in a second or two
STRENGTHS = (1.0, 10.0, 100.0)  # inverse regularisation (C); validation rows choose


def baselines(
    task: Task, train: Sequence[Record], validation: Sequence[Record], records: Sequence[Record]
) -> dict[str, Answers]:
    """The answers of every baseline of a task kind.

    majority: the most frequent label of the training rows. tfidf_logistic: TF-IDF with logistic regression, trained on
    the same rows as the model. copy: the input as it is. empty: an empty text, or `{}` for `extract`.
    """
    if task.kind == "classify":
        texts, confidences = _linear(train, validation, records)
        return {
            "majority": _answers([_majority(train)] * len(records)),
            "tfidf_logistic": _answers(texts, confidences),
        }
    empty = "{}" if task.kind == "extract" else ""
    return {"copy": _answers([record.input for record in records]), "empty": _answers([empty] * len(records))}


def _answers(texts: Sequence[str], confidences: Sequence[float] | None = None) -> Answers:
    return Answers(texts, confidences or [None] * len(texts), np.ones(len(texts), bool))


def _majority(train: Sequence[Record]) -> str:
    counts = Counter(record.answer for record in train)
    return min(counts, key=lambda name: (-counts[name], name))


def _linear(
    train: Sequence[Record], validation: Sequence[Record], records: Sequence[Record]
) -> tuple[list[str], list[float] | None]:
    """TF-IDF of words and word pairs with logistic regression; its regularisation is chosen on validation rows.

    The solver lbfgs always converges, but slowly on many weights: on Banking77 (10,003 rows,
    23,608 features, 77 labels) it took 11 s of processor time, sag in float32 0.7 s, to the same accuracy.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    answers = [record.answer for record in train]
    if len(set(answers)) < 2:
        return [_majority(train)] * len(records), None
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    rows = words.fit_transform([record.input for record in train])  # (rows, features), sparse
    if rows.shape[1] * len(set(answers)) <= SMALL:
        solver: dict[str, Any] = {"solver": "lbfgs", "max_iter": 2000}
    else:
        rows = rows.astype(np.float32)
        solver = {"solver": "sag", "tol": 1e-3, "max_iter": 200, "random_state": 0}
    choosing = words.transform([record.input for record in validation])
    references = np.array([record.answer for record in validation])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 200 passes are enough to predict with
        fits = [LogisticRegression(C=strength, **solver).fit(rows, answers) for strength in STRENGTHS]
    best = max(fits, key=lambda fit: int((fit.predict(choosing) == references).sum()))  # of equals the first
    chances = best.predict_proba(words.transform([record.input for record in records]))  # (n, labels)
    return [str(best.classes_[k]) for k in chances.argmax(axis=1)], [float(value) for value in chances.max(axis=1)]
