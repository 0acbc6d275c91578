"""Who answers: the own engine, or any OpenAI-compatible server behind the gateway. Both tell the engine's events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import time
from collections.abc import AsyncGenerator, Callable, Set
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx
import referencing
from jsonschema import Draft202012Validator, validators
from jsonschema.exceptions import UnknownType
from referencing.exceptions import Unresolvable

from slmctl.errors import DataError, NetworkError
from slmctl.inference.engine import Engine, EngineError, Event, Request
from slmctl.network import openai_client
from slmctl.server.log import Log
from slmctl.server.metrics import Metrics
from slmctl.server.openai_requests import Asked

Put = Callable[[Event], None]
Cancel = Callable[[], None]
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 10.0  # before the engine is started once more
MAX_BYTES = 8_000_000  # of one reply
LOOK_S = 2.0  # for another server to say that it is there, and as long that is believed
MAX_STEPS = 100_000  # keywords of a client's own schema that are applied to one answer: about a second
# Words of a refusal that is of the option itself, and so of every request's; others may be of its value.
UNKNOWN = re.compile(
    r"unknown|unrecogni[sz]ed|unsupported|unexpected|extra (inputs?|fields?)|additional|"
    r"not (supported|permitted|allowed|recogni[sz]ed|implemented)|no such",
    re.IGNORECASE,
)


class Backend(Protocol):
    """Something that answers requests, in the event loop that it is started in."""

    @property
    def build(self) -> str: ...
    @property
    def ready(self) -> bool: ...
    async def look(self) -> None: ...
    def start(self, log: Log, metrics: Metrics) -> None: ...
    def fault_of(self, schema: dict[str, Any]) -> str: ...
    def begin(self, asked: Asked, index: int, put: Put) -> Cancel: ...
    async def close(self) -> None: ...


class Local:
    """The engine of this process; it is started again at once when it dies."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._parked: dict[object, Callable[[], None]] = {}  # requests that came while there was no engine
        self._reviving: asyncio.Task[None] | None = None

    @property
    def build(self) -> str:
        return f"llama-cpp-python {self.engine.info['build']}"

    @property
    def ready(self) -> bool:
        return self._reviving is None and self.engine.alive

    async def look(self) -> None:
        """Nothing: it is known at any time whether the engine lives."""

    def start(self, log: Log, metrics: Metrics) -> None:
        self._loop, self._log, self._metrics = asyncio.get_running_loop(), log, metrics
        self.engine.on_death = lambda: self._later(self._died)

    def fault_of(self, schema: dict[str, Any]) -> str:
        """Why answers cannot be held to a JSON Schema; empty where they can. It may take a while."""
        from slmctl.inference import json_grammar  # llguidance: a gateway before another engine is installed without it

        try:
            json_grammar.require(schema)
        except DataError as error:
            return error.message
        return ""

    def begin(self, asked: Asked, index: int, put: Put) -> Cancel:
        """Have one choice answered; the events come in this loop, until `finish` or `error`, or the cancel."""
        mark = object()
        cancels: list[Cancel] = []

        def submit() -> None:
            request = asked.requests[index]
            cancels.append(self.engine.submit(request, lambda event: self._later(put, event)))

        def cancel() -> None:
            self._parked.pop(mark, None)
            for one in cancels:
                one()

        if self.engine.alive and self._reviving is None:
            submit()
        else:
            self._parked[mark] = submit
            self._died()
        return cancel

    async def close(self) -> None:
        if self._reviving is not None:
            self._reviving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reviving

    def _later(self, call: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits any more
            self._loop.call_soon_threadsafe(call, *args)

    def _died(self) -> None:
        if self._reviving is None and not self.engine.alive:
            self._reviving = asyncio.create_task(self._revive())

    async def _revive(self) -> None:
        wait = FIRST_WAIT_S
        self._log.event("engine_died")
        while not self.engine.alive:
            try:
                await asyncio.to_thread(self.engine.revive)
            except EngineError as error:
                self._log.event("engine_cannot_start", error=error.message, again_in_s=wait)
                await asyncio.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT_S)
        self._metrics.restarts.inc()
        self._log.event("engine_restarted")
        self._reviving = None
        parked, self._parked = list(self._parked.values()), {}
        for submit in parked:
            submit()


class Elsewhere:
    """An OpenAI-compatible server that has the release's model (vLLM, llama-server, another slmctl).

    It is asked as the model was trained, with the labels or the schema as a constraint where it knows one;
    whatever it says, an answer that the task does not allow is an error and not an answer.
    """

    def __init__(self, url: str, model: str, key_env: str | None, concurrency: int) -> None:
        self.url = openai_client.completions(url)
        self.model, self._key_env = model, key_env
        self._headers = {"Authorization": f"Bearer {openai_client.read_key(key_env)}"} if key_env else {}
        self._refused: set[str] = set()
        self._limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        self._tasks: set[asyncio.Task[None]] = set()
        self._there, self._looked = True, -math.inf

    @property
    def hosts(self) -> set[str]:
        """Whom this process must be able to reach."""
        return {urlsplit(self.url).hostname or ""}

    @property
    def build(self) -> str:
        return f"engine at {urlsplit(self.url).netloc}"

    @property
    def ready(self) -> bool:
        return self._there

    async def look(self) -> None:
        """Ask whether the other server is there, unless that was asked a moment ago."""
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        try:
            said = await self._looker.get(self.url.removesuffix("/chat/completions") + "/models")
            self._there = said.status_code < 500  # a server without a list of models is there too
        except (httpx.HTTPError, OSError, NetworkError):
            self._there = False

    def start(self, log: Log, metrics: Metrics) -> None:
        self._log = log
        # no proxy of the environment, which would be told everything; the deadline of the answer is the gateway's
        self._client = httpx.AsyncClient(
            headers=self._headers, timeout=httpx.Timeout(None, connect=10), limits=self._limits, trust_env=False
        )
        # a connection of its own, which no answer keeps busy
        self._looker = httpx.AsyncClient(headers=self._headers, timeout=LOOK_S, trust_env=False)

    def fault_of(self, schema: dict[str, Any]) -> str:
        """Nothing: the server says so itself."""
        return ""

    def begin(self, asked: Asked, index: int, put: Put) -> Cancel:
        task = asyncio.create_task(self._answer(asked, index, put))
        self._tasks.add(task)

        def ended(done: asyncio.Task[None]) -> None:
            self._tasks.discard(done)
            error = None if done.cancelled() else done.exception()
            if error is not None:  # whatever it is, nobody is to wait for the deadline
                self._log.event("engine_failed", error=type(error).__name__)
                put({"error": f"the engine cannot be asked: {type(error).__name__}"})

        task.add_done_callback(ended)

        def cancel() -> None:
            task.cancel()

        return cancel

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()
        await self._looker.aclose()

    async def _answer(self, asked: Asked, index: int, put: Put) -> None:
        reply, request = _Reply(), asked.requests[index]
        held = bool(request.labels or request.schema)  # such an answer is shown when it is known to be one
        try:
            async with contextlib.aclosing(self._pieces(asked, index, reply)) as pieces:
                async for event in pieces:
                    if not held:
                        put(event)
        except httpx.HTTPError as error:
            put({"error": f"the engine cannot be asked: {type(error).__name__}"})
            return
        except _RefusedError as error:
            put({"error": error.message, "refused": error.status == 400})
            return
        if reply.finish is None:
            put({"error": "the engine's answer was cut off"})
        elif held and (text := await _read(asked, request, reply.text)) is None:
            whose = f"a task of kind '{asked.model.task.kind}'" if asked.model.held else "the request"
            put({"error": f"the engine's answer, which ended with '{reply.finish}', is none that {whose} allows"})
        else:
            if held:
                put({"piece": text, **reply.told})
            put(reply.last)

    async def _pieces(self, asked: Asked, index: int, reply: _Reply) -> AsyncGenerator[Event, None]:
        """Ask, without what this server does not know, and read its stream."""
        gone = set[str]()  # from this request, beside what is gone from all
        while True:
            body = self._body(asked, index, gone)
            url = self.url if asked.turns[index] else self.url.removesuffix("/chat/completions") + "/completions"
            async with self._client.stream("POST", url, json=body) as response:
                if response.status_code == 200:
                    size = 0
                    async for line in response.aiter_lines():
                        size += len(line)
                        if size > MAX_BYTES:
                            raise _RefusedError(f"the engine said more than {MAX_BYTES} bytes", 502)
                        if line.startswith("data:") and (event := reply.read(line[5:].strip())):
                            yield event
                    return
                raw = (await response.aread())[:MAX_BYTES]
                said = openai_client.message(raw)
                names = [name for name in openai_client.OPTIONAL if name in body and name in said]
                if response.status_code not in (400, 422) or not names:
                    raise _RefusedError(
                        f"the engine refused: HTTP {response.status_code}: {said}", response.status_code
                    )
                gone.update(names)
                if UNKNOWN.search(said):
                    self._refused.update(names)

    def _body(self, asked: Asked, index: int, gone: Set[str]) -> dict[str, Any]:
        """What is asked: the conversation as it is rendered here, its control tokens broken up."""
        request, task = asked.requests[index], asked.model.task
        asks = {"messages": task.safe(asked.turns[index])} if asked.turns[index] else {"prompt": request.prompt}
        body: dict[str, Any] = {
            "model": self.model, **asks, "max_tokens": request.max_tokens, "temperature": request.temperature,
            "top_p": request.top_p, "seed": request.seed, "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        stops = [stop for stop in request.stop if stop != task.end]
        if stops:
            body["stop"] = stops
        if asked.turns[index]:
            body |= {"logprobs": True} | ({"top_logprobs": request.alternatives} if request.alternatives > 0 else {})
        body |= openai_client.held(request.labels, request.schema)
        left_out = self._refused | gone
        left_out |= {"top_logprobs"} if "logprobs" in left_out else set()
        return {name: value for name, value in body.items() if name not in left_out}


class _RefusedError(Exception):
    """What another server said instead of an answer."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.message, self.status = message, status


class _Reply:
    """What another server has said so far, chunk by chunk."""

    def __init__(self) -> None:
        self.text = ""
        self.finish: str | None = None
        self._logprobs: list[float] = []
        self._tokens: list[Event] = []
        self._usage: dict[str, Any] = {}
        self._own: dict[str, Any] = {}  # what slmctl's own server adds

    def read(self, line: str) -> Event | None:
        """The event of one chunk, if it is one."""
        if line == "[DONE]":
            return None
        with contextlib.suppress(ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            chunk = json.loads(line)
            self._usage = chunk.get("usage") or self._usage
            self._own = chunk.get("slmctl") or self._own
            if not chunk["choices"]:
                return None
            choice = chunk["choices"][0]
            piece = choice["text"] if "text" in choice else choice["delta"].get("content")
            tokens = [_token(one) for one in ((choice.get("logprobs") or {}).get("content") or [])]
            self._tokens += tokens
            self._logprobs += [token["logprob"] for token in tokens]
            self.finish = choice.get("finish_reason") or self.finish
            if isinstance(piece, str) and piece:
                self.text += piece
                return {"piece": piece, **({"tokens": tokens} if tokens else {})}
        return None

    @property
    def told(self) -> Event:
        """The tokens of an answer that is told as one piece."""
        return {"tokens": self._tokens} if self._tokens else {}

    @property
    def last(self) -> Event:
        """The event that ends the answer, as the engine would tell it."""
        labels = self._own.get("labels")
        return {
            "finish": self.finish,
            "prompt_tokens": _count(self._usage.get("prompt_tokens")),
            "completion_tokens": _count(self._usage.get("completion_tokens")),
            "confidence": openai_client.confidence(self._own.get("confidence"), self._logprobs),
            "logprobs": self._logprobs,
            **({"labels": labels} if isinstance(labels, dict) else {}),
        }


async def _read(asked: Asked, request: Request, text: str) -> str | None:
    """The answer, if the task, or else the client's own choices or schema, allows it."""
    if request.labels:
        return next((one for one in (text, text.strip()) if one in request.labels), None)
    if asked.model.held:
        return text if asked.model.task.accepts(text) else None
    return text if await asyncio.to_thread(_satisfies, request.schema, text) else None


def _satisfies(schema: str, text: str) -> bool:
    """Whether an answer satisfies a client's own schema, as far as that takes a bounded time.

    Regular expressions are left to the engine: matching one can take for ever. References lead nowhere else.
    """
    form, left = json.loads(schema), MAX_STEPS

    def bounded(apply: Callable[..., Any]) -> Callable[..., Any]:
        def applied(*args: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise _EndlessError
            return apply(*args) or ()

        return applied

    named = ("patternProperties", "additionalProperties", "unevaluatedProperties")  # properties by expressions
    skipped = {"pattern", *(named if '"patternProperties"' in schema else ())}
    known = Draft202012Validator.VALIDATORS
    check = validators.extend(  # type: ignore[no-untyped-call]
        Draft202012Validator,
        {name: bounded((lambda *_: ()) if name in skipped else apply) for name, apply in known.items()},
    )
    try:
        return not any(check(form, registry=referencing.Registry()).iter_errors(json.loads(text)))
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError):
        return False  # no JSON, or a schema that means nothing
    except (UnknownType, Unresolvable, _EndlessError):
        return False


class _EndlessError(Exception):
    """A schema takes too long to apply."""


def _token(said: dict[str, Any]) -> Event:
    top = [_named(one) for one in said.get("top_logprobs") or []]
    return _named(said) | {"top": top}


def _named(said: dict[str, Any]) -> Event:
    text = str(said["token"])
    return {"token": text, "bytes": said.get("bytes") or list(text.encode()), "logprob": float(said["logprob"])}


def _count(value: Any) -> int:
    return value if type(value) is int and value >= 0 else 0
