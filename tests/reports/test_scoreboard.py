"""The scoreboard: one table for the terminal and for Markdown, and what else the Markdown says."""

from __future__ import annotations

from typing import Any

from slmctl.reports.scoreboard import by_chance, table
from slmctl.stages.evaluate.report_markdown import markdown


def pair(difference: float, low: float, high: float, **more: float) -> dict[str, Any]:
    """A pair of which the accuracy differs."""
    accuracy = {"difference": difference, "interval": [low, high], "test": "mcnemar", **more}
    return {"metrics": {"accuracy": accuracy}, "only_first": 0, "only_second": 0, "slices": []}


REPORT: dict[str, Any] = {
    "n": 400,
    "split": "test",
    "task": "classify",
    "primary_metric": "accuracy",
    "confidence": 0.95,
    "power": 0.8,
    "participants": ["majority", "adapter", "Q4_K_M", "large (8-shot)"],
    "focus": "Q4_K_M",
    "remarks": ["Only so many rows.", "Another remark."],
    "baselines": {
        "majority": {
            "kind": "baseline",
            "metrics": {"accuracy": 0.125, "macro_f1": 0.01},
            "interval": [0.1, 0.16],
        }
    },
    "models": {
        "Q4_K_M": {
            "kind": "gguf",
            "metrics": {"macro_f1": 0.94, "accuracy": 1.0, "ece": 0.02},
            "interval": [0.99, 1.0],
            "size": 105_453_920,
        },
        "adapter": {
            "kind": "adapter",
            "metrics": {"macro_f1": 0.9504, "accuracy": 0.965, "ece": 0.03},
            "interval": [0.942, 0.979],
            "size": 4_884_480,
            "latency_ms": {"median": 81.7},
        },
        "large (8-shot)": {
            "kind": "endpoint",
            "metrics": {"macro_f1": 0.8, "accuracy": 0.8},
            "interval": [0.7, 0.9],
            "size": None,
            "latency_ms": None,
        },
    },
    "pairs": {
        "adapter|Q4_K_M": pair(0.035, 0.01, 0.06, p=0.0123, detectable=0.02),
        "Q4_K_M|large (8-shot)": pair(-0.2, -0.3, -0.1, p=1e-9, detectable=0.05),
        "majority|adapter": {"metrics": {}},
    },
    "slices": [
        {"by": "label", "name": "a|b", "n": 20, "values": {"Q4_K_M": 0.5}},
        {"by": "length", "name": "0 to 9 characters", "n": 30, "values": {"Q4_K_M": 0.4}},
        {"by": "label", "name": "c", "n": 10, "values": {"adapter": 0.4}},
    ],
    "choice": None,
    "break_even": None,
}
HEAD = ["model", "size", "accuracy", "95 % interval", "macro_f1", "ece", "latency"]
ROWS = [
    ["majority", "-", "12.5 %", "10.0 % - 16.0 %", "1.0 %", "-", "-"],
    ["adapter", "4.9 MB", "96.5 %", "94.2 % - 97.9 %", "95.0 %", "3.0 %", "82 ms"],
    ["Q4_K_M", "105.5 MB", "100.0 %", "99.0 % - 100.0 %", "94.0 %", "2.0 %", "-"],
    ["large (8-shot)", "-", "80.0 %", "70.0 % - 90.0 %", "80.0 %", "-", "-"],
]


def test_table_has_the_participants_in_order_and_the_primary_metric_before_the_others() -> None:
    assert table(REPORT) == (HEAD, ROWS)


def test_markdown_is_the_table_with_its_remarks_and_what_the_focus_is_compared_with() -> None:
    assert markdown(REPORT).splitlines() == [
        "# Report: 400 held-out rows (test), classify",
        "",
        "> Only so many rows.",
        "> Another remark.",
        "",
        "| model | size | accuracy | 95 % interval | macro_f1 | ece | latency |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *("| " + " | ".join(row) + " |" for row in ROWS),
        "",
        "Intervals: Wilson, 95 %. Latency: median over rows asked one at a time.",
        "",
        "## Q4_K_M less each other model",
        "",
        "| Q4_K_M less | accuracy, points | 95 % interval | p | detectable |",
        "|---|---:|---:|---:|---:|",
        "| adapter | +3.5 | +1.0 to +6.0 | 0.012 | 2.0 |",
        "| large (8-shot) | +20.0 | +10.0 to +30.0 | < 0.001 | 5.0 |",
        "",
        "Paired, by the exact McNemar test and Tango's interval. Detectable: the smallest true "
        "difference, in points, "
        "that so many rows show with a power of 80 %.",
        "",
        "## Weakest slices of Q4_K_M",
        "",
        "| slice | by | rows | accuracy |",
        "|---|---:|---:|---:|",
        "| 0 to 9 characters | length | 30 | 40.0 % |",
        "| `a\\|b` | label | 20 | 50.0 % |",
    ]


def test_markdown_without_remarks_has_no_gap() -> None:
    lines = markdown(REPORT | {"remarks": []}).splitlines()
    assert lines[1:3] == ["", "| " + " | ".join(HEAD) + " |"]


def test_markdown_says_what_was_chosen_and_from_where_it_pays() -> None:
    candidate = {
        "size": 1000,
        "value": 0.9,
        "loss": 0.004,
        "loss_at_most": 0.02,
        "within": True,
        "fast": True,
    }
    choice = {
        "model": "Q4_K_M",
        "of": "Q8_0",
        "metric": "accuracy",
        "split": "validation",
        "n": 250,
        "candidates": [
            candidate | {"model": "Q4_K_M", "tokens_per_s": 150.4},
            candidate | {"model": "Q8_0", "tokens_per_s": None},
        ],
    }
    prices = {
        "currency": "EUR",
        "machine_per_hour": 0.1,
        "api_per_million_input_tokens": 0.5,
        "api_per_million_output_tokens": 2,
        "models": {
            "large (8-shot)": {"api_per_1000_rows": 0.5},
            "Q4_K_M": {
                "api_per_1000_rows": 0.04,
                "machine_per_1000_rows": 0.0007,
                "rows_per_hour": 150000.0,
                "break_even_rows_per_hour": 2500.4,
                "share_of_capacity": 0.0167,
            },
        },
    }
    lines = markdown(REPORT | {"choice": choice, "break_even": prices}).splitlines()
    assert "| Q4_K_M (chosen) | 1.0 kB | 90.0 % | +0.4 | 2.0 | 150 |" in lines
    assert "| Q8_0 | 1.0 kB | 90.0 % | +0.4 | 2.0 | - |" in lines
    assert "| Q4_K_M | 0.0007 | 0.0400 | 2500 | 1.7 % |" in lines
    assert "| large (8-shot) | - | 0.5000 | - | - |" in lines


def test_a_calibration_error_has_the_level_of_chance_beside_it() -> None:
    # 0.0 % read as "take its confidence at its word", where so few rows show nothing under some
    # points
    calibration = {
        "n": 594,
        "ece": 0.0,
        "observed": 0.03,
        "by_chance": 0.035,
        "brier": 0.07,
        "bins": [],
    }
    report = {
        **REPORT,
        "models": {
            **REPORT["models"],
            "Q4_K_M": {**REPORT["models"]["Q4_K_M"], "calibration": calibration},
        },
    }
    said = "ece is what goes beyond chance: on 594 rows chance alone makes 3.5 % for Q4_K_M"
    assert (by_chance(report), by_chance(REPORT)) == (said, "")  # type: ignore[arg-type]
    calibration |= {"confidence": 0.9441, "accuracy": 0.9680}  # of a model that is too modest
    assert by_chance(report) == (f"{said}; its mean confidence is 94.4 %, and 96.8 % are right")  # type: ignore[arg-type]
