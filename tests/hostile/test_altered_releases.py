"""`fetch` of a release that somebody altered in its registry: nothing but
what its manifest says comes, or nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import released

from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Manifest
from slmctl.errors import IntegrityError, SlmctlError
from slmctl.releases import targets
from slmctl.releases.targets import Settings

NAMES = [
    "tiny-1M-desk-v1.0-Q8_0.gguf",
    "report.json",
    "README.md",
    "Modelfile",
    "adapter/adapter_config.json",
    "LICENSE",
]
FILES = [*NAMES, artifact.MANIFEST]


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    empty(path)
    path.write_bytes(raw)


def empty(path: Path) -> None:
    path.unlink()  # and not the blob that it is linked to
    path.write_bytes(b"")


def lose(path: Path) -> None:
    path.unlink()


def link(path: Path) -> None:
    path.symlink_to(path.rename(path.with_name("elsewhere")))


CHANGES = (flip, empty, lose, link)


@pytest.fixture
def sent(tmp_path: Path) -> Path:
    """The folder of a release in a registry that anybody may write to."""
    with targets.opened(f"dir:{tmp_path / 'registry'}", Settings(), purpose="test") as target:
        released.send(target, released.release(tmp_path / "made"))
    (folder,) = (tmp_path / "registry").glob("*/1.0")
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def fetch(sent: Path) -> Path:
    into = sent.parents[2] / "fetched"
    into.mkdir()
    with targets.opened(f"dir:{sent.parents[1]}", Settings(), purpose="test") as target:
        return targets.fetch(target, "1.0", None, into=into).path


def require_refused(sent: Path) -> None:
    with pytest.raises(SlmctlError) as caught:
        fetch(sent)
    assert isinstance(caught.value, IntegrityError), caught.value.message
    assert not [
        path for path in (sent.parents[2] / "fetched").iterdir() if not path.name.startswith(".")
    ]


@pytest.mark.parametrize(("name", "change"), list(itertools.product(FILES, CHANGES)))
def test_who_alters_a_file_of_a_release_is_found_by_its_hash(
    sent: Path, name: str, change: Callable[[Path], None]
) -> None:
    change(sent / name)
    require_refused(sent)


@pytest.mark.parametrize("name", ["x.gguf", "adapter/x.py", ".hidden", "manifest.json.sig"])
def test_who_adds_a_file_to_a_release_adds_it_to_no_copy(sent: Path, name: str) -> None:
    (sent / name).write_bytes(b"added")
    made = fetch(sent)
    assert sorted(
        path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()
    ) == sorted(FILES)


ALTERED: dict[str, Callable[[dict[str, Any]], object]] = {
    "no digest": lambda manifest: manifest.pop("digest"),
    "another digest": lambda manifest: manifest.update(digest="sha256:" + "0" * 64),
    "another size": lambda manifest: manifest["files"][0].update(size=1),
    "another hash": lambda manifest: manifest["files"][0].update(sha256="0" * 64),
    "a file less": lambda manifest: manifest["files"].pop(),
    "another kind": lambda manifest: manifest.update(kind="gguf"),
    "other figures": lambda manifest: manifest["metrics"].update(version="9"),
}


@pytest.mark.parametrize("alter", ALTERED.values(), ids=ALTERED)
def test_who_alters_the_manifest_of_a_release_is_found_by_its_own_hash(
    sent: Path, alter: Callable[[dict[str, Any]], object]
) -> None:
    fields = json.loads((sent / "manifest.json").read_bytes())
    alter(fields)
    (sent / "manifest.json").write_bytes(artifact.canonical(fields))
    require_refused(sent)


@pytest.mark.parametrize(
    "path", ["../../outside", "/tmp/outside", "a/../../outside", "manifest.json", ""]
)
def test_who_names_a_place_outside_in_a_valid_manifest_writes_nothing_there(
    sent: Path, path: str
) -> None:
    manifest = Manifest.read(sent)
    files = (*manifest.files, dataclasses.replace(manifest.files[0], path=path))
    sealed = dataclasses.replace(manifest, files=files, digest=artifact.digest_of(files))
    (sent / "manifest.json").write_bytes(sealed.to_bytes())
    require_refused(sent)
    assert not list(sent.parents[2].rglob("outside"))
