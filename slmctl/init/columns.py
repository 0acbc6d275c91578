"""One column of raw rows: what its values look like, and what they are taken for."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, Literal

from slmctl.artifacts.bounded_json import is_deeper
from slmctl.config import moment
from slmctl.console import percent
from slmctl.init.column_names import suggests
from slmctl.sources.rows.cells import MAX_DEPTH
from slmctl.task import label_sets
from slmctl.task.records import RowRejectedError

Kind = Literal["text", "label", "labels", "id", "group", "time", "number", "JSON", "constant", "empty", "value"]
MOST = 0.95  # share of a column's values that decide what it is
MAX_LABELS = 1000  # as `prepare` has it
LABEL_WORDS, LABEL_CHARACTERS = 6, 60  # on average, at most
REPEATED = 3.0  # rows a value, from which short texts are labels
SEVERAL = 0.05  # share of cells with two short texts and more, from which these are labels
SEPARATORS = ("", ";", "|", ",")  # between the labels of a cell; the first is that of lists
UNIQUE = 0.98  # share of different values from which a column is an id
TEXT_WORDS = 3.0  # on average, at least
LARGEST_GROUP = 0.3  # share of the rows that one group may have: splits would not have their sizes
_TIME = re.compile(
    r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}.*)?|\d{1,2}[./-]\d{1,2}[./-]\d{2,4}(,? \d{1,2}:\d{2}(:\d{2})?( ?[AaPp][Mm])?)?"
)
_NUMBER = re.compile(r"[+-]?[€$£]? ?(\d{1,3}([.,' ]\d{3})+|\d+)([.,]\d+)? ?[€$£%]?")
_CODE = re.compile(r"(?=.*[\d@])\S{1,64}")  # also an e-mail address


@dataclass(frozen=True)
class Column:
    """A column, by a sample of its rows and, for few values, by all rows that were counted.

    Attributes:
        kind: What its values are taken for.
        reason: Why, in words for people.
        distinct: Different values in the sample.
        counts: Rows by value over all rows that were counted; empty for more than MAX_LABELS values.
        words: Mean number of words.
        example: A value, as it stands.
        separator: The text between the labels of a cell; empty for lists, and where no cell has several.
    """

    name: str
    kind: Kind
    reason: str
    distinct: int
    counts: Mapping[str, int]
    words: float
    example: str
    separator: str = ""

    @property
    def is_json(self) -> bool:
        """True for lists and objects."""
        return self.kind == "JSON" or (self.kind == "labels" and not self.separator)

    @property
    def different(self) -> int:
        """The number of different values, as far as they were counted."""
        return max(len(self.counts), self.distinct)

    @property
    def is_iso_time(self) -> bool:
        """True for times that `splits.time` can read."""
        return self.kind == "time" and _is_moment(self.example)


def as_text(value: Any) -> str:
    """A cell as a text; values other than texts as JSON, a missing one as the empty text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def json_value(cell: Any) -> Any:
    """The object or list that a cell holds, as such or as JSON in a text; None for any other cell."""
    if isinstance(cell, str) and cell.lstrip()[:1] in ("{", "["):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return None
    return cell if isinstance(cell, dict | list) and not is_deeper(cell, MAX_DEPTH) else None


def describe(name: str, cells: Sequence[Any], counts: Mapping[str, int] | None = None) -> Column:
    """Describe a column by its cells in a sample of the rows.

    `counts` are rows by value over all rows, empty if there are too many values; those of the sample when left out.
    """
    values = [text for text in map(as_text, cells) if text]
    if counts is None:
        counts = Counter(values) if len(set(values)) <= MAX_LABELS else {}
    words = fmean(len(value.split()) for value in values) if values else 0.0
    kind, reason = _kind(name, cells, values, counts, words)
    separator = _separator(values) if kind in ("JSON", "label", "group", "text", "value") else None
    if separator is not None:
        by_label: Counter[str] = Counter()
        for value, rows in (counts or Counter(values)).items():
            by_label.update(dict.fromkeys(_names(value, separator), rows))
        between = f", with '{separator}' between" if separator else ""
        kind, reason, counts = "labels", f"{len(by_label)} labels, several a row{between}", by_label
    return Column(
        name=name,
        kind=kind,
        reason=reason,
        distinct=len(set(values)),
        counts=counts,
        words=words,
        example=_example([v for v in values if separator is None or len(_names(v, separator)) > 1], kind),
        separator=separator or "",
    )


def _separator(values: Sequence[str]) -> str | None:
    """The text between the labels of cells that hold several; None where they do not.

    Cells hold several where their parts are short, come again and again, in different company, and where some cells
    have more of them than others: `Refund, partial` beside `Refund, full` is a name with a comma.
    """
    for separator in SEPARATORS:
        sets = [_names(value, separator) for value in values]
        if sum(bool(names) or value == "[]" for names, value in zip(sets, values, strict=True)) < MOST * len(sets):
            continue
        sizes = Counter(map(len, sets))
        company: defaultdict[str, set[tuple[str, ...]]] = defaultdict(set)
        for names in sets:
            for name in names:
                company[name].add(tuple(names))
        rows = sum(size * count for size, count in sizes.items())
        met = sum(len(others) > 1 for others in company.values())
        short = sum(len(name) <= LABEL_CHARACTERS and len(name.split()) <= LABEL_WORDS for name in company)
        if (
            sum(count for size, count in sizes.items() if size > 1) >= SEVERAL * len(sets)
            and sum(count >= (SEVERAL * len(sets) if separator == "," else 1) for count in sizes.values()) > 1
            and not any("@" in name for name in company)
            and REPEATED * len(company) <= rows
            and len(company) <= MAX_LABELS
            and min(met, short) >= 0.9 * len(company)
        ):
            return separator
    return None


def _names(value: str, separator: str) -> list[str]:
    """The labels of a cell; none of a list where others are separated by a text, and the reverse."""
    if isinstance(label_sets.parse(value), list) == bool(separator) or value.startswith("{"):
        return []
    try:
        return label_sets.read(value, separator)
    except RowRejectedError:
        return []


def _kind(
    name: str, cells: Sequence[Any], values: Sequence[str], counts: Mapping[str, int], words: float
) -> tuple[Kind, str]:
    """The kind of a column and the reason for it; the first that fits."""
    if not values:
        return "empty", "no row has a value"
    distinct = len(set(values))
    if _share(cells, lambda cell: json_value(cell) is not None) >= MOST * len(values) / len(cells):
        return "JSON", f"JSON {'lists' if isinstance(json_value(values[0]), list) else 'objects'}"
    if len(counts) == 1 and len(values) > 1:
        return "constant", "the same value in every row"
    if _share(values, _TIME.fullmatch) >= MOST:
        return "time", "dates or times" + ("" if _is_moment(values[0]) else ", not in ISO 8601 form")
    repeated = len(values) / distinct
    if _share(values, _NUMBER.fullmatch) >= MOST:
        return _kind_of_numbers(name, values, distinct, repeated)
    short = words <= LABEL_WORDS and median(map(len, values)) <= LABEL_CHARACTERS
    if _share(values, _CODE.fullmatch) >= MOST:
        if distinct >= UNIQUE * len(values):
            return "id", "a code, different in every row"
        if suggests(name, "group") or distinct > MAX_LABELS or (repeated < REPEATED and not suggests(name, "label")):
            return _group(values, distinct)
    named = suggests(name, "label") or suggests(name, "likely label")
    if short and distinct <= MAX_LABELS and repeated >= (1.5 if named else REPEATED):
        return "label", f"{max(len(counts), distinct)} different values"
    if words >= TEXT_WORDS or suggests(name, "text"):
        return "text", f"{words:.0f} words on average"
    return "value", f"{distinct} different short values" if distinct < len(values) else "a short value of each row"


def _kind_of_numbers(name: str, values: Sequence[str], distinct: int, repeated: float) -> tuple[Kind, str]:
    whole = all(value.isdigit() for value in values)
    if whole and distinct >= UNIQUE * len(values):
        return "id", "a number, different in every row"
    if whole and suggests(name, "group"):
        return _group(values, distinct)
    named = suggests(name, "label") or suggests(name, "likely label")
    if named and whole and distinct <= 20 and repeated >= REPEATED:
        return "label", f"{distinct} different numbers"
    return "number", "numbers"


def _group(values: Sequence[str], distinct: int) -> tuple[Kind, str]:
    largest = Counter(values).most_common(1)[0][1] / len(values)
    if largest > LARGEST_GROUP:
        return "value", f"{distinct} different codes, one of them in {percent(largest, 0)} of the rows"
    each = f"{len(values) / distinct:.1f}"
    spread = f", each in {each} rows on average" if each != "1.0" else f" in {len(values)} rows"
    return "group", f"{distinct} different codes{spread}"


def _share(values: Sequence[Any], fits: Callable[[Any], object]) -> float:
    return sum(bool(fits(value)) for value in values) / max(len(values), 1)


def _is_moment(text: str) -> bool:
    try:
        moment(text)
    except ValueError:
        return False
    return True


def _example(values: Sequence[str], kind: Kind) -> str:
    """The commonest label, the text nearest to the median length, else the first value."""
    if not values:
        return ""
    if kind == "label":
        return Counter(values).most_common(1)[0][0]
    if kind == "text":
        return sorted(values[:50], key=len)[len(values[:50]) // 2]
    return values[0]
