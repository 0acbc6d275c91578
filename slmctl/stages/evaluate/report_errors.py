"""A report -> the sections of its page on errors: confusion matrix, classes, fields, slices and calibration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Literal

from slmctl.console import percent
from slmctl.reports import svg_chart
from slmctl.reports.html_page import Block, Cell, Chart, PageSection, Table, count
from slmctl.reports.svg_chart import Bar, Dot, LineSeries, Point
from slmctl.stages.evaluate.report_data import TRIVIAL, ReportView

GRID = 14  # labels of a confusion matrix: more cannot be read
WORST = 12  # classes or slices of a chart
NONE = "(no label)"
FEW = 10  # rows of a class below which its figures are unreliable


def sections(view: ReportView) -> list[PageSection]:
    """Confusion matrix, classes or fields, slices and calibration of the focus."""
    return [_confusion(view), _classes(view), _fields(view), _slices(view), _calibration(view)]


def _confusion(view: ReportView) -> PageSection:
    cells = {(expected, predicted): n for expected, predicted, n in view.entries[view.focus].get("confusion") or []}
    errors = sorted((-n, expected, predicted) for (expected, predicted), n in cells.items() if expected != predicted)
    if not errors:
        return PageSection("Confusion matrix", [])
    involved: Counter[str] = Counter()
    for less, expected, predicted in errors:
        involved.update({expected: -less, predicted: -less})
    most = sorted(involved, key=lambda name: (-involved[name], name))[:GRID]
    rows, columns = sorted(filter(None, most)), sorted(most, key=lambda name: (not name, name))  # "": no label
    grid = [[cells.get((expected, predicted), 0) for predicted in columns] for expected in rows]
    svg = svg_chart.heat(rows, [name or NONE for name in columns], grid, title=f"Confusion matrix of {view.focus}")
    labels = len({name for pair in cells for name in pair})
    some = f"The {len(most)} labels with most errors, of {labels}." if len(most) < labels else ""
    note = f"Rows: reference label. Columns: predicted. {some}".strip()
    matrix = Chart(f"Confusion matrix of {view.focus}", svg, note)
    total = -sum(less for less, *_ in errors)
    lines = [
        [expected, predicted or NONE, f"{-less:,}", percent(-less / total)] for less, expected, predicted in errors
    ]
    head = ["reference", "predicted", "rows", "of all errors"]
    table = Table("Errors, the most frequent first", head, lines[:WORST], 2, total=len(lines), half=not matrix.wide)
    lead = f"{count(total, 'row')} wrong, {count(len(errors), 'pair')} of labels confused."
    return PageSection("Confusion matrix", [matrix, table], lead)


def _classes(view: ReportView) -> PageSection:
    return _parts(view, "per_class", "By class", "class")


def _fields(view: ReportView) -> PageSection:
    return _parts(view, "fields", "By field", "field")


def _parts(view: ReportView, key: Literal["per_class", "fields"], title: str, noun: str) -> PageSection:
    """Every class or field of the focus, with the F1 of the best baseline beside it."""
    parts = view.entries[view.focus].get(key) or {}
    if not parts:
        return PageSection(title, [])
    baseline = view.baseline if view.baseline not in TRIVIAL else None
    beside = (view.entries[baseline].get(key) or {}) if baseline else {}
    order = sorted(parts, key=lambda name: (parts[name]["f1"], -parts[name]["support"], name))
    bars = [
        Bar(name, parts[name]["f1"], f"{parts[name]['f1']:.2f}, {count(parts[name]['support'], 'row')}", "c1")
        for name in order[:WORST]
    ]
    rows: list[list[str | Cell]] = []
    for name in order:
        part, few = parts[name], parts[name]["support"] < FEW
        support = Cell(
            f"{part['support']:,}", "warn" if few else "", "too few rows for reliable figures" if few else ""
        )
        figures = [f"{figure:.3f}" for figure in (part["precision"], part["recall"], part["f1"])]
        baseline_f1 = [f"{beside[name]['f1']:.3f}" if name in beside else ""] if beside else []
        rows.append([name, support, *figures, *baseline_f1])
    head = [noun, "rows", "precision", "recall", "F1", *([f"F1 of {baseline}"] if beside else [])]
    all_shown = len(order) <= WORST
    caption = "By F1, the lowest first" if all_shown else f"The {WORST} lowest F1"
    blocks: list[Block] = [Chart(caption, svg_chart.bars(bars, title=f"{title}, F1"))]
    blocks.append(Table(f"Figures of {view.focus}", head, rows[:WORST], half=True))
    if not all_shown:
        blocks.append(Table(f"All {len(order):,}", head, rows, folded=True))
    return PageSection(title, blocks)


def _slices(view: ReportView) -> PageSection:
    slices = [entry for entry in view.report["slices"] if view.focus in entry["values"]]
    if not slices:
        return PageSection("Slices", [])
    worst = sorted(slices, key=lambda entry: (entry["values"][view.focus], -entry["n"], entry["name"]))
    blocks: list[Block] = []
    dots = []
    for entry in worst[:WORST]:
        if interval := entry.get("intervals", {}).get(view.focus):
            value = entry["values"][view.focus]
            text = f"{percent(value)} of {entry['n']:,} ({entry['by']})"
            dots.append(Dot(entry["name"], value, interval[0], interval[1], text))
    if dots:
        reference = (view.score(view.focus), f"all rows {percent(view.score(view.focus))}")
        svg, slim = svg_chart.dots_in_two_widths(dots, title=f"Weakest slices of {view.focus}", reference=reference)
        blocks.append(Chart(f"Weakest slices of {view.focus}", svg, "Of many slices, some are low by chance.", slim))
    names = [view.focus, *(name for name in view.competing if name != view.focus)][:6]
    rows = [
        [
            entry["name"],
            entry["by"],
            f"{entry['n']:,}",
            *(percent(entry["values"][name]) if name in entry["values"] else "" for name in names),
        ]
        for entry in worst
    ]
    caption = f"{count(len(rows), 'slice')}, {view.metric}"
    blocks.append(Table(caption, ["slice", "by", "rows", *names], rows, 2, folded=len(rows) > WORST))
    return PageSection("Slices", blocks)


def _calibration(view: ReportView) -> PageSection:
    return PageSection("Calibration", list(_confidence(view)))


def _confidence(view: ReportView) -> Iterator[Block]:
    calibration = view.entries[view.focus].get("calibration")
    if calibration and calibration["bins"]:
        bins = calibration["bins"]
        points = [
            Point(
                bin["confidence"],
                bin["accuracy"],
                f"{count(bin['n'], 'row')}: {percent(bin['confidence'])} confident, {percent(bin['accuracy'])} right",
            )
            for bin in bins
        ]
        ideal = LineSeries("perfect calibration", [Point(0, 0), Point(1, 1)], "c5", dashed=True)
        svg = svg_chart.lines(
            [LineSeries(view.focus, points), ideal], title="Reliability diagram", x_label="confidence",
            y_label="accuracy", x_range=(0, 1), y_range=(0, 1), percent=True,
        )  # fmt: skip
        yield Chart("Reliability diagram", svg, "Points below the dashed line are overconfident.")
        bars = [
            Bar(f"{percent(bin['low'], 0)} to {percent(bin['high'], 0)}", bin["n"], f"{bin['n']:,}")
            for bin in reversed(bins)
        ]
        yield Chart("Rows by confidence", svg_chart.bars(bars, title="Rows by confidence"))
    rows = [
        [name, f"{calibration['n']:,}", f"{calibration['ece']:.3f}", f"{calibration['brier']:.3f}"]
        for name in view.competing
        if (calibration := view.entries[name].get("calibration"))
    ]
    if rows:
        note = (
            "Lower is better. ECE, expected calibration error: mean gap between confidence and accuracy. "
            "Brier score: mean squared error of the confidence."
        )
        yield Table("Every model", ["model", "rows", "ECE", "Brier score"], rows, note=note)
