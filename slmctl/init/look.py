"""Raw rows -> their number, a bounded sample, and a description of each column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from slmctl.init.columns import MAX_LABELS, Column, describe
from slmctl.sources.rows import Row
from slmctl.sources.rows.cells import Cell, as_text

SAMPLE = 2000  # least number of rows in the sample, evenly spread over the counted rows
COUNTED = 200_000  # most rows that are read
_CHARACTERS = 20_000_000  # approximate limit of the sample
_LONGEST_COUNTED = 200  # characters; a column with a longer value is not counted by value


@dataclass(frozen=True)
class FirstLook:
    """The number of rows, a sample, and the columns of a source.

    Attributes:
        rows: Number of usable rows that were counted.
        complete: False if the source has more rows.
        unusable: Number of rows with a fault.
        fault: Row number and fault of the first of these.
        columns: The columns, in the order of the source.
        sample: Up to 2 * SAMPLE usable rows, all if there are no more; in order, including the last
            row.
    """

    rows: int
    complete: bool
    unusable: int
    fault: str
    columns: tuple[Column, ...]
    sample: tuple[dict[str, Cell], ...] = field(repr=False)

    def column(self, name: str) -> Column | None:
        """The column with this name; None without one."""
        return next((column for column in self.columns if column.name == name), None)


def look(rows: Iterable[Row], *, numbered: bool = True) -> FirstLook:
    """Read up to COUNTED rows, and describe their columns; rows that are not `numbered` name
    themselves in faults.

    Raises:
        DataError: See the reader of the rows.
    """
    sample = _Sample()
    counts: dict[str, Counter[str] | None] = {}
    usable = unusable = 0
    fault, complete = "", True
    last: dict[str, Cell] | None = None
    for row in rows:
        if usable + unusable == COUNTED:
            complete = False
            break
        if row.fault:
            unusable += 1
            fault = fault or (f"row {row.number}: {row.fault}" if numbered else row.fault)
            continue
        usable, last = usable + 1, row.columns
        sample.add(row.columns)
        _count(row.columns, counts)
    taken = tuple(sample.rows) + (
        (last,) if last is not None and last is not sample.rows[-1] else ()
    )
    columns = [
        describe(name, [row.get(name) for row in taken], counted or {})
        for name, counted in counts.items()
    ]
    return FirstLook(usable, complete, unusable, fault, tuple(columns), taken)


class _Sample:
    """A sample at equal distances, since the first rows of a file sorted
    by label hold only its first labels.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Cell]] = []
        self._distance = 1
        self._seen = 0
        self._characters = 0

    def add(self, row: dict[str, Cell]) -> None:
        if self._seen % self._distance == 0:
            self.rows.append(row)
            self._characters += sum(
                len(cell) if isinstance(cell, str) else len(str(cell)) for cell in row.values()
            )
            if len(self.rows) == 2 * SAMPLE or (
                self._characters > _CHARACTERS and len(self.rows) > 1
            ):
                self.rows = self.rows[::2]
                self._characters //= 2
                self._distance *= 2
        self._seen += 1


def _count(row: dict[str, Cell], counts: dict[str, Counter[str] | None]) -> None:
    """Add a row to the counts by value of each column; None for a
    column with too many or too long values.
    """
    for name, cell in row.items():
        counted = counts.setdefault(name, Counter())
        if counted is None or not (text := as_text(cell)):
            continue
        counted[text] += 1
        if len(counted) > MAX_LABELS or len(text) > _LONGEST_COUNTED:
            counts[name] = None
