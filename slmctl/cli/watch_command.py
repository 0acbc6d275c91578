"""`slmctl watch`: whether a served model is still as good as it was measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slmctl.cli.group import Options, config_options, option, print_result, read_settings, terminal
from slmctl.errors import GateError, UsageError

if TYPE_CHECKING:
    from slmctl.config import Config

DAYS = {"h": 1 / 24, "d": 1, "w": 7}
PAGE = "watch.html"


class _Days(click.ParamType):
    """A time such as 7d, 12h or 2w; its value is in days."""

    name = "TIME"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([hdw])", value.strip())
        if match is None or not float(match[1]):
            self.fail(f"'{value[:40]}' is no time such as 7d, 12h or 2w", param, ctx)
        return float(match[1]) * DAYS[match[2]]


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILES]...")
@click.option("--window", type=_Days(), default="7d", show_default=True, help="Time of one window, such as 7d or 12h.")
@click.option("--last", type=_Days(), default="30d", show_default=True, help="Time that is shown, up to the last line.")
@click.option("--since", metavar="DAY", help="Leave older lines out, such as those of the release before: 2026-11-25.")
@click.option(
    "--policy",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The policy to compare with; serve.policy, or the newest below runs/, by default.",
)
@option("--json", store="json", is_flag=True, help="Print the result as JSON.")
@config_options
@click.pass_obj
def watch(
    options: Options, files: tuple[Path, ...], window: float, last: float, since: str | None, policy: Path | None
) -> None:
    """Say whether a served model is still as good as it was measured.

    FILES are logs of decisions, files or folders of collected rows, and reviewed.jsonl; by default those of
    serve.decision_log and serve.collect, collected/ and reviewed.jsonl. Prints estimated and verified accuracy,
    shares and cost of the last window beside what was measured, and writes runs/watch.html. Exits with 5 when an
    alarm stands: a signal changed, by a sequential test that raises a false alarm in at most 5 % of the months.
    """
    from slmctl.artifacts import atomic
    from slmctl.reports import html_page
    from slmctl.watch import measured, page, traffic
    from slmctl.watch import watch as module

    settings = read_settings(options)
    root = options.directory.resolve()
    material = traffic.read(list(files) or _written(options.directory, settings), since=_seconds(since))
    day = traffic.DAY_S
    before = measured.measured(root, policy or settings.serve.policy)
    watched = module.watch(material, before, window_s=window * day, last_s=last * day, prices=settings.serve.prices)
    path = root / "runs" / PAGE
    path.parent.mkdir(exist_ok=True)
    with atomic.file(path) as draft:
        html_page.write(draft, page.page(watched, project=f"{settings.project} {settings.version}"))
    print_result(options, watched.to_json(), module.lines(watched))
    terminal().say(f"  page: {path}")
    if watched.alarms:
        named = ", ".join(alarm.signal for alarm in watched.alarms)
        verb = "stands" if len(watched.alarms) == 1 else "stand"
        raise GateError(
            f"{len(watched.alarms)} alarm{'s' * (len(watched.alarms) > 1)} {verb}: {named}",
            hint=watched.command or "serve.collect keeps rows to review",
        )


def _seconds(since: str | None) -> float:
    """The time that --since names.

    Raises:
        UsageError: It is none.
    """
    from slmctl.watch import traffic

    if since is None:
        return -float("inf")
    try:
        return traffic.seconds_of(since)
    except ValueError:
        raise UsageError(f"--since takes a day, got '{since[:40]}'", hint="--since 2026-11-25") from None


def _written(folder: Path, settings: Config) -> list[Path]:
    """The files that the config's server writes, and the reviews beside them, as far as there are some.

    Raises:
        UsageError: There are none.
    """
    log = settings.serve.decision_log
    collect = settings.serve.collect
    places = [
        folder / (log if log is not None else "decisions.jsonl"),
        folder / (collect.to if collect is not None else "collected"),
        folder / "reviewed.jsonl",
    ]
    there = [path for path in places if path.exists()]
    if not there:
        raise UsageError(
            f"there are no decisions and no collected rows in {folder.resolve()}",
            hint="slmctl watch decisions.jsonl collected/; serve.decision_log and serve.collect write them",
        )
    return there


COMMANDS = (watch,)
