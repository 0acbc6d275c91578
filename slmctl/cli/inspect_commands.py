"""The commands that look: show, trace, diff, verify, reproduce, gc, doctor, init, config."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slmctl.errors import IntegrityError, UsageError

if TYPE_CHECKING:
    from slmctl.pipeline.resolve import Project
from slmctl.cli.group import (
    Options,
    common_options,
    config_options,
    import_trainer_first,
    offline_option,
    open_project,
    option,
    print_result,
    stage_options,
    terminal,
)

TEMPLATES = ("support-triage", "field-extraction", "reply-drafting")


@click.command()
@click.argument("path", required=False, type=click.Path(path_type=Path))
@option("--json", store="json", is_flag=True, help="Print it as JSON.")
@config_options
@click.pass_obj
def show(options: Options, path: Path | None) -> None:
    """Show what an artifact was made of, from a release back to the data.

    PATH is an artifact or a release; the config's release by default.
    """
    from slmctl.artifacts import artifact, lineage
    from slmctl.pipeline.model_lookup import root_of
    from slmctl.pipeline.resolve import find
    from slmctl.pipeline.stage_table import Role

    release = Role("published", ("published",))
    found = artifact.load(path) if path is not None else find(open_project(options), release)
    node = lineage.show(root_of(options.directory, path), found)
    print_result(options, lineage.to_json(node), lineage.lines(node))


@click.command()
@click.option("--text", metavar="TEXT", help="The row's text; - reads it from stdin, which no shell's history keeps.")
@click.option("--id", "record", metavar="ID", help="A record's id; rows that are like it are found too.")
@click.option(
    "--similarity",
    type=click.FloatRange(0.2, 1),
    default=0.6,
    show_default=True,
    help="Share of 5-grams in common from which another row counts as nearly the same; an estimate, within 0.09.",
)
@click.option(
    "--registry",
    "registries",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="A folder of releases to ask about too; again for more.",
)
@option("--json", store="json", is_flag=True, help="Print it as JSON.")
@common_options
@click.pass_obj
def trace(
    options: Options, text: str | None, record: str | None, similarity: float, registries: tuple[Path, ...]
) -> None:
    """Say which data sets, models and releases saw a row.

    A near-duplicate of the row counts. Asks the data sets below runs/ by hashes; prints no text.
    Exits with 0 when nothing here held the row, with 105 when something did, and with 106 when
    nothing is known to, but something is missing that could have.
    """
    from slmctl.provenance import trace as module

    if (text is None) == (record is None):
        raise UsageError("trace wants one of --text and --id", hint="slmctl trace --text - < row.txt")
    if text == "-":
        text = sys.stdin.read()
    if text is not None and not text.strip():
        raise UsageError("the text to trace is empty")
    root = options.directory.resolve()
    found = module.trace(root, text=text, id=record, similarity=similarity, registries=[*_registry(root), *registries])
    print_result(options, found.to_json(), module.lines(found))
    sys.exit(105 if found.found else 0 if found.sure else 106)


@click.command()
@click.argument("first", type=click.Path(path_type=Path, exists=True))
@click.argument("second", type=click.Path(path_type=Path, exists=True))
@option("--json", store="json", is_flag=True, help="Print it as JSON.")
@common_options
@click.pass_obj
def diff(options: Options, first: Path, second: Path) -> None:
    """Say what differs between two artifacts of a kind, two releases, or two projects: config, data, metrics.

    Models that two reports measured on the same rows are compared row by row, so that chance is told from change.
    """
    from slmctl.provenance import diff as module

    found = module.diff(first, second)
    print_result(options, found, module.lines(found))


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path), metavar="PUB", help="Public key that must have signed them.")
@common_options
@click.pass_obj
def verify(options: Options, paths: tuple[Path, ...], key: Path | None) -> None:
    """Check every byte of artifacts; name every file that is extra, missing or changed.

    PATHS are artifacts or releases; everything below runs/ by default. With --key, releases must be
    signed too.
    """
    from slmctl.artifacts import lineage

    folders = list(paths) or lineage.folders(options.directory)
    if not folders:
        raise IntegrityError(f"there are no artifacts below {options.directory / 'runs'}", hint="slmctl run")
    found = lineage.verify(folders)
    for folder, faults in found.items():
        terminal().write("".join(f"{folder}: {terminal().clean(fault)}\n" for fault in faults or ["whole"]))
    damaged = [folder for folder, faults in found.items() if faults]
    if damaged:
        raise IntegrityError(
            f"{len(damaged)} of {len(found)} artifacts are damaged",
            hint=f"remove it and run its stage again: rm -r {damaged[0]}",
        )
    if key is not None:
        _require_signed(folders, key)


@click.command()
@click.argument("path", metavar="ARTIFACT", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--source",
    "sources",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    metavar="PATH",
    help="A file or folder that it was made of, where it is not found by its hash; again for more.",
)
@stage_options
@click.pass_obj
def reproduce(options: Options, path: Path, sources: tuple[Path, ...]) -> None:
    """Build an artifact again from what its manifest records, and compare every byte.

    Its inputs are looked for below runs/, its sources among --source, the copies in runs/.sources/ and the files
    of slmctl.yaml, all by their hashes. Exits with 0 when the same came out, else with 104, and says what differs.
    """
    from slmctl.artifacts import artifact
    from slmctl.errors import DifferentError
    from slmctl.pipeline import system_errors
    from slmctl.pipeline.model_lookup import root_of
    from slmctl.provenance import reproduce as module

    options.directory = root_of(options.directory, path)
    project = _project_or_none(options) or _bare_project(options)
    made = artifact.load(path)
    name = made.manifest.stage.partition("/")[0]
    if name == "finetune":
        import_trainer_first(project)
    try:
        found = module.reproduce(project, made, sources)
    except ModuleNotFoundError as error:
        raise system_errors.missing(error, name) from error
    print_result(options, found.to_json(), module.lines(found))
    if not found.same:
        raise DifferentError(f"{path} is not what comes out today", hint="slmctl doctor shows this machine's versions")


@click.command()
@click.option(
    "--registry",
    "registries",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="A folder of releases to ask too; again for more.",
)
@click.option("--yes", is_flag=True, help="Remove without asking.")
@option("--json", store="json", is_flag=True, help="Print the list as JSON.")
@config_options
@click.pass_obj
def gc(options: Options, registries: tuple[Path, ...], yes: bool) -> None:
    """List what nothing needs, with sizes, and remove it when you agree.

    Kept is what slmctl.yaml asks for today, what its server is given, what releases in the registry and their tags
    were made of, and what a running process uses. Listed are other artifacts, what interrupted runs left, and
    copies of sources that nothing was made of.
    """
    from slmctl.provenance import gc as module

    project = open_project(options)
    found = module.find(project, [*_registry(project.root, options.sets), *registries])
    console = terminal()
    for note in found.notes:
        console.say(f"note: {note}")
    print_result(options, found.to_json(), module.lines(found, project.root))
    if not found.items:
        return
    if not yes and not sys.stdin.isatty():
        console.say("nothing is removed: nobody is there to ask; --yes removes it")
        return
    if yes or click.confirm(f"remove {console.size(found.size)}?", default=False, err=True):
        freed, left = module.remove(project, found)
        for path in left:
            console.say(f"  left, since a process has begun to use it: {path}")
        console.say(f"  {console.size(freed)} freed")


@click.command()
@click.option("--fix", is_flag=True, help="Fetch the GGUF converter, once (uses the package index).")
@offline_option
@common_options
@click.pass_obj
def doctor(options: Options, fix: bool) -> None:
    """Say what this machine has, what is missing, and the command that installs it."""
    from slmctl.cli import doctor_checks as doctor_module

    console = terminal()
    if fix:
        for done in doctor_module.fix():
            console.say(done)
    findings = doctor_module.examine()
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = "ok  " if finding.ok else "MISS"
        console.write(f"{mark} {finding.name:<{width}}  {finding.found}\n")
        if finding.remedy:
            console.write(f"     {'':<{width}}  -> {finding.remedy}\n")
    missing = [finding for finding in findings if not finding.ok]
    if missing:
        from slmctl.errors import MissingError

        raise MissingError(f"missing: {', '.join(finding.name for finding in missing)}", hint=missing[0].remedy)


@click.command()
@click.argument("template", type=click.Choice(TEMPLATES))
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@common_options
@click.pass_obj
def init(options: Options, template: str, folder: Path | None) -> None:
    """Start a project from a template: a ready slmctl.yaml, and example data to replace by yours."""
    from slmctl.cli.project_template import init as copy

    target = options.directory / (folder or template)
    for path in copy(template, target):
        terminal().say(f"wrote {path}")
    terminal().say(f"next: slmctl -C {target} run")
    terminal().write(f"{target}\n")


@click.group(name="config")
def config_group() -> None:
    """Look at the config."""


@config_group.command()
def schema() -> None:
    """Print the JSON Schema of slmctl.yaml, for editors."""
    import json

    from slmctl import config

    terminal().write(json.dumps(config.schema(), indent=2) + "\n")


@config_group.command(name="show")
@config_options
@click.pass_obj
def config_show(options: Options) -> None:
    """Print the config with every default filled in, after checking it."""
    import yaml

    from slmctl import config

    values = config.load(options.directory / config.FILENAME, options.sets).as_written()
    terminal().write(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _project_or_none(options: Options) -> Project | None:
    """The project of the folder that is worked in, where there is one."""
    from slmctl import config

    return open_project(options) if (options.directory / config.FILENAME).exists() else None


def _bare_project(options: Options) -> Project:
    """A folder with artifacts and no config."""
    from slmctl import config
    from slmctl.pipeline import resolve

    settings = config.parse("{project: none, base: none}")
    return resolve.Project(options.directory.resolve(), settings, wait=not options.no_wait)


def _registry(root: Path, sets: Sequence[str] = ()) -> list[Path]:
    """The folder that the config publishes to, where there is one."""
    from slmctl import config

    if not (root / config.FILENAME).exists():
        return []
    kind, _, place = config.load(root / config.FILENAME, sets).publish.to.partition(":")
    if kind != "dir":
        terminal().say(f"note: the releases in {kind}:{place} are not asked; name a copy of them by --registry")
        return []
    folder = root / Path(place).expanduser()
    return [folder] if folder.is_dir() else []


def _require_signed(folders: list[Path], key: Path) -> None:
    from slmctl.pipeline import system_errors
    from slmctl.releases import signing

    try:
        for folder in folders:
            signing.verify(folder, key)
            terminal().write(f"{folder}: signed by the holder of {key.name}\n")
    except ModuleNotFoundError as error:
        raise system_errors.missing(error, "verify --key") from error


COMMANDS = (show, trace, diff, verify, reproduce, gc, doctor, init, config_group)
