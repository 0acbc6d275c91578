"""The fleet in this process, with real engines of a tiny model: loads, room for them, tags that move."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import io
import json
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.fleets import KEPT, TASKS
from support.serving import chat

from slmctl.config import ServeConfig
from slmctl.errors import IntegrityError, UsageError
from slmctl.inference.engine import Engine
from slmctl.model_files import memory
from slmctl.server import fleet as fleets
from slmctl.server.api_keys import Key
from slmctl.server.app import application
from slmctl.server.backends import LocalEngine
from slmctl.server.bad_requests import BadRequestError
from slmctl.server.fleet import Fleet
from slmctl.server.fleet_members import LoadableRelease, Member, Served, figures
from slmctl.server.log import Log
from slmctl.server.metrics import Metrics
from slmctl.server.openai_requests import ServedModel
from slmctl.server.rate_limits import ANYBODY
from slmctl.server.request_run import RequestFailedError

SETTINGS = ServeConfig(sequences=2, context_length=256, max_tokens=16)
NAMES = ("tickets", "moods", "orders", "letters")


@dataclass
class Opened:
    """A fleet, its log, and the names of its loads in order."""

    fleet: Fleet
    loads: list[str] = field(default_factory=list)
    lines: io.StringIO = field(default_factory=io.StringIO)

    def __post_init__(self) -> None:
        self.log = Log(self.lines)

    def start(self, metrics: Metrics | None = None) -> None:
        self.fleet.load_pinned()
        self.fleet.start(self.log, metrics or Metrics())

    async def use(self, name: str) -> None:
        member = self.fleet.members[name]
        await self.fleet.opened(member)
        with self.fleet.at_work(member):
            self.fleet.give_back(await self.fleet.lease(member))

    def states(self) -> dict[str, str]:
        return {name: member.state for name, member in self.fleet.members.items()}

    def events(self, name: str) -> list[dict[str, Any]]:
        self.log.close()
        return [line for line in map(json.loads, self.lines.getvalue().splitlines()) if line["event"] == name]


def load(loads: list[str], name: str, path: Path = KEPT) -> Served:
    loads.append(name)
    engine = Engine(path, sequences=2, context=256, threads=1, classifier=bool(TASKS[name].labels))
    return Served(LocalEngine(engine, name), {name: ServedModel(name, TASKS[name])}, close=engine.close)


def opened(*names: str, bytes: int = 1000, budget: int | None = None, pinned: tuple[str, ...] = ()) -> Opened:
    loads: list[str] = []
    members = [
        Member(
            name,
            LoadableRelease(name, {name: ServedModel(name, TASKS[name])}, bytes, functools.partial(load, loads, name)),
            pin=name in pinned,
        )
        for name in names
    ]
    return Opened(Fleet(members, SETTINGS, budget=budget), loads)


def run(place: Opened, work: Callable[[], Awaitable[None]], metrics: Metrics | None = None) -> None:
    """Do something with a fleet in a loop of its own, and end it."""

    async def whole() -> None:
        place.start(metrics)
        try:
            await work()
        finally:
            await place.fleet.close()
            await asyncio.to_thread(place.fleet.close_all)
            place.log.close()

    asyncio.run(whole())


@pytest.fixture(scope="module")
def held() -> int:
    """Bytes that an engine of the tiny model holds."""
    with Engine(KEPT, sequences=2, context=256, threads=1) as engine:
        return engine.held_bytes()


def test_a_cold_model_is_loaded_once_however_many_ask() -> None:
    place = opened("tickets", "moods")

    async def work() -> None:
        assert place.states() == {"tickets": "on disk", "moods": "on disk"}
        first = asyncio.gather(*(place.use("moods") for _ in range(20)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert place.states()["moods"] == "loading"
        await first
        assert (place.loads, place.states()["moods"]) == (["moods"], "loaded")
        assert place.fleet.members["moods"].bytes > 1000  # measured, and no longer estimated

    run(place, work)


def test_the_least_recently_used_goes_and_neither_what_is_pinned_nor_what_has_work(held: int) -> None:
    place = opened(*NAMES, bytes=int(1.8 * held), budget=4 * held, pinned=("tickets",))

    async def work() -> None:
        await place.use("moods")
        await place.use("tickets")
        await place.use("orders")  # 3 of about 1 each, and a fourth is taken to need 1.8
        await place.use("moods")
        assert place.states() == {**dict.fromkeys(NAMES, "loaded"), "letters": "on disk"}
        await place.use("letters")
        assert place.states() == {**dict.fromkeys(NAMES, "loaded"), "orders": "on disk"}
        members = place.fleet.members
        members["orders"].measured.clear()
        with place.fleet.at_work(members["moods"]), contextlib.ExitStack() as answering:
            answering.enter_context(place.fleet.at_work(members["letters"]))
            waits = asyncio.create_task(place.use("orders"))
            await asyncio.sleep(0.2)
            assert place.states() == {**dict.fromkeys(NAMES, "loaded"), "orders": "loading"}
            answering.close()
            await waits  # there was room as soon as one had no work: that of `letters` ended first
        assert place.states() == {**dict.fromkeys(NAMES, "loaded"), "letters": "on disk"}

    run(place, work)
    assert [line["model"] for line in place.events("model_evicted")] == ["orders", "letters"]


def test_a_model_that_is_never_idle_makes_room_and_what_asks_for_it_waits(held: int) -> None:
    place = opened("tickets", "moods", "orders", bytes=int(1.2 * held), budget=int(2.7 * held), pinned=("tickets",))

    async def work() -> None:
        moods, orders = place.fleet.members["moods"], place.fleet.members["orders"]
        await place.use("moods")
        with place.fleet.at_work(moods):  # from now on somebody always asks for it
            waits = asyncio.create_task(place.use("orders"))
            await asyncio.sleep(0.1)
            used, again = moods.used, [asyncio.create_task(place.use("moods")) for _ in range(3)]
            await asyncio.sleep(0.1)
            assert (moods.work, moods.used, moods.state, orders.state) == (1, used, "loaded", "loading")
        await waits  # for its last answer
        await asyncio.gather(*again)  # in its turn
        assert (moods.state, orders.state, moods.loads) == ("loaded", "on disk", 2)

    run(place, work)
    assert [(line["model"], line["for_model"]) for line in place.events("model_drained")] == [("moods", "orders")]
    assert place.loads == ["tickets", "moods", "orders", "moods"]


def test_several_cold_starts_have_room_made_for_each_and_stay_within_the_budget(held: int) -> None:
    place = opened(*NAMES, bytes=int(1.2 * held), budget=int(2.6 * held))
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, sum(part.bytes for part in place.fleet._all()))
            await asyncio.sleep(0.001)

    async def work() -> None:
        watching = asyncio.create_task(watch())
        for _ in range(3):
            await asyncio.gather(*(place.use(name) for name in NAMES for _ in range(2)))
        watching.cancel()
        assert not place.fleet._wanted and not any(member.goes_for for member in place.fleet.members.values())

    run(place, work)
    assert 0 < most <= 2.6 * held
    assert place.events("model_has_no_room") == []


def test_a_model_takes_requests_again_where_another_one_went_or_nobody_did_in_time(
    held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleets, "WAIT", 0.3 / SETTINGS.answer_timeout_s)
    place = opened("moods", "orders", "letters", bytes=int(1.8 * held), budget=3 * held)

    async def work() -> None:
        await place.use("moods")
        await place.use("orders")
        moods, orders = place.fleet.members["moods"], place.fleet.members["orders"]
        with place.fleet.at_work(moods), place.fleet.at_work(orders):
            waits = asyncio.create_task(place.use("letters"))
            await asyncio.sleep(0.1)
            assert (moods.goes_for, orders.goes_for) == ("letters", "")  # one is enough
            with pytest.raises(RequestFailedError, match="no memory for model 'letters' now") as refused:
                await waits
            assert (refused.value.status, refused.value.code, refused.value.retry_after_s > 0) == (503, "no_room", True)
            await place.use("moods")
        await place.use("letters")
        assert place.states() == {"moods": "loaded", "orders": "on disk", "letters": "loaded"}

    run(place, work)
    assert [(line["model"], line["for_model"]) for line in place.events("model_drained")] == [("moods", "letters")]


def test_a_project_with_a_first_release_takes_part_once_the_tags_are_read() -> None:
    place, newcomer = opened("tickets", pinned=("tickets",)), opened("moods").fleet.members["moods"]
    known: list[Collection[str]] = []

    def damaged() -> Member:
        raise IntegrityError("the release is damaged")

    def discover(names: Collection[str]) -> dict[str, Callable[[], Member]]:
        known.append(names)
        found = {"moods": lambda: newcomer, "orders": damaged}
        return {name: find for name, find in found.items() if name not in names}

    fleet = Fleet(list(place.fleet.members.values()), SETTINGS, discover=discover)
    place = dataclasses.replace(place, fleet=fleet)
    assert fleet.follows

    async def work() -> None:
        await fleet.follow()
        assert place.states() == {"tickets": "loaded", "moods": "on disk"}
        await place.use("moods")
        await fleet.follow()
        assert [set(names) for names in known] == [{"tickets"}, {"tickets", "moods"}]

    run(place, work)
    assert [line["model"] for line in place.events("not_followed")] == ["orders", "orders"]


def test_a_budget_that_nothing_could_keep_is_refused_before_anything_is_loaded() -> None:
    place = opened("tickets", "moods", bytes=2_000_000, budget=3_000_000, pinned=("tickets", "moods"))
    with pytest.raises(
        UsageError, match=r"pinned models need about 4.0 MB \(tickets, moods\), and serve.memory is 3.0"
    ):
        place.fleet.require_fit()
    place = opened("tickets", "moods", bytes=2_000_000, budget=3_000_000, pinned=("tickets",))
    with pytest.raises(
        UsageError, match=r"'moods' needs about 2.0 MB beside the pinned tickets, and serve.memory is 3"
    ):
        place.fleet.require_fit()
    opened("tickets", "moods", bytes=2_000_000, budget=3_000_000).fleet.require_fit()  # one at a time
    assert place.loads == []


def test_an_engine_holds_no_more_than_is_estimated(held: int) -> None:
    assert 1e6 < held < memory.engine_bytes(KEPT, sequences=2, context=256)


def test_pinned_models_that_hold_more_than_the_budget_are_refused(held: int) -> None:
    place = opened("tickets", budget=held // 2, pinned=("tickets",))
    place.fleet.require_fit()
    with pytest.raises(UsageError, match=r"the pinned models hold \S+ MB, and serve.memory is"):
        place.fleet.load_pinned()
    place.fleet.close_all()


def test_a_model_that_cannot_be_loaded_says_so_at_once_until_it_is_tried_again(tmp_path: Path) -> None:
    place = opened("tickets", "moods")
    member, file = place.fleet.members["moods"], tmp_path / "cut.gguf"
    file.write_bytes(KEPT.read_bytes()[:9000])
    member.release = dataclasses.replace(member.release, load=functools.partial(load, place.loads, "moods", file))

    async def work() -> None:
        for _ in range(3):
            with pytest.raises(RequestFailedError, match="model 'moods' cannot be loaded") as failed:
                await place.use("moods")
            assert (failed.value.status, failed.value.code) == (503, "model_failed")
        assert (place.loads, member.state, place.fleet.faults) == (["moods"], "failed", ["moods"])
        file.write_bytes(KEPT.read_bytes())
        member.again_at = 0.0
        await place.use("moods")
        assert (member.state, place.fleet.faults) == ("loaded", [])

    run(place, work)


def test_a_tag_that_moves_is_followed_and_one_that_cannot_be_leaves_the_old_one() -> None:
    place = opened("tickets", "moods", pinned=("tickets",))
    tickets, moods = place.fleet.members.values()
    found: list[LoadableRelease | IntegrityError] = [dataclasses.replace(tickets.release, digest="new")]

    def find() -> LoadableRelease:
        if isinstance(found[-1], IntegrityError):
            raise found[-1]
        return found[-1]

    tickets.find, moods.find = find, lambda: dataclasses.replace(moods.release, digest="later")

    async def work() -> None:
        old = await place.fleet.lease(tickets)
        engine = old.served.backend
        assert isinstance(engine, LocalEngine)
        await place.fleet.follow()
        assert (tickets.loads, moods.loads, moods.release.digest) == (2, 0, "later")  # what is on disk stays there
        assert tickets.loaded is not old
        assert engine.engine.alive  # with its last answer
        place.fleet.give_back(old)
        for _ in range(100):
            if not engine.engine.alive:
                break
            await asyncio.sleep(0.1)
        assert not engine.engine.alive
        served = tickets.loaded
        found.append(IntegrityError("the release is damaged"))
        await place.fleet.follow()
        assert (tickets.loaded is served, tickets.state, place.fleet.faults) == (True, "loaded", ["tickets"])
        assert figures(place.fleet.members.values())["slmctl_model_fault"][0] == ({"model": "tickets"}, 1.0)
        found.append(dataclasses.replace(tickets.release, digest="new"))  # the tag moved back
        await place.fleet.follow()
        assert (tickets.loaded is served, place.fleet.faults) == (True, [])

    run(place, work)
    assert [line["error"] for line in place.events("not_followed")] == ["the release is damaged"]


def test_a_release_that_has_no_room_beside_the_old_one_is_not_followed(held: int) -> None:
    place = opened("tickets", bytes=held, budget=int(1.5 * held), pinned=("tickets",))
    (member,) = place.fleet.members.values()
    member.find = lambda: dataclasses.replace(member.release, digest="new")

    async def work() -> None:
        served = member.loaded
        await place.fleet.follow()
        assert (member.loaded is served, place.fleet.faults) == (True, ["tickets"])

    run(place, work)


def test_a_key_is_for_its_models_alone() -> None:
    fleet = opened("tickets", "moods", "orders").fleet
    key = Key("crm", "", "", models=("orders", "moods"))
    assert (list(fleet.models(key)), list(fleet.models(ANYBODY))) == (
        ["moods", "orders"],
        ["tickets", "moods", "orders"],
    )
    assert [fleet.find(name, key)[0].name for name in (None, "default", "orders")] == ["moods", "moods", "orders"]
    for name, status in (("tickets", 404), ("nobody", 404), (5, 400)):
        with pytest.raises(BadRequestError, match=f"model '{name}' is not served here; served: moods, orders$") as no:
            fleet.find(name, key)
        assert no.value.status == status


def test_over_http_a_model_without_room_is_refused_with_the_time_to_come_back(
    held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleets, "WAIT", 0.1 / SETTINGS.answer_timeout_s)
    place = opened("tickets", "moods", "letters", bytes=int(1.8 * held), budget=2 * held)
    app = application(place.fleet, place.log)

    async def work() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            ask = functools.partial(client.post, "/v1/chat/completions")
            moods = await ask(json={"model": "moods", "messages": chat("hello")})
            assert moods.json()["choices"][0]["message"]["content"] in TASKS["moods"].labels
            with place.fleet.at_work(place.fleet.members["moods"]):
                refused = await ask(json={"messages": chat("hello")})
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_room")
                assert int(refused.headers["retry-after"]) >= 1
                again = await ask(json={"model": "moods", "messages": chat("hello"), "n": 2})
                assert len(again.json()["choices"]) == 2
            default = await ask(json={"messages": chat("hello")})
            assert default.json()["slmctl"]["model"] == "tickets"
            listed = (await client.get("/v1/models")).json()["data"]
            assert {entry["id"]: entry["slmctl"]["state"] for entry in listed} == {
                "tickets": "loaded", "moods": "on disk", "letters": "on disk"
            }  # fmt: skip
            page = (await client.get("/metrics")).text
            assert 'slmctl_model_state{model="moods",state="on disk"} 1.0' in page
            assert 'slmctl_model_evictions_total{model="moods"} 1.0' in page
            assert app.state.gateway.limits.running == 0
            assert not any(member.work for member in place.fleet.members.values())

    run(place, work, app.state.gateway.metrics)
