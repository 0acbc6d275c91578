"""Limits on the requests of one client and of all: over a limit a client is refused at once and not kept waiting."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from slmctl.server.api_keys import Key

ANYBODY = Key("", "", "")  # where no key is asked for, all clients are one


class BusyError(Exception):
    """A limit is reached: which one, and in how many seconds it is worth asking again."""

    def __init__(self, message: str, reason: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.message, self.reason, self.retry_after_s = message, reason, max(1, math.ceil(retry_after_s))


@dataclass
class _Client:
    """Usage of one key: requests that it may still make at once, and the time of that count."""

    left: float
    counted: float
    running: int = 0


class HeldPlace:
    """The place of one request among all, until `leave`."""

    def __init__(self, limits: Limits, key: Key) -> None:
        self._limits, self._key, self.count = limits, key, 1
        self._is_left = False

    def widen(self, count: int) -> None:
        """Take places for so many choices in place of one.

        Raises:
            BusyError: There are not so many.
        """
        self._limits.take(count - self.count)
        self.count = count

    def leave(self, seconds: float | None = None) -> None:
        """Give the place back, once; `seconds` is what an answer took that came to its end."""
        if not self._is_left:
            self._is_left = True
            self._limits.leave(self._key, self.count, seconds)


@dataclass
class Limits:
    """Rate and concurrency of each key, and the places of all.

    Attributes:
        sequences: Requests that are answered at the same time.
        queue: Requests that may wait beside them.
        rate: Requests a minute of a key that has no limit of its own; they may come all at once.
        concurrency: Requests at the same time of such a key.
    """

    sequences: int
    queue: int
    rate: float | None = None
    concurrency: int | None = None
    clock: Callable[[], float] = time.monotonic
    running: int = 0
    _seconds: float = 1.0  # that an answer takes, lately
    _clients: dict[str, _Client] = field(default_factory=dict)

    def count(self, key: Key) -> None:
        """Count a request against the rate of its key.

        Raises:
            BusyError: It has made too many.
        """
        rate = key.rate or self.rate
        if rate is None:
            return
        client, now = self._client(key), self.clock()
        most = max(1.0, rate)
        client.left = min(most, client.left + (now - client.counted) * rate / 60)
        client.counted = now
        if client.left < 1:
            wait = (1 - client.left) * 60 / rate
            raise BusyError(f"more than {rate:g} requests a minute", "rate", wait)
        client.left -= 1

    def enter(self, key: Key) -> HeldPlace:
        """Take a place for a request.

        Raises:
            BusyError: The key has too many requests running, or all places are taken.
        """
        client, most = self._client(key), key.concurrency or self.concurrency
        if most is not None and client.running + 1 > most:
            raise BusyError(f"more than {most} requests at the same time", "concurrency", self._wait(1))
        self.take(1)
        client.running += 1
        return HeldPlace(self, key)

    def take(self, count: int) -> None:
        """Take so many more places.

        Raises:
            BusyError: There are not so many.
        """
        if self.running + count > self.sequences + self.queue:
            raise BusyError(f"{self.running} requests are being answered or wait", "queue", self._wait(self.running))
        self.running += count

    def leave(self, key: Key, count: int, seconds: float | None = None) -> None:
        """Give places back; see `HeldPlace.leave`."""
        self._client(key).running -= 1
        self.running -= count
        if seconds is not None:
            self._seconds += 0.1 * (seconds - self._seconds)

    @property
    def waiting(self) -> int:
        """Requests that no sequence is free for."""
        return max(0, self.running - self.sequences)

    def _wait(self, ahead: int) -> float:
        """Seconds until a place should be free."""
        return self._seconds * ahead / (self.sequences + self.queue)

    def _client(self, key: Key) -> _Client:
        client = self._clients.get(key.name)
        if client is None:
            rate = key.rate or self.rate
            client = self._clients[key.name] = _Client(max(1.0, rate or 1.0), self.clock())
        return client
