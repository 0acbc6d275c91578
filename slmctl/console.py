"""Progress, tables and one-line notes on stderr; results on stdout.

On a terminal rich draws them; elsewhere (a log, a pipe, CI) progress is plain lines, at most one in
PLAIN_EVERY_S. Control sequences are removed from text of data or a model, since a terminal would
execute them.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import io
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

PLAIN_EVERY_S = 10.0  # seconds between progress lines where stderr is not a terminal
SHOW_AFTER_S = 2.0  # shorter work shows no progress
# `KINDS` of sources/documents/readers.py, which this layer does not import
_DOCUMENTS = (".pdf", ".docx", ".eml", ".mbox", ".html", ".htm", ".txt", ".md")
NARROWEST = 10  # least width of a wrapped column, in characters


class _Notes(Console):
    """The console on stderr. If stderr is closed or its disk is full,
    lines are lost and the work continues.
    """

    def on_broken_pipe(self) -> None:
        self.quiet = True  # rich itself would redirect stdout to /dev/null and end the process

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError:
            self.quiet = True


_err = _Notes(stderr=True, highlight=False, soft_wrap=True)
_level = 0  # -1 quiet, 0 normal, 1 verbose
_records: list[Callable[[str], None]] = []  # see `recorded`

# C0 except tab and newline, DEL, C1, and bidirectional overrides, which reorder displayed text
_CONTROL = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b\[[0-?]*[ "
    r"-/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
)

# Surrogates except those for undecodable bytes of file names (surrogateescape): they cannot be
# encoded.
_UNWRITABLE = re.compile(r"[\ud800-\udc7f\udd00-\udfff]")

# Control characters that a terminal obeys, except tab and newline.
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def set_level(level: int) -> None:
    """Set the level of output: -1 errors only, 0 notes and progress, 1 details too."""
    global _level
    _level = level


def level() -> int:
    """The level that `set_level` set."""
    return _level


def clean(text: str) -> str:
    """The text without control sequences, except line breaks and
    tabs, so that it is safe on a terminal.
    """
    return _CONTROL.sub("", text)


def escaped(text: str) -> str:
    """The text with control characters as escapes such as
    `\\u001b`, except line breaks and tabs.
    """
    return _OBEYED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def shown(text: str, limit: int = 200) -> str:
    """Text from data as one line of at most `limit` characters, safe
    in a terminal, a page or an image.
    """
    line = " ".join(clean(text[: 4 * limit]).split())
    line = line if len(line) <= limit else line[: limit - 1] + "…"
    return line.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate cannot be written


@contextlib.contextmanager
def recorded(add: Callable[[str], None]) -> Iterator[None]:
    """Pass every line of `say`, `detail` and `table` to `add` too, at any
    level; only the innermost block gets it.
    """
    _records.append(add)
    try:
        yield
    finally:
        _records.remove(add)


def _record(text: str) -> None:
    if _records:
        _records[-1](text)


def say(text: str = "") -> None:
    """Print a note on stderr, unless quiet."""
    _record(text)
    if _level >= 0:
        _err.print(clean(text), markup=False)


def detail(text: str) -> None:
    """Print a note on stderr that only `-v` shows."""
    _record(text)
    if _level >= 1:
        _err.print(clean(text), markup=False, style="dim" if _err.is_terminal else None)


def complain(message: str, hint: str = "") -> None:
    """Print an error and its hint on stderr, even when quiet."""
    _err.print(f"error: {clean(message)}", markup=False, style="red" if _err.is_terminal else None)
    if hint:
        _err.print(f" hint: {clean(hint)}", markup=False)


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    optional: Sequence[str] = (),
) -> None:
    """Print a table on stderr, fitted to the terminal's width; see `fitted`."""
    _record(
        "\n".join([title, *fitted(columns, rows, width=None, optional=optional)])
        if _records
        else ""
    )
    if _level >= 0:
        width = _err.width if _err.is_terminal else None
        _err.print(Text(clean(title), style="bold"))
        for line in fitted(columns, rows, width=width, optional=optional):
            _err.print(line, markup=False)


def table_lines(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    optional: Sequence[str] = (),
    wrapped: str = "",
    texts: int = 1,
) -> list[str]:
    """The lines of a table for stdout, fitted to the terminal's width; with all columns if stdout
    is not a terminal.

    Arguments as in `fitted`.
    """
    width = shutil.get_terminal_size().columns if sys.stdout and sys.stdout.isatty() else None
    return fitted(columns, rows, width=width, optional=optional, wrapped=wrapped, texts=texts)


def fitted(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    width: int | None,
    optional: Sequence[str] = (),
    wrapped: str = "",
    texts: int = 1,
) -> list[str]:
    """The lines of a table without cut cells: optional columns are left out, and if that is not
    enough, it is a list.

    Args:
        columns: Names of the columns of `rows`.
        width: Characters of a line; None for no limit.
        optional: Columns that are left out if the table does not fit, in this order.
        wrapped: A column with cells that may be wrapped, to at least NARROWEST characters.
        texts: Number of first columns that are text; the others are right-aligned figures.
    """
    rows = [[shown(cell, 1000) for cell in row] for row in rows]
    kept = list(columns)

    def needed(column: str) -> int:
        place = columns.index(column)
        longest = max(map(cell_len, (column, *(row[place] for row in rows))))
        return 2 + (
            min(longest, max(NARROWEST, cell_len(column))) if column == wrapped else longest
        )

    for column in optional:
        if width is not None and column in kept and sum(map(needed, kept)) - 2 > width:
            kept.remove(column)
    if width is not None and sum(map(needed, kept)) - 2 > width:
        return _list(columns, rows)
    places = [columns.index(column) for column in kept]
    widths = {k: max(map(cell_len, (columns[k], *(row[k] for row in rows)))) for k in places}
    whole = sum(widths.values()) + 2 * len(places) - 2
    # nothing is wrapped; drawn here, since rich takes a millisecond a row
    if width is None or whole <= width:

        def line(cells: Sequence[str]) -> str:
            rooms = {k: " " * (widths[k] - cell_len(cells[k])) for k in places}
            left = {k for k in places if k < texts or columns[k] == wrapped}
            return "  ".join(
                cells[k] + rooms[k] if k in left else rooms[k] + cells[k] for k in places
            ).rstrip()

        return [line(columns), "─" * whole, *map(line, rows)]
    drawn = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for place in places:
        column = columns[place]
        drawn.add_column(
            Text(column),
            justify="left" if place < texts or column == wrapped else "right",
            no_wrap=column != wrapped,
            overflow="fold",
        )
    for row in rows:
        drawn.add_row(*(Text(row[place]) for place in places))
    page = Console(file=io.StringIO(), width=width, color_system=None)
    with page.capture() as captured:
        page.print(drawn)
    return [line.rstrip() for line in captured.get().splitlines()]


def _list(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Each row as a paragraph: its first cell, and below it the other
    non-empty cells with their columns' names.
    """
    width, lines = max(map(cell_len, columns)), list[str]()
    for row in rows:
        lines.append(row[0])
        lines += [
            f"  {name}{' ' * (width - cell_len(name))}  {cell}"
            for name, cell in zip(columns[1:], row[1:], strict=True)
            if cell not in ("", "-")
        ]
    return lines


class Meter:
    """Counts completed work, and shows its speed and, if the total is known, the remaining time."""

    def __init__(self, label: str, total: int | None, unit: str, done: int = 0) -> None:
        self.label = label
        self.total = total
        self.unit = unit
        # work of an earlier run, which is not counted for the speed
        self.done = self._before = done
        self.note = ""
        self._start = self._last = time.monotonic()
        self._begun = False
        self._bar: Progress | None = None

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count `count` more completed units; `note` replaces the words at the end of the line."""
        now = time.monotonic()
        if not self._begun:  # the first units include loading, and would distort the speed
            self._begun = True
            self._start = now
            self._before = self.done + count
        self.done += count
        self.note = note or self.note
        if _level < 0 or now - self._start < SHOW_AFTER_S:
            return
        if _err.is_terminal:
            self._draw()
        elif now - self._last >= PLAIN_EVERY_S and (self.total is None or self.done < self.total):
            self._last = now
            done = str(self.done) if self.total is None else f"{self.done}/{self.total}"
            say(f"  {self.label}: {done} {self.unit}, {self._rate()}{self._tail()}")

    def resume(self, done: int) -> None:
        """Count `done` units as work of an earlier run, which is not counted for the speed."""
        self.done = self._before = done

    def close(self) -> None:
        """Remove the progress bar."""
        if self._bar is not None:
            self._bar.stop()

    def _draw(self) -> None:
        if self._bar is None:
            columns = [TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn()]
            columns += [
                TextColumn("{task.fields[unit]}  {task.fields[rate]}{task.fields[note]}"),
                TimeRemainingColumn(),
            ]
            self._bar = Progress(*columns, console=_err, transient=True)
            self._task = self._bar.add_task(
                self.label, total=self.total, unit=self.unit, rate="", note=""
            )
            self._bar.start()
        note = f", {self.note}" if self.note else ""
        self._bar.update(self._task, completed=self.done, rate=self._rate(), note=note)

    def _rate(self) -> str:
        rate = (self.done - self._before) / max(time.monotonic() - self._start, 1e-9)
        return f"{rate:.1f}/s" if rate < 100 else f"{rate:.0f}/s"

    def _tail(self) -> str:
        if self.total is None:
            return f", {self.note}" if self.note else ""
        left = (
            (time.monotonic() - self._start)
            / max(self.done - self._before, 1)
            * (self.total - self.done)
        )
        return f", {duration(left)} left" + (f", {self.note}" if self.note else "")


@contextlib.contextmanager
def progress(label: str, total: int | None, unit: str) -> Iterator[Meter]:
    """Yield a meter for `total` units of work, None if unknown;
    shown after SHOW_AFTER_S seconds.
    """
    meter = Meter(label, total, unit)
    try:
        yield meter
    finally:
        meter.close()


def duration(seconds: float) -> str:
    """A duration as text: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02d} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )


def size(count: float) -> str:
    """A number of bytes as text: `512 B`, `98.4 MB`, `1.20 GB` (powers of ten)."""
    for unit in ("B", "kB", "MB"):
        if count < 999.95:  # a number that would be rounded to 1000.0 gets the next unit
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def count(number: int, noun: str = "") -> str:
    """A number as text, with its noun: `10,003`; `1 row`, `3 rows`."""
    return f"{number:,}" + (f" {noun}" if noun else "") + ("s" if noun and number != 1 else "")


def percent(share: float, digits: int = 1) -> str:
    """A share as text: `92.5 %`; one that would be rounded to 0 % or 100 %
    gets more digits, up to four that tell.
    """
    texts = [f"{100 * share:.{more}f}" for more in range(digits, 5)]
    return f"{next((text for text in texts if float(text) not in (0.0, 100.0)), texts[0])} %"


def timestamp(moment: datetime.datetime | None = None) -> str:
    """A time in UTC, by default now, in the format of files: `2026-11-25T09:30:00Z`."""
    return f"{moment or datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"


def place(file: object, *numbers: int) -> str:
    """Places of rows as text: `tickets.csv line 17`, `tickets.xlsx rows 17, 90`; lines for text
    files.

    A document of a folder is a row of its own, so it has no number: `contracts/17.docx`.
    """
    name = str(file).lower().removesuffix(".gz")
    if "/" in name and name.partition("#")[0].endswith(_DOCUMENTS):
        return str(file)
    noun = "line" if name.endswith((".csv", ".tsv", ".jsonl", ".ndjson")) else "row"
    return f"{file} {noun}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def write_json(text: str) -> None:
    """Write a JSON result to stdout; on a terminal with control
    characters as escapes, which is equal JSON.
    """
    write(escaped(text) if sys.stdout and sys.stdout.isatty() else text)


class OutputError(Exception):
    """stdout is closed, or cannot be written."""


def write(text: str) -> None:
    """Write a result to stdout, unchanged; undecodable bytes of file names are written as these
    bytes.

    Raises:
        SystemExit: 0 if the reader has closed the pipe, as in `slmctl show | head`.
        OutputError: stdout is closed, or its disk is full.
    """
    if sys.stdout is None:
        raise OutputError(os.strerror(errno.EBADF))
    try:
        sys.stdout.write(_UNWRITABLE.sub("\ufffd", text))
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stdout = None  # else the flush at exit would fail again
        raise SystemExit(0) from None
    except OSError as error:
        raise OutputError(error.strerror) from None
