"""Checkpoints: a training that is killed goes on as if nothing had
happened, whatever it left behind.
"""

from __future__ import annotations

import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.forks import LONG_S, Forks

from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact

pytest.importorskip("torch")

from support.training import trained

from slmctl.stages.finetune import checkpoint, finetune, trainer

# More steps than a signal takes, which end inside an epoch; dropout, so that random states count.
SETTINGS = ("max_steps=60", "validate_every=5", "patience=null", "lora.dropout=0.2")
TRAIN = ("finetune", *(f"--set=finetune.{setting}" for setting in SETTINGS))


def untrained(desk: Path) -> Path:
    shutil.rmtree(desk / "runs" / "adapter")
    return desk


def whole(desk: Path) -> Artifact:
    """The one adapter of a folder, verified; nothing else may lie beside it."""
    (folder,) = (desk / "runs" / "adapter").iterdir()
    assert not artifact.verify_folder(folder)
    return artifact.load(folder)


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


# Killed


def until_saved(folder: Path, count: int) -> None:
    """Wait until a training has saved so many checkpoints."""
    ends = time.monotonic() + LONG_S
    while len(list(folder.glob(".resume-*/step-*"))) < count:
        assert time.monotonic() < ends
        time.sleep(0.005)


@pytest.fixture(scope="module")
def digest(stages: Forks, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of an adapter whose training nothing disturbed."""
    desk = untrained(
        Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("undisturbed") / "desk"))
    )
    tiny.ok(stages.run(desk, *TRAIN))
    return whole(desk).digest


def test_a_killed_training_goes_on_to_the_same_adapter(
    stages: Forks, desk: Path, digest: str
) -> None:
    folder = untrained(desk) / "runs" / "adapter"
    before = sorted(desk.glob("runs/**/manifest.json"))
    child = stages.start(desk, *TRAIN)
    until_saved(folder, 2)
    child.kill()
    assert child.wait().code == -signal.SIGKILL
    assert sorted(desk.glob("runs/**/manifest.json")) == before, "something half looks whole"
    (keep,) = folder.glob(".resume-*")
    (keep / ".draft-step-99999999").mkdir()  # one that was being written
    (keep / ".draft-step-99999999" / "weights.safetensors").write_bytes(b"half")
    done = stages.run(desk, *TRAIN)
    tiny.ok(done)
    assert "going on from step-" in done.stderr
    assert whole(desk).digest == digest


def test_an_interrupted_training_says_what_it_kept_and_goes_on(
    stages: Forks, desk: Path, digest: str
) -> None:
    folder = untrained(desk) / "runs" / "adapter"
    child = stages.start(desk, *TRAIN)
    until_saved(folder, 1)
    child.kill(signal.SIGINT)
    done = child.wait()
    said = done.stderr
    assert done.code == 130, said
    assert "ending after this step; Ctrl-C again ends at once" in said
    step = re.search(r"interrupted at step (\d+) of \d+; kept is (.*/step-(\d+))", said)
    assert step and int(step[1]) == int(step[3]) and checkpoint.is_whole(Path(step[2]))
    assert "the same command goes on from there; with other settings a training begins anew" in said
    assert "Traceback" not in said
    assert not list(folder.glob(".draft-*"))
    done = stages.run(desk, *TRAIN)
    tiny.ok(done)
    assert f"going on from {Path(step[2]).name}" in done.stderr
    assert whole(desk).digest == digest  # whatever the step, and the log entries of every step


def test_what_a_kill_behind_the_rename_left_is_tidied_up(stages: Forks, desk: Path) -> None:
    # seen once in hundreds of kills: the artifact was whole, and its checkpoints lay beside it for
    # ever
    (folder,) = (desk / "runs" / "adapter").iterdir()
    left = folder.parent / f".resume-{folder.name}"
    (left / "step-4").mkdir(parents=True)
    assert tiny.ok(stages.run(desk, "finetune")) == str(folder)
    assert not left.exists()


# In one process


class Cut(Exception):  # noqa: N818 - it stands for a power cut
    pass


def train(artifacts: dict[str, Artifact], out: Path, keep: Path, **settings: Any) -> dict[str, Any]:
    return trained(
        artifacts, out, keep, **{"max_steps": 10, "validate_every": 3, "batch_size": 8} | settings
    )


def cut_off(artifacts: dict[str, Artifact], keep: Path, **settings: Any) -> Path:
    """The checkpoints of a training that is cut off after its last step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "_save", lambda *args: (_ for _ in ()).throw(Cut))
        with pytest.raises(Cut):
            train(artifacts, keep.with_name("cut"), keep, **settings)
    return keep


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def undisturbed(
    artifacts: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """What a training leaves that nothing cuts off."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train(artifacts, folder / "whole", folder / "keep")
    return contents(folder / "whole")


@pytest.fixture(scope="module")
def saved(artifacts: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a training that was cut off after its
    last step; copy them to change them.
    """
    return cut_off(artifacts, tmp_path_factory.mktemp("cut") / "keep")


@pytest.fixture
def cut(saved: Path, tmp_path: Path) -> Path:
    """A copy of `saved` that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "keep"))


def test_the_last_two_checkpoints_are_kept(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["step-00000006", "step-00000009"]
    assert sorted(path.name for path in (saved / "step-00000009").iterdir()) == [
        "best.safetensors",
        "hashes.json",
        "optimizer.safetensors",
        "progress.json",
        "trainer_state.json",
        "weights.safetensors",
    ]
    assert str(saved) not in (saved / "step-00000009" / "trainer_state.json").read_text()


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    artifacts: dict[str, Artifact],
    undisturbed: dict[str, bytes],
    cut: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for path in (cut / "step-00000009").iterdir():
        flip(path)
        assert checkpoint.newest(cut) == cut / "step-00000006", path.name
        flip(path)
    assert checkpoint.newest(cut) == cut / "step-00000009"
    flip(cut / "step-00000009" / "weights.safetensors")
    train(artifacts, tmp_path / "again", cut)
    said = capsys.readouterr().err
    assert "going on from step-00000006 of an earlier run" in said
    assert "note: step-00000009 of an earlier run left aside as damaged\n" in said
    assert contents(tmp_path / "again") == undisturbed


def test_no_checkpoint_is_used_when_none_is_whole(
    artifacts: dict[str, Artifact],
    undisturbed: dict[str, bytes],
    cut: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flip(cut / "step-00000009" / "best.safetensors")
    (cut / "step-00000006" / "progress.json").unlink()
    (cut / ".draft-step-00000010").mkdir()
    assert checkpoint.newest(cut) is None
    train(artifacts, tmp_path / "again", cut)
    said = capsys.readouterr().err
    assert "going on" not in said
    left = (
        "step-00000006, step-00000009 of an earlier run left aside as damaged; none is whole, "
        "so the training starts"
    )
    assert f"note: {left} over" in said
    assert contents(tmp_path / "again") == undisturbed


def test_damaged_checkpoints_do_not_crowd_out_new_ones(
    artifacts: dict[str, Artifact], cut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the two newest are kept, and by their names those were the damaged ones
    for name in ("step-00000006", "step-00000009"):
        flip(cut / name / "best.safetensors")
    whole = checkpoint.save

    def save(*args: Any) -> Path:
        whole(*args)
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        with pytest.raises(Cut):
            train(artifacts, tmp_path / "again", cut)
    assert [path.name for path in cut.iterdir()] == ["step-00000003"]
    assert checkpoint.newest(cut) == cut / "step-00000003"


def test_a_training_cut_off_after_it_stopped_early_stops_there_again(
    artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # at a rate this high what is learned soon holds for the training rows alone
    monkeypatch.setattr(
        trainer.AnswerTrainer,
        "is_surely_worse",
        lambda self: self.blocks != self.progress.best_blocks,
    )
    settings = {"max_steps": 300, "learning_rate": 5e-2, "patience": 2, "lr_scheduler": "constant"}
    metrics = train(artifacts, tmp_path / "whole", tmp_path / "other", **settings)
    assert metrics["stopped_early"]
    cut_off(artifacts, tmp_path / "keep", **settings)
    again = train(artifacts, tmp_path / "again", tmp_path / "keep", **settings)
    assert (again["steps"], again["stopped_early"]) == (metrics["steps"], True)
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")
