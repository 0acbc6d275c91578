"""An answer -> the cells that it adds to its row: all of it in JSON
Lines, a column a field in a sheet.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slmctl.metrics import answer_metrics
from slmctl.sources.rows.cells import as_text
from slmctl.stages.predict import row_answers, workbook_writer
from slmctl.task.contract import Task
from slmctl.task.documents import properties_of

SHEETS = ("csv", "tsv", "xlsx")  # formats that people open; programs read the object itself


@dataclass(frozen=True)
class AnswerColumns:
    """The columns that answers add to a file.

    Attributes:
        format: The format of the file.
        fields: In a sheet, the column of each field of an answer.
        own: The other columns.
    """

    format: str
    fields: Mapping[str, str]
    own: Sequence[str]

    @classmethod
    def of(cls, task: Task, format: str, taken: Iterable[str]) -> AnswerColumns:
        """The columns for a task; the field NAME is in `answer.NAME`
        where the rows have a column of its name.
        """
        own = row_answers.names(task)
        others = {*taken, *own}
        names = properties_of(task.schema) if task.is_object and format in SHEETS else {}
        return cls(
            format, {name: f"answer.{name}" if name in others else name for name in names}, own
        )

    @property
    def names(self) -> list[str]:
        """All of them, in the order in which they are written."""
        return [*self.fields.values(), *self.own]

    def cells(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        """The cells of an answer: in a table, the pages of its values in
        place of all that JSON Lines say of them.
        """
        cells = dict(answer)
        if self.format == "jsonl":
            return cells
        if "places" in answer:
            cells["places"] = _pages(answer["places"] or ())
        if self.fields and isinstance(value := answer_metrics.parse(answer["answer"] or ""), dict):
            cells |= {column: _cell(value.get(name)) for name, column in self.fields.items()}
        return cells


def _pages(places: Iterable[Mapping[str, Any]]) -> str:
    pages = (
        f"{place['path'] or 'answer'}: page {place['page']}"
        + (f" has {place['value']} too" if place.get("conflict") else "")
        for place in places
    )
    return "; ".join(dict.fromkeys(pages))[: workbook_writer.MAX_TEXT]


def _cell(value: Any) -> Any:
    """A field as a cell: the scalars of a list one after the other, an
    object, or a list of others, as JSON.
    """
    if isinstance(value, list) and not any(isinstance(item, dict | list) for item in value):
        value = "; ".join(map(as_text, value))
    elif isinstance(value, dict | list):
        value = json.dumps(value, ensure_ascii=False)
    # half a surrogate pair, which JSON can spell, has no bytes in a file
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
