"""A prepared data set -> the rows that linear members learn: training and validation rows, and
their folds.

No calibration or test row is nearly one of these, and rows that are nearly alike or of one group
share a fold: so no row is judged, and none measured, by a member that has learned nearly the same.
Validation rows of another time or source than the training rows are the only fold, so members judge
them that have learned no row of that time or source.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slmctl.artifacts.artifact import Artifact
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.deduplication import minhash, near_duplicates
from slmctl.metrics import cross_fitting
from slmctl.metrics.cross_fitting import Indices
from slmctl.task.records import SPLITS, Record, read_records, require_records


@dataclass(frozen=True)
class LearnedRows:
    """Training and validation rows of a data set.

    Attributes:
        places: (k,) of the rows that are learned, among training and then validation rows, rising.
        fold: (k,) of these, as `cross_fitting.folds` gives it.
    """

    train: Sequence[Record]
    validation: Sequence[Record]
    places: Indices
    fold: Indices


def read(prepared: Artifact) -> LearnedRows:
    """The rows of a data set.

    Raises:
        DataError: It has no training row.
    """
    train = require_records(prepared.file("train.jsonl"))
    others = [read_records(prepared.file(f"{split}.jsonl")) for split in SPLITS[1:]]
    records = [*train, *itertools.chain.from_iterable(others)]
    alike, count = (
        near_duplicates.clusters([minhash.normalise(each.input) for each in records]),
        len(train),
    )
    measured = np.isin(alike, alike[count + len(others[0]) :])
    measured[:count] = False  # `prepare` leaves out a training row that is nearly a held-out one
    places = np.flatnonzero(~measured[: count + len(others[0])])
    learned = [records[k] for k in places.tolist()]
    fold = cross_fitting.folds(
        [record.answer for record in learned],
        _together(alike[places], [record.group for record in learned]),
        validation=int((places >= count).sum()),
        apart=_apart(prepared.metrics),
    )
    return LearnedRows(train, others[0], places, fold)


def _apart(facts: JsonObject) -> bool:
    """True where the facts of a data set say that its validation rows are of
    another time or source than the others.
    """
    by_time = facts.get("splits", {}).get("by") == "time"
    return by_time or any(source["split"] == SPLITS[1] for source in facts.get("sources", ()))


def _together(alike: Indices, groups: Sequence[str | None]) -> list[int]:
    """A number for each row: the same for rows that a chain of
    near-duplicates and of groups connects.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = len(alike)
    numbers = {group: count + k for k, group in enumerate(dict.fromkeys(groups))}
    own = np.arange(count)
    first = {root: k for k, root in reversed([*enumerate(alike.tolist())])}
    of_rows = [first[root] for root in alike.tolist()]
    of_groups = [numbers[group] if group else k for k, group in enumerate(groups)]
    ends = of_rows + of_groups
    size = count + len(numbers)
    graph = coo_matrix(
        (np.ones(2 * count, np.int8), (np.concatenate([own, own]), ends)), (size, size)
    )
    result: list[int] = connected_components(graph, directed=False)[1][:count].tolist()
    return result
