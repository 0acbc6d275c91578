"""A report -> `report.html`: its figures and charts for the template `evaluate.html`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from slmctl import console
from slmctl.metrics.answer_metrics import SHARES
from slmctl.reports import html_page
from slmctl.reports.evaluation_report import EvaluationReport, RowEntry
from slmctl.reports.scoreboard import figure
from slmctl.stages.evaluate import report_charts, report_data, report_row_changes, report_sentences
from slmctl.stages.evaluate.report_data import ReportView
from slmctl.stages.evaluate.report_opening import Opening, PolicyShares
from slmctl.task.draft_checks import in_words

REQUESTS = 100  # a day, of the example


def write(
    path: Path,
    report: EvaluationReport,
    rows: Iterable[RowEntry] = (),
    *,
    labels: Sequence[str] = (),
    opening: Opening | None = None,
    policy: PolicyShares | None = None,
) -> None:
    """Write the page of a report to a file.

    Args:
        rows: The lines of `rows.jsonl` after the first; `labels` holds the label of each index in
            them.
        opening: The project around the report; None for the page inside an artifact, which knows
            none.
        policy: What the policy of a release keeps; by default that of `opening`.
    """
    view, rows = ReportView(report), list(rows)
    trained = [name for name in view.competing if not view.kind(name).untuned]
    names = trained if len(trained) > 1 else view.competing
    training = opening.training if opening is not None else None
    if opening is not None:
        policy = opening.policy
    html_page.write(
        path,
        "evaluate.html",
        view=view,
        report=report,
        opening=opening,
        policy=policy,
        training=training,
        headline=report_sentences.headline(view),
        lead=report_sentences.lead(view),
        day=_day(view, policy),
        changes=report_row_changes.collect(rows, report["participants"], names, labels),
        faults=_faults(view, rows),
        confusion=report_charts.confusion(view),
        matmul_dtypes=_matmul_dtypes(view),
        charts=report_charts,
        figure_text=figure,
        tone_of=report_data.tone,
        p_text=report_data.p_text,
    )


def _faults(view: ReportView, rows: Sequence[RowEntry]) -> list[tuple[str, str]]:
    """The drafts of the focus with a fault: row, and faults in words."""
    place = view.report["participants"].index(view.focus)
    marked = ((row, row["faults"][place]) for row in rows if "faults" in row)
    return [(console.place(*row["source"]), in_words(faults)) for row, faults in marked if faults]


def _day(view: ReportView, policy: PolicyShares | None) -> tuple[int, int, int] | None:
    """Returns (right, wrong, escalated) of 100 requests a day; None if the
    metric is not a share of right answers.
    """
    if view.metric not in SHARES:
        return None
    if policy is None:
        right = round(REQUESTS * view.score(view.focus))
        return right, REQUESTS - right, 0
    wrong, escalated = (
        round(REQUESTS * policy.kept * policy.error),
        round(REQUESTS * (1 - policy.kept)),
    )
    return REQUESTS - wrong - escalated, wrong, escalated


def _matmul_dtypes(view: ReportView) -> dict[str, list[str]]:
    """{type of matrix products: models}, for models whose name does not state it."""
    models: dict[str, list[str]] = {}
    for name in view.models:
        if dtype := view.entries[name].get("matmul_dtype"):
            models.setdefault(dtype, []).append(name)
    return models
