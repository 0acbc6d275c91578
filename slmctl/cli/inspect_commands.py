"""The commands on artifacts and the machine: ls, show, trace, diff,
verify, reproduce, gc, doctor, init, config.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slmctl.errors import IntegrityError, UsageError

if TYPE_CHECKING:
    from slmctl.model_files.base_model import Base
    from slmctl.pipeline.graph import Project
from slmctl.cli.base_table import bases
from slmctl.cli.group import (
    EXISTING,
    FOLDER,
    PATH,
    Options,
    common_options,
    complete_artifacts,
    config_options,
    is_terminal,
    make_workspace,
    offline_option,
    open_project,
    option,
    print_result,
    stage_options,
    terminal,
)
from slmctl.cli.init_command import init
from slmctl.cli.review_command import OUTPUT as REVIEWED


@click.command()
@click.argument("path", required=False, type=PATH, shell_complete=complete_artifacts)
@click.option(
    "--log",
    "log",
    is_flag=True,
    help="Print what its stage said; without PATH, what the last stage said.",
)
@option("--json", store="json", is_flag=True, help="Print the result as JSON.")
@config_options
@click.pass_obj
def show(options: Options, path: Path | None, log: bool) -> None:
    """Show the lineage of an artifact, from a release back to the data.

    PATH is an artifact, its id (4 characters and more) or kind, a release, or dir:REGISTRY#TAG; the
    config's release by default. Of a release, its tags, its digest, its figure and its base follow.
    """
    from slmctl.artifacts import artifact, lineage
    from slmctl.pipeline.model_lookup import root_of
    from slmctl.pipeline.named import artifact_path
    from slmctl.provenance import listing

    if log:
        from slmctl.pipeline import stage_log

        log_file = stage_log.find(options.directory.resolve(), path)
        terminal().write(terminal().clean(log_file.read_text(encoding="utf-8", errors="replace")))
        return
    path = artifact_path(make_workspace(options), path) if path is not None else None
    shown = artifact.load(path) if path is not None else open_project(options).artifact("published")
    root = root_of(options.directory, path).resolve()
    node = lineage.show(root, shown)
    facts = {"release": listing.release_facts(root, shown)} if shown.is_release else {}
    more = listing.release_lines(facts["release"]) if facts else []
    print_result(options, lineage.to_json(node) | facts, [*lineage.lines(node), *more])


@click.command()
@click.argument("kinds", nargs=-1, metavar="[KIND]...")
@click.option(
    "--models", is_flag=True, help="List measured models in place of artifacts, the best first."
)
@option("--json", store="json", is_flag=True, help="Print the list as JSON.")
@common_options
@click.pass_obj
def ls(options: Options, kinds: tuple[str, ...], models: bool) -> None:
    """List the artifacts of this project by kind, the newest first, with what differs between them.

    KIND is base, labelled, prepared, encoder, adapter, merged, gguf, predictions, sum, report,
    policy or published; all by default. With --models, every model and baseline that a report below
    runs/ measured is ranked, a table for each data set and split.
    """
    from slmctl.provenance import listing

    root = options.directory.resolve()
    if models:
        if kinds:
            raise UsageError(
                "ls --models lists measured models of every kind", hint="slmctl ls --models"
            )
        ranked = listing.leaderboard(root)
        print_result(options, [row.to_json() for row in ranked], listing.leaderboard_lines(ranked))
        if not ranked and not options.json:
            terminal().say(f"no report below {root / 'runs'}: slmctl run makes one")
        return
    for kind in kinds:
        if kind not in listing.KINDS:
            raise UsageError(
                f"there is no kind '{kind}' of artifacts", hint=f"kinds: {', '.join(listing.KINDS)}"
            )
    entries = listing.survey(root, kinds)
    print_result(options, [entry.to_json() for entry in entries], listing.lines(entries))
    if not entries and not options.json:
        terminal().say(f"no artifact below {root / 'runs'}: slmctl run makes them")


@click.command()
@click.option(
    "--text",
    metavar="TEXT",
    help="Text of the row; - reads it from stdin, which keeps it out of the shell's history.",
)
@click.option("--id", "record", metavar="ID", help="Id of a record; its near-duplicates count too.")
@click.option(
    "--similarity",
    type=click.FloatRange(0.2, 1),
    default=0.6,
    show_default=True,
    help="Share of common 5-grams from which a row is a near-duplicate; estimated within 0.09.",
)
@click.option(
    "--registry",
    "registries",
    multiple=True,
    type=FOLDER,
    metavar="DIR",
    help="A further registry to search; repeatable.",
)
@click.option(
    "--collected",
    multiple=True,
    type=EXISTING,
    metavar="PATH",
    help="A further file or folder of collected answers, feedback or reviews to search; "
    "repeatable.",
)
@click.option(
    "--contains",
    is_flag=True,
    help="Find the rows with --text in them, such as a name in documents.",
)
@click.option(
    "--forget",
    is_flag=True,
    help="Remove the row's lines from these files; models are only listed.",
)
@option("--json", store="json", is_flag=True, help="Print the result as JSON.")
@common_options
@click.pass_obj
def trace(
    options: Options,
    text: str | None,
    record: str | None,
    similarity: float,
    registries: tuple[Path, ...],
    collected: tuple[Path, ...],
    contains: bool,
    forget: bool,
) -> None:
    """List the data sets, models and releases that saw a row.

    A near-duplicate of the row counts. Searches the data sets below runs/ by hashes, and by their
    texts the answers that serve.collect wrote, reviewed.jsonl and --collected; prints no text. A
    server may run meanwhile. Exits with 0 if none held the row, with 105 if one did, with 106 if
    none is known to have held it, but some artifact is missing, and with 2 or 7 where there is no
    project or no data set to search.
    """
    from slmctl.provenance import trace as module

    if (text is None) == (record is None):
        got = "neither" if text is None else "both"
        raise UsageError(
            f"trace takes one of --text and --id, got {got}", hint="slmctl trace --text - < row.txt"
        )
    if text == "-":
        text = sys.stdin.read()
    if text is not None and not text.strip():
        raise UsageError("the text to trace is empty")
    if contains and text is None:
        raise UsageError(
            "--contains looks for --text in rows",
            hint='slmctl trace --contains --text "Maria Beispiel"',
        )
    root = options.directory.resolve()
    files = [*_collected(root), *collected]
    if forget and not files:
        raise UsageError("there is no file to forget it in", hint="--collected PATH names one")
    sightings = module.trace(
        root,
        text=text,
        id=record,
        similarity=similarity,
        registries=[*_registries(root), *registries],
        collected=files,
        forget=forget,
        contains=contains,
    )
    print_result(options, sightings.to_json(), module.lines(sightings))
    sys.exit(105 if sightings.found else 0 if sightings.sure else 106)


@click.command()
@click.argument("first", type=PATH, shell_complete=complete_artifacts)
@click.argument("second", type=PATH, shell_complete=complete_artifacts)
@option("--json", store="json", is_flag=True, help="Print the result as JSON.")
@common_options
@click.pass_obj
def diff(options: Options, first: Path, second: Path) -> None:
    """Compare two artifacts of a kind, two releases, or two projects: config, data, metrics.

    FIRST and SECOND are paths, ids or kinds of artifacts, or dir:REGISTRY#TAG. Models that two
    reports measured on the same rows are compared in pairs, row by row, with a significance test.
    """
    from slmctl.pipeline import named
    from slmctl.provenance import diff as module

    first, second = (named.artifact_path(make_workspace(options), path) for path in (first, second))
    differences = module.diff(first, second)
    print_result(options, differences, module.lines(differences))


@click.command()
@click.argument("paths", nargs=-1, type=PATH, shell_complete=complete_artifacts)
@click.option(
    "--key",
    type=PATH,
    metavar="PUB",
    help="Require a signature by the holder of this public key.",
)
@option("--json", store="json", is_flag=True, help="Print the faults of each as JSON.")
@common_options
@click.pass_obj
def verify(options: Options, paths: tuple[Path, ...], key: Path | None) -> None:
    """Check every byte of artifacts; list every file that is extra, missing or changed.

    PATHS are artifacts, their ids or kinds, or releases; all below runs/ by default. With --key,
    releases must be signed.
    """
    from slmctl.artifacts import artifact, lineage
    from slmctl.pipeline import named

    where = make_workspace(options)
    folders = [named.artifact_path(where, path) for path in paths] or lineage.folders(
        options.directory
    )
    if not folders:
        raise IntegrityError(
            f"there are no artifacts below {options.directory / 'runs'}", hint="slmctl run"
        )
    if gone := [folder for folder in folders if not os.path.exists(folder)]:  # noqa: PTH110 -- too long a name raises
        raise UsageError(
            f"there is no {gone[0]}", hint="a path, an id or a kind; slmctl ls lists what there is"
        )
    faults_of = {folder: artifact.verify_folder(folder) for folder in folders}
    fields = [{"path": str(folder), "faults": faults} for folder, faults in faults_of.items()]
    print_result(
        options,
        fields,
        (f"{at}: {fault}" for at, faults in faults_of.items() for fault in faults or ["whole"]),
    )
    damaged = [folder for folder, faults in faults_of.items() if faults]
    if damaged:
        made_here = damaged[0] in lineage.folders(options.directory)
        again = f"remove it and run its stage again: rm -r {damaged[0]}"
        raise IntegrityError(
            f"damaged: {len(damaged)} of {terminal().count(len(faults_of), 'artifact')}",
            hint=again if made_here else "fetch or copy it again: slmctl fetch",
        )
    if key is not None:
        _require_signed(options, folders, key)


@click.command()
@click.argument("path", metavar="ARTIFACT", type=PATH)
@click.option(
    "--source",
    "sources",
    multiple=True,
    type=EXISTING,
    metavar="PATH",
    help="A source file or folder of the artifact, where the search by hash does not reach it; "
    "repeatable.",
)
@stage_options
@click.pass_obj
def reproduce(options: Options, path: Path, sources: tuple[Path, ...]) -> None:
    """Build an artifact again from its manifest, and compare every byte.

    ARTIFACT is a path, an id or a kind. Inputs are searched below runs/, sources among --source,
    the copies in runs/.sources/ and the files of slmctl.yaml, all by hash. Exits with 0 if every
    byte is equal, else with 104 and a list of differences.
    """
    from slmctl.artifacts import artifact
    from slmctl.errors import DifferentError
    from slmctl.pipeline import LEAVES, named, system_errors
    from slmctl.pipeline.model_lookup import root_of
    from slmctl.provenance import reproduce as module

    path = named.artifact_path(make_workspace(options), path)
    options.directory = root_of(options.directory, path)
    project = _project(options)
    made = artifact.load(path)
    name = made.manifest.stage.partition("/")[0]
    if name in LEAVES:
        project.stage(name).import_first()
    try:
        comparison = module.reproduce(project, made, sources)
    except ModuleNotFoundError as error:
        raise system_errors.missing(error, name) from error
    print_result(options, comparison.to_json(), module.lines(comparison))
    if not comparison.same:
        raise DifferentError(
            f"{path} differs from what its recipe gives today",
            hint="slmctl doctor shows this machine's versions",
        )


@click.command()
@click.option(
    "--registry",
    "registries",
    multiple=True,
    type=FOLDER,
    metavar="DIR",
    help="A further registry whose releases keep what they were made of; repeatable.",
)
@click.option("--yes", is_flag=True, help="Remove without a confirmation.")
@option("--json", store="json", is_flag=True, help="Print the list as JSON.")
@config_options
@click.pass_obj
def gc(options: Options, registries: tuple[Path, ...], yes: bool) -> None:
    """List artifacts that nothing needs, with sizes, and remove them after a confirmation.

    Kept are the artifacts of slmctl.yaml as it is today, of its server, of the releases in the
    registry and their tags, and of running processes. Listed are other artifacts, drafts of
    interrupted runs, unused copies of sources, and files in the registry that are of no release any
    more.
    """
    from slmctl.provenance import gc as module

    project = open_project(options)
    unneeded = module.survey(project, registries)
    console = terminal()
    for note in unneeded.notes:
        console.say(f"note: {note}")
    print_result(options, unneeded.to_json(), module.lines(unneeded, project.root))
    if not unneeded.items:
        return
    if not yes and unneeded.size and not is_terminal():
        console.say(
            "nothing is removed: stdin and stderr are no terminal for the confirmation; --yes "
            "removes it"
        )
        return
    if (
        yes
        or not unneeded.size
        or click.confirm(f"remove {console.size(unneeded.size)}?", default=False, err=True)
    ):
        freed, left = module.remove(project, unneeded)
        for path in left:
            console.say(f"  kept, since a process uses it by now: {path}")
        if unneeded.size:
            console.say(f"  {console.size(freed)} freed")


@click.command()
@click.option(
    "--fix", is_flag=True, help="Fetch the GGUF converter, once (uses the package index)."
)
@click.option(
    "--base",
    is_flag=False,
    flag_value="",
    metavar="[PATH]",
    help="Show a base that pull has left, in place of the machine; that of slmctl.yaml by default.",
)
@option("--json", store="json", is_flag=True, help="Print the checks as JSON.")
@offline_option
@config_options
@click.pass_obj
def doctor(options: Options, fix: bool, base: str | None) -> None:
    """Check this machine: hardware, packages and tools, with the
    command that installs what is missing.
    """
    from slmctl.cli import doctor_checks as doctor_module

    console = terminal()
    if fix:
        for done in doctor_module.fix():
            console.say(done)
    checks = (
        doctor_module.examine()
        if base is None
        else doctor_module.examine_base(_base(options, base))
    )
    print_result(options, list(map(dataclasses.asdict, checks)), doctor_module.lines(checks))
    missing = [check for check in checks if not check.ok]
    if missing:
        from slmctl.errors import MissingError

        raise MissingError(
            f"missing: {', '.join(check.name for check in missing)}", hint=missing[0].remedy
        )


@click.group(name="config")
def config_group() -> None:
    """Print the config or its schema."""


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
    """Check the config and print it with every default filled in,
    passwords in addresses as `***`.
    """
    import yaml

    from slmctl import config
    from slmctl.network.credentials import mask

    def shown(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shown(each) for key, each in value.items()}
        if isinstance(value, list):
            return [shown(each) for each in value]
        return mask(value) if isinstance(value, str) and "://" in value else value

    values = config.load(options.directory / config.FILENAME, options.overrides).as_written()
    terminal().write(yaml.safe_dump(shown(values), sort_keys=False, allow_unicode=True))


def _base(options: Options, path: str) -> Base:
    """The base at a path, or of the config where the path is empty."""
    from slmctl.model_files import catalogue
    from slmctl.model_files.base_model import Base
    from slmctl.pipeline.named import open_model

    if path in ("", "base"):
        return Base.read(open_project(options).artifact("base").path)
    catalogue.require_source(path, options.directory / path)
    return Base.read(open_model(options.directory / path, ("base",)).path)


def _project(options: Options) -> Project:
    """The project of the working folder; one without a base or sources
    where it has artifacts and no config.
    """
    from slmctl import config
    from slmctl.pipeline.graph import Project

    if (options.directory / config.FILENAME).exists():
        return open_project(options)
    settings = config.parse("{project: none, base: none}")
    return Project(options.directory.resolve(), settings, wait=not options.no_wait)


def _registries(root: Path) -> list[Path]:
    """The registries of the config and of receipts that are folders and
    exist; of each other target there is a note.
    """
    from slmctl import config
    from slmctl.releases import deliveries, registry

    own = (
        [config.load(root / config.FILENAME).publish.to]
        if (root / config.FILENAME).exists()
        else []
    )
    folders = []
    for to in dict.fromkeys(
        [*own, *(receipt.to for _, receipt in deliveries.recorded(root / "runs"))]
    ):
        folder, _ = registry.parse(to, root)
        if not to.startswith("dir:"):
            terminal().say(
                f"note: the releases in {to} are not searched; name a copy of them by --registry"
            )
        elif not folder.exists():
            terminal().say(
                f"note: the registry {folder} is missing, so its releases are not searched"
            )
        else:
            folders.append(folder)
    return list(dict.fromkeys(folders))


def _collected(root: Path) -> list[Path]:
    """The folder of the config's collected answers and the reviewed files that there are."""
    from slmctl import config

    paths = [root / REVIEWED]
    if (root / config.FILENAME).exists():
        settings = config.load(root / config.FILENAME)
        paths += [settings.serve.collect.to] if settings.serve.collect is not None else []
        paths += [
            path
            for source in settings.prepare.sources
            if (path := Path(source.path or "")).name == REVIEWED
        ]
    return list(dict.fromkeys(path for path in paths if path.exists()))


def _require_signed(options: Options, folders: list[Path], key: Path) -> None:
    from slmctl.pipeline import system_errors
    from slmctl.releases import signing

    try:
        for folder in folders:
            signing.verify(folder, key)
            if not options.json:
                terminal().write(f"{folder}: signed by the holder of {key.name}\n")
    except ModuleNotFoundError as error:
        raise system_errors.missing(error, "verify --key") from error


COMMANDS = (ls, show, trace, diff, verify, reproduce, gc, bases, doctor, init, config_group)
