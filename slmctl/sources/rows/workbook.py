"""The child that reads a workbook, one JSON array a row on stdout.

    python -m slmctl.sources.rows.workbook FILE [SHEET]

What it cannot read it says as an object, `{"error": …}`.
"""

from __future__ import annotations

import json
import resource
import sys

from slmctl.sources.rows.cells import plain

MEMORY = 3 << 30  # bytes of address space
SECONDS = 600  # of the processor


def main() -> None:
    """Read one sheet, and write its rows."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from python_calamine import CalamineError, CalamineWorkbook

    path, *wanted = sys.argv[1:]
    try:
        with CalamineWorkbook.from_path(path) as book:
            names = book.sheet_names
            if wanted and wanted[0] not in names:
                _say({"wanted": wanted[0], "sheets": ", ".join(names)})
                return
            if not names:
                _say({"error": "it has no sheet"})
                return
            for row in book.get_sheet_by_name(wanted[0] if wanted else names[0]).iter_rows():
                _say([_number(cell) for cell in row])
    except (CalamineError, OSError, ValueError) as error:
        _say({"error": str(error).splitlines()[0] if str(error) else type(error).__name__})


def _number(cell: object) -> object:
    """A cell as JSON has it; a workbook keeps whole numbers as floats, and 10023.0 is no customer number."""
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53:
        return int(cell)
    return plain(cell)


def _say(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")


if __name__ == "__main__":
    main()
