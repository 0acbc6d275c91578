"""`auto` over HTTP in this process: a tiny router names a model, and that one answers, or nobody does."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import endpoint
from support.endpoint import Fake, fails, says
from support.fleets import KEPT, TASKS, published
from support.judged_fleet import ALWAYS, CARD, NEVER, Ask, Place, asked, lines, one, policy, sure, text_of, unsure
from support.serving import chat

from slmctl.cli.group import Options, read_settings
from slmctl.cli.served_fleet import ServedFleet
from slmctl.errors import SlmctlError
from slmctl.inference.engine import Engine
from slmctl.production.records import CollectedRow, collected_files
from slmctl.server import api_keys
from slmctl.server.api_keys import Key, KeyRing
from slmctl.server.auto import AtItsWord, Fixed
from slmctl.server.router import Judge


def test_the_named_model_answers_and_the_answer_says_the_path() -> None:
    place = Place("tickets", {"auto": sure(0.9), "tickets": policy(ALWAYS, p=0.8)})
    answer, page = one(place)
    assert text_of(answer) in TASKS["tickets"].labels
    about = answer.json()["slmctl"]
    assert (answer.json()["model"], about["route"], about["reason"], about["p_correct"]) == (
        "tickets", "local", "confident", 0.8,
    )  # fmt: skip
    assert about["path"] == [
        {"model": "auto", "p_correct": 0.9, "answer": "tickets"}, {"model": "tickets", "p_correct": 0.8},
    ]  # fmt: skip
    assert answer.headers["x-slmctl-path"] == "auto, tickets"
    assert 'slmctl_auto_total{model="tickets",sure="true"} 1.0' in page
    (decision,) = lines(place, "decision")
    assert (decision["path"], decision["model"], decision["p_correct"]) == (["auto", "tickets"], "tickets", 0.8)
    (request,) = [line for line in lines(place, "request") if "asked" in line]
    assert request["asked"] == "auto, tickets"
    assert request["model"] == "tickets"


@pytest.fixture
def large() -> Any:
    with endpoint.serving(lambda body, before: says("forty-two")) as fake:
        yield fake


def test_an_unsure_router_asks_the_general_model_with_the_conversation_alone(large: Fake) -> None:
    place = Place("tickets", {"auto": unsure(), "tickets": policy(ALWAYS, p=0.8)}, large.url)
    answer, page = one(place, "what is six times seven")
    assert (text_of(answer), answer.headers["x-slmctl-path"]) == ("forty-two", "auto, tickets, generalist")
    assert answer.headers["x-slmctl-route"] == "generalist; reason=unsure"
    assert answer.json()["slmctl"]["path"] == [
        {"model": "auto", "p_correct": 0.75, "answer": "tickets"}, {"model": "tickets", "p_correct": 0.8},
        {"model": "large"},
    ]  # fmt: skip
    (body,) = large.bodies
    assert body["messages"] == chat("what is six times seven")  # no brief of a task that may be the wrong one
    assert 'slmctl_auto_total{model="tickets",sure="false"} 1.0' in page


def test_an_unsure_router_sends_no_tools_and_a_reply_in_the_form_of_a_call_is_a_text() -> None:
    called = '{"name": "close_account", "arguments": {}}'
    with endpoint.serving(lambda body, before: says(called)) as fake:
        place = Place("errands", {"auto": unsure()}, fake.url, context=1024)

        async def work(ask: Ask) -> list[httpx.Response]:
            return [await ask(), await ask(stream=True), await ask(tool_choice="required")]

        (whole, streamed, chosen), _ = asked(place, work)
    assert whole.status_code == 200, whole.text
    assert (text_of(whole), whole.headers["x-slmctl-route"]) == (called, "generalist; reason=unsure")
    assert [body["messages"] for body in fake.bodies] == [chat("hello")] * 2
    assert not any("tools" in body for body in fake.bodies)
    assert "close_account" in streamed.text and "tool_calls" not in streamed.text
    assert chosen.headers["x-slmctl-route"] == "local; reason=doubt"  # the choice is among that model's tools


def test_what_is_for_no_model_goes_to_the_general_one_or_says_so(large: Fake) -> None:
    answer, _ = one(Place("none", {"auto": sure()}, large.url))
    assert (text_of(answer), answer.headers["x-slmctl-path"]) == ("forty-two", "auto, generalist")
    assert answer.headers["x-slmctl-route"] == "generalist; reason=out-of-scope"
    place = Place("none", {"auto": AtItsWord()})
    answer, _ = one(place)
    assert (text_of(answer), answer.json()["model"]) == ("none", "auto")
    assert answer.headers["x-slmctl-route"] == "local; reason=out-of-scope"
    assert answer.json()["slmctl"]["path"] == [{"model": "auto", "answer": "none"}]
    assert {member.name: member.loads for member in place.fleet.members.values()} == {
        "auto": 1, "tickets": 0, "moods": 0, "letters": 0, "errands": 0,
    }  # fmt: skip


@pytest.mark.parametrize(("named", "router"), [("tickets", unsure()), ("none", unsure()), ("tickets", sure())])
def test_what_is_sensitive_stays_whatever_the_policies_say(large: Fake, named: str, router: Fixed) -> None:
    place = Place(named, {"auto": router, "tickets": policy(NEVER)}, large.url)

    async def work(ask: Ask) -> list[httpx.Response]:
        return [await ask(CARD), await ask(headers={"x-slmctl-sensitive": "1"})]

    answers, _ = asked(place, work)
    assert [each.headers["x-slmctl-route"] for each in answers] == ["local; reason=sensitive"] * 2
    assert large.bodies == []


def test_the_policy_of_the_named_model_escalates_as_ever_with_its_task() -> None:
    with endpoint.serving(lambda body, before: says("billing")) as fake:
        answer, _ = one(Place("tickets", {"auto": sure(), "tickets": policy(NEVER)}, fake.url))
    assert (text_of(answer), answer.headers["x-slmctl-route"]) == ("billing", "generalist; reason=unsure")
    assert "billing" in fake.bodies[0]["messages"][0]["content"]  # the labels


def test_a_general_model_that_fails_leaves_the_answer_of_the_named_one() -> None:
    with endpoint.serving(lambda body, before: fails(500)) as fake:
        answer, _ = one(Place("tickets", {"auto": unsure()}, fake.url))
    assert text_of(answer) in TASKS["tickets"].labels
    assert answer.headers["x-slmctl-route"] == "local; reason=generalist-error"
    assert answer.headers["x-slmctl-path"] == "auto, tickets"


def test_without_any_policy_the_router_is_taken_at_its_word() -> None:
    place = Place("letters", {"auto": AtItsWord()})

    async def work(ask: Ask) -> list[httpx.Response]:
        return [await ask(max_tokens=2), await ask(CARD, max_tokens=2)]

    (answer, sensitive), _ = asked(place, work)
    about = answer.json()["slmctl"]
    assert (about["model"], about["reason"], "p_correct" in about) == ("letters", "no-policy", False)
    assert about["path"] == [{"model": "auto", "answer": "letters"}, {"model": "letters"}]
    assert sensitive.headers["x-slmctl-route"] == "local; reason=sensitive"


def test_a_stream_and_the_responses_api_say_the_path_too() -> None:
    place = Place("tickets", {"auto": sure(), "tickets": policy(ALWAYS)})

    async def work(ask: Ask) -> list[httpx.Response]:
        return [
            await ask(stream=True),
            await ask(path="responses", input="hello", instructions="be short"),
            await ask(path="responses", input="hello", stream=True),
        ]

    (streamed, response, both), _ = asked(place, work)
    chunks = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) in TASKS["tickets"].labels
    assert [step["model"] for step in chunks[-1]["slmctl"]["path"]] == ["auto", "tickets"]
    assert streamed.text.rstrip().endswith("data: [DONE]")
    assert [step["model"] for step in response.json()["slmctl"]["path"]] == ["auto", "tickets"]
    assert '"path": [{"model": "auto"' in both.text
    assert {answer.headers["x-slmctl-path"] for answer in (streamed, response, both)} == {"auto, tickets"}


def test_the_options_of_a_request_are_those_of_the_named_model() -> None:
    place = Place("tickets", {"auto": sure()})
    schema = {"type": "object", "properties": {"label": {"type": "string"}}, "required": ["label"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}

    async def work(ask: Ask) -> list[httpx.Response]:
        several = await ask(n=2)
        return [await ask(response_format=form), await ask(nonsense=1), several]

    (held, refused, several), _ = asked(place, work)
    assert json.loads(text_of(held))["label"] in TASKS["tickets"].labels
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "nonsense")
    assert (several.status_code, several.json()["error"]["param"]) == (400, "n")
    none, _ = asked(Place("none", {"auto": AtItsWord()}), lambda ask: ask(response_format=form))
    assert (none.status_code, none.json()["error"]["code"]) == (400, "no_task")


def test_a_conversation_with_calls_is_asked_of_its_model_by_name() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "track_order", "arguments": "{}"}}
    turns = [*chat("where"), {"role": "assistant", "tool_calls": [call]},
             {"role": "tool", "tool_call_id": "c1", "content": "ok"}]  # fmt: skip
    items = [*chat("where"), {"type": "function_call", "call_id": "c1", "name": "track_order", "arguments": "{}"}]

    async def work(ask: Ask) -> list[httpx.Response]:
        return [await ask(messages=turns), await ask(path="responses", input=items), await ask(messages=[])]

    answers, _ = asked(Place("errands", {"auto": sure()}), work)
    assert [answer.status_code for answer in answers] == [400] * 3
    hints = ["by its name" in answer.json()["error"]["message"] for answer in answers]
    assert (hints, answers[1].json()["error"]["param"]) == ([True, True, False], "input")


def test_one_sequence_and_room_for_one_model_are_enough_for_many_at_once() -> None:
    with Engine(KEPT, sequences=1, context=256, threads=1) as engine:
        held = engine.held_bytes()
    judges: dict[str, Judge] = {"auto": sure(), "tickets": policy(ALWAYS)}
    place = Place("tickets", judges, budget=int(1.5 * held), bytes=int(0.9 * held))

    async def work(ask: Ask) -> list[httpx.Response]:
        return [await ask(), *await asyncio.gather(*(ask() for _ in range(2)))]

    answers, _ = asked(place, work)
    assert [answer.status_code for answer in answers] == [200] * 3, [answer.text for answer in answers]
    assert place.fleet.members["auto"].loads >= 2  # each made room for the other
    crowd = Place("tickets", judges)
    many, _ = asked(crowd, lambda ask: asyncio.gather(*(ask() for _ in range(12))))
    assert [answer.status_code for answer in many] == [200] * 12


def test_a_key_for_auto_reaches_the_models_behind_it_that_way_alone() -> None:
    fleet = Place("tickets", {"auto": sure()}).fleet
    key = Key("app", "", "", models=("auto",))
    assert list(fleet.models(key)) == ["auto"]
    assert fleet.find(None, key)[0].is_router


def test_answers_are_collected_under_the_model_that_gave_them_where_the_router_was_sure(tmp_path: Path) -> None:
    for router, models in ((unsure(), []), (sure(), ["tickets"])):
        place = Place("tickets", {"auto": router}, collect=tmp_path)
        one(place)
        assert place.fleet.collector is not None
        place.fleet.collector.close()
        rows = [row for path in collected_files([tmp_path]) for row in CollectedRow.read(path)]
        assert [row.model for row in rows] == models


def test_a_key_for_auto_may_say_what_would_have_been_right(tmp_path: Path) -> None:
    ring = tmp_path / "keys.json"
    secrets = {name: api_keys.add(ring, name, models=[name]) for name in ("auto", "moods")}
    place = Place("tickets", {"auto": sure()}, collect=tmp_path / "collected")
    place.fleet.keys = KeyRing(ring)
    bearer = {name: {"authorization": f"Bearer {secret}"} for name, secret in secrets.items()}

    async def work(ask: Ask) -> list[httpx.Response]:
        answer = await ask(headers=bearer["auto"])
        id = answer.headers["x-request-id"]
        return [
            await ask(None, "feedback", bearer[name], request_id=id, answer=label)
            for name, label in (("auto", "billing"), ("auto", "glad"), ("moods", "billing"))
        ]

    (right, wrong, other), _ = asked(place, work)
    assert (right.status_code, right.json().get("answer")) == (200, "billing"), right.text
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "answer")  # a label of another model
    assert other.status_code == 404


CONFIG = """\
project: desk
version: "1.0"
base: ./base
task: {kind: generate}
prepare: {sources: [{path: rows.csv}]}
serve:
  context_length: 256
  fleet:
    auto: {release: "dir:registry#moods", router: true}
    glad: {release: "dir:registry#tickets"}
"""


def test_a_router_that_names_no_model_of_the_fleet_is_refused(tmp_path: Path) -> None:
    for name in ("moods", "tickets", "orders"):
        published(tmp_path / "registry", name)
    (tmp_path / "slmctl.yaml").write_text(CONFIG, encoding="utf-8")
    options = Options()
    options.directory, options.sets = tmp_path, []
    for sets, message in (
        ([], "the task router 'auto' names 'sad', and the models of serve.fleet are glad"),
        (["serve.fleet.auto.release=dir:registry#orders"], "the task router 'auto' names no model, and the models of"),
    ):
        options.sets = sets
        with (
            pytest.raises(SlmctlError, match=message),
            ServedFleet(options, read_settings(options).serve, None, None, keys=False),
        ):
            pass
    (tmp_path / "slmctl.yaml").write_text(
        CONFIG + '    sad: {release: "dir:registry#orders"}\n', encoding="utf-8"
    )  # fmt: skip
    options.sets = []
    with ServedFleet(options, read_settings(options).serve, None, None, keys=False) as served:
        assert served.fleet.members["auto"].is_router
        assert served.fleet.members["auto"].release.models["auto"].task.labels == ("glad", "sad")
