"""The life of the server's process: its socket, its connections, its signals."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import logging
import math
import os
import resource
import signal
import socket
import time
from pathlib import Path

import uvicorn

from slmctl.errors import UsageError
from slmctl.network.http_server import BACKLOG, SignalledServer, bound_socket
from slmctl.server.app import application
from slmctl.server.connection import BoundedConnection, Room
from slmctl.server.fleet import Fleet
from slmctl.server.gateway import Gateway
from slmctl.server.log import Log, ToLog
from slmctl.server.observed import served_on_loopback
from slmctl.server.rate_limits import ANYBODY

IDLE_S = 30  # that a connection stays open between requests
# in one turn of the loop; asyncio would take as many as the backlog, whatever files are left
ACCEPTED_AT_ONCE = 16
SPARE_FILES = 64  # descriptors that are not for clients, besides the ones open at the start
FULL_SAID_S = 60  # between two lines of the log about connections that were ended for want of files


def listen(host: str, port: int, *, keys: bool) -> socket.socket:
    """Bind before the model loads, so that a port in use is said at once.

    Args:
        host: An IP address, or `localhost`.
        port: 0 takes a free one.
        keys: True where clients must show a key; without one only the loopback is served.

    Raises:
        UsageError: Others could ask without a key, the address is none, or the port is taken.
    """
    if host != "localhost":
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise UsageError(
                f"refused to serve on {host}: it is no IP address", hint="--host 127.0.0.1"
            ) from None
    if not served_on_loopback(host) and not keys:
        raise UsageError(
            f"refused to serve on {host}: without a key, anyone could ask there",
            hint="slmctl keys add NAME",
        )
    return bound_socket(host, port)


def run(fleet: Fleet, sock: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT; running answers get `grace_s` to finish, and then a word.

    At SIGHUP keys and tags are read again.

    Args:
        fleet: The models, those that are pinned loaded.
        sock: See `listen`.
    """
    log = Log()
    logging.getLogger().addHandler(ToLog(log))
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    app = application(fleet, log)
    settings = uvicorn.Config(
        app,
        log_config=None,
        lifespan="off",
        access_log=False,
        server_header=False,
        http=functools.partial(BoundedConnection, room=_room(fleet, app.state.gateway, log)),
        ws="none",
        loop="asyncio",  # another one's sockets would not pass the guard of `offline`
        timeout_graceful_shutdown=int(fleet.settings.grace_s) + 3,
        timeout_keep_alive=IDLE_S,
        backlog=ACCEPTED_AT_ONCE,
    )
    try:
        asyncio.run(_Server(settings, app.state.gateway, log).run_until_stopped(sock))
    finally:
        log.close()


def _room(fleet: Fleet, gateway: Gateway, log: Log) -> Room:
    """Room for as many clients as this process may have files, less
    those it has and will open itself.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    settings = fleet.settings
    # each may ask an endpoint
    running = len(fleet.releases) * settings.sequences + settings.max_waiting_requests
    open_now = len(list(Path("/proc/self/fd").iterdir()))
    most = max(ACCEPTED_AT_ONCE, limit - open_now - running - SPARE_FILES)
    logged_at = -math.inf

    def on_full() -> None:
        nonlocal logged_at
        gateway.metrics.refused.labels("connections").inc()
        if time.monotonic() - logged_at > FULL_SAID_S:
            logged_at = time.monotonic()
            log.event(
                "connections_full", most=most, hint="raise the limit of open files: ulimit -n"
            )

    return Room(most, settings.receive_timeout_s, on_full)


class _Server(SignalledServer):
    def __init__(self, config: uvicorn.Config, gateway: Gateway, log: Log) -> None:
        super().__init__(config)
        self._gateway, self._log = gateway, log
        self._moving: asyncio.Task[None] | None = None
        self._asked_again = False  # to read the tags

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for sock in sockets or ():
            sock.listen(BACKLOG)  # asyncio has set it to what it accepts at once

    async def run_until_stopped(self, sock: socket.socket) -> None:
        fleet = self._gateway.fleet
        self.handle_signals()
        if fleet.keys is not None or fleet.follows:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
        fleet.start(self._log, self._gateway.metrics)
        host, port = sock.getsockname()[:2]
        models = {name: model.task.kind for name, model in fleet.models(ANYBODY).items()}
        loaded = fleet.running.values()
        engine = next((running.backend.build for running in loaded), "")
        self._log.event(
            "serving", host=host, port=port, pid=os.getpid(), models=models, engine=engine
        )
        for note in (note for running in loaded for note in running.notes):
            self._log.event("warning", message=note)
        await self.serve(sockets=[sock])
        if self._moving is not None:
            self._moving.cancel()
        await fleet.close()
        self._log.event("stopped")

    def stop(self) -> None:
        """First signal: no more requests, and `grace_s` for the
        running ones. Second signal: end them now.
        """
        if self.should_exit:
            self._gateway.end_all()
            return
        grace = self._gateway.settings.grace_s
        self._log.event("stopping", running=len(self._gateway.running), grace_s=grace)
        self._gateway.stop()
        asyncio.get_running_loop().call_later(grace, self._gateway.end_all)
        self.should_exit = True

    def _reload(self) -> None:
        if (keys := self._gateway.fleet.keys) is not None:
            keys.reload()
            self._log.event("keys_read", fault=keys.fault or None)
        if self._gateway.fleet.follows:
            self._asked_again = True
            if self._moving is None or self._moving.done():
                self._moving = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        """Read the tags until nobody has asked meanwhile: a tag may be
        moved back while a release is loaded.
        """
        while self._asked_again:
            self._asked_again = False
            await self._gateway.fleet.follow()
