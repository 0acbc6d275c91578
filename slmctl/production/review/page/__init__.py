"""The web page of `slmctl review`, to decide row by row with the keyboard.

One self-contained document, with the content security policy of the server's page. The token in the
printed address is its fragment (after `#`), so no log and no referrer holds it; the page sends it
with every request.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Generic

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.network.endpoint_replies import is_text
from slmctl.network.http_server import SignalledServer
from slmctl.production.review.near_rows import Neighbour, TrainingRows
from slmctl.production.review.pairs import AnswerPair, bounded
from slmctl.production.review.review_rows import ReviewRow
from slmctl.production.review.session import (
    DecisionRefusedError,
    DecisionSession,
    ReviewSession,
    RowT,
)
from slmctl.reports.served_page import served_page
from slmctl.task.contract import Task

HOST = "127.0.0.1"
END_S = 2  # seconds for running requests when the server of the page stops
MAX_BODY = 16 << 20  # bytes of a request, which holds one answer
OPTIONS = 5  # labels that can be chosen by a digit
NEAR = 5  # training rows that are shown


class _NoTokenError(DecisionRefusedError):
    """A request without the token of the printed address."""


class Desk(Generic[RowT]):
    """The state of the page's server; a subclass says how a row is shown.

    Args:
        session: The queue and its reviewer.
        project: Name of the project, for the title.

    Attributes:
        token: Token that every request must send.
    """

    def __init__(self, session: DecisionSession[RowT, Any], project: str = "") -> None:
        self.session, self.project = session, project
        self.token = secrets.token_urlsafe(24)

    def about(self) -> JsonObject:
        """The facts that the page asks for once: at least the `kind` of its rows."""
        raise NotImplementedError

    def view(self, candidate: RowT) -> JsonObject:
        """A row as the page shows it."""
        raise NotImplementedError

    def app(self) -> Starlette:
        app = Starlette(
            routes=[
                Route("/", _page),
                Route("/v1/review/task", _task),
                Route("/v1/review/next", _next, methods=["POST"]),
                Route("/v1/review/decide", _decide, methods=["POST"]),
                Route("/v1/review/undo", _undo, methods=["POST"]),
            ],
            exception_handlers={DecisionRefusedError: _refused, OSError: _not_written},
        )
        app.state.desk = self
        return app

    def address(self, sock: socket.socket) -> str:
        """The page's address with the token as its fragment, which browsers do not send."""
        return f"http://{HOST}:{sock.getsockname()[1]}/#{self.token}"

    def run(self, sock: socket.socket) -> None:
        """Serve the page until SIGINT or SIGTERM; running requests are still answered."""
        settings = uvicorn.Config(
            self.app(),
            log_config=None,
            lifespan="off",
            access_log=False,
            server_header=False,
            ws="none",
            loop="asyncio",
            timeout_graceful_shutdown=END_S,
        )
        asyncio.run(SignalledServer(settings).run_until_stopped(sock))

    def state(self, candidate: RowT | None) -> JsonObject:
        """The response to each request of the page: a row, None at the
        end, and the progress of the session.
        """
        row = self.view(candidate) if candidate is not None else None
        return {"row": row, "progress": asdict(self.session.progress())}


class ReviewDesk(Desk[ReviewRow]):
    """Shows collected answers and suspected labels; `training`: the rows
    among which near ones are looked up.
    """

    def __init__(
        self, session: ReviewSession, training: TrainingRows | None = None, project: str = ""
    ) -> None:
        super().__init__(session, project)
        self.training, self.task = training, session.task

    def about(self) -> JsonObject:
        return {
            "kind": self.task.kind,
            "labels": list(self.task.labels),
            "schema": self.task.schema,
        }

    def view(self, candidate: ReviewRow) -> JsonObject:
        row, heard = candidate.row, candidate.feedback
        near = self.training.nearest(row.question, NEAR + 1) if self.training is not None else []
        # not itself
        near = [each for each in near if candidate.chosen != "suspect" or each.text != row.question]
        client = (
            ""
            if heard is None
            else heard.answer or {True: "right", False: "wrong", None: ""}[heard.ok]
        )
        return {
            "id": row.id,
            "chosen": candidate.chosen,
            "seen": row.time,
            "messages": [turn for turn in row.messages if turn.get("role") != "system"],
            "answer": candidate.before,
            "confidence": row.confidence,
            "p_correct": row.p_correct,
            "general": row.general_answer,
            "proposed": candidate.proposed,
            "client": client,
            "options": likely_labels(self.task, candidate, near[:NEAR]),
            "near": [
                {"text": each.text, "answer": each.answer, "similarity": each.similarity}
                for each in near[:NEAR]
            ],
        }


class PairDesk(Desk[AnswerPair]):
    """Shows pairs of answers, left and right; nothing that it sends names a model."""

    def about(self) -> JsonObject:
        return {"kind": "pairs", "labels": []}

    def view(self, candidate: AnswerPair) -> JsonObject:
        turns = [turn for turn in candidate.messages if turn["role"] != "system"]
        calls = [json.dumps(turn["tool_calls"]) if "tool_calls" in turn else "" for turn in turns]
        rows = zip(turns, calls, strict=True)
        shown = [
            {"role": turn["role"], "content": bounded(turn["content"] or call)}
            for turn, call in rows
        ]
        left, right = map(bounded, candidate.sides)
        return {"id": candidate.id, "messages": shown, "left": left, "right": right}


def likely_labels(task: Task, candidate: ReviewRow, near: list[Neighbour]) -> list[JsonObject]:
    """The labels to choose by a digit: the model's, likeliest first,
    then proposals, then those of near rows.
    """
    ranked = sorted(candidate.row.labels.items(), key=lambda item: -item[1])
    names = [
        candidate.before,
        *(name for name, _ in ranked),
        *candidate.proposals,
        *(each.answer for each in near),
    ]
    chances = {candidate.before: candidate.row.confidence, **dict(ranked)}
    allowed = [name for name in dict.fromkeys([*names, *task.labels]) if name in task.labels]
    return [{"label": name, "probability": chances.get(name)} for name in allowed[:OPTIONS]]


async def _page(_: Request) -> Response:
    page = served_page(__name__)
    return HTMLResponse(page.html, headers=page.headers)


def _desk(request: Request) -> Desk[Any]:
    """The desk of the app, for a request with the right token.

    Raises:
        _NoTokenError: The token is missing or wrong.
    """
    desk: Desk[Any] = request.app.state.desk
    shown = request.headers.get("authorization", "").removeprefix("Bearer ")
    if not secrets.compare_digest(shown.encode(), desk.token.encode()):
        raise _NoTokenError(
            "this address lacks its token: open the one that slmctl review has printed"
        )
    return desk


async def _task(request: Request) -> Response:
    desk = _desk(request)
    session = desk.session
    where = {"project": desk.project, "file": session.output.name, "total": len(session.queue)}
    return JSONResponse(desk.about() | where)


async def _next(request: Request) -> Response:
    desk = _desk(request)
    return await _answer(desk, desk.session.next)


async def _decide(request: Request) -> Response:
    desk = _desk(request)
    fields = await _fields(request)
    id, answer = fields.get("id"), fields.get("answer")
    if not isinstance(id, str) or not (answer is None or isinstance(answer, str)):
        raise DecisionRefusedError("a decision has the id of a row, and an answer or null")

    def decide() -> Any:
        desk.session.decide(id, answer)
        return desk.session.next()

    return await _answer(desk, decide)


async def _undo(request: Request) -> Response:
    desk = _desk(request)
    return await _answer(desk, lambda: desk.session.undo() or desk.session.next())


async def _answer(desk: Desk[RowT], act: Callable[[], RowT | None]) -> Response:
    """Call `act` in a thread, since it waits for the disk, and
    respond with the row that it returns.
    """
    # ASCII: lone surrogates have no UTF-8
    text = json.dumps(await run_in_threadpool(lambda: desk.state(act())))
    return Response(text, media_type="application/json")


async def _fields(request: Request) -> JsonObject:
    """The JSON object in a request's body.

    Raises:
        DecisionRefusedError: The body is not one, or has more than MAX_BODY bytes.
    """
    raw = b""
    async for piece in request.stream():
        raw += piece
        if len(raw) > MAX_BODY:
            raise DecisionRefusedError(f"a request has at most {MAX_BODY >> 20} MiB")
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or not is_text(json.dumps(fields, ensure_ascii=False)):
        raise DecisionRefusedError("a request is a JSON object of whole characters")
    return fields


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, DecisionRefusedError)
    words = f"{error.message}; {error.hint}" if error.hint else error.message
    return _error(words, 401 if isinstance(error, _NoTokenError) else 422)


async def _not_written(request: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    return _error(
        f"the decision could not be written and does not count: {error.strerror or error}", 507
    )


def _error(words: str, status: int) -> Response:
    return JSONResponse({"error": {"message": words}}, status_code=status)
