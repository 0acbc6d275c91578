"""Rows out, block by block: CSV, TSV and JSON Lines, each also packed with gzip, and Parquet."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmctl.errors import DataError, UsageError
from slmctl.sources import rows
from slmctl.sources.rows.cells import Row

FORMATS = ("csv", "tsv", "jsonl", "parquet")
Write = Callable[[list[dict[str, Any]]], None]


@dataclass(frozen=True)
class Survey:
    """What a first look through a source found.

    Attributes:
        rows: How many it holds, bad ones counted.
        columns: Every column by name, with the kinds of values it holds: `bool`, `int`, `float`, `text`.
    """

    rows: int
    columns: dict[str, frozenset[str]]


def format_of(path: Path) -> str:
    """What a target is to be, by its name.

    Raises:
        UsageError: Its name does not say it, or it is nothing that is written.
    """
    try:
        kind = rows.format_of(path)
    except DataError:
        kind = ""
    if kind not in FORMATS:
        raise UsageError(
            f"{path.name} is of an unknown kind",
            hint="known: .csv, .tsv, .jsonl (each also .gz), .parquet, - for stdout",
        )
    return kind


def survey(found: Iterable[Row], name: str) -> Survey:
    """Look through a source once."""
    count = 0
    kinds: dict[str, set[str]] = {}
    for row in found:
        count += 1
        if row.fault:
            continue
        for column, value in row.columns.items():
            kinds.setdefault(column, set()).add(_kind(value))
    return Survey(count, {column: frozenset(held - {"none"}) for column, held in kinds.items()})


@contextlib.contextmanager
def writer(path: Path, kind: str, named: Path, seen: Survey, added: list[str]) -> Iterator[Write]:
    """What writes blocks of rows to `path`, in the form of the file that it will be `named`."""
    columns = [*seen.columns, *added]
    if kind == "parquet":
        with _parquet(path, columns, seen) as write:
            yield write
        return
    # no time and no name in the header: equal rows give equal bytes
    with path.open("wb") as raw, (
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if named.suffix.lower() == ".gz" else contextlib.nullcontext(raw)
    ) as stream:  # fmt: skip
        separator = "\t" if kind == "tsv" else ","
        if kind != "jsonl":  # at once: a part without rows has its header too
            stream.write(rows.as_csv([], columns=columns, separator=separator).encode())

        def write_text(block: list[dict[str, Any]]) -> None:
            if kind == "jsonl":
                text = "".join(json.dumps(fields, ensure_ascii=False) + "\n" for fields in block)
            else:
                text = rows.as_csv(block, columns=columns, header=False, separator=separator)
            stream.write(text.encode())

        yield write_text


@contextlib.contextmanager
def _parquet(path: Path, columns: list[str], seen: Survey) -> Iterator[Write]:
    import pyarrow as pa  # here, and not above: CSV and JSON are written without it
    from pyarrow import parquet

    kinds = seen.columns | {"confidence": frozenset({"float"}), "valid": frozenset({"bool"})}
    types = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64()}
    schema = pa.schema([(name, types.get(_common(kinds.get(name, frozenset())), pa.string())) for name in columns])
    with parquet.ParquetWriter(path, schema) as out:

        def write(block: list[dict[str, Any]]) -> None:
            cells = {
                name: [_cell(fields.get(name), text=schema.field(name).type == pa.string()) for fields in block]
                for name in columns
            }
            out.write_table(pa.table(cells, schema=schema))

        yield write


def _common(kinds: frozenset[str]) -> str:
    """One type for the values of a column: whole numbers and fractions are numbers, anything else mixed is text."""
    return "float" if kinds == {"int", "float"} else next(iter(kinds)) if len(kinds) == 1 else "text"


def _kind(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if -(2**63) <= value < 2**63 else "text"
    return "float" if isinstance(value, float) else "text"


def _cell(value: Any, *, text: bool) -> Any:
    return json.dumps(value, ensure_ascii=False) if text and value is not None and not isinstance(value, str) else value
