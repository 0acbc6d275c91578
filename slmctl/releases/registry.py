"""A folder of releases by content: versions that never change, and tags that move from one to another.

    REGISTRY/.blobs/<sha256>              every file once
    REGISTRY/<project>/<version>/         a release; its files are links to blobs
    REGISTRY/<project>/.gates/<version>   what its gates asked when it was published
    REGISTRY/<project>/.tags/<tag>        the version that a tag names now

A release is drafted and renamed, a tag is replaced by a rename: readers see the old or the new, never a part. Writers
may come together; the same content is written once, and another release under the same version is refused.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slmctl import console
from slmctl.artifacts import artifact, atomic, locks
from slmctl.artifacts.artifact import MANIFEST, SIGNATURE, Artifact
from slmctl.config import Gate
from slmctl.errors import GateError, IntegrityError, UsageError
from slmctl.metrics import gates

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


def releases(root: Path) -> list[Artifact]:
    """Every release in a registry.

    Raises:
        IntegrityError: One of them is damaged.
    """
    found = [path.parent for path in sorted(root.glob("*/*/" + MANIFEST))]
    return [artifact.load(path) for path in found if not path.parent.name.startswith(".")]


def tags(root: Path) -> list[Tag]:
    """Every tag in a registry, with what it stands for.

    Raises:
        IntegrityError: A tag cannot be read.
    """
    paths = sorted(root.glob("*/.tags/*"))
    return [_read_tag(path) for path in paths if TAG.fullmatch(path.name)]


def find(root: Path, name: str = "") -> Artifact:
    """The release that `[PROJECT@]VERSION` or `[PROJECT@]TAG` names; without a name the only one there is.

    Raises:
        IntegrityError: There is none, it is damaged, or what lies there is another one.
        UsageError: There are several.
    """
    project, version = locate(root, name)
    found = artifact.load(root / project / version)
    if (found.metrics.get("project"), found.metrics.get("version")) != (project, version):
        raise IntegrityError(f"{found.path} holds another release than its name says", hint=f"rm -r {found.path}")
    return found


def locate(root: Path, name: str = "") -> tuple[str, str]:
    """Project and version that a name stands for; see `find`."""
    wanted, _, rest = name.rpartition("@")
    known = {(path.parent.parent.name, path.parent.name) for path in root.glob("*/*/" + MANIFEST)}
    known = {one for one in known if not one[0].startswith(".")}
    found = {one for one in known if rest in ("", one[1])}
    found |= {(tag.project, tag.version) for tag in tags(root) if tag.name == rest}
    chosen = sorted(one for one in found if wanted in ("", one[0]))
    if not chosen:
        listed = ", ".join(f"{one}@{version}" for one, version in sorted(known)) or "nothing"
        raise IntegrityError(f"{root} holds no release '{name}'", hint=f"it holds {listed}")
    if len(chosen) > 1:
        listed = ", ".join(f"{one}@{version}" for one, version in chosen)
        raise UsageError(f"{root} holds several releases that '{name}' may mean", hint=f"one of {listed}")
    return chosen[0]


def parse(address: str, root: Path) -> tuple[Path, str]:
    """`dir:FOLDER#NAME` as the folder, relative to `root`, and the name."""
    folder, _, name = address.removeprefix("dir:").partition("#")
    return (root / Path(folder).expanduser()).resolve(), name


# Writing


def blob(root: Path, sha256: str) -> Path:
    """Where a file lies by its content."""
    return root / ".blobs" / sha256


def put_blob(root: Path, source: Path, sha256: str) -> None:
    """Keep a file by its content, unless it is there.

    Raises:
        IntegrityError: The file is not what its hash says.
    """
    target = blob(root, sha256)
    with locks.lock(root / ".locks" / f"blob-{sha256[:16]}", wait=True, on_wait=console.say):
        if holds_blob(root, sha256):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic.file(target, 0o444) as draft:
            shutil.copyfile(source, draft)
            if artifact.sha256_file(draft) != "sha256:" + sha256:
                raise IntegrityError(f"{source} has changed while it was copied")


def holds_blob(root: Path, sha256: str) -> bool:
    """Whether a file is there, and whole."""
    path = blob(root, sha256)
    return path.is_file() and artifact.sha256_file(path) == "sha256:" + sha256


def assemble(root: Path, project: str, version: str, files: dict[str, str]) -> None:
    """Make a release of blobs visible; one that is there gets the files that it lacks or that were damaged.

    Args:
        root: The registry.
        project: Whose release.
        version: Under which name.
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
        kept = artifact.Manifest.from_bytes((final / MANIFEST).read_bytes(), where=str(final / MANIFEST))
        own = {entry.path: entry.sha256 for entry in kept.files}
        if {name: sha256 for name, sha256 in files.items() if name in own} != own:
            raise IntegrityError(f"{root} already holds another {project} {version}")
        if SIGNATURE in files and artifact.sha256_file(final / MANIFEST) != "sha256:" + files[MANIFEST]:
            raise IntegrityError(f"{root} already holds {project} {version} with another manifest than was signed")
        for name, sha256 in files.items():
            path = final / name
            if name != MANIFEST and not (path.is_file() and artifact.sha256_file(path) == "sha256:" + sha256):
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
    """Whether it is on record what the gates of a release asked."""
    return bool(_recorded(root, release))


def record_gates(root: Path, release: Artifact, asked: Sequence[dict[str, Any]]) -> None:
    """Keep what the gates of a release asked, so that a promotion can check them again."""
    project, version = str(release.metrics["project"]), str(release.metrics["version"])
    path = root / project / ".gates" / version
    _replace(path, artifact.canonical({"digest": release.digest, "gates": list(asked)}))


def promote(root: Path, release: Artifact, tag: str, *, beside: Sequence[Gate] = ()) -> Tag:
    """Let a tag stand for a release, from one moment to the next.

    Args:
        root: The registry that holds the release.
        release: Which.
        tag: Such as `production`.
        beside: Further gates to check, such as the config's of today; those on what its report measured.

    Raises:
        GateError: It fails a gate, no report measured one of its files, or nobody knows what its gates were.
        IntegrityError: It is damaged.
        UsageError: The tag is no name.
    """
    if not TAG.fullmatch(tag):
        raise UsageError(f"'{tag}' is no tag", hint="small letters, digits, dots and hyphens, and no version number")
    faults = artifact.verify(release)
    if faults:
        raise IntegrityError(f"{release.path} is damaged: {'; '.join(faults)}", hint="publish it again")
    _require_gates(root, release, beside)
    project, version = str(release.metrics["project"]), str(release.metrics["version"])
    with locks.lock(root / ".locks" / f"{project}-tags", wait=True, on_wait=console.say):
        path = root / project / ".tags" / tag
        before = _read_tag(path) if path.exists() else None
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
    own = [Gate.model_validate(gate) for gate in kept["gates"]]
    report = json.loads(release.file("report.json").read_bytes())
    measured = {model["sha256"] for model in report["models"].values()}
    for entry in release.files(".gguf"):
        if entry.sha256 not in measured:
            raise GateError(f"no report measured {entry.path} of {project} {version}")
    known = {*report["models"], *report["baselines"]} | ({"chosen"} if report["choice"] else set())
    gates.enforce([*own, *(gate for gate in beside if {gate.model, gate.against or gate.model} <= known)], report)


def _recorded(root: Path, release: Artifact) -> dict[str, Any]:
    """What was recorded with a release; nothing where that cannot be read or is about another release."""
    path = root / str(release.metrics["project"]) / ".gates" / str(release.metrics["version"])
    try:
        kept = json.loads(path.read_bytes())
        return kept if kept["digest"] == release.digest and isinstance(kept["gates"], list) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _read_tag(path: Path) -> Tag:
    try:
        return Tag(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise IntegrityError(f"the tag {path} cannot be read: {error}", hint="slmctl promote sets it anew") from None


def _replace(path: Path, raw: bytes) -> None:
    """Write a small file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.file(path) as draft:
        draft.write_bytes(raw)
