"""Where a model fails, for the page of a report: by class, by field, by slice, by its own confidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from slmctl.reports import svg_chart
from slmctl.reports.html_page import Block, Cell, Chart, PageSection, Table, count, percent
from slmctl.reports.svg_chart import Bar, Dot, LineSeries, Point
from slmctl.stages.evaluate.report_data import TRIVIAL, Measured

GRID = 14  # labels of a confusion grid: more cannot be read
WORST = 12  # classes or slices of a chart
NONE = "(no label)"
FEW = 10  # rows of a class under which its figures say little


def sections(seen: Measured) -> list[PageSection]:
    """Classes or fields, slices and calibration of the model that would ship."""
    return [_confusion(seen), _classes(seen), _fields(seen), _slices(seen), _calibration(seen)]


def _confusion(seen: Measured) -> PageSection:
    cells = {(wanted, given): n for wanted, given, n in seen.entries[seen.focus].get("confusion") or []}
    wrong = sorted((-n, wanted, given) for (wanted, given), n in cells.items() if wanted != given)
    if not wrong:
        return PageSection("What is taken for what", [])
    involved: Counter[str] = Counter()
    for less, wanted, given in wrong:
        involved.update({wanted: -less, given: -less})
    most = sorted(involved, key=lambda name: (-involved[name], name))[:GRID]
    rows, columns = sorted(filter(None, most)), sorted(most, key=lambda name: (not name, name))  # "" was no label
    grid = [[cells.get((wanted, given), 0) for given in columns] for wanted in rows]
    drawn = svg_chart.heat(rows, [name or NONE for name in columns], grid, title=f"Confusion of {seen.focus}")
    known = len({name for pair in cells for name in pair})
    some = f"The {len(most)} labels with most errors, of {known}." if len(most) < known else ""
    told = f"Down: the label wanted. Across: the answer. {some}".strip()
    grid_block = Chart(f"Answers of {seen.focus}", drawn, told)
    total = -sum(less for less, *_ in wrong)
    lines = [[wanted, given or NONE, f"{-less:,}", percent(-less / total)] for less, wanted, given in wrong]
    head = ["wanted", "answered", "rows", "of all errors"]
    table = Table("Errors, the most frequent first", head, lines[:WORST], 2, total=len(lines), half=not grid_block.wide)
    lead = f"{count(total, 'row')} wrong in {count(len(wrong), 'way')}."
    return PageSection("What is taken for what", [grid_block, table], lead)


def _classes(seen: Measured) -> PageSection:
    """Every class: the focus, and the F1 of the baseline beside it."""
    classes = seen.entries[seen.focus].get("per_class") or {}
    return _parts(seen, classes, "per_class", "By class", "class")


def _fields(seen: Measured) -> PageSection:
    fields = seen.entries[seen.focus].get("fields") or {}
    return _parts(seen, fields, "fields", "By field", "field")


def _parts(seen: Measured, parts: dict[str, Any], key: str, title: str, noun: str) -> PageSection:
    if not parts:
        return PageSection(title, [])
    baseline = seen.baseline if seen.baseline not in TRIVIAL else None
    theirs = (seen.entries[baseline].get(key) or {}) if baseline else {}
    order = sorted(parts, key=lambda name: (parts[name]["f1"], -parts[name]["support"], name))
    bars = [
        Bar(name, parts[name]["f1"], f"{parts[name]['f1']:.2f}, {count(parts[name]['support'], 'row')}", "c1")
        for name in order[:WORST]
    ]
    rows: list[list[str | Cell]] = []
    for name in order:
        one, few = parts[name], parts[name]["support"] < FEW
        support = Cell(f"{one['support']:,}", "warn" if few else "", "so few rows say little" if few else "")
        figures = [f"{one[figure]:.3f}" for figure in ("precision", "recall", "f1")]
        rows.append(
            [name, support, *figures, *([f"{theirs[name]['f1']:.3f}" if name in theirs else ""] if theirs else [])]
        )
    head = [noun, "rows", "precision", "recall", "F1", *([f"F1 of {baseline}"] if theirs else [])]
    few = len(order) <= WORST
    told = "By F1, the worst first" if few else f"The {WORST} worst, by F1"
    blocks: list[Block] = [Chart(told, svg_chart.bars(bars, title=f"{title}, F1"))]
    blocks.append(Table(f"In figures, {seen.focus}", head, rows[:WORST], half=True))
    if not few:
        blocks.append(Table(f"All {len(order):,}", head, rows, folded=True))
    return PageSection(title, blocks)


def _slices(seen: Measured) -> PageSection:
    known = [one for one in seen.report.get("slices") or [] if seen.focus in one["values"]]
    if not known:
        return PageSection("Slices", [])
    worst = sorted(known, key=lambda one: (one["values"][seen.focus], -one["n"], one["name"]))
    blocks: list[Block] = []
    dots = []
    for one in worst[:WORST]:
        if interval := (one.get("intervals") or {}).get(seen.focus):
            value = one["values"][seen.focus]
            dots.append(
                Dot(one["name"], value, interval[0], interval[1], f"{percent(value)} of {one['n']:,} ({one['by']})")
            )
    if dots:
        reference = (seen.score(seen.focus), f"all rows {percent(seen.score(seen.focus))}")
        drawn = svg_chart.dots(dots, title=f"Weakest slices of {seen.focus}", reference=reference)
        blocks.append(Chart(f"Where {seen.focus} is weakest", drawn, "With many slices, some are low by chance."))
    names = [seen.focus, *(name for name in seen.competing if name != seen.focus)][:6]
    rows = [
        [
            one["name"],
            one["by"],
            f"{one['n']:,}",
            *(percent(one["values"][n]) if n in one["values"] else "" for n in names),
        ]
        for one in worst
    ]
    blocks.append(
        Table(
            f"{count(len(rows), 'slice')}, {seen.metric}",
            ["slice", "by", "rows", *names],
            rows,
            2,
            folded=len(rows) > WORST,
        )
    )
    return PageSection("Slices", blocks)


def _calibration(seen: Measured) -> PageSection:
    return PageSection("Can its confidence be trusted?", list(_confidence(seen)))


def _confidence(seen: Measured) -> Iterator[Block]:
    found = seen.entries[seen.focus].get("calibration")
    if found and found.get("bins"):
        bins = found["bins"]
        points = [
            Point(one["confidence"], one["accuracy"],
                  f"{count(one['n'], 'row')}: {percent(one['confidence'])} sure, {percent(one['accuracy'])} right")
            for one in bins
        ]  # fmt: skip
        ideal = LineSeries("as sure as right", [Point(0, 0), Point(1, 1)], "c5", dashed=True)
        drawn = svg_chart.lines([LineSeries(seen.focus, points), ideal], title="Reliability", x_label="confidence",
                            y_label="share right", x_range=(0, 1), y_range=(0, 1), percent=True)  # fmt: skip
        yield Chart("Reliability", drawn, "Below the dashed line it is surer than it should be.")
        bars = [Bar(f"{one['low']:.0%} to {one['high']:.0%}", one["n"], f"{one['n']:,}") for one in reversed(bins)]
        yield Chart("Rows by confidence", svg_chart.bars(bars, title="Rows by confidence"))
    rows = [
        [name, f"{one['n']:,}", f"{one['ece']:.3f}", f"{one['brier']:.3f}"]
        for name in seen.competing
        if (one := seen.entries[name].get("calibration"))
    ]
    if rows:
        note = "Less is better. Calibration error: mean gap between confidence and share right; Brier: mean square."
        yield Table("Every model", ["model", "rows", "calibration error", "Brier score"], rows, note=note)
