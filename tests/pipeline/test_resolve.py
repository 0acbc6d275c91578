"""Names of artifacts: the short id that is shown, and the beginning of an id in place of a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact, Manifest
from slmctl.errors import IntegrityError, UsageError
from slmctl.pipeline import resolve

FIRST, SECOND = "3f9a1c2e0000", "3f9abbbb1111"


def leave(root: Path, kind: str, recipe: str) -> Artifact:
    """A small artifact below `runs/`, with the recipe id that is asked for."""
    path = root / "runs" / kind / recipe[:12]
    with artifact.draft(path) as place:
        (place / "content.txt").write_text(recipe)
        return artifact.seal(
            place,
            path,
            lambda files, digest: Manifest(kind, f"{kind}/1", digest, f"sha256:{recipe:0<64}", {}, {}, files),
        )


def test_an_id_of_four_characters_and_more_names_an_artifact(tmp_path: Path) -> None:
    first = leave(tmp_path, "adapter", FIRST)
    leave(tmp_path, "gguf", SECOND)
    assert first.short_id == FIRST[:8]
    for prefix in (FIRST[:5], first.short_id, FIRST, first.manifest.recipe_id.removeprefix("sha256:")):
        assert resolve.artifact_path(tmp_path, Path(prefix)) == first.path
    with pytest.raises(UsageError, match="2 artifacts have an id that begins with '3f9a'") as several:
        resolve.by_id(tmp_path / "runs", FIRST[:4])
    assert f"runs/gguf/{SECOND}" in several.value.hint
    with pytest.raises(IntegrityError, match=r"no artifact below .* begins with 'dead'"):
        resolve.artifact_path(tmp_path, Path("dead"))


def test_a_path_that_exists_goes_before_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(tmp_path, "adapter", FIRST)
    monkeypatch.chdir(tmp_path)
    (tmp_path / FIRST[:8]).mkdir()
    for named in (FIRST[:8], "3f9", "some/where", "base"):
        assert resolve.artifact_path(tmp_path, Path(named)) == Path(named)


def test_a_model_that_slmctl_did_not_make_goes_by_its_digest(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    model = artifact.foreign(tmp_path / "m.gguf", "gguf")
    assert model.short_id == model.digest[7:15]
