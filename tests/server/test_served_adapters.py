"""Adapters that are measured: their own file on the base's own file, in
reports and gates, and what may be served.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support import shared, tiny
from support.forks import Forks
from support.handmade import opened

from slmctl import config
from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact
from slmctl.errors import GateError, StageError, UsageError
from slmctl.inference.engine import Engine
from slmctl.metrics import gates
from slmctl.model_files.gguf_choice import gguf_file
from slmctl.models import prompts
from slmctl.pipeline import plan, project_gates
from slmctl.reports.evaluation_report import EvaluationReport, parse_report
from slmctl.server import served_adapters
from slmctl.stages.quantize.stage import base_file_requests
from slmctl.task.contract import Task
from slmctl.task.engine_requests import engine_request
from slmctl.task.records import read_records

pytest.importorskip("llama_cpp")
pytest.importorskip("torch")

MEASURED = "evaluate: {models: [gguf, lora]}"
CHANGES = {
    "types: [Q8_0, F16]": "types: [Q8_0, F16], lora_gguf: true",
    "evaluate: {models: [base, adapter, gguf]}": MEASURED,
}


def configured(folder: Path, *pairs: tuple[str, str]) -> Path:
    path = folder / config.FILENAME
    text = path.read_text()
    for before, after in pairs:
        assert before in text
        text = text.replace(before, after)
    path.write_text(text)
    return folder


@pytest.fixture(scope="module")
def measured(tiny_run: Path, stages: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_run` with the adapter's own GGUF on the base's, both measured."""

    def make(folder: Path) -> None:
        configured(Path(shutil.copytree(tiny_run, folder)), *CHANGES.items())
        tiny.ok(stages.run(folder, "run", "--until", "evaluate"))

    return shared.made_once(tmp_path_factory, "measured-adapter", make)


@pytest.fixture
def copied(measured: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(measured, tmp_path / "desk"))


def current(folder: Path, kind: str) -> Artifact:
    return opened(folder).artifact(kind)


def bases(folder: Path) -> dict[str, Artifact]:
    """The base's own files by type."""
    project = opened(folder)
    adapter = current(folder, "adapter")
    made = [
        artifact.load(each.path)
        for each in base_file_requests(project, project.config.quantize, adapter)
    ]
    return {name: each for each in made for name in each.metrics["files"]}


def figures_of(folder: Path) -> EvaluationReport:
    return parse_report(current(folder, "report").metrics, where="the report")


def found(folder: Path, base: Artifact, place: Path | None = None) -> served_adapters.ServedAdapter:
    path = base.file(gguf_file(base).path)
    return served_adapters.find(place or current(folder, "gguf").path, base, path)


def test_the_base_is_written_once_whatever_goes_on_it(measured: Path) -> None:
    made, files = current(measured, "gguf"), bases(measured)
    assert list(files) == ["Q8_0", "F16"]
    recorded = made.manifest.inputs["base_files"]
    assert recorded == [each.digest for each in files.values()]
    base = current(measured, "base")
    for name, each in files.items():
        assert each.manifest.inputs == {"base": base.digest}
        assert [entry.path for entry in each.files(".gguf")] == [f"base-{name}.gguf"]
        assert (
            made.metrics["lora"]["bases"][name]["sha256"] == each.metrics["files"][name]["sha256"]
        )
    project, adapter = (
        opened(measured, "project=other", "version=2.0"),
        current(measured, "adapter"),
    )
    paths = [each.path for each in base_file_requests(project, project.config.quantize, adapter)]
    assert paths == [each.path for each in files.values()]


def test_the_adapter_on_its_base_is_the_merged_model(measured: Path) -> None:
    made = current(measured, "gguf")
    for name, entry in made.metrics["lora"]["bases"].items():
        merged = made.metrics["files"][name]
        assert entry["top1_agreement"] >= 0.95
        assert entry["kl_mean"] < 2e-3 + 3 * merged["kl_mean"], name


def test_the_adapter_answers_and_not_its_base_alone(measured: Path) -> None:
    base, prepared = bases(measured)["F16"], current(measured, "prepared")
    task, records = Task.read(prepared.path), read_records(prepared.file("test.jsonl"))[:6]
    predicted = [
        [
            json.loads(line)["confidence"]
            for line in each.file("predictions.jsonl").read_bytes().splitlines()[:6]
        ]
        for each in map(artifact.load, measured.glob("runs/predictions/[!.]*"))
        if each.metrics["kind"] == "lora"
    ]
    paths = {"adapter": found(measured, base).path}
    with Engine(base.file("base-F16.gguf"), sequences=1, context=256, adapters=paths) as engine:
        sure, alone = (
            [
                engine.ask(
                    engine_request(
                        task, prompts.asked(task, record).text, max_tokens=8, adapter=name
                    )
                ).confidence
                for record in records
            ]
            for name in ("adapter", "")
        )
    assert predicted == [pytest.approx(sure, rel=0.05)] * 2
    assert max(abs(a / b - 1) for a, b in zip(alone, sure, strict=True)) > 0.2


def test_a_report_measures_the_adapter_like_any_other_model(measured: Path) -> None:
    figures, made = figures_of(measured), current(measured, "gguf")
    models = figures["models"]
    assert list(models) == ["F16", "Q8_0", "lora-F16", "lora-Q8_0"]
    for name, base in bases(measured).items():
        entry, own = models[f"lora-{name}"], made.metrics["lora"]
        file = base.metrics["files"][name]
        assert (entry["kind"], entry["sha256"], entry["base_sha256"]) == (
            "lora",
            own["sha256"],
            file["sha256"],
        )
        assert entry["size"] == own["size"] + file["size"]
        assert entry["latency_ms"] is not None
        assert entry["rows_per_s"]
    same = figures["pairs"]["F16|lora-F16"]
    assert (same["only_first"], same["only_second"]) == (0, 0)
    quantized = figures["pairs"]["Q8_0|lora-Q8_0"]
    assert quantized["only_first"] + quantized["only_second"] <= 1
    page = current(measured, "report").file("report.md").read_text()
    assert "| lora-Q8_0 |" in page


def test_gates_name_the_adapter(measured: Path) -> None:
    figures = figures_of(measured)
    held = config.Gate(metric="accuracy", model="lora-Q8_0", against="Q8_0", max_drop=0.3)
    missed = config.Gate(metric="accuracy", model="lora-Q8_0", against="Q8_0", min_gain=0.3)
    assert [each.passed for each in gates.check([held, missed], figures)] == [True, False]
    known = "gates=[{metric: accuracy, model: lora-Q8_0, min: 0.1}]"
    plan.require(opened(measured, known, "confidence=0.9"), ["evaluate"])
    with pytest.raises(UsageError, match="models that are not measured: lora-Q4_K_M"):
        plan.require(
            opened(measured, known.replace("Q8_0", "Q4_K_M"), "confidence=0.9"), ["evaluate"]
        )


def test_a_measured_adapter_is_served_on_its_base_and_on_no_other_file(measured: Path) -> None:
    made, files = current(measured, "gguf"), bases(measured)
    for base in files.values():
        adapter = found(measured, base)
        assert adapter.path.name == made.metrics["lora"]["file"]
        assert (adapter.version, adapter.note) == ("", "")  # a release has a version
        assert adapter.task is not None
        assert adapter.task.labels
    # the file in the artifact is the artifact
    assert found(measured, files["F16"], adapter.path).note == ""
    with pytest.raises(
        UsageError,
        match=r"belongs on base-F16.gguf, base-Q8_0.gguf, and .*-F16.gguf is another file",
    ):
        served_adapters.find(made.path, made, made.file(gguf_file(made, "F16").path))


def test_the_bytes_of_a_base_count_and_not_its_place(measured: Path, tmp_path: Path) -> None:
    base = bases(measured)["F16"]
    bare = Path(shutil.copy(base.file("base-F16.gguf"), tmp_path / "elsewhere.gguf"))
    assert found(measured, artifact.foreign(bare, "gguf")).note == ""


def test_an_adapter_that_nobody_measured_is_not_served(copied: Path) -> None:
    base = bases(copied)["Q8_0"]
    shutil.rmtree(copied / "runs" / "report")
    with pytest.raises(GateError, match=r"no report measured the adapter in .* on base-Q8_0.gguf"):
        found(copied, base)


def test_an_adapter_whose_report_fails_is_not_served(copied: Path) -> None:
    base, path = bases(copied)["Q8_0"], copied / config.FILENAME
    path.write_text(path.read_text() + "gates: [{metric: accuracy, model: lora-Q8_0, min: 1.01}]\n")
    with pytest.raises(
        GateError, match=r"its report fails: accuracy of lora-Q8_0 is .* \(at least 101"
    ):
        found(copied, base)


def test_a_bare_adapter_is_served_with_a_warning(measured: Path, tmp_path: Path) -> None:
    adapter = found(measured, bases(measured)["F16"])
    bare = Path(shutil.copy(adapter.path, tmp_path / "mail-LoRA.gguf"))
    other = served_adapters.find(bare, current(measured, "gguf"), bare)
    assert other.note.startswith("mail-LoRA.gguf is a bare file: nobody measured it")
    assert (other.path, other.task) == (bare, None)


def test_a_release_carries_the_adapter_that_was_measured(copied: Path, stages: Forks) -> None:
    shutil.rmtree(copied / "registry")  # which holds this version without the adapter
    shutil.rmtree(copied / "runs" / "published")
    tiny.ok(stages.run(copied, "publish", "--set", "publish.include=[lora]"))
    release = artifact.load(copied / "registry" / "tiny-desk" / "1.0")
    lora = release.metrics["lora"]
    assert set(lora["bases"]) == {"Q8_0", "F16"}
    assert f"`{lora['file']}`" in release.file("README.md").read_text()
    assert gguf_file(release).path.endswith("-Q8_0.gguf")
    adapter = found(copied, bases(copied)["Q8_0"], release.path)
    assert (adapter.note, adapter.version) == ("", "1.0")
    statement = json.loads(release.file("lineage.intoto.json").read_bytes())
    assert lora["file"] in {subject["name"] for subject in statement["subject"]}


def test_an_adapter_that_was_not_measured_is_not_published(copied: Path, stages: Forks) -> None:
    configured(copied, (MEASURED, "evaluate: {models: [gguf]}"))
    tiny.ok(stages.run(copied, "evaluate"))
    done = stages.run(copied, "publish", "--set", "publish.include=[lora]")
    assert done.code == GateError.code
    assert "no report measured" in done.stderr


def test_what_cannot_be_is_refused_before_anything_runs() -> None:
    text = "project: desk\nbase: ./base\n"
    with pytest.raises(UsageError, match=r"holds lora, and 'quantize\.lora_gguf' is false"):
        config.parse(text + MEASURED)
    with pytest.raises(UsageError, match=r"llama\.cpp writes no IQ2_XXS so"):
        config.parse(text + "quantize: {types: [Q8_0, IQ2_XXS], lora_gguf: true}")


def test_an_adapter_that_is_not_the_merged_model_on_its_base_is_refused() -> None:
    from slmctl.stages.quantize import parity

    parity.check_adapter({"kl_mean": 0.021}, {"kl_mean": 0.002}, "a-LoRA.gguf", "b.gguf")
    with pytest.raises(
        StageError, match=r"a-LoRA.gguf on b.gguf is 0.023 nats .* \(at most 0.022\)"
    ):
        parity.check_adapter({"kl_mean": 0.023}, {"kl_mean": 0.002}, "a-LoRA.gguf", "b.gguf")


def test_gc_keeps_the_base_of_an_adapter_that_is_needed(measured: Path) -> None:
    from slmctl.provenance import gc

    unneeded = {item.path for item in gc.survey(opened(measured), []).items}
    assert not unneeded & {each.path for each in bases(measured).values()}
    assert project_gates.results(opened(measured), current(measured, "report")) == []
