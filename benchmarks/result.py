"""How a benchmark is written down: one JSON file, and a table made from it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One figure of ours beside a peer's.

    Attributes:
        metric: What was measured, with its unit.
        ours, theirs: Medians over the repetitions.
        peer: Who `theirs` is.
        ratio: Median of ours / theirs, each pair measured one after the other.
        spread: Smallest and largest ratio.
        goal: The bound that was set, such as `>= 2`; empty when there is none.
        met: Whether the ratio meets it.
    """

    metric: str
    ours: float
    peer: str
    theirs: float
    ratio: float
    spread: tuple[float, float]
    goal: str
    met: bool | None


def compared(
    metric: str, ours: Sequence[float], theirs: Sequence[float], *, peer: str, goal: str = "", digits: int = 3
) -> Row:
    """A row from repetitions that alternated."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    ratio = statistics.median(ratios)
    return Row(
        metric, round(statistics.median(ours), digits), peer, round(statistics.median(theirs), digits),
        round(ratio, 3), (round(min(ratios), 3), round(max(ratios), 3)), goal, meets(ratio, goal),
    )  # fmt: skip


def meets(value: float, goal: str) -> bool | None:
    """Whether a value meets `>= 2` or `<= 0.6`."""
    sign, _, bound = goal.partition(" ")
    return None if not goal else value >= float(bound) if sign == ">=" else value <= float(bound)


def write(name: str, command: str, rows: Sequence[Row], packages: Sequence[str], **more: Any) -> Path:
    """Write `results/NAME.json`; returns its path."""
    found = {
        "machine": machine(),
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "command": command,
        "rows": [asdict(row) for row in rows],
        **more,
    }
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def machine() -> dict[str, Any]:
    """The processor, as far as its speed depends on it."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    lines = {key.strip(): value for key, _, value in (line.partition(":") for line in text.splitlines())}
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in lines.get("flags", "").split()]
    return {
        "processor": lines.get("model name", platform.processor()).strip(),
        "cores": len(os.sched_getaffinity(0)),
        "flags": flags,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
    }


def goals() -> str:
    """Every goal of every result as a Markdown table, those that are not met first."""
    found = [
        (row, path.stem)
        for path in sorted(FOLDER.glob("*.json"))
        for row in json.loads(path.read_text(encoding="utf-8")).get("rows", [])
        if row["goal"]
    ]
    met = sum(row["met"] for row, _ in found)
    lines = [f"{met} of {len(found)} goals are met.", "", "| results | figure | slmctl | peer | | goal | met |"]
    lines += ["|---|---|---:|---|---:|---|---|"]
    lines += [
        f"| `{name}` | {row['metric']} | {row['ours']:g} | {row['peer']} | {row['theirs']:g} | {row['goal']} | "
        f"{'yes' if row['met'] else '**no**'} |"
        for row, name in sorted(found, key=lambda entry: entry[0]["met"])
    ]
    return "\n".join(lines)


def table(name: str) -> str:
    """The rows of a result as a Markdown table."""
    path = FOLDER / f"{name}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    lines = ["| | slmctl | peer | | ratio | spread | goal |", "|---|---:|---|---:|---:|---:|---|"]
    for row in rows:
        goal = f"{row['goal']} {'met' if row['met'] else 'not met'}" if row["goal"] else ""
        spread = f"{row['spread'][0]:g} - {row['spread'][1]:g}"
        figures = f"{row['ours']:g} | {row['peer']} | {row['theirs']:g} | {row['ratio']:g}"
        lines.append(f"| {row['metric']} | {figures} | {spread} | {goal} |")
    return "\n".join(lines)
