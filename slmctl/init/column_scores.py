"""A column -> its score as the answer, the text, the subject, the
id, the group or the time of a row.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from slmctl.init.column_names import is_flag, suggests
from slmctl.init.columns import Column

Role = Literal["answer", "input", "subject", "id", "group", "time"]
# least scores of an answer that is taken without a question, and of a possible answer
NO_DOUBT, LEAST = 2.0, 1.0
# (role, kinds of column, hint in its name or '' for any name, score); the first row that fits
# decides.
_SCORES: tuple[tuple[Role, tuple[str, ...], str, float], ...] = (
    ("answer", ("labels",), "label", 4.0),
    ("answer", ("labels",), "", 3.0),
    ("answer", ("label", "constant"), "label", 4.0),
    ("answer", ("label", "constant"), "likely label", 3.0),
    ("answer", ("label",), "unlikely label", 1.0),
    ("answer", ("label",), "", 2.0),
    ("answer", ("JSON",), "fields", 4.0),
    ("answer", ("JSON",), "", 2.0),
    ("answer", ("text",), "answer", 3.5),
    ("answer", ("value",), "answer", 1.0),
    ("input", ("text",), "answer", 5.0),
    ("input", ("text",), "text", 8.0),
    ("input", ("text",), "subject", 6.0),
    ("input", ("text",), "", 7.0),
    ("input", ("value",), "answer", 1.0),
    ("input", ("value",), "text", 4.0),
    ("input", ("value",), "subject", 2.0),
    ("input", ("value",), "", 3.0),
    ("subject", ("text", "value"), "subject", 1.0),
    ("id", ("id",), "id", 2.0),
    ("id", ("id",), "", 1.0),
    ("group", ("group",), "group", 2.0),
    ("group", ("group",), "", 1.0),
    ("time", ("time",), "", 1.0),
)


def score(column: Column, role: Role) -> float:
    """The score of a column in a role; 0 if it cannot have the role."""
    if (role, column.is_iso_time) == ("time", False):
        return 0.0
    return next(
        (
            score
            for each, kinds, hint, score in _SCORES
            if each == role and column.kind in kinds and _suggests(column, hint)
        ),
        0.0,
    )


def likeliest(columns: Iterable[Column], role: Role) -> list[Column]:
    """The columns with the highest score in a role, in order; [] if none can have it."""
    scores = [(column, score(column, role)) for column in columns]
    best = max((score for _, score in scores), default=0.0)
    return [column for column, score in scores if score == best > 0]


def first(columns: Iterable[Column], role: Role) -> str:
    """The name of the first of the likeliest columns; '' for none."""
    return next((column.name for column in likeliest(columns, role)), "")


def _suggests(column: Column, hint: str) -> bool:
    ticked = hint == "unlikely label" and is_flag(column.counts)
    return not hint or ticked or suggests(column.name, hint)
