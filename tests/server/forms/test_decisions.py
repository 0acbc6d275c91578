"""Decisions, in OpenAI's form and in TypeSafe's, by the way of a chat."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import endpoint, here, production
from support.endpoint import says
from support.fleets import KEPT, TASKS, task
from support.servers import settles
from support.serving import LOCAL

from slmctl.config import CollectConfig, ServeConfig
from slmctl.server import api_keys
from slmctl.server.backends import LocalEngine
from slmctl.server.forms import decisions
from slmctl.server.request_errors import RequestError

LABELS = TASKS["tickets"].labels
JSON = {"content-type": "application/json"}
DEEP: Any = "x"
for _ in range(40):
    DEEP = [DEEP]


@pytest.fixture(scope="module")
def desk() -> Iterator[here.Here]:
    """A server of a classifier, of one of two labels, and of a release that writes texts."""
    releases = [
        here.release(name, KEPT, TASKS[name], context=1024)
        for name in ("tickets", "moods", "letters")
    ]
    with here.served(*releases, settings=ServeConfig(context_length=1024)) as server:
        yield server


def choice(*values: str | bool, **more: Any) -> dict[str, Any]:
    options = [{"value": value} for value in values or LABELS]
    return {"type": "choice", "instructions": "Which desk?", "choices": options, **more}


def decide(server: here.Here, *questions: Any, **more: Any) -> httpx.Response:
    body = {"input": "refund my card", "questions": list(questions), **more}
    return httpx.post(f"{server.url}/v1/decisions", json=body, **LOCAL)


def system_one(server: here.Here, questions: Any, **more: Any) -> httpx.Response:
    body = {"state": "refund my card", "questions": questions, **more}
    return httpx.post(f"{server.url}/v1/systemone", json=body, **LOCAL)


def shares(answer: dict[str, Any]) -> dict[Any, float]:
    return {entry["value"]: entry["probability"] for entry in answer["probabilities"]}


def test_a_choice_is_the_answer_of_a_chat_with_the_probability_of_every_label(
    desk: here.Here,
) -> None:
    said = desk.ask("refund my card").json()
    response = decide(
        desk, choice(name="desk"), choice("delivery", "account"), safety_identifier="7"
    )
    assert (response.status_code, response.headers["x-slmctl-route"]) == (
        200,
        "local; reason=no-policy",
    )
    body = response.json()
    whole, part = body["answers"]
    assert (whole["type"], whole["name"], part["name"]) == ("choice", "desk", None)
    assert whole["choice"] == said["choices"][0]["message"]["content"]
    assert whole["confidence"] == shares(whole)[whole["choice"]] == said["slmctl"]["confidence"]
    assert list(shares(whole)) == list(LABELS)
    assert math.fsum(shares(whole).values()) == pytest.approx(1, abs=1e-4)
    assert part["slmctl"]["renormalised"] == pytest.approx(1 - shares(whole)["billing"], abs=1e-4)
    for label, share in shares(part).items():
        assert share == pytest.approx(
            shares(whole)[label] / part["slmctl"]["renormalised"], abs=1e-4
        )
    used = said["usage"]
    assert body["usage"] == {
        "input_tokens": used["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": used["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used["total_tokens"],
    }
    assert body["model"] == body["slmctl"]["model"] == "tickets"
    assert body["slmctl"]["ignored"] == ["instructions", "safety_identifier"]


def test_system_one_asks_the_same(desk: here.Here) -> None:
    (theirs,) = decide(desk, choice()).json()["answers"]
    asked = {"desk": {"type": "choice", "criteria": {**dict.fromkeys(LABELS), "billing": "Money."}}}
    body = system_one(desk, asked).json()
    assert body["answers"]["desk"] == {
        "type": "choice",
        "choice": theirs["choice"],
        "confidence": theirs["confidence"],
        "probabilities": shares(theirs),
    }
    assert set(body["usage"]) == {"input_tokens", "output_tokens"}
    assert body["slmctl"]["ignored"] == ["descriptions"]
    as_json = system_one(desk, asked, state={"text": "refund my card"}).json()
    part = [
        {"role": "user", "content": [{"type": "input_json", "data": {"text": "refund my card"}}]}
    ]
    assert (
        decide(desk, choice(), input=part).json()["usage"]["input_tokens"]
        == as_json["usage"]["input_tokens"]
    )


def test_many_questions_are_one_reading(desk: here.Here, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []
    begin = LocalEngine.begin

    def counted(self: LocalEngine, checked: Any, index: int, put: Any) -> Any:
        begun.append(checked)
        return begin(self, checked, index, put)

    monkeypatch.setattr(LocalEngine, "begin", counted)
    text = "refund my card " * 30
    one = decide(desk, choice(), input=text).json()
    many = decide(
        desk, *[choice(*LABELS[k % 2 :], name=f"q{k}") for k in range(20)], input=text
    ).json()
    assert (len(begun), len(many["answers"])) == (2, 20)
    assert one["usage"] == many["usage"] and one["usage"]["input_tokens"] >= 400


def test_two_labels_answer_a_predicate(desk: here.Here) -> None:
    asked = {"type": "predicate", "name": "joy", "instructions": "Is the writer glad?"}
    body = decide(
        desk, asked, choice("sad", "glad"), choice(False, True, instructions="Glad?"), model="moods"
    ).json()
    joy, moods, sides = body["answers"]
    assert joy.pop("slmctl")["true"] == sides["slmctl"]["true"] == "glad"
    assert joy == {"type": "predicate", "name": "joy", "probability": shares(moods)["glad"]}
    assert shares(sides) == {False: shares(moods)["sad"], True: joy["probability"]}
    noul = system_one(
        desk, {"joy": {"type": "noul", "criteria": {"true": "glad"}}}, model="moods"
    ).json()
    assert noul["answers"]["joy"]["noul"] == joy["probability"]


def test_labels_with_an_order_answer_a_score() -> None:
    levels = ("low", "medium", "high")
    release = here.release(
        "urgency", KEPT, dataclasses.replace(task("classify", *levels), ordered=True)
    )
    asked = {
        "type": "score",
        "instructions": "How urgent?",
        "levels": [{"label": level} for level in levels],
    }
    with here.served(release, settings=ServeConfig(context_length=256)) as server:
        urgency, same, upper = decide(
            server, asked, choice(*levels), {**asked, "levels": asked["levels"][1:]}
        ).json()["answers"]
        each = [entry["probability"] for entry in urgency["probabilities"]]
        assert each == list(shares(same).values())
        assert [(entry["value"], entry["label"]) for entry in urgency["probabilities"]] == list(
            enumerate(levels)
        )
        assert urgency["score"] == pytest.approx(each[1] + 2 * each[2], abs=1e-5)
        assert (urgency["confidence"], upper["slmctl"]["renormalised"]) == (
            max(each),
            pytest.approx(1 - each[0], abs=1e-4),
        )
        theirs = system_one(server, {"a": {"type": "score", "criteria": list(levels)}}).json()[
            "answers"
        ]["a"]
        assert theirs["legend"] == {"0": "low", "1": "medium", "2": "high"}
        assert theirs["probabilities"] == {str(k): share for k, share in enumerate(each)}
        down = decide(server, {**asked, "levels": asked["levels"][::-1]})
        assert "in another order than the labels of 'urgency'" in down.json()["error"]["message"]


ODD_LEVELS: tuple[Any, ...] = (
    None,
    [],
    {},
    "low",
    7,
    True,
    ["low"],
    ["low", "high", "low"],
    ["high", "low"],
    ["low", "HIGH"],
    ["low", "high "],
    ["low", "h\u0069gh\0"],
    ["low", None],
    ["low", 1],
    ["low", ["high"]],
    ["low", {"label": "high"}],
    ["low", True],
    ["", "high"],
    ["low", "\u202ehigh"],
    [f"level {k}" for k in range(300)],
    [DEEP, "high"],
    ["low"] * 255,
    {"low": "", "high": ""},
    [0, 1, 2],
    ["0", "1", "2"],
)


def test_levels_that_are_none_of_the_model_s_are_refused_and_no_score_is_made_up() -> None:
    levels = ("low", "medium", "high")
    release = here.release(
        "urgency", KEPT, dataclasses.replace(task("classify", *levels), ordered=True)
    )
    with here.served(release, settings=ServeConfig(context_length=256)) as server:
        for odd in ODD_LEVELS:
            listed = [{"label": level} for level in odd] if isinstance(odd, list) else odd
            for response in (
                decide(server, {"type": "score", "instructions": "How urgent?", "levels": listed}),
                system_one(server, {"a": {"type": "score", "criteria": odd}}),
            ):
                assert response.status_code == 400, (odd, response.text)
                assert response.json()["error"]["message"].startswith("questions"), (
                    odd,
                    response.text,
                )
        mixed = {
            "a": {"type": "noul", "instructions": "Is it high?"},
            "b": {"type": "score", "criteria": list(levels)},
        }
        assert system_one(server, mixed).status_code == 400  # true or false of three labels
        assert system_one(server, {"b": mixed["b"]}).json()["answers"]["b"]["score"] <= 2


@pytest.mark.parametrize(
    ("labels", "instructions", "true"),
    [
        (("no", "yes"), "", "yes"),
        (("FALSE", "TRUE"), "Is it FALSE?", "TRUE"),
        (("0", "1"), "", "1"),
        (("negative", "positive"), "", "positive"),
        (("not_spam", "spam"), "", "spam"),
        (("spam", "non-spam"), "", "spam"),
        (("No refund", "Refund"), "", "Refund"),
        (("ham", "spam"), "Is this spam?", "spam"),
        (("ham", "spam"), "Is it Ham, in the end", "ham"),
        (("card_lost", "other"), "A card lost?", "card_lost"),
        (("ham", "spam"), "Is it spam or ham?", ""),
        (("ham", "spam"), "Is it spammy?", ""),
        (("ham", "spam"), "", ""),
        (("ham", "spam"), "Is it anything but spam?", ""),
        (("ham", "spam"), "Is it not spam?", ""),
        (("true", "false"), "Is it false that he paid?", "true"),
        (("negative", "positive"), "Is this review negative?", ""),
        (("0", "1"), "Is it 0?", ""),
        (("spam", "not_spam"), "Is it a legitimate mail, not spam?", ""),
        (("negative", "positive"), "Is this review positive?", "positive"),
    ],
)
def test_the_label_that_means_true(labels: tuple[str, str], instructions: str, true: str) -> None:
    body = {"questions": {"q": {"type": "noul", "instructions": instructions}}}
    found = (
        contextlib.nullcontext()
        if true
        else pytest.raises(RequestError, match=r"name one of '.*' and '.*' in it")
    )
    with found:
        (question,) = decisions.read_questions(
            body, decisions.SYSTEM_ONE, "m", task("classify", *labels)
        )
        assert question.labels == (true, next(label for label in labels if label != true))


def several(count: int, **more: Any) -> list[Any]:
    return [choice(**more) for _ in range(count)]


DECISIONS: dict[str, Any] = {  # fields of a request, and a part of the sentence that refuses it
    "no questions": ({"questions": []}, "'questions' must be a list of 1 to 400 questions"),
    "questions that are missing": ({"questions": None}, "'questions' must be a list"),
    "questions in an object": ({"questions": {"a": choice()}}, "'questions' must be a list"),
    "401 questions": ({"questions": several(401)}, "1 to 400 questions"),
    "a question that is a text": (
        {"questions": ["which?"]},
        "questions[0] must be an object with a type",
    ),
    "no type": (
        {"questions": [{"instructions": "x"}]},
        "questions[0] needs a type: predicate, choice or score",
    ),
    "another type": ({"questions": [choice(type="noul")]}, "questions[0] needs a type"),
    "a type in a list": ({"questions": [choice(type=["choice"])]}, "questions[0] needs a type"),
    "a name that is a number": ({"questions": [choice(name=7)]}, "needs a name that is a text"),
    "equal names": ({"questions": several(2, name="a")}, "two questions of one name"),
    "another field": ({"questions": [choice(weight=2)]}, "of type choice has no field 'weight'"),
    "no instructions": ({"questions": [choice(instructions=None)]}, "needs instructions: a text"),
    "empty instructions": ({"questions": [choice(instructions="")]}, "needs instructions"),
    "1 MB of instructions": (
        {"questions": [choice(instructions="x" * 10**6)]},
        "instructions of 1000000 characters",
    ),
    "an image in instructions": (
        {"questions": [choice(instructions=[{"type": "input_image", "image_url": "data:,x"}])]},
        "needs instructions",
    ),
    "no choices": ({"questions": [choice(choices=None)]}, "needs choices in the form of a choice"),
    "choices that are texts": (
        {"questions": [choice(choices=["billing", "account"])]},
        "needs choices in the form",
    ),
    "a choice of a number": (
        {"questions": [choice(choices=[{"value": 1}, {"value": 2}])]},
        "needs choices in",
    ),
    "a description in a list": (
        {
            "questions": [
                choice(choices=[{"value": "billing", "description": [7]}, {"value": "account"}])
            ]
        },
        "choices in",
    ),
    "one choice": ({"questions": [choice("billing")]}, "has 1 of its 2 to 255 choices"),
    "300 choices": (
        {"questions": [choice(*map(str, range(300)))]},
        "has 300 of its 2 to 255 choices",
    ),
    "equal choices": ({"questions": [choice("billing", "billing")]}, "has equal choices"),
    "another label": (
        {"questions": [choice("billing", "sales")]},
        "has the option 'sales', which is no label of",
    ),
    "true of three labels": (
        {"questions": [choice(True, "billing")]},
        "'tickets' has 3 labels: ask for a choice",
    ),
    "a predicate of three labels": (
        {"questions": [{"type": "predicate", "instructions": "x"}]},
        "has 3 labels",
    ),
    "a score without an order": (
        {
            "questions": [
                {"type": "score", "instructions": "x", "levels": [{"label": x} for x in LABELS]}
            ]
        },
        "no order",
    ),
    "levels that are texts": (
        {"questions": [{"type": "score", "instructions": "x", "levels": ["a"]}]},
        "needs levels",
    ),
    "no input": ({"input": None}, "'input' must be a text"),
    "an empty input": ({"input": []}, "'input' must be a text, or a list of messages"),
    "an input that is an object": ({"input": {"text": "x"}}, "'input' must be a text"),
    "an image": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,x"}]}]},
        "input[0] needs",
    ),
    "a file": (
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "7"}]}]},
        "input[0] needs",
    ),
    "a call": (
        {"input": [{"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}]},
        "not 'function_call'",
    ),
    "nested JSON": (
        {"input": [{"role": "user", "content": [{"type": "input_json", "data": DEEP}]}]},
        "deeper than 32 levels",
    ),
    "JSON that is a number": (
        {"input": [{"role": "user", "content": [{"type": "input_json", "data": 7}]}]},
        "no object or list",
    ),
    "an answer at the end": (
        {"input": [{"role": "assistant", "content": "x"}]},
        "last message must be the user's",
    ),
    "a stream": ({"stream": True}, "option 'stream' is not supported"),
    "several answers": ({"n": 2}, "option 'n' is not supported"),
    "another option": ({"threshold": 0.5}, "option 'threshold' is not supported"),
    "a release that writes texts": (
        {"model": "letters"},
        "has a task of kind 'generate': decisions are made by",
    ),
    "more text than fits": ({"input": "refund " * 4000}, "does not fit"),
}
SYSTEM_ONE: dict[str, Any] = {
    "no questions": ({"questions": {}}, "'questions' must be an object of 1 to 400 questions"),
    "a list of questions": ({"questions": [choice()]}, "'questions' must be an object"),
    "401 questions": ({"questions": {str(k): choice() for k in range(401)}}, "1 to 400 questions"),
    "OpenAI's type": (
        {"questions": {"a": {"type": "predicate"}}},
        "needs a type: noul, choice or score",
    ),
    "a box": ({"questions": {"a": {"type": "box"}}}, "questions['a'] needs a type"),
    "OpenAI's choices": ({"questions": {"a": choice()}}, "has no field 'choices'"),
    "criteria in a list": (
        {"questions": {"a": {"type": "choice", "criteria": ["x", "y"]}}},
        "needs criteria in",
    ),
    "one criterion": (
        {"questions": {"a": {"type": "choice", "criteria": {"billing": None}}}},
        "has 1 of its 2 to 255",
    ),
    "a score of objects": (
        {"questions": {"a": {"type": "score", "criteria": [{}, {}]}}},
        "needs criteria in the form",
    ),
    "equal levels": (
        {"questions": {"a": {"type": "score", "criteria": ["x", "x"]}}},
        "has equal criteria",
    ),
    "criteria of a noul": (
        {"questions": {"a": {"type": "noul", "criteria": {"yes": "x"}}}},
        "no object of true and",
    ),
    "no state": ({"state": None}, "'state' must be a text, or a JSON object or list"),
    "a number": ({"state": 7}, "'state' must be a text"),
    "a nested state": ({"state": DEEP}, "deeper than 32 levels"),
    "an image": (
        {"assets": {"x": {"type": "image"}}},
        "option 'assets' is not supported: images are not read",
    ),
}
RAW = {  # bodies that httpx would not write
    "NaN": (b'{"state": [NaN], "questions": {}}', "not valid JSON"),
    "a number that is no JSON": (
        b'{"state": [1e999], "questions": {"a": %s}}',
        "a number that is no JSON",
    ),
    "a state nested without end": (
        b'{"state": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        "not valid JSON",
    ),
    "half a character": (b'{"state": "\\ud800", "questions": {}}', "not valid JSON"),
    "a list": (b"[]", "not a JSON object"),
}


@pytest.mark.parametrize(
    ("path", "name"),
    [("decisions", each) for each in DECISIONS]
    + [("systemone", each) for each in SYSTEM_ONE | RAW],
)
def test_a_bad_request_is_refused_with_a_sentence(desk: here.Here, path: str, name: str) -> None:
    asked = {"type": "choice", "criteria": dict.fromkeys(LABELS)}
    whole: dict[str, Any] = {"input": "refund", "questions": [choice()]}
    if path == "systemone":
        whole = {"state": "refund", "questions": {"a": asked}}
    fields, part = (DECISIONS if path == "decisions" else SYSTEM_ONE | RAW)[name]
    raw = fields.replace(b"%s", json.dumps(asked).encode()) if isinstance(fields, bytes) else b""
    response = httpx.post(
        f"{desk.url}/v1/{path}", content=raw or json.dumps(whole | fields), headers=JSON, **LOCAL
    )
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "invalid_request_error"), error
    assert part in error["message"]
    assert (
        len(error["message"]) < 300
        and response.headers["x-slmctl-route"] == "local; reason=refused"
    )
    assert desk.get("/healthz").status_code == 200
    assert decide(desk, choice()).status_code == 200
    assert "slmctl_engine_restarts_total 0.0" in desk.get("/metrics").text


def test_a_question_is_answered_by_the_release_of_its_name(tmp_path: Path) -> None:
    names = ("tickets", "moods", "which")
    releases = [here.release(name, KEPT, TASKS[name]) for name in names]
    settings = ServeConfig(
        context_length=256, collect=CollectConfig(to=str(tmp_path / "rows"), kept="100%")
    )
    keys = tmp_path / "keys"
    whole, limited = api_keys.add(keys, "all"), api_keys.add(keys, "few", models=["tickets"])
    shown = {
        name: {"authorization": f"Bearer {key}"} for name, key in (("all", whole), ("few", limited))
    }
    questions = [
        choice("glad", "sad", name="moods"),
        choice(name="desk"),
        choice(*TASKS["which"].labels, name="which"),
        choice("account", "billing", name="tickets"),
    ]
    body = {"model": "tickets", "input": "refund my card", "questions": questions}
    with here.served(*releases, settings=settings, keys=keys) as server:
        response = httpx.post(
            f"{server.url}/v1/decisions", json=body, headers=shown["all"], **LOCAL
        )
        said = response.json()
        assert [answer["name"] for answer in said["answers"]] == [
            "moods",
            "desk",
            "which",
            "tickets",
        ]
        assert [answer["slmctl"]["model"] for answer in said["answers"]] == [
            "moods",
            "tickets",
            "which",
            "tickets",
        ]
        assert said["usage"]["output_tokens"] > 0
        counted = server.get("/metrics", **shown["all"]).text
        for name in names:
            assert (
                f'slmctl_answers_total{{model="{name}",reason="no-policy",route="local"}} 1.0'
                in counted
            )
        id = response.headers["x-request-id"]

        def rows() -> dict[str, str]:
            return {row.id: row.model for row in production.rows(tmp_path / "rows")}

        assert settles(lambda: rows() == {id: "moods", f"{id}-2": "tickets", f"{id}-3": "which"})
        # a key does not learn of other models, and none is asked before all questions are in order
        alone = httpx.post(f"{server.url}/v1/decisions", json=body, headers=shown["few"], **LOCAL)
        assert "no label of 'tickets'" in alone.json()["error"]["message"]
        wrong = {**body, "questions": [*questions[:3], choice("glad", "sad", name="tickets")]}
        assert (
            httpx.post(
                f"{server.url}/v1/decisions", json=wrong, headers=shown["all"], **LOCAL
            ).status_code
            == 400
        )
        assert len(rows()) == 3


def test_an_unsure_decision_is_asked_of_the_generalist_and_a_sensitive_one_never() -> None:
    with (
        endpoint.serving(lambda body, before: says("delivery")) as fake,
        here.deciding(KEPT, TASKS["tickets"], fake.url) as server,
    ):
        response = decide(server, choice(), choice("account", "billing"))
        assert response.headers["x-slmctl-route"] == "generalist; reason=unsure"
        body = response.json()
        whole, part = body["answers"]
        assert (body["model"], whole["choice"], whole["confidence"]) == ("large", "delivery", 1)
        assert shares(whole) == {"account": 0, "billing": 0, "delivery": 1}
        assert part["choice"] != "delivery" and part["slmctl"]["among_all"] == "delivery"
        own = body["slmctl"]
        assert (own["route"], own["reason"], own["p_correct"]) == ("generalist", "unsure", 0.5)
        assert "labels" not in own
        assert (len(fake.bodies), "Which desk?" in json.dumps(fake.bodies)) == (1, False)
        for state in ("refund 4111 1111 1111 1111", {"card": "4111 1111 1111 1111"}):
            kept = system_one(
                server, {"a": {"type": "choice", "criteria": dict.fromkeys(LABELS)}}, state=state
            )
            assert kept.headers["x-slmctl-route"] == "local; reason=sensitive"
            assert 0 < kept.json()["answers"]["a"]["confidence"] < 1
        assert len(fake.bodies) == 1


def test_another_engine_tells_no_probabilities() -> None:
    with here.in_front(task=TASKS["tickets"]) as server:
        response = decide(server, choice())
        assert (response.status_code, response.json()["error"]["param"]) == (400, "input")
        assert "behind --engine-url does not tell the probability of every label" in response.text
        assert server.fake.bodies == []
