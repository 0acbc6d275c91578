"""Records that repeat others: equal, nearly equal, in conflict, or
too near a record that is held out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slmctl.config import Duplicates
from slmctl.deduplication import minhash, near_duplicates
from slmctl.deduplication.minhash import I64
from slmctl.stages.prepare.record_table import RecordTable
from slmctl.task.records import SPLITS

CONFLICT = 0.95  # similarity from which two inputs count as one question
TRAIN = SPLITS.index("train")


@dataclass(frozen=True)
class Repeats:
    """For each record, `(n,)`, the record that it repeats, or -1.

    Attributes:
        equal: The record with the same normalised input, digits and signs that stays, as `_stays`
            chooses it.
        near: The earliest nearly equal record, among records without an equal one.
        conflict: The earliest with nearly the same input and another answer.
        cap: The best accuracy that a model can have, 0 to 1, since it answers equal questions
            alike.
    """

    equal: I64
    near: I64
    conflict: I64
    cap: float


def find_repeats(
    rows: RecordTable,
    config: Duplicates,
    *,
    bound: np.ndarray,
    splits: np.ndarray,
    answers_decide: bool,
    workers: int,
) -> Repeats:
    """Look for records that repeat others.

    Args:
        config: The policy; near-duplicates that it keeps are not looked for.
        bound: `(n,)`, the index into SPLITS that the source of each record is bound to, or -1.
        splits: `(n,)`, indices into SPLITS.
        answers_decide: True where two answers to one question contradict each other, as labels do.
        workers: Threads that compare texts.
    """
    equal = _stays(rows, bound, splits)
    alone = np.flatnonzero(equal < 0)
    near = np.full(len(rows), -1, dtype=np.int64)
    if config.near != "keep" and config.similarity < 1:
        near[alone] = rows.spill.near(config.similarity, rows=alone, workers=workers)
    conflict = np.full(len(rows), -1, dtype=np.int64)
    if not answers_decide:
        return Repeats(equal, near, conflict, 1.0)
    close = equal.copy()
    close[alone] = rows.spill.near(CONFLICT, rows=alone, workers=workers)
    digits = rows.measures.digits
    answers = rows.measures.answers
    paired = np.flatnonzero(close >= 0)
    # another number or emoji is another question
    paired = paired[digits[paired] == digits[close[paired]]]
    same = np.full(len(rows), -1, dtype=np.int64)
    same[paired] = close[paired]
    differing = paired[answers[paired] != answers[same[paired]]]
    conflict[differing] = same[differing]
    cap = _accuracy_cap(near_duplicates.roots(same), answers)
    return Repeats(equal, near, conflict, cap)


def near_held_out(
    rows: RecordTable, splits: np.ndarray, kept: np.ndarray, threshold: float, workers: int
) -> I64:
    """For each training record the earliest held-out record that is at
    least `threshold` similar, or -1, `(n,)`.
    """
    near = np.full(len(rows), -1, dtype=np.int64)
    if threshold < 1:
        train = np.flatnonzero(kept & (splits == TRAIN))
        held_out = np.flatnonzero(kept & (splits != TRAIN))
        near[train] = rows.spill.near(threshold, rows=train, among=held_out, workers=workers)
    return near


def _stays(rows: RecordTable, bound: np.ndarray, splits: np.ndarray) -> I64:
    """For each record the equal one that stays, or -1 where the record itself stays, `(n,)`.

    Of equal records, one that its source binds to a held-out split stays; else the first, unless
    that is bound to training and another is held out. So a row that is for training alone never
    displaces a held-out one.
    """
    own = np.arange(len(rows), dtype=np.int64)
    signs = minhash.mixed(rows.measures.digits)
    keys = rows.measures.digests.view(np.uint64) ^ signs[:, None]

    def first(preferred: np.ndarray) -> I64:
        order = np.argsort(~preferred, kind="stable")
        earlier = minhash.first_equal(keys[order].view(np.uint8))
        stays = np.empty_like(own)
        stays[order] = order[np.where(earlier < 0, own, earlier)]
        return stays

    if not len(rows):
        return own
    stays = first(bound > TRAIN)
    held_out = first(splits != TRAIN)
    gives_way = (bound[stays] == TRAIN) & (splits[held_out] != TRAIN)
    stays = np.where(gives_way, held_out, stays)
    return np.where(stays == own, -1, stays)


def _accuracy_cap(root: I64, answers: np.ndarray) -> float:
    """The share of records that have the most frequent answer of their question."""
    if not len(root):
        return 1.0
    order = np.lexsort((answers, root))
    root = root[order]
    answers = answers[order]
    opens = np.ones(len(root), dtype=bool)
    opens[1:] = (root[1:] != root[:-1]) | (answers[1:] != answers[:-1])
    starts = np.flatnonzero(opens)
    sizes = np.diff([*starts, len(root)])
    _, which = np.unique(root[starts], return_inverse=True)
    most = np.zeros(which[-1] + 1, dtype=np.int64)
    np.maximum.at(most, which, sizes)
    return round(float(most.sum() / len(root)), 6)
