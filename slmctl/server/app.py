"""The HTTP side of `slmctl serve`: OpenAI's API in front of an engine, within limits, answers kept to the task."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.inference.events import Event
from slmctl.sensitive import conversation_veto
from slmctl.server import (
    api_forms,
    collecting,
    collector,
    feedback,
    model_list,
    openai_replies,
    openai_requests,
    page,
    refusals,
)
from slmctl.server.api_keys import Key
from slmctl.server.backends import Backend
from slmctl.server.bad_requests import BadRequestError
from slmctl.server.collecting import NO_POLICY
from slmctl.server.event_stream import EventStream
from slmctl.server.fair_queue import FairQueue
from slmctl.server.fleet import Fleet
from slmctl.server.fleet_members import Member, Served
from slmctl.server.log import Log
from slmctl.server.metrics import Metrics
from slmctl.server.observed import REQUEST_ID, Note, Observed
from slmctl.server.openai_requests import Ceilings, CheckedRequest, ServedModel
from slmctl.server.rate_limits import ANYBODY, HeldPlace, Limits
from slmctl.server.refusals import ROUTE, route_header
from slmctl.server.request_run import Exchange, Receive, RequestFailedError, while_wanted
from slmctl.server.routed import FAMILIES, LocalAnswer, Routed
from slmctl.server.router import Router

SLACK_S = 5  # beyond the deadline of an answer, to send its end to a client that reads slowly


class Gateway:
    """The state of a running server."""

    def __init__(self, fleet: Fleet, log: Log) -> None:
        self.fleet, self.log, self.metrics = fleet, log, Metrics()
        self.settings = settings = fleet.settings
        weights = {member.name: float(member.weight) for member in fleet.members.values()}
        # one model's engine has an order of its own, and takes the next request without a word to the gateway
        order = FairQueue(settings.sequences if len(weights) > 1 else None, weights)
        self.limits = Limits(
            settings.sequences, settings.max_waiting_requests, settings.requests_per_minute, settings.concurrency,
            order=order, models=len(weights),
        )  # fmt: skip
        most = settings.max_prompt_tokens or settings.context_length - 1
        self.ceilings = Ceilings(settings.max_tokens, min(most, settings.context_length - 1))
        self.created = int(time.time())
        self.running: set[Exchange] = set()
        self.stopping = False
        if fleet.has_policies:
            self.metrics.include(FAMILIES, fleet.escalation.figures)
        if fleet.collector is not None:
            self.metrics.include(collector.FAMILIES, fleet.collector.figures)
        self._schemas: dict[str, str] = {}  # what is wrong with a schema; empty: nothing

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

    # Authentication

    def key_of(self, http: HttpRequest) -> Key:
        """The client's key; anybody's where no keys are asked for."""
        if self.fleet.keys is None:
            return ANYBODY
        scheme, _, secret = http.headers.get("authorization", "").partition(" ")
        key = self.fleet.keys.find(secret.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            raise HTTPException(
                401, "a valid API key is needed: Authorization: Bearer KEY", {"www-authenticate": "Bearer"}
            )
        http.state.note.fields["key"] = key.name
        return key

    def models_for(self, http: HttpRequest) -> Mapping[str, ServedModel]:
        """The models that the client may ask, by name, the default one first."""
        return self.fleet.models(self.key_of(http))

    # A request for an answer

    async def answer(self, http: HttpRequest, kind: str) -> Response:
        """Answer `/v1/chat/completions` (`chat`), `/v1/completions` (`text`) or `/v1/responses` (`response`)."""
        note: Note = http.state.note
        key = self.key_of(http)
        self.limits.count(key)
        if self.stopping:
            raise RequestFailedError("the server is being stopped", "server_stopping", 503)
        body = openai_requests.read(await self.body_of(http))
        member, model = self.fleet.find(body.get("model"), key)
        ends_at = asyncio.get_running_loop().time() + self.settings.answer_timeout_s
        with contextlib.ExitStack() as held:
            place = self.limits.enter(key, member.name)
            held.callback(place.leave)
            served = await self._leased(member, ends_at, held, http.receive)
            models = {name: served.models[name] for name in (model.name,) if name in served.models} or served.models
            named = {**body, "model": next(iter(models))}
            # in a thread: the release's chat template renders the prompt
            checked = await asyncio.to_thread(openai_requests.check, named, kind, models, self.ceilings)
            await self.require_grammar(checked, served.backend)
            note.fields["stream"] = checked.stream
            if self.settings.log_texts:
                note.fields["prompt"] = checked.text
            place.widen(len(checked.requests))
            exchange = Exchange(checked, served.backend, self.settings.answer_timeout_s, ends_at=ends_at)
            self.running.add(exchange)
            marked = conversation_veto.is_marked(http.headers)
            run = _Run(self, member, served, exchange, note, place, held.pop_all().close, is_marked=marked)
        with contextlib.ExitStack() as otherwise:
            otherwise.callback(run.close, RequestFailedError("", "cancelled", 499))
            try:
                exchange.watch(http.receive)
                response = await run.respond(http.headers)
            except RequestFailedError as error:
                run.close(error)
                raise
            otherwise.pop_all()
        return response

    async def _leased(self, member: Member, ends_at: float, held: contextlib.ExitStack, receive: Receive) -> Served:
        """The release of a member in memory, until `held` ends.

        Raises:
            RequestFailedError: It cannot be loaded, or not now, or not in time.
        """
        try:
            async with while_wanted(receive, ends_at):
                await self.fleet.opened(member)
                held.enter_context(self.fleet.at_work(member))
                loaded = await self.fleet.lease(member)
        except TimeoutError:
            message = f"model '{member.name}' was not loaded within {self.settings.answer_timeout_s:g} s"
            raise RequestFailedError(message, "deadline_exceeded", 504) from None
        except RequestFailedError as error:
            self.metrics.refused.labels(error.code).inc()
            raise
        held.callback(self.fleet.give_back, loaded)
        return loaded.served

    async def body_of(self, http: HttpRequest) -> bytes:
        """The body of a request, within the limits on its size and time."""
        kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # a web page of another origin can send any other type without asking
            raise HTTPException(415, "the body must be JSON: Content-Type: application/json")
        raw = bytearray()
        try:
            async with asyncio.timeout(self.settings.receive_timeout_s):
                async for chunk in http.stream():
                    raw += chunk
                    if len(raw) > self.settings.max_body_bytes:
                        raise HTTPException(413, f"the body is larger than {self.settings.max_body_bytes} bytes")
        except TimeoutError:
            raise HTTPException(408, f"the body did not arrive within {self.settings.receive_timeout_s:g} s") from None
        except ClientDisconnect:
            raise RequestFailedError("the client has gone", "client_gone", 499) from None
        return bytes(raw)

    async def require_grammar(self, checked: CheckedRequest, backend: Backend) -> None:
        """See that a grammar can be made of a client's own schema, apart from the loop: it may take a while."""
        if not (text := checked.client_form):
            return
        if text not in self._schemas:
            if len(self._schemas) >= 64:
                self._schemas.clear()
            self._schemas[text] = await asyncio.to_thread(backend.fault_of, text)
        if fault := self._schemas[text]:
            raise BadRequestError(f"'{checked.form_option}': {fault}", checked.form_option)


class _Run:
    """One accepted request: its response, and its lines in figures and log."""

    def __init__(
        self, gateway: Gateway, member: Member, served: Served, exchange: Exchange, note: Note, place: HeldPlace,
        free: Callable[[], None], *, is_marked: bool,
    ) -> None:  # fmt: skip
        self.is_marked = is_marked  # as sensitive, by the client
        self.gateway, self.exchange, self.note = gateway, exchange, note
        self.place, self._free = place, free  # its place among all, and what else it holds
        self._member, self.served, self.checked = member, served, exchange.checked
        self.note.fields["model"] = self.checked.model.name
        self.is_default = self.checked.model is next(iter(served.models.values()))
        self._router = served.router if self.is_default else None
        self.route, self.reason, self.name = "local", NO_POLICY, self.checked.model.name
        self.p_correct: float | None = None  # by the policy, where one decides
        self.routed: Routed | None = None
        self.pieces = list[Event]()  # of a routed answer
        self._closed = False

    async def respond(self, headers: Mapping[str, str]) -> Response:
        """The whole answer, or a stream that has begun: whatever fails before is still a status."""
        if self._router is not None:
            return await self._routed(self._router, headers)
        await self._begin()
        if self.checked.stream:
            index, event = await self.exchange.next()
            self._saw_first()
            return self._streaming(self._chunks(index, event))
        await self.exchange.whole()
        return self._json()

    async def _begin(self) -> None:
        """Have the local model answer, when it is the request's turn."""
        self.exchange.on_end = self.place.rest
        await self.exchange.beside(self.place.turn(self._member.name))
        self.exchange.begin()

    async def _routed(self, router: Router, headers: Mapping[str, str]) -> Response:
        """The answer of the model that the router chose; a stream of it begins when that is decided."""
        if len(self.checked.requests) > 1:
            raise BadRequestError("only n=1 and one prompt are supported where a policy decides who answers", "n")
        (choice,) = self.exchange.choices

        async def local() -> LocalAnswer:
            await self._begin()
            self.pieces += await self.exchange.whole()
            return {**choice.last, "text": choice.text}

        ends_at = self.exchange.deadline  # so that the local answer is still given where the general model is slow
        work = router.route(
            self.checked.sent, self.checked.options, headers, local,
            ends_at=ends_at, request=self.note.id, log=self.gateway.log, unread=self.checked.unread,
            also=self.checked.also, offer=self.checked.offer,
        )  # fmt: skip
        self.routed = routed = await self.exchange.beside(_as_coroutine(work))
        self.route, self.reason, self.name = routed.route, routed.reason, routed.model
        self.p_correct = routed.p_correct
        if routed.route != "local":
            choice.text, choice.tokens, self.pieces = routed.text, [], [{"piece": routed.text}]
            used = {"prompt_tokens": routed.prompt_tokens, "completion_tokens": routed.completion_tokens}
            choice.last = cast(Event, {**routed.local, **used, "finish": routed.finish})
        self._saw_first()
        return self._streaming(self._decided(self.pieces)) if self.checked.stream else self._json()

    def _json(self) -> Response:
        choices = self.exchange.choices
        body = api_forms.whole(
            self.checked, choices, [self._extra(choice.last) for choice in choices], self._build, self.name
        )
        self.close()
        return JSONResponse(body, headers=self._headers())

    def _streaming(self, parts: AsyncGenerator[bytes, None]) -> Response:
        return EventStream(parts, self.exchange.deadline + SLACK_S, self._headers(), self.close)

    async def _chunks(self, index: int, event: Event) -> AsyncGenerator[bytes, None]:
        """Every event as it comes; an answer that fails ends with the error, never with a bare [DONE]."""
        stream = api_forms.stream(self.checked, self._build, self.name)
        part = stream.opening()
        try:
            while True:
                part += self._chunk(stream, index, event)
                if not self.exchange.running:
                    break
                yield part
                index, event = await self.exchange.next()
                part = b""
        except RequestFailedError as error:
            self.close(error)
            yield stream.failed(self._said(error))
            return
        part += stream.ending(self._lasts)
        self.close()
        yield part

    async def _decided(self, pieces: Sequence[Event]) -> AsyncGenerator[bytes, None]:
        """A whole answer as a stream."""
        stream = api_forms.stream(self.checked, self._build, self.name)
        part = stream.opening()
        for event in pieces:
            if "piece" in event:
                yield part + stream.piece(0, event)
                part = b""
        (choice,) = self.exchange.choices
        part += stream.end(0, choice.last, self._extra(choice.last)) + stream.ending(self._lasts)
        self.close()
        yield part

    def _chunk(self, stream: api_forms.AnswerStream, index: int, event: Event) -> bytes:
        if "piece" in event:
            return stream.piece(index, event)
        return stream.end(index, event, self._extra(event))

    @property
    def _lasts(self) -> list[Event]:
        return [choice.last for choice in self.exchange.choices]

    def _said(self, error: RequestFailedError) -> JsonObject:
        return openai_replies.error(error.message, error.kind, code=error.code, request_id=self.note.id)

    def _extra(self, event: Event) -> dict[str, Any]:
        """slmctl's own fields of an answer, beside OpenAI's."""
        who = {"route": self.route, "reason": self.reason, "model": self.name, "seconds": self.note.seconds}
        if self.name == self.checked.model.name:  # no general model: it has neither a version nor a file here
            who |= openai_replies.release(self.checked.model)
        probability = {} if self.p_correct is None else {"p_correct": self.p_correct}
        return openai_replies.facts(self.checked, event) | who | probability

    def _headers(self) -> dict[str, str]:
        return {ROUTE: route_header(self.route, self.reason)}

    @property
    def _build(self) -> str:
        return self.served.backend.build

    def _saw_first(self) -> None:
        self.gateway.metrics.first.observe(self.note.seconds)

    def close(self, error: RequestFailedError | None = None) -> None:
        """Free everything and count; what comes first counts."""
        if self._closed:
            return
        self._closed = True
        self.exchange.close()
        self.gateway.running.discard(self.exchange)
        seconds = self.note.seconds
        self.place.leave(None if error else seconds)
        self._free()
        metrics, name = self.gateway.metrics, self.checked.model.name
        if error is not None:
            if error.code != "refused":
                metrics.failed.labels(error.code).inc()
            self.note.fields |= {"failed": error.code}
            return
        lasts = self._lasts
        used = openai_replies.usage(self.checked, lasts)
        metrics.answers.labels(name, self.route, self.reason).inc()
        metrics.tokens.labels(name, "prompt").inc(used["prompt_tokens"])
        metrics.tokens.labels(name, "answer").inc(used["completion_tokens"])
        metrics.seconds.observe(seconds)
        self.note.fields |= {
            "route": self.route, "reason": self.reason, "prompt_tokens": used["prompt_tokens"],
            "completion_tokens": used["completion_tokens"], "finish": [last["finish"] for last in lasts],
            "confidence": [last.get("confidence") for last in lasts],
        }  # fmt: skip
        if self.gateway.settings.log_texts:
            self.note.fields["answer"] = [choice.text for choice in self.exchange.choices]
        if self.gateway.fleet.collector is not None:
            collecting.hand_over(
                self.checked, self.exchange.choices, self.routed, id=self.note.id, is_marked=self.is_marked,
                collector=self.gateway.fleet.collector,
            )  # fmt: skip


async def _as_coroutine(work: Awaitable[Any]) -> Any:
    return await work


# Routes


def application(fleet: Fleet, log: Log) -> Starlette:
    """The ASGI application; `app.state.gateway` is what it runs on."""
    origins = fleet.settings.cors_origins
    cors = Middleware(
        CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"],
        expose_headers=[ROUTE, REQUEST_ID],
    )  # fmt: skip
    gateway = Gateway(fleet, log)
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", _answers("chat"), methods=["POST"]),
            Route("/v1/completions", _answers("text"), methods=["POST"]),
            Route("/v1/responses", _answers("response"), methods=["POST"]),
            Route("/v1/feedback", feedback.take, methods=["POST"]),
            *model_list.routes(),
            Route("/healthz", _health),
            Route("/readyz", _ready),
            Route("/metrics", _metrics),
            *page.routes(),
        ],
        middleware=[
            Middleware(Observed, gateway=gateway),
            *([cors] if origins else []),
            # inside Observed: Starlette's own would stand around it, and its answers would not be counted
            Middleware(ServerErrorMiddleware, handler=refusals.bug),
        ],
        exception_handlers=refusals.HANDLERS,
    )
    app.state.gateway = gateway
    return app


def _answers(kind: str) -> Callable[[HttpRequest], Awaitable[Response]]:
    async def answer(http: HttpRequest) -> Response:
        gateway: Gateway = http.app.state.gateway
        return await gateway.answer(http, kind)

    return answer


async def _health(http: HttpRequest) -> Response:
    return JSONResponse({"status": "ok"})


async def _ready(http: HttpRequest) -> Response:
    gateway: Gateway = http.app.state.gateway
    await gateway.fleet.look()
    faults = {"failed": gateway.fleet.faults} if gateway.fleet.faults else {}
    return JSONResponse({"ready": gateway.ready, **faults}, status_code=200 if gateway.ready else 503)


async def _metrics(http: HttpRequest) -> Response:
    gateway: Gateway = http.app.state.gateway
    if gateway.key_of(http).models is not None:
        raise HTTPException(403, "this key is limited to models, and /metrics tells of all: use another key")
    metrics, limits = gateway.metrics, gateway.limits
    await gateway.fleet.look()
    await gateway.fleet.measure()
    metrics.running.set(limits.running)
    metrics.waiting.set(limits.waiting)
    metrics.ready.set(gateway.ready)
    metrics.dropped.set(gateway.log.dropped)
    return Response(metrics.page(), media_type="text/plain; version=0.0.4")
