"""The linear baseline on Banking77 and CLINC150 in scope: accuracy on the test rows, and processor time.

    python -m benchmarks.linear DATA

DATA holds public data sets as `../shared/data/` does. Nine tenths of the training rows train, a seeded tenth of
Banking77's and the validation rows of CLINC150 choose the strength, the test rows are scored once. The peer is the same
on words and word pairs alone.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

from benchmarks import program, result
from benchmarks.program import Pairs
from slmctl.metrics import linear_baseline

PEER = "words and word pairs alone"


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("data", type=Path)
    data: Path = parser.parse_args().data
    rows = [row for name, splits in (("Banking77", banking77(data)), ("CLINC150", clinc150(data)))
            for row in measured(name, *splits)]  # fmt: skip
    result.write("linear", "python -m benchmarks.linear DATA", rows, ("scikit-learn", "numpy"))


def banking77(data: Path) -> tuple[Pairs, Pairs, Pairs]:
    rows = program.read_csv(data / "banking77/train.csv")
    random.Random(0).shuffle(rows)
    tenth = len(rows) // 10
    return rows[tenth:], rows[:tenth], program.read_csv(data / "banking77/test.csv")


def clinc150(data: Path) -> tuple[Pairs, Pairs, Pairs]:
    splits = json.loads((data / "clinc150/data_full.json").read_text(encoding="utf-8"))
    train, validation, test = ([(text, label) for text, label in splits[name]] for name in ("train", "val", "test"))
    return train, validation, test


def measured(name: str, train: Pairs, validation: Pairs, test: Pairs) -> list[result.Row]:
    (ours, seconds), (theirs, plain) = (fitted(train, validation, test, runs=runs) for runs in (True, False))
    return [
        result.single(f"{name}, {len(test)} test rows: accuracy", ours, PEER, theirs),
        result.single(f"{name}, {len(train)} training rows: CPU-seconds", seconds, PEER, plain),
    ]


def fitted(train: Pairs, validation: Pairs, test: Pairs, *, runs: bool) -> tuple[float, float]:
    """Accuracy on the test rows, and seconds of processor time of the training."""
    (texts, labels), (choosing, chosen), (asked, expected) = (
        zip(*rows, strict=True) for rows in (train, validation, test)
    )
    begun = time.process_time()
    model = linear_baseline.fit(texts, labels, choosing=choosing, chosen=chosen, runs=runs)
    spent = time.process_time() - begun
    answers, _ = model.answers(asked)
    right = sum(answer == label for answer, label in zip(answers, expected, strict=True))
    return round(right / len(test), 6), round(spent, 2)


if __name__ == "__main__":
    main()
