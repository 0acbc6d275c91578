"""Labels that have few rows."""

from __future__ import annotations

from slmctl.metrics.thin_labels import THIN, thin


def test_thin_labels_are_those_below_one_number_the_fewest_first() -> None:
    assert thin({"a": THIN, "b": THIN - 1, "c": 0, "d": 900}) == ["c", "b"]
