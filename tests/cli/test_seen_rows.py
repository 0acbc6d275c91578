"""Rows that a model was trained or chosen by, known by id and by text."""

from __future__ import annotations

import dataclasses

from slmctl.artifacts.artifact import Artifact
from slmctl.cli.seen_rows import SeenRows
from slmctl.metrics.error_threshold import FIT_SHARE, place_of
from slmctl.task.records import Message, read_records


def test_a_row_of_an_earlier_split_is_spent_whatever_its_id(artifacts: dict[str, Artifact]) -> None:
    prepared = artifacts["prepared"]
    seen = SeenRows.of(prepared)
    train, calibration, test = (
        read_records(prepared.file(f"{split}.jsonl")) for split in ("train", "calibration", "test")
    )
    for record in (train[0], dataclasses.replace(train[0], id="0" * 16)):
        assert seen.is_spent(record, "calibration")
        assert seen.is_spent(record, "test")
        assert not seen.fits(record)
    for record in calibration:
        assert not seen.is_spent(record, "calibration")
        assert seen.is_spent(record, "test")  # its policy was chosen by it
        assert seen.fits(record) is (place_of(record.id) < FIT_SHARE)
    assert not any(seen.is_spent(record, "test") or seen.fits(record) for record in test)
    turns: tuple[Message, ...] = ({"role": "user", "content": "a text of nobody"}, test[0].messages[-1])
    assert not seen.is_spent(dataclasses.replace(test[0], id="1" * 16, messages=turns), "test")
