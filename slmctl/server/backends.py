"""Backends of the server: the own engine, or an OpenAI-compatible
endpoint; both emit the engine's events.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import urlsplit

from slmctl.inference import grammar_pool
from slmctl.inference.engine import Answering, Request
from slmctl.inference.events import Event
from slmctl.inference.supervised_child import EngineError
from slmctl.network.endpoint_replies import EndpointError, StreamedReply
from slmctl.network.openai_client import EXTENSIONS, EndpointClient, EndpointRequest, constraint
from slmctl.server.forms.client_schemas import satisfies
from slmctl.server.forms.request import CheckedRequest
from slmctl.server.log import Log
from slmctl.server.metrics import Metrics
from slmctl.server.places import Places

Put = Callable[[Event], None]
Cancel = Callable[[], object]
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 10.0  # before the engine is started once more
LOOK_S = 2.0  # for another server to say that it is there, and as long that is believed


class Backend(Protocol):
    """Something that answers requests, in the event loop that it is started in."""

    @property
    def build(self) -> str: ...

    @property
    def ready(self) -> bool: ...

    def held_bytes(self) -> int:
        """Bytes of memory on this machine."""

    async def look(self) -> None:
        """Ask for a sign of life, unless that was done a moment ago."""

    def start(self, log: Log, metrics: Metrics) -> None: ...

    def fault_of(self, form: str) -> str:
        """Why answers cannot be held to a JSON Schema or a grammar of
        calls; empty where they can, after a while.
        """

    def begin(self, checked: CheckedRequest, index: int, put: Put) -> Cancel:
        """Have one choice answered; the events come in this loop, until
        `finish` or `error`, or the cancel.
        """

    async def close(self) -> None: ...


class LocalEngine:
    """An engine of this process; it is started again at once when it dies."""

    def __init__(self, engine: Answering, model: str) -> None:
        self.engine, self._model = engine, model
        # requests that came while there was no engine
        self._parked: dict[object, Callable[[], None]] = {}
        self._reviving: asyncio.Task[None] | None = None

    @property
    def build(self) -> str:
        build = self.engine.build
        # of linear members another program's
        return f"llama-cpp-python {build}" if build[:1].isdigit() else build

    @property
    def ready(self) -> bool:
        return self._reviving is None and self.engine.state == "ready"

    def held_bytes(self) -> int:
        return self.engine.held_bytes()

    async def look(self) -> None:
        """Nothing: the engine is asked for a sign of life all the time."""

    def start(self, log: Log, metrics: Metrics) -> None:
        self._loop = asyncio.get_running_loop()
        self._log = log
        self._metrics = metrics
        self.engine.on_death = lambda: self._later(self._died)

    def fault_of(self, form: str) -> str:
        return grammar_pool.fault_of(form)

    def begin(self, checked: CheckedRequest, index: int, put: Put) -> Cancel:
        mark = object()
        cancels: list[Cancel] = []

        def submit() -> None:
            request = checked.requests[index]
            cancels.append(self.engine.submit(request, lambda event: self._later(put, event)))

        def cancel() -> None:
            self._parked.pop(mark, None)
            for cancel_request in cancels:
                cancel_request()

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
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it every waiter
            self._loop.call_soon_threadsafe(call, *args)

    def _died(self) -> None:
        if self._reviving is None and not self.engine.alive:
            self._reviving = asyncio.create_task(self._revive())

    async def _revive(self) -> None:
        wait = FIRST_WAIT_S
        self._log.event("engine_died", model=self._model)
        while not self.engine.alive:
            try:
                await asyncio.to_thread(self.engine.revive)
            except (
                EngineError,
                OSError,
            ) as error:  # no file or process left is no reason to give up for good
                self._log.event(
                    "engine_cannot_start", error=str(error), again_in_s=wait, model=self._model
                )
                await asyncio.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT_S)
        self._metrics.restarts.inc()
        self._log.event("engine_restarted", model=self._model)
        self._reviving = None
        parked, self._parked = list(self._parked.values()), {}
        for submit in parked:
            submit()


class EndpointEngine:
    """An OpenAI-compatible server that has the release's model (vLLM, llama-server, another
    slmctl).

    It is asked as the model was trained, with the labels or the schema as a constraint where it
    knows one; whatever it answers, an answer that the task does not allow is an error and not an
    answer. Keys take turns at the places for requests that are with it.

    Args:
        concurrency: Requests that are with it at the same time.
    """

    def __init__(self, url: str, model: str, key_env: str | None, concurrency: int) -> None:
        # no proxy of the environment, which would read everything; the deadline of the answer is
        # the gateway's
        self.endpoint = EndpointClient(
            url, model, key_env, connections=concurrency, droppable=EXTENSIONS
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._places = Places(concurrency)
        self._there, self._looked_at = True, -math.inf

    @property
    def build(self) -> str:
        return f"engine at {urlsplit(self.endpoint.url).netloc}"

    @property
    def ready(self) -> bool:
        return self._there

    def held_bytes(self) -> int:
        return 0  # the weights are with the other server

    async def look(self) -> None:
        now = time.monotonic()
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            self._there = await self.endpoint.is_there(LOOK_S)

    def start(self, log: Log, metrics: Metrics) -> None:
        self._log = log

    def fault_of(self, form: str) -> str:
        return ""  # the other server refuses what it cannot do

    def begin(self, checked: CheckedRequest, index: int, put: Put) -> Cancel:
        task = asyncio.create_task(self._answer(checked, index, put))
        self._tasks.add(task)

        def ended(done: asyncio.Task[None]) -> None:
            self._tasks.discard(done)
            error = None if done.cancelled() else done.exception()
            if error is not None:  # whatever it is, no client is to wait for the deadline
                self._log.event("engine_failed", error=type(error).__name__)
                put({"error": f"the engine cannot be asked: {type(error).__name__}"})

        task.add_done_callback(ended)
        return task.cancel

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.endpoint.close()

    async def _answer(self, checked: CheckedRequest, index: int, put: Put) -> None:
        reply, request = StreamedReply(), checked.requests[index]
        if checked.questions:
            fault = (
                "another server behind --engine-url does not tell the probability of every "
                "label: ask a chat"
            )
            put({"error": fault, "refused": True})
            return
        # such an answer is shown when it is known to be one
        held = bool(request.labels or request.schema)
        question = _question(checked, index)
        try:
            async with (
                self._places.hold(request.client),
                contextlib.aclosing(self.endpoint.stream(question, reply)) as deltas,
            ):
                async for delta in deltas:
                    if not held:
                        put(
                            {
                                "piece": delta.text,
                                **({"tokens": delta.tokens} if delta.tokens else {}),
                            }
                        )
        except EndpointError as error:
            verb = "refused" if error.kind == "refused" else "cannot be asked"
            put({"error": f"the engine {verb}: {error.message}", "refused": error.status == 400})
            return
        if reply.finish is None:
            put({"error": "the engine's answer was cut off"})
        elif not held:
            put(_last(reply))
        elif (text := await _read(checked, request, reply.text)) is None:
            whose = (
                f"a task of kind '{checked.model.task.kind}'"
                if checked.model.held
                else "the request"
            )
            put(
                {
                    "error": f"the engine's answer, which ended with '{reply.finish}', is none "
                    f"that {whose} allows"
                }
            )
        else:
            put({"piece": text, **({"tokens": reply.tokens} if reply.tokens else {})})
            put(_last(reply))


def _question(checked: CheckedRequest, index: int) -> EndpointRequest:
    """One choice as another server is asked: the conversation as it is
    rendered here, its control tokens broken up.
    """
    request = checked.requests[index]
    task = checked.model.task
    turns = checked.turns[index]
    options: dict[str, object] = {"top_p": request.top_p, "seed": request.seed}
    if turns:
        options |= {"logprobs": True} | (
            {"top_logprobs": request.alternatives} if request.alternatives > 0 else {}
        )
    return EndpointRequest(
        task.safe_messages(turns),
        request.max_tokens,
        request.temperature,
        stop=tuple(stop for stop in request.stop if stop != task.end),
        options=options | constraint(request.labels, request.schema),
        prompt=request.prompt,
    )


def _last(reply: StreamedReply) -> Event:
    """The event that ends an answer, as the own engine tells it."""
    return {
        "finish": reply.finish or "",
        "prompt_tokens": reply.prompt_tokens or 0,
        "completion_tokens": reply.completion_tokens or 0,
        "confidence": reply.confidence,
        "logprobs": reply.logprobs,
        **({"labels": reply.labels} if reply.labels else {}),
    }


async def _read(checked: CheckedRequest, request: Request, text: str) -> str | None:
    """The answer, if the task, or else the client's own choices or schema, allows it."""
    if request.labels:
        return next(
            (candidate for candidate in (text, text.strip()) if candidate in request.labels), None
        )
    if checked.model.held:
        text = checked.model.task.rules.kept(text)
        return text if await asyncio.to_thread(checked.model.task.accepts, text) else None
    return text if await asyncio.to_thread(satisfies, request.schema, text) else None
