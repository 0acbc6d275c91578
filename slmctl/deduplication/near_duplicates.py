"""Finds near-duplicates among more rows than fit into memory: texts and band keys are on disk,
pairs are confirmed.

Each band is sorted separately. Rows with an equal key form a group, and each is paired with the
first rows of its group; a large group is also split by the keys of the next bands, so that the most
similar rows meet although half of the data set shares a key. The work therefore grows with the
number of rows, not of pairs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
from rapidfuzz import fuzz, process

from slmctl.deduplication.minhash import (
    BANDS,
    I64,
    U64,
    WORDS,
    band_keys,
    compact,
    equal_minima,
    mixed,
    sketch,
)

SIMILARITY = 0.85  # least similarity of near-duplicates, as by default in `prepare`
LINKS = 8  # number of rows of a group with which each member is compared
DEPTH = 4  # most bands that are combined to split a large group
# least equal minima of 128; a pair of Jaccard 0.5 has fewer in 1 of 1,900 cases, one of 0.3 in 6 of
# 7
FLOOR = 50
_PAIRS = 1 << 15  # pairs with texts in memory at a time
_REMEMBERED = 1 << 23  # most failed pairs that are remembered; further ones may be compared again
_BUFFER = 1 << 16  # bytes

Rows = npt.NDArray[np.int64]  # indices of rows, ascending


class Spill:
    """Normalised texts, band keys and compact sketches of rows, in a folder on disk that `close`
    removes.

    Attributes:
        compared: Number of pairs of texts that have been compared.
    """

    def __init__(self, folder: Path) -> None:
        self.compared = 0
        self._folder = folder
        folder.mkdir(parents=True)
        names = ["texts", "ends", "lengths", "compact", *(f"band-{band}" for band in range(BANDS))]
        self._stack = contextlib.ExitStack()
        self._files = {
            n: self._stack.enter_context((folder / n).open("wb", buffering=_BUFFER)) for n in names
        }
        self._texts = self._stack.enter_context((folder / "texts").open("rb"))
        self._count, self._end = 0, 0
        self._compact: U64 | None = None
        self._ends: I64 | None = None  # offset after each text, in bytes
        self._lengths: npt.NDArray[np.uint32] | None = None  # in characters

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return self._count

    def close(self) -> None:
        """Close the files and remove them."""
        self._stack.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def append(self, texts: Sequence[str], keys: U64, compact: U64) -> int:
        """Add rows in source order; returns the index of the first.

        Args:
            texts: Normalised texts of `n` rows.
            keys: Their `minhash.band_keys`, `(n, BANDS)`.
            compact: Their `minhash.compact`, `(n, WORDS)`.
        """
        first = self._count
        self._compact = self._ends = None
        self._lengths = None
        raw = [text.encode("utf-8", "surrogatepass") for text in texts]
        ends = np.cumsum([len(text) for text in raw], dtype=np.int64) + self._end
        self._files["texts"].write(b"".join(raw))
        self._files["ends"].write(ends.tobytes())
        self._files["lengths"].write(
            np.array([len(text) for text in texts], dtype=np.uint32).tobytes()
        )
        self._files["compact"].write(np.ascontiguousarray(compact).tobytes())
        for band, column in enumerate(keys.T):
            self._files[f"band-{band}"].write(column.tobytes())
        self._count += len(raw)
        self._end = int(ends[-1]) if raw else self._end
        return first

    @property
    def compact(self) -> U64:
        """The compact sketches of all rows, `(n, WORDS)`; 64 bytes a row, in memory."""
        if self._compact is None:
            self._compact = self._read("compact", np.dtype(np.uint64)).reshape(-1, WORDS)
        return self._compact

    def texts(self, rows: Rows | Sequence[int]) -> list[str]:
        """The normalised texts of some rows."""
        if self._ends is None:
            self._ends = self._read("ends", np.dtype(np.int64))
        at = np.asarray(rows, dtype=np.int64)
        stops = self._ends[at]
        starts = np.where(at > 0, self._ends[at - 1], 0)
        self._files["texts"].flush()
        # read, not memory-mapped: mapped pages would count as memory of the process
        file = self._texts.fileno()
        spans = zip(starts.tolist(), stops.tolist(), strict=True)
        return [
            os.pread(file, stop - start, start).decode("utf-8", "surrogatepass")
            for start, stop in spans
        ]

    def near(
        self,
        threshold: float,
        *,
        rows: Rows | None = None,
        among: Rows | None = None,
        workers: int = 1,
    ) -> I64:
        """For each row the first other row with a similarity of at least `threshold`, or -1.

        Args:
            threshold: Least `minhash.ratio`, 0 to 1.
            rows: Indices of the rows to search for, ascending; None for all.
            among: Indices of the rows that may be found; None for the earlier ones of `rows`.
            workers: Threads that compare texts; their number does not change the result.

        Returns:
            Indices of rows, `(len(rows),)`.
        """
        indices = np.arange(self._count) if rows is None else np.asarray(rows, dtype=np.int64)
        earliest = np.full(self._count, -1, dtype=np.int64)
        failed = np.empty(0, dtype=np.uint64)
        for band in range(BANDS):
            proposed = self._alike(
                self._proposed(band, indices, indices if among is None else among),
                earliest,
                among is None,
            )
            proposed = proposed[~_in_sorted(proposed, failed)]
            lost = self._confirm(
                self._of_like_length(proposed, threshold), threshold, earliest, workers
            )
            if len(failed) + len(lost) <= _REMEMBERED:
                failed = np.sort(np.concatenate([failed, lost]))
        return earliest[indices]

    def _proposed(self, band: int, rows: Rows, among: Rows) -> Iterator[tuple[Rows, Rows]]:
        """Arrays (row, other) of pairs with an equal band key; a bounded number for each row."""
        bits = np.uint64(max(1, (self._count - 1).bit_length()))
        # upper bits of a key and a row index in one number, which sorts fast
        low = np.uint64((1 << int(bits)) - 1)
        keys = self._keys(band)
        for depth in range(1, DEPTH + 1):
            ordered = np.sort((keys[among] & ~low) | among.astype(np.uint64))
            keyed = (
                ordered if rows is among else np.sort((keys[rows] & ~low) | rows.astype(np.uint64))
            )
            start = np.searchsorted(ordered, keyed & ~low)
            size = np.searchsorted(ordered, keyed | low, side="right") - start
            row, large = (keyed & low).astype(np.int64), size > LINKS
            for link in range(LINKS):
                here = (size > link) & (~large | (link == 0) | (depth == DEPTH))
                yield row[here], (ordered[start[here] + link] & low).astype(np.int64)
            if depth == DEPTH or not large.any():
                return
            same = rows is among
            rows = np.sort(row[large])
            among = rows if same else np.sort(_in_large(ordered, low))
            keys = mixed(keys + self._keys((band + depth) % BANDS) * np.uint64(2 * depth + 1))

    def _alike(
        self, proposed: Iterator[tuple[Rows, Rows]], earliest: I64, only_earlier: bool
    ) -> U64:
        """The proposed pairs that could lower `earliest` and have similar
        sketches; packed into 64 bits, sorted.
        """
        kept = [np.empty(0, dtype=np.uint64)]
        for rows, others in proposed:
            better = (others < rows if only_earlier else others != rows) & (
                (earliest[rows] < 0) | (others < earliest[rows])
            )
            rows, others = rows[better], others[better]
            for k in range(0, len(rows), _PAIRS):
                row, other = rows[k : k + _PAIRS], others[k : k + _PAIRS]
                alike = equal_minima(self.compact[row], self.compact[other]) >= FLOOR
                kept.append(
                    row[alike].astype(np.uint64) << np.uint64(32) | other[alike].astype(np.uint64)
                )
        pairs = np.sort(np.concatenate(kept))
        return pairs[_opens(pairs)]

    def _of_like_length(self, pairs: U64, threshold: float) -> U64:
        """The pairs that could reach the threshold: the common part of two
        texts is at most as long as the shorter.
        """
        if self._lengths is None:
            self._lengths = self._read("lengths", np.dtype(np.uint32))
        row, other = (self._lengths[indices].astype(np.float64) for indices in _unpacked(pairs))
        return pairs[2 * np.minimum(row, other) >= (threshold - 1e-9) * (row + other)]

    def _confirm(self, pairs: U64, threshold: float, earliest: I64, workers: int) -> U64:
        """Compare the pairs of each row in order until one is near, and set
        `earliest`; returns the failed pairs.
        """
        lost = [np.empty(0, dtype=np.uint64)]
        while True:
            row, other = _unpacked(pairs)
            pairs = pairs[(earliest[row] < 0) | (other < earliest[row])]
            if not len(pairs):
                return np.concatenate(lost)
            row, other = _unpacked(pairs)
            first = _opens(row)
            near = self._are_near(row[first], other[first], threshold, workers)
            earliest[row[first][near]] = other[first][near]
            lost.append(pairs[first][~near])
            pairs = pairs[~first]

    def _are_near(
        self, rows: Rows, others: Rows, threshold: float, workers: int
    ) -> npt.NDArray[np.bool_]:
        self.compared += len(rows)
        near = np.empty(len(rows), dtype=bool)
        cutoff = threshold * 100 - 1e-6  # lower scores may be returned as 0; 1e-6 for rounding
        for k in range(0, len(rows), _PAIRS):
            texts, other = self.texts(rows[k : k + _PAIRS]), self.texts(others[k : k + _PAIRS])
            scores = process.cpdist(
                texts,
                other,
                scorer=fuzz.ratio,
                score_cutoff=cutoff,
                dtype=np.float64,
                workers=workers,
            )
            near[k : k + _PAIRS] = scores / 100 >= threshold
        return near

    def _keys(self, band: int) -> U64:
        return self._read(f"band-{band}", np.dtype(np.uint64))

    def _read(self, name: str, kind: np.dtype) -> npt.NDArray:
        self._files[name].flush()
        return np.fromfile(self._folder / name, dtype=kind)


def clusters(texts: Sequence[str]) -> I64:
    """Index of the first row in each row's cluster of
    near-duplicates, `(n,)`; `texts` are normalised.
    """
    if not texts:
        return np.empty(0, dtype=np.int64)
    with tempfile.TemporaryDirectory() as folder, Spill(Path(folder) / "texts") as spill:
        for start in range(0, len(texts), 1000):
            signatures = sketch(texts[start : start + 1000])
            spill.append(texts[start : start + 1000], band_keys(signatures), compact(signatures))
        return roots(spill.near(SIMILARITY))


def roots(near: I64) -> I64:
    """Index of the first row in each row's chain of near-duplicates, (n,); the row itself without a
    near-duplicate.

    Args:
        near: `Spill.near` of all rows: an earlier row for each, or -1.
    """
    root = np.where(near < 0, np.arange(len(near)), near)
    while (root[root] != root).any():
        root = root[root]
    return root


def _unpacked(pairs: U64) -> tuple[Rows, Rows]:
    return (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(
        np.int64
    )


def _opens(ordered: npt.NDArray) -> npt.NDArray[np.bool_]:
    opens = np.ones(len(ordered), dtype=bool)
    opens[1:] = ordered[1:] != ordered[:-1]
    return opens


def _in_sorted(values: U64, ordered: U64) -> npt.NDArray[np.bool_]:
    """A mask of the values that are in the sorted array `ordered`."""
    if not len(ordered):
        return np.zeros(len(values), dtype=bool)
    return ordered[np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)] == values


def _in_large(ordered: U64, low: np.uint64) -> Rows:
    """The rows in groups of more than LINKS rows; `ordered`: sorted keys
    with row indices in their `low` bits.
    """
    size = np.searchsorted(ordered, ordered | low, side="right") - np.searchsorted(
        ordered, ordered & ~low
    )
    return (ordered[size > LINKS] & low).astype(np.int64)
