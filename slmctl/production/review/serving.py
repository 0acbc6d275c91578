"""The life of the review page: a socket on the loopback, and an end by Ctrl-C or SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator

import uvicorn

from slmctl.errors import UsageError
from slmctl.production.review.page import ReviewDesk

HOST = "127.0.0.1"
END_S = 2  # that a running request has when the page ends


def listen(port: int) -> socket.socket:
    """A socket on the loopback.

    Args:
        port: 0 takes a free one.

    Raises:
        UsageError: The port is taken.
    """
    # named as TCP: asyncio sends without delay only then
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((HOST, port))
        sock.listen()  # a browser may connect from now on
    except OSError as error:
        sock.close()
        raise UsageError(
            f"port {port} on {HOST} cannot be bound: {error.strerror}", hint="--port 0 takes a free one"
        ) from None
    return sock


def address(desk: ReviewDesk, sock: socket.socket) -> str:
    """The page's address with its token, which no request repeats: it stands behind the `#`."""
    return f"http://{HOST}:{sock.getsockname()[1]}/#{desk.token}"


def run(desk: ReviewDesk, sock: socket.socket) -> None:
    """Serve the page until SIGINT or SIGTERM; running requests are answered."""
    settings = uvicorn.Config(
        desk.app(), log_config=None, lifespan="off", access_log=False, server_header=False, ws="none", loop="asyncio",
        timeout_graceful_shutdown=END_S,
    )  # fmt: skip
    asyncio.run(_PageServer(settings).run_until_stopped(sock))


class _PageServer(uvicorn.Server):
    """uvicorn ends a stopped process by the signal itself; ending a review is no failure, so this one returns."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def run_until_stopped(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        await self.serve(sockets=[sock])

    def _stop(self) -> None:
        self.should_exit = True
