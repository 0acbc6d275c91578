"""What a model costs to run, for the page of a report: time, size, and from how many rows a machine pays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from slmctl import console
from slmctl.reports import svg_chart
from slmctl.reports.html_page import Block, Chart, Notice, PageSection, Table, percent
from slmctl.reports.svg_chart import Bar, LineSeries, Point
from slmctl.stages.evaluate.report_data import Measured


def section(seen: Measured) -> PageSection:
    """Latency, size, and the break-even where prices were given."""
    return PageSection("Speed, size and cost", [*_measured(seen), *_break_even(seen)])


def _measured(seen: Measured) -> Iterator[Block]:
    entries = {name: seen.entries[name] for name in seen.models}
    bars = [
        Bar(name, one["latency_ms"]["median"], f"{one['latency_ms']['median']:,.0f} ms", _colour(seen, name))
        for name, one in entries.items()
        if one.get("latency_ms")
    ]
    if bars:
        yield Chart(
            "Latency, one row at a time",
            svg_chart.bars(bars, title="Median latency"),
            "The median of some rows, on the machine that measured.",
        )
    bars = [
        Bar(name, one["size"], console.size(one["size"]), _colour(seen, name))
        for name, one in entries.items()
        if one.get("size")
    ]
    if bars:
        yield Chart("Size", svg_chart.bars(bars, title="Size of the files"))


def _break_even(seen: Measured) -> Iterator[Block]:
    prices = seen.report.get("break_even")
    if not prices:
        return
    currency, models = prices["currency"], prices["models"]
    entry = models.get(seen.focus, {})
    even = entry.get("break_even_rows_per_hour")
    if even:
        yield from _crossing(seen, prices, entry, even)
    rows = [
        [
            name,
            *(_money(models[name].get(key)) for key in ("machine_per_1000_rows", "api_per_1000_rows")),
            *(_whole(models[name].get(key)) for key in ("rows_per_hour", "break_even_rows_per_hour")),
            percent(models[name]["share_of_capacity"]) if "share_of_capacity" in models[name] else "",
        ]
        for name in seen.models
        if name in models
    ]
    head = ["model", "own machine, busy", "API", "rows/h it can do", "break-even, rows/h", "of what it can do"]
    note = (
        f"{prices['machine_per_hour']:g} {currency} an hour for the machine that measured; an API at "
        f"{prices['api_per_million_input_tokens']:g} and {prices['api_per_million_output_tokens']:g} {currency} per "
        "million input and output tokens, for the same tokens."
    )
    yield Table(f"What 1,000 rows cost, in {currency}", head, rows, note=note)


def _crossing(seen: Measured, prices: dict[str, Any], entry: dict[str, Any], even: float) -> Iterator[Block]:
    """Cost an hour over rows an hour: a machine costs the same whether it works or not, an API by the row."""
    currency, hourly = prices["currency"], prices["machine_per_hour"]
    capacity = entry.get("rows_per_hour", 2 * even)
    if even > capacity:
        told = (
            f"One machine does {_whole(capacity)} rows an hour with {seen.focus}, fewer than the {_whole(even)} from "
            "which it would be the cheaper one: at these prices the API is."
        )
        yield Notice(told, "warn")
        return
    end = min(2.5 * even, capacity)
    machine = LineSeries("own machine", [Point(0, hourly), Point(end, hourly)], "c1")
    told = f"{_whole(even)} rows an hour: {hourly:g} {currency} either way"
    mark = Point(even, hourly, told, f"{_whole(even)} rows/h", anchor="end")
    api = LineSeries("API", [Point(0, 0), mark, Point(end, hourly * end / even)], "c2")
    drawn = svg_chart.lines([machine, api], title="Cost an hour", x_label="rows an hour", y_label=f"{currency} an hour",
                        x_range=(0, end), y_range=(0, 1.1 * max(hourly, hourly * end / even)))  # fmt: skip
    share = f", {percent(entry['share_of_capacity'])} of what it can do" if "share_of_capacity" in entry else ""
    told = f"With {seen.focus}, from {_whole(even)} rows an hour{share}."
    yield Chart("From where a machine of one's own is cheaper", drawn, told)


def _colour(seen: Measured, name: str) -> str:
    return "c1" if name == seen.focus else "c5"


def _money(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"
