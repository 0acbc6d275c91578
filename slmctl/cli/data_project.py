"""`slmctl init FILE`: rows that were looked at are described, given a task and a base, and written as a project."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slmctl import config, sensitive
from slmctl.cli import base_proposal, matmul_rates, project_config, project_template, task_proposal
from slmctl.cli.base_proposal import BaseProposal
from slmctl.cli.project_config import ProjectProposal
from slmctl.cli.project_template import SCHEMA_FILE, project_name
from slmctl.cli.task_proposal import TaskKind, TaskProposal, labels_of
from slmctl.config import FILENAME
from slmctl.console import percent, shown
from slmctl.errors import UsageError
from slmctl.metrics.statistics import wilson
from slmctl.reports.html_page import count
from slmctl.sources.first_look import json_answers, language
from slmctl.sources.first_look.answer_schema import SchemaBuilder
from slmctl.sources.first_look.columns import json_value
from slmctl.sources.first_look.language import Languages
from slmctl.sources.first_look.raw_data import RawData
from slmctl.sources.sql_address import with_file
from slmctl.task.cleaning import STEPS, clean

SEARCHED = 400  # texts of the sample that are searched for personal data
FEW = 10  # rows of a label, of which fewer teach little
WORTH_CLEANING = 0.02  # share of texts that a step of cleaning changes, from which it is proposed
CLEANED = {"html": "HTML", "quoted_mail": "quoted mails", "signatures": "signatures"}
KINDS = {"email": "e-mail addresses", "phone": "phone numbers"}
MAPPED = 40  # misspelt labels that slmctl.yaml maps
LISTED = 5  # labels that are named
NAME, EXAMPLE = 28, 60  # characters of a column's name and of its example


@dataclass(frozen=True)
class DataProject:
    """Rows with their task and their base.

    Attributes:
        sensitive: Share of the texts with personal data that is redacted, by kind.
        kept: Kinds of personal data that stay, since answers hold them.
        clean: Share of the texts that a step of cleaning changes, by step.
        label_map: Labels that look misspelt, with the likely ones.
    """

    data: RawData
    task: TaskProposal
    base: BaseProposal
    languages: Languages
    sensitive: Mapping[str, float]
    kept: tuple[str, ...]
    clean: Mapping[str, float]
    label_map: Mapping[str, str]

    @property
    def rows(self) -> int:
        """Rows with a text and an answer, estimated from the sample."""
        return round(self.data.look.rows * self.task.usable)


def require_no_config(folder: Path) -> None:
    """Refuse a folder that is a project already.

    Raises:
        UsageError: It holds a slmctl.yaml.
    """
    if (folder / FILENAME).exists():
        raise UsageError(f"{folder / FILENAME} exists already", hint="name another folder: slmctl init SOURCE FOLDER")


def make(
    data: RawData, *, input: str | None, output: str | None, kind: TaskKind | None, base: str | None
) -> DataProject:
    """The project for rows; what is not None is kept, the rest proposed.

    Raises:
        DataError: The rows are for no task.
        UsageError: A flag names what does not exist, or does not go with the others.
    """
    task = task_proposal.propose(data.look, data.title, input=input, output=output, kind=kind)
    languages = language.of_texts(text for text, _ in task.pairs)
    rows = round(data.look.rows * task.usable)
    characters = sum(len(text) + len(answer) for text, answer in task.pairs) / max(len(task.pairs), 1)
    tokens = round(rows * project_config.epochs(rows) * (characters / project_config.CHARACTERS_A_TOKEN))
    chosen = (
        base_proposal.named(base)
        if base is not None
        else base_proposal.propose(
            languages.main,
            tools=task.tools,
            tokens=tokens,
            rates=matmul_rates.stored() or {},
            dtype=config.resolve_matmul_dtype("auto"),
        )
    )
    texts = [text for text, _ in task.pairs]
    texts = texts[:: max(1, len(texts) // SEARCHED)]
    # what the answers hold must be there to be read
    held = _sensitive([answer for _, answer in task.pairs[:SEARCHED]]) if task.kind != "classify" else {}
    shares = _sensitive(texts)
    return DataProject(
        data,
        task,
        chosen,
        languages,
        sensitive={kind: share for kind, share in shares.items() if kind not in held},
        kept=tuple(kind for kind in shares if kind in held),
        clean=_cleaning(texts, task.kind),
        label_map=_label_map(task),
    )


def undecided(source: str, task: TaskProposal) -> UsageError:
    """The error where a person has to decide and cannot be asked."""
    questions = "; ".join(question for _, question in task.doubts)
    flags = " ".join(f"{flag} '{getattr(task, flag.removeprefix('--'))}'" for flag, _ in task.doubts)
    return UsageError(questions, hint=f"slmctl init {source} {flags}, or another one; --yes takes these")


def _sensitive(texts: Sequence[str]) -> dict[str, float]:
    """Share of the texts in which an e-mail address or a phone number was found, by kind."""
    counts = Counter(
        kind for text in texts for kind in {finding.kind for finding in sensitive.find(text, ("email", "phone"))}
    )
    return {kind: count / len(texts) for kind, count in counts.items()}


def _cleaning(texts: Sequence[str], kind: TaskKind) -> dict[str, float]:
    """Share of the texts that a step of cleaning changes, by step; none where few are marked up, quoted or signed.

    Fields and answers may stand in a quoted mail or a signature, so for those tasks only HTML is taken off.
    """
    steps = STEPS if kind == "classify" else ("html", "whitespace")
    shares = {step: sum(clean(text, (step,), ())[0] != text for text in texts) / len(texts) for step in steps}
    worth = {step: share for step, share in shares.items() if share >= WORTH_CLEANING and step != "whitespace"}
    return {**worth, "whitespace": 0.0} if worth else {}


def _label_map(task: TaskProposal) -> dict[str, str]:
    """Labels that look misspelt, with the likely ones."""
    from slmctl.stages.prepare.data_checks import label_typos

    typos = label_typos(labels_of(task)) if task.kind == "classify" else []
    misspelt = {typo["label"] for typo in typos}
    return {typo["label"]: typo["likely"] for typo in typos[:MAPPED] if typo["likely"] not in misspelt}


# What is said


def about_data(data: RawData) -> Iterator[str]:
    """Lines on the source and its columns."""
    look = data.look
    more = "" if look.complete else "more than "
    yield f"{data.title}: {data.form}, {more}{count(look.rows, 'row')}, {count(len(look.columns), 'column')}"
    names = [shown(column.name, NAME) for column in look.columns]
    reasons = [column.reason for column in look.columns]
    widths = [max(map(len, cells), default=0) for cells in (names, reasons)]
    for column, name, reason in zip(look.columns, names, reasons, strict=True):
        line = f"  {name:<{widths[0]}}  {column.kind:<8}  {reason:<{widths[1]}}  {shown(column.example, EXAMPLE)}"
        yield line.rstrip()
    if look.unusable:
        yield f"note: {count(look.unusable, 'row')} cannot be read; {shown(look.fault)}"
    for note in data.notes:
        yield f"note: {note}"


def about_project(project: DataProject) -> Iterator[str]:
    """Lines on the task, the base, and what is known of the rows."""
    task = project.task
    yield f"task: {task.kind}, since {shown(task.reason)}"
    if task.input:
        names = [shown(name) for name in task_proposal.names_in(task.input)]
        read = f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} read"
        yield f"  {read}, {shown(task.output)} is the answer"
    if task.kind == "classify":
        yield f"  rows by label: {_shares(labels_of(task))}"
    yield f"language: {project.languages}"
    yield f"base: {project.base.source}: {project.base.reason}"
    for note in _notes(project):
        yield f"note: {note}"


def _shares(labels: Mapping[str, int]) -> str:
    """`billing 310, delivery 204, … and 9 more, the rarest legal 3`: rows by label."""
    text = ", ".join(f"{shown(label, 40)} {count:,}" for label, count in list(labels.items())[:LISTED])
    if len(labels) > LISTED:
        rarest, count = list(labels.items())[-1]
        text += f" and {len(labels) - LISTED} more, the rarest {shown(rarest, 40)} {count:,}"
    return text


def _notes(project: DataProject) -> Iterator[str]:
    task = project.task
    yield from task.notes
    if task.usable < 0.995:
        yield f"{percent(1 - task.usable, 0)} of the rows have no text or no answer, and are left out"
    if task.kind != "generate":
        yield _precision(project)
    yield from _repeated(task.pairs)
    if project.clean:
        shares = ", ".join(f"{CLEANED[step]} in {percent(share, 0)}" for step, share in project.clean.items() if share)
        yield f"{shares} of the texts: cut out by prepare.clean, also when the model is used"
    if task.kind == "classify":
        yield from _labels(project)
    if project.kept:
        names = " and ".join(KINDS[kind] for kind in project.kept)
        yield f"{names} stand in texts and answers, so they are not redacted: see prepare.sensitive"
    kinds = ", ".join(f"{KINDS[kind]} in {percent(share, 0)}" for kind, share in sorted(project.sensitive.items()))
    if kinds:
        yield f"{kinds} of the texts: they are redacted before anything learns from them"


def _precision(project: DataProject) -> str:
    """A note on how much the test rows will tell."""
    rows = project_config.test_rows(project.rows)
    low, high = wilson(round(0.9 * rows), rows)
    expected = f"{percent(low, 0)} to {percent(high, 0)}"
    return f"about {rows:,} rows are left for the test; if 90 % of them are right, expect {expected} in use"


def _repeated(pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Notes on texts that stand there several times, and on those with different answers."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for text, answer in pairs:
        answers[" ".join(text.casefold().split())][answer] += 1
    repeated = len(pairs) - len(answers)
    conflicting = [counts for counts in answers.values() if len(counts) > 1]
    if repeated >= 0.01 * len(pairs):
        yield f"{percent(repeated / len(pairs), 0)} of the rows repeat the text of another; the first of each stays"
    if conflicting:
        wrong = sum(counts.total() - max(counts.values()) for counts in conflicting)
        yield (
            f"{len(conflicting)} texts have different answers in different rows, so no model can be right on more than "
            f"{percent(1 - wrong / len(pairs))} of the rows; slmctl prepare lists them in repeated.jsonl"
        )


def _labels(project: DataProject) -> Iterator[str]:
    """Notes on labels that look misspelt, or have too few rows."""
    slips = project.label_map
    if slips:
        pairs = ", ".join(
            f"{shown(label, 40)} for {shown(likely, 40)}" for label, likely in list(slips.items())[:LISTED]
        )
        more = f" and {len(slips) - LISTED} more" if len(slips) > LISTED else ""
        yield f"{len(slips)} labels look misspelt: {pairs}{more}; slmctl.yaml maps them, so read them there"
    rare = rare_labels(project)
    if rare:
        names = ", ".join(shown(label, 40) for label in rare[:LISTED]) + (" …" if len(rare) > LISTED else "")
        have = "1 label has" if len(rare) == 1 else f"{len(rare)} labels have"
        yield f"{have} fewer than {FEW} rows: {names}; collect more, or map them to others"


def rare_labels(project: DataProject) -> list[str]:
    """The labels with fewer than FEW rows, but for misspelt ones."""
    if project.task.kind != "classify":
        return []
    return [label for label, count in labels_of(project.task).items() if count < FEW and label not in project.label_map]


# What is written


def write(project: DataProject, folder: Path) -> list[Path]:
    """Write the project into a folder, and nothing over a file that is there.

    Returns:
        The files.

    Raises:
        UsageError: A file exists already.
    """
    files: dict[str, bytes] = {}
    name = ""
    if project.task.kind == "extract":
        name = f"{project_name(Path(Path(project.data.title).stem))}.schema.json"
        files[name] = (json.dumps(_schema(project), indent=2, ensure_ascii=False) + "\n").encode()
    text = project_config.text(_proposal(project, folder, name))
    config.parse(text, root=folder)  # nothing is written that cannot be read
    return project_template.write(
        {FILENAME: text.encode(), **files, SCHEMA_FILE: project_template.schema_text().encode()}, folder
    )


def _proposal(project: DataProject, folder: Path, schema: str) -> ProjectProposal:
    origin = {key: _placed(value, folder) for key, value in project.data.origin.items()}
    base = project.base
    if not config.is_remote(base.source):
        base = replace(base, source=str(_placed(Path(base.source).expanduser(), folder)))
    return ProjectProposal(
        project=project_name(folder),
        origin=origin,
        task=project.task,
        base=base,
        rows=project.rows,
        language=project.languages.main,
        schema=schema,
        sensitive=project.sensitive,
        about_source=count(project.data.look.rows, "row"),
        clean=project.clean,
        label_map=project.label_map,
        rare_labels=len(rare_labels(project)),
    )


def _placed(value: object, folder: Path) -> object:
    """A value of a source as a config in the folder has it: paths relative to that."""

    def relative(path: str | Path) -> str:
        return os.path.relpath(Path(path).resolve(), folder.resolve())

    if isinstance(value, Mapping) and "url" in value:
        return {**value, "url": with_file(value["url"], relative)}
    return relative(value) if isinstance(value, Path) else value


def _schema(project: DataProject) -> dict[str, object]:
    """A JSON Schema that all answers satisfy; of columns from every row, of conversations from the sample."""
    builder = SchemaBuilder()
    task = project.task
    if task.conversation_format:
        for _, answer in task.pairs:
            builder.add(json_value(answer))
    else:
        for cell in json_answers(project.data.rows(), task.output):
            value = json_value(cell)
            if value is not None:
                builder.add(value)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **builder.schema()}
