"""The record that all stages share, and raw rows in from CSV and JSONL.

A record is one conversation with its answer:

    {"id": "9f2c…", "messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}],
     "label": "…", "group": "…", "sensitive": false, "source": {"file": "tickets.csv", "row": 17}}
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from slmctl.errors import DataError

SPLITS = ("train", "validation", "calibration", "test")
MAX_FIELD = 10_000_000  # characters in one CSV field; csv's own limit of 131,072 stops at a long e-mail


@dataclass(frozen=True)
class Record:
    """One conversation whose last message is the answer wanted."""

    id: str
    messages: tuple[dict[str, str], ...]
    source: dict[str, Any]
    label: str | None = None
    group: str | None = None
    sensitive: bool = False

    @property
    def input(self) -> str:
        """What the user says: the last message before the answer."""
        return self.messages[-2]["content"]

    @property
    def answer(self) -> str:
        """The answer wanted."""
        return self.messages[-1]["content"]

    @property
    def prompt_messages(self) -> tuple[dict[str, str], ...]:
        """The conversation up to the answer."""
        return self.messages[:-1]

    def to_json(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"id": self.id, "messages": list(self.messages)}
        if self.label is not None:
            fields["label"] = self.label
        if self.group is not None:
            fields["group"] = self.group
        return fields | {"sensitive": self.sensitive, "source": self.source}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Record:
        return cls(**{**fields, "messages": tuple(fields["messages"])})


@dataclass(frozen=True)
class Row:
    """One raw row: its number in the file (the first row of data is 1) and its columns, or a fault."""

    number: int
    columns: dict[str, Any]
    fault: str = ""


def read_records(path: Path) -> list[Record]:
    """The records of one split."""
    with path.open(encoding="utf-8") as stream:
        return [Record.from_json(json.loads(line)) for line in stream]


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write one JSON object a line; returns how many."""
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a CSV, TSV or JSONL file, in order; a bad one comes with its fault.

    Raises:
        DataError: The file is missing, empty, of an unknown kind, or not UTF-8.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file", hint="sources are CSV, TSV or JSONL files")
    readers = {".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _jsonl_rows, ".ndjson": _jsonl_rows}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path.name} has an unknown kind '{path.suffix}'", hint=f"known: {', '.join(readers)}")
    try:
        yield from readers[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path.name} is not UTF-8 (near byte {error.start} of a block: {error.reason})",
            hint=f"iconv -f LATIN1 -t UTF-8 '{path.name}' > utf8{path.suffix}",
        ) from None


def columns_of(path: Path) -> list[str]:
    """The column names of a file, from its header or its first good row.

    Raises:
        DataError: The file holds no row.
    """
    for row in read_rows(path):
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
