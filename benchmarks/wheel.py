"""What production teaches: are label errors found, does a gate hold, what does a quarter bring.

    python -m benchmarks.wheel gate ../shared/data/clinc150

Each command has a module of its own, `benchmarks/wheel_COMMAND.py` with `run(arguments)`, and writes
`results/wheel-COMMAND.json`.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from benchmarks import result

FOLDER = Path(__file__).parent


def commands() -> list[str]:
    """The commands that there are."""
    return sorted(path.stem.removeprefix("wheel_") for path in FOLDER.glob("wheel_*.py"))


def row(metric: str, value: float, goal: str, *, peer: str = "goal", theirs: float | None = None) -> result.Row:
    """A figure with a goal of its own; beside it the bound of the goal, or a peer's figure."""
    bound = theirs if theirs is not None else float(goal.partition(" ")[2])
    ratio = round(value / bound, 4) if bound else 0.0
    return result.Row(metric, round(value, 4), peer, bound, ratio, (ratio, ratio), goal, result.meets(value, goal))


def main() -> None:
    name, *arguments = sys.argv[1:] or ["--help"]
    if name not in commands():
        sys.exit(f"{__doc__}\ncommands: {', '.join(commands())}")
    path: Path = importlib.import_module(f"benchmarks.wheel_{name}").run(arguments)
    sys.stdout.write(f"{result.table(path.stem)}\n\n{path}\n")


if __name__ == "__main__":
    main()
