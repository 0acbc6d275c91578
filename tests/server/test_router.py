"""The router against a general model that misbehaves: who answers, why, and what leaves."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from support import endpoint, handmade
from support.endpoint import Fake, Turn, fails, says
from support.kept_log import KeptLog

from slmctl.config import GeneralistConfig as Settings
from slmctl.config import MachinePrices
from slmctl.errors import IntegrityError, UsageError
from slmctl.inference.escalation_policy import AnswerCosts, Policy
from slmctl.network import guard, openai_client
from slmctl.network.openai_client import MAX_BYTES
from slmctl.pipeline import model_lookup
from slmctl.sensitive import conversation_veto
from slmctl.server import generalist as module
from slmctl.server import routed, router
from slmctl.server.forms.chat import CHAT
from slmctl.server.forms.request import CheckedRequest, ServedModel
from slmctl.server.generalist import Breaker, Generalist
from slmctl.server.log import Log
from slmctl.server.routed import Escalation, LocalAnswer, Routed
from slmctl.server.router import Router
from slmctl.task.contract import Task

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
LABELS = ("billing", "delivery", "oos")
CLASSIFY = Task("classify", TEMPLATE, "<|im_end|>", labels=LABELS, system="Name the category.")
GENERATE = Task("generate", TEMPLATE, "<|im_end|>")
EXTRACT = Task(
    "extract",
    TEMPLATE,
    "<|im_end|>",
    system="Read it.",
    schema={
        "type": "object",
        "required": ["who"],
        "properties": {"who": {"type": "string"}},
        "additionalProperties": False,
    },
)
OF_LABELS = Policy(
    "f" * 64,
    CLASSIFY.digest,
    "classify",
    "the label wanted",
    "oos",
    {"odds": 1.0, "allowed": 0.0, "out_of_scope": 0.0},
    0.0,
    ((-2.0, 0.1), (4.0, 0.99)),
    2.0,
)
OF_TEXT = Policy(
    "f" * 64,
    GENERATE.digest,
    "generate",
    "the same words",
    "",
    {"mean": 1.0, "least": 0.0, "choices": 0.0},
    0.0,
    ((-2.0, 0.1), (0.0, 0.9)),
    -0.5,
)
POLICIES = {
    "classify": OF_LABELS,
    "generate": OF_TEXT,
    "extract": dataclasses.replace(OF_TEXT, kind="extract"),
}
ASK = ({"role": "user", "content": "where is my kettle"},)
TOLD = KeptLog()


def event(text: str = "billing", sure: float = 0.6) -> Any:
    """The engine's last event, of a label."""
    return {
        "text": text,
        "finish": "stop",
        "prompt_tokens": 20,
        "completion_tokens": 3,
        "confidence": sure,
        "labels": {text: sure, "other": 1 - sure},
        "logprobs": [-0.5],
        "raw_logprobs": [-0.6],
    }


def written(text: str = "from here") -> Any:
    """The same, of a text."""
    return {
        "text": text,
        "finish": "stop",
        "prompt_tokens": 20,
        "completion_tokens": 3,
        "confidence": 0.2,
        "logprobs": [-1.0] * 3,
    }


@pytest.fixture
def said() -> list[Turn]:
    """What the general model says in turn; the last one again and again."""
    return [says("delivery")]


@pytest.fixture
def fake(said: list[Turn]) -> Iterator[Fake]:
    """The general model."""
    with endpoint.serving(lambda body, before: said.pop(0) if len(said) > 1 else said[0]) as found:
        yield found


@dataclasses.dataclass
class Held:
    """A general model that answers when it may."""

    fake: Fake
    begun: threading.Event
    may: threading.Event


@pytest.fixture
def held() -> Iterator[Held]:
    begun, may = threading.Event(), threading.Event()

    def wait(body: dict[str, Any], before: int) -> Turn:
        begun.set()
        may.wait(20)
        return says("delivery")

    with endpoint.serving(wait) as found:
        yield Held(found, begun, may)
        may.set()


def routing(url: str = "", *, task: Task = CLASSIFY, **more: Any) -> Router:
    """A router that escalates below P(correct) = 0.7."""
    kept = {key: more.pop(key) for key in ("prices", "decisions") if key in more}
    refuse = more.pop("refuse", ())
    asked = (
        Generalist(Settings(url=url, model="large", **{"timeout_s": 5, **more})) if url else None
    )
    return Router(POLICIES[task.kind], task, "small", Escalation(asked, **kept), refuse)


async def route(
    found: Router,
    given: Any = None,
    messages: Any = ASK,
    headers: Any = None,
    *,
    request: str = "",
    ends_at: float = math.inf,
    **options: Any,
) -> Routed:
    """Route one request; a local answer that is an exception is raised."""

    async def local() -> LocalAnswer:
        if isinstance(given, Exception):
            raise given
        return cast(LocalAnswer, given or event())

    checked = CheckedRequest(
        CHAT, ServedModel("small", found.task), (), (tuple(messages),), tuple(messages), options
    )
    return await found.route(
        checked, headers or {}, local, ends_at=ends_at, request=request, log=TOLD
    )


def one(found: Router, *args: Any, **named: Any) -> Routed:
    async def work() -> Routed:
        try:
            return await route(found, *args, **named)
        finally:
            await found.escalation.close()
            await asyncio.sleep(0)  # transports close in the next turn of the loop

    return asyncio.run(work())


def told(routed: Routed) -> tuple[str, str, str]:
    return routed.route, routed.reason, routed.text


# Who answers


def test_an_answer_that_is_sure_stays_and_one_that_is_not_goes(fake: Fake) -> None:
    assert told(one(routing(fake.url), event(sure=0.95))) == ("local", "kept", "billing")
    assert fake.bodies == []
    found = one(routing(fake.url), event(sure=0.6))
    assert (*told(found), found.model) == ("generalist", "unsure", "delivery", "large")
    assert (found.prompt_tokens, found.completion_tokens, found.local["text"]) == (11, 3, "billing")
    assert found.p_correct is not None and 0.1 < found.p_correct < 0.7


def test_what_the_model_calls_out_of_scope_goes_however_sure_it_is(
    fake: Fake, said: list[Turn]
) -> None:
    said[:] = [says("oos")]
    assert told(one(routing(fake.url), event("oos", 0.999))) == (
        "generalist",
        "out-of-scope",
        "oos",
    )


def test_without_a_general_model_it_is_only_told() -> None:
    assert told(one(routing(), event(sure=0.6))) == ("local", "unsure", "billing")
    assert told(one(routing(), event("oos", 0.9))) == ("local", "out-of-scope", "oos")


@pytest.mark.parametrize("missing", ["confidence", "logprobs", "raw_logprobs"])
def test_an_answer_that_does_not_say_how_sure_it_is_stays(fake: Fake, missing: str) -> None:
    for value in (None, "high", [math.nan]):
        assert told(one(routing(fake.url), event(sure=0.6) | {missing: value})) == (
            "local",
            "doubt",
            "billing",
        )
    assert fake.bodies == []


def test_the_local_models_failure_is_the_callers(fake: Fake) -> None:
    with pytest.raises(UsageError):
        one(routing(fake.url), UsageError("the engine died"))
    assert fake.bodies == []


def test_a_draft_that_fails_a_check_goes_to_the_general_model(fake: Fake, said: list[Turn]) -> None:
    said[:] = [says("It is on its way.")]
    sure = written("It comes on 9 May.") | {"logprobs": [-1e-6]}
    assert told(one(routing(fake.url, task=GENERATE), sure)) == (
        "local",
        "kept",
        "It comes on 9 May.",
    )
    checking = routing(fake.url, task=GENERATE, refuse=("ungrounded",))
    assert told(one(checking, sure)) == ("generalist", "unsure", "It is on its way.")
    same = checking.__class__(
        checking.policy, GENERATE, "small", checking.escalation, ("unfinished",)
    )
    assert one(same, sure).route == "local"


# The veto


@pytest.mark.parametrize("value", ["true", "TRUE", "1", "yes", "", "maybe", "no, true"])
def test_the_callers_header_keeps_it_here(fake: Fake, value: str) -> None:
    for name in ("x-slmctl-sensitive", "X-Slmctl-Sensitive"):
        assert told(one(routing(fake.url), headers={name: value})) == (
            "local",
            "sensitive",
            "billing",
        )
    assert fake.bodies == []
    assert one(routing(fake.url), headers={"x-slmctl-sensitive": "false"}).route == "generalist"


def test_the_veto_comes_before_the_local_model_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def clear(*args: Any, **named: Any) -> conversation_veto.Cleared:
        looked.append("veto")
        return conversation_veto.Cleared(reason="sensitive")

    monkeypatch.setattr(conversation_veto, "clear", clear)
    with pytest.raises(UsageError):
        one(routing("http://127.0.0.1:9/v1"), UsageError("the local model is asked"))
    assert looked == ["veto"]


@pytest.mark.parametrize(
    "error", [ValueError, RecursionError, MemoryError, KeyError, ModuleNotFoundError, SystemError]
)
def test_a_detector_that_fails_keeps_it_here(
    fake: Fake, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **named: Any) -> Any:
        raise error("a bug")

    found = routing(fake.url)
    monkeypatch.setattr(conversation_veto.search_process, "find", fail)
    assert told(one(found)) == ("local", "doubt", "billing")
    assert fake.bodies == []


def test_a_detector_that_hangs_keeps_it_here(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(router, "LOOK_S", 0.05)
    monkeypatch.setattr(router, "CUT_S", 0.01)
    found = routing(fake.url)
    monkeypatch.setattr(
        conversation_veto,
        "clear",
        lambda *args, **named: go_on.wait(20) and conversation_veto.Cleared(list(ASK)),
    )
    assert told(one(found)) == ("local", "doubt", "billing")
    go_on.set()
    assert fake.bodies == []


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}],
        [{"role": "user", "content": None}],
        [{"role": "x", "content": "x"}],
        [{"content": "x"}],
        ["hello"],
        [None],
        [{"role": "user"}],
        [{"role": ["user"], "content": "x"}],
    ],
)
def test_what_cannot_be_looked_at_stays(fake: Fake, messages: Any) -> None:
    assert told(one(routing(fake.url), messages=messages)) == ("local", "doubt", "billing")
    assert fake.bodies == []


# What leaves


def test_only_listed_fields_leave(fake: Fake) -> None:
    messages = [
        {"role": "system", "content": "Be a pirate."},
        {"role": "user", "content": "hello", "name": "Jane", "cache": {"id": 7}},
        {"role": "assistant", "content": "well?", "tool_calls": []},
        {"role": "user", "content": "where is it", "metadata": "secret"},
    ]
    options = {
        "model": "small",
        "user": "jane",
        "metadata": {"a": 1},
        "seed": 4111111111111111,
        "stop": ["4111"],
        "n": 1,
        "stream": True,
        "logit_bias": {},
        "max_tokens": 40,
        "temperature": 0.5,
        "top_p": 0.9,
        "tools": [1],
    }
    headers = {
        "authorization": "Bearer mine",
        "cookie": "a=b",
        "x-request-id": "id-1",
        "x-forwarded-for": "10.0.0.1",
    }
    assert (
        one(routing(fake.url, task=GENERATE), written(), messages, headers, **options).route
        == "generalist"
    )
    (body,), (sent,) = fake.bodies, fake.headers
    plain = [{"role": m["role"], "content": m["content"]} for m in messages]
    assert body == {
        "model": "large",
        "messages": plain,
        "max_tokens": 40,
        "temperature": 0.5,
        "top_p": 0.9,
    }
    assert set(sent) <= {
        "host",
        "accept",
        "accept-encoding",
        "connection",
        "user-agent",
        "content-type",
        "content-length",
    }


def test_the_general_model_is_told_the_task(fake: Fake, said: list[Turn]) -> None:
    said[:] = [says("The label is: DELIVERY.")]
    pirate = {"role": "system", "content": "Be a pirate."}
    assert one(routing(fake.url), messages=[pirate, *ASK], max_tokens=1).text == "delivery"
    system, *rest = fake.bodies[0]["messages"]
    assert "billing, delivery, oos" in system["content"] and "pirate" not in json.dumps(fake.bodies)
    assert rest == [*ASK]
    assert fake.bodies[0]["max_tokens"] > 1  # a label of another vocabulary needs its room
    free = dataclasses.replace(GENERATE, system="Write as the shop.")
    one(routing(fake.url, task=free), written(), [pirate, *ASK])
    system, *rest = fake.bodies[1]["messages"]
    assert (
        "Write as the shop." in system["content"]
        and "pirate" not in json.dumps(fake.bodies)
        and rest == [*ASK]
    )


@pytest.mark.parametrize("api", ["decisions", "systemone"])
def test_a_general_model_that_decides_is_asked_for_a_label(
    api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[dict[str, Any]] = [{}, {"type": "refusal"}, {"choice": "parcels"}, {"choice": None}]
    pirate = {"role": "system", "content": "Be a pirate."}
    with endpoint.serving(
        lambda body, before: endpoint.decides(body, "delivery", **turns.pop(0))
    ) as fake:
        found = routing(fake.url, api=api)
        first = one(found, messages=[pirate, *ASK], temperature=0.5)
        assert (*told(first), first.prompt_tokens) == ("generalist", "unsure", "delivery", 40)
        assert [told(one(found)) for _ in range(3)] == [
            ("local", "generalist-garbage", "billing")
        ] * 3
        held = one(found, messages=({"role": "user", "content": "I am jane.doe@example.org"},))
        assert (*told(held), len(fake.bodies)) == ("local", "sensitive", "billing", 4)
        with pytest.raises(
            UsageError, match="with one of 2 to 255 labels, and this generate task has 0"
        ):
            routing(fake.url, task=GENERATE, api=api)
    question = {"type": "choice", "instructions": "Name the category."}
    if api == "decisions":
        question |= {"name": "label", "choices": [{"value": label} for label in LABELS]}
        assert fake.bodies[0] == {
            "model": "large",
            "input": ASK[0]["content"],
            "questions": [question],
        }
    else:
        question |= {"criteria": dict.fromkeys(LABELS)}
        assert fake.bodies[0] == {
            "model": "large",
            "state": ASK[0]["content"],
            "questions": {"label": question},
        }


def test_an_object_is_held_to_the_schema(fake: Fake, said: list[Turn]) -> None:
    texts = [
        '```json\n{"who": "me"}\n```',
        '{"who": 7}',
        '{"who": "me", "more": 1}',
        "I cannot",
        '{"who": "", "who": "a"}',
    ]
    said[:] = map(says, texts)
    first, *rest = [
        told(one(routing(fake.url, task=EXTRACT), written('{"who": "you"}'))) for _ in texts
    ]
    assert first == ("generalist", "unsure", '{"who": "me"}')
    assert rest == [("local", "generalist-garbage", '{"who": "you"}')] * 4


def test_stop_texts_are_kept_though_they_are_not_sent(fake: Fake, said: list[Turn]) -> None:
    said[:] = [says("one two three four")]
    found = routing(fake.url, task=GENERATE)
    assert one(found, written(), stop=["three", "two"]).text == "one "
    assert one(found, written(), stop="four").text == "one two three "
    assert one(found, written()).text == "one two three four"


def test_the_key_is_sent_there_and_stands_nowhere_else(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-" + "very-secret-1"
    monkeypatch.setenv("THE_KEY", key)
    found = routing(fake.url, key_env="THE_KEY")
    routed = one(found)
    assert fake.headers[0]["authorization"] == f"Bearer {key}"
    shown = (
        repr(routed)
        + json.dumps(TOLD.lines)
        + json.dumps(found.escalation.figures())
        + repr(found.generalist)
    )
    assert key not in shown
    monkeypatch.delenv("THE_KEY")
    with pytest.raises(UsageError, match="THE_KEY is not set"):
        routing("http://127.0.0.1:9/v1", key_env="THE_KEY")
    monkeypatch.setenv("THE_KEY", "a\nb")
    with pytest.raises(UsageError, match="characters that no header can have"):
        routing("http://127.0.0.1:9/v1", key_env="THE_KEY")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(fake: Fake, status: int) -> None:
    to = {"location": fake.url + "/chat/completions"}
    with endpoint.serving(lambda body, before: (status, to, b"")) as moved:
        assert told(one(routing(moved.url))) == ("local", "generalist-error", "billing")
        assert (len(moved.bodies), fake.bodies) == (1, [])


def test_a_proxy_of_the_environment_is_not_used_and_one_of_the_config_is(
    fake: Fake, said: list[Turn], monkeypatch: pytest.MonkeyPatch
) -> None:
    said[:] = [says("oos")]
    with endpoint.serving(lambda body, before: says("delivery")) as proxy:
        there = proxy.url.removesuffix("/v1")
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, there)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        assert one(routing(fake.url)).text == "oos"
        assert proxy.bodies == []
        found = routing("http://general.example/v1", proxy=there)
        assert one(found).text == "delivery"
        assert proxy.paths == ["http://general.example/v1/chat/completions"]
        assert found.generalist is not None and found.generalist.endpoint.hosts == {
            "general.example",
            "127.0.0.1",
        }


def test_the_guard_opens_for_that_host_alone() -> None:
    with routing("http://general.example/v1").escalation.open():
        assert guard._only == {"general.example"}
        assert not guard._may("other.example")
    assert guard._only is None and not guard._open_for


# The general model fails: the local answer, flagged

GOOD = says("delivery")[2]
CASES: dict[str, tuple[Turn, str]] = {
    "429": (fails(429), "generalist-busy"),
    "500": (fails(500), "generalist-error"),
    "503": (fails(503), "generalist-error"),
    "401": (fails(401), "generalist-error"),
    "404": (fails(404), "generalist-error"),
    "400": (fails(400), "generalist-error"),
    "hangs up": ((0, {}, b""), "generalist-down"),
    "cut in the middle": (
        (200, {"content-length": str(len(GOOD) + 5)}, GOOD[:-9]),
        "generalist-down",
    ),
    "cut but for its length": ((200, {}, GOOD[:-9]), "generalist-garbage"),
    "cut in a stream": (
        (200, {"transfer-encoding": "chunked"}, b"40\r\n" + GOOD[:9]),
        "generalist-down",
    ),
    "a stream": (
        (200, {"content-type": "text/event-stream"}, b"data: {}\n\ndata: [DONE]\n\n"),
        "generalist-garbage",
    ),
    "no json": ((200, {}, b"<html>welcome</html>"), "generalist-garbage"),
    "no bytes": ((200, {}, b""), "generalist-garbage"),
    "not gzip": ((200, {"content-encoding": "gzip"}, b"plain"), "generalist-garbage"),
    "no choices": ((200, {}, b'{"choices": []}'), "generalist-garbage"),
    "deep": ((200, {}, b"[" * 100_000), "generalist-garbage"),
    "too long": ((200, {}, b" " * (MAX_BYTES + 1)), "generalist-garbage"),
    "an error in a good reply": (
        (200, {}, b'{"error": {"message": "overloaded"}}'),
        "generalist-garbage",
    ),
    "no words": (says(""), "generalist-garbage"),
    "null": (says(None), "generalist-garbage"),
    "no label": (says("I would say it is about music."), "generalist-garbage"),
    "filtered": (
        says(
            "delivery",
            choices=[{"message": {"content": "delivery"}, "finish_reason": "content_filter"}],
        ),
        "generalist-garbage",
    ),
    "a tool call": (
        says(
            "delivery",
            choices=[{"message": {"content": "delivery"}, "finish_reason": "tool_calls"}],
        ),
        "generalist-garbage",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_failure_ends_with_the_local_answer(fake: Fake, said: list[Turn], name: str) -> None:
    said[:], reason = [CASES[name][0]], CASES[name][1]
    routed = one(routing(fake.url))
    assert (told(routed), routed.model) == (("local", reason, "billing"), "small")
    assert len(fake.bodies) == 1
    assert (TOLD.lines[-1]["event"], TOLD.lines[-1]["reason"]) == ("decision", reason)


def test_nobody_there() -> None:
    assert told(one(routing("http://127.0.0.1:9/v1"))) == ("local", "generalist-down", "billing")


def test_a_slow_one_is_left_after_its_time(held: Held) -> None:
    assert told(one(routing(held.fake.url, timeout_s=0.2))) == (
        "local",
        "generalist-slow",
        "billing",
    )


def test_the_callers_own_deadline_is_kept(held: Held) -> None:
    found = routing(held.fake.url, timeout_s=600)

    async def work() -> list[Routed]:
        ends_at = asyncio.get_running_loop().time() + router.CUT_S + 0.2
        # the later ones say nothing of the general model
        late = [
            await route(found, ends_at=ends_at - (9 if k else 0))
            for k in range(module.FAILURES + 2)
        ]
        await found.escalation.close()
        await asyncio.sleep(0)
        return late

    assert {told(routed) for routed in asyncio.run(work())} == {
        ("local", "generalist-slow", "billing")
    }


def test_a_form_of_the_callers_own_is_answered_here(fake: Fake, said: list[Turn]) -> None:
    said[:] = [says("from there")]
    found = routing(fake.url, task=GENERATE)
    for option, form in (
        ("response_format", {"type": "json_schema", "json_schema": {}}),
        ("response_format", {"type": "json_object"}),
        ("response_format", "x"),
        ("structured_outputs", {"choice": ["a"]}),
    ):
        assert told(one(found, written(), **{option: form})) == ("local", "doubt", "from here")
    assert fake.bodies == []
    assert one(found, written(), response_format={"type": "text"}).route == "generalist"


def test_one_that_drips_is_left_after_its_time() -> None:
    """Every single read is quick, and the whole never ends."""

    def drip(listening: socket.socket) -> None:
        connected, _ = listening.accept()
        with connected, contextlib.suppress(OSError):
            connected.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n")
            while True:
                connected.sendall(b" ")
                time.sleep(0.02)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=drip, args=(listening,))
        thread.start()
        routed = one(routing(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", timeout_s=0.3))
        thread.join(20)  # it ends when its client has let go
        assert not thread.is_alive()
    assert told(routed) == ("local", "generalist-slow", "billing")


def test_what_nobody_thought_of_ends_with_the_local_answer_too(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = routing(fake.url)
    monkeypatch.setattr(openai_client, "read_reply", lambda *args: 1 / 0)
    assert told(one(found)) == ("local", "generalist-down", "billing")
    assert TOLD.lines[-1]["fault"] == "ZeroDivisionError"


def test_an_option_that_is_called_otherwise_is_asked_again(fake: Fake, said: list[Turn]) -> None:
    said.insert(0, fails(400, "use 'max_completion_tokens' instead"))
    found = routing(fake.url)
    assert [one(found).route for _ in range(2)] == ["generalist"] * 2
    assert ["max_tokens" in body for body in fake.bodies] == [True, False, False]


def test_a_client_that_hangs_up_takes_its_question_along(held: Held) -> None:
    found = routing(held.fake.url)

    async def work() -> None:
        task = asyncio.ensure_future(route(found))
        await asyncio.to_thread(held.begun.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await found.escalation.close()

    asyncio.run(work())
    assert found.escalation.figures()["slmctl_routed"][0][1] == 0


# The circuit breaker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_breaker_opens_tries_one_and_closes() -> None:
    breaker = Breaker(clock := Clock())
    for _ in range(module.FAILURES):
        assert breaker.admits()
        breaker.failed()
    assert breaker.is_open and not breaker.admits()
    for _ in range(8):
        breaker.failed()  # they were on their way
    clock.now = module.FIRST_PAUSE_S + 0.1
    # one is tried, the others wait for what it tells
    assert breaker.admits() and not breaker.admits()
    breaker.leaves()
    assert breaker.admits()
    breaker.failed()
    clock.now += module.FIRST_PAUSE_S + 0.1
    assert not breaker.admits()  # twice as long
    clock.now += module.FIRST_PAUSE_S
    assert breaker.admits()
    breaker.succeeded()
    assert not breaker.is_open and breaker.admits() and breaker.admits()


def test_the_breaker_waits_as_long_as_it_is_asked_to() -> None:
    breaker = Breaker(clock := Clock())
    assert breaker.admits()
    breaker.failed(30)
    clock.now = 29
    assert not breaker.admits()
    clock.now = 31
    assert breaker.admits() and breaker.admits()
    breaker.failed(1e9)
    clock.now += module.LONGEST_PAUSE_S + 1
    assert breaker.admits()


# which is the request's own fault
@pytest.mark.parametrize(("status", "left"), [(500, 3), (400, 0)])
def test_nobody_waits_for_a_model_that_keeps_failing(
    fake: Fake, said: list[Turn], status: int, left: int
) -> None:
    said[:], found = [fails(status)], routing(fake.url)
    reasons = [one(found).reason for _ in range(module.FAILURES + 3)]
    assert reasons == ["generalist-error"] * (module.FAILURES + 3 - left) + ["circuit-open"] * left
    assert len(fake.bodies) == module.FAILURES + 3 - left
    assert found.escalation.figures()["slmctl_circuit_open"] == [({}, float(left > 0))]


# What is told


def test_decisions_are_written_without_content(fake: Fake, tmp_path: Path) -> None:
    path = tmp_path / "log" / "decisions.jsonl"
    asked = [{"role": "user", "content": "xylophone quarrel"}]
    found = routing(fake.url, decisions=path)
    with found.escalation.open():
        one(found, event(sure=0.6), asked, request="xylophone")
        one(found, event(sure=0.99), asked, request="req-0123456789abcdef")
    text = path.read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["route"], line["reason"]) for line in lines] == [
        ("generalist", "unsure"),
        ("local", "kept"),
    ]
    assert [line["request"] for line in lines] == [None, "req-0123456789abcdef"]
    assert not [word for word in ("xylophone", "quarrel", "delivery", "billing") if word in text]
    assert set(lines[0]) == {
        "time",
        "request",
        "route",
        "reason",
        "model",
        "p_correct",
        "look_ms",
        "local_ms",
        "beyond_ms",
        "prompt_tokens",
        "completion_tokens",
    }


def test_a_full_disk_costs_decisions_and_no_answers() -> None:
    found = routing(decisions=Path("/dev/full"))
    with found.escalation.open():
        assert [told(one(found, event(sure=0.99))) for _ in range(3)] == [
            ("local", "kept", "billing")
        ] * 3
    assert found.escalation.figures()["slmctl_decisions_dropped"] == [({}, 3.0)]
    with (
        pytest.raises(UsageError, match="decisions cannot be written"),
        routing(decisions=Path("/dev/null/x")).escalation.open(),
    ):
        pass


def test_a_log_that_cannot_be_written_counts_its_lines() -> None:
    with open("/dev/full", "w") as stream:  # noqa: PTH123 - what a log is given
        log = Log(stream)
        for k in range(5):
            log.event("something", number=k)
        log.close(stream=True)
    assert log.dropped == 5


def test_a_policy_whose_artifact_was_changed_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    handmade.make(folder, OF_LABELS.write)
    path = folder / "policy.json"
    for given in (folder, path):
        assert model_lookup.fitted_policy(given, "f" * 64, CLASSIFY) == OF_LABELS
    path.write_bytes(path.read_bytes().replace(b'"threshold": 2.0', b'"threshold": 0.0'))
    for given in (folder, path):
        with pytest.raises(IntegrityError, match=r"damaged: changed: policy\.json"):
            model_lookup.fitted_policy(given, "f" * 64, CLASSIFY)
    copied = tmp_path / "mine.json"  # one by itself is its owner's
    copied.write_bytes(path.read_bytes())
    assert model_lookup.fitted_policy(copied, "f" * 64, CLASSIFY).threshold == 0


def test_figures_count_both_routes_and_the_savings(fake: Fake) -> None:
    prices = MachinePrices(machine_per_hour=1e-9, input=1e6, output=2e6)
    found = routing(fake.url, prices=prices)
    for sure in (0.99, 0.99, 0.6):
        one(found, event(sure=sure))
    figures = found.escalation.figures()
    assert figures.keys() <= routed.FAMILIES.keys()
    counted = {tuple(labels.values()): value for labels, value in figures["slmctl_routed"] if value}
    assert counted == {("local", "kept"): 2.0, ("generalist", "unsure"): 1.0}
    assert {labels["reason"] for labels, _ in figures["slmctl_routed"]} == set(routed.LOCAL_REASONS)
    assert figures["slmctl_generalist_cost"] == [({"currency": "EUR"}, 11 + 2 * 3)]
    assert figures["slmctl_avoided_cost"] == [({"currency": "EUR"}, 2 * (20 + 2 * 3))]
    assert figures["slmctl_savings"][0][1] == pytest.approx(2 * (20 + 2 * 3))
    assert figures["slmctl_p_correct_count"] == [({}, 3.0)]
    judged = [
        found.policy.judge(event(sure=sure), "billing").p_correct for sure in (0.99, 0.99, 0.6)
    ]
    assert figures["slmctl_p_correct_sum"][0][1] == pytest.approx(sum(judged))


def test_the_cost_of_a_thousand_questions_is_expected_and_measured() -> None:
    found = routing()
    assert "slmctl_cost_per_thousand" not in found.escalation.figures()
    costs = AnswerCosts(0.2, 1.0, {"other": 5.0}, "EUR")
    found.policy = dataclasses.replace(
        found.policy, costs=costs, figures={"cost": (50.0, 40.0, 62.0)}
    )
    for sure in (0.99, 0.6):
        one(found, event(sure=sure))
    p_correct = found.policy.judge(event(sure=0.99), "billing").p_correct
    # the other label is the dear one; 0.6 goes to a person
    expected = 1000 * ((1 - p_correct) * 5.0 + 0.2) / 2
    samples = {
        labels["figure"]: value
        for labels, value in found.escalation.figures()["slmctl_cost_per_thousand"]
    }
    assert samples == {
        "expected": pytest.approx(expected),
        "measured": 50.0,
        "low": 40.0,
        "high": 62.0,
    }


def test_every_reason_is_of_the_closed_set() -> None:
    assert {reason for _, reason in CASES.values()} | {"generalist-slow", "circuit-open"} <= set(
        routed.LOCAL_REASONS
    )
