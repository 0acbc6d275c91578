"""Registries that lie, that are broken, or that are not there: one sentence and exit 7, nothing removed or believed."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile import answers
from support import released
from support.released import release
from support.scale import FULL

from slmctl import config
from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact, FileEntry
from slmctl.errors import GateError, IntegrityError, NetworkError, StageError
from slmctl.network import package_index
from slmctl.pipeline.resolve import Project
from slmctl.provenance import gc
from slmctl.releases import deliveries, registry, targets
from slmctl.releases.targets import Settings

ADDRESS = "dir:./registry"
HTML = {"Content-Type": "text/html"}


def send(root: Path, made: Artifact, to: str = ADDRESS) -> None:
    """What `publish` does when the gates have held."""
    with targets.opened(to, Settings(root), purpose="test") as target:
        released.send(target, made)
    deliveries.record(root / "runs", made, to)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project with a release that was made with an earlier config, published and tagged."""
    (tmp_path / "base").mkdir()
    (tmp_path / "data.csv").write_text("text,label\na,b\n")
    (tmp_path / "slmctl.yaml").write_text("project: desk\nbase: ./base\nprepare: {sources: [{path: data.csv}]}\n")
    send(tmp_path, release(tmp_path / "runs"))
    registry.promote(tmp_path / "registry", registry.find(tmp_path / "registry"), "production")
    return of(tmp_path)


def of(root: Path, *sets: str) -> Project:
    return Project(root, config.load(root / "slmctl.yaml", sets))


def removable(project: Project, *registries: Path) -> set[str]:
    return {item.path.parent.name for item in gc.survey(project, registries).items if item.size}


def gone(place: Path) -> None:
    place.rename(place.with_name("elsewhere"))


def empty(place: Path) -> None:
    gone(place)
    place.mkdir()


def a_file(place: Path) -> None:
    gone(place)
    place.touch()


def dangling(place: Path) -> None:
    gone(place)
    place.symlink_to(place.with_name("nowhere"))


def looping(place: Path) -> None:
    gone(place)
    place.symlink_to(place)


def without_the_project(place: Path) -> None:
    shutil.rmtree(place / "desk")


def without_the_release(place: Path) -> None:
    shutil.rmtree(place / "desk" / "1.0")
    shutil.rmtree(place / "desk" / ".tags")


def manifest(place: Path) -> Path:
    return place / "desk" / "1.0" / "manifest.json"


def without_the_manifest(place: Path) -> None:
    manifest(place).unlink()


def a_torn_manifest(place: Path) -> None:
    manifest(place).unlink()
    manifest(place).write_bytes(b'{"kind": "publ')


def a_pipe_as_manifest(place: Path) -> None:
    manifest(place).unlink()
    os.mkfifo(manifest(place))


def a_linked_manifest(place: Path) -> None:
    manifest(place).rename(place / "moved.json")
    manifest(place).symlink_to(place / "moved.json")


def an_endless_manifest(place: Path) -> None:
    manifest(place).unlink()
    with manifest(place).open("wb") as stream:
        stream.truncate(2 << 30)  # zeros that no disk holds


def a_deep_tag(place: Path) -> None:
    (place / "desk" / ".tags" / "production").write_bytes(b'{"a":' * 100_000)


def an_empty_tag(place: Path) -> None:
    (place / "desk" / ".tags" / "production").write_bytes(b"")


def a_folder_as_tag(place: Path) -> None:
    (place / "desk" / ".tags" / "production").unlink()
    (place / "desk" / ".tags" / "production").mkdir()


def a_tag_without_its_release(place: Path) -> None:
    change_tag(place, version="2.0")


def a_tag_of_another_digest(place: Path) -> None:
    change_tag(place, digest="sha256:" + "0" * 64)


def change_tag(place: Path, **fields: Any) -> None:
    path = place / "desk" / ".tags" / "production"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def a_broken_receipt(place: Path) -> None:
    (path,) = place.parent.glob("runs/.deliveries/*")
    path.write_bytes(b'{"to": 5}')


UNREADABLE = (
    gone, empty, a_file, dangling, looping, without_the_project, without_the_release, without_the_manifest,
    a_torn_manifest, a_pipe_as_manifest, a_linked_manifest, an_endless_manifest, a_deep_tag, an_empty_tag,
    a_folder_as_tag, a_tag_without_its_release, a_tag_of_another_digest, a_broken_receipt,
)  # fmt: skip


@pytest.mark.parametrize("damage", UNREADABLE, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("to", [ADDRESS, "dir:./new", "hf:acme/desk"])
def test_gc_removes_nothing_while_a_registry_cannot_be_read(
    project: Project, damage: Callable[[Path], None], to: str
) -> None:
    """Named by the config, or by nothing but the receipt: a share that was not mounted let gc remove 583 MB."""
    damage(project.root / "registry")
    with pytest.raises(IntegrityError):
        gc.survey(of(project.root, f"publish.to={to}"), ())


def test_gc_knows_a_registry_that_has_moved(project: Project) -> None:
    moved = (project.root / "registry").rename(project.root / "moved")
    assert "published" not in removable(project, moved)


def test_gc_of_a_project_that_never_published(project: Project) -> None:
    shutil.rmtree(project.root / "registry")
    shutil.rmtree(project.root / "runs")
    assert removable(project) == set()


def test_gc_keeps_what_was_laid_out_for_an_empty_registry(project: Project) -> None:
    """Published by a version that wrote no receipts, or never published: nobody can tell."""
    empty(project.root / "registry")
    shutil.rmtree(project.root / "runs" / ".deliveries")
    assert removable(project) == set()
    assert "may be a share that is not mounted" in gc.survey(project, ()).notes[0]


def test_gc_keeps_what_was_sent_to_where_nobody_can_look(project: Project) -> None:
    (made,) = project.root.glob("runs/published/*")
    shutil.rmtree(project.root / "runs" / ".deliveries")
    deliveries.record(project.root / "runs", artifact.load(made), "s3://bucket/desk")
    shutil.rmtree(project.root / "registry" / "desk" / "1.0")
    shutil.rmtree(project.root / "registry" / "desk" / ".tags")
    assert removable(project) == set()


def test_gc_removes_what_was_laid_out_and_never_sent(project: Project) -> None:
    release(project.root / "runs", "2.0")
    assert removable(project) == {"published"}


# Tags and manifests that lie


@pytest.mark.parametrize(
    "fields",
    [
        {"version": "../../outside"}, {"version": 1}, {"version": ["1.0"]}, {"version": "/etc"}, {"version": ""},
        {"project": "other"}, {"name": "other"}, {"digest": None}, {"digest": 5}, {"previous": 5}, {"more": 1},
        {"version": "1.0\n"}, {"digest": "sha256:" + "1" * 64},
    ],
)  # fmt: skip
def test_a_tag_that_lies_is_refused_wherever_it_is_read(project: Project, fields: dict[str, Any]) -> None:
    place = project.root / "registry"
    change_tag(place, **fields)
    with pytest.raises(IntegrityError):
        registry.find(place, "production")
    with (
        pytest.raises(IntegrityError),
        targets.opened(ADDRESS, Settings(project.root), purpose="test") as target,
    ):
        targets.fetch(target, "production", None, into=project.root / "here")
    assert not (project.root / "here").exists()


def test_promote_mends_a_broken_tag(project: Project) -> None:
    place = project.root / "registry"
    a_deep_tag(place)
    registry.promote(place, registry.find(place, "1.0"), "production")
    assert registry.find(place, "production").metrics["version"] == "1.0"


@pytest.mark.parametrize("kept", [b"", b"[" * 99_999, b'{"digest": 1}', b'{"gates": 5}', b"\xff", b"null"])
def test_gates_that_cannot_be_read_promote_nothing(project: Project, kept: bytes) -> None:
    place = project.root / "registry"
    (place / "desk" / ".gates" / "1.0").write_bytes(kept)
    with pytest.raises(GateError, match="nobody recorded"):
        registry.promote(place, registry.find(place), "canary")


@pytest.mark.parametrize("gate", [5, [], {"model": 1}, {"metric": "accuracy"}])
def test_gates_of_wrong_types_promote_nothing(project: Project, gate: Any) -> None:
    place = project.root / "registry"
    digest = registry.find(place).digest
    (place / "desk" / ".gates" / "1.0").write_text(json.dumps({"digest": digest, "gates": [gate]}))
    with pytest.raises(IntegrityError, match="cannot be read"):
        registry.promote(place, registry.find(place), "canary")


# What a target sends


def memory() -> int:
    """The highest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


LARGE = (2 << 30) if FULL else (64 << 20)  # bytes


def fetched(server: answers.Server, into: Path, name: str = "1.0") -> Artifact:
    with targets.opened(answers.TO, Settings(endpoint=server.address), purpose="test") as target:
        return targets.fetch(target, name, None, into=into)


def disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_an_honest_service_gives_the_release(tmp_path: Path) -> None:
    made = release(tmp_path)
    with answers.running(answers.answers_of(made)) as server:
        assert fetched(server, tmp_path / "here", "").digest == made.digest


PLACES = ["LICENSE", answers.MANIFEST, answers.LISTING]


@pytest.mark.parametrize("place", PLACES)
def test_no_more_is_read_than_a_size_says(tmp_path: Path, place: str) -> None:
    """2 GB were written for a file of 11 kB, and a manifest of 2 GB was read into memory."""
    made = release(tmp_path)
    honest = answers.answers_of(made)
    key = place if place.startswith("/") else answers.blob(made, place)
    honest[key] = answers.Answer(honest[key].body, more=LARGE)
    before = memory()
    with answers.running(honest) as server, pytest.raises((IntegrityError, NetworkError)):
        fetched(server, tmp_path / "here", "")
    assert server.sent < 40 << 20
    assert memory() - before < 60 << 20
    assert disk(tmp_path / "here") < 1 << 20 if (tmp_path / "here").exists() else True


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "gzip, gzip", "br", "x-unknown"])
def test_what_is_compressed_is_not_unpacked(tmp_path: Path, place: str, encoding: str) -> None:
    made = release(tmp_path)
    honest = answers.answers_of(made)
    key = place if place.startswith("/") else answers.blob(made, place)
    bomb = gzip.compress(bytes(LARGE // 4), 1)
    honest[key] = answers.Answer(bomb, headers={"Content-Encoding": encoding})
    before = memory()
    with answers.running(honest) as server, pytest.raises((IntegrityError, NetworkError)):
        fetched(server, tmp_path / "here", "")
    assert memory() - before < 60 << 20


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"\xff\xfe", b"<ListBucketResult>", b"<a>" * 9_999 + b"</a>" * 9_999, answers.listed("a", "b/c"),
        answers.listed("acme/../1.0/manifest.json"),
        b"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken>"
        b"</ListBucketResult>",
    ],
)  # fmt: skip
def test_a_listing_that_is_none(tmp_path: Path, body: bytes) -> None:
    with (
        answers.running({answers.LISTING: answers.Answer(body)}) as server,
        pytest.raises((IntegrityError, NetworkError)),
    ):
        fetched(server, tmp_path / "here", "")
    assert not list(tmp_path.rglob("manifest.json"))


def test_a_size_that_no_disk_has_is_not_begun(tmp_path: Path) -> None:
    made = release(tmp_path)
    files = (*made.manifest.files, FileEntry("huge.gguf", 1 << 60, "0" * 64))
    raw = dataclasses.replace(made.manifest, files=files, digest=artifact.digest_of(files)).to_bytes()
    lying = answers.answers_of(made) | {answers.MANIFEST: answers.Answer(raw)}
    with answers.running(lying) as server, pytest.raises(StageError, match="free"):
        fetched(server, tmp_path / "here")


@pytest.mark.parametrize("linked", ["LICENSE", "adapter"])
def test_links_in_the_draft_of_a_fetch_are_not_followed(tmp_path: Path, linked: str) -> None:
    made = release(tmp_path)
    (tmp_path / "here" / ".draft-desk-1.0").mkdir(parents=True)
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "LICENSE").write_text("precious")
    target = tmp_path / "victim" / ("LICENSE" if linked == "LICENSE" else "")
    (tmp_path / "here" / ".draft-desk-1.0" / linked).symlink_to(target)
    with answers.running(answers.answers_of(made)) as server:
        fetched(server, tmp_path / "here")
    assert [path.name for path in (tmp_path / "victim").iterdir()] == ["LICENSE"]
    assert (tmp_path / "victim" / "LICENSE").read_text() == "precious"
    assert not any(path.is_symlink() for path in (tmp_path / "here").rglob("*"))


# The package index


@pytest.mark.parametrize("place", ["/endless-1.0.tar.gz", "/endless/"])
def test_a_package_index_that_sends_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    endless = {
        "/endless/": answers.Answer(b'<a href="/endless-1.0.tar.gz">endless-1.0.tar.gz</a>', headers=HTML),
        "/endless-1.0.tar.gz": answers.Answer(b"\x1f\x8b"),
    }
    endless[place].more = 64 << 20
    with answers.running(endless) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.address}/simple/")
        with pytest.raises(NetworkError, match="pip could not fetch"):
            package_index.download("endless==1.0", tmp_path / "here", purpose="test", largest=1 << 20)
    assert disk(tmp_path) <= 1 << 20
