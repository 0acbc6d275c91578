"""A typed name -> an artifact: a path, the beginning of an id, a kind of
this pipeline or a tag of a registry.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slmctl.artifacts import artifact, lineage
from slmctl.artifacts.artifact import Artifact
from slmctl.errors import IntegrityError, UsageError
from slmctl.pipeline import PATH_ID
from slmctl.pipeline.graph import STAGE_OF, Project
from slmctl.releases import registry

TRY_FIRST = "to try the model before it is released: slmctl chat gguf, or slmctl serve gguf"


@dataclass(frozen=True)
class Workspace:
    """The folder that a command works in, and its project, which
    is read when it is first needed.
    """

    directory: Path
    open: Callable[[], Project]

    @functools.cached_property
    def project(self) -> Project:
        return self.open()


def workspace(project: Project) -> Workspace:
    return Workspace(project.root, lambda: project)


def by_id(runs: Path, prefix: str) -> Path:
    """The folder of the artifact below `runs` whose recipe id begins with `prefix`, hexadecimal
    digits.

    Raises:
        IntegrityError: No id does.
        UsageError: Several ids do.
    """
    matches = [
        path for path in lineage.folders(runs.parent) if path.name.startswith(prefix[:PATH_ID])
    ]
    if not matches:
        raise IntegrityError(
            f"no artifact below {runs} has an id that begins with '{prefix}'", hint="slmctl ls"
        )
    if len(matches) > 1:
        named = ", ".join(str(path.relative_to(runs.parent)) for path in matches)
        raise UsageError(
            f"{len(matches)} artifacts have an id that begins with '{prefix}'",
            hint=f"one of {named}",
        )
    return matches[0]


def artifact_path(where: Workspace, named: Path) -> Path:
    """The path for a typed name: `dir:REGISTRY#TAG`, an existing path, the current artifact of a
    kind, or an id.

    A path that has the name of a kind and no manifest, such as the folder of `base: ./base`, stands
    for the kind.

    Raises:
        IntegrityError: There is nothing at the path, no artifact or release has such a name, or
            none of that kind is current.
        UsageError: Several artifacts have, the config asks for none of that kind, or the release is
            elsewhere.
    """
    address = str(named)
    if address.startswith("dir:"):
        return registry.find(*registry.parse(address, where.directory)).path
    if address.startswith(("hf:", "s3:/")):
        source = re.sub("^s3:/+", "s3://", address)  # a path has no double slash
        raise UsageError(
            f"{source} is not on this machine", hint=f"slmctl fetch {source}, and name its folder"
        )
    if os.path.lexists(named) and (
        str(named) not in STAGE_OF or (named / artifact.MANIFEST).exists()
    ):
        return named
    if stage := STAGE_OF.get(str(named)):
        if getattr(where.project.config, stage) is None:
            raise UsageError(
                f"slmctl.yaml has no section '{stage}', so none of kind '{named}' is current",
                hint=f"slmctl ls {named} lists those there are, with their ids",
            )
        return replace(where.project, named={}, _current={}).artifact(str(named)).path
    if re.fullmatch(r"[0-9a-f]{4,64}", str(named)):
        return by_id(where.directory / "runs", str(named))
    return named


def opened(project: Project, typed: Path, kind: str) -> Artifact:
    """The artifact of a kind that a user named in place of the config's: by a path, a kind or an
    id.

    Raises:
        What `artifact_path` and `open_model` raise.
    """
    return open_model(
        typed if typed.exists() else artifact_path(workspace(project), typed), (kind,)
    )


def find_model(
    where: Workspace, spec: str | Path | None, kinds: Sequence[str], *, default: str
) -> Artifact:
    """The model that a command names: a kind of this pipeline, `dir:REGISTRY#TAG`, or a path.

    Args:
        spec: What the user typed; None stands for `default`.
        default: The kind that the project's config leads to.

    Raises:
        IntegrityError: There is none, or it is damaged.
        UsageError: It is of another kind, or no name that is known.
    """
    spec = spec or default
    if isinstance(spec, str) and spec in kinds:
        try:
            return where.project.artifact(spec)
        except IntegrityError as error:
            if spec == "published" and "gguf" in kinds and where.project.is_made("gguf"):
                error.hint = f"{TRY_FIRST}; to release it: {error.hint}"
            raise
    path = artifact_path(where, Path(spec))
    if not path.exists() and path.name == str(spec) and not path.suffix:
        raise UsageError(
            f"'{spec}' is no model of this pipeline, and there is no such folder",
            hint=f"one of {', '.join(kinds)}, a path, an id, or dir:REGISTRY#TAG",
        )
    return open_model(path, kinds)


def require_kind(model: Artifact, kinds: Sequence[str]) -> Artifact:
    """The same artifact.

    Raises:
        UsageError: It is of another kind.
    """
    if model.kind not in kinds:
        raise UsageError(
            f"{model.path} is of kind '{model.kind}'", hint=f"accepted here: {', '.join(kinds)}"
        )
    return model


def open_model(path: Path, kinds: Sequence[str]) -> Artifact:
    """An artifact folder, a published folder, a bare `.gguf` or an HF folder, as an artifact.

    Raises:
        IntegrityError: There is nothing at `path`, or it is damaged.
        UsageError: The artifact there is of another kind.
    """
    path = path.resolve()
    if not path.exists():
        raise IntegrityError(
            f"{path} does not exist",
            hint=f"expected there: an artifact of kind {' or '.join(kinds)}",
        )
    if (path / artifact.MANIFEST).exists():
        source = artifact.load(path)
    elif path.suffix == ".gguf":
        source = artifact.foreign(path, "gguf")
    elif (path / "adapter_config.json").exists():
        source = artifact.foreign(path, "adapter")
    elif (path / "config.json").exists():
        source = artifact.foreign(path, "merged")
    else:
        raise IntegrityError(
            f"{path} is no artifact, no .gguf and no model folder: it has no {artifact.MANIFEST}"
        )
    return require_kind(source, kinds)
