"""`POST /v1/feedback`: a client's word on an answer, by the id of its
request; the last one on an answer counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from slmctl.errors import DataError
from slmctl.production.collector import MOST_WORDS, Collector
from slmctl.server.api_keys import Key
from slmctl.server.forms.request import read_body
from slmctl.server.gateway import Gateway
from slmctl.server.rate_limits import ANYBODY
from slmctl.server.request_errors import RequestError
from slmctl.task import tool_calls
from slmctl.task.contract import Task

FIELDS = ("request_id", "ok", "answer")
WRITE_S = 10.0  # for the disk


async def take(http: HttpRequest) -> Response:
    """Check a word on an answer and write it down; the reply comes when it is on the disk.

    Raises:
        RequestError: A field is missing or wrong, the task does not allow the answer, or the key
            asks too much.
        HTTPException: The key is not known, no answers are collected, or this id was not answered
            here lately.
    """
    gateway: Gateway = http.app.state.gateway
    key = gateway.key_of(http)
    gateway.limits.count(key)
    collector = gateway.fleet.collector
    if collector is None:
        raise HTTPException(404, "feedback is not taken here: serve.collect is not set")
    with gateway.limits.place(key) as place:
        place.take("", 1)  # a word is searched as a question is, by the same processes
        return await _taken(http, gateway, collector, key)


async def _taken(http: HttpRequest, gateway: Gateway, collector: Collector, key: Key) -> Response:
    """Check a word and write it down; see `take`."""
    word = _read(read_body(await gateway.body_of(http)))
    id, answer = word.id, word.answer
    answered = await asyncio.to_thread(collector.find, id)
    if answered is None or not key.may_ask(answered.model):
        raise HTTPException(404, f"request '{id}' was not answered here lately")
    models = gateway.fleet.models(ANYBODY)
    task = (models.get(answered.model) or next(iter(models.values()))).task
    if answer is not None:
        answer = await asyncio.to_thread(_allowed, answer, task, answered.offers)
    if answer and not task.rules.chooses:
        answer = await asyncio.wrap_future(collector.cleared(answer, client=key.name))
        if answer is None:
            raise RequestError(
                "'answer' holds personal data or a secret, which is not collected here", "answer"
            )
    if answered.words >= MOST_WORDS:
        raise HTTPException(409, f"there are {MOST_WORDS} words on request '{id}' already")
    written = collector.say(answered, ok=word.ok, answer=answer, key=key.name)
    try:
        done = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(written)), WRITE_S)
    except TimeoutError:
        done = False
    if not done:
        raise HTTPException(503, "the feedback could not be written down", {"retry-after": "1"})
    return JSONResponse(
        {"request_id": id, "ok": word.ok, "answer": answer, "collected": answered.collected}
    )


class _Word(NamedTuple):
    """A word on the answer to a request: whether it was right, or the right one, or both."""

    id: str
    ok: bool | None
    answer: str | None


def _read(body: dict[str, Any]) -> _Word:
    """The word in the body of a request.

    Raises:
        RequestError: A field is missing, unknown or of another type.
    """
    for name in body:
        if name not in FIELDS:
            raise RequestError(
                f"field '{name[:100]}' is not known; known: {', '.join(FIELDS)}", name[:100]
            )
    id, ok = body.get("request_id"), body.get("ok")
    answer = body.get("answer")
    if not isinstance(id, str) or not 0 < len(id) <= 100:
        raise RequestError("'request_id' must be the x-request-id of an answer", "request_id")
    if ok is not None and not isinstance(ok, bool):
        raise RequestError("'ok' must be true or false", "ok")
    if isinstance(answer, dict | list):
        answer = json.dumps(answer, ensure_ascii=False, sort_keys=True)
    if answer is not None and (not isinstance(answer, str) or not answer.strip()):
        raise RequestError(
            "'answer' must be a text that is not empty, an object for a task of kind extract or "
            "call, a list for tag",
            "answer",
        )
    if ok is None and answer is None:
        raise RequestError("feedback needs 'ok', 'answer' or both", "ok")
    return _Word(id, ok, answer.strip() if isinstance(answer, str) else None)


def _allowed(answer: str, task: Task, offers: bool) -> str:
    """An answer that the task allows; a call in the form that files have.

    Raises:
        RequestError: The task does not allow it.
    """
    if task.rules.calls:
        with contextlib.suppress(DataError):
            call = tool_calls.read_answer(answer)
            if not offers:  # which ones a client offered is not kept
                tool_calls.require_offered(call, task.rules.offered())
            return tool_calls.answer_of(call)
        raise RequestError(
            f"'answer' is neither a call of the task's tools nor '{tool_calls.NO_CALL}'", "answer"
        )
    if not task.accepts(answer):
        allowed = (
            "one of the task's labels"
            if task.rules.chooses
            else "JSON that satisfies the task's schema"
        )
        raise RequestError(f"'answer' is not {allowed}", "answer")
    return task.rules.kept(answer)
