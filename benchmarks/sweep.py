"""`slmctl sweep`: what it picks among candidates that are equal, and what its settings gain on two public data sets.

    python -m benchmarks.sweep noise
    python -m benchmarks.sweep DATA BASE [--quick] [--folder FOLDER] [--only banking77 snips]

`noise` sends made-up losses through the choice that the command makes: sweeps of 20 candidates, all equal but for the
noise of a training, and sweeps of 20 in which one is better. Noise is of two kinds, of single records and of a whole
training, each of the sizes below. The peer takes the lowest loss.

With DATA, the folder that holds `banking77/` and `snips/`, two learning rates are swept on each. Then the defaults
and the chosen settings are trained on all rows and answer the test rows, which the sweep never reads.
`--quick` takes 1,200 training, 320 validation and 300 test rows of each, and adapters in place of Q8_0 files.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import defaults, program, result
from slmctl.console import percent
from slmctl.metrics import trial_choice
from slmctl.metrics.trial_choice import Measured

SWEEPS, CANDIDATES = 1000, 20
LOSS, BLOCKS, RECORDS = 0.3, 32, 10  # nats a token, of 320 validation rows with 3 tokens of an answer each
# Standard deviations over seeds, as shares of the loss: of 32 records together, and of a whole training.
NOISES = {"records": (0.2, 0.0), "trainings": (0.0, 0.05), "both": (0.15, 0.03)}
BETTER = 0.5  # loss of the candidate that is better, over that of the others
QUICK = {"train": 1200, "validation": 320, "test": 300}
SPACE = ["finetune.learning_rate=4e-4,8e-4"]
METRICS = {"banking77": "accuracy", "snips": "exact_match"}
CONFIG = """\
project: {name}
base: {base}
task: {task}
prepare:
  sources:
    - {{path: rows.jsonl, input: text, output: answer}}
    - {{path: held.jsonl, input: text, output: answer, split: validation}}
    - {{path: unseen.jsonl, input: text, output: answer, split: test}}
  splits: {{validation: 0, calibration: 0, test: 0}}
  duplicates: {{exact: keep, near: keep, similarity: 1.0}}     # the published protocol leaves every row in
  max_overlap: 1.0
finetune: {{epochs: 3, learning_rate: 4e-4}}
quantize: {{types: [Q8_0]}}
"""
FULL_VALIDATION = 0.1  # of the training rows


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("data")
    parser.add_argument("base", nargs="?")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--space", nargs="*", default=SPACE)
    parser.add_argument("--folder", type=Path, default=Path("sweep"))
    parser.add_argument("--only", nargs="+", choices=METRICS, default=list(METRICS))
    options = parser.parse_args()
    if options.data == "noise":
        name, rows, more = "sweep-noise", list(noise_rows()), {"sweeps": SWEEPS, "noise": NOISES}
        command = "python -m benchmarks.sweep noise"
    else:
        name = "sweep-quick" if options.quick else "sweep"
        found = {one: measure(one, options) for one in options.only}
        rows = [row for one, runs in found.items() for row in rows_of_runs(one, runs)]
        command = "python -m benchmarks.sweep DATA BASE" + " --quick" * options.quick
        more = {"base": options.base, "space": options.space, "runs": found}
    result.write(name, command, rows, ("numpy", "torch", "transformers", "trl", "peft"), **more)


# Noise


def noise_rows() -> Iterator[result.Row]:
    """For each kind of noise, how often a sweep of equal candidates changes the settings, and how often it is right."""
    for kind, (records, whole) in NOISES.items():
        equal = [simulate(seed, records, whole, better=1.0) for seed in range(SWEEPS)]
        lucky, lowest = (sum(pick != 0 for pick in picks) / SWEEPS for picks in zip(*equal, strict=True))
        what = f"{CANDIDATES} equal candidates, noise of {kind}: settings replaced"
        yield result.single(what, lucky, "the lowest loss", lowest, "<= 0.01")
        one_better = [simulate(seed, records, whole, better=BETTER) for seed in range(SWEEPS)]
        right, naive = (sum(pick == 7 for pick in picks) / SWEEPS for picks in zip(*one_better, strict=True))
        what = f"one of {CANDIDATES} with {percent(1 - BETTER, 0)} less loss, noise of {kind}: found"
        yield result.single(what, right, "the lowest loss", naive, ">= 0.9")


def simulate(seed: int, records: float, whole: float, *, better: float) -> tuple[int, int]:
    """The candidates that a sweep and the lowest loss choose; 0 stands for the settings of today, 7 may be better."""
    random = np.random.default_rng(seed)
    smaller = (32 / RECORDS) ** 0.5  # by which a block spreads more than 32 records together
    hardness = random.normal(0, 0.5 * smaller, BLOCKS)  # of the records, the same for every candidate

    def trials(number: int, seeds: int) -> Measured:
        level = LOSS * (better if number == 7 else 1.0)
        blocks = []
        for _ in range(seeds):
            noise = 1 + hardness + random.normal(0, records * smaller, BLOCKS) + random.normal(0, whole)
            tokens = np.full(BLOCKS, 3 * RECORDS)
            blocks.append(np.stack([np.full(BLOCKS, RECORDS), tokens, level * noise * tokens], axis=1))
        return Measured(str(number), (1.0 + number,), blocks)

    incumbent, *challengers = (trials(number, 2) for number in range(CANDIDATES))
    choice = trial_choice.choose(incumbent, challengers)
    lowest = min([incumbent, *challengers], key=lambda each: each.loss)
    return int(choice.chosen.name), int(lowest.name)


# Public data


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """A sweep from the defaults, and the test rows answered with the defaults and with what it chose."""
    folder = make(options.folder / name, name, options)
    begun = time.monotonic()
    swept = json.loads(program.slmctl(folder, "sweep", "--json", *options.space))
    seconds = round(time.monotonic() - begun, 1)
    model = "adapter" if options.quick else "gguf"
    settings = {"default": [], "swept": [f"{key}={value}" for key, value in swept["chosen"].items()]}
    found: dict[str, Any] = {"sweep": swept | {"wall_s": seconds}}
    for kind, sets in settings.items():
        last = "finetune" if options.quick else "quantize"
        program.slmctl(folder, "run", "--until", last, sets=sets)
        report = json.loads(program.slmctl(folder, "evaluate", "--model", model, "--json", sets=sets))["metrics"]
        (figures,) = report["models"].values()
        adapter = json.loads(program.slmctl(folder, "finetune", "--json", sets=sets))["metrics"]
        found[kind] = {
            "value": figures["metrics"][METRICS[name]], "interval": figures["interval"], "n": report["n"],
            "validation_loss": adapter["validation_loss"],
        }  # fmt: skip
        sys.stderr.write(f"{name}, {kind}: {found[kind]}\n")
    return found


def rows_of_runs(name: str, runs: dict[str, Any]) -> Iterator[result.Row]:
    """The chosen settings beside the defaults."""
    ours, theirs = runs["swept"], runs["default"]
    for what, goal in (("value", ">= 1.001"), ("validation_loss", "<= 0.99")):
        metric = METRICS[name] if what == "value" else "validation loss"
        yield result.compared(
            f"{name}: {metric}", [ours[what]], [theirs[what]], peer="the defaults", goal=goal, digits=4
        )


def make(folder: Path, name: str, options: argparse.Namespace) -> Path:
    """A project with one data set, or with a sample of it drawn by hash."""
    known = list(defaults.rows_of(Path(options.data), name))
    unseen = list(defaults.rows_of(Path(options.data), name, part="test"))
    held = QUICK["validation"] if options.quick else round(FULL_VALIDATION * len(known))
    train = QUICK["train"] if options.quick else len(known) - held
    parts = {
        "held.jsonl": known[:held],
        "rows.jsonl": known[held : held + train],
        "unseen.jsonl": unseen[: QUICK["test"] if options.quick else None],
    }
    return defaults.write_project(folder, parts, CONFIG.format(name=name, base=options.base, task=defaults.TASKS[name]))


if __name__ == "__main__":
    main()
