"""Records by label -> the labels that look like misspellings of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from rapidfuzz import fuzz

ALIKE = 0.8  # similarity from which one label looks like another's misspelling
RARE = 0.1  # largest share of the other's rows: a label that is as frequent is meant


class LabelTypo(TypedDict):
    """A rare label that may be a misspelling of a likely one, with the records of both."""

    label: str
    count: int
    likely: str
    likely_count: int


def label_typos(counts: Mapping[str, int]) -> list[LabelTypo]:
    """Rare labels that look like a misspelling of a common one, the most frequent first."""
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
