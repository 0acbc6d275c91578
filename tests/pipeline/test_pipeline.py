"""The chain as its user runs it: nothing twice, nothing torn, nothing damaged passes unseen."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from support import tiny
from support.forks import Forks
from support.handmade import opened, publish

from slmctl import config
from slmctl.artifacts import artifact
from slmctl.errors import GateError, IntegrityError, MissingError, StageError, UsageError
from slmctl.installation import pip_line
from slmctl.pipeline import LEAVES, named, predictions, runner, system_errors
from slmctl.pipeline.graph import Project
from slmctl.stages.evaluate.stage import evaluate
from slmctl.task.records import read_records

KINDS = ("base", "prepared", "adapter", "merged", "gguf", "predictions", "report", "published")


def listing(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.glob("runs/*/*/*")}


def flip(path: Path) -> None:
    """Change one byte in the middle of a file, keeping size and mtime."""
    stat, raw = path.stat(), bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def only(folder: Path, kind: str) -> Path:
    """The folder of an artifact; of the predictions, the first."""
    return sorted(folder.glob(f"runs/{kind}/*"))[0]


# Skipping


def test_a_run_leaves_every_kind_and_nothing_else(tiny_run: Path) -> None:
    assert {path.name for path in (tiny_run / "runs").iterdir()} == {
        ".deliveries",
        ".locks",
        ".logs",
        "report.html",
        *KINDS,
    }
    # the receipt of the release
    assert len(list((tiny_run / "runs" / ".deliveries").iterdir())) == 1
    assert not list(tiny_run.glob("runs/*/.*/*")), "a draft was left behind"
    assert {
        len(list((tiny_run / "runs" / kind).iterdir())) for kind in KINDS if kind != "predictions"
    } == {1}
    # base, adapter, two GGUF files
    assert len(list((tiny_run / "runs" / "predictions").iterdir())) == 4
    assert (tiny_run / "registry" / "tiny-desk" / "1.0" / "manifest.json").exists()


def test_the_second_run_does_nothing(stages: Forks, desk: Path) -> None:
    before = listing(desk)
    done = stages.run(desk, "run")
    assert Path(tiny.ok(done)) == only(desk, "published")
    stages = [
        line.split()[:2]
        for line in done.stderr.splitlines()
        if line.split()[:1] and line.split()[0] in LEAVES
    ]
    assert [name for name, _ in stages] == [
        "pull",
        "prepare",
        "finetune",
        "merge",
        "quantize",
        "evaluate",
        "publish",
    ]
    assert {state for _, state in stages} == {"current"}
    assert listing(desk) == before


def test_a_moved_or_touched_project_is_still_current(desk: Path, tmp_path: Path) -> None:
    (desk / "tickets.csv").touch()
    moved = desk.rename(tmp_path / "elsewhere")
    project = opened(moved)
    made = [
        name for name in LEAVES if name not in ("label", "encode", "predict", "sum", "calibrate")
    ]
    assert all(project.request(name).path.exists() for name in made)


def test_one_changed_cell_reruns_from_prepare(desk: Path) -> None:
    text = (desk / "tickets.csv").read_text()
    (desk / "tickets.csv").write_text(text.replace("billing\n", "delivery\n", 1))
    project = opened(desk)
    assert project.request("pull").path.exists()
    assert not project.request("prepare").path.exists()
    with pytest.raises(
        IntegrityError, match="stage prepare has not run with this config and data"
    ) as caught:
        project.request("finetune")
    assert caught.value.hint == "slmctl run --until prepare"


@pytest.mark.parametrize(
    ("setting", "first"),
    [
        ("finetune.epochs=3", "finetune"),
        ("merge.dtype=float16", "merge"),
        ("quantize.types=[Q8_0]", "quantize"),
        ("version=2.0", "publish"),
        ("confidence=0.9", "evaluate"),
    ],
)
def test_a_changed_setting_reruns_from_its_stage(tiny_run: Path, setting: str, first: str) -> None:
    project = opened(tiny_run, setting)
    order = ["pull", "prepare", "finetune", "merge", "quantize", "evaluate", "publish"]
    for name in order[: order.index(first)]:
        assert project.request(name).path.exists()
    assert not project.request(first).path.exists()


def test_auto_takes_numbers_by_the_rows_and_the_base_and_says_why(
    stages: Forks, desk: Path
) -> None:
    # three passes at 4e-4 whatever the rows were, unless `init` wrote others
    auto = ("finetune.epochs=auto", "finetune.learning_rate=auto", "finetune.train_share=10%")
    written = ("finetune.epochs=8", "finetune.learning_rate=8e-4", "finetune.train_share=10%")
    final = opened(desk, *written).request("finetune").path
    assert opened(desk, *auto).request("finetune").path == final
    said = stages.run(desk, "finetune", *(word for value in auto for word in ("--set", value)))
    assert Path(tiny.ok(said)) == final
    assert re.search(
        r"^  8 epochs at 0\.0008 in batches of 8, by 1\d training rows and a base of \d+K$",
        said.stderr,
        re.MULTILINE,
    )
    recorded = artifact.load(final).manifest.config
    assert (recorded["epochs"], recorded["learning_rate"]) == (8.0, 8e-4)


def test_shares_give_way_to_a_source_bound_to_the_test(stages: Forks, desk: Path) -> None:
    # a file bound to the test left 15 % of all other rows out of the training too
    held = tiny.rows(360)[300:]
    bound = "category}, {path: held.csv, input: text, output: category, split: test}]"
    settings = (desk / "slmctl.yaml").read_text().replace("category}]", bound)
    (desk / "slmctl.yaml").write_text(settings)
    tiny.write_csv(desk / "held.csv", held)
    said = "test: rows of the sources bound to it, no share of the others"
    assert f"prepare    {said}\n" in stages.run(desk, "run", "--plan").stdout
    prepared = stages.run(desk, "prepare")
    records = read_records(Path(tiny.ok(prepared)) / "test.jsonl")
    assert f"  {said}\n" in prepared.stderr
    assert {record.input for record in records} <= {text for text, _ in held}
    # a run would fail after the training
    tiny.write_csv(desk / "held.csv", [("", label) for _, label in held[:20]])
    assert "no rows are left for 'test'" in stages.run(desk, "prepare").stderr
    kept = stages.run(desk, "prepare", "--set", "prepare.splits.test=0.15")
    assert said not in kept.stderr and len(read_records(Path(tiny.ok(kept)) / "test.jsonl")) > 20


def test_the_line_of_a_stage_counts_what_it_ran_before_and_a_run_ends_with_its_time(
    stages: Forks, desk: Path
) -> None:
    # `evaluate 1.2 s` stood after five minutes of predictions
    for kind in ("predictions", "report"):
        shutil.rmtree(desk / "runs" / kind)
    said = stages.run(desk, "run", "--until", "evaluate", "--set", "evaluate.models=[gguf]").stderr
    evaluated, whole = (
        re.search(rf"^{name} +([\d.]+) s\b", said, re.MULTILINE) for name in ("evaluate", "in all")
    )
    assert evaluated is not None and whole is not None, said
    made = [artifact.load(path).manifest.seconds for path in desk.glob("runs/predictions/*")]
    assert len(made) == 2
    assert sum(made) - 0.6 < float(evaluated[1]) <= float(whole[1]) + 0.6  # as they are rounded


# Damage


@pytest.mark.parametrize("what", ["file", "manifest"])
def test_the_next_stage_refuses_what_is_damaged(desk: Path, what: str) -> None:
    for kind, name, stage in (
        ("base", "model.safetensors", "prepare"),
        ("prepared", "train.jsonl", "finetune"),
        ("adapter", "adapter_model.safetensors", "merge"),
        ("merged", "model.safetensors", "quantize"),
        ("gguf", "task.json", "predict"),
        ("predictions", "predictions.jsonl", "evaluate"),
        ("report", "report.json", "publish"),
    ):
        folder, made = only(desk, kind), desk / "runs" / LEAVES[stage]
        aside = made.rename(desk / "aside")  # so that the stage has something to do
        damaged = folder / (name if what == "file" else "manifest.json")
        kept = damaged.read_bytes()
        flip(damaged)
        project = opened(desk)
        with pytest.raises(IntegrityError) as caught:
            for request in (
                predictions.predictions_of(project, "gguf")
                if stage == "predict"
                else [project.request(stage)]
            ):
                runner.run(project, request)
        assert str(folder) in caught.value.message
        assert ("changed: " + name if what == "file" else "manifest.json") in caught.value.message
        assert not list(made.glob("*/manifest.json"))
        damaged.write_bytes(kept)
        shutil.rmtree(made, ignore_errors=True)
        aside.rename(made)


# Gates and publishing


def test_a_failed_gate_stops_before_publish_and_still_prints_the_report(
    stages: Forks, desk: Path
) -> None:
    gates = (
        "gates: [{metric: accuracy, model: Q8_0, min: 1.0}, {metric: accuracy, model: base, "
        "min: 0.0}]\n"
    )
    with (desk / "slmctl.yaml").open("a") as stream:
        stream.write(gates)
    for folder in [*desk.glob("runs/published/*"), *desk.glob("registry/*")]:
        shutil.rmtree(folder)
    done = stages.run(desk, "run")
    assert done.returncode == 5
    assert Path(done.stdout.strip()) == only(desk, "report")
    assert "(at least 1" in done.stderr
    assert re.search(r"on \d+ rows chance alone makes [\d.]+ % for Q8_0", done.stderr)
    assert named.TRY_FIRST in done.stderr
    assert not list(desk.glob("runs/published/*"))
    with pytest.raises(GateError, match="accuracy of Q8_0"):
        publish(opened(desk))
    assert not list(desk.glob("registry/*/*"))


def test_a_gate_on_something_not_measured_is_a_usage_error(tiny_run: Path) -> None:
    for gate, found in (("accuracy, model: Q4_K_M", "Q4_K_M"), ("rouge, model: Q8_0", "rouge")):
        text = (tiny_run / "slmctl.yaml").read_text() + f"gates: [{{metric: {gate}, min: 0.1}}]\n"
        project = Project(root=tiny_run, config=config.parse(text, root=tiny_run))
        with pytest.raises(UsageError, match=found):
            publish(project)


def test_a_file_that_no_report_measured_is_not_published(desk: Path) -> None:
    project = opened(desk, "evaluate.models=[base, adapter]")
    evaluate(project, project.config.evaluate.models)
    project.forget()
    with pytest.raises(
        GateError, match=r"no report measured tiny|no report measured base-\S+\.gguf"
    ) as caught:
        publish(project)
    assert caught.value.code == 5


def test_a_published_version_never_changes(desk: Path) -> None:
    release = desk / "registry" / "tiny-desk" / "1.0"
    kept = (release / "manifest.json").read_bytes()
    project = opened(desk, "confidence=0.9")  # another report: another release of the same version
    evaluate(project, project.config.evaluate.models)
    with pytest.raises(IntegrityError, match=r"already holds another tiny-desk 1\.0") as caught:
        publish(project)
    assert (caught.value.code, "increase 'version'" in caught.value.hint) == (7, True)
    assert (release / "manifest.json").read_bytes() == kept
    assert not artifact.verify_folder(release)


@pytest.mark.slow
def test_another_version_of_the_same_weights_is_measured_and_published(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # its files differ in name and metadata alone and give the same answers, for which the old
    # report was once taken
    project = opened(desk, "version=2.0", "quantize.types=[Q8_0]", "evaluate.models=[gguf]")
    runner.run(project, project.request("quantize"))
    assert not evaluate(project, project.config.evaluate.models).current
    project.forget()
    publish(project)
    assert f"sent to {desk / 'registry' / 'tiny-desk' / '2.0'}\n" in capsys.readouterr().err


def test_a_model_that_a_cheap_one_beats_is_not_released(stages: Forks, desk: Path) -> None:
    # a note stood in the log of a script, and the worse model in the registry
    for folder in (desk / "runs" / "published", desk / "registry"):
        shutil.rmtree(folder)
    # of so few steps the model is surely worse, whatever the processor
    done = stages.run(desk, "run", "--set", "finetune.epochs=1")
    assert done.returncode == 5
    assert (
        "error: tfidf_logistic is surely better than Q8_0, which is to be released, and no gate"
        in done.stderr
    )
    assert "hint: to release it all the same: slmctl run --yes" in done.stderr
    assert not (desk / "registry").exists()


@pytest.mark.slow
def test_a_gate_or_yes_releases_what_a_cheap_one_beats(stages: Forks, desk: Path) -> None:
    gate = "gates=[{metric: accuracy, model: Q8_0, against: tfidf_logistic, max_drop: 0.9}]"
    tiny.ok(stages.run(desk, "run", "--set", 'version="1.1"', "--set", gate))
    assert (desk / "registry" / "tiny-desk" / "1.1").exists()
    tiny.ok(stages.run(desk, "run", "--yes", "--set", 'version="1.2"'))


def test_publishing_again_is_no_change(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert publish(opened(desk)).current
    assert f"already in {desk / 'registry' / 'tiny-desk' / '1.0'}\n" in capsys.readouterr().err


def test_show_goes_from_a_release_back_to_the_data(stages: Forks, tiny_run: Path) -> None:
    text = tiny.ok(stages.run(tiny_run, "show"))
    assert text.startswith("published")
    for kind in KINDS[:-1]:
        assert re.search(rf" {kind}  [0-9a-f]{{8}}  ", text)
    wanted = artifact.sha256_file(tiny_run / "tickets.csv")[:19]
    assert f"file tickets.csv  {wanted}" in text
    tree = json.loads(tiny.ok(stages.run(tiny_run, "show", "--json")))
    assert {node["role"] for node in tree["inputs"]} == {
        "base",
        "prepared",
        "adapter",
        "merged",
        "gguf",
        "report",
    }


def test_a_release_alone_shows_what_it_knows(stages: Forks, tiny_run: Path, tmp_path: Path) -> None:
    mailed = shutil.copytree(tiny_run / "registry" / "tiny-desk" / "1.0", tmp_path / "mailed")
    text = tiny.ok(stages.run(tmp_path, "show", str(mailed)))
    assert "(not here)" in text


# Missing packages


@pytest.mark.parametrize(
    ("package", "extra", "args"),
    [
        ("starlette", "serve", ("serve", "--port", "0")),
        ("llama_cpp", "gguf", ("predict", "gguf", "--split", "validation")),
    ],
)
def test_a_missing_package_is_said_with_the_command(
    desk: Path, tmp_path: Path, package: str, extra: str, args: tuple[str, ...]
) -> None:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] == {package!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
    )
    done = tiny.slmctl(desk, *args, env=tiny.environment(PYTHONPATH=str(blocked)))
    assert done.returncode == MissingError.code, done.stderr
    assert f"'{package}'" in done.stderr
    assert f"hint: {pip_line(extra)}" in done.stderr
    assert "Traceback" not in done.stderr
    assert sys.executable not in done.stdout


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        # as tokenizers says it
        (Exception("No space left on device (os error 28)"), "the disk is full"),
        (OSError(errno.EFBIG, "File too large"), "larger than this process may write"),  # ulimit -f
        (Exception("Input/output error (os error 5)"), "the disk could not be read or written"),
    ],
)
def test_a_full_or_broken_disk_is_said_whoever_met_it(
    error: Exception, said: str, tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=said), system_errors.spoken("pull", tmp_path):
        raise error


def test_a_process_that_ends_abruptly_is_said(tmp_path: Path) -> None:
    with (
        pytest.raises(StageError, match="a process that prepare started ended abruptly"),
        system_errors.spoken("prepare", tmp_path),
        ProcessPoolExecutor(1, get_context("spawn")) as pool,
    ):
        pool.submit(os._exit, 9).result()


def test_any_other_error_stays_as_it_is(tmp_path: Path) -> None:
    for error in (OSError(errno.EACCES, "no"), Exception("a bug (os error of mine)")):
        with pytest.raises(type(error)) as caught, system_errors.spoken("pull", tmp_path):
            raise error
        assert caught.value is error
