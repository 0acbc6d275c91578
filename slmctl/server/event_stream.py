"""A streamed answer as server-sent events, cut off where its client does not read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send


class EventStream(Response):
    """Server-sent events; a client that does not read until the deadline is cut off.

    Args:
        close: Called when the stream has ended, also on an error.
    """

    def __init__(
        self,
        parts: AsyncGenerator[bytes, None],
        deadline: float,
        headers: Mapping[str, str],
        close: Callable[[], None],
    ) -> None:
        super().__init__(
            None, media_type="text/event-stream", headers={**headers, "cache-control": "no-store"}
        )
        del self.headers["content-length"]
        self._parts = parts
        self._deadline = deadline
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with (
                asyncio.timeout_at(self._deadline),
                contextlib.aclosing(self._parts) as parts,
            ):
                await send(
                    {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                )
                async for part in parts:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            return  # without an end of the body, so the connection is closed
        finally:
            self._close()
