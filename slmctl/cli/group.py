"""The command group, the options that commands share, and how results are printed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slmctl import __version__
from slmctl.network import guard
from slmctl.pipeline.stage_table import STAGES

if TYPE_CHECKING:
    from slmctl.artifacts.artifact import Artifact
    from slmctl.pipeline.model_lookup import Desk
    from slmctl.pipeline.resolve import Project
    from slmctl.pipeline.runner import Outcome

CHAIN = tuple(name for name in STAGES if name != "predict")  # evaluate and calibrate run predict themselves


class Options:
    """What every command can be told."""

    def __init__(self) -> None:
        self.directory = Path()
        self.level = 0
        self.json = False
        self.no_wait = False
        self.offline = False
        self.sets: list[str] = []


def _store(name: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    def callback(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        options = context.ensure_object(Options)
        if name == "sets":
            options.sets += value
        elif value is not None and value is not False:
            setattr(options, name, {"quiet": -1, "verbose": 1}.get(parameter.name or "", value))
            if name == "offline":
                guard.forbid()
            if name == "level":
                terminal()  # from now on: a stage speaks before any callback asks for the console
        return value

    return callback


def option(*names: str, store: str, **settings: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An option that goes into Options and not to the callback."""
    return click.option(*names, expose_value=False, callback=_store(store), **settings)


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """-C, -q and -v: before or after the command's name."""
    for decorate in (
        option("-v", "--verbose", store="level", is_flag=True, help="Say more, on stderr."),
        option("-q", "--quiet", store="level", is_flag=True, help="Say nothing but errors."),
        option(
            "-C",
            "--directory",
            store="directory",
            type=click.Path(path_type=Path, file_okay=False, exists=True),
            metavar="DIR",
            help="Work in DIR, the folder of slmctl.yaml.",
        ),
    ):
        command = decorate(command)
    return command


def offline_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return option("--offline", store="offline", is_flag=True, help="Refuse at once what would use the network.")(
        command
    )


def config_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What commands that read slmctl.yaml take too."""
    decorate = option(
        "--set",
        store="sets",
        multiple=True,
        metavar="KEY=VALUE",
        help="Set a key of the config, such as finetune.epochs=3; again for more.",
    )
    return common_options(decorate(command))


def stage_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What every stage takes too."""
    for decorate in (
        offline_option,
        option("--no-wait", store="no_wait", is_flag=True, help="Exit with 8 if another process makes the artifact."),
        option("--json", store="json", is_flag=True, help="Print the manifest in place of the path."),
    ):
        command = decorate(command)
    return config_options(command)


def artifact_option(name: str, help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(f"--{name}", type=click.Path(path_type=Path), metavar="PATH", help=help)


class _InOrder(click.Group):
    """Lists the commands in the order of the data, not of the alphabet, each with its whole first sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Wrap the sentences: click itself cuts them at the terminal's width."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.get_short_help_str(1000)) for name, one in self.commands.items()])


@click.group(
    cls=_InOrder,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: slmctl init support-triage demo && slmctl -C demo run",
)
@common_options
@click.version_option(__version__, package_name="slmctl", message="%(prog)s %(version)s")
def cli() -> None:
    """Company data set in, small language model out: measured, quantized, published and served.

    Each stage leaves a folder below runs/ and prints its path. A stage whose config and inputs have
    not changed does no work. Nothing leaves this machine unless a command is asked to.
    """


def terminal() -> Any:
    from slmctl import console

    context = click.get_current_context(silent=True)
    if context is not None:
        console.set_level(context.ensure_object(Options).level)
    return console


def override(options: Options, section: str, **values: Any) -> None:
    """Named flags are overrides like `--set`; one that was left out is None, whatever the default is."""
    import json

    # JSON is YAML without surprises: `--host ::` stays a text
    options.sets += [f"{section}.{key}={json.dumps(value)}" for key, value in values.items() if value is not None]


def open_project(options: Options, **given: Path | None) -> Project:
    from slmctl import config
    from slmctl.pipeline import resolve

    root = options.directory.resolve()
    return resolve.Project(
        root=root,
        config=config.load(root / config.FILENAME, options.sets),
        wait=not options.no_wait,
        on_wait=lambda holder: terminal().say(f"waiting for {holder}"),
        given={role: path for role, path in given.items() if path is not None},
    )


def make_desk(options: Options) -> Desk:
    """Where a command works, for what finds its model."""
    from slmctl.pipeline.model_lookup import Desk

    return Desk(options.directory, lambda: open_project(options))


def read_settings(options: Options) -> Any:
    """The config where there is one, else the defaults with the flags on top."""
    from slmctl import config

    path = options.directory / config.FILENAME
    if path.exists():
        return config.load(path, options.sets)
    return config.parse("{project: served, base: none}", options.sets)


def import_trainer_first(project: Project) -> None:
    from slmctl.stages.finetune import backend

    backend.import_first(project.config.finetune.backend)


def say_outcome(name: str, outcome: Outcome) -> Outcome:
    console = terminal()
    console.say(
        f"{name:<9} {'current' if outcome.current else console.duration(outcome.seconds):>12}  {outcome.artifact.path}"
    )
    return outcome


def print_artifact(options: Options, artifact: Artifact) -> None:
    if os.environ.get("RANK", "0") != "0":
        return  # one of several processes that torchrun started: the first one speaks
    if options.json:
        terminal().write_json(artifact.manifest.to_json())
    else:
        terminal().write(f"{artifact.path}\n")


def print_result(options: Options, fields: Any, lines: Iterable[str]) -> None:
    """What a command found: its fields as JSON where --json asks for it, lines for people otherwise."""
    import json

    console = terminal()
    if options.json:
        console.write_json(json.dumps(fields, indent=1) + "\n")
    else:
        console.write("".join(f"{console.clean(line)}\n" for line in lines))
