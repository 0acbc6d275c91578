"""Sides: a function of a record's own content, group, label or time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from slmctl.config import Splits
from slmctl.task import split
from slmctl.task.records import SPLITS

PLACES = np.array([split.position_of(f"text {k}") for k in range(20_000)])
NONE = np.full(len(PLACES), -1)
NEVER = np.full(len(PLACES), np.nan)


def shares(found: np.ndarray) -> dict[str, float]:
    return {side: float((found == k).mean()) for k, side in enumerate(SPLITS)}


def test_sides_have_the_shares_asked_for() -> None:
    found = shares(split.assign(Splits(), PLACES, NEVER, NONE, []))
    assert found == pytest.approx(
        {"train": 0.6, "validation": 0.1, "calibration": 0.15, "test": 0.15}, abs=0.01
    )


def test_a_label_can_have_shares_of_its_own() -> None:
    splits = Splits.model_validate({"labels": {"fraud": {"test": "40%"}}})
    labels = np.arange(len(PLACES)) % 2
    found = split.assign(splits, PLACES, NEVER, labels, ["billing", "fraud"])
    assert shares(found[labels == 0])["test"] == pytest.approx(0.15, abs=0.02)
    assert shares(found[labels == 1])["test"] == pytest.approx(0.40, abs=0.02)


def test_a_larger_test_share_takes_rows_but_gives_none_back() -> None:
    small = split.assign(Splits(test=0.1), PLACES, NEVER, NONE, [])
    large = split.assign(Splits(test=0.2), PLACES, NEVER, NONE, [])
    test = SPLITS.index("test")
    assert (large[small == test] == test).all()


def test_a_share_of_nothing_takes_nothing() -> None:
    assert shares(split.assign(Splits(test=0, calibration=0), PLACES, NEVER, NONE, []))["test"] == 0


@given(st.text(), st.text())
def test_a_place_is_between_0_and_1_and_its_own(one: str, other: str) -> None:
    assert 0 <= split.position_of(one) < 1
    assert (split.position_of(one) == split.position_of(other)) == (one == other)


def test_by_time_each_side_begins_at_its_moment() -> None:
    splits = Splits.model_validate(
        {
            "time": {
                "validation": "2026-03-01",
                "calibration": "2026-02-01",
                "test": "2026-04-01T12:00:00+02:00",
            }
        }
    )
    days = {
        "2026-01-31": "train",
        "2026-02-01": "calibration",
        "2026-02-28": "calibration",
        "2026-03-01": "validation",
        "2026-04-01T09:59:59": "validation",
        "2026-04-01T10:00": "test",
        "2030-01-01": "test",
    }
    moments = np.array([np.datetime64(day).astype("datetime64[s]").astype(float) for day in days])
    found = split.assign(splits, np.zeros(len(days)), moments, np.full(len(days), -1), [])
    assert [SPLITS[k] for k in found] == list(days.values())


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (
            {"time": {"validation": "May", "calibration": "2026-02-01", "test": "2026-04-01"}},
            "not a date or time",
        ),
        (
            {
                "time": {
                    "validation": "2026-02-01",
                    "calibration": "2026-02-01",
                    "test": "2026-04-01",
                }
            },
            "same moment",
        ),
        ({"test": 0.4, "validation": 0.3, "calibration": 0.2}, "leave less than 0.2"),
        ({"labels": {"fraud": {"test": 0.6}}}, "less than 0.5"),
    ],
)
def test_splits_that_cannot_be_are_refused(splits: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Splits.model_validate(splits)
