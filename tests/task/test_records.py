"""Records: what all stages share goes to a file and comes back the same."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slmctl.errors import DataError
from slmctl.task.records import Record, RowRejectedError, read_records, require_records, write_jsonl

KEEP = settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)

RECORD = Record(
    id="9f2c",
    messages=(
        {"role": "system", "content": "Name it."},
        {"role": "user", "content": "Where is it?\u2028"},
        {"role": "assistant", "content": "late"},
    ),
    source={"file": "tickets.csv", "row": 17},
    label="late",
)


def test_record_knows_its_parts() -> None:
    assert (RECORD.input, RECORD.answer, len(RECORD.prompt_messages)) == (
        "Where is it?\u2028",
        "late",
        2,
    )


def test_record_leaves_out_what_it_lacks() -> None:
    assert list(RECORD.to_json()) == ["id", "messages", "label", "sensitive", "source"]


@given(texts, texts, st.none() | texts, st.none() | texts, st.booleans())
@KEEP
def test_records_round_trip(
    tmp_path: Path, asked: str, answer: str, label: str | None, group: str | None, sensitive: bool
) -> None:
    messages = ({"role": "user", "content": asked}, {"role": "assistant", "content": answer})
    record = Record("1", messages, {"file": "a", "row": 1}, label, group, sensitive)
    write_jsonl(tmp_path / "train.jsonl", [record.to_json(), RECORD.to_json()])
    assert read_records(tmp_path / "train.jsonl") == [record, RECORD]


def test_an_empty_split_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").touch()
    assert read_records(tmp_path / "test.jsonl") == []
    with pytest.raises(DataError, match="the split 'test' of the data set is empty"):
        require_records(tmp_path / "test.jsonl")


def test_a_rejected_row_names_its_rule_and_its_reason() -> None:
    error = pickle.loads(
        pickle.dumps(RowRejectedError("tool calls", "message 2 has no name"))
    )  # as a worker hands it on
    assert (error.rule, error.reason) == ("tool calls", "message 2 has no name")
    assert (error.message, error.hint) == (error.reason, "")
