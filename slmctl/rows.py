"""Raw rows of a file, in order: each with its number and columns, or with its fault."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from slmctl.errors import DataError

MAX_FIELD = 10_000_000  # characters in one CSV field; csv's own limit of 131,072 stops at a long e-mail


@dataclass(frozen=True)
class Row:
    """One raw row: its number in the file (the first row of data is 1) and its columns, or a fault."""

    number: int
    columns: dict[str, Any]
    fault: str = ""


def read_rows(path: Path, *, sheet: str | None = None, format: str | None = None) -> Iterator[Row]:
    """The rows of a file, in order; a bad one comes with its fault.

    Args:
        path: A CSV, TSV or JSONL file.
        sheet: Which sheet of a workbook; the first when left out.
        format: What the file is, when its name does not say it.

    Raises:
        DataError: The file is missing, empty, of an unknown kind, or not UTF-8.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file", hint="sources are CSV, TSV or JSONL files")
    readers = {".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _jsonl_rows, ".ndjson": _jsonl_rows}
    kind = f".{format}" if format else path.suffix.lower()
    if kind not in readers:
        raise DataError(f"{path.name} has an unknown kind '{path.suffix}'", hint=f"known: {', '.join(readers)}")
    try:
        yield from readers[kind](path)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path.name} is not UTF-8 (near byte {error.start} of a block: {error.reason})",
            hint=f"iconv -f LATIN1 -t UTF-8 '{path.name}' > utf8{path.suffix}",
        ) from None


def columns_of(path: Path, *, sheet: str | None = None, format: str | None = None) -> list[str]:
    """The column names of a file, from its header or its first good row.

    Raises:
        DataError: The file holds no row.
    """
    for row in read_rows(path, sheet=sheet, format=format):
        if not row.fault:
            return list(row.columns)
    raise DataError(f"{path.name} holds no rows", hint="a header and at least one row are needed")


def _csv_rows(path: Path) -> Iterator[Row]:
    csv.field_size_limit(MAX_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        # strict: a quote that is never closed would else take the rest of the file as one field
        reader = csv.reader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            header = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{path.name}: the header is not valid CSV: {error}") from None
        if header is None:
            return
        if len(set(header)) < len(header):
            raise DataError(f"{path.name}: the header names a column twice: {', '.join(header)}")
        number = 0
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                number += 1
                yield Row(number, {}, f"not valid CSV: {error}")
                continue
            if not fields:
                continue  # a blank line is no row
            number += 1
            if len(fields) != len(header):
                yield Row(number, {}, f"has {len(fields)} fields, the header has {len(header)}")
            else:
                yield Row(number, dict(zip(header, fields, strict=True)))


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="\n") as stream:  # newline: U+2028 does not end a line
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line, parse_constant=_refuse_constant, object_pairs_hook=_refuse_twice)
                json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate fails here
            except (ValueError, RecursionError) as error:
                yield Row(number, {}, f"not valid JSON: {error}")
                continue
            yield Row(number, value) if isinstance(value, dict) else Row(number, {}, "not a JSON object")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key stands twice in an object")
    return result
