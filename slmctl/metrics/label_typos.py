"""Records by label -> the labels that look like misspellings of others."""

from __future__ import annotations

import bisect
import re
import unicodedata
from collections.abc import Mapping
from typing import TypedDict

from rapidfuzz import fuzz
from rapidfuzz.distance import OSA

ALIKE = 0.8  # similarity from which one label looks like another's misspelling
RARE = 0.1  # largest share of the other's rows: a label that is as frequent is meant
# A word of so many letters that differs in one, and not in the first, is a slip up to a larger share of few rows.
SLIP_LETTERS, SLIP_ROWS, SLIP_SHARE = 5, 10, 0.3
_SPELLINGS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "-": "_", " ": "_"})
_ACCENTS = re.compile("(?<=[a-z])[\u0300-\u036f]+")


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
    spelled: dict[str, str] = {}  # the commonest label of each spelling
    for label, count in common:
        likely = spelled.setdefault(_plain(label), label)
        if likely == label:
            # a slip is rare beside what it means; the commonest come first, so the rest of many labels is not looked at
            commoner = common[: bisect.bisect_right(common, -count / SLIP_SHARE, key=lambda item: -item[1])]
            likely = next((other for other, rows in commoner if _is_typo(label, count, other, rows)), label)
        if likely != label:
            typos.append({"label": label, "count": count, "likely": likely, "likely_count": counts[likely]})
    return typos


def _is_typo(label: str, count: int, other: str, rows: int) -> bool:
    """Test for a label that is rare beside another, and looks like it."""
    if count <= RARE * rows and _alike(label, other):
        return True
    return count < SLIP_ROWS and count <= SLIP_SHARE * rows and _is_slip(label, other)


def _plain(label: str) -> str:
    """A label without what its spellings differ in: case, separators, accents, and `ä` for `ae`."""
    text = unicodedata.normalize("NFC", label).casefold().translate(_SPELLINGS)
    # of Latin letters alone: in other scripts such a mark makes another letter
    return unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFD", text)))


def _alike(label: str, other: str) -> bool:
    """Test for a difference in a letter or two; `card_2` and `card_3` are meant to differ."""
    digits = [[c for c in text if c.isdigit()] for text in (label, other)]
    return digits[0] == digits[1] and fuzz.ratio(label.casefold(), other.casefold()) / 100 >= ALIKE


def _is_slip(label: str, other: str) -> bool:
    """Test for one letter that is missing, too much, wrong or exchanged with the next, in one word that is long."""
    words, others = (_plain(text).split("_") for text in (label, other))
    if len(words) != len(others):
        return False
    apart = [(word, meant) for word, meant in zip(words, others, strict=True) if word != meant]
    return len(apart) == 1 and all(
        re.fullmatch(f"[a-z]{{{SLIP_LETTERS},}}", meant) and word[:1] == meant[0] and OSA.distance(word, meant) == 1
        for word, meant in apart
    )
