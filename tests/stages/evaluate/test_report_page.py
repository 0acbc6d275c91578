"""What evaluate's page says: who wins, and whether that is real."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from support.reported import evaluate_opening, evaluate_report, evaluate_rows

from slmctl.reports.evaluation_report import ParticipantEntry, parse_report, parse_rows
from slmctl.stages.evaluate import report_charts, report_page, report_row_changes
from slmctl.stages.evaluate.report_data import ReportView
from slmctl.stages.evaluate.report_opening import Opening, PolicyShares

LABELS = ("billing", "delivery", "returns")
BARE = Opening("desk 1.0", "", "", "2026-01-02 10:00 UTC")


def words(out: Path, report: dict[str, Any], **more: Any) -> str:
    """The page as its text."""
    report_page.write(out / "report.html", report, **more)
    text = re.sub(
        r"(?s)<(style|script|svg).*?</\1>", " ", (out / "report.html").read_text(encoding="utf-8")
    )
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", text)).split())


@pytest.mark.parametrize(
    ("right", "headline"),
    [
        (
            (20, 60, 90, 91, 88),
            "Q4_K_M answers 88.0 % of 100 held-out rows right, 68.0 points more than the linear "
            "baseline",
        ),
        (
            (87, 60, 90, 91, 88),
            "Q4_K_M answers 88.0 % of 100 held-out rows right, the linear baseline 87.0 %. "
            "The difference may be chance.",
        ),
        (
            (89, 60, 90, 91, 88),
            "The linear baseline answers 89.0 % of 100 held-out rows right, Q4_K_M 88.0 %: the "
            "baseline is better",
        ),
        (
            (88, 60, 90, 91, 88),
            "The linear baseline answers 88.0 % of 100 held-out rows right, Q4_K_M 88.0 %: the "
            "baseline is as good",
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
    # no line ends between a number and its sign
    assert title[1].startswith(headline.replace(" %", "\u00a0%"))


def test_the_best_model_is_named_where_it_is_not_the_one_that_ships(tmp_path: Path) -> None:
    text = words(tmp_path, evaluate_report())
    assert (
        "The best model is Q8_0 with 91.0 %; Q4_K_M is the one to release. The difference is more "
        "than chance (p=0.03)." in text
    )


def test_the_tile_says_if_a_model_is_too_sure_or_too_modest(tmp_path: Path) -> None:
    report = evaluate_report()
    assert "Calibration error 3.1 % mean gap to the share right; beyond 3.9 % by chance" in words(
        tmp_path, report
    )
    report["models"]["Q4_K_M"]["calibration"] |= {"confidence": 0.944, "accuracy": 0.968}
    text = words(tmp_path, report)
    assert "Calibration error 3.1 % said 94.4 %, right 96.8 %; beyond 3.9 % by chance" in text
    assert (
        "Q4_K_M 100 94.4 % 96.8 % 0.031 0.050 0.039 0.055" in text and "Q8_0 100 - - 0.031" in text
    )


def test_a_p_value_is_in_words_for_a_reader(tmp_path: Path) -> None:
    # the chart had p=2.4e-112
    report = evaluate_report()
    report["pairs"]["adapter|Q4_K_M"]["metrics"]["accuracy"] |= {
        "p": 2.4e-112,
        "interval": [-0.04, -0.01],
    }
    text = words(tmp_path, report)
    page = unescape((tmp_path / "report.html").read_text(encoding="utf-8")).replace("\u00a0", " ")
    assert "-2.0 (-4.0 to -1.0), p < 0.001: not chance" in page
    assert "-4.0 to -1.0 < 0.001" in text and "e-112" not in page


def test_every_part_may_be_empty(tmp_path: Path) -> None:
    whole = evaluate_report()
    empty = {"pairs": {}, "slices": [], "choice": None, "break_even": None, "remarks": []}
    for key, value in empty.items():
        assert "of 100 held-out rows right" in words(tmp_path, whole | {key: value})
    always = ParticipantEntry.__required_keys__
    bare = {
        group: {
            name: {key: value for key, value in entry.items() if key in always}
            for name, entry in whole[group].items()
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


def test_judged_pairs_stand_on_the_page(tmp_path: Path) -> None:
    report = evaluate_report()
    report_page.write(tmp_path / "report.html", report, [], labels=LABELS)
    shown = re.sub(r"<[^>]+>|\s+", " ", (tmp_path / "report.html").read_text())
    shown = re.sub(r" +", " ", shown)
    assert "Judged by people" in shown
    assert "Q4_K_M base 60.0 % 50.9 % to 70.5 % 39 21 20 10 0.027 0" in shown


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


def test_the_grid_of_errors_has_what_was_right_on_its_diagonal_and_no_label_last(
    tmp_path: Path,
) -> None:
    confusion = report_charts.confusion(ReportView(evaluate_report()))
    assert confusion is not None
    drawn = re.findall(
        r"<title>([^<]* answered as [^<]*)</title>.*?fill-(c[12])", str(confusion.svg), re.DOTALL
    )
    assert drawn == [
        ("billing answered as billing: 36", "c1"),
        ("billing answered as returns: 4", "c2"),
        ("returns answered as (no label): 2", "c2"),
    ]
    assert confusion.errors == [("billing", "returns", 4), ("returns", "", 2)]
    text = words(tmp_path, evaluate_report())
    assert "6 rows wrong, 2 pairs of labels confused." in text
    assert "billing returns 4 66.7 % returns (no label) 2 33.3 %" in text


def test_where_a_machine_never_pays_the_page_says_so(tmp_path: Path) -> None:
    report = evaluate_report()
    report["break_even"]["models"]["Q4_K_M"] |= {"rows_per_hour": 1000, "share_of_capacity": 3.3}
    text = words(tmp_path, report)
    assert (
        "One machine answers at most 1,000 rows an hour with Q4_K_M, below the break-even of 3,333"
        in text
    )


# Row by row


def changes(rows: list[dict[str, Any]], report: dict[str, Any], names: tuple[str, ...]) -> Any:
    return report_row_changes.collect(rows, report["participants"], names, LABELS)


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
    listed = {
        name.partition(":")[0]: (name, sum(k in row.choices for row in table.rows))
        for k, name in enumerate(table.choices)
    }
    name, rows = listed["Q8_0 right, Q4_K_M wrong"]
    assert (name.endswith("3 rows"), rows) == (True, 3)
    name, rows = listed["Q8_0 right, tfidf_logistic wrong"]
    assert name.endswith(f"71 rows, {rows} of them listed")


def test_a_sensitive_row_shows_its_place_alone() -> None:
    report = evaluate_report()
    table = changes(
        evaluate_rows(report, LABELS, "secret words", cut=200), report, ("Q8_0", "Q4_K_M")
    )
    lines = {line.cells[0].text: [cell.text for cell in line.cells] for line in table.rows}
    assert lines["90"][1] == "(sensitive)"
    assert lines["89"][1] == "secret words"


def test_who_was_not_asked_neither_won_nor_lost() -> None:
    report = evaluate_report()
    rows = evaluate_rows(report, LABELS)
    for row in rows:
        row["answers"][report["participants"].index("Q8_0")] = None
    assert changes(rows, report, ("Q8_0", "Q4_K_M")) is None
    table = changes(rows, report, ("adapter", "Q8_0", "Q4_K_M"))
    assert table.choices == ["adapter right, Q4_K_M wrong: 2 rows"]
    assert {line.cells[3].text for line in table.rows} == {"–"}


def test_answers_that_are_no_labels_are_told_by_score_or_text() -> None:
    report = evaluate_report()
    rows = evaluate_rows(report, LABELS)
    for row in rows:
        row["answers"] = [[None, right, None, 0.43] for _, right, _, _ in row["answers"]]
    table = report_row_changes.collect(rows, report["participants"], ("Q8_0", "Q4_K_M"), ())
    assert table is not None
    assert [cell.text for cell in table.rows[0].cells[1:]] == ["✓", "✗ 0.43"]


# The opening: where a report comes from, and what it means in a day


def test_the_page_opens_with_the_project_its_gates_and_its_training(tmp_path: Path) -> None:
    text = words(tmp_path, evaluate_report(), opening=evaluate_opening())
    for line in (
        "Project tickets",
        "Data tickets.csv: 1,539 rows to train on",
        "Training 40 steps in 7 min 36 s, validation loss 7.000 to 0.200",
        "Gates 1 of 2 failed: it is not published",
        "Gate failed: ece of tickets is 3.1 %.",
        "Loss of training and validation",
    ):
        assert line in text
    assert text.index("Gate failed") < text.index("Gate passed")
    # whatever the headline says
    assert '<header class="bad">' in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("gates", "verdict", "tone"),
    [
        ([], "none is set", ""),
        ([(True, "a")], "the one there is passed", ' class="good"'),
        ([(True, "a"), (True, "b")], "all 2 passed", ' class="good"'),
        ([(False, "a")], "1 of 1 failed", ' class="bad"'),
    ],
)
def test_the_verdict_of_the_gates(
    gates: list[tuple[bool, str]], verdict: str, tone: str, tmp_path: Path
) -> None:
    words(tmp_path, evaluate_report(), opening=replace(BARE, gates=gates))
    assert f"<dt>Gates</dt><dd{tone}>{verdict}" in (tmp_path / "report.html").read_text()


def test_a_day_adds_up_and_escalates_only_where_a_policy_does(tmp_path: Path) -> None:
    def day(opening: Opening | None) -> str:
        report_page.write(tmp_path / "report.html", evaluate_report(), opening=opening)
        match = re.search(r"<desc>(right [^<]*)</desc>", (tmp_path / "report.html").read_text())
        return match[1] if match else ""

    assert day(None) == "right 88; wrong 12"
    # of 100, 70 are kept, 2 % of them wrong: 1.4
    assert day(evaluate_opening()) == "right 69; wrong 1; escalated 30"
    assert "slmctl calibrate fits one" in words(tmp_path, evaluate_report(), opening=BARE)


def test_the_first_figure_is_the_cost_of_a_thousand_questions_if_the_policy_knows_prices(
    tmp_path: Path,
) -> None:
    dear = replace(BARE, policy=PolicyShares(0.7, 0.02, 300, (81.2, 60.0, 1_104.5), "EUR"))
    text = words(tmp_path, evaluate_report(), opening=dear)
    assert "A thousand questions 81.20 EUR 60.00 to 1,104.50, with the policy" in text
    cheap = replace(BARE, policy=PolicyShares(0.7, 0.02, 300))
    assert "A thousand questions" not in words(tmp_path, evaluate_report(), opening=cheap)


def test_a_day_has_its_cost_where_prices_are_known(tmp_path: Path) -> None:
    report = evaluate_report()
    entry = {"api_per_1000_rows": 0.5, "rows_per_hour": 3600.0, "break_even_rows_per_hour": 100.0}
    prices = {
        "machine_per_hour": 0.05,
        "api_per_million_input_tokens": 1.0,
        "api_per_million_output_tokens": 1.0,
        "currency": "EUR",
        "models": {report["focus"]: entry},
    }
    text = words(tmp_path, report | {"break_even": prices})
    assert "Through an API they cost 0.0500 EUR a day" in text
    assert "1.20 EUR: it is the cheaper one from 2,400 requests a day on" in text
    entry["rows_per_hour"] = 50.0
    text = words(tmp_path, report | {"break_even": prices})
    assert (
        "and one machine cannot answer enough rows to be cheaper." in text
        and "requests a day on" not in text
    )
    assert "With prices" in words(tmp_path, report | {"break_even": None})


def test_without_a_project_around_it_the_page_says_only_what_the_report_holds(
    tmp_path: Path,
) -> None:
    text = words(tmp_path, evaluate_report())
    assert '<dl class="facts">' not in (tmp_path / "report.html").read_text()
    assert "Of 100 requests a day" in text
    assert "Loss of training" not in text


def test_a_text_that_is_neither_right_nor_wrong_has_no_day(tmp_path: Path) -> None:
    report = evaluate_report() | {"primary_metric": "token_f1", "pairs": {}, "slices": []}
    for entry in (*report["models"].values(), *report["baselines"].values()):
        entry["metrics"] = {"token_f1": 0.5}
    assert "Of 100 requests a day" not in words(tmp_path, report)
