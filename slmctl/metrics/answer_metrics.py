"""An answer and its reference answer -> metrics of labels, of JSON objects and of texts.

Every figure lies between 0 and 1. Each function is plain arithmetic over one pair, or over counts
that can be added up over rows, so that a metric of many rows follows from sums.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from slmctl.artifacts.bounded_json import is_deeper
from slmctl.metrics.statistics import wilson
from slmctl.normal_forms import in_normal_form
from slmctl.reports.evaluation_report import CHECKS, ClassFigures

if TYPE_CHECKING:  # numpy takes a tenth of a second, and most commands compute none of these
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

# metrics that are the mean of a 0 or 1 for each row
SHARES = (
    "accuracy",
    "exact_match",
    "valid_json",
    "valid_schema",
    "tool_accuracy",
    "valid_call",
    *CHECKS,
)
BINS = 15  # of the reliability table, equally wide (Guo et al. 2017)
ORDERS = 6  # longest n-gram of chrF, in characters
BETA = 2  # chrF weighs recall twice as much as precision
INVALID = object()  # `parse` of a text that is not JSON; None is a JSON value
# levels of an answer's lists and objects, as of a row's: its readers recurse once or more for each
MAX_DEPTH = 100

# Labels


def per_class(
    labels: Iterable[str], expected: Sequence[str], predicted: Sequence[str]
) -> dict[str, ClassFigures]:
    """Precision, recall, F1 and support of every label that occurs in either
    sequence; a ratio with divisor 0 is 0.
    """
    references, predictions = Counter(expected), Counter(predicted)
    hits = Counter(a for a, b in zip(expected, predicted, strict=True) if a == b)
    figures = {}
    for label in labels:
        if references[label] or predictions[label]:
            figures[label] = _prf(hits[label], predictions[label], references[label])
    return figures


def _prf(hits: int, predicted: int, expected: int) -> ClassFigures:
    return {
        "precision": _ratio(hits, predicted),
        "recall": _ratio(hits, expected),
        "f1": _ratio(2 * hits, predicted + expected),
        "support": expected,
    }


def _ratio(count: int, total: int) -> float:
    return count / total if total else 0.0


def level_sums(expected: Floats, predicted: Floats) -> Floats:
    """Terms of `level_error` and `quadratic_kappa` for each row, (n,
    6); both are computed from their sums.
    """
    import numpy as np

    apart = expected - predicted
    counts = np.ones_like(apart)
    squares = expected**2 + predicted**2
    return np.stack([counts, np.abs(apart), apart**2, expected, predicted, squares], 1)


def level_error(sums: Floats) -> Floats:
    """Mean distance of prediction and reference in levels, from sums
    of `level_sums` over rows, (..., 6).
    """
    import numpy as np

    mean: Floats = sums[..., 1] / np.maximum(sums[..., 0], 1e-12)
    return mean


def quadratic_kappa(sums: Floats) -> Floats:
    """Cohen's kappa with squared distances as weights (Cohen 1968), from sums of `level_sums` over
    rows, (..., 6).

    1 - observed / expected, each a mean squared distance; expected: references and predictions
    paired at random. 0 where all references and predictions are the same level.
    """
    import numpy as np

    n = np.maximum(sums[..., 0], 1e-12)
    observed = sums[..., 2] / n
    products = 2 * sums[..., 3] * sums[..., 4]
    by_chance = sums[..., 5] / n - products / n**2
    share = np.divide(observed, by_chance, out=np.ones_like(n), where=by_chance > 1e-6)
    return 1 - share


def bin_of(confidence: Floats) -> npt.NDArray[np.int64]:
    """Index of the reliability table's bin for each confidence, (n,). Bins
    are [low, high); 1 goes into the last.
    """
    import numpy as np

    bins = (confidence * BINS).astype(np.int64)
    return np.minimum(bins, BINS - 1)


@dataclass(frozen=True)
class CalibrationError:
    """Expected calibration error, (b,) each.

    Attributes:
        observed: Mean |confidence - accuracy| of bins, weighted by rows (Naeini et al. 2015; Guo et
            al. 2017).
        by_chance: Expected `observed` of a calibrated model with the same confidences and number of
            rows.
        error: sqrt(observed² - by_chance²), at least 0: independent errors add up in squares, as in
            the debiased error of Kumar et al. 2019.
    """

    observed: Floats
    by_chance: Floats

    @property
    def error(self) -> Floats:
        import numpy as np

        apart = self.observed**2 - self.by_chance**2
        return np.sqrt(np.maximum(apart, 0))


def calibration_error(
    weights: npt.NDArray[np.floating], confidence: Floats, right: Floats
) -> CalibrationError:
    """The calibration error under each row of weights.

    Args:
        weights: (b, n): how often each row counts.
        confidence: (n,) 0 to 1.
        right: (n,) 1 where the answer is right, else 0.
    """
    import numpy as np

    inside = np.zeros((len(confidence), BINS))
    inside[np.arange(len(confidence)), bin_of(confidence)] = 1
    total = np.maximum(weights.sum(axis=1), 1e-12)
    gaps = np.abs(weights @ (inside * (confidence - right)[:, None]))
    variances = confidence * (1 - confidence)
    spread = inside * variances[:, None]
    # mean absolute value of a normal gap; for few rows with confidence near 0 or 1, the second
    # bound is smaller
    normal = np.sqrt(2 / np.pi * (weights**2 @ spread))
    chance = np.minimum(normal, 2 * weights @ spread)
    return CalibrationError(gaps.sum(axis=1) / total, chance.sum(axis=1) / total)


# Several labels a row


def per_label(
    labels: Sequence[str], counts: Floats, confidence: float = 0.95
) -> dict[str, ClassFigures]:
    """Precision, recall, F1, support and an interval of F1 for every label that occurs.

    F1 is 2J / (1 + J), where J = rows with the label in both / rows with it in either (Jaccard). J
    is a share of rows, so the interval of F1 is Wilson's interval of J, transformed by the same
    formula.

    Args:
        counts: (labels, 3): rows with the label in both, in the answer, and in the reference.
        confidence: Level of the interval, 0 to 1.
    """
    figures: dict[str, ClassFigures] = {}
    rows = counts.astype(int).tolist()
    for label, (both, predicted, expected) in zip(labels, rows, strict=True):
        either = predicted + expected - both
        if not either:
            continue
        shares = wilson(both, either, confidence)
        figures[label] = _prf(both, predicted, expected)
        figures[label]["interval"] = [2 * share / (1 + share) for share in shares]
    return figures


def macro_f1(sums: Floats) -> Floats:
    """Mean F1 of the labels that occur, from counts of `per_label`
    added up over rows, (..., 3 * labels).
    """
    import numpy as np

    counts = sums.reshape(*sums.shape[:-1], -1, 3)
    below = counts[..., 1] + counts[..., 2]  # predicted and expected
    occurs = below > 0
    f1 = np.divide(2 * counts[..., 0], below, out=np.zeros_like(below), where=occurs)
    mean: Floats = f1.sum(axis=-1) / np.maximum(occurs.sum(axis=-1), 1)
    return mean


# Records with fields


def parse(text: str) -> Any:
    """The JSON value of an answer.

    INVALID where the text holds NaN, a key twice in an object, more than MAX_DEPTH levels, or text
    around the JSON.
    """
    try:
        value = json.loads(text, parse_constant=_refuse, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return INVALID
    return INVALID if is_deeper(value, MAX_DEPTH) else value


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key stands twice in an object")
    return result


def equal(a: Any, b: Any) -> bool:
    """Equality of JSON values: 1 equals 1.0 but not true; the order of
    items counts, the order of keys does not.
    """
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, int | float) and isinstance(b, int | float):
        return a == b
    return type(a) is type(b) and bool(a == b)


def same_json(first: str, second: str) -> bool:
    """True for texts that hold equal JSON values."""
    a, b = parse(first), parse(second)
    return INVALID not in (a, b) and equal(a, b)


def leaves(value: Any, path: str = "") -> Counter[str]:
    """Number of leaves under each path, such as `items[].name`; an empty
    object or list is a leaf. INVALID has none.
    """
    if value is INVALID:
        return Counter()
    if isinstance(value, dict) and value:
        return _sum(leaves(inner, _below(path, key)) for key, inner in value.items())
    if isinstance(value, list) and value:
        return _sum(leaves(inner, f"{path}[]") for inner in value)
    return Counter([path or "$"])


def _below(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def hits(expected: Any, predicted: Any, path: str = "") -> Counter[str]:
    """Number of equal leaves under each path.

    Items of two lists are paired greedily, each at most once and regardless of order: the pair with
    the most equal leaves first, then the earlier one. So a quantity counts only together with the
    item that it belongs to.
    """
    if expected is INVALID or predicted is INVALID:
        return Counter()
    if expected or predicted:
        if isinstance(expected, dict) and isinstance(predicted, dict):
            both = [key for key in expected if key in predicted]
            return _sum(hits(expected[key], predicted[key], _below(path, key)) for key in both)
        if isinstance(expected, list) and isinstance(predicted, list):
            return _paired(expected, predicted, f"{path}[]")
    return Counter([path or "$"]) if equal(expected, predicted) else Counter()


def _paired(expected: list[Any], predicted: list[Any], path: str) -> Counter[str]:
    left = set(range(len(expected)))
    right = set(range(len(predicted)))
    pairs = [(hits(expected[i], predicted[j], path), i, j) for i in left for j in right]
    pairs.sort(key=lambda pair: (-pair[0].total(), pair[1], pair[2]))
    total: Counter[str] = Counter()
    for counts, i, j in pairs:
        if i in left and j in right:
            total += counts
            left.remove(i)
            right.remove(j)
    return total


def _sum(counters: Iterable[Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    return total


def per_field(pairs: Iterable[tuple[Any, Any]]) -> dict[str, ClassFigures]:
    """Precision, recall, F1 and support of every path, over pairs of
    a reference and a predicted value.
    """
    references: Counter[str] = Counter()
    predictions: Counter[str] = Counter()
    same: Counter[str] = Counter()
    for expected, predicted in pairs:
        references.update(leaves(expected))
        predictions.update(leaves(predicted))
        same.update(hits(expected, predicted))
    paths = sorted(references | predictions)
    return {path: _prf(same[path], predictions[path], references[path]) for path in paths}


def field_counts(expected: Any, predicted: Any) -> tuple[int, int, int]:
    """Returns (equal, predicted, reference): numbers of leaves of one record."""
    return hits(expected, predicted).total(), leaves(predicted).total(), leaves(expected).total()


# Texts


def words(text: str) -> list[str]:
    """The words of a text: NFKC-normalised and case-folded, without punctuation and spaces."""
    whole = in_normal_form(text, "NFKC").casefold()
    if whole.isascii():
        return re.findall(r"[^\W_]+", whole)
    # a vowel sign of Hindi or Thai is no letter to a pattern, and belongs to its word
    return "".join(sign if _is_in_word(sign) else " " for sign in whole).split()


def _is_in_word(sign: str) -> bool:
    return sign.isalnum() or unicodedata.category(sign)[0] == "M"


def same_text(expected: str, predicted: str) -> bool:
    """True for the same words in the same order."""
    return words(expected) == words(predicted)


def token_f1(expected: Sequence[str], predicted: Sequence[str]) -> float:
    """F1 of the words that two texts share (Rajpurkar et al.
    2016); 1 for two texts without words.
    """
    if not expected and not predicted:
        return 1.0
    shared = (Counter(expected) & Counter(predicted)).total()
    return 2 * shared / (len(expected) + len(predicted))


def rouge_l(expected: Sequence[str], predicted: Sequence[str]) -> float:
    """ROUGE-L: F1 of the longest common subsequence of words (Lin 2004)."""
    if not expected or not predicted:
        return 0.0
    shared = common_subsequence(expected, predicted)
    return 2 * shared / (len(expected) + len(predicted))


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence; the bits of one integer
    hold a row of the table (Hyyrö 2004).
    """
    places: dict[str, int] = {}
    for k, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << k
    everything = (1 << len(a)) - 1
    row = everything
    for word in b:
        match = row & places.get(word, 0)
        row = ((row + match) | (row - match)) & everything
    return len(a) - row.bit_count()


def chrf_counts(expected: str, predicted: str) -> list[int]:
    """Numbers of predicted, reference and shared character n-grams of order
    1 to 6, without spaces: (3 * ORDERS,).
    """
    counts = []
    for n in range(1, ORDERS + 1):
        references = _ngrams("".join(expected.split()), n)
        predictions = _ngrams("".join(predicted.split()), n)
        shared = references & predictions
        # where the reference is shorter than n, n-grams of the prediction are not counted either
        number = predictions.total() if references else 0
        counts += [number, references.total(), shared.total()]
    return counts


def _ngrams(text: str, n: int) -> Counter[str]:
    return Counter(text[k : k + n] for k in range(len(text) - n + 1))


def chrf(sums: Floats) -> Floats:
    """chrF (Popović 2015) from sums of `chrf_counts` over rows, (..., 3 * ORDERS): F2 of the mean
    precision and recall.

    Orders that one of the two texts is too short for are left out of both means, as in sacrebleu.
    """
    import numpy as np

    counts = sums.reshape(*sums.shape[:-1], ORDERS, 3)
    both = counts[..., :2]  # predicted and reference n-grams
    used = np.all(both > 0, axis=-1)
    orders = np.maximum(used.sum(axis=-1), 1)
    shares = np.where(used[..., None], counts[..., 2:] / np.maximum(both, 1e-300), 0)
    means = shares.sum(axis=-2) / orders[..., None]
    precision, recall = means[..., 0], means[..., 1]
    below = BETA**2 * precision + recall
    above = (1 + BETA**2) * precision * recall
    return np.divide(above, below, out=np.zeros_like(below), where=below > 0)
