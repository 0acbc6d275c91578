"""The files of a prepared data set but the task contract: splits,
rejected and repeated rows, fingerprints.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from slmctl.config import PrepareConfig
from slmctl.deduplication import row_fingerprints
from slmctl.deduplication.ngram_overlap import Overlap
from slmctl.stages.prepare.fates import KEPT, Fates, place_of, rejected_rows
from slmctl.stages.prepare.record_table import RecordTable
from slmctl.task.records import SPLITS, write_jsonl

AT_ONCE = 8192  # records whose fingerprints are written together
ID = slice(len(b'{"id": "'), len(b'{"id": "') + 16)  # the place of the id in a record's line


def write(
    config: PrepareConfig,
    rows: RecordTable,
    fates: Fates,
    overlap: Mapping[str, Overlap],
    out: Path,
) -> None:
    """Write `train.jsonl` … `test.jsonl`, `rejected`, `repeated` and
    `overlap.jsonl` and `rows.bin` into `out`.
    """
    ids = _write_splits(rows, fates, out, own_ids=any(source.id for source in config.sources))
    _write_fingerprints(rows, fates, ids, out)
    write_jsonl(out / "rejected.jsonl", rejected_rows(config, rows, fates))
    _write_repeated(config, rows, fates, out)
    _write_overlap(config, rows, overlap, out)


def _write_splits(rows: RecordTable, fates: Fates, out: Path, *, own_ids: bool) -> np.ndarray:
    """Write the records of each split in source order; returns the ids of all records, `(n,)`.

    Ids can be equal if a source gives them (`own_ids`) or a row is repeated: the later record's id
    gets a number.
    """
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context((out / f"{name}.jsonl").open("wb")) for name in SPLITS]
        ids = np.empty(len(rows), dtype="S16")
        used = Counter[bytes]()
        kept_repeats = (fates.repeats.equal >= 0) & (fates.fate == KEPT)
        repeats = own_ids or bool(kept_repeats.any())
        records = zip(rows.lines(), fates.fate, fates.splits, strict=True)
        for k, (line, fate, split) in enumerate(records):
            identity = line[ID]
            ids[k] = identity
            if fate != KEPT:
                continue
            if repeats:
                line = line[: ID.start] + _unique_id(identity, used) + line[ID.stop :]
            files[split].write(line + b"\n")
    return ids


def _unique_id(identity: bytes, used: Counter[bytes]) -> bytes:
    """An id, with a number when an earlier record has it already; counts it in `used`."""
    used[identity] += 1
    return identity if used[identity] == 1 else identity + b"-%d" % used[identity]


def _write_fingerprints(rows: RecordTable, fates: Fates, ids: np.ndarray, out: Path) -> None:
    """Write the hashes by which `slmctl trace` finds a row; of a redacted
    record also those of its redacted text.
    """
    measures = rows.measures
    changed = (measures.digests != measures.old_digests).any(axis=1)
    with row_fingerprints.FingerprintWriter(out / row_fingerprints.FILENAME) as writer:
        for split in row_fingerprints.SPLITS_AND_REJECTED:
            if split == "rejected":
                indices = np.flatnonzero(fates.fate != KEPT)
            else:
                indices = fates.kept(split)
            for start in range(0, len(indices), AT_ONCE):
                part = indices[start : start + AT_ONCE]
                old_compact = measures.old_compact[part]
                writer.add(split, _names(ids[part]), measures.old_digests[part], old_compact)
                redacted = part[changed[part]]
                if len(redacted):
                    digests = measures.digests[redacted]
                    compact = rows.spill.compact[redacted]
                    writer.add(split, _names(ids[redacted]), digests, compact, as_trained=True)


def _names(ids: np.ndarray) -> list[str]:
    return [name.decode() for name in ids.tolist()]


def _write_repeated(config: PrepareConfig, rows: RecordTable, fates: Fates, out: Path) -> None:
    """Write the records that stay although they repeat or contradict
    another, with the place of the other.
    """
    policy = config.duplicates
    repeats = fates.repeats
    listed = []
    if policy.exact == "list":
        listed.append(("duplicate", repeats.equal))
    if policy.near == "list":
        listed.append(("near duplicate", repeats.near))
    listed.append(("conflict", repeats.conflict))

    def lines() -> Iterator[dict[str, Any]]:
        for rule, other in listed:
            for index in np.flatnonzero(other >= 0).tolist():
                source = place_of(config, rows, index)
                first = place_of(config, rows, int(other[index]))
                yield {"rule": rule, "source": source, "repeats": first}

    write_jsonl(out / "repeated.jsonl", lines())


def _write_overlap(
    config: PrepareConfig, rows: RecordTable, overlap: Mapping[str, Overlap], out: Path
) -> None:
    """Write every held-out record that shares a run of words with a
    training record, with the place of that one.
    """

    def lines() -> Iterator[dict[str, Any]]:
        for split, measure in overlap.items():
            for held_out, trained in measure.pairs:
                source = place_of(config, rows, held_out)
                shares = place_of(config, rows, trained)
                yield {"split": split, "source": source, "shares": shares}

    write_jsonl(out / "overlap.jsonl", lines())
