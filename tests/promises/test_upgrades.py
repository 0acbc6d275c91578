"""What an earlier release of slmctl wrote is read by every later one; what
a later one wrote is refused politely.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support import TESTS, released, tiny
from support.forks import Forks

from slmctl import __version__
from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import MANIFEST
from slmctl.config import Gate
from slmctl.pipeline.graph import STAGE_OF
from slmctl.releases import registry
from slmctl.releases.targets.local import FolderTarget
from slmctl.task.contract import Task

GATE = Gate(metric="accuracy", model="Q8_0", min=0.8)
KEPT = sorted((TESTS / "fixtures").glob("*/*"))


def test_every_kind_is_kept() -> None:
    """Of this version too: whoever raises it keeps its fixtures first."""
    for version in {__version__, *(path.parent.name for path in KEPT)}:
        kept = {path.name for path in KEPT if path.parent.name == version}
        assert kept == set(STAGE_OF), f"{version}: python tests/support/keep_fixtures.py"


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_it_verifies_for_ever(path: Path) -> None:
    found = artifact.load(path)
    assert artifact.verify(found) == []
    assert found.kind == path.name
    if found.kind not in ("base", "labelled", "prepared"):
        assert found.manifest.inputs
    if found.kind not in ("base", "labelled"):
        assert Task.read(path).labels


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_it_is_shown(stages: Forks, path: Path, tmp_path: Path) -> None:
    done = stages.run(tmp_path, "show", str(path), "--json")
    told = json.loads(tiny.ok(done))
    assert (told["kind"], told["digest"]) == (path.name, artifact.load(path).digest)


def test_a_kept_model_answers(stages: Forks, tmp_path: Path) -> None:
    (gguf,) = [path for path in KEPT if path.name == "gguf"][-1:]
    (tmp_path / "in.csv").write_text("text\nhello\n")
    done = stages.run(
        tmp_path,
        "predict",
        str(gguf),
        "--input",
        str(tmp_path / "in.csv"),
        "--column",
        "text",
        "--output",
        "-",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["answer"] in Task.read(gguf).labels


def test_a_program_of_before_reads_the_tags_of_this_one_and_this_one_those_of_a_later(
    tmp_path: Path,
) -> None:
    # `"another": null` in every tag: the old program, which upgrading.md tells to start again,
    # found no production
    root = tmp_path / "registry"
    for version in ("1.0", "1.1"):
        released.send(
            FolderTarget(root),
            released.release(tmp_path, version, weights=version.encode()),
            gates=[GATE],
        )
        registry.promote(root, registry.find(root, version), "production")
    path = root / "desk" / ".tags" / "production"
    fields = json.loads(path.read_bytes())
    assert fields.keys() == {"project", "name", "version", "digest", "previous"}
    path.write_text(json.dumps(fields | {"since": "a key of a later version"}))
    assert registry.find(root, "desk@production").metrics["version"] == "1.1"


def test_a_newer_schema_is_refused_with_a_hint(stages: Forks, tmp_path: Path) -> None:
    place = Path(shutil.copytree(KEPT[0], tmp_path / "newer"))
    fields = json.loads((place / MANIFEST).read_bytes())
    fields["schema"] += 1
    fields.pop("self")
    fields["self"] = artifact.sha256_bytes(artifact.canonical(fields))
    (place / MANIFEST).write_bytes(artifact.canonical(fields))
    done = stages.run(tmp_path, "verify", str(place))
    assert done.returncode == 7
    assert "Traceback" not in done.stderr
    assert "schema" in done.stdout and "hint:" in done.stderr
