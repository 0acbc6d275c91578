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
    if proposal.task.kind == "extract":
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
    """The content of slmctl.yaml in a folder."""
    lines = [SCHEMA_LINE, *_head(proposal, folder), *_prepare(proposal, folder), *_stages(proposal)]
    return "\n".join(lines) + "\n"


def _head(proposal: Proposal, folder: Path) -> Iterator[str]:
    task, base = proposal.task, proposal.base
    if not config.is_remote(base.source):
        base = replace(base, source=_relative(Path(base.source).expanduser(), folder))
    yield _line("project", project_name(folder), "in the names of releases and model files")
    yield _line("version", "0.1", "of the release")
    yield _line("base", base.source, base.about)
    if base.sha256:
        yield _line("pull", {"sha256": base.sha256}, "of this base: remove it with another")
    yield "task:"
    yield _line("  kind", task.kind, "classify: a label; tag: several; extract: JSON; generate: a text; call: a tool")
    if task.labels:
        yield from _labels(proposal)
    elif task.kind == "extract":
        yield _line("  schema", _schema_name(proposal), "derived from the answers: correct it before you train")
    if not task.own_system:
        prompt = system_prompt(task.kind, proposal.languages.main)
        yield _line("  system", prompt, "the same in training and in use: make it yours")


def _labels(proposal: Proposal) -> Iterator[str]:
    """The labels by name, so that a row with a new one is left out and ends no run; from-data where they are many."""
    levels, names = proposal.levels, sorted(set(proposal.task.labels) - set(proposal.label_map))
    fixed = bool(levels) or (proposal.data.look.complete and len(names) <= MOST_NAMES)
    slips = len(proposal.label_map)
    about = f"the {len(names)} of the answers" + (f"; {slips} more look misspelt: check them" if slips else "")
    if not fixed and not slips:
        yield _line("  labels", "from-data", about)
        return
    about += "; a row with another one is left out" if fixed else ""
    yield f"{'  labels:':<{_COMMENT_AT}}  # {about}"
    if fixed:
        yield from _wrapped("    names: [", map(_flow, levels or names), "]")
    if levels:
        yield _line("    ordered", True, "levels from low to high: take it off if they are mere names")
    if slips:
        pairs = (f"{_flow(slip)}: {_flow(label)}" for slip, label in proposal.label_map.items())
        yield from _wrapped("    map: {", pairs, "}")


def _prepare(proposal: Proposal, folder: Path) -> Iterator[str]:
    task = proposal.task
    yield "prepare:"
    yield "  sources:"
    columns = (
        ("input", task.input, "the column that is read, or a template"),
        ("output", task.fields.template, "JSON of these columns; null for an empty cell")
        if task.fields
        else ("output", task.output, "the column with the right answer"),
        ("separator", task.separator if task.kind == "tag" else None, "between the labels of a cell"),
        ("id", task.id, "what slmctl trace --id asks for"),
        ("group", task.group, "rows with the same value stay in one split"),
        ("time", task.time, "for splits.time"),
    )
    about = {"sheet": "the sheet, table or array", "encoding": "a guess: see that accents and signs read right"}
    origin = proposal.data.origin
    for part in proposal.data.parts or [SplitPart({}, "", proposal.data.look.rows)]:
        about |= {next(iter(origin)): count(part.rows, "row")}
        keys = [(key, _placed(value, folder), about.get(key, "")) for key, value in {**origin, **part.origin}.items()]
        keys += [(key, value, comment) for key, value, comment in columns if value]
        keys += [("split", part.split, "all of its rows, by its name")] if part.split else []
        for place, (key, value, comment) in enumerate(keys):
            yield _line(f"    {'- ' if place == 0 else '  '}{key}", value, comment)
    if proposal.clean:
        shares = ", ".join(f"{step} in {percent(share, 0)}" for step, share in proposal.clean.items() if share)
        yield _line("  clean", list(proposal.clean), f"{shares} of the texts; when the model is used, too")
    if kinds := sorted(proposal.sensitive):
        shares = ", ".join(f"{kind} in {percent(proposal.sensitive[kind], 0)}" for kind in kinds)
        yield _line("  sensitive", dict.fromkeys(kinds, "redact"), f"{shares} of the rows; or keep, pseudonymise")
    if proposal.usable < 0.9:
        left_out = min(math.ceil(100 * (1.02 - proposal.usable)), 100)
        why = "have no answer, or calls of tools" if proposal.lost else "have no answer"
        yield _line("  max_rejected", f"{left_out} %", f"{percent(1 - proposal.usable, 0)} of the rows {why}")
    if proposal.rare_labels:
        yield _line("  min_rows", {"label": 0}, "some labels have so few rows that none may be left for training")
    yield from _splits(proposal)


def _splits(proposal: Proposal) -> Iterator[str]:
    """The shares with their reasons, where they are not the default."""
    held = list(proposal.data.held_out)
    few = ["none for calibrate"] if proposal.rows < SMALL and "calibration" not in held else []
    few += ["more for the test"] if proposal.shares.get("test") else []
    about = [f"few rows: {', '.join(few)}"] if few else []
    about += [f"{' and '.join(held)} {either(len(held), 'is a source', 'are sources')} apart"] if held else []
    if proposal.shares:
        yield _line("  splits", proposal.shares, "; ".join(about))


def _stages(proposal: Proposal) -> Iterator[str]:
    if proposal.task.kind == "classify" and proposal.languages.main == "en":
        encoder = _line("# encode", {"encoder": EncodeConfig().encoder}, "")
        yield f"{encoder}  # measure a sentence encoder too: take off the first #"
    training: dict[str, object] = {"epochs": epochs(proposal.rows)}
    about = "passes over the training rows"
    if proposal.rows < FEW_ROWS and 0 < proposal.base.parameters < SMALL_BASE:
        training["learning_rate"] = HIGH_RATE
        about = "passes, and twice the default rate: few rows and a small base"
    if proposal.longest > MAX_LENGTH:
        training["too_long"] = "truncate"
        about = f"the longest row has about {proposal.longest:,} tokens, max_length is {MAX_LENGTH:,}"
    yield _line("finetune", training, about)
    yield _line("quantize", {"types": ["Q8_0"]}, "add Q4_K_M and see what 4 bits cost")
    yield "gates:"
    for gate, comment in gates(proposal.task, proposal.test_rows):
        yield _line("  -", gate, comment)
    yield _line("publish", {"to": "dir:./registry"}, "or hf:, s3://")


def _placed(value: object, folder: Path) -> object:
    """A value of a source as a config in the folder has it: paths relative to that."""
    if isinstance(value, Mapping) and "url" in value:
        return {**value, "url": with_file(value["url"], lambda path: _relative(Path(path), folder))}
    return _relative(value, folder) if isinstance(value, Path) else value


def _relative(path: Path, folder: Path) -> str:
    return os.path.relpath(path.resolve(), folder.resolve())


def _wrapped(head: str, values: Iterable[str], end: str) -> Iterator[str]:
    """Entries with commas between a head and an end, over as many lines as they take."""
    line, entries = head, list(values)
    for place, entry in enumerate(entries):
        piece = entry + (", " if place < len(entries) - 1 else end)
        if len(line) + len(piece) > WIDTH and line.strip():
            yield line.rstrip()
            line = " " * len(head)
        line += piece
    yield line


def _line(key: str, value: object, comment: str) -> str:
    """`key: value  # comment`; the key `  -` begins an entry of a list."""
    plain = yaml.safe_dump(value, allow_unicode=True, width=10**9).removesuffix("...\n").strip()
    text = plain if isinstance(value, str) and "\n" not in value else _flow(value)
    written = f"{key} {text}" if key.endswith("-") else f"{key}: {text}"
    return f"{written:<{_COMMENT_AT}}  # {comment}" if comment else written


def _flow(value: object) -> str:
    """A value as YAML on one line, to stand in a list or mapping on one line too."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, str) and "\n" in value:
        return json.dumps(value, ensure_ascii=False)
    # in a list, so that what may stand in no list or mapping on one line is quoted
    return yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**9)[1:-2]
