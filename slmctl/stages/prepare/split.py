"""Which side of the split a record is on: a matter of its own content, its group or its time, never of other rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from slmctl.config import Splits, moment
from slmctl.task.records import SPLITS

HELD_OUT = ("test", "calibration", "validation")  # in the order in which they take their shares


def position_of(key: str) -> float:
    """Where between 0 and 1 a group or a normalised text falls; evenly spread, and for ever the same."""
    raw = hashlib.sha256(f"split/{key}".encode("utf-8", "surrogatepass")).digest()
    return float(int.from_bytes(raw[:8]) / 2**64)


def assign(
    splits: Splits, places: np.ndarray, moments: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> np.ndarray:
    """The side of each record, `(n,)`, as an index into `records.SPLITS`.

    A record falls at a place between 0 and 1, and each held-out side takes its share from the
    bottom, the same share of every label or one that the config sets for a label. New rows move no
    old one, and the sides of each label are of the sizes asked for but for chance.

    Args:
        places: `(n,)`, of `place`.
        moments: `(n,)`, seconds since 1970; used when the split is by time.
        labels: `(n,)`, indices into `names`, -1 for none.
    """
    if splits.time is not None:
        return _by_time(splits, moments)
    limits = np.zeros((len(names) + 1, len(HELD_OUT)))  # the last row is of records without a label
    for row, name in enumerate([*names, None]):
        shares = splits.labels.get(name, splits) if name is not None else splits
        limits[row] = np.cumsum([getattr(shares, side) for side in HELD_OUT])
    of_label = limits[labels]
    found = np.full(len(places), SPLITS.index("train"), dtype=np.int8)
    for k in reversed(range(len(HELD_OUT))):
        found[places < of_label[:, k]] = SPLITS.index(HELD_OUT[k])
    return found


def _by_time(splits: Splits, moments: np.ndarray) -> np.ndarray:
    found = np.full(len(moments), SPLITS.index("train"), dtype=np.int8)
    starts = sorted((moment(getattr(splits.time, side)).timestamp(), side) for side in HELD_OUT)
    for start, side in starts:
        found[moments >= start] = SPLITS.index(side)
    return found
