"""Targets of releases, with one plan, one delivery and one fetch for all of them.

    dir:FOLDER   hf:ORG/NAME   s3://BUCKET/PREFIX

A delivery asks the target which files it holds and sends the others, so repeating it sends nothing.
The part that makes a release visible (its manifest, a commit, a tag) is sent last.
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
LARGEST_MANIFEST = bounded_json.MAX_BYTES  # bytes; also of a signature, which lists the same files


@dataclass(frozen=True)
class ShipmentFile:
    """One file of a release: name at the target, local path, size in bytes, sha256."""

    name: str
    path: Path
    size: int
    sha256: str


@dataclass(frozen=True)
class Shipment:
    """A release with all files to send: its own, the manifest and, if it was signed, the signature.

    Attributes:
        gates: The gates that it passed when it was published.
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
    """Settings of a target besides its address.

    Attributes:
        root: The project's folder; relative addresses start here.
        public: True to publish for everybody.
        hosts: Further hosts that the target redirects its clients to.
    """

    root: Path = field(default_factory=Path)
    public: bool = False
    hosts: tuple[str, ...] = ()


class Target(Protocol):
    """A place for releases. A `version` is the name under which a
    release is found there: a version or a tag.
    """

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts that are contacted; empty for a target on this machine."""

    @property
    def visibility(self) -> str:
        """The people who may see the target, in words."""

    def where(self, shipment: Shipment, item: ShipmentFile) -> str:
        """The address of a file at the target, for the user."""

    def holds(self, shipment: Shipment) -> set[str]:
        """The names of the files that the target already has with this content."""

    def put(self, shipment: Shipment, missing: Sequence[ShipmentFile]) -> None:
        """Upload files, which are not yet visible."""

    def finish(self, shipment: Shipment) -> None:
        """Make the whole release visible."""

    def find(self, name: str) -> tuple[str, str]:
        """Returns (project, version) of `[PROJECT@]VERSION` or a tag; '' is the only release."""

    def read(
        self, project: str, version: str, name: str, sha256: str
    ) -> AbstractContextManager[Iterator[bytes] | None]:
        """Yield the pieces of a file of a visible release; None if the target has no such file.

        `sha256` is the hash in the manifest, '' for MANIFEST and SIGNATURE.
        """


@dataclass(frozen=True)
class Plan:
    """The files that publishing will send to the target `to`."""

    to: str
    shipment: Shipment
    missing: tuple[ShipmentFile, ...]
    there: bool  # true if the release is already visible

    @property
    def size(self) -> int:
        """Bytes to send."""
        return sum(item.size for item in self.missing)


def shipment(
    release: Artifact, *, signature: Path | None = None, gates: Sequence[Gate] = ()
) -> Shipment:
    """The shipment of a verified release: the files of its manifest, the signature, the manifest.

    Raises:
        IntegrityError: A file differs from the manifest.
    """
    artifact.require_whole(release)
    items = [
        ShipmentFile(entry.path, release.file(entry.path), entry.size, entry.sha256)
        for entry in release.manifest.files
    ]
    extra = [(SIGNATURE, signature)] if signature is not None else []
    for name, path in [*extra, (MANIFEST, release.path / MANIFEST)]:
        sha256 = artifact.sha256_file(path).removeprefix("sha256:")
        items.append(ShipmentFile(name, path, path.stat().st_size, sha256))
    return Shipment(release, tuple(items), tuple(gates))


@contextlib.contextmanager
def opened(to: str, settings: Settings, *, purpose: str) -> Iterator[Target]:
    """Yield the target of an address, with network access to its hosts only; these are printed
    first.

    Raises:
        UsageError: The kind of target is unknown, or the address is malformed.
        ModuleNotFoundError: Its client library is not installed.
    """
    target = _open(to, settings)
    hub = to.startswith("hf:")
    with (
        guard.network(purpose, target.hosts, hub=hub) if target.hosts else contextlib.nullcontext()
    ):
        if target.hosts:
            console.say(f"  will contact {', '.join(target.hosts)} and no other host")
        yield target


def require_reachable(to: str, settings: Settings) -> None:
    """Refuse a target on another machine with `--offline`, before any work is done.

    Raises:
        NetworkError: The target is on another machine, and network access is forbidden.
        UsageError: The kind of target is unknown, or the address is malformed.
        ModuleNotFoundError: Its client library is not installed.
    """
    if guard.is_forbidden() and not all(map(guard.is_local, _open(to, settings).hosts)):
        guard.require(f"the target {to}", hint="dir:FOLDER is on this machine")


def _open(to: str, settings: Settings) -> Target:
    target: Target = importlib.import_module(f"slmctl.releases.targets.{KINDS[prefix(to)]}").open(
        to, settings
    )
    return target


def prefix(to: str) -> str:
    """The prefix of an address, such as `dir:`.

    Raises:
        UsageError: The prefix is unknown.
    """
    for kind in KINDS:
        if to.startswith(kind) and len(to) > len(kind):
            return kind
    raise UsageError(f"'{to}' names no target", hint="dir:FOLDER, hf:ORG/NAME, s3://BUCKET/PREFIX")


def published(target: Target, project: str, version: str) -> bytes | None:
    """The manifest of a visible release at a target; None if there is no such release.

    Raises:
        IntegrityError: The manifest has more than LARGEST_MANIFEST bytes.
    """
    with target.read(project, version, MANIFEST, "") as pieces:
        return None if pieces is None else gather(pieces, f"the manifest of {project} {version}")


def plan(target: Target, to: str, sent: Shipment) -> Plan:
    """Ask a target which files of a release it lacks.

    Raises:
        IntegrityError: It holds another release under the same version, or the same release with a
            manifest that this signature does not fit.
    """
    there = published(target, sent.project, sent.version)
    if (
        there is not None
        and Manifest.from_bytes(there, where=f"the manifest in {to}").digest != sent.release.digest
    ):
        raise IntegrityError(
            f"{to} already holds another {sent.project} {sent.version}",
            hint="a published version never changes: increase 'version' in slmctl.yaml",
        )
    held = target.holds(sent)
    if there is not None and there != sent.manifest.path.read_bytes():
        # the same files made by another run of the same recipe: only the manifests differ
        if SIGNATURE in {item.name for item in sent.items}:
            raise IntegrityError(
                f"{to} already holds {sent.project} {sent.version} with the manifest of another "
                "run, which this "
                "signature is not of",
                hint="increase 'version' in slmctl.yaml, or publish without publish.signing_key",
            )
        held.add(MANIFEST)
    missing = tuple(item for item in sent.items if item.name not in held)
    return Plan(to, sent, missing, there is not None)


def deliver(target: Target, made: Plan) -> None:
    """Send the missing files of a plan, make the release visible, and check the target again.

    Raises:
        StageError: The target does not hold all files afterwards.
    """
    if made.there and not made.missing:
        return
    target.put(made.shipment, made.missing)
    target.finish(made.shipment)
    again = plan(target, made.to, made.shipment)
    if not again.there or again.missing:
        lacking = ", ".join(item.name for item in again.missing) or "the release"
        raise StageError(
            f"{made.to} does not hold {lacking} after it was sent", hint="publish again"
        )


def fetch(
    target: Target,
    name: str,
    folder: Path | None,
    *,
    into: Path,
    check: Callable[[Path], None] = lambda place: None,
) -> Artifact:
    """Download a release and verify it; files of an interrupted download are kept and not sent
    again.

    Args:
        name: `[PROJECT@]VERSION` or a tag; '' for the only release.
        folder: Name of the new folder; by default PROJECT-VERSION.
        into: Parent of the new folder.
        check: Raises if the release must not be accepted; called before the folder gets its name.
            The downloaded files then stay for another try.

    Raises:
        IntegrityError: The release does not exist, has another name, or its files differ from the
            manifest.
        UsageError: The folder exists with other content.
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
            f"under '{name or version}' lies {own[0]} {own[1]}, another release",
            hint=f"fetch it as #{own[1]}",
        )
    final = (into / (folder or "-".join(own))).resolve()
    if final.exists():
        return _already(final, manifest, check)
    lock = final.parent / f".{final.name}.lock"
    with locks.lock(lock, wait=True, on_wait=console.say):
        if final.exists():  # another process has fetched it while this one waited for the lock
            fetched = _already(final, manifest, check)
        else:
            with atomic.folder(final, resume=True) as place:
                # includes a signature of an earlier try, and links in place of folders
                _drop_strays(place, {entry.path for entry in manifest.files})
                _require_room(place, manifest)
                for entry in manifest.files:
                    _bring(target, (project, version), entry, place / entry.path)
                _read(
                    target,
                    (project, version),
                    FileEntry(SIGNATURE, LARGEST_MANIFEST, ""),
                    place / SIGNATURE,
                )
                (place / MANIFEST).write_bytes(raw)
                check(place)
                artifact.load(place)
            fetched = Artifact(final, manifest)
        # while it is held: a waiting process notices, and creates another
        lock.unlink(missing_ok=True)
    return fetched


def _already(final: Path, manifest: Manifest, check: Callable[[Path], None]) -> Artifact:
    """The release at `final`, where an earlier fetch put it;
    raises UsageError for any other folder.
    """
    if (final / MANIFEST).exists():
        fetched = artifact.load(final)
        if fetched.digest == manifest.digest and not artifact.verify(fetched):
            check(final)
            return fetched
    raise UsageError(
        f"{final} exists and is not this release, whole", hint="name another folder, or remove it"
    )


def _require_room(place: Path, manifest: Manifest) -> None:
    """Refuse a release that does not fit on the disk, since a manifest may state any size.

    Raises:
        StageError: The missing files need more than the free space.
    """
    needed = sum(entry.size for entry in manifest.files)
    needed -= sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise StageError(
            f"the release needs {console.size(needed)}, and {place.parent} has "
            f"{console.size(free)} free",
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
        raise IntegrityError(
            f"{entry.path} came otherwise than its manifest says", hint="fetch again"
        )


def _read(target: Target, of: tuple[str, str], entry: FileEntry, path: Path) -> bool:
    """Download a file of at most `entry.size` bytes to `path`;
    False if the target has no such file.
    """
    left = entry.size
    with target.read(*of, entry.path, entry.sha256) as pieces:
        if pieces is None:
            return False
        with path.open("wb") as out:
            for piece in pieces:
                left -= len(piece)
                if left < 0:
                    raise IntegrityError(
                        f"more came for {path.name} than the {console.size(entry.size)} that its "
                        "manifest says",
                        hint="publish it again, or fetch from where it is whole",
                    )
                out.write(piece)
    return True


def gather(pieces: Iterable[bytes], what: str) -> bytes:
    """Join the pieces of a manifest that a target sends.

    Raises:
        IntegrityError: They have more than LARGEST_MANIFEST bytes.
    """
    raw = bytearray()
    for piece in pieces:
        raw += piece
        if len(raw) > LARGEST_MANIFEST:
            raise IntegrityError(
                f"{what} has more than {console.size(LARGEST_MANIFEST)}, too much for a manifest"
            )
    return bytes(raw)


def _drop_strays(place: Path, names: set[str]) -> None:
    """Remove every link and every file with a path that is not in
    `names`: leftovers of an interrupted fetch.
    """
    for path in sorted(place.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.is_symlink() or path.relative_to(place).as_posix() not in names:
            path.unlink()


def _require_release(manifest: Manifest) -> None:
    """Check an untrusted manifest: it belongs to a release, and all its files are inside the
    folder.

    Raises:
        IntegrityError: It does not.
    """
    if not manifest.is_release or not {"project", "version"} <= manifest.metrics.keys():
        raise IntegrityError(f"what is there is of kind '{manifest.kind}', no release")
    for text in (manifest.metrics["project"], manifest.metrics["version"]):
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,62}", text):
            raise IntegrityError("the manifest's project or version is no name")
    names = [entry.path for entry in manifest.files]
    for name in names:
        path = PurePosixPath(name)
        climbs = (
            path.is_absolute()
            or ".." in path.parts
            or "\\" in name
            or not name.isprintable()
            or str(path) != name
        )
        if (
            any(len(os.fsencode(part)) > atomic.LONGEST_NAME for part in path.parts)
            or len(os.fsencode(name)) > 1024
        ):
            raise IntegrityError("the manifest names a file whose name is too long")
        if (
            climbs
            or name in (MANIFEST, SIGNATURE, ".")
            or any(part.startswith(".") for part in path.parts)
        ):
            raise IntegrityError("the manifest names a file outside its folder")
    if len(set(names)) != len(names):
        raise IntegrityError("the manifest names a file twice")
