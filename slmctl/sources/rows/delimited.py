"""Rows of CSV and TSV: an unusable one is one fault, and the rest is read; and rows out as CSV for people."""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, TextIO

from slmctl.errors import DataError
from slmctl.sources.rows.cells import LOOK, MAX_ROW, RawTable, Row, column_names, header_place, too_long
from slmctl.sources.rows.lines import lines

_LINE_COST = 50  # characters that the memory of a short line is counted as
_LOOK_SIZE = 1 << 18  # characters of the lines by which the layout of a file is told
MAX_REREAD = 20 * MAX_ROW  # characters
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NUMBER = r"[+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][+-]?\d+)?%?"


def delimited_table(stream: TextIO, file: str, *, tabs: bool, header_row: int | None = None) -> RawTable:
    """The rows below a header, each by the number of its first line. Blank lines are no rows.

    A row that is not valid CSV is one line's fault: reading goes on at the line after the one it began on, so that
    a quote that nobody closes costs one row, and not all that follow.

    With `tabs` fields are cut by tabs, and not by what the first lines show. The header is the first line that is no
    title, if `header_row` names none.

    Raises:
        DataError: The header is not valid, or names a column twice. While rows are read: quotes stand where none
            belong, all over.
    """
    csv.field_size_limit(MAX_ROW)  # csv's own 131,072 stops at a long e-mail
    source = _Lines(stream)
    delimiter, header_row = source.layout("\t" if tabs else None, header_row)
    source.skip_to(header_row)
    # strict: a quote that is never closed would else take the rest of the file as one field
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    try:
        names = column_names(next(filter(None, reader), []), f"{file}: the header")
    except csv.Error as error:
        raise DataError(f"{file}: the header is not valid CSV: {error}") from None
    return RawTable(_rows(reader, source, names, file), header_row, delimiter)


def _rows(reader: Iterator[list[str]], source: _Lines, names: list[str], file: str) -> Iterator[Row]:
    width = len(names)
    while True:
        source.taken.clear()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(source.first, {}, _explain(error, source))
            source.back_to_second(file)
            continue
        if not fields:
            continue
        if len(fields) == width:
            yield Row(source.first, dict(zip(names, fields, strict=True)))
        else:
            yield Row(source.first, {}, f"has {len(fields)} fields, the header has {width}")


def _explain(error: csv.Error, source: _Lines) -> str:
    if isinstance(error, _TooLong):
        return str(error) if len(source.taken) == 1 else "not valid CSV: a quote is opened and not closed"
    if str(error).startswith(("unexpected end", "field larger")):
        return "not valid CSV: a quote is opened and not closed"
    return f"not valid CSV: {error}"


class _TooLong(csv.Error):
    """A line, or the lines of one row, are longer than a row may be."""


class _Lines:
    """Lines for csv's reader; those of the row that it is reading are kept, to be read again one by one."""

    def __init__(self, stream: TextIO) -> None:
        self.taken: list[str | None] = []
        self.number = 0  # of the line that was given last
        self._again: deque[str | None] = deque()
        self._lines = lines(stream)
        self._size = self._reread = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self.number += 1
        self.taken.append(line)
        if line is None:
            raise _TooLong(too_long())
        if len(self.taken) > 1:
            self._size += len(line) + _LINE_COST
            if self._size > MAX_ROW:
                raise _TooLong(too_long())
        else:
            self._size = len(line)
        return line

    def skip_to(self, number: int) -> None:
        """Pass over the lines before one."""
        while self.number + 1 < number:
            if self._again:
                self._again.popleft()
            elif next(self._lines, "") == "":
                return
            self.number += 1

    @property
    def first(self) -> int:
        """The number of the first line of the row that is read."""
        return self.number - len(self.taken) + 1

    def back_to_second(self, file: str) -> None:
        """Have the lines of this row be read again, but for its first.

        Raises:
            DataError: So much was read again that the file is not CSV.
        """
        if len(self.taken) > 1:
            self._reread += self._size
            if self._reread > MAX_REREAD:
                raise DataError(f"{file} is not CSV: it opens quotes again and again that nothing closes")
            self._again.extendleft(reversed(self.taken[1:]))
            self.number = self.first

    def layout(self, delimiter: str | None, header_row: int | None) -> tuple[str, int]:
        """The character between fields, and the number of the header's line; each as it is given, or found.

        The character is that of `sep=`, or the comma, semicolon or tab that cuts the most rows as it cuts the header.
        """
        size = rows = 0
        while rows < LOOK + 1 and size < _LOOK_SIZE and (line := next(self._lines, "")) != "":
            self._again.append(line)
            size += len(line or "")
            rows += line is None or bool(line.strip("\r\n"))
        ahead = list(self._again)
        start = header_row - 1 if header_row else 0
        first = next((at for at, line in enumerate(ahead) if line is None or line.strip("\r\n")), 0)
        named = re.fullmatch(r"sep=([^\w\s\"]|\t)[\r\n]*", ahead[first] or "") if ahead else None
        if named:  # written and read by spreadsheet programs
            delimiter, start = named[1], max(start, first + 1)
        layouts = {mark: _cut(ahead, start, mark, search=header_row is None) for mark in (delimiter or ",;\t")}
        best = max(layouts, key=lambda mark: layouts[mark][0])  # of equal ones the first
        return best, header_row or layouts[best][1]


def _cut(ahead: Sequence[str | None], start: int, delimiter: str, *, search: bool) -> tuple[int, int]:
    """Of the first lines as one character cuts them: the rows that agree with the header, and the header's line."""
    reader = csv.reader((line or "?" for line in ahead[start:]), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    numbers: list[int] = []
    at = start + 1
    with contextlib.suppress(csv.Error):  # a row that the end of what was looked at cuts, too
        for fields in reader:
            if fields:
                rows.append(fields)
                numbers.append(at)
            at = start + 1 + reader.line_num
    place = header_place(rows) if search else 0
    width = len(rows[place]) if rows else 1
    agreeing = sum(len(fields) == width for fields in rows[place:]) if width > 1 else 0
    return agreeing, numbers[place] if rows else start + 1


def as_csv(
    rows: Iterable[Mapping[str, Any]],
    *,
    columns: Sequence[str] | None = None,
    header: bool = True,
    separator: str = ",",
    line_end: str = "\n",
) -> str:
    """Rows as CSV for people: a cell that a spreadsheet would take for a formula gets an apostrophe before it.

    So does a part of a cell that a spreadsheet with another separator would cut there, at a line break too: it reads a
    quote in the middle of a line as a character.
    """
    all_rows = list(rows)
    if columns is None:
        columns = list(dict.fromkeys(name for row in all_rows for name in row))
    written: list[str] = []
    # csv quotes what holds a character of its line end, and a CR that is not quoted ends a row for whoever reads it
    writer = csv.writer(SimpleNamespace(write=written.append), delimiter=separator, lineterminator="\r\n")
    if header:
        writer.writerow([_escaped(name, separator) for name in columns])
    writer.writerows([_escaped(row.get(name), separator) for name in columns] for row in all_rows)
    return "".join(line.removesuffix("\r\n") + line_end for line in written)


def unescaped(text: str, *, separator: str = ",") -> str:
    """A cell that `as_csv` has written, without its apostrophes."""
    whole = text[1:] if text.startswith("'") and text[1:].startswith(_FORMULA) else text
    return _formula_inside("'", separator).sub(r"\1", whole)


def _escaped(cell: Any, separator: str) -> Any:
    if isinstance(cell, dict | list | bool):
        cell = json.dumps(cell, ensure_ascii=False)
    if not isinstance(cell, str):
        return cell
    whole = f"'{cell}" if cell.startswith(_FORMULA) and not re.fullmatch(_NUMBER, cell) else cell
    return _formula_inside("", separator).sub(r"\1'", whole)


@functools.cache
def _formula_inside(mark: str, separator: str) -> re.Pattern[str]:
    """The signs between a line break or another separator and a formula that begins there behind `mark`.

    With another sign than `=` it is one if it computes or calls: lists, signatures and phone numbers stay as they are.
    """
    ends = "".join(end for end in ",;\t\r\n" if end != separator)
    calls = rf"[^{ends}]*?(?:\w\(|\||!\$?[A-Za-z])"
    return re.compile(
        rf"(?<=[{ends}])([ \t\"]*+){mark}(?!{_NUMBER}[])}}\"]*(?:[{ends}]|$))"
        rf"(?==(?!=)|[+@-] ?(?:\(|[\d.,]+ *[-+*/^&<>=]|{calls}))"
    )
