"""The scoreboard: one table, for the terminal and for Markdown."""

from __future__ import annotations

from typing import Any

from slmctl.scoreboard import markdown, table

REPORT: dict[str, Any] = {
    "n": 400,
    "split": "test",
    "task": "classify",
    "primary_metric": "accuracy",
    "confidence": 0.95,
    "remarks": ["Only so many rows.", "Another remark."],
    "baselines": {"majority": {"metrics": {"accuracy": 0.125, "macro_f1": 0.01}, "interval": [0.1, 0.16]}},
    "models": {
        "adapter": {
            "kind": "adapter",
            "metrics": {"macro_f1": 0.9504, "accuracy": 0.965},
            "interval": [0.942, 0.979],
            "size": 4_884_480,
            "latency_ms": {"median": 81.7},
        },
        "Q4_K_M": {
            "kind": "gguf",
            "metrics": {"macro_f1": 0.94, "accuracy": 1.0},
            "interval": [0.99, 1.0],
            "size": 105_453_920,
        },
    },
}
HEAD = ["model", "size", "accuracy", "95% interval", "macro_f1", "latency"]
ROWS = [
    ["majority", "-", "12.5%", "10.0% - 16.0%", "0.010", "-"],
    ["adapter", "4.9 MB", "96.5%", "94.2% - 97.9%", "0.950", "82 ms"],
    ["Q4_K_M", "105.5 MB", "100.0%", "99.0% - 100.0%", "0.940", "-"],
]


def test_table_has_the_baselines_first_and_the_primary_metric_before_the_others() -> None:
    assert table(REPORT) == (HEAD, ROWS)


def test_models_stand_in_the_order_of_the_pipeline_even_when_the_report_is_sorted_by_name() -> None:
    report = REPORT | {"models": dict(sorted(REPORT["models"].items()))}
    assert list(report["models"]) == ["Q4_K_M", "adapter"]
    assert table(report) == (HEAD, ROWS)


def test_markdown_is_the_table_with_its_remarks() -> None:
    assert markdown(REPORT).splitlines() == [
        "# Report: 400 held-out rows (test), classify",
        "",
        "> Only so many rows.",
        "> Another remark.",
        "",
        "| model | size | accuracy | 95% interval | macro_f1 | latency |",
        "|---|---:|---:|---:|---:|---:|",
        *("| " + " | ".join(row) + " |" for row in ROWS),
        "",
        "Intervals: Wilson, 95%. Latency: median over rows asked one at a time.",
    ]


def test_markdown_without_remarks_has_no_gap() -> None:
    lines = markdown(REPORT | {"remarks": []}).splitlines()
    assert lines[1:3] == ["", "| " + " | ".join(HEAD) + " |"]
    assert markdown(REPORT).endswith(".\n")
