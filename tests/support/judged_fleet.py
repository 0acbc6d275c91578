"""A fleet of tiny models in this process, asked over HTTP, with policies that say what a test wants."""

from __future__ import annotations

import asyncio
import functools
import io
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from slmctl.config import GeneralistConfig, ServeConfig
from slmctl.inference.engine import Engine
from slmctl.inference.escalation_policy import Decision, Policy
from slmctl.server.app import application
from slmctl.server.auto import Fixed
from slmctl.server.backends import LocalEngine
from slmctl.server.collector import Collector, Questions
from slmctl.server.fleet import Fleet
from slmctl.server.fleet_members import LoadableRelease, Member, Served
from slmctl.server.generalist import Generalist
from slmctl.server.log import Log
from slmctl.server.openai_requests import ServedModel
from slmctl.server.routed import Escalation
from slmctl.server.router import Judge, Router
from support.fleets import KEPT, TASKS, task
from support.serving import chat

ALWAYS, NEVER = -1e9, 1e9
CARD = "my card is 4111 1111 1111 1111"


def policy(threshold: float, *, p: float = 0.75) -> Policy:
    """A policy that keeps every answer with a label, or none."""
    weights = {"odds": 1.0, "allowed": 0.0}
    return Policy("f" * 64, "t", "classify", "the label", "", weights, 0.0, ((-1.0, p), (1.0, p)), threshold)


def sure(p: float = 0.75) -> Fixed:
    """The verdict on the router: its only label leaves no odds for a policy to read."""
    return Fixed(Decision(True, p, "confident"))


def unsure(p: float = 0.75) -> Fixed:
    return Fixed(Decision(False, p, "unsure"))


@dataclass
class Place:
    """A fleet with a router whose only label is `named`, and what is said of it.

    Attributes:
        judges: The policy of each model that has one.
        kept: The share of all answers that is collected.
        questions: The training rows of each model whose data is here.
        larger: The larger model, `desk`, of each model that has one; it has the task of the first of them.
        desk: Loads it in place of an engine.
    """

    named: str
    judges: dict[str, Judge]
    url: str = ""
    budget: int | None = None
    bytes: int = 1000
    sequences: int = 1
    context: int = 256
    collect: Path | None = None
    kept: float = 1.0
    questions: Mapping[str, Questions] = field(default_factory=dict)
    larger: Sequence[str] = ()
    desk: Callable[[], Served] | None = None
    timeout_s: float = 120
    log: io.StringIO = field(default_factory=io.StringIO)

    def __post_init__(self) -> None:
        self.tasks = {"auto": task("classify", self.named), **TASKS}
        if self.larger:
            self.tasks["desk"] = self.tasks[self.larger[0]]
        general = Generalist(GeneralistConfig(url=self.url, model="large", timeout_s=20)) if self.url else None
        self.escalation = Escalation(general)
        members = [
            Member(
                name, LoadableRelease(name, self._models(name), self.bytes, functools.partial(self._load, name)),
                has_policy=name in self.judges, is_router=name == "auto", larger="desk" if name in self.larger else "",
            )
            for name in ("auto", "tickets", "moods", "letters", "errands", *(["desk"] if self.larger else []))
        ]  # fmt: skip
        settings = ServeConfig(
            sequences=self.sequences, context_length=self.context, max_tokens=8, answer_timeout_s=self.timeout_s
        )
        collector = Collector(self.collect_config()) if self.collect else None
        self.fleet = Fleet(
            members, settings, escalation=self.escalation, budget=self.budget, collector=collector
        )  # fmt: skip
        self.app = application(self.fleet, Log(self.log))

    def collect_config(self) -> Any:
        return ServeConfig.model_validate({"collect": {"to": self.collect, "kept": self.kept}}).collect

    def _models(self, name: str) -> dict[str, ServedModel]:
        return {name: ServedModel(name, self.tasks[name])}

    def _load(self, name: str) -> Served:
        if name == "desk" and self.desk is not None:
            return self.desk()
        labels = bool(self.tasks[name].labels)
        engine = Engine(KEPT, sequences=self.sequences, context=self.context, threads=1, classifier=labels)
        router = None
        if name in self.judges:
            router = Router(self.judges[name], self.tasks[name], name, shared=self.escalation)
        questions = self.questions.get(name)
        return Served(LocalEngine(engine, name), self._models(name), router, questions, close=engine.close)


Ask = Callable[..., Awaitable[httpx.Response]]


def asked(place: Place, work: Callable[[Ask], Awaitable[Any]]) -> Any:
    """Ask a fleet, and end it."""

    async def whole() -> Any:
        place.fleet.start(place.app.state.gateway.log, place.app.state.gateway.metrics)
        transport = httpx.ASGITransport(place.app)
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:

                async def ask(
                    text: str | None = "hello", path: str = "chat/completions", headers: Any = None, **more: Any
                ) -> httpx.Response:
                    question = {} if "input" in more else {"messages": chat(text or "")}
                    body = more if text is None else {"model": "auto", **question, **more}
                    return await client.post(f"/v1/{path}", json=body, headers=headers)

                result = await work(ask)
                gateway = place.app.state.gateway
                assert (gateway.limits.running, len(gateway.running)) == (0, 0)
                assert not any(member.work for member in place.fleet.members.values())
                return result, (await client.get("/metrics")).text
        finally:
            with place.escalation.open():
                await place.fleet.close()
            await asyncio.to_thread(place.fleet.close_all)
            place.app.state.gateway.log.close()

    with place.escalation.open():
        return asyncio.run(whole())


def one(place: Place, *args: Any, **more: Any) -> tuple[httpx.Response, str]:
    answer, page = asked(place, lambda ask: ask(*args, **more))
    assert answer.status_code == 200, answer.text
    return answer, page


def lines(place: Place, event: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, place.log.getvalue().splitlines()) if line["event"] == event]


def text_of(answer: httpx.Response) -> str:
    return str(answer.json()["choices"][0]["message"]["content"])
