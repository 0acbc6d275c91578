"""One column of raw rows: its kind, recognised from its values and
name, and statistics of its values.
"""

from __future__ import annotations

import json
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
from slmctl.sources.rows.cells import MAX_DEPTH, as_text
from slmctl.task import label_sets
from slmctl.task.records import RowRejectedError

Kind = Literal[
    "text", "label", "labels", "id", "group", "time", "number", "JSON", "constant", "empty", "value"
]
MOST = 0.95  # least share of values with a form, for a column to have a kind
MAX_LABELS = 1000  # as in `prepare`
# largest mean number of words, and largest median of characters
LABEL_WORDS, LABEL_CHARACTERS = 6, 60
REPEATED = 3.0  # least mean number of rows for each value of short texts that are labels
SEVERAL = 0.05  # least share of cells with several labels, for a column of label sets
SEPARATORS = ("", ";", "|", ",")  # between the labels of a cell; "" for JSON lists
UNIQUE = 0.98  # least share of different values in an id column
TEXT_WORDS = 3.0  # least mean number of words of texts
# largest share of rows in one group; with more, splits would not get their sizes
LARGEST_GROUP = 0.3
_TIME = re.compile(
    r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}.*)?|\d{1,2}[./-]\d{1,2}[./-]\d{2,4}(,? "
    r"\d{1,2}:\d{2}(:\d{2})?( ?[AaPp][Mm])?)?"
)
_NUMBER = re.compile(r"[+-]?[€$£]? ?(\d{1,3}([.,' ]\d{3})+|\d+)([.,]\d+)? ?[€$£%]?")
_CODE = re.compile(r"(?=.*[\d@])\S{1,64}")  # also an e-mail address


@dataclass(frozen=True)
class Column:
    """A column, described from a sample of its rows and, if it has few values, from all counted
    rows.

    Attributes:
        kind: The recognised kind of its values.
        reason: Reason for the kind, in words for the user.
        distinct: Number of different values in the sample.
        counts: Value -> number of rows, over all counted rows; empty for more than MAX_LABELS
            values.
        words: Mean number of words.
        example: An unchanged value.
        separator: The text between the labels of a cell; '' for JSON lists, and if no cell has
            several.
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
        """The number of different values in the counted rows, or else in the sample."""
        return max(len(self.counts), self.distinct)

    @property
    def is_iso_time(self) -> bool:
        """True for times that `splits.time` can read."""
        return self.kind == "time" and _is_moment(self.example)


def json_value(cell: Any) -> Any:
    """The object or list in a cell, also as JSON text; None for any other cell."""
    if isinstance(cell, str) and cell.lstrip()[:1] in ("{", "["):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return None
    return cell if isinstance(cell, dict | list) and not is_deeper(cell, MAX_DEPTH) else None


def describe(name: str, cells: Sequence[Any], counts: Mapping[str, int] | None = None) -> Column:
    """Describe a column by its cells in a sample of the rows.

    `counts`: value -> number of rows over all rows, {} for too many values; by default from the
    sample.
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
        kind = "labels"
        reason = f"{len(by_label)} labels, several a row{between}"
        counts = by_label
    return Column(
        name=name,
        kind=kind,
        reason=reason,
        distinct=len(set(values)),
        counts=counts,
        words=words,
        example=_example(
            [v for v in values if separator is None or len(_names(v, separator)) > 1], kind
        ),
        separator=separator or "",
    )


def _separator(values: Sequence[str]) -> str | None:
    """The separator between labels, if cells hold several; None if they do not.

    Cells hold several labels if the parts are short, occur repeatedly and in different
    combinations, and if the number of parts varies: `Refund, partial` and `Refund, full` are names
    with a comma.
    """
    for separator in SEPARATORS:
        sets = [_names(value, separator) for value in values]
        if sum(
            bool(names) or value == "[]" for names, value in zip(sets, values, strict=True)
        ) < MOST * len(sets):
            continue
        sizes = Counter(map(len, sets))
        company: defaultdict[str, set[tuple[str, ...]]] = defaultdict(set)
        for names in sets:
            for name in names:
                company[name].add(tuple(names))
        rows = sum(size * count for size, count in sizes.items())
        met = sum(len(others) > 1 for others in company.values())
        short = sum(
            len(name) <= LABEL_CHARACTERS and len(name.split()) <= LABEL_WORDS for name in company
        )
        if (
            sum(count for size, count in sizes.items() if size > 1) >= SEVERAL * len(sets)
            and sum(
                count >= (SEVERAL * len(sets) if separator == "," else 1)
                for count in sizes.values()
            )
            > 1
            and not any("@" in name for name in company)
            and REPEATED * len(company) <= rows
            and len(company) <= MAX_LABELS
            and min(met, short) >= 0.9 * len(company)
        ):
            return separator
    return None


def _names(value: str, separator: str) -> list[str]:
    """The labels of a cell; [] for a JSON list with a non-empty separator,
    and for another cell with an empty one.
    """
    if isinstance(label_sets.parse(value), list) == bool(separator) or value.startswith("{"):
        return []
    try:
        return label_sets.read(value, separator)
    except RowRejectedError:
        return []


def _kind(
    name: str, cells: Sequence[Any], values: Sequence[str], counts: Mapping[str, int], words: float
) -> tuple[Kind, str]:
    """Returns (kind of a column, reason); the first kind that fits."""
    if not values:
        return "empty", "no row has a value"
    distinct = len(set(values))
    if _share(cells, lambda cell: json_value(cell) is not None) >= MOST * len(values) / len(cells):
        return "JSON", f"JSON {'lists' if isinstance(json_value(values[0]), list) else 'objects'}"
    if len(counts) == 1 and len(values) > 1:
        return "constant", "the same value in every row"
    if _share(values, _TIME.fullmatch) >= MOST:
        return "time", "dates or times" + (
            "" if _is_moment(values[0]) else ", not in ISO 8601 form"
        )
    repeated = len(values) / distinct
    if _share(values, _NUMBER.fullmatch) >= MOST:
        return _kind_of_numbers(name, values, distinct, repeated)
    short = words <= LABEL_WORDS and median(map(len, values)) <= LABEL_CHARACTERS
    if _share(values, _CODE.fullmatch) >= MOST:
        if distinct >= UNIQUE * len(values):
            return "id", "a code, different in every row"
        if (
            suggests(name, "group")
            or distinct > MAX_LABELS
            or (repeated < REPEATED and not suggests(name, "label"))
        ):
            return _group(values, distinct)
    named = suggests(name, "label") or suggests(name, "likely label")
    if short and distinct <= MAX_LABELS and repeated >= (1.5 if named else REPEATED):
        return "label", f"{max(len(counts), distinct)} different values"
    if words >= TEXT_WORDS or suggests(name, "text"):
        return "text", f"{words:.0f} words on average"
    return "value", f"{distinct} different short values" if distinct < len(
        values
    ) else "a short value of each row"


def _kind_of_numbers(
    name: str, values: Sequence[str], distinct: int, repeated: float
) -> tuple[Kind, str]:
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
        return (
            "value",
            f"{distinct} different codes, one of them in {percent(largest, 0)} of the rows",
        )
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
    """An example: the most frequent label, a text of median length, or the first value."""
    if not values:
        return ""
    if kind == "label":
        return Counter(values).most_common(1)[0][0]
    if kind == "text":
        return sorted(values[:50], key=len)[len(values[:50]) // 2]
    return values[0]
