"""`GET /v1/models`: every model that the key may ask, with its task, version and digest, loaded or not."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from slmctl.server import openai_replies
from slmctl.server.api_keys import Key
from slmctl.server.bad_requests import BadRequestError
from slmctl.server.gateway import Gateway
from slmctl.server.openai_requests import ServedModel


def routes() -> list[Route]:
    """`/v1/models`, and one model of them."""
    return [Route("/v1/models", _models), Route("/v1/models/{name:path}", _model)]


async def _models(http: HttpRequest) -> Response:
    gateway: Gateway = http.app.state.gateway
    key = gateway.key_of(http)
    models = gateway.fleet.models(key).items()
    return JSONResponse({"object": "list", "data": [_listed(gateway, key, model, name) for name, model in models]})


async def _model(http: HttpRequest) -> Response:
    gateway: Gateway = http.app.state.gateway
    key, name = gateway.key_of(http), http.path_params["name"]
    try:
        _, model = gateway.fleet.find(name, key)
    except BadRequestError:
        raise HTTPException(404, f"model '{name[:100]}' is not served here") from None
    return JSONResponse(_listed(gateway, key, model, name))


def _listed(gateway: Gateway, key: Key, model: ServedModel, name: str) -> dict[str, Any]:
    release, _ = gateway.fleet.find(model.name, key)
    about: dict[str, Any] = {"task": model.task.kind, "labels": list(model.task.labels), "schema": model.task.schema}
    about |= {"tools": names} if (names := [tool.name for tool in model.task.offered()]) else {}
    about |= openai_replies.release(model) | ({"digest": model.digest} if model.digest else {})
    about |= {"state": gateway.fleet.state(release)} | ({"aliases": list(model.aliases)} if model.aliases else {})
    return {"id": name, "object": "model", "created": gateway.created, "owned_by": "slmctl", "slmctl": about}
