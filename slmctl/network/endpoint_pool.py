"""Many requests -> answers of one or several endpoints, for synchronous code.

A failed request is retried while that may help, at another endpoint if there is one. An endpoint
that refuses the key or the model gets no more requests. After 429 or 503 an endpoint gets half as
many requests at once, none before its `Retry-After`, and then gradually more. The requests run in
an event loop in a separate thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Literal, Protocol
from urllib.parse import urlsplit

from slmctl import console
from slmctl.errors import NetworkError, UsageError
from slmctl.network import guard
from slmctl.network.decisions import CHAT, Api
from slmctl.network.endpoint_replies import EndpointError, Reply
from slmctl.network.openai_client import EndpointClient, EndpointRequest

ATTEMPTS = 6  # for one request, including the first
FIRST_WAIT_S = 0.5  # after the first failure; doubled after each further one
LONGEST_WAIT_S = 30.0  # of one request, also if the endpoint asks for more
# statuses to retry; 0: no reply, 200: unreadable reply
AGAIN = (0, 200, 408, 409, 425, 429, 500, 502, 503, 504, 529)
HOPELESS = {
    401: "the key is not accepted",
    403: "the key may not do this",
    404: "there is no such model or path",
}
GIVE_UP_AFTER = 16  # consecutive requests that failed in every attempt
TOO_MUCH = (429, 503, 529)  # statuses of an overloaded endpoint
LONGEST_PAUSE_S = 600.0  # largest `Retry-After` that is respected for all requests
NOT_SENT = -1  # the status of a request that its watch stopped


@dataclass(frozen=True)
class Refusal:
    """The reason why one request has no answer; other requests continue."""

    message: str
    status: int = 0


class RequestWatch(Protocol):
    """Callbacks before and after each attempt, called in threads of the
    pool; the place is free only afterwards.
    """

    def may_send(self, index: int) -> Literal["send", "wait", "stop"]:
        """`send` the next attempt of a request, `wait` and call again
        in a moment, or `stop` the request.
        """

    def answered(self, index: int, reply: Reply) -> None: ...

    def failed(self, index: int, error: EndpointError) -> None: ...


class EndpointPool:
    """Endpoints with the same model; the next request goes to the one with the fewest requests in
    flight.

    Args:
        urls: Addresses of the endpoints; see `EndpointClient`.
        model: Name of the model at the endpoints.
        key_env: Environment variable with the API key; None sends no key.
        concurrency: Requests in flight at each endpoint.
        timeout_s: Seconds for one attempt, from the connection to the last byte.
        api: API of the endpoints.

    Raises:
        UsageError: There is no address, an address cannot be used, or the variable is not set.
    """

    def __init__(
        self,
        urls: Sequence[str],
        model: str,
        key_env: str | None = None,
        concurrency: int = 8,
        timeout_s: float = 60.0,
        *,
        api: Api = CHAT,
    ) -> None:
        if not urls:
            raise UsageError("no endpoint is named", hint="--engine-url https://host/v1")
        endpoints = [
            EndpointClient(
                url,
                model,
                key_env,
                timeout_s=timeout_s,
                connections=concurrency,
                environment_proxies=True,
                api=api,
            )
            for url in urls
        ]
        self._endpoints = list({endpoint.url: endpoint for endpoint in endpoints}.values())
        self.urls, self.model = [endpoint.url for endpoint in self._endpoints], model
        self._concurrency = concurrency
        self._first_attempts = 0
        self._jitter = random.Random()  # noqa: S311 - spreads retries, hides nothing
        self._failed_in_a_row, self._has_answered = 0, False
        self._announced = False

    @property
    def retries(self) -> int:
        """Number of attempts after the first, over all requests."""
        return sum(endpoint.attempts for endpoint in self._endpoints) - self._first_attempts

    def ask_all(
        self, requests: Iterable[EndpointRequest], *, watch: RequestWatch | None = None
    ) -> Iterator[tuple[int, Reply | Refusal]]:
        """Yield (index of a request, its reply or the reason why it has none), in the order of
        completion.

        Leaving the iteration early cancels the requests in flight. A request that its watch stopped
        is a `Refusal` with the status NOT_SENT.

        Raises:
            NetworkError: No endpoint can be reached, or each refuses the key or the model.
        """
        hosts = {
            host
            for url in self.urls
            for host in (urlsplit(url).hostname or "", *guard.on_the_way(url))
        }
        if not self._announced:
            console.say(f"  contacting {', '.join(sorted(hosts))}")
            self._announced = True
        self._failed_in_a_row, self._has_answered = 0, False
        most = 2 * self._concurrency * len(self._endpoints)
        with (
            guard.network(f"asking {urlsplit(self.urls[0]).hostname}", hosts=hosts),
            _loop_in_thread() as loop,
        ):
            places = _Places(self._endpoints, self._concurrency)
            running: dict[Future[Reply | Refusal], int] = {}
            try:
                for index, request in enumerate(requests):
                    running[
                        asyncio.run_coroutine_threadsafe(
                            self._ask(index, request, places, watch), loop
                        )
                    ] = index
                    if len(running) >= most:
                        yield from self._finished(running)
                while running:
                    yield from self._finished(running)
            finally:
                for future in running:
                    future.cancel()
                asyncio.run_coroutine_threadsafe(self._close(), loop).result()

    def _finished(
        self, running: dict[Future[Reply | Refusal], int]
    ) -> Iterator[tuple[int, Reply | Refusal]]:
        """Yield the answers that are complete; an error that ends all
        requests is raised after the last of them.
        """
        hopeless: BaseException | None = None
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            index, error = running.pop(future), future.exception()
            if error is None:
                error = self._judge(future.result())
                yield index, future.result()
            hopeless = hopeless or error
        if hopeless is not None:
            for future, index in running.items():
                if (
                    not future.cancel()
                    and future.exception() is None
                    and isinstance(future.result(), Reply)
                ):
                    yield index, future.result()
            raise hopeless

    def _judge(self, outcome: Reply | Refusal) -> NetworkError | None:
        """The error after too many failed requests in a row, else None;
        400, a fault of one request, counts less.
        """
        if isinstance(outcome, Reply):
            self._failed_in_a_row, self._has_answered = 0, True
            return None
        if outcome.status == NOT_SENT or (outcome.status == 400 and self._has_answered):
            return None
        self._failed_in_a_row += 1
        if self._failed_in_a_row < GIVE_UP_AFTER * (4 if outcome.status == 400 else 1):
            return None
        return NetworkError(
            f"{urlsplit(self.urls[0]).hostname} has answered none of {self._failed_in_a_row} "
            "requests in a row: "
            f"{outcome.message}"
        )

    async def _ask(
        self, index: int, request: EndpointRequest, places: _Places, watch: RequestWatch | None
    ) -> Reply | Refusal:
        failed_at: EndpointClient | None = None
        failures = 0
        self._first_attempts += 1
        while True:
            async with places.take(failed_at) as endpoint:
                if watch is not None and not await _is_let_out(watch, index):
                    return Refusal("it was not sent", NOT_SENT)
                begun = time.monotonic()
                try:
                    reply = await endpoint.ask(request)
                except EndpointError as caught:
                    error = caught
                else:
                    places.asked_well(endpoint)
                    if watch is not None:
                        await asyncio.to_thread(watch.answered, index, reply)
                    return reply
                if watch is not None:
                    await asyncio.to_thread(watch.failed, index, error)
                if error.status in TOO_MUCH:
                    places.ease(endpoint, error.pause_s, begun=begun)
                # while its place is still taken, so that no other request gets it
                if error.status in HOPELESS:
                    places.drop(endpoint, f"{HOPELESS[error.status]} ({error.message})")
                    continue
            if error.status not in AGAIN:
                return Refusal(error.message, error.status)
            failed_at, failures = endpoint, failures + 1
            if failures == ATTEMPTS:
                return Refusal(f"{error.message} ({ATTEMPTS} attempts)", error.status)
            longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (failures - 1))
            pause_s = max(
                min(error.pause_s, LONGEST_WAIT_S), self._jitter.uniform(longest / 2, longest)
            )
            await asyncio.sleep(pause_s)

    async def _close(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for endpoint in self._endpoints:
            await endpoint.close()


async def _is_let_out(watch: RequestWatch, index: int) -> bool:
    while (verdict := await asyncio.to_thread(watch.may_send, index)) == "wait":
        await asyncio.sleep(0.05)
    return verdict == "send"


class _Places:
    """The places for requests in flight: at most `each` at every endpoint that is in use."""

    def __init__(self, endpoints: Sequence[EndpointClient], each: int) -> None:
        self._each = each
        self._most = dict.fromkeys(endpoints, float(each))  # present number of places
        # time when the number was last halved
        self._eased = dict.fromkeys(endpoints, float("-inf"))
        self._closed_until = dict.fromkeys(endpoints, float("-inf"))
        # requests in flight; in the order of preference
        self._running = dict.fromkeys(endpoints, 0)
        self._failing: set[EndpointClient] = set()  # used only while the others have no free place
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def take(self, failed_at: EndpointClient | None) -> AsyncIterator[EndpointClient]:
        """Yield the endpoint for the next attempt of a request, and hold its
        place; `failed_at` failed the last one.
        """
        async with self._changed:
            if failed_at in self._running:
                self._failing.add(failed_at)
            while (endpoint := self._free(failed_at)) is None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), self._until_opened())
            self._failing.discard(endpoint)
            # pop moves it behind the others
            self._running[endpoint] = self._running.pop(endpoint) + 1
        try:
            yield endpoint
        finally:
            if endpoint in self._running:
                self._running[endpoint] -= 1
            async with self._changed:
                self._changed.notify_all()

    def drop(self, endpoint: EndpointClient, reason: str) -> None:
        """Stop using an endpoint.

        Raises:
            NetworkError: It was the last one.
        """
        if self._running.pop(endpoint, None) is None:
            return
        if not self._running:
            raise NetworkError(f"{endpoint.host}: {reason}")
        console.say(f"  {urlsplit(endpoint.url).netloc} is asked no more: {reason}")

    def ease(self, endpoint: EndpointClient, pause_s: float, *, begun: float) -> None:
        """Halve the places of an endpoint, and send it nothing for `pause_s` seconds.

        Args:
            begun: Time when the refused request was sent; if that is before the last halving, it is
                not halved again.
        """
        now = time.monotonic()
        if begun > self._eased[endpoint]:
            self._most[endpoint], self._eased[endpoint] = max(1.0, self._most[endpoint] / 2), now
        until = now + min(pause_s, LONGEST_PAUSE_S)
        self._closed_until[endpoint] = max(self._closed_until[endpoint], until)

    def asked_well(self, endpoint: EndpointClient) -> None:
        """Give an endpoint one more place after as many answers as it has places, up to `each`."""
        self._most[endpoint] = min(
            float(self._each), self._most[endpoint] + 1 / self._most[endpoint]
        )

    def _until_opened(self) -> float | None:
        """Seconds until the first paused endpoint may be used
        again; None if no endpoint is paused.
        """
        now = time.monotonic()
        return min(
            (until - now for until in self._closed_until.values() if until > now), default=None
        )

    def _free(self, failed_at: EndpointClient | None) -> EndpointClient | None:
        """The endpoint with a free place and the fewest requests;
        `failed_at` only if it is the last one.
        """
        others = [endpoint for endpoint in self._running if endpoint is not failed_at] or list(
            self._running
        )
        now = time.monotonic()
        free = [
            endpoint
            for endpoint in others
            if self._running[endpoint] < int(self._most[endpoint])
            and self._closed_until[endpoint] <= now
        ]
        return min(
            free,
            key=lambda endpoint: (endpoint in self._failing, self._running[endpoint]),
            default=None,
        )


@contextlib.contextmanager
def _loop_in_thread() -> Iterator[asyncio.AbstractEventLoop]:
    """Yield an event loop that runs in a thread until the block ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="endpoints", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
