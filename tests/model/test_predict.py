"""predict: HF and GGUF answer alike, and a user's file comes back as it was, answered."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from slmctl import engine, pipeline
from slmctl.artifact import Artifact, load
from slmctl.config import PredictConfig
from slmctl.errors import DataError, UsageError
from slmctl.model import predict
from slmctl.task import Task

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def lines(tiny_run: Path) -> dict[str, list[dict[str, Any]]]:
    """predictions.jsonl of each model of the tiny run, by the model's name."""
    found = {}
    for path in tiny_run.glob("runs/predictions/*"):
        made = load(path)
        text = made.file("predictions.jsonl").read_text(encoding="utf-8")
        found[made.metrics["model"]] = [json.loads(line) for line in text.splitlines()]
    return found


def test_predictions_are_in_the_records_order(
    lines: dict[str, list[dict[str, Any]]], artifacts: dict[str, Artifact]
) -> None:
    wanted = [json.loads(line)["id"] for line in artifacts["prepared"].file("test.jsonl").read_text().splitlines()]
    assert set(lines) == {"base", "adapter", "F16", "Q8_0"}
    for rows in lines.values():
        assert [row["id"] for row in rows] == wanted
        assert {row["answer"] for row in rows} <= set(tiny.WORDS)
        assert all(0 < row["confidence"] <= 1 for row in rows)


def test_hf_and_gguf_answer_alike(lines: dict[str, list[dict[str, Any]]]) -> None:
    for ours, theirs in zip(lines["adapter"], lines["F16"], strict=True):
        assert ours["prompt_tokens"] == theirs["prompt_tokens"]
        assert ours["confidence"] == pytest.approx(theirs["confidence"], abs=0.03)
        if abs(ours["confidence"] - 0.5) > 0.05:  # where the two best are not level
            assert ours["answer"] == theirs["answer"]


def test_merged_answers_like_adapter_on_base(
    artifacts: dict[str, Artifact], lines: dict[str, Any], tmp_path: Path
) -> None:
    metrics = predict.run(PredictConfig(), model=artifacts["merged"], prepared=artifacts["prepared"], out=tmp_path)
    assert (metrics["model"], metrics["n"]) == ("merged", len(lines["adapter"]))
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    for ours, theirs in zip(rows, lines["adapter"], strict=True):
        assert ours["answer"] == theirs["answer"]
        assert ours["confidence"] == pytest.approx(theirs["confidence"], abs=1e-3)


def test_free_text_is_alike_too(artifacts: dict[str, Artifact]) -> None:
    task = Task(**{**Task.read(artifacts["gguf"].path).__dict__, "kind": "generate", "labels": ()})
    prompts = [predict.prompt(task, text) for text, _ in tiny.rows(12, seed=5)]
    answers = {}
    for name in ("merged", "gguf"):
        with predict.opened(artifacts[name], task, type="F16", max_tokens=8) as (answerer, _):
            found = dict(answerer.answer(prompts))
        answers[name] = [found[k] for k in range(len(prompts))]
    for ours, theirs in zip(answers["merged"], answers["gguf"], strict=True):
        assert isinstance(ours, engine.Answer)
        assert isinstance(theirs, engine.Answer)
        assert (ours.text, ours.finish, ours.completion_tokens) == (
            theirs.text,
            theirs.finish,
            theirs.completion_tokens,
        )
        assert ours.confidence == pytest.approx(theirs.confidence, abs=0.05)


def test_the_base_is_told_the_labels_and_a_tuned_model_is_not(artifacts: dict[str, Artifact]) -> None:
    task = Task.read(artifacts["gguf"].path)
    assert "Answer with one of: account, billing, delivery." in predict.prompt(task, "x", list_labels=True).text
    plain = predict.prompt(task, "where is it")
    assert "Answer with" not in plain.text
    assert plain.text.startswith(plain.prefix)
    assert plain.prefix.endswith("user\n")


def test_a_gguf_with_several_files_needs_a_type(artifacts: dict[str, Artifact]) -> None:
    with pytest.raises(UsageError, match="has these GGUF files: ") as caught:
        predict.choose_gguf(artifacts["gguf"], None)
    assert "--type" in caught.value.hint
    assert predict.choose_gguf(artifacts["gguf"], "Q8_0").path.endswith("-Q8_0.gguf")


def test_f16_is_not_the_end_of_bf16() -> None:
    assert engine.is_type("tiny-v1.0-BF16.gguf", "BF16")
    assert not engine.is_type("tiny-v1.0-BF16.gguf", "F16")
    assert engine.is_type("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1")


@pytest.mark.parametrize("type_name", ["8_0", "q8_0", "16"])
def test_a_type_is_a_whole_word(artifacts: dict[str, Artifact], type_name: str) -> None:
    with pytest.raises(UsageError):
        predict.choose_gguf(artifacts["gguf"], type_name)


# A user's own file


ROWS = [
    {"id": "1", "text": "refund my card", "note": "a, b"},
    {"id": "2", "text": "", "note": 'say "hi"'},
    {"id": "3", "text": "courier\nlate", "note": ""},
    {"id": "4", "text": "=cmd()", "note": "你好"},
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, ["id", "text", "note"])
        writer.writeheader()
        writer.writerows(ROWS)
    return path


def check(rows: list[dict[str, Any]], empty: Any) -> None:
    assert [{name: row[name] for name in ROWS[0]} for row in rows] == ROWS
    assert [row["answer"] in tiny.WORDS for row in rows] == [True, False, True, True]
    assert rows[1]["error"] == "'text' is empty"
    assert [row["error"] for row in rows if row["id"] != "2"] == [empty] * 3


def test_csv_in_and_out(tiny_run: Path, source: Path) -> None:
    target = source.with_name("out.csv")
    done = tiny.slmctl(tiny_run, "predict", "--input", str(source), "--output", str(target))
    assert tiny.ok(done) == ""
    assert "4 rows written" in done.stderr
    assert "1 with an error" in done.stderr
    with target.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[3]["text"] == "'=cmd()"  # a spreadsheet would have run it
    rows[3]["text"] = rows[3]["text"].removeprefix("'")
    check(rows, "")
    assert not list(source.parent.glob(".*.part"))


def test_a_release_alone_answers_on_stdout(tiny_run: Path, source: Path) -> None:
    release = tiny_run / "registry" / "tiny-desk" / "1.0"
    done = tiny.slmctl(
        source.parent, "predict", str(release), "--input", str(source), "--output", "-", "--column", "text"
    )
    check([json.loads(line) for line in tiny.ok(done).splitlines()], None)


def test_jsonl_with_a_bad_line(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"text": "refund", "n": 1}\nnot json\n{"other": 2}\n{"text": "late", "n": null}\n')
    task = Task.read(artifacts["gguf"].path)
    with predict.opened(artifacts["gguf"], task, type="F16") as (answerer, _):
        counts = predict.answer_file(answerer, task, source=source, target=target, column="text", list_labels=False)
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert counts == (4, 2)
    assert [row.get("n") for row in rows] == [1, None, None, None]
    assert rows[1]["error"].startswith("not valid JSON")
    assert rows[2]["error"] == "'text' is empty"
    assert [row["error"] is None for row in rows] == [True, False, False, True]


def test_a_row_that_is_too_long_gets_its_error(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"text": "hello " * 3000}) + "\n" + json.dumps({"text": "refund"}) + "\n")
    task = Task.read(artifacts["gguf"].path)
    with predict.opened(artifacts["gguf"], task, type="F16") as (answerer, _):
        counts = predict.answer_file(answerer, task, source=source, target=target, column="text", list_labels=False)
    first, second = [json.loads(line) for line in target.read_text().splitlines()]
    assert counts == (2, 1)
    assert "does not fit the context" in first["error"]
    assert second["answer"] in tiny.WORDS


class Silent:
    """An answerer that must not be asked."""

    def answer(self, prompts: Any) -> Any:
        assert not list(prompts)
        return iter(())


@pytest.mark.parametrize(
    ("name", "text", "target", "error"),
    [
        ("in.csv", "text\n", "out.csv", DataError),
        ("in.csv", "other\nx\n", "out.csv", DataError),
        ("in.xlsx", "", "out.csv", DataError),
        ("in.csv", "text\n\n", "out.csv", DataError),
    ],
)
def test_files_that_cannot_be_answered_are_refused(
    artifacts: dict[str, Artifact], tmp_path: Path, name: str, text: str, target: str, error: type[Exception]
) -> None:
    (tmp_path / name).write_text(text)
    task = Task.read(artifacts["gguf"].path)
    with pytest.raises(error):
        predict.answer_file(
            Silent(), task, source=tmp_path / name, target=tmp_path / target, column="text", list_labels=False
        )
    assert not (tmp_path / target).exists()


def test_an_unknown_target_is_refused_before_the_work(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("text\nrefund\n")
    task = Task.read(artifacts["gguf"].path)
    with pytest.raises(UsageError, match="of an unknown kind"):
        predict.answer_file(
            Silent(), task, source=tmp_path / "in.csv", target=tmp_path / "out.xlsx", column="text", list_labels=False
        )


def test_input_and_output_come_together(tiny_run: Path, source: Path) -> None:
    done = tiny.slmctl(tiny_run, "predict", "--input", str(source))
    assert done.returncode == 2
    assert "--input and --output come together" in done.stderr


def test_the_role_of_the_model_takes_what_the_design_says() -> None:
    assert pipeline.STAGES["predict"].takes[0].kinds == ("gguf", "base", "adapter", "merged", "published")
