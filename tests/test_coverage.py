"""The benchmark of promises: a refused draw is no promise kept."""

from __future__ import annotations

from benchmarks.coverage import broken


def test_refused_draws_are_shown_beside_the_promises_that_hold() -> None:
    # they counted as kept promises: 100 groups of ten alike rows had 0.00 where no draw passed
    rows = {row.metric: row.ours for row in broken("world", [True, False, None, None], 0.05)}
    shares = {
        "world, share of 4 draws": 0.25,
        "world: draws that pass": 0.5,
        "world: of the draws that pass": 0.5,
    }
    assert rows == shares
    assert [row.metric for row in broken("world", [True, False], 0.05)] == [
        "world, share of 2 draws"
    ]
    assert broken("world", [None], 0.05)[2].ours == 0.0
