"""Normalised text and near-duplicates.

Candidates come from MinHash signatures over character 5-grams, banded (Broder 1997; Leskovec,
Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3); each is confirmed by the real ratio,
so a hash can cost time but never decide.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from rapidfuzz import fuzz

GRAM = 5  # characters
BANDS, ROWS = 32, 4  # finds a pair of Jaccard 0.7 with probability 0.9998, of 0.5 with 0.87
_PRIME = np.uint64((1 << 31) - 1)
_random = np.random.default_rng(20)
_A = _random.integers(1, int(_PRIME), BANDS * ROWS, dtype=np.uint64)
_B = _random.integers(0, int(_PRIME), BANDS * ROWS, dtype=np.uint64)


def normalise(text: str) -> str:
    """Text without what does not make it another text: case, width, digits' values, punctuation, spaces."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"\d", "0", text)
    return " ".join(re.findall(r"[^\W_]+", text))


def ratio(a: str, b: str) -> float:
    """Similarity of two normalised texts, 0 to 1 (normalised Indel similarity)."""
    return fuzz.ratio(a, b) / 100


def nearest(texts: Sequence[str], references: Sequence[str], threshold: float) -> list[int | None]:
    """For each text the index of a reference that is at least `threshold` similar, else None.

    Args:
        texts: Normalised texts.
        references: Normalised texts to compare them with.
        threshold: 0 to 1; the most similar reference at or above it is taken, the first among equals.
    """
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for index, reference in enumerate(references):
        for key in _bands(reference):
            buckets[key].append(index)
    found: list[int | None] = []
    for text in texts:
        candidates = sorted({index for key in _bands(text) for index in buckets.get(key, ())})
        scores = [ratio(text, references[index]) for index in candidates]
        best = max(scores, default=0.0)
        found.append(candidates[scores.index(best)] if best >= threshold else None)
    return found


def _bands(text: str) -> list[tuple[int, bytes]]:
    signature = _signature(text)
    return [(band, signature[band].tobytes()) for band in range(BANDS)]


def _signature(text: str) -> npt.NDArray[np.uint64]:
    """The MinHash signature of a text, (BANDS, ROWS)."""
    raw = text.encode()
    grams = {zlib.crc32(raw[k : k + GRAM]) for k in range(max(1, len(raw) - GRAM + 1))}
    hashes = np.fromiter(grams, dtype=np.uint64, count=len(grams)) % _PRIME  # (grams,)
    table = (hashes[None, :] * _A[:, None] + _B[:, None]) % _PRIME  # (BANDS * ROWS, grams)
    lowest: npt.NDArray[np.uint64] = table.min(axis=1).reshape(BANDS, ROWS)
    return lowest
