"""The outermost layer of the server: gives each request its id, checks its
Host on the loopback, logs and counts it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slmctl import sensitive
from slmctl.server.forms import QUESTIONS
from slmctl.server.gateway import Gateway
from slmctl.server.refusals import unanswered
from slmctl.server.request_errors import error_body

LOOPBACK = ("127.0.0.1", "::1", "localhost")
COUNTED = (*QUESTIONS, "/v1/models", "/v1/feedback", "/healthz", "/readyz", "/metrics")
REQUEST_ID = "x-request-id"


@dataclass
class Note:
    """Fields of one request for the log and the metrics."""

    id: str
    begun: float = field(default_factory=time.monotonic)
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.begun, 4)

    @property
    def client(self) -> str:
        """The name of the request's key; empty where none is asked for."""
        return str(self.fields.get("key", ""))


class Observed:
    """ASGI middleware that gives each request its id, checks its Host
    on the loopback, logs and counts it.
    """

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self.app, self.gateway = app, gateway
        loopback = served_on_loopback(gateway.fleet.settings.host) and gateway.fleet.keys is None
        self._hosts = (
            frozenset((*LOOPBACK, gateway.fleet.settings.host)) if loopback else frozenset[str]()
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = {
            name: value for name, value in scope["headers"] if name in (b"x-request-id", b"host")
        }
        note = Note(_id_of(headers.get(b"x-request-id", b"")))
        scope.setdefault("state", {})["note"] = note
        status = 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", note.id.encode())]
            await send(message)

        try:
            if self._hosts and _hostname(headers.get(b"host", b"localhost")) not in self._hosts:
                # DNS rebinding: the name of a web page was made to resolve to this machine
                body = error_body(
                    "this server is asked without a key, and so by the names of the loopback alone",
                    "invalid_request_error",
                    request_id=note.id,
                )
                route = unanswered(scope["path"], 403)
                await JSONResponse(body, status_code=403, headers=route)(scope, receive, observed)
            else:
                await self.app(scope, receive, observed)
        finally:
            self._count(scope, status, note)

    def _count(self, scope: MutableMapping[str, Any], status: int, note: Note) -> None:
        path = scope["path"] if scope["path"] in COUNTED else "other"
        self.gateway.metrics.requests.labels(path, str(status)).inc()
        if scope["path"] in ("/healthz", "/readyz", "/metrics") and status == 200:
            return  # asked every few seconds, and nothing happened
        self.gateway.log.event(
            "request",
            request_id=note.id,
            method=scope["method"],
            path=scope["path"][:200],
            status=status,
            seconds=note.seconds,
            **note.fields,
        )


def _id_of(header: bytes) -> str:
    """The client's own id where it is a sane one without personal data,
    which the log would keep; else a new one.
    """
    text = header.decode("latin-1")
    sane = 0 < len(text) <= 64 and text.isascii() and all(c.isalnum() or c in "._-" for c in text)
    return text if sane and not sensitive.find(text) else secrets.token_hex(12)


def _hostname(host: bytes) -> str:
    text = host.decode("latin-1").strip().lower()
    return text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]


def served_on_loopback(host: str) -> bool:
    """True where only this machine can reach the server."""
    return host in LOOPBACK or host.startswith("127.")
