"""A proposal, or a template -> the folder of a project: `slmctl.yaml` with a comment a key, and the files it names."""

from __future__ import annotations

import json
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from importlib import resources
from itertools import islice
from pathlib import Path

import yaml

from slmctl import config
from slmctl.config import FILENAME, EncodeConfig
from slmctl.console import percent
from slmctl.errors import UsageError
from slmctl.init.answer_schema import SchemaBuilder
from slmctl.init.columns import json_value
from slmctl.init.look import COUNTED
from slmctl.init.proposal import (
    FEW_ROWS,
    HIGH_RATE,
    SMALL,
    SMALL_BASE,
    Proposal,
    epochs,
    gates,
    named_base,
    system_prompt,
)
from slmctl.init.raw_data import SplitPart
from slmctl.reports.html_page import count, either
from slmctl.sources.sql_address import with_file
from slmctl.task import conversation_formats

WIDTH = 120  # characters of a line that is wrapped
MOST_NAMES = 50  # labels that slmctl.yaml names
MAX_LENGTH = 1024  # tokens, the default of finetune.max_length
SCHEMA_FILE = ".slmctl.schema.json"  # beside slmctl.yaml; editors read it without a network
SCHEMA_LINE = f"# yaml-language-server: $schema={SCHEMA_FILE}"
_COMMENT_AT = 46  # column of the comments


def copy_template(template: str, folder: Path) -> list[Path]:
    """Copy a template and its example data into `folder`, whose name becomes the project's; never overwrites.

    Returns:
        The files written.

    Raises:
        UsageError: A file of its name exists.
    """
    text = resources.files("slmctl.templates").joinpath(template).joinpath(FILENAME).read_text(encoding="utf-8")
    settings = config.parse(text, root=folder)
    named = [source.local for source in settings.prepare.sources]
    named += [path for path in (settings.task.json_schema, settings.task.tools) if isinstance(path, Path)]
    examples = resources.files("slmctl.examples").joinpath("data")
    text = re.sub(r"(?m)^project: .*$", f"project: {project_name(folder)}", text, count=1)
    files = {path.name: examples.joinpath(path.name).read_bytes() for path in named}
    return _write_files(f"{SCHEMA_LINE}\n{text}", files, folder)


def write(proposal: Proposal, folder: Path) -> list[Path]:
    """Write a proposal into a folder, and nothing over a file that is there.

    Returns:
        The files written.

    Raises:
        UsageError: A file exists already.
    """
    files: dict[str, bytes] = {}
    if proposal.task.rules.has("schema"):
        content = json.dumps(_schema(proposal), indent=2, ensure_ascii=False) + "\n"
        files[_schema_name(proposal)] = content.encode()
    text = config_text(proposal, folder)
    config.parse(text, root=folder)  # nothing is written that cannot be read
    return _write_files(text, files, folder)


def _write_files(text: str, files: Mapping[str, bytes], folder: Path) -> list[Path]:
    """Write slmctl.yaml and the files beside it, all or none; only an editor's schema is written over."""
    schema = json.dumps(config.schema(), indent=1) + "\n"
    files = {FILENAME: text.encode(), **files, SCHEMA_FILE: schema.encode()}
    require_free(folder, *(name for name in files if name != SCHEMA_FILE))
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]


def require_free(folder: Path, *names: str, base: str | None = None) -> None:
    """Refuse a folder in which one of some files exists; the hint says how to change the base to another one.

    Raises:
        UsageError: It does, or there is no such base.
    """
    for name in names:
        if (folder / name).exists():
            way = "" if name != FILENAME else f"to change its base, {_other_base(base)}; or "
            raise UsageError(
                f"{folder / name} exists already", hint=f"{way}name another folder: slmctl init SOURCE FOLDER"
            )


def _other_base(name: str | None) -> str:
    """The words on the two keys of slmctl.yaml that name a base."""
    if name is None:
        return "edit base and pull.sha256 in it (slmctl bases NAME shows both)"
    base = named_base(name)
    pin = f"pull: {{sha256: {base.sha256}}}" if base.sha256 else "no pull.sha256"
    return f"write into it base: {base.source} and {pin}"


def project_name(folder: Path) -> str:
    """A project's name from its folder's: small letters, digits and hyphens."""
    name = folder.resolve().name.replace("ß", "ss").replace("ł", "l")
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")[:40].strip("-") or "project"


def _schema_name(proposal: Proposal) -> str:
    return f"{project_name(Path(Path(proposal.data.title).stem))}.schema.json"


def _schema(proposal: Proposal) -> dict[str, object]:
    """A JSON Schema that all answers satisfy; of columns from every row, else from the sample."""
    builder = SchemaBuilder()
    task = proposal.task
    rows = islice(proposal.data.rows(), COUNTED)
    # a conversation or a template of a person's own takes too long to be made of every row
    sampled = task.is_conversation or conversation_formats.is_template(task.output)
    usable = (row.columns for row in rows if not row.fault)
    cells = (task.fields.of(row) if task.fields else row.get(task.output) for row in usable)
    for cell in (answer for _, answer in task.pairs) if sampled else cells:
        if (value := json_value(cell)) is not None:
            builder.add(value)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **builder.schema()}


# The text of slmctl.yaml


def config_text(proposal: Proposal, folder: Path) -> str:
    """The content of slmctl.yaml in a folder, made of `templates/init/slmctl.yaml.j2`."""
    import jinja2

    environment = jinja2.Environment(  # noqa: S701 - YAML; the filters quote values
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True
    )
    filters = {"count": count, "flow": _flow, "percent": percent, "wrapped": _wrapped, "yaml": _yaml}
    environment.filters |= {**filters, "placed": lambda value: _placed(value, folder)}
    template = resources.files("slmctl.templates").joinpath("init", f"{FILENAME}.j2").read_text(encoding="utf-8")
    lines = environment.from_string(template).render(_values(proposal, folder)).split("\n")
    return "\n".join(map(_aligned, lines))


def _values(proposal: Proposal, folder: Path) -> dict[str, object]:
    """The names that the template knows."""
    data, task, base = proposal.data, proposal.task, proposal.base.source
    labels = sorted(set(task.labels) - set(proposal.label_map))
    training, training_reason = _training(proposal)
    parts = data.parts or [SplitPart({}, "", data.look.rows)]
    return {
        "proposal": proposal,
        "task": task,
        "name": project_name(folder),
        "base": base if config.is_remote(base) else _relative(Path(base).expanduser(), folder),
        "schema_line": SCHEMA_LINE,
        "schema_name": _schema_name(proposal),
        "labels": proposal.levels or labels,
        # by name, so that a row with a new label is left out and ends no run; from-data where they are many
        "named": bool(proposal.levels) or (data.look.complete and len(labels) <= MOST_NAMES),
        "slips": [f"{_flow(slip)}: {_flow(label)}" for slip, label in proposal.label_map.items()],
        "system": system_prompt(task.kind, proposal.languages.main),
        "parts": [replace(part, origin={**data.origin, **part.origin}) for part in parts],
        "most_rejected": min(math.ceil(100 * (1.02 - proposal.usable)), 100),
        "split_reasons": list(_split_reasons(proposal)),
        "encoder": EncodeConfig().encoder,
        "training": training,
        "training_reason": training_reason,
        "gates": gates(task, proposal.test_rows),
    }


def _split_reasons(proposal: Proposal) -> Iterator[str]:
    """The reasons of the shares that are not the default."""
    held = list(proposal.data.held_out)
    few = ["none for calibrate"] if proposal.rows < SMALL and "calibration" not in held else []
    few += ["more for the test"] if proposal.shares.get("test") else []
    if few:
        yield f"few rows: {', '.join(few)}"
    if held:
        yield f"{' and '.join(held)} {either(len(held), 'is a source', 'are sources')} apart"


def _training(proposal: Proposal) -> tuple[dict[str, object], str]:
    """The section `finetune`, and its reason."""
    training: dict[str, object] = {"epochs": epochs(proposal.rows)}
    about = "passes over the training rows"
    if proposal.rows < FEW_ROWS and 0 < proposal.base.parameters < SMALL_BASE:
        training["learning_rate"] = HIGH_RATE
        about = "passes, and twice the default rate: few rows and a small base"
    if proposal.longest > MAX_LENGTH:
        training["too_long"] = "truncate"
        about = f"the longest row has about {proposal.longest:,} tokens, max_length is {MAX_LENGTH:,}"
    return training, about


def _placed(value: object, folder: Path) -> object:
    """A value of a source as a config in the folder has it: paths relative to that."""
    if isinstance(value, Mapping) and "url" in value:
        return {**value, "url": with_file(value["url"], lambda path: _relative(Path(path), folder))}
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


def _aligned(line: str) -> str:
    """A line of the template, with its comment behind a tab moved to the column of comments."""
    written, tab, comment = line.partition("\t")
    return f"{written:<{_COMMENT_AT}}  {comment}" if tab else written


def _yaml(value: object) -> str:
    """A value as YAML on one line."""
    if isinstance(value, str) and "\n" not in value:
        return yaml.safe_dump(value, allow_unicode=True, width=10**9).removesuffix("...\n").strip()
    return _flow(value)


def _flow(value: object) -> str:
    """A value as YAML on one line, to stand in a list or mapping on one line too."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, str) and "\n" in value:
        return json.dumps(value, ensure_ascii=False)
    # in a list, so that what may stand in no list or mapping on one line is quoted
    return yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**9)[1:-2]
