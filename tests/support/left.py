"""Artifacts where a recipe puts them, as if their stages had run."""

from __future__ import annotations

from typing import Any

from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Manifest
from slmctl.pipeline import resolve
from slmctl.pipeline.resolve import Project


def leave(
    project: Project, request: resolve.StageRequest, metrics: dict[str, Any], seconds: float = 0
) -> artifact.Artifact:
    """An artifact where a recipe puts it, as if its stage had run."""
    with artifact.draft(request.path) as place:
        (place / "content.txt").write_text(f"{request.recipe_id}")
        return artifact.seal(
            place, request.path,
            lambda files, digest: Manifest(
                request.stage.leaves, request.stage.id, digest, request.recipe_id, request.recipe, request.digests,
                files, metrics, seconds=seconds,
            ),
        )  # fmt: skip
