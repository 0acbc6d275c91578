"""The way of a request: read, check, ask, keep or escalate, write."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, cast

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from slmctl.inference.events import Event
from slmctl.sensitive import conversation_veto
from slmctl.server import api_forms, collecting, openai_replies
from slmctl.server.bad_requests import BadRequestError
from slmctl.server.collecting import NO_POLICY
from slmctl.server.event_stream import EventStream
from slmctl.server.gateway import Gateway
from slmctl.server.observed import Note
from slmctl.server.openai_requests import CheckedRequest
from slmctl.server.rate_limits import HeldPlace
from slmctl.server.refusals import ROUTE, route_header
from slmctl.server.request_run import Exchange, RequestFailedError
from slmctl.server.routed import LocalAnswer, Routed
from slmctl.server.router import Router
from slmctl.server.running_model import RunningModel

SLACK_S = 5  # beyond the deadline of an answer, to send its end to a client that reads slowly


async def answer(gateway: Gateway, http: HttpRequest, kind: str) -> Response:
    """Answer `/v1/chat/completions` (`chat`), `/v1/completions` (`text`) or `/v1/responses` (`response`)."""
    key, body = await gateway.read(http)
    name, model = gateway.fleet.find(body.get("model"), key)
    ends_at = asyncio.get_running_loop().time() + gateway.settings.answer_timeout_s
    with contextlib.ExitStack() as held:
        place = gateway.limits.enter(key)
        held.callback(place.leave)
        running = await gateway.lease(name, ends_at, http.receive)
        held.callback(gateway.fleet.give_back, running)
        checked = await gateway.checked(body, kind, model.name, running)
        place.widen(len(checked.requests))
        request = _Request(gateway, checked, running, http, place, ends_at, held.pop_all().close)
    return await request.respond()


class _Request:
    """One accepted request: its response, and its lines in figures and log."""

    def __init__(
        self, gateway: Gateway, checked: CheckedRequest, running: RunningModel, http: HttpRequest, place: HeldPlace,
        ends_at: float, free: Callable[[], None],
    ) -> None:  # fmt: skip
        self.gateway, self.checked, self.running, self.http = gateway, checked, running, http
        self.place, self._free = place, free  # its place among all, and what else it holds
        self.exchange = Exchange(checked, running.backend, gateway.settings.answer_timeout_s, ends_at=ends_at)
        gateway.running.add(self.exchange)
        self.note: Note = http.state.note
        self.note.fields["stream"] = checked.stream
        if gateway.settings.log_texts:
            self.note.fields["prompt"] = checked.text
        self.note.fields["model"] = checked.model.name
        self.route, self.reason, self.name = "local", NO_POLICY, checked.model.name
        self.routed: Routed | None = None  # where a policy decides
        self._closed = False

    async def respond(self) -> Response:
        """The whole answer, or a stream that has begun: whatever fails before is still a status."""
        # a policy was fitted on the release's own answers, not on those of an adapter over it
        is_default = self.checked.model is next(iter(self.running.models.values()))
        router = self.running.router if is_default else None
        with contextlib.ExitStack() as otherwise:
            otherwise.callback(self.close, RequestFailedError("", "cancelled", 499))
            try:
                self.exchange.watch(self.http.receive)
                response = await self._own() if router is None else await self._routed(router)
            except RequestFailedError as error:
                self.close(error)
                raise
            otherwise.pop_all()
        return response

    # Ask

    async def _own(self) -> Response:
        """The answer of the model here, streamed as it comes."""
        self.exchange.begin()
        if self.checked.stream:
            index, event = await self.exchange.next()
            self._saw_first()
            return self._streaming(self._chunks(index, event))
        await self.exchange.whole()
        return self._json()

    # Keep or escalate

    async def _routed(self, router: Router) -> Response:
        """The answer of the model that the router chose; a stream of it begins when that is decided."""
        if len(self.checked.requests) > 1:
            raise BadRequestError("only n=1 and one prompt are supported where a policy decides who answers", "n")
        (choice,) = self.exchange.choices
        pieces = list[Event]()

        async def local() -> LocalAnswer:
            self.exchange.begin()
            pieces.extend(await self.exchange.whole())
            return {**choice.last, "text": choice.text}

        ends_at = self.exchange.deadline  # so that the local answer is still given where the general model is slow
        work = router.route(
            self.checked.sent, self.checked.options, self.http.headers, local, ends_at=ends_at, request=self.note.id,
            log=self.gateway.log, unread=self.checked.unread, also=self.checked.also, offer=self.checked.offer,
        )  # fmt: skip
        self.routed = routed = await self.exchange.beside(work)
        self.route, self.reason, self.name = routed.route, routed.reason, routed.model
        if routed.route != "local":
            choice.text, choice.tokens, pieces = routed.text, [], [{"piece": routed.text}]
            used = {"prompt_tokens": routed.prompt_tokens, "completion_tokens": routed.completion_tokens}
            choice.last = cast(Event, {**routed.local, **used, "finish": routed.finish})
        self._saw_first()
        return self._streaming(self._decided(pieces)) if self.checked.stream else self._json()

    # Write

    def _json(self) -> Response:
        choices = self.exchange.choices
        body = api_forms.whole(
            self.checked, choices, [self._extra(choice.last) for choice in choices], self.running.backend.build,
            self.name,
        )  # fmt: skip
        self.close()
        return JSONResponse(body, headers=self._headers())

    def _streaming(self, parts: AsyncGenerator[bytes, None]) -> Response:
        return EventStream(parts, self.exchange.deadline + SLACK_S, self._headers(), self.close)

    async def _chunks(self, index: int, event: Event) -> AsyncGenerator[bytes, None]:
        """Every event as it comes; an answer that fails ends with the error, never with a bare [DONE]."""
        stream = self._stream()
        part = stream.opening()
        try:
            while True:
                is_piece = "piece" in event
                part += stream.piece(index, event) if is_piece else stream.end(index, event, self._extra(event))
                if not self.exchange.running:
                    break
                yield part
                index, event = await self.exchange.next()
                part = b""
        except RequestFailedError as error:
            self.close(error)
            said = openai_replies.error(error.message, error.kind, code=error.code, request_id=self.note.id)
            yield stream.failed(said)
            return
        part += stream.ending(self._lasts)
        self.close()
        yield part

    async def _decided(self, pieces: Sequence[Event]) -> AsyncGenerator[bytes, None]:
        """A whole answer as a stream."""
        stream = self._stream()
        part = stream.opening()
        for event in pieces:
            if "piece" in event:
                yield part + stream.piece(0, event)
                part = b""
        (last,) = self._lasts
        part += stream.end(0, last, self._extra(last)) + stream.ending(self._lasts)
        self.close()
        yield part

    def _stream(self) -> api_forms.AnswerStream:
        return api_forms.stream(self.checked, self.running.backend.build, self.name)

    @property
    def _lasts(self) -> list[Event]:
        return [choice.last for choice in self.exchange.choices]

    def _extra(self, event: Event) -> dict[str, Any]:
        """slmctl's own fields of an answer, beside OpenAI's."""
        who: dict[str, Any] = {
            "route": self.route, "reason": self.reason, "model": self.name, "seconds": self.note.seconds
        }  # fmt: skip
        if self.name == self.checked.model.name:  # no general model: it has neither a version nor a file here
            who |= openai_replies.release(self.checked.model)
        if self.routed is not None and self.routed.p_correct is not None:
            who["p_correct"] = self.routed.p_correct
        return openai_replies.facts(self.checked, event) | who

    def _headers(self) -> dict[str, str]:
        return {ROUTE: route_header(self.route, self.reason)}

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
        if error is None:
            self._count(seconds)
            return
        if error.code != "refused":
            self.gateway.metrics.failed.labels(error.code).inc()
        self.note.fields["failed"] = error.code

    def _count(self, seconds: float) -> None:
        """Count a whole answer, and have it collected."""
        metrics, name, lasts = self.gateway.metrics, self.checked.model.name, self._lasts
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
        if (collector := self.gateway.fleet.collector) is not None:
            collecting.hand_over(
                self.checked, self.exchange.choices, self.routed, id=self.note.id,
                is_marked=conversation_veto.is_marked(self.http.headers), collector=collector,
            )  # fmt: skip
