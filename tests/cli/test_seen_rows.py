"""Rows that a model was trained or chosen by, known by id and by text."""

from __future__ import annotations

import dataclasses

import pytest

from slmctl.artifacts.artifact import Artifact
from slmctl.cli.seen_rows import HeldOut, SeenRows, unseen
from slmctl.errors import UsageError
from slmctl.metrics.error_threshold import FIT_SHARE, place_of
from slmctl.task.records import Message, Record, read_records


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
    # its id is a hash of the row as it came in, which another project has cleaned otherwise
    assert seen.is_spent(dataclasses.replace(train[0], messages=turns), "test")
    assert seen.fits(dataclasses.replace(next(filter(seen.fits, calibration)), messages=turns))


def test_rows_that_a_larger_model_has_seen_are_left_out_and_where_none_is_left_nothing_is_measured(
    artifacts: dict[str, Artifact],
) -> None:
    prepared = artifacts["prepared"]
    train, test = (read_records(prepared.file(f"{split}.jsonl")) for split in ("train", "test"))
    seen, larger = {"tickets": SeenRows.of(prepared)}, {"tickets": "large"}

    def held(own: Record) -> HeldOut:
        return "test", dataclasses.replace(own, messages=({"role": "assistant", "content": "tickets"},)), own

    note = "2 rows of tickets are left out: large was trained on them, or chosen by them"
    assert unseen(map(held, [*train[:2], test[0]]), seen, larger) == ([held(test[0])], [f"{note}."])
    with pytest.raises(UsageError, match=rf"there is no held-out row to measure with\. {note}$"):
        unseen(map(held, train[:2]), seen, larger)
    with pytest.raises(UsageError, match=r"there is no held-out row to measure with$"):
        unseen([], seen, larger)


def test_an_id_of_the_data_itself_makes_no_two_rows_one(artifacts: dict[str, Artifact]) -> None:
    # two data sets that both count their rows from 1 "shared" rows that are different
    prepared = artifacts["prepared"]
    config = prepared.manifest.config
    sources = [{**source, "id": "ticket"} for source in config["sources"]]
    manifest = dataclasses.replace(prepared.manifest, config={**config, "sources": sources})
    seen = SeenRows.of(dataclasses.replace(prepared, manifest=manifest))
    train = read_records(prepared.file("train.jsonl"))[0]
    fitted = next(filter(seen.fits, read_records(prepared.file("calibration.jsonl"))))
    turns: tuple[Message, ...] = ({"role": "user", "content": "a text of nobody"}, train.messages[-1])
    assert seen.is_spent(dataclasses.replace(train, id="0" * 16), "test")
    assert not seen.is_spent(dataclasses.replace(train, messages=turns), "test")
    assert not seen.fits(dataclasses.replace(fitted, messages=turns))
