"""predict: HF and GGUF answer alike, and a user's file comes back as it was, answered."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support import tiny

from slmctl import config, models
from slmctl.artifacts.artifact import Artifact, load
from slmctl.config import PredictConfig
from slmctl.errors import DataError, UsageError
from slmctl.inference import engine, json_grammar
from slmctl.model_files import gguf_choice
from slmctl.models import hf, prompts
from slmctl.pipeline import predictions
from slmctl.pipeline.graph import Project, stage_class
from slmctl.stages.predict import latency, predict
from slmctl.task import untuned_prompt
from slmctl.task.contract import Task
from slmctl.task.records import read_records

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
    wanted = [
        json.loads(line)["id"]
        for line in artifacts["prepared"].file("test.jsonl").read_text().splitlines()
    ]
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
    metrics = predict.run(
        PredictConfig(), model=artifacts["merged"], prepared=artifacts["prepared"], out=tmp_path
    )
    assert (metrics["model"], metrics["n"]) == ("merged", len(lines["adapter"]))
    assert metrics["matmul_dtype"] == config.resolve_matmul_dtype("auto")
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    for ours, theirs in zip(rows, lines["adapter"], strict=True):
        assert ours["answer"] == theirs["answer"]
        assert ours["confidence"] == pytest.approx(theirs["confidence"], abs=1e-3)


@pytest.fixture
def exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """HF models multiply in float32: a model that knows nothing chooses
    between tokens that are nearly level.
    """
    monkeypatch.setattr(hf, "resolve_matmul_dtype", lambda wanted: "float32")


def answers_of(
    artifact: Artifact, task: Task, questions: Sequence[prompts.Prompt], max_tokens: int = 8
) -> list[engine.Answer | engine.EngineError]:
    with models.of(artifact, type="F16").open(task, max_tokens=max_tokens) as answerer:
        found = dict(answerer.answer(questions))
    return [found[k] for k in range(len(questions))]


def both(
    artifacts: dict[str, Artifact], task: Task, texts: list[str], max_tokens: int = 8
) -> list[tuple[engine.Answer, engine.Answer]]:
    """The answers of transformers and of llama.cpp to each text."""
    questions = [*prompts.of_texts(task, texts)]
    ours, theirs = (
        answers_of(artifacts[name], task, questions, max_tokens) for name in ("merged", "gguf")
    )
    assert all(isinstance(answer, engine.Answer) for answer in (*ours, *theirs))
    return list(zip(ours, theirs, strict=True))  # type: ignore[arg-type]  # none is an error


def texts(count: int, seed: int) -> list[str]:
    return [text for text, _ in tiny.rows(count, seed=seed)]


def of_kind(artifacts: dict[str, Artifact], **fields: Any) -> Task:
    """The task of the tiny run with other fields."""
    return dataclasses.replace(Task.read(artifacts["gguf"].path), **fields)


SCHEMA = {
    "type": "object",
    "properties": {
        "topic": {"enum": ["billing", "delivery"]},
        "lines": {
            "type": "array",
            "items": {"type": "integer", "minimum": 1, "maximum": 30},
            "maxItems": 2,
        },
        "note": {"type": "string", "maxLength": 6},
    },
    "required": ["topic", "lines", "note"],
    "additionalProperties": False,
}


@pytest.mark.usefixtures("exact_products")
@pytest.mark.parametrize(
    ("kind", "schema", "most", "near"),
    [("generate", None, 8, {"abs": 0.05}), ("extract", SCHEMA, 80, {"rel": 0.1, "abs": 1e-6})],
)
def test_texts_of_hf_and_gguf_are_alike(
    artifacts: dict[str, Artifact], kind: str, schema: Any, most: int, near: dict[str, float]
) -> None:
    task = of_kind(artifacts, kind=kind, labels=(), schema=schema)
    for ours, theirs in both(artifacts, task, texts(12, seed=5), most):
        assert ours.text == theirs.text
        assert (ours.finish, ours.completion_tokens) == (theirs.finish, theirs.completion_tokens)
        assert ours.confidence == pytest.approx(theirs.confidence, **near)
        assert task.accepts(ours.text), ours.text
        if schema:
            assert ours.text == json.dumps(
                json.loads(ours.text), ensure_ascii=False, sort_keys=True
            )


def test_a_schema_that_no_grammar_expresses_is_named(artifacts: dict[str, Artifact]) -> None:
    task = of_kind(
        artifacts, kind="extract", labels=(), schema={"type": "array", "uniqueItems": True}
    )
    for name in ("merged", "gguf"):
        with pytest.raises(DataError, match="uniqueItems"):
            answers_of(artifacts[name], task, [])


def test_a_prompt_that_does_not_fit_fails_alone(artifacts: dict[str, Artifact]) -> None:
    task = Task.read(artifacts["gguf"].path)
    questions = [*prompts.of_texts(task, ["hello " * 5000, "refund"]), prompts.Prompt("")]
    for name in ("merged", "gguf"):
        long, good, empty = answers_of(artifacts[name], task, questions)
        assert isinstance(long, engine.EngineError) and "does not fit the context" in long.message
        assert isinstance(good, engine.Answer)
        assert isinstance(empty, engine.EngineError)


def test_a_long_prompt_is_answered_in_a_longer_context(artifacts: dict[str, Artifact]) -> None:
    task = Task.read(artifacts["gguf"].path)
    answers = {}
    for name in ("gguf", "merged"):
        with models.of(artifacts[name], type="F16").open(task) as answerer:
            if isinstance(answerer.model, engine.Engine):
                each = len(answerer.model.tokenize("hello " * 100)) / 100
                texts = ["hello " * int(3000 / each), "refund", "hello " * int(5000 / each)]
            found = dict(answerer.answer([*prompts.of_texts(task, texts)]))
            again = dict(answerer.answer([*prompts.of_texts(task, ["refund"])]))[0]
            # what the model was trained on, in the same memory
            if isinstance(answerer.model, engine.Engine):
                assert (answerer.model.context, answerer.model.sequences) == (4096, 8)
        assert isinstance(again, engine.Answer)
        assert isinstance(found[2], engine.EngineError)
        assert "does not fit the context of 4096" in found[2].message
        answers[name] = found
    for k in (0, 1):
        ours, theirs = answers["merged"][k], answers["gguf"][k]
        assert isinstance(ours, engine.Answer) and isinstance(theirs, engine.Answer)
        assert ours.prompt_tokens == theirs.prompt_tokens
        assert ours.confidence == pytest.approx(theirs.confidence, abs=0.05)


def test_labels_that_begin_alike_have_the_same_probabilities_in_hf_and_gguf(
    artifacts: dict[str, Artifact],
) -> None:
    task = of_kind(artifacts, labels=("card_arrival", "card_lost", "card_lost_abroad"))
    for ours, theirs in both(artifacts, task, texts(6, seed=7)):
        assert ours.labels == pytest.approx(theirs.labels, abs=0.03)
        assert sum(ours.labels.values()) <= 1.001


TAIL = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}, "z": {"const": "please hello today again"}},
    "required": ["a", "z"],
    "additionalProperties": False,
}


def test_json_that_is_cut_in_what_is_forced_says_so(artifacts: dict[str, Artifact]) -> None:
    task = of_kind(artifacts, kind="extract", labels=(), schema=TAIL)
    for name in ("merged", "gguf"):
        finished = {}
        most = 80
        for cut in (0, 0, 2):  # the second time with just enough tokens
            (answer,) = answers_of(
                artifacts[name], task, [*prompts.of_texts(task, ["refund"])], most - cut
            )
            assert isinstance(answer, engine.Answer)
            most = answer.completion_tokens
            finished[most] = answer.finish
        whole, short = sorted(finished, reverse=True)
        assert whole - short == 2
        assert finished == {whole: "stop", short: "length"}


@pytest.mark.parametrize("fault", ["allowed", "accept"])
def test_a_grammar_that_cannot_go_on_is_the_fault_of_one_row(
    artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    task = of_kind(artifacts, kind="extract", labels=(), schema=SCHEMA)
    method = getattr(json_grammar.Walk, fault)
    calls: list[Any] = []

    def once(self: json_grammar.Walk, *args: Any) -> Any:
        calls.append(args)
        if len(calls) > 1:
            return method(self, *args)
        if fault == "accept":
            raise DataError("the grammar cannot go on: too complex")
        return method(self)[:0]

    monkeypatch.setattr(json_grammar.Walk, fault, once)
    found = answers_of(artifacts["merged"], task, [*prompts.of_texts(task, texts(3, seed=6))], 80)
    (wrong,) = [answer for answer in found if isinstance(answer, engine.EngineError)]
    assert wrong.message.startswith("the grammar ")
    assert all(task.accepts(answer.text) for answer in found if isinstance(answer, engine.Answer))


def test_lines_hold_the_likeliest_labels(lines: dict[str, list[dict[str, Any]]]) -> None:
    for rows in lines.values():
        for row in rows:
            assert row["labels"][row["answer"]] == row["confidence"] == max(row["labels"].values())
            assert sum(row["labels"].values()) <= 1.001


def test_the_base_is_told_the_labels_and_a_tuned_model_is_not(
    artifacts: dict[str, Artifact],
) -> None:
    task = Task.read(artifacts["gguf"].path)
    (listing,) = prompts.of_texts(task, ["x"], list_labels=True)
    assert "Answer with one of: account, billing, delivery." in listing.text
    (plain,) = prompts.of_texts(task, ["where is it"])
    assert "Answer with" not in plain.text
    assert plain.text.startswith(plain.prefix)
    assert plain.prefix.endswith("user\n")


def test_a_few_shot_prompt_tells_the_task_and_shows_training_rows(
    artifacts: dict[str, Artifact],
) -> None:
    task = Task.read(artifacts["prepared"].path)
    train, asked = (
        read_records(artifacts["prepared"].file(f"{split}.jsonl")) for split in ("train", "test")
    )
    made = prompts.few_shot(task, untuned_prompt.shots(task, train, 3), asked)
    contents = [message["content"] for message in made[0].messages]
    assert contents[0] == untuned_prompt.brief(task)
    assert [turn["role"] for turn in made[0].messages] == [
        "system",
        *["user", "assistant"] * 3,
        "user",
    ]
    assert {(contents[k], contents[k + 1]) for k in (1, 3, 5)} <= {
        (row.input, row.answer) for row in train
    }
    assert contents[-1] == asked[0].input
    assert all(
        prompt.text.startswith(prompt.prefix) and contents[5] in prompt.prefix for prompt in made
    )


def test_the_base_is_measured_with_examples_too(
    tiny_run: Path, artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    answered = predict.run(
        PredictConfig(shots=2),
        model=artifacts["base"],
        prepared=artifacts["prepared"],
        out=tmp_path,
    )
    assert (answered["model"], answered["shots"]) == ("base (2-shot)", 2)
    made = config.load(tiny_run / "slmctl.yaml")
    project = Project(
        tiny_run, made.model_copy(update={"predict": made.predict.model_copy(update={"shots": 2})})
    )
    assert [request.section.shots for request in predictions.predictions_of(project, "base")] == [2]
    assert [
        request.section.shots for request in predictions.predictions_of(project, "adapter")
    ] == [None]


def test_the_base_answers_a_sample_unless_a_gate_names_it(
    tiny_run: Path,
    artifacts: dict[str, Artifact],
    lines: dict[str, list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    (tmp_path / "drawn").mkdir()
    section = PredictConfig(whole_labels=True, sample=7)
    metrics = predict.run(
        section, model=artifacts["base"], prepared=artifacts["prepared"], out=tmp_path / "drawn"
    )
    found = [
        json.loads(line)
        for line in (tmp_path / "drawn" / "predictions.jsonl").read_text().splitlines()
    ]
    asked = [
        (ours, whole)
        for ours, whole in zip(found, lines["base"], strict=True)
        if "not_sent" not in ours
    ]
    assert metrics["sample"] == len(asked) == 7 < metrics["n"] == len(found)
    assert all(ours["answer"] == whole["answer"] for ours, whole in asked)
    assert {line["answer"] for line in found if "not_sent" in line} == {None}
    records = read_records(artifacts["prepared"].file("test.jsonl"))
    assert {record.id for record in predict.drawn(records, 7)} < {
        record.id for record in predict.drawn(records, 9)
    }

    for gates, kind, rows in (
        ([], "classify", predictions.SAMPLE),
        (
            [{"model": "Q8_0", "against": "adapter", "max_drop": 0.1}],
            "classify",
            predictions.SAMPLE,
        ),
        ([{"model": "Q8_0", "against": "base (2-shot)", "min_gain": 0}], "classify", 0),
        ([{"model": "base", "max": 0.5}], "classify", 0),
        ([], "generate", 0),
    ):
        made = config.load(tiny_run / "slmctl.yaml")
        task = made.task.model_copy(update={"kind": kind})
        made = made.model_copy(
            update={
                "gates": [config.Gate(metric="accuracy", **gate) for gate in gates],
                "task": task,
            }
        )
        assert predictions.base_sample(made) == rows


def test_an_untuned_base_alone_scores_whole_labels(
    tiny_run: Path,
    artifacts: dict[str, Artifact],
    lines: dict[str, list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    project = Project(tiny_run, config.load(tiny_run / "slmctl.yaml"))
    asked = {
        name: predictions.predictions_of(project, name)[0].recipe
        for name in ("base", "adapter", "gguf")
    }
    assert asked["base"].pop("whole_labels") is True
    # what was predicted before stays current
    assert not any("whole_labels" in recipe for recipe in asked.values())
    task, records = (
        Task.read(artifacts["prepared"].path),
        read_records(artifacts["prepared"].file("test.jsonl")),
    )
    questions = [prompts.asked(task, record, list_labels=True) for record in records]
    for ours, theirs in zip(
        lines["base"], answers_of(artifacts["base"], task, questions), strict=True
    ):
        assert isinstance(theirs, engine.Answer)
        assert (ours["answer"], ours["confidence"]) == (
            theirs.text,
            pytest.approx(theirs.confidence, rel=1e-4),
        )
    predict.run(
        PredictConfig(), model=artifacts["base"], prepared=artifacts["prepared"], out=tmp_path
    )
    before = [
        json.loads(line)["confidence"]
        for line in (tmp_path / "predictions.jsonl").read_text().splitlines()
    ]
    assert before != pytest.approx([line["confidence"] for line in lines["base"]], rel=1e-2)


@pytest.mark.parametrize(("seconds", "rows"), [(0.1, latency.ROWS), (9.0, latency.LEAST)])
def test_a_slow_model_is_timed_over_fewer_rows(
    monkeypatch: pytest.MonkeyPatch, seconds: float, rows: int
) -> None:
    clock = 0.0

    class Slow:
        def answer(
            self, asked: Sequence[prompts.Prompt]
        ) -> Iterator[tuple[int, engine.Answer | engine.EngineError]]:
            nonlocal clock
            clock += seconds * len(asked)
            yield 0, engine.EngineError("no matter")

    monkeypatch.setattr(latency.time, "monotonic", lambda: clock)
    measured = latency.one_by_one(Slow(), [prompts.Prompt("a question", "")] * 40)
    assert measured["n"] == rows and measured["median"] == measured["p95"] == pytest.approx(
        1000 * seconds
    )


def test_of_several_gguf_files_the_smallest_answers(artifacts: dict[str, Artifact]) -> None:
    sizes = {entry.path: entry.size for entry in artifacts["gguf"].files(".gguf")}
    assert gguf_choice.gguf_file(artifacts["gguf"]).path == min(sizes, key=lambda path: sizes[path])
    assert gguf_choice.gguf_file(artifacts["gguf"], "Q8_0").path.endswith("-Q8_0.gguf")


def test_f16_is_not_the_end_of_bf16() -> None:
    assert gguf_choice.is_type("tiny-v1.0-BF16.gguf", "BF16")
    assert not gguf_choice.is_type("tiny-v1.0-BF16.gguf", "F16")
    assert gguf_choice.is_type("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1")


@pytest.mark.parametrize("type_name", ["8_0", "q8_0", "16"])
def test_a_type_is_a_whole_word(artifacts: dict[str, Artifact], type_name: str) -> None:
    with pytest.raises(UsageError):
        gguf_choice.gguf_file(artifacts["gguf"], type_name)


def test_the_role_of_the_model_takes_what_the_design_says() -> None:
    assert stage_class("predict").takes[0].kinds == (
        "gguf",
        "base",
        "adapter",
        "merged",
        "published",
        "encoder",
        "sum",
    )
