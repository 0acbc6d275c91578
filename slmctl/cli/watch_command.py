"""`slmctl watch`: accuracy, shares and cost of a served model by week, compared with its report."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slmctl.cli.group import PATH, Options, config_options, option, print_result, read_settings
from slmctl.cli.review_command import OUTPUT as REVIEWED
from slmctl.errors import UsageError

if TYPE_CHECKING:
    from slmctl.config import Config


@click.command()
@click.argument("files", nargs=-1, type=PATH, metavar="[FILES]...")
@click.option(
    "--since",
    type=click.DateTime(["%Y-%m-%d"]),
    metavar="DAY",
    help="Leave older lines out, such as those of the release before: 2026-11-25.",
)
@option("--json", store="json", is_flag=True, help="Print the result as JSON.")
@config_options
@click.pass_obj
def watch(options: Options, files: tuple[Path, ...], since: datetime.datetime | None) -> None:
    """Say whether a served model is still as good as it was measured.

    FILES are logs of decisions, files or folders of collected rows, and reviewed.jsonl; by default
    those of serve.decision_log and serve.collect, collected/ and reviewed.jsonl. Prints a table by
    week: estimated and verified accuracy, shares and cost, beside what the policy (serve.policy,
    else the newest below runs/) and the latest report measured; of drafts also the share that fails
    each check.
    """
    from slmctl.production import watch as module
    from slmctl.production.measured import measured
    from slmctl.task.contract import Task

    settings = read_settings(options)
    policy, task = settings.serve.policy, settings.task
    rules = Task(
        task.kind, "", "", system=task.system, must=tuple(task.must), must_not=tuple(task.must_not)
    ).rules
    watched = module.watch(
        list(files) or _written(options.directory, settings),
        measured(options.directory.resolve(), policy if isinstance(policy, Path) else None),
        rules=rules,
        since=f"{since:%Y-%m-%d}" if since is not None else "",
        prices=settings.serve.prices,
    )
    print_result(options, watched.to_json(), module.lines(watched))


def _written(folder: Path, settings: Config) -> list[Path]:
    """Returns the existing files among the config's decision log, collected rows and reviews.

    Raises:
        UsageError: None of them exists.
    """
    places = (settings.serve.decision_log or "decisions.jsonl", settings.serve.collected, REVIEWED)
    there = [folder / path for path in places if (folder / path).exists()]
    if not there:
        raise UsageError(
            f"there are no decisions and no collected rows in {folder.resolve()}",
            hint="slmctl watch decisions.jsonl collected/; serve.decision_log and serve.collect "
            "write them",
        )
    return there


COMMANDS = (watch,)
