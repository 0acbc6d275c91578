"""What an answer is worth beside the one wanted: labels, records with fields, and texts.

Every figure lies between 0 and 1. Each function is plain arithmetic over one pair, or over counts
that can be added up over rows, so that a figure of many rows follows from sums.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

BINS = 15  # of the reliability table, equally wide (Guo et al. 2017)
ORDERS = 6  # longest n-gram of chrF, in characters
BETA = 2  # chrF weighs recall twice as much as precision
INVALID = object()  # what `parse` gives for a text that is no JSON; None is a JSON value

# Labels


def per_class(labels: Iterable[str], wanted: Sequence[str], given: Sequence[str]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and support of every label that was wanted or given; 0 where nothing was counted."""
    wants, gives = Counter(wanted), Counter(given)
    hits = Counter(a for a, b in zip(wanted, given, strict=True) if a == b)
    return {label: _prf(hits[label], gives[label], wants[label]) for label in labels if wants[label] + gives[label] > 0}


def _prf(hits: int, given: int, wanted: int) -> dict[str, float]:
    return {
        "precision": hits / given if given else 0.0,
        "recall": hits / wanted if wanted else 0.0,
        "f1": 2 * hits / (given + wanted) if given + wanted else 0.0,
        "support": wanted,
    }


def bin_of(confidence: Floats) -> npt.NDArray[np.int64]:
    """The bin of the reliability table that each confidence falls in: [low, high), and 1 into the last."""
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)


def calibration_error(sums: Floats) -> Floats:
    """Expected calibration error from sums over rows (Naeini et al. 2015; Guo et al. 2017).

    Args:
        sums: (..., 3 * BINS): by bin the rows, their confidences and their right answers.
    """
    rows, confidence, right = np.split(sums, 3, axis=-1)
    total = rows.sum(axis=-1)
    gaps = np.abs(confidence - right).sum(axis=-1)
    return np.divide(gaps, total, out=np.zeros_like(gaps), where=total > 0)


# Records with fields


def parse(text: str) -> Any:
    """The JSON value of an answer, or INVALID: NaN, a key that stands twice and any text around it are no JSON."""
    try:
        return json.loads(text, parse_constant=_refuse, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return INVALID


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key stands twice in an object")
    return result


def equal(a: Any, b: Any) -> bool:
    """Whether two JSON values are the same: 1 is 1.0 but not true; the order of items counts, that of keys does not."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, int | float) and isinstance(b, int | float):
        return a == b
    return type(a) is type(b) and bool(a == b)


def leaves(value: Any, path: str = "") -> Counter[str]:
    """How many leaves a value has under each path, such as `items[].name`; an empty object or list is a leaf."""
    if isinstance(value, dict) and value:
        return _sum(leaves(inner, f"{path}.{key}" if path else key) for key, inner in value.items())
    if isinstance(value, list) and value:
        return _sum(leaves(inner, f"{path}[]") for inner in value)
    return Counter([path or "$"])


def hits(wanted: Any, given: Any, path: str = "") -> Counter[str]:
    """How many leaves of the value given are leaves of the one wanted, under each path.

    The items of two lists are paired whatever their order, those first that have the most leaves in
    common (then the earlier ones), each at most once: a quantity counts only with its own item.
    """
    if isinstance(wanted, dict) and isinstance(given, dict) and (wanted or given):
        both = (key for key in wanted if key in given)
        return _sum(hits(wanted[key], given[key], f"{path}.{key}" if path else key) for key in both)
    if isinstance(wanted, list) and isinstance(given, list) and (wanted or given):
        return _paired(wanted, given, f"{path}[]")
    return Counter([path or "$"]) if equal(wanted, given) else Counter()


def _paired(wanted: list[Any], given: list[Any], path: str) -> Counter[str]:
    found = [(hits(a, b, path), i, j) for i, a in enumerate(wanted) for j, b in enumerate(given)]
    total: Counter[str] = Counter()
    left, right = set(range(len(wanted))), set(range(len(given)))
    for counts, i, j in sorted(found, key=lambda one: (-one[0].total(), one[1], one[2])):
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


def per_field(pairs: Iterable[tuple[Any, Any]]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and support of every path, over pairs of a value wanted and one given (or INVALID)."""
    wants, gives, same = Counter[str](), Counter[str](), Counter[str]()
    for wanted, given in pairs:
        wants.update(leaves(wanted))
        if given is not INVALID:
            gives.update(leaves(given))
            same.update(hits(wanted, given))
    return {path: _prf(same[path], gives[path], wants[path]) for path in sorted(wants | gives)}


def field_counts(wanted: Any, given: Any) -> tuple[int, int, int]:
    """Leaves that agree, leaves given and leaves wanted of one record."""
    if given is INVALID:
        return 0, 0, leaves(wanted).total()
    return hits(wanted, given).total(), leaves(given).total(), leaves(wanted).total()


# Texts


def words(text: str) -> list[str]:
    """The words of a text, for comparing: compatibility forms and case folded, punctuation and spaces dropped."""
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold())


def same_text(wanted: str, given: str) -> bool:
    """Whether two texts have the same words in the same order: the normalised match."""
    return words(wanted) == words(given)


def token_f1(wanted: Sequence[str], given: Sequence[str]) -> float:
    """F1 of the words that two texts share (Rajpurkar et al. 2016); two texts without words agree."""
    if not wanted and not given:
        return 1.0
    return 2 * (Counter(wanted) & Counter(given)).total() / (len(wanted) + len(given))


def rouge_l(wanted: Sequence[str], given: Sequence[str]) -> float:
    """ROUGE-L: F1 of the longest common subsequence of words (Lin 2004)."""
    if not wanted or not given:
        return 0.0
    return 2 * common_subsequence(wanted, given) / (len(wanted) + len(given))


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table at a time in the bits of an integer (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for k, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << k
    everything = (1 << len(a)) - 1
    row = everything
    for word in b:
        match = row & places.get(word, 0)
        row = ((row + match) | (row - match)) & everything
    return len(a) - row.bit_count()


def chrf_counts(wanted: str, given: str) -> list[int]:
    """By order 1 to 6 the character n-grams given, wanted and shared, spaces left out: (3 * ORDERS,)."""
    a, b = "".join(wanted.split()), "".join(given.split())
    counts = []
    for n in range(1, ORDERS + 1):
        wants = Counter(a[k : k + n] for k in range(len(a) - n + 1))
        gives = Counter(b[k : k + n] for k in range(len(b) - n + 1))
        # an order that the text wanted does not have cannot be missed
        counts += [gives.total() if wants else 0, wants.total(), (wants & gives).total()]
    return counts


def chrf(sums: Floats) -> Floats:
    """chrF (Popović 2015) from sums of `chrf_counts` over rows, (..., 3 * ORDERS): F2 of the mean precision and recall.

    Orders that one of the two sides does not have are left out of both means, as sacrebleu does.
    """
    counts = sums.reshape(*sums.shape[:-1], ORDERS, 3)
    given, wanted, shared = counts[..., 0], counts[..., 1], counts[..., 2]
    used = (given > 0) & (wanted > 0)
    orders = np.maximum(used.sum(axis=-1), 1)
    precision = np.where(used, shared / np.maximum(given, 1e-300), 0).sum(axis=-1) / orders
    recall = np.where(used, shared / np.maximum(wanted, 1e-300), 0).sum(axis=-1) / orders
    below = BETA**2 * precision + recall
    return np.divide((1 + BETA**2) * precision * recall, below, out=np.zeros_like(below), where=below > 0)
