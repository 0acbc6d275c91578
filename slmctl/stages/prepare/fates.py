"""The split of every record, or the reason why it is left out."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from slmctl import console
from slmctl.config import PrepareConfig
from slmctl.deduplication import ngram_overlap
from slmctl.deduplication.ngram_overlap import Overlap
from slmctl.stages.prepare import duplicates
from slmctl.stages.prepare.record_table import RecordTable
from slmctl.task import split
from slmctl.task.kinds import kind_of
from slmctl.task.records import SPLITS

HELD_OUT = SPLITS[1:]
KEPT = 0
EQUAL = 1
CONFLICT = 2
NEAR = 3
NEAR_HELD_OUT = 4
TOGETHER = "{} rows of nearly one text, or of one group, lie together in {}"
RULES = {
    EQUAL: "duplicate",
    CONFLICT: "conflicting duplicate",
    NEAR: "near duplicate",
    NEAR_HELD_OUT: "near a held-out row",
}


class RowPlace(TypedDict):
    """A row of a source: the file's name, and the row's number from 1."""

    file: str
    row: int


class RejectedEntry(TypedDict):
    source: RowPlace
    rule: str
    reason: str


@dataclass(frozen=True)
class Fates:
    """The fate of each record, `(n,)` arrays.

    Attributes:
        fate: KEPT, or the rule that leaves it out: EQUAL, CONFLICT, NEAR or NEAR_HELD_OUT.
        other: The record because of which it is left out, or -1.
        splits: Indices into SPLITS.
        repeats: The records that it repeats or contradicts.
    """

    fate: np.ndarray
    other: np.ndarray
    splits: np.ndarray
    repeats: duplicates.Repeats

    def kept(self, split: str) -> np.ndarray:
        """Indices of the records of a split, rising."""
        in_split = self.splits == SPLITS.index(split)
        return np.flatnonzero((self.fate == KEPT) & in_split)

    @property
    def left_out(self) -> int:
        """Number of records in no split."""
        return int((self.fate != KEPT).sum())

    def together(self, rows: RecordTable, label: str) -> tuple[int, str] | None:
        """Returns (rows of a label that one text or group holds out together,
        their split); None for fewer than two.
        """
        if label not in rows.labels:
            return None
        root = np.where(self.other < 0, np.arange(len(self.other)), self.other)
        while (root[root] != root).any():  # a row may repeat one that repeats another
            root = root[root]
        own = root[rows.label_of == rows.labels.index(label)]
        positions = rows.measures.positions[own]
        place, count = Counter(positions.tolist()).most_common(1)[0]
        first = own[positions == place][0]
        split = SPLITS[self.splits[first]]
        return (count, split) if count > 1 and split in HELD_OUT else None

    def rules(self, rows: RecordTable) -> dict[str, int]:
        """The number of rows that each rule rejected, the most frequent rule first."""
        counts = Counter(row.rule for _, row in rows.rejected)
        for fate, count in Counter(self.fate.tolist()).items():
            if fate != KEPT:
                counts[RULES[fate]] += count
        return dict(counts.most_common())


def decide(config: PrepareConfig, rows: RecordTable, workers: int) -> Fates:
    """Assign every record to its split, and leave out records that repeat another."""
    measures = rows.measures
    splits = split.assign(
        config.splits, measures.positions, measures.moments, rows.label_of, rows.labels
    )
    bounds = [SPLITS.index(source.split) if source.split else -1 for source in config.sources]
    bound = np.array(bounds, dtype=np.int8)[measures.sources]
    splits = np.where(bound >= 0, bound, splits)
    repeats = duplicates.find_repeats(
        rows,
        config.duplicates,
        bound=bound,
        splits=splits,
        answers_decide=not kind_of(config.task.kind).is_free,
        workers=workers,
    )
    fate = np.zeros(len(rows), dtype=np.int8)
    other = np.full(len(rows), -1, dtype=np.int64)

    def leave_out(rule: int, indices: np.ndarray, because_of: np.ndarray) -> None:
        indices = indices[fate[indices] == KEPT]
        fate[indices] = rule
        other[indices] = because_of[indices]

    if config.duplicates.exact == "drop":
        equal = np.flatnonzero(repeats.equal >= 0)
        agrees = measures.answers[equal] == measures.answers[repeats.equal[equal]]
        leave_out(EQUAL, equal[agrees], repeats.equal)
        leave_out(CONFLICT, equal[~agrees], repeats.equal)
    if config.duplicates.near == "drop":
        # its twin goes below
        outranks = (splits != duplicates.TRAIN) & (splits[repeats.near] == duplicates.TRAIN)
        leave_out(NEAR, np.flatnonzero((repeats.near >= 0) & ~outranks), repeats.near)
    near = duplicates.near_held_out(
        rows, splits, fate == KEPT, config.duplicates.similarity, workers
    )
    leave_out(NEAR_HELD_OUT, np.flatnonzero(near >= 0), near)
    return Fates(fate, other, splits, repeats)


def measure_overlap(rows: RecordTable, fates: Fates) -> dict[str, Overlap]:
    train = fates.kept("train")
    return {name: ngram_overlap.measure(rows.spill, train, fates.kept(name)) for name in HELD_OUT}


def place_of(config: PrepareConfig, rows: RecordTable, index: int) -> RowPlace:
    source = int(rows.measures.sources[index])
    number = int(rows.measures.numbers[index])
    title = config.sources[source].title
    return {"file": rows.files.get((source, number), title), "row": number}


def place_text(config: PrepareConfig, rows: RecordTable, index: int) -> str:
    """The place of a record's row as errors name it: `tickets.csv line 17`."""
    where = place_of(config, rows, index)
    return console.place(where["file"], where["row"])


def rejected_rows(
    config: PrepareConfig, rows: RecordTable, fates: Fates
) -> Iterator[RejectedEntry]:
    """Every row that is in no split, in source order, with its rule and the reason."""
    unusable = (
        (source, row.number, row.file, row.rule, row.reason) for source, row in rows.rejected
    )
    left_out = _left_out(config, rows, fates)
    for _, number, file, rule, reason in heapq.merge(unusable, left_out, key=lambda row: row[:2]):
        yield {"source": {"file": file, "row": number}, "rule": rule, "reason": reason}


def _left_out(
    config: PrepareConfig, rows: RecordTable, fates: Fates
) -> Iterator[tuple[int, int, str, str, str]]:
    for index in np.flatnonzero(fates.fate != KEPT).tolist():
        fate = int(fates.fate[index])
        first = int(fates.other[index])
        other = place_text(config, rows, first)
        label = rows.label_of[first]
        answer = f"the answer '{rows.labels[label][:60]}'" if label >= 0 else "another answer"
        reason = {
            EQUAL: f"same input as {other}",
            CONFLICT: f"same input as {other}, which has {answer}",
            NEAR: f"nearly the same as {other}",
            NEAR_HELD_OUT: f"nearly the same as {other}, which is held out",
        }[fate]
        source = int(rows.measures.sources[index])
        where = place_of(config, rows, index)
        yield source, where["row"], where["file"], RULES[fate], reason
