"""The life of the server's process: its socket, its connections, its signals."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import os
import resource
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from slmctl.errors import SlmctlError, UsageError
from slmctl.server import openai_replies
from slmctl.server.app import REQUEST_ID, Gateway, Served, application, served_on_loopback
from slmctl.server.log import Log, ToLog

Follow = Callable[[], Served | None]
MAX_HEAD = 64 << 10  # bytes of a request's line and headers
IDLE_S = 30  # that a connection stays open between requests
BACKLOG = 2048
SPARE_FILES = 64  # descriptors that are not for clients


def listen(host: str, port: int, *, keys: bool) -> socket.socket:
    """Bind before the model loads, so that a port in use is said at once.

    Args:
        host: An IP address, or `localhost`.
        port: 0 takes a free one.
        keys: Whether clients must show a key; without one only the loopback is served.

    Raises:
        UsageError: Others could ask without a key, the address is none, or the port is taken.
    """
    if host != "localhost":
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise UsageError(f"refused to serve on {host}: it is no IP address", hint="--host 127.0.0.1") from None
    if not served_on_loopback(host) and not keys:
        raise UsageError(
            f"refused to serve on {host}: without a key, anyone could ask there", hint="slmctl keys add NAME"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # named as TCP: asyncio sends without delay only then, and else every answer waits 40 ms for the client's ACK
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(BACKLOG)  # from now on a client may connect, and no other server can take the port
    except OSError as error:
        sock.close()
        raise UsageError(
            f"port {port} on {host} cannot be bound: {error.strerror}", hint="--port 0 takes a free one"
        ) from None
    return sock


def run(served: Served, sock: socket.socket, follow: Follow | None = None) -> None:
    """Serve until SIGTERM or SIGINT; running answers get `grace_s` to finish, and then a word.

    Args:
        served: Who answers.
        sock: See `listen`.
        follow: Asked at SIGHUP, in a thread: who is to answer from now on, or None for whoever does.
    """
    log = Log()
    logging.getLogger().addHandler(ToLog(log))
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    app = application(served, log)
    settings = uvicorn.Config(
        app, log_config=None, lifespan="off", access_log=False, server_header=False, http=_Connection,
        loop="asyncio",  # another one's sockets would not pass the guard of `offline`
        timeout_graceful_shutdown=int(served.settings.grace_s) + 3, timeout_keep_alive=IDLE_S, backlog=BACKLOG,
    )  # fmt: skip
    _Connection.receive_timeout_s = served.settings.receive_timeout_s
    _Connection.most = max(SPARE_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_FILES)
    try:
        asyncio.run(_Server(settings, app.state.gateway, log, follow).run_until_told(sock))
    finally:
        log.close()


class _Server(uvicorn.Server):
    """uvicorn ends a stopped process by the signal itself; stopping a server is no failure, so this one returns."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway, log: Log, follow: Follow | None) -> None:
        super().__init__(config)
        self._gateway, self._log, self._follow = gateway, log, follow
        self._moving: asyncio.Task[None] | None = None
        self.should_exit: bool = False

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def run_until_told(self, sock: socket.socket) -> None:
        loop, served = asyncio.get_running_loop(), self._gateway.served
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        if served.keys is not None or self._follow is not None:
            loop.add_signal_handler(signal.SIGHUP, self._reload)
        served.backend.start(self._log, self._gateway.metrics)
        host, port = sock.getsockname()[:2]
        models = {name: model.task.kind for name, model in served.models.items()}
        self._log.event("serving", host=host, port=port, pid=os.getpid(), models=models, engine=served.backend.build)
        for note in served.notes:
            self._log.event("warning", message=note)
        await self.serve(sockets=[sock])
        if self._moving is not None:
            self._moving.cancel()
        await self._gateway.served.backend.close()
        if self._gateway.served.router is not None:
            await self._gateway.served.router.close()
        self._log.event("stopped")

    def _stop(self) -> None:
        """Told once: no more requests, and `grace_s` for the running ones. Told again: end them now."""
        if self.should_exit:
            self._gateway.end_all()
            return
        grace = self._gateway.settings.grace_s
        self._log.event("stopping", running=len(self._gateway.running), grace_s=grace)
        self._gateway.stop()
        asyncio.get_running_loop().call_later(grace, self._gateway.end_all)
        self.should_exit = True

    def _reload(self) -> None:
        if (keys := self._gateway.served.keys) is not None:
            keys.reload()
            self._log.event("keys_read", fault=keys.fault or None)
        if self._follow is not None and (self._moving is None or self._moving.done()):
            self._moving = asyncio.create_task(self._move(self._follow))

    async def _move(self, follow: Follow) -> None:
        """Have what is asked from now on be answered by who is to answer; running answers end where they began."""
        try:
            found = await asyncio.to_thread(follow)
        except SlmctlError as error:
            self._log.event("not_followed", error=error.message)
            return
        if found is None:
            self._log.event("followed", models=None)
            return
        old = self._gateway.served
        found.backend.start(self._log, self._gateway.metrics)
        self._gateway.served = found
        self._log.event("followed", models=list(found.models))
        while any(exchange.backend is old.backend for exchange in self._gateway.running):
            await asyncio.sleep(0.05)
        await old.backend.close()
        await asyncio.to_thread(old.close)


class _Connection(HttpToolsProtocol):
    """uvicorn's connection with an end to the time and the room that the head of a request may take.

    It has none of its own, so that clients which send a byte a minute would hold a descriptor each for ever.
    """

    receive_timeout_s = 10.0
    most = 1000  # connections at the same time

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._heading, self._head = False, 0  # whether a head is awaited, and its bytes so far
        self._within = False  # a request that has begun and not ended
        self._timer: asyncio.TimerHandle | None = None  # who ends a head, or the rest of a body that nobody reads

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
        else:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._heading:
            self._head += len(data)
            if self._head > MAX_HEAD:
                self._refuse(431, f"the head of the request is larger than {MAX_HEAD} bytes")
        elif self._timer is self.timeout_keep_alive_task is None and not self._within and self._idle:
            self._wait_for_head()  # bytes that begin no request do not keep the connection either

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def on_message_begin(self) -> None:
        self._within = True
        if not self._heading and self._idle:
            self._wait_for_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._within = False
        self._stop_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._within and self._timer is None:  # refused before its body had come
            self._timer = self.loop.call_later(self.receive_timeout_s, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def _wait_for_head(self) -> None:
        self._stop_timer()
        self._heading, self._head = True, 0
        self._timer = self.loop.call_later(self.receive_timeout_s, self._late)

    def _stop_timer(self) -> None:
        self._heading = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._refuse(408, f"the head of the request did not arrive within {self.receive_timeout_s:g} s")

    def _refuse(self, status: int, message: str) -> None:
        self._stop_timer()
        if self.transport.is_closing():
            return
        request_id = secrets.token_hex(12)
        body = json.dumps(openai_replies.error(message, "invalid_request_error", request_id=request_id)).encode()
        head = (
            f"HTTP/1.1 {status} Refused\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"{REQUEST_ID}: {request_id}\r\n"
        )
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()
