"""Prepared records -> the score of a linear model on the validation
rows, which a fine-tuned model must beat.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from slmctl import console
from slmctl.installation import pip_line
from slmctl.metrics import linear_baseline
from slmctl.metrics.statistics import wilson
from slmctl.task.records import Record

# Bounds of a sample, so that it takes seconds for a million rows: of rows, characters, and rows
# times labels.
ROWS = 10_000
CHARACTERS = 3_000_000
WORK = 1_000_000
MEASURED = 5_000  # validation rows


class LinearFacts(TypedDict):
    """The linear model's score: right answers of the validation rows, and the 95 % interval of
    their share.

    `trained_on` is the number of training rows that it was trained on, at most all of `train`.
    """

    rows: int
    right: int
    accuracy: float
    interval: list[float]
    trained_on: int
    train: int


def measure(out: Path, *, train: int, validation: int, labels: int) -> LinearFacts | None:
    """Train a linear model on the `train` records in `out`, or a sample, and measure it on the
    `validation` records.

    The validation rows also choose its regularisation, but out of three values only, so the score
    is hardly too high. Returns None without scikit-learn, with fewer than two labels, or with too
    few validation rows.
    """
    if validation < linear_baseline.FEWEST or labels < 2:
        return None
    if not linear_baseline.is_installed():
        console.say(f"  no linear baseline: it needs scikit-learn, {pip_line('evaluate')}")
        return None
    most = max(1, min(ROWS, WORK // labels))
    learned = sample(out / "train.jsonl", train, most)
    measured = sample(out / "validation.jsonl", validation, MEASURED)
    references = [record.answer for record in measured]
    texts = [record.input for record in measured]
    inputs = [record.input for record in learned]
    labels_of = [record.answer for record in learned]
    model = linear_baseline.fit(inputs, labels_of, choosing=texts, chosen=references)
    answers, _ = model.answers(texts)
    right = sum(answer == reference for answer, reference in zip(answers, references, strict=True))
    return {
        "rows": len(measured),
        "right": right,
        "accuracy": round(right / len(measured), 6),
        "interval": [round(bound, 6) for bound in wilson(right, len(measured))],
        "trained_on": len(learned),
        "train": train,
    }


def sample(path: Path, count: int, most: int, characters: int = CHARACTERS) -> Sequence[Record]:
    """At most `most` of the `count` records of a split, evenly spaced, and
    with about `characters` bytes at most.
    """
    spaced = np.linspace(0, count - 1, min(most, count))
    places = set(spaced.round().astype(int).tolist())
    with path.open("rb") as stream:
        lines = [line for number, line in enumerate(stream) if number in places]
    size = sum(map(len, lines))
    step = max(1, -(-size // characters))
    return [Record.from_json(json.loads(line)) for line in lines[::step]]
