"""`GET /v1/models`: every model that the key may ask, with its task,
version and digest, loaded or not.
"""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from slmctl.server.api_keys import Key
from slmctl.server.gateway import Gateway
from slmctl.server.request_errors import RequestError


def routes() -> list[Route]:
    """`/v1/models`, and one model of them."""
    return [Route("/v1/models", _models), Route("/v1/models/{name:path}", _model)]


async def _models(http: HttpRequest) -> Response:
    gateway: Gateway = http.app.state.gateway
    key = gateway.key_of(http)
    return JSONResponse(
        {
            "object": "list",
            "data": [_listed(gateway, key, name) for name in gateway.fleet.models(key)],
        }
    )


async def _model(http: HttpRequest) -> Response:
    gateway: Gateway = http.app.state.gateway
    key, name = gateway.key_of(http), http.path_params["name"]
    try:
        return JSONResponse(_listed(gateway, key, name))
    except RequestError:
        raise HTTPException(404, f"model '{name[:100]}' is not served here") from None


def _listed(gateway: Gateway, key: Key, name: str) -> dict[str, Any]:
    release, model = gateway.fleet.find(name, key)
    about: dict[str, Any] = {
        "task": model.task.kind,
        "labels": list(model.task.labels),
        "schema": model.task.schema,
    }
    about |= (
        {"tools": names} if (names := [tool.name for tool in model.task.rules.offered()]) else {}
    )
    about |= model.release | ({"digest": model.digest} if model.digest else {})
    about |= {"state": gateway.fleet.state(release)} | (
        {"aliases": list(model.aliases)} if model.aliases else {}
    )
    return {
        "id": name,
        "object": "model",
        "created": gateway.created,
        "owned_by": "slmctl",
        "slmctl": about,
    }
