"""slmctl and the modules of this folder as child processes, and data sets as files."""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Pairs = Sequence[tuple[str, str]]  # text, label
SPIN = {"GOMP_SPINCOUNT": "10000"}  # as the program sets it


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser that is described by the first line of a module's docstring."""
    return argparse.ArgumentParser(description=(doc or "").partition("\n")[0])


def slmctl(folder: Path, *args: str, sets: Sequence[str] = ()) -> str:
    """Run the program on a project; returns its stdout. Its stderr is shown
    as it comes, and its failure ends this.
    """
    settings = [part for value in sets for part in ("--set", value)]
    command = [sys.executable, "-m", "slmctl", "-C", str(folder), *args, *settings]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return done.stdout


def measured(module: str, *args: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    """Run `python -m benchmarks.MODULE` for one side alone; returns
    the JSON object in its last line.
    """
    kept = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1"}
    command = [sys.executable, "-m", f"benchmarks.{module}", *args]
    done = subprocess.run(
        command, env=kept | quiet | (env or {}), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def alternating(
    sides: Sequence[str], repeat: int, run: Callable[[str], dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """The runs of each side, taken by turns, so that what else
    the machine does meets all of them.
    """
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(repeat):
        for side, found in runs.items():
            found.append(run(side))
            figures = {
                name: value for name, value in found[-1].items() if isinstance(value, int | float)
            }
            sys.stderr.write(f"{side}: {json.dumps(figures)}\n")
    return runs


def pss_bytes(pid: int) -> int:
    """Memory of a process, a page that it shares with others in parts; 0 where it has ended."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
        return int(found[1]) * 1024 if found else 0
    return 0


def read_csv(path: Path) -> list[tuple[str, str]]:
    """The rows of a file with the columns text and category."""
    with path.open(encoding="utf-8", newline="") as stream:
        return [(row["text"], row["category"]) for row in csv.DictReader(stream)]


def banking77(data: Path) -> tuple[Pairs, Pairs, Pairs]:
    """Rows that train, a seeded tenth of the training rows that validates, and the test rows."""
    rows = read_csv(data / "banking77/train.csv")
    random.Random(0).shuffle(rows)
    tenth = len(rows) // 10
    return rows[tenth:], rows[:tenth], read_csv(data / "banking77/test.csv")


def clinc150(data: Path) -> tuple[Pairs, Pairs, Pairs]:
    """Rows of the 150 intents that train, validate and test."""
    splits = json.loads((data / "clinc150/data_full.json").read_text(encoding="utf-8"))
    train, validation, test = (
        [(text, label) for text, label in splits[name]] for name in ("train", "val", "test")
    )
    return train, validation, test


def write_csv(path: Path, rows: Pairs) -> None:
    """Write a file with the columns text and category, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("text", "category"), *rows])


def write_jsonl(path: Path, rows: Sequence[Any]) -> None:
    """Write values as JSON, one a line."""
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a file, one a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
