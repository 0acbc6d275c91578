"""Errors of the server as responses, each in OpenAI's form, with the header that says that a question has no answer."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from slmctl.server import openai_replies
from slmctl.server.bad_requests import BadRequestError
from slmctl.server.rate_limits import BusyError
from slmctl.server.request_run import RequestFailedError

LONGEST_ERROR = 1000  # characters of an error's message
ROUTE = "x-slmctl-route"
# Paths of questions, each with the option that holds the question.
QUESTIONS = {"/v1/chat/completions": "messages", "/v1/completions": "prompt", "/v1/responses": "input"}


def route_header(route: str, reason: str) -> str:
    """`local; reason=no-policy`."""
    return f"{route}; reason={reason}"


async def _bad_request(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, BadRequestError)
    return _refusal(http, error.status, error.message, param=error.param, code=error.code)


async def _busy(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, BusyError)
    http.app.state.gateway.metrics.refused.labels(error.reason).inc()
    http.state.note.fields["refused"] = error.reason
    wait = {"retry-after": str(error.retry_after_s)}
    return _refusal(http, 429, error.message, kind="rate_limit_error", code=error.reason, headers=wait)


async def _failed(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, RequestFailedError)
    wait = {"retry-after": str(error.retry_after_s)} if error.status == 503 else {}
    param = QUESTIONS.get(http.scope["path"], "") if error.code == "refused" else ""
    code = "" if error.code == "refused" else error.code
    return _refusal(http, error.status, error.message, param=param, code=code, headers=wait)


async def _http_error(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _refusal(http, error.status_code, error.detail, headers=dict(error.headers or {}))


async def bug(http: HttpRequest, error: Exception) -> Response:
    """The answer to an exception that nobody expects."""
    return _refusal(http, 500, "the server has met a fault of its own; its log says more")


def _refusal(
    http: HttpRequest,
    status: int,
    message: str,
    *,
    kind: str = "",
    param: str = "",
    code: str = "",
    headers: Mapping[str, str] | None = None,
) -> Response:
    message = message[:LONGEST_ERROR]  # it may name what the client has sent
    kind = kind or ("server_error" if status >= 500 else "invalid_request_error")
    http.state.note.fields["error"] = message
    body = openai_replies.error(message, kind, param, code, http.state.note.id)
    route = unanswered(http.scope["path"], status)
    return JSONResponse(body, status_code=status, headers={**route, **(headers or {})})


def unanswered(path: str, status: int) -> dict[str, str]:
    """The header that says of a question that it was refused or failed; nothing for other paths."""
    reason = "failed" if status >= 500 else "refused"
    return {ROUTE: route_header("local", reason)} if path in QUESTIONS else {}


HANDLERS = {
    BadRequestError: _bad_request,
    BusyError: _busy,
    RequestFailedError: _failed,
    HTTPException: _http_error,
}
