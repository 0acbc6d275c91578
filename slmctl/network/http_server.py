"""An HTTP server in this process: its socket, and a graceful stop by SIGINT or SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator

import uvicorn

from slmctl.errors import UsageError

BACKLOG = 2048  # connections that the kernel queues until they are accepted


def bound_socket(host: str, port: int) -> socket.socket:
    """A listening socket, to which clients can connect from now on.

    Args:
        host: An IP address, or `localhost`.
        port: The port; 0 takes a free one.

    Raises:
        UsageError: The port cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # with IPPROTO_TCP, else asyncio does not set TCP_NODELAY, and every answer waits 40 ms for the
    # client's ACK
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise UsageError(
            f"port {port} on {host} cannot be bound: {error.strerror}",
            hint="--port 0 takes a free one",
        ) from None
    return sock


class SignalledServer(uvicorn.Server):
    """A server that returns after SIGINT or SIGTERM; uvicorn itself would
    re-raise the signal and end the process.
    """

    should_exit: bool

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def run_until_stopped(self, sock: socket.socket) -> None:
        """Serve until a signal; running requests are still answered."""
        self.handle_signals()
        await self.serve(sockets=[sock])

    def handle_signals(self) -> None:
        """Make SIGTERM and SIGINT call `stop`."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.stop)

    def stop(self) -> None:
        """Stop the server like a signal."""
        self.should_exit = True
