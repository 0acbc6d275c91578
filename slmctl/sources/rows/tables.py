"""Rows of Parquet files and workbooks, whose cells have types, a few thousand at a time."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Generator, Iterator
from pathlib import Path

from slmctl import child_environment
from slmctl.errors import DataError, UsageError
from slmctl.sources.rows.cells import Row, column_names, fault_of, plain
from slmctl.sources.rows.lines import MAX_RATIO, UNPACKED_ANYWAY

_BATCH = 1024  # rows


def parquet_rows(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file, batch by batch.

    Raises:
        DataError: It is damaged, or names a column twice.
    """
    import pyarrow  # here, and not above: CSV and JSON are read without it
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path, memory_map=False, pre_buffer=False) as file:
            names = column_names(file.schema_arrow.names, f"{path.name}: the schema")
            for batch in file.iter_batches(batch_size=_BATCH, use_threads=False):
                for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    number += 1
                    columns = {name: plain(cell) for name, cell in zip(names, cells, strict=True)}
                    fault = fault_of(columns)
                    yield Row(number, {} if fault else columns, fault)
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} holds a text that is not UTF-8 near row {number + 1}: {error.reason}") from None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path.name} is not a whole Parquet file: {first_line(error)}") from None


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
    with contextlib.closing(_cells_of(path, sheet)) as found:
        for cells in found:
            if all(cell in ("", None) for cell in cells):
                continue
            if not names:
                names = column_names(_without_tail(cells), f"{path.name}: the header")
                continue
            number += 1
            cells = _without_tail(cells) if len(cells) > len(names) else cells
            if len(cells) > len(names):
                yield Row(number, {}, f"has {len(cells)} cells, the header has {len(names)}")
                continue
            columns = dict(zip(names, cells + [""] * (len(names) - len(cells)), strict=True))
            fault = fault_of(columns)
            yield Row(number, {} if fault else columns, fault)


def _cells_of(path: Path, sheet: str | None) -> Generator[list[object], None, None]:
    """The rows of a sheet as the child gives them, cell by cell."""
    # -P: a module that lies in the folder of the data is not ours
    command = [
        sys.executable,
        "-P",
        "-m",
        "slmctl.sources.rows.workbook",
        str(path),
        *([sheet] if sheet is not None else []),
    ]
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=said, stdin=subprocess.DEVNULL, env=child_environment.bare()
        )
        assert child.stdout is not None
        try:
            with child.stdout as lines:
                for line in lines:
                    cells = json.loads(line)
                    if isinstance(cells, dict):
                        _complain(path, cells)
                    yield cells
            if child.wait() != 0:
                said.seek(0)
                _explain(path, child.returncode, said.read().decode(errors="replace"))
        finally:
            child.kill()
            child.wait()


def _complain(path: Path, said: dict[str, str]) -> None:
    if "sheets" in said:
        raise UsageError(f"{path.name} has no sheet '{said['wanted']}'", hint=f"its sheets: {said['sheets']}")
    raise DataError(f"{path.name} cannot be read as a workbook: {said['error']}", hint="save it again, or as CSV")


def _explain(path: Path, code: int, said: str) -> None:
    """The child died: of its limits, or of the file."""
    if "ModuleNotFoundError: No module named" in said:
        name = said.rpartition("No module named")[2].strip(" '\n")
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)
    why = "it takes too much memory or time" if code < 0 or "memory" in said.lower() else "it is damaged"
    raise DataError(
        f"{path.name} cannot be read as a workbook: {why}",
        hint="does it have a cell far away from the others? save the sheet as CSV",
    )


def _require_bounded(path: Path) -> None:
    """Refuse a workbook that says itself that it unpacks without bound (old .xls files are not packed)."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{path.name} cannot be read as a workbook: {error}", hint="save it again, or as CSV") from None
    if unpacked > max(UNPACKED_ANYWAY, MAX_RATIO * path.stat().st_size):
        raise DataError(f"{path.name} unpacks to more than {MAX_RATIO} times its size, as a zip bomb does")


def _without_tail(cells: list[object]) -> list[object]:
    """A row without the empty cells at its end, which formatting leaves."""
    end = len(cells)
    while end and cells[end - 1] in ("", None):
        end -= 1
    return cells[:end]


def first_line(error: BaseException) -> str:
    """What a library says, without the pages that follow."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
