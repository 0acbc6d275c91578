"""A general model asked through an endpoint: what is sent, what never, and what is asked once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import endpoint, handmade, teacher, tiny
from support.endpoint import fails, says
from support.forks import Forks
from support.scale import sampled

from slmctl import config
from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact
from slmctl.errors import DataError, NetworkError, UsageError
from slmctl.network import endpoint_pool, openai_client
from slmctl.network.endpoint_replies import Reply
from slmctl.pipeline import predictions, runner
from slmctl.pipeline.graph import Project
from slmctl.stages.predict import endpoint_predictions
from slmctl.task import untuned_prompt
from slmctl.task.contract import Task
from slmctl.task.records import Record, read_records, write_jsonl

# The stage, through the pipeline


@pytest.fixture
def desk_with_sensitive(tiny_run: Path, tmp_path: Path) -> Project:
    """The tiny project, some of whose records are marked sensitive."""
    project = Project(root=tmp_path, config=config.load(tiny_run / config.FILENAME))
    (source,) = (tiny_run / "runs" / "prepared").iterdir()
    old = artifact.load(source)

    def fill(place: Path) -> None:
        for entry in old.manifest.files:
            (place / entry.path).write_bytes(old.file(entry.path).read_bytes())
        for split in ("train", "test"):
            records = read_records(old.file(f"{split}.jsonl"))
            marked = [one.to_json() | {"sensitive": k % 5 == 0} for k, one in enumerate(records)]
            write_jsonl(place / f"{split}.jsonl", marked)

    project._current["prepared"] = handmade.make(tmp_path / "runs" / "prepared" / "marked", fill)
    return project


def answered(project: Project, url: str, shots: int | None = None, **asking: Any) -> Artifact:
    against = predictions.EndpointModel(url, "large", config.Asking(**asking))
    return runner.run(project, against.request(project, shots, None)).artifact


def test_sensitive_records_are_never_sent(desk_with_sensitive: Project) -> None:
    prepared = desk_with_sensitive._current["prepared"]
    questions = {r.input for r in read_records(prepared.file("test.jsonl"))}
    secret = {
        r.input
        for split in ("train", "test")
        for r in read_records(prepared.file(f"{split}.jsonl"))
        if r.sensitive
    }
    with endpoint.serving(lambda body, before: says("Delivery!")) as fake:
        made = answered(desk_with_sensitive, fake.url, 40)
    sent = json.dumps(fake.bodies)
    assert secret
    assert all(body["messages"][-1]["role"] == "user" for body in fake.bodies)
    assert set(fake.questions) < questions
    assert not [text for text in secret if text in sent]
    lines = [json.loads(line) for line in made.file("predictions.jsonl").read_text().splitlines()]
    kept = [line for line in lines if line.get("not_sent") == "sensitive"]
    assert len(kept) == made.metrics["not_sent"] == len(lines) - len(fake.bodies) > 5
    assert all(line["answer"] is None for line in kept)
    assert {line["answer"] for line in lines} == {None, "delivery"}
    assert made.metrics["model"] == "large (40-shot)"
    assert made.metrics["kind"] == "endpoint"
    assert (made.metrics["labels_shown"], made.metrics["failed"]) == (3, 0)


def test_where_all_is_sensitive_nothing_is_asked(
    desk_with_sensitive: Project, tmp_path: Path
) -> None:
    old = desk_with_sensitive._current["prepared"]
    folder = tmp_path / "all"
    shutil.copytree(old.path, folder)
    records = read_records(folder / "test.jsonl")
    write_jsonl(folder / "test.jsonl", (one.to_json() | {"sensitive": True} for one in records))
    with endpoint.serving(lambda body, before: says("billing")) as fake:
        model = predictions.endpoint_artifact(
            desk_with_sensitive, predictions.EndpointModel(fake.url, "large", config.Asking()), 0
        )
        with pytest.raises(DataError, match="records is marked sensitive: none may be sent"):
            endpoint_predictions.run(
                config.PredictConfig(),
                model=model,
                prepared=artifact.Artifact(folder, old.manifest),
                out=tmp_path,
            )
    assert fake.bodies == []


def test_a_row_without_an_answer_does_not_stop_the_others(
    desk_with_sensitive: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_pool, "FIRST_WAIT_S", 0.001)

    def manners(body: dict[str, Any], before: int) -> endpoint.Turn:
        return (
            fails(400, "filtered")
            if "parcel" in body["messages"][-1]["content"]
            else says("billing")
        )

    with endpoint.serving(manners) as fake:
        made = answered(desk_with_sensitive, fake.url, 0)
    lines = [json.loads(line) for line in made.file("predictions.jsonl").read_text().splitlines()]
    wrong = [line for line in lines if line.get("error")]
    assert len(wrong) == made.metrics["failed"] > 0
    assert {line["error"] for line in wrong} == {"HTTP 400: filtered"}
    assert made.metrics["model"] == "large (zero-shot)"


def test_what_was_answered_before_a_failure_is_not_asked_again(
    desk_with_sensitive: Project,
) -> None:
    """Answers cost money, and here the money runs out after ten of them."""
    credit = [10]

    def manners(body: dict[str, Any], before: int) -> endpoint.Turn:
        credit[0] -= 1
        return says("account") if credit[0] >= 0 else fails(403, "no credit left")

    with endpoint.serving(manners) as fake:
        with pytest.raises(NetworkError, match="no credit left"):
            answered(desk_with_sensitive, fake.url, 0, concurrency=1)
        (written,) = (desk_with_sensitive.runs / ".endpoints").glob(".*.jsonl")
        with written.open("a") as stream:
            stream.write('{"key": "torn')  # as a kill leaves it
        assert len(fake.bodies) == 11  # nothing is asked of an endpoint that has refused the key
        first = fake.questions[:10]
        fake.bodies.clear()
        credit[0] = 1000
        made = answered(desk_with_sensitive, fake.url, 0)
    assert not set(first) & set(fake.questions)
    # some may be repeated
    sent = made.metrics["n"] - made.metrics["not_sent"] + made.metrics["retries"]
    assert len(first) + len(fake.questions) == sent
    assert made.metrics["failed"] == 0
    assert list((desk_with_sensitive.runs / ".endpoints").glob(".*.jsonl")) == []


def test_the_key_is_no_part_of_the_recipe(
    desk_with_sensitive: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", "made" + "-up")
    with endpoint.serving(lambda body, before: says("billing")) as fake:
        first = answered(desk_with_sensitive, fake.url, 0, key_env="A_KEY", concurrency=2)
        asked = len(fake.bodies)
        again = answered(desk_with_sensitive, fake.url, 0, concurrency=5)
        assert len(fake.bodies) == asked  # kept, and not asked again
    assert first.path == again.path
    everything = b"".join(
        path.read_bytes() for path in desk_with_sensitive.runs.rglob("*") if path.is_file()
    )
    assert b"made-up" not in everything
    assert b"A_KEY" not in everything


# The command


def test_evaluate_against(stages: Forks, desk: Path) -> None:
    """`slmctl evaluate --against` asks with and without examples, and
    reports both beside the tuned models.
    """
    with endpoint.serving(lambda body, before: says("billing")) as fake:
        path = tiny.ok(
            stages.run(
                desk,
                "evaluate",
                "--model",
                "gguf",
                "--against",
                fake.url,
                "--against-model",
                "large",
                "--against-shots",
                "6",
                "--set",
                "predict.endpoint.url=https://vendor.example/v1",
                "--set",
                "predict.endpoint.api=decisions",
                "--set",
                "predict.endpoint.key_env=VENDOR_KEY",
            )
        )
    # neither the form nor the key of the config's endpoint, which is another
    assert set(fake.paths) == {"/v1/chat/completions"}
    report = artifact.load(Path(path)).metrics
    assert report["participants"][-2:] == ["large (zero-shot)", "large (6-shot)"]
    large = report["models"]["large (6-shot)"]
    assert (large["kind"], large["size"], large["shots"], large["invalid"]) == (
        "endpoint",
        None,
        6,
        0,
    )
    assert large["tokens"] == {"prompt": 11 * report["n"], "completion": 3 * report["n"]}
    assert len(fake.bodies) == 2 * report["n"]
    assert {len(body["messages"]) for body in fake.bodies} == {2, 14}
    assert "Q8_0|large (zero-shot)" in report["pairs"]


@pytest.mark.parametrize("api", sampled(["chat", "decisions", "systemone"], ["chat"]))
def test_against_slmctls_own_server(stages: Forks, desk: Path, desk_url: str, api: str) -> None:
    (model,) = httpx.get(f"{desk_url}/v1/models").json()["data"]
    path = tiny.ok(
        stages.run(
            desk,
            "evaluate",
            "--model",
            "gguf",
            "--against",
            desk_url,
            "--against-model",
            model["id"],
            "--against-api",
            api,
        )
    )
    report = artifact.load(Path(path)).metrics
    participants = [name for name in report["participants"] if name.startswith(model["id"])]
    assert participants == [f"{model['id']} ({each})" for each in ("zero-shot", "3-shot")]
    # the server asks with the task's own system prompt, so without examples it answers as its file
    # does
    assert (
        report["models"][f"{model['id']} (zero-shot)"]["right"] == report["models"]["Q8_0"]["right"]
    )


@pytest.mark.parametrize("api", sampled(["decisions", "systemone", "chat"], ["decisions"]))
def test_a_decisions_api_is_measured_and_calibrated(stages: Forks, desk: Path, api: str) -> None:
    """Its figures are those of its labels; `calibrate --endpoint`
    bounds the errors of what it is sure of.
    """
    with endpoint.serving(teacher.decisions) as fake:
        settings = (
            "predict:\n  endpoint: {url: %s, model: large, api: %s, prices: {input: 0.1, "
            "output: 0}}\n"
        )
        more = "prices: {machine_per_hour: 0.2, input: 5, output: 5}\n" + settings % (fake.url, api)
        (desk / "slmctl.yaml").write_text((desk / "slmctl.yaml").read_text() + more)
        few = stages.run(desk, "calibrate", "--endpoint", "large")
        assert (few.returncode, fake.bodies) == (3, [])
        assert "calibration rows, and 200 are needed" in few.stderr
        splits = "output: category}]\n  splits: {calibration: 0.45, test: 0.1}\n"
        tiny.edit_config(desk, "output: category}]\n", splits)
        rows = tiny.rows(560)
        tiny.write_csv(
            desk / "tickets.csv", [(f"jane.doe@acme.com {text}", label) for text, label in rows]
        )
        tiny.ok(stages.run(desk, "prepare"))
        sensitive = stages.run(desk, "calibrate", "--endpoint", "large")
        assert (sensitive.returncode, fake.bodies) == (3, []), (
            "rows that are never sent do not count"
        )
        tiny.write_csv(desk / "tickets.csv", rows)
        tiny.ok(stages.run(desk, "prepare"))
        done = stages.run(desk, "calibrate", "--endpoint", "large")
        policy = artifact.load(Path(tiny.ok(done)))
        asked = len(fake.bodies)
        assert tiny.ok(stages.run(desk, "calibrate", "--endpoint", "large")) == str(policy.path)
        assert len(fake.bodies) == asked  # kept, and not asked again
        report = artifact.load(
            Path(tiny.ok(stages.run(desk, "evaluate", "--model", "base", "--against", "large")))
        )
    assert {path.rpartition("/")[2] for path in fake.paths} == {
        "completions" if api == "chat" else api
    }
    assert (policy.metrics["rows"], policy.metrics["error_bound"] < 0.05) == (asked, True)
    assert policy.metrics["kept"] == pytest.approx(0.9, abs=0.05)
    assert policy.metrics["least_confidence"] == pytest.approx(0.99) and policy.metrics["remote"]
    assert f"{asked} rows to ask, at most 0.0" in done.stderr
    assert (
        "act on what large (zero-shot) answers with a probability of 0.9900 and more" in done.stderr
    )
    large = report.metrics["models"]["large (zero-shot)"]
    if api == "chat":  # which `evaluate` asks for no probabilities
        return
    texts, bodies = fake.questions[asked:], fake.bodies[asked:]
    shown = [json.dumps(body["questions"]).count("For example: ") for body in bodies]
    assert sorted(set(shown)) == [0, len(tiny.WORDS)]  # an example a label, in its description
    texts = [text for text, examples in zip(texts, shown, strict=True) if not examples]
    assert len(texts) * 2 == len(bodies)
    right = [teacher.decided(text)[0] == teacher.label_of(text) for text in texts]
    assert (large["n"], large["right"]) == (len(texts), sum(right))
    brier = sum((0.01 if each else 0.6) ** 2 for each in right) / len(right)
    assert large["metrics"]["brier"] == pytest.approx(brier, abs=1e-6)
    assert report.metrics["break_even"]["api_per_million_input_tokens"] == 0.1
    assert large["tokens"]["prompt"] == 40 * report.metrics["n"]


def test_the_two_flags_come_together(tiny_run: Path) -> None:
    with pytest.raises(UsageError, match="--against and --against-model come together"):
        teacher.slmctl(tiny_run, "evaluate", "--against", "http://127.0.0.1:9/v1")


# Tools

CALLS = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}CALL {{ c.function | tojson }}{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}<|end|>\n{% endfor %}{% if add_generation_prompt "
    "%}<|assistant|>{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "refund", "parameters": {"type": "object"}}}


def test_tools_are_sent_and_a_call_is_read_in_the_words_of_the_template(tmp_path: Path) -> None:
    task = Task("generate", CALLS, "<|end|>")
    wanted = 'CALL {"name": "refund", "arguments": {"order": 7}}'
    turns = (
        {"role": "user", "content": "where is my money"},
        {"role": "assistant", "content": 'CALL {"name": "look_up", "arguments": {}}'},
        {"role": "tool", "name": "look_up", "content": "order 7"},
        {"role": "assistant", "content": wanted},
    )
    one = Record("a", turns, {"file": "x.jsonl", "row": 1}, tools=(TOOL,))
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "refund", "arguments": '{"order": 7}'},
    }
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    with endpoint.serving(
        lambda body, before: says(
            None, choices=[{"message": message, "finish_reason": "tool_calls"}]
        )
    ) as fake:
        asked = openai_client.EndpointRequest(
            untuned_prompt.turns(task, one)[:-1], tools=one.tools or ()
        )
        ((_, reply),) = endpoint_pool.EndpointPool([fake.url], "large").ask_all([asked])
    (body,) = fake.bodies
    assert body["tools"] == [TOOL]
    # ids of calls are not kept
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][-1]["content"] == "look_up returned: order 7"
    line = endpoint_predictions._line(task, one, reply)
    assert (line["answer"], line["expected"]) == (wanted, wanted)
    odd = Reply("no", "stop", 1, 1, 0.1, tool_calls=[{"function": None}, 3])
    assert endpoint_predictions._line(task, one, odd)["answer"] == "no"
