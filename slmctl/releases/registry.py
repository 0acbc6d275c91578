"""A folder of releases with content-addressed files: versions never change, tags move from one to
another.

    REGISTRY/.blobs/<sha256>              every file once
    REGISTRY/<project>/<version>/         a release; its files are hard links to blobs
    REGISTRY/<project>/.gates/<version>   its gates when it was published
    REGISTRY/<project>/.tags/<tag>        the version that a tag points at

Releases and tags are written atomically: readers see the old or the new one, never a part. Several
processes may write at once; equal content is written once, and another release under an existing
version is refused.
"""

from __future__ import annotations

import contextlib
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
from slmctl.model_files.gguf_choice import answering
from slmctl.reports import RELEASE
from slmctl.reports.evaluation_report import (
    EvaluationReport,
    file_of,
    measured_names,
    released,
    report_of,
)

# of models in recorded gates: before, the name of a file meant that file with its linear models
NAMES = 2
VERSION = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
# not like a version, which it would hide
TAG = re.compile(r"(?![0-9.]+$)[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True)
class Tag:
    """A tag of a project.

    Attributes:
        version: The one that it points at; `previous` the one before.
        another: The last version of another model before it, '' for none; None, and not written,
            where that is `previous`.
    """

    project: str
    name: str
    version: str
    digest: str
    previous: str | None = None
    another: str | None = None


# Reading


def folders(root: Path) -> list[Path]:
    """The folders of all releases in a registry, verified or not.

    Raises:
        IntegrityError: The registry, or a project's folder in it, is missing or cannot be listed.
    """
    return [release for project in _listed(root) for release in _listed(project)]


def _listed(folder: Path) -> list[Path]:
    """The folders in a folder, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            names = [
                entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")
            ]
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
    first = (
        "slmctl run publishes the first release; " if isinstance(error, FileNotFoundError) else ""
    )
    text = f"the registry {folder} cannot be read: {error.strerror}"
    return IntegrityError(text, hint=f"{first}mount it, or make it readable")


def manifests(root: Path) -> list[Manifest]:
    """The manifest of every release in a registry, after a check that every tag points at one of
    them.

    Raises:
        IntegrityError: A manifest or tag cannot be read, or a tag points at no release or at
            another content.
    """
    read = {}
    for folder in folders(root):
        try:
            read[folder.parent.name, folder.name] = Manifest.read(folder)
        except FileNotFoundError:
            raise IntegrityError(
                f"{folder} has no {MANIFEST}", hint="publish it again, or remove it"
            ) from None
    for tag in tags(root):
        if (tag.project, tag.version) not in read:
            raise IntegrityError(
                f"the tag {tag.project}@{tag.name} in {root} stands for version {tag.version}, "
                "which is not there",
                hint="publish it again, or slmctl promote lets the tag stand for another one",
            )
        _require_same(tag, read[tag.project, tag.version], root)
    return list(read.values())


def tags(root: Path) -> list[Tag]:
    """Every tag in a registry.

    Raises:
        IntegrityError: A tag cannot be read.
    """
    return [_read_tag(path) for path in _tag_files(root)]


def find(root: Path, name: str = "") -> Artifact:
    """The release that `[PROJECT@]VERSION` or `[PROJECT@]TAG` names; '' is the only release of the
    registry.

    A project's name alone means its release with the tag `production`, or else its only release.

    Raises:
        IntegrityError: No release has this name, or it is damaged, or its manifest has another
            name.
        UsageError: Several releases have this name.
    """
    project, version = locate(root, name)
    release = artifact.load(root / project / version)
    if (release.metrics.get("project"), release.metrics.get("version")) != (project, version):
        raise IntegrityError(
            f"{release.path} holds another release than its name says", hint=f"rm -r {release.path}"
        )
    return release


def require_name(name: str) -> None:
    """Refuse `@` alone: it is a typing error for PROJECT@VERSION, and would match any release.

    Raises:
        UsageError: `name` is `@`.
    """
    if name.strip() == "@":
        raise UsageError(
            "'@' names no release",
            hint="PROJECT@VERSION, VERSION or a tag; nothing for the only release",
        )


def locate(root: Path, name: str = "") -> tuple[str, str]:
    """Returns (project, version) of a name; see `find`."""
    require_name(name)
    project, _, version = name.rpartition("@")
    there = {
        (folder.parent.name, folder.name)
        for folder in folders(root)
        if (folder / MANIFEST).is_file()
    }
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
        raise UsageError(
            f"{root} holds several releases that '{name}' may mean", hint=f"one of {listed}"
        )
    return matches.pop()


def parse(address: str, root: Path) -> tuple[Path, str]:
    """Split `dir:FOLDER#NAME` into (absolute folder, name); FOLDER is relative to `root`."""
    folder, _, name = address.removeprefix("dir:").partition("#")
    place = root / os.path.expanduser(folder)  # noqa: PTH111 - pathlib's raises for an unknown user
    # pathlib's resolve raises for a link that leads to itself
    return Path(os.path.realpath(place)), name


# Writing


def blob(root: Path, sha256: str) -> Path:
    """The path of the blob with this content."""
    return root / ".blobs" / sha256


def put_blob(root: Path, source: Path, sha256: str) -> None:
    """Copy a file into the blobs, unless it is already there.

    Raises:
        IntegrityError: The file has another hash than `sha256`.
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
    """Create a release from blobs; if it already exists, restore its missing and damaged files.

    Args:
        files: Path -> sha256 of every file, including the manifest.

    Raises:
        IntegrityError: The version exists with other content.
    """
    final = root / project / version
    with locks.lock(root / ".locks" / f"{project}-{version}", wait=True, on_wait=console.say):
        if not (final / MANIFEST).exists():
            with artifact.draft(final) as place:
                for name, sha256 in files.items():
                    (place / name).parent.mkdir(parents=True, exist_ok=True)
                    atomic.link(blob(root, sha256), place / name, 0o444)
                artifact.load(place)
            return
        kept = Manifest.read(final)
        own = {entry.path: entry.sha256 for entry in kept.files}
        if {name: sha256 for name, sha256 in files.items() if name in own} != own:
            raise IntegrityError(f"{root} already holds another {project} {version}")
        if SIGNATURE in files and not artifact.has_content(final / MANIFEST, files[MANIFEST]):
            raise IntegrityError(
                f"{root} already holds {project} {version} with another manifest than was signed"
            )
        for name, sha256 in files.items():
            path = final / name
            if name != MANIFEST and not artifact.has_content(path, sha256):
                path.unlink(missing_ok=True)
                atomic.link(blob(root, sha256), path, 0o444)
                atomic.sync(path.parent)


# Gates and tags


def has_gates(root: Path, release: Artifact) -> bool:
    """True if the gates of a release are recorded."""
    return bool(_recorded(root, release))


def record_gates(root: Path, release: Artifact, gates: Sequence[Gate]) -> None:
    """Record the gates of a release, so that `promote` can check them again."""
    project, version = str(release.metrics["project"]), str(release.metrics["version"])
    path = root / project / ".gates" / version
    conditions = [gate.model_dump(mode="json", exclude_none=True) for gate in gates]
    atomic.write(
        path, artifact.canonical({"digest": release.digest, "names": NAMES, "gates": conditions})
    )


def promote(root: Path, release: Artifact, tag: str, *, beside: Sequence[Gate] = ()) -> Tag:
    """Point a tag, such as production, at a release, atomically; promote an older release to roll
    back.

    Args:
        beside: Further gates to check, such as those of the present config; gates on models that
            its report did not measure are skipped.

    Raises:
        GateError: The release fails a gate, its report measured not all of its files, or its gates
            are not recorded.
        IntegrityError: The release is damaged.
        UsageError: `tag` is not a valid name.
    """
    if not TAG.fullmatch(tag):
        raise UsageError(
            f"'{tag}' is no tag",
            hint="small letters, digits, dots and hyphens, and no version number",
        )
    artifact.require_whole(release, hint="publish it again")
    _require_gates(root, release, beside)
    project, version = str(release.metrics["project"]), str(release.metrics["version"])
    with locks.lock(root / ".locks" / f"{project}-tags", wait=True, on_wait=console.say):
        path = root / project / ".tags" / tag
        before = None
        with contextlib.suppress(IntegrityError):  # missing or damaged: it is written again
            before = _read_tag(path)
        if before is not None and before.digest == release.digest:
            return before
        version_before = before.version if before else None
        made = Tag(
            project, tag, version, release.digest, version_before, _another(root, release, before)
        )
        fields = asdict(made)
        if made.another is None:  # a program of before this key reads no tag with it
            del fields["another"]
        atomic.write(path, artifact.canonical(fields))
    return made


def _another(root: Path, release: Artifact, before: Tag | None) -> str | None:
    """`Tag.another` of a release that follows `before`: one with the
    same files is nothing to compare with.
    """
    if before is not None:
        with contextlib.suppress(IntegrityError):  # it is no longer there
            tagged = find(root, f"{before.project}@{before.version}")
            if tagged.metrics["files"] == release.metrics["files"]:
                return (before.previous or "") if before.another is None else before.another
    return None


def _require_gates(root: Path, release: Artifact, beside: Sequence[Gate]) -> None:
    project, version = str(release.metrics["project"]), str(release.metrics["version"])
    kept = _recorded(root, release)
    if not kept:
        text = f"nobody recorded what the gates of {project} {version} were"
        raise GateError(text, reason="gates_unknown", hint="slmctl publish")
    try:
        own = [Gate.model_validate(gate) for gate in kept["gates"]]
    except ValidationError:
        raise IntegrityError(
            f"what the gates of {project} {version} were cannot be read",
            hint="slmctl publish records it again",
        ) from None
    report = report_of(release)
    if kept.get("names") != NAMES:
        own = [_as_released(gate, report) for gate in own]
    for name, sha256 in answering(release).items():
        if not released(report, sha256):
            raise GateError(
                f"no report measured {name} of {project} {version}", reason="not_measured"
            )
    from slmctl.metrics import gates

    names = measured_names(report)
    gates.enforce(
        [*own, *(gate for gate in beside if {gate.model, gate.against or gate.model} <= names)],
        report,
    )


def _as_released(gate: Gate, report: EvaluationReport) -> Gate:
    """A gate of a record before NAMES."""
    file = file_of(report, released(report))
    return gate.model_copy(update={"model": RELEASE}) if gate.model in (file, "chosen") else gate


def _recorded(root: Path, release: Artifact) -> dict[str, Any]:
    """The recorded gates of a release; {} if the record cannot be
    read or belongs to another digest.
    """
    path = root / str(release.metrics["project"]) / ".gates" / str(release.metrics["version"])
    try:
        kept = bounded_json.parse(bounded_json.read_bytes(path), where=str(path))
    except (FileNotFoundError, IntegrityError):
        return {}
    return (
        kept if kept.get("digest") == release.digest and isinstance(kept.get("gates"), list) else {}
    )


def _read_tag(path: Path) -> Tag:
    again = "slmctl promote sets it again"
    try:
        written = bounded_json.parse(bounded_json.read_bytes(path), where=f"the tag {path}")
        # not a later key
        tag = Tag(**{key: written[key] for key in Tag.__dataclass_fields__ if key in written})
    except (FileNotFoundError, TypeError):
        raise IntegrityError(
            f"the tag {path} cannot be read: it does not say what it stands for", hint=again
        ) from None
    except IntegrityError as error:
        raise IntegrityError(error.message, hint=again) from None
    texts = all(
        isinstance(value, str)
        for value in (tag.version, tag.digest, tag.previous or "", tag.another or "")
    )
    if (
        not texts
        or (tag.project, tag.name) != (path.parent.parent.name, path.name)
        or not VERSION.fullmatch(tag.version)
    ):
        raise IntegrityError(
            f"the tag {path} cannot be read: it does not say what it stands for", hint=again
        )
    return tag


def _require_same(tag: Tag, release: Manifest, root: Path) -> None:
    if release.digest != tag.digest:
        raise IntegrityError(
            f"the tag {tag.project}@{tag.name} in {root} stands for another release than lies "
            f"under {tag.version}",
            hint="slmctl promote sets it again",
        )
