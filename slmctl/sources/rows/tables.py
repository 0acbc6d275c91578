"""Rows of Parquet files and workbooks, whose cells have types; a bounded child process reads them."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Generator, Iterator
from pathlib import Path

from slmctl import child_environment
from slmctl.errors import DataError, UsageError
from slmctl.sources.rows.cells import Cell, Row, column_names
from slmctl.sources.rows.lines import MAX_RATIO, UNPACKED_ANYWAY

_CANNOT = {"parquet": "cannot be read as Parquet", "workbook": "cannot be read as a workbook"}
_REMEDY = {
    "parquet": "write it again, in smaller row groups and without huge cells",
    "workbook": "save it again, or as CSV; does it have a cell far away from the others?",
}


def parquet_rows(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file, in order.

    A child process reads it, within limits of memory and time: a file of a kilobyte can stand for gigabytes of cells,
    and a damaged one can end the process that reads it.

    Raises:
        DataError: It is damaged, names a column twice, or cannot be read within the limits.
    """
    names: list[str] = []
    with contextlib.closing(_cells_of(path, "parquet")) as rows:
        for number, cells in enumerate(rows):
            if number == 0 and isinstance(cells, list):
                names = column_names(cells, f"{path.name}: the schema")
            elif isinstance(cells, str):
                yield Row(number, {}, cells)
            else:
                yield Row(number, dict(zip(names, cells, strict=True)))


def workbook_rows(path: Path, sheet: str | None) -> Iterator[Row]:
    """The rows of one sheet below its first row that is not empty; wholly empty rows are no rows.

    A child process reads the file, within limits of memory and time: one cell in the last corner of a sheet
    can ask for more memory than there is, and a damaged file can end the process that reads it.

    Raises:
        DataError: It cannot be read, or not within the limits.
        UsageError: It has no such sheet.
    """
    _require_bounded(path)
    names: list[str] = []
    number = 0
    with contextlib.closing(_cells_of(path, "workbook", *([sheet] if sheet is not None else []))) as rows:
        for cells in rows:
            if isinstance(cells, str):
                if not names:
                    raise DataError(f"{path.name}: the header {cells}")
                number += 1
                yield Row(number, {}, cells)
                continue
            if all(cell in ("", None) for cell in cells):
                continue
            if not names:
                names = column_names(_without_tail(cells), f"{path.name}: the header")
                continue
            number += 1
            cells = _without_tail(cells) if len(cells) > len(names) else cells
            if len(cells) > len(names):
                yield Row(number, {}, f"has {len(cells)} cells, the header has {len(names)}")
            else:
                yield Row(number, dict(zip(names, cells + [""] * (len(names) - len(cells)), strict=True)))


def _cells_of(path: Path, kind: str, *sheet: str) -> Generator[list[Cell] | str, None, None]:
    """The rows of a file as the child gives them: cell by cell, or the fault of a row."""
    # -P: a module that lies in the folder of the data is not ours
    command = [sys.executable, "-P", "-m", "slmctl.sources.rows.tables_child", kind, str(path), *sheet]
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, env=child_environment.bare()
        )
        assert child.stdout is not None
        try:
            with child.stdout as lines:
                for line in lines:
                    cells = json.loads(line)
                    if isinstance(cells, dict) and "fault" not in cells:
                        _refuse(path, kind, cells, *sheet)
                    yield cells["fault"] if isinstance(cells, dict) else cells
            if child.wait() != 0:
                log.seek(0)
                _explain(path, kind, child.returncode, log.read().decode(errors="replace"))
        finally:
            child.kill()
            child.wait()


def _refuse(path: Path, kind: str, reply: dict[str, str], *sheet: str) -> None:
    if "sheets" in reply:
        raise UsageError(f"{path.name} has no sheet '{sheet[0]}'", hint=f"its sheets: {reply['sheets']}")
    raise DataError(f"{path.name} {_CANNOT[kind]}: {reply['error']}", hint=_REMEDY[kind])


def _explain(path: Path, kind: str, code: int, log: str) -> None:
    """Say why the child died: of its limits, of a package that is missing, or of the file."""
    if "ModuleNotFoundError: No module named" in log:
        name = log.rpartition("No module named")[2].strip(" '\n")
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)
    killed = code in (-signal.SIGKILL, -signal.SIGXCPU)  # by the system that has no memory left, by its limit
    why = "it takes too much memory or time" if killed or "memory" in log.lower() else "it is damaged"
    raise DataError(f"{path.name} {_CANNOT[kind]}: {why}", hint=_REMEDY[kind])


def _require_bounded(path: Path) -> None:
    """Refuse a workbook that says itself that it unpacks without bound (old .xls files are not packed)."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{path.name} {_CANNOT['workbook']}: {error}", hint=_REMEDY["workbook"]) from None
    if unpacked > max(UNPACKED_ANYWAY, MAX_RATIO * path.stat().st_size):
        raise DataError(f"{path.name} unpacks to more than {MAX_RATIO} times its size, as a zip bomb does")


def _without_tail(cells: list[Cell]) -> list[Cell]:
    """A row without the empty cells at its end, which formatting leaves."""
    end = len(cells)
    while end and cells[end - 1] in ("", None):
        end -= 1
    return cells[:end]
