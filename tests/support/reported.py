"""What stages hand to their pages, made up: every key there is, and texts
that would like to be more than text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slmctl.stages.evaluate.report_opening import Opening, PolicyShares, Training
from slmctl.stages.label.report_facts import LabelFacts, TeacherFacts

HOSTILE = (
    "<script>document.title = 'owned'</script>",
    "</style></title></textarea><img src=x onerror=\"document.title='owned'\">",
    "\u202eevil\u2066 right to left",
    "\x1b]0;owned\x07\x1b[31mred\x00 NUL \ud800 lone",
    "&lt;already&gt; {{ 7 * 7 }} {% raw %} ${7*7} ' \" `",
    "javascript:document.title='owned'",
    "=cmd|'/C calc'!A0",
    "W" * 10_000,
    "متجر 商店 🛒",
)
SIDES = ("train", "validation", "calibration", "test")


def bare_prepare_facts(**more: Any) -> dict[str, Any]:
    """The facts of a data set of which there is nothing to say; `more` replaces some."""
    return {
        "task": "classify",
        "rows_in": 0,
        "train": 0,
        "validation": 0,
        "calibration": 0,
        "test": 0,
        "rejected": 0,
        "rejected_by_reason": {},
        "max_rejected": 0.1,
        "labels": {},
        "label_typos": [],
        "cleaning": [],
        "renamed_labels": [],
        "swapped": None,
        "odd_answers": {},
        "sensitive": [],
        "sensitive_rows": 0,
        "sensitive_searched": [],
        "duplicates": {
            "policy": "drop",
            "near_policy": "keep",
            "exact": 0,
            "near": 0,
            "threshold": 0.85,
        },
        "conflicts": {"pairs": 0, "rows": 0, "cap": 1.0, "threshold": 0.95, "examples": []},
        "near_held_out": {"left_out": 0, "threshold": 0.85, "examples": []},
        "overlap": {"gate": 0.25, "sides": {}, "examples": []},
        "splits": {"by": "content"},
        "tokens": {"median": 0, "p95": 0, "max": 0, "total": 0, "quantiles": {}, "longer_than": {}},
        "sources": [
            {
                "file": "a",
                "form": "csv",
                "sha256": "0" * 64,
                "rows_in": 0,
                "rejected": 0,
                "shape": "columns",
                "split": None,
            }
        ],
        "examples": {},
    } | more


def prepare_facts(
    names: tuple[str, ...] = ("billing", "delivery", "returns"), text: str = "email"
) -> dict[str, Any]:
    """Everything that `prepare` may know; every text in it is one of `names`, or `text`."""
    rules = {"duplicate": 11, "near a held-out row": 9, text: 10}
    place = {"file": f"{text}.csv", "row": 17}
    labels = {
        name: {"train": 70 + k, "validation": 9, "calibration": 12, "test": 9 + k}
        for k, name in enumerate(names)
    }
    kept = {side: sum(sides[side] for sides in labels.values()) for side in SIDES}
    return {
        "task": "classify",
        "rows_in": sum(kept.values()) + 30,
        **kept,
        "rejected": 30,
        "rejected_by_reason": rules,
        "sources": [
            {
                "file": text,
                "form": text,
                "sha256": "ab" * 32,
                "rows_in": 400,
                "rejected": 30,
                "shape": text,
                "split": None,
            }
        ],
        "splits": {"by": "group", "column": text, "groups": 81, "largest_group": 4},
        "labels": labels,
        "label_typos": [{"label": text, "count": 3, "likely": names[0], "likely_count": 80}],
        "cleaning": [{"step": text, "rows": 7}, {"step": "whitespace", "rows": 0}],
        "renamed_labels": [
            {"label": text, "to": names[0], "rows": 0},
            {"label": "b", "to": text, "rows": 4},
        ],
        "swapped": {"inputs": 3, "answers": 90},
        "linear": {
            "rows": 27,
            "right": 20,
            "accuracy": 0.7407,
            "interval": [0.553, 0.868],
            "trained_on": 100,
            "train": 213,
        },
        "suspects": {
            "rows": 2,
            "measured": 200,
            "train": 213,
            "agreement": 0.9,
            "pairs": [{"label": names[0], "proposed": text, "rows": 2}],
            "examples": [{"row": place, "label": names[0], "proposed": text, "score": 0.912}] * 2,
        },
        "odd_answers": {"empty": 0, text: 2},
        "sensitive": [{"kind": text, "rule": text, "column": text, "action": "keep", "count": 12}],
        "sensitive_rows": 11,
        "sensitive_searched": [text],
        "marked_answers": {text: 2},
        "duplicates": {
            "policy": "drop",
            "near_policy": "list",
            "exact": 15,
            "near": 5,
            "threshold": 0.9,
        },
        "conflicts": {
            "pairs": 2,
            "rows": 4,
            "cap": 0.987,
            "examples": [
                {
                    "first": place,
                    "second": place,
                    "similarity": 0.97,
                    "answers": [names[0], names[-1]],
                }
            ],
        },
        "near_held_out": {
            "left_out": 9,
            "threshold": 0.85,
            "examples": [{"row": place, "near": place, "side": "test", "similarity": 0.91}],
        },
        "overlap": {
            "sides": {"test": {"measured": 25, "overlapping": 5, "too_short": 3}},
            "gate": 0.5,
            "examples": [{"row": place, "near": place, "side": "test"}],
        },
        "tokens": {
            "median": 71,
            "p95": 110,
            "max": 140,
            "total": 51234,
            "longer_than": {"100": 30},
            "quantiles": {"0.05": 30, "0.25": 60, "0.5": 71, "0.75": 85, "0.95": 110, "1": 140},
            "histogram": {"edges": [0, 40, 80, 120, 160], "counts": [12, 130, 60, 4]},
        },
        "examples": {"duplicate": [place], text: [place] * 5},
    }


def evaluate_report(
    names: tuple[str, ...] = ("billing", "delivery", "returns"),
    text: str = "tickets",
    models: tuple[str, ...] = ("base", "adapter", "Q8_0", "Q4_K_M"),
    right: tuple[int, ...] = (20, 60, 90, 91, 88),
) -> dict[str, Any]:
    """What `report.json` holds of 100 rows: the linear baseline, then
    the models, each with so many right.
    """
    participants = ("majority", "tfidf_logistic", *models)
    counts = dict(zip(participants, (9, *right), strict=True))
    kinds = dict(zip(models, ("base", "adapter", "gguf", "gguf", "endpoint"), strict=False))
    entries = {
        name: {
            "n": 100,
            "right": counts[name],
            "invalid": 1,
            "not_sent": 0,
            "failed": 0,
            "kind": kinds.get(name, "baseline"),
            "metrics": {
                "accuracy": counts[name] / 100,
                "macro_f1": counts[name] / 101,
                "ece": 0.031,
                "brier": 0.055,
            },
            "interval": [counts[name] / 100 - 0.05, min(1, counts[name] / 100 + 0.04)],
            "intervals": {},
            "per_class": {
                label: {"precision": 1, "recall": 0.9, "f1": 0.95, "support": 8} for label in names
            },
            "confusion": [[names[0], names[0], 36], [names[0], names[-1], 4], [names[-1], "", 2]],
            "calibration": {
                "n": 100,
                "ece": 0.031,
                "observed": 0.05,
                "by_chance": 0.039,
                "brier": 0.055,
                "bins": [
                    {"low": 0.8, "high": 0.8667, "n": 12, "confidence": 0.83, "accuracy": 0.75}
                ],
            },
        }
        for name in participants
    }
    for number, name in enumerate(models):
        entries[name] |= {
            "size": 10_000_000 * (9 - number),
            "sha256": f"{number}" * 64,
            "predictions": f"sha256:{number}",
            "latency_ms": {"median": 24.1, "p95": 31.0, "n": 32},
            "rows_per_s": 48.1,
            "prompt_lists_labels": not number,
        }
    pairs = {
        f"{first}|{second}": _pair(counts[first], counts[second], text)
        for number, second in enumerate(participants)
        for first in participants[:number]
    }
    files = models[2:4]
    return {
        "task": "classify",
        "primary_metric": "accuracy",
        "lower_is_better": ["ece", "brier"],
        "split": "test",
        "n": 100,
        "confidence": 0.95,
        "power": 0.8,
        "prepared": f"sha256:{text}",
        "participants": list(participants),
        "focus": models[-1],
        "remarks": [f"The remark of {text}."],
        "models": {name: entries[name] for name in models},
        "baselines": {name: entries[name] for name in participants[:2]},
        "pairs": pairs,
        "slices": [
            {
                "by": text,
                "name": name,
                "n": 40,
                "values": dict.fromkeys(participants, 0.9),
                "intervals": {one: [0.8, 0.95] for one in participants},
            }
            for name in names
        ],
        "choice": {
            "model": models[-1],
            "of": models[-2],
            "metric": "accuracy",
            "smallest_within": 0.01,
            "min_tokens_per_s": 150,
            "split": "validation",
            "n": 250,
            "candidates": [
                {
                    "model": name,
                    "size": 10**7,
                    "value": 0.9,
                    "loss": 0.004,
                    "loss_at_most": 0.02,
                    "tokens_per_s": 210.0,
                    "within": True,
                    "fast": True,
                }
                for name in files
            ],
        },
        "break_even": {
            "currency": text[:3],
            "machine_per_hour": 0.1,
            "api_per_million_input_tokens": 0.5,
            "api_per_million_output_tokens": 1.5,
            "models": {
                name: {
                    "rows_per_hour": 173160,
                    "machine_per_1000_rows": 0.0006,
                    "api_per_1000_rows": 0.03,
                    "break_even_rows_per_hour": 3333,
                    "share_of_capacity": 0.019,
                }
                for name in models
            },
        },
        "cut": 0,
        "judged": {
            "entries": [
                {
                    "model": models[-1],
                    "against": models[0],
                    "won": 39,
                    "lost": 21,
                    "same": 20,
                    "neither": 10,
                    "equal": 7,
                    "win_rate": 0.6,
                    "interval": [0.509, 0.705],
                    "p": 0.0273,
                    "more": 0,
                    "reviewers": 2,
                }
            ],
            "of_others": 0,
        },
    }


def _pair(first: int, second: int, text: str) -> dict[str, Any]:
    difference = (second - first) / 100
    one = {
        "difference": difference,
        "interval": [difference - 0.02, difference + 0.02],
        "p": 0.03,
        "detectable": 0.021,
    }
    return {
        "n": 100,
        "both": min(first, second),
        "only_first": max(0, first - second),
        "only_second": max(0, second - first),
        "neither": 100 - max(first, second),
        "metrics": {"accuracy": one | {"test": "mcnemar"}},
        "slices_tested": 83,
        "slices": [
            {"by": "label", "name": text, "n": 40, "difference": 0.3, "p": 0.0001, "p_holm": 0.004}
        ],
    }


def evaluate_rows(
    report: dict[str, Any], labels: tuple[str, ...], text: str = "tickets", cut: int = 0
) -> list[dict[str, Any]]:
    """What `rows.jsonl` holds beside such a report: the first so many
    rows are right, the others another label.
    """
    entries = report["baselines"] | report["models"]
    rows = []
    for number in range(100):
        wanted = number % len(labels)
        answers = [
            [
                wanted if number < entries[name]["right"] else (wanted + 1) % len(labels),
                int(number < entries[name]["right"]),
                0.9,
                1.0,
            ]
            for name in report["participants"]
        ]
        row = {
            "id": f"{number}",
            "source": [f"{text}.csv", number + 1],
            "length": 9,
            "sensitive": number == 89,
            "expected": wanted,
            "answers": answers,
        }
        if cut and not row["sensitive"]:
            row["texts"] = {
                "input": text,
                "expected": labels[wanted],
                "answers": [text] * len(answers),
            }
        rows.append(row)
    return rows


def evaluate_opening(text: str = "tickets") -> Opening:
    """All that may stand around a report: a gate of each verdict, a training, a policy."""
    losses = [(step, 7.0 / step) for step in range(1, 40)]
    return Opening(
        project=text,
        base=text,
        data=f"{text}.csv: 1,539 rows to train on",
        date="2026-01-02 10:00 UTC",
        gates=[(True, f"accuracy of {text} is 88.0 %"), (False, f"ece of {text} is 3.1 %")],
        training=Training(40, 30, 456.0, 7.0, 0.2, losses, losses[9::10]),
        policy=PolicyShares(0.7, 0.02, 300),
    )


def small_report(models: dict[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A whole `report.json` of classification on one row, of models of which
    some keys are stated; `more` replaces.
    """
    entry = {
        "kind": "gguf",
        "not_sent": 0,
        "failed": 0,
        "n": 1,
        "right": 1,
        "invalid": 0,
        "intervals": {},
        "interval": [0.0, 1.0],
        "metrics": {"accuracy": 1.0},
    }
    return {
        "task": "classify",
        "primary_metric": "accuracy",
        "lower_is_better": [],
        "split": "test",
        "n": 1,
        "confidence": 0.95,
        "power": 0.8,
        "prepared": "sha256:0",
        "participants": list(models),
        "focus": [*models][-1],
        "models": {name: entry | stated for name, stated in models.items()},
        "baselines": {},
        "pairs": {},
        "slices": [],
        "choice": None,
        "cut": 0,
        "break_even": None,
        "remarks": [],
    } | more


def label_facts(
    names: Sequence[str] = ("billing", "delivery", "returns"), text: str = "big"
) -> LabelFacts:
    """Figures of a labelling by a teacher called `text`, and by one on this machine."""
    teacher: TeacherFacts = {
        "name": text,
        "where": "endpoint",
        "terms": "",
        "prompt": "efe6f728882c",
        "gold": 300,
        "right": 270,
        "interval": (0.86, 0.93),
        "sent": 3090,
        "answered": 3000,
        "failed": 80,
        "doubtful": 10,
        "prompt_tokens": 1_200_000,
        "completion_tokens": 6000,
        "cost": 1.21,
        "doubt": 0.01,
    }
    own: TeacherFacts = {
        **teacher,
        "name": "desk-1b/2.0",
        "where": "release",
        "cost": None,
        "doubt": None,
    }
    pairs = [(names[k % len(names)], text, 9 - k) for k in range(4)]
    return {
        "task": "classify",
        "sources": [{"file": f"{text}.csv", "sha256": "0" * 64}],
        "rows": 1000,
        "gold": 300,
        "accepted": 812,
        "review": 150,
        "refused": 38,
        "not_drawn": 20,
        "left_out": {f"gold: {text}": 3},
        "bound": f"at most 4.8 % are wrong, says {text}",
        "error_bound": 0.048,
        "wrong_at_most": 0.048,
        "max_error": 0.05,
        "confidence": 0.95,
        "kept_gold": 0.8,
        "teachers": [teacher, own],
        "currency": text,
        "labels": dict.fromkeys(names, 270),
        "never": [text],
        "confusion": pairs,
        "disagreements": pairs,
        "fields": dict.fromkeys(names, 0.01),
        "curve": [(k / 20, 0.002 * k, 0.01 + 0.003 * k) for k in range(3, 20)],
    }
