"""A report -> the scoreboard of the terminal, of `report.md` and of
the model card; figures in words.
"""

from __future__ import annotations

from collections.abc import Sequence

from slmctl import console
from slmctl.console import percent
from slmctl.reports.evaluation_report import (
    CHECKS,
    EvaluationReport,
    ParticipantEntry,
    entries_of,
    released,
)

BESIDE = (  # metrics beside the primary one, where a task has them; the report holds all
    "exact_match",
    "micro_f1",
    "macro_f1",
    "mean_absolute_error",
    "quadratic_kappa",
    "ece",
    "valid_json",
    "valid_schema",
    "tool_accuracy",
    "field_f1",
    "no_call_recall",
    "valid_call",
    "rouge_l",
    "chrf",
    *CHECKS,
    "length_ratio",
)
PLAIN = (
    "brier",
    "mean_absolute_error",
    "quadratic_kappa",
    "length_ratio",
)  # metrics that are not shares, shown without percent


def table(report: EvaluationReport) -> tuple[list[str], list[list[str]]]:
    """The scoreboard: head and rows, as text; baselines first."""
    metric, others = report["primary_metric"], _others(report)
    head = [
        "model",
        "size",
        metric,
        f"{percent(report['confidence'], 0)} interval",
        *others,
        "latency",
    ]
    return head, [_line(name, entry, metric, others) for name, entry in entries_of(report).items()]


def optional(report: EvaluationReport) -> list[str]:
    """The columns of `table` that a narrow terminal leaves out, in this order."""
    return [*reversed(_others(report)), "size", "latency"]


def by_chance(report: EvaluationReport) -> str:
    """A sentence on the calibration error that chance alone makes; '' where it is not known."""
    model = released(report)
    calibration = entries_of(report)[model].get("calibration")
    if not calibration or "by_chance" not in calibration:
        return ""
    rows, share = console.count(calibration["n"], "row"), percent(calibration["by_chance"])
    sentence = f"ece is what goes beyond chance: on {rows} chance alone makes {share} for {model}"
    if "confidence" not in calibration:
        return sentence
    confidence, accuracy = percent(calibration["confidence"]), percent(calibration["accuracy"])
    return f"{sentence}; its mean confidence is {confidence}, and {accuracy} are right"


def _others(report: EvaluationReport) -> list[str]:
    """The metrics of BESIDE that at least one participant has, without the primary one."""
    names = {name for entry in entries_of(report).values() for name in entry["metrics"]}
    return [name for name in BESIDE if name in names - {report["primary_metric"]}]


def figure(metric: str, value: float, digits: int = 1) -> str:
    """A metric as text for tables, pages and messages: in percent, or
    as a plain number for those of PLAIN.
    """
    return f"{value:.{digits + 2}f}" if metric in PLAIN else percent(value, digits)


def difference(metric: str, value: float, digits: int = 1) -> str:
    """A difference of a metric as text: `+1.6 points` (percentage points),
    or a plain number for those of PLAIN.
    """
    return f"{value:+.{digits + 2}f}" if metric in PLAIN else f"{100 * value:+.{digits}f} points"


def _line(name: str, entry: ParticipantEntry, metric: str, others: Sequence[str]) -> list[str]:
    low, high = entry["interval"]
    own = f" (n = {entry['sample']})" if "sample" in entry else ""
    latency, size = entry.get("latency_ms"), entry.get("size")
    return [
        name,
        console.size(size) if size else "-",
        percent(entry["metrics"][metric]),
        f"{percent(low)} - {percent(high)}{own}",
        *(
            figure(other, entry["metrics"][other]) if other in entry["metrics"] else "-"
            for other in others
        ),
        f"{latency['median']:.0f} ms" if latency else "-",
    ]
