"""A candidate that knows new intents and forgot old ones -> whether the gates against production refuse it.

    python -m benchmarks.wheel_gate ../shared/data/clinc150

Production is a linear model of 145 intents of CLINC150. Five new intents come. A good candidate is trained on the rows
of all 150; one that forgot has all rows of the new intents and half of those of each old one. Each answers the
test rows once. 200 test sets of 1,500 rows are drawn from these, 5 % of them new, and the gates are checked on each.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from benchmarks import program, result
from slmctl.config import Gate
from slmctl.metrics import gates, linear_baseline
from slmctl.reports.evaluation_report import EvaluationReport

NEW, SHARE = 5, 0.05  # new intents, and their share of the test rows
ROWS, DRAWS = 1500, 200
KEPT = 0.5  # of the rows of each old intent, for the candidate that forgot
MAX_DROP = 0.02
GOAL = ">= 0.95"
PACKAGES = ("numpy", "scikit-learn")

Pairs = Sequence[tuple[str, str]]
Flags = npt.NDArray[np.bool_]


def main() -> None:
    """Write `results/wheel-gate.json`."""
    parser = program.parser(__doc__)
    parser.add_argument("data", type=Path, help="CLINC150")
    whole = json.loads((parser.parse_args().data / "data_full.json").read_text(encoding="utf-8"))
    train, test = ([(text, label) for text, label in whole[name]] for name in ("train", "test"))
    new = set(random.Random(0).sample(sorted({label for _, label in train}), NEW))
    right, is_new = answered(train, test, new), np.array([label in new for _, label in test])
    refused: dict[tuple[str, str], list[bool]] = {}
    for seed in range(DRAWS):
        for candidate, on, passed in verdicts(right, is_new, seed):
            refused.setdefault((candidate, on), []).append(not passed)
    share = {key: float(np.mean(values)) for key, values in refused.items()}
    peer = "the gate on all rows"
    rows = [
        result.single(f"of {DRAWS} test sets, share on which the gate on old rows refuses the candidate that forgot",
                      share["forgot", "old"], peer, share["forgot", "all"], GOAL),
        result.single("the same of the good candidate", share["good", "old"], peer, share["good", "all"]),
    ]  # fmt: skip
    accuracy = {
        f"{name}, {title} rows": round(float(flags[mask].mean()), 4)
        for name, flags in right.items()
        for title, mask in (("old", ~is_new), ("new", is_new))
    }
    command = "python -m benchmarks.wheel_gate CLINC150"
    result.write("wheel-gate", command, rows, PACKAGES, accuracy=accuracy, max_drop=MAX_DROP)


def answered(train: Pairs, test: Pairs, new: set[str]) -> Mapping[str, Flags]:
    """The test rows that production and both candidates get right."""
    choose = random.Random(1)
    sets = {
        "production": [pair for pair in train if pair[1] not in new],
        "good": list(train),
        "forgot": [pair for pair in train if pair[1] in new or choose.random() < KEPT],
    }
    made = {}
    for name, pairs in sets.items():
        texts, labels = [text for text, _ in pairs], [label for _, label in pairs]
        model = linear_baseline.fit(texts, labels, choosing=texts[:1], chosen=labels[:1], strengths=(10.0,))
        answers, _ = model.answers([text for text, _ in test])
        made[name] = np.array(answers) == np.array([label for _, label in test])
    return made


def verdicts(right: Mapping[str, Flags], is_new: Flags, seed: int) -> Iterator[tuple[str, str, bool]]:
    """Of one test set: a candidate, the rows of the gate, and whether it passes."""
    chance = np.random.default_rng(seed)
    drawn = {
        "old": chance.choice(np.flatnonzero(~is_new), round(ROWS * (1 - SHARE)), replace=False),
        "new": chance.choice(np.flatnonzero(is_new), round(ROWS * SHARE), replace=False),
    }
    for candidate in ("good", "forgot"):
        parts = {title: compared(right["production"][rows], right[candidate][rows]) for title, rows in drawn.items()}
        rows = np.concatenate(list(drawn.values()))
        report = cast(EvaluationReport, {
            "models": {name: {"metrics": {"accuracy": 0.0}} for name in ("production", "candidate")},
            "baselines": {}, "lower_is_better": [], "choice": None,
            "pairs": {"production|candidate": compared(right["production"][rows], right[candidate][rows])},
            "release": {"rows": {title: part | {"differences": {"candidate": part["metrics"]}}
                                 for title, part in parts.items()}},
        })  # fmt: skip
        for on in (None, "old"):
            gate = Gate(metric="accuracy", model="candidate", against="production", max_drop=MAX_DROP, rows=on)
            yield candidate, on or "all", gates.check([gate], report)[0].passed


def compared(first: Flags, second: Flags) -> dict[str, Any]:
    """The counts of a pair in accuracy, as a report has them."""
    lost, won = int((first & ~second).sum()), int((second & ~first).sum())
    accuracy = {"difference": (won - lost) / len(first), "test": "mcnemar", "only_first": lost, "only_second": won}
    return {"n": len(first), "metrics": {"accuracy": accuracy}}


if __name__ == "__main__":
    main()
