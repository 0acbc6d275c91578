"""Records by label -> the labels that look like misspellings of others."""

from __future__ import annotations

import bisect
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TypedDict

from rapidfuzz import fuzz
from rapidfuzz.distance import OSA

from slmctl.normal_forms import in_normal_form

ALIKE = 0.8  # similarity from which one label looks like another's misspelling
# a typo has at most this share of the other label's rows; a more frequent label is meant
RARE = 0.1
# In a word of at least SLIP_LETTERS, one wrong letter (not the first) is a typo up to SLIP_SHARE of
# the other's rows.
SLIP_LETTERS = 5
SLIP_ROWS = 10
SLIP_SHARE = 0.3
# of the other's rows, up to which a label that differs by one letter is asked about
ALIKE_SHARE = 0.5
# endings that make a plural of a word, in several languages
PLURALS = ("e", "s", "n", "en", "er", "es", "se", "nen")
_SPELLINGS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "-": "_", " ": "_"})
_ACCENTS = re.compile("(?<=[a-z])[\u0300-\u036f]+")


class LabelTypo(TypedDict):
    """A rare label, the common label that it may misspell, and the number of records of each."""

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
            # a typo has at most SLIP_SHARE of its label's rows, so rarer labels are not compared
            commoner = common[: _rank(common, count / SLIP_SHARE)]
            meant = (other for other, rows in commoner if _is_typo(label, count, other, rows))
            likely = next(meant, label)
        if likely != label:
            typos.append(_typo(label, likely, counts))
    return typos


def _rank(common: list[tuple[str, int]], least: float) -> int:
    """Number of labels with at least so many rows; they come first."""
    return bisect.bisect_right(common, -least, key=lambda item: -item[1])


def _typo(label: str, likely: str, counts: Mapping[str, int]) -> LabelTypo:
    return {
        "label": label,
        "count": counts[label],
        "likely": likely,
        "likely_count": counts[likely],
    }


def alike_labels(counts: Mapping[str, int]) -> list[LabelTypo]:
    """Labels that people should look at: too frequent for a typo, one
    letter from a commoner one, or its plural.
    """
    typos = {typo["label"] for typo in label_typos(counts)}
    common = [(label, rows) for label, rows in counts.items() if label not in typos]
    common.sort(key=lambda item: -item[1])
    # in `common`: of 3,000 labels few share all but one word
    places = defaultdict[tuple[str, ...], list[int]](list)
    for place, (label, _) in enumerate(common):
        for shared in _shared_by_slips(label):
            places[shared].append(place)
    pairs: list[LabelTypo] = []
    for own, (label, count) in enumerate(common):
        commoner = _rank(common, count / ALIKE_SHARE)
        near: set[int] = set()
        for shared in _shared_by_slips(label):
            near.update(place for place in places[shared] if place < own)
        for place in sorted(near):
            other, _ = common[place]
            if (place < commoner and _is_slip(label, other)) or _is_plural(label, other):
                pairs.append(_typo(label, other, counts))
                break
    return pairs


def _is_typo(label: str, count: int, other: str, rows: int) -> bool:
    """True for a label that is much rarer than another, and looks like it."""
    if count <= RARE * rows and _alike(label, other):
        return True
    return count < SLIP_ROWS and count <= SLIP_SHARE * rows and _is_slip(label, other)


def _plain(label: str) -> str:
    """A label without differences of spelling: lower case, one
    separator, no accents, `ae` for `ä`.
    """
    text = in_normal_form(label, "NFC").casefold().translate(_SPELLINGS)
    # accents are removed from Latin letters only: in other scripts such a mark makes another letter
    plain = _ACCENTS.sub("", in_normal_form(text, "NFD"))
    return in_normal_form(plain, "NFC")


def _shared_by_slips(label: str) -> Iterator[tuple[str, ...]]:
    """The words of a label with the first letter alone of a long one,
    each in turn: slips share one of these.
    """
    words = _plain(label).split("_")
    for k, word in enumerate(words):
        if len(word) >= SLIP_LETTERS - 1:
            yield *words[:k], word[0], *words[k + 1 :]


def _alike(label: str, other: str) -> bool:
    """True for labels that differ in a letter or two and in no digit:
    `card_2` and `card_3` differ by intent.
    """
    if list(filter(str.isdigit, label)) != list(filter(str.isdigit, other)):
        return False
    return fuzz.ratio(label.casefold(), other.casefold()) / 100 >= ALIKE


def _is_slip(label: str, other: str) -> bool:
    """True for labels that differ in one long word by one letter: missing,
    added, wrong or swapped with the next.
    """
    pair = _only_difference(label, other)
    if pair is None:
        return False
    word, meant = pair
    if not re.fullmatch(f"[a-z]{{{SLIP_LETTERS},}}", meant):
        return False
    return word[:1] == meant[0] and OSA.distance(word, meant) == 1


def _is_plural(label: str, other: str) -> bool:
    """True for labels of which one has the plural of a word of the other,
    such as `Ersatzteil` and `Ersatzteile`.
    """
    pair = _only_difference(label, other)
    if pair is None:
        return False
    singular, plural = sorted(pair, key=len)
    return len(singular) >= SLIP_LETTERS - 1 and plural.removeprefix(singular) in PLURALS


def _only_difference(label: str, other: str) -> tuple[str, str] | None:
    """The word in which two labels of as many words differ; None where they differ in none or
    several.
    """
    words, others = _plain(label).split("_"), _plain(other).split("_")
    if len(words) != len(others):
        return None
    apart = [pair for pair in zip(words, others, strict=True) if pair[0] != pair[1]]
    return apart[0] if len(apart) == 1 else None
