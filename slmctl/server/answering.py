"""The way of a request: read, check, ask, keep or escalate, write."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any, cast

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.inference.events import Event
from slmctl.sensitive import conversation_veto
from slmctl.server import collecting
from slmctl.server.collecting import HELD_BACK, NO_POLICY
from slmctl.server.event_stream import EventStream
from slmctl.server.forms import decisions, file_parts, reading
from slmctl.server.forms.decisions import DecisionForm
from slmctl.server.forms.request import CheckedRequest, Form
from slmctl.server.gateway import Gateway, ReadRequest
from slmctl.server.observed import Note
from slmctl.server.rate_limits import HeldPlace
from slmctl.server.refusals import ROUTE, route_header
from slmctl.server.request_errors import RequestError, error_body, kind_of
from slmctl.server.request_run import Exchange
from slmctl.server.routed import LocalAnswer, Routed
from slmctl.server.router import Router
from slmctl.server.running_model import RunningModel

SLACK_S = 5  # beyond the deadline of an answer, to send its end to a client that reads slowly


async def answer(gateway: Gateway, http: HttpRequest, form: Form) -> Response:
    """Answer a request in the form of its API."""
    with contextlib.ExitStack() as held:
        read = await gateway.read(http, held)
        exchange = held.enter_context(gateway.exchange(http))
        request = await _accepted(gateway, http, form, read, exchange, held)
    return await request.respond()


async def decide(gateway: Gateway, http: HttpRequest, form: DecisionForm) -> Response:
    """Answer typed questions, one model after another.

    No model is held while another is awaited, which may need its memory.
    """
    bodies, responses = list[JsonObject](), list[Response]()
    with contextlib.ExitStack() as held:
        read = await gateway.read(http, held)
        find = functools.partial(gateway.fleet.find, key=read.key)
        models = gateway.fleet.models(read.key)
        parts = decisions.by_model(read.body, form, models, lambda name: find(name)[1].name)
        for part in parts if len(parts) > 1 else ():  # before any is asked
            _, model = find(part.body["model"])
            decisions.read_questions(part.body, form, model.name, model.task)
        exchange = held.enter_context(gateway.exchange(http))
        for number, part in enumerate(parts):
            with contextlib.ExitStack() as own:
                asked = dataclasses.replace(read, body=part.body)
                request = await _accepted(gateway, http, form, asked, exchange, own, number)
            responses.append(await request.respond())
            bodies.append(request.body)
    first, *others = responses
    return (
        JSONResponse(decisions.merged(parts, bodies), headers={ROUTE: first.headers[ROUTE]})
        if others
        else first
    )


async def _accepted(
    gateway: Gateway,
    http: HttpRequest,
    form: Form,
    read: ReadRequest,
    exchange: Exchange,
    held: contextlib.ExitStack,
    number: int = 0,
) -> _Request:
    """A request that has been checked, with its model and all that `held`
    holds, which it frees when it is closed.
    """
    body, key = read.body, read.key
    place = read.place
    name, model = gateway.fleet.find(body.get("model"), key)
    place.take(name, 1)
    await exchange.beside(file_parts.put_texts(body, gateway.settings, gateway.readers, key.name))
    place.drop_body()
    running = await gateway.lease(name, exchange)
    held.callback(gateway.fleet.give_back, running)
    checked = await gateway.checked(body, form, model.name, running, key)
    place.take(name, len(checked.requests))
    return _Request(gateway, checked, running, http, exchange, place, held.pop_all().close, number)


class _Request:
    """One accepted request: its response, and its lines in figures and log.

    Attributes:
        number: Of the part of an HTTP request that it is, from 0.
        body: Of the response, when it was given whole.
    """

    def __init__(
        self,
        gateway: Gateway,
        checked: CheckedRequest,
        running: RunningModel,
        http: HttpRequest,
        exchange: Exchange,
        place: HeldPlace,
        free: Callable[[], None],
        number: int,
    ) -> None:
        self.gateway = gateway
        self.checked = checked
        self.running = running
        self.http = http
        self.exchange = exchange
        self.place = place
        self._free = free
        self.number = number
        self.body: JsonObject = {}
        self.note: Note = http.state.note
        self.note.fields |= {"stream": checked.stream, "model": checked.model.name}
        if gateway.settings.log_texts:
            self.note.fields["prompt"] = checked.text
        self.route = "local"
        self.reason = NO_POLICY
        self.name = checked.model.name
        self.routed: Routed | None = None  # where a policy decides
        self._closed = False

    async def respond(self) -> Response:
        """The whole answer, or a stream after its first event: every
        earlier failure has its own HTTP status.
        """
        router = self.running.router_of(self.checked.model)
        if router is not None and not router.judges(self.checked):
            router = None
        with contextlib.ExitStack() as otherwise:
            otherwise.callback(self.close, "cancelled")
            try:
                response = await self._own() if router is None else await self._routed(router)
            except RequestError as error:
                self.close(error.code)
                raise
            otherwise.pop_all()
        return response

    # Ask

    async def _own(self) -> Response:
        """The answer of the model here, streamed as it comes."""
        self.exchange.begin(self.checked, self.running.backend)
        if not self.checked.stream or self.gateway.settings.refuse:
            events = await self.exchange.whole()
            await self._require_checks()
            return self._streaming(events) if self.checked.stream else self._json()
        return self._streaming([await self.exchange.next()])

    # Keep or escalate

    async def _routed(self, router: Router) -> Response:
        """The answer of the model that the router chose; a stream
        of it begins when that is decided.
        """
        events = list[tuple[int, Event]]()

        async def local() -> LocalAnswer:
            self.exchange.begin(self.checked, self.running.backend)
            events.extend(await self.exchange.whole())
            (choice,) = self.exchange.choices
            return {**choice.last, "text": choice.text}

        # in time, so that the local answer is still given where the general model is slow
        work = router.route(
            self.checked,
            self.http.headers,
            local,
            ends_at=self.exchange.deadline,
            request=self.note.id,
            client=self.note.client,
            log=self.gateway.log,
        )
        self.routed = routed = await self.exchange.beside(work)
        self.route = routed.route
        self.reason = routed.reason
        self.name = routed.model
        if routed.route != "local":
            used = {
                "prompt_tokens": routed.prompt_tokens,
                "completion_tokens": routed.completion_tokens,
            }
            (choice,) = self.exchange.choices
            choice.text, choice.tokens = routed.text, []
            choice.last = cast(Event, {**routed.local, **used, "finish": routed.finish})
            events = [(0, {"piece": routed.text}), (0, choice.last)]
        await self._require_checks()
        return self._streaming(events) if self.checked.stream else self._json()

    async def _require_checks(self) -> None:
        """Hold a draft back that fails a check of `serve.refuse`.

        Raises:
            RequestError: It does.
        """
        for index, choice in enumerate(self.exchange.choices):
            failed = await asyncio.to_thread(
                self.checked.failed_checks,
                index,
                choice.text,
                choice.last["finish"],
                self.gateway.settings.refuse,
            )
            if failed:
                message = (
                    "the answer is held back, since it fails a check of this server: "
                    f"{', '.join(failed)}"
                )
                raise RequestError(message, status=422, code=HELD_BACK)

    # Write

    def _json(self) -> Response:
        choices = self.exchange.choices
        extras = [self._extra(choice.last) for choice in choices]
        self.body = reading.whole(
            self.checked, choices, extras, self.running.backend.build, self.name
        )
        self.close()
        return JSONResponse(self.body, headers=self._headers())

    def _streaming(self, seen: Iterable[tuple[int, Event]]) -> Response:
        self.gateway.metrics.first.observe(self.note.seconds)
        ends_at = self.exchange.deadline + SLACK_S
        # which counts for nothing after an answer's end
        is_gone = functools.partial(self.close, "client_gone")
        return EventStream(self._parts(deque(seen)), ends_at, self._headers(), is_gone)

    async def _parts(self, seen: deque[tuple[int, Event]]) -> AsyncGenerator[bytes, None]:
        """Every event as it comes; an answer that fails ends with
        the error, never with a bare [DONE].
        """
        stream = reading.stream(self.checked, self.running.backend.build, self.name)
        part = stream.opening()
        try:
            while seen or self.exchange.running:
                index, event = seen.popleft() if seen else await self.exchange.next()
                if "piece" in event:
                    yield part + stream.piece(index, event)
                    part = b""
                else:
                    part += stream.end(index, event, self._extra(event))
        except RequestError as error:
            self.close(error.code)
            body = error_body(
                error.message, kind_of(error.status), code=error.code, request_id=self.note.id
            )
            yield part + stream.failed(body)
            return
        part += stream.ending([choice.last for choice in self.exchange.choices])
        self.close()
        yield part

    def _extra(self, event: Event) -> dict[str, Any]:
        """slmctl's additional fields of an answer."""
        who: dict[str, Any] = {
            "route": self.route,
            "reason": self.reason,
            "model": self.name,
            "seconds": self.note.seconds,
        }
        # no general model: it has neither a version nor a file here
        if self.name == self.checked.model.name:
            who |= self.checked.model.release
        if self.routed is not None and self.routed.p_correct is not None:
            who["p_correct"] = self.routed.p_correct
        # a general model tells no probability and no place
        own = event if self.route == "local" else Event()
        return self.checked.facts(own) | who

    def _headers(self) -> dict[str, str]:
        return {ROUTE: route_header(self.route, self.reason)}

    def close(self, failed: str = "") -> None:
        """Free places and model and count the request, once; `failed` is
        the reason for no whole answer, or ''.
        """
        if self._closed:
            return
        self._closed = True
        seconds = self.note.seconds
        self.place.seconds = None if failed else seconds
        self._free()
        if not failed:
            self._count(seconds)
            return
        self.note.fields["failed"] = failed
        if failed == HELD_BACK:
            self._collect(held=True)
        if failed != "refused":
            self.gateway.metrics.failed.labels(failed).inc()

    def _count(self, seconds: float) -> None:
        """Count a whole answer, and have it collected."""
        metrics = self.gateway.metrics
        name = self.checked.model.name
        choices = self.exchange.choices
        lasts = [choice.last for choice in choices]
        used = self.checked.usage(lasts)
        metrics.answers.labels(name, self.route, self.reason).inc()
        metrics.tokens.labels(name, "prompt").inc(used["prompt_tokens"])
        metrics.tokens.labels(name, "answer").inc(used["completion_tokens"])
        metrics.seconds.observe(seconds)
        self.note.fields |= {
            "route": self.route,
            "reason": self.reason,
            "prompt_tokens": used["prompt_tokens"],
            "completion_tokens": used["completion_tokens"],
            "finish": [last["finish"] for last in lasts],
            "confidence": [last.get("confidence") for last in lasts],
        }
        if self.gateway.settings.log_texts:
            self.note.fields["answer"] = [choice.text for choice in choices]
        self._collect()

    def _collect(self, *, held: bool = False) -> None:
        if (collector := self.gateway.fleet.collector) is not None:
            collecting.hand_over(
                self.checked,
                self.exchange.choices,
                self.routed,
                held=held,
                id=self.note.id + (f"-{self.number + 1}" if self.number else ""),
                is_marked=conversation_veto.is_marked(self.http.headers),
                client=self.note.client,
                collector=collector,
            )
