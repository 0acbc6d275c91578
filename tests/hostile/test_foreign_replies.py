"""Replies of hostile or broken endpoints: one costs its row, its answer
or its escalation, and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import math
import resource
from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any

import httpx
import pytest
from hostile import replies
from hypothesis import given, settings
from hypothesis import strategies as st
from support import endpoint, tiny
from support.endpoint import Fake, Turn
from support.scale import FULL, sampled
from support.serving import Gateway, chat, gateway, memory, post

from slmctl.network import endpoint_pool
from slmctl.network.decisions import Api, Choice
from slmctl.network.endpoint_pool import EndpointPool, Refusal
from slmctl.network.endpoint_replies import EndpointError, Reply, StreamedReply, message
from slmctl.network.openai_client import EndpointClient, EndpointRequest
from slmctl.task.contract import Task

ASK = EndpointRequest([{"role": "user", "content": "hello"}], max_tokens=200)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_pool, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(endpoint_pool, "ATTEMPTS", 2)


DECIDE = replace(ASK, choice=Choice("Name the category.", {"billing": "", "delivery": ""}))
APIS: tuple[Api, ...] = ("decisions", "systemone")


def ask(
    fake: Fake, count: int = 1, *, stream: bool = False, api: Api = "chat"
) -> list[Reply | StreamedReply | str]:
    """The answers of one client to so many questions; of an error its kind."""

    async def one(client: EndpointClient) -> Reply | StreamedReply | str:
        reply = StreamedReply()
        try:
            if not stream:
                return await client.ask(ASK if api == "chat" else DECIDE)
            async for _ in client.stream(ASK, reply):
                pass
            return reply
        except EndpointError as error:
            assert error.message.isprintable() and len(error.message) < 500
            return error.kind

    async def work() -> list[Reply | StreamedReply | str]:
        client = EndpointClient(fake.url, "large", timeout_s=20, api=api)
        try:
            return [await one(client) for _ in range(count)]
        finally:
            await client.close()

    return asyncio.run(work())


@pytest.mark.parametrize(
    "turn",
    replies.NO_COMPLETION,
    ids=lambda turn: f"{turn[0]} {str(turn[1])[:40]} {turn[2][:12]!r}",
)
def test_what_is_no_completion_is_no_answer(turn: Turn) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with endpoint.serving(lambda body, before: turn) as fake:
        for stream in (False, True):
            (outcome,) = ask(fake, stream=stream)
            assert isinstance(outcome, str) or (
                isinstance(outcome, StreamedReply) and not outcome.text
            ), turn
        assert all(isinstance(outcome, str) for api in APIS for outcome in ask(fake, api=api))
    # 5 kB, compressed four times, once became 3 GB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB


@pytest.mark.parametrize("field", replies.FIELDS, ids=lambda field: ".".join(map(str, field)))
@pytest.mark.parametrize("stream", [False, True])
def test_any_field_may_hold_anything(field: tuple[str | int, ...], stream: bool) -> None:
    bodies = [replies.exchanged(replies.good(), field, value) for value in replies.ODD]
    turns = iter([_sent(body, stream) for body in bodies])
    with endpoint.serving(lambda body, before: next(turns)) as fake:
        for outcome in ask(fake, len(bodies), stream=stream):
            _require_sane(outcome)


@pytest.mark.parametrize("field", replies.DECIDED, ids=lambda field: ".".join(map(str, field)))
@pytest.mark.parametrize("api", APIS)
def test_any_field_of_a_decision_may_hold_anything(field: tuple[str | int, ...], api: Api) -> None:
    bodies = [replies.exchanged(replies.decided(), field, value) for value in replies.ODD]
    if api == "systemone":
        bodies = [body | {"answers": {"label": body["answers"][0]}} for body in bodies if field[1:]]
    turns = iter([(200, {}, json.dumps(body).encode()) for body in bodies])
    with endpoint.serving(lambda body, before: next(turns)) as fake:
        for outcome in ask(fake, len(bodies), api=api):
            _require_sane(outcome)
            if isinstance(outcome, Reply):
                assert outcome.confidence in (None, 0.9) or "probability" in field
                json.dumps(dict(outcome.labels), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("more", "kept"),
    [
        ({"type": "refusal"}, ("", "refusal", None)),
        # read as a chat's text: no label, so a wrong answer
        ({"choice": "parcels"}, ("parcels", "stop", None)),
        ({"probabilities": [{"value": "billing", "probability": 1.5}]}, ("billing", "stop", None)),
        ({"probabilities": [{"value": "parcels", "probability": 0.5}]}, ("billing", "stop", None)),
        ({"probabilities": {"billing": 0.7, "delivery": 0.3}}, ("billing", "stop", 0.7)),
        ({"choice": "x" * 300}, "unreadable"),
        ({"choice": True}, "unreadable"),
        ({"choice": "x" * 10_000_000}, "unreadable"),
    ],
)
def test_a_decision_is_read_as_a_chat_is(more: dict[str, Any], kept: Any) -> None:
    body = replies.decided()
    body["answers"][0] |= more
    with endpoint.serving(lambda _, before: (200, {}, json.dumps(body).encode())) as fake:
        (outcome,) = ask(fake, api="decisions")
    found = (
        (outcome.text, outcome.finish, outcome.confidence)
        if isinstance(outcome, Reply)
        else outcome
    )
    assert found == kept


def _sent(body: dict[str, Any], stream: bool) -> Turn:
    raw = json.dumps(body).encode()
    return (200, {}, b"data: " + raw + b"\n\ndata: [DONE]\n\n") if stream else (200, {}, raw)


def _require_sane(outcome: Reply | StreamedReply | str) -> None:
    """What is made of a reply can be written, counted and compared."""
    if isinstance(outcome, str):
        assert outcome in ("slow", "unreachable", "refused", "unreadable")
        return
    outcome.text.encode()
    assert len(outcome.text) <= 257 * ASK.max_tokens
    json.dumps(outcome.finish, ensure_ascii=False).encode()
    assert len(outcome.finish or "") <= 32
    for count in (outcome.prompt_tokens, outcome.completion_tokens):
        assert count is None or 0 <= count <= 10**9
    assert outcome.confidence is None or 0 <= outcome.confidence <= 1
    if isinstance(outcome, StreamedReply):
        assert all(math.isfinite(logprob) and logprob <= 0 for logprob in outcome.logprobs)
        assert all(0 <= share <= 1 for share in outcome.labels.values())
        json.dumps([outcome.tokens, outcome.labels], ensure_ascii=False).encode()
    elif outcome.tool_calls is not None:
        json.dumps(outcome.tool_calls, ensure_ascii=False).encode()


@settings(max_examples=2000 if FULL else 50, deadline=None)
@given(random=st.randoms(use_true_random=True), stream=st.booleans())
def test_no_reply_breaks_the_client(random: Random, stream: bool) -> None:
    turn = replies.any_reply(random, stream=stream)
    with endpoint.serving(lambda body, before: turn) as fake:
        _require_sane(*ask(fake, stream=stream))


@settings(max_examples=300, deadline=None)
@given(
    raw=st.binary(max_size=300)
    | st.text(max_size=100).map(lambda text: json.dumps({"error": text}).encode())
)
def test_a_refusal_is_one_printable_line(raw: bytes) -> None:
    line = message(raw)
    assert len(line) <= 200
    assert line.isprintable()


def test_a_bad_reply_costs_its_row_alone() -> None:
    bad = [turn for turn in replies.NO_COMPLETION if turn[0] in (0, 200)]

    def manners(body: dict[str, Any], before: int) -> Turn:
        number = int(body["messages"][-1]["content"])
        return endpoint.says("yes") if number % 2 else bad[number // 2 % len(bad)]

    with endpoint.serving(manners) as fake:
        pool = EndpointPool([fake.url], "large", timeout_s=20)
        questions = [EndpointRequest([{"role": "user", "content": str(k)}]) for k in range(40)]
        outcomes = dict(pool.ask_all(questions))
    assert [isinstance(outcomes[k], Reply) for k in range(40)] == [k % 2 == 1 for k in range(40)]
    assert all(isinstance(outcomes[k], Refusal) for k in range(0, 40, 2))


def test_a_cookie_is_kept_for_nobody() -> None:
    with endpoint.serving(
        lambda body, before: (200, {"set-cookie": "who=me; Path=/"}, endpoint.says("yes")[2])
    ) as fake:
        list(EndpointPool([fake.url], "large", concurrency=1).ask_all([ASK] * 3))
    assert len(fake.headers) == 3
    assert all("cookie" not in headers for headers in fake.headers)
    assert {headers["accept-encoding"] for headers in fake.headers} == {"identity"}


def test_a_key_that_a_reply_repeats_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "made/up/key"
    monkeypatch.setenv("A_KEY", key)
    plain = json.dumps({"choices": [{"message": {"content": f"it is {key}"}}]})
    spelled = plain.replace("up/", "\\u0075p\\u002F").replace("/", "\\/").encode()
    with endpoint.serving(lambda body, before: (200, {}, spelled)) as fake:
        ((_, reply),) = EndpointPool([fake.url], "large", "A_KEY").ask_all([ASK])
    assert isinstance(reply, Reply)
    assert reply.text == "it is ***"


# Through the gateway


TASKS = (
    Task("classify", tiny.TEMPLATE, "<|im_end|>", labels=("billing", "delivery")),
    Task("extract", tiny.TEMPLATE, "<|im_end|>", schema=tiny.SCHEMA),
    Task("generate", tiny.TEMPLATE, "<|im_end|>"),
)


Behind = tuple[Gateway, list[Turn], Task]


@pytest.fixture(scope="module", params=sampled(TASKS, TASKS[:1]), ids=lambda task: task.kind)
def behind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Behind]:
    """A gateway for a task, and the reply that its engine gives."""
    turn, folder = [endpoint.streams("billing")], tmp_path_factory.mktemp("gateway")
    with gateway(folder, task=request.param, manners=lambda body, before: turn[0]) as running:
        yield running, turn, request.param


@settings(max_examples=400 if FULL else 20, deadline=None)
@given(random=st.randoms(use_true_random=True))
def test_the_engine_of_a_gateway_may_say_anything(behind: Behind, random: Random) -> None:
    server, turn, task = behind
    turn[0] = replies.any_reply(random, stream=True)
    said = post(
        server.url,
        {"messages": chat("hello"), "stream": random.randrange(2) == 1, "logprobs": True},
    )
    assert said.status_code in (200, 400, 502), said.text
    if (
        task.labels
        and said.status_code == 200
        and "text/event-stream" not in said.headers["content-type"]
    ):
        assert said.json()["choices"][0]["message"]["content"] in task.labels
    assert httpx.get(f"{server.url}/metrics").status_code == 200
    assert server.healthy_s() < 5


def test_the_gateway_lives_on_with_little_memory(behind: Behind) -> None:
    server, turn, task = behind
    for turn[0] in (*replies.NO_COMPLETION, *replies.NO_COMPLETION):
        assert post(server.url, {"messages": chat("hello")}).status_code in (400, 502)
    assert memory(server.child.pid) < 400_000_000
    turn[0] = endpoint.streams("billing")
    said = post(server.url, {"messages": chat("hello")})
    assert (said.status_code, "billing" in said.text) in ((200, True), (502, False))
    assert said.status_code == 200 or task.schema  # which "billing" does not satisfy
