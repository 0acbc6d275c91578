"""`slmctl init`: a project from a template, or from a person's own rows."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slmctl.cli.group import Options, common_options, terminal

if TYPE_CHECKING:
    from slmctl.cli.data_project import DataProject
    from slmctl.sources.first_look.raw_data import RawData

TEMPLATES = ("support-triage", "field-extraction", "reply-drafting", "tool-calls")
KINDS = ("classify", "extract", "generate", "call")


@click.command()
@click.argument("source")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--input", metavar="COLUMN", help="Column that the model reads, or a template.")
@click.option("--output", metavar="COLUMN", help="Column with the right answer.")
@click.option("--task", type=click.Choice(KINDS), help="Kind of the task, where the answers do not tell it.")
@click.option(
    "--sheet", metavar="NAME", help="Sheet of a workbook, table of an SQLite file, or array of a JSON object."
)
@click.option("--query", metavar="SELECT", help="Query of a sql: address.")
@click.option("--base", metavar="NAME", help="Base model: a name of slmctl bases, or a value of `base`.")
@click.option("--yes", is_flag=True, help="Take every proposal without a question.")
@common_options
@click.pass_obj
def init(options: Options, /, source: str, folder: Path | None, yes: bool, **flags: Any) -> None:
    """Start a project from SOURCE: your own rows, or a template with example data.

    SOURCE is a file (CSV, TSV, JSON, JSONL, Parquet, a workbook, SQLite), a folder or a pattern of such files, a
    database (sql:ADDRESS with --query), or the template support-triage, field-extraction, reply-drafting or
    tool-calls. slmctl.yaml is written into FOLDER: by default the working folder, for a template one of its name.
    """
    if source in TEMPLATES:
        _from_template(options, source, folder, [name for name, value in flags.items() if value is not None])
    else:
        _from_data(
            options, source, options.directory / (folder or Path()), flags, ask=not yes and _is_terminal(), yes=yes
        )


def _is_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr is not None and sys.stderr.isatty()


def _from_template(options: Options, template: str, folder: Path | None, flags: Sequence[str]) -> None:
    from slmctl.cli.project_template import init as copy
    from slmctl.errors import UsageError

    if flags:
        raise UsageError(f"--{flags[0]} is for rows of your own, and '{template}' is a template")
    target = options.directory / (folder or template)
    for path in copy(template, target):
        terminal().say(f"wrote {path}")
    terminal().say(f"next: slmctl -C {target} run")
    terminal().write(f"{target}\n")


def _from_data(
    options: Options, source: str, target: Path, flags: Mapping[str, str | None], *, ask: bool, yes: bool
) -> None:
    from slmctl.cli import data_project
    from slmctl.sources.first_look import raw_data

    say = terminal().say
    data_project.require_no_config(target)
    _require_source(source, options.directory)
    data = raw_data.read(source, options.directory, sheet=flags["sheet"], query=flags["query"])
    for line in data_project.about_data(data):
        say(line)
    chosen: dict[str, Any] = {
        "input": flags["input"],
        "output": flags["output"],
        "kind": flags["task"],
        "base": flags["base"],
    }
    project = _asked(data, chosen) if ask else data_project.make(data, **chosen)
    if not (ask or yes) and project.task.doubts:
        raise data_project.undecided(source, project.task)
    for line in data_project.about_project(project):
        say(line)
    for path in data_project.write(project, target):
        say(f"wrote {path}")
    inside = "" if target.resolve() == Path.cwd() else f" -C {target}"
    say(f"next: slmctl{inside} run --plan    # what a run takes; then without --plan")
    terminal().write(f"{target}\n")


def _require_source(source: str, root: Path) -> None:
    """Refuse what is no template, no file, no pattern and no address."""
    from slmctl.errors import UsageError

    if (
        source.startswith("sql:")
        or any(mark in source for mark in "*?[")
        or (root / Path(source).expanduser()).exists()
    ):
        return
    near = difflib.get_close_matches(source, [*TEMPLATES, *(path.name for path in root.iterdir())], n=1)
    suggestion = f"; did you mean '{near[0]}'?" if near else ""
    raise UsageError(
        f"there is no file and no template '{source}'{suggestion}", hint=f"templates: {', '.join(TEMPLATES)}"
    )


def _asked(data: RawData, chosen: dict[str, Any]) -> DataProject:
    """The project after the questions; each proposes its answer, and what a flag says is not asked."""
    from slmctl.cli import data_project

    project = data_project.make(data, **chosen)
    questions = {
        "output": "Which column holds the right answer?",
        "input": "Which column is read? (or a template: '{{ subject }} {{ body }}')",
        "kind": f"What is the task? ({', '.join(KINDS)})",
        "base": "Which base model? (slmctl bases lists others)",
    }
    for key, question in questions.items():
        proposed = project.base.source if key == "base" else getattr(project.task, key)
        if chosen[key] is None and proposed:
            answer = _prompt(question, proposed, _check(data, chosen, key))
            if answer != proposed or key != "base":
                chosen[key] = answer
            project = data_project.make(data, **chosen)
    return project


def _check(data: RawData, chosen: Mapping[str, Any], key: str) -> Callable[[str], str]:
    """A check of one answer together with those before it; click asks again after a fault."""
    from slmctl.cli import data_project
    from slmctl.errors import SlmctlError

    def check(value: str) -> str:
        if key == "kind" and value not in KINDS:
            raise click.BadParameter(f"one of {', '.join(KINDS)} is wanted")
        try:
            data_project.make(data, **{**chosen, key: value})
        except SlmctlError as error:
            raise click.BadParameter(error.message + (f" ({error.hint})" if error.hint else "")) from None
        return value

    return check


def _prompt(question: str, proposal: str, check: Callable[[str], str]) -> str:
    default = terminal().shown(proposal)  # a template may have line breaks
    answer: str = click.prompt(
        question, default=default, err=True, value_proc=lambda text: check(proposal if text == default else text)
    )
    return answer
