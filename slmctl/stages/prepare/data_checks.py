"""Checks of a data set against its use: lengths in the base's tokens, and labels that look like misspellings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NotRequired, TypedDict

import numpy as np
from rapidfuzz import fuzz

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
LIMITS = (256, 512, 1024, 2048, 4096, 8192)  # tokens that contexts and max_length are commonly set to
BINS = 24
ALIKE = 0.8  # similarity from which one label looks like another's misspelling
MANY = 20  # rows from which columns may look swapped
REPEATED = 0.2  # largest share of different inputs, and least times as many different answers, where they do
OFTENER = 5
RARE = 0.1  # largest share of the other's rows: a label that is as frequent is meant


class Histogram(TypedDict):
    """Counts of equal bins, and their edges, one more than counts."""

    edges: list[int]
    counts: list[int]


class TokenFacts(TypedDict):
    """Lengths of records in tokens; `longer_than` holds the number of records over each common limit.

    `histogram` is there where there are records.
    """

    median: int
    p95: int
    max: int
    total: int
    quantiles: dict[str, int]
    histogram: NotRequired[Histogram]
    longer_than: dict[str, int]


class LabelTypo(TypedDict):
    """A rare label that may be a misspelling of a likely one, with the records of both."""

    label: str
    count: int
    likely: str
    likely_count: int


class Swapped(TypedDict):
    """Different inputs and different answers, where the inputs look like the answers."""

    inputs: int
    answers: int


def length_facts(lengths: np.ndarray) -> TokenFacts:
    """Quantiles and a histogram of `(n,)` lengths in tokens, and the numbers over common limits."""
    if not len(lengths):
        return {"median": 0, "p95": 0, "max": 0, "total": 0, "quantiles": {}, "longer_than": {}}
    values = [int(value) for value in np.quantile(lengths, QUANTILES, method="lower")]
    counts, edges = np.histogram(lengths, bins=_edges(int(lengths.max())))
    return {
        "median": values[QUANTILES.index(0.5)],
        "p95": values[QUANTILES.index(0.95)],
        "max": values[-1],
        "total": int(lengths.sum()),
        "quantiles": {f"{share:g}": value for share, value in zip(QUANTILES, values, strict=True)},
        "histogram": {"edges": [int(edge) for edge in edges], "counts": [int(count) for count in counts]},
        "longer_than": {str(limit): over for limit in LIMITS if (over := int((lengths > limit).sum()))},
    }


def _edges(longest: int) -> np.ndarray:
    """Whole-numbered edges of equal bins from 0 to over the longest."""
    width = -(-(longest + 1) // BINS)
    return np.arange(0, longest + 1 + width, width)


def swapped_columns(rows: int, inputs: int, answers: int) -> Swapped | None:
    """The different inputs and answers of rows whose columns look swapped; None where they do not.

    A few inputs that come again and again with ever other answers are labels, and the answers the texts.
    """
    if rows < MANY or inputs > REPEATED * rows or answers < OFTENER * inputs:
        return None
    return {"inputs": inputs, "answers": answers}


def label_typos(counts: Mapping[str, int]) -> list[LabelTypo]:
    """Rare labels that look like a misspelling of a common one, the most frequent first.

    Args:
        counts: Records by label.
    """
    typos: list[LabelTypo] = []
    common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    for label, count in common:
        for likely, likely_count in common:
            if count > RARE * likely_count:
                break
            if _alike(label, likely):
                typos.append({"label": label, "count": count, "likely": likely, "likely_count": likely_count})
                break
    return typos


def _alike(label: str, other: str) -> bool:
    """Test for a difference in case, a separator or a letter or two; `card_2` and `card_3` are meant to differ."""
    if label.casefold().replace("-", "_").replace(" ", "_") == other.casefold().replace("-", "_").replace(" ", "_"):
        return True
    digits = [[c for c in text if c.isdigit()] for text in (label, other)]
    return digits[0] == digits[1] and fuzz.ratio(label.casefold(), other.casefold()) / 100 >= ALIKE
