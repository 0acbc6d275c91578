"""The places of all requests: each model has its part of them."""

from __future__ import annotations

import asyncio

import pytest

from slmctl.server.fair_queue import FairQueue
from slmctl.server.rate_limits import ANYBODY, BusyError, HeldPlace, Limits


def fill(limits: Limits, model: str) -> list[HeldPlace]:
    """Take places for a model until there are none."""
    places = []
    with pytest.raises(BusyError, match="requests are being answered or wait"):
        while True:
            places.append(limits.enter(ANYBODY, model))
    return places


def test_a_burst_leaves_the_other_models_their_part_of_the_places() -> None:
    limits = Limits(4, 8, models=3)
    assert (len(fill(limits, "a")), len(fill(limits, "b")), len(fill(limits, "c"))) == (12, 4, 4)
    alone = Limits(4, 8)
    assert (len(fill(alone, "a")), alone.waiting) == (12, 8)


def test_a_place_is_given_back_once_with_all_that_it_was_widened_to() -> None:
    limits = Limits(2, 2, models=2)
    place = limits.enter(ANYBODY, "a")
    place.widen(4)
    assert limits.running == 4
    with pytest.raises(BusyError):
        limits.enter(ANYBODY, "a")
    place.leave()
    place.leave(1.0)
    assert (limits.running, len(fill(limits, "a"))) == (0, 4)


def test_a_request_waits_for_its_turn_and_rests_when_its_engine_is_done() -> None:
    async def work() -> None:
        limits = Limits(1, 8, order=FairQueue(1))
        first, second = limits.enter(ANYBODY, "a"), limits.enter(ANYBODY, "b")
        await first.turn()
        waits = asyncio.create_task(second.turn())
        await asyncio.sleep(0)
        assert not waits.done()
        first.rest()  # its client still reads
        await waits
        assert limits.running == 2
        third = limits.enter(ANYBODY, "a")
        gone = asyncio.create_task(third.turn())
        await asyncio.sleep(0)
        gone.cancel()
        third.leave()  # its client hung up before its turn
        second.leave()
        assert (limits.order.running, limits.running) == (0, 1)

    asyncio.run(work())
