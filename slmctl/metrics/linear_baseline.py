"""Texts with labels -> a linear model: TF-IDF with logistic regression, which every fine-tuned
model should beat.

Its features are words, word pairs and, up to a bound of work, character n-grams of 2 to 5 within
each word. A model that is stored has them hashed into places, so that it holds no word of a row.

scikit-learn (the extra `evaluate`) is imported when a model is fitted.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from slmctl import installation
from slmctl.metrics import TFIDF_LOGISTIC, cross_fitting
from slmctl.metrics.cross_fitting import STRENGTHS, CrossFit, FoldRows, Indices
from slmctl.metrics.likelihood import Logprobs
from slmctl.metrics.stored_arrays import StoredArrays

NAME = TFIDF_LOGISTIC
_WORD = r"\b\w+\b"
FEATURES: Mapping[str, Mapping[str, object]] = {  # settings of a TfidfVectorizer for each part
    "words": {"ngram_range": (1, 2), "token_pattern": _WORD},
    "runs": {"analyzer": "char_wb", "ngram_range": (2, 5)},
}
PLACES = 1 << 18  # for hashes of features of each part
FEWEST = 40  # validation rows; the score on fewer is uncertain by more than 10 points
SMALL = 200_000  # weights that the solver lbfgs fits in a second or two
RUN_WORK = 600_000_000  # 4 * characters * labels; above, character n-grams are not used
EXACT_WORK = 60_000_000  # as RUN_WORK; above, the solver stops at a larger tolerance
MUCH = 2_000_000  # characters of all texts; from here on memory is bounded by the two limits below
WEIGHTS = 20_000_000  # largest number of features times labels: 80 MB
LONGEST = 4_000  # characters of each text that are read
# characters of a text that is hashed in pieces, and features of a piece
LONG, PIECE = 1 << 14, 1 << 16


@dataclass(frozen=True)
class LinearModel:
    """A fitted model. Without a classifier (one label only, or no words) it always answers the most
    frequent label.

    With `several` (task `tag`) each label has a binary model; the answer is a JSON list of those
    with p > 0.5.
    """

    most_frequent: str
    vectorizer: Any = None
    classifier: Any = None
    strength: float = STRENGTHS[0]  # the chosen strength
    several: tuple[str, ...] = ()

    def answers(self, texts: Sequence[str]) -> tuple[list[str], list[float] | None]:
        """Returns (answer to each text, its probability); the
        second is None without a classifier.
        """
        if self.classifier is None:
            return [self.most_frequent] * len(texts), None
        chances = self.classifier.predict_proba(self.vectorizer.transform(texts))  # (n, labels)
        if self.several:
            names = np.array(self.several, object)
            sets = [json.dumps(names[row].tolist(), ensure_ascii=False) for row in chances > 0.5]
            return sets, np.maximum(chances, 1 - chances).prod(axis=1).tolist()
        labels = [str(self.classifier.classes_[k]) for k in chances.argmax(axis=1)]
        return labels, [float(value) for value in chances.max(axis=1)]

    def logprobs(self, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """Log probability of every label for each text, (n, labels), in
        the order of `classifier.classes_`.
        """
        chances = self.classifier.predict_proba(self.vectorizer.transform(texts)).astype(np.float64)
        result: npt.NDArray[np.float64] = np.log(np.maximum(chances, 1e-12))
        return result

    def chances(self, texts: Sequence[str], labels: Sequence[str]) -> list[float]:
        """The probability of labels[k] for texts[k]; 0 for a label
        that is not in the training rows.
        """
        if self.classifier is None:
            return [float(label == self.most_frequent) for label in labels]
        table = self.classifier.predict_proba(self.vectorizer.transform(texts))  # (n, labels)
        columns = {str(name): k for k, name in enumerate(self.classifier.classes_)}
        return [
            float(table[row, columns[label]]) if label in columns else 0.0
            for row, label in enumerate(labels)
        ]

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The weights of a hashed model as arrays of numpy, which hold no word."""
        arrays = {
            "coef": self.classifier.coef_.astype(np.float16),
            "intercept": self.classifier.intercept_,
        }
        for part in self.vectorizer.parts:
            arrays |= {f"{part.name}_places": part.places, f"{part.name}_idf": part.idf}
        return arrays

    @classmethod
    def of(cls, kept: StoredArrays, labels: Sequence[str]) -> LinearModel | None:
        """The model that `arrays` gave, for its labels in their order; None where no such arrays
        are kept.

        Raises:
            ValueError: They are of other shapes, or say nothing.
        """
        from sklearn.linear_model import LogisticRegression

        if "coef" not in kept:
            return None
        parts = []
        for name in [name for name in FEATURES if f"{name}_places" in kept]:
            places = kept.places(f"{name}_places", PLACES)
            parts.append(_Hashed(name, places, kept.numbers(f"{name}_idf", len(places))))
        # for two labels scikit-learn keeps the weights of the second
        rows = 1 if len(labels) == 2 else len(labels)
        classifier, features = LogisticRegression(), sum(len(part.places) for part in parts)
        classifier.coef_ = kept.numbers("coef", rows, features, half=True).astype(np.float32)
        classifier.intercept_, classifier.classes_ = (
            kept.numbers("intercept", rows),
            np.array(labels),
        )
        return cls(labels[0], _HashedFeatures(parts), classifier)


@dataclass(frozen=True)
class _Hashed:
    """TF-IDF of one part's features, hashed into places; of those that two rows have, for a place
    of one row tells it.

    Attributes:
        places: (n,) the places in use, rising.
        idf: (n,) inverse document frequencies.
    """

    name: str
    places: npt.NDArray[np.int32]
    idf: npt.NDArray[np.float32]

    @classmethod
    def fitted(cls, name: str, texts: Sequence[str]) -> Self:
        counts = np.bincount(_hashes(name, texts).indices, minlength=PLACES)
        places = np.flatnonzero(counts >= 2).astype(np.int32)
        return cls(
            name, places, (np.log((1 + len(texts)) / (1 + counts[places])) + 1).astype(np.float32)
        )

    def transform(self, texts: Sequence[str]) -> Any:
        """Sparse rows (texts, n), each of length 1."""
        from sklearn.preprocessing import normalize

        rows = _hashes(self.name, texts)[:, self.places]
        rows.data = (1 + np.log(rows.data)) * self.idf[rows.indices]
        return normalize(rows, copy=False)


@dataclass(frozen=True)
class _HashedFeatures:
    """Parts side by side, as scikit-learn's FeatureUnion has them."""

    parts: Sequence[_Hashed]

    def transform(self, texts: Sequence[str]) -> Any:
        import scipy.sparse

        return scipy.sparse.hstack([part.transform(texts) for part in self.parts], format="csr")


def _hashes(name: str, texts: Sequence[str]) -> Any:
    """Counts of the hashed features of each text, (texts, PLACES); those
    of a long text are hashed in pieces.
    """
    import scipy.sparse
    from sklearn.feature_extraction.text import HashingVectorizer

    hashing = HashingVectorizer(
        **FEATURES[name], n_features=PLACES, alternate_sign=False, norm=None, dtype=np.float32
    )
    if all(len(text) <= LONG for text in texts):
        return hashing.transform(texts)
    rows = [
        _hashes_of_long(name, text) if len(text) > LONG else hashing.transform([text])
        for text in texts
    ]
    return scipy.sparse.vstack(rows, format="csr")


def _hashes_of_long(name: str, text: str) -> Any:
    """The same counts of one text, (1, PLACES), whose features are never in memory at once."""
    from sklearn.feature_extraction import FeatureHasher

    hasher = FeatureHasher(PLACES, input_type="string", alternate_sign=False, dtype=np.float32)
    features, counts = _features(name, text), hasher.transform([()])
    while piece := list(itertools.islice(features, PIECE)):
        counts = counts + hasher.transform([piece])
    return counts


def _features(name: str, text: str) -> Iterator[str]:
    """The features of a text as scikit-learn lists them, in any order."""
    text = text.lower()
    before = ""
    for match in re.finditer(_WORD, text) if name == "words" else ():
        yield match[0]
        if before:
            yield f"{before} {match[0]}"
        before = match[0]
    for match in re.finditer(r"\S+", text) if name == "runs" else ():
        padded = f" {match[0]} "
        for length in range(2, min(5, len(padded)) + 1):
            yield from (padded[start : start + length] for start in range(len(padded) - length + 1))


def is_installed() -> bool:
    return installation.is_installed("sklearn")


def most_frequent(labels: Sequence[str]) -> str:
    """The most frequent label; on a tie the first by name."""
    counts = Counter(labels)
    return min(counts, key=lambda name: (-counts[name], name))


def fit(
    texts: Sequence[str],
    labels: Sequence[str],
    *,
    choosing: Sequence[str],
    chosen: Sequence[str],
    strengths: Sequence[float] = STRENGTHS,
    several: tuple[str, ...] = (),
) -> LinearModel:
    """Fit TF-IDF of words, word pairs and character n-grams with logistic regression.

    The solver lbfgs always converges, but slowly on many weights: on Banking77 (10,003 rows, 23,608
    words and pairs, 77 labels) it took 11 s of processor time, sag in float32 0.7 s, to the same
    accuracy. Each strength begins at the weights of the one before, which halves the time.

    Args:
        texts, labels: The training rows.
        choosing, chosen: Texts and labels of the rows that choose the regularisation.
        strengths: Inverse regularisations to choose from, in the order in which they are tried.
        several: All labels of a task where a row has several; `labels` and `chosen` are then JSON
            lists of labels, and one binary model is fitted for each label.
    """
    common, kinds = most_frequent(labels), len(several or set(labels))
    work = 4 * sum(map(len, texts)) * kinds  # products of a pass
    if kinds < 2 or (made := _vectorized(texts, runs=work <= RUN_WORK)) is None:
        return LinearModel(common)
    vectorizer, rows = made
    rows, solver = _solver(rows, kinds, tolerance=1e-3 if work <= EXACT_WORK else 5e-2)
    others = vectorizer.transform(choosing) if len(choosing) else rows[:0]
    answers: list[Any] = [labels, chosen]
    if several:
        answers = [
            np.array([[name in json.loads(row) for name in several] for row in side])
            for side in answers
        ]
    best = _fitted(rows, answers[0], others, answers[1], strengths=strengths, **solver)
    return LinearModel(common, vectorizer, *best, several)


def cross_fit(
    texts: Sequence[str], labels: Sequence[str], *, fold: Indices, whole: bool = True
) -> tuple[LinearModel, Logprobs] | None:
    """Returns (a model of all rows whose features are hashed, so that it can be stored; judgements
    as of `CrossFit`).

    None where there is nothing to learn: one label, or no word that two rows have.

    Args:
        fold: (n,) of the rows, as `cross_fitting.folds` gives it.
        whole: As in `cross_fitting.splits`; without, the model is that of the last fold.
    """
    answers, kinds = np.array(labels), len(set(labels))
    if kinds < 2:
        return None
    work, parts, made = 4 * sum(map(len, texts)) * kinds, list[FoldRows](), None
    for learned, judged in cross_fitting.splits(fold, answers, whole=whole):
        if made := _vectorized([texts[k] for k in learned], runs=work <= RUN_WORK, hashed=True):
            others = made[0].transform([texts[k] for k in judged]) if len(judged) else made[1][:0]
            parts.append(FoldRows(made[1], answers[learned], others, judged))
    if made is None:
        return None
    _, solver = _solver(made[1], kinds, tolerance=1e-3 if work <= EXACT_WORK else 5e-2)
    best: CrossFit = cross_fitting.fit(parts, answers, **solver)
    # as it will be stored
    best.models[-1].coef_ = best.models[-1].coef_.astype(np.float16).astype(np.float32)
    return LinearModel(
        most_frequent(labels), made[0], best.models[-1], best.strength
    ), best.logprobs


def _fitted(
    rows: Any,
    labels: Any,
    others: Any,
    references: Any,
    *,
    strengths: Sequence[float],
    **solver: Any,
) -> tuple[Any, float]:
    """Returns (logistic regression, its strength): the strength with the most right answers, on a
    tie the first.

    Args:
        rows, labels: Training features (n, features), and labels (n,), at least two different ones;
            or, where a row has several, booleans (n, labels).
        others, references: Features and labels of the rows that choose the strength.
        strengths: Inverse regularisations, in the order in which they are tried.
        solver: Further settings of LogisticRegression.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    model, name = LogisticRegression(warm_start=True, **solver), "C"
    if np.ndim(labels) == 2:
        model, name = OneVsRestClassifier(model), "estimator__C"
    best, most, worse, answers = (model, strengths[0]), -1, 0, np.array(references)
    with cross_fitting.one_thread():
        for strength in strengths:
            model.set_params(**{name: strength}).fit(rows, labels)
            if not len(answers):
                break
            same = model.predict(others) == answers
            right = int((same.all(axis=1) if same.ndim == 2 else same).sum())
            if right > most:  # a shallow copy is enough: the next fit gives the model new arrays
                best, most, worse = (copy.copy(model), strength), right, 0
            else:
                worse += 1
            if worse == 2 or most == len(answers):  # no other can be better
                break
    return best


def out_of_fold(
    texts: Sequence[str], labels: npt.NDArray[np.int64], *, folds: int, strength: float
) -> npt.NDArray[np.float32] | None:
    """Out-of-fold probabilities: of every label for each text, by a model trained on the other
    folds.

    The rows of a label are dealt out to the folds in order, so equal rows give equal folds. From
    MUCH characters on, memory is bounded: LONGEST characters of each text are read, a term must
    occur in two texts (a term of one text tells nothing about other folds), and the most frequent
    terms are kept up to WEIGHTS.

    Args:
        texts: The n texts.
        labels: (n,) index of each text's label, from 0 without a gap; each label has at least
            `folds` rows.
        folds: Number of models.
        strength: Inverse regularisation of each model.

    Returns:
        (n, labels); None where no text has a word of two letters.
    """
    from sklearn.linear_model import LogisticRegression

    count = int(labels.max()) + 1
    much = sum(map(len, texts)) >= MUCH
    # one vectorizer for all folds leaks nothing: the IDF of a word follows from texts, not from
    # labels
    made = _vectorized(
        [text[:LONGEST] for text in texts] if much else texts,
        fewest=2 if much else 1,
        most=max(1, WEIGHTS // count) if much else None,
    )
    if made is None:
        return None
    # takes a third less time and finds the same suspects
    rows, solver = _solver(made[1], count, tolerance=1e-2)
    chances = np.zeros((len(texts), count), np.float32)
    fold = cross_fitting.dealt(labels, folds)
    with cross_fitting.one_thread():
        for k in range(folds):
            model = LogisticRegression(C=strength, **solver).fit(rows[fold != k], labels[fold != k])
            chances[fold == k] = model.predict_proba(rows[fold == k])
    return chances


def _vectorized(
    texts: Sequence[str],
    *,
    runs: bool = False,
    fewest: int = 1,
    most: int | None = None,
    hashed: bool = False,
) -> tuple[Any, Any] | None:
    """Returns (vectorizer, sparse TF-IDF rows (texts, features)); None where no text has a word.

    Features are words and word pairs that occur in at least `fewest` texts, the `most` most
    frequent of them. With `runs` also character n-grams of 2 to 5 within a padded word (`char_wb`)
    that occur in two texts or more.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import FeatureUnion

    if hashed:
        hashed_parts = [_Hashed.fitted(name, texts) for name in (FEATURES if runs else ("words",))]
        places = _HashedFeatures([part for part in hashed_parts if len(part.places)])
        return (places, places.transform(texts)) if places.parts else None
    common = {"sublinear_tf": True, "dtype": np.float32}
    parts = [
        ("words", TfidfVectorizer(**FEATURES["words"], min_df=fewest, max_features=most, **common))
    ]
    if runs:
        parts.append(("runs", TfidfVectorizer(**FEATURES["runs"], min_df=2, **common)))
    vectorizer = FeatureUnion(parts)
    try:
        return vectorizer, vectorizer.fit_transform(texts)
    except ValueError:  # no text has a word, or none that occurs in enough texts
        return None


def _solver(rows: Any, labels: int, *, tolerance: float) -> tuple[Any, dict[str, Any]]:
    """Returns (rows in the solver's dtype, settings of the solver): the
    faster solver for this number of weights.
    """
    if rows.shape[1] * labels <= SMALL:
        return rows, {"solver": "lbfgs", "max_iter": 2000}
    return rows.astype(np.float32), {
        "solver": "sag",
        "tol": tolerance,
        "max_iter": 200,
        "random_state": 0,
    }
