"""The split of a record: it follows from its own content, its group
or its time, never from other rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from slmctl.config import Splits, moment
from slmctl.metrics.statistics import hashed_position
from slmctl.task.records import SPLITS

HELD_OUT = ("test", "calibration", "validation")  # in the order in which they take their shares


def position_of(key: str) -> float:
    """The position between 0 and 1 of a group or a normalised text:
    evenly spread, and the same in every run.
    """
    return hashed_position(f"split/{key}")


def group_id(name: str) -> str:
    """The id of a group, 12 hexadecimal digits."""
    return hashlib.sha256(f"group/{name}".encode()).hexdigest()[:12]


def assign(
    splits: Splits,
    positions: np.ndarray,
    moments: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
) -> np.ndarray:
    """The split of each record, `(n,)`, as an index into `records.SPLITS`.

    A record has a position between 0 and 1, and the held-out splits take their shares from 0 up,
    one after another: the same shares of every label, or those that the config sets for a label.
    New rows move no old row to another split, and each label's splits have the sizes of the config,
    up to chance.

    Args:
        splits: The shares, or the times.
        positions: `(n,)`, of `position_of`.
        moments: `(n,)`, seconds since 1970; used when the split is by time.
        labels: `(n,)`, indices into `names`, -1 for none.
    """
    if splits.time is not None:
        return _by_time(splits, moments)
    limits = np.zeros((len(names) + 1, len(HELD_OUT)))  # the last row is of records without a label
    for row, name in enumerate([*names, None]):
        shares = splits.labels.get(name, splits) if name is not None else splits
        limits[row] = np.cumsum([getattr(shares, split) for split in HELD_OUT])
    of_label = limits[labels]
    assigned = np.full(len(positions), SPLITS.index("train"), dtype=np.int8)
    for k in reversed(range(len(HELD_OUT))):
        assigned[positions < of_label[:, k]] = SPLITS.index(HELD_OUT[k])
    return assigned


def _by_time(splits: Splits, moments: np.ndarray) -> np.ndarray:
    assigned = np.full(len(moments), SPLITS.index("train"), dtype=np.int8)
    starts = sorted((moment(getattr(splits.time, split)).timestamp(), split) for split in HELD_OUT)
    for start, split in starts:
        assigned[moments >= start] = SPLITS.index(split)
    return assigned
