"""Room in a fleet under load, with engines that hold a given number of bytes and answer nothing."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

import pytest
from support.fleets import TASKS

from slmctl.config import ServeConfig
from slmctl.server import fleet as fleets
from slmctl.server.app import application
from slmctl.server.backends import Backend
from slmctl.server.fleet import Fleet
from slmctl.server.fleet_members import LoadableRelease, Member, Served
from slmctl.server.log import Log
from slmctl.server.metrics import Metrics
from slmctl.server.openai_requests import ServedModel
from slmctl.server.request_run import RequestFailedError


@pytest.fixture(autouse=True)
def _soon_calm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleets, "CALM_S", 0.05)


class Weight:
    """An engine that holds bytes."""

    build, ready = "", True

    def __init__(self, size: int) -> None:
        self.size = size

    def held_bytes(self) -> int:
        return self.size

    def start(self, log: Log, metrics: Metrics) -> None: ...

    async def look(self) -> None: ...

    async def close(self) -> None: ...


def release(digest: str, size: int, name: str = "") -> LoadableRelease:
    models = {name: ServedModel(name, TASKS["moods"])} if name else {}
    return LoadableRelease(digest, models, size, lambda: Served(cast(Backend, Weight(size)), models))


def fleet(sizes: Mapping[str, int], budget: int, **settings: Any) -> Fleet:
    members = [Member(name, release(name, size, name)) for name, size in sizes.items()]
    return Fleet(members, ServeConfig(sequences=2, context_length=256, **settings), budget=budget)


def run(place: Fleet, work: Callable[[], Awaitable[None]]) -> list[dict[str, Any]]:
    """Do something with a fleet; the lines of its log."""
    lines = io.StringIO()
    log = Log(lines)

    async def whole() -> None:
        place.start(log, Metrics())
        try:
            async with asyncio.timeout(20):
                await work()
        finally:
            await place.close()
            log.close()
        assert not place._wanted and not place._loading
        assert not any(member.goes_for for member in place.members.values())

    asyncio.run(whole())
    return [json.loads(line) for line in lines.getvalue().splitlines()]


async def use(place: Fleet, name: str, seconds: float = 0.0) -> None:
    member = place.members[name]
    await place.opened(member)
    with place.at_work(member):
        loaded = await place.lease(member)
        await asyncio.sleep(seconds)
        place.give_back(loaded)


@contextlib.asynccontextmanager
async def always_asked(place: Fleet, *names: str, every_s: float, seconds: float) -> Any:
    """Ask models again and again, whether they have answered or not; none may be refused."""
    asked: list[asyncio.Task[None]] = []

    async def ask(name: str, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        while True:
            asked.append(asyncio.create_task(use(place, name, seconds)))
            await asyncio.sleep(every_s)

    clients = [asyncio.create_task(ask(name, every_s * k / len(names))) for k, name in enumerate(names)]
    await asyncio.sleep(2 * seconds)
    yield
    for client in clients:
        client.cancel()
    await asyncio.gather(*asked)


def test_what_goes_for_one_model_is_not_taken_by_another() -> None:
    # the model that had left was loaded into the bytes that were kept for the larger one, again and again
    place = fleet({"a": 10, "b": 10, "c": 10, "large": 20}, budget=30)

    async def work() -> None:
        for name in "abc":
            await use(place, name)
        async with always_asked(place, "a", "b", "c", every_s=0.1, seconds=0.08):
            loads = sum(member.loads for member in place.members.values())
            await asyncio.wait_for(use(place, "large"), 2)
            assert sum(member.loads for member in place.members.values()) <= loads + 3

    run(place, work)


@pytest.mark.parametrize("names", ["ab", "abc", "abcd"])
def test_a_model_that_makes_room_stays_the_one_that_does(names: str) -> None:
    # its first answer made it the one that was used last, so another one was chosen
    place = fleet(dict.fromkeys([*names, "cold"], 10), budget=10 * len(names))

    async def work() -> None:
        for name in names:
            await use(place, name)
        async with always_asked(place, *names, every_s=0.1, seconds=0.3):
            await asyncio.wait_for(use(place, "cold"), 2)

    lines = run(place, work)
    drained = [line for line in lines if line["event"] == "model_drained" and line["for_model"] == "cold"]
    assert len(drained) == 1


def test_one_that_has_no_work_goes_before_the_one_that_was_chosen() -> None:
    place = fleet({"a": 10, "b": 10, "cold": 10}, budget=20)

    async def work() -> None:
        await use(place, "a")
        await use(place, "b")
        with place.at_work(place.members["a"]):
            busy = asyncio.create_task(use(place, "b", 0.3))
            waits = asyncio.create_task(use(place, "cold"))
            await asyncio.sleep(0.1)
            assert [place.members[name].goes_for for name in "ab"] == ["cold", ""]
            await asyncio.gather(busy, waits)
            assert [place.members[name].state for name in "ab"] == ["loaded", "on disk"]

    run(place, work)


def test_a_tag_that_moves_while_its_model_makes_room_is_followed() -> None:
    place = fleet({"a": 60, "cold": 50}, budget=100)
    a, cold = place.members.values()
    a.find = lambda: release("newer", 60, "a")

    async def work() -> None:
        await use(place, "a")
        busy = asyncio.create_task(use(place, "a", 0.3))
        await asyncio.sleep(0.05)
        waits = asyncio.create_task(use(place, "cold"))
        await asyncio.sleep(0.05)
        assert a.goes_for == "cold"
        await asyncio.wait_for(asyncio.gather(busy, waits, place.follow()), 2)
        assert (a.state, a.fault, a.release.digest, cold.state) == ("on disk", "", "newer", "loaded")
        await use(place, "a")

    run(place, work)


def test_a_model_whose_next_release_is_loaded_makes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleets, "SHORT_S", 0.3)
    place = fleet({"a": 60, "cold": 50}, budget=100)
    a, cold = place.members.values()
    a.find = lambda: release("newer", 60, "a")

    async def work() -> None:
        await use(place, "a")
        follows = asyncio.create_task(place.follow())  # there is no room for both of its releases
        while not place._following:
            await asyncio.sleep(0.001)
        await asyncio.wait_for(use(place, "cold"), 2)
        await follows
        assert (a.release.digest, cold.state) == ("a", "loaded")
        assert a.fault.startswith("there is no memory for model 'a' now")

    run(place, work)


def test_what_is_left_to_answer_takes_no_longer_than_a_request_may(monkeypatch: pytest.MonkeyPatch) -> None:
    place = fleet({"a": 10, "cold": 10}, budget=10, answer_timeout_s=0.3)

    async def work() -> None:
        await use(place, "a")
        with place.at_work(place.members["a"]):
            with pytest.raises(RequestFailedError, match="no memory for model 'cold' now"):
                await use(place, "cold")
            await asyncio.wait_for(use(place, "a"), 0.2)  # it takes requests again

    run(place, work)


def test_bytes_of_a_release_that_still_answers_are_waited_for() -> None:
    place = fleet({"a": 40, "cold": 50}, budget=90)
    a, cold = place.members.values()
    a.find = lambda: release("newer", 40, "a")

    async def work() -> None:
        old = await place.lease(a)
        await place.follow()
        assert (a.release.digest, len(place._leaving)) == ("newer", 1)
        with place.at_work(a):
            waits = asyncio.create_task(use(place, "cold"))
            await asyncio.sleep(0.2)
            assert (cold.state, a.goes_for) == ("loading", "")
            place.give_back(old)
            await asyncio.wait_for(waits, 2)

    run(place, work)


def test_whoever_hangs_up_while_a_model_makes_room_has_nothing_loaded() -> None:
    place = fleet({"a": 60, "cold": 60}, budget=100)
    a = place.members["a"]
    app = application(place, Log(io.StringIO()))
    body = json.dumps({"model": "a", "messages": [{"role": "user", "content": "x"}]}).encode()
    heard = iter([{"type": "http.request", "body": body, "more_body": False}])
    scope = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "raw_path": b"/v1/chat/completions",
        "query_string": b"", "headers": [(b"content-type", b"application/json"), (b"host", b"localhost")],
        "server": ("localhost", 1), "client": ("127.0.0.1", 2), "scheme": "http", "http_version": "1.1",
        "root_path": "", "asgi": {"version": "3.0"},
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return next(heard, {"type": "http.disconnect"})

    async def send(message: Any) -> None: ...

    async def work() -> None:
        await use(place, "a")
        with place.at_work(a):
            waits = asyncio.create_task(use(place, "cold"))
            while not a.goes_for:
                await asyncio.sleep(0.001)
            await asyncio.wait_for(app(scope, receive, send), 1)
            assert app.state.gateway.limits.running == 0
        await waits
        assert a.loads == 1

    run(place, work)


def test_an_engine_that_cannot_be_measured_keeps_its_estimate() -> None:
    place = fleet({"a": 10}, budget=100)
    (a,) = place.members.values()
    a.release = dataclasses.replace(a.release, load=release("a", 0, "a").load)

    async def work() -> None:
        await use(place, "a")
        assert a.needed_by(a.release) == 10

    run(place, work)


def test_what_an_engine_takes_with_its_first_answer_is_kept_for_it() -> None:
    # its grammars come with the first question, when others had been given their bytes
    place = fleet({"a": 60, "b": 40}, budget=90)
    a, b = place.members.values()
    engine = Weight(20)
    served = Served(cast(Backend, engine), a.release.models)
    a.release = dataclasses.replace(a.release, load=lambda: served)

    async def work() -> None:
        with place.at_work(a):
            loaded = await place.lease(a)
            assert (loaded.bytes, a.bytes) == (60, 60)
            waits = asyncio.create_task(use(place, "b"))
            await asyncio.sleep(0.1)
            engine.size = 50
            assert b.state == "loading"
            place.give_back(loaded)
            await asyncio.wait_for(waits, 2)
            assert loaded.bytes == 50

    run(place, work)


def test_models_that_come_and_go_answer_several_requests_a_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleets, "CALM_S", 0.5)
    place = fleet({"a": 60, "b": 60}, budget=100)
    a, b = place.members.values()

    async def work() -> None:
        await use(place, "a")
        await asyncio.wait_for(use(place, "b"), 0.3)  # it was there never before: at once, and a goes
        waits = asyncio.create_task(use(place, "a"))
        for _ in range(3):
            await asyncio.sleep(0.1)
            await use(place, "b")
        assert (a.state, b.loads) == ("loading", 1)
        await waits
        assert (a.loads, b.loads, b.state) == (2, 1, "on disk")
        await asyncio.sleep(0.6)
        await asyncio.wait_for(use(place, "b"), 0.3)  # nobody has asked the other one for a while

    run(place, work)
