"""The command group, the options that commands share, and how results are printed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slmctl import __version__
from slmctl.network import guard
from slmctl.pipeline import LEAVES, PATH_ID

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from slmctl.artifacts.artifact import Artifact
    from slmctl.config import Config
    from slmctl.pipeline.graph import Project
    from slmctl.pipeline.named import Workspace
    from slmctl.pipeline.runner import Outcome

# Made once: a type of click looks for a translation of its name in some ten files.
PATH, EXISTING = click.Path(path_type=Path), click.Path(path_type=Path, exists=True)
FOLDER = click.Path(path_type=Path, file_okay=False, exists=True)
INNER = ("predict", "sum")  # stages that others run themselves
CHAIN = tuple(name for name in LEAVES if name not in INNER)


class Options:
    """The values of the options that commands share.

    Attributes:
        sets: Values of `--set`, each `section.key=value`.
        flags: Values of flags that set a config key, as `section.key=value`; they win over `--set`.
        named: Paths and kinds of artifacts in place of the config's, by role.
    """

    def __init__(self) -> None:
        self.directory = Path()
        self.level = 0
        self.json = False
        self.no_wait = False
        self.sets: list[str] = []
        self.flags: list[str] = []
        self.named: dict[str, tuple[Path, str]] = {}

    @property
    def overrides(self) -> list[str]:
        """Changes of the config in order; of two for one key the last wins."""
        return [*self.sets, *self.flags]

    def set(self, key: str, value: Any) -> None:
        """Set a config key, unless the flag was left out: its
        value is then None or an empty tuple.
        """
        import json

        # JSON is YAML without surprises: `--host ::` stays a text
        if value is not None and value != ():
            self.flags.append(f"{key}={json.dumps(value)}")


def _store(name: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    def callback(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        options = context.ensure_object(Options)
        if name == "sets":
            options.sets += value
        elif value is not None and value is not False:
            if name == "offline":
                guard.forbid()
                return value
            setattr(options, name, {"quiet": -1, "verbose": 1}.get(parameter.name or "", value))
            if name == "level":
                terminal()  # before a stage prints its first line
        return value

    return callback


def option(
    *names: str, store: str, **settings: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Returns a click option that stores its value in `Options` and
    passes nothing to the command's function.
    """
    return click.option(*names, expose_value=False, callback=_store(store), **settings)


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """-C, -q and -v: before or after the command's name."""
    for decorate in (
        option("-v", "--verbose", store="level", is_flag=True, help="Print details on stderr."),
        option("-q", "--quiet", store="level", is_flag=True, help="Print errors alone on stderr."),
        option(
            "-C",
            "--directory",
            store="directory",
            type=FOLDER,
            metavar="DIR",
            help="Work in DIR, the folder of slmctl.yaml.",
        ),
    ):
        command = decorate(command)
    return command


def offline_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return option(
        "--offline",
        store="offline",
        is_flag=True,
        help="Refuse at once any work that would use the network.",
    )(command)


def config_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--set and the common options, for commands that read slmctl.yaml."""
    decorate = option(
        "--set",
        store="sets",
        multiple=True,
        metavar="KEY=VALUE",
        help="Set a key of the config, such as finetune.epochs=3; repeatable.",
    )
    return common_options(decorate(command))


def stage_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--json, --no-wait, --offline and the config options, for stages."""
    for decorate in (
        offline_option,
        option(
            "--no-wait",
            store="no_wait",
            is_flag=True,
            help="Exit with 8 if another process makes the artifact.",
        ),
        option(
            "--json", store="json", is_flag=True, help="Print the manifest in place of the path."
        ),
    ):
        command = decorate(command)
    return config_options(command)


class _KeyOption(click.Option):
    """A flag that sets a config key; its help is the key's, read when it is
    shown: pydantic costs as much as click.
    """

    def __init__(self, *args: Any, key: str, **settings: Any) -> None:
        if not settings.get("expose_value", True):
            settings["callback"] = lambda context, _, value: context.ensure_object(Options).set(
                key, value
            )
        super().__init__(*args, **settings)
        self.key = key

    @property
    def help(self) -> str:  # a plain attribute in click
        from slmctl import config

        return config.description(self.key)

    @help.setter
    def help(self, text: str | None) -> None:
        """Nothing to keep: click sets None."""


def key_option(
    *names: str, key: str, **settings: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A flag that sets a config key, such as `finetune.epochs`, with the help of that key."""
    return click.option(*names, cls=_KeyOption, key=key, expose_value=False, **settings)


def value_option(
    *names: str, key: str, **settings: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Returns a click option with the help text of a config key; its
    value goes to the command's function.
    """
    return click.option(*names, cls=_KeyOption, key=key, **settings)


def artifact_option(
    role: str, help: str, kind: str = ""
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Returns a click option for an artifact in place of the config's;
    its kind is the role's name by default.
    """

    def keep(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
        if path is not None:
            context.ensure_object(Options).named[role] = path, kind or role

    return click.option(
        f"--{role}", type=PATH, metavar="PATH", help=help, expose_value=False, callback=keep
    )


SECTIONS = {
    "Begin": ("init", "run", "serve", "predict"),
    "Make": (
        "pull",
        "label",
        "prepare",
        "encode",
        "finetune",
        "merge",
        "quantize",
        "sum",
        "evaluate",
        "calibrate",
    ),
    "Look": ("ls", "show", "diff", "trace", "bases", "config", "chat"),
    "Ship": ("publish", "promote", "fetch", "keys"),
    "Learn from production": ("review", "watch"),
    "Keep house": ("doctor", "verify", "reproduce", "gc"),
}
NAMES_ELSEWHERE = {  # of other tools, for what a command here does
    "annotate": ("review", "label"),
    "ask": ("chat",),
    "artifacts": ("ls",),
    "benchmark": ("evaluate",),
    "check": ("verify", "doctor"),
    "clean": ("gc",),
    "compare": ("evaluate --compare", "diff"),
    "convert": ("quantize",),
    "create": ("init",),
    "data": ("prepare",),
    "deploy": ("serve", "publish"),
    "drift": ("watch",),
    "distill": ("label",),
    "embed": ("encode",),
    "download": ("pull", "fetch"),
    "eval": ("evaluate",),
    "ensemble": ("sum",),
    "export": ("quantize", "publish"),
    "fine-tune": ("finetune",),
    "fuse": ("merge",),
    "generate": ("predict",),
    "gguf": ("quantize",),
    "infer": ("predict",),
    "inspect": ("show",),
    "leaderboard": ("ls --models",),
    "list": ("ls",),
    "log": ("show",),
    "logs": ("show",),
    "models": ("ls --models", "bases"),
    "monitor": ("watch",),
    "new": ("init",),
    "pipeline": ("run",),
    "preprocess": ("prepare",),
    "prune": ("gc",),
    "push": ("publish",),
    "release": ("publish",),
    "rollback": ("promote",),
    "score": ("evaluate",),
    "start": ("serve",),
    "status": ("ls",),
    "tag": ("promote",),
    "test": ("evaluate",),
    "train": ("finetune",),
    "hyperparameters": ("finetune",),
    "sweep": ("finetune", "ls"),
    "tune": ("finetune",),
    "upload": ("publish",),
    "delete": ("gc", "keys"),
    "import": ("init", "pull"),
    "remove": ("gc", "keys"),
}
DONE_OTHERWISE = {  # without a command
    "stop": "a server ends with Ctrl-C or SIGTERM; keys revoke NAME ends one client's access",
    "upgrade": "install the new version with pip; artifacts, releases and slmctl.yaml stay as they "
    "are",
}


def is_terminal() -> bool:
    """True where a person can be asked: standard input and error are a terminal."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def complete_artifacts(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The kinds and ids of artifacts that begin with a text, and files as the shell knows them."""
    from click.shell_completion import CompletionItem

    runs = context.ensure_object(Options).directory / "runs"
    names = [
        *LEAVES.values(),
        *sorted({path.name for path in runs.glob("[a-z]*/*") if len(path.name) == PATH_ID}),
    ]
    items = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return [*items, *PATH.shell_complete(context, parameter, incomplete)]


class _Grouped(click.Group):
    """Lists commands by purpose, each with its whole first sentence, and
    answers a near name with the right one.
    """

    called = ""  # the command as it was typed, with the one of a group: keys add

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with wrapped sentences; click itself
        would cut them at the terminal's width.
        """
        width = max(map(len, self.commands))
        for title, names in SECTIONS.items():
            with formatter.section(title):
                listed = [(name, self.commands[name]) for name in names if name in self.commands]
                formatter.write_dl(
                    [(name.ljust(width), each.get_short_help_str(1000)) for name, each in listed]
                )

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of the first argument.

        Raises:
            UsageError: There is none; it says which one was probably meant.
        """
        name = args[0]
        self.called = " ".join(
            args[: 2 if isinstance(self.get_command(ctx, name), click.Group) else 1]
        )
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            import difflib

            from slmctl.errors import UsageError

            if name.lower() in DONE_OTHERWISE:
                raise UsageError(f"no command '{name}'", hint=DONE_OTHERWISE[name.lower()])
            meant = NAMES_ELSEWHERE.get(name.lower(), ()) or difflib.get_close_matches(
                name.lower(), self.commands, 1
            )
            answer = f": {' or '.join(f'slmctl {command}' for command in meant)}" if meant else ""
            hint = (
                f"slmctl {meant[0].split()[0]} --help"
                if meant
                else "slmctl --help lists the commands"
            )
            raise UsageError(f"no command '{name[:100]}'{answer}", hint=hint)
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Grouped,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with your own rows: slmctl init tickets.csv; or with an example: slmctl init "
    "support-triage",
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
        # of several processes that torchrun started, this one speaks
        first = os.environ.get("RANK", "0") == "0"
        console.set_level(context.ensure_object(Options).level if first else -1)
    return console


def open_project(options: Options) -> Project:
    """The project of the working folder, with the artifacts that the command names.

    Raises:
        IntegrityError: A named artifact does not exist, or is damaged.
        UsageError: The config has faults, or a named artifact is of another kind.
    """
    from slmctl import config
    from slmctl.pipeline import named
    from slmctl.pipeline.graph import Project

    root = options.directory.resolve()
    project = Project(
        root=root,
        config=config.load(root / config.FILENAME, options.overrides),
        wait=not options.no_wait,
        on_wait=lambda holder: terminal().say(f"waiting for {holder}"),
    )
    for role, (path, kind) in options.named.items():
        project.named[role] = named.opened(project, path, kind)
    return project


def make_workspace(options: Options) -> Workspace:
    """The working folder and its project, for finding models."""
    from slmctl.pipeline.named import Workspace

    return Workspace(options.directory, lambda: open_project(options))


def read_settings(options: Options) -> Config:
    """The config of the working folder, or the defaults where it
    has none, with the flags on top.
    """
    from slmctl import config

    path = options.directory / config.FILENAME
    if path.exists():
        return config.load(path, options.overrides)
    return config.parse("{project: served, base: none}", options.overrides, root=options.directory)


def say_outcome(name: str, outcome: Outcome) -> Outcome:
    console = terminal()
    console.say(
        f"{name:<9} {'current' if outcome.current else console.duration(outcome.seconds):>12}  "
        f"{outcome.artifact.path}"
    )
    return outcome


def print_artifact(options: Options, artifact: Artifact) -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    if options.json:
        terminal().write_json(artifact.manifest.to_bytes().decode())
    else:
        terminal().write(f"{artifact.path}\n")


def print_result(options: Options, fields: Any, lines: Iterable[str]) -> None:
    """Print the result of a command: `fields` as JSON with --json, else `lines`."""
    import json

    console = terminal()
    if options.json:
        console.write_json(json.dumps(fields, indent=1) + "\n")
    else:
        console.write("".join(f"{console.clean(line)}\n" for line in lines))
