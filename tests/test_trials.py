"""The rows of the table of trials."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from benchmarks import trials


def test_a_trial_is_kept_where_its_gain_is_more_than_its_error() -> None:
    control = [[True, False, False, False] * 25] * 3
    better = [
        [True, True, False, False] * 25,
        [True, True, True, False] * 25,
        [True, True, False, False] * 25,
    ]
    found = [{trials.CONTROL: a, "better": b} for a, b in zip(control, better, strict=True)]
    (first, second), seeds = trials.compared(found, trials.CONTROL)
    assert (first.ours, first.theirs, second.ours, second.spread) == (
        0.25,
        0.25,
        0.5833,
        (2.0, 3.0),
    )
    assert second.metric == "better: accuracy (+33.3 points, standard error 8.3)"
    assert [seeds[kind]["kept"] for kind in (trials.CONTROL, "better")] == [False, True]
    assert seeds["better"]["accuracy"] == [0.5, 0.75, 0.5]
