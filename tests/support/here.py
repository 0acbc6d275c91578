"""A server in this process, asked over HTTP: all of `slmctl serve` but its
command, its process and its signals.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette

from slmctl.cli.group import Options, make_workspace, read_settings
from slmctl.config import GeneralistConfig, ServeConfig
from slmctl.inference.engine import Engine
from slmctl.inference.escalation_policy import Policy
from slmctl.production.collector import Collector
from slmctl.server import served_fleet
from slmctl.server.api_keys import KeyRing
from slmctl.server.app import application
from slmctl.server.backends import EndpointEngine, LocalEngine
from slmctl.server.fleet import Fleet
from slmctl.server.forms.request import ServedModel
from slmctl.server.gateway import Gateway
from slmctl.server.generalist import Generalist
from slmctl.server.routed import Escalation
from slmctl.server.router import Router
from slmctl.server.running_model import Release, RunningModel
from slmctl.task.contract import Task
from support import endpoint
from support.endpoint import streams
from support.kept_log import KeptLog
from support.serving import GENERATE, LOCAL, chat, post


@dataclass(frozen=True)
class Here:
    """A server, its log, and the endpoint that it asks where there is one."""

    url: str
    gateway: Gateway
    log: KeptLog
    fake: endpoint.Fake
    loop: asyncio.AbstractEventLoop

    def follow(self) -> None:
        """Read every tag again, as at SIGHUP."""
        asyncio.run_coroutine_threadsafe(self.gateway.fleet.follow(), self.loop).result(60)

    def ask(
        self, text: str = "hello", *, headers: dict[str, str] | None = None, **more: Any
    ) -> httpx.Response:
        return post(self.url, {"messages": chat(text), **more}, **(headers or {}))

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(self.url + path, headers=headers, **LOCAL)


class _Server(uvicorn.Server):  # type: ignore[misc]
    """One that ends at once: uvicorn looks ten times a second whether it
    should, and then waits a tenth more.
    """

    async def main_loop(self) -> None:
        await self.on_tick(0)
        while not self.should_exit:
            await asyncio.sleep(0.01)

    async def shutdown(self, sockets: object = None) -> None:
        for listener in self.servers:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await asyncio.sleep(0.01)


@contextlib.contextmanager
def listening(
    app: Starlette,
    started: Callable[[], None] = lambda: None,
    ended: Callable[[], Awaitable[None]] | None = None,
) -> Iterator[str]:
    """An application on a port of the loopback, in a thread; yields its address.

    Args:
        started, ended: Called in its loop, before the first request and after the last one.
    """
    server = _Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off", ws="none"))

    async def whole() -> None:
        started()
        await server.serve()
        if ended is not None:
            await ended()

    thread = threading.Thread(target=lambda: asyncio.run(whole()))
    thread.start()
    while not server.started and thread.is_alive():
        threading.Event().wait(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def served(
    *releases: Release,
    settings: ServeConfig,
    keys: Path | None = None,
    escalation: Escalation | None = None,
    fake: endpoint.Fake | None = None,
) -> Iterator[Here]:
    """A server of releases, those that are pinned loaded."""
    with contextlib.ExitStack() as stack:
        collector = Collector(settings.collect) if settings.collect is not None else None
        if collector is not None:
            stack.callback(collector.close)
        ring = KeyRing(keys) if keys is not None else None
        fleet = Fleet(releases, settings, keys=ring, collector=collector, escalation=escalation)
        stack.callback(fleet.close_all)
        fleet.load_pinned()
        yield stack.enter_context(running(fleet, fake))


@contextlib.contextmanager
def running(fleet: Fleet, fake: endpoint.Fake | None = None) -> Iterator[Here]:
    """A server of a fleet whose pinned models are loaded."""
    with contextlib.closing(KeptLog()) as log:
        app = application(fleet, log)
        gateway: Gateway = app.state.gateway
        loops: list[asyncio.AbstractEventLoop] = []

        def started() -> None:
            loops.append(asyncio.get_running_loop())
            fleet.start(log, gateway.metrics)

        with listening(app, started, fleet.close) as url:
            yield Here(url, gateway, log, fake or endpoint.Fake(), loops[0])


@contextlib.contextmanager
def opened(
    folder: Path, *sets: str, model: str | None = None, keys: bool = False
) -> Iterator[Here]:
    """The server that `slmctl serve` would be in a folder."""
    options = Options()
    options.directory, options.sets = folder, list(sets)
    with (
        served_fleet.opened(
            make_workspace(options), read_settings(options).serve, model, None, keys=keys
        ) as fleet,
        running(fleet) as server,
    ):
        yield server


@contextlib.contextmanager
def in_front(
    manners: endpoint.Manners = lambda body, before: streams("hello"),
    *,
    task: Task = GENERATE,
    url: str = "",
    model: str = "large",
    keys: Path | None = None,
    **settings: Any,
) -> Iterator[Here]:
    """A server of `large`, in front of an endpoint: one whose manners
    are given, or the `model` at a `url`.
    """
    with contextlib.ExitStack() as stack:
        fake = endpoint.Fake(url) if url else stack.enter_context(endpoint.serving(manners))
        models, chosen = (
            {"large": ServedModel("large", task, aliases=("default",))},
            ServeConfig(**settings),
        )

        def load() -> RunningModel:
            return RunningModel(EndpointEngine(fake.url, model, None, chosen.sequences), models)

        release = Release("large", "", models, 0, load, pin=True)
        yield stack.enter_context(served(release, settings=chosen, keys=keys, fake=fake))


def deciding(path: Path, task: Task, url: str = "") -> contextlib.AbstractContextManager[Here]:
    """A server of a GGUF file whose policy would escalate everything,
    to the general model at an address.
    """
    weights = dict.fromkeys(
        ("odds", "allowed") if task.labels else ("mean", "least", "choices"), 0.0
    )
    policy = Policy("f" * 64, task.digest, task.kind, "right", "", weights, 0.0, ((0.0, 0.5),), 1e9)
    escalation = Escalation(Generalist(GeneralistConfig(url=url, model="large")) if url else None)
    one = release("desk", path, task, policy=policy, escalation=escalation, pin=True)
    return served(one, settings=ServeConfig(context_length=256), escalation=escalation)


def release(
    name: str,
    path: Path,
    task: Task,
    *,
    context: int = 256,
    policy: Policy | None = None,
    escalation: Escalation | None = None,
    **more: Any,
) -> Release:
    """A release of a GGUF file, in the engine."""
    models = {name: ServedModel(name, task)}

    def load() -> RunningModel:
        engine = Engine(
            path, sequences=2, context=context, threads=1, mostly_reads=task.mostly_reads
        )
        if policy is None or escalation is None:
            return RunningModel(LocalEngine(engine, name), models, close=engine.close)
        router = Router(policy, task, name, escalation)

        def close() -> None:
            router.retire()
            engine.close()

        return RunningModel(LocalEngine(engine, name), models, router, close=close)

    return Release(name, name, models, 1000, load, **more)
