"""Places that keys take turns at."""

from __future__ import annotations

import asyncio

from slmctl.inference.turns import LATELY
from slmctl.server.places import Places


def test_a_key_has_one_place_while_another_key_comes_and_all_when_it_is_alone() -> None:
    async def work() -> None:
        places, got = Places(2, one_each=True), list[str]()

        async def take(client: str) -> None:
            await places.take(client)
            got.append(client)

        tasks = [
            asyncio.create_task(take(client))
            for client in ("flood", "flood", "flood", "flood", "other")
        ]
        gone = asyncio.create_task(take("gone"))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        assert got == ["flood", "flood"]  # which is alone when they come
        places.give_back("flood")
        await asyncio.sleep(0)
        assert got[2:] == ["other"]
        places.give_back("other")
        await asyncio.sleep(0)
        assert got[3:] == []  # the other place is kept for who came lately
        await take("other")
        places.give_back("flood")
        await asyncio.sleep(0)
        assert got[3:] == ["other", "flood"]
        places.give_back("other")
        for _ in range(LATELY):
            tasks.append(asyncio.create_task(take("flood")))
            await asyncio.sleep(0)
            places.give_back("flood")
            await asyncio.sleep(0)
        await asyncio.wait_for(asyncio.gather(*tasks), 10)  # who is alone again has both
        assert gone.cancelled() and got.count("other") == 2

    asyncio.run(work())


def test_a_place_that_comes_as_its_client_goes_is_not_lost() -> None:
    async def work() -> None:
        places = Places(1)
        await places.take("a")
        late = asyncio.create_task(places.take("b"))
        await asyncio.sleep(0)
        places.give_back("a")
        late.cancel()
        await asyncio.wait((late,))
        assert late.cancelled()
        await asyncio.wait_for(places.take("c"), 10)

    asyncio.run(work())
