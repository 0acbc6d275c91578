"""A release of linear members alone: from `slmctl run`, which
trains nothing, to answers of a server.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from support import here, teacher, tiny
from support.forks import Forks
from support.handmade import opened

from slmctl import models
from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact
from slmctl.errors import SlmctlError, UsageError
from slmctl.metrics.label_sum import LabelSum
from slmctl.model_files.gguf_choice import answering
from slmctl.models.model import Loading
from slmctl.models.prompts import of_texts
from slmctl.pipeline import model_lookup, named
from slmctl.task.contract import Task

CONFIG = tiny.CALIBRATED.replace("evaluate: {models: [base, adapter, gguf]}\n", "") + (
    "encode: {encoder: ./words}\nsum: {floor: 0}\npublish: {model: linear}\n"
    "gates: [{metric: accuracy, model: linear, min: 0.8}]\n"
)
TEXTS = {
    "LICENSE",
    "NOTICE",
    "README.md",
    "answer.mjs",
    "answer.py",
    "lineage.intoto.json",
    "policy.json",
    "report.html",
    "report.json",
    "report.md",
    "rows.jsonl",
    "task.json",
}
WORDS = ("--set", "encode.encoder=none", "--set", "version=2.0")


@pytest.fixture(scope="module")
def desk(tiny_project: Path, stages: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after `run`, which trained nothing, with its release 1.0 in production."""
    folder = Path(shutil.copytree(tiny_project, tmp_path_factory.mktemp("linear") / "desk"))
    (folder / "slmctl.yaml").write_text(CONFIG)
    tiny.write_csv(folder / "tickets.csv", tiny.rows(800))
    tiny.build_encoder(folder / "words")
    done = stages.run(folder, "run")
    # no base is needed
    assert "will run: prepare, encode, evaluate, calibrate, publish" in done.stderr, done.stderr
    tiny.ok(done)
    tiny.ok(stages.run(folder, "promote", "1.0", "--tag", "production"))
    return folder


def released(desk: Path, version: str = "1.0") -> Artifact:
    return artifact.load(desk / "registry" / "tiny-desk" / version)


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def records(desk: Path, split: str) -> list[Any]:
    (prepared,) = desk.glob("runs/prepared/[!.]*")
    return lines(prepared / f"{split}.jsonl")


def test_it_holds_no_text_of_a_row(desk: Path) -> None:
    release = released(desk)
    assert {entry.path for entry in release.manifest.files} == {
        "encoder.onnx",
        "tokenizer.json",
        "sum.npz",
    } | TEXTS - {"LICENSE"}
    assert not {path.name for path in (desk / "runs").iterdir()} & {"adapter", "merged", "gguf"}
    texts = [release.file(name).read_text() for name in sorted(TEXTS - {"LICENSE"})]
    with np.load(release.file("sum.npz"), allow_pickle=False) as kept:
        assert {
            text for name in kept for text in kept[name].flat if kept[name].dtype.kind == "U"
        } <= {"", *tiny.LABELS}
        texts += [kept[name].tobytes().decode("latin-1") for name in kept]
    held = "\n".join(texts)
    rows = [record["messages"][-2]["content"].split() for record in records(desk, "train")]
    assert not [
        words for words in rows for k in range(len(words) - 2) if " ".join(words[k : k + 3]) in held
    ]


def test_a_run_until_a_training_trains_nothing(desk: Path, stages: Forks) -> None:
    done = stages.run(desk, "run", "--until", "finetune")
    assert Path(tiny.ok(done)).parent.name == "encoder"
    assert "publish.model is linear, so there is no finetune" in done.stderr
    assert not (desk / "runs" / "adapter").exists()


def test_a_folder_without_a_config_is_told_which_column_to_name(
    desk: Path, stages: Forks, tmp_path: Path
) -> None:
    job = (
        "predict",
        str(released(desk).path),
        "--input",
        str(desk / "tickets.csv"),
        "--output",
        str(tmp_path / "out.csv"),
    )
    done = stages.run(tmp_path, *job)
    assert (done.returncode, "hint: --column NAME" in done.stderr) == (2, True), done.stderr
    tiny.ok(stages.run(tmp_path, *job, "--column", "text"))


def test_it_says_what_it_is(desk: Path, stages: Forks) -> None:
    release = released(desk)
    report = json.loads(release.file("report.json").read_bytes())
    assert (report["focus"], report["sum"]["right"], [*report["models"]]) == (
        "linear",
        None,
        ["linear"],
    )
    facts = release.metrics
    assert facts["files"] == {"linear": report["models"]["linear"]["sha256"]}
    assert [*answering(release).values()] == [*facts["files"].values()]
    assert (facts["license"], facts["memorisation"]["asked"], facts["sum"]["license"]) == (
        "mit",
        0,
        "mit",
    )
    lineage = json.loads(release.file("lineage.intoto.json").read_bytes())
    assert {subject["name"] for subject in lineage["subject"]} == {"encoder.onnx", "sum.npz"}
    needed = {
        entry["name"] for entry in lineage["predicate"]["buildDefinition"]["resolvedDependencies"]
    }
    assert needed == {"model.onnx", "data source 1"}
    card = release.file("README.md").read_text()
    assert "no language model" in card and "gguf, lora" not in card and "ollama run" not in card
    assert "mit" in release.file("NOTICE").read_text()
    told = tiny.ok(stages.run(desk, "show", str(release.path)))
    assert "adapter" not in told and "license mit" in told


def test_it_is_served_to_the_openai_client_as_it_was_measured(desk: Path) -> None:
    measured = next(desk.glob("runs/report/*/manifest.json")).parent
    (digest,) = artifact.load(measured).manifest.inputs["predictions"]
    made = [artifact.load(path) for path in desk.glob("runs/predictions/[!.]*")]
    line = lines(next(each for each in made if each.digest == digest).file("predictions.jsonl"))[0]
    (record,) = [record for record in records(desk, "test") if record["id"] == line["id"]]
    with here.opened(desk, model="dir:./registry#production") as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
        reply = client.chat.completions.create(
            model="tiny-desk",
            messages=[{"role": "user", "content": record["messages"][-2]["content"]}],
            logprobs=True,
        )
        assert reply.choices[0].message.content == line["answer"]
        assert (reply.model_extra or {})["slmctl"]["confidence"] == pytest.approx(
            line["confidence"], abs=1e-3
        )
        # by the policy that was fitted on runs/sum
        assert (reply.model_extra or {})["slmctl"]["p_correct"] > 0.5
        (listed,) = client.models.list().data
        assert (listed.id, (listed.model_extra or {})["slmctl"]["file"]) == ("tiny-desk", "sum.npz")


def test_its_program_answers_as_its_server(desk: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(released(desk).path, tmp_path / "desk"))
    texts = [record["messages"][-2]["content"] for record in records(desk, "test")[:20]]
    texts += [
        "invoice",
        "x" * 3_000,
        "[CLS] refund [SEP] parcel",
        "Größe 🙂 refund",
        "привет parcel",
        "a\x01 b",
    ]
    done = subprocess.run(
        (sys.executable, str(folder / "answer.py")),
        input="\n".join(texts),
        capture_output=True,
        text=True,
        check=True,
    )
    with models.of(released(desk)).open(Task.read(folder)) as opened_model:
        answers = sorted(opened_model.answer(list(of_texts(opened_model.task, texts))))
    for line, (_, answer) in zip(done.stdout.splitlines(), answers, strict=True):
        assert json.loads(line)["labels"] == pytest.approx(answer.labels, abs=1.01e-6, rel=0)


def test_a_fetched_release_decides_as_in_its_project(
    desk: Path, stages: Forks, tmp_path: Path
) -> None:
    # it answered without p_correct elsewhere: the policy stayed below runs/ of the project
    alone = tmp_path / "alone"
    alone.mkdir()
    text, address = "invoice refund please", f"dir:{desk}/registry#production"
    tiny.ok(stages.run(alone, "fetch", address, str(alone / "desk"), env={"HOME": str(tmp_path)}))
    with here.opened(desk) as server:
        in_project = server.ask(text).json()["slmctl"]
    del in_project["seconds"]
    for model in (str(alone / "desk"), address):
        with here.opened(alone, model=model) as server:
            assert in_project.items() <= server.ask(text).json()["slmctl"].items()
    assert in_project["reason"] in ("kept", "unsure") and in_project["p_correct"] > 0.5
    release = released(desk)
    page, tested_on = (
        release.file("report.html").read_text(),
        release.metrics["policy"]["tested_on"],
    )
    assert f"by {tested_on} calibration rows" in page and "every answer is kept" not in page
    assert "`policy.json` says which answers to keep" in release.file("README.md").read_text()


def test_a_policy_of_another_model_is_not_published(
    desk: Path, stages: Forks, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(desk, tmp_path / "desk"))
    made = [artifact.load(path) for path in other.glob("runs/policy/[!.]*")]
    (of_encoder,) = (each for each in made if each.metrics["model"] != "linear")
    done = stages.run(other, "publish", "--policy", str(of_encoder.path))
    assert (done.returncode, "was fitted on another model than linear" in done.stderr) == (
        7,
        True,
    ), done.stderr


@pytest.mark.slow
def test_it_goes_to_a_bucket_and_is_made_again(
    desk: Path, stages: Forks, s3: str, tmp_path: Path
) -> None:
    env = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_ENDPOINT_URL": s3}
    tiny.ok(stages.run(desk, "publish", "--to", "s3://models/linear", env=env))
    back = tmp_path / "back"
    tiny.ok(stages.run(desk, "fetch", "s3://models/linear#tiny-desk@1.0", str(back), env=env))
    release = released(desk)
    assert {
        path.name: path.read_bytes() for path in back.iterdir() if path.name != "manifest.json"
    } == {entry.path: release.file(entry.path).read_bytes() for entry in release.manifest.files}
    tiny.ok(stages.run(desk, "verify", str(back)))
    (summed,) = desk.glob("runs/sum/[!.]*")
    (made,) = desk.glob("runs/published/[!.]*")
    for path in (summed, made):
        done = stages.run(desk, "reproduce", str(path))
        assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "in.csv").write_text("text\ninvoice refund please\nparcel courier today\n")
    answers = []
    for model in (str(back), "sum", "published"):
        out = tmp_path / f"{len(model)}.csv"
        tiny.ok(
            stages.run(
                desk, "predict", model, "--input", str(tmp_path / "in.csv"), "--output", str(out)
            )
        )
        answers.append(out.read_text())
    assert [line.split(",")[1] for line in answers[0].splitlines()[1:]] == ["billing", "delivery"]
    assert len(set(answers)) == 1


@pytest.mark.parametrize(("split", "standing"), [("train", "trained"), ("test", "held out")])
def test_a_row_is_traced_to_it(desk: Path, stages: Forks, split: str, standing: str) -> None:
    text = records(desk, split)[0]["messages"][-2]["content"]
    done = stages.run(desk, "trace", "--text", text, "--json")
    assert done.returncode == 105
    (held, *_) = [
        each for each in json.loads(done.stdout)["releases"] if each["path"].endswith("/1.0")
    ]
    assert held["standing"] == standing


def test_nothing_that_it_needs_is_garbage(desk: Path, stages: Forks) -> None:
    listed = json.loads(tiny.ok(stages.run(desk, "gc", "--json")))["items"]
    assert not [item for item in listed if not Path(item["path"]).parent.name.startswith(".")], (
        listed
    )


@pytest.mark.slow
def test_words_alone_need_no_license_and_answer_without_a_process(
    desk: Path, stages: Forks, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(desk, tmp_path / "desk"))
    gate = "gates=[{metric: accuracy, model: linear, against: production, max_drop: 0.2}]"
    done = stages.run(other, "run", *WORDS, "--set", gate)
    tiny.ok(done)
    assert (
        "gate passed: linear loses at most" in done.stderr
        or "gate passed: linear gains" in done.stderr
    )
    release = released(other, "2.0")
    assert (
        release.metrics["license"],
        "NOTICE" in {each.path for each in release.manifest.files},
    ) == ("own weights", False)
    assert release.file("README.md").read_text().startswith("---\nlicense: other\n")
    assert LabelSum.read(release.file("sum.npz")).head is None
    made = [artifact.load(path) for path in other.glob("runs/sum/[!.]*")]
    # so one policy is for both
    assert models.of(release).digest in {models.of(each).digest for each in made}
    tiny.ok(stages.run(other, "promote", "2.0", "--tag", "production"))
    # it is not compared with itself
    assert "already in" in stages.run(other, "run", *WORDS, "--set", gate).stderr
    where = named.workspace(opened(other))
    assert model_lookup.served(where, "dir:./registry#production", None).title == "linear"


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (("run", "--set", "publish.include=[adapter]"), 2, "'publish.include' holds adapter"),
        (
            (
                "evaluate",
                "--set",
                "gates=[{metric: accuracy, model: Q8_0, min: 0.1}]",
                "--set",
                "sum.floor=0.4",
            ),
            2,
            "publish.model linear gives linear",
        ),
        (("publish", "--gguf", "DESK/runs/any.gguf"), 2, "--gguf names a model"),
        (("publish", "--set", "sum.floor=0.4"), 7, "slmctl evaluate"),
        (("serve", "--first-look"), 2, "a first look is for a GGUF file"),
    ],
)
def test_what_it_cannot_be_is_told(desk: Path, args: tuple[str, ...], code: int, text: str) -> None:
    (desk / "runs" / "any.gguf").touch()
    with pytest.raises(SlmctlError) as caught:
        teacher.slmctl(desk, *(each.replace("DESK", str(desk)) for each in args))
    assert (caught.value.code, text in f"{caught.value.message} {caught.value.hint}") == (
        code,
        True,
    ), caught.value


def test_only_what_a_report_measured_is_promoted_and_sent(
    desk: Path, stages: Forks, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(desk, tmp_path / "desk"))
    (first,) = other.glob("runs/report/[!.]*")
    floor = ("--set", "sum.floor=0.3")
    for stage in ("evaluate", "calibrate"):
        tiny.ok(stages.run(other, stage, *floor))
    done = stages.run(other, "publish", *floor, "--report", str(first))
    assert (done.returncode, "no report measured these linear members" in done.stderr) == (
        5,
        True,
    ), done.stderr


def test_members_beside_a_file_do_not_answer_alone(
    desk: Path, stages: Forks, tmp_path: Path
) -> None:
    (summed,) = desk.glob("runs/sum/[!.]*")
    model = LabelSum.read(summed / "sum.npz")
    place = Path(shutil.copytree(summed, tmp_path / "sum"))
    LabelSum(model.labels, {**model.weights, "file": 1.0}, model.head, model.words).write(
        place / "sum.npz"
    )
    with pytest.raises(UsageError, match="answer beside a GGUF file alone"):
        models.of(Artifact(place, artifact.load(summed).manifest)).load(Loading())


def test_a_linear_release_needs_the_stage_that_makes_it(tiny_project: Path) -> None:
    with pytest.raises(UsageError, match="there is no section 'encode'"):
        opened(tiny_project, "publish.model=linear")
    assert opened(tiny_project, "publish.model=linear", "encode.encoder=none").config.measured == [
        "sum"
    ]
