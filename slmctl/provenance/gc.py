"""Lists and removes garbage below `runs/`: artifacts that no release, tag, config or running
process needs.

Also files of the project's own registry that are of no release any more.

An artifact is renamed before it is removed, so that a half-removed artifact never has the name of a
whole one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmctl import console
from slmctl.artifacts import artifact, atomic, lineage, locks
from slmctl.artifacts.artifact import MANIFEST, SIGNATURE, Artifact, Manifest
from slmctl.errors import IntegrityError
from slmctl.model_files import encoder_source
from slmctl.pipeline import LEAVES, runner, stage_log
from slmctl.pipeline.graph import Project
from slmctl.provenance import reproduce
from slmctl.releases import deliveries, registry
from slmctl.sources import snapshot

_LEFT = {
    atomic.DRAFT: "a stage that was interrupted",
    ".resume-": "a training that was interrupted, of another config",
    runner.REFUSED: "the report of a stage that refused its input",
    atomic.TRASH: "a removal that was interrupted",
    reproduce.PREFIX: "a comparison that was interrupted",
}


@dataclass(frozen=True)
class Unneeded:
    """A file or folder that nothing needs; `what` describes it, `size` is in bytes."""

    path: Path
    what: str
    size: int


@dataclass(frozen=True)
class Survey:
    """Everything that can be removed, and notes on targets that could not be read."""

    items: tuple[Unneeded, ...]
    notes: tuple[str, ...]

    @property
    def size(self) -> int:
        return sum(item.size for item in self.items)

    def to_json(self) -> dict[str, Any]:
        items = [
            {"path": str(item.path), "what": item.what, "size": item.size} for item in self.items
        ]
        return {"size": self.size, "items": items, "notes": list(self.notes)}


def survey(project: Project, registries: Sequence[Path]) -> Survey:
    """Find everything below `runs/`, and in the registry that `publish.to` names, that nothing
    needs.

    Args:
        project: The project; all artifacts of its present config are kept.
        registries: Further registries, besides those of the config and of receipts; the inputs of
            their releases are kept. Targets that are not folders cannot be read: the inputs of all
            releases that were sent to one are kept, and those of all releases below `runs/` if the
            config publishes to one.

    Raises:
        IntegrityError: A registry or a release in it cannot be read, so it is unknown which
            artifacts it needs.
    """
    everything = [lineage.opened(folder) for folder in lineage.folders(project.root)]
    artifacts = [entry for entry in everything if isinstance(entry, Artifact)]
    needed, notes = _needed(project, artifacts, registries)
    used = _in_use(project)
    items = []
    for entry in everything:
        path = entry.path if isinstance(entry, Artifact) else entry
        if path not in needed and not _is_used(path, used):
            items.append(Unneeded(path, f"{path.parent.name}, {_about(entry)}", _size(path)))
    items += _left(project, used)
    items += _copies(project, [entry for entry in artifacts if entry.path in needed])
    items += _of_no_release(project)
    items += [
        Unneeded(path, "a lock that nobody holds", 0)
        for path in _locks(project)
        if locks.read_holder(path) is None
    ]
    return Survey(tuple(items), tuple(notes))


def lines(unneeded: Survey, root: Path) -> Iterator[str]:
    """The list as text, the largest first."""
    if not unneeded.size:
        yield "nothing to remove: all that is here is needed"
        return
    shown = [item for item in unneeded.items if item.size]
    for item in sorted(shown, key=lambda item: (-item.size, item.path)):
        path = item.path.relative_to(root) if item.path.is_relative_to(root) else item.path
        yield f"{console.size(item.size):>9}  {path}  ({item.what})"
    empty = len(unneeded.items) - len(shown)
    if empty:
        yield f"{'0 B':>9}  {empty} locks and empty files that nobody uses"
    yield f"{console.size(unneeded.size):>9}  in all"


def remove(project: Project, unneeded: Survey) -> tuple[int, list[Path]]:
    """Remove the items of a survey, except those that a process has begun to use since.

    Returns:
        (bytes freed, paths that were kept).
    """
    freed, left = 0, []
    for item in unneeded.items:
        if _remove(project, item.path):
            freed += item.size
        else:
            left.append(item.path)
    return freed, left


def _remove(project: Project, path: Path) -> bool:
    """Remove a path, unless a process uses it or holds the lock of
    its stage; True if it was removed.
    """
    if path.parent == project.runs / ".locks":
        return _remove_lock(path)
    if _is_held(project, path):
        return False
    if (path / MANIFEST).exists():
        opened = lineage.opened(path)
        held = isinstance(opened, Artifact) and opened.digest in _held_digests(project)
        if held or _is_used(path, _in_use(project)):
            return False
        atomic.remove(path)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return True


def _remove_lock(path: Path) -> bool:
    """Remove a lock file while holding its lock; a waiting
    process notices, and locks a new file.
    """
    with contextlib.suppress(FileNotFoundError), path.open("r+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        path.unlink()
    return True


# What is needed


def _needed(
    project: Project, artifacts: Sequence[Artifact], registries: Sequence[Path]
) -> tuple[set[Path], list[str]]:
    """Returns (folders of artifacts that the config, a release or a
    process needs, with their ancestors; notes).
    """
    paths = {*_current(project), *_served(project, artifacts)}
    laid_out = {entry.digest: entry for entry in artifacts if entry.is_release}
    released, notes = _released(project, laid_out, registries)
    named = (
        _held_digests(project)
        | {entry.digest for entry in artifacts if entry.path in paths}
        | released
    )
    reached = named | {
        digest
        for made in lineage.Ancestry(artifacts).of(*named)
        for digest in (made.digest, *_inputs(made.manifest))
    }
    # predictions and policies of kept models are kept too: the next report and the server find them
    for kind in ("predictions", "policy"):
        reached |= {
            entry.digest
            for entry in artifacts
            if entry.kind == kind and _inputs(entry.manifest) <= reached
        }
    return paths | {entry.path for entry in artifacts if entry.digest in reached}, notes


def _released(
    project: Project, laid_out: Mapping[str, Artifact], registries: Sequence[Path]
) -> tuple[set[str], list[str]]:
    """Returns (digests of all releases that may exist at any target, and of their inputs; notes for
    the user).

    A named registry that cannot be read is not taken for an empty one: it may be on a share that is
    not mounted.

    Args:
        laid_out: The releases below `runs/` by digest, sent or not.
    """
    to = project.config.publish.to
    own = registry.parse(to, project.root)[0] if to.startswith("dir:") else None
    sent = [
        (path, receipt, _place(project, receipt))
        for path, receipt in deliveries.recorded(project.runs)
    ]
    there = {place for _, _, place in sent if place is not None and os.path.lexists(place)}
    there |= {own} if own is not None and os.path.lexists(own) else set()
    manifests = [
        release for place in sorted({*there, *registries}) for release in registry.manifests(place)
    ]
    digests = {digest for release in manifests for digest in (release.digest, *_inputs(release))}
    for path, receipt, place in sent:
        if place is not None and receipt.digest not in digests:
            state = "does not hold it" if place in there else "is missing"
            raise IntegrityError(
                f"{receipt.project} {receipt.version} was sent to {place}, which {state}: nothing "
                "is removed, since "
                "nobody can say what is needed",
                hint="mount it, or name its new place by --registry; if it is gone for good: rm "
                f"{path}",
            )
        digests.add(receipt.digest)
    unsure, notes = laid_out.keys() - digests, []
    if own is not None and own not in there and unsure:
        raise IntegrityError(
            f"the registry {own} that publish.to names is missing, and releases were laid out for "
            f"it ({len(unsure)}): "
            "nothing is removed, since nobody can say what is needed",
            hint=f"mount it; if there never was one: mkdir -p {own}",
        )
    if own is None:
        notes.append(f"releases in {to} cannot be read: all that was laid out here is kept")
        digests |= unsure
    elif unsure and own in there and not registry.folders(own):
        kept = ", ".join(str(laid_out[digest].path) for digest in sorted(unsure))
        notes.append(
            f"{own} is empty, which may be a share that is not mounted: kept is {kept}; rm -r it "
            "if it may go"
        )
        digests |= unsure
    return digests, notes


def _place(project: Project, receipt: deliveries.Delivery) -> Path | None:
    """The registry that a release was sent to; None for a target that is not a folder."""
    return registry.parse(receipt.to, project.root)[0] if receipt.to.startswith("dir:") else None


def _current(project: Project) -> Iterator[Path]:
    """The paths of the present config's artifacts, whether they exist or not."""
    for name in LEAVES:
        with contextlib.suppress(IntegrityError):  # an input has not been made yet
            yield from (request.path for request in project.stage(name).current())


def _served(project: Project, artifacts: Sequence[Artifact]) -> Iterator[Path]:
    """The folders of artifacts that the section `serve` names, by folder or by a file in it."""
    section = project.config.serve
    named = [
        *section.adapters.values(),
        *([section.policy] if isinstance(section.policy, Path) else []),
    ]
    for member in section.fleet.values():
        named += [project.root / member.release] + (
            [member.policy] if isinstance(member.policy, Path) else []
        )
    # the server finds a policy by its GGUF file
    if any(member.policy is True for member in section.fleet.values()):
        named += [entry.path for entry in artifacts if entry.kind == "policy"]
    places = [path.resolve() for path in named]
    yield from (
        entry.path
        for entry in artifacts
        if entry.path.resolve() in {*places, *(place.parent for place in places)}
    )


def _inputs(manifest: Manifest) -> set[str]:
    return {digest for _, digest in manifest.parents}


# What is in use


def _locks(project: Project) -> list[Path]:
    return sorted(path for path in (project.runs / ".locks").glob("*") if path.is_file())


def _held_digests(project: Project) -> set[str]:
    """Digests of artifacts that running stages need, as written in their lock files."""
    return {line for path in _locks(project) for line in (locks.read_holder(path) or [])[1:]}


def _lock_of(project: Project, path: Path) -> Path | None:
    """The lock file that a process holds while it writes `path`; None for a path without one."""
    if path.parent == project.sources:
        return project.runs / ".locks" / "sources"
    if path.parent == project.runs / stage_log.FOLDER:
        path = stage_log.artifact_of(path)
    if path.parent.parent != project.runs or path.parent.name.startswith("."):
        return None
    name = path.name
    for prefix in _LEFT:
        name = name.removeprefix(prefix)
    return project.runs / ".locks" / f"{path.parent.name}-{name}"


def _is_held(project: Project, path: Path) -> bool:
    """True while a process writes `path`, or, for a log, its artifact."""
    lock = _lock_of(project, path)
    return lock is not None and locks.read_holder(lock) is not None


def _in_use(project: Project) -> set[str]:
    """Files below `runs/` that another process has open or mapped,
    such as a served model (by /proc).
    """
    top, used = str(project.runs.resolve()) + "/", set[str]()
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        with contextlib.suppress(OSError):
            used |= {str(link.readlink()) for link in (process / "fd").iterdir()}
        with (
            contextlib.suppress(OSError),
            (process / "maps").open(errors="surrogateescape") as maps,
        ):
            used |= {top + line.partition(top)[2].strip() for line in maps if top in line}
    return {path for path in used if path.startswith(top)}


def _is_used(path: Path, used: set[str]) -> bool:
    prefix = f"{path.resolve()}/"
    return any(entry.startswith(prefix) for entry in used)


# Leftovers and copies


def _left(project: Project, used: set[str]) -> Iterator[Unneeded]:
    """Leftovers of interrupted runs: drafts, and checkpoints of
    trainings that are not in the present config.
    """
    current = {path.name for path in _current(project)}
    for path in sorted([*project.runs.glob("*/.*"), *project.runs.glob(reproduce.PREFIX + "*")]):
        prefix = next((entry for entry in _LEFT if path.name.startswith(entry)), "")
        if not prefix or (
            path.parent != project.runs
            and path.parent.name.startswith(".")
            and prefix != atomic.DRAFT
        ):
            continue
        if _is_held(project, path) or _is_used(path, used):
            continue
        if prefix == ".resume-" and path.name.removeprefix(prefix) in current:
            continue  # the next run resumes from it
        yield Unneeded(path, _LEFT[prefix], _size(path))


def _copies(project: Project, needed: Sequence[Artifact]) -> Iterator[Unneeded]:
    """Copies of sources, logs, encoders, endpoints and signatures that no kept artifact needs."""
    if locks.read_holder(project.runs / ".locks" / "sources") is None:
        named = {
            path
            for source in project.config.prepare.sources
            for path in snapshot.copies_of(source, project.sources)
        }
        hashes = {
            entry["sha256"]
            for made in needed
            for entry in made.metrics.get("sources", [])
            if "sha256" in entry
        }
        for path in sorted(project.sources.glob("[!.]*")):
            files = (
                [path]
                if path.is_file()
                else [entry for entry in path.rglob("*") if entry.is_file()]
            )
            own = (
                {artifact.sha256_file(entry).removeprefix("sha256:") for entry in files}
                if path not in named
                else set()
            )
            if path not in named and not own & hashes:
                yield Unneeded(
                    path, "a copy of a source that nothing here was made of", _size(path)
                )
    kept = {entry.path for entry in needed} | set(_current(project))
    for path in sorted((project.runs / stage_log.FOLDER).glob("*" + stage_log.SUFFIX)):
        if stage_log.artifact_of(path) not in kept and not _is_held(project, path):
            yield Unneeded(path, "what a stage said whose artifact is not kept", _size(path))
    encode = project.config.encode
    for place in sorted(project.encoders.glob("*")):
        if encode is None or place != encoder_source.folder_of(encode, project.encoders):
            yield Unneeded(place, "an encoder that the config does not name", _size(place))
    models = {digest for entry in needed for digest in _inputs(entry.manifest)}
    for path in sorted((project.runs / ".endpoints").glob("*.json")):
        if artifact.foreign(path, "endpoint").digest not in models:
            yield Unneeded(path, "an endpoint whose answers are not kept", _size(path))
    releases = {entry.digest[7:19] for entry in needed}
    for path in sorted((project.runs / ".signatures").glob("*.sig")):
        if path.name.partition("-")[0] not in releases:
            yield Unneeded(path, "a signature of a release that is not kept here", _size(path))


def _of_no_release(project: Project) -> Iterator[Unneeded]:
    """Blobs that a removed release has left: no release is a link
    of them, or, without links, a copy.
    """
    to = project.config.publish.to
    root = registry.parse(to, project.root)[0] if to.startswith("dir:") else None
    releases = registry.manifests(root) if root is not None and os.path.lexists(root) else ()
    if root is None or not releases:  # an empty registry may be a share that is not mounted
        return
    kept = {entry.sha256 for release in releases for entry in release.files}
    own = [folder / name for folder in registry.folders(root) for name in (MANIFEST, SIGNATURE)]
    kept |= {artifact.sha256_file(path).removeprefix("sha256:") for path in own if path.exists()}
    for path in sorted(registry.blob(root, "").glob("[!.]*")):
        if path.stat().st_nlink == 1 and path.name not in kept:
            yield Unneeded(path, "a file of a release that was removed", _size(path))


def _about(entry: Artifact | Path) -> str:
    return (
        f"made {entry.manifest.started}"
        if isinstance(entry, Artifact)
        else f"its {MANIFEST} is missing or damaged"
    )


def _size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_symlink() or path.is_file():
        return path.lstat().st_size
    return sum(entry.lstat().st_size for entry in path.rglob("*") if not entry.is_dir())
