"""Invented rows: both trainings, the decision between them, and what follows it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support import endpoint, teacher, tiny
from support.left import leave

from slmctl import config
from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact, Manifest
from slmctl.errors import DataError
from slmctl.metrics import trial_choice
from slmctl.pipeline import invented_rows, preflight, resolve
from slmctl.pipeline.resolve import Project
from slmctl.provenance import gc

# of trl's settings, in a process in which another test has loaded transformers before
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")

INVENT = "  votes: 1\n  examples: 2\n  invent: {per_label: 12}\n"
FAST = "finetune: {max_steps: 4, learning_rate: 1e-2, batch_size: 4, lora: {rank: 4}}\n"
COUNTED = {"train": 9, "validation": 1, "calibration": 0, "test": 0, "rejected": 0, "tokens": {"total": 90}}


def blocks(losses: list[float], tokens: int = 40) -> np.ndarray:
    return np.array([(16, tokens, loss * tokens) for loss in losses])


def test_a_gain_that_every_block_shows_is_no_chance_and_one_that_few_show_may_be() -> None:
    random = np.random.default_rng(1)
    before = [1.0 + 0.3 * random.normal() for _ in range(12)]  # records differ much more than the trainings
    steady = trial_choice.paired_gain(blocks(before), blocks([loss - 0.05 for loss in before]))
    assert steady.mean == pytest.approx(0.05)
    assert steady.bound(0.95) > 0.049
    unsteady = trial_choice.paired_gain(
        blocks(before), blocks([loss - 0.05 + 0.3 * random.normal() for loss in before])
    )
    assert unsteady.bound(0.95) < 0
    same = trial_choice.paired_gain(blocks(before), blocks(before))
    assert same.bound(0.95) == 0.0  # which is not above 0


def test_of_trainings_that_are_equal_few_are_taken_for_better() -> None:
    random = np.random.default_rng(2)
    taken = 0
    for _ in range(400):
        hard = 0.3 * random.normal(size=8)
        first, second = (blocks(list(1 + hard + 0.05 * random.normal(size=8))) for _ in range(2))
        taken += trial_choice.paired_gain(first, second).bound(invented_rows.CONFIDENCE) > 0
    assert taken <= 32  # 5 % are expected, 20, and two in three times as many are three standard deviations off


def teacher_variant(seed: str, label: str) -> str:
    words = seed.split()
    own = [word for word in words if word in tiny.WORDS[label]]
    rest = sorted(set(tiny.FILLER.split()) - set(words), key=lambda word: teacher.chance(word, seed))
    return " ".join([*own, *rest[:6]])


def desk(folder: Path, url: str, base: Path) -> Path:
    """A project with a thin label, and few training steps."""
    teacher.project(folder, url, rows=6, gold=260, more=INVENT)
    pairs = tiny.rows(700, seed=3)
    others = [pair for pair in pairs if pair[1] != "account"][:280]
    few = [pair for pair in pairs if pair[1] == "account"][:16]
    tiny.write_csv(folder / "gold.csv", [*others, *few])
    shutil.copytree(base, folder / "base")
    path = folder / "slmctl.yaml"
    path.write_text(path.read_text(encoding="utf-8") + FAST, encoding="utf-8")
    return folder


def project_of(folder: Path) -> Project:
    return Project(folder, config.load(folder / "slmctl.yaml"))


@pytest.fixture
def decided(tmp_path: Path) -> tuple[Path, list[Artifact]]:
    """A project whose stages left their artifacts up to both trainings, and the two adapters."""
    folder = teacher.project(tmp_path, "http://127.0.0.1:9/v1", rows=3, gold=10, more=INVENT)
    (folder / "base").mkdir()
    (folder / "base" / "config.json").write_text("{}")
    project = project_of(folder)
    leave(project, resolve.resolve_stage(project, "pull"), {})
    leave(project, resolve.resolve_stage(project, "label"), {"accepted": 2, "invented": {"accepted": 7}})
    adapters = []
    for section in invented_rows.sections(project):
        data = leave(project, resolve.resolve_stage(project, "prepare", section=section), COUNTED)
        request = resolve.resolve_stage(project, "finetune", {"prepared": data})
        adapters.append(leave(project, request, {"validation_blocks": []}))
    return folder, adapters


def test_later_stages_follow_the_decision_and_other_settings_need_another(decided: tuple[Path, list[Artifact]]) -> None:
    folder, adapters = decided
    assert invented_rows.is_open(project_of(folder))
    assert resolve.expected(project_of(folder), "finetune").path == adapters[0].path  # until then without them
    for better in (0, 1):
        made = [with_losses(one, [1.0 - 0.1 * (k == better)] * 5) for k, one in enumerate(adapters)]
        choice = invented_rows.decide(project_of(folder), *made)
        assert (choice.used, choice.rows) == (bool(better), 7)
        assert ("are trained on" if better else "are left out") in choice.sentence
        assert resolve.expected(project_of(folder), "finetune").path == adapters[better].path
        assert resolve.invented_choice_of(project_of(folder)) == choice
        assert not invented_rows.is_open(project_of(folder))
    few = [with_losses(one, [1.0 - 0.5 * k]) for k, one in enumerate(adapters)]
    assert invented_rows.decide(project_of(folder), *few).gain_at_least is None  # 16 records tell nothing
    assert not invented_rows.decide(project_of(folder), *few).used
    text = (folder / "slmctl.yaml").read_text()
    (folder / "slmctl.yaml").write_text(text + FAST)
    assert invented_rows.is_open(project_of(folder))


def test_both_trainings_are_kept_while_the_choice_is_open(decided: tuple[Path, list[Artifact]]) -> None:
    folder, adapters = decided
    shutil.rmtree(adapters[1].path)
    checkpoint = adapters[1].path.with_name(f".resume-{adapters[1].path.name}")
    checkpoint.mkdir()
    (checkpoint / "state").write_text("half of it")
    assert not [item for item in gc.survey(project_of(folder), []).items if item.size]
    made = [with_losses(one, [1.0 - 0.1 * (one is adapters[0])] * 5) for one in adapters]
    invented_rows.decide(project_of(folder), *made)
    assert checkpoint in {item.path for item in gc.survey(project_of(folder), []).items}


def test_a_plan_refuses_what_is_counted_and_notes_what_is_estimated(decided: tuple[Path, list[Artifact]]) -> None:
    folder, _ = decided

    def needs(*names: str) -> list[preflight.Requirement]:
        found = preflight.plan(project_of(folder), names).requirements
        return [one for one in found if one.name == "invented"]

    assert [one.error is not None for one in needs("prepare", "finetune")] == [False, True]
    assert not needs("finetune")  # by itself it trains once
    shutil.rmtree(folder / "runs" / "prepared")
    twice, few = needs("prepare", "finetune")
    assert "finetune trains twice" in twice.state
    assert few.state.startswith("by an estimate")
    assert few.note
    assert few.error is None


@pytest.mark.slow
def test_a_run_trains_both_ways_once_and_goes_on_with_one(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("trl")

    def manners(body: dict[str, object], before: int) -> endpoint.Turn:
        messages = body["messages"]
        assert isinstance(messages, list)
        writes = str(messages[0]["content"]).startswith("You write messages")
        said = teacher_variant(f"{messages[-1]['content']}", "account") if writes else teacher.answer(body)  # type: ignore[arg-type]
        return teacher.reply(body, said)  # type: ignore[arg-type]

    with endpoint.serving(manners) as fake:
        folder = desk(tmp_path / "desk", fake.url, tiny_base)
        plan = preflight.plan(project_of(folder), ["pull", "label", "prepare", "finetune"])
        assert "finetune trains twice" in " ".join(need.state for need in plan.requirements)
        teacher.slmctl(folder, "run", "--until", "finetune")
    said = capsys.readouterr().err
    assert "training twice" in said
    (decision,) = (folder / "runs" / ".invented").glob("*.json")
    made = json.loads(decision.read_bytes())
    project = project_of(folder)
    choice = resolve.invented_choice_of(project)
    assert choice is not None
    assert choice.sentence in said
    assert made["rows"] == len(teacher.lines(teacher.labelled(folder) / "invented.jsonl")) > 0
    assert choice.used == ((choice.gain_at_least or -1.0) > 0)
    adapters = {str(path.relative_to(folder)) for path in (folder / "runs" / "adapter").glob("[!.]*")}
    assert adapters == {choice.without, choice.with_rows}
    data = [artifact.load(path) for path in (folder / "runs" / "prepared").glob("[!.]*")]
    with_rows, without = sorted(data, key=lambda one: one.metrics["train"], reverse=True)
    assert with_rows.metrics["train"] == without.metrics["train"] + choice.rows
    for name in ("validation", "calibration", "test"):
        assert with_rows.file(f"{name}.jsonl").read_bytes() == without.file(f"{name}.jsonl").read_bytes()
    teacher.slmctl(folder, "run", "--until", "finetune")  # the endpoint is gone, and all is current
    assert "training twice" not in capsys.readouterr().err
    assert len(list((folder / "runs" / "adapter").glob("[!.]*"))) == 2


def with_losses(adapter: Artifact, losses: list[float]) -> Artifact:
    """The adapter as if its validation had come out so."""
    metrics = adapter.metrics | {"validation_blocks": blocks(losses).tolist()}
    return Artifact(adapter.path, Manifest(**adapter.manifest.__dict__ | {"metrics": metrics}))


def test_too_few_validation_rows_are_refused_before() -> None:
    invented_rows.require_validation(20)
    with pytest.raises(DataError, match="19 are too few: it takes 20 and more"):
        invented_rows.require_validation(19)


def test_without_the_key_nothing_changes(tmp_path: Path) -> None:
    folder = teacher.project(tmp_path, "http://127.0.0.1:9/v1", rows=3, gold=10)
    project = project_of(folder)
    assert not invented_rows.is_open(project)
    assert resolve.invented_choice_of(project) is None
    section = config.stage_config(project.config, "prepare")
    assert "invented" not in config.recipe(section)
    assert config.recipe(section.model_copy(update={"invented": True}))["invented"] is True
