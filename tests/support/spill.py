"""Texts in a `Spill`, as `prepare` writes its rows for the search of near-duplicates."""

from __future__ import annotations

from pathlib import Path

from slmctl.deduplication import minhash
from slmctl.deduplication.near_duplicates import Spill


def spilled(folder: Path, texts: list[str], batch: int = 1000) -> Spill:
    """A spill of `texts`, appended in batches."""
    rows = Spill(folder)
    for start in range(0, len(texts), batch):
        part = texts[start : start + batch]
        signatures = minhash.sketch(part)
        assert (
            rows.append(part, minhash.band_keys(signatures), minhash.compact(signatures)) == start
        )
    assert len(rows) == len(texts)
    return rows
