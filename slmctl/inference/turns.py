"""A queue that clients share: of each client the oldest entry first, and
clients in turns, however many each has.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

LATELY = 32  # entries that were taken last, among which several clients make a queue shared

T = TypeVar("T")


class Turns(Generic[T]):
    """Entries that wait, by client."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[T]] = {}
        self._served = dict[str, int]()  # serial number of the last entry that was taken, by client
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[T]:
        return itertools.chain.from_iterable(self._waiting.values())

    @property
    def is_shared(self) -> bool:
        """True where several clients had an entry taken lately."""
        newest = max(self._served.values(), default=0)
        return sum(number > newest - LATELY for number in self._served.values()) > 1

    def put(self, client: str, entry: T) -> None:
        self._waiting.setdefault(client, deque()).append(entry)

    def next(self, may: Callable[[str], bool] = lambda client: True) -> T | None:
        """The entry whose turn it is: of the client that was served
        longest ago, among those that may.
        """
        client = self._whose(may)
        return None if client is None else self._waiting[client][0]

    def take(self, may: Callable[[str], bool] = lambda client: True) -> T:
        """Remove the entry whose turn it is; there must be one."""
        client = self._whose(may)
        assert client is not None
        self._served[client] = next(self._numbers)
        entry = self._waiting[client].popleft()
        if not self._waiting[client]:
            del self._waiting[client]
        return entry

    def remove(self, is_gone: Callable[[T], bool]) -> None:
        """Remove every entry for which this is true."""
        kept = {
            client: deque(each for each in row if not is_gone(each))
            for client, row in self._waiting.items()
        }
        self._waiting = {client: row for client, row in kept.items() if row}

    def _whose(self, may: Callable[[str], bool]) -> str | None:
        return min(
            filter(may, self._waiting), key=lambda client: self._served.get(client, 0), default=None
        )
