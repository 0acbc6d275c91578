"""Held-out rows of a task router that a larger model was trained on, or chosen by: they measure nothing of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slmctl.errors import UsageError
from slmctl.task.records import SPLITS, Record, read_records

if TYPE_CHECKING:
    from slmctl.artifacts.artifact import Artifact

HeldOut = tuple[str, Record, Record | None]  # its split, a record of the router, the same one of its own model


@dataclass(frozen=True)
class SeenRows:
    """The rows of a data set, known by their normalised texts, and by their ids where `prepare` made these.

    Such an id is a hash of the row as it came in, so it finds a row whose text was cleaned or redacted otherwise. One
    of a column of the data says nothing: two data sets may both count their rows from 1.

    Attributes:
        splits: By id or text the first of SPLITS that holds it.
        fitted: Ids and texts of rows that fitted the score of a policy.
    """

    splits: Mapping[str, str]
    fitted: frozenset[str]

    @classmethod
    def of(cls, data: Artifact) -> SeenRows:
        """The rows of a prepared data set."""
        from slmctl.metrics.error_threshold import FIT_SHARE, place_of

        splits: dict[str, str] = {}
        fitted: set[str] = set()
        # rows of a teacher, which the config does not list, have the ids of its file
        sources = zip(data.metrics["sources"], data.manifest.config["sources"], strict=False)
        hashed = {facts["file"] for facts, source in sources if not source["id"]}
        for split in reversed([split for split in SPLITS if data.metrics[split]]):
            for record in read_records(data.file(f"{split}.jsonl")):
                id, text = _keys(record)
                keys = (id, text) if record.source["file"] in hashed else (text,)
                splits |= dict.fromkeys(keys, split)
                if split == "calibration" and place_of(record.id) < FIT_SHARE:
                    fitted |= set(keys)
        return cls(splits, frozenset(fitted))

    def is_spent(self, record: Record, split: str) -> bool:
        """True where a row of a split stands in an earlier one here, so that something was trained or chosen by it."""
        held = [SPLITS.index(self.splits[key]) for key in _keys(record) if key in self.splits]
        return min(held, default=len(SPLITS)) < SPLITS.index(split)

    def fits(self, record: Record) -> bool:
        """True for a row that fitted the score of the policy."""
        return not self.fitted.isdisjoint(_keys(record))


def unseen(
    rows: Iterable[HeldOut], seen: Mapping[str, SeenRows], larger: Mapping[str, str]
) -> tuple[list[HeldOut], list[str]]:
    """The held-out rows that no larger model has seen, and a sentence on those that each has.

    Args:
        rows: In the order in which they are asked.
        seen: What the larger model of each has seen, by the name of the model before it.
        larger: The larger model of each that has one, by name.

    Raises:
        UsageError: No row is left.
    """
    left: list[HeldOut] = []
    spent = Counter[str]()
    for split, record, own in rows:
        if own is not None and record.answer in seen and seen[record.answer].is_spent(own, split):
            spent[record.answer] += 1
        else:
            left.append((split, record, own))
    notes = [
        f"{number:,} rows of {name} are left out: {larger[name]} was trained on them, or chosen by them."
        for name, number in spent.items()
    ]
    if not left:
        raise UsageError(
            " ".join(["there is no held-out row to measure with.", *notes]).rstrip("."),
            hint="prepare.splits of the projects: calibration and test rows that no larger model was trained on",
        )
    return left, notes


def _keys(record: Record) -> tuple[str, str]:
    """Its id and its text."""
    from slmctl.deduplication import minhash

    return record.id, f"text/{minhash.normalise(record.input)}"
