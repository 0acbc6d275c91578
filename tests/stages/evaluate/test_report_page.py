"""What evaluate's page says: who wins, and whether that is real."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from support.reported import evaluate_report, evaluate_rows

from slmctl.reports.evaluation_report import ParticipantEntry, parse_report, parse_rows
from slmctl.reports.html_page import Chart, Table
from slmctl.stages.evaluate import report_errors, report_page, report_row_changes
from slmctl.stages.evaluate.report_data import ReportView

LABELS = ("billing", "delivery", "returns")


def words(out: Path, report: dict[str, Any], **more: Any) -> str:
    """The page as its text."""
    report_page.write(out / "report.html", report, **more)
    text = re.sub(r"(?s)<(style|script|svg).*?</\\1>", " ", (out / "report.html").read_text(encoding="utf-8"))
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", text)).split())


@pytest.mark.parametrize(
    ("right", "headline"),
    [
        (
            (20, 60, 90, 91, 88),
            "Q4_K_M answers 88.0 % of 100 held-out rows right, 68.0 points more than the linear baseline",
        ),
        (
            (87, 60, 90, 91, 88),
            "Q4_K_M answers 88.0 % of 100 held-out rows right, the linear baseline 87.0 %: "
            "the difference is not significant on so few rows",
        ),
        (
            (89, 60, 90, 91, 88),
            "The linear baseline answers 89.0 % of 100 held-out rows right, Q4_K_M 88.0 %: the baseline is better",
        ),
        (
            (88, 60, 90, 91, 88),
            "The linear baseline answers 88.0 % of 100 held-out rows right, Q4_K_M 88.0 %: the baseline is as good",
        ),
    ],
)
def test_the_headline_says_who_wins_and_a_baseline_that_does_first(
    right: tuple[int, ...], headline: str, tmp_path: Path
) -> None:
    text = words(tmp_path, evaluate_report(right=right))
    assert text.index(headline) < text.index("Scoreboard")
    title = re.search(r"<h1>(.*?)</h1>", (tmp_path / "report.html").read_text())
    assert title is not None
    assert title[1].startswith(headline.replace(" %", "\u00a0%"))  # no line ends between a number and its sign


def test_the_best_model_is_named_where_it_is_not_the_one_that_ships(tmp_path: Path) -> None:
    text = words(tmp_path, evaluate_report())
    assert (
        "The best model is Q8_0 with 91.0 %; Q4_K_M is the one to release. The difference is significant (p=0.03)."
        in text
    )


def test_every_part_may_be_empty(tmp_path: Path) -> None:
    whole = evaluate_report()
    empty = {"pairs": {}, "slices": [], "choice": None, "break_even": None, "remarks": []}
    for key, value in empty.items():
        assert "of 100 held-out rows right" in words(tmp_path, whole | {key: value})
    always = ParticipantEntry.__required_keys__
    bare = {
        group: {
            name: {key: value for key, value in entry.items() if key in always} for name, entry in whole[group].items()
        }
        for group in ("models", "baselines")
    }
    text = words(tmp_path, whole | empty | bare)
    assert "Scoreboard" in text
    assert "Break-even" not in text


def test_the_made_up_report_is_a_report() -> None:
    """Else the tests of the page say nothing about real reports."""
    report = evaluate_report()
    parsed = json.loads(json.dumps(parse_report(report, where="report")))
    assert parsed == json.loads(json.dumps(report))
    rows = evaluate_rows(report, LABELS, cut=20)
    assert json.dumps(parse_rows(rows, where="rows")) == json.dumps(rows)


def test_a_report_read_back_with_sorted_keys_is_the_same_page(tmp_path: Path) -> None:
    report = evaluate_report()
    rows = evaluate_rows(report, LABELS)
    report_page.write(tmp_path / "report.html", report, rows, labels=LABELS)
    first = (tmp_path / "report.html").read_bytes()
    turned = {
        key: dict(sorted(value.items())) if key in ("models", "baselines", "pairs") else value
        for key, value in sorted(report.items())
    }
    report_page.write(tmp_path / "report.html", turned, iter(rows), labels=LABELS)
    assert (tmp_path / "report.html").read_bytes() == first


def test_a_pair_reads_the_same_from_both_sides() -> None:
    seen = ReportView(evaluate_report())
    forth, back = seen.difference("adapter", "Q8_0"), seen.difference("Q8_0", "adapter")
    assert forth is not None
    assert back is not None
    assert (forth.value, forth.low, forth.high) == pytest.approx((0.01, -0.01, 0.03))
    assert (back.value, back.low, back.high) == (-forth.value, -forth.high, -forth.low)
    assert seen.difference("adapter", "adapter") is None


def test_the_page_stays_small_and_says_what_it_left_out(tmp_path: Path) -> None:
    report = evaluate_report()
    rows = evaluate_rows(report, LABELS) * 500
    text = words(tmp_path, report, rows=rows, labels=LABELS)
    assert f"The first {report_row_changes.ROWS} of 35,500 rows." in text
    assert (tmp_path / "report.html").stat().st_size < 500_000


def test_the_grid_of_errors_has_what_was_right_on_its_diagonal_and_no_label_last() -> None:
    section = report_errors.sections(ReportView(evaluate_report()))[0]
    grid, table = section.blocks
    assert isinstance(grid, Chart)
    assert isinstance(table, Table)
    told = re.findall(r"<title>([^<]* answered as [^<]*)</title>.*?fill-(c[12])", str(grid.svg), re.DOTALL)
    assert told == [
        ("billing answered as billing: 36", "c1"), ("billing answered as returns: 4", "c2"),
        ("returns answered as (no label): 2", "c2"),
    ]  # fmt: skip
    assert list(table.rows) == [["billing", "returns", "4", "66.7 %"], ["returns", "(no label)", "2", "33.3 %"]]
    assert section.lead == "6 rows wrong, 2 pairs of labels confused."


def test_where_a_machine_never_pays_the_page_says_so(tmp_path: Path) -> None:
    report = evaluate_report()
    report["break_even"]["models"]["Q4_K_M"] |= {"rows_per_hour": 1000, "share_of_capacity": 3.3}
    text = words(tmp_path, report)
    assert "One machine answers at most 1,000 rows an hour with Q4_K_M, below the break-even of 3,333" in text


# Row by row


def changes(rows: list[dict[str, Any]], report: dict[str, Any], names: tuple[str, ...]) -> Any:
    return report_row_changes.table(rows, report["participants"], names, LABELS)


def test_the_type_of_a_models_products_stands_by_the_latency(tmp_path: Path) -> None:
    report = evaluate_report()
    assert "Multiplied in" not in words(tmp_path, report)
    for name in ("adapter", "Q8_0"):
        report["models"][name]["matmul_dtype"] = "bfloat16"
    assert "Multiplied in bfloat16: adapter, Q8_0." in words(tmp_path, report)


def test_no_pair_is_crowded_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_row_changes, "ROWS", 20)
    report = evaluate_report()
    table = changes(evaluate_rows(report, LABELS), report, ("tfidf_logistic", "Q8_0", "Q4_K_M"))
    assert len(table.rows) == 20
    assert table.total == 71
    told = {name.partition(":")[0]: (name, places) for name, places in table.choices}
    assert told["Q8_0 right, Q4_K_M wrong"][0].endswith("3 rows")
    assert len(told["Q8_0 right, Q4_K_M wrong"][1]) == 3
    name, places = told["Q8_0 right, tfidf_logistic wrong"]
    assert name.endswith(f"71 rows, {len(places)} of them listed")


def test_a_sensitive_row_shows_its_place_alone() -> None:
    report = evaluate_report()
    table = changes(evaluate_rows(report, LABELS, "secret words", cut=200), report, ("Q8_0", "Q4_K_M"))
    lines = {line[0]: [getattr(cell, "text", cell) for cell in line] for line in table.rows}
    assert lines["90"][1] == "(sensitive)"
    assert lines["89"][1] == "secret words"


def test_who_was_not_asked_neither_won_nor_lost() -> None:
    report = evaluate_report()
    rows = evaluate_rows(report, LABELS)
    for row in rows:
        row["answers"][report["participants"].index("Q8_0")] = None
    assert changes(rows, report, ("Q8_0", "Q4_K_M")) is None
    table = changes(rows, report, ("adapter", "Q8_0", "Q4_K_M"))
    assert [name for name, _ in table.choices] == ["adapter right, Q4_K_M wrong: 2 rows"]
    assert {line[3].text for line in table.rows} == {"–"}


def test_answers_that_are_no_labels_are_told_by_score_or_text() -> None:
    report = evaluate_report()
    rows = evaluate_rows(report, LABELS)
    for row in rows:
        row["answers"] = [[None, right, None, 0.43] for _, right, _, _ in row["answers"]]
    table = report_row_changes.table(rows, report["participants"], ("Q8_0", "Q4_K_M"), ())
    assert table is not None
    assert [cell.text for cell in table.rows[0][1:]] == ["✓", "✗ 0.43"]  # type: ignore[union-attr]
