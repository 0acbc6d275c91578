"""Ancestry of artifacts, back to the data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import MANIFEST, Artifact, Manifest
from slmctl.errors import IntegrityError


class SourceFile(TypedDict):
    """A file from outside of `runs/` that an artifact was made of: its
    name and the sha256 of its content.
    """

    file: str
    sha256: str


class LineageEntry(TypedDict):
    """One artifact of an ancestry as JSON; the last fields are
    None where it is not below `runs/`.
    """

    role: str
    digest: str
    inputs: list[LineageEntry]
    sources: list[SourceFile]
    kind: str | None
    path: str | None
    stage: str | None
    started: str | None


@dataclass(frozen=True)
class LineageNode:
    """One artifact of an ancestry; `source` is None where it is not below `runs/`."""

    digest: str
    role: str
    source: Artifact | None
    parents: tuple[LineageNode, ...] = ()
    sources: tuple[SourceFile, ...] = ()


class Ancestry:
    """Artifacts by digest, to look up the ancestors of each."""

    def __init__(self, artifacts: Iterable[Artifact]) -> None:
        self._by_digest: dict[str, list[Artifact]] = {}
        for made in artifacts:
            self._by_digest.setdefault(made.digest, []).append(made)

    def get(self, digest: str) -> Artifact | None:
        """The artifact with this digest; None if it is not among the known ones."""
        return next(iter(self._by_digest.get(digest, ())), None)

    def of(self, *digests: str) -> Iterator[Artifact]:
        """The artifacts with these digests and all their ancestors, breadth first."""
        # an artifact cannot be its own ancestor, whatever a manifest says
        left, seen = list(digests), set(digests)
        for digest in left:
            for made in self._by_digest.get(digest, ()):
                yield made
                parents = {
                    parent: None for _, parent in made.manifest.parents if parent not in seen
                }
                left += parents
                seen |= parents.keys()


def show(root: Path, release: Artifact) -> LineageNode:
    """The ancestry of an artifact, back to the base model and the data files."""
    return _node(
        release.digest,
        "",
        {a.digest: a for a in readable_artifacts(root)} | {release.digest: release},
    )


def readable_artifacts(root: Path) -> Iterator[Artifact]:
    """Every readable artifact below `runs/`; damaged ones are skipped, and reported by `verify`."""
    for path in sorted((root / "runs").glob("*/*/" + MANIFEST)):
        if not path.parent.name.startswith("."):
            try:
                yield artifact.load(path.parent)
            except IntegrityError:
                continue


def opened(folder: Path) -> Artifact | Path:
    """The artifact in a folder, with unchecked files; the folder itself
    if its manifest is missing or damaged.
    """
    try:
        return Artifact(folder, Manifest.read(folder))
    except (OSError, IntegrityError):
        return folder


def data_set(runs: Path, release: Artifact) -> Artifact | None:
    """The `prepared` artifact that a release was trained on; None if it is not below `runs`."""
    digest = release.manifest.inputs.get("prepared")
    made = map(opened, sorted(runs.glob("prepared/[!.]*")))
    return next(
        (entry for entry in made if isinstance(entry, Artifact) and entry.digest == digest), None
    )


def folders(root: Path) -> list[Path]:
    """The folders of all artifacts below `runs/`, whole or not."""
    return sorted(
        path
        for path in (root / "runs").glob("*/*")
        if path.is_dir() and not path.name.startswith(".") and not path.parent.name.startswith(".")
    )


def lines(node: LineageNode) -> Iterator[str]:
    """The ancestry as a tree, an artifact a line; the inputs of an
    artifact that occurs again are not repeated.
    """
    return _drawn(node, "", "", set())


def _drawn(node: LineageNode, branch: str, indent: str, drawn: set[str]) -> Iterator[str]:
    if node.digest in drawn:
        yield f"{branch}{_name(node)}  (above)"
        return
    drawn.add(node.digest)
    yield branch + _title(node)
    children: list[LineageNode | SourceFile] = [*node.parents, *node.sources]
    for place, child in enumerate(children, 1):
        sign, below = ("├─ ", "│  ") if place < len(children) else ("└─ ", "   ")
        if isinstance(child, LineageNode):
            yield from _drawn(child, indent + sign, indent + below, drawn)
        else:
            yield f"{indent}{sign}file {child['file']}  sha256:{child['sha256'][:12]}"


def to_json(node: LineageNode) -> LineageEntry:
    source = node.source
    return {
        "role": node.role,
        "digest": node.digest,
        "kind": source.kind if source else None,
        "path": str(source.path) if source else None,
        "stage": source.manifest.stage if source else None,
        "started": source.manifest.started if source else None,
        "inputs": [to_json(parent) for parent in node.parents],
        "sources": list(node.sources),
    }


def _node(
    digest: str, role: str, by_digest: dict[str, Artifact], below: frozenset[str] = frozenset()
) -> LineageNode:
    source = by_digest.get(digest)
    # an artifact cannot be its own ancestor, whatever a manifest says
    if source is None or digest in below:
        return LineageNode(digest, role, None)
    parents = tuple(
        _node(parent, role, by_digest, below | {digest}) for role, parent in source.manifest.parents
    )
    return LineageNode(digest, role, source, parents, tuple(_sources(source)))


def _sources(source: Artifact) -> list[SourceFile]:
    if fetched := source.metrics.get("source_sha256"):
        return [{"file": name, "sha256": value} for name, value in fetched.items()]
    listed: list[SourceFile] = source.metrics.get("sources", [])
    return listed


def _title(node: LineageNode) -> str:
    if node.source is None:
        return f"{_name(node)}  (not here)"
    manifest = node.source.manifest
    about = {
        "base": ("name", "source", "license"),
        "labelled": ("accepted", "review", "error_bound"),
        "prepared": ("train", "validation", "calibration", "test"),
        "encoder": ("source", "right", "rows"),
        "adapter": ("backend", "steps", "validation_loss"),
        "predictions": ("model", "split", "n"),
        "published": ("project", "version", "license"),
        "report": ("n", "split"),
        "policy": ("model", "rows", "max_error"),
    }.get(manifest.kind, ())
    facts = ", ".join(
        f"{key} {manifest.metrics[key]}"
        for key in about
        if manifest.metrics.get(key) not in (None, "")
    )
    return f"{_name(node)}  {manifest.started}" + (f"  {facts}" if facts else "")


def _name(node: LineageNode) -> str:
    """Kind and short id of an artifact; role and digest of one that is not below `runs/`."""
    return (
        f"{node.source.kind}  {node.source.short_id}"
        if node.source
        else f"{node.role}  {node.digest[:19]}"
    )
