"""evaluate: every figure of the report, recomputed by other means."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmctl.artifact import Artifact, FileEntry, Manifest, load
from slmctl.config import EvaluateConfig
from slmctl.errors import UsageError
from slmctl.records import Record, write_jsonl
from slmctl.task import Task

metrics = pytest.importorskip("sklearn.metrics")

from slmctl.model import evaluate  # noqa: E402

LABELS = ("a", "b", "c", "d")
SCHEMA = {"type": "object", "required": ["order"], "properties": {"order": {"type": "string"}}}


def task_of(kind: str) -> Task:
    return Task(kind, "", "", labels=LABELS if kind == "classify" else (), schema=SCHEMA if kind == "extract" else None)


def records_of(answers: Sequence[str], inputs: Sequence[str] = ()) -> list[Record]:
    return [
        Record(
            id=f"r{k}",
            messages=(
                {"role": "user", "content": inputs[k] if inputs else f"input {k}"},
                {"role": "assistant", "content": answer},
            ),
            source={"file": "x.csv", "row": k + 1},
        )
        for k, answer in enumerate(answers)
    ]


@pytest.fixture
def report(tmp_path: Path) -> Any:
    """A report on made-up answers of made-up models."""

    def call(
        kind: str, wanted: list[str], given: dict[str, list[str]], train: list[str] | None = None
    ) -> dict[str, Any]:
        prepared = tmp_path / "prepared"
        prepared.mkdir(exist_ok=True)
        task_of(kind).write(prepared)
        write_jsonl(prepared / "test.jsonl", (r.to_json() for r in records_of(wanted)))
        write_jsonl(prepared / "train.jsonl", (r.to_json() for r in records_of(train or wanted)))
        predictions = []
        for name, texts in given.items():
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            write_jsonl(folder / "predictions.jsonl", ({"id": f"r{k}", "answer": t} for k, t in enumerate(texts)))
            facts = {
                "model": name,
                "kind": "gguf",
                "split": "test",
                "size": 1,
                "sha256": name,
                "latency_ms": {"median": 1.0, "p95": 2.0, "n": 1},
                "rows_per_s": 1.0,
                "prompt_lists_labels": False,
            }
            predictions.append(wrap(folder, "predictions", facts))
        (tmp_path / "out").mkdir(exist_ok=True)
        return evaluate.run(
            EvaluateConfig(), predictions=predictions, prepared=wrap(prepared, "prepared", {}), out=tmp_path / "out"
        )

    return call


def wrap(folder: Path, kind: str, facts: dict[str, Any]) -> Artifact:
    files = tuple(FileEntry(path.name, path.stat().st_size, "") for path in sorted(folder.iterdir()))
    return Artifact(folder, Manifest(kind, "test/1", f"sha256:{folder.name}", "", {}, {}, files, facts))


WANTED = ["a", "b", "c", "a", "a", "b", "c", "c", "a", "b"]
GIVEN = ["a", "b", "a", "a", " c\n", "b", "c", "nonsense", "a", "a"]


def test_classification_agrees_with_scikit_learn(report: Any) -> None:
    found = report("classify", WANTED, {"Q8_0": GIVEN, "F16": WANTED})
    ours, read = found["models"]["Q8_0"], [text.strip() for text in GIVEN]
    assert ours["metrics"]["accuracy"] == pytest.approx(metrics.accuracy_score(WANTED, read))
    used = ["a", "b", "c"]
    theirs = metrics.precision_recall_fscore_support(WANTED, read, labels=used, zero_division=0)
    for k, label in enumerate(used):
        row = ours["per_class"][label]
        assert [row["precision"], row["recall"], row["f1"], row["support"]] == pytest.approx(
            [column[k] for column in theirs], abs=1e-6
        )
    assert set(ours["per_class"]) == set(used)
    assert ours["metrics"]["macro_f1"] == pytest.approx(theirs[2].mean(), abs=1e-6)
    assert found["models"]["F16"]["metrics"] == {"accuracy": 1.0, "macro_f1": 1.0}


@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=40))
def test_macro_f1_agrees_with_scikit_learn_on_any_answers(pairs: list[tuple[str, str]]) -> None:
    wanted, given_ = [a for a, _ in pairs], [b for _, b in pairs]
    ours = evaluate._scores(task_of("classify"), records_of(wanted), given_)["macro_f1"]
    assert ours == pytest.approx(metrics.f1_score(wanted, given_, average="macro", zero_division=0), abs=1e-5)


def test_pairs_count_rows(report: Any) -> None:
    found = report("classify", ["a", "a", "b", "b"], {"x": ["a", "b", "b", "a"], "y": ["a", "a", "a", "c"]})
    assert found["pairs"] == {
        "x|y": {"n": 4, "both": 1, "only_first": 1, "only_second": 1},
        "y|x": {"n": 4, "both": 1, "only_first": 1, "only_second": 1},
    }


def test_the_interval_is_wilsons(report: Any) -> None:
    found = report("classify", WANTED, {"Q8_0": GIVEN})["models"]["Q8_0"]
    n, share, z = 10, found["right"] / 10, 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert found["interval"] == pytest.approx([centre - half, centre + half], abs=1e-5)


def test_baselines_are_honest(report: Any) -> None:
    found = report("classify", WANTED, {"Q8_0": GIVEN}, train=["b"] * 5 + ["a"] * 4)
    assert found["baselines"]["majority"]["metrics"]["accuracy"] == 0.3  # `b`: chosen on training rows alone
    assert set(found["baselines"]) == {"majority", "tfidf_logistic"}


def test_a_baseline_that_wins_is_said_first(report: Any) -> None:
    found = report("classify", ["a"] * 10, {"Q8_0": ["b"] * 10}, train=["a"] * 3 + ["b"])
    assert "the baseline is the cheaper and better choice" in found["remarks"][0]
    assert found["remarks"][-1] == "Only 10 rows were measured: the intervals are wide."


EXTRACT = [
    '{"order": "A1", "items": ["x", "y"]}',
    '{"order": "A2"}',
    '{"order": "A3", "n": {"k": 1}}',
    '{"order": "A4"}',
]


def test_extraction_counts_fields(report: Any) -> None:
    answers = ['{"items": ["y", "x"], "order": "A1"}', '{"order": 2}', "no json", '{"order": "A4"}']
    found = report("extract", EXTRACT, {"Q8_0": answers})["models"]["Q8_0"]["metrics"]
    assert found["exact_match"] == 0.25  # a list in another order is another list
    assert found["valid_json"] == 0.75
    assert found["valid_schema"] == 0.5
    hits, wanted, given_ = 3 + 0 + 0 + 1, 3 + 1 + 2 + 1, 3 + 1 + 0 + 1
    assert found["field_f1"] == pytest.approx(2 * hits / (wanted + given_), abs=1e-6)


def test_key_order_and_spaces_are_no_difference(report: Any) -> None:
    found = report("extract", ['{"order": "A", "n": 1}'], {"Q8_0": ['\n{"n":1,  "order":"A"} ']})
    assert found["models"]["Q8_0"]["metrics"]["exact_match"] == 1.0


def test_generation_counts_words(report: Any) -> None:
    found = report("generate", ["Dear Ann, we refund you.", "Yes"], {"Q8_0": ["dear ann we refund you", "no yes"]})
    ours = found["models"]["Q8_0"]["metrics"]
    assert ours["exact_match"] == 0.5
    assert ours["token_f1"] == pytest.approx((1 + 2 / 3) / 2, abs=1e-6)
    assert set(found["baselines"]) == {"copy", "empty"}
    assert found["baselines"]["empty"]["metrics"]["token_f1"] == 0.0


def test_models_are_compared_on_the_same_rows_only(report: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="answers other rows than the prepared data set holds"):
        report("classify", ["a", "b"], {"Q8_0": ["a"]})


def test_a_model_is_given_once(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    twice = [artifacts["predictions"]] * 2
    with pytest.raises(UsageError, match="two of the models are both called"):
        evaluate.run(EvaluateConfig(), predictions=twice, prepared=artifacts["prepared"], out=tmp_path)


def test_the_report_follows_from_the_predictions(tiny_run: Path, artifacts: dict[str, Artifact]) -> None:
    made = json.loads(artifacts["report"].file("report.json").read_bytes())
    assert made == artifacts["report"].metrics
    right: dict[str, list[bool]] = {}
    for path in tiny_run.glob("runs/predictions/*"):
        predictions = load(path)
        rows = [json.loads(line) for line in predictions.file("predictions.jsonl").read_text().splitlines()]
        name = predictions.metrics["model"]
        right[name] = [row["answer"] == row["expected"] for row in rows]
        model = made["models"][name]
        assert model["right"] == sum(right[name])
        assert model["metrics"]["accuracy"] == pytest.approx(sum(right[name]) / len(rows), abs=1e-6)
        assert model["predictions"] == predictions.digest
        wanted, answers = [row["expected"] for row in rows], [row["answer"] for row in rows]
        f1 = metrics.f1_score(wanted, answers, average="macro", zero_division=0)
        assert model["metrics"]["macro_f1"] == pytest.approx(f1, abs=1e-5)
    assert set(right) == set(made["models"])
    for pair, counts in made["pairs"].items():
        first, second = pair.split("|")
        table = Counter(zip(right[first], right[second], strict=True))
        assert counts == {
            "n": len(right[first]), "both": table[True, True],
            "only_first": table[True, False], "only_second": table[False, True],
        }  # fmt: skip


def test_the_table_shows_the_figures(artifacts: dict[str, Artifact]) -> None:
    made, text = artifacts["report"].metrics, artifacts["report"].file("report.md").read_text(encoding="utf-8")
    for name, model in made["models"].items():
        (row,) = [line for line in text.splitlines() if re.match(rf"\|\s*{name}\s*\|", line)]
        assert f"{model['metrics']['accuracy']:.1%}" in row
    for remark in made["remarks"]:
        assert remark in text
