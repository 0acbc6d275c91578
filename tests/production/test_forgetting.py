"""Rows of collected and reviewed files: found by their text or a part of it,
and taken out with what hangs on them.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from slmctl.production.forgetting import CollectedFile, lines, search
from slmctl.production.records import FEEDBACK, CollectedRow, Feedback
from slmctl.sources.reviewed import Review

KETTLE = "the kettle i bought on monday is broken and leaks"
TIME = "2026-11-25T10:00:00Z"


def asked(text: str) -> list[dict[str, Any]]:
    return [{"role": "system", "content": "Name the category."}, {"role": "user", "content": text}]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "collected"
    folder.mkdir()
    rows = [
        CollectedRow("a", TIME, asked(KETTLE), "returns"),
        CollectedRow("b", TIME, asked("please change the bank account of my invoice"), "billing"),
        CollectedRow(
            "c", TIME, asked("The kettle I bought on Monday is broken, and leaks!"), "returns"
        ),
        CollectedRow("d", TIME, asked("who wrote this"), "it was Jane  Doe of Bristol"),
    ]
    reviews = [
        Review("a", TIME, "ann", "corrected", asked(KETTLE), "returns", "delivery"),
        Review("a", TIME, "ann", "undone"),
        Review("b", TIME, "ann", "skipped"),
    ]
    for path, entries in (
        (folder / "2026-11-25.jsonl", rows),
        (folder / FEEDBACK, [Feedback("a", TIME, False), Feedback("b", TIME, True)]),
        (tmp_path / "reviewed.jsonl", reviews),
    ):
        path.write_text("".join(json.dumps(asdict(entry)) + "\n" for entry in entries))
        path.chmod(0o600)
    return tmp_path


def sought(
    place: Path, text: str | None = None, id: str | None = None, *, forget: bool = False
) -> dict[str, int]:
    # one of them twice
    paths = [place / "collected", place / "reviewed.jsonl", place / "collected" / FEEDBACK]
    files = search(paths, text=text, id=id, similarity=0.6, forget=forget)
    return {Path(file.path).name: file.lines for file in files}


def ids(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def test_a_row_is_found_with_its_near_duplicates_and_what_hangs_on_it(place: Path) -> None:
    assert sought(place, KETTLE) == {"2026-11-25.jsonl": 2, FEEDBACK: 1, "reviewed.jsonl": 2}
    assert sought(place, id="b") == {"2026-11-25.jsonl": 1, FEEDBACK: 1, "reviewed.jsonl": 1}
    assert sought(place, "gardening and violins in autumn") == {
        "2026-11-25.jsonl": 0,
        FEEDBACK: 0,
        "reviewed.jsonl": 0,
    }


def test_a_name_is_found_inside_any_text_but_not_a_syllable(place: Path) -> None:
    assert sought(place, "jane doe")["2026-11-25.jsonl"] == 1
    assert sought(place, "Monday")["2026-11-25.jsonl"] == 0  # too short to be one person's


CALL = {
    "function": {
        "name": "find_customer",
        "arguments": '{"name": "Jane D\\u00f6e of \\"Bristol\\""}',
    }
}


@pytest.mark.parametrize(
    "line",
    [
        {"messages": [{"role": "system", "content": 'You write to Jane Döe of "Bristol".'}]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [CALL]}]},
        {"tools": [{"function": {"name": "f", "parameters": {"enum": ['Jane Döe of "Bristol"']}}}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": 'Jane Döe of "Bristol"'}]}
            ]
        },
    ],
)
def test_a_text_is_found_in_every_string_of_a_line(tmp_path: Path, line: dict[str, Any]) -> None:
    path = tmp_path / "day.jsonl"
    path.write_text(
        json.dumps({"id": "a", **line}) + "\n" + json.dumps({"id": "b", "answer": "Jane"}) + "\n"
    )
    found = search([path], text='Jane Döe of "Bristol"', id=None, similarity=0.6, forget=True)
    assert [(file.lines, file.forgotten) for file in found] == [(1, 1)] and ids(path) == ["b"]


def test_forgetting_takes_these_lines_and_no_others(place: Path) -> None:
    day, reviewed = place / "collected" / "2026-11-25.jsonl", place / "reviewed.jsonl"
    assert sought(place, KETTLE, forget=True) == {
        "2026-11-25.jsonl": 2,
        FEEDBACK: 1,
        "reviewed.jsonl": 2,
    }
    assert (ids(day), ids(place / "collected" / FEEDBACK), ids(reviewed)) == (
        ["b", "d"],
        ["b"],
        ["b"],
    )
    assert {path.stat().st_mode & 0o777 for path in (day, reviewed)} == {0o600}
    assert sum(sought(place, KETTLE).values()) == 0


def test_lines_for_people_say_how_many_went() -> None:
    files = [
        CollectedFile("a.jsonl", 2, 2),
        CollectedFile("b.jsonl", 1),
        CollectedFile("c.jsonl", 0),
    ]
    told = list(lines(files))
    assert told[0] == "collected and reviewed files that hold it:"
    assert [line.split("  ")[-1].strip() for line in told[1:]] == [
        "lines of a.jsonl, 2 of them removed",
        "line of b.jsonl",
    ]
    assert list(lines([])) == []
    assert list(lines(files[2:])) == ["no collected or reviewed file holds it"]
