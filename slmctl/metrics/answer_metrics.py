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
    return {
        label: _prf(hits[label], predictions[label], references[label])
        for label in labels
        if references[label] + predictions[label] > 0
    }


def _prf(hits: int, predicted: int, expected: int) -> ClassFigures:
    return {
        "precision": hits / predicted if predicted else 0.0,
        "recall": hits / expected if expected else 0.0,
        "f1": 2 * hits / (predicted + expected) if predicted + expected else 0.0,
        "support": expected,
    }


def level_sums(expected: Floats, predicted: Floats) -> Floats:
    """Terms of `level_error` and `quadratic_kappa` for each row, (n,
    6); both are computed from their sums.
    """
    import numpy as np

    apart = expected - predicted
    return np.stack(
        [
            np.ones_like(apart),
            np.abs(apart),
            apart**2,
            expected,
            predicted,
            expected**2 + predicted**2,
        ],
        1,
    )


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
    by_chance = sums[..., 5] / n - 2 * sums[..., 3] * sums[..., 4] / n**2
    share = np.divide(sums[..., 2] / n, by_chance, out=np.ones_like(n), where=by_chance > 1e-6)
    return 1 - share


def bin_of(confidence: Floats) -> npt.NDArray[np.int64]:
    """Index of the reliability table's bin for each confidence, (n,). Bins
    are [low, high); 1 goes into the last.
    """
    import numpy as np

    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)


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

        return np.sqrt(np.maximum(self.observed**2 - self.by_chance**2, 0))


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
    spread = inside * (confidence * (1 - confidence))[:, None]
    # mean absolute value of a normal gap; for few rows with confidence near 0 or 1, the second
    # bound is smaller
    chance = np.minimum(np.sqrt(2 / np.pi * (weights**2 @ spread)), 2 * weights @ spread)
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
    for label, (both, predicted, expected) in zip(labels, counts.astype(int).tolist(), strict=True):
        if either := predicted + expected - both:
            interval = [2 * share / (1 + share) for share in wilson(both, either, confidence)]
            figures[label] = {**_prf(both, predicted, expected), "interval": interval}
    return figures


def macro_f1(sums: Floats) -> Floats:
    """Mean F1 of the labels that occur, from counts of `per_label`
    added up over rows, (..., 3 * labels).
    """
    import numpy as np

    both, predicted, expected = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
    below = predicted + expected
    f1 = np.divide(2 * both, below, out=np.zeros_like(below), where=below > 0)
    mean: Floats = f1.sum(axis=-1) / np.maximum((below > 0).sum(axis=-1), 1)
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
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
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
        return _sum(leaves(inner, f"{path}.{key}" if path else key) for key, inner in value.items())
    if isinstance(value, list) and value:
        return _sum(leaves(inner, f"{path}[]") for inner in value)
    return Counter([path or "$"])


def hits(expected: Any, predicted: Any, path: str = "") -> Counter[str]:
    """Number of equal leaves under each path.

    Items of two lists are paired greedily, each at most once and regardless of order: the pair with
    the most equal leaves first, then the earlier one. So a quantity counts only together with the
    item that it belongs to.
    """
    if expected is INVALID or predicted is INVALID:
        return Counter()
    if isinstance(expected, dict) and isinstance(predicted, dict) and (expected or predicted):
        both = (key for key in expected if key in predicted)
        return _sum(
            hits(expected[key], predicted[key], f"{path}.{key}" if path else key) for key in both
        )
    if isinstance(expected, list) and isinstance(predicted, list) and (expected or predicted):
        return _paired(expected, predicted, f"{path}[]")
    return Counter([path or "$"]) if equal(expected, predicted) else Counter()


def _paired(expected: list[Any], predicted: list[Any], path: str) -> Counter[str]:
    pairs = [
        (hits(a, b, path), i, j) for i, a in enumerate(expected) for j, b in enumerate(predicted)
    ]
    total: Counter[str] = Counter()
    left, right = set(range(len(expected))), set(range(len(predicted)))
    for counts, i, j in sorted(pairs, key=lambda pair: (-pair[0].total(), pair[1], pair[2])):
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
    references, predictions, same = Counter[str](), Counter[str](), Counter[str]()
    for expected, predicted in pairs:
        references.update(leaves(expected))
        predictions.update(leaves(predicted))
        same.update(hits(expected, predicted))
    return {
        path: _prf(same[path], predictions[path], references[path])
        for path in sorted(references | predictions)
    }


def field_counts(expected: Any, predicted: Any) -> tuple[int, int, int]:
    """Returns (equal, predicted, reference): numbers of leaves of one record."""
    return hits(expected, predicted).total(), leaves(predicted).total(), leaves(expected).total()


# Texts


def words(text: str) -> list[str]:
    """The words of a text: NFKC-normalised and case-folded, without punctuation and spaces."""
    whole = in_normal_form(text, "NFKC").casefold()
    # a vowel sign of Hindi or Thai is no letter to a pattern, and belongs to its word
    if not whole.isascii():
        whole = "".join(
            sign if sign.isalnum() or unicodedata.category(sign)[0] == "M" else " "
            for sign in whole
        )
        return whole.split()
    return re.findall(r"[^\W_]+", whole)


def same_text(expected: str, predicted: str) -> bool:
    """True for the same words in the same order."""
    return words(expected) == words(predicted)


def token_f1(expected: Sequence[str], predicted: Sequence[str]) -> float:
    """F1 of the words that two texts share (Rajpurkar et al.
    2016); 1 for two texts without words.
    """
    if not expected and not predicted:
        return 1.0
    return 2 * (Counter(expected) & Counter(predicted)).total() / (len(expected) + len(predicted))


def rouge_l(expected: Sequence[str], predicted: Sequence[str]) -> float:
    """ROUGE-L: F1 of the longest common subsequence of words (Lin 2004)."""
    if not expected or not predicted:
        return 0.0
    return 2 * common_subsequence(expected, predicted) / (len(expected) + len(predicted))


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
    a, b = "".join(expected.split()), "".join(predicted.split())
    counts = []
    for n in range(1, ORDERS + 1):
        references = Counter(a[k : k + n] for k in range(len(a) - n + 1))
        predictions = Counter(b[k : k + n] for k in range(len(b) - n + 1))
        # where the reference is shorter than n, n-grams of the prediction are not counted either
        counts += [
            predictions.total() if references else 0,
            references.total(),
            (references & predictions).total(),
        ]
    return counts


def chrf(sums: Floats) -> Floats:
    """chrF (Popović 2015) from sums of `chrf_counts` over rows, (..., 3 * ORDERS): F2 of the mean
    precision and recall.

    Orders that one of the two texts is too short for are left out of both means, as in sacrebleu.
    """
    import numpy as np

    counts = sums.reshape(*sums.shape[:-1], ORDERS, 3)
    predicted, expected, shared = counts[..., 0], counts[..., 1], counts[..., 2]
    used = (predicted > 0) & (expected > 0)
    orders = np.maximum(used.sum(axis=-1), 1)
    precision = np.where(used, shared / np.maximum(predicted, 1e-300), 0).sum(axis=-1) / orders
    recall = np.where(used, shared / np.maximum(expected, 1e-300), 0).sum(axis=-1) / orders
    below = BETA**2 * precision + recall
    return np.divide(
        (1 + BETA**2) * precision * recall, below, out=np.zeros_like(below), where=below > 0
    )
