"""The places of all requests, and the rate of a key."""

from __future__ import annotations

import pytest

from slmctl.server.api_keys import Key
from slmctl.server.rate_limits import ANYBODY, Limits
from slmctl.server.request_errors import RequestError


def test_a_place_is_given_back_with_all_that_it_was_widened_to() -> None:
    limits = Limits(2, 2)
    with limits.place(ANYBODY) as place:
        place.take("desk", 4)
        assert (limits.running, limits.waiting) == (4, 2)
        with limits.place(ANYBODY) as other:
            with pytest.raises(RequestError, match="4 requests are being answered or wait"):
                other.take("desk", 1)
            other.take("mail", 2)  # the places of a model that is idle
        assert (limits.running, limits.waiting) == (4, 2)
    assert (limits.running, limits.waiting) == (0, 0)


def test_a_key_has_its_own_rate() -> None:
    limits, key = Limits(2, 2), Key("crm", "", "", rate=3)
    for _ in range(3):
        limits.count(key)
        limits.count(ANYBODY)
    with pytest.raises(RequestError, match="more than 3 requests a minute") as refused:
        limits.count(key)
    assert (refused.value.status, refused.value.code, 1 <= refused.value.retry_after_s <= 20) == (
        429,
        "rate",
        True,
    )
