"""The HTTP side of `slmctl serve`: OpenAI's API in front of an engine, within limits, answers kept to the task."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
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
from slmctl.config import NO_TASK
from slmctl.inference.events import Event
from slmctl.sensitive import conversation_veto
from slmctl.sensitive.conversation_veto import Cleared
from slmctl.server import (
    api_forms,
    auto,
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
from slmctl.server.auto import PATH, Naming
from slmctl.server.backends import Backend
from slmctl.server.bad_requests import BadRequestError
from slmctl.server.collecting import NO_POLICY
from slmctl.server.event_stream import EventStream
from slmctl.server.fair_queue import FairQueue
from slmctl.server.fleet import Fleet
from slmctl.server.fleet_members import Loaded, Member, Served
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
        self.named = auto.Named()
        if any(member.is_router for member in fleet.members.values()):
            self.metrics.include(auto.FAMILIES, self.named.figures)
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
            lease = held.enter_context(contextlib.ExitStack())  # ends before the place does, where another is asked
            naming = await self._named(http, body, kind, member, place, ends_at) if member.is_router else None
            if naming is not None and naming.label != NO_TASK:
                member = self.fleet.members[naming.label]
                model = member.models[member.name]
            served = await self.held(member, ends_at, lease, http.receive)
            models = {name: served.models[name] for name in (model.name,) if name in served.models} or served.models
            if naming is not None and naming.label == NO_TASK:
                models = {model.name: auto.without_task(model)}
            checked = await self.checked(body, kind, models)
            if naming is not None and naming.label == NO_TASK:
                auto.require_text(checked)
            await self.require_grammar(checked, served.backend)
            note.fields["stream"] = checked.stream
            if self.settings.log_texts:
                note.fields["prompt"] = checked.text
            place.widen(len(checked.requests))
            exchange = Exchange(checked, served.backend, self.settings.answer_timeout_s, ends_at=ends_at)
            self.running.add(exchange)
            marked = conversation_veto.is_marked(http.headers)
            run = _Run(self, member, served, exchange, note, place, held.pop_all().close, lease=lease, body=body,
                       is_marked=marked, naming=naming)  # fmt: skip
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

    async def _named(
        self, http: HttpRequest, body: JsonObject, kind: str, member: Member, place: HeldPlace, ends_at: float
    ) -> Naming:
        """The model that a router names for a request; the router is free again before that one is asked."""
        with contextlib.ExitStack() as held:
            served = await self.held(member, ends_at, held, http.receive)
            try:
                naming = await auto.ask(
                    body, kind, http.headers, http.receive, model=served.models[member.name], served=served,
                    place=place, ceilings=self.ceilings, running=self.running,
                    limit_s=self.settings.answer_timeout_s, ends_at=ends_at,
                )  # fmt: skip
            except RequestFailedError as error:
                if error.code != "refused":
                    self.metrics.failed.labels(error.code).inc()
                raise
        self.named.add(naming)
        return naming

    async def checked(self, body: JsonObject, kind: str, models: Mapping[str, ServedModel]) -> CheckedRequest:
        """The request as the first one of some models is asked it.

        Raises:
            BadRequestError: It cannot be.
        """
        # in a thread: the release's chat template renders the prompt
        named = {**body, "model": next(iter(models))}
        return await asyncio.to_thread(openai_requests.check, named, kind, models, self.ceilings)

    async def held(
        self, member: Member, ends_at: float, held: contextlib.ExitStack, receive: Receive | None = None, *,
        is_spare: bool = False,
    ) -> Served:  # fmt: skip
        """The release of a member in memory, until `held` ends; see `_leased`."""
        loaded = await self._leased(member, ends_at, held, receive, is_spare=is_spare)
        held.callback(self.fleet.give_back, loaded)
        return loaded.served

    async def _leased(
        self, member: Member, ends_at: float, held: contextlib.ExitStack, receive: Receive | None, *, is_spare: bool
    ) -> Loaded:  # fmt: skip
        """The member in memory, at work until `held` ends; a spare one that is not there refuses no request.

        Raises:
            RequestFailedError: It cannot be loaded, or not now, or not in time.
        """
        try:
            async with while_wanted(receive, ends_at):
                await self.fleet.opened(member, is_spare=is_spare)
                held.enter_context(self.fleet.at_work(member))
                return await self.fleet.lease(member, is_spare=is_spare)
        except TimeoutError:
            message = f"model '{member.name}' was not loaded within {self.settings.answer_timeout_s:g} s"
            raise RequestFailedError(message, "deadline_exceeded", 504) from None
        except RequestFailedError as error:
            if not is_spare:
                self.metrics.refused.labels(error.code).inc()
            raise

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
        free: Callable[[], None], *, lease: contextlib.ExitStack, body: JsonObject, is_marked: bool,
        naming: Naming | None = None,
    ) -> None:  # fmt: skip
        self.naming, self._body = naming, body
        self.is_marked = is_marked  # as sensitive, by the client
        self.gateway, self.exchange, self.note = gateway, exchange, note
        self.place, self._free, self._lease = place, free, lease  # its place among all, what else it holds, its model
        self._is_by(member, served, exchange.checked)
        self.route, self.reason, self.name = "local", NO_POLICY, self.checked.model.name
        self.p_correct: float | None = None  # by the policy, where one decides
        self.routed: Routed | None = None
        self.pieces = list[Event]()  # of a routed answer
        self.steps = [naming.step] if naming is not None else []  # the models here that were asked
        self._tells_path = naming is not None or bool(member.larger)
        self._via = naming.name if naming is not None else ""  # the model that was asked first, where another answers
        self._is_second = False  # a larger model has answered
        self._closed = False

    def _is_by(self, member: Member, served: Served, checked: CheckedRequest) -> None:
        """Have a model be the one that answers here."""
        self._member, self.served, self.checked = member, served, checked
        self.note.fields["model"] = checked.model.name
        self.is_default = checked.model is next(iter(served.models.values()))
        self._own = served.router if self.is_default else None
        self.shadow = self.gateway.fleet.shadow if member is self.gateway.fleet.default else None

    async def respond(self, headers: Mapping[str, str]) -> Response:
        """The whole answer, or a stream that has begun: whatever fails before is still a status."""
        router = self._own if self.naming is None else self.naming.decides_by(self._own)
        if router is not None:
            return await self._routed(router, headers)
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
        (choice,), is_for_none = self.exchange.choices, self.naming is not None and self.naming.label == NO_TASK
        if self.naming is not None and is_for_none:  # the router's own answer is the local one
            choice.text, choice.last = self.naming.label, self.naming.event
            self.pieces.append({"piece": choice.text})

        async def local() -> LocalAnswer:
            if not choice.last:
                await self._begin()
            self.pieces += await self.exchange.whole()
            event: LocalAnswer = {**choice.last, "text": choice.text}
            if not is_for_none:
                self._count_in(event)
            return event

        ends_at = self.exchange.deadline  # so that the local answer is still given where the general model is slow
        offer = self.checked.offer if self.naming is None else self.naming.offered(self.checked.offer)
        work = router.route(
            self.checked.sent, self.checked.options, headers, local,
            ends_at=ends_at, request=self.note.id, log=self.gateway.log, unread=self.checked.unread,
            also=self.checked.also, offer=offer,
            is_novel=self._is_novel if self.served.questions else None,
            larger=self._larger if self._is_own and self._member.larger else None,
        )  # fmt: skip
        self.routed = routed = await self.exchange.beside(_as_coroutine(work))
        (choice,) = self.exchange.choices  # of the larger model where it has answered
        self.route, self.reason, self.name = routed.route, routed.reason, routed.model
        if self.naming is None or self._is_own:
            self.p_correct = routed.p_correct
        elif self.naming.is_sure and self.naming.p_correct is None and self.reason == "confident":
            self.reason = NO_POLICY
        if routed.route != "local":
            if offer is None:
                self.checked = replace(self.checked, offer=None)  # a text is not taken apart for a call
            choice.text, choice.tokens, self.pieces = routed.text, [], [{"piece": routed.text}]
            used = {"prompt_tokens": routed.prompt_tokens, "completion_tokens": routed.completion_tokens}
            choice.last = cast(Event, {**routed.local, **used, "finish": routed.finish})
        self._saw_first()
        return self._streaming(self._decided(self.pieces)) if self.checked.stream else self._json()

    async def _larger(self, cleared: Cleared) -> tuple[Router, LocalAnswer] | None:
        """The answer of the larger model and the router that decides on it; None where it gives none.

        Turn and memory of the model before it are given back first, as those of a task router are.
        """
        gateway, smaller, kind = self.gateway, self.checked.model, self.checked.kind
        member = gateway.fleet.members[self._member.larger]
        assert self._own is not None
        ends_at = self._own.larger_ends_at(self.exchange.deadline, cleared)
        self._lease.close()
        try:
            served = await gateway.held(member, ends_at, self._lease, is_spare=True)
            model = served.models[member.name]
            if what := model.task.difference(smaller.task):  # a tag has moved, and the other one has not yet
                raise BadRequestError(f"'{model.name}' has {what} than '{smaller.name}'", code="other_task")
            async with asyncio.timeout_at(ends_at):
                checked = await gateway.checked(self._body, kind, {model.name: model})
                await gateway.require_grammar(checked, served.backend)
            exchange = Exchange(checked, served.backend, gateway.settings.answer_timeout_s, ends_at=ends_at)
            try:
                exchange.on_end = self.place.rest
                await exchange.beside(self.place.turn(member.name))
                exchange.begin()
                pieces = await exchange.whole()
            finally:
                exchange.close()
                self.place.rest()
        except (BadRequestError, RequestFailedError, TimeoutError) as error:
            self._lease.close()
            reason = "deadline_exceeded" if isinstance(error, TimeoutError) else error.code or "refused"
            gateway.metrics.larger_failed.labels(member.name, reason).inc()
            gateway.log.event("larger_failed", model=member.name, reason=reason)
            return None
        self._via, self._is_second = self._via or smaller.name, True
        self._is_by(member, served, checked)
        self.exchange.choices, self.pieces = exchange.choices, pieces
        (choice,) = exchange.choices
        event: LocalAnswer = {**choice.last, "text": choice.text}
        self._count_in(event)
        assert self._own is not None
        return self._own.beside(cleared, tuple(str(each["model"]) for each in self.steps)), event

    def _count_in(self, event: LocalAnswer) -> None:
        """Add the model whose answer this is to those that were asked."""
        judged = self._own.judged(event) if self._own is not None else None
        self.steps.append(auto.step(self.checked.model.name, judged.p_correct if judged is not None else None))

    @property
    def _is_own(self) -> bool:
        """True where the policy of the model that answers here decides."""
        return self._own is not None if self.naming is None else self.naming.is_left_to(self._own)

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
        path = {"path": auto.path(self.steps, self.routed)} if self._tells_path else {}
        return openai_replies.facts(self.checked, event) | who | probability | path

    def _headers(self) -> dict[str, str]:
        path = {PATH: auto.header(self.steps, self.routed)} if self._tells_path else {}
        return {ROUTE: route_header(self.route, self.reason)} | path

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
        if self._tells_path:
            self.note.fields["asked"] = auto.header(self.steps, self.routed)
        if self.gateway.settings.log_texts:
            self.note.fields["answer"] = [choice.text for choice in self.exchange.choices]
        routed = self.routed if self._is_own else None
        # an answer that nobody was sure to ask the right model for says nothing about that model
        if self.gateway.fleet.collector is not None and (self.naming is None or self.naming.is_sure):
            collecting.hand_over(
                self.checked, self.exchange.choices, routed, id=self.note.id, is_marked=self.is_marked,
                collector=self.gateway.fleet.collector, shadow=self.shadow if self.is_default else None,
                questions=self.served.questions if self.is_default else None,
                router=self._via, is_second=self._is_second,
            )  # fmt: skip

    def _is_novel(self) -> bool:
        assert self.served.questions is not None
        return self.served.questions.is_novel(self.checked.question)


async def _as_coroutine(work: Awaitable[Any]) -> Any:
    return await work


# Routes


def application(fleet: Fleet, log: Log) -> Starlette:
    """The ASGI application; `app.state.gateway` is what it runs on."""
    origins = fleet.settings.cors_origins
    cors = Middleware(
        CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"],
        expose_headers=[ROUTE, PATH, REQUEST_ID],
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
