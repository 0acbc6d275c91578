"""The life of the review page: its address on the loopback, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import asyncio
import socket

import uvicorn

from slmctl.network.http_server import SignalledServer
from slmctl.production.review.page import ReviewDesk

HOST = "127.0.0.1"
END_S = 2  # that a running request has when the page ends


def address(desk: ReviewDesk, sock: socket.socket) -> str:
    """The page's address with its token, which no request repeats: it stands behind the `#`."""
    return f"http://{HOST}:{sock.getsockname()[1]}/#{desk.token}"


def run(desk: ReviewDesk, sock: socket.socket) -> None:
    """Serve the page until SIGINT or SIGTERM; running requests are answered."""
    settings = uvicorn.Config(
        desk.app(), log_config=None, lifespan="off", access_log=False, server_header=False, ws="none", loop="asyncio",
        timeout_graceful_shutdown=END_S,
    )  # fmt: skip
    asyncio.run(SignalledServer(settings).run_until_stopped(sock))
