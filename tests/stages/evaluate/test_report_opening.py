"""The opening of evaluate's page: where the report comes from, and what it means in a day."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from support.reported import evaluate_opening, evaluate_report

from slmctl.stages.evaluate import report_opening, report_page
from slmctl.stages.evaluate.report_data import ReportView
from slmctl.stages.evaluate.report_opening import Opening

REPORT = evaluate_report()
BARE = Opening("desk 1.0", "", "", "2026-01-02 10:00 UTC")


def page(out: Path, opening: Opening | None, report: dict[str, Any] = REPORT) -> str:
    report_page.write(out / "report.html", report, opening=opening)
    return (out / "report.html").read_text(encoding="utf-8")


def words(html: str) -> str:
    text = re.sub(r"(?s)<(style|script)>.*?</\\1>", " ", html)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", text)).split())


def day(opening: Opening | None, report: dict[str, Any] = REPORT) -> str:
    """The chart of a day and its note."""
    chart, *_ = report_opening.section(ReportView(report), opening).blocks
    svg, note = chart.svg, chart.note  # type: ignore[union-attr]
    return re.search(r"<desc>(.*?)</desc>", str(svg))[1] + f" | {note}"  # type: ignore[index]


def test_the_page_opens_with_the_project_its_gates_and_its_training(tmp_path: Path) -> None:
    html = page(tmp_path, evaluate_opening())
    text = words(html)
    opening = text[: text.index("Scoreboard, accuracy") if "Scoreboard, accuracy" in text else len(text)]
    for line in (
        "Project tickets",
        "Data tickets.csv: 1,539 rows to train on",
        "Training 40 steps in 7 min 36 s, validation loss 7.000 to 0.200",
        "Gates 1 of 2 failed: it is not published",
        "Gate failed: ece of tickets is 3.1 %.",
        "Loss of training and validation",
    ):
        assert line in opening
    assert text.index("Gate failed") < text.index("Gate passed")
    assert '<header class="bad">' in html  # whatever the headline says of the baseline


@pytest.mark.parametrize(
    ("gates", "verdict", "tone"),
    [
        ([], "none is set", ""),
        ([(True, "a")], "the one there is passed", "good"),
        ([(True, "a"), (True, "b")], "all 2 passed", "good"),
        ([(False, "a")], "1 of 1 failed", "bad"),
    ],
)
def test_the_verdict_of_the_gates(gates: list[tuple[bool, str]], verdict: str, tone: str) -> None:
    *_, last = report_opening.facts(replace(BARE, gates=gates))
    assert last.value.startswith(verdict)
    assert last.tone == tone


def test_a_day_adds_up_and_escalates_only_where_a_policy_does() -> None:
    assert day(None).startswith("right 88; wrong 12 |")
    assert "slmctl calibrate fits one" in day(BARE)
    # of 100, 70 are kept, 2 % of them wrong: 1.4
    assert day(evaluate_opening()).startswith("right 69; wrong 1; escalated 30 |")


def test_a_day_has_its_cost_where_prices_are_known() -> None:
    entry = {"api_per_1000_rows": 0.5, "rows_per_hour": 3600.0, "break_even_rows_per_hour": 100.0}
    prices = {
        "machine_per_hour": 0.05, "api_per_million_input_tokens": 1.0, "api_per_million_output_tokens": 1.0,
        "currency": "EUR", "models": {REPORT["focus"]: entry},
    }  # fmt: skip
    note = day(None, REPORT | {"break_even": prices})
    assert "Through an API they cost 0.0500 EUR a day" in note
    assert "1.20 EUR: it is the cheaper one from 2,400 requests a day on" in note
    assert "With evaluate.prices" in day(None, REPORT | {"break_even": None})


def test_without_a_project_around_it_the_page_says_only_what_the_report_holds(tmp_path: Path) -> None:
    html = page(tmp_path, None)
    assert '<dl class="facts">' not in html
    assert "Of 100 requests a day" in words(html)
    assert "Loss of training" not in words(html)


def test_a_text_that_is_neither_right_nor_wrong_has_no_day() -> None:
    section = report_opening.section(ReportView(REPORT | {"primary_metric": "token_f1"}), None)
    assert list(section.blocks) == []
