"""The web page of `slmctl serve`: a chat, or the form of the task, for people without a client.

It learns the task from `GET /v1/task` and asks `/v1/chat/completions` like every other client;
where answers are collected, `/v1/feedback` gets a reader's verdict.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from slmctl.reports.served_page import served_page
from slmctl.server.gateway import Gateway


def routes() -> list[Route]:
    """`/`, the page, which holds no secret, and `/v1/task`, which
    is asked like the rest of the API.
    """
    return [Route("/", _page), Route("/v1/task", _task)]


async def _page(_: Request) -> Response:
    page = served_page(__name__)
    return HTMLResponse(page.html, headers=page.headers)


async def _task(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    _, model = gateway.fleet.find(
        request.query_params.get("model") or None, gateway.key_of(request)
    )
    task = model.task
    return JSONResponse(
        {
            "kind": task.kind,
            "labels": list(task.labels),
            "schema": task.schema,
            "name": model.name,
            "version": model.version or None,
            "max_tokens": gateway.settings.max_tokens,
            "documents": gateway.settings.documents,
            "feedback": gateway.settings.collect is not None,
            **({"tools": [tool["function"] for tool in task.tools]} if task.tools else {}),
        }
    )
