"""A look at rows, and the project for them -> lines for a person."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from slmctl.console import percent, shown
from slmctl.init.column_names import split_named, suggests
from slmctl.init.proposal import FEW, Proposal, plain
from slmctl.init.raw_data import RawData
from slmctl.init.task_proposal import columns_in
from slmctl.metrics.statistics import wilson
from slmctl.reports.html_page import count, either

CLEANED = {"html": "HTML", "quoted_mail": "quoted mails", "signatures": "signatures"}
KINDS = {"email": "e-mail addresses", "phone": "phone numbers"}
LISTED = 5  # labels that are named
NAME, EXAMPLE = 28, 60  # characters of a column's name and of its example


def about_data(data: RawData) -> Iterator[str]:
    """Lines on the source and its columns."""
    look = data.look
    more = "" if look.complete else "more than "
    yield f"{data.title}: {data.form}, {more}{count(look.rows, 'row')}, {count(len(look.columns), 'column')}"
    names = [shown(column.name, NAME) for column in look.columns]
    widths = [max(map(len, cells), default=0) for cells in (names, [column.reason for column in look.columns])]
    for column, name in zip(look.columns, names, strict=True):
        example = shown(column.example, EXAMPLE)
        yield f"  {name:<{widths[0]}}  {column.kind:<8}  {column.reason:<{widths[1]}}  {example}".rstrip()
    if look.unusable:
        yield f"note: {count(look.unusable, 'row')} cannot be read; {shown(look.fault)}"
    for note in data.notes:
        yield f"note: {note}"


def about_project(project: Proposal) -> Iterator[str]:
    """Lines on the task, the base, and what is known of the rows."""
    task = project.task
    yield f"task: {task.kind}, since {shown(task.reason)}"
    if task.input:
        names = [shown(name) for name in columns_in(task.input, project.data.look.columns)]
        read = f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} read"
        yield f"  {read}, {'JSON of ' if task.fields else ''}{shown(task.output)} is the answer"
    if task.labels:
        yield f"  rows by label: {_shares(task.labels)}"
    yield f"language: {project.languages}"
    yield f"base: {project.base.source}: {project.base.reason}"
    for note in _notes(project):
        yield f"note: {note}"


def _shares(labels: Mapping[str, int]) -> str:
    """`billing 310, delivery 204, … and 9 more, the rarest legal 3`: rows by label."""
    shares = [f"{shown(label, 40)} {count:,}" for label, count in labels.items()]
    text = ", ".join(shares[:LISTED])
    return text + (f" and {len(labels) - LISTED} more, the rarest {shares[-1]}" if len(labels) > LISTED else "")


def _notes(project: Proposal) -> Iterator[str]:
    task = project.task
    yield from task.notes
    if project.lost:
        yield (
            f"{project.base.source} writes no calls of tools, so prepare leaves out {percent(project.lost, 0)} of the "
            "rows; slmctl bases --tools lists bases that do, for --base"
        )
    if task.usable < 0.995:
        yield f"{percent(1 - task.usable, 0)} of the rows have no text or no answer, and are left out"
    rows = project.test_rows
    low, high = wilson(round(0.9 * rows), rows)
    expected = f"; if 90 % of these are right, expect {percent(low, 0)} to {percent(high, 0)} in use"
    means = "" if task.rules.is_free else expected
    yield f"about {project.train_rows:,} rows are left to learn from, and {rows:,} for the test{means}"
    yield from _split_column(project.data)
    yield from _repeated(task.pairs, project.repeated)
    if project.clean:
        shares = ", ".join(f"{CLEANED[step]} in {percent(share, 0)}" for step, share in project.clean.items() if share)
        yield f"{shares} of the texts: cut out by prepare.clean, also when the model is used"
    yield from _labels(project)
    if project.kept:
        names = " and ".join(KINDS[kind] for kind in project.kept)
        yield f"{names} stand in texts and answers, so they are not redacted: see prepare.sensitive"
    if project.sensitive:
        kinds = ", ".join(f"{KINDS[kind]} in {percent(share, 0)}" for kind, share in sorted(project.sensitive.items()))
        yield f"{kinds} of the texts: they are redacted before anything learns from them"


def _split_column(data: RawData) -> Iterator[str]:
    """A note on a column that names the split of each row, where a source is bound to one as a whole."""
    for column in data.look.columns:
        rows = Counter({value: number for value, number in column.counts.items() if split_named(value) == "test"})
        if rows and all(split_named(value) or suggests(value, "train") for value in column.counts):
            yield (
                f"by {shown(column.name, NAME)} {count(rows.total(), 'row')} {either(rows.total(), 'is', 'are')} for "
                "the test, which prepare does not know: write a file for each of its values into a folder, and "
                "slmctl init FOLDER"
            )


def _repeated(pairs: Sequence[tuple[str, str]], repeated: float) -> Iterator[str]:
    """Notes on texts that stand there several times, and on those with different answers."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for text, answer in pairs:
        answers[plain(text)][answer] += 1
    conflicting = [counts for counts in answers.values() if len(counts) > 1]
    if repeated >= 0.01:
        yield f"{percent(repeated, 0)} of the rows repeat the text of another; the first of each stays"
    if conflicting:
        wrong = sum(counts.total() - max(counts.values()) for counts in conflicting)
        have = either(len(conflicting), "has", "have")
        yield (
            f"{count(len(conflicting), 'text')} {have} different answers in different rows, so no model can be right "
            f"on more than {percent(1 - wrong / len(pairs))} of the rows; slmctl prepare lists them in repeated.jsonl"
        )


def _labels(project: Proposal) -> Iterator[str]:
    """Notes on labels that are levels, look misspelt, or have too few rows."""
    slips, rare, levels = project.label_map, project.rare_labels, project.levels
    if project.task.rules.has_labels and project.task.rules.structured:
        yield (
            "each row gets a list of labels, of which any number may fit; --task classify takes each combination for a "
            "label of its own"
        )
    if levels:
        yield (
            f"the labels look like levels, from {shown(levels[0], 40)} to {shown(levels[-1], 40)}, so the report says "
            "how far off answers are; if they are mere names, take task.labels.ordered off"
        )
    if slips:
        pairs = [f"{shown(label, 40)} for {shown(likely, 40)}" for label, likely in slips.items()]
        more = f" and {len(slips) - LISTED} more" if len(slips) > LISTED else ""
        named = f"{', '.join(pairs[:LISTED])}{more}"
        look = either(len(slips), "looks", "look")
        yield f"{count(len(slips), 'label')} {look} misspelt: {named}; slmctl.yaml maps them, so read them there"
    if rare:
        names = ", ".join(shown(label, 40) for label in rare[:LISTED]) + (" …" if len(rare) > LISTED else "")
        have = "1 label has" if len(rare) == 1 else f"{len(rare)} labels have"
        yield f"{have} fewer than {FEW} rows: {names}; collect more, or map them to others"
