"""Find the model that a command names (path, kind, release tag, or the config's default), verify it and open it."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from slmctl.artifacts import artifact, lineage
from slmctl.artifacts.artifact import MANIFEST, Artifact
from slmctl.config.serve_section import DEFAULT
from slmctl.errors import UsageError
from slmctl.inference import ENCODER, ENSEMBLE
from slmctl.inference.escalation_policy import Policy
from slmctl.inference.events import EXPANDED
from slmctl.model_files.gguf_choice import answering_sha256, gguf_file, opinion_of
from slmctl.pipeline import predictions
from slmctl.pipeline.graph import PREPARED, Project, stage_class
from slmctl.pipeline.named import Workspace, find_model
from slmctl.task.contract import FILENAME, Task

if TYPE_CHECKING:
    from slmctl.inference.encoder_classifier import EncoderFirst
    from slmctl.inference.encoder_engine import EncoderEngine
    from slmctl.inference.engine import Answering

_VERSION = re.compile(r"-v(\d+(?:\.\d+)*)(?=-|$)")  # in a name of the GGUF convention: Base-1B-desk-v1.0-Q8_0
AGAIN = "fetch or make it again"  # what is damaged may come from elsewhere


def gguf(where: Workspace, spec: str | None, type: str | None) -> tuple[Artifact, Path]:
    """A model for the own engine, or an encoder, whole, and which of its files answers."""
    model = find_model(where, spec, ("published", "gguf", "encoder"), default="published")
    artifact.require_whole(model, hint=AGAIN)
    return model, model.file(ENCODER if model.kind == "encoder" else gguf_file(model, type).path)


class FirstLookFiles(NamedTuple):
    """An encoder and the policy of its answers, for a task."""

    encoder: Artifact
    policy: Artifact
    task: Task

    def load(self) -> EncoderFirst:
        """Both, loaded."""
        from slmctl.inference.encoder_classifier import EncoderClassifier, EncoderFirst
        from slmctl.metrics.encoder_head import EncoderModel

        encoder = EncoderClassifier(self.encoder.file(ENCODER), EncoderModel.read(self.encoder.path))
        return EncoderFirst(encoder, Policy.read(self.policy.path), self.task.labels)


def first_look(project: Project, task: Task) -> FirstLookFiles:
    """The encoder that looks first at the questions of a project's task, whole.

    Raises:
        IntegrityError: It has not been made, is damaged, or is for another task.
        UsageError: The config has no section `encode`.
    """
    encoder, policy = predictions.first_look(project)
    artifact.require_whole(encoder, hint=AGAIN)
    fitted_policy(policy.path, encoder.digest, task)
    return FirstLookFiles(encoder, policy, task)


def encoder_engine(model: Artifact) -> EncoderEngine:
    """An encoder in the place of an engine, loaded."""
    from slmctl.inference.encoder_engine import EncoderEngine
    from slmctl.metrics.encoder_head import EncoderModel

    return EncoderEngine(model.file(ENCODER), EncoderModel.read(model.path))


def sha256_of(model: Artifact, path: Path) -> str:
    """The hash of one of a model's GGUF files, as its manifest says."""
    return next(entry.sha256 for entry in model.files(".gguf") if model.file(entry.path) == path)


def answering(model: Artifact, path: Path) -> str:
    """The hash that the policy of one of a model's GGUF files is bound to: with a second opinion, of both."""
    return answering_sha256(model, next(entry for entry in model.files(".gguf") if model.file(entry.path) == path))


def newest_policy(directory: Path, model: Artifact, path: Path) -> Path | None:
    """The newest policy that was fitted on one of a model's files, and for its task; None where none was.

    Policies are searched below `runs/` of `directory` and of the model's own project.
    """
    if (task := own_task(model)) is None:
        return None
    roots = {directory.resolve(), root_of(directory, model.path).resolve()}
    made = [entry for root in roots for entry in lineage.readable_artifacts(root) if entry.kind == "policy"]
    digest = answering(model, path)
    fitting = [
        entry for entry in made
        if entry.metrics.get("sha256") == digest and Policy.read(entry.path).task == task.digest
    ]  # fmt: skip
    return max(fitting, key=lambda entry: entry.manifest.started).path if fitting else None


def fitted_policy(policy: Path, gguf: str, task: Task) -> Policy:
    """The policy at a path, which must be for this file and task.

    Raises:
        IntegrityError: There is none, it was changed, or it is for another file or task.
    """
    folder = policy if policy.is_dir() else policy.parent
    if (folder / MANIFEST).exists():  # a policy that was copied out of its artifact stands for itself
        artifact.require_whole(folder)
    fitted = Policy.read(policy)
    fitted.require(gguf, task.digest)
    return fitted


class SpokenTo(NamedTuple):
    """The GGUF file to talk to, the task it is for, its newest policy, and what loads it."""

    path: Path
    task: Task
    policy: Policy | None
    load: Callable[[], Answering]


def spoken_to(where: Workspace, model: str | None, type: str | None) -> SpokenTo:
    """The model of a path or a kind for a conversation in the terminal."""
    from slmctl.inference.engine import Engine

    source, path = gguf(where, model, type)
    if (own := own_task(source)) is not None:
        newest = newest_policy(where.directory, source, path)
        policy = fitted_policy(newest, answering(source, path), own) if newest is not None else None
        if source.kind == "encoder":
            return SpokenTo(path, own, policy, functools.partial(encoder_engine, source))
        opinion, labelled = opinion_of(source), bool(own.labels)
        load = functools.partial(Engine, path, sequences=1, classifier=labelled, opinion=opinion)
        return SpokenTo(path, own, policy, load)
    with Engine(path, sequences=1, context=128) as engine:
        return SpokenTo(path, task_in(source, path, engine)[0], None, functools.partial(Engine, path, sequences=1))


def task_in(source: Artifact, path: Path, engine: Answering) -> tuple[Task, bool, str]:
    """The task of a file that is served, whether it carries none of its own, and what raw text begins with then.

    Raises:
        UsageError: It has neither a task nor a chat template.
    """
    if (own := own_task(source)) is not None:
        return own, False, ""
    from slmctl.inference.engine import Engine

    assert isinstance(engine, Engine)  # an encoder carries its task
    template: str = engine.info["chat_template"]
    if not template:
        raise UsageError(
            f"{path.name} has no chat template, so it cannot be asked in turns", hint="serve a release that slmctl made"
        )
    controls = engine.controls()
    task = Task(
        "generate", template, "", bos_token=controls["bos"], eos_token=controls["eos"],
        special_tokens=tuple(controls["tokens"]),
    )  # fmt: skip
    return task, True, controls["bos"] if controls["adds_bos"] else ""


def own_task(source: Artifact) -> Task | None:
    """The task that a model carries; None for a bare file."""
    return Task.read(source.path) if (source.path / FILENAME).exists() else None


@dataclass(frozen=True)
class ServedName:
    """The names of a model for clients: the project's, which stays while releases change, and others that mean it."""

    name: str
    aliases: tuple[str, ...] = (DEFAULT,)
    version: str = ""


def served_name(source: Artifact, path: Path) -> ServedName:
    """The names of one file of a release, of a gguf artifact, or of a bare `.gguf`, which has no project."""
    facts = source.metrics if source.kind == "published" else source.manifest.config
    project, version = str(facts.get("project") or ""), str(facts.get("version") or "")
    match = _VERSION.search(path.stem)
    others = tuple(name for name in (DEFAULT, path.stem) if name != (project or path.stem))
    return ServedName(project or path.stem, others, version or (match[1] if match else ""))


def contract(where: Workspace, model: str | None, served_as: str) -> tuple[Task, ServedName]:
    """The task and the names of a model that another server answers with.

    Args:
        where: Where the command works.
        model: Any artifact of the model, or a folder with nothing but its task.
        served_as: Its name at the other server.

    Raises:
        IntegrityError: The artifact is damaged.
    """
    alone = Path(model or "")
    if model and (alone / FILENAME).is_file() and not (alone / MANIFEST).exists():
        return Task.read(alone), ServedName(served_as)
    source = find_model(where, model, ("published", "gguf", "merged", "adapter", "prepared"), default="published")
    artifact.require_whole(source, hint=AGAIN)
    files = [Path(entry.path) for entry in source.files(".gguf")] or [source.path]
    named = served_name(source, files[0])
    return Task.read(source.path), ServedName(named.name, (DEFAULT,), named.version)


def other_build(source: Artifact, path: Path, build: str) -> str:
    """A note where the engine is another build than the one that measured this file; empty where it is the same."""
    measured, used = source.manifest.environment.get("llama_cpp_python"), build.removesuffix(EXPANDED)
    report = source.path / "report.json"
    if report.is_file():
        models = json.loads(report.read_bytes())["models"].values()
        builds = [entry.get("engine") for entry in models if entry.get("sha256") == sha256_of(source, path)]
        measured, used = builds[0] if builds else None, build
    if not measured or measured == used:
        return ""
    return f"this engine is llama-cpp-python {used}, and {path.name} was measured with {measured}: measure it again"


class FileModel:
    """The model that a user's file is answered with, its task, and the project where one is needed.

    Attributes:
        encoder: The encoder whose opinion is added to the model's, where that is asked for.
    """

    def __init__(self, where: Workspace, model: str | None, type: str | None, *, max_tokens: int) -> None:
        from slmctl.pipeline import linear_file

        kinds = stage_class("predict").takes[0].kinds
        self._where = where
        self.encoder = predictions.encoder_of(where.project) if model == ENSEMBLE else None
        model = "gguf" if model == ENSEMBLE else model
        if model == linear_file.KIND:
            self.model = artifact.foreign(linear_file.written(where.project), linear_file.KIND)
        else:
            self.model = find_model(where, model, kinds, default="gguf")
        for made in filter(None, (self.model, self.encoder)):
            artifact.require_whole(made, hint=AGAIN)
        self.task = own_task(self.model) or Task.read(where.project.artifact(PREPARED).path)
        self.type = type
        self.max_tokens = max_tokens

    @functools.cached_property
    def base(self) -> Artifact | None:
        """The base that an adapter belongs on, whole; None for every other model.

        Raises:
            IntegrityError: It is damaged, or not among the project's artifacts.
        """
        if self.model.kind != "adapter":
            return None
        base = predictions.base_of(self._where.project, self.model)
        artifact.require_whole(base)
        return base

    @property
    def column(self) -> str:
        """The column that the config's sources ask: that of the first one that names it."""
        sources = self._where.project.config.prepare.sources
        named = [source.input for source in sources if "input" in source.model_fields_set]
        return named[0] if named else "input"


def root_of(directory: Path, path: Path | None) -> Path:
    """The project's folder: that of an artifact below runs/, else the one worked in."""
    if path is not None and path.resolve().parent.parent.name == "runs":
        return path.resolve().parents[2]
    return directory
