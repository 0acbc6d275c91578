"""The split of every record, or the reason why it is left out; and the place of every row that became none."""

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
from slmctl.task.records import SPLITS

HELD_OUT = SPLITS[1:]
KEPT, EQUAL, CONFLICT, NEAR, NEAR_HELD_OUT = range(5)
RULES = {
    EQUAL: "duplicate", CONFLICT: "conflicting duplicate", NEAR: "near duplicate", NEAR_HELD_OUT: "near a held-out row",
}  # fmt: skip


class RowPlace(TypedDict):
    """A row of a source: the file's name, and the row's number from 1."""

    file: str
    row: int


class RejectedEntry(TypedDict):
    """One line of `rejected.jsonl`."""

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
        """The records of one split, as ascending indices."""
        return np.flatnonzero((self.fate == KEPT) & (self.splits == SPLITS.index(split)))

    @property
    def left_out(self) -> int:
        """The number of records that are in no split."""
        return int((self.fate != KEPT).sum())

    def rules(self, rows: RecordTable) -> dict[str, int]:
        """The number of rows that each rule rejected, the most frequent rule first."""
        counts = Counter(row.rule for _, row in rows.rejected)
        for fate, count in Counter(self.fate.tolist()).items():
            if fate != KEPT:
                counts[RULES[fate]] += count
        return dict(counts.most_common())


def decide(config: PrepareConfig, rows: RecordTable, workers: int) -> Fates:
    """Give every record its split, and leave out those that repeat another."""
    bound = np.array([SPLITS.index(s.split) if s.split else -1 for s in config.sources], dtype=np.int8)
    splits = split.assign(config.splits, rows.positions, rows.moments, rows.label_of, rows.labels)
    bound = bound[rows.sources]
    splits = np.where(bound >= 0, bound, splits)
    answers_decide = config.task.kind != "generate"
    repeats = duplicates.find_repeats(
        rows, config.duplicates, bound=bound, splits=splits, answers_decide=answers_decide, workers=workers
    )
    fate, other = np.zeros(len(rows), dtype=np.int8), np.full(len(rows), -1, dtype=np.int64)

    def leave_out(rule: int, indices: np.ndarray, because_of: np.ndarray) -> None:
        indices = indices[fate[indices] == KEPT]
        fate[indices], other[indices] = rule, because_of[indices]

    if config.duplicates.exact == "drop":
        equal = np.flatnonzero(repeats.equal >= 0)
        agrees = rows.answers[equal] == rows.answers[repeats.equal[equal]]
        leave_out(EQUAL, equal[agrees], repeats.equal)
        leave_out(CONFLICT, equal[~agrees], repeats.equal)
    if config.duplicates.near == "drop":
        leave_out(NEAR, np.flatnonzero(repeats.near >= 0), repeats.near)
    near = duplicates.near_held_out(rows, splits, fate == KEPT, config.duplicates.similarity, workers)
    leave_out(NEAR_HELD_OUT, np.flatnonzero(near >= 0), near)
    return Fates(fate, other, splits, repeats)


def measure_overlap(rows: RecordTable, fates: Fates) -> dict[str, Overlap]:
    """The overlap of each held-out split with the training records, by split."""
    train = fates.kept("train")
    return {name: ngram_overlap.measure(rows.spill, train, fates.kept(name)) for name in HELD_OUT}


def place(config: PrepareConfig, source: int, number: int) -> RowPlace:
    """The place of a row by its source and its number."""
    return {"file": config.sources[source].title, "row": number}


def place_of(config: PrepareConfig, rows: RecordTable, index: int) -> RowPlace:
    """The place of the row that a record was made of."""
    return place(config, int(rows.sources[index]), int(rows.numbers[index]))


def place_text(config: PrepareConfig, rows: RecordTable, index: int) -> str:
    """The place of a record's row as errors name it: `tickets.csv line 17`."""
    where = place_of(config, rows, index)
    return console.place(where["file"], where["row"])


def rejected_rows(config: PrepareConfig, rows: RecordTable, fates: Fates) -> Iterator[RejectedEntry]:
    """Every row that is in no split, in source order, with its rule and the reason."""
    unusable = (
        (source, row.number, RejectedEntry(source=place(config, source, row.number), rule=row.rule, reason=row.reason))
        for source, row in rows.rejected
    )
    merged = heapq.merge(unusable, _left_out(config, rows, fates), key=lambda entry: entry[:2])
    return (entry for _, _, entry in merged)


def _left_out(config: PrepareConfig, rows: RecordTable, fates: Fates) -> Iterator[tuple[int, int, RejectedEntry]]:
    for index in np.flatnonzero(fates.fate != KEPT).tolist():
        source, number = int(rows.sources[index]), int(rows.numbers[index])
        fate, first = int(fates.fate[index]), int(fates.other[index])
        other, label = place_text(config, rows, first), rows.label_of[first]
        answer = f"the answer '{rows.labels[label][:60]}'" if label >= 0 else "another answer"
        reason = {
            EQUAL: f"same input as {other}",
            CONFLICT: f"same input as {other}, which has {answer}",
            NEAR: f"nearly the same as {other}",
            NEAR_HELD_OUT: f"nearly the same as {other}, which is held out",
        }[fate]
        yield source, number, {"source": place(config, source, number), "rule": RULES[fate], "reason": reason}
