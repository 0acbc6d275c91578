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


@pytest.mark.parametrize("kind", ["prepared", "merged"])
def test_it_comes_out_the_same(stages: Forks, desk: Path, kind: str) -> None:
    before = sorted(path.name for path in (desk / "runs" / kind).iterdir())
    done = stages.run(desk, "reproduce", str(made(desk, kind).path))
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (desk / "runs" / kind).iterdir()) == before, "what was built for it is gone"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adapter", "gguf"])
def test_training_and_quantizing_come_out_the_same(stages: Forks, desk: Path, kind: str) -> None:
    done = stages.run(desk, "reproduce", str(made(desk, kind).path))
    assert done.returncode == 0, done.stderr


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
def test_what_differs_is_said_with_104(stages: Forks, desk: Path, kind: str, name: str) -> None:
    one = made(desk, kind)
    name = next(one.path.glob(name)).name
    falsified(one, name)
    assert artifact.verify(artifact.load(one.path)) == []
    done = stages.run(desk, "reproduce", str(one.path), "--json")
    assert done.returncode == 104, done.stderr
    told = json.loads(done.stdout)
    assert not told["same"]
    assert [entry["key"] for entry in told["files"]] == [name]


def test_a_source_that_is_gone_is_named(stages: Forks, desk: Path) -> None:
    (desk / "tickets.csv").rename(desk.parent / "moved.csv")
    done = stages.run(desk, "reproduce", str(made(desk, "prepared").path))
    assert done.returncode == 7
    assert "--source" in done.stderr
    again = stages.run(desk, "reproduce", str(made(desk, "prepared").path), "--source", str(desk.parent / "moved.csv"))
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_other_seeds_zones_homes_and_folders_change_no_byte(tiny_project: Path, tmp_path: Path) -> None:
    """Three runs up to the adapter in surroundings that have nothing in common."""
    digests = []
    surroundings = [("0", "UTC", "C.UTF-8"), ("1", "Asia/Tokyo", "POSIX"), ("4242", "America/Lima", "C")]
    # a language with another decimal sign, another i and another order, where it can be made
    build = ["localedef", "-i", "tr_TR", "-f", "UTF-8", str(tmp_path / "tr_TR.UTF-8")]
    if shutil.which("localedef") and subprocess.run(build, check=False, capture_output=True).returncode == 0:
        surroundings[2] = ("4242", "America/Lima", "tr_TR.UTF-8")
    for number, (seed, zone, language) in enumerate(surroundings):
        desk = Path(shutil.copytree(tiny_project, tmp_path / f"place {number}" / "desk"))
        home = tmp_path / f"home{number}"
        home.mkdir()
        env = {"PYTHONHASHSEED": seed, "TZ": zone, "LC_ALL": language, "LOCPATH": str(tmp_path), "HOME": str(home)}
        # the converter was fetched into the cache of the real home; nothing else is shared
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "slmctl"
        for folder in cache.glob("converter-*"):
            shutil.copytree(folder, home / ".cache" / "slmctl" / folder.name)
        env["XDG_CACHE_HOME"] = str(home / ".cache")
        done = tiny.slmctl(
            desk, "run", "--until", "quantize", "--set", "finetune.max_steps=8", env=tiny.environment(**env)
        )
        assert done.returncode == 0, done.stderr
        digests.append({kind: made(desk, kind).digest for kind in ("base", "prepared", "adapter", "merged", "gguf")})
    assert digests[0] == digests[1] == digests[2]


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
