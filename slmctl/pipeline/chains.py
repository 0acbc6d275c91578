"""Stages that run one after another: evaluate, calibrate and publish with what they need before."""

from __future__ import annotations

import contextlib
import functools
import importlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slmctl import config, console
from slmctl.artifacts import artifact, atomic, locks
from slmctl.artifacts.artifact import Artifact
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.errors import DataError, GateError, UsageError
from slmctl.metrics import gates
from slmctl.model_files import encoder_source
from slmctl.network import guard
from slmctl.network.decisions import CHAT
from slmctl.pipeline import released
from slmctl.pipeline.resolve import (
    TRY_FIRST,
    Project,
    StageRequest,
    base_file_requests,
    calibration_inputs,
    find,
    is_made,
    predict_section,
    report_inputs,
    resolve_stage,
)
from slmctl.pipeline.runner import Outcome, run
from slmctl.pipeline.stage_rules import target_settings
from slmctl.pipeline.stage_table import PREPARED, STAGES
from slmctl.pipeline.system_errors import spoken
from slmctl.releases import deliveries, signing, targets
from slmctl.reports.evaluation_report import EvaluationReport, measured_names, parse_report
from slmctl.reports.scoreboard import PlannedFile, PublishPlan
from slmctl.sources import reviewed, snapshot
from slmctl.task import untuned_prompt
from slmctl.task.contract import Task
from slmctl.task.records import read_records


def gather_sources(project: Project) -> None:
    """Copy the sources that are no files, anew: queries, data sets of the hub, pipes, standard input.

    Raises:
        LockedError: Another process copies them and `project.wait` is false.
        NetworkError: A host could not be reached.
        And what `gather.gather` raises.
    """
    sources, labelling = list(project.config.prepare.sources), project.config.label
    sources += [*labelling.sources, *labelling.gold] if labelling is not None else []
    for path in snapshot.reviews_among(project.config.prepare.sources):
        console.say(f"  {reviewed.note(path)}")
    if all(snapshot.is_file(source) for source in sources):
        return
    lock = project.runs / ".locks" / "sources"
    with locks.lock(lock, wait=project.wait, on_wait=project.on_wait), spoken("gather", project.sources):
        snapshot.gather(sources, project.sources, project.config.prepare.limits)
    project.forget()


def run_stage(project: Project, name: str, section: config.Section | None = None) -> Outcome:
    """Run a stage of the pipeline, with what has to be there before, and say where its report is.

    Args:
        project: Where.
        name: Which stage.
        section: A config to use in place of the project's.

    Raises:
        DataError: An adapter of such LoRA targets could not go through the stages after the training.
        And what `gather_sources` and `run` raise.
    """
    begun = time.monotonic()
    if name in ("prepare", "label"):
        gather_sources(project)
    if name == "quantize" and project.config.quantize.lora_gguf:
        _write_base_files(project)
    request = resolve_stage(project, name, section=section)
    if name == "finetune":
        _try_targets(project, request)
    more = {"label": {"journals": project.journals}, "encode": {"encoders": project.encoders}}.get(name, {})
    outcome = replace(run(project, request, **more), seconds=time.monotonic() - begun)
    encode = project.config.encode
    missing = name == "pull" and encode is not None and encoder_source.is_to_fetch(encode, project.encoders)
    if encode is not None and missing and not is_made(project, "encoder"):
        with spoken("encode", project.encoders), guard.written_down(project.root, "pull"):
            encoder_source.kept(encode, project.encoders)
    if name == "pull" and not outcome.current and config.is_remote(project.config.base):
        console.say(f"  in another project, without a download and without pull.sha256: base: {outcome.artifact.path}")
    if name == "prepare":
        _tell_gates_out_of_reach(project, outcome.artifact)
    if name in ("prepare", "label") and not outcome.current:
        console.say(f"  report: {outcome.artifact.file('report.html')}")
    return outcome


def _try_targets(project: Project, request: StageRequest) -> None:
    """Before a training whose LoRA targets are set, try them on a small copy of the base."""
    section, base = request.section, request.inputs["base"]
    assert isinstance(section, config.FinetuneConfig)
    assert isinstance(base, Artifact)
    if section.lora.target_modules == "all-linear" or not project.config.pull.rehearse or request.path.exists():
        return
    from slmctl.pipeline import rehearsal

    console.say("  rehearsing the stages after finetune with finetune.lora.target_modules on a small copy")
    rehearsal.rehearse(base.path, section.lora)


def _write_base_files(project: Project) -> None:
    """The base's own GGUF file of each type, where an adapter is to go on it; most often they are there."""
    adapter = find(project, "adapter")
    for request in base_file_requests(project, project.config.quantize, adapter):
        outcome = run(project, request)
        for entry in outcome.artifact.files(".gguf"):
            console.say(f"  {'current' if outcome.current else 'base'}: {outcome.artifact.path / entry.path}")


def plan_of_label(project: Project) -> tuple[JsonObject, list[str]]:
    """The cost of labelling, as JSON values and as lines; some rows are asked for it, and their answers kept.

    Raises:
        What the stage `label` raises.
    """
    gather_sources(project)
    section = resolve_stage(project, "label").section
    with spoken("label", project.runs), guard.written_down(project.root, "label --plan"):
        module = importlib.import_module(STAGES["label"].module)
        made = module.plan(section, journals=project.journals)
    return made.to_json(), list(made.lines())


def _tell_gates_out_of_reach(project: Project, prepared: Artifact) -> None:
    """Say which gates cannot pass on the rows that are there, before a model is trained for them."""
    split = project.config.predict.split
    if rows := prepared.metrics.get(split, 0):
        for sentence in gates.out_of_reach(released.checked_gates(project.config, project.root), rows):
            console.say(f"  {sentence}")


@dataclass(frozen=True)
class EndpointModel:
    """A general model to measure beside: where it is asked, its name there, and the examples in its prompt."""

    url: str
    model: str
    shots: int | None = None  # None: as many as the task suggests
    asking: config.Asking | None = None  # None: as the section predict says


def endpoint_named(project: Project, name: str, shots: int | None = None) -> EndpointModel:
    """The endpoint of the config whose model has a name: that of predict, a teacher or the generalist.

    Raises:
        UsageError: There is none.
    """
    settings = project.config
    endpoints: list[config.Asking] = [settings.predict.endpoint, *(settings.label.teachers if settings.label else ())]
    if (general := settings.serve.generalist) is not None:
        if general.model == name and general.proxy is not None:
            raise UsageError(
                f"the generalist {name} is asked through serve.generalist.proxy, and rows are not",
                hint="predict.endpoint, with HTTPS_PROXY where a proxy is wanted",
            )
        own = general.model_dump(include={"url", "model", "api", "key_env", "timeout_s"})
        endpoints.append(config.Asking(**own, prices=settings.prices))
    named = {each.model: each for each in reversed(endpoints) if each.url and each.model}
    if name not in named:
        names = ", ".join(f"'{each}'" for each in named) or "none"
        raise UsageError(
            f"slmctl.yaml has no endpoint whose model is '{name}'; it has {names}",
            hint=f"predict.endpoint: {{url: https://host/v1, model: {name}}}",
        )
    return EndpointModel(str(named[name].url), name, shots, named[name])


def evaluate(
    project: Project, models: Sequence[str | Path], split: str | None = None, against: EndpointModel | None = None
) -> Outcome:
    """Answer the held-out rows with every model, then report. Each model's answers are kept on their own.

    Args:
        project: Where.
        models: Kinds of this pipeline (base, adapter, merged, gguf, lora), or paths of models.
        split: Rows to answer, when not those of the config.
        against: A general model that answers the same rows, without examples and with.

    Raises:
        What `report_inputs` and `run` raise.
    """
    begun = time.monotonic()
    section = None
    if against is not None:
        section = _with_prices_of(project, against)
        _require_answers(project, against)
    inputs = report_inputs(project, models, lambda request: run(project, request).artifact, split)
    if against is not None:
        for shots in (0, against.shots) if _asking(project, against).api == CHAT else (0,):
            request = _asked(project, against, shots, split)
            inputs["predictions"] = [*inputs["predictions"], run(project, request).artifact]
    return replace(run(project, resolve_stage(project, "evaluate", inputs, section)), seconds=time.monotonic() - begun)


def _asking(project: Project, against: EndpointModel) -> config.Asking:
    return against.asking or project.config.predict.endpoint


def _asked(
    project: Project, against: EndpointModel, shots: int | None, split: str | None, *, logprobs: bool = False
) -> StageRequest:
    """The request to `predict` for an endpoint."""
    section = predict_section(project, split).model_copy(update={"endpoint": _asking(project, against)})
    return resolve_stage(project, "predict", {"model": endpoint(project, against, shots, logprobs=logprobs)}, section)


def _require_answers(project: Project, against: EndpointModel) -> None:
    """Refuse a task that the endpoint's API does not answer, before another model is asked.

    Raises:
        UsageError: The task has no labels, or too many.
    """
    if (api := _asking(project, against).api) != CHAT:
        untuned_prompt.choice(Task.read(find(project, PREPARED).path), api)


def _with_prices_of(project: Project, against: EndpointModel) -> config.Section:
    """The section evaluate, whose break-even is with the prices of the endpoint that is asked, where they are known.

    Raises:
        UsageError: They are in another currency than the machine's.
    """
    section, prices = config.stage_config(project.config, "evaluate"), _asking(project, against).prices
    assert isinstance(section, config.EvaluateConfig)
    if prices is None or section.prices is None:
        return section
    if prices.currency != section.prices.currency:
        raise UsageError(
            f"the prices of {against.model} are in {prices.currency}, and the machine's in {section.prices.currency}",
            hint="prices.currency",
        )
    machine = section.prices.model_copy(update={"input": prices.input, "output": prices.output})
    return section.model_copy(update={"prices": machine})


def calibrate(project: Project, model: str = "gguf", *, against: EndpointModel | None = None) -> Outcome:
    """Answer the calibration rows with the file that is served, the encoder, or an endpoint, then fit the policy.

    Raises:
        DataError: The data set has too few calibration rows.
        And what `calibration_inputs` and `run` raise.
    """
    begun = time.monotonic()
    inputs: dict[str, Artifact | list[Artifact]] = {}
    if "predictions" in project.named:
        role = STAGES["calibrate"].takes[1]
        inputs = {role.name: find(project, role)} if role.name in project.named else {}
    else:
        prepared, request = find(project, PREPARED), None
        rows = prepared.metrics["calibration"]
        least = 1
        if against is not None:
            from slmctl.metrics import error_threshold

            least = error_threshold.MIN_ROWS  # before any of them is paid for; sensitive ones are never sent
            rows = sum(not record.sensitive for record in read_records(prepared.file("calibration.jsonl")))
        if rows < least:
            needs = f", and {least} are needed for a bound" if rows else ""
            raise DataError(
                f"the data set has {rows or 'no'} calibration rows{needs}", hint="prepare.splits.calibration: 0.15"
            )
        if against is not None:
            _require_answers(project, against)
            request = functools.partial(_asked, project, against, 0, logprobs=_asking(project, against).api == CHAT)
        inputs = calibration_inputs(project, lambda request: run(project, request).artifact, model, request)
    return replace(run(project, resolve_stage(project, "calibrate", inputs)), seconds=time.monotonic() - begun)


def endpoint(project: Project, against: EndpointModel, shots: int | None, *, logprobs: bool = False) -> Artifact:
    """An endpoint as a model that `predict` can ask: a small file that says which, so that its answers are kept too.

    With `logprobs`, a chat is asked for the probabilities of its tokens.
    """
    api = _asking(project, against).api
    more = {"api": api} if api != CHAT else {"logprobs": True} if logprobs else {}
    content = artifact.canonical({"url": against.url, "model": against.model, "shots": shots, **more})
    path = project.runs / ".endpoints" / f"{artifact.sha256_bytes(content)[7:19]}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.file(path) as draft:
            draft.write_bytes(content)
    return artifact.foreign(path, "endpoint")


def publish(project: Project) -> tuple[Outcome, str, bool]:
    """Check the gates, lay out the release, and send it to where releases go.

    Returns:
        The outcome of the stage, where the release lies, and whether it was there already.

    Raises:
        GateError: A gate failed, no report measured a file, or the release would give something away.
        IntegrityError: The target has another release under the same version.
    """
    outcome, shipment = release(project)
    with _target(project, "publish") as target:
        made = targets.plan(target, project.config.publish.to, shipment)
        console.say(
            f"  {console.size(made.size)} to send, {len(made.missing)} of {console.count(len(shipment.items), 'file')}"
        )
        targets.deliver(target, made)
        deliveries.record(project.runs, outcome.artifact, project.config.publish.to)
        where = target.where(shipment, shipment.manifest).rpartition("/")[0]
    return outcome, where, made.there and not made.missing


def plan_of_publish(project: Project) -> tuple[Outcome, PublishPlan]:
    """The files that `publish` would send and their places, as JSON values; builds the release, sends nothing."""
    outcome, shipment = release(project)
    with _target(project, "publish --plan") as target:
        made = targets.plan(target, project.config.publish.to, shipment)
        verdicts = enforce_gates(project, find(project, "report"))
        lacking = {item.name for item in made.missing}
        return outcome, {
            "to": made.to,
            "visibility": target.visibility,
            "license": outcome.artifact.metrics["license"],
            "hosts": list(target.hosts),
            "there": made.there,
            "bytes_to_send": made.size,
            "signed": artifact.SIGNATURE in {item.name for item in shipment.items},
            "gates": [verdict.text for verdict in verdicts],
            "files": [
                PlannedFile(
                    file=item.name, size=item.size, sha256=item.sha256, to=target.where(shipment, item),
                    send=item.name in lacking,
                )
                for item in shipment.items
            ],
        }  # fmt: skip


def release(project: Project) -> tuple[Outcome, targets.Shipment]:
    """A release that may go out: its gates passed, laid out, searched for what must not leave, signed."""
    enforce_gates(project, find(project, "report"))
    outcome = run(project, resolve_stage(project, "publish"))
    section = project.config.publish
    with spoken("publish", project.runs):
        module = importlib.import_module(STAGES["publish"].module)
        module.require_allowed(outcome.artifact, section)
        signature = None
        if section.signing_key is not None:
            signature = signing.sign(outcome.artifact, section.signing_key, project.runs)
    return outcome, targets.shipment(outcome.artifact, signature=signature, gates=project.config.gates)


@contextlib.contextmanager
def _target(project: Project, what: str) -> Iterator[targets.Target]:
    to = project.config.publish.to
    with (
        spoken(what, project.root),
        guard.written_down(project.root, what),
        targets.opened(to, target_settings(project.config, project.root), purpose=what) as target,
    ):
        yield target


def enforce_gates(project: Project, report: Artifact, *, only_measured: bool = False) -> list[gates.GateResult]:
    """Every gate of the config against a report.

    Args:
        project: Where the gates stand.
        report: What was measured.
        only_measured: Leave out gates about models that this report did not measure.

    Raises:
        GateError: At least one failed.
    """
    try:
        return gates.enforce(*_gates(project, report, only_measured))
    except GateError as error:
        if is_made(project, "gguf"):
            error.hint = f"{error.hint}; {TRY_FIRST}"
        raise


def gate_results(project: Project, report: Artifact, *, only_measured: bool = False) -> list[gates.GateResult]:
    """`enforce_gates` without its error: each gate's result, failed or not; a gate that cannot be checked failed."""
    checked, figures = _gates(project, report, only_measured)
    results = []
    for gate in checked:
        try:
            results += gates.check([gate], figures)
        except (GateError, UsageError) as error:
            results.append(gates.GateResult(False, f"{error.message} ({error.hint})"))
    return results


def _gates(project: Project, report: Artifact, only_measured: bool) -> tuple[list[config.Gate], EvaluationReport]:
    figures = parse_report(report.metrics, where=f"the manifest of {report.path}")
    names = measured_names(figures)
    return [
        gate for gate in project.config.gates if not only_measured or {gate.model, gate.against or gate.model} <= names
    ], figures
