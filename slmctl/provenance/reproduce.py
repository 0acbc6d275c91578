"""Build an artifact again from its manifest, and compare: the same bytes, or the differences and
their likely cause.

The manifest names inputs by digest and sources by content hash, so both are searched by hash:
inputs among the artifacts below `runs/`; sources among `--source`, the copies in `runs/.sources/`
and the files of the config.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmctl import config, models
from slmctl.artifacts import artifact, atomic, lineage
from slmctl.artifacts.artifact import Artifact
from slmctl.errors import IntegrityError, SlmctlError, UsageError
from slmctl.pipeline import LEAVES, runner
from slmctl.pipeline.graph import STAGE_OF, Project
from slmctl.pipeline.named import open_model
from slmctl.provenance import diff
from slmctl.sources import snapshot

PREFIX = ".reproduce-"  # of the temporary folder with the rebuilt artifact
# keys of `environment` that cannot change the result
_NO_CAUSE = ("hosts_contacted", "bytes_out", "not_counted")


@dataclass(frozen=True)
class Reproduction:
    """The comparison of a rebuilt artifact with the recorded one.

    Attributes:
        recorded, rebuilt: Digests of both.
        files: Files that differ: `key` is the path, `first` the recorded sha256, `second` the
            rebuilt one.
        recipe: Differences in the recipe, such as the stage's version.
        environment: Differences in versions and machine.
    """

    kind: str
    recorded: str
    rebuilt: str
    files: list[diff.FieldChange] = field(default_factory=list)
    recipe: list[diff.FieldChange] = field(default_factory=list)
    environment: list[diff.FieldChange] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """True if all files are equal."""
        return self.recorded == self.rebuilt

    def to_json(self) -> dict[str, Any]:
        return {"same": self.same, **dataclasses.asdict(self)}


def reproduce(project: Project, made: Artifact, sources: Sequence[Path] = ()) -> Reproduction:
    """Build an artifact again in a temporary folder, compare it, and remove it.

    Args:
        sources: Further files and folders in which sources are searched by hash.

    Raises:
        IntegrityError: The artifact is damaged, or an input or source is missing.
        UsageError: It cannot be rebuilt: slmctl did not make it, or an endpoint answered.
        SlmctlError: See the artifact's stage.
    """
    artifact.require_whole(made, hint="there is nothing to compare with")
    name = made.manifest.stage.partition("/")[0]
    if name not in LEAVES:
        raise UsageError(
            f"{made.path} was made by '{made.manifest.stage}', which is no stage of this slmctl"
        )
    stage = project.stage(name)
    if stage.made_once:
        raise UsageError(f"{made.path} {stage.made_once}", hint="slmctl verify")
    inputs = _inputs(project, made, sources)
    project.runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=project.runs) as place:
        section = _section(project, made, name, sources, Path(place))
        request = stage.request(inputs, section)
        beside = dataclasses.replace(
            request, path=Path(place) / request.stage.leaves / request.path.name
        )
        rebuilt = runner.run(project, beside).artifact
        return Reproduction(
            made.kind,
            made.digest,
            rebuilt.digest,
            files=diff.changes(_hashes(made), _hashes(rebuilt)),
            recipe=diff.changes(_recipe(made), _recipe(rebuilt)),
            environment=diff.changes(_environment(made), _environment(rebuilt)),
        )


def lines(outcome: Reproduction) -> Iterator[str]:
    """The outcome as text."""
    if outcome.same:
        yield f"the same: {outcome.kind} {outcome.recorded}"
        return
    yield f"not the same: {outcome.kind} {outcome.recorded} -> {outcome.rebuilt}"
    yield from (
        f"  file {row['key']}: {_short(row['first'])} -> {_short(row['second'])}"
        for row in outcome.files
    )
    yield from (
        f"  recipe {row['key']}: {row['first']} -> {row['second']}" for row in outcome.recipe
    )
    yield from (
        f"  environment {row['key']}: {row['first']} -> {row['second']}"
        for row in outcome.environment
    )
    if not (outcome.recipe or outcome.environment):
        yield (
            "  recipe and versions are the same: the processor, the number of threads or chance "
            "made the difference"
        )


def _short(sha256: object) -> str:
    return str(sha256)[:12] if sha256 else "missing"


# Inputs and sources


def _inputs(
    project: Project, made: Artifact, named: Sequence[Path]
) -> dict[str, Artifact | list[Artifact]]:
    """The recorded inputs by role, found by digest."""
    by_digest = {made.digest: made for made in lineage.readable_artifacts(project.root)}
    for path in named:  # a foreign model
        if (
            path.suffix == ".gguf"
            or (path / "config.json").exists()
            or (path / "adapter_config.json").exists()
        ):
            model = open_model(path, ("gguf", "adapter", "merged"))
            by_digest.setdefault(model.digest, model)

    def input_of(role: str, digest: str) -> Artifact:
        if digest in by_digest:
            return by_digest[digest]
        if role == "model" and models.class_of(made.metrics.get("kind", "")).is_remote:
            raise UsageError(
                f"{made.path} holds predictions of an endpoint, which cannot be reproduced"
            )
        stage = STAGE_OF.get(role)
        raise IntegrityError(
            f"{role} {digest[:19]}, an input of {made.path}, is not below {project.runs}",
            hint=f"slmctl run --until {stage}"
            if stage
            else "name a foreign model by --source PATH",
        )

    return {
        role: [input_of(role, digest) for digest in value]
        if isinstance(value, list)
        else input_of(role, value)
        for role, value in made.manifest.inputs.items()
    }


def _section(
    project: Project, made: Artifact, name: str, named: Sequence[Path], place: Path
) -> config.Section:
    """The recorded config with a path for every content hash; source
    files get the names that they had then.
    """
    model = type(config.stage_config(project.config, name))
    sources = _Sources(project, named)
    section = config.restored(model, made.manifest.config, sources.find)
    if isinstance(section, config.PrepareConfig):
        wholes = {part.local: part.whole for part in _parts(project)}
        # a last, further entry of the metrics is a teacher's labels, which are an input
        renamed = [
            source.at(
                _renamed(source.local, place / f"source-{k}", _file_name(source, listed)),
                whole=wholes.get(source.local, ""),
            )
            for k, (source, listed) in enumerate(
                zip(section.sources, made.metrics["sources"], strict=False)
            )
        ]
        section = section.model_copy(update={"sources": renamed})
    if isinstance(section, config.PullConfig) and not config.is_remote(section.base):
        base = _renamed(Path(section.base), place / "source", str(made.metrics["source"]))
        section = section.model_copy(update={"base": str(base)})
    if isinstance(section, config.PullConfig) and made.metrics.get("template_date"):
        section = section.model_copy(update={"template_date": made.metrics["template_date"]})
    return section


def _file_name(source: config.Source, listed: Mapping[str, Any]) -> str:
    """The name that a source's file had when it was read, from the recorded metrics."""
    title = str(listed["file"])
    # `name` was recorded in place of the file's name, which matters only by its suffix
    if source.name is not None:
        return "source" + "".join(source.local.suffixes[-2:])
    return title.removesuffix(f":{source.sheet}") if source.sheet else title


def _renamed(path: Path, folder: Path, name: str) -> Path:
    """A link or copy of a file or folder with another name, in the new folder `folder`."""
    folder.mkdir()
    target = folder / Path(name).name
    if path.is_dir():
        target.symlink_to(path.resolve(), target_is_directory=True)
        return target
    atomic.link(path, target)
    return target


class _Sources:
    """Files and folders by content hash; they are hashed one by one until a hash is found."""

    def __init__(self, project: Project, named: Sequence[Path]) -> None:
        parts = [part.local for part in _parts(project)]
        held = [*named, *_files(project.sources), *parts, *config.contents(project.config)]
        self._left = iter([*held, *(file for path in named for file in _files(path))])
        self._by_hash: dict[str, Path] = {}

    def find(self, sha256: str) -> Path:
        """The path of the file or folder with this content hash.

        Raises:
            IntegrityError: No file has it.
        """
        for path in self._left if sha256 not in self._by_hash else ():
            if path.exists():
                own = artifact.fingerprint(path)
                self._by_hash.setdefault(own, path)
                if own == sha256:
                    break
        if sha256 not in self._by_hash:
            raise IntegrityError(
                f"no file here has the hash {sha256[:19]}, which is needed",
                hint="name the file: --source PATH",
            )
        return self._by_hash[sha256]


def _parts(project: Project) -> Iterator[config.Source]:
    """The existing files of the present config's sources."""
    for source in project.config.prepare.sources:
        with contextlib.suppress(SlmctlError):  # `find` reports a missing file by its hash
            yield from snapshot.gathered([source], project.sources)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []


# The compared parts of a manifest


def _hashes(made: Artifact) -> dict[str, Any]:
    return {entry.path: entry.sha256 for entry in made.manifest.files}


def _recipe(made: Artifact) -> dict[str, Any]:
    return {"stage": made.manifest.stage} | diff.flat(made.manifest.config)


def _environment(made: Artifact) -> dict[str, Any]:
    return {
        key: value
        for key, value in diff.flat(made.manifest.environment).items()
        if key not in _NO_CAUSE
    }
