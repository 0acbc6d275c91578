"""One running request: the events of its choices, its deadline, and its client's connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from slmctl.inference.events import Event
from slmctl.server.backends import Backend, Cancel
from slmctl.server.forms.request import CheckedRequest, ReplyChoice
from slmctl.server.request_errors import RequestError

T = TypeVar("T")
# Ends of a request from outside: the status where no answer has begun yet, and the message.
ENDINGS = {
    "deadline_exceeded": (504, "no whole answer within {seconds:g} s"),
    "server_stopping": (503, "the server is being stopped"),
    "client_gone": (499, "the client has gone"),
}


class Exchange:
    """One running request, until it has its answer, its deadline passes, or its client hangs up.

    The events of all its choices come through one queue, so that a reader sees them in order and
    waits in one place.

    Args:
        receive: ASGI's `receive` after the body was read; it reports when the client disconnects.
        limit_s: Seconds for everything.
    """

    def __init__(self, receive: Callable[[], Awaitable[Any]], limit_s: float) -> None:
        self.choices: list[ReplyChoice] = []
        self._limit_s, self._cancels = limit_s, list[Cancel]()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self.deadline = loop.time() + limit_s
        self._timer = loop.call_at(self.deadline, self.end, "deadline_exceeded")
        self._ended: asyncio.Future[RequestError] = loop.create_future()
        self._watch = asyncio.create_task(self._hung_up(receive))

    async def _hung_up(self, receive: Callable[[], Awaitable[Any]]) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.end("client_gone")

    def end(self, code: str) -> None:
        """End from outside, for one of the ENDINGS."""
        if not self._ended.done():
            status, words = ENDINGS[code]
            self._ended.set_result(
                RequestError(words.format(seconds=self._limit_s), status=status, code=code)
            )
            self._events.put_nowait((-1, {}))

    def close(self) -> None:
        """Stop the timer and the watch of the client, and cancel the choices that still run."""
        self._timer.cancel()
        self._watch.cancel()
        for cancel in self._cancels:
            cancel()

    async def beside(self, work: Coroutine[Any, Any, T]) -> T:
        """Await work, which `end` cancels.

        Raises:
            RequestError: `end` was called first.
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

    def begin(self, checked: CheckedRequest, backend: Backend) -> None:
        self.choices = [ReplyChoice() for _ in checked.requests]
        for index in range(len(self.choices)):
            self._cancels.append(backend.begin(checked, index, self._putter(index)))

    def _putter(self, index: int) -> Callable[[Event], None]:
        return lambda event: self._events.put_nowait((index, event))

    async def next(self) -> tuple[int, Event]:
        """The next event, with its choice.

        Raises:
            RequestError: A choice failed, or the whole was ended.
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

    async def whole(self) -> list[tuple[int, Event]]:
        """Run every choice to its end; the events that were left."""
        events = []
        while self.running:
            events.append(await self.next())
        return events


def _failure(event: Event) -> RequestError:
    if event.get("refused"):
        return RequestError(event["error"], code="refused")
    if event.get("died"):
        message = "the engine died while it answered; it is being started again"
        return RequestError(message, status=503, code="engine_died")
    return RequestError(event["error"], status=502, code="engine_failed")
