"""The HTTP side of `slmctl serve`: OpenAI's chat completions over one engine, answers kept to the task."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from slmctl import console
from slmctl.config import ServeConfig
from slmctl.engine import Engine, Event, Request
from slmctl.errors import DataError, UsageError
from slmctl.server import page
from slmctl.server.route import Router
from slmctl.task import Task

MAX_BODY = 1 << 20  # bytes
GRACE_S = 5  # seconds that running answers get when the server is told to stop
KNOWN = {"model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature",
         "top_p", "seed", "stop", "n", "user"}  # fmt: skip

WHOLE = {"n", "max_tokens", "seed"}


@dataclass(frozen=True)
class Served:
    """What is served: an engine, the task it was trained for, its name, and the ceiling of an answer."""

    engine: Engine
    task: Task
    name: str
    max_tokens: int
    router: Router | None = None  # decides which answers come from a general model


class BadRequestError(Exception):
    """What is wrong with a request, in OpenAI's words: a message and the option at fault."""

    def __init__(self, message: str, param: str = "") -> None:
        super().__init__(message)
        self.message, self.param = message, param


def application(served: Served) -> Starlette:
    """The ASGI application."""
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", _completions, methods=["POST"]),
            Route("/v1/models", _models),
            Route("/healthz", _health),
            *page.routes(),
        ],
        exception_handlers={BadRequestError: _bad_request, HTTPException: _http_error},
    )
    app.state.served = served
    models, settings = {served.name: SimpleNamespace(task=served.task)}, ServeConfig(max_tokens=served.max_tokens)
    app.state.gateway = SimpleNamespace(
        served=SimpleNamespace(models=models, settings=settings), key_of=lambda http: None
    )
    app.state.created = int(time.time())
    return app


def listen(host: str, port: int) -> socket.socket:
    """Bind before the model loads, so that a port in use is said at once.

    Raises:
        UsageError: The address is not the loopback, or the port is taken.
    """
    if host not in ("127.0.0.1", "::1", "localhost"):
        raise UsageError(
            f"refused to serve on {host}: only the loopback is served, anyone could ask there", hint="--host 127.0.0.1"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(2048)  # from now on a client may connect, and no other server can take the port
    except OSError as error:
        sock.close()
        raise UsageError(
            f"port {port} on {host} cannot be bound: {error.strerror}", hint="--port 0 takes a free one"
        ) from None
    return sock


def run(served: Served, sock: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT; running answers get a few seconds to finish."""
    settings = uvicorn.Config(
        application(served), log_config=None, lifespan="off", access_log=False, timeout_graceful_shutdown=GRACE_S
    )
    server = _Server(settings)
    asyncio.run(server.run_until_told(sock))


class _Server(uvicorn.Server):
    """uvicorn ends a stopped process by the signal itself; stopping a server is no failure, so this one returns."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def run_until_told(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        await self.serve(sockets=[sock])

    def _stop(self) -> None:
        console.say("stopping")
        self.should_exit = True


async def _health(_: HttpRequest) -> Response:
    return JSONResponse({"status": "ok"})


async def _models(request: HttpRequest) -> Response:
    served: Served = request.app.state.served
    model = {"id": served.name, "object": "model", "created": request.app.state.created, "owned_by": "slmctl"}
    return JSONResponse({"object": "list", "data": [model]})


async def _completions(http: HttpRequest) -> Response:
    served: Served = http.app.state.served
    body = await _body(http)
    request = _request(body, served)
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": served.name}
    events = _events(served.engine, request)
    if served.router is not None:
        return await _routed(http, served, body, events, head)
    if body.get("stream"):
        with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        first = await anext(events)  # a request that does not fit is refused before the stream begins
        _raise_refusal(first)
        return StreamingResponse(_stream(head, first, events, with_usage, served), media_type="text/event-stream")
    last = await _whole(events)
    text = last["text"]
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": last["finish"]}
    return JSONResponse(
        {
            **head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": _usage(last),
            "slmctl": _extra(last, served),
        }
    )


async def _whole(events: AsyncIterator[Event]) -> Event:
    """The engine's last event, with the whole text."""
    text, last = "", {}
    async for event in events:
        _raise_refusal(event)
        text += event.get("piece", "")
        last = event
    return {**last, "text": text}


async def _routed(
    http: HttpRequest, served: Served, body: dict[str, Any], events: AsyncIterator[Event], head: dict[str, Any]
) -> Response:
    """One whole answer, of one model; a client that wants a stream gets it in one piece."""
    assert served.router is not None
    routed = await served.router.route(_messages(body), body, http.headers, lambda: _whole(events))
    headers = {"x-slmctl-route": routed.header}
    usage = _usage({"prompt_tokens": routed.prompt_tokens, "completion_tokens": routed.completion_tokens})
    extra = _extra(routed.local, served) | {
        "route": routed.route, "reason": routed.reason, "p_correct": routed.p_correct,
    }  # fmt: skip
    head = {**head, "model": routed.model}
    if body.get("stream"):
        chunk = {**head, "object": "chat.completion.chunk"}
        parts = [
            _chunk(chunk, {"role": "assistant", "content": routed.text}, None),
            _chunk(chunk, {}, routed.finish, slmctl=extra),
            "data: [DONE]\n\n",
        ]
        return Response("".join(parts), media_type="text/event-stream", headers=headers)
    choice = {
        "index": 0, "message": {"role": "assistant", "content": routed.text}, "finish_reason": routed.finish,
    }  # fmt: skip
    answer = {**head, "object": "chat.completion", "choices": [choice], "usage": usage, "slmctl": extra}
    return JSONResponse(answer, headers=headers)


async def _body(http: HttpRequest) -> dict[str, Any]:
    raw = b""
    async for chunk in http.stream():
        raw += chunk
        if len(raw) > MAX_BODY:
            raise HTTPException(413, f"the body is larger than {MAX_BODY} bytes")
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise BadRequestError("the body is not valid JSON") from None
    if not isinstance(body, dict):
        raise BadRequestError("the body is not a JSON object")
    return {key: value for key, value in body.items() if value is not None}


def _request(body: dict[str, Any], served: Served) -> Request:
    """What the engine is asked; an option that is not supported is refused by its name."""
    for name in body:
        if name not in KNOWN:
            raise BadRequestError(f"option '{name}' is not supported", name)
    if body.get("model", served.name) != served.name:
        raise BadRequestError(f"model '{body['model']}' is not served here; '{served.name}' is", "model")
    if _number(body, "n", 1, 1, 1) != 1:
        raise BadRequestError("only n=1 is supported", "n")
    task, conversation = served.task, _messages(body)
    if task.system:  # the model was trained with it, so no other is of use
        conversation = [{"role": "system", "content": task.system}] + [m for m in conversation if m["role"] != "system"]
    wanted = body.get("max_completion_tokens", body.get("max_tokens"))
    length = (
        served.max_tokens if wanted is None else _number({"max_tokens": wanted}, "max_tokens", 1, 1, served.max_tokens)
    )
    stop = body.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not (isinstance(stops, list) and len(stops) <= 4 and all(isinstance(s, str) and s for s in stops)):
        raise BadRequestError("'stop' must be a text or up to four texts", "stop")
    try:
        prompt = task.prompt(conversation)
        head = [m for m in conversation[:1] if m["role"] == "system"]
        prefix = task.prompt([*head, {"role": "user", "content": "\x00"}]).partition("\x00")[0]
    except DataError as error:
        raise BadRequestError(error.message, "messages") from None
    return Request(
        prompt=prompt,
        prefix=prefix,
        labels=task.labels,
        end=task.end,
        max_tokens=int(length),
        temperature=0.0 if task.labels else _number(body, "temperature", 0.0, 0, 2),
        top_p=_number(body, "top_p", 1.0, 0, 1),
        seed=int(_number(body, "seed", 0, 0, 2**63)),
        stop=(*stops, *([task.end] if task.end else [])),
        schema=task.constraint,
    )


def _messages(body: dict[str, Any]) -> list[dict[str, str]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequestError("'messages' must be a list that is not empty", "messages")
    result = []
    for k, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ("system", "developer", "user", "assistant"):
            raise BadRequestError(f"messages[{k}] needs a role: system, user or assistant", "messages")
        content = message.get("content")
        if isinstance(content, list):
            parts = [
                part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
            ]
            content = "".join(parts) if all(isinstance(part, str) for part in parts) else None  # type: ignore[arg-type]
        if not isinstance(content, str):
            raise BadRequestError(f"messages[{k}] needs content: a text", "messages")
        result.append({"role": "system" if message["role"] == "developer" else message["role"], "content": content})
    if result[-1]["role"] != "user":
        raise BadRequestError("the last message must be the user's", "messages")
    return result


def _number(body: dict[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = body.get(name, default)
    if name in WHOLE and isinstance(value, float):
        raise BadRequestError(f"'{name}' must be a whole number", name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadRequestError(f"'{name}' must be a number from {low} to {high}", name)
    return value


async def _events(engine: Engine, request: Request) -> AsyncIterator[Event]:
    """The engine's events in this event loop; leaving early, as when a client hangs up, cancels."""
    loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

    def pass_on(event: Event) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    cancel = await asyncio.to_thread(engine.submit, request, pass_on)
    try:
        while True:
            event = await events.get()
            yield event
            if "piece" not in event:
                return
    finally:
        cancel()


async def _stream(
    head: dict[str, Any], first: Event, rest: AsyncIterator[Event], with_usage: bool, served: Served
) -> AsyncIterator[str]:
    head = {**head, "object": "chat.completion.chunk"}
    yield _chunk(head, {"role": "assistant", "content": ""}, None)
    event = first
    while "piece" in event:
        yield _chunk(head, {"content": event["piece"]}, None)
        event = await anext(rest)
    await rest.aclose()  # type: ignore[attr-defined]
    if "error" in event:  # the stream ends with the error, never with a bare [DONE]
        yield f"data: {json.dumps(_error(event['error'], 'server_error'))}\n\n"
        return
    yield _chunk(head, {}, event["finish"], slmctl=_extra(event, served))
    if with_usage:
        yield f"data: {json.dumps({**head, 'choices': [], 'usage': _usage(event)})}\n\n"
    yield "data: [DONE]\n\n"


def _chunk(head: dict[str, Any], delta: dict[str, str], finish: str | None, **more: Any) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return f"data: {json.dumps({**head, 'choices': [choice], **more})}\n\n"


def _usage(event: Event) -> dict[str, int]:
    prompt, answer = event["prompt_tokens"], event["completion_tokens"]
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def _extra(event: Event, served: Served) -> dict[str, Any]:
    """What slmctl adds to OpenAI's form: how sure the model is, and of what kind the answer is."""
    return {"task": served.task.kind, "confidence": event["confidence"]}


def _raise_refusal(event: Event) -> None:
    if "error" in event:
        if "does not fit" in event["error"]:
            raise BadRequestError(event["error"], "messages")
        raise HTTPException(503, event["error"])


def _error(message: str, kind: str, param: str = "") -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param or None, "code": None}}


async def _bad_request(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, BadRequestError)
    return JSONResponse(_error(error.message, "invalid_request_error", error.param), status_code=400)


async def _http_error(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
    return JSONResponse(_error(error.detail, kind), status_code=error.status_code, headers=error.headers)
