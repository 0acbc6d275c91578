"""A report as one table: what the terminal, the Markdown report and the model card show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slmctl import console

ORDER = ("base", "adapter", "merged", "gguf", "published")  # kinds, in the order of the pipeline


def markdown(report: dict[str, Any]) -> str:
    """The report as a Markdown table."""
    head, rows = table(report)
    lines = [f"# Report: {report['n']} held-out rows ({report['split']}), {report['task']}", ""]
    lines += [f"> {remark}" for remark in report["remarks"]] + ([""] if report["remarks"] else [])
    lines += ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", f"Intervals: Wilson, {report['confidence']:.0%}. Latency: median over rows asked one at a time."]
    return "\n".join(lines) + "\n"


def table(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The scoreboard: head and rows, as text; baselines first."""
    metric = report["primary_metric"]
    others = [name for name in next(iter(report["models"].values()))["metrics"] if name != metric]
    head = ["model", "size", metric, f"{report['confidence']:.0%} interval", *others, "latency"]
    rows = [_line(name, entry, metric, others) for name, entry in report["baselines"].items()]
    # in the order of the pipeline, the larger file first: a report read back from disk is sorted by name
    models = sorted(
        report["models"].items(), key=lambda item: (ORDER.index(item[1]["kind"]), -item[1]["size"], item[0])
    )
    rows += [_line(name, entry, metric, others) for name, entry in models]
    return head, rows


def _line(name: str, entry: dict[str, Any], metric: str, others: Sequence[str]) -> list[str]:
    low, high = entry["interval"]
    return [
        name,
        console.size(entry["size"]) if "size" in entry else "-",
        f"{entry['metrics'][metric]:.1%}",
        f"{low:.1%} - {high:.1%}",
        *(f"{entry['metrics'][other]:.3f}" for other in others),
        f"{entry['latency_ms']['median']:.0f} ms" if "latency_ms" in entry else "-",
    ]
