"""A project's stages and artifacts: which recipe the config asks for, and where its inputs are."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from slmctl import config
from slmctl.artifacts import artifact, lineage
from slmctl.artifacts.artifact import Artifact
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.errors import IntegrityError, Reason, SlmctlError, UsageError
from slmctl.model_files.model_shape import ModelShape
from slmctl.pipeline import LEAVES, PATH_ID
from slmctl.pipeline.estimates import KnownSizes, RowEstimate, StageEstimate

STAGE_OF = {kind: name for name, kind in LEAVES.items()}
Inputs = dict[str, Artifact | list[Artifact]]  # by role
# finds an artifact in a plan, finds or makes it in a run
Get = Callable[["StageRequest"], Artifact]
SectionT = TypeVar("SectionT", bound=config.Section)


@dataclass(frozen=True)
class Role:
    """One input of a stage: its kinds of artifacts, if it may be absent or
    a list, and the field that asks for it.
    """

    name: str
    kinds: tuple[str, ...]
    optional: bool = False
    many: bool = False
    when: str = ""  # a field of the stage's section that asks for it


BASE, PREPARED = Role("base", ("base",)), Role("prepared", ("prepared",))
ENGINE = ("llama_cpp", "llguidance")  # packages that answer with a GGUF file
LABELLED = Role("labelled", ("labelled",), when="label")


class Doubt(NamedTuple):
    """A reason not to run a stage, in words, with more lines for people,
    the question to ask them, and a hint.
    """

    text: str
    reason: Reason
    lines: tuple[str, ...]
    question: str
    hint: str


class Stage(Generic[SectionT]):
    """One stage of a project; `slmctl/stages/NAME/stage.py` holds the subclass, and imports nothing
    heavy.

    Attributes:
        name: The subcommand, the section of the config, the folder below `slmctl/stages`.
        takes: Its inputs.
        waits_for: Kinds of artifacts that its inputs are made of, where `takes` does not name them.
        version: Raise it when the same recipe should give another result.
        imports: Packages that it cannot do without, whatever the config asks for.
        uses: Distributions whose versions go into the manifest.
        resumes: It continues an unfinished run of the same recipe.
        fetches_once: It needs the network only as long as its artifact is not there.
        made_once: The reason why its artifacts cannot be built again; empty where they can.
        stands: Its artifact is a result also where a gate failed.
        tunes: It makes the fine-tuned model, which a release of linear members does without.
        on_page: The page of the report shows its artifact.
    """

    name: ClassVar[str]
    takes: ClassVar[tuple[Role, ...]] = ()
    waits_for: ClassVar[tuple[str, ...]] = ()
    version: ClassVar[int] = 1
    imports: ClassVar[tuple[str, ...]] = ()
    uses: ClassVar[tuple[str, ...]] = ()
    resumes: ClassVar[bool] = False
    fetches_once: ClassVar[bool] = False
    made_once: ClassVar[str] = ""
    stands: ClassVar[bool] = False
    tunes: ClassVar[bool] = False
    on_page: ClassVar[bool] = False

    def __init__(self, project: Project) -> None:
        self.project = project

    @property
    def id(self) -> str:
        return f"{self.name}/{self.version}"

    @property
    def leaves(self) -> str:
        """The kind of its artifacts."""
        return LEAVES[self.name]

    @property
    def module(self) -> str:
        """The module with its `run`, imported only when it runs."""
        return f"slmctl.stages.{self.name}.{self.name}"

    # The recipe

    @property
    def settings(self) -> SectionT:
        """Its section of the config, with the keys that the section inherits from the top level."""
        section: Any = config.stage_config(self.project.config, self.name)
        return section

    def completed(self, section: SectionT) -> SectionT:
        """Returns the section with local files for its sources, its key and its base, and numbers
        for `auto`.

        Raises:
            IntegrityError: A source that is not a file has no local copy, or the rows that decide
                are not prepared.
            UsageError: A source or the base cannot be used.
        """
        return section

    def inputs(self, section: SectionT, get: Get, filled: Inputs) -> Inputs:
        """Artifacts for its roles; those in `filled` are not looked up.

        Raises:
            IntegrityError: An artifact has not been made yet, or is damaged.
        """
        filled = dict(filled)
        for role in self.takes:
            if (
                role.name not in filled
                and not role.optional
                and not role.many
                and self.asks_for(role, section)
            ):
                filled[role.name] = self.project.artifact(role)
        return filled

    def asks_for(self, role: Role, section: SectionT) -> bool:
        """True unless a setting that is off, or an artifact that
        nobody named, would ask for a role.
        """
        return bool(not role.when or getattr(section, role.when) or role.name in self.project.named)

    def needs_base(self) -> bool:
        """False where it, and all that it is made of, does without the base model."""
        return not self.project.config.publish.linear

    def request(
        self,
        filled: Mapping[str, Artifact | list[Artifact]] | None = None,
        section: SectionT | None = None,
        *,
        get: Get | None = None,
        alone: bool = False,
    ) -> StageRequest:
        """The stage with its config, every input, and the recipe of both.

        Args:
            filled: Artifacts for roles that should not be looked up.
            section: A config to use in place of the project's.
            get: Finds or makes the artifacts of other requests; by default they are only found.
            alone: Nothing but `filled` goes in.

        Raises:
            IntegrityError: An input has not been made yet, or is damaged.
            UsageError: A source file does not exist.
        """
        section = self.completed(section or self.settings)
        filled = dict(filled or {})
        if not alone:
            filled = self.inputs(
                section, get or functools.partial(self.project.found, asker=self.name), filled
            )
        recipe = config.recipe(section)
        recipe_id = artifact.recipe_of(self.id, recipe, _digests(filled))
        path = self.project.runs / self.leaves / recipe_id.removeprefix("sha256:")[:PATH_ID]
        return StageRequest(self, section, recipe, filled, recipe_id, path)

    def default(self) -> StageRequest:
        """The request for the current artifact of its kind; raises what `request` raises."""
        return self.request()

    def current(self) -> Iterator[StageRequest]:
        """Every request that the config makes of it; raises what `request` raises."""
        yield self.default()

    def not_made(self, request: StageRequest, asker: str) -> IntegrityError:
        """The error about an artifact that has not been made; it names one that differs in its
        settings alone.

        Args:
            request: For the artifact.
            asker: The stage or kind that wants it.
        """
        text = (
            f"no current artifact '{self.leaves}': stage {self.name} has not run with this "
            "config and data"
        )
        others = other_settings(self.project, request)
        if not others:
            begun = bool(lineage.folders(self.project.root))
            return IntegrityError(
                text, hint=f"slmctl run --until {self.name}" if begun else "slmctl run"
            )
        latest_first = sorted(others, key=lambda entry: entry[0].manifest.started, reverse=True)
        other, changed = min(latest_first, key=lambda entry: len(entry[1]))
        sets = [
            f"--set {shlex.quote(f'{key}={json.dumps(value, ensure_ascii=False)}')}"
            for key, value in changed.items()
            if _can_be_set(value)
        ]
        whole = len(sets) == len(changed)
        back = (
            f"for that one: {' '.join(sets)}, or these in slmctl.yaml; for a new one: "
            if whole
            else ""
        )
        place = other.path.relative_to(self.project.root)
        return IntegrityError(
            f"{text}; there is one with other settings ({', '.join(changed)}): {place}",
            hint=f"{back}slmctl run --until {self.name}",
        )

    # Known before it costs anything

    def packages(self) -> Iterable[str]:
        """Packages that the config makes it need, in addition to `imports`."""
        return ()

    @property
    def converts(self) -> bool:
        """True if it needs the GGUF converter."""
        return False

    def require_offline(self) -> None:
        """Raises, with `--offline`, if the config makes the stage use the network."""

    def checkable(self) -> SectionT | None:
        """The part of its section that can be checked before anything is
        copied or made; None where nothing can.
        """
        return self.completed(self.settings)

    def files(self) -> str:
        """Check every path that the config names for it; returns the state in words, or an empty
        text.

        Raises:
            SlmctlError: A path does not exist, or does not hold what the config says.
        """
        section = self.checkable()
        if section is None:
            return ""
        for path in config.contents(section):
            config.require_path(path)
        return self.checked(section)

    def checked(self, section: SectionT) -> str:
        """Check the content of the files in a section; returns the state in
        words, or ''. Raises as `files` does.
        """
        return ""

    def checks(self) -> Mapping[str, Callable[[], str]]:
        """Further checks by name of the requirement; each returns its
        state in words, or raises an error.
        """
        return {}

    def downloads(self, shape: ModelShape | None) -> Iterator[tuple[str, int | None]]:
        """Sources that it fetches, and their sizes where these are known without asking."""
        yield from ()

    def refusals(self, rows: RowEstimate) -> Iterator[SlmctlError]:
        """Reasons why it surely fails on these rows: too few, or too long."""
        yield from ()

    def notes(self, shape: ModelShape | None) -> Iterator[tuple[str, str]]:
        """Names and sentences of things that may stop it, which nobody can be sure of before."""
        yield from ()

    def choices(self, sizes: KnownSizes) -> str:
        """Settings that it chooses by the rows and the base, with their
        reason; '' where the config says all.
        """
        return ""

    def cost(self, sizes: KnownSizes) -> StageEstimate:
        """Its disk, memory and time, from the sizes of the base and the
        rows; see `label --plan` for a teacher's.
        """
        return StageEstimate(disk_bytes=0)

    def took(self, made: Artifact, whole: Sequence[Artifact]) -> float | None:
        """Seconds of the work that `cost` estimates, of an artifact with its
        ancestry; None where it was other work.
        """
        return made.manifest.seconds

    def doubt(self) -> Doubt | None:
        """A reason not to run it, about which people are asked."""
        return None

    # The run

    def import_first(self) -> None:
        """Import a package that must come before all others."""

    def before(self) -> None:
        """Make files and artifacts that must exist before its inputs are looked up."""

    def options(self) -> Mapping[str, object]:
        """Keywords of its `run` that are no part of the recipe."""
        return {}

    def run(self, request: StageRequest, *, out: Path, **more: Any) -> JsonObject:
        """Fill the empty folder `out`, and return the metrics."""
        module = importlib.import_module(self.module)
        metrics: JsonObject = module.run(request.section, out=out, **more, **request.inputs)
        return metrics

    def after(self, made: Artifact, *, current: bool) -> None:
        """Print or send its artifact; `current` if the artifact existed before."""

    def page(self, made: Artifact, policy: Artifact, path: Path) -> None:
        """Write the page of its artifact with what a policy keeps; a report's stage has one."""
        raise NotImplementedError


@dataclass(frozen=True)
class StageRequest:
    """A stage with its config, its inputs, the recipe of both and the
    path of the artifact that it leaves.
    """

    stage: Stage[Any]
    section: config.Section
    recipe: JsonObject
    inputs: Inputs
    recipe_id: str
    path: Path

    @property
    def digests(self) -> dict[str, str | list[str]]:
        return _digests(self.inputs)

    @property
    def sources(self) -> list[Artifact]:
        """All artifacts among the inputs."""
        return [
            made
            for value in self.inputs.values()
            for made in (value if isinstance(value, list) else [value])
        ]


@dataclass
class Project:
    """A folder with a config, and its artifacts below `runs/`."""

    root: Path
    config: config.Config
    wait: bool = True
    on_wait: Callable[[str], None] = lambda holder: None
    named: dict[str, Artifact] = field(default_factory=dict)  # what the user named, by role
    _current: dict[str, Artifact] = field(default_factory=dict)

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def sources(self) -> Path:
        """The folder of copies of sources that are not files."""
        return self.runs / ".sources"

    @property
    def encoders(self) -> Path:
        """The folder of encoders that were fetched, which data sets share."""
        return self.runs / ".encoders"

    @property
    def journals(self) -> Path:
        """The folder of teachers' requests and answers, which `gc`
        never removes: they were paid for.
        """
        return self.runs / ".teachers"

    def stage(self, name: str) -> Stage[Any]:
        """A stage of this project by its name."""
        return stage_class(name)(self)

    def request(self, name: str) -> StageRequest:
        """The request that the config makes of a stage; raises what `Stage.request` raises."""
        return self.stage(name).default()

    def artifact(self, role: Role | str) -> Artifact:
        """The artifact of a role, or of a kind: the one that the user named, else the one of the
        config's recipes.

        Raises:
            IntegrityError: It has not been made yet, or is damaged.
        """
        role = Role(role, (role,)) if isinstance(role, str) else role
        if role.name in self.named:
            return self.named[role.name]
        kind = role.kinds[0]
        if kind not in self._current:
            self._current[kind] = self.found(self.request(STAGE_OF[kind]))
        return self._current[kind]

    def found(self, request: StageRequest, *, asker: str = "") -> Artifact:
        """The artifact of a request; raises an IntegrityError where it has not been made."""
        if not request.path.exists():
            raise request.stage.not_made(request, asker)
        return artifact.load(request.path)

    def is_made(self, kind: str) -> bool:
        """True if the current artifact of a kind exists."""
        with contextlib.suppress(IntegrityError, UsageError):
            self.artifact(kind)
            return True
        return False

    def has_base(self) -> bool:
        """True if a base is named, or if the one of the config is here."""
        with contextlib.suppress(UsageError):  # such as a folder that is not there
            return BASE.name in self.named or self.request("pull").path.exists()
        return False

    def forget(self) -> None:
        """Forget which artifacts are current, so that they are looked up again."""
        self._current.clear()


def stage_class(name: str) -> type[Stage[Any]]:
    """The class of a stage: the only place that turns a name into code."""
    stage: type[Stage[Any]] = importlib.import_module(f"slmctl.stages.{name}.stage").STAGE
    return stage


def _digests(inputs: Mapping[str, Artifact | list[Artifact]]) -> dict[str, str | list[str]]:
    return {
        role: [made.digest for made in value] if isinstance(value, list) else value.digest
        for role, value in inputs.items()
    }


def _can_be_set(value: object) -> bool:
    """True for a value that --set takes: neither a list nor the hash of a file's content."""
    return isinstance(value, bool | int | float | str) and not str(value).startswith("sha256:")


def other_settings(project: Project, request: StageRequest) -> list[tuple[Artifact, JsonObject]]:
    """Artifacts of the same stage and inputs with another config: the keys of slmctl.yaml that
    differ, with their values there.
    """
    name = request.stage.name
    top = {key for section, key in config.inherited_keys() if section == name}
    others = []
    for folder in sorted((project.runs / request.stage.leaves).glob("*")):
        other = lineage.opened(folder)
        if not isinstance(other, Artifact) or other.manifest.stage != request.stage.id:
            continue
        changed = config.changed_keys(type(request.section), request.recipe, other.manifest.config)
        if changed and other.manifest.inputs == request.digests:
            keys = {
                key if key.partition(".")[0] in top else f"{name}.{key}": value
                for key, value in changed.items()
            }
            others.append((other, keys))
    return others
