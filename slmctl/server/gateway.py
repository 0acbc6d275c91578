"""The state of a running server, and the steps that every request
passes: key, body, place, model, check.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.production import collector
from slmctl.server.api_keys import Key
from slmctl.server.backends import Backend
from slmctl.server.fleet import Fleet
from slmctl.server.forms import file_parts
from slmctl.server.forms.request import CheckedRequest, Form, read_body
from slmctl.server.log import Log
from slmctl.server.metrics import Metrics
from slmctl.server.places import Places
from slmctl.server.rate_limits import ANYBODY, HeldPlace, Limits
from slmctl.server.request_errors import RequestError
from slmctl.server.request_run import Exchange
from slmctl.server.routed import FAMILIES
from slmctl.server.running_model import RunningModel

SCHEMAS = 64  # clients' schemas; the results of their checks are kept
LARGE = 1 << 16  # bytes of a body that is read in a thread
MAX_BODY, MAX_DOCUMENT = 1 << 20, 16 << 20  # bytes of a body, and of one that may hold a document


@dataclass(frozen=True)
class ReadRequest:
    """A request for an answer whose body was read, with the place that it holds."""

    key: Key
    place: HeldPlace
    body: JsonObject


class Gateway:
    """The state of a running server."""

    def __init__(self, fleet: Fleet, log: Log) -> None:
        self.fleet = fleet
        self.log = log
        self.metrics = Metrics()
        self.settings = fleet.settings
        self.limits = Limits(self.settings.sequences, self.settings.max_waiting_requests)
        self.readers = Places(file_parts.TOGETHER, one_each=True)
        self.created = int(time.time())
        self.running: set[Exchange] = set()
        self.stopping = False
        if fleet.escalation is not None:
            self.metrics.include(FAMILIES, fleet.escalation.figures)
        if fleet.collector is not None:
            self.metrics.include(collector.FAMILIES, fleet.collector.figures)
        self._schemas: dict[str, str] = {}  # fault by schema; empty for a valid one

    @property
    def ready(self) -> bool:
        fault = self.fleet.keys.fault if self.fleet.keys else ""
        return not self.stopping and not fault and self.fleet.ready

    def stop(self) -> None:
        """Answer new requests with 503 from now on; running ones go on until `end_all`."""
        self.stopping = True

    def end_all(self) -> None:
        """End every answer that is still running, each with a word to its client."""
        for exchange in list(self.running):
            exchange.end("server_stopping")

    def key_of(self, http: HttpRequest) -> Key:
        """The client's key; anybody's where no keys are asked for."""
        if self.fleet.keys is None:
            return ANYBODY
        scheme, _, secret = http.headers.get("authorization", "").partition(" ")
        key = self.fleet.keys.find(secret.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            raise HTTPException(
                401,
                "a valid API key is needed: Authorization: Bearer KEY",
                {"www-authenticate": "Bearer"},
            )
        http.state.note.fields["key"] = key.name
        return key

    async def read(self, http: HttpRequest, held: contextlib.ExitStack) -> ReadRequest:
        """A request for an answer, counted against its key's limits; `held` frees its place."""
        key = self.key_of(http)
        self.limits.count(key)
        if self.stopping:
            raise RequestError("the server is being stopped", status=503, code="server_stopping")
        if not self.fleet.models(key):  # whatever the body names
            message = "this key may ask no model that is served here"
            raise RequestError(message, "model", status=404, code="model_not_found")
        place = held.enter_context(self.limits.place(key))
        raw = await self.body_of(http, place)
        large = len(raw) > LARGE  # to read it takes some time, in which others are answered
        body = await asyncio.to_thread(read_body, raw) if large else read_body(raw)
        return ReadRequest(key, place, body)

    async def body_of(self, http: HttpRequest, place: HeldPlace | None = None) -> bytes:
        """The body of a request, within the limits on its size and time.

        Args:
            place: Of a request that may hold documents, for a large body.
        """
        kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
        # a web page of another origin can send any other type without asking
        if kind != "application/json":
            raise HTTPException(415, "the body must be JSON: Content-Type: application/json")
        raw, most = (
            bytearray(),
            MAX_DOCUMENT if place is not None and self.settings.documents else MAX_BODY,
        )
        try:
            async with asyncio.timeout(self.settings.receive_timeout_s):
                async for chunk in http.stream():
                    raw += chunk
                    if len(raw) > most:
                        raise HTTPException(413, f"the body is larger than {most} bytes")
                    if place is not None and len(raw) > MAX_BODY:
                        place.hold_body()
        except TimeoutError:
            raise HTTPException(
                408, f"the body did not arrive within {self.settings.receive_timeout_s:g} s"
            ) from None
        except ClientDisconnect:
            raise RequestError("the client has gone", status=499, code="client_gone") from None
        return bytes(raw)

    @contextlib.contextmanager
    def exchange(self, http: HttpRequest) -> Iterator[Exchange]:
        """The exchange of a request that has been read, for the length of a block."""
        exchange = Exchange(http.receive, self.settings.answer_timeout_s)
        self.running.add(exchange)
        try:
            yield exchange
        finally:
            exchange.close()
            self.running.discard(exchange)

    async def lease(self, name: str, exchange: Exchange) -> RunningModel:
        """The running model of a release; `Fleet.give_back` ends that.

        Raises:
            RequestError: It cannot be loaded, or not now, or not in time.
        """
        try:
            return await exchange.beside(self.fleet.lease(name))
        except RequestError as error:
            self.metrics.refused.labels(error.code).inc()
            if error.code == "deadline_exceeded":
                error.message = (
                    f"model '{name}' was not loaded within {self.settings.answer_timeout_s:g} s"
                )
            raise

    async def checked(
        self, body: JsonObject, form: Form, name: str, running: RunningModel, key: Key
    ) -> CheckedRequest:
        """A request as a running model is asked it for a key: the model of that name, or the
        default one.

        Raises:
            RequestError: It cannot be.
        """
        model = running.models.get(name) or running.default
        # in a thread: the release's chat template renders the prompt
        checked = await asyncio.to_thread(form.read, body, model, self.settings)
        router = running.router_of(model)
        if len(checked.requests) > 1 and router is not None and router.judges(checked):
            raise RequestError(
                "only n=1 and one prompt are supported where a policy decides who answers", "n"
            )
        await self._require_grammar(checked, running.backend)
        requests = tuple(
            dataclasses.replace(request, client=key.name) for request in checked.requests
        )
        return dataclasses.replace(checked, requests=requests)

    async def _require_grammar(self, checked: CheckedRequest, backend: Backend) -> None:
        """See that a grammar can be made of a client's own schema,
        apart from the loop: it may take a while.
        """
        if not (text := checked.client_form):
            return
        if text not in self._schemas:
            if len(self._schemas) >= SCHEMAS:
                self._schemas.clear()
            self._schemas[text] = await asyncio.to_thread(backend.fault_of, text)
        if fault := self._schemas[text]:
            raise RequestError(f"'{checked.form_option}': {fault}", checked.form_option)
