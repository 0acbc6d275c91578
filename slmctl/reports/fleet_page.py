"""`runs/fleet.html`: the answer of `slmctl measure` as a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from slmctl.console import percent
from slmctl.reports import svg_chart
from slmctl.reports.html_page import Chart, Figure, Notice, Page, PageSection, Table, count


@dataclass(frozen=True)
class KeptLine:
    """One line of what is kept: of all rows, or of one task.

    Attributes:
        title: A task, or which thresholds.
        accuracy, interval, error_bound: Of kept answers; shares.
    """

    title: str
    rows: int
    kept: float
    kept_rows: int
    wrong: int
    accuracy: float | None
    interval: tuple[float, float]
    error_bound: float
    none_rows: int = 0
    none_kept: float = 0.0


@dataclass(frozen=True)
class FleetCost:
    """A thousand requests through the fleet, with what it does not keep at the general model, beside all of them there.

    Attributes:
        here, there: In `currency`.
    """

    currency: str
    here: float
    there: float


@dataclass(frozen=True)
class FleetReport:
    """Everything that the page shows.

    Attributes:
        own: With the policies' own thresholds.
        shared: With the one threshold of all; None where none was set.
        fault: Why none was set.
        tasks: By task, with the thresholds that are in use.
        models: (model, rows that it is asked, kept answers of it, wrong ones of these), with these thresholds.
        larger: The larger model of each that has one, by name.
        confusion: (task, named, rows).
        latency_ms: Median of one answer of each model, one caller at a time.
    """

    project: str
    confidence: float
    own: KeptLine
    shared: KeptLine | None
    fault: str
    tasks: list[KeptLine]
    models: list[tuple[str, int, int, int]]
    larger: Mapping[str, str]
    confusion: list[tuple[str, str, int]]
    latency_ms: Mapping[str, float]
    router: str
    cost: FleetCost | None = None
    notes: list[str] = field(default_factory=list)


def page(report: FleetReport) -> Page:
    """The page: what is kept and how right it is, by task, the router's confusion, time and cost."""
    own = report.own
    return Page(
        kicker=f"Fleet · {report.project}",
        headline=f"{percent(own.kept)} of the questions are kept here, {_right(own)} of the answers right",
        lead=f"{count(own.rows + own.none_rows, 'test row')} asked of {report.router} and of the model that it names"
        + (", then of a larger one." if report.larger else "."),
        figures=list(_figures(report)),
        notices=[Notice(note, "warn") for note in report.notes],
        sections=[_kept(report), _router(report), _time(report)],
        foot="Made by slmctl measure. It holds no text of a row.",
    )


def _figures(report: FleetReport) -> Iterator[Figure]:
    own = report.own
    low, high = own.interval
    yield Figure("Accuracy of kept answers", _right(own), f"{percent(low)} to {percent(high)}")
    yield Figure(
        "Error among kept answers, at most", percent(own.error_bound),
        f"exact, {percent(report.confidence, 0)} confidence: {own.wrong:,} of {own.kept_rows:,} are wrong",
    )  # fmt: skip
    yield Figure("Kept", percent(own.kept), f"of {own.rows:,} rows that are for a model")
    if own.none_rows:
        yield Figure("For no model, sent away", percent(1 - own.none_kept), f"of {own.none_rows:,} rows")
    if report.cost is not None:
        cost = report.cost
        yield Figure(
            "1,000 questions", f"{cost.here:,.3f} {cost.currency}",
            f"{cost.there:,.3f} {cost.currency} if all went to the general model",
        )  # fmt: skip


def _kept(report: FleetReport) -> PageSection:
    head = ("", "rows", "kept", "kept answers", "wrong", "accuracy", "interval", "error at most")
    lines = [report.own, *([report.shared] if report.shared is not None else [])]
    whole = Table("Thresholds", head, [_row(line) for line in lines], note=(
        "The shared threshold is one score for the router and every model, the loosest that passed one fixed sequence "
        "of exact tests on the calibration rows. " + report.fault
    ))  # fmt: skip
    tasks = Table("By task", head, [_row(line) for line in report.tasks], note="With the policies' own thresholds.")
    models = Table(
        "By model", ("", "rows asked", "kept answers", "wrong"),
        [[name, *(f"{number:,}" for number in numbers)] for name, *numbers in report.models],
        note="With the policies' own thresholds; a larger model is asked where the one before it is unsure.",
    )  # fmt: skip
    return PageSection("Kept answers", [whole, tasks, models])


def _row(line: KeptLine) -> list[str]:
    low, high = line.interval
    return [
        line.title, f"{line.rows:,}", percent(line.kept), f"{line.kept_rows:,}", f"{line.wrong:,}",
        _right(line), f"{percent(low)} to {percent(high)}",
        percent(line.error_bound),
    ]  # fmt: skip


def _right(line: KeptLine) -> str:
    return "none" if line.accuracy is None else percent(line.accuracy)


def _router(report: FleetReport) -> PageSection:
    names = sorted({task for task, _, _ in report.confusion} | {named for _, named, _ in report.confusion})
    cells = {(task, named): number for task, named, number in report.confusion}
    grid = [[cells.get((task, named), 0) for named in names] for task in names]
    chart = svg_chart.heat(names, names, grid, title="Models that rows are for, and models that were named")
    return PageSection("The router", [Chart("Named for rows of each model", chart, "A line is what the rows are for.")])


def _time(report: FleetReport) -> PageSection:
    ms = report.latency_ms
    before = {name: ms.get(report.router, 0.0) for name in ms if name != report.router}
    for name, larger in report.larger.items():
        if larger in before:
            before[larger] = max(before[larger], before.get(name, 0.0) + ms.get(name, 0.0))
    rows = [[name, f"{own:,.1f}", f"{own + before[name]:,.1f}" if name in before else ""] for name, own in ms.items()]
    table = Table("Latency", ("model", "ms", "with those asked before, ms"), rows, note=(
        "Median of one answer, one caller at a time, on the machine that measured. The router is asked before every "
        "model, and a small model before its larger one."
    ))  # fmt: skip
    return PageSection("Time", [table])
