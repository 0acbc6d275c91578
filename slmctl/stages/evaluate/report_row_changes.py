"""What changed from one model to another, row by row: one table for every pair of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from slmctl.reports.html_page import Cell, Table, count

ROWS = 400  # rows that the page holds
COLUMNS = 8  # models that the page compares row by row

Row = dict[str, Any]


@dataclass(frozen=True)
class _Pair:
    """Rows that `right` answered right and `wrong` did not."""

    right: str
    wrong: str
    rows: Sequence[int]  # their places among the rows that are not alike for all


def table(
    rows: Iterable[Row], participants: Sequence[str], names: Sequence[str], labels: Sequence[str]
) -> Table | None:
    """The rows that not all of `names` answered right, or all wrong.

    Args:
        rows: As in `rows.jsonl`.
        participants: Whose answers a row holds, in that order.
        names: Those to compare, at most COLUMNS of them.
        labels: What the numbers of a classification stand for.
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
    where = f"row of {files.pop()}" if len(files) == 1 else "row"
    lines = [_line(differing[index], places, labels, texts=texts, named=where == "row") for index in kept]
    here = {index: place for place, index in enumerate(kept)}
    choices = []
    for pair in pairs:
        found = [here[index] for index in pair.rows if index in here]
        some = "" if len(found) == len(pair.rows) else f", {len(found)} of them here"
        choices.append((f"{pair.right} right, {pair.wrong} wrong: {count(len(pair.rows), 'row')}{some}", found))
    note = "✓ is right; else what was answered. – was not asked."
    if not texts:
        note += " Texts are not in the report (evaluate.shown_characters: 200 shows their beginnings)."
    head = [where, *(["input", "wanted"] if texts else ["wanted"] if labels else []), *names]
    return Table(
        "Rows on which the models differ",
        head,
        lines,
        texts=len(head),
        total=len(differing),
        note=note,
        choices=choices,
    )


def _right(row: Row, place: int) -> bool | None:
    answer = row["answers"][place]
    return None if answer is None else bool(answer[1])


def _pairs(rows: Sequence[Row], names: Sequence[str], places: Sequence[int]) -> list[_Pair]:
    """Every ordered pair that differs somewhere."""
    found = []
    for (right, a), (wrong, b) in itertools.permutations(zip(names, places, strict=True), 2):
        where = [index for index, row in enumerate(rows) if _right(row, a) and _right(row, b) is False]
        if where:
            found.append(_Pair(right, wrong, where))
    return found


def _fair(pairs: Sequence[_Pair], total: int) -> list[int]:
    """Which rows the page holds: all, or equally many for each pair, so that none is crowded out."""
    if total <= ROWS:
        return list(range(total))
    kept: dict[int, None] = {}
    for some in itertools.zip_longest(*(pair.rows for pair in pairs)):
        kept.update(dict.fromkeys(index for index in some if index is not None))
        if len(kept) >= ROWS:
            break
    return sorted(list(kept)[:ROWS])


def _line(row: Row, places: Sequence[int], labels: Sequence[str], *, texts: bool, named: bool) -> list[str | Cell]:
    said, (file, number) = row.get("texts"), row["source"]
    line: list[str | Cell] = [f"{file} row {number}" if named else f"{number:,}"]
    if texts:
        hidden = "(sensitive)" if row.get("sensitive") else ""
        line.append(said["input"] if said else hidden)
    if texts or labels:
        line.append(_label(row["expected"], labels) if labels else said["expected"] if said else "")
    answers = said["answers"] if said else [None] * len(row["answers"])
    return line + [_answer(row["answers"][place], answers[place], labels) for place in places]


def _answer(answer: list[Any] | None, text: str | None, labels: Sequence[str]) -> Cell:
    if answer is None:
        return Cell("–", title="not asked")
    code, right, confidence, score = answer
    sure = "" if confidence is None else f"confidence {confidence:.0%}"
    if right:
        return Cell("✓", "good", sure)
    if labels:
        return Cell(_label(code, labels), "bad", sure)
    return Cell(text if text else f"✗ {score:.2f}", "bad", f"score {score:.2f}")


def _label(code: int | None, labels: Sequence[str]) -> str:
    return labels[code] if code is not None and 0 <= code < len(labels) else "(no label)"
