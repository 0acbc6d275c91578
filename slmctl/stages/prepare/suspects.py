"""Training records -> records whose label is probably wrong, each with the label that fits better.

A linear model estimates the probability of each label for every record, after training on the other
records. Confident learning finds the records for which it is surer of another label. No label is
changed: people decide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from slmctl.metrics import confident_joint, linear_baseline
from slmctl.stages.prepare import linear_model
from slmctl.stages.prepare.fates import RowPlace
from slmctl.task.records import Record, without_weight, write_jsonl

FILENAME = "suspects.jsonl"
# FEW_FOLDS from MANY records on, where each model learns from enough
FOLDS, FEW_FOLDS, MANY = 5, 3, 5_000
STRENGTH = 10.0  # inverse regularisation of the models
FEWEST = 10  # records of a label; rarer ones are left out, since a model learns too little of them
CREDIBLE = 0.5  # share of the labels that the model must agree with before it may doubt the others
# Bounds of a sample, so that it takes seconds: of records, characters, and records times labels.
ROWS, CHARACTERS, WORK = 50_000, 15_000_000, 2_500_000
LISTED = 100  # places and pairs of labels that the manifest names; the file names every suspect


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
    chances = linear_baseline.out_of_fold(
        [record.input for record in records],
        labelled,
        folds=folds_of(len(records)),
        strength=STRENGTH,
    )
    if chances is None:
        return None
    agreement = float((chances.argmax(axis=1) == labelled).mean())
    errors = confident_joint.find(chances, labelled)
    doubts = zip(
        errors.rows.tolist(), errors.proposed.tolist(), errors.scores.tolist(), strict=True
    )
    lines = [
        (records[row], names[proposed], score)
        for row, proposed, score in doubts
        if agreement >= CREDIBLE
    ]
    _write(out / FILENAME, lines)
    pairs = Counter((record.answer, proposed) for record, proposed, _ in lines)
    return {
        "rows": len(lines),
        "measured": len(records),
        "train": train,
        "agreement": round(agreement, 4),
        "pairs": [
            {"label": label, "proposed": proposed, "rows": count}
            for (label, proposed), count in sorted(
                pairs.items(), key=lambda item: (-item[1], item[0])
            )[:LISTED]
        ],
        "examples": [
            {
                "row": {"file": record.source["file"], "row": record.source["row"]},
                "label": record.answer,
                "proposed": proposed,
                "score": score,
            }
            for record, proposed, score in lines[:LISTED]
        ],
    }


def folds_of(records: int) -> int:
    return FOLDS if records < MANY else FEW_FOLDS


def _with_enough(records: Sequence[Record]) -> list[Record]:
    counts = Counter(record.answer for record in records)
    return [record for record in records if counts[record.answer] >= FEWEST]


def _write(path: Path, lines: Sequence[tuple[Record, str, float]]) -> None:
    write_jsonl(
        path,
        (
            {
                "id": record.id,
                "split": "train",
                "messages": [without_weight(message) for message in record.prompt_messages],
                "label": record.answer,
                "proposed": proposed,
                "score": score,
            }
            for record, proposed, score in lines
        ),
    )
