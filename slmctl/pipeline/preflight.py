"""The plan of a run, before it costs anything: the stages that will run, what they need, and what cannot work.

Nothing is fetched, trained or written. A recipe is known where all inputs exist; every stage after the first one that
will run will run too. Figures are estimates, and None where nothing is known.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from slmctl import config, console, hardware
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.errors import FullError, GateError, MissingError, SlmctlError, UsageError
from slmctl.inference import ENSEMBLE, WITH_ENCODER
from slmctl.installation import pip_line
from slmctl.metrics import gates
from slmctl.model_files import catalogue, encoder_source, gguf_converter, model_shape
from slmctl.model_files.base_model import Base
from slmctl.model_files.catalogue import CatalogueEntry
from slmctl.model_files.model_shape import ModelShape
from slmctl.network import guard
from slmctl.pipeline import released, resolve, row_estimate, runner
from slmctl.pipeline.resolve import Project
from slmctl.pipeline.row_estimate import RowEstimate
from slmctl.pipeline.stage_estimates import estimate
from slmctl.pipeline.stage_rules import RULES
from slmctl.pipeline.stage_table import STAGES
from slmctl.pipeline.system_errors import EXTRAS
from slmctl.releases import registry
from slmctl.sources import snapshot

A_SOURCE = "the source, with the columns that the config names"
MORE_ROWS = "more rows, a larger prepare.splits.test, or another gate"
LESS_DISK = "slmctl gc lists what nothing needs; or take another folder, a smaller base, fewer quantize.types"
Check = Callable[[Project, Sequence[str]], str]
SPARE = 1.1  # of the disk: reports, journals, blocks that are not full


@dataclass(frozen=True)
class StagePlan:
    """Facts on one stage before it runs; disk, memory and time are those of its `StageEstimate`.

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


@dataclass(frozen=True)
class Requirement:
    """Something that a run needs: its name, its state in words, and the error where it is not met.

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
        download: The base or source that is fetched, such as `pypi:NAME==1.0`, with its bytes where they are known.
        rows: Rows of the sources, and held-out rows of the test split, where they are known.
    """

    stages: tuple[StagePlan, ...]
    requirements: tuple[Requirement, ...]
    download: tuple[tuple[str, int | None], ...]
    rows: RowEstimate | None

    @property
    def disk_bytes(self) -> int | None:
        """Bytes that all stages that will run take together; None where that of one is not known."""
        needed = [stage.disk_bytes for stage in self.stages if not stage.current]
        return None if None in needed else sum(filter(None, needed))

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
                }
                for requirement in self.requirements
            ],
            "download": [{"source": source, "bytes": count} for source, count in self.download],
            "disk_bytes": self.disk_bytes,
            "rows": asdict(self.rows) if self.rows else None,
        }


def plan(project: Project, names: Sequence[str], rates: Mapping[str, float] | None = None) -> RunPlan:
    """The plan of a run.

    Args:
        project: Where.
        names: Stages to run, in order.
        rates: GFLOP/s of matrix products on this machine by data type, for the time of the training.
    """
    states = list(_states(project, names))
    to_run = [state.name for state in states if not state.current]
    # sources are read anew
    fetching = [state.name for state in states if not state.current or state.name not in ("pull", "encode")]
    requirements = [*_checked(project, fetching, _network), *_checked(project, to_run, *CHECKS)]
    unreadable = any(requirement.error for requirement in requirements if requirement.name == "files")
    rows = None if unreadable or not to_run else row_estimate.of(project)
    shape = _shape(project)
    states = [
        state
        if state.current
        else replace(state, **asdict(estimate(state.name, project.config, shape, rows, rates or {})))
        for state in states
    ]
    made = RunPlan(tuple(states), tuple(requirements), tuple(_downloads(project, to_run, shape)), rows)
    limits = [*_limits(project, made, to_run), *_notes(project, shape, to_run)]
    return replace(made, requirements=(*requirements, *limits))


def require(project: Project, names: Sequence[str]) -> None:
    """Refuse stages that will run and cannot, before any of them does.

    Raises:
        SlmctlError: See `RunPlan.require`.
    """
    plan(project, names).require()


def training_seconds(project: Project, section: config.FinetuneConfig, rates: Mapping[str, float]) -> float | None:
    """The time of one training with such settings; None where it is not known. `rates` as in `plan`."""
    settings = project.config.model_copy(update={"finetune": section})
    return estimate("finetune", settings, _shape(project), row_estimate.of(project), rates).seconds


# Stages


def _states(project: Project, names: Sequence[str]) -> Iterator[StagePlan]:
    """Each stage with whether its artifact exists; without an input, or the recipe of one, it does not."""
    waiting: set[str] = set()  # kinds that a stage before will make anew
    for name in names:
        if getattr(project.config, name) is None and len(names) > 1:  # calibrate, label
            continue
        stage = STAGES[name]
        needs = {role.kinds[0] for role in stage.takes if role.name not in project.named}
        needs |= {"base", "adapter", "gguf", "encoder"} if name in ("evaluate", "calibrate") else set()
        state = StagePlan(name, current=False)
        if not needs & waiting:
            try:
                request = resolve.expected(project, name)
                current = request.path.exists() and not runner.resume_folder(request).exists()
                state = StagePlan(name, current, str(request.path.relative_to(project.root)))
            except (SlmctlError, ModuleNotFoundError):  # what it needs is missing; the requirements say what cannot be
                pass
        if not state.current:
            waiting.add(stage.leaves)
        yield state


def _shape(project: Project) -> ModelShape | None:
    """The shape of the base: of the pulled one, of a folder, or as the catalogue knows it."""
    try:
        folder = resolve.expected(project, "pull").path if "base" not in project.named else project.named["base"]
        if (folder / "base.json").exists():
            return catalogue.of_folder(folder, Base.read(folder))
        source = project.config.pull.base
        if config.is_remote(source):
            return catalogue.of_source(source)
        return catalogue.of_gguf(Path(source)) if source.endswith(".gguf") else catalogue.of_folder(Path(source))
    except (SlmctlError, OSError):
        return None


def _downloads(project: Project, names: Sequence[str], shape: ModelShape | None) -> Iterator[tuple[str, int | None]]:
    """Sources that are fetched, and their sizes where that is known without asking."""
    base = project.config.base
    if "pull" in names and config.is_remote(base):
        packed = shape.package_bytes if isinstance(shape, CatalogueEntry) and shape.package == base else 0
        yield base, packed or (2 * shape.parameters if shape is not None and base.startswith("hf:") else None)
    if "encode" in names and project.config.encode is not None:
        section = project.config.encode
        if encoder_source.is_to_fetch(section, project.encoders):
            yield section.encoder, None
    for source in project.config.prepare.sources if "prepare" in names else ():
        if host := snapshot.host_of(source, project.sources):
            yield f"a source on {host}", None


# Requirements


def _checked(project: Project, names: Sequence[str], *checks: Check) -> Iterator[Requirement]:
    """Requirements of stages: each check says its state, or raises the reason why they cannot run."""
    for check in checks:
        try:
            state = check(project, names)
        except SlmctlError as error:
            yield Requirement(check.__name__.strip("_"), error.message, error)
        else:
            if state:
                yield Requirement(check.__name__.strip("_"), state)


def _network(project: Project, names: Sequence[str]) -> str:
    """With `--offline`, refuse at once what one of these stages would be refused later."""
    for name in names if guard.is_forbidden() else ():
        with contextlib.suppress(ModuleNotFoundError):  # which `packages` tells
            RULES[name].require_offline(project.config, project.root)
    return ""


def _files(project: Project, names: Sequence[str]) -> str:
    """Check every path that the config names for these stages, and that the sources hold the columns it names."""
    checked = 0
    for name in names:
        rule, section = RULES[name], config.stage_config(project.config, name)
        checkable = (rule.checkable or rule.completed)(project.config, project.root, section)
        if checkable is None:
            continue  # a query or a pipe is read when the stage runs
        for path in config.contents(checkable):
            config.require_path(path)
        if rule.checks:
            with contextlib.suppress(ModuleNotFoundError):  # which `packages` tells
                importlib.import_module(STAGES[name].module).check(checkable)
        checked += len(checkable.sources) if isinstance(checkable, config.PrepareConfig) else 0
    if "prepare" not in names:
        return ""
    return f"{checked} sources with the columns that the config names" if checked != 1 else A_SOURCE


def _gates(project: Project, names: Sequence[str]) -> str:
    """Check that what the gates name will be measured."""
    settings = project.config
    if "evaluate" not in names or not settings.gates:
        return ""
    from slmctl.metrics import encoder_head, linear_baseline

    participants = {"base", "adapter", "merged"} & set(settings.evaluate.models)
    participants |= {*linear_baseline.BASELINES[settings.task.kind]}
    participants |= {encoder_head.NAME} if settings.encode is not None else set()
    if "gguf" in settings.evaluate.models:
        participants |= {*settings.quantize.types, *(["chosen"] if settings.evaluate.choose else [])}
    if ENSEMBLE in settings.measured:
        participants |= {f"{name}{WITH_ENCODER}" for name in settings.quantize.types}
    if resolve.LORA in settings.evaluate.models:
        participants |= {f"{resolve.LORA}-{name}" for name in settings.quantize.types}
    for gate in settings.gates:
        for model in filter(None, (gate.model, None if gate.release else gate.against)):
            if model == "chosen" and model not in participants:
                raise UsageError(
                    "a gate names the model 'chosen', and evaluate.choose is not set",
                    hint="evaluate: {choose: {smallest_within: 0.01}}",
                )
            if model == "base" and settings.predict.shots is not None:
                raise UsageError(
                    "a gate names the model 'base', which is measured with examples in its prompt",
                    hint=f'model: "base ({settings.predict.shots}-shot)", or no predict.shots',
                )
            if model.partition(" (")[0] not in participants:  # base (8-shot)
                raise UsageError(
                    f"a gate names the model '{model}', which is not measured",
                    hint=f"evaluate.models and quantize.types give {', '.join(sorted(participants))}",
                )
    count = len(settings.gates)
    return f"{count} gates name models that are measured" if count > 1 else "the gate names a model that is measured"


def _release(project: Project, names: Sequence[str]) -> str:
    """The release that gates compare with, or that there is none yet."""
    compared = released.reference(project.config, project.root) if "evaluate" in names else None
    return compared.state if compared is not None else ""


def _packages(project: Project, names: Sequence[str]) -> str:
    """Check that the packages of these stages are installed, without importing one."""
    needed = {
        package: name
        for name in reversed(names)
        for package in (*STAGES[name].imports, *RULES[name].packages(project.config))
    }
    missing = {package: name for package, name in needed.items() if not _is_installed(package)}
    if missing:
        extras = sorted({EXTRAS[package] for package in missing})
        stages = " and ".join(dict.fromkeys(missing.values()))
        named = ", ".join(f"'{package}'" for package in sorted(missing))
        several = "packages" if len(missing) > 1 else "package"
        raise MissingError(
            f"{stages} needs the {several} {named}, which {'are' if len(missing) > 1 else 'is'} not installed",
            hint=pip_line(",".join(extras)),
        )
    return f"{console.count(len(needed), 'package')}, installed" if needed else ""


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # half of one
        return False


def _converter(project: Project, names: Sequence[str]) -> str:
    """Check that the GGUF converter was fetched and is whole."""
    encodes = "encode" in names and project.config.encode is not None
    if "quantize" not in names and (not encodes or _has_encoder(project)):
        return ""
    return f"{gguf_converter.PACKAGE} {gguf_converter.version()}, in {gguf_converter.require()}"


CHECKS = (_files, _gates, _release, _packages, _converter)


def _has_encoder(project: Project) -> bool:
    """True if the encoder is a GGUF file, or was fetched before."""
    section = project.config.encode
    return section is not None and (
        section.encoder.endswith(".gguf") or encoder_source.is_kept(section, project.encoders)
    )


def _limits(project: Project, made: RunPlan, names: Sequence[str]) -> Iterator[Requirement]:
    """Limits that an estimate must keep within: the rows that gates need, and the disk."""
    measured = "evaluate" in names and project.config.predict.split == "test"
    most = made.rows.most_test if made.rows is not None and measured else None
    short: list[str] = []
    with contextlib.suppress(SlmctlError):  # which `release` tells
        if most is not None:
            short = gates.out_of_reach(released.checked_gates(project.config, project.root), most)
    if short:
        text = f"{'; '.join(short)} ({most} is the most that can fall into the test)"
        yield Requirement("rows", text, GateError(text, hint=MORE_ROWS))
    if not names:
        return
    needed, free = made.disk_bytes, shutil.disk_usage(project.root).free
    if needed is None:
        yield Requirement("disk", f"{console.size(free)} free, the need is not known")
    elif SPARE * needed <= free:
        yield Requirement("disk", f"about {console.size(SPARE * needed)} of {console.size(free)} that are free")
    else:
        text = f"the run needs about {console.size(SPARE * needed)} of disk, and {console.size(free)} are free"
        yield Requirement("disk", text, FullError(f"{text} ({project.root})", hint=LESS_DISK))


def _notes(project: Project, shape: ModelShape | None, names: Sequence[str]) -> Iterator[Requirement]:
    """Notes on what may stop the run: memory that is short now, and a version that was published already."""
    section = project.config.finetune
    if "finetune" in names and shape is not None and not hardware.accelerator():
        width, smallest = 2 if section.matmul_dtype == "bfloat16" else 4, model_shape.LEAST_PIECE_TOKENS
        least, free = shape.training_bytes(width, smallest, in_4bit=section.load_in_4bit), hardware.available_bytes()
        if least > free:
            text = f"finetune takes about {console.size(least)} even in small pieces, and {console.size(free)} are free"
            yield Requirement("memory", text, note=True)
    entry = catalogue.of_source(project.config.base)
    if "prepare" in names and entry is not None and entry.tools is False and project.config.task.kind != "call":
        calling = looked = 0
        with contextlib.suppress(SlmctlError, OSError, ModuleNotFoundError):  # which `files` and `packages` tell
            calling, looked = row_estimate.rows_with_calls(project)
        if calling:
            text = f"{calling} of the first {looked} rows hold calls of tools, which {entry.short_name} does not write"
            yield Requirement("calls", f"{text}, so prepare rejects them; slmctl bases --tools lists others", note=True)
    to = project.config.publish.to
    if "publish" in names and to.startswith("dir:"):
        folder, _ = registry.parse(to, project.root)
        if (folder / project.config.project / project.config.version).is_dir():
            text = f"{to} holds version {project.config.version} already and takes no other one: increase 'version'"
            yield Requirement("version", text, note=True)
