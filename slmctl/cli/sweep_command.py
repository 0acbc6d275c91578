"""`slmctl sweep`: its plan, its trials, and the settings that it chooses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from slmctl.cli.group import (
    Options,
    config_options,
    offline_option,
    open_project,
    option,
    print_result,
    say_outcome,
    terminal,
)

if TYPE_CHECKING:
    from slmctl.config import Config
    from slmctl.stages.finetune.sweep import SweepCandidate, SweepResult


@click.command()
@click.argument("space", nargs=-1, required=True, metavar="KEY=VALUE,VALUE...")
@click.option("--seeds", type=click.IntRange(min=2), default=2, show_default=True, help="Trainings of each candidate.")
@click.option("--plan", "plan_only", is_flag=True, help="Print the candidates and their time, and stop.")
@option("--json", store="json", is_flag=True, help="Print the plan or the result as JSON.")
@option("--no-wait", store="no_wait", is_flag=True, help="Exit with 8 if another process trains the same adapter.")
@offline_option
@config_options
@click.pass_obj
def sweep(options: Options, space: tuple[str, ...], seeds: int, plan_only: bool) -> None:
    """Try settings of finetune on validation rows, and say which are better than those of slmctl.yaml.

    KEY=VALUE,VALUE names what to try, such as finetune.learning_rate=2e-4,4e-4 finetune.lora.rank=16,32. Every
    combination trains with several seeds; the settings of today are one of them. Others are chosen only if they are
    better by more than chance. Test rows are not read. The same command goes on after Ctrl-C or a kill.
    """
    from slmctl import config
    from slmctl.cli import base_table
    from slmctl.pipeline import plan, runner
    from slmctl.stages.finetune import sweep as trials

    project = open_project(options)
    stages = ["pull", "prepare", "finetune"]

    def read(more: Sequence[str]) -> Config:
        return config.load(project.root / config.FILENAME, [*options.overrides, *more])

    tried = trials.candidates(read, space)
    plan.require(project, stages)
    trials.require_validation(project)
    console = terminal()
    if plan_only:
        seconds = trials.seconds(project, tried, base_table.measured_rates())
        print_result(options, _plan_fields(tried, seeds, seconds), _plan_lines(tried, seeds, seconds))
        return
    project.stage(stages[-1]).import_first()
    for name in stages[:2]:
        outcome = say_outcome(name, runner.make(project, name))
        project.stage(name).after(outcome.artifact, current=outcome.current)
    trials.require_validation(project)  # with the rows as they are counted now
    result = trials.run(project, tried, seeds=seeds, say=console.say)
    print_result(options, result.to_json(), _result_lines(result))


def _total(seeds: int, seconds: Sequence[float | None]) -> float | None:
    """Seconds of all trials; None if one has no estimate."""
    return None if None in seconds else seeds * sum(filter(None, seconds))


def _plan_fields(tried: Sequence[SweepCandidate], seeds: int, seconds: Sequence[float | None]) -> dict[str, object]:
    return {
        "candidates": [candidate.name for candidate in tried],
        "seeds": seeds,
        "trials": seeds * len(tried),
        "seconds": _total(seeds, seconds),
    }


def _plan_lines(tried: Sequence[SweepCandidate], seeds: int, seconds: Sequence[float | None]) -> Iterator[str]:
    """The candidates as a table, and the time of all trials."""
    console = terminal()
    rows = [
        [candidate.name, str(seeds), "-" if each is None else console.duration(seeds * each)]
        for candidate, each in zip(tried, seconds, strict=True)
    ]
    yield from console.table_lines(("candidate", "seeds", "time"), rows)
    total = _total(seeds, seconds)
    time = f", about {console.duration(total)}" if total is not None else ""
    yield f"{console.count(seeds * len(tried), 'trial')}{time}"


def _result_lines(result: SweepResult) -> Iterator[str]:
    """The candidates as a table, and the keys to write into slmctl.yaml."""
    console = terminal()
    incumbent = result.choice.incumbent
    rows = [[incumbent.name, f"{incumbent.loss:.4f}", "-", "-", "-"]]
    for verdict in sorted(result.choice.verdicts, key=lambda each: each.candidate.loss):
        change, error = (value / incumbent.loss for value in (-verdict.gain.mean, verdict.gain.error))
        rows.append([
            verdict.candidate.name, f"{verdict.candidate.loss:.4f}", f"{100 * change:+.1f} %", f"{100 * error:.1f} %",
            "yes" if verdict.better else "no",
        ])  # fmt: skip
    columns = ("candidate", "validation loss", "change", "standard error", "beyond chance")
    yield from console.table_lines(columns, rows, optional=("standard error",))
    if values := result.chosen.values:
        named = ", ".join(f"{key}: {text}" for key, text in values.items())
        yield f"better by more than chance; in slmctl.yaml: {named}"
    else:
        yield "no candidate is better than slmctl.yaml by more than chance: it stays as it is"


COMMANDS = (sweep,)
