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
from slmctl.metrics.statistics import drop_bound


@dataclass(frozen=True)
class GateResult:
    """What one gate found."""

    passed: bool
    text: str


def check(gates: Sequence[Gate], report: dict[str, Any]) -> list[GateResult]:
    """Every gate against the metrics of a report.

    Raises:
        UsageError: A gate names a model or a metric that the report does not have.
    """
    return [_check(gate, report) for gate in gates]


def enforce(gates: Sequence[Gate], report: dict[str, Any]) -> list[GateResult]:
    """`check`, and fail when one of them did not pass.

    Raises:
        GateError: At least one gate failed.
    """
    verdicts = check(gates, report)
    failed = [verdict.text for verdict in verdicts if not verdict.passed]
    if failed:
        raise GateError("; ".join(failed), hint="more or cleaner data, more epochs, or a larger type")
    return verdicts


def _check(gate: Gate, report: dict[str, Any]) -> GateResult:
    model = _named(gate.model, report)
    value = _metric(model, gate.metric, report)
    if gate.min is not None:
        passed = value >= gate.min
        return GateResult(passed, f"{gate.metric} of {model} is {value:.4f}, the gate wants at least {gate.min:g}")
    if gate.max is not None:
        passed = value <= gate.max
        return GateResult(passed, f"{gate.metric} of {model} is {value:.4f}, the gate wants at most {gate.max:g}")
    assert gate.against is not None and gate.max_drop is not None  # Gate's own validator
    other = _named(gate.against, report)
    if gate.model == gate.against:
        raise UsageError(f"a gate compares {model} with itself", hint=f"measured: {', '.join(_known(report))}")
    drop, bound = (0.0, 0.0) if model == other else _drop(other, model, gate, report)
    return GateResult(
        bound <= gate.max_drop,
        f"{gate.metric} of {model} lies {drop:+.4f} below {other}, at most {bound:.4f} "
        f"with {gate.confidence:.0%} confidence, the gate allows {gate.max_drop:g}",
    )


def _drop(first: str, second: str, gate: Gate, report: dict[str, Any]) -> tuple[float, float]:
    """How far the second model lies below the first, and the bound of that.

    For a share the bound is Tango's. For another figure it is a percentile of the paired bootstrap, which
    the report holds for some levels of confidence: the next one above the gate's is taken.
    """
    _metric(first, gate.metric, report)
    forth, back = report["pairs"].get(f"{first}|{second}"), report["pairs"].get(f"{second}|{first}")
    found = (forth or back or {"metrics": {}})["metrics"].get(gate.metric)
    if found is None:
        raise UsageError(
            f"a max_drop gate cannot compare {gate.metric} of {second} against {first}",
            hint="they have no rows in common, or one of them has no such figure",
        )
    # a pair's difference is its second model's figure less its first's; less is better for an error
    sign = (-1 if forth else 1) * (-1 if gate.metric in report["lower_is_better"] else 1)
    if found["test"] == "mcnemar":
        lost, won = (found["only_first"], found["only_second"])[:: 1 if forth else -1]
        return sign * found["difference"] + 0.0, drop_bound(lost, won, (forth or back)["n"], gate.confidence)
    levels = {float(level): value for level, value in found["quantiles"].items()}
    known = [level for level in levels if level >= gate.confidence - 1e-9]
    if not known:
        raise UsageError(
            f"a max_drop gate on {gate.metric} has confidence {gate.confidence:g}",
            hint=f"the report's bootstrap goes up to {max(levels):g}",
        )
    level = min(known)
    return sign * found["difference"], sign * (levels[level] if sign > 0 else levels[_mirror(level, levels)])


def _mirror(level: float, levels: dict[float, float]) -> float:
    return min(levels, key=lambda one: abs(one - (1 - level)))


def _named(model: str, report: dict[str, Any]) -> str:
    """`chosen` stands for the file that evaluate.choose picked."""
    if model != "chosen":
        return model
    choice = report.get("choice")
    if choice is None:
        raise UsageError("a gate names the model 'chosen'", hint="evaluate.choose: {smallest_within: 0.01} picks one")
    if choice["model"] is None:
        raise GateError("no GGUF file meets evaluate.choose", hint="allow a larger loss, or add a larger type")
    return str(choice["model"])


def _known(report: dict[str, Any]) -> dict[str, Any]:
    """Models and baselines: a gate may ask for a gain over a baseline, too."""
    return {**report["models"], **report["baselines"]}


def _metric(model: str, metric: str, report: dict[str, Any]) -> float:
    known = _known(report)
    if model not in known:
        raise UsageError(f"a gate names the model '{model}'", hint=f"measured: {', '.join(known)}")
    metrics = known[model]["metrics"]
    if metric not in metrics:
        raise UsageError(f"a gate names the metric '{metric}'", hint=f"measured: {', '.join(metrics)}")
    return float(metrics[metric])
