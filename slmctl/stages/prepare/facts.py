"""The facts of a prepared data set: counts and places for the manifest and
the report, never a text of a record.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal, NotRequired, TypedDict

import numpy as np

from slmctl.artifacts.artifact import sha256_file
from slmctl.config import PrepareConfig
from slmctl.deduplication import minhash
from slmctl.deduplication.ngram_overlap import Overlap
from slmctl.metrics.label_typos import LabelTypo, label_typos
from slmctl.pipeline.row_estimate import THIN
from slmctl.stages.prepare import duplicates
from slmctl.stages.prepare.fates import NEAR_HELD_OUT, Fates, RowPlace, place_of, rejected_rows
from slmctl.stages.prepare.limits import Swapped, swapped_columns
from slmctl.stages.prepare.linear_model import LinearFacts
from slmctl.stages.prepare.record_reader import ReadingPlan
from slmctl.stages.prepare.record_table import RecordTable
from slmctl.stages.prepare.suspects import SuspectFacts
from slmctl.stages.prepare.token_lengths import TokenFacts, length_facts
from slmctl.task.records import SPLITS

OVERLAPS = 10  # examples of overlap in each split that the manifest names
LISTED = 100  # examples of a kind that the manifest names; the artifact's files list all
PLACES = 5  # examples of a rule that the manifest names


class CleaningFact(TypedDict):
    step: str
    rows: int


class RenamedLabel(TypedDict):
    label: str
    to: str
    rows: int


class SensitiveFact(TypedDict):
    """Findings of one rule in one column, and the action of the policy on them."""

    kind: str
    rule: str
    column: str
    action: str
    count: int


class DuplicateFacts(TypedDict):
    policy: str
    near_policy: str
    exact: int
    near: int
    threshold: float


class ConflictExample(TypedDict):
    """Two records with nearly the same input and different answers;
    labels are named, other answers are empty.
    """

    first: RowPlace
    second: RowPlace
    similarity: float
    answers: list[str]


class ConflictFacts(TypedDict):
    """Pairs of nearly the same inputs with different answers; `cap` is the
    best accuracy that they allow, 0 to 1.
    """

    pairs: int
    rows: int
    cap: float
    threshold: float
    examples: list[ConflictExample]


class NearExample(TypedDict):
    """A row, and a row of the split `side` that is near it; `similarity`
    only for training rows that were left out.
    """

    row: RowPlace
    near: RowPlace
    side: str
    similarity: NotRequired[float]


class NearHeldOutFacts(TypedDict):
    """Training rows that were left out as nearly the same as a held-out row."""

    left_out: int
    threshold: float
    examples: list[NearExample]


class SplitOverlap(TypedDict):
    """Numbers of rows of a held-out split: measured, sharing a run of
    words with training, too short to measure.
    """

    measured: int
    overlapping: int
    too_short: int


class OverlapFacts(TypedDict):
    """Overlap of each held-out split with the training rows; `sides` by
    split, `gate` is the largest share allowed.
    """

    gate: float
    sides: dict[str, SplitOverlap]
    examples: list[NearExample]


class SplitFacts(TypedDict, total=False):
    by: Literal["time", "content", "group"]
    boundaries: dict[str, str]
    column: str
    groups: int
    largest_group: int


class SourceFacts(TypedDict):
    """One source: its hash, its rows, the form of its file, and the
    conversation format (`shape`) of its rows.
    """

    file: str
    form: str
    sha256: str
    rows_in: int
    rejected: int
    shape: str
    split: str | None


class UnfitAnswers(TypedDict):
    """The answers, of so many that were checked, that do not satisfy
    the task's schema, and places of some.
    """

    checked: int
    unfit: int
    places: list[str]


class PrepareFacts(TypedDict):
    task: str
    rows_in: int
    train: int
    validation: int
    calibration: int
    test: int
    rejected: int
    rejected_by_reason: dict[str, int]
    max_rejected: float
    labels: dict[str, dict[str, int]]
    label_typos: list[LabelTypo]
    # of thin labels: rows that repeat one held-out text, its split
    together: NotRequired[dict[str, tuple[int, str]]]
    unknown_labels: NotRequired[dict[str, int]]
    cleaning: list[CleaningFact]
    renamed_labels: list[RenamedLabel]
    swapped: Swapped | None
    linear: NotRequired[LinearFacts | None]
    suspects: NotRequired[SuspectFacts | None]
    # by field: values, and of these the ones that stand in their texts
    standing: NotRequired[dict[str, list[int]]]
    unfit_answers: NotRequired[UnfitAnswers]
    odd_answers: dict[str, int]
    sensitive: list[SensitiveFact]
    sensitive_rows: int
    sensitive_searched: list[str]
    marked_answers: NotRequired[dict[str, int]]  # by kind: answers with a mark in place of a value
    duplicates: DuplicateFacts
    conflicts: ConflictFacts
    near_held_out: NearHeldOutFacts
    overlap: OverlapFacts
    splits: SplitFacts
    tokens: TokenFacts
    sources: list[SourceFacts]
    examples: dict[str, list[RowPlace]]


def collect(
    config: PrepareConfig,
    rows: RecordTable,
    fates: Fates,
    overlap: dict[str, Overlap],
    plan: ReadingPlan,
) -> PrepareFacts:
    kept = {split: fates.kept(split) for split in SPLITS}
    unknown = Counter(row.reason for _, row in rows.rejected if row.rule == "unknown label")
    every = rows.count(np.arange(len(rows)))
    by_label = {split: rows.count(indices) for split, indices in kept.items()}
    collected: PrepareFacts = {
        "task": config.task.kind,
        "rows_in": len(rows) + len(rows.rejected),
        "train": len(kept["train"]),
        "validation": len(kept["validation"]),
        "calibration": len(kept["calibration"]),
        "test": len(kept["test"]),
        "rejected": len(rows.rejected) + fates.left_out,
        "rejected_by_reason": fates.rules(rows),
        "max_rejected": config.max_rejected,
        "labels": {
            label: {split: by_label[split].get(label, 0) for split in SPLITS}
            for label in sorted(every)
        },
        "label_typos": label_typos(every),
        "cleaning": [
            {"step": step, "rows": rows.changes["clean", step]} for step in plan.task.cleaning_steps
        ],
        "renamed_labels": [
            {"label": label, "to": other, "rows": rows.changes["label", label]}
            for label, other in config.task.label_map.items()
        ],
        "swapped": swapped_columns(rows),
        "odd_answers": {"equal to the input": rows.echoes} if rows.echoes else {},
        "sensitive": [
            {
                "kind": rule.partition("/")[0],
                "rule": rule,
                "column": column,
                "action": action,
                "count": count,
            }
            for (column, rule, action), count in sorted(rows.tally.counts.items())
        ],
        "sensitive_rows": rows.sensitive,
        "sensitive_searched": list(config.sensitive.actions),
        "duplicates": {
            "policy": config.duplicates.exact,
            "near_policy": config.duplicates.near,
            "exact": int((fates.repeats.equal >= 0).sum()),
            "near": int((fates.repeats.near >= 0).sum()),
            "threshold": config.duplicates.similarity,
        },
        "conflicts": _conflicts(config, rows, fates),
        "near_held_out": _near_held_out(config, rows, fates),
        "overlap": _overlap(config, rows, overlap),
        "splits": _splits(config, rows),
        "tokens": length_facts(rows.tokens[kept["train"]]),
        "sources": _sources(config, rows, fates, plan),
        "examples": _examples(config, rows, fates),
    }
    thin = [label for label in every if by_label["train"].get(label, 0) < THIN]
    if lumps := {label: lump for label in thin if (lump := fates.together(rows, label))}:
        collected["together"] = lumps
    if plan.tokenizer is None:
        collected["tokens"]["estimated"] = True
    if unknown:
        collected["unknown_labels"] = dict(unknown.most_common(LISTED))
    if marked := {
        kind: count for (change, kind), count in sorted(rows.changes.items()) if change == "answer"
    }:
        collected["marked_answers"] = marked
    return collected


def _conflicts(config: PrepareConfig, rows: RecordTable, fates: Fates) -> ConflictFacts:
    earlier = fates.repeats.conflict
    conflicts = np.flatnonzero(earlier >= 0)
    return {
        "pairs": len(conflicts),
        "rows": len(np.union1d(conflicts, earlier[conflicts])),
        "cap": fates.repeats.cap,
        "threshold": duplicates.CONFLICT,
        "examples": [
            {
                "first": place_of(config, rows, other),
                "second": place_of(config, rows, index),
                "similarity": _similarity(rows, index, other),
                "answers": [
                    rows.labels[code] if code >= 0 else ""
                    for code in rows.label_of[[other, index]].tolist()
                ],
            }
            for index, other in _pairs(conflicts[:LISTED], earlier)
        ],
    }


def _near_held_out(config: PrepareConfig, rows: RecordTable, fates: Fates) -> NearHeldOutFacts:
    near = np.flatnonzero(fates.fate == NEAR_HELD_OUT)
    return {
        "left_out": len(near),
        "threshold": config.duplicates.similarity,
        "examples": [
            {
                "row": place_of(config, rows, index),
                "near": place_of(config, rows, other),
                "side": SPLITS[fates.splits[other]],
                "similarity": _similarity(rows, index, other),
            }
            for index, other in _pairs(near[:LISTED], fates.other)
        ],
    }


def _pairs(indices: np.ndarray, other: np.ndarray) -> list[tuple[int, int]]:
    return list(zip(indices.tolist(), other[indices].tolist(), strict=True))


def _similarity(rows: RecordTable, index: int, other: int) -> float:
    text, other_text = rows.spill.texts([index, other])
    return round(minhash.ratio(text, other_text), 4)


def _overlap(config: PrepareConfig, rows: RecordTable, overlap: dict[str, Overlap]) -> OverlapFacts:
    return {
        "gate": config.max_overlap,
        "sides": {
            split: {
                "measured": measure.measured,
                "overlapping": measure.overlapping,
                "too_short": measure.too_short,
            }
            for split, measure in overlap.items()
        },
        "examples": [
            {
                "row": place_of(config, rows, held_out),
                "near": place_of(config, rows, trained),
                "side": split,
            }
            for split, measure in overlap.items()
            for held_out, trained in measure.pairs[:OVERLAPS]
        ],
    }


def _splits(config: PrepareConfig, rows: RecordTable) -> SplitFacts:
    if config.splits.time is not None:
        return {"by": "time", "boundaries": config.splits.time.model_dump()}
    grouped = {k: source.group for k, source in enumerate(config.sources) if source.group}
    if not grouped:
        return {"by": "content"}
    _, sizes = np.unique(rows.positions[np.isin(rows.sources, list(grouped))], return_counts=True)
    column, largest = next(iter(grouped.values())), int(sizes.max(initial=0))
    return {"by": "group", "column": column, "groups": len(sizes), "largest_group": largest}


def _sources(
    config: PrepareConfig, rows: RecordTable, fates: Fates, plan: ReadingPlan
) -> list[SourceFacts]:
    count = len(config.sources)
    left_out = np.bincount(rows.sources[fates.fate != 0], minlength=count).tolist()
    read = np.bincount(rows.sources, minlength=count).tolist()
    unusable = Counter(source for source, _ in rows.rejected)
    return [
        {
            "file": source.title,
            "form": plan.forms[k],
            "sha256": sha256_file(source.local).removeprefix("sha256:"),
            "rows_in": read[k] + unusable[k],
            "rejected": left_out[k] + unusable[k],
            "shape": conversation_format.name,
            "split": source.split,
        }
        for k, (source, conversation_format) in enumerate(
            zip(config.sources, plan.formats(), strict=True)
        )
    ]


def _examples(config: PrepareConfig, rows: RecordTable, fates: Fates) -> dict[str, list[RowPlace]]:
    """A few places for each rule that rejected rows, the unusable rows first."""
    examples: dict[str, list[RowPlace]] = {}
    for entry in rejected_rows(config, rows, fates):
        places = examples.setdefault(entry["rule"], [])
        if len(places) < PLACES:
            places.append(entry["source"])
    return examples
