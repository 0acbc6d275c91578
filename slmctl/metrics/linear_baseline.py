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
from slmctl.metrics import cross_fitting
from slmctl.metrics.cross_fitting import STRENGTHS, CrossFit, FoldRows, Indices
from slmctl.metrics.likelihood import Logprobs
from slmctl.metrics.stored_arrays import StoredArrays

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
        chances = self._probabilities(texts)
        if self.several:
            names = np.array(self.several, object)
            sets = [json.dumps(names[row].tolist(), ensure_ascii=False) for row in chances > 0.5]
            certainty = np.maximum(chances, 1 - chances).prod(axis=1)
            return sets, certainty.tolist()
        labels = [str(self.classifier.classes_[k]) for k in chances.argmax(axis=1)]
        return labels, [float(value) for value in chances.max(axis=1)]

    def _probabilities(self, texts: Sequence[str]) -> Any:
        """(n, labels), in the order of `classifier.classes_`."""
        return self.classifier.predict_proba(self.vectorizer.transform(texts))

    def logprobs(self, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """Log probability of every label for each text, (n, labels), in
        the order of `classifier.classes_`.
        """
        chances = self._probabilities(texts).astype(np.float64)
        result: npt.NDArray[np.float64] = np.log(np.maximum(chances, 1e-12))
        return result

    def chances(self, texts: Sequence[str], labels: Sequence[str]) -> list[float]:
        """The probability of labels[k] for texts[k]; 0 for a label
        that is not in the training rows.
        """
        if self.classifier is None:
            return [float(label == self.most_frequent) for label in labels]
        columns = {str(name): k for k, name in enumerate(self.classifier.classes_)}
        chances = []
        for row, label in zip(self._probabilities(texts), labels, strict=True):
            column = columns.get(label)
            chances.append(0.0 if column is None else float(row[column]))
        return chances

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
        for name in FEATURES:
            if f"{name}_places" in kept:
                places = kept.places(f"{name}_places", PLACES)
                idf = kept.numbers(f"{name}_idf", len(places))
                parts.append(_Hashed(name, places, idf))
        # for two labels scikit-learn keeps the weights of the second
        rows = 1 if len(labels) == 2 else len(labels)
        features = sum(len(part.places) for part in parts)
        classifier = LogisticRegression()
        classifier.coef_ = kept.numbers("coef", rows, features, half=True).astype(np.float32)
        classifier.intercept_ = kept.numbers("intercept", rows)
        classifier.classes_ = np.array(labels)
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
        idf = np.log((1 + len(texts)) / (1 + counts[places])) + 1
        return cls(name, places, idf.astype(np.float32))

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

        columns = [part.transform(texts) for part in self.parts]
        return scipy.sparse.hstack(columns, format="csr")


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
    rows = []
    for text in texts:
        if len(text) > LONG:
            rows.append(_hashes_of_long(name, text))
        else:
            rows.append(hashing.transform([text]))
    return scipy.sparse.vstack(rows, format="csr")


def _hashes_of_long(name: str, text: str) -> Any:
    """The same counts of one text, (1, PLACES), whose features are never in memory at once."""
    from sklearn.feature_extraction import FeatureHasher

    hasher = FeatureHasher(PLACES, input_type="string", alternate_sign=False, dtype=np.float32)
    counts = hasher.transform([()])
    features = _FEATURES[name](text.lower())
    piece = list(itertools.islice(features, PIECE))
    while piece:
        counts = counts + hasher.transform([piece])
        piece = list(itertools.islice(features, PIECE))
    return counts


def _words(text: str) -> Iterator[str]:
    """The words and word pairs of a text as scikit-learn lists them, in any order."""
    before = ""
    for match in re.finditer(_WORD, text):
        yield match[0]
        if before:
            yield f"{before} {match[0]}"
        before = match[0]


def _runs(text: str) -> Iterator[str]:
    """The character n-grams of a text as scikit-learn lists them, in any order."""
    for match in re.finditer(r"\S+", text):
        padded = f" {match[0]} "
        for length in range(2, min(5, len(padded)) + 1):
            for start in range(len(padded) - length + 1):
                yield padded[start : start + length]


_FEATURES = {"words": _words, "runs": _runs}


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
    common = most_frequent(labels)
    kinds = len(several or set(labels))
    work = _work(texts, kinds)
    made = None
    if kinds >= 2:
        made = _vectorized(texts, runs=work <= RUN_WORK)
    if made is None:
        return LinearModel(common)
    vectorizer, rows = made
    rows, solver = _solver(rows, kinds, tolerance=_tolerance(work))
    others = vectorizer.transform(choosing) if len(choosing) else rows[:0]
    answers: Any = labels
    references: Any = chosen
    if several:
        answers = _flags(labels, several)
        references = _flags(chosen, several)
    best = _fitted(rows, answers, others, references, strengths=strengths, **solver)
    return LinearModel(common, vectorizer, *best, several)


def _work(texts: Sequence[str], kinds: int) -> int:
    """Products of a pass over texts with so many labels."""
    return 4 * sum(map(len, texts)) * kinds


def _tolerance(work: int) -> float:
    return 1e-3 if work <= EXACT_WORK else 5e-2


def _flags(rows: Sequence[str], names: Sequence[str]) -> npt.NDArray[np.bool_]:
    """(n, labels) true where a JSON list of labels has the label."""
    lists = map(json.loads, rows)
    return np.array([[name in labels for name in names] for labels in lists])


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
    answers = np.array(labels)
    kinds = len(set(labels))
    if kinds < 2:
        return None
    work = _work(texts, kinds)
    parts: list[FoldRows] = []
    for learned, judged in cross_fitting.splits(fold, answers, whole=whole):
        made = _hashed([texts[k] for k in learned], runs=work <= RUN_WORK)
        if made is None:
            continue
        vectorizer, rows = made
        others = vectorizer.transform([texts[k] for k in judged]) if len(judged) else rows[:0]
        parts.append(FoldRows(rows, answers[learned], others, judged))
    if made is None:
        return None
    _, solver = _solver(rows, kinds, tolerance=_tolerance(work))
    best: CrossFit = cross_fitting.fit(parts, answers, **solver)
    last = best.models[-1]
    last.coef_ = last.coef_.astype(np.float16).astype(np.float32)  # as it will be stored
    model = LinearModel(most_frequent(labels), vectorizer, last, best.strength)
    return model, best.logprobs


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
    answers = np.array(references)
    best = model, strengths[0]
    most = -1
    worse = 0
    with cross_fitting.one_thread():
        for strength in strengths:
            model.set_params(**{name: strength}).fit(rows, labels)
            if not len(answers):
                break
            same = model.predict(others) == answers
            if same.ndim == 2:
                same = same.all(axis=1)
            right = int(same.sum())
            worse += 1
            if right > most:  # a shallow copy is enough: the next fit gives the model new arrays
                best = copy.copy(model), strength
                most = right
                worse = 0
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
    # one vectorizer for all folds leaks nothing: the IDF of a word follows from texts, not from
    # labels
    if sum(map(len, texts)) >= MUCH:
        heads = [text[:LONGEST] for text in texts]
        made = _vectorized(heads, fewest=2, most=max(1, WEIGHTS // count))
    else:
        made = _vectorized(texts)
    if made is None:
        return None
    # takes a third less time and finds the same suspects
    rows, solver = _solver(made[1], count, tolerance=1e-2)
    chances = np.zeros((len(texts), count), np.float32)
    fold = cross_fitting.dealt(labels, folds)
    with cross_fitting.one_thread():
        for k in range(folds):
            judged = fold == k
            model = LogisticRegression(C=strength, **solver)
            model.fit(rows[~judged], labels[~judged])
            chances[judged] = model.predict_proba(rows[judged])
    return chances


def _vectorized(
    texts: Sequence[str],
    *,
    runs: bool = False,
    fewest: int = 1,
    most: int | None = None,
) -> tuple[Any, Any] | None:
    """Returns (vectorizer, sparse TF-IDF rows (texts, features)); None where no text has a word.

    Features are words and word pairs that occur in at least `fewest` texts, the `most` most
    frequent of them. With `runs` also character n-grams of 2 to 5 within a padded word (`char_wb`)
    that occur in two texts or more.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import FeatureUnion

    common = {"sublinear_tf": True, "dtype": np.float32}
    words = TfidfVectorizer(**FEATURES["words"], min_df=fewest, max_features=most, **common)
    parts = [("words", words)]
    if runs:
        parts.append(("runs", TfidfVectorizer(**FEATURES["runs"], min_df=2, **common)))
    vectorizer = FeatureUnion(parts)
    try:
        return vectorizer, vectorizer.fit_transform(texts)
    except ValueError:  # no text has a word, or none that occurs in enough texts
        return None


def _hashed(texts: Sequence[str], *, runs: bool) -> tuple[_HashedFeatures, Any] | None:
    """The same with features that are hashed; None where no feature occurs in two texts."""
    names = list(FEATURES) if runs else ["words"]
    parts = [_Hashed.fitted(name, texts) for name in names]
    vectorizer = _HashedFeatures([part for part in parts if len(part.places)])
    if not vectorizer.parts:
        return None
    return vectorizer, vectorizer.transform(texts)


def _solver(rows: Any, labels: int, *, tolerance: float) -> tuple[Any, dict[str, Any]]:
    """Returns (rows in the solver's dtype, settings of the solver): the
    faster solver for this number of weights.
    """
    if rows.shape[1] * labels <= SMALL:
        return rows, {"solver": "lbfgs", "max_iter": 2000}
    settings = {"solver": "sag", "tol": tolerance, "max_iter": 200, "random_state": 0}
    return rows.astype(np.float32), settings
