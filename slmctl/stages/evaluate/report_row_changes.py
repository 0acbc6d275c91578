"""Rows of a report -> rows that one model answered right and another did not."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from slmctl import console
from slmctl.console import percent
from slmctl.reports.evaluation_report import RowAnswer, RowEntry
from slmctl.reports.html_page import Cell, count

ROWS = 400  # rows that the page holds
COLUMNS = 8  # models that the page compares row by row


@dataclass(frozen=True)
class ChangedRow:
    """A row that models answered differently, and the numbers of the choices that it belongs to."""

    cells: list[Cell]
    choices: list[int]


@dataclass(frozen=True)
class RowChanges:
    """Rows that some models answered right and others wrong.

    Attributes:
        rows: At most ROWS of `total`.
        choices: Ordered pairs of models that a reader can choose, in words.
        texts: True where the rows show their texts.
    """

    head: list[str]
    rows: list[ChangedRow]
    total: int
    choices: list[str]
    texts: bool


@dataclass(frozen=True)
class _Pair:
    """Rows that the model `right` answered right and the model `wrong` did not."""

    right: str
    wrong: str
    rows: Sequence[int]  # indices among the differing rows


def collect(
    rows: Iterable[RowEntry],
    participants: Sequence[str],
    names: Sequence[str],
    labels: Sequence[str],
) -> RowChanges | None:
    """The rows that some of `names` answered right and others wrong; None without any.

    The answers of a row are in the order of `participants`; `labels` holds the label of each index
    in them. The first COLUMNS of `names` are shown.
    """
    names = list(names)[:COLUMNS]
    places = [participants.index(name) for name in names]
    differing = [row for row in rows if len({_right(row, place) for place in places} - {None}) > 1]
    if not differing:
        return None
    pairs = _pairs(differing, names, places)
    kept = _fair(pairs, len(differing))
    texts = any("texts" in differing[index] for index in kept)
    files = {row["source"][0] for row in differing}
    where = console.place(min(files)).strip() if len(files) == 1 else "row"
    belongs: dict[int, list[int]] = {index: [] for index in kept}
    choices = []
    for number, pair in enumerate(pairs):
        listed = [index for index in pair.rows if index in belongs]
        for index in listed:
            belongs[index].append(number)
        some = "" if len(listed) == len(pair.rows) else f", {len(listed)} of them listed"
        choices.append(
            f"{pair.right} right, {pair.wrong} wrong: {count(len(pair.rows), 'row')}{some}"
        )
    lines = [
        ChangedRow(
            _line(differing[index], places, labels, texts=texts, named=where == "row"),
            belongs[index],
        )
        for index in kept
    ]
    head = [where, *(["input", "reference"] if texts else ["reference"] if labels else []), *names]
    return RowChanges(head, lines, len(differing), choices, texts)


def _right(row: RowEntry, place: int) -> bool | None:
    answer = row["answers"][place]
    return None if answer is None else bool(answer[1])


def _pairs(rows: Sequence[RowEntry], names: Sequence[str], places: Sequence[int]) -> list[_Pair]:
    return [
        _Pair(right, wrong, where)
        for (right, a), (wrong, b) in itertools.permutations(zip(names, places, strict=True), 2)
        if (
            where := [
                index
                for index, row in enumerate(rows)
                if _right(row, a) and _right(row, b) is False
            ]
        )
    ]


def _fair(pairs: Sequence[_Pair], total: int) -> list[int]:
    """Indices of the rows to show: all, or about equally many of each
    pair where there are more than ROWS.
    """
    if total <= ROWS:
        return list(range(total))
    kept: dict[int, None] = {}
    for indices in itertools.zip_longest(*(pair.rows for pair in pairs)):
        kept.update(dict.fromkeys(index for index in indices if index is not None))
        if len(kept) >= ROWS:
            break
    return sorted(list(kept)[:ROWS])


def _line(
    row: RowEntry, places: Sequence[int], labels: Sequence[str], *, texts: bool, named: bool
) -> list[Cell]:
    shown = row.get("texts")
    file, number = row["source"]
    line = [console.place(file, number) if named else f"{number:,}"]
    if texts:
        hidden = "(sensitive)" if row["sensitive"] else ""
        line.append(shown["input"] if shown else hidden)
    if texts or labels:
        line.append(
            _label(row["expected"], labels) if labels else shown["expected"] if shown else ""
        )
    answers = shown["answers"] if shown else [None] * len(row["answers"])
    return [*map(Cell, line)] + [
        _answer(row["answers"][place], answers[place], labels) for place in places
    ]


def _answer(answer: RowAnswer | None, text: str | None, labels: Sequence[str]) -> Cell:
    if answer is None:
        return Cell("–", title="not sent")
    code, right = answer[:2]
    confidence, score = answer[2:]
    note = "" if confidence is None else f"confidence {percent(confidence, 0)}"
    if right:
        return Cell("✓", "good", note)
    if labels:
        return Cell(_label(code, labels), "bad", note)
    return Cell(text if text else f"✗ {score:.2f}", "bad", f"score {score:.2f}")


def _label(code: int | None, labels: Sequence[str]) -> str:
    return labels[code] if code is not None and 0 <= code < len(labels) else "(no label)"
