"""Rows -> CSV, TSV or JSON Lines, each also packed with gzip,
Parquet or Excel, written block by block.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from slmctl import console
from slmctl.errors import DataError, UsageError
from slmctl.sources import rows
from slmctl.sources.rows import TextForm
from slmctl.sources.rows.cells import Row
from slmctl.sources.rows.encodings import Encoding
from slmctl.stages.predict import workbook_writer

FORMATS = ("csv", "tsv", "jsonl", "parquet", "xlsx")
Write = Callable[[list[dict[str, Any]]], None]


@dataclass(frozen=True)
class SourceSurvey:
    """Size and columns of a source.

    Attributes:
        rows: Number of rows, rows with a fault included.
        columns: By name, the kinds of values in the column: `bool`, `int`, `float`, `text`.
    """

    rows: int
    columns: dict[str, frozenset[str]]


def format_of(path: Path) -> str:
    """The format of a target, by its name: one of FORMATS.

    Raises:
        UsageError: The name has no suffix of a format that can be written.
    """
    try:
        kind = rows.format_of(path)
    except DataError:
        kind = ""
    if kind not in FORMATS or (kind == "xlsx" and path.suffix.lower() != ".xlsx"):
        raise UsageError(
            f"the suffix of the output '{path.name}' names no format that can be written",
            hint=".csv, .tsv, .jsonl (each also .gz), .parquet, .xlsx, or - for JSON Lines on "
            "stdout",
        )
    return kind


def survey(source_rows: Iterable[Row]) -> SourceSurvey:
    """Number of rows, columns and kinds of values, in one pass."""
    count = 0
    kinds: dict[str, set[str]] = {}
    for row in source_rows:
        count += 1
        if row.fault:
            continue
        for column, value in row.columns.items():
            kinds.setdefault(column, set()).add(_kind(value))
    return SourceSurvey(
        count, {column: frozenset(types - {"none"}) for column, types in kinds.items()}
    )


def form_for(target: Path, source: str, form: TextForm | None) -> TextForm:
    """Returns the form of the target's text: the source's if both are CSV or TSV, or both JSON
    Lines; else the default.

    Args:
        target: The file that is written.
        source: The format of the source.
        form: The form of the source, if it is a text, and its form is to be kept.
    """
    kind = format_of(target)
    if form is None or not (kind == source or {kind, source} == {"csv", "tsv"}):
        form, source = TextForm(), ""
    return form if kind == source else form._replace(delimiter="\t" if kind == "tsv" else ",")


def encodable(form: TextForm, answers: Iterable[dict[str, Any]]) -> TextForm:
    """Returns the form, with UTF-8 and a byte order mark if an answer
    holds a character that its encoding lacks.
    """
    if form.encoding.name.startswith("utf"):
        return form
    for answer in answers:
        text = "".join(value for value in answer.values() if isinstance(value, str))
        try:
            text.encode(form.encoding.name)
        except UnicodeEncodeError as error:
            name = form.encoding.title
            console.say(
                f"  written as UTF-8: an answer holds '{text[error.start]}', which {name} has not"
            )
            return form._replace(encoding=Encoding("utf-8", mark=codecs.BOM_UTF8))
    return form


@contextlib.contextmanager
def writer(
    raw: IO[bytes], target: Path, survey: SourceSurvey, added: list[str], form: TextForm
) -> Iterator[Write]:
    """A function that writes a block of rows to `raw`, in the format of
    `target`: the source's columns and `added`.
    """
    columns, kind = [*survey.columns, *added], format_of(target)
    if kind in ("parquet", "xlsx"):
        with (
            _parquet(raw, columns, survey)
            if kind == "parquet"
            else workbook_writer.writer(raw, columns) as write
        ):
            yield write
        return
    packed = target.suffix.lower() == ".gz"
    # no time and no name in the header: equal rows give equal bytes
    with (
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0)
        if packed
        else contextlib.nullcontext(raw) as stream
    ):
        stream.write(form.encoding.mark)

        def write_text(block: list[dict[str, Any]], *, header: bool = False) -> None:
            if kind == "jsonl":
                text = "".join(
                    json.dumps(fields, ensure_ascii=False) + form.line_end for fields in block
                )
            else:
                text = rows.as_csv(
                    block,
                    columns=columns,
                    header=header,
                    separator=form.delimiter,
                    line_end=form.line_end,
                )
            stream.write(text.encode(form.encoding.name))

        write_text([], header=True)  # at once: a part without rows has its header too
        yield write_text


@contextlib.contextmanager
def _parquet(raw: IO[bytes], columns: list[str], survey: SourceSurvey) -> Iterator[Write]:
    import pyarrow as pa  # here, and not above: CSV and JSON are written without it
    from pyarrow import parquet

    kinds = survey.columns | {"confidence": frozenset({"float"}), "valid": frozenset({"bool"})}
    types = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64()}
    schema = pa.schema(
        [(name, types.get(_common(kinds.get(name, frozenset())), pa.string())) for name in columns]
    )
    with parquet.ParquetWriter(raw, schema) as out:

        def write(block: list[dict[str, Any]]) -> None:
            cells = {
                name: [
                    _cell(fields.get(name), text=schema.field(name).type == pa.string())
                    for fields in block
                ]
                for name in columns
            }
            out.write_table(pa.table(cells, schema=schema))

        yield write


def _common(kinds: frozenset[str]) -> str:
    """One type for the values of a column: whole numbers and fractions are
    numbers, anything else mixed is text.
    """
    if kinds and kinds <= {"int", "long"}:
        return "int"
    return (
        "float" if kinds == {"int", "float"} else next(iter(kinds)) if len(kinds) == 1 else "text"
    )


def _kind(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        if abs(value) <= 2**53:
            return "int"
        # no number with a fraction holds each of these
        return "long" if -(2**63) <= value < 2**63 else "text"
    return "float" if isinstance(value, float) else "text"


def _cell(value: Any, *, text: bool) -> Any:
    return (
        json.dumps(value, ensure_ascii=False)
        if text and value is not None and not isinstance(value, str)
        else value
    )
