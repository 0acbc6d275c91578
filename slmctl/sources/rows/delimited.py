"""CSV and TSV: files -> rows, where an unusable row does not stop the
reading; and rows -> CSV for spreadsheets.
"""

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
from slmctl.sources.rows.cells import (
    LOOK,
    MAX_ROW,
    RawTable,
    Row,
    column_names,
    header_place,
    too_long,
)
from slmctl.sources.rows.lines import lines

_LINE_COST = 50  # characters that are added for each line, for the memory of a Python object
_LOOK_SIZE = 1 << 18  # characters at the start of a file from which its layout is recognised
MAX_REREAD = 20 * MAX_ROW  # characters
# also behind apostrophes, so that reading takes away only those that writing added
_FORMULA = re.compile(r"(?P<own>'*+)[=+@\t\r-]")
_NUMBER = r"[+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][+-]?\d+)?%?"


def delimited_table(
    stream: TextIO, file: str, *, tabs: bool, header_row: int | None = None
) -> RawTable:
    """The rows below a header, numbered by their first line. Blank lines are skipped.

    After a row that is not valid CSV, reading continues on the line after its first one, so that a
    quote which is never closed costs one row, not the rest of the file.

    With `tabs` the delimiter is a tab; else it is recognised from the first lines. Without
    `header_row` the header is the first line that is not a title (see `header_place`).

    Raises:
        DataError: The header is not valid, or names a column twice. While rows are read: there are
            so many unclosed quotes that the file is not CSV.
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


def _rows(
    reader: Iterator[list[str]], source: _Lines, names: list[str], file: str
) -> Iterator[Row]:
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
        return (
            str(error)
            if len(source.taken) == 1
            else "not valid CSV: a quote is opened and not closed"
        )
    if str(error).startswith(("unexpected end", "field larger")):
        return "not valid CSV: a quote is opened and not closed"
    return f"not valid CSV: {error}"


class _TooLong(csv.Error):
    """A line, or the lines of one row, have more than MAX_ROW characters."""


class _Lines:
    """An iterator of lines for csv's reader, which can go back to
    the second line of the present row.
    """

    def __init__(self, stream: TextIO) -> None:
        self.taken: list[str | None] = []
        self.number = 0  # of the last line that was returned
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
        """Skip the lines before line `number`."""
        while self.number + 1 < number:
            if self._again:
                self._again.popleft()
            elif next(self._lines, "") == "":
                return
            self.number += 1

    @property
    def first(self) -> int:
        """The number of the first line of the present row."""
        return self.number - len(self.taken) + 1

    def back_to_second(self, file: str) -> None:
        """Go back, so that the next line is the second one of this row.

        Raises:
            DataError: More than MAX_REREAD characters were read again, so the file is not CSV.
        """
        if len(self.taken) > 1:
            self._reread += self._size
            if self._reread > MAX_REREAD:
                raise DataError(
                    f"{file} is not CSV: it opens quotes again and again that nothing closes"
                )
            self._again.extendleft(reversed(self.taken[1:]))
            self.number = self.first

    def layout(self, delimiter: str | None, header_row: int | None) -> tuple[str, int]:
        """Returns (delimiter, line number of the header); each argument that is None is recognised.

        The delimiter is the one in a `sep=` line, else the comma, semicolon or tab with which most
        rows have as many fields as the header; of two with as many rows the one that makes more
        fields.
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
        layouts = {
            mark: _cut(ahead, start, mark, search=header_row is None)
            for mark in (delimiter or ",;\t")
        }
        best = max(layouts, key=lambda mark: layouts[mark][:2])  # on a tie the first
        return best, header_row or layouts[best][2]


def _cut(
    ahead: Sequence[str | None], start: int, delimiter: str, *, search: bool
) -> tuple[int, int, int]:
    """Returns (rows with as many fields as the header, these fields, line
    number of the header), for one delimiter.
    """
    reader = csv.reader((line or "?" for line in ahead[start:]), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    numbers: list[int] = []
    at = start + 1
    with contextlib.suppress(csv.Error):  # includes a row that is cut at the end of `ahead`
        for fields in reader:
            if fields:
                rows.append(fields)
                numbers.append(at)
            at = start + 1 + reader.line_num
    place = header_place(rows) if search else 0
    width = len(rows[place]) if rows else 1
    agreeing = sum(len(fields) == width for fields in rows[place:]) if width > 1 else 0
    return agreeing, width, numbers[place] if rows else start + 1


def as_csv(
    rows: Iterable[Mapping[str, Any]],
    *,
    columns: Sequence[str] | None = None,
    header: bool = True,
    separator: str = ",",
    line_end: str = "\n",
) -> str:
    """Rows as CSV that is safe in a spreadsheet: an apostrophe before a cell that it would run as a
    formula.

    The same before a formula inside a cell, after another separator or a line break: a spreadsheet
    that is set to that separator would cut the cell there, since it reads a quote in the middle of
    a line as a character.
    """
    all_rows = list(rows)
    if columns is None:
        columns = list(dict.fromkeys(name for row in all_rows for name in row))
    written: list[str] = []
    # csv quotes a cell that holds a character of its line end; readers take an unquoted CR for the
    # end of a row
    writer = csv.writer(
        SimpleNamespace(write=written.append), delimiter=separator, lineterminator="\r\n"
    )
    if header:
        writer.writerow([_escaped(name, separator) for name in columns])
    writer.writerows([_escaped(row.get(name), separator) for name in columns] for row in all_rows)
    return "".join(line.removesuffix("\r\n") + line_end for line in written)


def unescaped(text: str, *, separator: str = ",") -> str:
    """A cell that `as_csv` wrote, without the apostrophes that it
    added: every text comes back as it was.
    """
    formula = _FORMULA.match(text)
    whole = text[1:] if formula and formula["own"] else text
    return _formula_inside("'", separator).sub(r"\1", whole)


def _escaped(cell: Any, separator: str) -> Any:
    if isinstance(cell, dict | list | bool):
        cell = json.dumps(cell, ensure_ascii=False)
    if not isinstance(cell, str):
        return cell
    whole = f"'{cell}" if _FORMULA.match(cell) and not re.fullmatch(_NUMBER, cell) else cell
    return _formula_inside("", separator).sub(r"\1'", whole)


@functools.cache
def _formula_inside(mark: str, separator: str) -> re.Pattern[str]:
    """A pattern for what stands before a formula inside a cell, after a line break or another
    separator, and `mark`.

    A text that begins with `+`, `-` or `@` counts only if it computes or calls a function, so that
    lists, signatures and phone numbers stay unchanged.
    """
    ends = "".join(end for end in ",;\t\r\n" if end != separator)
    space = ' "' if separator != "\t" else ' \t"'
    calls = rf"[^{ends}]*?(?:\w\(|\||!\$?[A-Za-z])"
    return re.compile(
        rf"(?<=[{ends}])([{space}]*+'*){mark}(?!{_NUMBER}[])}}\"]*(?:[{ends}]|$))"
        rf"(?==(?!=)|[+@-] ?(?:\(|[\d.,']+ *'*[-+*/^&<>=]|{calls}))"
    )
