"""gc removes what nothing needs, and nothing else."""

from __future__ import annotations

import errno
import os
import pty
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support import released, tiny
from support.forks import Forks

from slmctl import config
from slmctl.artifacts import artifact, locks
from slmctl.pipeline.graph import Project
from slmctl.provenance import gc
from slmctl.releases import targets
from slmctl.releases.targets.local import FolderTarget


def kept(desk: Path) -> set[str]:
    return {str(path.parent.relative_to(desk)) for path in desk.glob("runs/*/[!.]*/manifest.json")}


@pytest.fixture(scope="module")
def twice(stages: Forks, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set that the project's config asks for no longer, and
    no release was made of; in a copy of it.
    """
    folder = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("twice") / "desk"))
    return Path(tiny.ok(stages.run(folder, "prepare", "--set", "prepare.splits.test=0.3")))


@pytest.fixture
def older(desk: Path, twice: Path) -> Path:
    """`desk` with that data set, and all that its stage has left; its place there."""
    runs = twice.parents[1]
    shutil.rmtree(desk / "runs")
    shutil.copytree(runs, desk / "runs")
    return desk / "runs" / twice.relative_to(runs)


def test_what_config_and_releases_need_stays(stages: Forks, desk: Path, older: Path) -> None:
    before = kept(desk)
    done = stages.run(desk, "gc", "--yes")
    assert done.returncode == 0, done.stderr
    assert before - kept(desk) == {str(older.relative_to(desk))}
    assert stages.run(desk, "run").returncode == 0
    assert stages.run(desk, "verify").returncode == 0


def test_nothing_goes_unasked(stages: Forks, desk: Path, older: Path) -> None:
    before = kept(desk)
    done = stages.run(desk, "gc", input="n\n")
    assert kept(desk) == before, done.stderr
    assert older.name in done.stdout + done.stderr, "it is listed"


@pytest.mark.parametrize(
    ("answer", "stderr"),
    [("n", "terminal"), ("y", "terminal"), ("y", "pipe"), ("y", "closed")],
    ids=lambda each: each,
)
def test_who_is_asked_decides(desk: Path, older: Path, answer: str, stderr: str) -> None:
    """At a terminal, as people use it. A question in a log waited for
    ever, and a closed stderr ended with 1.
    """
    ours, theirs = pty.openpty()
    streams: dict[str, Any] = {
        "stdin": theirs,
        "stderr": theirs if stderr == "terminal" else subprocess.PIPE,
    }
    child = tiny.start(
        desk, "gc", **streams, preexec_fn=(lambda: os.close(2)) if stderr == "closed" else None
    )
    os.write(ours, f"{answer}\n".encode())
    out, err = child.communicate(timeout=120)
    said = os.read(ours, 100_000).decode() if stderr == "terminal" else err
    os.close(ours)
    os.close(theirs)
    assert child.returncode == 0, said
    assert older.name in out
    assert ("remove " in said and "[y/N]" in said) == (stderr == "terminal")
    assert ("no terminal" in said) == (stderr == "pipe")
    assert older.exists() == ((answer, stderr) != ("y", "terminal"))


def test_what_is_served_stays(stages: Forks, desk: Path, older: Path) -> None:
    """Where only the server's section names it: as a folder, and as a file in one."""
    for section in (f"serve.adapters={{billing: {older}}}", f"serve.policy={older}/task.json"):
        tiny.ok(stages.run(desk, "gc", "--yes", "--set", section))
        assert older.exists()
    tiny.ok(stages.run(desk, "gc", "--yes"))
    assert not older.exists()


def test_the_registry_is_the_one_that_is_set(stages: Forks, desk: Path, tmp_path: Path) -> None:
    (desk / "registry").rename(tmp_path / "shared")
    moved = ("--set", "prepare.splits.test=0.3", "--set", "finetune.seed=99")
    before = kept(desk)
    tiny.ok(stages.run(desk, "gc", "--yes", "--set", f"publish.to=dir:{tmp_path}/shared", *moved))
    needed = {"base", "prepared", "adapter", "merged", "gguf"}
    assert {path for path in before if path.split("/")[1] in needed} <= kept(desk)


def test_what_a_release_was_made_of_stays_though_the_config_has_moved_on(
    stages: Forks, desk: Path
) -> None:
    before = kept(desk)
    done = stages.run(
        desk, "gc", "--yes", "--set", "finetune.seed=99", "--set", "prepare.splits.test=0.3"
    )
    assert done.returncode == 0, done.stderr
    needed = {"runs/base", "runs/prepared", "runs/adapter", "runs/merged", "runs/gguf"}
    left = kept(desk)
    assert {path for path in before if path.rpartition("/")[0] in needed} <= left


def test_the_log_of_what_goes_goes_with_it(stages: Forks, desk: Path, older: Path) -> None:
    logs = {path.name for path in (desk / "runs" / ".logs").iterdir()}
    left = desk / "runs" / ".logs" / f"prepared-{older.name}.log"
    left.write_text("said\n")
    tiny.ok(stages.run(desk, "gc", "--yes"))
    assert {path.name for path in (desk / "runs" / ".logs").iterdir()} == logs - {left.name}


def test_the_checkpoints_of_the_next_training_stay(stages: Forks, desk: Path) -> None:
    (adapter,) = desk.glob("runs/adapter/[!.]*")
    step = adapter.with_name(f".resume-{adapter.name}") / "step-00000004"
    step.mkdir(parents=True)
    (step / "weights.safetensors").write_bytes(b"weights")
    tiny.ok(stages.run(desk, "gc", "--yes"))
    assert step.exists()
    tiny.ok(stages.run(desk, "gc", "--yes", "--set", "finetune.seed=99"))
    assert not step.exists()


def test_what_a_running_process_uses_stays(stages: Forks, desk: Path, older: Path) -> None:
    lock = desk / "runs" / ".locks" / f"prepared-{older.name}"
    # of a training that has no artifact yet
    log = desk / "runs" / ".logs" / "adapter-0123456789ab.log"
    log.write_text("3/12 steps")
    training = desk / "runs" / ".locks" / "adapter-0123456789ab"
    with (
        locks.lock(lock, wait=False, on_wait=lambda holder: None),
        locks.lock(training, wait=False, on_wait=lambda holder: None),
    ):
        assert stages.run(desk, "gc", "--yes").returncode == 0
        assert older.exists() and log.exists()
    assert stages.run(desk, "gc", "--yes").returncode == 0
    assert not older.exists()


def test_what_a_tag_stands_for_stays_wherever_its_registry_lies(
    stages: Forks, desk: Path, tmp_path: Path
) -> None:
    """The config publishes elsewhere by now, and only the registry's
    tag tells what the release was made of.
    """
    registry = (desk / "registry").rename(tmp_path / "shared")
    tiny.ok(
        stages.run(tmp_path, "promote", "1.0", "--tag", "production", "--registry", str(registry))
    )
    moved = (
        "--set",
        "publish.to=dir:./new",
        "--set",
        "prepare.splits.test=0.3",
        "--set",
        "finetune.seed=99",
    )
    before = kept(desk)
    tiny.ok(stages.run(desk, "gc", "--yes", "--registry", str(registry), *moved))
    needed = {"base", "prepared", "adapter", "merged", "gguf"}
    assert {path for path in before if path.split("/")[1] in needed} <= kept(desk)
    tiny.ok(
        stages.run(tmp_path, "promote", "1.0", "--tag", "production", "--registry", str(registry))
    )
    # nobody names its new place
    refuses(stages, desk, r"was sent to \S+/registry, which is missing", *moved)
    for path in desk.glob("runs/.deliveries/*"):
        path.unlink()
    refuses(stages, desk, r"the registry \S+/new that publish\.to names is missing", *moved)
    (desk / "new").mkdir()
    noted = stages.run(desk, "gc", "--yes", *moved)
    assert noted.returncode == 0, noted.stderr
    assert "may be a share that is not mounted" in noted.stderr
    assert {path for path in before if path.split("/")[1] in needed} <= kept(desk)
    shutil.rmtree(desk / "runs" / "published")  # as the note says
    tiny.ok(stages.run(desk, "gc", "--yes", *moved))
    assert not {path for path in kept(desk) if path.split("/")[1] in ("adapter", "gguf")}


def refuses(stages: Forks, desk: Path, reason: str, *options: str) -> None:
    before = kept(desk)
    done = stages.run(desk, "gc", "--yes", *options)
    assert done.returncode == 7, done.stdout + done.stderr
    assert re.search(reason, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert kept(desk) == before


def test_a_registry_that_is_not_mounted_is_no_empty_one(stages: Forks, desk: Path) -> None:
    """More ways to be unreadable: tests/hostile/test_registries.py."""
    changed = ("--set", "finetune.seed=99", "--set", "prepare.splits.test=0.3")
    (desk / "registry").rename(desk / "elsewhere")
    refuses(stages, desk, "which is missing", *changed)
    (desk / "registry").mkdir()
    refuses(stages, desk, "does not hold it", *changed, "--set", "publish.to=dir:./new")


def test_a_signature_goes_with_its_release(stages: Forks, desk: Path) -> None:
    (release,) = desk.glob("runs/published/[!.]*")
    folder = desk / "runs" / ".signatures"
    folder.mkdir()
    digest = artifact.load(release).digest[7:19]
    for name in (f"{digest}-abc-def.sig", "000000000000-abc-def.sig"):
        (folder / name).write_bytes(b"{}")
    tiny.ok(stages.run(desk, "gc", "--yes"))
    assert [path.name for path in folder.iterdir()] == [f"{digest}-abc-def.sig"]


def empty_project(folder: Path) -> Project:
    (folder / "base").touch()
    return Project(
        folder,
        config.parse(
            f"{{project: none, base: {folder / 'base'}, publish: {{to: 'dir:registry'}}}}"
        ),
    )


def test_a_release_that_is_being_sent_arrives_though_its_files_were_taken(tmp_path: Path) -> None:
    # between `put` and `finish` no release is a link of a file: `publish` of another project ended
    # with ENOENT
    project, target = empty_project(tmp_path), FolderTarget(tmp_path / "registry")
    released.send(target, released.release(tmp_path / "first"))
    shipment = targets.shipment(released.release(tmp_path / "second", "1.1", weights=b"others"))
    target.put(shipment, shipment.items)
    taken = gc.survey(project, ())
    assert {item.path.parent.name for item in taken.items} == {".blobs"}
    gc.remove(project, taken)
    target.finish(shipment)
    assert released.contents(tmp_path / "registry/desk/1.1") == released.contents(
        shipment.release.path
    )


def test_without_links_nothing_of_a_release_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    signature = tmp_path / "model.sig"
    signature.write_text("signed")
    released.send(
        FolderTarget(tmp_path / "registry"),
        released.release(tmp_path / "first"),
        signature=signature,
    )
    assert gc.survey(empty_project(tmp_path), ()).items == ()
