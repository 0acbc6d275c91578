"""Several columns -> one JSON object a row: the template that makes it, and the columns whose values a text holds."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from slmctl.init.columns import Column, as_text
from slmctl.init.look import FirstLook
from slmctl.task.conversation_formats import is_template, reference

LOOKED = 400  # rows of the sample in whose texts values are looked for
FILLED = 0.1  # least share of them that have a value of a column
HELD = 0.8  # least share of these values that stand in the text
LONGEST = 100  # characters of a value that is looked for
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?")  # as JSON writes it


@dataclass(frozen=True)
class AnswerFields:
    """The columns that make one JSON object.

    Attributes:
        names: Of the columns, and of the object's keys.
        bare: Those whose cells are JSON themselves, such as numbers; the cells of the others are texts.
    """

    names: tuple[str, ...]
    bare: frozenset[str]

    @property
    def spec(self) -> str:
        """The value of `--output`: the names with commas between them."""
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(self.names)
        return line.getvalue()

    @property
    def template(self) -> str:
        """The template of the object, for `output` of a source; an empty cell is null."""
        pairs = (f"{json.dumps(name, ensure_ascii=False)}: {self._value(name)}" for name in self.names)
        return f"{{{', '.join(pairs)}}}"

    def _value(self, name: str) -> str:
        cell = reference(name)
        return f"{{{{ {cell} or 'null' }}}}" if name in self.bare else f"{{{{ ({cell} or none) | tojson }}}}"

    def of(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The object of a row, as the template makes it."""
        return {name: self._read(name, as_text(row.get(name))) for name in self.names}

    def _read(self, name: str, text: str) -> Any:
        if not text or name not in self.bare:
            return text or None
        try:
            return json.loads(text)
        except ValueError:  # beyond the rows that were looked at; prepare rejects such a row
            return None


def named(look: FirstLook, spec: str) -> AnswerFields | None:
    """The fields of a list of columns such as `brand,size`; None for what is one column, a template or empty."""
    if look.column(spec) is not None or is_template(spec) or "," not in spec:
        return None
    names = [name.strip() for name in next(csv.reader([spec], skipinitialspace=True))]
    names = list(dict.fromkeys(filter(None, names)))
    return make(look, names) if names else None


def make(look: FirstLook, names: list[str]) -> AnswerFields:
    """The object of these columns; of a name that is no column, it is of texts."""
    columns = [column for name in names if (column := look.column(name)) is not None]
    return AnswerFields(tuple(names), frozenset(column.name for column in columns if _is_bare(look, column)))


def _is_bare(look: FirstLook, column: Column) -> bool:
    """True for a column of which every cell that was seen is a JSON value and no text, or the text of a number."""
    cells = [cell for row in look.sample if as_text(cell := row.get(column.name))]
    numbers = column.kind == "number" and all(map(_NUMBER.fullmatch, column.counts))
    return bool(cells) and all(
        not isinstance(cell, str) or (numbers and _NUMBER.fullmatch(cell.strip()) is not None) for cell in cells
    )


def found(
    look: FirstLook, text_of: Callable[[Mapping[str, Any]], str], *, beside: Collection[str]
) -> AnswerFields | None:
    """The columns whose values mostly stand in the text of their row; None for none. `beside` are the text's own."""
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
    """True for a value that stands in a text by itself, and not within a word."""
    if len(value) > LONGEST or value not in text:
        return False
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) is not None
