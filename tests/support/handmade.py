"""Artifacts that no stage has made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from slmctl import config
from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact, Manifest
from slmctl.pipeline import runner
from slmctl.pipeline.graph import Project, StageRequest
from slmctl.pipeline.runner import Outcome


def make(
    path: Path, content: Mapping[str, bytes] | Callable[[Path], object] | None = None, **fields: Any
) -> Artifact:
    """A finished artifact, of the kind that the folder above it names.

    Args:
        content: Its files by name, or what fills its folder; by default one file.
        fields: Fields of its manifest, which does not know otherwise what made it.
    """
    kind = fields.get("kind", path.parent.name)
    known = {
        "kind": kind,
        "stage": f"{kind}/1",
        "recipe_id": "",
        "config": {},
        "inputs": {},
    } | fields
    with artifact.draft(path) as place:
        if callable(content):
            content(place)
        else:
            for name, raw in (content or {"content": f"{kind} {path.name}".encode()}).items():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_bytes(raw)
        return artifact.seal(
            place, path, lambda files, digest: Manifest(files=files, digest=digest, **known)
        )


def opened(root: Path, *sets: str) -> Project:
    """The project in a folder, with `section.key=value` on top of its config."""
    return Project(root, config.load(root / config.FILENAME, sets))


def publish(project: Project) -> Outcome:
    """Build a release and send it, as the command does."""
    outcome = runner.make(project, "publish")
    project.stage("publish").after(outcome.artifact, current=outcome.current)
    return outcome


def leave(request: StageRequest, **fields: Any) -> Artifact:
    """An artifact where a recipe puts it, as if its stage had run."""
    asked = {
        "kind": request.stage.leaves,
        "stage": request.stage.id,
        "recipe_id": request.recipe_id,
        "config": request.recipe,
        "inputs": request.digests,
    }
    # by which finetune is asked for
    facts = {"metrics": {"train": 100}} if request.stage.leaves == "prepared" else {}
    return make(
        request.path, {"content.txt": request.recipe_id.encode()}, **asked, **(facts | fields)
    )
