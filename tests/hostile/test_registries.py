"""Registries that lie, that are broken, or that are not there: one sentence
and exit 7, nothing removed or believed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hostile import answers
from hypothesis import given, settings
from hypothesis import strategies as st
from support import released
from support.released import release
from support.scale import FULL

from slmctl import config
from slmctl.artifacts import artifact, lineage
from slmctl.artifacts.artifact import Artifact, FileEntry
from slmctl.errors import GateError, IntegrityError, NetworkError, SlmctlError, StageError
from slmctl.network import package_index
from slmctl.pipeline.graph import Project
from slmctl.provenance import diff, gc, trace
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
    (tmp_path / "slmctl.yaml").write_text(
        "project: desk\nbase: ./base\nprepare: {sources: [{path: data.csv}]}\n"
    )
    send(tmp_path, release(tmp_path / "runs"))
    registry.promote(tmp_path / "registry", registry.find(tmp_path / "registry"), "production")
    return of(tmp_path)


def of(root: Path, *sets: str) -> Project:
    return Project(root, config.load(root / "slmctl.yaml", sets))


def removable(project: Project, *registries: Path) -> set[str]:
    return {item.path.parent.name for item in gc.survey(project, registries).items if item.size}


def nothing(path: Path) -> None:
    pass


def endless(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(2 << 30)  # zeros that no disk holds


def tag(**fields: Any) -> Callable[[Path], object]:
    """Write a tag that has other fields than the one that was moved away."""
    return lambda path: path.write_text(
        json.dumps(json.loads(elsewhere(path).read_text()) | fields)
    )


def elsewhere(path: Path) -> Path:
    """The place to which `damage` moves a file of the registry."""
    return path.parents[3] / "elsewhere"


MANIFEST, TAG = "registry/desk/1.0/manifest.json", "registry/desk/.tags/production"
# A file or folder of the project, and what stands in its place.
UNREADABLE: dict[str, tuple[str, bytes | Callable[[Path], object]]] = {
    "gone": ("registry", nothing),
    "empty": ("registry", Path.mkdir),
    "a file": ("registry", b""),
    "a link to nothing": ("registry", lambda path: path.symlink_to("nowhere")),
    "a link to itself": ("registry", lambda path: path.symlink_to(path)),
    "without the project": ("registry/desk", nothing),
    "without the release": ("registry/desk", Path.mkdir),
    "without the manifest": (MANIFEST, nothing),
    "a torn manifest": (MANIFEST, b'{"kind": "publ'),
    "a pipe as manifest": (MANIFEST, os.mkfifo),
    "a linked manifest": (MANIFEST, lambda path: path.symlink_to(elsewhere(path))),
    "an endless manifest": (MANIFEST, endless),
    "a deep tag": (TAG, b'{"a":' * 100_000),
    "an empty tag": (TAG, b""),
    "a folder as tag": (TAG, Path.mkdir),
    "a tag without its release": (TAG, tag(version="2.0")),
    "a tag of another digest": (TAG, tag(digest="sha256:" + "0" * 64)),
    "a broken receipt": ("runs/.deliveries/*", b'{"to": 5}'),
}


def damage(root: Path, name: str) -> None:
    where, made = UNREADABLE[name]
    (path,) = root.glob(where)
    path.rename(root / "elsewhere")
    if callable(made):
        made(path)
    else:
        path.write_bytes(made)


def change_tag(root: Path, **fields: Any) -> None:
    (root / TAG).rename(root / "elsewhere")
    tag(**fields)(root / TAG)


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("to", [ADDRESS, "dir:./new", "hf:acme/desk"])
def test_gc_removes_nothing_while_a_registry_cannot_be_read(
    project: Project, name: str, to: str
) -> None:
    """Named by the config, or by nothing but the receipt: a share that
    was not mounted let gc remove 583 MB.
    """
    damage(project.root, name)
    with pytest.raises(IntegrityError):
        gc.survey(of(project.root, f"publish.to={to}"), ())


def test_gc_knows_a_registry_that_has_moved(project: Project) -> None:
    moved = (project.root / "registry").rename(project.root / "moved")
    assert "published" not in removable(project, moved)


def test_gc_of_a_project_that_never_published(project: Project) -> None:
    shutil.rmtree(project.root / "registry")
    shutil.rmtree(project.root / "runs")
    assert removable(project) == set()


def test_gc_removes_the_files_of_a_removed_release_from_the_registry(project: Project) -> None:
    newer, root = release(project.runs, "2.0", weights=b"newer weights"), project.root / "registry"
    send(project.root, newer)
    assert removable(project) == set()
    registry.promote(root, registry.find(root, "desk@2.0"), "production")
    shutil.rmtree(root / "desk" / "1.0")
    (receipt,) = (path for path, sent in deliveries.recorded(project.runs) if sent.version == "1.0")
    receipt.unlink()
    assert removable(project) == {"published", ".blobs"}
    gc.remove(project, gc.survey(project, ()))
    contents = {path.read_bytes() for path in (root / ".blobs").iterdir()}
    assert b"GGUF weights" not in contents
    assert contents == {path.read_bytes() for path in newer.path.rglob("*") if path.is_file()}
    assert registry.find(root, "desk@2.0").digest == newer.digest


def test_gc_keeps_what_was_laid_out_for_an_empty_registry(project: Project) -> None:
    """Published by a version that wrote no receipts, or never published: nobody can tell."""
    damage(project.root, "empty")
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
        {"version": "../../outside"},
        {"version": 1},
        {"version": ["1.0"]},
        {"version": "/etc"},
        {"version": ""},
        {"project": "other"},
        {"name": "other"},
        {"digest": None},
        {"digest": 5},
        {"previous": 5},
        {"another": 5},
        {"version": "1.0\n"},
        {"digest": "sha256:" + "1" * 64},
    ],
)
def test_a_tag_that_lies_is_refused_wherever_it_is_read(
    project: Project, fields: dict[str, Any]
) -> None:
    place = project.root / "registry"
    change_tag(project.root, **fields)
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
    damage(project.root, "a deep tag")
    registry.promote(place, registry.find(place, "1.0"), "production")
    assert registry.find(place, "production").metrics["version"] == "1.0"


@pytest.mark.parametrize(
    "kept", [b"", b"[" * 99_999, b'{"digest": 1}', b'{"gates": 5}', b"\xff", b"null"]
)
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
    with asked_at(server.address), targets.opened(answers.TO, Settings(), purpose="test") as target:
        return targets.fetch(target, name, None, into=into)


@contextlib.contextmanager
def asked_at(endpoint: str) -> Iterator[None]:
    """S3 at this address, for the length of a block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        yield


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
        b"",
        b"[]",
        b"\xff\xfe",
        b"<ListBucketResult>",
        b"<a>" * 9_999 + b"</a>" * 9_999,
        answers.listed("a", "b/c"),
        answers.listed("acme/../1.0/manifest.json"),
        b"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken>"
        b"</ListBucketResult>",
    ],
)
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
    raw = dataclasses.replace(
        made.manifest, files=files, digest=artifact.digest_of(files)
    ).to_bytes()
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
def test_a_package_index_that_sends_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    endless = {
        "/endless/": answers.Answer(
            b'<a href="/endless-1.0.tar.gz">endless-1.0.tar.gz</a>', headers=HTML
        ),
        "/endless-1.0.tar.gz": answers.Answer(b"\x1f\x8b"),
    }
    endless[place].more = 64 << 20
    with answers.running(endless) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.address}/simple/")
        with pytest.raises(NetworkError, match="pip could not fetch"):
            package_index.download(
                "endless==1.0", tmp_path / "here", purpose="test", largest=1 << 20
            )
    assert disk(tmp_path) <= 1 << 20


# Damage at random


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a release in `runs/`, published to the registry `whole/` and tagged."""
    root = tmp_path_factory.mktemp("registry")
    send(root, release(root / "runs"), f"dir:{root}/whole")
    registry.promote(root / "whole", registry.find(root / "whole"), "production")
    return root


@pytest.fixture(scope="module")
def s3() -> Iterator[answers.Server]:
    with answers.running({}) as server:
        yield server


DAMAGED = (
    "desk/1.0/manifest.json",
    "desk/.tags/production",
    "desk/.gates/1.0",
    "desk/1.0/report.json",
)


@settings(max_examples=5000 if FULL else 40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_registry_with_any_damage_is_read_or_refused(whole: Path, seed: int) -> None:
    """In every way that commands read it."""
    random, place = Random(seed), whole / "registry"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(whole / "whole", place)
    path = place / random.choice(DAMAGED)
    path.chmod(0o644)
    path.write_bytes(damaged(path.read_bytes(), random))
    ways: list[Callable[[], object]] = [
        lambda: registry.find(place, "production"),
        lambda: registry.find(place, "1.0"),
        lambda: registry.manifests(place),
        lambda: registry.promote(place, registry.find(place, "1.0"), "canary"),
        lambda: artifact.verify_folder(place / "desk" / "1.0"),
        lambda: list(lineage.lines(lineage.show(whole, artifact.load(place / "desk" / "1.0")))),
        lambda: lineage.to_json(lineage.show(whole, artifact.load(place / "desk" / "1.0"))),
        lambda: trace.trace(whole, text="a", registries=[place]).to_json(),
        lambda: diff.diff(place / "desk" / "1.0", whole / "whole" / "desk" / "1.0"),
        lambda: fetch(
            f"dir:{place}", random.choice(["", "production", "1.0", "desk@1.0"]), whole / "fetched"
        ),
    ]
    with contextlib.suppress(SlmctlError):
        random.choice(ways)()


@settings(max_examples=2000 if FULL else 20, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_service_that_lies_anyhow_is_read_or_refused(
    whole: Path, s3: answers.Server, seed: int
) -> None:
    random = Random(seed)
    (made,) = whole.glob("runs/published/*")
    lying = answers.answers_of(artifact.load(made))
    key = random.choice([*lying, answers.MANIFEST, answers.LISTING])
    lying[key] = answers.Answer(
        damaged(lying[key].body, random), status=random.choice([200] * 9 + [404, 403, 302])
    )
    s3.answers = lying
    with contextlib.suppress(SlmctlError), asked_at(s3.address):
        fetch(answers.TO, random.choice(["", "1.0", "desk@1.0"]), whole / "fetched")


def fetch(to: str, name: str, into: Path) -> None:
    shutil.rmtree(into, ignore_errors=True)
    with targets.opened(to, Settings(into), purpose="test") as target:
        targets.fetch(target, name, None, into=into)


def damaged(raw: bytes, random: Random) -> bytes:
    """Bytes flipped, cut or grown; or JSON whose values have other
    types, with its own hash put right again.
    """
    kind = random.randrange(6)
    if kind == 0:
        at = random.randrange(len(raw) + 1)
        return raw[:at] + random.randbytes(random.randrange(1, 9)) + raw[at + random.randrange(9) :]
    if kind == 1:
        return raw[: random.randrange(len(raw) + 1)]
    if kind == 2:
        return random.choice([b"[", b'{"a":', b"\xef\xbb\xbf", b"9", b'"']) * random.choice(
            [1, 1_000, 100_000]
        )
    try:
        value = json.loads(raw)
    except ValueError:
        return b""
    for _ in range(random.randrange(1, 4)):
        value = changed(value, random)
    if isinstance(value, dict) and "self" in value and kind > 3:
        value.pop("self")
        try:
            files = tuple(artifact.FileEntry(**entry) for entry in value.get("files", ()))
            value["digest"] = artifact.digest_of(files) if kind == 5 else value.get("digest")
            value["self"] = artifact.sha256_bytes(artifact.canonical(value))
        except (TypeError, ValueError, AttributeError):
            pass
    try:
        return artifact.canonical(value)
    except (ValueError, RecursionError):
        return json.dumps(value).encode()


def changed(value: Any, random: Random) -> Any:
    """The same value with something inside it replaced, removed or added."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        key = random.choice(list(value))
        if random.random() < 0.1:
            return {name: inner for name, inner in value.items() if name != key}
        return {**value, key: changed(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.8:
        at = random.randrange(len(value))
        return [*value[:at], changed(value[at], random), *value[at + 1 :]]
    return random.choice(
        [
            None,
            True,
            0,
            -1,
            1.5,
            10**30,
            float("nan"),
            float("inf"),
            "",
            "x",
            "\ud800",
            "../../x",
            "/etc/passwd",
            "\0",
            "ü" * 300,
            [],
            {},
            [[]],
            [{}],
            {"": None},
            ["sha256:" + "0" * 64],
            "sha256:" + "0" * 64,
            "1.0",
            [value] * 3,
            {"nested": value},
        ]
    )
