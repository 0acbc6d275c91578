"""Review in a spreadsheet: what is written can be opened safely,
what comes back is held to the task.
"""

from __future__ import annotations

import csv
import stat
from pathlib import Path

import pytest
from support import production
from support.production import collected
from support.reported import HOSTILE
from support.workbooks import row, write_xlsx

from slmctl.errors import DataError, UsageError
from slmctl.production.review import spreadsheet
from slmctl.production.review.review_rows import ReviewRow
from slmctl.production.review.session import ReviewSession
from slmctl.sources.reviewed import Review
from slmctl.task.contract import Task

TASK = Task("classify", "", "", labels=(*production.LABELS, "-5 C", "=weird"))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


def fill(
    path: Path, answers: list[str], *, delimiter: str = ",", encoding: str = "utf-8-sig"
) -> None:
    """Save it as a spreadsheet would, with these answers."""
    rows = rows_of(path)
    with path.open("w", encoding=encoding, newline="") as stream:
        writer = csv.DictWriter(stream, spreadsheet.COLUMNS, delimiter=delimiter)
        writer.writeheader()
        writer.writerows(
            {**row, spreadsheet.ANSWER: answer} for row, answer in zip(rows, answers, strict=True)
        )


@pytest.fixture
def queue() -> list[ReviewRow]:
    return [
        ReviewRow(
            collected("a", "where is it?", labels={"account": 0.2, "billing": 0.7}, confidence=0.7),
            "unsure",
        ),
        ReviewRow(collected("b", "=HYPERLINK(1)", general_answer="@SUM(A1)"), "disagreement"),
        ReviewRow(collected("c", "late"), "suspect", proposed="account"),
        ReviewRow(collected("d", "cold", answer="-5 C"), "uniform"),
        ReviewRow(collected("e", "odd"), "uniform"),
        ReviewRow(collected("f", "open"), "uniform"),
    ]


def test_numbers_and_booleans_of_a_workbook_are_decisions(tmp_path: Path) -> None:
    # 0 and False counted as rows without a decision
    task = Task("classify", "", "", labels=("0", "1", "false"))
    cells: list[tuple[str | float, ...]] = [
        ("id", spreadsheet.ANSWER),
        ("a", 0),
        ("b", False),
        ("c", 1),
        ("d",),
    ]
    write_xlsx(
        tmp_path / "rows.xlsx", {"S": "".join(row(k, *each) for k, each in enumerate(cells, 1))}
    )
    queue = [ReviewRow(collected(id, "x", answer="1"), "uniform") for id in "abcd"]
    with ReviewSession(queue, task=task, output=tmp_path / "out.jsonl", reviewer="ann") as session:
        done = spreadsheet.read(tmp_path / "rows.xlsx", session)
    assert (done.counts, done.empty, done.refused) == ({"corrected": 2, "accepted": 1}, 1, ())
    assert [review.after for review in Review.read(tmp_path / "out.jsonl")] == ["0", "false", "1"]


def test_decisions_come_back(queue: list[ReviewRow], tmp_path: Path) -> None:
    path, output = tmp_path / "rows.csv", tmp_path / "reviewed.jsonl"
    assert spreadsheet.write(path, queue) == 6
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    rows = rows_of(path)
    assert rows[0] == {
        "id": "a",
        "chosen": "unsure",
        "text": "where is it?",
        "answer": "billing",
        "confidence": "0.700",
        "likeliest": "billing 70.0 %; account 20.0 %",
        "general_answer": "",
        "reviewed_answer": "",
    }
    assert (rows[1]["text"], rows[1]["general_answer"], rows[3]["answer"]) == (
        "'=HYPERLINK(1)",
        "'@SUM(A1)",
        "'-5 C",
    )
    assert rows[2]["likeliest"] == "account"
    fill(
        path, ["billing", "account", "-", "'-5 C", "'=weird", ""], delimiter=";", encoding="cp1252"
    )
    with ReviewSession(queue, task=TASK, output=output, reviewer="ann") as session:
        done = spreadsheet.read(path, session)
        assert (done.counts, done.empty, done.refused) == (
            {"accepted": 2, "corrected": 2, "skipped": 1},
            1,
            (),
        )
        again = spreadsheet.read(path, session)
        assert (again.counts, again.empty) == ({"unchanged": 5}, 1)
        assert [candidate.id for candidate in session.open_rows()] == ["f"]
    reviews = {review.id: review for review in Review.read(output)}
    assert {id: review.after for id, review in reviews.items()} == {
        "a": "billing",
        "b": "account",
        "c": "",
        "d": "-5 C",
        "e": "=weird",
    }
    assert (reviews["a"].chosen, reviews["d"].chosen, reviews["a"].reviewer) == (
        "unsure",
        "uniform",
        "ann",
    )


def test_a_row_that_is_refused_stops_no_other(queue: list[ReviewRow], tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    queue[5] = ReviewRow(collected("gone"), "uniform")
    spreadsheet.write(path, queue)
    fill(path, ["refunds", "billing", "", "", "", "billing"])
    with ReviewSession(
        queue[:5], task=TASK, output=tmp_path / "reviewed.jsonl", reviewer="ann"
    ) as session:
        done = spreadsheet.read(path, session)
    assert done.counts == {"accepted": 1}
    assert done.refused == (
        "row 2: 'refunds' is not one of the 5 labels",
        "row 7: row 'gone' is not in the queue",
    )


def test_a_file_without_the_columns_is_refused(queue: list[ReviewRow], tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,answer\na,billing\n")
    with (
        ReviewSession(
            queue, task=TASK, output=tmp_path / "reviewed.jsonl", reviewer="ann"
        ) as session,
        pytest.raises(DataError, match=r"rows\.csv has no column 'reviewed_answer'"),
    ):
        spreadsheet.read(path, session)


def test_a_new_workbook_is_refused(queue: list[ReviewRow], tmp_path: Path) -> None:
    # it got CSV under that name, which the same command refused to read
    with pytest.raises(UsageError, match=r"--csv writes CSV, and rows\.xlsx is none"):
        spreadsheet.write(tmp_path / "rows.xlsx", queue)
    assert list(tmp_path.iterdir()) == []


def test_hostile_texts_are_cells(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    spreadsheet.write(
        path, [ReviewRow(collected(f"r{k}", text), "unsure") for k, text in enumerate(HOSTILE)]
    )
    rows = rows_of(path)
    assert [row["id"] for row in rows] == [f"r{k}" for k in range(len(HOSTILE))]
    assert not any(row["text"].startswith(("=", "+", "-", "@")) for row in rows)
