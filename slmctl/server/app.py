"""The HTTP side of `slmctl serve`: OpenAI's API in front of an engine,
within limits, answers kept to the task.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from slmctl.server import answering, feedback, model_list, page, refusals
from slmctl.server.fleet import Fleet
from slmctl.server.forms import FORMS
from slmctl.server.forms.decisions import DecisionForm
from slmctl.server.forms.request import Form
from slmctl.server.gateway import Gateway
from slmctl.server.log import Log
from slmctl.server.observed import REQUEST_ID, Observed
from slmctl.server.refusals import ROUTE


def application(fleet: Fleet, log: Log) -> Starlette:
    """Returns the ASGI application; its state is `app.state.gateway`."""
    origins = fleet.settings.cors_origins
    cors = Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=[ROUTE, REQUEST_ID],
    )
    gateway = Gateway(fleet, log)
    app = Starlette(
        routes=[
            *(Route(form.path, _answers(form), methods=["POST"]) for form in FORMS),
            Route("/v1/feedback", feedback.take, methods=["POST"]),
            *model_list.routes(),
            Route("/healthz", _health),
            Route("/readyz", _ready),
            Route("/metrics", _metrics),
            *page.routes(),
        ],
        middleware=[
            Middleware(Observed, gateway=gateway),
            *([cors] if origins else []),
            # inside Observed: Starlette's own would stand around it, and its answers would not be
            # counted
            Middleware(ServerErrorMiddleware, handler=refusals.bug),
        ],
        exception_handlers=refusals.HANDLERS,
    )
    app.state.gateway = gateway
    return app


def _answers(form: Form) -> Callable[[HttpRequest], Awaitable[Response]]:
    async def answer(http: HttpRequest) -> Response:
        gateway: Gateway = http.app.state.gateway
        if isinstance(form, DecisionForm):
            return await answering.decide(gateway, http, form)
        return await answering.answer(gateway, http, form)

    return answer


async def _health(http: HttpRequest) -> Response:
    return JSONResponse({"status": "ok"})


async def _ready(http: HttpRequest) -> Response:
    gateway: Gateway = http.app.state.gateway
    await gateway.fleet.look()
    faults = {"failed": gateway.fleet.faults} if gateway.fleet.faults else {}
    return JSONResponse(
        {"ready": gateway.ready, **faults}, status_code=200 if gateway.ready else 503
    )


async def _metrics(http: HttpRequest) -> Response:
    gateway: Gateway = http.app.state.gateway
    if gateway.key_of(http).models is not None:
        raise HTTPException(
            403, "this key is limited to models, and /metrics tells of all: use another key"
        )
    metrics, limits = gateway.metrics, gateway.limits
    await gateway.fleet.look()
    await gateway.fleet.measure()
    metrics.running.set(limits.running)
    metrics.waiting.set(limits.waiting)
    metrics.ready.set(gateway.ready)
    metrics.dropped.set(gateway.log.dropped)
    return Response(metrics.page(), media_type="text/plain; version=0.0.4")
