"""Targets of releases: one plan, one delivery and one fetch for all of them.

    dir:FOLDER   hf:ORG/NAME   s3://BUCKET/PREFIX

A target says what it holds; nothing is remembered here, so a second delivery sends what the target lacks, which is
nothing. What makes a release visible (its manifest, a commit, a tag) comes last.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from slmctl import console
from slmctl.artifacts import artifact, atomic, bounded_json, locks
from slmctl.artifacts.artifact import MANIFEST, SIGNATURE, Artifact, FileEntry, Manifest
from slmctl.config import Gate
from slmctl.errors import IntegrityError, StageError, UsageError
from slmctl.network import guard
from slmctl.releases import registry

KINDS = {"dir:": "local", "hf:": "hub", "s3://": "s3"}
LARGEST_MANIFEST = bounded_json.MAX_BYTES  # bytes; a signature, which lists the same files, may have as many


@dataclass(frozen=True)
class ShipmentFile:
    """One file of a release: its name there, where it lies here, its size in bytes and its sha256."""

    name: str
    path: Path
    size: int
    sha256: str


@dataclass(frozen=True)
class Shipment:
    """A release with all that leaves the machine: its files, its manifest and, where it was signed, its signature.

    Attributes:
        gates: The gates that it met when it was published.
    """

    release: Artifact
    items: tuple[ShipmentFile, ...]
    gates: tuple[Gate, ...] = ()

    @property
    def project(self) -> str:
        return str(self.release.metrics["project"])

    @property
    def version(self) -> str:
        return str(self.release.metrics["version"])

    @property
    def manifest(self) -> ShipmentFile:
        return next(item for item in self.items if item.name == MANIFEST)


@dataclass(frozen=True)
class Settings:
    """Settings of a target, beside its name.

    Attributes:
        public: Whether everybody may see what is published.
        hosts: Further hosts that the target's server sends its clients to.
    """

    root: Path = field(default_factory=Path)
    public: bool = False
    hosts: tuple[str, ...] = ()


class Target(Protocol):
    """A place for releases. A `version` is the name under which a release is looked up there: a version or a tag."""

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts that it is reached at; none for one on this machine."""

    @property
    def visibility(self) -> str:
        """The people who may see the target, in words."""

    def where(self, shipment: Shipment, item: ShipmentFile) -> str:
        """The address of an item there."""

    def holds(self, shipment: Shipment) -> set[str]:
        """The names of those items that it has, by their content."""

    def put(self, shipment: Shipment, missing: Sequence[ShipmentFile]) -> None:
        """Bring items there, not yet visible."""

    def finish(self, shipment: Shipment) -> None:
        """Make the release visible, whole."""

    def find(self, name: str) -> tuple[str, str]:
        """Project and version that a name stands for: `[PROJECT@]VERSION`, a tag, or nothing for the only release."""

    def read(
        self, project: str, version: str, name: str, sha256: str
    ) -> AbstractContextManager[Iterator[bytes] | None]:
        """The content of a file that is visible under a version, piece by piece; None where there is none.

        `sha256` is the file's by the manifest; MANIFEST and SIGNATURE have none.
        """


@dataclass(frozen=True)
class Plan:
    """The files that publishing will send, and those already at the target."""

    to: str
    shipment: Shipment
    missing: tuple[ShipmentFile, ...]
    there: bool  # the release is visible already

    @property
    def size(self) -> int:
        """Bytes to send."""
        return sum(item.size for item in self.missing)


def shipment(release: Artifact, *, signature: Path | None = None, gates: Sequence[Gate] = ()) -> Shipment:
    """A release as it leaves: its files as its manifest lists them, the manifest, the signature.

    Raises:
        IntegrityError: A file is not what the manifest says.
    """
    artifact.require_whole(release)
    items = [
        ShipmentFile(entry.path, release.file(entry.path), entry.size, entry.sha256) for entry in release.manifest.files
    ]
    extra = [(SIGNATURE, signature)] if signature is not None else []
    for name, path in [*extra, (MANIFEST, release.path / MANIFEST)]:
        sha256 = artifact.sha256_file(path).removeprefix("sha256:")
        items.append(ShipmentFile(name, path, path.stat().st_size, sha256))
    return Shipment(release, tuple(items), tuple(gates))


@contextlib.contextmanager
def opened(to: str, settings: Settings, *, purpose: str) -> Iterator[Target]:
    """The target of an address, with the network open for its hosts alone, which are said first.

    Raises:
        UsageError: There is no such kind of target, or its address is malformed.
        ModuleNotFoundError: Its client is not installed.
    """
    target = _open(to, settings)
    hub = to.startswith("hf:")
    with guard.network(purpose, target.hosts, hub=hub) if target.hosts else contextlib.nullcontext():
        if target.hosts:
            console.say(f"  will contact {', '.join(target.hosts)} and no other host")
        yield target


def require_reachable(to: str, settings: Settings) -> None:
    """With `--offline`, refuse a target beyond this machine before anything is done for it.

    Raises:
        NetworkError: It is one.
        UsageError: There is no such kind of target, or its address is malformed.
        ModuleNotFoundError: Its client is not installed.
    """
    if guard.is_forbidden() and not all(map(guard.is_local, _open(to, settings).hosts)):
        guard.require(f"the target {to}", hint="dir:FOLDER is on this machine")


def _open(to: str, settings: Settings) -> Target:
    target: Target = importlib.import_module(f"slmctl.releases.targets.{KINDS[prefix(to)]}").open(to, settings)
    return target


def prefix(to: str) -> str:
    """The prefix of an address's target, such as `dir:`.

    Raises:
        UsageError: None that is known.
    """
    for kind in KINDS:
        if to.startswith(kind) and len(to) > len(kind):
            return kind
    raise UsageError(f"'{to}' names no target", hint="dir:FOLDER, hf:ORG/NAME, s3://BUCKET/PREFIX")


def published(target: Target, project: str, version: str) -> bytes | None:
    """The manifest that is visible at a target under a version; None where there is none.

    Raises:
        IntegrityError: It has more than LARGEST_MANIFEST bytes.
    """
    with target.read(project, version, MANIFEST, "") as pieces:
        return None if pieces is None else gather(pieces, f"the manifest of {project} {version}")


def plan(target: Target, to: str, sent: Shipment) -> Plan:
    """Ask a target what it lacks of a release.

    Raises:
        IntegrityError: It holds another release under the same version, or the same one with a manifest that the
            signature is not of.
    """
    there = published(target, sent.project, sent.version)
    if there is not None and Manifest.from_bytes(there, where=f"the manifest in {to}").digest != sent.release.digest:
        raise IntegrityError(
            f"{to} already holds another {sent.project} {sent.version}",
            hint="a published version never changes: increase 'version' in slmctl.yaml",
        )
    held = target.holds(sent)
    if there is not None and there != sent.manifest.path.read_bytes():
        # made elsewhere from the same recipe: same files, but its manifest tells of another run
        if SIGNATURE in {item.name for item in sent.items}:
            raise IntegrityError(
                f"{to} already holds {sent.project} {sent.version} with the manifest of another run, which this "
                "signature is not of",
                hint="increase 'version' in slmctl.yaml, or publish without publish.signing_key",
            )
        held.add(MANIFEST)
    missing = tuple(item for item in sent.items if item.name not in held)
    return Plan(to, sent, missing, there is not None)


def deliver(target: Target, made: Plan) -> None:
    """Do what a plan says, and ask once more.

    Raises:
        StageError: The target does not hold what was sent.
    """
    if made.there and not made.missing:
        return
    target.put(made.shipment, made.missing)
    target.finish(made.shipment)
    again = plan(target, made.to, made.shipment)
    if not again.there or again.missing:
        lacking = ", ".join(item.name for item in again.missing) or "the release"
        raise StageError(f"{made.to} does not hold {lacking} after it was sent", hint="publish again")


def fetch(
    target: Target, name: str, folder: Path | None, *, into: Path, check: Callable[[Path], None] = lambda place: None
) -> Artifact:
    """Bring a release back, verified; what an earlier try has brought is not brought again.

    Args:
        name: `[PROJECT@]VERSION` or a tag; may be empty where there is but one.
        folder: Where it goes; by default a folder named by project and version.
        into: The folder for that.
        check: Raises where the release must not be taken; it is asked before the folder gets its name, and what was
            brought stays for another try.

    Raises:
        IntegrityError: There is no such release, it is another one, or what came is not what its manifest says.
        UsageError: The folder exists.
    """
    registry.require_name(name)
    project, version = target.find(name)
    raw = published(target, project, version)
    if raw is None:
        raise IntegrityError(f"there is no release '{name or version}'")
    manifest = Manifest.from_bytes(raw, where=f"the manifest of {project} {version}")
    _require_release(manifest)
    own = (str(manifest.metrics["project"]), str(manifest.metrics["version"]))
    if own != (project or own[0], version):
        raise IntegrityError(
            f"under '{name or version}' lies {own[0]} {own[1]}, another release", hint=f"fetch it as #{own[1]}"
        )
    final = (into / (folder or "-".join(own))).resolve()
    if final.exists():
        return _already(final, manifest, check)
    lock = final.parent / f".{final.name}.lock"
    with locks.lock(lock, wait=True, on_wait=console.say):
        if final.exists():  # another fetch has brought it while this one waited
            fetched = _already(final, manifest, check)
        else:
            with atomic.folder(final, resume=True) as place:
                # also a signature of an earlier try, and links in place of folders
                _drop_strays(place, {entry.path for entry in manifest.files})
                _require_room(place, manifest)
                for entry in manifest.files:
                    _bring(target, (project, version), entry, place / entry.path)
                _read(target, (project, version), FileEntry(SIGNATURE, LARGEST_MANIFEST, ""), place / SIGNATURE)
                (place / MANIFEST).write_bytes(raw)
                check(place)
                artifact.load(place)
            fetched = Artifact(final, manifest)
        lock.unlink(missing_ok=True)  # while it is held: whoever waits for it finds that, and makes another
    return fetched


def _already(final: Path, manifest: Manifest, check: Callable[[Path], None]) -> Artifact:
    """The release that an earlier fetch brought to the same place."""
    if (final / MANIFEST).exists():
        fetched = artifact.load(final)
        if fetched.digest == manifest.digest and not artifact.verify(fetched):
            check(final)
            return fetched
    raise UsageError(f"{final} exists and is not this release, whole", hint="name another folder, or remove it")


def _require_room(place: Path, manifest: Manifest) -> None:
    """A manifest may state any size: what does not fit on the disk is not begun.

    Raises:
        StageError: The files that are not here yet need more than is free.
    """
    needed = sum(entry.size for entry in manifest.files)
    needed -= sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise StageError(
            f"the release needs {console.size(needed)}, and {place.parent} has {console.size(free)} free",
            hint="df -h .",
        )


def _bring(target: Target, of: tuple[str, str], entry: FileEntry, path: Path) -> None:
    if artifact.has_content(path, entry.sha256):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    console.say(f"  fetching {entry.path} ({console.size(entry.size)})")
    try:
        if not _read(target, of, entry, path):
            raise IntegrityError(f"{entry.path} is missing there", hint="publish it again")
        came = path.stat().st_size == entry.size and artifact.has_content(path, entry.sha256)
    except IntegrityError:
        path.unlink(missing_ok=True)
        raise
    if not came:
        path.unlink()
        raise IntegrityError(f"{entry.path} came otherwise than its manifest says", hint="fetch again")


def _read(target: Target, of: tuple[str, str], entry: FileEntry, path: Path) -> bool:
    """Bring a file here, and no more than `entry.size` bytes whatever the target sends; False where it has none."""
    left = entry.size
    with target.read(*of, entry.path, entry.sha256) as pieces:
        if pieces is None:
            return False
        with path.open("wb") as out:
            for piece in pieces:
                left -= len(piece)
                if left < 0:
                    raise IntegrityError(
                        f"more came for {path.name} than the {console.size(entry.size)} that its manifest says",
                        hint="publish it again, or fetch from where it is whole",
                    )
                out.write(piece)
    return True


def gather(pieces: Iterable[bytes], what: str) -> bytes:
    """A manifest as a target sends it.

    Raises:
        IntegrityError: It has more than LARGEST_MANIFEST bytes.
    """
    raw = bytearray()
    for piece in pieces:
        raw += piece
        if len(raw) > LARGEST_MANIFEST:
            raise IntegrityError(f"{what} has more than {console.size(LARGEST_MANIFEST)}, too much for a manifest")
    return bytes(raw)


def _drop_strays(place: Path, names: set[str]) -> None:
    """Remove what an interrupted fetch of another release left, and every link."""
    for path in sorted(place.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.is_symlink() or path.relative_to(place).as_posix() not in names:
            path.unlink()


def _require_release(manifest: Manifest) -> None:
    """A manifest from elsewhere names no file outside its folder, and is that of a release.

    Raises:
        IntegrityError: Not so.
    """
    if not manifest.is_release or not {"project", "version"} <= manifest.metrics.keys():
        raise IntegrityError(f"what is there is of kind '{manifest.kind}', no release")
    for text in (manifest.metrics["project"], manifest.metrics["version"]):
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,62}", text):
            raise IntegrityError("the manifest's project or version is no name")
    names = [entry.path for entry in manifest.files]
    for name in names:
        path = PurePosixPath(name)
        climbs = path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable() or str(path) != name
        if any(len(os.fsencode(part)) > atomic.LONGEST_NAME for part in path.parts) or len(os.fsencode(name)) > 1024:
            raise IntegrityError("the manifest names a file whose name is too long")
        if climbs or name in (MANIFEST, SIGNATURE, ".") or any(part.startswith(".") for part in path.parts):
            raise IntegrityError("the manifest names a file outside its folder")
    if len(set(names)) != len(names):
        raise IntegrityError("the manifest names a file twice")
