"""A larger model behind a smaller one over HTTP in this process: asked where the smaller one's policy is not sure."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import endpoint
from support.endpoint import Fake, fails, says
from support.fleets import KEPT, TASKS, published, task
from support.judged_fleet import ALWAYS, CARD, NEVER, Ask, Place, asked, lines, one, policy, sure, text_of, unsure

from slmctl.artifacts.artifact import canonical
from slmctl.cli.group import Options, read_settings
from slmctl.cli.served_fleet import ServedFleet
from slmctl.errors import StageError, UsageError
from slmctl.inference.engine import Engine
from slmctl.production.records import CollectedRow, collected_files
from slmctl.sensitive.conversation_veto import Cleared
from slmctl.server import api_keys, fleet
from slmctl.server.api_keys import KeyRing
from slmctl.server.backends import LocalEngine
from slmctl.server.fleet_members import Served
from slmctl.server.openai_requests import ServedModel
from slmctl.server.router import Judge, Router

LABELS = TASKS["tickets"].labels
SMALL, LARGE = {"model": "tickets", "p_correct": 0.4}, {"model": "desk", "p_correct": 0.9}


@dataclasses.dataclass(frozen=True)
class Rows:
    """Training rows that every question is new to, or none."""

    novel: bool

    def is_novel(self, text: str) -> bool:
        return self.novel


def cascade(small: float, large: float, url: str = "", **more: Any) -> Place:
    """Two models of one task, each with the threshold of its policy, behind a router that names the smaller one."""
    judges: dict[str, Judge] = {"auto": sure(), "tickets": policy(small, p=0.4), "desk": policy(large, p=0.9)}
    return Place("tickets", judges, url, larger=["tickets"], **more)


@pytest.fixture
def general() -> Any:
    with endpoint.serving(lambda body, before: says("billing")) as fake:
        yield fake


def test_what_the_smaller_model_keeps_is_its_answer() -> None:
    place = cascade(ALWAYS, ALWAYS)
    answer, _ = one(place, model="tickets")
    assert (answer.json()["model"], answer.headers["x-slmctl-path"]) == ("tickets", "tickets")
    assert answer.json()["slmctl"]["path"] == [SMALL]
    assert place.fleet.members["desk"].loads == 0


@pytest.mark.parametrize("auto", [False, True])
def test_the_larger_model_answers_where_the_smaller_one_is_unsure_and_the_answer_says_the_path(auto: bool) -> None:
    place = cascade(NEVER, ALWAYS)
    answer, page = one(place, model="auto" if auto else "tickets")
    about = answer.json()["slmctl"]
    assert text_of(answer) in LABELS
    assert (answer.json()["model"], about["route"], about["reason"], about["p_correct"]) == (
        "desk", "local", "confident", 0.9,
    )  # fmt: skip
    router = [{"model": "auto", "p_correct": 0.75, "answer": "tickets"}] if auto else []
    assert about["path"] == [*router, SMALL, LARGE]
    names = ["auto"] * auto + ["tickets", "desk"]
    assert answer.headers["x-slmctl-path"] == ", ".join(names)
    assert answer.headers["x-slmctl-route"] == "local; reason=confident"
    (decision,) = lines(place, "decision")
    assert (decision["path"], decision["model"], decision["p_correct"]) == (names, "desk", 0.9)
    (request,) = [line for line in lines(place, "request") if "asked" in line]
    assert (request["asked"], request["model"]) == (", ".join(names), "desk")
    assert 'slmctl_answers_total{model="desk",reason="confident",route="local"} 1.0' in page


def test_where_the_larger_one_is_unsure_too_the_general_model_is_asked_with_the_task(general: Fake) -> None:
    answer, _ = one(cascade(NEVER, NEVER, general.url), model="tickets")
    assert (text_of(answer), answer.headers["x-slmctl-route"]) == ("billing", "generalist; reason=unsure")
    assert answer.headers["x-slmctl-path"] == "tickets, desk, generalist"
    assert answer.json()["slmctl"]["path"] == [SMALL, LARGE, {"model": "large"}]
    assert all(label in general.bodies[0]["messages"][0]["content"] for label in LABELS)


def test_without_a_general_model_or_where_it_fails_the_larger_ones_answer_is_given() -> None:
    with endpoint.serving(lambda body, before: fails(500)) as fake:
        for url, reason in (("", "unsure"), (fake.url, "generalist-error")):
            answer, _ = one(cascade(NEVER, NEVER, url), model="auto")
            assert (text_of(answer) in LABELS, answer.json()["model"]) == (True, "desk")
            assert answer.headers["x-slmctl-route"] == f"local; reason={reason}"
            assert answer.headers["x-slmctl-path"] == "auto, tickets, desk"


@pytest.mark.parametrize("large", [ALWAYS, NEVER])
def test_what_is_sensitive_is_asked_of_the_larger_model_and_stays(general: Fake, large: float) -> None:
    async def work(ask: Ask) -> list[httpx.Response]:
        marked = {"x-slmctl-sensitive": "1"}
        return [await ask(CARD), await ask(CARD, model="tickets"), await ask(headers=marked)]

    answers, _ = asked(cascade(NEVER, large, general.url), work)
    assert [each.headers["x-slmctl-route"] for each in answers] == ["local; reason=sensitive"] * 3
    assert [each.json()["model"] for each in answers] == ["desk"] * 3
    assert general.bodies == []


def test_a_router_that_is_not_sure_asks_no_larger_model_of_a_task_that_may_be_the_wrong_one(general: Fake) -> None:
    judges: dict[str, Judge] = {"auto": unsure(), "tickets": policy(NEVER), "desk": policy(ALWAYS)}
    place = Place("tickets", judges, general.url, larger=["tickets"])
    answer, _ = one(place)
    assert answer.headers["x-slmctl-path"] == "auto, tickets, generalist"
    assert place.fleet.members["desk"].loads == 0


def test_streams_and_the_responses_api_give_the_larger_ones_answer_alone() -> None:
    schema = {"type": "object", "properties": {"label": {"type": "string"}}, "required": ["label"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}

    async def work(ask: Ask) -> list[httpx.Response]:
        return [
            await ask(model="tickets", stream=True),
            await ask(stream=True, stream_options={"include_usage": True}, logprobs=True),
            await ask(path="responses", input="hello", instructions="be short"),
            await ask(path="responses", input="hello", stream=True),
            await ask(model="tickets", response_format=form),
            await ask(model="tickets", n=2),
        ]

    (streamed, counted, response, both, held, several), _ = asked(cascade(NEVER, ALWAYS), work)
    for stream, names in ((streamed, ["tickets", "desk"]), (counted, ["auto", "tickets", "desk"])):
        chunks = [json.loads(line[6:]) for line in stream.text.splitlines() if line.startswith("data: {")]
        text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
        assert text in LABELS
        assert {chunk["model"] for chunk in chunks} == {"desk"}
        (last,) = [chunk for chunk in chunks if "slmctl" in chunk]
        assert [step["model"] for step in last["slmctl"]["path"]] == names
        assert stream.text.rstrip().endswith("data: [DONE]")
        assert stream.headers["x-slmctl-path"] == ", ".join(names)
    assert [step["model"] for step in response.json()["slmctl"]["path"]] == ["auto", "tickets", "desk"]
    assert response.json()["model"] == "desk"
    assert '"model": "desk"' in both.text
    assert json.loads(text_of(held))["label"] in LABELS
    assert (several.status_code, several.json()["error"]["param"]) == (400, "n")


def failing() -> Served:
    raise StageError("the file is gone")


def silent() -> Served:
    """A larger model that never answers."""
    engine = Engine(KEPT, sequences=1, context=256, threads=1, classifier=True)
    backend = LocalEngine(engine, "desk")
    backend.begin = lambda checked, index, put: lambda: None  # type: ignore[method-assign]  # nothing ever comes
    router = Router(policy(ALWAYS), TASKS["tickets"], "desk")
    return Served(backend, {"desk": ServedModel("desk", TASKS["tickets"])}, router, close=engine.close)


def other() -> Served:
    """A larger model whose tag has moved to a release of another task."""
    moved = task("classify", "glad", "sad")
    engine = Engine(KEPT, sequences=1, context=256, threads=1, classifier=True)
    router = Router(policy(ALWAYS), moved, "desk")
    return Served(LocalEngine(engine, "desk"), {"desk": ServedModel("desk", moved)}, router, close=engine.close)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"desk": failing}, "model_failed"),
        ({"desk": silent, "timeout_s": 4}, "deadline_exceeded"),
        ({"desk": other}, "other_task"),
    ],
    ids=["failed", "silent", "moved"],
)
def test_a_larger_model_that_gives_no_answer_costs_none(general: Fake, more: dict[str, Any], reason: str) -> None:
    for url, route in {"": "local; reason=unsure", general.url: "generalist; reason=unsure"}.items():
        place = cascade(NEVER, ALWAYS, url, **more)
        answer, page = one(place, model="tickets")
        assert answer.headers["x-slmctl-route"] == route
        assert answer.json()["slmctl"]["path"][0] == SMALL
        assert "desk" not in answer.headers["x-slmctl-path"]
        (failed,) = lines(place, "larger_failed")
        assert (failed["model"], failed["reason"]) == ("desk", reason)
        assert f'slmctl_larger_failed_total{{model="desk",reason="{reason}"}} 1.0' in page
        assert "slmctl_refused_total{" not in page  # the client has an answer


@pytest.mark.parametrize("step", ["checked", "require_grammar"])
def test_a_request_that_takes_long_to_check_for_the_larger_model_gets_the_smaller_ones_answer(
    monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    place = cascade(NEVER, ALWAYS, timeout_s=4)
    gateway = place.app.state.gateway
    real = getattr(gateway, step)

    async def slow(*args: Any) -> Any:
        if place.fleet.members["desk"].loaded is not None:
            await asyncio.sleep(60)
        return await real(*args)

    monkeypatch.setattr(gateway, step, slow)
    answer, _ = one(place, model="tickets")
    assert (answer.json()["model"], answer.headers["x-slmctl-route"]) == ("tickets", "local; reason=unsure")
    assert [line["reason"] for line in lines(place, "larger_failed")] == ["deadline_exceeded"]


def test_a_question_that_stays_leaves_the_time_of_the_general_model_to_the_larger_one(general: Fake) -> None:
    router = Router(policy(NEVER), TASKS["tickets"], "tickets", Place("tickets", {}, general.url).escalation.generalist)

    async def work() -> list[float]:
        now = asyncio.get_running_loop().time()
        ways = ((11.0, ""), (101.0, ""), (11.0, "sensitive"))
        return [router.larger_ends_at(now + left, Cleared(reason=reason)) - now for left, reason in ways]

    half, fixed, stays = asyncio.run(work())
    assert half == pytest.approx(5, abs=0.1)  # of the 10 s before the answer has to be given
    assert fixed == pytest.approx(80)  # the general model has 20 s
    assert stays == pytest.approx(10)


def test_a_stopping_server_ends_the_larger_models_answer_too() -> None:
    place = cascade(NEVER, ALWAYS, desk=silent)

    async def work(ask: Ask) -> httpx.Response:
        asking = asyncio.create_task(ask(model="tickets"))
        while place.fleet.members["desk"].loaded is None:
            await asyncio.sleep(0.01)
        place.app.state.gateway.end_all()
        return await asking

    answer, _ = asked(place, work)  # which sees that nothing is held any more
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_stopping")


def test_many_at_once_wait_for_one_sequence_and_not_for_each_other() -> None:
    many, _ = asked(cascade(NEVER, ALWAYS), lambda ask: asyncio.gather(*(ask() for _ in range(12))))
    assert [(answer.status_code, answer.json()["model"]) for answer in many] == [(200, "desk")] * 12


def test_room_for_one_model_is_enough_and_where_there_is_none_the_smaller_ones_answer_is_given() -> None:
    with Engine(KEPT, sequences=1, context=256, threads=1) as engine:
        held = engine.held_bytes()
    room: dict[str, Any] = {"budget": int(1.5 * held), "bytes": int(0.9 * held)}
    place = cascade(NEVER, ALWAYS, **room)

    async def work(ask: Ask) -> list[httpx.Response]:
        return [await ask(), await ask(model="tickets")]

    answers, _ = asked(place, work)
    assert [answer.json()["model"] for answer in answers] == ["desk"] * 2
    assert place.fleet.members["tickets"].loads == 2  # it had made room

    place = cascade(NEVER, ALWAYS, **room)

    async def full(ask: Ask) -> httpx.Response:
        with place.fleet.at_work(place.fleet.members["tickets"]):
            return await ask(model="tickets")

    answer, page = asked(place, full)
    assert (answer.status_code, answer.headers["x-slmctl-path"]) == (200, "tickets"), answer.text
    assert [line["reason"] for line in lines(place, "larger_failed")] == ["no_room"]
    assert 'slmctl_larger_failed_total{model="desk",reason="no_room"} 1.0' in page
    assert "slmctl_refused_total{" not in page


def test_a_larger_model_without_room_takes_no_model_out_of_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "SHORT_S", 0.2)
    monkeypatch.setattr(fleet, "WAIT", 0.4 / 120)
    with Engine(KEPT, sequences=1, context=256, threads=1) as engine:
        held = engine.held_bytes()
    place = cascade(NEVER, ALWAYS, budget=int(1.5 * held), bytes=int(0.9 * held))

    async def work(ask: Ask) -> tuple[list[int], list[int]]:
        tickets = place.fleet.members["tickets"]
        with place.fleet.at_work(tickets):
            spare = [(await ask(model="tickets")).status_code for _ in range(3)]
            assert not lines(place, "model_drained")
            first = asyncio.create_task(ask(model="tickets"))
            while place.fleet.members["desk"].loading is None:
                await asyncio.sleep(0.001)
            second = await ask(model="desk")  # a client that asks for the larger one by its name
            return spare, [(await first).status_code, second.status_code]

    (spare, shared), page = asked(place, work)
    assert (spare, shared) == ([200] * 3, [200, 503])
    assert [line["model"] for line in lines(place, "model_drained")] == ["tickets"]
    assert 'slmctl_refused_total{reason="no_room"} 1.0' in page


def test_a_key_for_the_smaller_model_reaches_the_larger_one_that_way_alone(tmp_path: Path) -> None:
    ring = tmp_path / "keys.json"
    secrets = {name: api_keys.add(ring, name, models=[name]) for name in ("tickets", "moods")}
    place = cascade(NEVER, ALWAYS, collect=tmp_path / "collected")
    place.fleet.keys = KeyRing(ring)
    bearer = {name: {"authorization": f"Bearer {secret}"} for name, secret in secrets.items()}

    async def work(ask: Ask) -> list[httpx.Response]:
        answer = await ask(model="tickets", headers=bearer["tickets"])
        word = {"request_id": answer.headers["x-request-id"], "answer": "billing"}
        return [
            answer,
            await ask(model="desk", headers=bearer["tickets"]),
            await ask(None, "feedback", bearer["tickets"], **word),
            await ask(None, "feedback", bearer["moods"], **word),
        ]

    (answer, direct, word, foreign), _ = asked(place, work)
    assert (answer.status_code, answer.json()["model"]) == (200, "desk")
    assert [direct.status_code, word.status_code, foreign.status_code] == [404, 200, 404]


def test_an_answer_is_collected_under_the_model_that_gave_it(tmp_path: Path) -> None:
    place = cascade(NEVER, ALWAYS, collect=tmp_path)

    async def work(ask: Ask) -> None:
        await ask(model="tickets")
        await ask()

    asked(place, work)
    assert place.fleet.collector is not None
    place.fleet.collector.close()
    rows = [row for path in collected_files([tmp_path]) for row in CollectedRow.read(path)]
    assert [(row.model, row.router, row.p_correct) for row in rows] == [("desk", "tickets", 0.9), ("desk", "auto", 0.9)]


def test_an_answer_after_an_unsure_model_is_collected_as_unsure_and_novel_by_the_data_of_its_own(
    tmp_path: Path,
) -> None:
    def collected(folder: Path, kept: float, small: float, rows_of: dict[str, Rows]) -> list[CollectedRow]:
        place = cascade(small, ALWAYS, collect=folder, kept=kept, questions=rows_of)

        async def work(ask: Ask) -> None:
            for model in ("tickets", "auto"):
                await ask(model=model)

        asked(place, work)
        collector = place.fleet.collector
        assert collector is not None
        collector.close()
        decisions = lines(place, "decision")
        assert [line.get("novel") for line in decisions] == [None if small == NEVER else False] * 2
        return [row for path in collected_files([folder]) for row in CollectedRow.read(path)]

    both = {"tickets": Rows(False), "desk": Rows(True)}
    rows = collected(tmp_path / "both", 0, NEVER, both)
    assert [(row.model, row.chosen, row.reason, row.novel) for row in rows] == [
        ("desk", "unsure", "confident", True)
    ] * 2
    rows = collected(tmp_path / "one", 0, NEVER, {"tickets": Rows(True)})
    assert [row.novel for row in rows] == [None] * 2  # the larger one's data is not here
    rows = collected(tmp_path / "sure", 1, ALWAYS, both)
    assert [(row.model, row.chosen, row.novel) for row in rows] == [("tickets", "uniform", False)] * 2


def test_a_call_is_answered_by_the_larger_model_in_the_form_of_a_call() -> None:
    weights = {"mean": 1.0, "least": 0.0, "choices": 0.0}  # the signals of a text
    small, large = (dataclasses.replace(policy(threshold), weights=weights) for threshold in (NEVER, ALWAYS))
    place = Place("errands", {"auto": sure(), "errands": small, "desk": large}, larger=["errands"], context=1024)
    answer, _ = one(place, model="errands", max_tokens=8)
    assert (answer.json()["model"], answer.headers["x-slmctl-path"]) == ("desk", "errands, desk")


CONFIG = """\
project: desk
version: "1.0"
base: ./base
task: {kind: generate}
prepare: {sources: [{path: rows.csv}]}
serve:
  fleet:
    moods: {release: "dir:registry#moods", policy: policies/moods.json, larger: tickets}
    tickets: {release: "dir:registry#tickets", policy: policies/tickets.json}
"""


def test_a_larger_model_of_another_task_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    for name in ("moods", "tickets"):
        release = published(tmp_path / "registry", name)
        sha256 = next(iter(release.files(".gguf"))).sha256
        fitted = dataclasses.replace(policy(ALWAYS), gguf=sha256, task=TASKS[name].digest)
        (tmp_path / "policies" / f"{name}.json").write_bytes(canonical(dataclasses.asdict(fitted)))
    (tmp_path / "slmctl.yaml").write_text(CONFIG, encoding="utf-8")
    options = Options()
    options.directory, options.sets = tmp_path, []
    message = "the larger model 'tickets' has other labels than 'moods', so it cannot answer in its place"
    opened = ServedFleet(options, read_settings(options).serve, None, None, keys=False)
    with pytest.raises(UsageError, match=message), opened:
        pass
    with pytest.raises(UsageError, match=message):
        opened.releases()
