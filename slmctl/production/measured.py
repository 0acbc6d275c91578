"""The figures of a served model from its policy and from the latest report on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from slmctl.artifacts import lineage
from slmctl.artifacts.artifact import Artifact
from slmctl.inference.escalation_policy import AnswerCosts, Policy
from slmctl.metrics.baseline import BASELINES
from slmctl.reports.evaluation_report import CHECKS, released, report_of


@dataclass(frozen=True)
class MeasuredFigures:
    """Figures that were measured before a model was served; None for a figure that was not.

    Attributes:
        policy: Path of the policy; '' without one.
        p_correct: Mean P(correct) of the rows that tested the policy.
        right: Share of these rows with a local answer that is right to keep.
        kept: Share of these rows that the policy keeps.
        rows: Number of rows that tested the policy.
        max_error: Largest share of wrong answers among kept ones that the policy was fitted for.
        out_of_scope: The out-of-scope label; '' for none.
        min_token_f1: Least token F1 of a text that counts as right; None if the words must be
            equal.
        costs: AnswerCosts that the policy was fitted for; None for none.
        cost: Of a thousand of these rows, with its interval.
        report: Value of the primary metric in the latest report.
        report_metric: Name of the primary metric.
        report_rows: Number of measured rows.
        faults: Share of the measured drafts that fail a check, by check.
    """

    policy: str = ""
    p_correct: float | None = None
    right: float | None = None
    kept: float | None = None
    rows: int = 0
    max_error: float | None = None
    out_of_scope: str = ""
    min_token_f1: float | None = None
    costs: AnswerCosts | None = None
    cost: tuple[float, float, float] | None = None
    report: float | None = None
    report_metric: str = ""
    report_rows: int = 0
    faults: Mapping[str, float] = field(default_factory=dict)


def measured(root: Path, policy: Path | None = None) -> MeasuredFigures:
    """The figures of a policy, by default the newest below `runs/`, and of the latest report on its
    file.

    Raises:
        IntegrityError: There is no valid policy at the path.
    """
    made = sorted(lineage.readable_artifacts(root), key=lambda entry: entry.manifest.started)
    policies = [
        entry.path for entry in made if entry.kind == "policy" and _may_be_served(entry.metrics)
    ]
    path = root / policy if policy is not None else policies[-1] if policies else None
    fitted = Policy.read(path) if path is not None else None
    reported = _reported(made, fitted.gguf if fitted is not None else "")
    if fitted is None:
        return reported
    figures = fitted.figures
    return replace(
        reported,
        policy=str(path),
        p_correct=figures.get("p_correct"),
        right=figures.get("right"),
        kept=figures.get("kept"),
        rows=figures.get("tested_on", 0),
        max_error=figures.get("max_error"),
        out_of_scope=fitted.out_of_scope,
        min_token_f1=figures.get("min_token_f1"),
        costs=fitted.costs,
        cost=figures.get("cost"),
    )


def _may_be_served(metrics: Mapping[str, object]) -> bool:
    """False for the figures of a policy of the encoder alone or of an
    endpoint; older ones lack `remote`.
    """
    elsewhere = metrics.keys() & {"remote", "least_confidence"}
    return metrics.get("model") not in BASELINES and not elsewhere


def _reported(made: Sequence[Artifact], gguf: str) -> MeasuredFigures:
    """The figures of a file in the latest report; without a file, of the report's focus."""
    for entry in reversed(made):
        if entry.kind == "report":
            report = report_of(entry)
            models = report["models"]
            name = released(report, gguf)
            if name in models:
                metric = report["primary_metric"]
                values = models[name]["metrics"]
                faults = {check: values[check] for check in CHECKS if check in values}
                return MeasuredFigures(
                    report=values[metric],
                    report_metric=metric,
                    report_rows=models[name]["n"],
                    faults=faults,
                )
    return MeasuredFigures()
