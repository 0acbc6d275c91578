"""A data set against the limits of the config: the faults that end the
stage, in one sentence with a hint.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
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
        raise DataError(
            f"the columns look swapped: {swapped['inputs']} different inputs have "
            f"{swapped['answers']} different "
            "labels",
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
    inputs, answers = (
        int((minhash.first_equal(rows.digests) < 0).sum()),
        len(np.unique(rows.answers)),
    )
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
    hints = dict.fromkeys(fault.hint for fault in faults)
    fault = type(faults[0])(
        "; also, ".join(fault.message for fault in faults), hint="; ".join(hints)
    )
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
    filled = [name for name in SPLITS if name == "train" or getattr(config.splits, name) > 0]
    needed = {name: getattr(config.min_rows, name) for name in filled} | dict.fromkeys(
        config.bound_splits, 1
    )
    reasons = ", ".join(f"{n} {rule}" for rule, n in list(fates.rules(rows).items())[:3]) or "none"
    came = (
        f"{len(rows) + len(rows.rejected)} came in, {len(rows.rejected) + fates.left_out} were "
        f"left out ({reasons})"
    )
    empty = next((name for name in needed if not counts[name]), None)
    if empty is not None:
        swapped = swapped_columns(rows)
        hint = (
            "are 'input' and 'output' swapped?"
            if swapped
            else "a data set needs some hundred usable rows"
        )
        yield DataError(f"no rows are left for '{empty}': {came}", hint=hint)
    once = f"; {came}" if empty is None else ""
    few = [name for name, least in needed.items() if counts[name] < least and name != empty]
    if few:
        counted = ", ".join(f"{name} {counts[name]} (at least {needed[name]})" for name in few)
        lower = " ".join(f"--set prepare.min_rows.{name}={counts[name]}" for name in few)
        text = f"too few rows are left: {counted}{once}"
        yield GateError(text, reason="min_rows", hint=f"add rows, or for a try {lower}")
    yield from _rare_labels(config, rows, fates)
    yield from _overlap(config, rows, overlap)


def _unusable(config: PrepareConfig, rows: RecordTable) -> Iterator[DataError]:
    unusable, total = len(rows.rejected), len(rows) + len(rows.rejected)
    if unusable <= config.max_rejected * total:
        return
    counts = Counter(row.rule for _, row in rows.rejected).most_common(3)
    _, first = rows.rejected[0]
    yield DataError(
        f"{unusable} of {total} rows are unusable, more than max_rejected "
        f"{percent(config.max_rejected)}: "
        + ", ".join(f"{n} {rule}" for rule, n in counts)
        + f"; first {console.place(first.file, first.number)}: {first.reason}",
        hint="correct the rows, or --set "
        f"prepare.max_rejected={math.ceil(100 * unusable / total)}%",
    )


def _rare_labels(config: PrepareConfig, rows: RecordTable, fates: Fates) -> Iterator[GateError]:
    least, trained = config.min_rows.label, rows.count(fates.kept("train"))
    kept = rows.count(np.concatenate([fates.kept(name) for name in SPLITS]))
    rare = sorted(
        (label for label in kept if trained.get(label, 0) < least),
        key=lambda name: (-kept[name], name),
    )
    if not config.task.has_labels or not rare:
        return
    meant = {
        slip["label"]: slip["likely"] for slip in label_typos(rows.count(np.arange(len(rows))))
    }
    named = ", ".join(
        f"'{label[:60]}' {trained.get(label, 0)}"
        + (f" (perhaps '{meant[label][:60]}')" if label in meant else "")
        + (f" ({TOGETHER.format(*lump)})" if (lump := fates.together(rows, label)) else "")
        for label in rare[:NAMED]
    )
    more = f" and {len(rare) - NAMED} more" if len(rare) > NAMED else ""
    slips = sorted(meant, key=lambda name: (name not in rare, -kept.get(name, 0), name))[:MAPPED]
    mapped = ", ".join(f"{label[:60]}: {meant[label][:60]}" for label in slips)
    way = f"task: {{labels: {{map: {{{mapped}}}}}}}" if slips else "add rows of them"
    if not slips and config.task.label_names is None:
        way += ", or list the other labels in task.labels, which leaves them out"
    if len(rare) > len(kept) / 2:
        way = "is 'output' the right column?"
    yield GateError(
        f"{len(rare)} of {len(kept)} labels have fewer than {least} training rows: {named}{more}",
        reason="min_rows",
        hint=f"{way}; or --set "
        f"prepare.min_rows.label={min(trained.get(label, 0) for label in rare)}",
    )


def _overlap(
    config: PrepareConfig, rows: RecordTable, overlap: Mapping[str, Overlap]
) -> Iterator[GateError]:
    for name, measure in overlap.items():
        if measure.measured and measure.share > config.max_overlap:
            count = measure.measured
            few = (
                f"; {count} rows are few, each of them {percent(1 / count)}"
                if count < FEW_MEASURED
                else ""
            )
            long = f" of {SHORT} words and more" if measure.too_short else ""
            held_out, trained = (place_text(config, rows, index) for index in measure.pairs[0])
            yield GateError(
                f"{measure.overlapping} of {measure.measured} rows of '{name}'{long} "
                f"({percent(measure.share)}) share "
                "a run of words with training rows, more than max_overlap "
                f"{percent(config.max_overlap)}; "
                f"first {held_out} with {trained}",
                reason="overlap",
                hint="is a signature in every text? prepare.clean: [signatures]; are rows one "
                "sentence with "
                "other numbers? group them, or for a try, whose score is too good: --set "
                "prepare.max_overlap=SHARE" + few,
            )
