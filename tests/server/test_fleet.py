"""The fleet in this process: loads, room for them, tags that move."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support import here
from support.fleets import KEPT, TASKS
from support.kept_log import KeptLog

from slmctl.config import ServeConfig
from slmctl.errors import FullError, IntegrityError, UsageError
from slmctl.inference.engine import Engine
from slmctl.model_files import memory
from slmctl.server import process
from slmctl.server.api_keys import Key
from slmctl.server.backends import Backend
from slmctl.server.fleet import Fleet
from slmctl.server.forms.request import ServedModel
from slmctl.server.log import Log
from slmctl.server.metrics import Metrics
from slmctl.server.rate_limits import ANYBODY
from slmctl.server.request_errors import RequestError
from slmctl.server.running_model import Release, RunningModel


class Weight:
    """An engine that holds bytes and answers nothing."""

    build, ready = "", True

    def __init__(self, size: int) -> None:
        self.size, self.is_closed = size, False

    def held_bytes(self) -> int:
        return self.size

    def start(self, log: Log, metrics: Metrics) -> None: ...

    async def look(self) -> None: ...

    async def close(self) -> None:
        self.is_closed = True


def release(name: str, size: int = 10, *, digest: str = "", **more: Any) -> Release:
    """A release whose engine holds as many bytes as it is estimated to."""
    models = {name: ServedModel(name, TASKS.get(name, TASKS["moods"]))}
    return Release(
        name,
        digest or name,
        models,
        size,
        lambda: RunningModel(cast(Backend, Weight(size)), models),
        **more,
    )


def real(name: str, path: Path = KEPT, **more: Any) -> Release:
    return here.release(name, path, TASKS[name], **more)


@dataclass
class Place:
    """A fleet in a loop of its own, and its log."""

    fleet: Fleet
    log: KeptLog = field(default_factory=KeptLog)

    def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do something with the fleet, and end it."""

        async def whole() -> None:
            self.fleet.load_pinned()
            self.fleet.start(self.log, Metrics())
            try:
                async with asyncio.timeout(60):
                    await work()
            finally:
                await self.fleet.close()
                await asyncio.to_thread(self.fleet.close_all)
                self.log.close()
            assert not self.fleet._waiting and not self.fleet._ending

        asyncio.run(whole())

    async def use(self, name: str, seconds: float = 0.0) -> None:
        running = await self.fleet.lease(name)
        await asyncio.sleep(seconds)
        self.fleet.give_back(running)

    @contextlib.asynccontextmanager
    async def answering(self, name: str) -> Any:
        """A request that goes on meanwhile."""
        running = await self.fleet.lease(name)
        yield running
        self.fleet.give_back(running)

    def loaded(self) -> list[str]:
        return [name for name in self.fleet.releases if self.fleet.state(name) == "loaded"]

    def figure(self, family: str) -> dict[str, float]:
        return {
            labels["model"]: value
            for labels, value in self.fleet.figures()[family]
            if "state" not in labels
        }


def fleet(*releases: Release, budget: int | None = None, **more: Any) -> Place:
    settings = ServeConfig(sequences=2, context_length=256, max_tokens=16, memory=budget)
    return Place(Fleet(releases, settings, **more))


def of(sizes: Mapping[str, int], budget: int) -> Place:
    return fleet(*(release(name, size) for name, size in sizes.items()), budget=budget)


# Loads and room


def test_a_cold_model_is_loaded_once_however_many_ask() -> None:
    place = fleet(real("tickets"), real("moods"))

    async def work() -> None:
        first = asyncio.gather(*(place.use("moods") for _ in range(20)))
        await asyncio.sleep(0)
        assert [place.fleet.state(name) for name in ("tickets", "moods")] == ["on disk", "loading"]
        await first
        assert (place.figure("slmctl_model_loads"), place.loaded()) == (
            {"tickets": 0, "moods": 1},
            ["moods"],
        )
        assert place.fleet.bytes_of("moods") > 1e6  # measured, and no longer estimated

    place.run(work)


def test_an_engine_holds_no_more_than_is_estimated() -> None:
    with Engine(KEPT, sequences=2, context=256, threads=1) as engine:
        assert 1e6 < engine.held_bytes() < memory.engine_bytes(KEPT, sequences=2, context=256)


def test_the_least_recently_used_idle_model_ends_and_no_pinned_one() -> None:
    place = fleet(release("pinned", pin=True), release("a"), release("b"), release("c"), budget=30)

    async def work() -> None:
        for name in ("a", "b", "pinned", "a", "c"):
            await place.use(name)
        assert place.loaded() == ["pinned", "a", "c"]
        async with place.answering("a"):
            await place.use("b")  # `a` was used before `c`, and has a request
        assert place.loaded() == ["pinned", "a", "b"]

    place.run(work)
    assert [line["model"] for line in place.log.of("model_evicted")] == ["b", "c"]


def test_a_model_that_is_never_idle_ends_after_its_last_answer_and_what_asks_for_it_waits() -> None:
    place = of({"a": 10, "cold": 10}, 10)

    async def work() -> None:
        async with place.answering("a") as running:
            waits = [asyncio.create_task(place.use("cold"))]
            await asyncio.sleep(0.05)
            waits += [asyncio.create_task(place.use("a")) for _ in range(2)]
            await asyncio.sleep(0.05)
            assert (place.fleet.state("cold"), running.backend.is_closed) == ("loading", False)
        await asyncio.gather(*waits)
        assert place.figure("slmctl_model_loads") == {"a": 2, "cold": 1}

    place.run(work)


def test_models_that_come_and_go_stay_within_the_budget_and_answer_everybody() -> None:
    sizes = {"a": 10, "b": 10, "c": 10, "large": 20}
    place = of(sizes, 30)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, place.fleet._held())
            await asyncio.sleep(0.001)

    async def work() -> None:
        watching = asyncio.create_task(watch())
        for _ in range(5):
            await asyncio.wait_for(
                asyncio.gather(*(place.use(name, 0.01) for name in sizes for _ in range(3))), 10
            )
        watching.cancel()
        # each answers all that waited
        assert sum(place.figure("slmctl_model_loads").values()) <= 5 * len(sizes)

    place.run(work)
    assert 20 <= most <= 30
    assert place.log.of("model_has_no_room") == []


def test_a_model_that_no_other_one_could_make_room_for_is_refused_and_none_ends() -> None:
    place = fleet(
        release("pinned", 20, pin=True), release("a", 10), release("large", 20), budget=30
    )

    async def work() -> None:
        await place.use("a")
        with pytest.raises(
            RequestError, match="there is no memory for model 'large' now"
        ) as refused:
            await place.use("large")
        assert (refused.value.status, refused.value.code, refused.value.retry_after_s > 0) == (
            503,
            "no_room",
            True,
        )
        assert place.loaded() == ["pinned", "a"]

    place.run(work)
    assert [(line["model"], line["bytes"]) for line in place.log.of("model_has_no_room")] == [
        ("large", 20)
    ]


def test_what_an_engine_takes_with_its_first_answer_is_kept_for_it() -> None:
    # its grammars come with the first question, when others had been given their bytes
    engine = Weight(20)
    place = of({"a": 60, "b": 40}, 90)
    models = place.fleet.releases["a"].models
    own = dataclasses.replace(
        place.fleet.releases["a"], load=lambda: RunningModel(cast(Backend, engine), models)
    )
    place.fleet.releases["a"] = own

    async def work() -> None:
        async with place.answering("a") as running:
            assert running.bytes == 60
            engine.size = 50
        assert place.fleet.bytes_of("a") == 50
        await place.use("b")
        assert place.loaded() == ["a", "b"]
        engine.size = 0  # one that cannot be measured keeps what is known
        await place.fleet.measure()
        assert place.fleet.bytes_of("a") == 50

    place.run(work)


def test_whoever_hangs_up_while_a_model_is_loaded_leaves_it_idle() -> None:
    place = of({"a": 60, "cold": 60}, 100)

    async def work() -> None:
        async with place.answering("a"):
            waits = [asyncio.create_task(place.use("cold")) for _ in range(2)]
            await asyncio.sleep(0.01)
            waits[0].cancel()
        await waits[1]
        assert (place.loaded(), place.fleet.running["cold"].users) == (["cold"], 0)

    place.run(work)


@pytest.mark.parametrize(
    ("pinned", "message"),
    [
        (
            ("tickets", "moods"),
            r"the pinned models need about 4.0 MB \(tickets, moods\), and serve.memory is 3.0",
        ),
        (
            ("tickets",),
            r"'moods' needs about 2.0 MB beside the pinned tickets, and serve.memory is 3",
        ),
    ],
)
def test_a_budget_that_nothing_could_keep_is_refused_before_anything_is_loaded(
    pinned: Collection[str], message: str
) -> None:
    releases = [release(name, 2_000_000, pin=name in pinned) for name in ("tickets", "moods")]
    place = fleet(*releases, budget=3_000_000)
    with pytest.raises(UsageError, match=message):
        place.fleet.require_fit()
    assert place.loaded() == []
    fleet(
        release("tickets", 2_000_000), release("moods", 2_000_000), budget=3_000_000
    ).fleet.require_fit()


def test_pinned_models_that_hold_more_than_the_budget_are_refused() -> None:
    engine = RunningModel(cast(Backend, Weight(2_000_000)), {})
    place = fleet(Release("a", "a", {}, 1000, lambda: engine, pin=True), budget=1_000_000)
    place.fleet.require_fit()
    with pytest.raises(
        UsageError, match=r"the pinned models hold 2.0 MB, and serve.memory is 1.0 MB"
    ):
        place.fleet.load_pinned()


def test_a_model_that_cannot_be_loaded_says_so_at_once_until_it_is_tried_again(
    tmp_path: Path,
) -> None:
    file = tmp_path / "cut.gguf"
    file.write_bytes(KEPT.read_bytes()[:9000])
    loads = 0
    own = real("moods", file)

    def load() -> RunningModel:
        nonlocal loads
        loads += 1
        return own.load()

    place = fleet(dataclasses.replace(own, load=load))

    async def work() -> None:
        for _ in range(3):
            with pytest.raises(RequestError, match="model 'moods' cannot be loaded") as failed:
                await place.use("moods")
            assert (failed.value.status, failed.value.code) == (503, "model_failed")
        assert (loads, place.fleet.state("moods"), place.fleet.faults) == (1, "failed", ["moods"])
        file.write_bytes(KEPT.read_bytes())
        place.fleet._again_at["moods"] = 0.0
        await place.use("moods")
        assert (place.fleet.state("moods"), place.fleet.faults) == ("loaded", [])

    place.run(work)


def test_a_machine_that_is_full_is_no_fault_of_the_release() -> None:
    def load() -> RunningModel:
        raise FullError("the model needs 3 GB, and 1 GB is free")

    place = fleet(dataclasses.replace(release("a"), load=load))

    async def work() -> None:
        with pytest.raises(RequestError) as refused:
            await place.use("a")
        assert (refused.value.code, place.fleet.state("a"), place.fleet.faults) == (
            "no_room",
            "on disk",
            [],
        )

    place.run(work)


# Tags


@dataclass
class Tag:
    """What a tag stands for."""

    release: Release | None

    def newest(self) -> Release:
        if self.release is None:
            raise IntegrityError("the release is damaged")
        return dataclasses.replace(self.release, newest=self.newest)


def test_a_tag_that_moves_is_followed_and_one_that_cannot_be_leaves_the_old_one() -> None:
    tag, moved = Tag(release("a")), Tag(release("b", digest="later"))
    place = fleet(
        dataclasses.replace(release("a", pin=True), newest=tag.newest),
        dataclasses.replace(release("b"), newest=moved.newest),
    )
    assert place.fleet.follows

    async def work() -> None:
        async with place.answering("a") as old:
            tag.release = release("a", digest="new", pin=True)
            await place.fleet.follow()
            # what is on disk stays there
            assert place.figure("slmctl_model_loads") == {"a": 2, "b": 0}
            assert place.fleet.releases["b"].digest == "later"
            # it has an answer left
            assert (place.fleet.running["a"] is old, old.backend.is_closed) == (False, False)
        while not old.backend.is_closed:  # pytest's own limit ends one that never closes
            await asyncio.sleep(0.01)
        served, tag.release = place.fleet.running["a"], None
        await place.fleet.follow()
        assert (place.fleet.running["a"] is served, place.fleet.faults) == (True, ["a"])
        assert place.figure("slmctl_model_fault") == {"a": 1, "b": 0}
        tag.release = release("a", digest="new", pin=True)  # the tag moved back
        moved.release = None
        await place.fleet.follow()
        await place.use("b")  # an older release, which mends nothing
        assert place.fleet.faults == ["b"]
        moved.release = release("b", digest="later")
        await place.fleet.follow()
        assert (place.fleet.running["a"] is served, place.fleet.faults) == (True, [])

    place.run(work)
    assert {line["error"] for line in place.log.of("not_followed")} == {"the release is damaged"}


def test_tags_are_read_again_where_a_signal_comes_while_a_release_is_loaded() -> None:
    begun = list[asyncio.Event]()

    async def follow() -> None:
        begun.append(asyncio.Event())
        await begun[-1].wait()

    async def work() -> None:
        server = process._Server.__new__(process._Server)
        server._gateway = cast(
            Any, SimpleNamespace(fleet=SimpleNamespace(keys=None, follows=True, follow=follow))
        )
        server._moving, server._asked_again = None, False
        for _ in range(3):
            server._reload()
            await asyncio.sleep(0)
        begun[0].set()
        while len(begun) < 2:
            await asyncio.sleep(0)
        begun[1].set()
        assert server._moving is not None
        await asyncio.wait_for(server._moving, 10)

    asyncio.run(work())
    assert len(begun) == 2


def test_a_release_that_has_no_room_beside_the_old_one_is_not_followed() -> None:
    tag = Tag(release("a", digest="new", pin=True))
    place = fleet(dataclasses.replace(release("a", pin=True), newest=tag.newest), budget=15)

    async def work() -> None:
        served = place.fleet.running["a"]
        await place.fleet.follow()
        assert (place.fleet.running["a"] is served, place.fleet.faults) == (True, ["a"])

    place.run(work)


def test_bytes_of_a_release_that_still_answers_are_waited_for() -> None:
    tag = Tag(release("a", 40, digest="new"))
    place = fleet(
        dataclasses.replace(release("a", 40), newest=tag.newest), release("cold", 50), budget=90
    )

    async def work() -> None:
        async with place.answering("a"):
            await place.fleet.follow()
            waits = asyncio.create_task(place.use("cold"))
            await asyncio.sleep(0.1)
            assert (place.fleet.state("cold"), place.fleet.state("a")) == ("loading", "loaded")
        await waits
        assert place.loaded() == ["a", "cold"]

    place.run(work)


# Requests


def test_a_key_is_for_its_models_alone() -> None:
    own = fleet(release("tickets"), release("moods"), release("orders")).fleet
    key = Key("crm", "", "", models=("orders", "moods"))
    assert (list(own.models(key)), list(own.models(ANYBODY))) == (
        ["moods", "orders"],
        ["tickets", "moods", "orders"],
    )
    assert [own.find(name, key)[0] for name in (None, "default", "orders")] == [
        "moods",
        "moods",
        "orders",
    ]
    for name, status in (("tickets", 404), ("nobody", 404), (5, 400)):
        with pytest.raises(
            RequestError, match=f"model '{name}' is not served here; served: moods, orders$"
        ) as no:
            own.find(name, key)
        assert no.value.status == status


@pytest.mark.parametrize("name", [None, "default", "tickets"])
def test_a_key_for_other_models_is_told_so_whatever_it_names(name: str | None) -> None:
    """Without a name it was "model 'None' is not served here; served: "."""
    with pytest.raises(RequestError) as no:
        fleet(release("tickets")).fleet.find(name, Key("crm", "", "", models=("elsewhere",)))
    assert (no.value.message, no.value.status) == (
        "this key may ask no model that is served here",
        404,
    )


def test_over_http_a_model_without_room_is_refused_with_the_time_to_come_back() -> None:
    with Engine(KEPT, sequences=2, context=256, threads=1) as engine:
        held = engine.held_bytes()
    large = dataclasses.replace(real("letters"), bytes=5 * held)
    settings = ServeConfig(sequences=2, context_length=256, max_tokens=16, memory=4 * held)
    with here.served(real("tickets"), real("moods"), large, settings=settings) as server:
        answers = {
            choice["message"]["content"]
            for choice in server.ask(model="moods", n=2).json()["choices"]
        }
        assert answers <= set(TASKS["moods"].labels)
        refused = server.ask(model="letters")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_room")
        assert int(refused.headers["retry-after"]) >= 1
        assert server.ask().json()["slmctl"]["model"] == "tickets"
        listed = server.get("/v1/models").json()["data"]
        assert {entry["id"]: entry["slmctl"]["state"] for entry in listed} == {
            "tickets": "loaded",
            "moods": "loaded",
            "letters": "on disk",
        }
        page = server.get("/metrics").text
        for line in ('state{model="moods",state="loaded"} 1.0', 'loads_total{model="moods"} 1.0'):
            assert f"slmctl_model_{line}" in page
        assert server.gateway.limits.running == 0
        assert not any(running.users for running in server.gateway.fleet.running.values())
