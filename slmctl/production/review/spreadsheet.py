"""The review queue -> a CSV file for a spreadsheet, and the edited file -> decisions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmctl.artifacts import atomic
from slmctl.console import percent
from slmctl.errors import DataError, UsageError
from slmctl.production.review.pairs import AnswerPair, PairSession, bounded
from slmctl.production.review.review_rows import ReviewRow
from slmctl.production.review.session import MODE, DecisionRefusedError, DecisionSession
from slmctl.sources.rows import as_csv, columns_of, read_rows, unescaped
from slmctl.sources.rows.cells import as_text
from slmctl.task.records import question_of

ANSWER = "reviewed_answer"
COLUMNS = ("id", "chosen", "text", "answer", "confidence", "likeliest", "general_answer", ANSWER)
BETTER = "better"  # of a sheet of pairs: left, right, same or neither
PAIR_COLUMNS = ("id", "answers", "text", "left", "right", BETTER)
SKIP = "-"  # value of ANSWER or BETTER that skips the row


@dataclass(frozen=True)
class ReadBack:
    """Counts of the decisions in a spreadsheet.

    Attributes:
        counts: Numbers of rows by decision; `unchanged`: the file of decisions had the same.
        empty: Number of rows without a decision.
        refused: A sentence for each refused row.
    """

    counts: Counter[str]
    empty: int
    refused: tuple[str, ...]


def write(path: Path, queue: Sequence[ReviewRow]) -> int:
    """Write a queue as CSV with the byte order mark that spreadsheets
    expect of UTF-8; returns the number of rows.
    """
    return _write(path, [_cells(candidate) for candidate in queue], COLUMNS)


def write_pairs(path: Path, session: PairSession) -> int:
    """Write the pairs that are open, left and right as on the page; returns their number."""
    stamp = session.judged.stamp
    return _write(path, [_pair_cells(pair, stamp) for pair in session.open_rows()], PAIR_COLUMNS)


def _write(path: Path, cells: Sequence[Mapping[str, str]], columns: Sequence[str]) -> int:
    """Write cells and return the number of rows.

    Raises:
        UsageError: The name is not that of a CSV file.
    """
    if path.suffix.lower() != ".csv":  # by which the file is read back
        raise UsageError(
            f"--csv writes CSV, and {path.name} is none by its name",
            hint=f"--csv {path.with_suffix('.csv')}; a workbook that it is saved as can be read",
        )
    text = as_csv(cells, columns=columns, line_end="\r\n")
    with atomic.file(path, MODE) as draft:
        draft.write_bytes(text.encode("utf-8-sig", "replace"))
    return len(cells)


def _pair_cells(pair: AnswerPair, stamp: str) -> dict[str, str]:
    left, right = map(bounded, pair.sides)
    return {
        "id": pair.id,
        "answers": stamp,
        "text": bounded(question_of(pair.messages)),
        "left": left,
        "right": right,
    }


def _cells(candidate: ReviewRow) -> dict[str, str]:
    row = candidate.row
    ranked = sorted(row.labels.items(), key=lambda item: -item[1])[:5]
    likeliest = [f"{label} {percent(share)}" for label, share in ranked] or [
        f for f in [candidate.proposed] if f
    ]
    return {
        "id": candidate.id,
        "chosen": candidate.chosen,
        "text": row.text,
        "answer": candidate.before,
        "confidence": "" if row.confidence is None else f"{row.confidence:.3f}",
        "likeliest": "; ".join(likeliest),
        "general_answer": row.general_answer,
        ANSWER: "",
    }


def read(
    path: Path, session: DecisionSession[Any, Any], *, column: str = ANSWER, stamp: str = ""
) -> ReadBack:
    """Apply the decisions of a spreadsheet row by row; refused rows do not stop the others.

    Args:
        path: The spreadsheet.
        session: The queue that it was written of.
        column: The column with the decisions, such as the right answer, which may be the model's
            own; `-` skips a row.
        stamp: The value that the column `answers` must have: of other answers no decision counts.

    Raises:
        DataError: The file cannot be read, or lacks a column.
        OSError: A decision could not be written.
    """
    columns = ("id", column, *(["answers"] if stamp else []))
    missing = [name for name in columns if name not in columns_of(path)]
    if missing:
        hint = "the same command with --csv and a new file writes one"
        raise DataError(f"{path.name} has no column '{missing[0]}'", hint=hint)
    counts: Counter[str] = Counter()
    empty, refused = 0, []
    for row in read_rows(path):
        id = as_text(row.columns.get("id"))
        answer = as_text(row.columns.get(column))
        if row.fault:
            refused.append(f"row {row.number}: {row.fault}")
        elif not answer:
            empty += 1
        elif stamp and unescaped(as_text(row.columns.get("answers"))) != stamp:
            refused.append(
                f"row {row.number}: it shows other answers than the two models gave here"
            )
        else:
            try:
                counts[
                    session.decide(unescaped(id), None if answer == SKIP else unescaped(answer))
                ] += 1
            except DecisionRefusedError as error:
                refused.append(f"row {row.number}: {error.message}")
    return ReadBack(counts, empty, tuple(refused))
