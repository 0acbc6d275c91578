"""Several columns -> one JSON object a row: its template, and a search
for columns with values from the text.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from slmctl.init.columns import Column
from slmctl.init.look import FirstLook
from slmctl.sources.rows.cells import as_text
from slmctl.task.conversation_formats import is_template, reference

LOOKED = 400  # rows of the sample that are searched
FILLED = 0.1  # least share of these rows with a value in a column
HELD = 0.8  # least share of a column's values that the text must contain
LONGEST = 100  # characters of a value that is looked for
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?")  # a number in JSON


@dataclass(frozen=True)
class AnswerFields:
    """Columns that form a JSON object for each row.

    Attributes:
        names: Names of the columns, which are the object's keys.
        bare: The columns with cells that are JSON values, such as numbers; the cells of the others
            are texts.
    """

    names: tuple[str, ...]
    bare: frozenset[str]

    @property
    def spec(self) -> str:
        """The value of `--output`: the names separated by commas."""
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(self.names)
        return line.getvalue()

    @property
    def template(self) -> str:
        """The template of the object, for `output` of a source; an empty cell becomes null."""
        return f"{{{', '.join(self.pairs)}}}"

    @property
    def pairs(self) -> list[str]:
        """The key of each column, with the expression that gives its value."""
        return [
            f"{json.dumps(name, ensure_ascii=False)}: {self._value(name)}" for name in self.names
        ]

    def _value(self, name: str) -> str:
        cell = reference(name)
        return (
            f"{{{{ {cell} or 'null' }}}}"
            if name in self.bare
            else f"{{{{ ({cell} or none) | tojson }}}}"
        )

    def of(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The object of a row, equal to the template's result."""
        return {name: self._read(name, as_text(row.get(name))) for name in self.names}

    def _read(self, name: str, text: str) -> Any:
        if not text or name not in self.bare:
            return text or None
        try:
            return json.loads(text)
        except ValueError:  # in a row outside of the sample; prepare rejects such a row
            return None


def named(look: FirstLook, spec: str) -> AnswerFields | None:
    """The fields of a list of columns such as `brand,size`; None for one
    column, a template or an empty list.
    """
    if look.column(spec) is not None or is_template(spec) or "," not in spec:
        return None
    names = [name.strip() for name in next(csv.reader([spec], skipinitialspace=True))]
    names = list(dict.fromkeys(filter(None, names)))
    return make(look, names) if names else None


def make(look: FirstLook, names: list[str]) -> AnswerFields:
    """The object of these columns; an unknown column counts as text."""
    columns = [column for name in names if (column := look.column(name)) is not None]
    return AnswerFields(
        tuple(names), frozenset(column.name for column in columns if _is_bare(look, column))
    )


def _is_bare(look: FirstLook, column: Column) -> bool:
    """True for a column with cells, in the sample, that are all JSON values
    other than texts, or numbers as text.
    """
    cells = [cell for row in look.sample if as_text(cell := row.get(column.name))]
    numbers = column.kind == "number" and all(map(_NUMBER.fullmatch, column.counts))
    return bool(cells) and all(
        not isinstance(cell, str) or (numbers and _NUMBER.fullmatch(cell.strip()) is not None)
        for cell in cells
    )


def found(
    look: FirstLook, text_of: Callable[[Mapping[str, Any]], str], *, beside: Collection[str]
) -> AnswerFields | None:
    """The columns with values that the text of their row mostly contains;
    None without one. `beside` are skipped.
    """
    rows = look.sample[:: max(1, len(look.sample) // LOOKED)]
    texts = [text_of(row).casefold() for row in rows]
    names = []
    for column in look.columns:
        if column.kind in ("constant", "empty", "JSON") or column.name in beside:
            continue
        values = [as_text(row.get(column.name)).casefold() for row in rows]
        filled = [(value, text) for value, text in zip(values, texts, strict=True) if value]
        held = sum(_holds(text, value) for value, text in filled)
        if len(filled) >= FILLED * len(rows) and held >= HELD * len(filled):
            names.append(column.name)
    return make(look, names) if names else None


def _holds(text: str, value: str) -> bool:
    """True if a text contains a value as whole words."""
    if len(value) > LONGEST or value not in text:
        return False
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) is not None
