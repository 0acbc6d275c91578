"""Rows of CSV and TSV: an unusable one is one fault, and the rest of the file is read."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator
from typing import TextIO

from slmctl.errors import DataError
from slmctl.sources.rows.cells import MAX_ROW, Row, column_names, too_long
from slmctl.sources.rows.lines import lines

_LINE_COST = 50  # characters that the memory of a short line is counted as
MAX_REREAD = 20 * MAX_ROW  # characters


def delimited_rows(stream: TextIO, file: str, *, tabs: bool) -> Iterator[Row]:
    """The rows below a header. Blank lines are no rows.

    A row that is not valid CSV is one line's fault: reading goes on at the line after the one it began on, so that
    a quote that nobody closes costs one row, and not all that follow.

    Raises:
        DataError: The header is not valid, or names a column twice; or quotes stand where none belong, all over.
    """
    csv.field_size_limit(MAX_ROW)  # csv's own 131,072 stops at a long e-mail
    source = _Lines(stream)
    delimiter = "\t" if tabs else source.delimiter()
    # strict: a quote that is never closed would else take the rest of the file as one field
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    names = _header(reader, file)
    number, width = 0, len(names)
    while True:
        source.taken.clear()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            number += 1
            yield Row(number, {}, _explain(error, source))
            source.back_to_second(file)
            continue
        if not fields:
            continue
        number += 1
        if len(fields) == width:
            yield Row(number, dict(zip(names, fields, strict=True)))
        else:
            yield Row(number, {}, f"has {len(fields)} fields, the header has {width}")


def _header(reader: Iterator[list[str]], file: str) -> list[str]:
    try:
        return column_names(next(filter(None, reader), []), f"{file}: the header")
    except csv.Error as error:
        raise DataError(f"{file}: the header is not valid CSV: {error}") from None


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
        self._again: deque[str | None] = deque()
        self._lines = lines(stream)
        self._size = self._reread = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
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

    def delimiter(self) -> str:
        """The character between fields: that of `sep=`, or the comma, semicolon or tab that cuts the header."""
        first = next((line for line in self._lines if line is None or line.strip("\r\n")), "")
        named = re.fullmatch(r"sep=([^\w\s\"]|\t)[\r\n]*", first or "")  # written and read by spreadsheet programs
        if named:
            return named[1]
        self._again.append(first)
        return next((mark for mark in ",;\t" if _cuts(first or "", mark)), ",")


def _cuts(line: str, delimiter: str) -> bool:
    try:
        return len(next(csv.reader([line], delimiter=delimiter, strict=True), [])) > 1
    except csv.Error:
        return False
