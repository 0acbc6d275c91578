"""The router against a general model that misbehaves: who answers, why, and what leaves."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from support import endpoint
from support.endpoint import fails, says

from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Manifest
from slmctl.config import GeneralistConfig as Settings
from slmctl.config import Prices
from slmctl.errors import IntegrityError, UsageError
from slmctl.inference.escalation_policy import Policy
from slmctl.network import guard, openai_client
from slmctl.network.openai_client import MAX_BYTES
from slmctl.sensitive import conversation_veto
from slmctl.server import generalist as module
from slmctl.server import routed, router
from slmctl.server.generalist import Breaker, Generalist
from slmctl.server.log import Log
from slmctl.server.routed import Escalation, Routed
from slmctl.server.router import Router, fitted_policy
from slmctl.task.contract import Task

pytest.importorskip("httpx")

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
LABELS = ("billing", "delivery", "oos")
CLASSIFY = Task("classify", TEMPLATE, "<|im_end|>", labels=LABELS, system="Name the category.")
GENERATE = Task("generate", TEMPLATE, "<|im_end|>")
EXTRACT = Task(
    "extract", TEMPLATE, "<|im_end|>", system="Read it.",
    schema={"type": "object", "required": ["who"], "properties": {"who": {"type": "string"}},
            "additionalProperties": False},
)  # fmt: skip
OF_LABELS = Policy("f" * 64, CLASSIFY.digest, "classify", "the label wanted", "oos",
                   {"odds": 1.0, "allowed": 0.0, "out_of_scope": 0.0},
                   0.0, ((-2.0, 0.1), (4.0, 0.99)), 2.0)  # fmt: skip
OF_TEXT = Policy("f" * 64, GENERATE.digest, "generate", "the same words", "",
                 {"mean": 1.0, "least": 0.0, "choices": 0.0}, 0.0, ((-2.0, 0.1), (0.0, 0.9)), -0.5)  # fmt: skip
ASK = [{"role": "user", "content": "where is my kettle"}]


class Told(Log):
    """A server's log that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.lines: list[dict[str, Any]] = []

    def line(self, fields: dict[str, Any]) -> None:
        self.lines.append(fields)


TOLD = Told()


def event(text: str = "billing", sure: float = 0.6) -> dict[str, Any]:
    """The engine's last event, of a label."""
    return {
        "text": text, "finish": "stop", "prompt_tokens": 20, "completion_tokens": 3, "confidence": sure,
        "labels": {text: sure, "other": 1 - sure}, "logprobs": [-0.5], "raw_logprobs": [-0.6],
    }  # fmt: skip


def written(text: str = "from here", mean: float = -1.0) -> dict[str, Any]:
    """The same, of a text."""
    return {"text": text, "finish": "stop", "prompt_tokens": 20, "completion_tokens": 3, "confidence": 0.2,
            "logprobs": [mean] * 3}  # fmt: skip


def answers(given: dict[str, Any]) -> Callable[[], Awaitable[dict[str, Any]]]:
    async def local() -> dict[str, Any]:
        return given

    return local


def routing(url: str = "", *, task: Task = CLASSIFY, **more: Any) -> Router:
    """A router that escalates below P(correct) = 0.7."""
    kept = {key: more.pop(key) for key in ("prices", "decisions") if key in more}
    policy = OF_TEXT if task.kind == "generate" else OF_LABELS
    if task.kind == "extract":
        policy = OF_TEXT.__class__(**{**OF_TEXT.__dict__, "kind": "extract"})
    asked = Generalist(Settings(url=url, model="large", **{"timeout_s": 5, **more})) if url else None
    return Router(policy, task, "small", Escalation(asked, **kept))


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def one(
    found: Router, given: dict[str, Any] | None = None, messages: Any = None, headers: Any = None,
    *, request: str = "", **options: Any,
) -> Routed:  # fmt: skip
    """Route one request."""

    async def work() -> Routed:
        try:
            return await found.route(
                ASK if messages is None else messages,
                options,
                headers or {},
                answers(given or event()),
                request=request,
                log=TOLD,
            )
        finally:
            await found.escalation.close()
            await asyncio.sleep(0)  # transports close in the next turn of the loop

    return run(work())  # type: ignore[no-any-return]


def told(routed: Routed) -> tuple[str, str, str]:
    return routed.route, routed.reason, routed.text


# Who answers


def test_an_answer_that_is_sure_stays_and_one_that_is_not_goes() -> None:
    with endpoint.serving(lambda body, before: says("delivery")) as fake:
        assert told(one(routing(fake.url), event(sure=0.95))) == ("local", "confident", "billing")
        assert fake.bodies == []
        routed = one(routing(fake.url), event(sure=0.6))
        assert told(routed) == ("generalist", "unsure", "delivery")
        assert (routed.model, routed.route, routed.reason) == ("large", "generalist", "unsure")
        assert (routed.prompt_tokens, routed.completion_tokens) == (11, 3)
        assert routed.local["text"] == "billing"
    assert routed.p_correct is not None and 0.1 < routed.p_correct < 0.7


def test_what_the_model_calls_out_of_scope_goes_however_sure_it_is() -> None:
    with endpoint.serving(lambda body, before: says("oos")) as fake:
        assert told(one(routing(fake.url), event("oos", 0.999))) == ("generalist", "out-of-scope", "oos")


def test_without_a_general_model_it_is_only_told() -> None:
    assert told(one(routing(), event(sure=0.6))) == ("local", "unsure", "billing")
    assert told(one(routing(), event("oos", 0.9))) == ("local", "out-of-scope", "oos")


@pytest.mark.parametrize("missing", ["confidence", "logprobs", "raw_logprobs"])
def test_an_answer_that_does_not_say_how_sure_it_is_stays(missing: str) -> None:
    with endpoint.serving(lambda body, before: says("delivery")) as fake:
        for value in (None, "high", [float("nan")]):
            given = event(sure=0.6) | {missing: value}
            assert told(one(routing(fake.url), given)) == ("local", "doubt", "billing")
        assert fake.bodies == []


def test_the_local_models_failure_is_the_callers() -> None:
    async def fail() -> dict[str, Any]:
        raise UsageError("the engine died")

    with endpoint.serving(lambda body, before: says("delivery")) as fake:
        with pytest.raises(UsageError):
            run(routing(fake.url).route(ASK, {}, {}, fail))
        assert fake.bodies == []


# The veto


@pytest.mark.parametrize("value", ["true", "TRUE", "1", "yes", "", "maybe", "no, true"])
def test_the_callers_header_keeps_it_here(value: str) -> None:
    with endpoint.serving(lambda body, before: says("delivery")) as fake:
        for name in ("x-slmctl-sensitive", "X-Slmctl-Sensitive"):
            assert told(one(routing(fake.url), headers={name: value})) == ("local", "sensitive", "billing")
        assert fake.bodies == []
        assert one(routing(fake.url), headers={"x-slmctl-sensitive": "false"}).route == "generalist"


def test_the_veto_comes_before_the_local_model_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(
        conversation_veto,
        "clear",
        lambda *args, **named: order.append("veto") or conversation_veto.Cleared(reason="sensitive"),
    )

    async def local() -> dict[str, Any]:
        order.append("local")
        return event()

    run(routing().route(ASK, {}, {}, local))
    assert order == ["veto", "local"]


@pytest.mark.parametrize("error", [ValueError, RecursionError, MemoryError, KeyError, ModuleNotFoundError, SystemError])
def test_a_detector_that_fails_keeps_it_here(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **named: Any) -> Any:
        raise error("a bug")

    with endpoint.serving(lambda body, before: says("delivery")) as fake:
        found = routing(fake.url)
        monkeypatch.setattr(conversation_veto.search_process, "find", fail)
        assert told(one(found)) == ("local", "doubt", "billing")
        assert fake.bodies == []


def test_a_detector_that_hangs_keeps_it_here(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(router, "LOOK_S", 0.05)
    monkeypatch.setattr(router, "CUT_S", 0.01)
    with endpoint.serving(lambda body, before: says("delivery")) as fake:
        found = routing(fake.url)
        monkeypatch.setattr(
            conversation_veto, "clear", lambda *args, **named: go_on.wait(20) and conversation_veto.Cleared(ASK)
        )
        threading.Timer(0.5, go_on.set).start()
        assert told(one(found)) == ("local", "doubt", "billing")
        assert fake.bodies == []


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}],
        [{"role": "user", "content": None}], [{"role": "x", "content": "x"}], [{"content": "x"}], ["hello"], [None],
        [{"role": "user"}], [{"role": ["user"], "content": "x"}],
    ],
)  # fmt: skip
def test_what_cannot_be_looked_at_stays(messages: Any) -> None:
    with endpoint.serving(lambda body, before: says("delivery")) as fake:
        assert told(one(routing(fake.url), messages=messages)) == ("local", "doubt", "billing")
        assert fake.bodies == []


# What leaves


def test_only_listed_fields_leave() -> None:
    messages = [
        {"role": "system", "content": "Be a pirate."},
        {"role": "user", "content": "hello", "name": "Jane", "cache": {"id": 7}},
        {"role": "assistant", "content": "well?", "tool_calls": []},
        {"role": "user", "content": "where is it", "metadata": "secret"},
    ]
    options = {
        "model": "small", "user": "jane", "metadata": {"a": 1}, "seed": 4111111111111111, "stop": ["4111"], "n": 1,
        "stream": True, "logit_bias": {}, "max_tokens": 40, "temperature": 0.5, "top_p": 0.9, "tools": [1],
    }  # fmt: skip
    headers = {"authorization": "Bearer mine", "cookie": "a=b", "x-request-id": "id-1", "x-forwarded-for": "10.0.0.1"}
    with endpoint.serving(lambda body, before: says("from there")) as fake:
        assert one(routing(fake.url, task=GENERATE), written(), messages, headers, **options).route == "generalist"
        (body,), (sent,) = fake.bodies, fake.headers
    plain = [{"role": m["role"], "content": m["content"]} for m in messages]
    assert body == {"model": "large", "messages": plain, "max_tokens": 40, "temperature": 0.5, "top_p": 0.9}
    assert set(sent) <= {
        "host",
        "accept",
        "accept-encoding",
        "connection",
        "user-agent",
        "content-type",
        "content-length",
    }


def test_the_general_model_is_told_the_task() -> None:
    with endpoint.serving(lambda body, before: says("The label is: DELIVERY.")) as fake:
        routed = one(routing(fake.url), messages=[{"role": "system", "content": "Be a pirate."}, *ASK], max_tokens=1)
        assert routed.text == "delivery"
        system, *rest = fake.bodies[0]["messages"]
        assert "billing, delivery, oos" in system["content"] and "pirate" not in json.dumps(fake.bodies)
        assert rest == ASK
        assert fake.bodies[0]["max_tokens"] > 1  # a label of another vocabulary needs its room


def test_an_object_is_held_to_the_schema() -> None:
    texts = ['```json\n{"who": "me"}\n```', '{"who": 7}', '{"who": "me", "more": 1}', "I cannot"]
    with endpoint.serving(lambda body, before: says(texts[before])) as fake:
        found = routing(fake.url, task=EXTRACT)
        told_of = [told(one(found, written('{"who": "you"}'))) for _ in texts]
    assert told_of[0] == ("generalist", "unsure", '{"who": "me"}')
    assert told_of[1:] == [("local", "generalist-garbage", '{"who": "you"}')] * 3


def test_stop_texts_are_kept_though_they_are_not_sent() -> None:
    with endpoint.serving(lambda body, before: says("one two three four")) as fake:
        found = routing(fake.url, task=GENERATE)
        assert one(found, written(), stop=["three", "two"]).text == "one "
        assert one(found, written(), stop="four").text == "one two three "
        assert one(found, written(), stop=None).text == "one two three four"


def test_the_key_is_sent_there_and_stands_nowhere_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key = "sk-" + "very-secret-1"
    monkeypatch.setenv("THE_KEY", key)
    with endpoint.serving(lambda body, before: says("delivery")) as fake:
        found = routing(fake.url, key_env="THE_KEY")
        routed = one(found)
        assert fake.headers[0]["authorization"] == f"Bearer {key}"
    assert key not in repr(routed) + json.dumps(TOLD.lines) + json.dumps(found.escalation.figures()) + repr(
        found.generalist
    )
    monkeypatch.delenv("THE_KEY")
    with pytest.raises(UsageError, match="THE_KEY is not set"):
        routing("http://127.0.0.1:9/v1", key_env="THE_KEY")
    monkeypatch.setenv("THE_KEY", "a\nb")
    with pytest.raises(UsageError, match="characters that no header can have"):
        routing("http://127.0.0.1:9/v1", key_env="THE_KEY")


def test_a_redirect_is_not_followed() -> None:
    with endpoint.serving(lambda body, before: says("delivery")) as other:
        for status in (301, 302, 303, 307, 308):
            to = {"location": other.url + "/chat/completions"}
            with endpoint.serving(lambda body, before, status=status, to=to: (status, to, b"")) as fake:
                assert told(one(routing(fake.url))) == ("local", "generalist-error", "billing")
                assert len(fake.bodies) == 1
        assert other.bodies == []


def test_a_proxy_of_the_environment_is_not_used_and_one_of_the_config_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        endpoint.serving(lambda body, before: says("delivery")) as proxy,
        endpoint.serving(lambda body, before: says("oos")) as fake,
    ):
        there = proxy.url.removesuffix("/v1")
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, there)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert one(routing(fake.url)).text == "oos"
        assert proxy.bodies == []
        found = routing("http://general.example/v1", proxy=there)
        assert one(found).text == "delivery"
        assert proxy.paths == ["http://general.example/v1/chat/completions"]
        assert found.generalist is not None and found.generalist.endpoint.hosts == {"general.example", "127.0.0.1"}


def test_the_guard_opens_for_that_host_alone() -> None:
    found = routing("http://general.example/v1")
    with found.escalation.open():
        assert guard._only == {"general.example"}
        assert not guard._may("other.example")
    assert guard._only is None and not guard._open_for


# The general model fails: the local answer, flagged

GOOD = says("delivery")[2]
CASES: dict[str, tuple[endpoint.Turn, str]] = {
    "429": (fails(429), "generalist-busy"),
    "500": (fails(500), "generalist-error"),
    "503": (fails(503), "generalist-error"),
    "401": (fails(401), "generalist-error"),
    "404": (fails(404), "generalist-error"),
    "400": (fails(400), "generalist-error"),
    "hangs up": ((0, {}, b""), "generalist-down"),
    "cut in the middle": ((200, {"content-length": str(len(GOOD) + 5)}, GOOD[:-9]), "generalist-down"),
    "cut but for its length": ((200, {}, GOOD[:-9]), "generalist-garbage"),
    "cut in a stream": ((200, {"transfer-encoding": "chunked"}, b"40\r\n" + GOOD[:9]), "generalist-down"),
    "a stream": ((200, {"content-type": "text/event-stream"}, b"data: {}\n\ndata: [DONE]\n\n"), "generalist-garbage"),
    "no json": ((200, {}, b"<html>welcome</html>"), "generalist-garbage"),
    "no bytes": ((200, {}, b""), "generalist-garbage"),
    "not gzip": ((200, {"content-encoding": "gzip"}, b"plain"), "generalist-garbage"),
    "no choices": ((200, {}, b'{"choices": []}'), "generalist-garbage"),
    "deep": ((200, {}, b"[" * 100_000), "generalist-garbage"),
    "too long": ((200, {}, b" " * (MAX_BYTES + 1)), "generalist-garbage"),
    "an error in a good reply": ((200, {}, b'{"error": {"message": "overloaded"}}'), "generalist-garbage"),
    "no words": (says(""), "generalist-garbage"),
    "null": (says(None), "generalist-garbage"),
    "no label": (says("I would say it is about music."), "generalist-garbage"),
    "filtered": (says("delivery", choices=[{"message": {"content": "delivery"}, "finish_reason": "content_filter"}]),
                 "generalist-garbage"),
    "a tool call": (says("delivery", choices=[{"message": {"content": "delivery"}, "finish_reason": "tool_calls"}]),
                    "generalist-garbage"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_failure_ends_with_the_local_answer(name: str) -> None:
    turn, reason = CASES[name]
    with endpoint.serving(lambda body, before: turn) as fake:
        routed = one(routing(fake.url))
        assert len(fake.bodies) == 1
    assert told(routed) == ("local", reason, "billing")
    assert routed.model == "small"
    assert (TOLD.lines[-1]["event"], TOLD.lines[-1]["reason"]) == ("decision", reason)


def test_nobody_there() -> None:
    with endpoint.serving(lambda body, before: says("delivery")) as fake:
        url = fake.url
    assert told(one(routing(url))) == ("local", "generalist-down", "billing")


def test_a_slow_one_is_left_after_its_time() -> None:
    go_on = threading.Event()

    def wait(body: dict[str, Any], before: int) -> endpoint.Turn:
        go_on.wait(20)
        return says("delivery")

    with endpoint.serving(wait) as fake:
        routed = one(routing(fake.url, timeout_s=0.2))
        go_on.set()
    assert told(routed) == ("local", "generalist-slow", "billing")


def test_the_callers_own_deadline_is_kept() -> None:
    go_on = threading.Event()

    def wait(body: dict[str, Any], before: int) -> endpoint.Turn:
        go_on.wait(20)
        return says("delivery")

    async def work(found: Router) -> Routed:
        ends_at = asyncio.get_running_loop().time() + router.CUT_S + 0.2
        routed = await found.route(ASK, {}, {}, answers(event()), ends_at=ends_at)
        for _ in range(module.FAILURES + 1):  # which say nothing of the general model
            late = await found.route(ASK, {}, {}, answers(event()), ends_at=ends_at - 9)
        await found.escalation.close()
        await asyncio.sleep(0)
        assert told(late) == told(routed)
        return routed

    with endpoint.serving(wait) as fake:
        assert told(run(work(routing(fake.url, timeout_s=600)))) == ("local", "generalist-slow", "billing")
        go_on.set()


def test_a_form_of_the_callers_own_is_answered_here() -> None:
    with endpoint.serving(lambda body, before: says("from there")) as fake:
        found = routing(fake.url, task=GENERATE)
        for form in ({"type": "json_schema", "json_schema": {}}, {"type": "json_object"}, "x"):
            assert told(one(found, written(), response_format=form)) == ("local", "doubt", "from here")
        assert fake.bodies == []
        assert told(one(found, written(), structured_outputs={"choice": ["a"]})) == ("local", "doubt", "from here")
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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with endpoint.serving(lambda body, before: says("delivery")) as fake:
        found = routing(fake.url)
        monkeypatch.setattr(openai_client, "read_reply", lambda *args: 1 / 0)
        assert told(one(found)) == ("local", "generalist-down", "billing")
    assert TOLD.lines[-1]["fault"] == "ZeroDivisionError"


def test_an_option_that_is_called_otherwise_is_asked_again() -> None:
    def choosy(body: dict[str, Any], before: int) -> endpoint.Turn:
        if "max_tokens" in body:
            return fails(400, "use 'max_completion_tokens' instead")
        return says("delivery")

    with endpoint.serving(choosy) as fake:
        found = routing(fake.url)
        assert [one(found).route for _ in range(2)] == ["generalist"] * 2
        assert len(fake.bodies) == 3


def test_a_client_that_hangs_up_takes_its_question_along() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def wait(body: dict[str, Any], before: int) -> endpoint.Turn:
        begun.set()
        go_on.wait(20)
        return says("delivery")

    async def work(found: Router) -> None:
        task = asyncio.ensure_future(found.route(ASK, {}, {}, answers(event())))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await found.escalation.close()

    with endpoint.serving(wait) as fake:
        found = routing(fake.url)
        run(work(found))
        go_on.set()
    assert found.escalation.figures()["slmctl_routed"][0][1] == 0


# The circuit breaker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_breaker_opens_tries_one_and_closes() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(module.FAILURES):
        assert breaker.admits()
        breaker.failed()
    assert breaker.is_open and not breaker.admits()
    for _ in range(8):
        breaker.failed()  # they were on their way
    clock.now = module.FIRST_PAUSE_S + 0.1
    assert breaker.admits() and not breaker.admits()  # one is tried, the others wait for what it tells
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
    clock = Clock()
    breaker = Breaker(clock)
    assert breaker.admits()
    breaker.failed(30)
    clock.now = 29
    assert not breaker.admits()
    clock.now = 31
    assert breaker.admits() and breaker.admits()
    breaker.failed(1e9)
    clock.now += module.LONGEST_PAUSE_S + 1
    assert breaker.admits()


def test_nobody_waits_for_a_model_that_keeps_failing() -> None:
    with endpoint.serving(lambda body, before: fails(500)) as fake:
        found = routing(fake.url)
        reasons = [one(found).reason for _ in range(module.FAILURES + 3)]
        assert reasons == ["generalist-error"] * module.FAILURES + ["circuit-open"] * 3
        assert len(fake.bodies) == module.FAILURES
    assert found.escalation.figures()["slmctl_circuit_open"] == [({}, 1.0)]


def test_a_request_at_fault_does_not_open_it() -> None:
    with endpoint.serving(lambda body, before: fails(400)) as fake:
        found = routing(fake.url)
        assert {one(found).reason for _ in range(module.FAILURES + 3)} == {"generalist-error"}
        assert len(fake.bodies) == module.FAILURES + 3


# What is told


def test_decisions_are_written_without_content(tmp_path: Path) -> None:
    path = tmp_path / "log" / "decisions.jsonl"
    asked = [{"role": "user", "content": "xylophone quarrel"}]
    with endpoint.serving(lambda body, before: says("delivery")) as fake:
        found = routing(fake.url, decisions=path)
        with found.escalation.open():
            one(found, event(sure=0.6), asked, request="xylophone")
            one(found, event(sure=0.99), asked, request="req-0123456789abcdef")
    text = path.read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["route"], line["reason"]) for line in lines] == [("generalist", "unsure"), ("local", "confident")]
    assert [line["request"] for line in lines] == [None, "req-0123456789abcdef"]
    assert not [word for word in ("xylophone", "quarrel", "delivery", "billing") if word in text]
    assert set(lines[0]) == {"time", "request", "route", "reason", "model", "p_correct", "look_ms", "local_ms",
                             "beyond_ms", "prompt_tokens", "completion_tokens"}  # fmt: skip


def test_a_full_disk_costs_decisions_and_no_answers() -> None:
    found = routing(decisions=Path("/dev/full"))
    with found.escalation.open():
        assert [told(one(found, event(sure=0.99))) for _ in range(3)] == [("local", "confident", "billing")] * 3
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
    with artifact.draft(folder) as place:
        OF_LABELS.write(place)
        artifact.seal(
            place, folder, lambda files, digest: Manifest("policy", "calibrate/1", digest, "sha256:0", {}, {}, files)
        )
    path = folder / "policy.json"
    for given in (folder, path):
        assert fitted_policy(given, "f" * 64, CLASSIFY) == OF_LABELS
    path.write_bytes(path.read_bytes().replace(b'"threshold": 2.0', b'"threshold": 0.0'))
    for given in (folder, path):
        with pytest.raises(IntegrityError, match=r"damaged: changed: policy\.json"):
            fitted_policy(given, "f" * 64, CLASSIFY)
    copied = tmp_path / "mine.json"  # one by itself is its owner's
    copied.write_bytes(path.read_bytes())
    assert fitted_policy(copied, "f" * 64, CLASSIFY).threshold == 0


def test_figures_count_both_routes_and_the_savings() -> None:
    prices = Prices(machine_per_hour=1e-9, api_per_million_input_tokens=1e6, api_per_million_output_tokens=2e6)
    with endpoint.serving(lambda body, before: says("delivery")) as fake:
        found = routing(fake.url, prices=prices)
        for sure in (0.99, 0.99, 0.6):
            one(found, event(sure=sure))
    figures = found.escalation.figures()
    assert figures.keys() <= routed.FAMILIES.keys()
    counted = {tuple(labels.values()): value for labels, value in figures["slmctl_routed"] if value}
    assert counted == {("local", "confident"): 2.0, ("generalist", "unsure"): 1.0}
    assert {labels["reason"] for labels, _ in figures["slmctl_routed"]} == set(routed.LOCAL_REASONS)
    assert figures["slmctl_generalist_cost"] == [({"currency": "EUR"}, 11 + 2 * 3)]
    assert figures["slmctl_avoided_cost"] == [({"currency": "EUR"}, 2 * (20 + 2 * 3))]
    assert figures["slmctl_savings"][0][1] == pytest.approx(2 * (20 + 2 * 3))
    assert figures["slmctl_p_correct_count"] == [({}, 3.0)]
    judged = [found.policy.judge(event(sure=sure), "billing").p_correct for sure in (0.99, 0.99, 0.6)]
    assert figures["slmctl_p_correct_sum"][0][1] == pytest.approx(sum(judged))


def test_every_reason_is_of_the_closed_set() -> None:
    assert {reason for _, reason in CASES.values()} | {"generalist-slow", "circuit-open"} <= set(routed.LOCAL_REASONS)
