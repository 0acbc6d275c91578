"""Gates: the conditions a release must meet, checked against a report.

They lie outside every recipe: a report says what was measured, a gate says what the reader wants of
it, so a changed gate measures nothing again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slmctl.config import Gate
from slmctl.errors import GateError, UsageError
from slmctl.statistics import drop_bound


@dataclass(frozen=True)
class Verdict:
    """What one gate found."""

    passed: bool
    text: str


def check(gates: Sequence[Gate], report: dict[str, Any]) -> list[Verdict]:
    """Every gate against the metrics of a report.

    Raises:
        UsageError: A gate names a model or a metric that the report does not have.
    """
    return [_check(gate, report) for gate in gates]


def enforce(gates: Sequence[Gate], report: dict[str, Any]) -> list[Verdict]:
    """`check`, and fail when one of them did not pass.

    Raises:
        GateError: At least one gate failed.
    """
    verdicts = check(gates, report)
    failed = [verdict.text for verdict in verdicts if not verdict.passed]
    if failed:
        raise GateError("; ".join(failed), hint="more or cleaner data, more epochs, or a larger type")
    return verdicts


def _check(gate: Gate, report: dict[str, Any]) -> Verdict:
    value = _metric(gate.model, gate.metric, report)
    if gate.min is not None:
        passed = value >= gate.min
        return Verdict(passed, f"{gate.metric} of {gate.model} is {value:.4f}, the gate wants at least {gate.min:g}")
    assert gate.against is not None and gate.max_drop is not None  # Gate's own validator
    pair = report["pairs"].get(f"{gate.against}|{gate.model}")
    if gate.metric != report["primary_metric"] or pair is None:
        raise UsageError(
            f"a max_drop gate cannot compare {gate.metric} of {gate.model} against {gate.against}",
            hint=f"max_drop compares {report['primary_metric']} between: {', '.join(report['models'])}",
        )
    bound = drop_bound(pair["only_first"], pair["only_second"], pair["n"], gate.confidence)
    drop = _metric(gate.against, gate.metric, report) - value
    return Verdict(
        bound <= gate.max_drop,
        f"{gate.metric} of {gate.model} lies {drop:+.4f} below {gate.against}, at most {bound:.4f} "
        f"with {gate.confidence:.0%} confidence, the gate allows {gate.max_drop:g}",
    )


def _metric(model: str, metric: str, report: dict[str, Any]) -> float:
    if model not in report["models"]:
        raise UsageError(f"a gate names the model '{model}'", hint=f"measured: {', '.join(report['models'])}")
    metrics = report["models"][model]["metrics"]
    if metric not in metrics:
        raise UsageError(f"a gate names the metric '{metric}'", hint=f"measured: {', '.join(metrics)}")
    return float(metrics[metric])
