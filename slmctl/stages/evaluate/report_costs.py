"""A report -> the section of its page on speed, size and cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from slmctl import console
from slmctl.console import percent
from slmctl.reports import svg_chart
from slmctl.reports.evaluation_report import BreakEven, CostEntry, ParticipantEntry
from slmctl.reports.html_page import Block, Chart, Notice, PageSection, Table
from slmctl.reports.svg_chart import Bar, LineSeries, Point
from slmctl.stages.evaluate.report_data import ReportView


def section(view: ReportView) -> PageSection:
    """Latency, size, and the break-even where the config holds prices."""
    return PageSection("Speed, size and cost", [*_measured(view), *_break_even(view)])


def _measured(view: ReportView) -> Iterator[Block]:
    entries = {name: view.entries[name] for name in view.models}
    bars = [
        Bar(name, latency["median"], f"{latency['median']:,.0f} ms", _colour(view, name))
        for name, entry in entries.items()
        if (latency := entry.get("latency_ms"))
    ]
    if bars:
        yield Chart(
            "Latency, one row at a time",
            svg_chart.bars(bars, title="Median latency"),
            f"Median over rows sent one at a time, on the machine that measured.{_products(entries)}",
        )
    bars = [
        Bar(name, size, console.size(size), _colour(view, name))
        for name, entry in entries.items()
        if (size := entry.get("size"))
    ]
    if bars:
        yield Chart("Size", svg_chart.bars(bars, title="Size of the files"))


def _products(entries: Mapping[str, ParticipantEntry]) -> str:
    """The sentence on the types of the matrix products, where a file's name does not say it."""
    models: dict[str, list[str]] = {}
    for name, entry in entries.items():
        if dtype := entry.get("matmul_dtype"):
            models.setdefault(dtype, []).append(name)
    return "".join(f" Multiplied in {dtype}: {', '.join(names)}." for dtype, names in models.items())


def _break_even(view: ReportView) -> Iterator[Block]:
    prices = view.report["break_even"]
    if not prices:
        return
    currency, models = prices["currency"], prices["models"]
    if view.focus in models and (even := models[view.focus].get("break_even_rows_per_hour")):
        yield from _crossing(view, prices, models[view.focus], even)
    rows = [
        [
            name,
            _money(entry.get("machine_per_1000_rows")),
            _money(entry["api_per_1000_rows"]),
            _whole(entry.get("rows_per_hour")),
            _whole(entry.get("break_even_rows_per_hour")),
            percent(entry["share_of_capacity"]) if "share_of_capacity" in entry else "",
        ]
        for name in view.models
        if (entry := models.get(name))
    ]
    head = ["model", "own machine, full load", "API", "capacity, rows/h", "break-even, rows/h", "of capacity"]
    note = (
        f"{prices['machine_per_hour']:g} {currency} an hour for the machine that measured; an API at "
        f"{prices['api_per_million_input_tokens']:g} and {prices['api_per_million_output_tokens']:g} {currency} per "
        "million input and output tokens, for the same tokens."
    )
    yield Table(f"Cost of 1,000 rows, in {currency}", head, rows, note=note)


def _crossing(view: ReportView, prices: BreakEven, entry: CostEntry, even: float) -> Iterator[Block]:
    """Cost an hour over rows an hour: constant for a machine, proportional for an API."""
    currency, hourly = prices["currency"], prices["machine_per_hour"]
    capacity = entry.get("rows_per_hour", 2 * even)
    if even > capacity:
        yield Notice(
            f"One machine answers at most {_whole(capacity)} rows an hour with {view.focus}, below the break-even of "
            f"{_whole(even)} rows an hour: at these prices the API is cheaper.",
            "warn",
        )
        return
    end = min(2.5 * even, capacity)
    machine = LineSeries("own machine", [Point(0, hourly), Point(end, hourly)], "c1")
    note = f"{_whole(even)} rows an hour: {hourly:g} {currency} either way"
    mark = Point(even, hourly, note, f"{_whole(even)} rows/h", anchor="end")
    api = LineSeries("API", [Point(0, 0), mark, Point(end, hourly * end / even)], "c2")
    svg = svg_chart.lines([machine, api], title="Cost an hour", x_label="rows an hour", y_label=f"{currency} an hour",
                          x_range=(0, end), y_range=(0, 1.1 * max(hourly, hourly * end / even)))  # fmt: skip
    share = f", {percent(entry['share_of_capacity'])} of its capacity" if "share_of_capacity" in entry else ""
    note = f"With {view.focus}, a machine of one's own is cheaper from {_whole(even)} rows an hour on{share}."
    yield Chart("Break-even", svg, note)


def _colour(view: ReportView, name: str) -> str:
    return "c1" if name == view.focus else "c5"


def _money(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"
