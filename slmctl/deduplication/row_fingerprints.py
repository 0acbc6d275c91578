"""The records of a data set as hashes: enough to find a row or a near-duplicate, not enough to read
one.

`rows.bin` is one line of JSON, then a fixed number of bytes for each record: its split, its id, a
128-bit hash of its normalised text, and 4 bits of each minimum of its MinHash signature, from which
a similarity is estimated. A record with a redacted text has a second entry, for the text that is
trained on. The hashes have no key, so anyone who has a text can look it up, which is their purpose.
All digits are 0 in a normalised text, so no number can be recovered by trying.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from slmctl.deduplication import minhash
from slmctl.deduplication.minhash import DIGEST, U8, U64, WORDS
from slmctl.errors import IntegrityError
from slmctl.task.records import SPLITS

FILENAME = "rows.bin"
SPLITS_AND_REJECTED = (*SPLITS, "rejected")
VERSION = 1  # increase it when a result of `minhash.normalise`, `digest` or `sketch` changes

ENTRY = np.dtype(
    [
        ("split", "u1"),
        ("trained", "u1"),
        ("id", "<u8"),
        ("digest", "u1", DIGEST),
        ("sketch", "<u8", WORDS),
    ]
)
_BATCH = 1 << 16  # entries in memory at a time
_HEADER = json.dumps(
    {"entry_bytes": ENTRY.itemsize, "sides": SPLITS_AND_REJECTED, "version": VERSION},
    sort_keys=True,
)


@dataclass(frozen=True)
class QueryFingerprint:
    """A text to look for, as a digest and a compact sketch."""

    digest: bytes
    sketch: U64


@dataclass(frozen=True, order=True)
class FingerprintMatch:
    """A record that equals the query or is a near-duplicate of it.

    Attributes:
        split: One of SPLITS_AND_REJECTED.
        id: The record's id; a hash of it if the id is not 16 hexadecimal digits.
        exact: True for equal normalised texts or an equal id.
        similarity: Jaccard similarity of the texts' 5-grams, 0 to 1; an estimate unless exact.
        as_trained: True if the redacted text matched.
        place: The place of the row in its source, where it is known.
    """

    split: str
    id: str
    exact: bool
    similarity: float
    as_trained: bool
    place: str = ""

    def to_json(self) -> dict[str, str | float | bool]:
        """The match in the form of `trace --json`; the key of its split is `side`."""
        return {
            "side": self.split,
            "id": self.id,
            "exact": self.exact,
            "similarity": self.similarity,
            "as_trained": self.as_trained,
            **({"place": self.place} if self.place else {}),
        }


def query_fingerprint(text: str) -> QueryFingerprint:
    """The fingerprint to look up a text by."""
    normalised = minhash.normalise(text)
    return QueryFingerprint(
        minhash.digest(normalised), minhash.compact(minhash.sketch([normalised]))[0]
    )


class FingerprintWriter:
    """Writes `rows.bin`; equal calls give equal bytes."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("wb")
        self._stream.write(_HEADER.encode() + b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stream.close()

    def add_texts(self, split: str, ids: Sequence[str], texts: Sequence[str]) -> None:
        """Add records of one split by their texts."""
        normalised = [minhash.normalise(text) or text for text in texts]
        if normalised:
            digests = b"".join(map(minhash.digest, normalised))
            self.add(split, ids, digests, minhash.compact(minhash.sketch(normalised)))

    def add(
        self,
        split: str,
        ids: Sequence[str],
        digests: bytes | U8,
        compact: U64,
        *,
        as_trained: bool = False,
    ) -> None:
        """Add records of one split.

        Args:
            split: One of SPLITS_AND_REJECTED.
            digests: `minhash.digest` of each normalised text: joined bytes, or `(n, 16)`.
            compact: `minhash.compact` of the texts, `(n, WORDS)`.
            as_trained: True for redacted texts; their originals are added by another call.
        """
        entries = np.zeros(len(ids), dtype=ENTRY)
        raw = digests if isinstance(digests, bytes) else digests.tobytes()
        entries["split"] = SPLITS_AND_REJECTED.index(split)
        entries["trained"] = as_trained
        entries["id"] = [_id_number(id) for id in ids]
        entries["digest"] = np.frombuffer(raw, dtype=np.uint8).reshape(-1, DIGEST)
        entries["sketch"] = compact
        self._stream.write(entries.tobytes())


class Fingerprints:
    """The entries of a `rows.bin`, read in batches.

    Raises:
        IntegrityError: The file has another version, or is cut off.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as stream:
            header = stream.readline(1 << 12)
        self._start = len(header)
        if header.decode("utf-8", "replace") != _HEADER + "\n":
            raise IntegrityError(f"{path.name} was written by another version of slmctl")
        if (path.stat().st_size - self._start) % ENTRY.itemsize:
            raise IntegrityError(f"{path.name} is cut off")

    def queries(self, id: str) -> list[QueryFingerprint]:
        return [
            QueryFingerprint(entry["digest"].tobytes(), entry["sketch"].copy())
            for entries in self._entries()
            for entry in entries[entries["id"] == _id_number(id)]
        ]

    def look_up(
        self,
        fingerprints: Iterable[QueryFingerprint],
        *,
        id: str | None = None,
        threshold: float = 0.6,
    ) -> list[FingerprintMatch]:
        """The records with an equal id, or with an equal or similar text: the best match of each,
        sorted.

        Args:
            threshold: Least estimated Jaccard similarity of a match, 0 to 1.
        """
        best: dict[tuple[str, str], FingerprintMatch] = {}
        queries = list(fingerprints)
        for entries in self._entries():
            exact = (
                entries["id"] == _id_number(id)
                if id is not None
                else np.zeros(len(entries), dtype=bool)
            )
            similarity = np.zeros(len(entries), dtype=np.float32)
            for query in queries:
                exact |= (entries["digest"] == np.frombuffer(query.digest, dtype=np.uint8)).all(
                    axis=1
                )
                similarity = np.maximum(
                    similarity, minhash.estimate(entries["sketch"], query.sketch)
                )
            similarity[exact] = 1
            for at in np.flatnonzero(similarity >= threshold):
                match = _match(entries[at], bool(exact[at]), float(similarity[at]))
                key = (match.split, match.id)
                if key not in best or _rank(match) > _rank(best[key]):
                    best[key] = match
        return sorted(
            best.values(),
            key=lambda m: (SPLITS_AND_REJECTED.index(m.split), not m.exact, -m.similarity, m.id),
        )

    def splits_of(self, digests: Sequence[bytes]) -> list[frozenset[str]]:
        """For each `minhash.digest`, the splits of the records with
        this text; empty if no record has it.
        """
        held: dict[bytes, set[int]] = {digest: set() for digest in digests}
        for entries in self._entries():
            raw = entries["digest"].tobytes()
            for at, split in enumerate(entries["split"].tolist()):
                splits = held.get(raw[at * DIGEST : (at + 1) * DIGEST])
                if splits is not None:
                    splits.add(split)
        return [
            frozenset(SPLITS_AND_REJECTED[split] for split in held[digest]) for digest in digests
        ]

    def _entries(self) -> Iterator[npt.NDArray[Any]]:
        with self._path.open("rb") as stream:
            stream.seek(self._start)
            while len(raw := stream.read(_BATCH * ENTRY.itemsize)):
                yield np.frombuffer(raw, dtype=ENTRY)


def _match(entry: Any, exact: bool, similarity: float) -> FingerprintMatch:
    return FingerprintMatch(
        SPLITS_AND_REJECTED[entry["split"]],
        f"{int(entry['id']):016x}",
        exact,
        round(similarity, 2),
        bool(entry["trained"]),
    )


def _rank(match: FingerprintMatch) -> tuple[bool, float, bool]:
    return match.exact, match.similarity, not match.as_trained


def id_digits(id: str) -> str:
    """An id as 16 hexadecimal digits: unchanged if `prepare` made it, else its hash."""
    if len(id) == 16 and not set(id) - set("0123456789abcdef"):
        return id
    return hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _id_number(id: str) -> int:
    return int(id_digits(id), 16)
