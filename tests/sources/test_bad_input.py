"""Files as they come: for each a defined result, exact counts,
bounded memory, and never a traceback.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from support import tiny
from support.workbooks import cell, row, write_ods, write_xlsx

from slmctl.errors import DataError, MissingError, UsageError
from slmctl.installation import pip_line
from slmctl.pipeline import system_errors
from slmctl.sources.rows import MAX_ROW, Row, read_rows

MEMORY = 250  # MB that reading a file may take, whatever is in it
HEADER = b"text,label\n"


@dataclass(frozen=True)
class Case:
    """One file, and what reading it must give: rows in all, the faults
    among them by number, or a refusal.
    """

    name: str
    file: str
    content: bytes | Callable[[Path], object]
    rows: int = 0
    faults: dict[int, str] = field(default_factory=dict)
    refused: str = ""
    first: dict[str, Any] | None = None  # the columns of the first good row
    sheet: str | None = None


def lines(*texts: str) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()


def parquet_of(columns: dict[str, Any]) -> Callable[[Path], object]:
    return lambda path: parquet.write_table(pa.table(columns), path)


def xlsx_of(**sheets: str) -> Callable[[Path], object]:
    return lambda path: write_xlsx(path, sheets)


def sqlite_of(*statements: str) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as base:
            base.execute("pragma user_version = 1")  # a file even without a table
            for statement in statements:
                base.execute(statement)

    return write


def packed(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def half(content: Callable[[Path], object]) -> Callable[[Path], object]:
    """A file that was cut in the middle."""

    def write(path: Path) -> None:
        content(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return write


def twice_named(path: Path) -> None:
    parquet.write_table(
        pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), path
    )


AB = {"text": "a", "label": "b"}
TEXT = {"text": "a"}
FORMULAS = (
    row(1, "text", "label", "day") + '<row r="2"><c r="A2" '
    f't="str"><f>"a"&amp;"b"</f><v>ab</v></c>{cell("B2", 7.0)}{cell("C2", 1.5)}</row>'
    + '<row r="3"><c r="A3"><f>1+1</f></c><c r="B3" t="e"><v>#N/A</v></c><c r="C3" '
    't="b"><v>1</v></c></row>' + row(5, "after a blank row")
)

CASES = [
    # CSV: encodings and line ends
    Case("byte order mark", "a.csv", b"\xef\xbb\xbf" + HEADER + b"a,b\n", 1, first=AB),
    Case("CR LF", "a.csv", b"text,label\r\na,b\r\nc,d\r\n", 2, first=AB),
    Case("lone CR", "a.csv", b"text,label\ra,b\rc,d\r", 2, first=AB),
    Case("CR CR LF", "a.csv", b"text,label\r\r\na,b\r\r\n", 1, first=AB),
    Case("mixed line ends", "a.csv", b"text,label\r\na,b\nc,d\re,f", 3, first=AB),
    Case("UTF-16 little-endian", "a.csv", "text,label\na,b\n".encode("utf-16"), 1, first=AB),
    Case(
        "UTF-16 big-endian",
        "a.csv",
        b"\xfe\xff" + "text,label\na,b\n".encode("utf-16-be"),
        1,
        first=AB,
    ),
    Case("UTF-32", "a.csv", "text,label\na,b\n".encode("utf-32"), 1, first=AB),
    Case("UTF-16 without a mark", "a.csv", "text,label\na,b\n".encode("utf-16-le"), 1, first=AB),
    Case(
        "UTF-16 without a mark, big-endian",
        "a.csv",
        "text,label\na,b\n".encode("utf-16-be"),
        1,
        first=AB,
    ),
    Case(
        "UTF-16 of Chinese without a mark",
        "a.csv",
        "text,label\n订单还没有到,投诉\n".encode("utf-16-le"),
        1,
        first={"text": "订单还没有到", "label": "投诉"},
    ),
    Case(
        "UTF-16 cut in a character",
        "a.csv",
        "text,label\na,b".encode("utf-16")[:-1],
        refused="is not UTF-16: it ends inside a character, in line 2",
    ),
    Case(
        "latin-1",
        "a.csv",
        HEADER + "größe,a\n".encode("latin-1"),
        1,
        first={"text": "größe", "label": "a"},
    ),
    Case(
        "CP1252",
        "a.csv",
        HEADER + "„größe“ – 12 €,a\n".encode("cp1252"),
        1,
        first={"text": "„größe“ – 12 €", "label": "a"},
    ),
    Case(
        "last letter of CP1252",
        "a.csv",
        b"label,text\na,caf\xe9",
        1,
        first={"label": "a", "text": "café"},
    ),
    Case(
        "CP1252 in the last line",
        "a.csv",
        HEADER + b"a,b\n" * 99 + b"5 \x80 \x96 6,b\n",
        100,
        first=AB,
    ),
    Case(
        "a line of CP1252 in UTF-8",
        "a.csv",
        HEADER + "größe,a\n".encode() + b"gr\xf6\xdfe,a\n",
        refused="a.csv is not UTF-8: line 3 holds the byte 0xf6",
    ),
    Case(
        "cut in a character",
        "a.csv",
        HEADER + "a,ö".encode()[:-1],
        refused="it ends inside a character, in line 2",
    ),
    Case(
        "title rows in CSV",
        "a.csv",
        b"Tickets, 2024\n\ntext;label\na;b\nc, d;e\nf\n",
        3,
        {6: "has 1 fields"},
        first=AB,
    ),
    Case(
        "index without a name",
        "a.csv",
        b",text\n0,a\n1,b\n2,c\n",
        3,
        first={"column 1": "0", "text": "a"},
    ),
    Case(
        "title rows of a spreadsheet", "a.csv", b"Tickets;\n;\ntext;label\na;b\nc;d\n", 2, first=AB
    ),
    Case("bytes of a picture", "a.csv", bytes(range(256)) * 50, refused="holds no text"),
    Case("NUL in a cell", "a.csv", HEADER + b"a\0b,c\n", 1, first={"text": "a\0b", "label": "c"}),
    Case(
        "NUL bytes after a crash",
        "a.csv",
        HEADER + b"a,b\n" + b"\0" * 4096,
        2,
        {3: "has 1 fields"},
        first=AB,
    ),
    # CSV: nothing, too little, too much
    Case("empty", "a.csv", b""),
    Case("empty but for a mark", "a.csv", b"\xef\xbb\xbf"),
    Case("blank lines alone", "a.csv", b"\n\r\n\n"),
    Case("header only", "a.csv", HEADER),
    Case("header without a line end", "a.csv", HEADER.strip()),
    Case("no final line end", "a.csv", HEADER + b"a,b", 1, first=AB),
    Case(
        "blank lines between",
        "a.csv",
        b"\n" + HEADER + b"\na,b\n\n\nshort\n\n",
        2,
        {7: "has 1 fields"},
        first=AB,
    ),
    Case(
        "ragged",
        "a.csv",
        HEADER + b"a,b\nc\nd,e,f\ng,h\n",
        4,
        {3: "has 1 fields, the header has 2", 4: "has 3 fields, the header has 2"},
        first=AB,
    ),
    Case("suffix in capitals", "A.CSV", HEADER + b"a,b\n", 1, first=AB),
    Case("field of 200 KB", "a.csv", HEADER + b"x" * 200_000 + b",b\n", 1),
    Case(
        "line that is too long",
        "a.csv",
        HEADER + b"x" * (MAX_ROW + 1) + b",b\na,b\n",
        2,
        {2: "has more than 10,000,000 characters"},
        first=AB,
    ),
    Case(
        "header that is too long",
        "a.csv",
        b"x" * (MAX_ROW + 1) + b"\na\n",
        refused="header is not valid CSV",
    ),
    # CSV: quotes and delimiters
    Case(
        "quote that is not closed",
        "a.csv",
        HEADER + b'a,b\n"open,x\nc,d\ne,f\n',
        4,
        {3: "a quote is opened and not"},
        first=AB,
    ),
    Case(
        "quote not closed in the last row",
        "a.csv",
        HEADER + b'a,b\nc,"d\n',
        2,
        {3: "a quote is opened"},
        first=AB,
    ),
    Case(
        "quote not closed in the last column",
        "a.csv",
        HEADER + b'a,b\nc,"d\ne,f\n',
        3,
        {3: "a quote is opened"},
    ),
    Case(
        "text as it is", "a.csv", HEADER + b" 1 ,\nNA,007\n", 2, first={"text": " 1 ", "label": ""}
    ),
    Case(
        "text after a quote",
        "a.csv",
        HEADER + b'"a"x,b\nc,d\n',
        2,
        {2: "not valid CSV: ',' expected after '\"'"},
    ),
    Case(
        "text of many lines",
        "a.csv",
        HEADER + b'"one\n\ntwo, ""three""",b\nshort\n',
        2,
        {5: "has 1 fields"},
        first={"text": 'one\n\ntwo, "three"', "label": "b"},
    ),
    Case(
        "quotes opened all over",
        "a.csv",
        HEADER + b'x","z\n' * 300_000,
        refused="opens quotes again and again",
    ),
    Case(
        "header that opens a quote",
        "a.csv",
        b'"text,label\na,b\n',
        refused="header is not valid CSV",
    ),
    Case(
        "header with a name twice",
        "a.csv",
        b"text,text\na,b\n",
        refused="a.csv: the header names a column twice: text, text",
    ),
    Case(
        "columns without a name",
        "a.csv",
        b",text,label,\n0,a,b,\n",
        1,
        first={"column 1": "0", "text": "a", "label": "b", "column 4": ""},
    ),
    Case("semicolons", "a.csv", b'"text";label\na;b\n"c;d";e\n', 2, first=AB),
    Case("tabs in .csv", "a.csv", b"text\tlabel\na\tb\n", 1, first=AB),
    # a tie went to the comma
    Case(
        "comma in each first field",
        "a.csv",
        b"a, b;text;label\nx, y;a;b\n",
        1,
        first={"a, b": "x, y", "text": "a", "label": "b"},
    ),
    Case("sep= in the first line", "a.csv", b"sep=|\r\ntext|label\r\na|b\r\n", 1, first=AB),
    Case(
        "commas in .tsv",
        "a.tsv",
        b"text\tlabel\na, b\tc\n",
        1,
        first={"text": "a, b", "label": "c"},
    ),
    # JSON lines
    Case(
        "JSONL with mark and CR LF",
        "a.jsonl",
        b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}\r\n',
        2,
        first=TEXT,
    ),
    Case("JSONL with lone CR", "a.jsonl", b'{"text": "a"}\r{"text": "b"}', 2, first=TEXT),
    Case("JSONL in UTF-16", "a.jsonl", '{"text": "a"}\n'.encode("utf-16"), 1, first=TEXT),
    Case(
        "JSONL in latin-1",
        "a.jsonl",
        '{"text": "größe"}'.encode("latin-1"),
        1,
        first={"text": "größe"},
    ),
    Case("JSONL by its other name", "a.ndjson", b'{"text": "a"}', 1, first=TEXT),
    Case(
        "syntax of JSON",
        "a.jsonl",
        lines(
            "{'a': 1}",
            '{"a": 1} {"b": 2}',
            '{"a": {"b": 1, "b": 1}}',
            r'{"\udc00": 1}',
            r'{"text": "\ud83d\ude00"}',
        ),
        5,
        {
            1: "not valid JSON: Expecting",
            2: "not valid JSON: Extra data",
            3: "a key stands twice in an object",
            4: "half of a surrogate pair",
        },
        first={"text": "😀"},
    ),
    Case(
        "lone surrogate",
        "a.jsonl",
        lines(r'{"text": "\ud83d"}', '{"text": "a"}'),
        2,
        {1: "half of a surrogate"},
        first=TEXT,
    ),
    Case(
        "NaN",
        "a.jsonl",
        lines('{"n": NaN}', '{"n": [-Infinity]}'),
        2,
        {1: "NaN is not", 2: "-Infinity is not"},
    ),
    Case(
        "1e999",
        "a.jsonl",
        lines('{"n": 1e999}', '{"n": 1e308}'),
        2,
        {1: "1e999 is too large"},
        first={"n": 1e308},
    ),
    Case(
        "key twice",
        "a.jsonl",
        lines('{"a": 1, "a": 2}', '{"a": 1}'),
        2,
        {1: "a key stands twice"},
        first={"a": 1},
    ),
    Case(
        "5,000 digits",
        "a.jsonl",
        lines('{"n": ' + "9" * 5000 + "}", '{"n": 9}'),
        2,
        {1: "has 5,000 digits"},
    ),
    Case(
        "nested 200 deep",
        "a.jsonl",
        lines('{"a": ' + "[" * 200 + "]" * 200 + "}"),
        1,
        {1: "more than 100 deep"},
    ),
    Case(
        "no objects",
        "a.jsonl",
        lines("[1]", "null", '"a"', "1"),
        4,
        dict.fromkeys(range(1, 5), "not a JSON object"),
    ),
    Case(
        "cut last line",
        "a.jsonl",
        b'{"text": "a"}\n{"text": "b',
        2,
        {2: "Unterminated string"},
        first=TEXT,
    ),
    Case("tab in a text", "a.jsonl", b'{"text": "a\tb"}\n', 1, {1: "Invalid control character"}),
    Case(
        "NUL bytes among lines",
        "a.jsonl",
        b'{"text": "a"}\n\0\0\0\n',
        2,
        {2: "not valid JSON"},
        first=TEXT,
    ),
    Case(
        "blank lines count as lines",
        "a.jsonl",
        b'\n{"text": "a"}\n \n{\n',
        2,
        {4: "not valid JSON"},
        first=TEXT,
    ),
    Case(
        "line of JSON that is too long",
        "a.jsonl",
        b'{"text": "' + b"x" * MAX_ROW + b'"}\n{"text": "a"}\n',
        2,
        {1: "has more than 10,000,000 characters"},
        first=TEXT,
    ),
    # JSON
    Case("array", "a.json", b'[\n{"text": "a"},\n{"text": "b"}\n]\n', 2, first=TEXT),
    Case(
        "object with one array",
        "a.json",
        b'{"version": 1, "tags": ["x"], "data": [{"text": "a"}], "n": {}}',
        1,
        first=TEXT,
    ),
    Case(
        "JSON lines by another name",
        "a.json",
        lines('{"text": "a", "m": [{"n": 1}]}', '{"text": "b", "m": []}'),
        2,
    ),
    Case(
        "object with two arrays",
        "a.json",
        b'{"a": [{"text": "a"}], "b": [{"text": "b"}]}',
        refused="holds several arrays: a, b",
    ),
    Case(
        "one array of two",
        "a.json",
        b'{"a": [{"text": "b"}, 1], "n": 1, "b": [{"text": "a"}]}',
        1,
        first=TEXT,
        sheet="b",
    ),
    Case(
        "array that is not there",
        "a.json",
        b'{"a": [{"text": "b"}]}',
        refused="without an array 'b'",
        sheet="b",
    ),
    Case(
        "array of an array",
        "a.json",
        b'[{"text": "b"}]',
        refused="no object with an array 'b'",
        sheet="b",
    ),
    Case(
        "object without an array",
        "a.json",
        b'{"text": "a"}',
        refused="an object without an array of objects",
    ),
    Case(
        "values that are no objects",
        "a.json",
        b'[{"text": "a"}, 1, null, [2]]',
        4,
        dict.fromkeys((2, 3, 4), "not a JSON object"),
        first=TEXT,
    ),
    Case(
        "array of arrays",
        "a.json",
        b'[["a", "b"], [], [1, [2]]]',
        3,
        {2: "not a JSON object"},
        first={"1": "a", "2": "b"},
    ),
    Case(
        "array of arrays in an object",
        "a.json",
        b'{"train": [["x", "y"]], "test": [["a", "b"]]}',
        1,
        first={"1": "a", "2": "b"},
        sheet="test",
    ),
    Case(
        "faults inside an array",
        "a.json",
        b'[{"n": NaN}, {"n": 1, "n": 2}, {"text": "a"}, {"n": 1e999}]',
        4,
        {1: "NaN is not JSON", 2: "a key stands twice", 4: "1e999 is too large"},
        first=TEXT,
    ),
    Case(
        "cut array",
        "a.json",
        b'[{"text": "a"}, {"text": "b',
        refused="not valid JSON at character 26",
    ),
    Case(
        "array without a comma",
        "a.json",
        b'[{"text": "a"} {"text": "b"}]',
        refused="',' is missing",
    ),
    Case("array that goes on", "a.json", b'[{"text": "a"}]]', refused="goes on after the end"),
    Case("empty .json", "a.json", b" \n"),
    Case("empty array", "a.json", b"[]"),
    Case("a text", "a.json", b'"text"', refused="holds no array of objects"),
    # gzip
    Case("packed CSV", "a.csv.gz", packed(HEADER + b"a,b\n"), 1, first=AB),
    Case(
        "packed twice over",
        "a.jsonl.gz",
        packed(b'{"text": "a"}\n') + packed(b'{"text": "b"}\n'),
        2,
        first=TEXT,
    ),
    Case("packed without saying so", "a.csv", packed(HEADER + b"a,b\n"), 1, first=AB),
    Case("not packed, but says so", "a.csv.gz", HEADER, refused="is not a gzip file"),
    Case(
        "packed and cut",
        "a.csv.gz",
        packed(HEADER + b"a,b\n" * 9)[:-9],
        refused="is a damaged gzip file",
    ),
    Case(
        "packed and changed",
        "a.csv.gz",
        packed(HEADER)[:-6] + b"\0" * 6,
        refused="is a damaged gzip file",
    ),
    # Parquet
    Case(
        "Parquet",
        "a.parquet",
        parquet_of({"text": ["a", None], "n": [1, 2]}),
        2,
        first={"text": "a", "n": 1},
    ),
    Case(
        "types of Parquet",
        "a.parquet",
        parquet_of(
            {
                "text": [b"bytes"],
                "raw": [b"\xff"],
                "nan": [float("nan")],
                "infinite": [float("inf")],
                "day": [date(2026, 11, 24)],
                "at": [datetime(2026, 11, 24, 12, tzinfo=UTC)],
                "price": [Decimal("1.10")],
                "list": [[1, None]],
                "inner": [{"a": b"b"}],
            }
        ),
        1,
        first={
            "text": "bytes",
            "raw": None,
            "nan": None,
            "infinite": None,
            "day": "2026-11-24",
            "at": "2026-11-24T12:00:00+00:00",
            "price": "1.10",
            "list": [1, None],
            "inner": {"a": "b"},
        },
    ),
    Case(
        "Parquet with a text that is none",
        "a.parquet",
        parquet_of(
            {
                "text": pa.Array.from_buffers(
                    pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")]
                )
            }
        ),
        refused="a text that is not UTF-8 near row 1",
    ),
    Case(
        "Parquet cut",
        "a.parquet",
        half(parquet_of({"text": ["a"] * 999})),
        refused="cannot be read as Parquet",
    ),
    Case("Parquet in name only", "a.parquet", HEADER, refused="cannot be read as Parquet"),
    Case("Parquet, empty", "a.parquet", b"", refused="cannot be read as Parquet"),
    Case(
        "Parquet with a name twice",
        "a.parquet",
        twice_named,
        refused="names a column twice: text, text",
    ),
    Case("Parquet without rows", "a.parquet", parquet_of({"text": pa.array([], pa.string())})),
    # Workbooks
    Case(
        "formula cells",
        "a.xlsx",
        xlsx_of(One=FORMULAS),
        3,
        first={"text": "ab", "label": 7, "day": 1.5},
    ),
    Case(
        "second sheet",
        "a.xlsx",
        xlsx_of(One=row(1, "x"), Two=row(1, "text") + row(2, "a")),
        1,
        first=TEXT,
        sheet="Two",
    ),
    Case(
        "title above the header",
        "a.xlsx",
        xlsx_of(
            One=row(1, "Tickets")
            + row(2, "of 2024")
            + row(4, "text", "label")
            + row(5, "a", "b", "c")
            + row(9, "a", "b")
            + row(10, "c", "d")
        ),
        3,
        {5: "has 3 cells, the header has 2"},
        first=AB,
    ),
    Case(
        "two rows of headings",
        "a.xlsx",
        xlsx_of(
            One=row(1, "", "Ticket", "")
            + row(2, "id", "text", "label")
            + row(3, 1, "a", "b")
            + row(4, 2, "c", "d")
        ),
        2,
        first={"id": 1, "text": "a", "label": "b"},
    ),
    Case(
        "sheet that is not there",
        "a.xlsx",
        xlsx_of(One=row(1, "x")),
        refused="no sheet 'Three'",
        sheet="Three",
    ),
    Case(
        "sheet of a file that has none",
        "a.csv",
        HEADER,
        refused="is no workbook, database or JSON",
        sheet="One",
    ),
    Case(
        "row longer than the header",
        "a.xlsx",
        xlsx_of(One=row(1, "text") + row(2, "a", "b") + row(3, "a")),
        2,
        {2: "has 2 cells, the header has 1"},
        first=TEXT,
    ),
    Case(
        "cell outside any sheet",
        "a.xlsx",
        xlsx_of(
            One=row(1, "text") + f'<row r="4294967295">{cell("ZZZZZZZZ99999999999", "x")}</row>'
        ),
        refused="cannot be read as a workbook",
    ),
    Case("workbook without sheets", "a.xlsx", xlsx_of(), refused="it has no sheet"),
    Case("workbook in name only", "a.xlsx", HEADER, refused="cannot be read as a workbook"),
    Case(
        "workbook cut",
        "a.xlsx",
        half(xlsx_of(One=row(1, "text") + row(2, "a"))),
        refused="cannot be read",
    ),
    Case(
        "zip bomb",
        "a.xlsx",
        xlsx_of(One=row(1, "text") + " " * 70_000_000),
        refused="as a zip bomb does",
    ),
    Case(
        "ODS", "a.ods", lambda path: write_ods(path, [["text", "label"], ["a", "b"]]), 1, first=AB
    ),
    Case(
        "old Excel in name only",
        "a.xls",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        refused="cannot be read as a",
    ),
    # SQLite
    Case(
        "SQLite",
        "a.db",
        sqlite_of("create table t (text, label, raw)", "insert into t values ('a', 7, x'ff')"),
        1,
        first={"text": "a", "label": 7, "raw": None},
    ),
    # it was an empty cell, so a template was read with its other columns alone
    Case(
        "SQLite text in CP1252",
        "a.db",
        sqlite_of(
            "create table t (text, label)",
            "insert into t values ('a', cast(x'fc62' as text)), ('a', 'b')",
        ),
        2,
        {1: "cell 2 is not UTF-8"},
        first=AB,
    ),
    Case(
        "two tables",
        "a.sqlite",
        sqlite_of("create table t (a)", "create table u (a)"),
        refused="holds 2 tables: t, u",
    ),
    Case(
        "one table of two",
        "a.sqlite3",
        sqlite_of(
            "create table t (a)",
            'create table "u "" v" (text, label)',
            "insert into \"u \"\" v\" values ('a', 'b')",
        ),
        1,
        first=AB,
        sheet='u " v',
    ),
    Case(
        "table that is not there",
        "a.db",
        sqlite_of("create table t (a)"),
        refused="has no table 'u'",
        sheet="u",
    ),
    Case(
        "view that is named",
        "a.db",
        sqlite_of(
            "create table t (a)",
            "create view v as select 'a' as text from t",
            "insert into t values (1), (2)",
        ),
        2,
        first=TEXT,
        sheet="v",
    ),
    Case("database without a table", "a.db", sqlite_of(), refused="holds no table"),
    Case(
        "database in name only",
        "a.db",
        HEADER,
        refused="as an SQLite database: file is not a database",
    ),
    Case(
        "database cut",
        "a.db",
        half(sqlite_of("create table t (a)", "insert into t values (zeroblob(9999))")),
        refused="cannot be read as an SQLite database",
    ),
    # What is no file
    Case("pipe", "a.csv", os.mkfifo, refused="is not a file: it is a pipe"),
    Case(
        "circle of links",
        "a.csv",
        lambda path: path.symlink_to(path),
        refused="is not a file: too many levels",
    ),
    Case(
        "link to nothing",
        "a.csv",
        lambda path: path.symlink_to("gone"),
        refused="is not a file: no such file",
    ),
    Case("nothing", "a.csv", lambda path: None, refused="is not a file: no such file"),
    Case("name with odd characters", "a\x1b[31m\n 'ö.csv", HEADER + b"a,b\n", 1, first=AB),
]


def write(case: Case, folder: Path) -> Path:
    path = folder / case.file
    if callable(case.content):
        case.content(path)
    else:
        path.write_bytes(case.content)
    return path


@pytest.mark.usefixtures("forked_readers")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_a_file_gives(case: Case, tmp_path: Path) -> None:
    path = write(case, tmp_path)
    if case.refused:
        with pytest.raises((DataError, UsageError), match=re.escape(case.refused)):
            list(read_rows(path, sheet=case.sheet))
        return
    found = list(read_rows(path, sheet=case.sheet))
    faults = {one.number: one.fault for one in found if one.fault}
    assert (len(found), faults.keys()) == (case.rows, case.faults.keys()), faults
    assert all(fault in faults[number] for number, fault in case.faults.items()), faults
    assert case.first is None or next(one.columns for one in found if not one.fault) == case.first


def test_a_workbook_is_not_read_by_what_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `python -m` looks for modules in the folder that it is started in
    for name in ("json", "python_calamine", "slmctl"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('run')")
    write_xlsx(tmp_path / "a.xlsx", {"One": row(1, "text") + row(2, "a")})
    monkeypatch.chdir(tmp_path)
    assert list(read_rows(Path("a.xlsx"))) == [Row(2, TEXT)]


def test_a_missing_package_is_said_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python_calamine.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'python_calamine'\")"
    )
    write_xlsx(tmp_path / "a.xlsx", {"One": row(1, "text")})
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ModuleNotFoundError) as caught:
        list(read_rows(tmp_path / "a.xlsx"))
    said = system_errors.missing(caught.value, "prepare")
    assert isinstance(said, MissingError)
    assert said.hint == pip_line("data")


def test_prepare_accounts_for_every_row_of_them(stages: Any, desk: Path) -> None:
    values = yaml.safe_load((desk / "slmctl.yaml").read_text())
    mapping = {"input": "text", "output": "label"}
    faults: dict[str, set[int]] = {}
    rows = 300
    for place, case in enumerate(CASES):
        if case.refused or not {"text", "label"} <= set(case.first or {}):
            continue  # prepare needs both columns; what it refuses has a test of its own
        (desk / str(place)).mkdir()
        path = write(case, desk / str(place))
        source = {
            "path": str(path),
            "name": case.name,
            **mapping,
            **({"sheet": case.sheet} if case.sheet else {}),
        }
        values["prepare"]["sources"].append(source)
        faults[case.name] = set(case.faults)
        rows += case.rows
    (desk / "slmctl.yaml").write_text(yaml.safe_dump(values))
    # some labels have one row
    done = stages.run(desk, "prepare", "--set", "prepare.min_rows.label=0")
    path = Path(tiny.ok(done))
    assert "\x1b" not in done.stdout + done.stderr
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["metrics"]["rows_in"] == rows > 330
    kept = [json.loads(line) for line in (path / "train.jsonl").read_text().splitlines()]
    left = [
        json.loads(line)["source"] for line in (path / "rejected.jsonl").read_text().splitlines()
    ]
    assert len(kept) + len(left) <= rows
    for name, numbers in faults.items():
        assert numbers <= {source["row"] for source in left if source["file"] == name}, name


def test_prepare_refuses_what_cannot_be_read_with_3(stages: Any, desk: Path) -> None:
    (desk / "tickets.csv").write_bytes(
        b"text,category\ngr\x94\xe1e,\x1b]0;title\x07a\n" + b"a,b\n" * 99
    )
    done = stages.run(desk, "prepare")
    assert done.returncode == 3
    assert "tickets.csv is neither UTF-8 nor CP1252: line 2 holds the byte 0x94" in done.stderr
    assert "hint: say which it is, encoding: NAME; cp850 reads 'größe'" in done.stderr
    assert "Traceback" not in done.stderr


def test_text_of_a_file_does_not_reach_the_terminal_as_it_is(stages: Any, desk: Path) -> None:
    # a column name with line breaks and control sequences could once write a hint of its own
    (desk / "tickets.csv").write_text('"a\x1b]0;owned\x07\n hint: run me",\x9b31mb\n1,2\n')
    done = stages.run(desk, "prepare")
    assert done.returncode == 3
    assert "its columns: a hint: run me, 31mb" in done.stderr
    assert not {"\x1b", "\x07", "\x9b", "\r"} & set(done.stderr)


# Memory


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "head", "tail"),
    [
        ("a.csv", HEADER, b",b\na,b\n"),
        ("a.csv", HEADER + b'"', b'",b\na,b\n'),
        ("a.jsonl", b'{"text": "', b'"}\n{"text": "a"}\n'),
    ],
    ids=["csv", "quoted", "jsonl"],
)
def test_a_line_of_a_gigabyte_is_one_rejected_row(
    tmp_path: Path, file: str, head: bytes, tail: bytes
) -> None:
    path = tmp_path / file
    with path.open("wb") as stream:
        stream.write(head)
        # a hole: a gigabyte of NUL that takes no place on the disk
        stream.seek(1 << 30, io.SEEK_CUR)
        stream.write(tail)
    rows, memory = read_apart(path)
    first = 1 if file.endswith("jsonl") else 2
    assert [(number, bool(fault)) for number, fault in rows] == [(first, True), (first + 1, False)]
    assert memory < MEMORY


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("a.csv", "text,label\n" + "\U0001f600" * (MAX_ROW - 10) + ",b\n"),
        ("a.jsonl", '{"text": "' + "\U0001f600" * (MAX_ROW - 20) + '"}\n'),
        ("a.json", '[{"text": "' + "\U0001f600" * (MAX_ROW - 20) + '"}]'),
    ],
)
def test_the_longest_row_fits(tmp_path: Path, file: str, content: str) -> None:
    (tmp_path / file).write_text(content)
    rows, memory = read_apart(tmp_path / file)
    assert rows == [[2 if file.endswith("csv") else 1, ""]]
    assert memory < MEMORY


@pytest.mark.slow
def test_a_quote_that_nothing_closes_costs_one_row_of_millions(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n"open,b\n' + "a,b\n" * 3_000_000)
    rows, memory = read_apart(tmp_path / "a.csv")
    assert len(rows) == 3_000_001
    assert [number for number, fault in rows if fault] == [2]
    assert memory < MEMORY + 300  # the list of results is most of it


@pytest.mark.slow
def test_prepare_of_a_line_of_a_gigabyte(desk: Path) -> None:
    with (desk / "tickets.csv").open("r+b") as stream:
        stream.seek(1 << 30, io.SEEK_END)
        stream.write(b"\n")
    code = (
        f"import sys\nfrom slmctl.cli.main import main\ntry: main()\nfinally: {PEAK}; "
        "print(peak, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "-C", str(desk), "prepare"],
        capture_output=True,
        text=True,
        env=tiny.environment(),
        timeout=300,
    )
    path = Path(tiny.ok(done))
    left = [
        json.loads(line)["source"] for line in (path / "rejected.jsonl").read_text().splitlines()
    ]
    assert {"file": "tickets.csv", "row": 302} in left
    assert int(done.stderr.splitlines()[-1]) < MEMORY


# ru_maxrss would count what the process that started this one held at that moment
PEAK = "peak = int(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0]) // 1024"
CHILD = f"""
import json, sys
from pathlib import Path
from slmctl.sources.rows import read_rows
found = [[row.number, row.fault] for row in read_rows(Path(sys.argv[1]))]
{PEAK}
print(json.dumps([found, peak]))
"""


def read_apart(path: Path) -> tuple[list[list[Any]], int]:
    """The rows of a file by number and fault, and the MB that a
    process of its own needed to read them.
    """
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    rows, memory = json.loads(done.stdout)
    return rows, memory


# Damage at random

FLIPS = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8
)


def damaged(content: bytes, flips: list[tuple[float, int]]) -> bytes:
    changed = bytearray(content)
    for place, value in flips:
        changed[int(place * len(changed))] = value
    return bytes(changed)


@pytest.mark.usefixtures("forked_readers")
@pytest.mark.parametrize("file", ["a.parquet", "a.xlsx", "a.json", "a.jsonl.gz", "a.csv.gz"])
@given(flips=FLIPS)
@settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damage_gives_rows_faults_or_a_data_error(
    tmp_path: Path, file: str, flips: list[tuple[float, int]]
) -> None:
    path = tmp_path / file
    objects = [{"text": f"größe {k}", "n": k, "list": [k], "inner": {"a": None}} for k in range(20)]
    if file == "a.parquet":
        parquet.write_table(pa.Table.from_pylist(objects), path, compression="snappy")
    elif file == "a.xlsx":
        write_xlsx(path, {"One": FORMULAS})
    elif file == "a.json":
        path.write_text(json.dumps(objects, ensure_ascii=False))
    else:
        path.write_bytes(packed(lines(*map(json.dumps, objects))))
    path.write_bytes(damaged(path.read_bytes(), flips))
    try:
        found = list(read_rows(path))
    except DataError as error:
        assert error.message
        return
    for each in found:
        json.dumps(each.columns, allow_nan=False).encode()
