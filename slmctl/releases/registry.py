"""A folder of releases by content: versions that never change, and tags that move from one to another.

    REGISTRY/.blobs/<sha256>              every file once
    REGISTRY/<project>/<version>/         a release; its files are links to blobs
    REGISTRY/<project>/.gates/<version>   what its gates asked when it was published
    REGISTRY/<project>/.tags/<tag>        the version that a tag names now

A release is drafted and renamed, a tag is replaced by a rename: readers see the old or the new, never a part. Writers
may come together; the same content is written once, and another release under the same version is refused.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from slmctl import console
from slmctl.artifacts import artifact, atomic, bounded_json, locks
from slmctl.artifacts.artifact import MANIFEST, SIGNATURE, Artifact, Manifest
from slmctl.config import PRODUCTION, Gate
from slmctl.errors import GateError, IntegrityError, UsageError
from slmctl.model_files.gguf_choice import answering_sha256, is_encoder
from slmctl.reports.evaluation_report import measured_names, parse_report

VERSION = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
TAG = re.compile(r"(?![0-9.]+$)[a-z0-9][a-z0-9._-]{0,62}")  # a tag that looks like a version would hide it
# What a file system says that has no hard links, or no more of them for a file.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


@dataclass(frozen=True)
class Tag:
    """A name that stands for a version of a project, for now; `previous` is the version it stood for before."""

    project: str
    name: str
    version: str
    digest: str
    previous: str | None = None


# Reading


def folders(root: Path) -> list[Path]:
    """The folders of all releases in a registry, whole or not.

    Raises:
        IntegrityError: The registry, or the folder of a project in it, is missing or cannot be listed: that is not the
            same as an empty one.
    """
    return [release for project in _listed(root) for release in _listed(project)]


def _listed(folder: Path) -> list[Path]:
    """The folders in a folder but for hidden ones."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except OSError as error:
        raise _unreadable(folder, error) from None
    return [folder / name for name in sorted(names) if name != "lost+found"]


def _tag_files(root: Path) -> Iterator[Path]:
    for project in _listed(root):
        try:
            names = [path.name for path in (project / ".tags").iterdir()]
        except FileNotFoundError:
            continue
        except OSError as error:
            raise _unreadable(project / ".tags", error) from None
        yield from (project / ".tags" / name for name in sorted(names) if TAG.fullmatch(name))


def _unreadable(folder: Path, error: OSError) -> IntegrityError:
    first = "slmctl run publishes the first release; " if isinstance(error, FileNotFoundError) else ""
    text = f"the registry {folder} cannot be read: {error.strerror}"
    return IntegrityError(text, hint=f"{first}mount it, or make it readable")


def manifests(root: Path) -> list[Manifest]:
    """The manifest of every release in a registry, and the digests of its tags; everything must be readable.

    Raises:
        IntegrityError: Something cannot be.
    """
    read = {}
    for folder in folders(root):
        try:
            read[folder.parent.name, folder.name] = Manifest.read(folder)
        except FileNotFoundError:
            raise IntegrityError(f"{folder} has no {MANIFEST}", hint="publish it again, or remove it") from None
    for tag in tags(root):
        if (tag.project, tag.version) not in read:
            raise IntegrityError(
                f"the tag {tag.project}@{tag.name} in {root} stands for version {tag.version}, which is not there",
                hint="publish it again, or slmctl promote lets the tag stand for another one",
            )
        _require_same(tag, read[tag.project, tag.version], root)
    return list(read.values())


def tags(root: Path) -> list[Tag]:
    """Every tag in a registry, with what it stands for.

    Raises:
        IntegrityError: A tag cannot be read.
    """
    return [_read_tag(path) for path in _tag_files(root)]


def find(root: Path, name: str = "") -> Artifact:
    """The release that `[PROJECT@]VERSION` or `[PROJECT@]TAG` names; without a name the only one there is.

    A project's name alone means what it has in production, or else its only release.

    Raises:
        IntegrityError: There is none, it is damaged, or what lies there is another one.
        UsageError: There are several.
    """
    project, version = locate(root, name)
    release = artifact.load(root / project / version)
    if (release.metrics.get("project"), release.metrics.get("version")) != (project, version):
        raise IntegrityError(f"{release.path} holds another release than its name says", hint=f"rm -r {release.path}")
    return release


def require_name(name: str) -> None:
    """Refuse `@` alone, which is typed where PROJECT@VERSION was meant and would stand for any release.

    Raises:
        UsageError: It is.
    """
    if name.strip() == "@":
        raise UsageError("'@' names no release", hint="PROJECT@VERSION, VERSION or a tag; nothing for the only release")


def locate(root: Path, name: str = "") -> tuple[str, str]:
    """Project and version that a name stands for; see `find`."""
    require_name(name)
    project, _, version = name.rpartition("@")
    there = {(folder.parent.name, folder.name) for folder in folders(root) if (folder / MANIFEST).is_file()}
    matches = {release for release in there if version in ("", release[1])}
    for path in _tag_files(root) if version else ():
        if path.name == version and project in ("", path.parent.parent.name):
            tag = _read_tag(path)
            with contextlib.suppress(FileNotFoundError):  # `find` says so
                _require_same(tag, Manifest.read(root / tag.project / tag.version), root)
            matches.add((tag.project, tag.version))
    matches = {release for release in matches if project in ("", release[0])}
    if not matches and not project and version in {release[0] for release in there}:
        current = PRODUCTION if (root / version / ".tags" / PRODUCTION).exists() else ""
        return locate(root, f"{version}@{current}")
    if not matches:
        listed = ", ".join("@".join(release) for release in sorted(there))
        hint = f"it holds {listed}" if listed else "it holds none: slmctl run publishes the first"
        raise IntegrityError(f"{root} holds no release '{name}'", hint=hint)
    if len(matches) > 1:
        listed = ", ".join("@".join(release) for release in sorted(matches))
        raise UsageError(f"{root} holds several releases that '{name}' may mean", hint=f"one of {listed}")
    return matches.pop()


def parse(address: str, root: Path) -> tuple[Path, str]:
    """`dir:FOLDER#NAME` as the folder, relative to `root`, and the name."""
    folder, _, name = address.removeprefix("dir:").partition("#")
    place = root / os.path.expanduser(folder)  # noqa: PTH111 - pathlib's raises where there is no such user
    return Path(os.path.realpath(place)), name  # and pathlib's resolve where a link leads to itself


# Writing


def blob(root: Path, sha256: str) -> Path:
    """The path of a file by its content."""
    return root / ".blobs" / sha256


def put_blob(root: Path, source: Path, sha256: str) -> None:
    """Keep a file by its content, unless it is there.

    Raises:
        IntegrityError: The file is not what its hash says.
    """
    target = blob(root, sha256)
    with locks.lock(root / ".locks" / f"blob-{sha256[:16]}", wait=True, on_wait=console.say):
        if artifact.has_content(target, sha256):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic.file(target, 0o444) as draft:
            shutil.copyfile(source, draft)
            if not artifact.has_content(draft, sha256):
                raise IntegrityError(f"{source} has changed while it was copied")


def assemble(root: Path, project: str, version: str, files: dict[str, str]) -> None:
    """Make a release of blobs visible; one that is there gets the files that it lacks or that were damaged.

    Args:
        files: The sha256 of every file by its path, manifest included.

    Raises:
        IntegrityError: The version is there and is another release.
    """
    final = root / project / version
    with locks.lock(root / ".locks" / f"{project}-{version}", wait=True, on_wait=console.say):
        if not (final / MANIFEST).exists():
            with artifact.draft(final) as place:
                for name, sha256 in files.items():
                    (place / name).parent.mkdir(parents=True, exist_ok=True)
                    _link(blob(root, sha256), place / name)
                artifact.load(place)
            return
        kept = Manifest.read(final)
        own = {entry.path: entry.sha256 for entry in kept.files}
        if {name: sha256 for name, sha256 in files.items() if name in own} != own:
            raise IntegrityError(f"{root} already holds another {project} {version}")
        if SIGNATURE in files and not artifact.has_content(final / MANIFEST, files[MANIFEST]):
            raise IntegrityError(f"{root} already holds {project} {version} with another manifest than was signed")
        for name, sha256 in files.items():
            path = final / name
            if name != MANIFEST and not artifact.has_content(path, sha256):
                path.unlink(missing_ok=True)
                _link(blob(root, sha256), path)
                atomic.sync(path.parent)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with atomic.file(target, 0o444) as draft:
            shutil.copyfile(source, draft)


# Gates and tags


def has_gates(root: Path, release: Artifact) -> bool:
    """True if it is on record what the gates of a release asked."""
    return bool(_recorded(root, release))


def record_gates(root: Path, release: Artifact, gates: Sequence[Gate]) -> None:
    """Keep what the gates of a release asked, so that a promotion can check them again."""
    project, version = str(release.metrics["project"]), str(release.metrics["version"])
    path = root / project / ".gates" / version
    conditions = [gate.model_dump(mode="json", exclude_none=True) for gate in gates]
    _replace(path, artifact.canonical({"digest": release.digest, "gates": conditions}))


def promote(root: Path, release: Artifact, tag: str, *, beside: Sequence[Gate] = ()) -> Tag:
    """Let a tag stand for a release, from one moment to the next.

    Args:
        root: The registry that holds the release.
        beside: Further gates to check, such as the config's of today; those on what its report measured.

    Raises:
        GateError: It fails a gate, no report measured one of its files, or nobody knows what its gates were.
        IntegrityError: It is damaged.
        UsageError: The tag is no name.
    """
    if not TAG.fullmatch(tag):
        raise UsageError(f"'{tag}' is no tag", hint="small letters, digits, dots and hyphens, and no version number")
    artifact.require_whole(release, hint="publish it again")
    _require_gates(root, release, beside)
    project, version = str(release.metrics["project"]), str(release.metrics["version"])
    with locks.lock(root / ".locks" / f"{project}-tags", wait=True, on_wait=console.say):
        path = root / project / ".tags" / tag
        before = None
        with contextlib.suppress(IntegrityError):  # there is none, or none that can be read
            before = _read_tag(path)
        if before is not None and before.digest == release.digest:
            return before
        made = Tag(project, tag, version, release.digest, before.version if before else None)
        _replace(path, artifact.canonical(asdict(made)))
    return made


def _require_gates(root: Path, release: Artifact, beside: Sequence[Gate]) -> None:
    project, version = str(release.metrics["project"]), str(release.metrics["version"])
    kept = _recorded(root, release)
    if not kept:
        raise GateError(f"nobody recorded what the gates of {project} {version} were", hint="slmctl publish")
    try:
        own = [Gate.model_validate(gate) for gate in kept["gates"]]
    except ValidationError:
        raise IntegrityError(
            f"what the gates of {project} {version} were cannot be read", hint="slmctl publish records it again"
        ) from None
    report = parse_report(json.loads(release.file("report.json").read_bytes()), where=f"{release.path}/report.json")
    measured = {model.get("sha256") for model in report["models"].values()}
    for entry in release.files(".gguf"):
        if not is_encoder(release, entry) and answering_sha256(release, entry) not in measured:
            raise GateError(f"no report measured {entry.path} of {project} {version}")
    from slmctl.metrics import gates

    names = measured_names(report)
    gates.enforce([*own, *(gate for gate in beside if {gate.model, gate.against or gate.model} <= names)], report)


def _recorded(root: Path, release: Artifact) -> dict[str, Any]:
    """The record of a release's gates; None where it cannot be read or is about another release."""
    path = root / str(release.metrics["project"]) / ".gates" / str(release.metrics["version"])
    try:
        kept = bounded_json.parse(bounded_json.read_bytes(path), where=str(path))
    except (FileNotFoundError, IntegrityError):
        return {}
    return kept if kept.get("digest") == release.digest and isinstance(kept.get("gates"), list) else {}


def _read_tag(path: Path) -> Tag:
    again = "slmctl promote sets it again"
    try:
        tag = Tag(**bounded_json.parse(bounded_json.read_bytes(path), where=f"the tag {path}"))
    except (FileNotFoundError, TypeError):
        raise IntegrityError(f"the tag {path} cannot be read: it does not say what it stands for", hint=again) from None
    except IntegrityError as error:
        raise IntegrityError(error.message, hint=again) from None
    texts = all(isinstance(value, str) for value in (tag.version, tag.digest, tag.previous or ""))
    if (
        not texts
        or (tag.project, tag.name) != (path.parent.parent.name, path.name)
        or not VERSION.fullmatch(tag.version)
    ):
        raise IntegrityError(f"the tag {path} cannot be read: it does not say what it stands for", hint=again)
    return tag


def _require_same(tag: Tag, release: Manifest, root: Path) -> None:
    if release.digest != tag.digest:
        raise IntegrityError(
            f"the tag {tag.project}@{tag.name} in {root} stands for another release than lies under {tag.version}",
            hint="slmctl promote sets it again",
        )


def _replace(path: Path, raw: bytes) -> None:
    """Write a small file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.file(path) as draft:
        draft.write_bytes(raw)
