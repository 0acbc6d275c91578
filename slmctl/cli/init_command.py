"""`slmctl init`: a project from a template, or from a person's own rows."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slmctl.cli.group import PATH, Options, common_options, is_terminal, terminal

if TYPE_CHECKING:
    from slmctl.init.proposal import Proposal

TEMPLATES = (
    "support-triage",
    "topic-tagging",
    "field-extraction",
    "contract-terms",
    "reply-drafting",
    "tool-calls",
)
KINDS = ("classify", "tag", "extract", "generate", "call")
QUESTIONS = {
    "output": "Which column holds the right answer? (A,B,C makes JSON of several)",
    "input": "Which column is read? (or a template: '{{ subject }} {{ body }}')",
    "kind": f"What is the task? ({', '.join(KINDS)})",
    "base": "Which base model? (slmctl bases lists others)",
}
Make = Callable[[Mapping[str, Any]], "Proposal"]


@click.command()
@click.argument("source")
@click.argument("folder", required=False, type=PATH)
@click.option("--input", metavar="COLUMN", help="Column that the model reads, or a template.")
@click.option(
    "--output", metavar="COLUMN", help="Column with the right answer; A,B,C makes JSON of several."
)
@click.option(
    "--task",
    "kind",
    type=click.Choice(KINDS),
    help="Kind of the task, where the answers do not tell it.",
)
@click.option(
    "--sheet",
    metavar="NAME",
    help="Sheet of a workbook, table of an SQLite file, or array of a JSON object.",
)
@click.option("--query", metavar="SELECT", help="Query of a sql: address.")
@click.option(
    "--base", metavar="NAME", help="Base model: a name of slmctl bases, or a value of `base`."
)
@click.option("--yes", is_flag=True, help="Take every proposal without a question.")
@common_options
@click.pass_obj
def init(
    options: Options, /, source: str, folder: Path | None, yes: bool, **flags: str | None
) -> None:
    """Start a project from SOURCE: your own rows, or a template with example data.

    SOURCE is a file (CSV, TSV, JSON, JSONL, Parquet, a workbook, SQLite), a folder or a pattern of
    such files or of documents (PDF, DOCX, EML, MBOX, HTML, TXT, MD), a database (sql:ADDRESS with
    --query), or the template support-triage, topic-tagging, field-extraction, contract-terms,
    reply-drafting or tool-calls. slmctl.yaml is written into FOLDER: by default the working folder,
    for a template one of its name.
    """
    from slmctl.artifacts import atomic
    from slmctl.config import FILENAME
    from slmctl.errors import UsageError
    from slmctl.init import project
    from slmctl.installation import is_installed

    target = options.directory / (folder or (source if source in TEMPLATES else Path()))
    if source in TEMPLATES:
        if flag := next((name for name, value in flags.items() if value is not None), None):
            flag = flag.replace("kind", "task")
            raise UsageError(f"--{flag} is for rows of your own, and '{source}' is a template")
        written = project.copy_template(source, target)
        next_command = f"slmctl -C {shlex.quote(str(target))} run"
    else:
        project.require_free(target, FILENAME, base=flags["base"])
        made = _proposal(options.directory, source, flags, folder, yes=yes)
        written = project.write(made, target)
        # which run --plan counts, and prepare need not read again
        for name, raw in made.data.copies.items():
            copy = target / "runs" / ".sources" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            atomic.write(copy, raw, 0o600)
        inside = "" if target.resolve() == Path.cwd() else f" -C {shlex.quote(str(target))}"
        classifier = made.task.rules.has("sources.label") and not is_installed("llama_cpp")
        until = " --until encode" if classifier else ""
        next_command = (
            f"slmctl{inside} run --plan{until}    # what a run takes; then without --plan"
        )
    for path in written:
        terminal().say(f"wrote {path}")
    terminal().say(f"next: {next_command}")
    terminal().write(f"{target}\n")


def _proposal(
    root: Path, source: str, flags: Mapping[str, str | None], folder: Path | None, *, yes: bool
) -> Proposal:
    """Returns the proposed project for rows, after printing it; on a
    terminal the user is asked the open questions.
    """
    from slmctl import config
    from slmctl.cli import matmul_rates
    from slmctl.errors import UsageError
    from slmctl.init import proposal, raw_data, texts

    _require_source(source, root)
    data = raw_data.read(source, root, sheet=flags["sheet"], query=flags["query"])
    for line in texts.about_data(data):
        terminal().say(line)
    machine = proposal.Machine(matmul_rates.stored() or {}, config.resolve_matmul_dtype("auto"))
    chosen = {key: flags[key] for key in QUESTIONS}
    if data.output is not None:  # documents, of which predict and the server are sent the text
        chosen = {
            **chosen,
            "input": chosen["input"] or "text",
            "output": chosen["output"] or data.output,
        }
    ask = not yes and is_terminal()

    def make(values: Mapping[str, Any]) -> Proposal:
        return proposal.make(data, machine, **values)

    made = _asked(make, chosen) if ask else make(chosen)
    if made.task.doubts and not ask and not yes:
        words = [
            "slmctl",
            *(["-C", str(root)] if root != Path() else []),
            "init",
            source,
            *([str(folder)] if folder else []),
        ]
        words += [
            word
            for name, value in flags.items()
            if value is not None
            for word in (f"--{name.replace('kind', 'task')}", value)
        ]
        words += [
            word
            for flag, _ in made.task.doubts
            for word in (flag, getattr(made.task, flag.removeprefix("--")))
        ]
        raise UsageError(
            "; ".join(question for _, question in made.task.doubts),
            hint=f"{shlex.join(words)}, or another one; --yes takes these",
        )
    for line in texts.about_project(made):
        terminal().say(line)
    return made


def _require_source(source: str, root: Path) -> None:
    """Raises UsageError unless `source` is a template, an existing file
    or folder, a glob pattern, or `sql:…`.
    """
    import difflib

    from slmctl.config import below
    from slmctl.errors import UsageError

    is_named = source.startswith("sql:") or any(mark in source for mark in "*?[")
    if is_named or below(root, Path(source)).exists():
        return
    near = difflib.get_close_matches(
        source, [*TEMPLATES, *(path.name for path in root.iterdir())], n=1
    )
    suggestion = f"; did you mean '{near[0]}'?" if near else ""
    raise UsageError(
        f"there is no file and no template '{source}'{suggestion}",
        hint=f"templates: {', '.join(TEMPLATES)}",
    )


def _asked(make: Make, flags: Mapping[str, Any]) -> Proposal:
    """Returns the project after the questions. Each has a proposed
    answer; values set by a flag are not asked.
    """
    chosen = dict(flags)
    project = make(chosen)
    for key, question in QUESTIONS.items():
        proposed = project.base.source if key == "base" else getattr(project.task, key)
        if chosen[key] is None and proposed:
            answer = _prompt(question, proposed, _check(make, chosen, key))
            if answer != proposed or key != "base":
                chosen[key] = answer
            project = make(chosen)
    return project


def _check(make: Make, chosen: Mapping[str, Any], key: str) -> Callable[[str], str]:
    """Returns a function that checks one answer together with the earlier
    ones; click asks again after an error.
    """
    from slmctl.errors import SlmctlError

    def check(value: str) -> str:
        if key == "kind" and value not in KINDS:
            raise click.BadParameter(f"one of {', '.join(KINDS)} is wanted")
        try:
            make({**chosen, key: value})
        except SlmctlError as error:
            raise click.BadParameter(
                error.message + (f" ({error.hint})" if error.hint else "")
            ) from None
        return value

    return check


def _prompt(question: str, proposal: str, check: Callable[[str], str]) -> str:
    default = terminal().shown(proposal)  # a template may have line breaks
    answer: str = click.prompt(
        question,
        default=default,
        err=True,
        value_proc=lambda text: check(proposal if text == default else text),
    )
    return answer
