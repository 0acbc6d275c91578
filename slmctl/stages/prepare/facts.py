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
from slmctl.stages.prepare.fates import (
    KEPT,
    NEAR_HELD_OUT,
    Fates,
    RowPlace,
    place_of,
    rejected_rows,
)
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


class RowCounts(TypedDict):
    task: str
    rows_in: int
    train: int
    validation: int
    calibration: int
    test: int
    rejected: int
    rejected_by_reason: dict[str, int]
    max_rejected: float


class LabelSummary(TypedDict):
    labels: dict[str, dict[str, int]]
    label_typos: list[LabelTypo]
    # of thin labels: rows that repeat one held-out text, its split
    together: NotRequired[dict[str, tuple[int, str]]]
    unknown_labels: NotRequired[dict[str, int]]
    renamed_labels: list[RenamedLabel]


class PolicySummary(TypedDict):
    sensitive: list[SensitiveFact]
    sensitive_rows: int
    sensitive_searched: list[str]
    marked_answers: NotRequired[dict[str, int]]  # by kind: answers with a mark in place of a value


class RepeatFacts(TypedDict):
    duplicates: DuplicateFacts
    conflicts: ConflictFacts
    near_held_out: NearHeldOutFacts
    overlap: OverlapFacts


class ContentFacts(TypedDict):
    cleaning: list[CleaningFact]
    swapped: Swapped | None
    linear: NotRequired[LinearFacts | None]
    suspects: NotRequired[SuspectFacts | None]
    # by field: values, and of these the ones that stand in their texts
    standing: NotRequired[dict[str, list[int]]]
    unfit_answers: NotRequired[UnfitAnswers]
    odd_answers: dict[str, int]
    splits: SplitFacts
    tokens: TokenFacts
    sources: list[SourceFacts]
    examples: dict[str, list[RowPlace]]


class PrepareFacts(RowCounts, LabelSummary, PolicySummary, RepeatFacts, ContentFacts):
    """Every fact of a prepared data set."""


def collect(
    config: PrepareConfig,
    rows: RecordTable,
    fates: Fates,
    overlap: dict[str, Overlap],
    plan: ReadingPlan,
) -> PrepareFacts:
    cleaning: list[CleaningFact] = [
        {"step": step, "rows": rows.changes["clean", step]} for step in plan.task.cleaning_steps
    ]
    tokens = length_facts(rows.measures.tokens[fates.kept("train")])
    if plan.tokenizer is None:
        tokens["estimated"] = True
    contents: ContentFacts = {
        "cleaning": cleaning,
        "swapped": swapped_columns(rows),
        "odd_answers": {"equal to the input": rows.echoes} if rows.echoes else {},
        "splits": _splits(config, rows),
        "tokens": tokens,
        "sources": _sources(config, rows, fates, plan),
        "examples": _examples(config, rows, fates),
    }
    counts = _row_counts(config, rows, fates)
    labels = _labels(config, rows, fates)
    sensitive = _sensitive(config, rows)
    repeats = _repeats(config, rows, fates, overlap)
    return {**counts, **labels, **contents, **sensitive, **repeats}


def _row_counts(config: PrepareConfig, rows: RecordTable, fates: Fates) -> RowCounts:
    unusable = len(rows.rejected)
    rows_in = len(rows) + unusable
    rejected = fates.left_out + unusable
    counts = {split: len(fates.kept(split)) for split in SPLITS}
    return {
        "task": config.task.kind,
        "rows_in": rows_in,
        "train": counts["train"],
        "validation": counts["validation"],
        "calibration": counts["calibration"],
        "test": counts["test"],
        "rejected": rejected,
        "rejected_by_reason": fates.rules(rows),
        "max_rejected": config.max_rejected,
    }


def _labels(config: PrepareConfig, rows: RecordTable, fates: Fates) -> LabelSummary:
    every = rows.count(np.arange(len(rows)))
    by_split = {split: rows.count(fates.kept(split)) for split in SPLITS}
    labels: dict[str, dict[str, int]] = {}
    for label in sorted(every):
        labels[label] = {split: counts.get(label, 0) for split, counts in by_split.items()}
    renamed: list[RenamedLabel] = [
        {"label": label, "to": other, "rows": rows.changes["label", label]}
        for label, other in config.task.label_map.items()
    ]
    collected: LabelSummary = {
        "labels": labels,
        "label_typos": label_typos(every),
        "renamed_labels": renamed,
    }
    together: dict[str, tuple[int, str]] = {}
    for label in every:
        is_thin = labels[label]["train"] < THIN
        lump = fates.together(rows, label) if is_thin else None
        if lump is not None:
            together[label] = lump
    if together:
        collected["together"] = together
    unknown = Counter(row.reason for _, row in rows.rejected if row.rule == "unknown label")
    if unknown:
        collected["unknown_labels"] = dict(unknown.most_common(LISTED))
    return collected


def _sensitive(config: PrepareConfig, rows: RecordTable) -> PolicySummary:
    facts: list[SensitiveFact] = []
    for (column, rule, action), count in sorted(rows.tally.counts.items()):
        kind = rule.partition("/")[0]
        facts.append(
            {"kind": kind, "rule": rule, "column": column, "action": action, "count": count}
        )
    collected: PolicySummary = {
        "sensitive": facts,
        "sensitive_rows": rows.sensitive,
        "sensitive_searched": list(config.sensitive.actions),
    }
    changes = sorted(rows.changes.items())
    marked = {kind: count for (change, kind), count in changes if change == "answer"}
    if marked:
        collected["marked_answers"] = marked
    return collected


def _repeats(
    config: PrepareConfig, rows: RecordTable, fates: Fates, overlap: dict[str, Overlap]
) -> RepeatFacts:
    policy = config.duplicates
    exact = int((fates.repeats.equal >= 0).sum())
    near = int((fates.repeats.near >= 0).sum())
    return {
        "duplicates": {
            "policy": policy.exact,
            "near_policy": policy.near,
            "exact": exact,
            "near": near,
            "threshold": policy.similarity,
        },
        "conflicts": _conflicts(config, rows, fates),
        "near_held_out": _near_held_out(config, rows, fates),
        "overlap": _overlap(config, rows, overlap),
    }


def _conflicts(config: PrepareConfig, rows: RecordTable, fates: Fates) -> ConflictFacts:
    earlier = fates.repeats.conflict
    conflicts = np.flatnonzero(earlier >= 0)
    examples: list[ConflictExample] = []
    for index, other in _pairs(conflicts[:LISTED], earlier):
        codes = rows.label_of[[other, index]].tolist()
        answers = [rows.labels[code] if code >= 0 else "" for code in codes]
        examples.append(
            {
                "first": place_of(config, rows, other),
                "second": place_of(config, rows, index),
                "similarity": _similarity(rows, index, other),
                "answers": answers,
            }
        )
    return {
        "pairs": len(conflicts),
        "rows": len(np.union1d(conflicts, earlier[conflicts])),
        "cap": fates.repeats.cap,
        "threshold": duplicates.CONFLICT,
        "examples": examples,
    }


def _near_held_out(config: PrepareConfig, rows: RecordTable, fates: Fates) -> NearHeldOutFacts:
    near = np.flatnonzero(fates.fate == NEAR_HELD_OUT)
    examples: list[NearExample] = []
    for index, other in _pairs(near[:LISTED], fates.other):
        side = SPLITS[fates.splits[other]]
        examples.append(
            {
                "row": place_of(config, rows, index),
                "near": place_of(config, rows, other),
                "side": side,
                "similarity": _similarity(rows, index, other),
            }
        )
    return {
        "left_out": len(near),
        "threshold": config.duplicates.similarity,
        "examples": examples,
    }


def _pairs(indices: np.ndarray, other: np.ndarray) -> list[tuple[int, int]]:
    return list(zip(indices.tolist(), other[indices].tolist(), strict=True))


def _similarity(rows: RecordTable, index: int, other: int) -> float:
    text, other_text = rows.spill.texts([index, other])
    return round(minhash.ratio(text, other_text), 4)


def _overlap(config: PrepareConfig, rows: RecordTable, overlap: dict[str, Overlap]) -> OverlapFacts:
    sides: dict[str, SplitOverlap] = {}
    examples: list[NearExample] = []
    for split, measure in overlap.items():
        sides[split] = {
            "measured": measure.measured,
            "overlapping": measure.overlapping,
            "too_short": measure.too_short,
        }
        for held_out, trained in measure.pairs[:OVERLAPS]:
            row = place_of(config, rows, held_out)
            near = place_of(config, rows, trained)
            examples.append({"row": row, "near": near, "side": split})
    return {"gate": config.max_overlap, "sides": sides, "examples": examples}


def _splits(config: PrepareConfig, rows: RecordTable) -> SplitFacts:
    if config.splits.time is not None:
        return {"by": "time", "boundaries": config.splits.time.model_dump()}
    grouped = {k: source.group for k, source in enumerate(config.sources) if source.group}
    if not grouped:
        return {"by": "content"}
    measures = rows.measures
    in_groups = np.isin(measures.sources, list(grouped))
    _, sizes = np.unique(measures.positions[in_groups], return_counts=True)
    column = next(iter(grouped.values()))
    largest = int(sizes.max(initial=0))
    return {"by": "group", "column": column, "groups": len(sizes), "largest_group": largest}


def _sources(
    config: PrepareConfig, rows: RecordTable, fates: Fates, plan: ReadingPlan
) -> list[SourceFacts]:
    count = len(config.sources)
    own = rows.measures.sources
    left_out = np.bincount(own[fates.fate != KEPT], minlength=count).tolist()
    read = np.bincount(own, minlength=count).tolist()
    rejected = Counter(source for source, _ in rows.rejected)
    formats = plan.formats()
    facts: list[SourceFacts] = []
    for k, source in enumerate(config.sources):
        digest = sha256_file(source.local).removeprefix("sha256:")
        unusable = rejected[k]
        facts.append(
            {
                "file": source.title,
                "form": plan.forms[k],
                "sha256": digest,
                "rows_in": read[k] + unusable,
                "rejected": left_out[k] + unusable,
                "shape": formats[k].name,
                "split": source.split,
            }
        )
    return facts


def _examples(config: PrepareConfig, rows: RecordTable, fates: Fates) -> dict[str, list[RowPlace]]:
    """A few places for each rule that rejected rows, the unusable rows first."""
    examples: dict[str, list[RowPlace]] = {}
    for entry in rejected_rows(config, rows, fates):
        places = examples.setdefault(entry["rule"], [])
        if len(places) < PLACES:
            places.append(entry["source"])
    return examples
