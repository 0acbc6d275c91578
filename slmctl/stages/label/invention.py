"""Thin labels -> variants of their training rows: written by a teacher, then labelled like any other row.

A variant stays where the labelling, which does not know what it was written for, accepts the same label. Nothing is
shown to a writer but training rows without personal data, and nothing is kept that is near a held-out row.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import numpy as np

from slmctl import console
from slmctl.config import LabelConfig
from slmctl.deduplication import minhash
from slmctl.deduplication.near_duplicates import Spill
from slmctl.metrics.error_threshold import MIN_ROWS
from slmctl.metrics.thin_labels import THIN, thin
from slmctl.sensitive.conversation_veto import Cleared
from slmctl.stages.label import rows
from slmctl.stages.label.acceptance import LabelledRow
from slmctl.stages.label.journal import TeacherAnswer
from slmctl.stages.label.rows import LabelRow, LabelRows
from slmctl.stages.label.teachers import WritingRequest

NAMED = 5  # labels in a note
MOST = 3  # variants of a label for each of its training rows
FILE = "invented"  # the file of a variant, where a row's place is told
BRIEF = (
    "You write messages as the users of a service write them. You are shown one message. Write a new one that asks for "
    "the same kind of thing in another situation and in other words, in the same language, tone and length. Use no "
    "name, number or address of a real person. Answer with the message and nothing else."
)
QUOTES = "\"'“”„«»`"

Order = tuple[str, LabelRow, WritingRequest]  # the label, the training row, and what a writer is asked

EMPTY, CUT_OFF = "no text came", "longer than label.max_tokens"
PERSONAL, HELD_OUT, REPEATS = "holds personal data", "near a held-out row", "nearly the same as another row"
OTHER_LABEL, UNSURE = "labelled otherwise than it was written for", "its label was not accepted"


class LabelCount(TypedDict):
    """A thin label: its training rows, the variants that were written, and those that are accepted."""

    rows: int
    written: int
    accepted: int


class InventedFacts(TypedDict):
    """The figures of the variants.

    Attributes:
        note: Why none was written; empty where some were.
        never_given: Thin labels that nothing was written for, since no gold row has them and no teacher is told them.
        left_out: Number of variants that were not accepted, by the reason.
    """

    writer: str
    labels: dict[str, LabelCount]
    written: int
    accepted: int
    left_out: dict[str, int]
    note: str
    never_given: list[str]


@dataclass(frozen=True)
class Variant:
    """A written row, the label that it was written for, and the id of the training row that it is a variant of."""

    row: LabelRow
    label: str
    of: str


@dataclass(frozen=True)
class WritingPlan:
    """All that may be written, known before anything is orders.

    Attributes:
        counts: Training rows of each label.
        seeds: The training rows of each thin label that hold no personal data.
        real: Texts of real rows, held-out ones apart.
        held_out: Texts of rows that `prepare` measures with.
        note: Why nothing is written, in a sentence; empty where something is.
        never_given: Thin labels that no teacher is told, so that nothing is written for them.
    """

    per_label: int
    counts: Mapping[str, int] = field(default_factory=dict)
    seeds: Mapping[str, Sequence[LabelRow]] = field(default_factory=dict)
    real: Sequence[str] = field(default_factory=list, repr=False)
    held_out: Sequence[str] = field(default_factory=list, repr=False)
    note: str = ""
    never_given: Sequence[str] = ()

    def wanted(self, label: str) -> int:
        """Number of rows to write for a label."""
        return min(self.per_label, MOST * self.counts[label]) if self.seeds.get(label) else 0

    @property
    def most(self) -> int:
        """Number of rows that are written at most."""
        return 0 if self.note else sum(map(self.wanted, self.seeds))

    @property
    def sentence(self) -> str:
        """The rows to write, in words."""
        if self.note:
            return f"invent: {self.note}"
        labels = f"{len(self.seeds)} thin label{'s' if len(self.seeds) != 1 else ''}"
        return (
            f"invent: at most {self.most} rows for {labels} (fewer than {THIN} training rows){_left(self.never_given)}"
        )


def _left(never_given: Sequence[str]) -> str:
    """The thin labels that nothing is written for, in words."""
    if not never_given:
        return ""
    names = ", ".join(f"'{console.shown(name, 40)}'" for name in never_given[:NAMED])
    more = f" and {len(never_given) - NAMED} more" if len(never_given) > NAMED else ""
    return f"; none for {names}{more}, which no gold row has: task.labels.names tells teachers of them"


def plan(config: LabelConfig, all_rows: LabelRows) -> WritingPlan | None:
    """The rows that may be written; None where the config asks for none."""
    if config.invent is None:
        return None
    train, held_out = rows.training(config)
    counts = Counter(row.gold for row in train)
    for name in config.task.label_names or ():
        counts.setdefault(name, 0)
    names = set(config.task.label_names or (row.gold for row in all_rows.gold))
    never_given = [name for name in thin(counts) if name not in names]
    few = [name for name in thin(counts) if name in names]
    if not few:
        text = f"no label has fewer than {THIN} training rows"
        if never_given:
            text = f"nothing is written{_left(never_given)}"
        return WritingPlan(config.invent.per_label, counts, note=text, never_given=never_given)
    if len(all_rows.gold) < MIN_ROWS:
        text = f"{len(all_rows.gold)} gold rows give no bound, so no label would be accepted and nothing is written"
        return WritingPlan(config.invent.per_label, counts, note=text)
    own = [row for row in train if row.gold in few]
    cleared = rows.clearances(config, own, len(own))
    clean = [row for row in own if not cleared[row.id].reason and not cleared[row.id].marks]
    seeds = {name: mine for name in few if (mine := [row for row in clean if row.gold == name])}
    if not seeds:
        return WritingPlan(config.invent.per_label, counts, note="no training row of a thin label may be shown")
    held_out_texts = [row.text for row in held_out]
    real = [row.text for row in (*train, *all_rows.gold, *all_rows.rows)]
    return WritingPlan(config.invent.per_label, counts, seeds, real, held_out_texts, never_given=never_given)


def still_thin(made: WritingPlan, accepted: Sequence[LabelledRow]) -> list[str]:
    """The labels that are thin with the accepted rows too."""
    counts = Counter(made.counts)
    counts.update(entry.answer for entry in accepted)
    return [name for name in thin(counts) if name in made.seeds]


def requests(config: LabelConfig, made: WritingPlan, labels: Sequence[str]) -> list[Order]:
    """The requests to a writer, those of a label with its training rows by turns."""
    return [
        (label, row, WritingRequest(_messages(config, label, row), 1 + number // len(made.seeds[label])))
        for label in labels
        for number in range(made.wanted(label))
        for row in [made.seeds[label][number % len(made.seeds[label])]]
    ]


def _messages(config: LabelConfig, label: str, row: LabelRow) -> tuple[dict[str, str], ...]:
    about = config.task.descriptions.get(label, "")
    means = f"Messages of this kind have the label '{label}'" + (f": {about}" if about else ".")
    return ({"role": "system", "content": f"{BRIEF}\n{means}"}, {"role": "user", "content": row.text})


def variants(
    config: LabelConfig, made: WritingPlan, orders: Sequence[Order], answers: Sequence[TeacherAnswer | None],
    cleared: dict[str, Cleared], left_out: Counter[str],
) -> list[Variant]:  # fmt: skip
    """The texts that may be labelled: none with personal data, none like another row or a held-out one.

    What may leave of them is added to `cleared`, and those that are left out are counted in `left_out`.
    """
    drafts = []
    for number, ((label, seed, _), answer) in enumerate(zip(orders, answers, strict=True), 1):
        text = "" if answer is None else answer.text.strip().strip(QUOTES).strip()
        if not text or answer is None:
            left_out[EMPTY] += 1
        elif answer.finish == "length":
            left_out[CUT_OFF] += 1
        else:
            id = hashlib.sha256(f"invented/{number}/{text}".encode()).hexdigest()[:16]
            row = LabelRow(id, text, rows.cleaned(config, text), FILE, number)
            drafts.append(Variant(row, label, seed.id))
    cleared |= rows.clearances(config, [variant.row for variant in drafts], len(drafts))
    clean = [variant for variant in drafts if not cleared[variant.row.id].reason and not cleared[variant.row.id].marks]
    left_out[PERSONAL] += len(drafts) - len(clean)
    return _new(config, made, clean, left_out)


def _new(config: LabelConfig, made: WritingPlan, drafts: Sequence[Variant], left_out: Counter[str]) -> list[Variant]:
    """The variants that are like no real row and no earlier variant, by the measure of `prepare`."""
    if not drafts:
        return []
    parts = [made.held_out, made.real, [variant.row.text for variant in drafts]]
    texts = [minhash.normalise(text) or text for part in parts for text in part]
    first, second = len(parts[0]), len(parts[0]) + len(parts[1])
    own = np.arange(second, len(texts))
    with tempfile.TemporaryDirectory() as place, Spill(Path(place) / "texts") as spill:
        signatures = minhash.sketch(texts)
        spill.append(texts, minhash.band_keys(signatures), minhash.compact(signatures))
        near = [
            spill.near(config.reading.similarity, rows=own, among=among) if len(among) else np.full(len(own), -1)
            for among in (np.arange(first), np.arange(first, second))
        ]
        near.append(spill.near(config.reading.similarity, rows=own))
    kept = []
    for variant, held_out, repeated, earlier in zip(drafts, *(part.tolist() for part in near), strict=True):
        if held_out >= 0:
            left_out[HELD_OUT] += 1
        elif repeated >= 0 or earlier >= 0:
            left_out[REPEATS] += 1
        else:
            kept.append(variant)
    return kept


def facts(
    made: WritingPlan, writer: str, orders: Sequence[Order],
    accepted: Sequence[tuple[Variant, LabelledRow]], left_out: Counter[str], note: str = "",
) -> InventedFacts:  # fmt: skip
    """The figures of what was written and accepted."""
    written = Counter(label for label, _, _ in orders)
    kept = Counter(variant.label for variant, _ in accepted)
    return {
        "writer": writer,
        "labels": {
            name: {"rows": made.counts[name], "written": written[name], "accepted": kept[name]} for name in written
        },
        "written": len(orders), "accepted": len(accepted),
        "left_out": {reason: many for reason, many in left_out.most_common() if many}, "note": made.note or note,
        "never_given": list(made.never_given),
    }  # fmt: skip


def judged(
    drafts: Sequence[Variant], entries: Sequence[LabelledRow], left_out: Counter[str]
) -> list[tuple[Variant, LabelledRow]]:
    """The variants whose accepted label is the one that they were written for."""
    kept = []
    for variant, entry in zip(drafts, entries, strict=True):
        if entry.accepted and entry.answer == variant.label:
            kept.append((variant, entry))
        else:
            left_out[UNSURE if entry.answer in ("", variant.label) else OTHER_LABEL] += 1
    return kept


def sentence(figures: InventedFacts) -> str:
    """The figures in words."""
    if figures["note"]:
        return f"invent: {figures['note']}"
    labels = len(figures["labels"])
    return (
        f"invent: {figures['accepted']} of {figures['written']} rows that {console.shown(figures['writer'], 60)} wrote "
        f"for {labels} thin label{'s' if labels != 1 else ''} are accepted{_left(figures['never_given'])}"
    )
