"""The stage evaluate in the graph of stages: models on held-out rows, and the gates."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from slmctl import config, console
from slmctl.artifacts import artifact, lineage
from slmctl.artifacts.artifact import Artifact
from slmctl.config import EvaluateConfig
from slmctl.errors import GateError, SlmctlError, UsageError
from slmctl.inference import SUM
from slmctl.metrics import gates
from slmctl.pipeline import named, predictions, project_gates, runner
from slmctl.pipeline.estimates import KnownSizes, RowEstimate, StageEstimate
from slmctl.pipeline.graph import ENGINE, PREPARED, Get, Inputs, Project, Role, Stage, StageRequest
from slmctl.pipeline.predictions import EndpointModel, predictions_of
from slmctl.pipeline.runner import Outcome
from slmctl.reports import IN_SUM, RELEASE
from slmctl.stages.evaluate.participants import participants

ANSWER_BYTES = 2000  # of a row, in the predictions of one model and in the report
MORE_ROWS = "a larger prepare.splits.test, or another gate"


class Evaluate(Stage[EvaluateConfig]):
    """Measure models on held-out rows, beside the baselines, and check the gates."""

    name = "evaluate"
    takes = (
        Role("predictions", ("predictions",), many=True),
        PREPARED,
        Role("validation", ("predictions",), optional=True, many=True),  # to choose a file by
        # data set of the release that gates compare with
        Role("released", ("prepared",), optional=True),
        Role("sum", ("sum",), optional=True),  # linear members beside the GGUF files
    )
    waits_for = ("base", "adapter", "gguf", "encoder")
    imports = ("sklearn",)
    uses = ("scikit-learn",)
    version = 12
    stands = True

    def completed(self, section: EvaluateConfig) -> EvaluateConfig:
        grouped = any(source.group for source in self.project.config.prepare.sources)
        drafts = self.project.config.task.has("must")
        # None where nobody has judged yet
        files = {"pairs": section.pairs, "verdicts": section.verdicts_file}
        there = {
            name: path if path is not None and path.exists() else None
            for name, path in files.items()
        }
        flags = {"group_sizes": grouped, "group_numbers": grouped, "draft_checks": drafts}
        return section.model_copy(update={**flags, **there})

    def inputs(self, section: EvaluateConfig, get: Get, filled: Inputs) -> Inputs:
        if "predictions" not in filled:
            filled = filled | report_inputs(self.project, self.project.config.measured, get)
        return super().inputs(section, get, filled)

    # Known before it costs anything

    def packages(self) -> Sequence[str]:
        return () if self.project.config.publish.linear else ENGINE

    def checks(self) -> Mapping[str, Callable[[], str]]:
        return {"gates": self._gates, "release": self._release, "pairs": self._pairs}

    def _gates(self) -> str:
        """Check that what the gates name will be measured."""
        settings = self.project.config
        if not settings.gates:
            return ""
        names = {name for each in participants(settings) for name in each.names()}
        pairs = [(gate.model, None if gate.release else gate.against) for gate in settings.gates]
        _require_measured(settings, list(filter(None, itertools.chain(*pairs))), names)
        count = len(settings.gates)
        text = f"{count} gates name models that are measured"
        if count == 1:
            text = "the gate names a model that is measured"
        models = {gate.model for gate in settings.gates if gate.against not in gates.SOURCES}
        alone = sorted(model for model in models if f"{model}{IN_SUM}" in names)
        if alone:
            text += f"; {', '.join(alone)} is a file alone, and model: {RELEASE} tests what a "
            text += "release answers by"
        return text

    def _release(self) -> str:
        """The release that gates compare with, or that there is none yet."""
        compared = project_gates.reference(self.project.config, self.project.root)
        return compared.state if compared is not None else ""

    def _pairs(self) -> str:
        """A sentence where nobody has judged a pair yet."""
        path = self.settings.pairs
        if path is None or path.exists():
            return ""
        return (
            f"{path.name} is not there yet, so no pair is judged: slmctl review --pairs MODEL "
            "MODEL makes it"
        )

    def refusals(self, rows: RowEstimate) -> Iterator[SlmctlError]:
        """Gates that cannot pass on the most rows, and the most
        groups, that may fall into the test.
        """
        settings, most = self.project.config, rows.most_test
        if most is None or settings.predict.split != "test":
            return
        short: list[str] = []
        with contextlib.suppress(SlmctlError):  # which the requirement `release` tells
            checked = project_gates.checked_gates(settings, self.project.root)
            short = gates.out_of_reach(checked, most, rows.most_groups)
        if short:
            hint = f"{'rows of more groups' if rows.most_groups else 'more rows'}, {MORE_ROWS}"
            text = f"{'; '.join(short)} ({most} is the most that can fall into the test)"
            yield GateError(text, reason="gate_out_of_reach", hint=hint)

    def cost(self, sizes: KnownSizes) -> StageEstimate:
        measured = participants(sizes.settings)
        if sizes.model is None and not sizes.settings.publish.linear:
            return StageEstimate()
        rows = sizes.rows.test if sizes.rows else 0
        disk = sum(ANSWER_BYTES * rows * each.answerings() for each in measured)
        peak = max(each.memory_bytes(sizes) for each in measured)
        times = [each.seconds(sizes) for each in measured]
        known = [seconds for seconds in times if seconds is not None]
        return StageEstimate(disk, peak, sum(known) if len(known) == len(times) else None)

    def took(self, made: Artifact, whole: Sequence[Artifact]) -> float | None:
        """With all predictions that it was made of, where these are of
        as many models as the config measures.
        """
        models = sum(each.answerings() for each in participants(self.project.config))
        answered = [each.manifest.seconds for each in whole if each.kind in self.takes[0].kinds]
        same = len(made.manifest.inputs.get("predictions", [])) == models
        return made.manifest.seconds + sum(answered) if same else None

    def after(self, made: Artifact, *, current: bool) -> None:
        """Print the scoreboard and check the gates; raises a GateError where one fails."""
        show(self.project, made)

    def page(self, made: Artifact, policy: Artifact, path: Path) -> None:
        from slmctl.stages.evaluate import report_view

        report_view.write_with_policy(made, policy, path)


STAGE = Evaluate


def _require_measured(settings: config.Config, models: Sequence[str], measured: set[str]) -> None:
    named = dict.fromkeys(models)
    # base (8-shot)
    lacking = [model for model in named if model.partition(" (")[0] not in measured]
    if "chosen" in lacking:
        raise UsageError(
            "a gate names the model 'chosen', and evaluate.choose is not set",
            hint="evaluate: {choose: {smallest_within: 0.01}}",
        )
    if lacking:
        what = (
            "publish.model linear gives"
            if settings.publish.linear
            else "evaluate.models and quantize.types give"
        )
        raise UsageError(
            f"gates name models that are not measured: {', '.join(lacking)}",
            hint=f"{what} {', '.join(sorted(measured))}: take gates on others out",
        )


# Inputs of a report


def report_inputs(
    project: Project, models: Sequence[str | Path], get: Get, split: str | None = None
) -> Inputs:
    """Inputs of a report: the predictions of every model, and those of the GGUF files on validation
    rows where one is to be chosen, and of the sum with linear members where it is measured.

    Of the models of the config, the release that a gate compares with is one more.
    A report among the models stands for the predictions that it was made of, on its own data set.

    Raises:
        IntegrityError: Predictions of a report are not below `runs/`.
        UsageError: The reports are of different data sets.
    """
    reports = {model: report for model in models if (report := _named_report(project, model))}
    inputs: Inputs = {}
    all_of_config = [*models] == project.config.measured
    if reports:
        inputs["prepared"] = _common_data(project, list(reports.values()))
    if SUM in models:
        inputs["sum"] = summed = get(project.stage(SUM).request(get=get))
        models = [model for model in models if model != SUM or predictions.has_members(summed)]
    answered: dict[str, Artifact] = {}
    for model in models:
        if report := reports.get(model):
            made = predictions.inputs_of(project, report, "predictions")
        else:
            made = [get(request) for request in predictions_of(project, model, split)]
        answered |= {each.digest: each for each in made}
    listed = list(answered.values())
    inputs["predictions"] = listed
    if "gguf" in models and project.config.evaluate.choose is not None:
        inputs["validation"] = [
            get(request) for request in predictions_of(project, "gguf", "validation")
        ]
    if all_of_config:  # the gates are about what the config measures
        inputs |= _of_release(project, listed, get, split)
    return inputs


def _of_release(project: Project, made: list[Artifact], get: Get, split: str | None) -> Inputs:
    """The inputs of a report with the release that gates compare
    with: its answers and its data set.
    """
    own = {str(each.metrics.get("sha256")) for each in made}
    compared = project_gates.reference(project.config, project.root, own)
    if compared is None or compared.release is None:
        return {}
    section = predictions.predict_section(project, split).model_copy(
        update={"release": compared.name}
    )
    answered = get(project.stage("predict").request({"model": compared.release}, section))
    data = lineage.data_set(project.runs, compared.release)
    inputs: Inputs = {"predictions": [*made, answered]}
    return inputs | ({"released": data} if data is not None else {})


def _named_report(project: Project, spec: str | Path) -> Artifact | None:
    """The report that a path or an id names; None for a model."""
    if str(spec) in project.stage("predict").takes[0].kinds or str(spec).startswith("dir:"):
        return None
    path = named.artifact_path(named.workspace(project), Path(spec))
    if not (path / artifact.MANIFEST).is_file():
        return None
    opened = artifact.load(path)
    return opened if opened.kind == "report" else None


def _common_data(project: Project, reports: Sequence[Artifact]) -> Artifact:
    """The data set of all these reports, which models measured beside them answer too."""
    (first, *_), digests = (
        reports,
        {str(report.manifest.inputs.get("prepared")) for report in reports},
    )
    if len(digests) > 1:
        raise UsageError(
            f"the reports are of {len(digests)} data sets, and rows that differ cannot be paired",
            hint="slmctl ls --models lists which models were measured on which rows",
        )
    (prepared,) = predictions.inputs_of(project, first, "prepared")
    project.named["prepared"] = prepared
    project.forget()
    return prepared


# The command


def evaluate(
    project: Project,
    models: Sequence[str | Path],
    split: str | None = None,
    against: EndpointModel | None = None,
) -> Outcome:
    """Answer the held-out rows with every model, then report. Each model's answers are kept on
    their own.

    Args:
        models: Kinds of this pipeline (base, adapter, merged, gguf, lora), or paths of models.
        split: Rows to answer, when not those of the config.
        against: A general model that answers the same rows, without examples and with.

    Raises:
        What `report_inputs` and `runner.run` raise.
    """
    begun = time.monotonic()
    outcome = runner.run(
        project, request_of(project, models, split, against, get=runner.maker(project))
    )
    return replace(outcome, seconds=time.monotonic() - begun)


def request_of(
    project: Project,
    models: Sequence[str | Path],
    split: str | None,
    against: EndpointModel | None,
    *,
    get: Get,
) -> StageRequest:
    """The request of the report that `evaluate` makes, whose answers `get` finds or makes."""
    section = None
    if against is not None:
        section = _with_prices_of(project, against)
        against.require_answers(project)
    inputs = report_inputs(project, models, get, split)
    if against is not None:
        for shots in (0, against.shots):
            measured = inputs["predictions"]
            assert isinstance(measured, list)
            inputs["predictions"] = [*measured, get(against.request(project, shots, split))]
    return Evaluate(project).request(inputs, section)


def _with_prices_of(project: Project, against: EndpointModel) -> EvaluateConfig:
    """The section evaluate, whose break-even is with the prices of the endpoint that is asked,
    where they are known.

    Raises:
        UsageError: They are in another currency than the machine's.
    """
    section, prices = Evaluate(project).settings, against.asking.prices
    if prices is None or section.prices is None:
        return section
    if prices.currency != section.prices.currency:
        raise UsageError(
            f"the prices of {against.model} are in {prices.currency}, and the machine's in "
            f"{section.prices.currency}",
            hint="prices.currency",
        )
    machine = section.prices.model_copy(update={"input": prices.input, "output": prices.output})
    return section.model_copy(update={"prices": machine})


def show(project: Project, report: Artifact, *, only_measured: bool = False) -> None:
    """Print the scoreboard, write the page that has it with gates and training, and check the
    gates.

    Raises:
        GateError: A gate failed.
    """
    from slmctl.reports import scoreboard
    from slmctl.reports.evaluation_report import report_of
    from slmctl.stages.evaluate import report_view

    figures = report_of(report)
    head, rows = scoreboard.table(figures)
    title = f"{console.count(figures['n'], 'held-out row')} ({figures['split']})"
    console.table(title, head, rows, optional=scoreboard.optional(figures))
    if by_chance := scoreboard.by_chance(figures):
        console.say(f"  {by_chance}")
    for remark in figures["remarks"]:
        console.say(f"  note: {remark}")
    console.say(f"  page: {report_view.write(project, report, only_measured=only_measured)}")
    if linear := report_view.linear(project, figures):
        console.say(f"  {linear}")
    for text in project_gates.of_files(project, figures):
        console.say(f"  note: {text}")
    for verdict in project_gates.enforce(project, report, only_measured=only_measured):
        console.say(f"  gate passed: {verdict.text}")
