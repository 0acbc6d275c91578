"""Find the model that a command names (path, kind, release tag, or the
config's default), verify it and open it.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slmctl import config, models
from slmctl.artifacts import artifact, lineage
from slmctl.artifacts.artifact import MANIFEST, Artifact
from slmctl.errors import IntegrityError, UsageError
from slmctl.inference import SUM
from slmctl.inference.escalation_policy import FILENAME as POLICY_FILE
from slmctl.inference.escalation_policy import Policy
from slmctl.model_files.gguf_choice import has_sum
from slmctl.pipeline import predictions
from slmctl.pipeline.graph import PREPARED, stage_class
from slmctl.pipeline.named import Workspace, find_model
from slmctl.task.contract import FILENAME, Task

if TYPE_CHECKING:
    from slmctl.inference.engine import Answering
    from slmctl.models.model import Model, OpenModel
    from slmctl.models.sum import FileInSum

# in a name of the GGUF convention: Base-1B-desk-v1.0-Q8_0
_VERSION = re.compile(r"-v(\d+(?:\.\d+)*)(?=-|$)")
AGAIN = "fetch or make it again"  # a damaged artifact may come from another machine


def served(
    where: Workspace, spec: str | None, type: str | None, *, first_look: bool = False
) -> Model:
    """A model for the own engine, or linear members, whole; for a first
    look a file of the project is in its sum.
    """
    made = find_model(where, spec, ("published", "gguf", "encoder", SUM), default="published")
    summed = _sum_of(where, made) if first_look else None
    for each in filter(None, (made, summed)):
        artifact.require_whole(each, hint=AGAIN)
    return models.of(made, type=type, sum=summed)


def _sum_of(where: Workspace, made: Artifact) -> Artifact | None:
    """The project's linear members for a model that may have some and carries none itself.

    Raises:
        UsageError: There are none, or none that helps.
    """
    if not models.class_of(made.kind).is_gguf or has_sum(made):
        return None
    summed = predictions.sum_of(where.project)
    if not predictions.has_members(summed):
        raise UsageError(
            "a first look needs linear members, and none helps the file here", hint="leave it out"
        )
    return summed


def looking_first(directory: Path, model: Model, policy: Path | None = None) -> FileInSum:
    """A model with the first step of a policy: of this one, or of the newest that was fitted on it.

    Raises:
        IntegrityError: There is no policy, or it was changed, or it is for another model.
        UsageError: The model is no GGUF file in a sum, or the policy has no first step.
    """
    from slmctl.models.sum import FileInSum

    if not isinstance(model, FileInSum) or model.task is None:
        raise UsageError(
            "a first look is for a GGUF file with linear members",
            hint="slmctl predict gguf --first-look",
        )
    if (path := policy or newest_policy(directory, model)) is None:
        raise IntegrityError(
            f"no policy was fitted on {model.path.name} in its sum", hint="slmctl calibrate"
        )
    fitted = fitted_policy(path, model.digest, model.task)
    if fitted.first is None:
        raise UsageError(
            f"the policy {path} has no first step: its linear members were not sure enough, or "
            "answer alone",
            hint="leave --first-look out",
        )
    return dataclasses.replace(model, first=fitted)


def newest_policy(directory: Path, model: Model) -> Path | None:
    """Returns the path of the newest policy that was fitted on a model's file and task, or None.

    Policies are searched below `runs/` of `directory` and of the model's own project; where there
    is none, a release has the one that it was published with.
    """
    if (task := model.task) is None:
        return None
    roots = {directory.resolve(), root_of(directory, model.artifact.path).resolve()}
    made = [
        entry
        for root in roots
        for entry in lineage.readable_artifacts(root)
        if entry.kind == "policy"
    ]
    digest, task_digest = model.digest, task.digest

    def is_fitted(path: Path) -> bool:  # on this model, and not on another type or another task
        policy = Policy.read(path)
        return (policy.gguf.removeprefix("sha256:"), policy.task) == (digest, task_digest)

    fitting = [
        entry for entry in made if entry.metrics.get("sha256") == digest and is_fitted(entry.path)
    ]
    if fitting:
        return max(fitting, key=lambda entry: entry.manifest.started).path
    own = model.artifact.path / POLICY_FILE
    return own if own.is_file() and is_fitted(own) else None


def fitted_policy(policy: Path, gguf: str, task: Task) -> Policy:
    """The policy at a path, which must be for this file and task.

    Raises:
        IntegrityError: There is none, it was changed, or it is for another file or task.
    """
    folder = policy if policy.is_dir() else policy.parent
    # a policy that was copied out of its artifact stands for itself
    if (folder / MANIFEST).exists():
        artifact.require_whole(folder)
    fitted = Policy.read(policy)
    fitted.require(gguf, task.digest)
    return fitted


@dataclass(frozen=True)
class SpokenTo:
    """A model to talk to in a terminal, with its task and its newest policy."""

    model: Model
    task: Task
    policy: Policy | None

    def load(self) -> Answering:
        from slmctl.models import documents  # with it comes numpy
        from slmctl.models.model import Loading

        loading = Loading(sequences=1, mostly_reads=self.task.mostly_reads)
        return documents.reading(self.model.load(loading), {"": self.task})


def spoken_to(where: Workspace, spec: str | None, type: str | None) -> SpokenTo:
    """The model of a path or a kind to talk to."""
    model = served(where, spec, type)
    task = model.read_task()
    newest = newest_policy(where.directory, model)
    policy = fitted_policy(newest, model.digest, task) if newest is not None else None
    return SpokenTo(model, task, policy)


def served_name(source: Artifact, path: Path) -> tuple[str, str]:
    """The name of a model for clients, and its version, '' where that is not known.

    The name is the project's, which stays while releases change; a bare `.gguf` has no project, and
    goes by its own.

    Args:
        source: A release, a gguf artifact, or a bare file.
        path: The file that answers.
    """
    facts = source.metrics if "project" in source.metrics else source.manifest.config
    match = _VERSION.search(path.stem)
    return str(facts.get("project") or path.stem), str(
        facts.get("version") or (match[1] if match else "")
    )


def contract(where: Workspace, model: str | None, served_as: str) -> tuple[Task, tuple[str, str]]:
    """The task of a model, its name and its version that another server answers with.

    Args:
        model: Any artifact of the model, or a folder with nothing but its task.
        served_as: Its name at the other server.

    Raises:
        IntegrityError: The artifact is damaged.
    """
    alone = Path(model or "")
    if model and (alone / FILENAME).is_file() and not (alone / MANIFEST).exists():
        return Task.read(alone), (served_as, "")
    source = find_model(
        where, model, ("published", "gguf", "merged", "adapter", "prepared"), default="published"
    )
    artifact.require_whole(source, hint=AGAIN)
    files = [Path(entry.path) for entry in source.files(".gguf")] or [source.path]
    return Task.read(source.path), served_name(source, files[0])


class FileModel:
    """The model that a user's file is answered with, its task, and the project where one is needed.

    Attributes:
        source: Its artifact.
        sum: The linear members beside the file, for the model `sum` and a first look; else None.
        first: The policy of a first look, the newest that was fitted on the model; else None.
    """

    def __init__(
        self,
        where: Workspace,
        model: str | None,
        type: str | None,
        *,
        max_tokens: int,
        first_look: bool = False,
    ) -> None:
        kinds = stage_class("predict").takes[0].kinds
        self._where = where
        self.sum, self.first = None, None
        if model is None and predictions.ships_sum(where.project):
            model = SUM
        if model == SUM and where.project.config.publish.tuned:
            model, self.sum = "gguf", predictions.sum_of(where.project)
        self.source = find_model(where, model, kinds, default="gguf")
        if first_look:
            self.sum = self.sum or _sum_of(where, self.source)
        for made in filter(None, (self.source, self.sum)):
            artifact.require_whole(made, hint=AGAIN)
        self.model = models.of(self.source, type=type, sum=self.sum)
        if first_look:
            looking = looking_first(where.directory, self.model)
            self.model, self.first = looking, looking.first
        self.task = self.model.task or Task.read(where.project.artifact(PREPARED).path)
        self.type = type
        self.max_tokens = max_tokens

    @functools.cached_property
    def base(self) -> Artifact | None:
        """The base that an adapter belongs on, whole; None for every other model.

        Raises:
            IntegrityError: It is damaged, or not among the project's artifacts.
        """
        if not self.model.needs_base:
            return None
        base = predictions.base_of(self._where.project, self.source)
        artifact.require_whole(base)
        return base

    def open(self) -> AbstractContextManager[OpenModel]:
        """The model in memory, on its base."""
        whole = (
            models.of(self.source, type=self.type, base=self.base)
            if self.model.needs_base
            else self.model
        )
        return whole.open(self.task, max_tokens=self.max_tokens)

    @property
    def column(self) -> str:
        """The input column of the first source of the config that names one; else `input`."""
        if not (self._where.directory / config.FILENAME).exists():
            raise UsageError("no slmctl.yaml here says which column is read", hint="--column NAME")
        sources = self._where.project.config.prepare.sources
        named = [source.input for source in sources if "input" in source.model_fields_set]
        return named[0] if named else "input"


def root_of(directory: Path, path: Path | None) -> Path:
    """Returns the project's folder of an artifact below its runs/; else `directory`."""
    if path is not None and path.resolve().parent.parent.name == "runs":
        return path.resolve().parents[2]
    return directory
