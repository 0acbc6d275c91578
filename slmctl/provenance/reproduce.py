"""An artifact built again from what its manifest records: the same bytes, or what differs and why.

The manifest names inputs by digest and sources by the hash of what they hold, so they are looked for by hash:
inputs among the artifacts below `runs/`, sources among the files that are named again, the copies in
`runs/.sources/` and the files that the present config names.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmctl import config
from slmctl.artifacts import artifact, lineage
from slmctl.artifacts.artifact import Artifact
from slmctl.errors import IntegrityError, UsageError
from slmctl.pipeline import resolve, runner, stage_table
from slmctl.provenance import diff

PREFIX = ".reproduce-"  # of the folder that a rebuilt artifact lies in until it has been compared
_NO_REASON = ("hosts_contacted", "bytes_out", "not_counted")  # of an environment: they change no byte


@dataclass(frozen=True)
class Reproduction:
    """What came of it.

    Attributes:
        same: Whether every file is the same.
        files: Those that are not: `key` is the path, `first` the sha256 recorded, `second` that of now.
        recipe: What is asked differently today, such as the stage's version.
        environment: Versions and machine that are not what they were.
    """

    kind: str
    recorded: str
    rebuilt: str
    files: list[dict[str, Any]] = field(default_factory=list)
    recipe: list[dict[str, Any]] = field(default_factory=list)
    environment: list[dict[str, Any]] = field(default_factory=list)

    @property
    def same(self) -> bool:
        return self.recorded == self.rebuilt

    def to_json(self) -> dict[str, Any]:
        return {"same": self.same, **dataclasses.asdict(self)}


def reproduce(project: resolve.Project, made: Artifact, sources: Sequence[Path] = ()) -> Reproduction:
    """Build an artifact again, beside it, compare, and remove what was built.

    Args:
        project: Where its inputs lie.
        made: The artifact.
        sources: Files and folders that it was made of, where they are not found by themselves.

    Raises:
        IntegrityError: It is damaged, or something that it was made of is gone.
        UsageError: It cannot be built from files: slmctl did not make it, or an endpoint answered.
        And what its stage raises.
    """
    faults = artifact.verify(made)
    if faults:
        raise IntegrityError(f"{made.path} is damaged: {'; '.join(faults)}", hint="there is nothing to compare with")
    name = made.manifest.stage.partition("/")[0]
    if name not in stage_table.STAGES:
        raise UsageError(f"{made.path} was made by '{made.manifest.stage}', which is no stage of this slmctl")
    inputs = _inputs(project, made, sources)
    project.runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=project.runs) as place:
        section = _section(project, made, name, sources, Path(place))
        asked = resolve.ask(project, name, inputs, section)
        beside = dataclasses.replace(asked, path=Path(place) / asked.stage.leaves / asked.path.name)
        rebuilt = runner.run(project, beside).artifact
        return Reproduction(
            made.kind,
            made.digest,
            rebuilt.digest,
            files=diff.changes(_hashes(made), _hashes(rebuilt)),
            recipe=diff.changes(_asked(made), _asked(rebuilt)),
            environment=diff.changes(_environment(made), _environment(rebuilt)),
        )


def lines(found: Reproduction) -> Iterator[str]:
    """The outcome for people."""
    if found.same:
        yield f"the same: {found.kind} {found.recorded}"
        return
    yield f"not the same: {found.kind} {found.recorded} became {found.rebuilt}"
    yield from (f"  file {one['key']}: {_word(one['first'])} became {_word(one['second'])}" for one in found.files)
    yield from (f"  asked {one['key']}: {one['first']} became {one['second']}" for one in found.recipe)
    yield from (f"  environment {one['key']}: {one['first']} became {one['second']}" for one in found.environment)
    if not (found.recipe or found.environment):
        yield "  asked the same of the same versions: the processor, its threads or chance made the difference"


def _word(sha256: str | None) -> str:
    return sha256[:12] if sha256 else "nothing"


# What it was made of


def _inputs(project: resolve.Project, made: Artifact, given: Sequence[Path]) -> dict[str, Artifact | list[Artifact]]:
    by_digest = {one.digest: one for one in lineage.known(project.root)}
    for path in given:  # a bare .gguf or an HF folder that stood in for an artifact
        if path.suffix == ".gguf" or (path / "config.json").exists() or (path / "adapter_config.json").exists():
            found = resolve.open_model(path, ("gguf", "adapter", "merged"))
            by_digest.setdefault(found.digest, found)

    def one(role: str, digest: str) -> Artifact:
        if digest in by_digest:
            return by_digest[digest]
        if made.metrics.get("kind") == "endpoint" and role == "model":
            raise UsageError(f"{made.path} holds answers of an endpoint, which cannot be had again")
        stage = stage_table.BY_KIND.get(role)
        raise IntegrityError(
            f"{role} {digest[:19]}, which {made.path} was made of, is not below {project.runs}",
            hint=f"slmctl run --until {stage.name}" if stage else "name a model that is no artifact by --source PATH",
        )

    return {
        role: [one(role, digest) for digest in value] if isinstance(value, list) else one(role, value)
        for role, value in made.manifest.inputs.items()
    }


def _section(project: resolve.Project, made: Artifact, name: str, given: Sequence[Path], place: Path) -> config.Section:
    """The config as it was recorded, with a path for every hash, under the name that the file then had."""
    model = type(config.stage_config(project.config, name))
    found = _Sources(project, given)
    section = config.restored(model, made.manifest.config, found.find)
    if isinstance(section, config.PrepareConfig):
        named = [
            source.model_copy(update={"path": _named(source.local, place / f"source-{k}", _file_name(source, listed))})
            for k, (source, listed) in enumerate(zip(section.sources, made.metrics["sources"], strict=True))
        ]
        section = section.model_copy(update={"sources": named})
    if isinstance(section, config.PullConfig) and not config.is_remote(section.base):
        base = _named(Path(section.base), place / "source", str(made.metrics["source"]))
        section = section.model_copy(update={"base": str(base)})
    return section


def _file_name(source: config.Source, listed: Mapping[str, Any]) -> str:
    """What a source's file was called; its records are."""
    title = str(listed["file"])
    if source.name is not None:  # it had a name of its own; only the end of the file's counts
        return "source" + "".join(source.local.suffixes[-2:])
    return title.removesuffix(f":{source.sheet}") if source.sheet else title


def _named(found: Path, folder: Path, name: str) -> Path:
    """A file or folder under another name."""
    folder.mkdir()
    target = folder / Path(name).name
    if found.is_dir():
        target.symlink_to(found.resolve(), target_is_directory=True)
        return target
    try:
        os.link(found, target)
    except OSError:  # another file system
        shutil.copyfile(found, target)
    return target


class _Sources:
    """Files and folders by the hash of what they hold; each is hashed when it is first needed."""

    def __init__(self, project: resolve.Project, given: Sequence[Path]) -> None:
        self._left = iter([*given, *_files(project.sources), *config.contents(project.config)])
        self._known: dict[str, Path] = {}

    def find(self, sha256: str) -> Path:
        """The path of what holds this.

        Raises:
            IntegrityError: It is gone.
        """
        for path in self._left if sha256 not in self._known else ():
            if path.exists():
                own = artifact.fingerprint(path)
                self._known.setdefault(own, path)
                if own == sha256:
                    break
        if sha256 not in self._known:
            raise IntegrityError(
                f"a file that holds {sha256[:19]} is needed and is not here", hint="name it again: --source PATH"
            )
        return self._known[sha256]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []


# What differs


def _hashes(one: Artifact) -> dict[str, Any]:
    return {entry.path: entry.sha256 for entry in one.manifest.files}


def _asked(one: Artifact) -> dict[str, Any]:
    return {"stage": one.manifest.stage} | diff.flat(one.manifest.config)


def _environment(one: Artifact) -> dict[str, Any]:
    return {key: value for key, value in diff.flat(one.manifest.environment).items() if key not in _NO_REASON}
