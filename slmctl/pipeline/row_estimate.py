"""The number of rows that a run will see, from the data set or from the sources themselves."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from slmctl.artifacts.artifact import Artifact
from slmctl.config import PrepareConfig, Source, TaskConfig
from slmctl.errors import SlmctlError
from slmctl.metrics.statistics import effective_groups
from slmctl.pipeline.estimates import RowEstimate
from slmctl.pipeline.graph import PREPARED, Project
from slmctl.sources import snapshot
from slmctl.sources.rows import format_of, read_rows
from slmctl.task import language, split
from slmctl.task.conversation_formats import named_cell
from slmctl.task.language import Languages
from slmctl.task.records import RowRejectedError, read_records

COUNTED_BYTES = 16_000_000  # a larger file is not read to its end
SAMPLE = 200  # rows whose texts are looked at
CHARACTERS_A_TOKEN = 4.0  # of everyday text, in the tokenizers of the catalogue
CHARACTERS_A_TOKEN_OF_JSON = 3.0  # of tools
TURN_TOKENS = 16  # of the chat template and the answer, around a text
THIN = 20  # training rows of a label; with fewer, its learning depends on single rows
FEW = 10  # test rows of a label; with fewer, its own score is nearly meaningless
# of a split drawn by hash: possible standard deviations, and share by near-duplicates
DEVIATIONS, LUMPS = 4, 1.25


def of(project: Project) -> RowEstimate | None:
    """Returns the number of rows of the current data set, else of the
    sources; None if they cannot be read yet.
    """
    try:
        if PREPARED.name in project.named or project.request("prepare").path.exists():
            return _of_data_set(project)
    except SlmctlError:  # the base, on which its recipe depends, is not here
        pass
    section = project.config.prepare
    try:
        files = snapshot.gathered(section.sources, project.sources)
        counts = [_count(source) for source in files]
    except (SlmctlError, OSError, ModuleNotFoundError):
        return None
    return _split(project.config.task, section, files, counts) if files else None


def format_of_source(source: Source) -> str | None:
    """The format of a source's file, by the config or by its name; None where neither says it."""
    try:
        return source.format or format_of(source.local)
    except SlmctlError:
        return None


def rows_with_calls(project: Project) -> tuple[int, int]:
    """Returns (conversations with a tool call, rows looked at)
    among the first rows of the sources.
    """
    from slmctl.task import conversation_formats

    calling = looked = 0
    for source in snapshot.gathered(project.config.prepare.sources, project.sources):
        with contextlib.closing(read_rows(source.local, **source.reading)) as rows:
            sample = [row.columns for row in itertools.islice(rows, SAMPLE) if not row.fault]
        form = conversation_formats.recognise(source, list(sample[0])) if sample else None
        if form is None or form.name == "columns":
            continue
        looked += len(sample)
        for columns in sample:
            with contextlib.suppress(RowRejectedError):
                calling += any("tool_calls" in message for message in form.read(columns).messages)
    return calling, looked


def languages_of(project: Project) -> Languages:
    """The languages of the first rows of the sources; of none where these cannot be read yet."""
    texts: list[str] = []
    # which the requirements tell
    with contextlib.suppress(SlmctlError, OSError, ModuleNotFoundError):
        for source in snapshot.gathered(project.config.prepare.sources, project.sources):
            with contextlib.closing(read_rows(source.local, **source.reading)) as rows:
                sample = [row.columns for row in itertools.islice(rows, SAMPLE) if not row.fault]
            texts += [" ".join(map(str, _asked(source, columns))) for columns in sample]
    return language.of_texts(texts)


def labels_of(project: Project) -> Counter[str]:
    """The rows of each label in the sources, after `task.labels.map`; none
    where files are large or cannot be read.
    """
    counts: Counter[str] = Counter()
    try:
        for source in snapshot.gathered(project.config.prepare.sources, project.sources):
            if source.local.stat().st_size > COUNTED_BYTES:
                return Counter()
            with contextlib.closing(read_rows(source.local, **source.reading)) as rows:
                counts.update(
                    named_cell(row.columns, source.output) for row in rows if not row.fault
                )
    except (SlmctlError, OSError, ModuleNotFoundError):  # which the requirements tell
        return Counter()
    named: Counter[str] = Counter()
    for name, count in counts.items():
        named[project.config.task.label_map.get(name, name)] += count
    return named


def _of_data_set(project: Project) -> RowEstimate:
    facts = project.artifact(PREPARED).metrics
    train, test = facts["train"], facts["test"]
    validation = facts["validation"]
    tokens = facts["tokens"]["total"] // max(train, 1)
    rows = train + validation + test + facts["calibration"] + facts["rejected"]
    shared = min(_shared_tokens(project.config.task), tokens)
    groups = groups_of(project.artifact(PREPARED), "test")
    return RowEstimate(
        rows, train, validation, test, test, tokens, shared, 0, exact=True, most_groups=groups
    )


def groups_of(prepared: Artifact, split: str) -> float | None:
    """The effective number of groups of a split's rows; None where rows have no group."""
    if prepared.metrics["splits"]["by"] == "content":
        return None
    records = read_records(prepared.file(f"{split}.jsonl"))
    if not any(record.group for record in records):
        return None
    return effective_groups(Counter(record.group or record.id for record in records).values())


def _shared_tokens(task: TaskConfig) -> int:
    """Estimated tokens of the system prompt and of the config's tools."""
    tools = task.tools
    if isinstance(tools, Path):
        try:
            tools = json.loads(tools.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):  # prepare says what is wrong
            tools = None
    listed = len(json.dumps(tools)) if tools else 0
    return round(len(task.system) / CHARACTERS_A_TOKEN + listed / CHARACTERS_A_TOKEN_OF_JSON)


@dataclass(frozen=True)
class _Counted:
    """The rows of a file, the tokens of one of them, the bytes of the file,
    and the rows of each group by its id.
    """

    rows: int | None
    tokens: float
    size: int
    exact: bool = True
    groups: Counter[str] = field(default_factory=Counter)


def _count(source: Source) -> _Counted:
    size = source.local.stat().st_size
    with contextlib.closing(read_rows(source.local, **source.reading)) as rows:
        sample = list(itertools.islice(rows, SAMPLE))
        texts = [sum(len(str(cell)) for cell in _asked(source, row.columns)) for row in sample]
        tokens = TURN_TOKENS + sum(texts) / max(len(texts), 1) / CHARACTERS_A_TOKEN
        if len(sample) < SAMPLE or size <= COUNTED_BYTES:
            count, groups = 0, Counter[str]()
            for row in itertools.chain(sample, rows):
                count += 1
                if name := named_cell(row.columns, source.group):
                    groups[split.group_id(name)] += 1
            return _Counted(count, tokens, size, groups=groups)
    if format_of_source(source) in ("csv", "tsv", "jsonl") and source.local.suffix != ".gz":
        with source.local.open("rb") as stream:
            begun = stream.read(COUNTED_BYTES).count(b"\n")
        return _Counted(int(begun * size / COUNTED_BYTES), tokens, size, exact=False)
    return _Counted(None, tokens, size, exact=False)


def _asked(source: Source, columns: Mapping[str, object]) -> list[object]:
    """The cells that become a record; all of them where the names of columns do not say which."""
    named = [columns[name] for name in (source.input, source.output) if name in columns]
    return named or list(columns.values())


def _split(
    task: TaskConfig, section: PrepareConfig, sources: list[Source], counts: list[_Counted]
) -> RowEstimate | None:
    """The splits that so many rows of each source will make."""
    if any(count.rows is None for count in counts):
        return None
    rows = [count.rows or 0 for count in counts]
    placed = {
        name: sum(n for n, s in zip(rows, sources, strict=True) if s.split == name)
        for name in ("train", "validation", "test")
    }
    free = sum(n for n, s in zip(rows, sources, strict=True) if s.split is None)
    held_out = section.splits.validation + section.splits.calibration + section.splits.test
    share = section.splits.test
    test = placed["test"] + round(share * free)
    by_hash = (
        section.splits.time is None
        and not section.splits.labels
        and not any(s.group for s in sources)
    )
    drawn = math.ceil(LUMPS * share * free + DEVIATIONS * math.sqrt(free * share * (1 - share)))
    most, groups = placed["test"] + (min(free, drawn) if by_hash else free), None
    if all(
        s.group and n == count.groups.total()
        for n, s, count in zip(rows, sources, counts, strict=True)
    ):
        most, groups = _of_groups(section, sources, counts)
        test = min(test, most) if section.splits.labels else most
    total = sum(rows)
    tokens = sum(n * count.tokens for n, count in zip(rows, counts, strict=True)) / max(total, 1)
    exact, shared = all(count.exact for count in counts), _shared_tokens(task)
    return RowEstimate(
        rows=total,
        train=placed["train"] + round((1 - held_out) * free),
        validation=placed["validation"] + round(section.splits.validation * free),
        test=test,
        most_test=most if exact else None,
        tokens=shared + round(tokens),
        shared=shared,
        size=sum(count.size for count in counts),
        exact=False,
        most_groups=groups,
    )


def _of_groups(
    section: PrepareConfig, sources: list[Source], counts: list[_Counted]
) -> tuple[int, int]:
    """Returns (most test rows, most test groups) of sources whose rows all have a group."""
    is_drawn = section.splits.time is None and not section.splits.labels
    tested: Counter[str] = Counter()
    for source, count in zip(sources, counts, strict=True):
        if source.split in (None, "test"):
            is_bound = source.split is not None or not is_drawn
            tested.update(
                {
                    id: n
                    for id, n in count.groups.items()
                    if is_bound or split.position_of(id) < section.splits.test
                }
            )
    return tested.total(), len(tested)
