"""A proposal -> its two texts, by the templates in `templates/init/`:
slmctl.yaml, and lines for a person.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import yaml

from slmctl import config
from slmctl.config import FILENAME
from slmctl.console import count, percent, shown
from slmctl.init import cheap_model
from slmctl.init.answer_fields import AnswerFields
from slmctl.init.answer_schema import closed_lists
from slmctl.init.column_names import split_named, suggests
from slmctl.init.columns import Column
from slmctl.init.proposal import (
    MAX_LENGTH,
    THIN,
    Proposal,
    gates,
    plain,
    surely_better,
    system_prompt,
)
from slmctl.init.raw_data import RawData, SplitPart
from slmctl.init.task_proposal import columns_in
from slmctl.installation import WITHOUT_MODEL, is_installed
from slmctl.metrics.label_typos import alike_labels
from slmctl.metrics.statistics import wilson
from slmctl.normal_forms import in_normal_form
from slmctl.reports.html_page import either
from slmctl.sources.sql_address import with_file

WIDTH = 120  # characters of a line that is wrapped
MOST_NAMES = 50  # labels that slmctl.yaml names
SCHEMA_FILE = ".slmctl.schema.json"  # beside slmctl.yaml; editors read it without a network
SCHEMA_LINE = f"# yaml-language-server: $schema={SCHEMA_FILE}"
LISTED = 5  # labels that a note names
NAME, EXAMPLE = 28, 60  # characters of a column's name and of its example
_COMMENT_AT = 46  # column of the comments


def _rendered(template: str, values: Mapping[str, object]) -> list[str]:
    """The lines of a template with these values."""
    import jinja2

    environment = jinja2.Environment(  # noqa: S701 - YAML and plain text; the filters quote and clean values
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": count,
        "either": either,
        "flow": _flow,
        "number": "{:,}".format,
        "percent": percent,
        "shown": shown,
        "template": _template,
        "wrapped": _wrapped,
        "yaml": _yaml,
    }
    text = (
        resources.files("slmctl.templates").joinpath("init", template).read_text(encoding="utf-8")
    )
    return environment.from_string(text).render(values).split("\n")


# Lines for a person


def about_data(data: RawData) -> Iterator[str]:
    """Lines on the source and its columns."""
    look = data.look
    more = "" if look.complete else "more than "
    yield (
        f"{data.title}: {data.form}, {more}{count(look.rows, 'row')}, "
        f"{count(len(look.columns), 'column')}"
    )
    names = [shown(column.name, NAME) for column in look.columns]
    widths = [
        max(map(len, cells), default=0)
        for cells in (names, [column.reason for column in look.columns])
    ]
    for column, name in zip(look.columns, names, strict=True):
        example = shown(column.example, EXAMPLE)
        yield (
            f"  {name:<{widths[0]}}  {column.kind:<8}  {column.reason:<{widths[1]}}  {example}"
        ).rstrip()
    if look.unusable:
        what = "row" if data.output is None else "document"
        yield f"note: {count(look.unusable, what)} cannot be used; {shown(look.fault)}"
    for note in data.notes:
        yield f"note: {note}"


def about_project(project: Proposal) -> list[str]:
    """Lines on the task, the base, and what is known of the rows."""
    task, rows = project.task, round(project.independent_test_rows)
    conflicting, best = _conflicts(task.pairs)
    values = {
        "project": project,
        "task": task,
        "has_engine": is_installed("llama_cpp"),
        "without_model": WITHOUT_MODEL,
        "most": LISTED,
        "max_length": MAX_LENGTH,
        "few": THIN,
        "schema_name": schema_name(project),
        "closed": closed_lists(project.schema) if task.rules.has("schema") else (),
        "read": columns_in(task.input, project.data.look.columns) if task.input else [],
        "by_label": [f"{shown(label, 40)} {number:,}" for label, number in project.labels.items()],
        "expected": tuple(percent(share, 0) for share in wilson(round(0.9 * rows), rows)),
        "split_columns": list(_split_columns(project.data.look.columns)),
        "conflicting": conflicting,
        "best": best,
        "slips": [
            f"{shown(slip, 40)} for {shown(likely, 40)}"
            for slip, likely in project.label_map.items()
        ],
        "alike": [
            f"{shown(pair['label'], 40)} {pair['count']:,} and {shown(pair['likely'], 40)} "
            f"{pair['likely_count']:,}"
            for pair in alike_labels(project.labels)
        ],
        "thin": [
            f"{shown(label, 40)} {rows}" for label, rows in project.labels.items() if rows < THIN
        ],
    }
    return list(filter(None, _rendered("notes.txt.j2", values)))


def _split_columns(columns: Iterable[Column]) -> Iterator[tuple[str, int]]:
    """Columns that name the split of each row, where a source is bound to
    one as a whole, and their test rows.
    """
    for column in columns:
        rows = Counter(
            {
                value: number
                for value, number in column.counts.items()
                if split_named(value) == "test"
            }
        )
        if rows and all(split_named(value) or suggests(value, "train") for value in column.counts):
            yield shown(column.name, NAME), rows.total()


def _conflicts(pairs: Sequence[tuple[str, str]]) -> tuple[int, float]:
    """The number of texts with different answers in different rows, and
    the share of the rows that can be right.
    """
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for text, answer in pairs:
        answers[plain(text)][answer] += 1
    conflicting = [counts for counts in answers.values() if len(counts) > 1]
    wrong = sum(counts.total() - max(counts.values()) for counts in conflicting)
    return len(conflicting), 1 - wrong / max(len(pairs), 1)


# The text of slmctl.yaml


def config_text(proposal: Proposal, folder: Path) -> str:
    """The content of slmctl.yaml in a folder."""
    return "\n".join(map(_aligned, _rendered(f"{FILENAME}.j2", _values(proposal, folder))))


def project_name(folder: Path) -> str:
    """A project's name from its folder's: small letters, digits and hyphens."""
    name = folder.resolve().name.replace("ß", "ss").replace("ł", "l")
    plain = in_normal_form(name, "NFKD").encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")[:40].strip("-") or "project"


def schema_name(proposal: Proposal) -> str:
    """The name of the file with the JSON Schema of the answers, beside slmctl.yaml."""
    return f"{project_name(Path(Path(proposal.data.title).stem))}.schema.json"


def _values(proposal: Proposal, folder: Path) -> dict[str, object]:
    """The names that the template knows."""
    data = proposal.data
    task = proposal.task
    base = proposal.base.source
    labels = sorted(proposal.labels)
    parts = data.parts or [SplitPart({}, "", data.look.rows)]
    origins = [
        {key: _placed(value, folder) for key, value in {**data.origin, **part.origin}.items()}
        for part in parts
    ]
    return {
        "proposal": proposal,
        "task": task,
        "name": project_name(folder),
        "base": base if config.is_remote(base) else _relative(Path(base).expanduser(), folder),
        "schema_line": SCHEMA_LINE,
        "schema_name": schema_name(proposal),
        "labels": proposal.levels or labels,
        # by name, so that a row with a new label is left out and ends no run; from-data where they
        # are many
        "named": bool(proposal.levels) or (data.look.complete and len(labels) <= MOST_NAMES),
        "slips": [f"{_flow(slip)}: {_flow(label)}" for slip, label in proposal.label_map.items()],
        "system": system_prompt(task.kind, proposal.languages.main),
        "parts": [
            replace(part, origin=origin) for part, origin in zip(parts, origins, strict=True)
        ],
        "most_rejected": min(math.ceil(100 * (0.02 + proposal.rejected)), 100),
        "cheap": cheap_model.proposed(task.rules, proposal.languages.main, lambda: proposal.schema),
        "gates": [] if proposal.is_trial else gates(task, proposal.independent_test_rows),
        "sure": surely_better(proposal.independent_test_rows),
    }


def _placed(value: object, folder: Path) -> object:
    """A value of a source as a config in the folder has it: paths relative to that."""
    if isinstance(value, Mapping) and "url" in value:
        return {**value, "url": with_file(value["url"], lambda path: _relative(Path(path), folder))}
    if isinstance(value, Mapping):
        return {key: _placed(inner, folder) for key, inner in value.items()}
    return _relative(value, folder) if isinstance(value, Path) else value


def _relative(path: Path, folder: Path) -> str:
    return os.path.relpath(path.resolve(), folder.resolve())


def _wrapped(values: Iterable[str], head: str, end: str) -> str:
    """Entries with commas between a head and an end, over as many lines as they take."""
    lines, entries = [head], list(values)
    for place, entry in enumerate(entries):
        piece = entry + (", " if place < len(entries) - 1 else end)
        if len(lines[-1]) + len(piece) > WIDTH and lines[-1].strip():
            lines.append(" " * len(head))
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def _template(fields: AnswerFields) -> str:
    """The template of an object as YAML; between quotes a line break is
    a space, so it takes several lines.
    """
    written = _yaml(fields.template)
    if not written.startswith("'"):  # the name of a column has characters that YAML escapes
        return f"      output: {written}"
    return _wrapped((pair.replace("'", "''") for pair in fields.pairs), "      output: '{", "}'")


def _aligned(line: str) -> str:
    """A line of the template, with its comment behind a tab moved to the column of comments."""
    written, _, comment = line.partition("\t")
    return f"{written:<{_COMMENT_AT}}  {comment}" if comment else written


def _yaml(value: object) -> str:
    """A value as YAML on one line."""
    if isinstance(value, str) and "\n" not in value:
        return yaml.safe_dump(value, allow_unicode=True, width=10**9).removesuffix("...\n").strip()
    return _flow(value)


def _flow(value: object) -> str:
    """A value as YAML on one line, to stand in a list or mapping on one line too."""
    if isinstance(value, Mapping):
        return (
            "{" + ", ".join(f"{_flow(key)}: {_flow(inner)}" for key, inner in value.items()) + "}"
        )
    if isinstance(value, str) and "\n" in value:
        return json.dumps(value, ensure_ascii=False)
    # in a list, so that what may stand in no list or mapping on one line is quoted
    return yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**9)[1:-2]
