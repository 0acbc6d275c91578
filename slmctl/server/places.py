"""Places for work that the keys who wait for one get in turns."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

from slmctl.inference.turns import Turns


class Places:
    """Some places, in the event loop that first takes one.

    Args:
        count: Their number.
        one_each: A key has one at most while another key waits, or had one lately; a key alone may
            have all.
    """

    def __init__(self, count: int, *, one_each: bool = False) -> None:
        self._waiting = Turns[tuple[str, asyncio.Future[None]]]()
        self._free, self._one_each = count, one_each
        self._held = Counter[str]()  # places by key

    @contextlib.asynccontextmanager
    async def hold(self, client: str) -> AsyncIterator[None]:
        """Hold a place of a key for the length of a block."""
        await self.take(client)
        try:
            yield
        finally:
            self.give_back(client)

    async def take(self, client: str) -> None:
        """Wait for a place of a key; `give_back` ends that."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.put(client, (client, turn))
        self._give()
        try:
            await turn
        except asyncio.CancelledError:
            self._waiting.remove(lambda entry: entry[1] is turn)
            if not turn.cancelled():  # it came at the same moment
                self.give_back(client)
            raise

    def give_back(self, client: str) -> None:
        self._free += 1
        self._held[client] -= 1
        self._give()

    def _give(self) -> None:
        while self._free and self._waiting.next(self._may) is not None:
            client, turn = self._waiting.take(self._may)
            if not turn.done():  # else it was cancelled a moment ago
                turn.set_result(None)
                self._free -= 1
                self._held[client] += 1

    def _may(self, client: str) -> bool:
        """True for a key that may have a place, or one more."""
        if not (self._one_each and self._held[client]):
            return True
        others = self._waiting.next(lambda other: other != client)
        return others is None and not self._waiting.is_shared
