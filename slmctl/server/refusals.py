"""Errors of the server as responses in OpenAI's form, with the header
`x-slmctl-route` on refused questions.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from slmctl.server.forms import QUESTIONS
from slmctl.server.request_errors import RequestError, error_body, kind_of

LONGEST_ERROR = 1000  # characters of an error's message
ROUTE = "x-slmctl-route"


def route_header(route: str, reason: str) -> str:
    """`local; reason=no-policy`."""
    return f"{route}; reason={reason}"


async def _no_answer(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    if error.status == 429:
        http.app.state.gateway.metrics.refused.labels(error.code).inc()
        http.state.note.fields["refused"] = error.code
    wait = {"retry-after": str(error.retry_after_s)} if error.status in (429, 503) else {}
    param, code = error.param, error.code
    if code == "refused":  # by the engine, which read the question
        param, code = QUESTIONS.get(http.scope["path"], ""), ""
    return _refusal(http, error.status, error.message, param=param, code=code, headers=wait)


async def _http_error(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _refusal(http, error.status_code, error.detail, headers=error.headers)


async def bug(http: HttpRequest, error: Exception) -> Response:
    return _refusal(http, 500, "the server has met a fault of its own; its log says more")


def _refusal(
    http: HttpRequest,
    status: int,
    message: str,
    *,
    param: str = "",
    code: str = "",
    headers: Mapping[str, str] | None = None,
) -> Response:
    message = message[:LONGEST_ERROR]
    if http.app.state.gateway.settings.log_texts:  # the message may quote the client's text
        http.state.note.fields["error"] = message
    else:
        http.state.note.fields["error"] = f"{code or kind_of(status)} {param}".strip()
    body = error_body(message, kind_of(status), param, code, http.state.note.id)
    route = unanswered(http.scope["path"], status)
    return JSONResponse(body, status_code=status, headers={**route, **(headers or {})})


def unanswered(path: str, status: int) -> dict[str, str]:
    """The header that says of a question that it was refused or failed; nothing for other paths."""
    reason = "failed" if status >= 500 else "refused"
    return {ROUTE: route_header("local", reason)} if path in QUESTIONS else {}


HANDLERS = {RequestError: _no_answer, HTTPException: _http_error}
