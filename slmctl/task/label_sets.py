"""Several labels of one row: the cells that name them, and the JSON array
in which they are trained and answered.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.metrics import answer_metrics
from slmctl.task.records import RowRejectedError

SEPARATORS = re.compile(r"[;|\n]")  # between the labels of a cell, where a source names no other
NUMBER = r"-?\d+([.,]\d+)?"
LONGEST = 10_000  # characters of a list as Python prints it
# cells that tick a column whose name is a label, or do not, as databases and spreadsheets write
# them
ON = {"1", "1.0", "true", "t", "yes", "y", "on", "wahr", "ja", "j", "vrai", "x"}
OFF = {
    "0",
    "0.0",
    "false",
    "f",
    "no",
    "n",
    "off",
    "falsch",
    "nein",
    "faux",
    "null",
    "none",
    "-",
    "",
}


def read(cell: str, separator: str | None = None) -> list[str]:
    """The labels that a cell names.

    A cell is a list of labels, as JSON or as Python prints it; a JSON object of labels that are
    ticked or not, or of columns that hold a label each; else labels with a separator between them.

    Raises:
        RowRejectedError: It names no label and is not an empty list, or holds other values than
            texts.
    """
    value = parse(cell)
    if value is answer_metrics.INVALID and cell.startswith("[") and cell.endswith("]"):
        raise RowRejectedError("bad labels", f"no list of labels can be read: '{cell[:60]}'")
    if isinstance(value, dict):
        return list(_ticked(value))
    if isinstance(value, list):
        if not all(isinstance(name, str) for name in value):
            raise RowRejectedError("bad labels", f"the labels are not texts: '{cell[:60]}'")
        return [name.strip() for name in value if name.strip()]
    parts = cell.split(separator) if separator else SEPARATORS.split(cell)
    if names := [part.strip() for part in parts if part.strip()]:
        return names
    raise RowRejectedError("empty answer", "the cell names no label; where none fits, it is []")


def parse(cell: str) -> Any:
    """The list or object that a cell holds, as JSON or as Python
    prints a list of texts; else INVALID.
    """
    if not cell.startswith(("[", "{")):
        return answer_metrics.INVALID
    value = answer_metrics.parse(cell)
    if value is answer_metrics.INVALID and len(cell) <= LONGEST:
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            value = ast.literal_eval(cell)
    return value if isinstance(value, list | dict) else answer_metrics.INVALID


def _ticked(cells: JsonObject) -> Iterator[str]:
    for name, value in cells.items():
        if not isinstance(value, str | None) and value not in (0, 1):  # True and False are these
            raise RowRejectedError(
                "bad labels", f"'{name}' holds {str(value)[:60]}, which is no tick and no label"
            )
        text = ("" if value is None else str(value)).strip()
        if re.fullmatch(NUMBER, text) and text not in ON | OFF:
            raise RowRejectedError(
                "bad labels", f"'{name}' holds {text}, which is no tick and no label"
            )
        if text.casefold() in ON:
            yield name
        elif text.casefold() not in OFF:
            yield text


def written(names: Collection[str], labels: Sequence[str] | None) -> str:
    """The labels of a row as a JSON array: each once, in the order of
    `labels`, or sorted by name for None.
    """
    ordered = (
        sorted(set(names)) if labels is None else [label for label in labels if label in names]
    )
    return json.dumps(ordered, ensure_ascii=False)


def schema(labels: Sequence[str]) -> JsonObject:
    """The JSON Schema of these answers; `subset_grammar` also holds them to the order."""
    return {"type": "array", "items": {"type": "string", "enum": list(labels)}, "uniqueItems": True}
