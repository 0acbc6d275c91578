"""Planted label errors in public data sets -> how many of them the suspects of `prepare` name, beside cleanlab.

    python -m benchmarks.wheel_suspects ../shared/data [--quick]

The folder holds `banking77/` and `clinc150/`. 5 % of the training labels are changed by a seed: to any other label
(uniform), or to the one whose texts are most like those of the right one (confusable). The public sets hold errors of
their own, which count as false alarms here.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import numpy as np
from cleanlab.filter import find_label_issues

from benchmarks import program, result
from benchmarks.label import nearest_labels
from benchmarks.program import Pairs
from slmctl.metrics import confident_joint, linear_baseline
from slmctl.stages.prepare import suspects

PLANTED, TOP = 0.05, 0.1
SEEDS = 3
GOAL = ">= 0.8"
PACKAGES = ("numpy", "scikit-learn", "cleanlab")


def main() -> None:
    """Write `results/wheel-suspects.json`: medians over the seeds for each data set and each kind of error."""
    parser = program.parser(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--quick", action="store_true", help="one seed")
    options = parser.parse_args()
    rows: list[result.Row] = []
    for name, pairs in data_sets(options.data).items():
        for kind in ("uniform", "confusable"):
            rows += measured(f"{name}, {kind} errors", pairs, kind, 1 if options.quick else SEEDS)
    result.write("wheel-suspects", "python -m benchmarks.wheel_suspects ../shared/data", rows, PACKAGES)


def data_sets(folder: Path) -> dict[str, Pairs]:
    """The training rows of Banking77 and CLINC150, without the rows that are out of scope."""
    whole = json.loads((folder / "clinc150" / "data_full.json").read_text(encoding="utf-8"))
    clinc = [(text, label) for text, label in whole["train"]]
    return {"banking77": program.read_csv(folder / "banking77" / "train.csv"), "clinc150": clinc}


def planted(pairs: Pairs, kind: str, seed: int) -> tuple[list[str], set[int]]:
    """The labels with errors, and the rows that have one."""
    choose, names = random.Random(seed), sorted({label for _, label in pairs})
    near = nearest_labels(pairs)
    wrong = set(choose.sample(range(len(pairs)), round(PLANTED * len(pairs))))
    labels = []
    for k, (_, label) in enumerate(pairs):
        other = choose.choice([name for name in names if name != label]) if kind == "uniform" else near[label]
        labels.append(other if k in wrong else label)
    return labels, wrong


def measured(title: str, pairs: Pairs, kind: str, seeds: int) -> list[result.Row]:
    ours: list[tuple[float, float, float]] = []
    theirs: list[tuple[float, float, float]] = []
    shares, seconds = [], []
    names = sorted({label for _, label in pairs})
    index, true = {name: k for k, name in enumerate(names)}, [label for _, label in pairs]
    for seed in range(seeds):
        labels, wrong = planted(pairs, kind, seed)
        given = np.array([index[label] for label in labels], np.int64)
        begun = time.monotonic()
        chances = linear_baseline.out_of_fold(
            [text for text, _ in pairs], given, folds=suspects.folds_of(len(pairs)), strength=suspects.STRENGTH
        )
        assert chances is not None
        found = confident_joint.find(chances, given)
        seconds.append(time.monotonic() - begun)
        shares.append(len(found.rows) / len(pairs))
        best = [names[k] for k in chances.argmax(axis=1)]
        listed = find_label_issues(given, chances, return_indices_ranked_by="normalized_margin", n_jobs=1)
        for order, figures in ((found.rows.tolist(), ours), (np.asarray(listed).tolist(), theirs)):
            top = order[: round(TOP * len(pairs))]
            hits = [row for row in top if row in wrong]
            figures.append((
                len(hits) / len(wrong), len(hits) / len(top), sum(best[row] == true[row] for row in hits) / len(hits)
            ))  # fmt: skip
    recall, precision, proposed = np.median(ours, axis=0).tolist()
    peer, peers = "cleanlab's default filter", np.median(theirs, axis=0).tolist()
    share = f"{100 * float(np.median(shares)):.1f} % of the rows are suspects, {float(np.median(seconds)):.1f} s"
    return [
        result.single(
            f"{title}: share of the planted ones among the first 10 % ({share})", recall, peer, peers[0], GOAL
        ),
        result.single(f"{title}: planted ones among the rows that are named there", precision, peer, peers[1]),
        result.single(f"{title}: the true label is proposed for the found ones", proposed, peer, peers[2]),
    ]


if __name__ == "__main__":
    main()
