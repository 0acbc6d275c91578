"""Overlap between splits: the held-out rows that share an n-gram of words with a training row.

A near-duplicate resembles another row as a whole; this finds rows that share a passage. A run has
13 words, as in Brown et al. 2020 ("Language Models are Few-Shot Learners", appendix C); for a
shorter held-out row 8. Runs are compared by 64-bit hashes of the words alone, so the result does
not depend on batches or hash seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from slmctl.deduplication.minhash import I64, U64, mixed
from slmctl.deduplication.near_duplicates import Rows, Spill

LONG, SHORT = 13, 8  # words

_BATCH = 1024  # rows with texts in memory at a time
_HELD = 1 << 22  # runs of held-out rows in memory at a time
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
_INVERSE = pow(_BASE, -1, 1 << 64)
_BYTES = mixed(np.arange(1, 257, dtype=np.uint64))
_SPACE = ord(" ")
_NEVER = np.iinfo(np.int64).max  # in place of a row's index: no row


@dataclass(frozen=True)
class Overlap:
    """The overlap of held-out rows with the training rows.

    Attributes:
        measured: Number of held-out rows with at least 8 words.
        overlapping: Number of these that share a run of words with a training row.
        too_short: Number of held-out rows with fewer words, which are not measured: short equal
            texts are found as duplicates, and shorter runs are common phrases.
        pairs: (overlapping row, first training row with a common run), in order.
    """

    measured: int
    overlapping: int
    too_short: int
    pairs: tuple[tuple[int, int], ...]

    @property
    def share(self) -> float:
        """The overlapping share of the measured rows, 0 to 1."""
        return self.overlapping / self.measured if self.measured else 0.0


def measure(rows: Spill, train: Rows, held_out: Rows) -> Overlap:
    """Find the held-out rows that share a run of words with a training row.

    The runs of a held-out row with 13 words or more have 13 words, those of a row with 8 to 12
    words have 8. Memory is bounded for any number of rows: a part of each split is held at a time.
    """
    first = np.full(len(held_out), _NEVER)  # first training row with a common run
    measured = np.zeros(len(held_out), dtype=bool)
    for size in (LONG, SHORT):
        for runs, owners in _parts(rows, held_out, size):
            measured[owners] = True
            order = np.argsort(runs)
            runs, owners = runs[order], owners[order]
            del order
            np.minimum.at(first, owners, _first_with(rows, train, runs, size))
    overlapping = np.flatnonzero(first < _NEVER)
    pairs = tuple((int(held_out[k]), int(first[k])) for k in overlapping)
    return Overlap(int(measured.sum()), len(overlapping), int((~measured).sum()), pairs)


def _parts(rows: Spill, held_out: Rows, size: int) -> Iterator[tuple[U64, I64]]:
    """Yield (hashes of runs of `size` words, index in `held_out` of each run's row), for the rows
    with this size.

    About _HELD runs at a time; the runs of a row stay together.
    """
    runs: list[U64] = []
    owners: list[I64] = []
    held = 0
    for start in range(0, len(held_out), _BATCH):
        texts = rows.texts(held_out[start : start + _BATCH])
        words = np.array([text.count(" ") + 1 for text in texts])
        of_size = np.flatnonzero(
            words >= LONG if size == LONG else (words >= SHORT) & (words < LONG)
        )
        hashed, owner = hashes([texts[k] for k in of_size], size)
        runs.append(hashed)
        owners.append(of_size[owner] + start)
        held += len(hashed)
        if held >= _HELD or (held and start + _BATCH >= len(held_out)):
            yield _emptied(runs), _emptied(owners)
            held = 0


def _emptied(arrays: list[np.ndarray]) -> np.ndarray:
    """Join the arrays of a list, and empty the list, so that memory holds them once."""
    joined = np.concatenate(arrays)
    arrays.clear()
    return joined


def _first_with(rows: Spill, train: Rows, sought: U64, size: int) -> I64:
    """The first training row with each of the sorted runs
    `sought`, (len(sought),); _NEVER for none.
    """
    met = np.full(len(sought), _NEVER)
    for start in range(0, len(train), _BATCH):
        part = train[start : start + _BATCH]
        runs, owners = hashes(rows.texts(part), size)
        order = np.argsort(runs)  # so that successive look-ups in `sought` hit the CPU's cache
        runs, owners = runs[order], owners[order]
        # the first of equal runs
        place = np.minimum(np.searchsorted(sought, runs), len(sought) - 1)
        hit = sought[place] == runs
        np.minimum.at(met, place[hit], part[owners[hit]])
    opened = np.arange(len(sought))  # index of the first of each run's equal runs
    opened[1:][sought[1:] == sought[:-1]] = 0
    return met[np.maximum.accumulate(opened, out=opened)]


def hashes(texts: Sequence[str], size: int) -> tuple[U64, I64]:
    """Returns (hash of every run of `size` words, index of its text).

    A hash is a polynomial of the run's bytes modulo 2**64: the difference of two prefix sums,
    multiplied by a power of the inverse base, so that it does not depend on the position.
    """
    raw = [text.encode("utf-8", "surrogatepass") for text in texts]
    codes = np.frombuffer(b"".join(raw), dtype=np.uint8)
    ends = np.cumsum([len(text) for text in raw], dtype=np.int64)
    starts, stops = _words(codes, ends)
    owner = np.searchsorted(ends, starts, side="right")
    if len(starts) < size:
        return np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64)
    whole = owner[size - 1 :] == owner[: len(owner) - size + 1]
    start, stop = starts[: len(whole)][whole], stops[size - 1 :][whole]
    sums = np.zeros(len(codes) + 1, dtype=np.uint64)
    np.cumsum(_BYTES[codes] * _powers(_BASE, len(codes)), out=sums[1:])
    return (sums[stop] - sums[start]) * _powers(_INVERSE, len(codes))[start], owner[: len(whole)][
        whole
    ]


def _words(codes: np.ndarray, ends: I64) -> tuple[I64, I64]:
    """Returns (start, stop) offsets in bytes of the words of joined texts."""
    inside = codes != _SPACE
    opens, closes = inside.copy(), inside.copy()
    opens[1:] &= ~inside[:-1]
    closes[:-1] &= ~inside[1:]
    edges = ends[(ends > 0) & (ends < len(codes))]  # boundaries between two texts
    opens[edges] = inside[edges]
    closes[edges - 1] = inside[edges - 1]
    return np.flatnonzero(opens), np.flatnonzero(closes) + 1


def _powers(base: int, count: int) -> U64:
    factors = np.full(count, base, dtype=np.uint64)
    factors[:1] = 1
    return np.multiply.accumulate(factors)
