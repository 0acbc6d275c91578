"""`slmctl measure`: the task router of a fleet and its models, measured together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slmctl.cli.group import Options, config_options, open_project, option, print_result, terminal
from slmctl.errors import GateError, UsageError

if TYPE_CHECKING:
    from slmctl.cli.seen_rows import SeenRows
    from slmctl.config import Config, Prices
    from slmctl.metrics.fleet_figures import FleetOutcome, Kept
    from slmctl.pipeline.resolve import Project
    from slmctl.reports.fleet_page import FleetCost, FleetReport, KeptLine
    from slmctl.stages.predict.fleet_answers import FleetModel, FleetRow, Timing

PAGE, FIGURES = "fleet.html", "fleet.json"
NO_SHARED = "No threshold was set for all together"


@click.command()
@click.option(
    "--policies",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write each policy with the shared threshold, for serve.fleet.NAME.policy.",
)
@option("--json", store="json", is_flag=True, help="Print the result as JSON.")
@config_options
@click.pass_obj
def measure(options: Options, policies: Path | None) -> None:
    """Measure the task router of serve.fleet and its models together.

    In the router's project, its held-out rows are asked of it, then of the model that it names, and of a larger one
    where that has one. Calibration rows set one threshold for all, by one fixed sequence; test rows say how right the
    kept answers are. Writes runs/fleet.html and runs/fleet.json.
    """
    from slmctl.artifacts import atomic
    from slmctl.artifacts.artifact import canonical
    from slmctl.reports import fleet_page, html_page

    project = open_project(options)
    router = _router(project.config)
    models = _models(options, project)
    calibration, test, timings, notes = _answered(project, models, router)
    report, least = _report(project.config, router, calibration, test, timings, notes)
    fields = {**dataclasses.asdict(report), "threshold": least}
    folder = project.root / "runs"
    with atomic.file(folder / PAGE) as draft:
        html_page.write(draft, fleet_page.page(report))
    with atomic.file(folder / FIGURES) as draft:
        draft.write_bytes(canonical(fields))
    print_result(options, fields, _lines(report))
    terminal().say(f"  page: {folder / PAGE}")
    if policies is not None:
        if least is None:
            raise GateError(report.fault or NO_SHARED, hint="more calibration rows, or a larger calibrate.max_error")
        for path in _write_policies(options.directory / policies, models, least):
            terminal().say(f"wrote {path}")


COMMANDS = (measure,)


def _router(settings: Config) -> str:
    routers = [name for name, member in settings.serve.fleet.items() if member.router]
    if len(routers) != 1:
        raise UsageError(
            f"serve.fleet has {len(routers)} task routers, and measure is for one",
            hint="slmctl init fleet-router writes a fleet with one",
        )
    return routers[0]


def _larger(settings: Config) -> dict[str, str]:
    """The larger model of each that has one, by name."""
    return {name: member.larger for name, member in settings.serve.fleet.items() if member.larger is not None}


def _models(options: Options, project: Project) -> dict[str, FleetModel]:
    """The models of the config's fleet by name, each verified with its policy."""
    from slmctl.cli.served_fleet import ServedFleet
    from slmctl.inference.escalation_policy import Policy
    from slmctl.stages.predict.fleet_answers import FleetModel
    from slmctl.task.contract import Task

    releases = ServedFleet(options, project.config.serve, None, None, keys=False).releases()
    return {
        name: FleetModel(release, Task.read(release.path), Policy.read(policy) if policy is not None else None)
        for name, (release, policy) in releases.items()
    }


def _answered(
    project: Project, models: Mapping[str, FleetModel], router: str
) -> tuple[list[FleetOutcome], list[FleetOutcome], dict[str, Timing], list[str]]:
    """The rows of calibration and test as the fleet answers them, and notes on rows that are left out.

    Raises:
        UsageError: No row is left, or the data of a larger model is not here.
    """
    from slmctl.cli import seen_rows
    from slmctl.pipeline import resolve
    from slmctl.pipeline.stage_table import PREPARED
    from slmctl.stages.predict import fleet_answers
    from slmctl.task.records import read_records

    prepared, sources = resolve.find(project, PREPARED), project.config.prepare.sources
    larger, seen = _larger(project.config), _seen(project, models)
    rows_of = {split: read_records(prepared.file(f"{split}.jsonl")) for split in ("calibration", "test")}
    held, notes = seen_rows.unseen(
        (
            (split, record, own)
            for split, records in rows_of.items()
            for record, own in zip(records, fleet_answers.originals(sources, records), strict=True)
        ),
        seen, larger,
    )  # fmt: skip
    rows, timings = fleet_answers.answers(
        models, router, [record for _, record, _ in held], [own for _, _, own in held], larger=larger,
        max_tokens=project.config.predict.max_tokens,
    )  # fmt: skip
    outcomes: dict[str, list[FleetOutcome]] = {"calibration": [], "test": []}
    for (split, record, own), row in zip(held, rows, strict=True):
        fits = own is not None and record.answer in seen and seen[record.answer].fits(own)
        outcomes[split].append(_outcome(row, models, project.config, fits=fits))
    return outcomes["calibration"], outcomes["test"], timings, [*notes, *fleet_answers.remarks(models, larger)]


def _seen(project: Project, models: Mapping[str, FleetModel]) -> dict[str, SeenRows]:
    """The rows that a larger model was trained and chosen by, by the name of the model before it.

    Raises:
        UsageError: The data of a larger model is not here.
    """
    from slmctl.cli import fleet_project
    from slmctl.cli.seen_rows import SeenRows
    from slmctl.config import NO_TASK

    root, seen = project.root.resolve(), {}
    rows = [source.local for source in project.config.prepare.sources if source.label not in (None, NO_TASK)]
    beside = [place for path in rows for place in path.resolve().parents[4:5]]  # of PROJECT/runs/prepared/…/test.jsonl
    for name, other in _larger(project.config).items():
        release = models[other].release
        places = fleet_project.project_places([*release.path.resolve().parents[2:3], root, root.parent, *beside])
        _, data = fleet_project.made_of(
            other, release, places, hint="put the project that made it beside this one",
            where="in no folder beside its registry or here, so nobody knows which rows it has seen",
        )  # fmt: skip
        seen[name] = SeenRows.of(data)
    return seen


def _outcome(row: FleetRow, models: Mapping[str, FleetModel], settings: Config, *, fits: bool) -> FleetOutcome:
    """A row as it counts; `fits` is true where it fitted the score of a larger model."""
    from slmctl.config import CalibrateConfig
    from slmctl.metrics.error_threshold import FIT_SHARE, place_of
    from slmctl.metrics.fleet_figures import FleetOutcome, ModelOutcome
    from slmctl.stages.calibrate.calibrate import is_right

    config, named = settings.calibrate or CalibrateConfig(), row.named
    answers = tuple(
        ModelOutcome(
            model,
            named.text == row.task and is_right(models[row.task].task, config, answer.text, row.expected),
            named.keep and answer.keep,
            min(named.score, answer.score),  # so that a threshold on it is the same threshold for router and model
        )
        for model, answer in row.answered.items()
    )
    fits = fits or any(place_of(id) < FIT_SHARE for id in (row.id, row.origin) if id)
    tokens = next(iter(row.answered.values()), named).tokens
    return FleetOutcome(row.task, named.text, named.keep, answers, fits, tokens)


def _report(
    settings: Config,
    router: str,
    calibration: Sequence[FleetOutcome],
    test: Sequence[FleetOutcome],
    timings: Mapping[str, Timing],
    notes: list[str],
) -> tuple[FleetReport, float | None]:
    """The report, and the threshold of all."""
    from slmctl.config import NO_TASK, CalibrateConfig
    from slmctl.metrics import fleet_figures
    from slmctl.reports.fleet_page import FleetReport

    config = settings.calibrate or CalibrateConfig()
    least, fault = None, ""
    try:
        least, _ = fleet_figures.threshold(calibration, config)
    except GateError as error:
        fault = f"{NO_SHARED}: {error.message}."
    if least is not None and abs(least) == float("inf"):
        least, fault = None, f"{NO_SHARED}: no model of the fleet has a policy."
    level = config.confidence
    own = fleet_figures.kept(test, least=None, confidence=level)
    tasks = [
        _line(name, fleet_figures.kept([row for row in test if row.task == name], least=None, confidence=level))
        for name in sorted({row.task for row in test} - {NO_TASK})
    ]
    shared = fleet_figures.kept(test, least=least, confidence=level) if least is not None else None
    if not own["none_rows"]:
        notes = [*notes, "No row is for none of the models, so nothing is known of such questions."]
    report = FleetReport(
        f"{settings.project} {settings.version}", level, _line("the policies' own", own),
        _line("one for all", shared) if shared is not None else None, fault, tasks, fleet_figures.by_model(test),
        _larger(settings), fleet_figures.confusion(test),
        {name: timing.median_ms for name, timing in timings.items()}, router,
        _cost(settings.serve.prices, test, timings, router, own["kept_rows"]), notes,
    )  # fmt: skip
    return report, least


def _line(title: str, kept: Kept) -> KeptLine:
    from slmctl.reports.fleet_page import KeptLine

    low, high = kept["interval"]
    return KeptLine(
        title, kept["rows"], kept["kept"], kept["kept_rows"], kept["wrong"], kept["accuracy"], (low, high),
        kept["error_bound"], kept["none_rows"], kept["none_kept"],
    )  # fmt: skip


def _cost(
    prices: Prices | None, rows: Sequence[FleetOutcome], timings: Mapping[str, Timing], router: str, kept: int
) -> FleetCost | None:
    """The cost of 1,000 questions here, with those that are not kept at the general model, and of all of them there."""
    from slmctl.reports.fleet_page import FleetCost

    if prices is None or not rows:
        return None
    prompt, answer = (sum(row.tokens[place] for row in rows) / len(rows) for place in (0, 1))
    there = (prompt * prices.api_per_million_input_tokens + answer * prices.api_per_million_output_tokens) / 1000
    ms = [timings[router].median_ms + sum(timings[answer.model].median_ms for answer in row.asked) for row in rows]
    machine = sum(ms) / len(ms) / 3600 * prices.machine_per_hour
    return FleetCost(prices.currency, machine + there * (1 - kept / len(rows)), there)


def _write_policies(folder: Path, models: Mapping[str, FleetModel], least: float) -> Iterator[Path]:
    """Write the policy of each model that has one, with the shared threshold."""
    from slmctl.artifacts import atomic
    from slmctl.artifacts.artifact import canonical

    folder.mkdir(parents=True, exist_ok=True)
    for name, model in models.items():
        if model.policy is not None:
            with atomic.file(folder / f"{name}.json") as draft:
                draft.write_bytes(canonical(dataclasses.asdict(dataclasses.replace(model.policy, threshold=least))))
            yield folder / f"{name}.json"


def _lines(report: FleetReport) -> Iterator[str]:
    percent = terminal().percent
    for line in [report.own, *([report.shared] if report.shared is not None else []), *report.tasks]:
        low, high = line.interval
        right = "nothing" if line.accuracy is None else percent(line.accuracy)
        yield (
            f"{line.title}: {percent(line.kept)} of {line.rows:,} rows kept; {right} of the answers right "
            f"({percent(low)} to {percent(high)}), error at most {percent(line.error_bound)}"
        )
    for model, rows, kept, wrong in report.models if report.larger else ():
        yield f"{model}: asked about {rows:,} rows; {kept:,} of its answers kept, {wrong:,} of these wrong"
    if report.own.none_rows:
        yield f"for no model: {percent(1 - report.own.none_kept)} of {report.own.none_rows:,} rows sent away"
    if report.fault:
        yield report.fault
    if report.cost is not None:
        cost = report.cost
        yield f"1,000 questions: {cost.here:,.3f} {cost.currency}, all at the general model {cost.there:,.3f}"
