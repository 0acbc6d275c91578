"""`slmctl serve` with several releases: the whole program, asked over HTTP."""

from __future__ import annotations

import runpy
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import ROOT, here, production
from support.fleets import KEPT, TASKS, published
from support.servers import settles
from support.serving import ask, begin, end

from slmctl.config import ServeConfig
from slmctl.errors import SlmctlError
from slmctl.model_files import memory
from slmctl.server import api_keys, served_fleet

CONFIG = """\
project: desk
version: "1.0"
base: ./base
task: {kind: generate}
prepare: {sources: [{path: rows.csv}]}
serve:
  context_length: 256
  sequences: 2
  memory: 4GiB
  collect: {to: collected, kept: 100%}
  fleet:
    tickets: {release: "dir:registry#tickets@production", pin: true}
    orders: {release: "dir:registry#orders"}
    mail: {release: registry/letters/1.0}
"""


@dataclass(frozen=True)
class Served:
    """A server of a fleet, with a key for everything and one for `orders` alone."""

    server: here.Here
    whole: str
    limited: str

    def get(self, path: str, key: str = "") -> httpx.Response:
        return self.server.get(path, **self.shows(key))

    def ask(self, model: str = "", key: str = "", **more: Any) -> httpx.Response:
        named = {"model": model} if model else {}
        return self.server.ask("where is my parcel", headers=self.shows(key), **named, **more)

    def shows(self, key: str = "") -> dict[str, str]:
        return {"authorization": f"Bearer {key or self.whole}"}

    def figure(self, line: str) -> float:
        lines = self.get("/metrics").text.splitlines()
        return float(next(each for each in lines if each.startswith(line + " ")).rpartition(" ")[2])


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a registry of three releases."""
    folder = tmp_path_factory.mktemp("fleet")
    for name in ("tickets", "orders", "letters"):
        published(folder / "registry", name)
    (folder / "slmctl.yaml").write_text(CONFIG, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def served(desk: Path) -> Iterator[Served]:
    keys = desk / ServeConfig().keys
    whole, limited = api_keys.add(keys, "all"), api_keys.add(keys, "crm", models=["orders"])
    with here.opened(
        desk, f"serve.collect.to={desk / 'collected'}", f"serve.keys={keys}", keys=True
    ) as server:
        yield Served(server, whole, limited)


def test_each_model_has_its_task_its_state_and_its_digest(served: Served) -> None:
    listed = {entry["id"]: entry["slmctl"] for entry in served.get("/v1/models").json()["data"]}
    assert {name: (about["task"], about["version"]) for name, about in listed.items()} == {
        "tickets": ("classify", "1.0"),
        "orders": ("extract", "1.0"),
        "mail": ("generate", "1.0"),
    }
    assert listed["tickets"]["state"] == "loaded"
    assert all(about["digest"].startswith("sha256:") for about in listed.values())
    assert (listed["tickets"]["labels"], listed["tickets"]["aliases"]) == (
        list(TASKS["tickets"].labels),
        ["default"],
    )
    assert (
        served.get("/v1/models/default").json()["slmctl"]["digest"] == listed["tickets"]["digest"]
    )
    assert served.get("/v1/task?model=orders").json()["kind"] == "extract"
    assert served.get("/readyz").json() == {"ready": True}


def test_a_burst_for_cold_models_loads_each_once_and_everybody_is_answered(served: Served) -> None:
    names = ["orders", "mail", "tickets", ""] * 4
    with ThreadPoolExecutor(len(names)) as pool:
        answers = list(pool.map(lambda name: served.ask(name, max_tokens=4), names))
    assert [answer.status_code for answer in answers] == [200] * len(names)
    for name, answer in zip(names, answers, strict=True):
        body = answer.json()
        assert body["slmctl"]["model"] == (name or "tickets")
        if name in ("", "tickets"):
            assert body["choices"][0]["message"]["content"] in TASKS["tickets"].labels
    loads = [
        served.figure(f'slmctl_model_loads_total{{model="{name}"}}')
        for name in ("tickets", "orders", "mail")
    ]
    assert loads == [1, 1, 1]
    estimate = memory.engine_bytes(KEPT, sequences=2, context=256)
    assert 1e6 < served.figure('slmctl_model_bytes{model="orders"}') < estimate
    assert served.figure("slmctl_requests_running") == 0


def test_a_busy_model_leaves_the_others_their_places(served: Served) -> None:
    limits = served.server.gateway.limits
    limits.take("tickets", places := limits.sequences + limits.queue)
    try:
        assert served.ask("mail", max_tokens=4).status_code == 200
        assert served.ask("tickets").json()["error"]["code"] == "queue"
        assert served.figure("slmctl_requests_waiting") == limits.queue
    finally:
        limits.take("tickets", -places)


def test_a_key_for_a_model_that_is_not_served_is_named_at_the_start(served: Served) -> None:
    fleet = served.server.gateway.fleet
    assert fleet.keys is not None and "is for" not in "".join(served_fleet.facts(fleet))
    api_keys.add(fleet.keys.path, "lost", models=["orders", "odrers", "default"])
    fleet.keys.reload()
    line = "  warning: key 'lost' is for odrers and default, and no model here has that name"
    assert line in list(served_fleet.facts(fleet))
    api_keys.revoke(fleet.keys.path, "lost")


def test_a_key_asks_its_models_alone(served: Served) -> None:
    assert [entry["id"] for entry in served.get("/v1/models", served.limited).json()["data"]] == [
        "orders"
    ]
    assert served.get("/v1/models/tickets", served.limited).status_code == 404
    assert served.get("/v1/task?model=tickets", served.limited).status_code == 404
    refused = served.ask("tickets", served.limited)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    assert (
        refused.json()["error"]["message"] == "model 'tickets' is not served here; served: orders"
    )
    assert "mail" not in refused.text
    assert served.ask("default", served.limited, max_tokens=4).json()["slmctl"]["model"] == "orders"
    assert served.get("/metrics", served.limited).status_code == 403


def test_answers_of_every_model_are_collected_and_take_feedback(served: Served, desk: Path) -> None:
    answers = {name: served.ask(name, max_tokens=4) for name in ("tickets", "mail")}
    ids = {name: answer.headers["x-request-id"] for name, answer in answers.items()}

    def models() -> dict[str, str]:
        return {row.id: row.model for row in production.rows(desk / "collected")}

    assert settles(lambda: set(ids.values()) <= models().keys())
    assert {name: models()[id] for name, id in ids.items()} == {
        "tickets": "tickets",
        "mail": "mail",
    }
    word = {"request_id": ids["tickets"], "answer": "billing"}
    for key, status in ((served.whole, 200), (served.limited, 404)):
        said = httpx.post(
            f"{served.server.url}/v1/feedback", json=word, headers=served.shows(key), timeout=60
        )
        assert said.status_code == status, said.text


def test_a_broken_release_leaves_the_old_one_and_is_named(served: Served, desk: Path) -> None:
    published(desk / "registry", "tickets", "2.0")
    file = next((desk / "registry" / "tickets" / "2.0").glob("*.gguf"))
    whole = file.read_bytes()
    file.write_bytes(whole[:9000])
    served.server.follow()
    assert served.get("/readyz").json() == {"ready": True, "failed": ["tickets"]}
    assert served.figure('slmctl_model_fault{model="tickets"}') == 1
    assert served.ask("tickets").json()["slmctl"]["version"] == "1.0"
    file.write_bytes(whole)
    served.server.follow()
    assert served.ask("tickets").json()["slmctl"]["version"] == "2.0"
    assert served.get("/readyz").json() == {"ready": True}


def test_a_registry_is_a_fleet_of_what_is_in_production(desk: Path, tmp_path: Path) -> None:
    shutil.copytree(desk / "registry", tmp_path / "registry")
    published(tmp_path / "registry", "moods", tag="candidate")
    published(tmp_path / "registry", "which")
    child, url = begin(
        tmp_path, "dir:registry", "--set=serve.context_length=256", "--set=serve.sequences=2"
    )

    def listed() -> dict[str, str]:
        return {
            entry["id"]: entry["slmctl"]["state"]
            for entry in httpx.get(f"{url}/v1/models").json()["data"]
        }

    assert listed() == dict.fromkeys(("letters", "orders", "tickets", "which"), "on disk")
    child.send_signal(signal.SIGHUP)
    answer = ask(url, "hello", model="tickets").json()
    assert answer["choices"][0]["message"]["content"] in TASKS["tickets"].labels
    choose = runpy.run_path(str(ROOT / "examples" / "choose_model.py"))["choose"]
    name, text = choose(f"{url}/v1", "which", "where is my parcel", sure=0)
    assert (name in TASKS["which"].labels, text in TASKS["tickets"].labels) == (
        True,
        name == "tickets",
    )
    assert {"model_loaded", "followed"} <= {line["event"] for line in end(child)}


@pytest.mark.parametrize(
    ("sets", "code", "message"),
    [
        (
            ["serve.memory=150MB"],
            2,
            r"the pinned model needs about 2\d\d\.. MB \(tickets\), and serve.memory is 150.0",
        ),
        (
            ["serve.memory=300MB"],
            2,
            r"'orders' needs about 2\d\d\.. MB beside the pinned tickets, and serve.memory",
        ),
        (
            ["serve.fleet.orders.release=dir:registry#orders@2.0"],
            7,
            "holds no release 'orders@2.0'",
        ),
        (
            ["serve.fleet.orders.policy=true"],
            7,
            "no policy below runs/ was fitted on base-7K-orders-v1.0-F16.gguf",
        ),
        (["serve.fleet.orders.release=nowhere"], 7, "nowhere does not exist"),
        (["serve.memory=lots"], 2, "'lots' is not a number of bytes such as 3GiB"),
        (["serve.policy=policy"], 2, "'policy' and 'fleet' exclude each other"),
    ],
)
def test_nothing_fails_late(desk: Path, sets: list[str], code: int, message: str) -> None:
    with pytest.raises(SlmctlError, match=message) as refused, here.opened(desk, *sets):
        pass
    assert refused.value.code == code
