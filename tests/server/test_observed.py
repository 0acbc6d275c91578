"""What clients and operators see beside the answers: headers, request
ids, limits of a key, figures, CORS.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support import here
from support.endpoint import Turn, streams
from support.kept_log import KeptLog
from support.servers import settles
from support.serving import GENERATE, LOCAL, chat

from slmctl.config import ServeConfig
from slmctl.server import api_keys
from slmctl.server.app import application
from slmctl.server.backends import Backend
from slmctl.server.fleet import Fleet
from slmctl.server.forms.request import ServedModel
from slmctl.server.running_model import Release, RunningModel

ORIGIN = "https://desk.example"
HI = {"messages": chat("hello"), "max_tokens": 2}
HOLD = threading.Event()  # answers to the question "wait" come when it is set


def manners(body: dict[str, Any], before: int) -> Turn:
    if body["messages"][-1]["content"] == "wait":
        HOLD.wait(20)
    return streams("hello")


@dataclass(frozen=True)
class Guarded:
    """A server that wants a key; this one may ask once at a time."""

    url: str
    secret: str

    def ask(
        self, body: Any = None, path: str = "chat/completions", **headers: str
    ) -> httpx.Response:
        sent = {"authorization": f"Bearer {self.secret}"} | headers
        return httpx.post(
            f"{self.url}/v1/{path}", json=HI if body is None else body, headers=sent, **LOCAL
        )

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        page = httpx.get(
            f"{self.url}/metrics", headers={"authorization": f"Bearer {self.secret}"}, **LOCAL
        ).text
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
        }


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    secret = api_keys.add(keys, "crm", concurrency=1)
    with here.in_front(manners, keys=keys, cors_origins=[ORIGIN]) as server:
        yield Guarded(server.url, secret)


def test_every_response_to_a_question_says_who_answered(guarded: Guarded) -> None:
    said = {
        guarded.ask(): (200, "local; reason=no-policy"),
        guarded.ask({"prompt": "hello", "max_tokens": 2}, "completions"): (
            200,
            "local; reason=no-policy",
        ),
        guarded.ask({**HI, "stream": True}): (200, "local; reason=no-policy"),
        guarded.ask({**HI, "modalities": ["audio"]}): (400, "local; reason=refused"),
        guarded.ask(authorization="Bearer no"): (401, "local; reason=refused"),
        guarded.ask({**HI, "model": "gpt-4"}): (404, "local; reason=refused"),
        guarded.ask({**HI, "user": "x" * (1 << 20)}): (413, "local; reason=refused"),
        guarded.ask(**{"content-type": "text/plain"}): (415, "local; reason=refused"),
    }
    for response, expected in said.items():
        assert (response.status_code, response.headers["x-slmctl-route"]) == expected, response.text


def test_a_plain_request_id_is_kept_and_any_other_replaced(guarded: Guarded) -> None:
    assert guarded.ask(**{"x-request-id": "order-7.a_b"}).headers["x-request-id"] == "order-7.a_b"
    for odd in ('a"b', "a b", "x" * 65, "<script>"):
        given = guarded.ask(**{"x-request-id": odd}).headers["x-request-id"]
        assert given != odd
        assert given.isalnum()
    first, second = (guarded.ask({**HI, "modalities": ["audio"]}) for _ in range(2))
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert first.json()["error"]["request_id"] == first.headers["x-request-id"]


def test_a_key_has_its_own_number_of_requests_at_the_same_time(guarded: Guarded) -> None:
    HOLD.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(guarded.ask, {"messages": chat("wait")})
        assert settles(lambda: guarded.samples()["slmctl_requests_running", frozenset()] == 1)
        second = guarded.ask()
        assert (second.status_code, second.json()["error"]["code"]) == (429, "concurrency")
        assert int(second.headers["retry-after"]) >= 1
        HOLD.set()
        assert first.result().status_code == 200
    assert guarded.ask().status_code == 200


def test_figures_parse_and_count_every_request(guarded: Guarded) -> None:
    def count(samples: Any, name: str, **labels: str) -> float:
        wanted = labels.items()
        return float(
            sum(value for (one, have), value in samples.items() if one == name and wanted <= have)
        )

    before = guarded.samples()
    used = [guarded.ask().json()["usage"] for _ in range(3)]
    guarded.ask({**HI, "modalities": ["audio"]})
    after = guarded.samples()

    def grown(name: str, **labels: str) -> float:
        return count(after, name, **labels) - count(before, name, **labels)

    chats = "/v1/chat/completions"
    assert grown("slmctl_requests_total", path=chats, status="200") == 3
    assert grown("slmctl_requests_total", path=chats, status="400") == 1
    assert grown("slmctl_answers_total", route="local", reason="no-policy") == 3
    assert grown("slmctl_tokens_total", kind="prompt") == sum(one["prompt_tokens"] for one in used)
    assert grown("slmctl_tokens_total", kind="answer") == sum(
        one["completion_tokens"] for one in used
    )
    assert grown("slmctl_answer_seconds_count") == 3


class Broken:
    """A backend with a bug."""

    build = "none"
    ready = True

    def held_bytes(self) -> int:
        return 0

    async def look(self) -> None:
        raise RuntimeError("a bug")


def test_a_fault_of_the_servers_own_is_observed_too() -> None:
    models, log = {"desk": ServedModel("desk", GENERATE)}, KeptLog()
    release = Release(
        "desk", "", models, 0, lambda: RunningModel(cast(Backend, Broken()), models), pin=True
    )
    fleet = Fleet([release], ServeConfig(cors_origins=[ORIGIN]))
    fleet.load_pinned()
    app = application(fleet, log)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/readyz", headers={"x-request-id": "my-1", "origin": ORIGIN})

    said = asyncio.run(ask())
    log.close()
    assert (said.status_code, said.headers["x-request-id"]) == (500, "my-1")
    assert said.json()["error"]["request_id"] == "my-1"
    assert said.headers["access-control-allow-origin"] == ORIGIN
    figures = app.state.gateway.metrics.page().decode()
    assert 'slmctl_requests_total{path="/readyz",status="500"} 1.0' in figures
    assert [line["status"] for line in log.lines] == [500]


def test_only_the_named_origins_may_ask_from_a_browser(guarded: Guarded) -> None:
    wish = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    for origin, allowed in ((ORIGIN, ORIGIN), ("https://evil.example", None)):
        asked = httpx.options(
            f"{guarded.url}/v1/chat/completions", headers={"origin": origin, **wish}
        )
        assert asked.headers.get("access-control-allow-origin") == allowed
        assert guarded.ask(origin=origin).headers.get("access-control-allow-origin") == allowed
