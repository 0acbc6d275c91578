"""What came from what: `show` draws an artifact's ancestry, `verify` proves that nothing has changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import MANIFEST, Artifact, Manifest
from slmctl.errors import IntegrityError


@dataclass(frozen=True)
class LineageNode:
    """One artifact of an ancestry; `found` is None for one that lies nowhere here."""

    digest: str
    role: str
    found: Artifact | None
    parents: tuple[LineageNode, ...] = ()
    sources: tuple[dict[str, str], ...] = field(default=())


def show(root: Path, release: Artifact) -> LineageNode:
    """The ancestry of an artifact, back to the base model and the data files."""
    return _node(release.digest, "", {a.digest: a for a in known(root)} | {release.digest: release})


def known(root: Path) -> Iterator[Artifact]:
    """Every readable artifact below `runs/`; a damaged one is left to `verify`."""
    for path in sorted((root / "runs").glob("*/*/" + MANIFEST)):
        if not path.parent.name.startswith("."):
            try:
                yield artifact.load(path.parent)
            except IntegrityError:
                continue


def opened(folder: Path) -> Artifact | Path:
    """An artifact, of which nothing but the manifest need be there; or the folder of one that has none to trust."""
    try:
        return Artifact(folder, Manifest.read(folder))
    except (OSError, IntegrityError):
        return folder


def origin(root: Path, of: Artifact, kind: str) -> Artifact:
    """The artifact of a kind that another one is, or was made of; what was only measured or trained on is none.

    Raises:
        IntegrityError: It is not below `runs/`.
    """
    here, left = {one.digest: one for one in known(root)}, [of]
    for one in left:
        if one.kind == kind:
            return one
        if one.kind not in ("report", "predictions", "prepared"):
            inputs = [[value] if isinstance(value, str) else value for value in one.manifest.inputs.values()]
            left += [here[digest] for value in inputs for digest in value if digest in here]
    raise IntegrityError(
        f"{of.path} ({of.kind}) is no {kind} model, and the one it was made of is not below {root / 'runs'}",
        hint=f"name the project that made it with -C, or the {kind} model itself as MODEL",
    )


def folders(root: Path) -> list[Path]:
    """The folders of all artifacts below `runs/`, whole or not."""
    return sorted(
        path
        for path in (root / "runs").glob("*/*")
        if path.is_dir() and not path.name.startswith(".") and not path.parent.name.startswith(".")
    )


def verify(folders: list[Path]) -> dict[str, list[str]]:
    """The faults of each folder: files that are extra, missing or changed."""
    return {str(folder): artifact.verify_folder(folder) for folder in folders}


def lines(
    node: LineageNode, *, indent: str = "", last: bool = True, top: bool = True, drawn: set[str] | None = None
) -> Iterator[str]:
    """The ancestry as a drawing, one artifact a line; one that occurs again is drawn once and then named."""
    branch = "" if top else indent + ("└─ " if last else "├─ ")
    drawn = set() if drawn is None else drawn
    if node.digest in drawn:
        yield f"{branch}{node.found.kind if node.found else node.role}  {node.digest[:19]}  (above)"
        return
    drawn.add(node.digest)
    yield branch + _title(node)
    indent = "" if top else indent + ("   " if last else "│  ")
    children: list[Any] = [*node.parents, *node.sources]
    for k, child in enumerate(children):
        at_end = k == len(children) - 1
        if isinstance(child, LineageNode):
            yield from lines(child, indent=indent, last=at_end, top=False, drawn=drawn)
        else:
            yield f"{indent}{'└─ ' if at_end else '├─ '}file {child['file']}  sha256:{child['sha256'][:12]}"


def to_json(node: LineageNode) -> dict[str, Any]:
    """The ancestry as JSON values."""
    found = node.found
    return {
        "role": node.role,
        "digest": node.digest,
        "kind": found.kind if found else None,
        "path": str(found.path) if found else None,
        "stage": found.manifest.stage if found else None,
        "started": found.manifest.started if found else None,
        "inputs": [to_json(parent) for parent in node.parents],
        "sources": list(node.sources),
    }


def _node(digest: str, role: str, by_digest: dict[str, Artifact], below: frozenset[str] = frozenset()) -> LineageNode:
    found = by_digest.get(digest)
    if found is None or digest in below:  # an artifact cannot be its own ancestor, whatever a manifest says
        return LineageNode(digest, role, None)
    parents = tuple(
        _node(one, name, by_digest, below | {digest})
        for name, value in found.manifest.inputs.items()
        for one in (value if isinstance(value, list) else [value])
    )
    return LineageNode(digest, role, found, parents, tuple(_sources(found)))


def _sources(found: Artifact) -> list[dict[str, str]]:
    """The files from outside that an artifact was made of."""
    if found.kind == "base":
        return [{"file": name, "sha256": value} for name, value in found.metrics.get("source_sha256", {}).items()]
    listed: list[dict[str, str]] = found.metrics.get("sources", [])
    return listed


def _title(node: LineageNode) -> str:
    if node.found is None:
        return f"{node.role}  {node.digest[:19]}  (not here)"
    manifest = node.found.manifest
    about = {
        "base": ("name", "source", "license"),
        "prepared": ("train", "validation", "calibration", "test"),
        "adapter": ("backend", "steps", "validation_loss"),
        "predictions": ("model", "split", "n"),
        "published": ("project", "version", "license"),
        "report": ("n", "split"),
        "policy": ("model", "rows", "max_error"),
    }.get(manifest.kind, ())
    facts = ", ".join(f"{key} {manifest.metrics[key]}" for key in about if manifest.metrics.get(key) not in (None, ""))
    return f"{manifest.kind}  {node.digest[:19]}  {manifest.started}" + (f"  {facts}" if facts else "")
