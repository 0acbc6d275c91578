"""What a stage said: kept as plain text without secrets, within
bounds, and shown by `slmctl show --log`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from slmctl import config, console
from slmctl.cli.main import cli
from slmctl.errors import DataError, IntegrityError
from slmctl.pipeline import runner, stage_log
from slmctl.pipeline.graph import Project, StageRequest, stage_class

NAME = "3f9a1c2e0000"
TOKEN = "ghp_" + "a1B2" * 9


@pytest.fixture
def request_(tmp_path: Path) -> StageRequest:
    path = tmp_path / "runs" / "adapter" / NAME
    return StageRequest(stage_class("finetune")(None), None, {}, {}, "", path)  # type: ignore[arg-type]  # the log asks for no config


def test_what_is_said_is_kept_without_control_characters_and_secrets(
    request_: StageRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_PASSWORD", "correct-horse")
    monkeypatch.setattr(console, "_level", -1)  # quiet on the terminal
    with stage_log.kept(request_):
        console.say("  loss \x1b[31m0.5\x1b[0m")
        console.detail(f"asking with {TOKEN} and correct-horse")
        console.table("two rows", ("model", "accuracy"), [("base", "9 %"), ("Q8_0", "92 %")])
    console.say("not of the stage")
    log = stage_log.path_of(request_.path)
    assert log.name == f"adapter-{NAME}.log"
    head, *lines, end = log.read_text().splitlines()
    assert head.endswith(f"finetune  adapter/{NAME}")
    assert lines[:3] == ["  loss 0.5", "asking with [SECRET] and [SECRET]", "two rows"]
    assert "Q8_0" in lines[-1] and "92 %" in lines[-1]
    assert "done in" in end


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (DataError("no rows", hint="add some"), ["error: no rows", " hint: add some"]),
        (KeyboardInterrupt(), ["interrupted"]),
        (ZeroDivisionError("oh"), ["ZeroDivisionError: oh"]),
    ],
)
def test_how_a_stage_ended_is_kept_and_its_next_run_is_added(
    request_: StageRequest, error: BaseException, kept: list[str]
) -> None:
    with pytest.raises(type(error)), stage_log.kept(request_):
        raise error
    with stage_log.kept(request_):
        console.say("again")
    lines = stage_log.path_of(request_.path).read_text().splitlines()
    at = lines.index(kept[0])
    assert lines[at : at + len(kept)] == kept
    assert lines[-2] == "again"


def test_ctrl_c_says_what_is_kept_and_how_to_go_on(
    request_: StageRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # outside of a training's steps it ended without a word
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "_make", stop)
    project = Project(tmp_path, config.parse("{project: desk, base: ./base}", root=tmp_path))
    for kept in ("the finished stages", "its last checkpoint and the finished stages"):
        with pytest.raises(
            KeyboardInterrupt,
            match=f"in finetune; {kept} are kept\n  the same command goes on from",
        ):
            runner.run(project, request_)
        (runner.resume_folder(request_) / "step-00000002").mkdir(parents=True, exist_ok=True)
    assert "interrupted in finetune" in stage_log.path_of(request_.path).read_text()


def test_a_log_is_bounded(request_: StageRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_log, "MAX_BYTES", 1000)
    for word in ("first", "second"):
        with stage_log.kept(request_):
            for number in range(100):
                console.say(f"{word} {number} {'x' * 5000}"[:40])
    text = stage_log.path_of(request_.path).read_text()
    assert len(text) < 1100
    assert text.endswith("... the rest is not kept\n")
    assert "second 0" in text and "first 0 " not in text


def test_a_log_that_cannot_be_written_stops_nothing(request_: StageRequest, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ".logs").write_text("in the way")
    with stage_log.kept(request_):
        console.say("goes on")


def test_the_stages_of_a_copy_keep_their_words_to_themselves(
    request_: StageRequest, tmp_path: Path
) -> None:
    inner = StageRequest(
        request_.stage, request_.section, {}, {}, "", tmp_path / "copy" / "runs" / "adapter" / NAME
    )
    with stage_log.kept(request_), stage_log.kept(inner):
        console.say("made-up rows")
    assert "made-up rows" not in stage_log.path_of(request_.path).read_text()
    assert "made-up rows" in stage_log.path_of(inner.path).read_text()


def test_show_prints_the_log_of_an_artifact_of_a_failed_stage_or_the_last(
    request_: StageRequest, tmp_path: Path
) -> None:
    with pytest.raises(IntegrityError, match="no log is kept of any stage"):
        stage_log.find(tmp_path, None)
    with stage_log.kept(request_):
        console.say("of the adapter")
    for words in ([NAME[:8]], [str(request_.path)], []):
        done = CliRunner().invoke(cli, ["-C", str(tmp_path), "show", "--log", *words])
        assert done.exit_code == 0, done.exception
        assert "of the adapter\n" in done.stdout
    with pytest.raises(IntegrityError):
        stage_log.find(tmp_path, Path("dead"))
