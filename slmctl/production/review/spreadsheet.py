"""The review queue -> a CSV file for a spreadsheet, and the edited file -> decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slmctl.artifacts import atomic
from slmctl.console import percent
from slmctl.errors import DataError
from slmctl.production.review.review_rows import ReviewRow
from slmctl.production.review.session import MODE, DecisionRefusedError, ReviewSession
from slmctl.sources.rows import as_csv, columns_of, read_rows, unescaped

ANSWER = "reviewed_answer"
COLUMNS = ("id", "chosen", "text", "answer", "confidence", "likeliest", "general_answer", ANSWER)
SKIP = "-"  # value of ANSWER that skips the row


@dataclass(frozen=True)
class ReadBack:
    """Counts of the decisions in a spreadsheet.

    Attributes:
        accepted, corrected, skipped, unchanged: Numbers of rows; `unchanged`: the reviewed file had the same decision.
        empty: Number of rows without a decision.
        refused: A sentence for each refused row.
    """

    accepted: int
    corrected: int
    skipped: int
    unchanged: int
    empty: int
    refused: tuple[str, ...]


def write(path: Path, queue: Sequence[ReviewRow]) -> int:
    """Write a queue as CSV with the byte order mark that spreadsheets expect of UTF-8; returns the number of rows."""
    text = as_csv([_cells(candidate) for candidate in queue], columns=COLUMNS, line_end="\r\n")
    with atomic.file(path, MODE) as draft:
        draft.write_bytes(text.encode("utf-8-sig", "replace"))
    return len(queue)


def _cells(candidate: ReviewRow) -> dict[str, str]:
    row = candidate.row
    ranked = sorted(row.labels.items(), key=lambda item: -item[1])[:5]
    likeliest = [f"{label} {percent(share)}" for label, share in ranked] or [f for f in [candidate.proposed] if f]
    return {
        "id": candidate.id, "chosen": candidate.chosen, "text": row.text, "answer": candidate.before,
        "confidence": "" if row.confidence is None else f"{row.confidence:.3f}", "likeliest": "; ".join(likeliest),
        "general_answer": row.general_answer, ANSWER: "",
    }  # fmt: skip


def read(path: Path, session: ReviewSession) -> ReadBack:
    """Apply the decisions of a spreadsheet row by row; refused rows do not stop the others.

    The column `reviewed_answer` holds the right answer, which may be the model's own, or `-` to skip the row.

    Raises:
        DataError: The file cannot be read, or lacks a column.
        OSError: A decision could not be written.
    """
    missing = [name for name in ("id", ANSWER) if name not in columns_of(path)]
    if missing:
        raise DataError(
            f"{path.name} has no column '{missing[0]}'", hint=f"slmctl review --csv {path.name}, in a new file"
        )
    counts = dict.fromkeys(("accepted", "corrected", "skipped", "unchanged"), 0)
    empty, refused = 0, []
    for row in read_rows(path):
        id, answer = (str(row.columns.get(name) or "").strip() for name in ("id", ANSWER))
        if row.fault:
            refused.append(f"row {row.number}: {row.fault}")
        elif not answer:
            empty += 1
        else:
            try:
                counts[session.decide(unescaped(id), None if answer == SKIP else unescaped(answer))] += 1
            except DecisionRefusedError as error:
                refused.append(f"row {row.number}: {error.message}")
    return ReadBack(**counts, empty=empty, refused=tuple(refused))
