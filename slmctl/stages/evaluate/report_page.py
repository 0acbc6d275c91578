"""A report -> `report.html`: the verdict and its significance first, then every figure.

The sections follow the questions of a decision: score, difference to the baselines, loss by quantization, errors,
cost. A section without content is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from slmctl import console
from slmctl.console import percent
from slmctl.reports import html_page, svg_chart
from slmctl.reports.evaluation_report import EvaluationReport, RowEntry
from slmctl.reports.html_page import Block, Cell, Chart, Figure, Notice, PageSection, Table, count
from slmctl.reports.scoreboard import RELEASE, UNTUNED, figure
from slmctl.reports.svg_chart import Dot
from slmctl.stages.evaluate import report_costs, report_errors, report_opening, report_release, report_row_changes
from slmctl.stages.evaluate.report_data import IN_WORDS, ReportView, points, tone
from slmctl.stages.evaluate.report_opening import Opening

SLICES = 30  # slices that are listed
# by kind; the models of this pipeline have c1 and c3
COLOURS = {"baseline": "c5", "base": "c5", "endpoint": "c4", RELEASE: "c2"}


def write(
    path: Path,
    report: EvaluationReport,
    rows: Iterable[RowEntry] = (),
    *,
    labels: Sequence[str] = (),
    opening: Opening | None = None,
) -> None:
    """Write the page of a report to a file.

    Args:
        path: The file.
        report: The report.
        rows: The lines of `rows.jsonl` after the first.
        labels: The label of each index in `rows`.
        opening: The project around the report; None for the page inside an artifact, which knows none.
    """
    html_page.write(path, _page(ReportView(report), rows, labels, opening))


def _page(view: ReportView, rows: Iterable[RowEntry], labels: Sequence[str], opening: Opening | None) -> html_page.Page:
    headline, verdict = _headline(view)
    sections = [
        report_opening.section(view, opening),
        _scoreboard(view),
        _differences(view),
        report_release.section(view),
        _choice(view),
        _rows(view, rows, labels),
        *report_errors.sections(view),
        report_costs.section(view),
        _provenance(view),
    ]
    project = f"{opening.project} · " if opening is not None else ""
    rows_measured = f"{count(view.report['n'], 'row')} of {view.report['split']}"
    return html_page.Page(
        kicker=f"Report · {project}{view.report['task']} · {rows_measured}",
        headline=headline,
        lead=_lead(view),
        tone="bad" if opening is not None and opening.failed else verdict,
        facts=list(report_opening.facts(opening)) if opening is not None else (),
        figures=list(_figures(view)),
        notices=[*(report_opening.notices(opening) if opening is not None else ()), *_notices(view)],
        noticed="Findings",
        sections=[section for section in sections if section.blocks],
        foot="Made by slmctl evaluate. report.json holds every figure, rows.jsonl every answer as right or wrong.",
    )


# Headline


def _headline(view: ReportView) -> tuple[str, html_page.Tone]:
    """The focus against the best baseline; a baseline that wins is named first."""
    focus, baseline = view.focus, view.baseline
    done = f"{focus} {_did(view, focus)}"
    if baseline is None:
        return done, ""
    name, difference = IN_WORDS.get(baseline, baseline), view.difference(baseline, focus)
    if view.score(baseline) >= view.score(focus):
        more = f"{focus} {percent(view.score(focus))}"
        wins = "better" if view.score(baseline) > view.score(focus) else "as good"
        return f"{name[0].upper()}{name[1:]} {_did(view, baseline)}, {more}: the baseline is {wins}, and cheaper", "bad"
    if difference is not None and not difference.real:
        theirs = percent(view.score(baseline))
        return f"{done}, {name} {theirs}: the difference is not significant on so few rows", "warn"
    gain = 100 * (view.score(focus) - view.score(baseline))
    return f"{done}, {gain:.1f} points more than {name}", "good"


def _did(view: ReportView, name: str) -> str:
    score, n = percent(view.score(name)), view.entries[name]["n"]
    match view.metric:
        case "accuracy":
            return f"answers {score} of {count(n, 'held-out row')} right"
        case "exact_match":
            return f"gets {score} of {count(n, 'held-out row')} exactly right"
    return f"scores {score} {view.metric} on {count(n, 'held-out row')}"


def _lead(view: ReportView) -> str:
    """The focus, and the best model where that is another one."""
    if len(view.models) == 1:
        return f"{view.focus} is the model to release."
    if view.best == view.focus:
        return f"{view.focus} is the model to release, and the best of {count(len(view.models), 'model')} measured."
    difference = view.difference(view.focus, view.best)
    text = f"The best model is {view.best} with {percent(view.score(view.best))}; {view.focus} is the one to release."
    if difference is None:
        return text
    chance = f" ({difference.chance})" if difference.chance else ""
    return f"{text} The difference {'is significant' if difference.real else 'is not significant'}{chance}."


def _notices(view: ReportView) -> Iterator[Notice]:
    """The remarks of the report; a baseline that wins stands first among them."""
    tuned = [name for name in view.models if view.entries[name]["kind"] not in UNTUNED]
    top = max(map(view.score, tuned), default=0.0)
    winners = sum(view.score(name) >= top for name in view.entries if name not in view.report["models"])
    for number, remark in enumerate(view.report["remarks"]):
        yield Notice(remark, "bad" if tuned and number < winners else "")


def _figures(view: ReportView) -> Iterator[Figure]:
    focus, entry = view.focus, view.entries[view.focus]
    yield Figure(
        f"{focus}, {view.metric}",
        percent(view.score(focus)),
        f"{_range(view, focus)}, {percent(view.confidence, 0)} interval",
    )
    general = view.endpoints[0] if view.endpoints else None
    beside = (
        ("Over the baseline", view.baseline),
        ("Over the merged model", view.source),
        ("Over a general model", general),
    )
    for label, name in beside:
        if name and (difference := view.difference(name, focus)):
            yield Figure(label, difference.text, f"points, {difference.span}, to {name}", difference.tone)
    if size := entry.get("size"):
        yield Figure("Size", console.size(size), focus)
    if latency := entry.get("latency_ms"):
        most = f", 95 % within {latency['p95']:,.0f} ms" if "p95" in latency else ""
        yield Figure("Latency", f"{latency['median']:,.0f} ms", f"median, one at a time{most}")
    if "ece" in entry["metrics"]:
        yield Figure("Calibration error", percent(entry["metrics"]["ece"]), "ECE: mean gap of confidence and accuracy")


# Sections


def _scoreboard(view: ReportView) -> PageSection:
    baseline, reference = view.baseline, None
    if baseline:
        reference = (view.score(baseline), f"{baseline} {percent(view.score(baseline))}")
    dots = []
    for name in view.competing:
        low, high = view.interval(name)
        text = f"{percent(view.score(name))} ({_range(view, name)})"
        dots.append(Dot(name, view.score(name), low, high, text, _colour(view, name), _aside(view, name)))
    svg, slim = svg_chart.dots_in_two_widths(dots, title=f"{view.metric} with intervals", reference=reference)
    note = f"{percent(view.confidence, 0)} confidence intervals of {view.metric}. Blue: the model to release."
    others = dict.fromkeys(name for entry in view.entries.values() for name in entry["metrics"])
    others.pop(view.metric)
    head = ["model", "kind", view.metric, "interval", *others, "invalid", "size", "latency", "rows/s"]
    rows = [_line(view, name, list(others)) for name in view.entries]
    legend = "Invalid: not a label of the task, not JSON, or empty. *: the prompt lists the labels."
    title = f"{view.metric}, {count(view.report['n'], 'held-out row')}"
    return PageSection("Scoreboard", [Chart(title, svg, note, slim), Table("All figures", head, rows, 2, note=legend)])


def _line(view: ReportView, name: str, others: Sequence[str]) -> list[str | Cell]:
    entry = view.entries[name]
    top = max(map(view.score, view.entries))
    latency, size, rate = entry.get("latency_ms"), entry.get("size"), entry.get("rows_per_s")
    metrics = entry["metrics"]
    figures = [figure(name, metrics[name]) if name in metrics else "" for name in others]
    star = "*" if entry.get("prompt_lists_labels") else ""
    return [
        f"{name}{star}",
        entry["kind"],
        Cell(percent(view.score(name)), "good" if view.score(name) == top else ""),
        _range(view, name),
        *figures,
        count(entry["invalid"]),
        console.size(size) if size else "",
        f"{latency['median']:,.0f} ms" if latency else "",
        f"{rate:,.1f}" if rate else "",
    ]


def _differences(view: ReportView) -> PageSection:
    """The focus less each of the others, and every pair in figures."""
    blocks: list[Block] = []
    differences = {name: view.difference(name, view.focus) for name in view.competing if name != view.focus}
    dots = [
        Dot(f"over {name}", d.value, d.low, d.high, d.long_text, d.tone or "c5", _aside(view, name))
        for name, d in differences.items()
        if d is not None
    ]
    if dots:
        title = f"{view.focus} less each other model"
        svg, slim = svg_chart.dots_in_two_widths(dots, title=title, points=True, reference=(0.0, "no difference"))
        note = "In percentage points, on the same rows. An interval that contains 0 shows no significant difference."
        blocks.append(Chart(title, svg, note, slim))
    if rows := list(_pairs(view)):
        head = ["model", "less", "points", "interval", "p", "both right", "only model", "only other", "neither",
                "detectable"]  # fmt: skip
        note = (
            "Detectable: the smallest true difference, in points, that so many rows show with a power of "
            f"{percent(view.report['power'], 0)}."
        )
        blocks.append(Table("Every pair, on the rows sent to both", head, rows, 2, note=note, folded=len(rows) > 12))
    if slices := _slices(view):
        head = ["compared with", "slice", "rows", "points", "p", "p after Holm"]
        note = "Significant only where p after Holm is small: it corrects for the number of slices that were tested."
        title = f"Slices where {view.focus} differs most"
        blocks.append(Table(title, head, slices, 2, note=note, folded=len(slices) > 12))
    return PageSection("Differences and their significance", blocks)


def _pairs(view: ReportView) -> Iterator[list[str | Cell]]:
    for number, second in enumerate(view.competing):
        for first in view.competing[:number]:
            difference, pair = view.difference(first, second), view.pair(first, second)
            if difference is None or pair is None:
                continue
            counts = [f"{n:,}" for n in (pair["both"], pair["only_second"], pair["only_first"], pair["neither"])]
            least = "" if difference.detectable is None else f"{100 * difference.detectable:.1f}"
            p = difference.chance.removeprefix("p=")
            yield [second, first, Cell(difference.text, difference.tone), difference.span, p, *counts, least]


def _slices(view: ReportView) -> list[list[str | Cell]]:
    """Slices in which the focus differs from another model, the smallest p-value first."""
    entries = [
        (entry["p_holm"], entry["p"], name, entry)
        for name in view.competing
        if not _aside(view, name) and (pair := view.pair(name, view.focus))
        for entry in pair["slices"]
    ]
    rows: list[list[str | Cell]] = []
    for holm, p, name, entry in sorted(entries, key=lambda each: each[:3])[:SLICES]:
        gap = Cell(points(entry["difference"]), tone(entry["difference"], real=holm < 1 - view.confidence))
        rows.append([name, f"{entry['by']} {entry['name']}", f"{entry['n']:,}", gap, f"{p:.2g}", f"{holm:.2g}"])
    return rows


def _choice(view: ReportView) -> PageSection:
    choice = view.report["choice"]
    if not choice:
        return PageSection("Chosen file", [])
    rows: list[list[str | Cell]] = []
    for file in choice["candidates"]:
        verdict = Cell("within the rule" if file["within"] and file["fast"] else "outside the rule")
        if file["model"] == choice["model"]:
            verdict = Cell("chosen", "good")
        speed = f"{file['tokens_per_s']:,.0f}" if file["tokens_per_s"] else ""
        losses = [points(file["loss"]), points(file["loss_at_most"])]
        rows.append([file["model"], verdict, console.size(file["size"]), percent(file["value"]), *losses, speed])
    head = ["file", "verdict", "size", choice["metric"], f"loss to {choice['of']}, points", "loss at most", "tokens/s"]
    lead = (
        f"Rule: the smallest file that loses at most {100 * choice['smallest_within']:.1f} points to {choice['of']}"
        f" on {count(choice['n'], 'row')} of {choice['split']}"
    )
    if choice["min_tokens_per_s"]:
        lead += f", and answers {choice['min_tokens_per_s']:g} tokens/s or more"
    table = Table("Files by size", head, rows, 2)
    return PageSection("Chosen file", [table], f"{lead}. The rows of this report were not used for the choice.")


def _rows(view: ReportView, rows: Iterable[RowEntry], labels: Sequence[str]) -> PageSection:
    tuned = [name for name in view.competing if view.entries[name]["kind"] != "base"]
    names = tuned if len(tuned) > 1 else view.competing
    table = report_row_changes.table(rows, view.report["participants"], names, labels)
    lead = "Rows that one model answered right and another wrong. Choose two models above the table."
    return PageSection("Differing rows", [table] if table else [], lead)


def _provenance(view: ReportView) -> PageSection:
    entries = {name: view.entries[name] for name in view.models}
    rows = [
        [name, entry["kind"], entry.get("sha256") or "", entry.get("predictions") or ""]
        for name, entry in entries.items()
    ]
    blocks: list[Block] = [Table("Measured files", ["model", "kind", "sha256 of its file", "predictions"], rows, 4)]
    return PageSection("Provenance", blocks, f"The rows are those of the data set {view.report['prepared']}.")


def _colour(view: ReportView, name: str) -> str:
    if name == view.focus:
        return "c1"
    return COLOURS.get(view.entries[name]["kind"], "c3")


def _aside(view: ReportView, name: str) -> bool:
    """True for an untuned base, which is so far off that the axis would hide all other differences."""
    return view.entries[name]["kind"] == "base"


def _range(view: ReportView, name: str) -> str:
    low, high = view.interval(name)
    return f"{percent(low)} to {percent(high)}"
