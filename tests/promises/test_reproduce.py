"""Same bytes or a stated reason: an artifact is built again from what its manifest records."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support import tiny
from support.forks import Forks

from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import MANIFEST, Artifact


def made(desk: Path, kind: str) -> Artifact:
    return artifact.load(next((desk / "runs" / kind).glob("[!.]*")))


def falsified(one: Artifact, name: str) -> None:
    """Change a file, and the manifest with it, so that nothing but building it again tells."""
    path = one.path / name
    path.chmod(0o644)
    path.write_bytes(path.read_bytes() + b"\n")
    (one.path / MANIFEST).chmod(0o644)
    (one.path / MANIFEST).unlink()
    files = artifact.scan(one.path)
    changed = dataclasses.replace(one.manifest, files=files, digest=artifact.digest_of(files))
    (one.path / MANIFEST).write_bytes(changed.to_bytes())


def test_it_comes_out_the_same(stages: Forks, desk: Path) -> None:
    before = sorted(path.name for path in (desk / "runs" / "merged").iterdir())
    done = stages.run(desk, "reproduce", str(made(desk, "merged").path))
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (desk / "runs" / "merged").iterdir()) == before, (
        "what was built for it is gone"
    )


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("prepared", "train.jsonl"),
        ("merged", "model.safetensors"),
        pytest.param("adapter", "adapter_model.safetensors", marks=pytest.mark.slow),
        pytest.param("gguf", "*-Q8_0.gguf", marks=pytest.mark.slow),
        pytest.param("report", "rows.jsonl", marks=pytest.mark.slow),
    ],
)
def test_what_differs_is_said_with_104_and_nothing_else_does(
    stages: Forks, desk: Path, kind: str, name: str
) -> None:
    one = made(desk, kind)
    name = next(one.path.glob(name)).name
    before = artifact.sha256_file(one.path / name)
    falsified(one, name)
    assert artifact.verify(artifact.load(one.path)) == []
    done = stages.run(desk, "reproduce", str(one.path), "--json")
    assert done.returncode == 104, done.stderr
    told = json.loads(done.stdout)
    assert not told["same"]
    (entry,) = told["files"]
    # as it was, so it came out the same
    assert (entry["key"], f"sha256:{entry['second']}") == (name, before)


def test_a_source_that_is_gone_is_named(stages: Forks, desk: Path) -> None:
    (desk / "tickets.csv").rename(desk.parent / "moved.csv")
    done = stages.run(desk, "reproduce", str(made(desk, "prepared").path))
    assert done.returncode == 7
    assert "--source" in done.stderr
    again = stages.run(
        desk,
        "reproduce",
        str(made(desk, "prepared").path),
        "--source",
        str(desk.parent / "moved.csv"),
    )
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_a_model_of_another_place_is_found_by_source(
    stages: Forks, desk: Path, tmp_path: Path
) -> None:
    foreign = Path(
        shutil.copy(next(made(desk, "gguf").path.glob("*-Q8_0.gguf")), tmp_path / "foreign.gguf")
    )
    before = {path.name for path in (desk / "runs" / "predictions").iterdir()}
    tiny.ok(stages.run(desk, "evaluate", "--model", str(foreign)))
    (name,) = {path.name for path in (desk / "runs" / "predictions").iterdir()} - before
    answers = str(desk / "runs" / "predictions" / name)
    gone = stages.run(desk, "reproduce", answers)
    assert (gone.returncode, "name a foreign model by --source PATH" in gone.stderr) == (7, True), (
        gone.stderr
    )
    again = stages.run(desk, "reproduce", answers, "--source", str(foreign))
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_another_seed_zone_language_home_and_folder_change_no_byte(
    tiny_run: Path, tiny_project: Path, tmp_path: Path
) -> None:
    """A run in surroundings that have nothing in common with those of the tests."""
    desk = Path(shutil.copytree(tiny_project, tmp_path / "another place" / "desk"))
    # a language with another decimal sign, another i and another order, where it can be made
    build = ["localedef", "-i", "tr_TR", "-f", "UTF-8", str(tmp_path / "tr_TR.UTF-8")]
    turkish = (
        shutil.which("localedef")
        and subprocess.run(build, check=False, capture_output=True).returncode == 0
    )
    # the converter was fetched into the cache of the real home; nothing else is shared
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "slmctl"
    for folder in cache.glob("converter-*"):
        shutil.copytree(folder, tmp_path / ".cache" / "slmctl" / folder.name)
    env = tiny.environment(
        PYTHONHASHSEED="4242",
        TZ="America/Lima",
        LC_ALL="tr_TR.UTF-8" if turkish else "C",
        LOCPATH=str(tmp_path),
        HOME=str(tmp_path),
        XDG_CACHE_HOME=str(tmp_path / ".cache"),
    )
    done = tiny.slmctl(desk, "run", "--until", "quantize", env=env)
    assert done.returncode == 0, done.stderr
    for kind in ("base", "prepared", "adapter", "merged", "gguf"):
        assert made(desk, kind).digest == made(tiny_run, kind).digest, kind


def test_a_folder_with_a_file_without_rows_comes_out_the_same(stages: Forks, desk: Path) -> None:
    # one without rows is read with the columns of the others, which reproduce did not know
    export = desk / "export"
    export.mkdir()
    (desk / "tickets.csv").rename(export / "a.csv")
    (export / "b.csv").write_text("text,category\n")
    settings = (desk / "slmctl.yaml").read_text().replace("path: tickets.csv", "path: export")
    (desk / "slmctl.yaml").write_text(settings)
    folder = tiny.ok(stages.run(desk, "prepare"))
    done = stages.run(desk, "reproduce", folder)
    assert done.code == 0, done.stderr
    assert done.stdout.startswith("the same: prepared")
