"""The life of an HTTP server in this process: its socket, and an end by SIGINT or SIGTERM that is no failure."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator

import uvicorn

from slmctl.errors import UsageError

BACKLOG = 2048  # connections that the system keeps until they are accepted


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket to which clients may connect from now on, and which no other server can take.

    Args:
        host: An IP address, or `localhost`.
        port: 0 takes a free one.

    Raises:
        UsageError: The port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # named as TCP: asyncio sends without delay only then, and else every answer waits 40 ms for the client's ACK
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise UsageError(
            f"port {port} on {host} cannot be bound: {error.strerror}", hint="--port 0 takes a free one"
        ) from None
    return sock


class SignalledServer(uvicorn.Server):
    """A server that returns at SIGINT or SIGTERM; uvicorn itself would end its process by the signal."""

    should_exit: bool

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def run_until_stopped(self, sock: socket.socket) -> None:
        """Serve until a signal comes; running requests are answered."""
        self.handle_signals()
        await self.serve(sockets=[sock])

    def handle_signals(self) -> None:
        """Have a signal call `stop` from now on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.stop)

    def stop(self) -> None:
        """End the server as a signal does."""
        self.should_exit = True
