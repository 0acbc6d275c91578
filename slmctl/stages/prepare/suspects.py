"""Training records -> records whose label is probably wrong, each with the label that fits better.

A linear model estimates the probability of each label for every record, after training on the other
records. Confident learning finds the records for which it is surer of another label. No label is
changed: people decide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np

from slmctl.metrics import confident_joint, linear_baseline
from slmctl.stages.prepare import linear_model
from slmctl.stages.prepare.fates import RowPlace
from slmctl.task.records import Record, without_weight, write_jsonl

FILENAME = "suspects.jsonl"
# FEW_FOLDS from MANY records on, where each model learns from enough
FOLDS, FEW_FOLDS = 5, 3
MANY = 5_000
STRENGTH = 10.0  # inverse regularisation of the models
FEWEST = 10  # records of a label; rarer ones are left out, since a model learns too little of them
CREDIBLE = 0.5  # share of the labels that the model must agree with before it may doubt the others
# Bounds of a sample, so that it takes seconds: of records, characters, and records times labels.
ROWS = 50_000
CHARACTERS = 15_000_000
WORK = 2_500_000
LISTED = 100  # places and pairs of labels that the manifest names; the file names every suspect


class Suspect(NamedTuple):
    """A record whose label is probably wrong, and the label that fits better."""

    record: Record
    proposed: str
    score: float


class SuspectPair(TypedDict):
    label: str
    proposed: str
    rows: int


class SuspectExample(TypedDict):
    row: RowPlace
    label: str
    proposed: str
    score: float


class SuspectFacts(TypedDict):
    """Training records whose label is probably wrong.

    `measured` is the number of records that were looked at, at most all of `train`; `agreement` is
    the share of them whose label the model agrees with, 0 to 1.
    """

    rows: int
    measured: int
    train: int
    agreement: float
    pairs: list[SuspectPair]
    examples: list[SuspectExample]


def find(out: Path, *, train: int, labels: int) -> SuspectFacts | None:
    """Write the suspects among the `train` records to `suspects.jsonl`, the worst first, and return
    the facts.

    Returns None and writes no file without scikit-learn, or if fewer than two labels have FEWEST
    records.
    """
    if not linear_baseline.is_installed() or labels < 2:
        return None
    most = max(1, min(ROWS, WORK // labels))
    records = _with_enough(linear_model.sample(out / "train.jsonl", train, most, CHARACTERS))
    names = sorted({record.answer for record in records})
    if len(names) < 2:
        return None
    index = {name: k for k, name in enumerate(names)}
    labelled = np.array([index[record.answer] for record in records], np.int64)
    inputs = [record.input for record in records]
    folds = folds_of(len(records))
    chances = linear_baseline.out_of_fold(inputs, labelled, folds=folds, strength=STRENGTH)
    if chances is None:
        return None
    agreement = float((chances.argmax(axis=1) == labelled).mean())
    suspects: list[Suspect] = []
    if agreement >= CREDIBLE:
        errors = confident_joint.find(chances, labelled)
        proposals = errors.proposed.tolist()
        scores = errors.scores.tolist()
        for row, proposed, score in zip(errors.rows.tolist(), proposals, scores, strict=True):
            suspects.append(Suspect(records[row], names[proposed], score))
    _write(out / FILENAME, suspects)
    return {
        "rows": len(suspects),
        "measured": len(records),
        "train": train,
        "agreement": round(agreement, 4),
        "pairs": _pairs(suspects),
        "examples": [_example(suspect) for suspect in suspects[:LISTED]],
    }


def _pairs(suspects: Sequence[Suspect]) -> list[SuspectPair]:
    """The most frequent pairs of a label and the one that fits better."""
    counts = Counter((suspect.record.answer, suspect.proposed) for suspect in suspects)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [
        {"label": label, "proposed": proposed, "rows": count}
        for (label, proposed), count in ranked[:LISTED]
    ]


def _example(suspect: Suspect) -> SuspectExample:
    source = suspect.record.source
    return {
        "row": {"file": source["file"], "row": source["row"]},
        "label": suspect.record.answer,
        "proposed": suspect.proposed,
        "score": suspect.score,
    }


def folds_of(records: int) -> int:
    return FOLDS if records < MANY else FEW_FOLDS


def _with_enough(records: Sequence[Record]) -> list[Record]:
    counts = Counter(record.answer for record in records)
    return [record for record in records if counts[record.answer] >= FEWEST]


def _write(path: Path, suspects: Sequence[Suspect]) -> None:
    write_jsonl(path, map(_line, suspects))


def _line(suspect: Suspect) -> dict[str, Any]:
    record = suspect.record
    return {
        "id": record.id,
        "split": "train",
        "messages": [without_weight(message) for message in record.prompt_messages],
        "label": record.answer,
        "proposed": suspect.proposed,
        "score": suspect.score,
    }
