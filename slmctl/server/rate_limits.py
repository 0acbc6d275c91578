"""Limits on the requests of one client and of all: over a limit a client is
refused at once and not kept waiting.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from slmctl.server.api_keys import Key
from slmctl.server.request_errors import RequestError

LARGE = 16  # bodies that may hold documents, which are received and read at the same time
ANYBODY = Key("", "", "")  # where no key is asked for, all clients are one


@dataclass
class _Client:
    """Usage of one key: requests that it may still make at once, the
    time of that count, and those that run.
    """

    left: float
    counted: float
    running: int = 0


class Limits:
    """The rate and concurrency of each key, and the places of each model.

    Args:
        sequences: Requests that one model answers at the same time.
        queue: Requests that may wait for any of them, in addition.
    """

    def __init__(self, sequences: int, queue: int) -> None:
        self.sequences, self.queue = sequences, queue
        self._running, self.large = Counter[str](), 0  # requests by model, and large bodies
        self._seconds = 1.0  # that an answer takes, lately
        self._clients: dict[str, _Client] = {}

    @property
    def running(self) -> int:
        """Requests that are answered or wait."""
        return self._running.total()

    @property
    def waiting(self) -> int:
        """Requests that no sequence of their model is free for."""
        return sum(max(0, count - self.sequences) for count in self._running.values())

    def count(self, key: Key) -> None:
        """Count a request against the rate of its key; as many as the rate may come all at once.

        Raises:
            RequestError: It has made too many.
        """
        if key.rate is None:
            return
        client, now = self._client(key), time.monotonic()
        client.left = min(max(1.0, key.rate), client.left + (now - client.counted) * key.rate / 60)
        client.counted = now
        if client.left < 1:
            wait = (1 - client.left) * 60 / key.rate
            raise RequestError(
                f"more than {key.rate:g} requests a minute",
                status=429,
                code="rate",
                retry_after_s=wait,
            )
        client.left -= 1

    @contextmanager
    def place(self, key: Key) -> Iterator[HeldPlace]:
        """A request of a key, which takes places of a model, for the length of a block.

        Raises:
            RequestError: The key has too many requests running.
        """
        client = self._client(key)
        if key.concurrency is not None and client.running >= key.concurrency:
            message = f"more than {key.concurrency} requests at the same time"
            raise RequestError(message, status=429, code="concurrency", retry_after_s=self._wait(1))
        place = HeldPlace(self)
        client.running += 1
        try:
            yield place
        finally:
            client.running -= 1
            place.drop_body()
            self.take(place.model, -place.count)
            if place.seconds is not None:
                self._seconds += 0.1 * (place.seconds - self._seconds)

    def take(self, model: str, count: int) -> None:
        """Take so many more places of a model, or give some back.

        Raises:
            RequestError: Fewer are free.
        """
        self._running[model] += count
        if self.waiting > self.queue:
            self._running[model] -= count
            message = f"{self.running} requests are being answered or wait"
            raise RequestError(
                message, status=429, code="queue", retry_after_s=self._wait(self.running)
            )

    def _wait(self, ahead: int) -> float:
        return self._seconds * ahead / (self.sequences + self.queue)

    def _client(self, key: Key) -> _Client:
        return self._clients.setdefault(
            key.name, _Client(max(1.0, key.rate or 1.0), time.monotonic())
        )


@dataclass
class HeldPlace:
    """The places of one request.

    Attributes:
        seconds: Duration of its answer; None before its end, and if it failed.
        is_large: Its body is in memory, and large.
    """

    limits: Limits
    model: str = ""
    count: int = 0
    seconds: float | None = None
    is_large: bool = False

    def take(self, model: str, count: int) -> None:
        """Hold a place of a model for each of so many choices, and no other place.

        Raises:
            RequestError: Fewer are free.
        """
        self.limits.take(self.model, -self.count)
        self.model, self.count = model, 0
        self.limits.take(model, count)
        self.count = count

    def hold_body(self) -> None:
        """Hold one of the places for large bodies.

        Raises:
            RequestError: None is free.
        """
        if not self.is_large and self.limits.large >= LARGE:
            message = f"{LARGE} large bodies are being read"
            raise RequestError(message, status=429, code="queue", retry_after_s=1)
        self.limits.large += not self.is_large
        self.is_large = True

    def drop_body(self) -> None:
        """Give that place back."""
        self.limits.large -= self.is_large
        self.is_large = False
