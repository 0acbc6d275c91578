"""`slmctl init fleet-router`: from a registry to a project whose rows are those of the releases, where they lie."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support import TESTS, tiny
from support.fleets import published

from slmctl import config
from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact, Manifest
from slmctl.cli import fleet_project
from slmctl.errors import UsageError
from slmctl.inference.escalation_policy import Policy
from slmctl.pipeline import model_lookup
from slmctl.stages.prepare import prepare

KEPT = TESTS / "fixtures" / "0.1.0"
WORDS = {"tickets": "invoice parcel password", "orders": "kettle lamp chair"}


def data_set(root: Path, name: str) -> Artifact:
    """A project folder with a data set, which `prepare` made; its rows begin with the project's name."""
    root.mkdir()
    pairs = [(f"{name} {text}", label) for text, label in tiny.rows(160, seed=len(name))]
    tiny.write_csv(root / "rows.csv", pairs)
    text = "{project: a, base: none, task: {kind: classify}, prepare: {sources: [{path: rows.csv, input: text, " + (
        "output: category}], clean: [html]}}"
    )
    settings = config.parse(text, root=root)
    base = artifact.load(KEPT / "base")
    place = root / "runs" / "prepared" / "abc"

    def manifest(listed: Any, digest: str) -> Manifest:
        return Manifest("prepared", "prepare/7", digest, "sha256:0", {}, {}, listed, dict(facts))

    with artifact.draft(place) as draft:
        facts: Mapping[str, Any] = prepare.run(settings.prepare, base=base, out=draft)
        made = artifact.seal(draft, place, manifest)
    (root / "slmctl.yaml").write_text(f"{{project: {name}, base: ./base}}", encoding="utf-8")
    shutil.copytree(KEPT / "base", root / "base")
    return made


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two projects beside a registry with their releases, and rows for no task."""
    folder = tmp_path_factory.mktemp("fleet")
    for name in WORDS:
        made = data_set(folder / name, name)
        published(folder / "registry", name, inputs={"prepared": made.digest})
    tiny.write_csv(folder / "chatter.csv", [(f"chatter {text}", label) for text, label in tiny.rows(160, seed=4)])
    return folder


def made(fleet: Path, **more: Any) -> fleet_project.FleetProject:
    given: dict[str, Any] = {"named": {}, "nothing": [], "column": None, "base": None}
    return fleet_project.make("dir:registry", fleet, **{**given, **more})


def test_the_rows_are_those_of_the_releases_with_their_splits(fleet: Path, tmp_path: Path) -> None:
    project = made(fleet, nothing=["chatter.csv"])
    fleet_project.write(project, fleet / "router")
    settings = config.load(fleet / "router" / "slmctl.yaml")
    assert settings.task.label_names == ("orders", "tickets", "none")
    assert (settings.base, settings.prepare.clean, settings.finetune.epochs) == ("../orders/base", ["html"], 8)
    with artifact.draft(tmp_path / "prepared") as draft:
        facts = prepare.run(settings.prepare, base=artifact.load(KEPT / "base"), out=draft)
        for split in ("train", "validation", "test"):
            lines = (draft / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
            theirs = {
                name: (fleet / name / "runs" / "prepared" / "abc" / f"{split}.jsonl").read_text(encoding="utf-8")
                for name in WORDS
            }
            for name, text in theirs.items():
                ours = [line for line in lines if f'"label": "{name}"' in line or f'"label":"{name}"' in line]
                assert len(ours) == len(text.splitlines())
                assert all(f"{name} " in line for line in ours)
    assert set(facts["labels"]) == {"orders", "tickets", "none"}
    assert all(facts["labels"]["none"].values())  # split by chance
    assert settings.serve.fleet["auto"].router
    assert settings.serve.fleet["auto"].release == "dir:../registry#router"
    assert list(settings.serve.fleet) == ["auto", "orders", "tickets"]
    assert not list((fleet / "router").glob("*.jsonl"))  # nothing is copied
    shutil.rmtree(fleet / "router")


def test_a_policy_is_that_of_the_file_that_serve_takes(fleet: Path, tmp_path: Path) -> None:
    place = tmp_path / "fleet"
    shutil.copytree(fleet, place)
    release = artifact.load(place / "registry" / "orders" / "1.0")
    smallest = release.files(".gguf")[0].sha256.removeprefix("sha256:")
    for name, file, started in (("a", smallest, "2026-01-01T00:00:00Z"), ("b", "f" * 64, "2026-02-01T00:00:00Z")):
        fitted = Policy(file, "t", "classify", "the label", "", {"odds": 1.0}, 0.0, ((0.0, 0.5),), 0.0)
        path = place / "orders" / "runs" / "policy" / name

        def manifest(listed: Any, digest: str, started: str = started) -> Manifest:
            return Manifest("policy", "calibrate/1", digest, "sha256:0", {}, {}, listed, started=started)

        with artifact.draft(path) as draft:
            fitted.write(draft)
            artifact.seal(draft, path, manifest)
    policies = {each.name: each.policy for each in made(place).specialists}
    assert policies == {"orders": place / "orders" / "runs" / "policy" / "a", "tickets": None}
    assert model_lookup.newest_policy([place / "orders"], "sha256:" + "f" * 64) == path  # for another file, and newer


def test_it_says_what_is_missing_and_what_that_means(fleet: Path, tmp_path: Path) -> None:
    said = "\n".join(fleet_project.about(made(fleet)))
    assert "there are no rows that are for no task (--none FILE), so every text is given to one of the models" in said
    assert "calibration rows of the models are fewer than 200, so the router gets no policy" in said
    assert "none" not in made(fleet).labels
    away = tmp_path / "away"
    shutil.copytree(fleet / "registry", away / "registry")
    shutil.copytree(fleet / "orders", away / "orders")
    shutil.copytree(fleet / "tickets", tmp_path / "elsewhere" / "desk")
    with pytest.raises(UsageError, match=r"training data of 'tickets' 1\.0 .* is in no folder beside") as missing:
        made(away)
    assert missing.value.hint == "name the folder of the project that made it: --project tickets=FOLDER"
    named = {"tickets": tmp_path / "elsewhere" / "desk"}
    assert [each.root for each in made(away, named=named).specialists] == [away / "orders", named["tickets"]]
    with pytest.raises(UsageError, match=f"is not below {away / 'orders'}"):
        made(away, named={"tickets": away / "orders"})
    with pytest.raises(UsageError, match="--project names 'mail', which is not in production"):
        made(away, named={"mail": away})


def test_a_router_in_the_registry_is_no_specialist_and_two_are_needed(fleet: Path, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    published(registry, "glad")
    published(registry, "sad")
    published(registry, "moods")  # its labels are glad and sad
    with pytest.raises(UsageError, match="training data of 'glad'"):
        fleet_project.make("dir:registry", tmp_path, named={}, nothing=[], column=None, base=None)
    shutil.rmtree(registry / "sad")
    shutil.rmtree(registry / "moods")
    with pytest.raises(UsageError, match="has 1 release in production, and a router chooses among two or more"):
        fleet_project.make("dir:registry", tmp_path, named={}, nothing=[], column=None, base=None)
    with pytest.raises(UsageError, match="a fleet is in a registry"):
        fleet_project.make("registry", tmp_path, named={}, nothing=[], column=None, base=None)


def test_the_column_of_rows_for_no_task_is_found_or_named(fleet: Path) -> None:
    (source,) = made(fleet, nothing=["chatter.csv"]).nothing
    assert (source["input"], Path(str(source["path"])).name) == ("text", "chatter.csv")
    assert made(fleet, nothing=["chatter.csv"], column="category").nothing[0]["input"] == "category"
    with pytest.raises(UsageError, match=r"--input: chatter\.csv has no column 'body'"):
        made(fleet, nothing=["chatter.csv"], column="body")


def test_the_command_writes_it(fleet: Path) -> None:
    done = tiny.slmctl(fleet, "init", "fleet-router", "--from", "dir:registry", "made", "--none", "chatter.csv")
    assert tiny.ok(done).endswith("made")
    assert "tickets: rows of" in done.stderr
    assert config.load(fleet / "made" / "slmctl.yaml").project == "made"
    again = tiny.slmctl(fleet, "init", "fleet-router", "--from", "dir:registry", "made")
    assert (again.returncode, "exists already" in again.stderr) == (2, True)
    lost = tiny.slmctl(fleet, "init", "fleet-router")
    assert (lost.returncode, "fleet-router needs the registry of the fleet" in lost.stderr) == (2, True)
    other = tiny.slmctl(fleet, "init", "chatter.csv", "--none", "chatter.csv")
    assert (other.returncode, "are for a router" in other.stderr) == (2, True)
    shutil.rmtree(fleet / "made")


def test_the_data_of_a_gguf_artifact_that_is_gone_is_one_sentence() -> None:
    made = artifact.load(KEPT / "gguf")  # which has its version in the config, and not beside its figures
    message = r"^the training data of 'large' 1.0 \(runs/prepared, digest 775676f04000\) is away"
    with pytest.raises(UsageError, match=message):
        fleet_project.made_of("large", made, [], where="away", hint="look for it")
