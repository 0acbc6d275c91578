"""A project's artifacts: which recipe the config asks for, and where its inputs are."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from slmctl import config
from slmctl.artifacts import artifact, lineage
from slmctl.artifacts.artifact import Artifact
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.errors import IntegrityError, UsageError
from slmctl.inference import ENSEMBLE
from slmctl.model_files.gguf_choice import gguf_file
from slmctl.pipeline import released
from slmctl.pipeline.stage_rules import ENCODERS, RULES, SOURCES
from slmctl.pipeline.stage_table import BY_KIND, STAGES, Role, Stage
from slmctl.releases import registry

PATH_ID = 12  # characters of a recipe id in the path of its artifact
TRY_FIRST = "to try the model before it is released: slmctl chat gguf, or slmctl serve gguf"
LORA = "lora"  # names the adapter's own GGUF file among the models to measure, and in the metrics of its artifact


@dataclass
class Project:
    """A folder with a config, and the artifacts beside it."""

    root: Path
    config: config.Config
    wait: bool = True
    on_wait: Callable[[str], None] = lambda holder: None
    named: dict[str, Path] = field(default_factory=dict)  # paths named by the user, by role
    _found: dict[str, Artifact] = field(default_factory=dict)

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def sources(self) -> Path:
        """The folder of copies of sources that are no files."""
        return self.root / SOURCES

    @property
    def encoders(self) -> Path:
        """The folder of encoders that were fetched, which data sets share."""
        return self.root / ENCODERS

    @property
    def journals(self) -> Path:
        """The folder of what teachers were asked and answered, which outlasts every artifact: it was paid for."""
        return self.runs / ".teachers"

    def forget(self) -> None:
        """Look for artifacts anew."""
        self._found.clear()


@dataclass(frozen=True)
class StageRequest:
    """A stage with its config, its inputs, the recipe of both and the path of the artifact that it leaves."""

    stage: Stage
    section: config.Section
    recipe: dict[str, Any]
    inputs: dict[str, Artifact | list[Artifact]]
    recipe_id: str
    path: Path

    @property
    def digests(self) -> dict[str, str | list[str]]:
        return _digests(self.inputs)


def resolve_stage(
    project: Project,
    name: str,
    inputs: Mapping[str, Artifact | list[Artifact]] | None = None,
    section: config.Section | None = None,
    *,
    alone: bool = False,
) -> StageRequest:
    """Resolve a stage: every input found, every source hashed.

    Args:
        project: Where.
        name: Which stage.
        inputs: Artifacts for roles that should not be looked up.
        section: A config to use in place of the project's.
        alone: Nothing but `inputs` goes in.

    Raises:
        IntegrityError: An input has not been made yet, or is damaged.
        UsageError: A source file does not exist.
    """
    stage = STAGES[name]
    section = completed(project, name, section)
    filled = dict(inputs or {})
    for role in stage.takes if not alone else ():
        asked_for = not role.when or getattr(section, role.when) or role.name in project.named
        if role.name in filled or not asked_for:
            continue
        if fill := _FILLED.get(role.name):
            filled[role.name] = fill(project, section, filled)
        elif not (role.optional or role.many):
            filled[role.name] = find(project, role)
    recipe = config.recipe(section)
    recipe_id = artifact.recipe_of(stage.id, recipe, _digests(filled))
    folder = recipe_id.removeprefix("sha256:")[:PATH_ID]
    return StageRequest(stage, section, recipe, filled, recipe_id, project.runs / stage.leaves / folder)


def base_file_requests(project: Project, section: config.QuantizeConfig, adapter: Artifact) -> list[StageRequest]:
    """Requests for the GGUF files of the base alone that an adapter goes on, one a type.

    They say nothing of the project, so all adapters of a base find the same artifacts.

    Raises:
        IntegrityError: The base is not among this project's artifacts.
    """
    inputs: dict[str, Artifact | list[Artifact]] = {"base": base_of(project, adapter)}
    sections = [config.QuantizeConfig(types=[name], importance_matrix="off") for name in dict.fromkeys(section.types)]
    return [resolve_stage(project, "quantize", inputs, each, alone=True) for each in sections]


def _base_files(
    project: Project, section: Any, filled: Mapping[str, Artifact | list[Artifact]]
) -> Artifact | list[Artifact]:
    adapter = filled["adapter"]
    assert isinstance(adapter, Artifact)
    requests = base_file_requests(project, section, adapter)
    if missing := [request for request in requests if not request.path.exists()]:
        raise _not_made(project, missing[0])
    return [artifact.load(request.path) for request in requests]


_FILLED = {"base_files": _base_files}  # inputs that are no artifact of the config's own


def completed(project: Project, name: str, section: config.Section | None = None) -> config.Section:
    """The section of a stage with the files that stand for its sources, its key and its base.

    Raises:
        IntegrityError: There is no copy of a source that is not a file.
        UsageError: A source or the base cannot be used.
    """
    section = section or config.stage_config(project.config, name)
    return RULES[name].completed(project.config, project.root, section)


def reading(project: Project) -> tuple[config.Section, Artifact | None]:
    """The section by which `prepare` reads its sources, and its base; None where there is none yet.

    Raises:
        IntegrityError: The base that the user named does not exist.
        UsageError: A source file does not exist.
    """
    section = completed(project, "prepare")
    config.recipe(section)
    try:
        return section, find(project, STAGES["prepare"].takes[0])
    except (IntegrityError, UsageError):
        if "base" in project.named:
            raise
        return section, None


def expected(project: Project, name: str, model: str = "gguf") -> StageRequest:
    """The request that the config makes of a stage; of evaluate and calibrate with the predictions that exist, and of
    predict for the first GGUF file. `model` is the kind that a policy is for."""
    if name == "predict":
        return predictions_of(project, "gguf")[0]
    if name not in ("evaluate", "calibrate"):
        return resolve_stage(project, name)

    def there(request: StageRequest) -> Artifact:
        if not request.path.exists():
            kind = request.inputs["model"].kind if isinstance(request.inputs["model"], Artifact) else "a model"
            raise IntegrityError(f"{kind} has not been measured with this config and data", hint=f"slmctl {name}")
        return artifact.load(request.path)

    if name == "calibrate":
        return resolve_stage(project, name, calibration_inputs(project, there, model))
    return resolve_stage(project, name, report_inputs(project, project.config.measured, there))


def by_id(runs: Path, prefix: str) -> Path:
    """The folder of the artifact below `runs` whose recipe id begins with `prefix`, hexadecimal digits.

    Raises:
        IntegrityError: There is none.
        UsageError: There are several.
    """
    matches = [path for path in lineage.folders(runs.parent) if path.name.startswith(prefix[:PATH_ID])]
    if not matches:
        raise IntegrityError(f"no artifact below {runs} has an id that begins with '{prefix}'", hint="slmctl ls")
    if len(matches) > 1:
        named = ", ".join(str(path.relative_to(runs.parent)) for path in matches)
        raise UsageError(f"{len(matches)} artifacts have an id that begins with '{prefix}'", hint=f"one of {named}")
    return matches[0]


def artifact_path(where: Workspace, named: Path) -> Path:
    """The path that a user named, or that of an artifact of the project: the current one of a kind, or that of an id.

    Raises:
        IntegrityError: There is nothing at the path, no artifact has such an id, or none of that kind is current.
        UsageError: Several artifacts have, or the config asks for none of that kind.
    """
    if os.path.lexists(named):
        return named
    if stage := BY_KIND.get(str(named)):
        if getattr(where.project.config, stage.name) is None:
            raise UsageError(f"slmctl.yaml has no section '{stage.name}', so none of kind '{named}' is current",
                             hint=f"slmctl ls {named} lists those there are, with their ids")  # fmt: skip
        return find(replace(where.project, named={}, _found={}), str(named)).path
    if re.fullmatch(r"[0-9a-f]{4,64}", str(named)):
        return by_id(where.directory / "runs", str(named))
    return named


def find(project: Project, role: Role | str) -> Artifact:
    """The artifact of a role, or of a kind: the path the user gave, else the one the config's recipes name.

    Raises:
        IntegrityError: It has not been made yet, or is damaged.
    """
    role = Role(role, (role,)) if isinstance(role, str) else role
    if role.name not in project._found:
        if role.name in project.named:
            path = artifact_path(_workspace(project), project.named[role.name])
            project._found[role.name] = open_model(path, role.kinds)
        else:
            stage = BY_KIND[role.kinds[0]]
            request = expected(project, stage.name)
            if not request.path.exists():
                raise _not_made(project, request)
            project._found[role.name] = artifact.load(request.path)
    return project._found[role.name]


def _not_made(project: Project, request: StageRequest) -> IntegrityError:
    """The error about an artifact that has not been made; it names one that differs in its settings alone."""
    stage = request.stage
    text = f"no current artifact '{stage.leaves}': stage {stage.name} has not run with this config and data"
    others = other_settings(project, request)
    if not others:
        begun = bool(lineage.folders(project.root))
        return IntegrityError(text, hint=f"slmctl run --until {stage.name}" if begun else "slmctl run")
    latest_first = sorted(others, key=lambda entry: entry[0].manifest.started, reverse=True)
    other, changed = min(latest_first, key=lambda entry: len(entry[1]))
    sets = [f"--set {key}={value}" for key, value in changed.items() if _can_be_set(value)]
    back = (
        f"for that one: {' '.join(sets)}, or these in slmctl.yaml; for a new one: " if len(sets) == len(changed) else ""
    )
    return IntegrityError(
        f"{text}; there is one with other settings ({', '.join(changed)}): {other.path.relative_to(project.root)}",
        hint=f"{back}slmctl run --until {stage.name}",
    )


def _can_be_set(value: object) -> bool:
    """True for a value that --set takes: no list, and no hash that stands for what a path holds."""
    return isinstance(value, bool | int | float | str) and not str(value).startswith("sha256:")


def other_settings(project: Project, request: StageRequest) -> list[tuple[Artifact, JsonObject]]:
    """Artifacts of the same stage and inputs with another config: the keys of slmctl.yaml that differ, with their
    values there."""
    name = request.stage.name
    top = {key for section, key in config.inherited_keys() if section == name}
    others = []
    for folder in sorted((project.runs / request.stage.leaves).glob("*")):
        other = lineage.opened(folder)
        if not isinstance(other, Artifact) or other.manifest.stage != request.stage.id:
            continue
        changed = config.changed_keys(type(request.section), request.recipe, other.manifest.config)
        if changed and other.manifest.inputs == request.digests:
            keys = {key if key.partition(".")[0] in top else f"{name}.{key}": value for key, value in changed.items()}
            others.append((other, keys))
    return others


@dataclass(frozen=True)
class Workspace:
    """The folder that a command works in, and its project, which is read when it is first needed."""

    directory: Path
    open: Callable[[], Project]

    @functools.cached_property
    def project(self) -> Project:
        return self.open()


def _workspace(project: Project) -> Workspace:
    return Workspace(project.root, lambda: project)


def first_look(project: Project) -> tuple[Artifact, Artifact]:
    """The encoder, and the policy that says which of its answers are kept.

    Raises:
        IntegrityError: One of them has not been made.
        UsageError: The config has no section `encode`.
    """
    encoder, request = encoder_of(project), expected(project, "calibrate", "encoder")
    if not request.path.exists():
        raise IntegrityError("no policy says which answers of the encoder are kept", hint="slmctl calibrate")
    return encoder, artifact.load(request.path)


def encoder_of(project: Project) -> Artifact:
    """The project's encoder; raises a UsageError where the config has no section `encode`."""
    if project.config.encode is None:
        raise UsageError("slmctl.yaml has no section 'encode', so there is no encoder", hint="encode: {}")
    return find(project, "encoder")


def is_made(project: Project, kind: str) -> bool:
    """True if the current artifact of a kind exists."""
    try:
        return find(project, kind).path.exists()
    except (IntegrityError, UsageError):
        return False


def find_model(where: Workspace, spec: str | Path | None, kinds: Sequence[str], *, default: str) -> Artifact:
    """The model that a command names: a kind of this pipeline, `dir:REGISTRY#TAG`, or a path.

    Args:
        where: The folder and its project.
        spec: What the user typed; None stands for `default`.
        kinds: What may be named.
        default: The kind that the project's config leads to.

    Raises:
        IntegrityError: There is none, or it is damaged.
        UsageError: It is of another kind, or no name that is known.
    """
    spec = spec or default
    if isinstance(spec, str) and spec in kinds:
        try:
            return find(where.project, spec)
        except IntegrityError as error:
            if spec == "published" and "gguf" in kinds and is_made(where.project, "gguf"):
                error.hint = f"{TRY_FIRST}; to release it: {error.hint}"
            raise
    if isinstance(spec, str) and spec.startswith("dir:"):
        return require_kind(registry.find(*registry.parse(spec, where.directory)), kinds)
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
        raise UsageError(f"{model.path} is of kind '{model.kind}'", hint=f"accepted here: {', '.join(kinds)}")
    return model


def open_model(path: Path, kinds: Sequence[str]) -> Artifact:
    """An artifact folder, a published folder, a bare `.gguf` or an HF folder, as an artifact.

    Raises:
        IntegrityError: There is nothing at `path`, or it is damaged.
        UsageError: What is there is of another kind.
    """
    path = path.resolve()
    if not path.exists():
        raise IntegrityError(f"{path} does not exist", hint=f"a {' or '.join(kinds)} artifact is expected there")
    if (path / artifact.MANIFEST).exists():
        source = artifact.load(path)
    elif path.suffix == ".gguf":
        source = artifact.foreign(path, "gguf")
    elif (path / "adapter_config.json").exists():
        source = artifact.foreign(path, "adapter")
    elif (path / "config.json").exists():
        source = artifact.foreign(path, "merged")
    else:
        raise IntegrityError(f"{path} is no artifact, no .gguf and no model folder: it has no {artifact.MANIFEST}")
    return require_kind(source, kinds)


def flatten(inputs: Mapping[str, Artifact | list[Artifact]]) -> list[Artifact]:
    result: list[Artifact] = []
    for value in inputs.values():
        result += value if isinstance(value, list) else [value]
    return result


def _digests(inputs: Mapping[str, Artifact | list[Artifact]]) -> dict[str, str | list[str]]:
    return {
        role: [made.digest for made in value] if isinstance(value, list) else value.digest
        for role, value in inputs.items()
    }


def report_inputs(
    project: Project,
    models: Sequence[str | Path],
    answers: Callable[[StageRequest], Artifact],
    split: str | None = None,
) -> dict[str, Any]:
    """Inputs of a report: the predictions of every model, and those of the GGUF files on validation rows where one is
    to be chosen, or where they say whether a second opinion is kept.

    Of the models of the config, the release that a gate compares with is one more.
    A report among the models stands for the predictions that it was made of, on its own data set.

    Raises:
        IntegrityError: Predictions of a report are not below `runs/`.
        UsageError: The reports are of different data sets.
    """
    reports = {model: report for model in models if (report := _named_report(project, model))}
    inputs: dict[str, Any] = {}
    if reports:
        inputs["prepared"] = _common_data(project, list(reports.values()))
    predictions: dict[str, Artifact] = {}
    for model in models:
        if report := reports.get(model):
            made = _inputs_of(project, report, "predictions")
        else:
            made = [answers(request) for request in predictions_of(project, model, split)]
        predictions |= {each.digest: each for each in made}
    inputs["predictions"] = list(predictions.values())
    opinion = [ENSEMBLE] if ENSEMBLE in models and project.config.evaluate.second_opinion == "auto" else []
    if "gguf" in models and (opinion or project.config.evaluate.choose is not None):
        requests = [each for model in ("gguf", *opinion) for each in predictions_of(project, model, "validation")]
        inputs["validation"] = [answers(request) for request in requests]
    if [*models] == project.config.measured:  # the gates are about what the config measures
        inputs |= _of_release(project, inputs["predictions"], answers, split)
    return inputs


def _of_release(
    project: Project, made: list[Artifact], answers: Callable[[StageRequest], Artifact], split: str | None
) -> dict[str, Any]:
    """The inputs of a report with the release that gates compare with: its answers and its data set."""
    own: set[str] = set()
    if "gguf" in project.config.evaluate.models and any(gate.release for gate in project.config.gates):
        own = {entry["sha256"] for entry in find(project, "gguf").metrics["files"].values()}
    compared = released.reference(project.config, project.root, own)
    if compared is None or compared.release is None:
        return {}
    section = predict_section(project, split).model_copy(update={"release": compared.name})
    answered = answers(resolve_stage(project, "predict", {"model": compared.release}, section))
    data = lineage.data_set(project.runs, compared.release)
    return {"predictions": [*made, answered]} | ({"released": data} if data is not None else {})


def _named_report(project: Project, spec: str | Path) -> Artifact | None:
    """The report that a path or an id names; None for a model."""
    if str(spec) in STAGES["predict"].takes[0].kinds or str(spec).startswith("dir:"):
        return None
    path = artifact_path(_workspace(project), Path(spec))
    if not (path / artifact.MANIFEST).is_file():
        return None
    opened = artifact.load(path)
    return opened if opened.kind == "report" else None


def _common_data(project: Project, reports: Sequence[Artifact]) -> Artifact:
    """The data set of all these reports, which models measured beside them answer too."""
    (first, *_), digests = reports, {str(report.manifest.inputs.get("prepared")) for report in reports}
    if len(digests) > 1:
        raise UsageError(
            f"the reports are of {len(digests)} data sets, and rows that differ cannot be paired",
            hint="slmctl ls --models lists which models were measured on which rows",
        )
    (prepared,) = _inputs_of(project, first, "prepared")
    project.named["prepared"] = prepared.path
    project.forget()
    return prepared


def _inputs_of(project: Project, made: Artifact, role: str) -> list[Artifact]:
    """The artifacts below `runs/` that fill a role of an artifact."""
    value = made.manifest.inputs.get(role, [])
    here = {entry.digest: entry for entry in lineage.readable_artifacts(project.root)}
    digests = [value] if isinstance(value, str) else value
    if missing := [digest for digest in digests if digest not in here]:
        raise IntegrityError(
            f"not below {project.runs}: {role} of {made.path} ({len(missing)} of {len(digests)})",
            hint="slmctl evaluate makes it again",
        )
    return [here[digest] for digest in digests]


def calibration_inputs(
    project: Project, answers: Callable[[StageRequest], Artifact], model: str = "gguf",
    request_of: Callable[[str], StageRequest] | None = None,
) -> dict[str, Artifact | list[Artifact]]:  # fmt: skip
    """Inputs of a policy: answers on calibration rows, and on validation rows too where some may be out of scope."""
    section = config.stage_config(project.config, "calibrate")
    assert isinstance(section, config.CalibrateConfig)
    splits = {"predictions": "calibration"} | ({"outside": "validation"} if section.out_of_scope else {})
    if request_of is not None:
        return {role: answers(request_of(split)) for role, split in splits.items()}
    type = None
    if model == "gguf":
        type, model = _served_type(project), ENSEMBLE if _ships_opinion(project) else model
    return {role: answers(predictions_of(project, model, split, type)[0]) for role, split in splits.items()}


def _ships_opinion(project: Project) -> bool:
    """True if the report says that a release carries the encoder as a second opinion."""
    has_report = project.config.encode is not None and is_made(project, "report")
    return has_report and find(project, "report").metrics.get("second_opinion", {}).get("kept", False) is True


def _served_type(project: Project) -> str:
    """The type of the GGUF file that a release of this project is served with: the chosen one, else the smallest."""
    model = find(project, "gguf")
    files = model.metrics["files"]
    if project.config.evaluate.choose is not None:
        choice = find(project, "report").metrics["choice"]["model"]
        if choice in files:
            return str(choice)
    smallest = gguf_file(model).path
    return next(str(name) for name, entry in files.items() if entry["file"] == smallest)


def predict_section(project: Project, split: str | None, type: str | None = None) -> config.Section:
    section = config.stage_config(project.config, "predict")
    return section.model_copy(update={"type": type, "shots": None} | ({"split": split} if split else {}))


def predictions_of(
    project: Project, model: str | Path, split: str | None = None, type: str | None = None
) -> list[StageRequest]:
    """Requests to `predict` for one model: once, or once a GGUF file when it has several."""
    role = STAGES["predict"].takes[0]
    if model == LORA:
        return _lora_predictions(project, split)
    source = find_model(_workspace(project), "gguf" if model == ENSEMBLE else model, role.kinds, default="gguf")
    inputs: dict[str, Artifact | list[Artifact]] = {"model": source}
    if model == ENSEMBLE:
        inputs["encoder"] = encoder_of(project)
    if source.kind == "adapter":
        inputs["base"] = base_of(project, source)
    types: list[str | None] = [None]
    if source.kind in ("gguf", "published"):
        listed = source.metrics.get("files")
        types = [type] if type else list(listed) if listed else [None]
    sections = [predict_section(project, split, name) for name in types]
    if source.kind == "base":
        whole = project.config.task.kind == "classify"
        more = {"shots": project.config.predict.shots, "whole_labels": whole}
        sections = [section.model_copy(update=more) for section in sections]
    return [resolve_stage(project, "predict", inputs, section) for section in sections]


def _lora_predictions(project: Project, split: str | None) -> list[StageRequest]:
    """Requests to `predict` for the adapter's own GGUF file, once on the base's file of each type."""
    made = find(project, "gguf")
    bases = (made.metrics.get(LORA) or {}).get("bases")
    if not bases:
        raise UsageError(
            f"{made.path} holds no adapter with its base's files", hint="slmctl quantize --set quantize.lora_gguf=true"
        )
    files = {each.digest: each for each in _inputs_of(project, made, "base_files")}
    requests = []
    for name in dict.fromkeys(project.config.quantize.types):
        section = predict_section(project, split, name).model_copy(update={"lora": True})
        inputs: dict[str, Artifact | list[Artifact]] = {"model": made, "base": files[bases[name]["artifact"]]}
        requests.append(resolve_stage(project, "predict", inputs, section))
    return requests


def base_of(project: Project, adapter: Artifact) -> Artifact:
    """The base that an adapter was trained on.

    Raises:
        IntegrityError: It is not among this project's artifacts.
    """
    digest = adapter.manifest.inputs.get("base")
    if digest is None:  # an adapter that slmctl did not train: it is taken to belong to the project's base
        return find(project, "base")
    for path in sorted((project.runs / "base").glob("*/" + artifact.MANIFEST)):
        source = artifact.load(path.parent)
        if source.digest == digest:
            return source
    raise IntegrityError(f"the base of {adapter.path} is not below {project.runs}", hint="slmctl pull")
