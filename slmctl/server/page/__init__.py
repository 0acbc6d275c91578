"""The web page of `slmctl serve`: a chat, or the form of the task, for people without a client.

One document that needs nothing beside itself. Style and script are inline and allowed by their hashes
alone, markup cannot be made from text (trusted types), and the page may ask this server and no other.
It learns the task from `GET /v1/task` and asks `/v1/chat/completions` like every other client; where answers are
collected, `/v1/feedback` gets what a reader says of one.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Protocol

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from slmctl.config import ServeConfig
from slmctl.reports import svg_chart
from slmctl.task.contract import Task

POLICY = (
    "default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)


class PageModel(Protocol):
    """A name that clients can ask for, and what it is asked."""

    @property
    def name(self) -> str: ...
    @property
    def aliases(self) -> Sequence[str]: ...
    @property
    def version(self) -> str: ...
    @property
    def task(self) -> Task: ...


class PageGateway(Protocol):
    """The part of the server, `app.state.gateway`, that the page reads."""

    @property
    def settings(self) -> ServeConfig: ...
    def models_for(self, http: Request) -> Mapping[str, PageModel]: ...


def routes() -> list[Route]:
    """`/`, the page, which holds no secret, and `/v1/task`, which is asked like the rest of the API."""
    return [Route("/", _page), Route("/v1/task", _task)]


def response(package: str = __name__) -> Response:
    """The page of a package, `page.html`, as one document with its style and script, which alone may act.

    Args:
        package: The package whose `page.html`, `page.css` and `page.js` are taken. The head is this package's
            `head.html`, its style comes after that of this package, and its script after `shared.js`.
    """
    html, policy = _document(package)
    headers = {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-cache",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return HTMLResponse(html, headers=headers)


async def _page(_: Request) -> Response:
    return response()


async def _task(request: Request) -> Response:
    gateway: PageGateway = request.app.state.gateway
    models = gateway.models_for(request)
    name = request.query_params.get("model") or next(iter(models), "")
    model = models.get(name) or next((model for model in models.values() if name in model.aliases), None)
    if model is None:
        raise HTTPException(404, f"model '{name[:100]}' is not served here; there are: {', '.join(models)}")
    task = model.task
    return JSONResponse(
        {
            "kind": task.kind,
            "labels": list(task.labels),
            "schema": task.schema,
            "name": model.name,
            "version": model.version or None,
            "max_tokens": gateway.settings.max_tokens,
            "feedback": gateway.settings.collect is not None,
            **({"tools": [tool["function"] for tool in task.tools]} if task.tools else {}),
        }
    )


@functools.cache
def _document(package: str) -> tuple[str, str]:
    """A page, and the policy that lets its own style and script pass."""
    styles = [_read(name, "page.css") for name in dict.fromkeys((__name__, package))]
    style = "\n".join([*styles, svg_chart.style()])
    script = "\n".join([_read(__name__, "shared.js"), _read(package, "page.js")])
    html = _read(package, "page.html").replace("<!-- head -->", _read(__name__, "head.html"))
    html = html.replace("/* style */", style).replace("/* script */", script)
    return html, POLICY.format(style=_hash(style), script=_hash(script))


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _read(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8").strip()
