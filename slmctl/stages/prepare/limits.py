"""A data set against the limits of the config: the faults that end the
stage, in one sentence with a hint.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

import numpy as np

from slmctl import console
from slmctl.config import PrepareConfig
from slmctl.console import percent
from slmctl.deduplication import minhash
from slmctl.deduplication.ngram_overlap import SHORT, Overlap
from slmctl.errors import DataError, GateError, SlmctlError
from slmctl.metrics.label_typos import label_typos
from slmctl.stages.prepare.fates import TOGETHER, Fates, place_text
from slmctl.stages.prepare.record_table import RecordTable
from slmctl.task.records import SPLITS

EVIDENCE = ("report.html", "rejected.jsonl", "repeated.jsonl", "overlap.jsonl")
NAMED = 4  # labels in an error
MAPPED = 8  # likely misspellings in a hint
MAX_LABELS = 1000
FEW_MEASURED = 50  # held-out rows, of which a few decide the share
MANY = 20  # rows from which columns can look swapped
REPEATED = 0.2  # and the largest share of different inputs
OFTENER = 5  # and at least so many times as many different answers


class Swapped(TypedDict):
    """Numbers of different inputs and answers, where the columns look swapped."""

    inputs: int
    answers: int


def require_labels(config: PrepareConfig, rows: RecordTable) -> None:
    """Refuse labels that nothing can be learned from.

    Raises:
        DataError: All rows have the same label or labels, there are over MAX_LABELS, or the columns
            look swapped.
    """
    if not config.task.has_labels or not len(rows):
        return
    labels = list(rows.count(np.arange(len(rows))))
    if swapped := swapped_columns(rows):
        inputs, answers = swapped["inputs"], swapped["answers"]
        raise DataError(
            f"the columns look swapped: {inputs} different inputs have {answers} different labels",
            hint="exchange the columns of 'input' and 'output'",
        )
    if len(labels) > MAX_LABELS:
        raise DataError(
            f"the answers hold {len(labels)} different labels",
            hint="is 'output' the right column, or the task 'generate'?",
        )
    if len(rows.labels) == 1:
        name = f"the label '{labels[0][:60]}'" if len(labels) == 1 else rows.labels[0][:60]
        raise DataError(
            f"every usable row has {name}, so there is nothing to tell apart",
            hint="is 'output' the right column? add rows of other labels",
        )


def swapped_columns(rows: RecordTable) -> Swapped | None:
    """Numbers of a data set with few different inputs and many answers, as
    if labels were the inputs; else None.
    """
    is_first = minhash.first_equal(rows.measures.digests) < 0
    inputs = int(is_first.sum())
    answers = len(np.unique(rows.measures.answers))
    if len(rows) < MANY or inputs > REPEATED * len(rows) or answers < OFTENER * inputs:
        return None
    return {"inputs": inputs, "answers": answers}


def fault_of(
    config: PrepareConfig, rows: RecordTable, fates: Fates, overlap: Mapping[str, Overlap]
) -> SlmctlError | None:
    """All reasons why a model cannot be trained on a data set and measured with it, in one error;
    None if it can.

    It is a DataError where too many rows are unusable or a split is empty, and a GateError where a
    split or a label has too few rows or held-out rows have too much in common with training rows;
    of several reasons, the first decides.
    """
    faults = list(_faults(config, rows, fates, overlap))
    if not faults:
        return None
    messages = [fault.message for fault in faults]
    hints = dict.fromkeys(fault.hint for fault in faults)
    fault = type(faults[0])("; also, ".join(messages), hint="; ".join(hints))
    fault.evidence = EVIDENCE
    return fault


def require_usable(config: PrepareConfig, rows: RecordTable) -> None:
    """Refuse sources without a usable row, since there is nothing to report.

    Raises:
        DataError: There is no usable row.
    """
    if not len(rows):
        raise next(_unusable(config, rows), DataError("the sources hold no rows"))


def _faults(
    config: PrepareConfig, rows: RecordTable, fates: Fates, overlap: Mapping[str, Overlap]
) -> Iterator[SlmctlError]:
    yield from _unusable(config, rows)
    counts = {name: len(fates.kept(name)) for name in SPLITS}
    needed = _needed_rows(config)
    rules = list(fates.rules(rows).items())
    reasons = ", ".join(f"{count} {rule}" for rule, count in rules[:3]) or "none"
    unusable = len(rows.rejected)
    came = f"{len(rows) + unusable} came in, {unusable + fates.left_out} were left out ({reasons})"
    empty = next((name for name in needed if not counts[name]), None)
    if empty is not None:
        hint = "a data set needs some hundred usable rows"
        if swapped_columns(rows):
            hint = "are 'input' and 'output' swapped?"
        yield DataError(f"no rows are left for '{empty}': {came}", hint=hint)
    few = [name for name, least in needed.items() if counts[name] < least and name != empty]
    if few:
        counted = ", ".join(f"{name} {counts[name]} (at least {needed[name]})" for name in few)
        lower = " ".join(f"--set prepare.min_rows.{name}={counts[name]}" for name in few)
        text = f"too few rows are left: {counted}"
        if empty is None:
            text += f"; {came}"
        yield GateError(text, reason="min_rows", hint=f"add rows, or for a try {lower}")
    yield from _rare_labels(config, rows, fates)
    yield from _overlap(config, rows, overlap)


def _needed_rows(config: PrepareConfig) -> dict[str, int]:
    """The least rows of each split that the config fills."""
    filled = [name for name in SPLITS if name == "train" or getattr(config.splits, name) > 0]
    needed: dict[str, int] = {name: getattr(config.min_rows, name) for name in filled}
    return needed | dict.fromkeys(config.bound_splits, 1)


def _unusable(config: PrepareConfig, rows: RecordTable) -> Iterator[DataError]:
    unusable = len(rows.rejected)
    total = len(rows) + unusable
    if unusable <= config.max_rejected * total:
        return
    counts = Counter(row.rule for _, row in rows.rejected).most_common(3)
    rules = ", ".join(f"{count} {rule}" for rule, count in counts)
    _, first = rows.rejected[0]
    where = console.place(first.file, first.number)
    most = percent(config.max_rejected)
    share = math.ceil(100 * unusable / total)
    yield DataError(
        f"{unusable} of {total} rows are unusable, more than max_rejected {most}: {rules}; "
        f"first {where}: {first.reason}",
        hint=f"correct the rows, or --set prepare.max_rejected={share}%",
    )


def _rare_labels(config: PrepareConfig, rows: RecordTable, fates: Fates) -> Iterator[GateError]:
    least = config.min_rows.label
    kept = rows.count(np.concatenate([fates.kept(name) for name in SPLITS]))
    trained = dict.fromkeys(kept, 0) | rows.count(fates.kept("train"))
    rare = [label for label in kept if trained[label] < least]
    rare.sort(key=lambda name: (-kept[name], name))
    if not config.task.has_labels or not rare:
        return
    every = rows.count(np.arange(len(rows)))
    meant = {slip["label"]: slip["likely"] for slip in label_typos(every)}
    fewest = min(trained[label] for label in rare)
    named = _rare_names(rare, trained, meant, rows, fates)
    slips = sorted(meant, key=lambda name: (name not in rare, -kept.get(name, 0), name))
    way = "add rows of them"
    if slips:
        mapped = ", ".join(f"{label[:60]}: {meant[label][:60]}" for label in slips[:MAPPED])
        way = f"task: {{labels: {{map: {{{mapped}}}}}}}"
    elif config.task.label_names is None:
        way += ", or list the other labels in task.labels, which leaves them out"
    if len(rare) > len(kept) / 2:
        way = "is 'output' the right column?"
    few = f"{len(rare)} of {len(kept)} labels have fewer than {least} training rows"
    hint = f"{way}; or --set prepare.min_rows.label={fewest}"
    yield GateError(f"{few}: {named}", reason="min_rows", hint=hint)


def _rare_names(
    rare: Sequence[str],
    trained: Mapping[str, int],
    meant: Mapping[str, str],
    rows: RecordTable,
    fates: Fates,
) -> str:
    """The first rare labels with their training rows, and why these may be so few."""
    lines = []
    for label in rare[:NAMED]:
        text = f"'{label[:60]}' {trained[label]}"
        if label in meant:
            text += f" (perhaps '{meant[label][:60]}')"
        lump = fates.together(rows, label)
        if lump is not None:
            text += f" ({TOGETHER.format(*lump)})"
        lines.append(text)
    named = ", ".join(lines)
    if len(rare) > NAMED:
        named += f" and {len(rare) - NAMED} more"
    return named


def _overlap(
    config: PrepareConfig, rows: RecordTable, overlap: Mapping[str, Overlap]
) -> Iterator[GateError]:
    for name, measure in overlap.items():
        count = measure.measured
        if not count or measure.share <= config.max_overlap:
            continue
        side = f"{count} rows of '{name}'"
        if measure.too_short:
            side += f" of {SHORT} words and more"
        share, most = percent(measure.share), percent(config.max_overlap)
        held_out, trained = (place_text(config, rows, index) for index in measure.pairs[0])
        hint = (
            "is a signature in every text? prepare.clean: [signatures]; are rows one sentence with "
            "other numbers? group them, or for a try, whose score is too good: --set "
            "prepare.max_overlap=SHARE"
        )
        if count < FEW_MEASURED:
            hint += f"; {count} rows are few, each of them {percent(1 / count)}"
        yield GateError(
            f"{measure.overlapping} of {side} ({share}) share a run of words with training rows, "
            f"more than max_overlap {most}; first {held_out} with {trained}",
            reason="overlap",
            hint=hint,
        )
