"""The web page of `slmctl serve`: a chat, or the form of the task, for people without a client.

One document that needs nothing beside itself. Style and script are inline and allowed by their hashes
alone, markup cannot be made from text (trusted types), and the page may ask this server and no other.
It learns the task from `GET /v1/task` and asks `/v1/chat/completions` like every other client.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from importlib import resources
from typing import Protocol

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from slmctl import chart
from slmctl.task import Task

POLICY = (
    "default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)


class Served(Protocol):
    """What the page has to know of what is served."""

    @property
    def name(self) -> str: ...
    @property
    def task(self) -> Task: ...
    @property
    def max_tokens(self) -> int: ...


def routes() -> list[Route]:
    """`/`, the page, which holds no secret, and `/v1/task`, which is asked like the rest of the API."""
    return [Route("/", _page), Route("/v1/task", _task)]


async def _page(_: Request) -> Response:
    html, policy = _document()
    headers = {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-cache",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return HTMLResponse(html, headers=headers)


async def _task(request: Request) -> Response:
    served: Served = request.app.state.served
    name = request.query_params.get("model", served.name)
    if name != served.name:
        raise HTTPException(404, f"model '{name[:100]}' is not served here; '{served.name}' is")
    return JSONResponse(
        {
            "kind": served.task.kind,
            "labels": list(served.task.labels),
            "schema": served.task.schema,
            "name": served.name,
            "version": version_of(served.name),
            "max_tokens": served.max_tokens,
        }
    )


def version_of(name: str) -> str | None:
    """The version in a name of the GGUF convention: `1.0` of `SmolLM2-135M-desk-v1.0-Q8_0`."""
    found = re.search(r"-v(\d+(?:\.\d+)*)(?=-|$)", name)
    return found[1] if found else None


@functools.cache
def _document() -> tuple[str, str]:
    """The page, and the policy that lets its own style and script pass."""
    style, script = f"{_read('page.css')}\n{chart.style()}", _read("page.js")
    html = _read("page.html").replace("/* style */", style).replace("/* script */", script)
    return html, POLICY.format(style=_hash(style), script=_hash(script))


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _read(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8").strip()
