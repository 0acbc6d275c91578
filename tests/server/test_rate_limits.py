"""The places of all requests."""

from __future__ import annotations

import pytest

from slmctl.server.rate_limits import ANYBODY, BusyError, Limits


def test_a_place_is_given_back_once_with_all_that_it_was_widened_to() -> None:
    limits = Limits(2, 2)
    place = limits.enter(ANYBODY)
    place.widen(4)
    assert (limits.running, limits.waiting) == (4, 2)
    with pytest.raises(BusyError, match="4 requests are being answered or wait"):
        limits.enter(ANYBODY)
    place.leave()
    place.leave(1.0)
    assert (limits.running, limits.waiting) == (0, 0)
    for _ in range(4):
        limits.enter(ANYBODY)
    with pytest.raises(BusyError):
        limits.enter(ANYBODY)
