"""The command `sign`: reviewed disagreements of two models that differ by 3 points, and who is named the better one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks import result
from benchmarks.wheel import row
from benchmarks.wheel_traffic import Flags, clinc, lines
from slmctl.metrics import linear_baseline
from slmctl.metrics.linear_baseline import LinearModel
from slmctl.metrics.statistics import mcnemar, sign_test_decision

POINTS = 0.03  # by which the two differ, about
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7)  # of the training rows: one of them gives the weaker model
SIMULATIONS, EQUAL = 100, 400
MOST = 2000  # reviewed rows; then nothing is decided
PACKAGES = ("scikit-learn", "numpy")


@dataclass(frozen=True)
class Pair:
    """Two models on the same test rows: which are right, and where they differ."""

    first: Flags
    second: Flags
    differ: Flags

    @property
    def gain(self) -> float:
        return float(self.second.mean() - self.first.mean())


def run(arguments: Sequence[str]) -> Path:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wheel sign", description=__doc__)
    parser.add_argument("folder", type=Path, help="CLINC150")
    pair = paired(parser.parse_args(arguments).folder)
    decided = [simulate(pair, seed) for seed in range(SIMULATIONS)]
    equal = [simulate(pair, seed, equal=True) for seed in range(EQUAL)]
    rows_taken = [rows for better, rows in decided if better]
    peeks = sum(peeked(pair, seed) for seed in range(EQUAL))
    rows = [
        row(f"decided for the better one, of {SIMULATIONS}", sum(b == "second" for b, _ in decided), ">= 95"),
        row(f"decided for the worse one, of {SIMULATIONS}", sum(b == "first" for b, _ in decided), "<= 5"),
        row(f"of {EQUAL} pairs of equal models, decided within {MOST} rows", sum(bool(better) for better, _ in equal),
            f"<= {EQUAL // 20}", peer="McNemar's test after each tenth row", theirs=peeks),
    ]  # fmt: skip
    return result.write(
        "wheel-sign", "python -m benchmarks.wheel sign CLINC150", rows, PACKAGES,
        accuracy=[float(pair.first.mean()), float(pair.second.mean())], disagreeing=float(pair.differ.mean()),
        rows_median=float(np.median(rows_taken)), rows_p90=float(np.quantile(rows_taken, 0.9)),
        rows_taken=sorted(rows_taken),
    )  # fmt: skip


def paired(folder: Path) -> Pair:
    """The model of all training rows, and one of a share of them that is about 3 points worse."""
    data = clinc(folder)
    order = np.random.default_rng(0).permutation(len(data["train"]))
    better = answers(data, range(len(order)))
    pairs = []
    for share in SHARES:
        worse = answers(data, order[: int(share * len(order))].tolist())
        expected = np.array([label for _, label in data["test"]])
        pairs.append(Pair(worse == expected, better == expected, worse != better))
        sys.stderr.write(f"{share:.0%} of the rows: {100 * pairs[-1].gain:.1f} points worse\n")
    return min(pairs, key=lambda pair: abs(pair.gain - POINTS))


def answers(data: dict[str, list[tuple[str, str]]], places: Sequence[int]) -> npt.NDArray[np.str_]:
    """The answers to the test rows of a model that was trained on some rows."""
    train, val = [data["train"][k] for k in places], data["val"]
    model: LinearModel = linear_baseline.fit(
        [text for text, _ in train], [label for _, label in train], choosing=[text for text, _ in val],
        chosen=[label for _, label in val],
    )  # fmt: skip
    return np.array([line["answer"] for line in lines(model, data["test"])])


def reviewed(pair: Pair, random: np.random.Generator, *, equal: bool) -> tuple[Flags, Flags]:
    """Which of the two is right on each reviewed row, drawn from those on which they differ.

    `equal` makes models of them that are equally good: on each row chance says which one is which.
    """
    places = random.choice(np.flatnonzero(pair.differ), MOST)
    first, second = pair.first[places], pair.second[places]
    swaps = (random.random(MOST) < 0.5) & equal
    return np.where(swaps, second, first), np.where(swaps, first, second)


def simulate(pair: Pair, seed: int, *, equal: bool = False) -> tuple[str, int]:
    """The model that is named the better one, and the number of rows that were reviewed until then."""
    first, second = reviewed(pair, np.random.default_rng(seed), equal=equal)
    counts = (np.cumsum(first), np.cumsum(second), np.cumsum(~first & ~second))
    for number, seen in enumerate(zip(*counts, strict=True), 1):
        better = sign_test_decision(*map(int, seen)).better
        if better:
            return better, number
    return "", MOST


def peeked(pair: Pair, seed: int) -> bool:
    """True where the test for one look, made after each tenth row, names one of two equal models."""
    first, second = map(np.cumsum, reviewed(pair, np.random.default_rng(seed), equal=True))
    return any(mcnemar(int(a), int(b)) < 0.05 for a, b in zip(first[9::10], second[9::10], strict=True))
