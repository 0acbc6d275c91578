"""What `evaluate` measured, as a page for people: who wins and whether that is real, then every figure.

It reads `report.json`, and leaves out what that does not hold. The order is that of the questions in a
meeting: is it good enough, is it better than what costs nothing, what did it lose on the way to the file
that ships, where does it fail, what does it cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from slmctl import console
from slmctl.reports import html_page, svg_chart
from slmctl.reports.html_page import Block, Cell, Chart, Figure, Notice, PageSection, Table, count, percent
from slmctl.reports.svg_chart import Dot
from slmctl.stages.evaluate import report_costs, report_errors, report_row_changes
from slmctl.stages.evaluate.report_data import SAID, Measured, points, tone

FILENAME = "report.html"
SLICES = 30  # parts of the rows that are listed
CLASSES = {"baseline": "c5", "base": "c5", "endpoint": "c4"}  # colours by kind; what we made has the first colour


def write(
    out: Path,
    report: dict[str, Any],
    rows: Iterable[dict[str, Any]] = (),
    *,
    labels: Sequence[str] = (),
) -> None:
    """Write `report.html` into `out`.

    Args:
        report: What `report.json` holds.
        rows: What `rows.jsonl` holds after its first line.
        labels: What the numbers in the rows stand for.
    """
    html_page.write(out / FILENAME, _page(Measured(report), rows, labels))


def _page(seen: Measured, rows: Iterable[dict[str, Any]], labels: Sequence[str]) -> html_page.Page:
    headline, verdict = _headline(seen)
    sections = [
        _scoreboard(seen),
        _differences(seen),
        _choice(seen),
        _rows(seen, rows, labels),
        *report_errors.sections(seen),
        report_costs.section(seen),
        _provenance(seen),
    ]
    return html_page.Page(
        kicker=f"Report · {seen.report['task']} · {count(seen.report['n'], 'row')} of {seen.report['split']}",
        headline=headline,
        lead=_lead(seen),
        tone=verdict,
        figures=list(_figures(seen)),
        notices=list(_notices(seen)),
        noticed="What the figures say",
        sections=[section for section in sections if section.blocks],
        foot="Made by slmctl evaluate; report.json holds every figure, and rows.jsonl who was right on which row.",
    )


# What is said first


def _headline(seen: Measured) -> tuple[str, html_page.Tone]:
    """Who wins. A baseline that does comes first: it is honest, and saves its reader money."""
    focus, baseline = seen.focus, seen.baseline
    done = f"{focus} {_did(seen, focus)}"
    if baseline is None:
        return done, ""
    name, difference = SAID.get(baseline, baseline), seen.difference(baseline, focus)
    if seen.score(baseline) >= seen.score(focus):
        more = f"{focus} {percent(seen.score(focus))}"
        wins = "better" if seen.score(baseline) > seen.score(focus) else "as good"
        return f"{name[0].upper()}{name[1:]} {_did(seen, baseline)}, {more}: the baseline is {wins}, and cheaper", "bad"
    if difference is not None and not difference.real:
        theirs = percent(seen.score(baseline))
        return f"{done}, {name} {theirs}: so few rows cannot tell them apart", "warn"
    gain = 100 * (seen.score(focus) - seen.score(baseline))
    return f"{done}, {gain:.1f} points more than {name}", "good"


def _did(seen: Measured, name: str) -> str:
    score, n = percent(seen.score(name)), seen.entries[name].get("n", seen.report["n"])
    match seen.metric:
        case "accuracy":
            return f"answers {score} of {count(n, 'held-out row')} right"
        case "exact_match":
            return f"gets {score} of {count(n, 'held-out row')} exactly right"
    return f"scores {score} {seen.metric} on {count(n, 'held-out row')}"


def _lead(seen: Measured) -> str:
    """The best model, where it is another one; else what the focus is."""
    if seen.best == seen.focus:
        return f"{seen.focus} is what would ship, and the best of {count(len(seen.models), 'model')} measured."
    difference = seen.difference(seen.focus, seen.best)
    told = f"The best model is {seen.best} with {percent(seen.score(seen.best))}; {seen.focus} is what would ship."
    if difference is None:
        return told
    chance = f" ({difference.chance})" if difference.chance else ""
    return f"{told} The difference {'is more than chance' if difference.real else 'may be chance'}{chance}."


def _notices(seen: Measured) -> Iterator[Notice]:
    """The remarks of the report; a baseline that wins stands first among them."""
    tuned = [name for name in seen.models if seen.entries[name].get("kind") not in ("base", "endpoint")]
    top = max(map(seen.score, tuned), default=0.0)
    winners = sum(seen.score(name) >= top for name in seen.entries if name not in seen.report["models"])
    for number, remark in enumerate(seen.report.get("remarks", [])):
        yield Notice(remark, "bad" if tuned and number < winners else "")


def _figures(seen: Measured) -> Iterator[Figure]:
    focus, entry = seen.focus, seen.entries[seen.focus]
    yield Figure(
        f"{focus}, {seen.metric}", percent(seen.score(focus)), f"{_range(seen, focus)}, {seen.confidence:.0%} sure"
    )
    general = seen.endpoints[0] if seen.endpoints else None
    beside = (
        ("Over the baseline", seen.baseline),
        ("Beside its source", seen.source),
        ("Over a general model", general),
    )
    for told, name in beside:
        if name and (found := seen.difference(name, focus)):
            yield Figure(told, found.told, f"points, {found.span}, to {name}", found.tone)
    if entry.get("size"):
        yield Figure("Size", console.size(entry["size"]), focus)
    if latency := entry.get("latency_ms"):
        most = f", 95% within {latency['p95']:,.0f} ms" if "p95" in latency else ""
        yield Figure("Latency", f"{latency['median']:,.0f} ms", f"median, one at a time{most}")
    if "ece" in entry["metrics"]:
        yield Figure("Calibration error", percent(entry["metrics"]["ece"]), "how far its confidence is off")


# The parts


def _scoreboard(seen: Measured) -> PageSection:
    baseline, reference = seen.baseline, None
    if baseline:
        reference = (seen.score(baseline), f"{baseline} {percent(seen.score(baseline))}")
    dots = []
    for name in seen.competing:
        low, high = seen.interval(name)
        told = f"{percent(seen.score(name))} ({_range(seen, name)})"
        dots.append(Dot(name, seen.score(name), low, high, told, _colour(seen, name), _aside(seen, name)))
    drawn = svg_chart.dots(dots, title=f"{seen.metric} with intervals", reference=reference)
    told = f"The intervals hold the true {seen.metric}, {seen.confidence:.0%} sure. Blue: what would ship."
    others = dict.fromkeys(name for entry in seen.entries.values() for name in entry["metrics"])
    others.pop(seen.metric)
    head = ["model", "kind", seen.metric, "interval", *others, "no answer", "size", "latency", "rows/s"]
    rows = [_line(seen, name, list(others)) for name in seen.entries]
    note = "No answer: no label of the task, no JSON, or nothing at all. * was told the labels in its prompt."
    title = f"{seen.metric}, {count(seen.report['n'], 'held-out row')}"
    return PageSection("Scoreboard", [Chart(title, drawn, told), Table("All figures", head, rows, 2, note=note)])


def _line(seen: Measured, name: str, others: Sequence[str]) -> list[str | Cell]:
    entry = seen.entries[name]
    lower, top = seen.report.get("lower_is_better", ()), max(map(seen.score, seen.entries))
    latency = entry.get("latency_ms")
    metrics = entry["metrics"]
    figures = [("" if m not in metrics else f"{metrics[m]:.3f}" if m in lower else percent(metrics[m])) for m in others]
    star = "*" if entry.get("prompt_lists_labels") else ""
    return [
        f"{name}{star}",
        entry.get("kind", "baseline"),
        Cell(percent(seen.score(name)), "good" if seen.score(name) == top else ""),
        _range(seen, name),
        *figures,
        count(entry["invalid"]) if "invalid" in entry else "",
        console.size(entry["size"]) if entry.get("size") else "",
        f"{latency['median']:,.0f} ms" if latency else "",
        f"{entry['rows_per_s']:,.1f}" if entry.get("rows_per_s") else "",
    ]


def _differences(seen: Measured) -> PageSection:
    """How far the focus lies above each of the others, and every pair in figures."""
    blocks: list[Block] = []
    found = {name: seen.difference(name, seen.focus) for name in seen.competing if name != seen.focus}
    dots = [
        Dot(
            f"over {name}",
            d.value,
            d.low,
            d.high,
            f"{d.told} ({d.span}) {d.chance}",
            d.tone or "c5",
            _aside(seen, name),
        )
        for name, d in found.items()
        if d is not None
    ]
    if dots:
        title = f"{seen.focus} beside the others"
        drawn = svg_chart.dots(dots, title=title, points=True, reference=(0.0, "no difference"))
        told = "In points, on the same rows. An interval across the line may be no difference at all."
        blocks.append(Chart(title, drawn, told))
    if rows := list(_pairs(seen)):
        head = [
            "model",
            "less",
            "points",
            "interval",
            "p",
            "both right",
            "only it",
            "only the other",
            "neither",
            "seen from",
        ]
        power = f" with a chance of {seen.report['power']:.0%}" if "power" in seen.report else ""
        note = f"Seen from: the smallest true difference, in points, that so many rows would have shown{power}."
        blocks.append(Table("Any two, on the rows that both answered", head, rows, 2, note=note, folded=len(rows) > 12))
    if slices := _slices(seen):
        head = ["compared with", "slice", "rows", "points", "p", "p after Holm"]
        note = "A part is only more than chance where p after Holm, which counts how many parts were tested, is small."
        title = f"Parts of the rows where {seen.focus} differs most"
        blocks.append(Table(title, head, slices, 2, note=note, folded=len(slices) > 12))
    return PageSection("Is it real?", blocks)


def _pairs(seen: Measured) -> Iterator[list[str | Cell]]:
    for number, second in enumerate(seen.competing):
        for first in seen.competing[:number]:
            found, pair = seen.difference(first, second), seen.pair(first, second)
            if found is None or pair is None:
                continue
            counts = [f"{pair.get(key) or 0:,}" for key in ("both", "only_second", "only_first", "neither")]
            least = "" if found.detectable is None else f"{100 * found.detectable:.1f}"
            chance = found.chance.removeprefix("p=")
            yield [second, first, Cell(found.told, found.tone), found.span, chance, *counts, least]


def _slices(seen: Measured) -> list[list[str | Cell]]:
    """Slices in which the focus differs from another model, the surest first."""
    found = [
        (one["p_holm"], one["p"], name, one)
        for name in seen.competing
        if not _aside(seen, name)
        for one in (seen.pair(name, seen.focus) or {}).get("slices", [])
    ]
    rows: list[list[str | Cell]] = []
    for holm, p, name, one in sorted(found, key=lambda each: each[:3])[:SLICES]:
        gap = Cell(points(one["difference"]), tone(one["difference"], real=holm < 1 - seen.confidence))
        rows.append([name, f"{one['by']} {one['name']}", f"{one['n']:,}", gap, f"{p:.2g}", f"{holm:.2g}"])
    return rows


def _choice(seen: Measured) -> PageSection:
    choice = seen.report.get("choice")
    if not choice:
        return PageSection("Which file", [])
    rows: list[list[str | Cell]] = []
    for one in choice["candidates"]:
        verdict = Cell("fits" if one["within"] and one["fast"] else "does not fit")
        if one["model"] == choice["model"]:
            verdict = Cell("chosen", "good")
        speed = f"{one['tokens_per_s']:,.0f}" if one.get("tokens_per_s") else ""
        losses = [points(one["loss"]), points(one["loss_at_most"])]
        rows.append([one["model"], verdict, console.size(one["size"]), percent(one["value"]), *losses, speed])
    head = ["file", "verdict", "size", choice["metric"], f"loss to {choice['of']}, points", "loss at most", "tokens/s"]
    lead = (
        f"The smallest file that loses no more than {100 * choice['smallest_within']:.1f} points to {choice['of']}"
        f" on {count(choice['n'], 'row')} of {choice['split']}"
    )
    if choice.get("min_tokens_per_s"):
        lead += f", and answers {choice['min_tokens_per_s']:g} tokens/s or more"
    return PageSection(
        "Which file", [Table("Files by size", head, rows, 2)], f"{lead}. The rows of this report had no say."
    )


def _rows(seen: Measured, rows: Iterable[dict[str, Any]], labels: Sequence[str]) -> PageSection:
    participants = seen.report.get("participants") or list(seen.entries)
    tuned = [name for name in seen.competing if seen.entries[name].get("kind") != "base"]
    found = report_row_changes.table(rows, participants, tuned if len(tuned) > 1 else seen.competing, labels)
    lead = "Rows that one model answered right and another did not. Choose two models above the table."
    return PageSection("What changed, row by row", [found] if found else [], lead)


def _provenance(seen: Measured) -> PageSection:
    rows = [
        [
            name,
            seen.entries[name].get("kind", ""),
            seen.entries[name].get("sha256") or "",
            seen.entries[name].get("predictions") or "",
        ]
        for name in seen.models
    ]
    blocks: list[Block] = [Table("What was measured", ["model", "kind", "sha256 of its file", "predictions"], rows, 4)]
    prepared = seen.report.get("prepared")
    return PageSection("Provenance", blocks, f"The rows are those of the data set {prepared}." if prepared else "")


def _colour(seen: Measured, name: str) -> str:
    if name == seen.focus:
        return "c1"
    return CLASSES.get(seen.entries[name].get("kind", "baseline"), "c3")


def _aside(seen: Measured, name: str) -> bool:
    """An untuned base is so far off that it would squeeze all other differences into nothing."""
    return seen.entries[name].get("kind") == "base"


def _range(seen: Measured, name: str) -> str:
    low, high = seen.interval(name)
    return f"{percent(low)} to {percent(high)}"
