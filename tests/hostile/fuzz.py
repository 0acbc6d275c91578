"""Seeded fuzzing of one target: `python tests/hostile/fuzz.py http --seconds 1200 --seed 1`.

A target is a module `fuzz_NAME` beside this one with `run(seconds, seed) -> Outcome`. Prints the outcome as one line
of JSON; the exit code is 1 where a fault was seen.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

FREEZE_S = 0.5  # longest that /healthz may take
GROWTH = 200 << 20  # bytes by which a process may grow


@dataclass
class Outcome:
    """Counts and extremes of one run; where a target has none of something it stays 0.

    Attributes:
        cases: Inputs that were tried.
        deaths: Times that a process of the product ended.
        freeze_s: Longest time that /healthz took.
        growth: Bytes by which the process grew after the first tenth of the run.
        tracebacks: Tracebacks in the log.
        notes: Other faults, each in a sentence.
    """

    cases: int = 0
    deaths: int = 0
    freeze_s: float = 0.0
    growth: int = 0
    tracebacks: int = 0
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """Everything that must not happen and did."""
        found = [f"{self.deaths} deaths"] if self.deaths else []
        found += [f"/healthz took {self.freeze_s:.2f} s"] if self.freeze_s > FREEZE_S else []
        found += [f"grew by {self.growth >> 20} MB"] if self.growth > GROWTH else []
        return found + ([f"{self.tracebacks} tracebacks"] if self.tracebacks else []) + self.notes


def main() -> int:
    names = sorted(path.stem.removeprefix("fuzz_") for path in Path(__file__).parent.glob("fuzz_*.py"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=names)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    outcome = importlib.import_module(f"hostile.fuzz_{options.target}").run(options.seconds, options.seed)
    sys.stdout.write(json.dumps(vars(options) | dataclasses.asdict(outcome) | {"faults": outcome.faults}) + "\n")
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.exit(main())
