"""Checkpoints: a training that is killed goes on as if nothing had happened, whatever it left behind."""

from __future__ import annotations

import json
import multiprocessing
import random
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
from slmctl.config import FinetuneConfig

torch = pytest.importorskip("torch")

from slmctl.stages.finetune import checkpoint, finetune  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")

# 40 steps that end inside an epoch of 22, validated and saved every third; dropout, so that random states count
SHORT = ("finetune.max_steps=40", "finetune.validate_every=3", "finetune.patience=null", "finetune.lora.dropout=0.2")

LONGER = ("finetune.max_steps=120", *SHORT[1:])  # enough that a signal comes before the end


def sets(*given: str) -> list[str]:
    return [word for one in given for word in ("--set", one)]


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
    desk = untrained(Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("undisturbed") / "desk")))
    tiny.ok(stages.run(desk, "finetune", *sets(*LONGER)))
    return whole(desk).digest


def test_a_killed_training_goes_on_to_the_same_adapter(stages: Forks, desk: Path, digest: str) -> None:
    folder = untrained(desk) / "runs" / "adapter"
    child = stages.start(desk, "finetune", *sets(*LONGER))
    until_saved(folder, 2)
    child.kill()
    assert child.wait().code == -signal.SIGKILL
    (keep,) = folder.glob(".resume-*")
    (keep / ".draft-step-99999999").mkdir()  # one that was being written
    (keep / ".draft-step-99999999" / "weights.safetensors").write_bytes(b"half")
    done = stages.run(desk, "finetune", *sets(*LONGER))
    tiny.ok(done)
    assert "going on from step-" in done.stderr
    assert whole(desk).digest == digest


def test_an_interrupted_training_says_what_it_kept_and_goes_on(stages: Forks, desk: Path, digest: str) -> None:
    folder = untrained(desk) / "runs" / "adapter"
    child = stages.start(desk, "finetune", *sets(*LONGER))
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
    done = stages.run(desk, "finetune", *sets(*LONGER))
    tiny.ok(done)
    assert f"going on from {Path(step[2]).name}" in done.stderr
    assert whole(desk).digest == digest  # whatever the step, and the log entries of every step


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_training_killed_at_any_instant_ends_in_the_same_adapter(desk: Path) -> None:
    # a server that has imported everything forks each attempt, which saves the seconds that imports take
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["slmctl.cli.main", "slmctl.pipeline.runner", "slmctl.stages.finetune.finetune"])
    folder = untrained(desk) / "runs" / "adapter"

    def start() -> Any:
        child = context.Process(target=tiny.run_here, args=(desk, "--quiet", "finetune", *sets(*SHORT)))
        child.start()
        return child

    def finish() -> str:
        child = start()
        child.join(120)
        assert child.exitcode == 0
        return whole(desk).digest

    finish()  # the first one starts the server
    shutil.rmtree(folder)
    begun = time.monotonic()
    wanted = finish()
    lasts = time.monotonic() - begun
    choose = random.Random(20)
    resumed = 0
    for k in range(20):
        shutil.rmtree(folder)
        child = start()
        if k % 2:  # on a busy machine few instants of the whole run would fall behind its first checkpoint
            while child.is_alive() and not list(folder.glob(".resume-*/step-*")):
                time.sleep(0.005)
            time.sleep(choose.uniform(0, lasts / 4))
        else:
            time.sleep(choose.uniform(0, lasts))
        child.kill()
        child.join()
        resumed += bool(list(folder.glob(".resume-*/step-*")))
        assert finish() == wanted
    assert resumed >= 5, "too few of the instants fell between the first checkpoint and the end"


def test_what_a_kill_behind_the_rename_left_is_tidied_up(stages: Forks, desk: Path) -> None:
    # seen once in hundreds of kills: the artifact was whole, and its checkpoints lay beside it for ever
    (folder,) = (desk / "runs" / "adapter").iterdir()
    left = folder.parent / f".resume-{folder.name}"
    (left / "step-4").mkdir(parents=True)
    assert tiny.ok(stages.run(desk, "finetune")) == str(folder)
    assert not left.exists()


# In one process


class Cut(Exception):  # noqa: N818 - it stands for a power cut
    pass


def train(artifacts: dict[str, Artifact], out: Path, keep: Path, **settings: Any) -> dict[str, Any]:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    config: dict[str, Any] = {"max_steps": 10, "validate_every": 3, "learning_rate": 1e-2, "batch_size": 8}
    config |= {"lora": {"rank": 4}} | settings
    return finetune.run(
        FinetuneConfig.model_validate(config), base=artifacts["base"], prepared=artifacts["prepared"], out=out,
        keep=keep,
    )  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def undisturbed(artifacts: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a training leaves that nothing cuts off."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train(artifacts, folder / "whole", folder / "keep")
    return contents(folder / "whole")


@pytest.fixture(scope="module")
def saved(artifacts: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a training that was cut off after its last step; copy them to change them."""
    folder = tmp_path_factory.mktemp("cut")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "_save", lambda *args: (_ for _ in ()).throw(Cut))
        with pytest.raises(Cut):
            train(artifacts, folder / "cut", folder / "keep")
    return folder / "keep"


@pytest.fixture
def cut(saved: Path, tmp_path: Path) -> Path:
    """A copy of `saved` that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "keep"))


def test_the_last_two_checkpoints_are_kept(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["step-00000006", "step-00000009"]
    assert sorted(path.name for path in (saved / "step-00000009").iterdir()) == [
        "best.safetensors", "hashes.json", "optimizer.safetensors", "progress.json", "trainer_state.json",
        "weights.safetensors",
    ]  # fmt: skip
    assert str(saved) not in (saved / "step-00000009" / "trainer_state.json").read_text()


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "trainer_state.json", "hashes.json"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    artifacts: dict[str, Artifact],
    undisturbed: dict[str, bytes],
    cut: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    flip(cut / "step-00000009" / name)
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
    left = "step-00000006, step-00000009 of an earlier run left aside as damaged; none is whole, so the training starts"
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
    settings = {"max_steps": 300, "learning_rate": 5e-2, "patience": 3, "lr_scheduler": "constant", "batch_size": 8}
    metrics = train(artifacts, tmp_path / "whole", tmp_path / "other", **settings)
    assert metrics["stopped_early"]
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "_save", lambda *args: (_ for _ in ()).throw(Cut))
        with pytest.raises(Cut):
            train(artifacts, tmp_path / "cut", tmp_path / "keep", **settings)
    again = train(artifacts, tmp_path / "again", tmp_path / "keep", **settings)
    assert (again["steps"], again["stopped_early"]) == (metrics["steps"], True)
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


# The same bytes, and nothing that could run code


def test_a_run_elsewhere_at_another_hour_gives_the_same_digest(desk: Path, digest: str) -> None:
    # what `digest` trained had 0 as its seed for hashes, and the zone of this machine
    moved = untrained(desk).rename(desk.with_name("another place"))
    settings = tiny.environment(PYTHONHASHSEED="17", TZ="Asia/Kathmandu", LC_ALL="C")
    done = tiny.slmctl(moved, "finetune", "--json", *sets(*LONGER), env=settings, cwd="/")
    assert json.loads(tiny.ok(done))["digest"] == digest


def test_an_adapter_is_tensors_and_text_without_a_path(artifacts: dict[str, Artifact], tiny_run: Path) -> None:
    files = [path for path in artifacts["adapter"].path.iterdir() if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".jsonl", ".svg"}
    for path in files:
        raw = path.read_bytes()
        assert str(tiny_run.parent).encode() not in raw, path.name
        assert not raw.startswith((b"PK", b"\x80\x04", b"\x80\x05")), f"{path.name} is a pickle"
