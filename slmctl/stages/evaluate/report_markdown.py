"""A report -> `report.md`: its tables, for a pull request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from slmctl import console
from slmctl.console import percent
from slmctl.reports import html_page, scoreboard
from slmctl.reports.evaluation_report import EvaluationReport
from slmctl.reports.html_page import points
from slmctl.stages.evaluate.report_data import Difference, ReportView

WORST = 5  # slices that are listed
TESTS = {
    "mcnemar": "exact McNemar test and Tango's interval",
    "bootstrap": "paired percentile bootstrap",
}


def markdown(report: EvaluationReport) -> str:
    view = ReportView(report)
    differences = {
        name: gap
        for name in view.entries
        if name != view.focus and (gap := view.difference(name, view.focus))
    }
    pairs = (view.pair(name, view.focus) for name in differences)
    return html_page.markdown(
        "report.md",
        report=report,
        focus=view.focus,
        metric=view.metric,
        interval=percent(view.confidence, 0),
        scoreboard=scoreboard.table(report),
        table=_table,
        differences=[[name, *_difference(gap)] for name, gap in differences.items()],
        tests=[
            TESTS[test]
            for test in sorted({pair["metrics"][view.metric]["test"] for pair in pairs if pair})
        ],
        weakest=list(_weakest(view)),
        release=list(_release(view)),
        checks=list(_checks(view)),
        judged=list(_judged(report)),
        candidates=list(_candidates(report)),
        costs=list(_costs(report)),
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [
        [str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, *rows)
    ]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|---" + "|---:" * (len(head) - 1) + "|", *lines[1:]])


def _difference(gap: Difference) -> list[str]:
    detectable = "-" if gap.detectable is None else f"{100 * gap.detectable:.1f}"
    return [gap.text, gap.span, gap.p_text or "-", detectable]


def _weakest(view: ReportView) -> Iterator[list[str]]:
    focus = view.focus
    slices = [entry for entry in view.report["slices"] if focus in entry["values"]]
    for entry in sorted(slices, key=lambda entry: (entry["values"][focus], -entry["n"]))[:WORST]:
        names = (html_page.inert(entry["name"]), html_page.inert(entry["by"]))
        yield [*names, str(entry["n"]), percent(entry["values"][focus])]


def _release(view: ReportView) -> Iterator[list[str]]:
    for title, n, own, theirs, gap in view.beside_release if "release" in view.report else ():
        if title != "all":
            yield [title, str(n), percent(own), percent(theirs), gap.text, gap.span]


def _checks(view: ReportView) -> Iterator[list[str]]:
    entry = view.entries[view.focus]
    for check in (*view.checks, *(["length_ratio"] if view.checks else [])):
        low, high = (scoreboard.figure(check, bound) for bound in entry["intervals"][check])
        yield [check, scoreboard.figure(check, entry["metrics"][check]), f"{low} to {high}"]


def _judged(report: EvaluationReport) -> Iterator[list[str]]:
    for entry in report["judged"]["entries"] if "judged" in report else ():
        low, high = entry["interval"]
        counts = [
            str(number) for number in (entry["won"], entry["lost"], entry["same"], entry["neither"])
        ]
        rate = [percent(entry["win_rate"]), f"{percent(low)} to {percent(high)}"]
        yield [entry["model"], entry["against"], *rate, *counts, f"{entry['p']:.2g}"]


def _candidates(report: EvaluationReport) -> Iterator[list[str]]:
    choice = report["choice"]
    for file in choice["candidates"] if choice else ():
        yield [
            file["model"] + (" (chosen)" if choice and file["model"] == choice["model"] else ""),
            console.size(file["size"]),
            percent(file["value"]),
            points(file["loss"]),
            f"{100 * file['loss_at_most']:.1f}",
            "-" if file["tokens_per_s"] is None else f"{file['tokens_per_s']:.0f}",
        ]


def _costs(report: EvaluationReport) -> Iterator[list[str]]:
    models = report["break_even"]["models"] if report["break_even"] else {}
    for name in (name for name in report["participants"] if name in models):
        entry = models[name]
        yield [
            name,
            f"{entry['machine_per_1000_rows']:.4f}" if "machine_per_1000_rows" in entry else "-",
            f"{entry['api_per_1000_rows']:.4f}",
            f"{entry['break_even_rows_per_hour']:.0f}"
            if "break_even_rows_per_hour" in entry
            else "-",
            percent(entry["share_of_capacity"]) if "share_of_capacity" in entry else "-",
        ]
