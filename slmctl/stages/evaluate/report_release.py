"""A report -> its section on the release that gates compare with: on all rows, on its old ones, and on new ones."""

from __future__ import annotations

from slmctl.console import percent
from slmctl.reports.evaluation_report import MetricDifference, ReleaseEntry
from slmctl.reports.html_page import Block, Cell, Notice, PageSection, Table, count
from slmctl.stages.evaluate.report_data import ReportView, points, tone


def section(view: ReportView) -> PageSection:
    """The model to release beside the release; empty where the report has none."""
    release = view.report.get("release")
    if release is None:
        return PageSection("Against the release", [])
    name, focus = release["name"], view.focus
    rows: list[list[str | Cell]] = []
    pair = view.pair(name, focus)
    if pair is not None and view.metric in pair["metrics"]:
        scores = view.score(focus), view.score(name)
        rows.append(_line("all", pair["n"], scores, pair["metrics"][view.metric]))
    for title, part in release["rows"].items():
        if focus in part["differences"]:
            scores = part["values"][focus][view.metric], part["values"][name][view.metric]
            rows.append(_line(title, part["n"], scores, part["differences"][focus][view.metric]))
    head = ["rows", "n", focus, name, "points", "interval", "p"]
    note = "Old rows were in the data set of the release, new ones were not."
    blocks: list[Block] = [Table(f"{focus} less {name}", head, rows, 1, note=note)]
    return PageSection(f"Against {name}", [*_told(release), *blocks], f"{name} is the release {release['title']}.")


def _told(release: ReleaseEntry) -> list[Block]:
    """The limits of the comparison, which stand before the figures."""
    if not release["rows"]:
        return [Notice("Its data set is not below runs/, so its old rows are not told from new ones.", "warn")]
    if release["trained_on"]:
        return [Notice(f"It was trained on {count(release['trained_on'], 'row')} of these, which favours it.", "warn")]
    return []


def _line(title: str, n: int, scores: tuple[float, float], difference: MetricDifference) -> list[str | Cell]:
    low, high = difference["interval"]
    gap = Cell(points(difference["difference"]), tone(difference["difference"], real=low > 0 or high < 0))
    p = f"{difference['p']:.2g}" if "p" in difference else ""
    return [title, f"{n:,}", *map(percent, scores), gap, f"{points(low)} to {points(high)}", p]
