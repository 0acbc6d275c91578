"""A report -> the charts of its page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from slmctl import console
from slmctl.console import percent
from slmctl.metrics.statistics import wilson
from slmctl.reports import IN_SUM, svg_chart
from slmctl.reports.evaluation_report import ClassFigures
from slmctl.reports.html_page import count
from slmctl.reports.svg_chart import Bar, Dot, LineSeries, Point
from slmctl.stages.evaluate.report_data import ReportView
from slmctl.stages.evaluate.report_opening import RowsCurve, Training

GRID = 14  # labels of a confusion matrix: more cannot be read
WORST = 12  # slices of a chart
POINTS = 400  # of the curve of the training loss
# by kind; the models of this pipeline have c1 and c3
COLOURS = {"baseline": "c5", "encoder": "c5", "base": "c5", "endpoint": "c4", "release": "c2"}

TwoWidths = tuple[Markup, Markup] | None  # for the whole width of a page, and for a small screen


def scores(view: ReportView) -> TwoWidths:
    """The primary metric of every competing participant, with the best baseline as a line."""
    baseline, dots = view.baseline, []
    reference = (
        (view.score(baseline), f"{baseline} {percent(view.score(baseline))}") if baseline else None
    )
    for name in view.competing:
        value = view.score(name)
        (low, high) = view.interval(name)
        kind = view.entries[name]["kind"]
        colour = "c1" if name == view.focus else COLOURS.get(kind, "c3")
        text = f"{percent(value)} ({view.span(name)})"
        dots.append(Dot(name, value, low, high, text, colour, aside=view.kind(name).untuned))
    return svg_chart.dots(dots, title=f"{view.metric} with intervals", reference=reference)


def differences(view: ReportView) -> TwoWidths:
    dots = []
    for name in view.competing:
        if name != view.focus and (gap := view.difference(name, view.focus)):
            text = f"{gap.text} ({gap.span})" + (f", {gap.chance}" if gap.chance else "")
            aside = view.kind(name).untuned
            dots.append(
                Dot(f"over {name}", gap.value, gap.low, gap.high, text, gap.tone or "c5", aside)
            )
    if not dots:
        return None
    title = f"{view.focus} less each other model"
    return svg_chart.dots(dots, title=title, points=True, reference=(0.0, "no difference"))


def slices(view: ReportView) -> TwoWidths:
    """The weakest slices of the focus, with its score on all rows as a line."""
    dots = []
    for entry in view.slices[:WORST]:
        if interval := entry.get("intervals", {}).get(view.focus):
            value = entry["values"][view.focus]
            text = f"{percent(value)} of {entry['n']:,} ({entry['by']})"
            dots.append(Dot(entry["name"], value, interval[0], interval[1], text))
    if not dots:
        return None
    reference = (view.score(view.focus), f"all rows {percent(view.score(view.focus))}")
    return svg_chart.dots(dots, title=f"Weakest slices of {view.focus}", reference=reference)


def by_rows(curve: RowsCurve, focus: str) -> Markup:
    """Accuracy of cheap models over the rows that they learned, with 95
    % intervals, and of the tuned model.
    """
    train = curve.points[-1][0]
    lines = list[LineSeries]()
    alone = focus.removesuffix(IN_SUM)
    tuned = curve.encoder is not None
    cheap = (
        ("frozen encoder" if tuned else "encoder and words", "c3", 1),
        ("words" if tuned else "words alone", "c5", 2),
    )
    # without an encoder one
    for name, colour, k in cheap[all(both == words for _, both, words in curve.points) :]:
        points, bounds = list[Point](), (list[Point](), list[Point]())
        for point in curve.points:
            x = point[0] / train
            share = point[k] / curve.rows
            interval = wilson(point[k], curve.rows)
            low, high = map(percent, interval)
            points.append(
                Point(x, share, f"{count(point[0], 'row')}: {percent(share)} ({low} to {high})")
            )
            for side, bound in zip(bounds, interval, strict=True):
                side.append(Point(x, bound))
        lines += [
            LineSeries(name, points, colour),
            *(LineSeries("", side, colour, dashed=True) for side in bounds),
        ]
    near = curve.encoder is not None and abs(curve.encoder - (curve.tuned or 0)) < curve.rows / 20
    for name, colour, right in (("tuned encoder", "c3", curve.encoder), (alone, "c1", curve.tuned)):
        if right is not None:
            reached = percent(right / curve.rows)
            shown = reached if name == alone or not near else ""  # texts would overlap
            lines.append(
                LineSeries(
                    name,
                    [Point(1.0, right / curve.rows, f"{name}: {reached}", shown, "end")],
                    colour,
                )
            )
    label = f"share of the {count(train, 'row')} that the cheap models learned"
    return svg_chart.lines(lines, title="Accuracy by training rows", x_label=label, percent=True)


def losses(training: Training | None) -> Markup | None:
    if training is None or len(training.train_losses) + len(training.validation_losses) < 2:
        return None
    every = max(1, len(training.train_losses) // POINTS)
    train = [Point(step, loss) for step, loss in training.train_losses[::every]]
    validation = [
        Point(
            step,
            loss,
            f"step {step}: {loss:.4f}",
            f"kept: {loss:.3f}" if step == training.best_step else "",
        )
        for step, loss in training.validation_losses
    ]
    series = (
        LineSeries("training loss", train, "c5"),
        LineSeries("validation loss", validation, "c1"),
    )
    visible = [each for each in series if each.points]
    return svg_chart.lines(
        visible, title="Loss of training and validation", x_label="step", log=True
    )


def reliability(view: ReportView) -> Markup | None:
    calibration = view.entries[view.focus].get("calibration")
    if not calibration:
        return None
    points = [
        Point(
            bin["confidence"],
            bin["accuracy"],
            f"{count(bin['n'], 'row')}: {percent(bin['confidence'])} confident, "
            f"{percent(bin['accuracy'])} right",
        )
        for bin in calibration["bins"]
    ]
    ideal = LineSeries("perfect calibration", [Point(0, 0), Point(1, 1)], "c5", dashed=True)
    return svg_chart.lines(
        [LineSeries(view.focus, points), ideal],
        title="Reliability diagram",
        x_label="confidence",
        y_label="accuracy",
        x_range=(0, 1),
        y_range=(0, 1),
        percent=True,
    )


def confidences(view: ReportView) -> list[Bar]:
    calibration = view.entries[view.focus].get("calibration")
    bins = reversed(calibration["bins"] if calibration else [])
    return [
        Bar(f"{percent(bin['low'], 0)} to {percent(bin['high'], 0)}", bin["n"], f"{bin['n']:,}")
        for bin in bins
    ]


def f1_bars(parts: Sequence[tuple[str, ClassFigures]]) -> list[Bar]:
    return [
        Bar(name, each["f1"], f"{each['f1']:.2f}, {count(each['support'], 'row')}")
        for name, each in parts
    ]


def latencies(view: ReportView) -> list[Bar]:
    timed = [(name, view.entries[name].get("latency_ms")) for name in view.models]
    return [
        Bar(name, ms["median"], f"{ms['median']:,.0f} ms", _own(view, name))
        for name, ms in timed
        if ms
    ]


def sizes(view: ReportView) -> list[Bar]:
    sized = [(name, view.entries[name].get("size")) for name in view.models]
    return [Bar(name, size, console.size(size), _own(view, name)) for name, size in sized if size]


def _own(view: ReportView, name: str) -> str:
    return "c1" if name == view.focus else "c5"


def break_even(view: ReportView) -> Markup | None:
    """Cost an hour over rows an hour: constant for a machine, proportional for an API."""
    prices = view.report["break_even"]
    entry = prices["models"].get(view.focus) if prices else None
    even = entry.get("break_even_rows_per_hour") if entry else None
    if prices is None or entry is None or not even:
        return None
    currency, hourly = prices["currency"], prices["machine_per_hour"]
    end = min(2.5 * even, entry.get("rows_per_hour", 2 * even))
    machine = LineSeries("own machine", [Point(0, hourly), Point(end, hourly)], "c1")
    note = f"{even:,.0f} rows an hour: {hourly:g} {currency} either way"
    mark = Point(even, hourly, note, f"{even:,.0f} rows/h", anchor="end")
    api = LineSeries("API", [Point(0, 0), mark, Point(end, hourly * end / even)], "c2")
    return svg_chart.lines(
        [machine, api],
        title="Cost an hour",
        x_label="rows an hour",
        y_label=f"{currency} an hour",
        x_range=(0, end),
        y_range=(0, 1.1 * max(hourly, hourly * end / even)),
    )


@dataclass(frozen=True)
class Confusion:
    """The confusion matrix of the focus.

    Attributes:
        drawn: Labels of the matrix, those with the most errors, of `labels`.
        errors: (reference, predicted, rows), the most frequent first; "" for an answer that is not
            a label.
        wrong: Rows of all errors.
    """

    svg: Markup
    drawn: int
    labels: int
    errors: list[tuple[str, str, int]]
    wrong: int


def confusion(view: ReportView) -> Confusion | None:
    """The confusion matrix of the labels with the most errors; None without errors."""
    cells = {
        (expected, predicted): n
        for expected, predicted, n in view.entries[view.focus].get("confusion") or []
    }
    errors = [
        (expected, predicted, n)
        for (expected, predicted), n in cells.items()
        if expected != predicted
    ]
    if not errors:
        return None
    errors.sort(key=lambda error: (-error[2], error[0], error[1]))
    involved: Counter[str] = Counter()
    for expected, predicted, n in errors:
        involved.update({expected: n, predicted: n})
    most = sorted(involved, key=lambda name: (-involved[name], name))[:GRID]
    rows, columns = sorted(filter(None, most)), sorted(most, key=lambda name: (not name, name))
    grid = [[cells.get((expected, predicted), 0) for predicted in columns] for expected in rows]
    names = [name or "(no label)" for name in columns]
    svg = svg_chart.heat(rows, names, grid, title=f"Confusion matrix of {view.focus}")
    labels = {name for pair in cells for name in pair}
    return Confusion(svg, len(most), len(labels), errors, sum(n for *_, n in errors))
