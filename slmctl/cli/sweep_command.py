"""`slmctl sweep`: its plan, its trials, and the keys that it writes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from slmctl.cli.group import (
    Options,
    config_options,
    import_trainer_first,
    offline_option,
    open_project,
    option,
    print_result,
    say_outcome,
    terminal,
)

if TYPE_CHECKING:
    from slmctl.artifacts.bounded_json import JsonObject
    from slmctl.pipeline.resolve import Project
    from slmctl.pipeline.sweep import SweepRequest, SweepResult
    from slmctl.pipeline.sweep_plan import Rung

UNITS = {"h": 3600, "m": 60, "s": 1}


class _Duration(click.ParamType):
    """A time such as 2h, 90m or 1h30m; its value is in seconds."""

    name = "TIME"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        parts = re.findall(r"(\d+(?:\.\d+)?)\s*([hms])", value)
        if not parts or re.sub(r"\d+(?:\.\d+)?\s*[hms]|\s", "", value):
            self.fail(f"'{value[:40]}' is no time such as 2h, 90m or 1h30m", param, ctx)
        return float(sum(float(number) * UNITS[unit] for number, unit in parts))


@click.command()
@click.argument("space", nargs=-1, metavar="[KEY=VALUE,VALUE...]...")
@click.option("--budget", type=_Duration(), required=True, help="Time for all trials together, such as 2h or 90m.")
@click.option("--plan", "plan_only", is_flag=True, help="Print the rungs and their time, and stop.")
@click.option("--no-write", is_flag=True, help="Leave slmctl.yaml as it is.")
@option("--json", store="json", is_flag=True, help="Print the plan or the result as JSON.")
@option("--no-wait", store="no_wait", is_flag=True, help="Exit with 8 if another process runs the same sweep.")
@offline_option
@config_options
@click.pass_obj
def sweep(options: Options, space: tuple[str, ...], budget: float, plan_only: bool, no_write: bool) -> None:
    """Try settings of finetune on validation rows, and write those that are better into slmctl.yaml.

    KEY=VALUE,VALUE names what to try, such as finetune.learning_rate=2e-4,4e-4 finetune.lora.rank=16,32; by
    default learning rate, rank and epochs around those of today. All candidates train on a share of the rows, the
    best go on to more, and the finalists train with two seeds. Settings replace those of today only if they are
    better by more than chance. Test rows are not read. The same command goes on after Ctrl-C or a kill.
    """
    from slmctl import config
    from slmctl.cli import base_table, sweep_page
    from slmctl.pipeline import chains, preflight
    from slmctl.pipeline import sweep as trials

    project = open_project(options)
    path = project.root / config.FILENAME
    stages = ["pull", "prepare", "finetune"]
    rates = base_table.measured_rates()
    chains.require_no_network(project, stages)
    preflight.plan(project, stages, rates).require()

    def read(more: Sequence[str]) -> config.Config:
        return config.load(path, [*options.sets, *more])

    made = trials.request(project, read, space, budget, rates)
    if plan_only:
        planned = made.planned()
        print_result(options, _plan_fields(made, planned), _plan_lines(made, planned))
        return
    import_trainer_first(project)
    _make_ready(project)
    made = trials.request(project, read, space, budget, rates)  # with the rows as they are counted now
    console = terminal()
    for line in _plan_lines(made, made.planned()):
        console.say(line)
    try:
        result = trials.run(made, console.say)
    except KeyboardInterrupt:
        console.say("  finished trials are kept, too")
        raise
    page = sweep_page.write(result)
    values = dict(result.chosen.values)
    if values and not no_write:
        config.write_values(path, values)
    print_result(options, result.to_json() | {"page": str(page)}, _result_lines(result, written=not no_write))
    console.say(f"  page: {page}")


def _make_ready(project: Project) -> None:
    """Make base and data set, where they are not current."""
    from slmctl.pipeline import chains

    for name in ("pull", "prepare"):
        if name == "prepare":
            chains.gather_sources(project)
        say_outcome(name, chains.run_stage(project, name))


def _plan_fields(made: SweepRequest, planned: Sequence[Rung] | None) -> JsonObject:
    from dataclasses import asdict

    from slmctl.pipeline import sweep_plan

    rungs = planned or made.smallest()
    return {
        "budget_s": made.budget_s,
        "seconds": sweep_plan.seconds_of(rungs),
        "rows": {"train": made.rows.train, "validation": made.rows.validation},
        "candidates": [candidate.name for candidate in made.tried],
        "rungs": [asdict(rung) for rung in rungs],
    }


def _plan_lines(made: SweepRequest, planned: Sequence[Rung] | None) -> Iterator[str]:
    """The rungs as a table, and their time beside the budget."""
    from slmctl.pipeline import sweep_plan

    console = terminal()
    rungs = planned or made.smallest()
    rows = [
        [
            "finalists" if number == len(rungs) else f"rung {number}",
            str(rung.candidates),
            console.percent(rung.share, 0),
            str(rung.seeds),
            str(rung.trials),
            "-" if rung.seconds is None else console.duration(rung.seconds),
        ]
        for number, rung in enumerate(rungs, 1)
    ]
    yield from console.table_lines(("round", "candidates", "rows", "seeds", "trials", "time"), rows)
    seconds = sweep_plan.seconds_of(rungs)
    if seconds is None:
        yield "the first trial tells the time of the others; shares of the rows then fit the budget"
    else:
        yield f"at most about {console.duration(seconds)} of {console.duration(made.budget_s)}"


def _result_lines(result: SweepResult, *, written: bool) -> Iterator[str]:
    """The finalists as a table, and what became of slmctl.yaml."""
    console = terminal()
    if result.choice is None:
        yield "the budget ended before two finalists were trained: slmctl.yaml stays as it is"
        return
    incumbent = result.choice.incumbent
    rows = [[incumbent.name, f"{incumbent.loss:.4f}", "-", "-", "-"]]
    for verdict in sorted(result.choice.verdicts, key=lambda each: each.finalist.loss):
        change, error = (value / incumbent.loss for value in (-verdict.gain.mean, verdict.gain.error))
        rows.append([
            verdict.finalist.name, f"{verdict.finalist.loss:.4f}", f"{100 * change:+.1f} %", f"{100 * error:.1f} %",
            "yes" if verdict.better else "no",
        ])  # fmt: skip
    columns = ("finalist", "validation loss", "change", "standard error", "beyond chance")
    yield from console.table_lines(columns, rows, optional=("standard error",))
    values = result.chosen.values
    if not values:
        yield "no candidate is better than slmctl.yaml by more than chance: it stays as it is"
        return
    verb = "written into slmctl.yaml" if written else "chosen, and not written"
    yield f"{verb}: {', '.join(f'{key}: {value}' for key, value in values.items())}"


COMMANDS = (sweep,)
