"""The plan of a run, before it costs anything: its stages, their requirements, and the ones that
are not met.

Nothing is fetched, trained or written. A recipe is known where all inputs exist; every stage after
the first one that will run will run too. Figures are estimates, and None where nothing is known.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from slmctl import config, console
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.errors import FullError, GateError, MissingError, SlmctlError
from slmctl.installation import WITHOUT_MODEL, is_installed, pip_line
from slmctl.model_files import catalogue, gguf_converter
from slmctl.model_files.base_model import Base
from slmctl.model_files.model_shape import ModelShape
from slmctl.network import guard
from slmctl.pipeline import row_estimate, runner
from slmctl.pipeline.estimates import KnownSizes, RowEstimate
from slmctl.pipeline.graph import BASE, PREPARED, Project, Stage
from slmctl.pipeline.measured_times import MeasuredTimes
from slmctl.pipeline.system_errors import extras_of

Stages = Sequence[Stage[Any]]
LESS_DISK = (
    "slmctl gc lists what nothing needs; or take another folder, a smaller base, fewer "
    "quantize.types"
)
SPARE = 1.1  # of the disk: reports, journals, blocks that are not full


@dataclass(frozen=True)
class StagePlan:
    """One stage of a plan; disk, memory and time come from its `StageEstimate`.

    Attributes:
        current: Its artifact exists; nothing will be done.
        path: The artifact's place below the project; empty while its recipe is not known.
    """

    name: str
    current: bool
    path: str = ""
    disk_bytes: int | None = None
    memory_bytes: int | None = None
    seconds: float | None = None
    measured: bool = False


@dataclass(frozen=True)
class Requirement:
    """Something that a run needs or chooses: its name, its state in words, and the error where it
    is not met.

    Attributes:
        note: It may stop the run, which nobody can be sure of before.
    """

    name: str
    state: str
    error: SlmctlError | None = None
    note: bool = False


@dataclass(frozen=True)
class RunPlan:
    """The stages of a run, in order, and what they need.

    Attributes:
        download: The base or source that is fetched, such as `pypi:NAME==1.0`, with its bytes where
            they are known.
        rows: Rows of the sources, and held-out rows of the test split, where they are known.
    """

    stages: tuple[StagePlan, ...]
    requirements: tuple[Requirement, ...]
    download: tuple[tuple[str, int | None], ...]
    rows: RowEstimate | None

    @property
    def disk_bytes(self) -> int | None:
        """Bytes of disk of all stages that will run; None if one has no estimate."""
        needed = [stage.disk_bytes for stage in self.stages if not stage.current]
        return None if None in needed else sum(filter(None, needed))

    @property
    def seconds(self) -> float:
        """Time of the stages that will run, as far as it is known."""
        return sum(stage.seconds or 0.0 for stage in self.stages if not stage.current)

    def require(self) -> None:
        """Refuse a run that cannot work.

        Raises:
            SlmctlError: The first requirement that is not met, with its exit code.
        """
        for requirement in self.requirements:
            if requirement.error is not None:
                raise requirement.error

    def to_json(self) -> JsonObject:
        """This plan as JSON values."""
        return {
            "stages": [asdict(stage) for stage in self.stages],
            "requirements": [
                {
                    "name": requirement.name,
                    "state": requirement.state,
                    "met": requirement.error is None,
                    "note": requirement.note,
                    "hint": requirement.error.hint if requirement.error else "",
                    "reason": requirement.error.reason
                    if isinstance(requirement.error, GateError)
                    else None,
                }
                for requirement in self.requirements
            ],
            "download": [{"source": source, "bytes": count} for source, count in self.download],
            "disk_bytes": self.disk_bytes,
            "rows": asdict(self.rows) if self.rows else None,
        }


def plan(
    project: Project, names: Sequence[str], rates: Mapping[str, float] | None = None
) -> RunPlan:
    """The plan of a run.

    Args:
        names: Stages to run, in order.
        rates: GFLOP/s of matrix products on this machine by data type, for the time of the
            training.
    """
    stages = list(_asked_for(project, names))
    states = list(_states(stages))
    current = {state.name for state in states if state.current}
    to_run = [stage for stage in stages if stage.name not in current]
    # sources are read anew
    fetching = [stage for stage in stages if stage in to_run or not stage.fetches_once]
    requirements = [*_offline(fetching), *_checked(to_run)]
    unreadable = any(
        requirement.error for requirement in requirements if requirement.name == "files"
    )
    rows = None if unreadable or not to_run else row_estimate.of(project)

    sizes = KnownSizes(project.config, shape_of_base(project), rows, rates or {})
    times = MeasuredTimes(project, lambda other: _sizes_of_artifact(other, sizes.rates))
    costs = {stage.name: asdict(times.applied(stage, stage.cost(sizes))) for stage in to_run}
    states = [replace(state, **costs.get(state.name, {})) for state in states]
    downloads = tuple(each for stage in to_run for each in stage.downloads(sizes.shape))
    made = RunPlan(tuple(states), tuple(requirements), downloads, rows)
    choices = [Requirement(stage.name, text) for stage in to_run if (text := stage.choices(sizes))]
    notes = [
        Requirement(name, text, note=True)
        for stage in to_run
        for name, text in stage.notes(sizes.shape)
    ]
    return replace(
        made, requirements=(*requirements, *_limits(project, made, to_run), *choices, *notes)
    )


def require(project: Project, names: Sequence[str]) -> None:
    """Refuse stages that will run and cannot, before any of them does.

    Raises:
        SlmctlError: See `RunPlan.require`.
    """
    plan(project, names).require()


def shape_of_base(project: Project) -> ModelShape | None:
    """The shape of the base: of the pulled one, of a folder, or as the
    catalogue knows it; None where nothing does.
    """
    try:
        named = project.named.get(BASE.name)
        folder = named.path if named is not None else project.request("pull").path
        if (folder / "base.json").exists():
            return catalogue.of_folder(folder, Base.read(folder))
        source = project.config.pull.base
        if config.is_remote(source):
            return catalogue.of_source(source)
        return (
            catalogue.of_gguf(Path(source))
            if source.endswith(".gguf")
            else catalogue.of_folder(Path(source))
        )
    except (SlmctlError, OSError):
        return None


def _sizes_of_artifact(project: Project, rates: Mapping[str, float]) -> KnownSizes:
    """The sizes of an artifact, by the data set and the base that it was
    made of: those that the project names.
    """
    rows = row_estimate.of(project) if PREPARED.name in project.named else None
    return KnownSizes(project.config, shape_of_base(project), rows, rates)


# Stages


def _asked_for(project: Project, names: Sequence[str]) -> Iterator[Stage[Any]]:
    """The stages that the config asks for, and the last one; for a linear release none that trains.

    A base that is not here yet is left out where the last stage does without.
    """
    without = not project.stage(names[-1]).needs_base() and not project.has_base()
    for name in names:
        stage = project.stage(name)
        is_asked_for = getattr(project.config, name) is not None or name == names[-1]
        is_asked_for = is_asked_for and not (without and stage.leaves in BASE.kinds)
        if is_asked_for and not (stage.tunes and project.config.publish.linear):
            yield stage


def _states(stages: Stages) -> Iterator[StagePlan]:
    """Each stage with whether its artifact exists; without an input,
    or the recipe of one, it does not.
    """
    waiting: set[str] = set()  # kinds that an earlier stage will make again
    for stage in stages:
        needs = {role.kinds[0] for role in stage.takes if role.name not in stage.project.named} | {
            *stage.waits_for
        }
        state = StagePlan(stage.name, current=False)
        if not needs & waiting:
            # an input is missing; the requirements say it
            with contextlib.suppress(SlmctlError, ModuleNotFoundError):
                request = stage.request()
                current = request.path.exists() and not runner.resume_folder(request).exists()
                state = StagePlan(
                    stage.name, current, str(request.path.relative_to(stage.project.root))
                )
        if not state.current:
            waiting.add(stage.leaves)
        yield state


# Requirements


def _requirement(name: str, check: Callable[[], str]) -> Iterator[Requirement]:
    """A requirement: the check says its state, or raises the reason why the stages cannot run."""
    try:
        state = check()
    except SlmctlError as error:
        yield Requirement(name, error.message, error)
    else:
        if state:
            yield Requirement(name, state)


def _offline(stages: Stages) -> Iterator[Requirement]:
    """The requirement, with `--offline`, that no stage uses the network."""

    def check() -> str:
        for stage in stages if guard.is_forbidden() else ():
            with contextlib.suppress(ModuleNotFoundError):  # which `packages` tells
                stage.require_offline()
        return ""

    return _requirement("network", check)


def _checked(stages: Stages) -> Iterator[Requirement]:
    """The requirements of stages: paths, their own checks, packages and the converter."""
    yield from _requirement("files", lambda: _last(stage.files() for stage in stages))
    for stage in stages:
        for name, check in stage.checks().items():
            yield from _requirement(name, check)
    yield from _requirement("packages", lambda: _packages(stages))
    yield from _requirement("converter", lambda: _converter(stages))


def _last(states: Iterable[str]) -> str:
    """The last state that is not empty, after all were looked at."""
    return ([""] + [state for state in states if state])[-1]


def _packages(stages: Stages) -> str:
    """Check that the packages of these stages are installed, without importing one."""
    needed = {
        package: stage.name
        for stage in reversed(stages)
        for package in (*stage.imports, *stage.packages())
    }
    missing = {package: name for package, name in needed.items() if not is_installed(package)}
    if missing:
        named = ", ".join(f"'{package}'" for package in sorted(missing))
        several = "packages" if len(missing) > 1 else "package"
        settings, extras = stages[0].project.config, extras_of(missing)
        trains = (
            settings.encode is not None
            and not settings.publish.linear
            and {"gguf", "train"} & {*extras}
        )
        hint = f"{pip_line(*extras)}; {WITHOUT_MODEL}" if trains else pip_line(*extras)
        raise MissingError(
            f"{' and '.join(dict.fromkeys(missing.values()))} needs the {several} {named}, "
            f"which {'are' if len(missing) > 1 else 'is'} not installed",
            hint=hint,
        )
    return f"{console.count(len(needed), 'package')}, installed" if needed else ""


def _converter(stages: Stages) -> str:
    """Check that the GGUF converter was fetched and is whole."""
    if not any(stage.converts for stage in stages):
        return ""
    return f"{gguf_converter.PACKAGE} {gguf_converter.version()}, in {gguf_converter.require()}"


def _limits(project: Project, made: RunPlan, stages: Stages) -> Iterator[Requirement]:
    """Limits that an estimate must keep within: the rows that gates need, and the disk."""
    if (rows := made.rows) is not None:
        yield from (
            Requirement("rows", error.message, error)
            for stage in stages
            for error in stage.refusals(rows)
        )
    if not stages:
        return
    needed, free = made.disk_bytes, shutil.disk_usage(project.root).free
    if needed is None:
        yield Requirement("disk", f"{console.size(free)} free, the need is not known")
    elif SPARE * needed <= free:
        yield Requirement(
            "disk", f"about {console.size(SPARE * needed)} of {console.size(free)} that are free"
        )
    else:
        text = (
            f"the run needs about {console.size(SPARE * needed)} of disk, and "
            f"{console.size(free)} are free"
        )
        yield Requirement("disk", text, FullError(f"{text} ({project.root})", hint=LESS_DISK))
