"""The sum of a file with its linear members: from the weights by
validation rows to a release that serves it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import queue
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from support import here, teacher, tiny
from support.forks import Forks

from slmctl.artifacts import artifact, lineage
from slmctl.artifacts.artifact import Artifact
from slmctl.config import Gate
from slmctl.console import percent
from slmctl.errors import UsageError
from slmctl.inference.engine import Answering, Request
from slmctl.inference.events import Event
from slmctl.metrics import gates, label_sum
from slmctl.metrics.encoder_head import EncoderHead
from slmctl.metrics.label_sum import LabelSum
from slmctl.model_files.gguf_choice import answering
from slmctl.models.linear_members import FLOOR, LinearMembers
from slmctl.models.onnx_encoder import Encoder
from slmctl.models.sum import SumEngine
from slmctl.reports.evaluation_report import parse_report
from slmctl.stages.evaluate import report_page, report_view
from slmctl.stages.evaluate.report_opening import Opening, RowsCurve
from slmctl.stages.publish import leak_scan


@pytest.fixture(scope="module")
def desk(tiny_run: Path, stages: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project with an encoder, whose members are all kept
    whatever they bring, up to its release 2.0.
    """
    folder = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("both") / "desk"))
    text = (folder / "slmctl.yaml").read_text().replace('version: "1.0"', 'version: "2.0"')
    text = text.replace("models: [base, adapter, gguf]", "models: [gguf]")
    (folder / "slmctl.yaml").write_text(text + "encode: {encoder: ./words}\nsum: {floor: 0}\n")
    tiny.build_encoder(folder / "words")
    tiny.ok(stages.run(folder, "run", "--yes"))
    return folder


def made(folder: Path, kind: str) -> Artifact:
    """The newest artifact of a kind."""
    found = [artifact.load(path) for path in folder.glob(f"runs/{kind}/[!.]*")]
    return max(found, key=lambda each: each.manifest.started)


def lines(
    desk: Path, stages: Forks, model: str, split: str = "test", quantized: str = "Q8_0"
) -> list[dict[str, Any]]:
    path = tiny.ok(stages.run(desk, "predict", model, "--split", split, "--type", quantized))
    return [
        json.loads(line) for line in (Path(path) / "predictions.jsonl").read_text().splitlines()
    ]


def test_it_is_the_sum_of_all(desk: Path, stages: Forks) -> None:
    records = [
        json.loads(line)
        for line in made(desk, "prepared").file("test.jsonl").read_text().splitlines()
    ]
    texts, summed = [record["messages"][-2]["content"] for record in records], made(desk, "sum")
    model = LabelSum.read(summed.file("sum.npz"))
    assert model.weights == summed.metrics["weights"] and {"file", "words"} <= model.weights.keys()
    vectors = np.zeros((len(texts), 0), np.float32)
    if model.head is not None:
        with Encoder(summed.path) as reader:
            vectors = reader.encode(texts)
    linear = label_sum.weighted(model.logprobs(texts, vectors), model.weights)
    for alone, both, scores in zip(
        lines(desk, stages, "gguf"), lines(desk, stages, "sum"), linear, strict=True
    ):
        own = [max(alone["labels"].get(label, 0.0), FLOOR) for label in model.labels]
        product = np.exp(scores + model.of_file * np.log(own))
        expected = dict(zip(model.labels, product / product.sum(), strict=True))
        assert both["labels"] == pytest.approx(
            {label: expected[label] for label in both["labels"]}, abs=0.01
        )  # the file's differ by its batches
        assert both["answer"] == max(expected, key=expected.__getitem__)
        assert math.isclose(both["confidence"], expected[both["answer"]], abs_tol=0.01)
        # how likely the model is to answer with any label stays a signal
        allowed = sum(alone["raw_logprobs"]) - sum(alone["logprobs"])
        assert sum(both["raw_logprobs"]) - sum(both["logprobs"]) == pytest.approx(allowed, abs=0.01)


def test_a_release_answers_with_it_and_says_so(desk: Path, stages: Forks) -> None:
    release, report = made(desk, "published"), made(desk, "report").metrics
    assert report["sum"]["model"] == report["focus"] == "Q8_0+sum"
    assert (
        report["sum"]["weights"]
        == release.metrics["sum"]["weights"]
        == made(desk, "sum").metrics["weights"]
    )
    names = {entry.path for entry in release.manifest.files}
    assert {"encoder.onnx", "sum.npz"} <= names and "validation.npz" not in names
    assert "+sum" in release.file("README.md").read_text()
    lineage = json.loads(release.file("lineage.intoto.json").read_bytes())
    assert release.metrics["sum"]["license"] == "mit"  # by the encoder's own file
    assert {"encoder.onnx", "sum.npz"} <= {subject["name"] for subject in lineage["subject"]}
    tiny.ok(stages.run(desk, "verify", str(release.path)))
    tiny.ok(stages.run(desk, "promote", "2.0", "--tag", "production"))
    measured = lines(desk, stages, "sum")
    records = [
        json.loads(line)
        for line in made(desk, "prepared").file("test.jsonl").read_text().splitlines()
    ]
    texts = [record["messages"][-2]["content"] for record in records]
    with here.opened(desk, model=str(desk / "registry" / "tiny-desk" / "2.0")) as server:
        for text, line in zip(texts[:8], measured, strict=False):
            body = {
                "model": "tiny-desk",
                "messages": [{"role": "user", "content": text}],
                "logprobs": True,
                "top_logprobs": 2,
            }
            reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
            assert reply["choices"][0]["message"]["content"] == line["answer"]
            (token,) = reply["choices"][0]["logprobs"]["content"]
            assert token["token"] == line["answer"] and len(token["top_logprobs"]) == 2
            assert token["logprob"] == pytest.approx(
                math.log(reply["slmctl"]["confidence"]), abs=1e-4
            )
            # alone, not in a batch
            assert reply["slmctl"]["confidence"] == pytest.approx(line["confidence"], abs=0.02)
            asked = {
                "type": "choice",
                "instructions": "Which?",
                "choices": [{"value": each} for each in tiny.LABELS],
            }
            body = {"input": text, "questions": [asked]}
            (decided,) = httpx.post(f"{server.url}/v1/decisions", json=body, timeout=60).json()[
                "answers"
            ]
            assert decided["choice"] == line["answer"]
            assert decided["confidence"] == pytest.approx(line["confidence"], abs=0.02)


@pytest.mark.slow
def test_such_a_release_goes_to_a_bucket_and_is_made_again(
    desk: Path, stages: Forks, s3: str, tmp_path: Path
) -> None:
    env = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_ENDPOINT_URL": s3}
    tiny.ok(stages.run(desk, "publish", "--to", "s3://models/both", env=env))
    back = Path(
        tiny.ok(
            stages.run(
                desk, "fetch", "s3://models/both#tiny-desk@2.0", str(tmp_path / "back"), env=env
            )
        )
    )
    release = made(desk, "published")
    assert {
        path.name: path.read_bytes() for path in back.iterdir() if path.name != "manifest.json"
    } == {entry.path: release.file(entry.path).read_bytes() for entry in release.manifest.files}
    tiny.ok(stages.run(desk, "verify", str(back)))
    for artifact_ in (made(desk, "report"), release):
        done = stages.run(desk, "reproduce", str(artifact_.path))
        assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(made(desk, "prepared").file("train.jsonl").read_text().splitlines()[0])
    done = stages.run(desk, "trace", "--text", record["messages"][-2]["content"], "--json")
    assert done.returncode == 105
    assert str(release.path.relative_to(desk)) in done.stdout


def test_the_page_draws_what_more_rows_bring_beside_the_tuned_model(
    desk: Path, stages: Forks, tmp_path: Path
) -> None:
    report, encoder = made(desk, "report").metrics, made(desk, "encoder")
    of_files = [
        lines(desk, stages, "gguf", "validation", quantized) for quantized in ("Q8_0", "F16")
    ]
    n, right = (
        encoder.metrics["rows"],
        sum(line["answer"] == line["expected"] for each in of_files for line in each),
    )
    # of both files: on some processors one of them has a row more
    assert report["sum"]["right"] == right // 2
    artifacts = {entry.digest: entry for entry in lineage.readable_artifacts(desk)}
    # so few validation rows that encode measured no course
    assert report_view._by_rows(artifacts, report) is None
    artifacts[encoder.digest].metrics["curve"] = [
        {"rows": rows, "encoder": n - 20 // rows, "tfidf_logistic": n // 2} for rows in (20, 40, 80)
    ]
    curve = report_view._by_rows(artifacts, report)
    points = [(20, n - 1, n // 2), (40, n, n // 2), (80, n, n // 2)]
    assert curve == RowsCurve(n, points, right // 2)
    opening = Opening("desk 2.0", "", "", "2026-01-02 10:00 UTC", by_rows=curve)
    report_page.write(
        tmp_path / "page.html", parse_report(report, where="here"), [], labels=(), opening=opening
    )
    _, _, chart = (tmp_path / "page.html").read_text().partition("Accuracy by training rows")
    for words in (
        f"20 rows: {percent((n - 1) / n)}",
        "Q8_0: ",
        "80 rows that the cheap models learned",
    ):
        assert words in chart


def test_what_brings_less_than_the_floor_is_left_out(desk: Path, stages: Forks) -> None:
    # two words of each text tell the category, so the words alone answer all, and nothing else
    # brings more
    report = artifact.load(
        Path(tiny.ok(stages.run(desk, "evaluate", "--set", "sum.floor=0.002")))
    ).metrics
    assert [*report["sum"]["weights"]] == ["words"] and report["sum"]["gains"].keys() == {
        "file",
        "encoder",
        "words",
    }
    (remark,) = [
        remark for remark in report["remarks"] if remark.startswith("The release combines words (")
    ]
    assert (
        "without the file (0.00 points) and the encoder (0.00 points)" in remark
        and "no loss is below 0" in remark
        and "A file or encoder below 0.2 points is left out" in remark
    )
    assert not made(desk, "sum").path.joinpath("encoder.onnx").exists()
    # how much the tiny model learns depends on the processor
    pair = report["pairs"]["encoder_logistic|Q8_0"]["metrics"]["accuracy"]
    is_surely_worse = pair["interval"][1] < 0
    assert is_surely_worse == any(
        remark.startswith("A language model by itself gains nothing here: Q8_0 alone")
        for remark in report["remarks"]
    )
    done = stages.run(desk, "publish", "--set", "sum.floor=0.002")  # a file for nothing
    assert (done.returncode, "the file has no weight" in done.stderr) == (5, True), done.stderr
    assert "publish: {model: linear}" in done.stderr


def test_a_model_of_a_release_with_it_is_not_the_encoder(
    desk: Path, stages: Forks, tmp_path: Path
) -> None:
    (tmp_path / "in.csv").write_text("text\ninvoice refund please\nparcel courier today\n")
    answers = []
    for model in (["sum"], [], [str(desk / "registry" / "tiny-desk" / "2.0")]):
        out = tmp_path / f"{len(answers)}.csv"
        tiny.ok(
            stages.run(
                desk, "predict", *model, "--input", str(tmp_path / "in.csv"), "--output", str(out)
            )
        )
        answers.append(out.read_text())
        assert [line.split(",")[1] for line in answers[-1].splitlines()[1:]] == [
            "billing",
            "delivery",
        ]
    assert answers[0] == answers[1], "without a model a file is answered as a release answers"


# Of one object


DONE: Event = {
    "finish": "stop",
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "confidence": 0.6,
    "labels": {"billing": 0.6, "account": 0.4},
    "logprobs": [-0.51],
    "raw_logprobs": [-0.52],
}


class AtOnce(Answering):
    """A model that answers before the encoder has read the text."""

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Callable[[], object]:
        on_event({"piece": "billing"})
        on_event(DONE)
        return lambda: None


class Silent(Answering):
    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Callable[[], object]:
        return lambda: None


@pytest.mark.parametrize(
    ("model", "learns"), [("encoder", True), ("sum", True), ("published", True), ("gguf", False)]
)
def test_no_figure_is_of_rows_that_a_model_has_learned(
    desk: Path, capsys: pytest.CaptureFixture[str], model: str, learns: bool
) -> None:
    # a release with its own sum has the kind of a file that learned none of them
    asked = str(made(desk, "published").path) if model == "published" else model
    teacher.slmctl(desk, "predict", asked, "--split", "validation")
    paths = capsys.readouterr().out.split()
    assert {artifact.load(Path(path)).metrics.get("learned", False) for path in paths} == {learns}
    refused = pytest.raises(UsageError, match="validation rows are learned by")
    with refused if learns else contextlib.nullcontext():
        teacher.slmctl(desk, "evaluate", "--compare", asked, "--split", "validation")


@pytest.fixture
def linear(desk: Path) -> Iterator[LinearMembers]:
    encoder = made(desk, "encoder")
    model = dataclasses.replace(LabelSum.read(encoder.file("sum.npz")), weights={"encoder": 1.0})
    with LinearMembers(model, encoder.path) as opened:
        yield opened


def ask(linear: LinearMembers, text: str) -> queue.SimpleQueue[Event]:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    request = Request("", labels=("account", "billing", "delivery"), question=text)
    SumEngine(AtOnce(), linear).submit(request, events.put)
    return events


def test_who_waits_when_it_is_closed_is_told(linear: LinearMembers) -> None:
    waiting = [ask(linear, f"invoice {k}") for k in range(400)]
    linear.close()
    ends = [
        next(event for event in iter(each.get, None) if "piece" not in event) for each in waiting
    ]
    assert any("error" in event for event in ends) and all(
        "error" in event or "finish" in event for event in ends
    )
    assert "ended" in ask(linear, "invoice").get(timeout=60)["error"]


def test_what_is_cancelled_is_not_read(
    linear: LinearMembers, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    encode = linear._encoder.encode
    monkeypatch.setattr(
        linear._encoder,
        "encode",
        lambda texts, **more: (read.extend(texts), encode(texts, **more))[1],
    )
    for k in range(200):
        request = Request("", labels=("billing",), question=f"text {k}")
        SumEngine(Silent(), linear).submit(request, lambda event: None)()
    events = ask(linear, "invoice")
    while "finish" not in events.get(timeout=60):
        pass
    assert "invoice" in read and len(read) < 100


def test_numbers_of_a_sum_are_no_text_and_its_labels_are(tmp_path: Path) -> None:
    draw, labels = np.random.default_rng(0), ("a", "jane.doe@example.org")
    head = EncoderHead(labels, draw.random((2, 384), np.float32), draw.random(2, np.float32))
    LabelSum(labels, {"encoder": 1.0}, head, None).write(tmp_path / "sum.npz")
    texts = {text for _, text in leak_scan._texts(tmp_path / "sum.npz", frozenset())}
    assert texts - {""} == {"labels", "sum", "weights", "bias", "a", "jane.doe@example.org"}


def test_a_gate_on_a_file_is_about_that_file_and_one_on_the_release_about_the_sum() -> None:
    kinds = {"Q8_0": "gguf", "Q8_0+sum": "sum"}
    entries = {
        name: {"kind": kinds[name], "metrics": {"accuracy": value}}
        for name, value in (("Q8_0", 0.7), ("Q8_0+sum", 0.9))
    }
    report: Any = {"models": entries, "baselines": {}, "choice": None, "focus": "Q8_0+sum"}
    checked = [
        Gate(metric="accuracy", model=name, min=0.8) for name in ("Q8_0", "Q8_0+sum", "release")
    ]
    assert [result.passed for result in gates.check(checked, report)] == [False, True, True]


def test_an_adapter_beside_a_sum_is_known_by_its_own_hash(tmp_path: Path) -> None:
    for name in ("desk-Q8_0.gguf", "desk-LoRA.gguf", "sum.npz"):
        (tmp_path / name).write_bytes(name.encode())
    release = artifact.foreign(tmp_path, "published")
    own = {entry.path: entry.sha256 for entry in release.manifest.files}
    hashes = answering(release)  # requests to an adapter go past the sum, and so it was measured
    assert (
        hashes["desk-LoRA.gguf"] == own["desk-LoRA.gguf"]
        and hashes["desk-Q8_0.gguf"] != own["desk-Q8_0.gguf"]
    )
