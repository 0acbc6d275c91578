"""The page on a labelling: what was accepted and how sure that is, the teachers, and what left this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from slmctl import console
from slmctl.console import percent
from slmctl.network.guard import Receipt
from slmctl.reports import html_page, svg_chart
from slmctl.reports.html_page import Block, Chart, Figure, Notice, PageSection, Table, count
from slmctl.reports.svg_chart import Bar, LineSeries, Point
from slmctl.stages.label import report_facts
from slmctl.stages.label.report_facts import LabelFacts

FILENAME = "report.html"
SHOWN = 30  # labels in a chart


def write(out: Path, facts: LabelFacts, receipt: Receipt) -> None:
    """Write `report.html`."""
    html_page.write(out / FILENAME, _page(facts, receipt))


def _page(facts: LabelFacts, receipt: Receipt) -> html_page.Page:
    bound = facts["error_bound"]
    notices = list(_notices(facts))
    sections = (_bound(facts), _teachers(facts), _labels(facts), _confusions(facts), _rows(facts),
                _left(receipt))  # fmt: skip
    return html_page.Page(
        kicker=f"Labels of a teacher · {facts['task']}",
        headline=f"{facts['accepted']:,} of {count(facts['rows'], 'row')} accepted"
        + (f", at most {percent(bound)} of them wrong" if bound is not None else ""),
        lead=facts["bound"][0].upper() + facts["bound"][1:] + ".",
        tone="good" if bound is not None and facts["accepted"] else "warn",
        figures=list(_figures(facts)),
        notices=notices,
        sections=[section for section in sections if section.blocks],
        foot="Made by slmctl label; manifest.json holds the same figures. The rows are in accepted.jsonl, "
        "review.jsonl and refused.jsonl.",
    )


def _figures(facts: LabelFacts) -> Iterator[Figure]:
    share = percent(facts["accepted"] / max(facts["rows"], 1))
    yield Figure("Accepted", share, f"{facts['accepted']:,} of {count(facts['rows'], 'row')}")
    if facts["error_bound"] is not None:
        note = f"{percent(facts['confidence'], 0)} confidence, {percent(facts['max_error'])} allowed"
        yield Figure("Wrong, at most", percent(facts["error_bound"]), note)
    if facts["task"] != "generate":
        for teacher in facts["teachers"]:
            low, high = (percent(value) for value in teacher["interval"])
            right = percent(teacher["right"] / max(teacher["gold"], 1))
            yield Figure(
                "A teacher is right", right, f"{teacher['name']}: {low} to {high}, {teacher['gold']:,} gold rows"
            )
    priced = [teacher["cost"] for teacher in facts["teachers"] if teacher["cost"] is not None]
    if priced:
        yield Figure("Cost", f"{sum(priced):,.2f} {facts['currency']}", report_facts.cost_sentence(facts))
    yield Figure("To review", count(facts["review"]), "review.jsonl")


def _notices(facts: LabelFacts) -> Iterator[Notice]:
    if facts["error_bound"] is None:
        yield Notice(facts["bound"][0].upper() + facts["bound"][1:] + ".", "warn", "The bound")
    if facts["task"] == "generate":
        yield Notice(
            "Texts were accepted by the agreement of their votes. Read the uniform sample in review.jsonl.", "warn"
        )
    undeclared = [teacher["name"] for teacher in facts["teachers"] if not teacher["terms"]]
    if undeclared:
        yield Notice(
            f"Nothing is declared of the terms of {', '.join(undeclared)}: label.teachers[].terms. A release for the "
            "public is refused without.", "warn",
        )  # fmt: skip
    if facts["never"] and facts["accepted"]:
        yield Notice(f"No accepted row has the label {', '.join(facts['never'][:8])}.", "warn", "Labels")


def _bound(facts: LabelFacts) -> PageSection:
    blocks: list[Block] = []
    if facts["curve"]:
        curve = facts["curve"]
        low = max(0.0, min(1 - bound for _, _, bound in curve) - 0.02)
        chart = svg_chart.lines(
            [
                LineSeries("right", [Point(kept, 1 - error) for kept, error, _ in curve], "c1"),
                LineSeries("bound", [Point(kept, max(low, 1 - bound)) for kept, _, bound in curve], "c5", dashed=True),
                LineSeries("", [Point(facts["kept_gold"], 1 - (facts["error_bound"] or 0.0), "the threshold",
                                      "threshold")], "c2"),
            ],
            title="Accepted share and right labels", x_label="share of gold rows accepted", y_label="right labels",
            x_range=(0.0, 1.0), y_range=(low, 1.0), percent=True, width=2 * svg_chart.WIDTH, height=300,
        )  # fmt: skip
        blocks.append(Chart("Stricter and looser thresholds, on gold rows that tested them", chart))
    if facts["fields"]:
        rows = [[name, percent(bound)] for name, bound in sorted(facts["fields"].items())]
        note = (
            "Each by itself, at the threshold that the whole objects chose. A wrong field makes its object wrong, so "
            "the bound of the objects holds for every field too."
        )
        blocks.append(Table("Bound of each field", ["field", "wrong, at most"], rows, note=note))
    lead = (
        "The rows that test the threshold were shown to no teacher as an example, and were answered like any row. The "
        "bound holds for rows of the kind that the gold rows are."
    )
    return PageSection("The bound", blocks, lead)


def _teachers(facts: LabelFacts) -> PageSection:
    head = ["teacher", "terms", "prompt", "gold rows", "right", "requests", "answers", "failed", "in doubt",
            "tokens in", "tokens out", f"cost ({facts['currency']})"]  # fmt: skip
    rows = []
    for teacher in facts["teachers"]:
        right = percent(teacher["right"] / teacher["gold"]) if teacher["gold"] and facts["task"] != "generate" else ""
        cost = "" if teacher["cost"] is None else f"{teacher['cost']:,.2f}"
        counts = [teacher["sent"], teacher["answered"], teacher["failed"], teacher["doubtful"],
                  teacher["prompt_tokens"], teacher["completion_tokens"]]  # fmt: skip
        rows.append([teacher["name"], teacher["terms"] or "not declared", teacher["prompt"], f"{teacher['gold']:,}",
                     right, *(f"{number:,}" for number in counts), cost])  # fmt: skip
    note = "Requests, tokens and cost are those of the teacher's journal: of every run in this project."
    return PageSection(
        "Teachers",
        [Table("Teachers", head, rows, 3, note=note)],
        "A teacher's accuracy on gold rows is the most that a student of its labels can be expected to reach.",
    )


def _labels(facts: LabelFacts) -> PageSection:
    if not facts["accepted"]:
        return PageSection("Labels", [])  # a column of zeros tells no more
    order = sorted(facts["labels"].items(), key=lambda item: (-item[1], item[0]))
    bars = [Bar(name, many, f"{many:,}") for name, many in order]
    blocks: list[Block] = []
    if bars and len(bars) <= SHOWN:
        blocks.append(
            Chart("Accepted rows by label", svg_chart.bars(bars, title="Accepted rows", width=2 * svg_chart.WIDTH))
        )
    elif bars:
        rows = [[name, f"{many:,}"] for name, many in order]
        blocks.append(Table("Accepted rows by label", ["label", "rows"], rows, half=True))
    return PageSection("Labels", blocks)


def _confusions(facts: LabelFacts) -> PageSection:
    blocks: list[Block] = []
    if facts["confusion"]:
        rows = [[gold, answer or "no valid answer", f"{many:,}"] for gold, answer, many in facts["confusion"]]
        blocks.append(
            Table("Gold rows that the teachers answer otherwise", ["people", "teachers", "rows"], rows, 2, half=True)
        )
    if facts["disagreements"]:
        rows = [[first, second, f"{many:,}"] for first, second, many in facts["disagreements"]]
        blocks.append(Table("Where the answers to a row disagree", ["one", "another", "rows"], rows, 2, half=True))
    return PageSection("Differences", blocks)


def _rows(facts: LabelFacts) -> PageSection:
    bars = [
        Bar("accepted", facts["accepted"], colour="c3"), Bar("to review", facts["review"], colour="c2"),
        Bar("refused", facts["refused"], colour="c5"),
    ]  # fmt: skip
    blocks: list[Block] = [Chart("Every row is in one file", svg_chart.stack(bars, title="Rows by file"))]
    reasons = dict(facts["left_out"])
    if facts["not_drawn"]:
        reasons["beyond label.max_rows"] = facts["not_drawn"]
    if reasons:
        rows = [[reason, f"{many:,}"] for reason, many in reasons.items()]
        blocks.append(Table("Rows that were not asked for", ["reason", "rows"], rows))
    return PageSection("Rows", blocks)


def _left(receipt: Receipt) -> PageSection:
    hosts = receipt.get("hosts_contacted", [])
    text = (
        f"{console.size(receipt.get('bytes_out', 0))} went to {', '.join(hosts)} in this run."
        if hosts
        else "Nothing left this machine in this run."
    )
    return PageSection("What left this machine", [Notice(text)])
