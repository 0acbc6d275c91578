"""Requests to `predict`: a model of this pipeline, a release or
an endpoint on the rows of a split.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slmctl import config, models
from slmctl.artifacts import artifact, atomic, lineage
from slmctl.artifacts.artifact import MANIFEST, Artifact
from slmctl.errors import IntegrityError, UsageError
from slmctl.inference import FILE, SUM
from slmctl.model_files.gguf_choice import gguf_file
from slmctl.network.decisions import CHAT
from slmctl.pipeline import named
from slmctl.pipeline.graph import PREPARED, Get, Inputs, Project, StageRequest
from slmctl.reports.evaluation_report import model_named, report_of, reports_of

# rows that an untuned base is asked where only the report's table shows it: +-7 points at most
SAMPLE = 200
# names the adapter's own GGUF file among the models to measure, and in the metrics of its artifact
LORA = "lora"


def predict_section(
    project: Project, split: str | None, type: str | None = None
) -> config.PredictConfig:
    section = project.config.predict
    return section.model_copy(
        update={"type": type, "shots": None} | ({"split": split} if split else {})
    )


def predictions_of(
    project: Project, model: str | Path, split: str | None = None, type: str | None = None
) -> list[StageRequest]:
    """Requests to `predict` for one model: once, or once a GGUF file when it has several."""
    stage = project.stage("predict")
    if model == LORA:
        return _lora_predictions(project, split)
    of_files = model == SUM and project.config.publish.tuned
    typed = "gguf" if of_files else model
    source = named.find_model(named.workspace(project), typed, stage.takes[0].kinds, default="gguf")
    inputs: Inputs = {"model": source}
    if of_files:
        inputs["sum"] = sum_of(project)
    made = models.of(source)
    if made.needs_base:
        inputs["base"] = base_of(project, source)
    types = [type] if type and made.is_gguf else made.variants()
    sections = [predict_section(project, split, name) for name in types]
    if made.untuned:
        from slmctl.task.kinds import kind_of

        whole = kind_of(project.config.task.kind).chooses
        more = {
            "shots": project.config.predict.shots,
            "whole_labels": whole,
            "sample": base_sample(project.config),
        }
        sections = [section.model_copy(update=more) for section in sections]
    return [stage.request(inputs, section) for section in sections]


def base_sample(settings: config.Config) -> int:
    """Number of rows that the untuned base is asked, 0 for all: a gate that names it compares it on
    every row.

    Drafts are all answered, since people's decisions on pairs belong to the answers that they were
    shown.
    """
    from slmctl.task.kinds import kind_of

    named_in_gates = {
        str(name).partition(" (")[0]
        for gate in settings.gates
        for name in (gate.model, gate.against)
    }
    return 0 if "base" in named_in_gates or kind_of(settings.task.kind).is_free else SAMPLE


def _lora_predictions(project: Project, split: str | None) -> list[StageRequest]:
    """Requests to `predict` for the adapter's own GGUF file, once
    on the base's file of each type.
    """
    made = project.artifact("gguf")
    bases = (made.metrics.get(LORA) or {}).get("bases")
    if not bases:
        raise UsageError(
            f"{made.path} holds no adapter with its base's files",
            hint="slmctl quantize --set quantize.lora_gguf=true",
        )
    files = {each.digest: each for each in inputs_of(project, made, "base_files")}
    requests = []
    for name in dict.fromkeys(project.config.quantize.types):
        section = predict_section(project, split, name).model_copy(update={"lora": True})
        inputs: Inputs = {"model": made, "base": files[bases[name]["artifact"]]}
        requests.append(project.stage("predict").request(inputs, section))
    return requests


def inputs_of(project: Project, made: Artifact, role: str) -> list[Artifact]:
    """The artifacts below `runs/` that fill a role of an artifact.

    Raises:
        IntegrityError: One of them is not there.
    """
    value = made.manifest.inputs.get(role, [])
    here = {entry.digest: entry for entry in lineage.readable_artifacts(project.root)}
    digests = [value] if isinstance(value, str) else value
    if missing := [digest for digest in digests if digest not in here]:
        raise IntegrityError(
            f"not below {project.runs}: {role} of {made.path} ({len(missing)} of {len(digests)})",
            hint="slmctl evaluate makes it again",
        )
    return [here[digest] for digest in digests]


def measured_with(
    root: Path, first: str, second: str
) -> tuple[tuple[Artifact, Artifact], Artifact]:
    """The predictions of two models by `model_named` in the newest report on both, and the data set
    of that report.

    Raises:
        IntegrityError: No report below `runs/` measures both, or their predictions or rows are
            gone.
        UsageError: A name stands for several models.
    """
    here = {made.digest: made for made in lineage.readable_artifacts(root)}
    reports = reports_of(here.values())
    for report in reports:
        figures = report_of(report)
        models = [model_named(figures, name) for name in (first, second)]
        if all(models):
            digests = [str(figures["models"][name].get("predictions")) for name in models]
            digests.append(str(report.manifest.inputs.get(PREPARED.name)))
            if all(digest in here for digest in digests):
                return (here[digests[0]], here[digests[1]]), here[digests[2]]
    names = sorted(reports[0].metrics["models"]) if reports else []
    raise IntegrityError(
        f"no report below runs/ measures both {first} and {second}",
        hint=f"the newest measures {', '.join(names)}" if names else "slmctl evaluate",
    )


def base_of(project: Project, adapter: Artifact) -> Artifact:
    """The base that an adapter was trained on.

    Raises:
        IntegrityError: It is not among this project's artifacts.
    """
    digest = adapter.manifest.inputs.get("base")
    # an adapter that slmctl did not train: it is taken to belong to the project's base
    if digest is None:
        return project.artifact("base")
    for path in sorted((project.runs / "base").glob("*/" + MANIFEST)):
        source = artifact.load(path.parent)
        if source.digest == digest:
            return source
    raise IntegrityError(
        f"the base of {adapter.path} is not below {project.runs}", hint="slmctl pull"
    )


def encoder_of(project: Project) -> Artifact:
    """The project's encoder; raises a UsageError where the config has no section `encode`."""
    if project.config.encode is None:
        raise UsageError(
            "slmctl.yaml has no section 'encode', so there is no encoder", hint="encode: {}"
        )
    return project.artifact("encoder")


def sum_of(project: Project) -> Artifact:
    """The linear members that a release answers by, alone or beside GGUF files.

    Raises:
        IntegrityError: They have not been weighed.
        UsageError: The config has no section `encode`.
    """
    encoder_of(project)
    return project.artifact(SUM)


def ships_sum(project: Project) -> bool:
    """True if a release of the project answers by a sum, as far as it was weighed."""
    if project.config.encode is None or not project.is_made(SUM):
        return False
    return project.config.publish.linear or has_members(project.artifact(SUM))


def has_members(summed: Artifact) -> bool:
    """True unless the file is all that a sum consists of."""
    return [*summed.metrics["weights"]] != [FILE]


# Policies


def policy_request(project: Project, model: str) -> StageRequest:
    """The request for the policy of a kind of model: what is released, or the encoder."""
    stage = project.stage("calibrate")
    return stage.request(
        calibration_inputs(project, functools.partial(project.found, asker=stage.name), model)
    )


def calibration_inputs(
    project: Project,
    get: Get,
    model: str = "gguf",
    request_of: Callable[[str], StageRequest] | None = None,
) -> Inputs:
    """Inputs of a policy: answers on calibration rows, and on validation rows too where some may be
    out of scope.

    Linear members have learned the validation rows, so those count for a file alone.
    """
    section = project.stage("calibrate").settings
    splits = {"predictions": "calibration"} | (
        {"outside": "validation"} if section.out_of_scope else {}
    )
    if request_of is not None:
        inputs: Inputs = {role: get(request_of(split)) for role, split in splits.items()}
        return inputs | grouped_rows(project)
    type = None
    if model == "gguf" and project.config.publish.linear:
        get(project.stage(SUM).request(get=get))
        model = SUM
    elif model == "gguf":
        type = _served_type(project)
        if project.config.encode is not None and has_members(
            get(project.stage(SUM).request(get=get))
        ):
            model = SUM
    if model != "gguf":
        splits.pop("outside", None)
    inputs = {
        role: get(predictions_of(project, model, split, type)[0]) for role, split in splits.items()
    }
    return inputs | grouped_rows(project)


def grouped_rows(project: Project, made: Artifact | None = None) -> Inputs:
    """The data set as an input where its rows have groups: that of
    some predictions, or the project's own.
    """
    if made is None:
        grouped = any(source.group for source in project.config.prepare.sources)
        return {PREPARED.name: project.artifact(PREPARED)} if grouped else {}
    with contextlib.suppress(IntegrityError):
        # none for predictions that were made elsewhere
        for prepared in inputs_of(project, made, PREPARED.name):
            if prepared.metrics["splits"]["by"] != "content":
                return {PREPARED.name: prepared}
    return {}


def _served_type(project: Project) -> str:
    """The type of the GGUF file that a release of this project is served
    with: the chosen one, else the smallest.
    """
    model = project.artifact("gguf")
    files = model.metrics["files"]
    if project.config.evaluate.choose is not None:
        choice = project.artifact("report").metrics["choice"]["model"]
        if choice in files:
            return str(choice)
    smallest = gguf_file(model).path
    return next(str(name) for name, entry in files.items() if entry["file"] == smallest)


# Endpoints


@dataclass(frozen=True)
class EndpointModel:
    """A general model to compare with: its URL, its name there, how it is
    asked, and the examples in its prompt.
    """

    url: str
    model: str
    asking: config.Asking
    shots: int | None = None  # None: as many as the task suggests

    def require_answers(self, project: Project) -> None:
        """Refuse a task that the endpoint's API does not answer, before another model is asked.

        Raises:
            UsageError: The task has no labels, or too many.
        """
        if self.asking.api != CHAT:
            from slmctl.task import untuned_prompt
            from slmctl.task.contract import Task

            untuned_prompt.choice(Task.read(project.artifact(PREPARED).path), self.asking.api)

    def request(
        self, project: Project, shots: int | None, split: str | None, *, logprobs: bool = False
    ) -> StageRequest:
        """The request to `predict`; with `logprobs`, a chat is asked
        for the probabilities of its tokens.
        """
        section = predict_section(project, split).model_copy(update={"endpoint": self.asking})
        model = endpoint_artifact(project, self, shots, logprobs=logprobs)
        return project.stage("predict").request({"model": model}, section)


def endpoint_artifact(
    project: Project, against: EndpointModel, shots: int | None, *, logprobs: bool = False
) -> Artifact:
    """An endpoint as a model that `predict` can ask: a small file that says
    which, so that its answers are kept too.
    """
    api = against.asking.api
    more = {"api": api} if api != CHAT else {"logprobs": True} if logprobs else {}
    content = artifact.canonical(
        {"url": against.url, "model": against.model, "shots": shots, **more}
    )
    path = project.runs / ".endpoints" / f"{artifact.sha256_bytes(content)[7:19]}.json"
    if not path.exists():
        atomic.write(path, content)
    return artifact.foreign(path, "endpoint")


def endpoint_at(
    project: Project, url: str, model: str, shots: int | None = None, **flags: str | None
) -> EndpointModel:
    """Returns an endpoint that is asked as the config's is, with what flags say."""
    own = project.config.predict.endpoint
    if own.url not in (None, url):  # its key, API and prices are for its own host
        own = own.model_copy(update={"key_env": None, "api": "chat", "prices": None})
    own = own.model_copy(update={name: value for name, value in flags.items() if value is not None})
    return EndpointModel(url, model, own, shots)


def endpoint_named(project: Project, name: str, shots: int | None = None) -> EndpointModel:
    """Returns the config's endpoint for a model's name, among predict.endpoint, the teachers and
    the generalist.

    Raises:
        UsageError: No endpoint has a model of that name, or it is asked through a proxy.
    """
    settings = project.config
    endpoints: list[config.Asking] = [
        settings.predict.endpoint,
        *(settings.label.teachers if settings.label else ()),
    ]
    if (general := settings.serve.generalist) is not None:
        if general.model == name and general.proxy is not None:
            raise UsageError(
                f"the generalist {name} is asked through serve.generalist.proxy, and rows are not",
                hint="predict.endpoint, with HTTPS_PROXY where a proxy is wanted",
            )
        own = general.model_dump(include={"url", "model", "api", "key_env", "timeout_s"})
        endpoints.append(config.Asking(**own, prices=settings.prices))
    by_name = {each.model: each for each in reversed(endpoints) if each.url and each.model}
    if name not in by_name:
        names = ", ".join(f"'{each}'" for each in by_name) or "none"
        raise UsageError(
            f"slmctl.yaml has no endpoint whose model is '{name}'; it has {names}",
            hint=f"predict.endpoint: {{url: https://host/v1, model: {name}}}",
        )
    return EndpointModel(str(by_name[name].url), name, by_name[name], shots)
