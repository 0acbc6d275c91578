"""One request on its way: the events of its choices, and whatever else may end it."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from slmctl.inference.events import Event
from slmctl.server.backends import Backend, Cancel
from slmctl.server.openai_replies import ReplyChoice
from slmctl.server.openai_requests import CheckedRequest

T = TypeVar("T")
Receive = Callable[[], Awaitable[Any]]
# Ends of a request from outside: the status where no answer has begun yet, and the message.
ENDINGS = {
    "deadline_exceeded": (504, "no whole answer within {seconds:g} s"),
    "server_stopping": (503, "the server is being stopped"),
    "client_gone": (499, "the client has gone"),
}


class RequestFailedError(Exception):
    """An accepted request will get no whole answer: why, in a word and in a sentence, and the status that says so."""

    def __init__(self, message: str, code: str, status: int, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.message, self.code, self.status = message, code, status
        self.retry_after_s = max(1, math.ceil(retry_after_s))  # of a 503

    @property
    def kind(self) -> str:
        """OpenAI's word for it."""
        return "server_error" if self.status >= 500 else "invalid_request_error"


class Exchange:
    """Runs every choice of a request; `close` frees whatever it still holds.

    Everything that happens comes through one queue, so that a reader sees it in order and waits in one place.
    """

    def __init__(
        self, checked: CheckedRequest, backend: Backend, limit_s: float, *, ends_at: float | None = None
    ) -> None:
        self.checked, self.limit_s = checked, limit_s
        self.choices = [ReplyChoice() for _ in checked.requests]
        self.backend, self._cancels = backend, list[Cancel]()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self.deadline = self._loop.time() + limit_s if ends_at is None else ends_at
        self._timer = self._loop.call_at(self.deadline, self.end, "deadline_exceeded")
        self._ended: asyncio.Future[RequestFailedError] = self._loop.create_future()
        self._watch: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Have every choice answered."""
        for index in range(len(self.checked.requests)):
            self._cancels.append(self.backend.begin(self.checked, index, self._putter(index)))

    def watch(self, receive: Receive) -> None:
        """End when the client hangs up."""

        async def wait() -> None:
            await _hung_up(receive)
            self.end("client_gone")

        self._watch = asyncio.create_task(wait())

    def end(self, code: str) -> None:
        """End from outside, for one of the ENDINGS."""
        if not self._ended.done():
            status, words = ENDINGS[code]
            self._ended.set_result(RequestFailedError(words.format(seconds=self.limit_s), code, status))
            self._events.put_nowait((-1, {}))

    def close(self) -> None:
        """Free what is still held, here and in the backend."""
        self._timer.cancel()
        if self._watch is not None:
            self._watch.cancel()
        for cancel in self._cancels:
            cancel()

    async def next(self) -> tuple[int, Event]:
        """The next event, with its choice.

        Raises:
            FailedError: A choice failed, or the whole was ended.
        """
        index, event = await self._events.get()
        if self._ended.done():
            raise self._ended.result()
        if "error" in event:
            raise _failure(event)
        self.choices[index].add(event)
        return index, event

    @property
    def running(self) -> bool:
        """True until every choice has ended."""
        return not all(choice.last for choice in self.choices)

    async def whole(self) -> list[Event]:
        """Run every choice to its end; the events that were left."""
        events = list[Event]()
        while self.running:
            events.append((await self.next())[1])
        return events

    async def beside(self, work: Coroutine[Any, Any, T]) -> T:
        """Do work that `end` ends too.

        Raises:
            FailedError: It was ended.
        """
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait((task, self._ended), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise self._ended.result()
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    def _putter(self, index: int) -> Callable[[Event], None]:
        def put(event: Event) -> None:
            self._events.put_nowait((index, event))

        return put


def _failure(event: Event) -> RequestFailedError:
    if event.get("refused"):
        return RequestFailedError(event["error"], "refused", 400)
    if event.get("died"):
        return RequestFailedError("the engine died while it answered; it is being started again", "engine_died", 503)
    return RequestFailedError(event["error"], "engine_failed", 502)


@contextlib.asynccontextmanager
async def while_wanted(receive: Receive, ends_at: float) -> AsyncIterator[None]:
    """End what waits at a time of the loop, or when the client hangs up.

    Raises:
        TimeoutError: The time has come.
        RequestFailedError: The client has gone.
    """
    gone = asyncio.create_task(_hung_up(receive))
    try:
        async with asyncio.timeout_at(ends_at) as limit:
            gone.add_done_callback(lambda task: None if task.cancelled() else _expire(limit))
            try:
                yield
            finally:
                gone.cancel()
    except TimeoutError:
        if gone.done() and not gone.cancelled():
            status, words = ENDINGS["client_gone"]
            raise RequestFailedError(words, "client_gone", status) from None
        raise


async def _hung_up(receive: Receive) -> None:
    """Wait until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _expire(limit: asyncio.Timeout) -> None:
    with contextlib.suppress(RuntimeError):  # what waited has come meanwhile
        limit.reschedule(asyncio.get_running_loop().time())
