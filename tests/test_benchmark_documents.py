"""Places of values, as `benchmarks/documents.py` judges them by a reading of its own."""

from __future__ import annotations

import json

import pytest
from support import ROOT  # noqa: F401 - benchmarks/ is not installed

from benchmarks import documents
from slmctl.task.records import Record

TEXT = "Fee: 9.800\fThe annual fee is EUR 12.400,00 from 3. März 2024."
PLACE = {"path": "fee", "value": 12400, "start": 33, "end": 42, "page": 2, "around": ""}


@pytest.mark.parametrize(
    ("there", "value", "same"),
    [
        ("12.400,00", 12400, True),
        ("12,400", 12400, True),
        ("12.40", 12400, False),
        ("12.5", 12.5, True),
        ("3. März 2024", "2024-03-03", True),
        ("May 3, 2024", "2024-05-03", True),
        ("2024-05-03", "2024-05-03", True),
        ("03.05.2024", "2024-05-03", True),
        ("13.05.2024", "2024-05-03", False),
        ("May 3, 2024", "2024-06-03", False),
        ("Three\nMonths", "three months", True),
        ("three weeks", "three months", False),
    ],
)
def test_a_place_reads_as_its_value(there: str, value: object, same: bool) -> None:
    assert documents.reads_as(there, value) is same


@pytest.mark.parametrize(
    ("change", "share"),
    [
        ({}, 1),
        ({"page": 1}, 0),
        ({"start": 5, "end": 10}, 0),
        ({"path": "sum"}, 0),
        ({"conflict": True}, 0),
    ],
)
def test_a_right_value_needs_a_right_place(change: dict[str, object], share: float) -> None:
    turns = (
        {"role": "user", "content": TEXT},
        {"role": "assistant", "content": '{"fee": 12400, "law": null}'},
    )
    record = Record.from_json({"id": "a", "source": "b", "messages": list(turns)})
    line = {"answer": json.dumps({"fee": 12400, "law": "Malta"}), "places": [PLACE | change]}
    row = documents.placed([record], [line])
    assert (row.ours, row.theirs) == (share, 1)
