"""Many questions to endpoints, against one that misbehaves and against slmctl's own server."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest
from support import endpoint, tiny
from support.endpoint import fails, says

from slmctl.errors import NetworkError, UsageError
from slmctl.network import endpoint_pool, openai_client
from slmctl.network.endpoint_pool import EndpointPool, Refusal
from slmctl.network.endpoint_replies import EndpointError, Reply
from slmctl.network.openai_client import EndpointRequest

pytest.importorskip("httpx")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait as long between attempts as a courteous client does."""
    monkeypatch.setattr(endpoint_pool, "FIRST_WAIT_S", 0.005)
    monkeypatch.setattr(endpoint_pool, "LONGEST_WAIT_S", 0.02)


def ask(text: str) -> EndpointRequest:
    return EndpointRequest([{"role": "user", "content": text}], max_tokens=9)


def answers(one: EndpointPool, texts: Sequence[str]) -> list[Reply | Refusal]:
    """Every answer, in order."""
    found = dict(one.ask_all(ask(text) for text in texts))
    assert sorted(found) == list(range(len(texts)))
    return [found[k] for k in range(len(texts))]


def echo(body: dict[str, Any], before: int) -> endpoint.Turn:
    return says(body["messages"][-1]["content"].upper())


def test_every_request_gets_its_own_answer() -> None:
    texts = [f"text {k}" for k in range(50)]
    with endpoint.serving(echo) as fake:
        found = answers(EndpointPool([fake.url], "large", concurrency=7), texts)
        assert fake.most_at_once <= 7
        assert answers(EndpointPool([fake.url], "large"), []) == []
    assert [reply.text for reply in found if isinstance(reply, Reply)] == [
        text.upper() for text in texts
    ]
    first = found[0]
    assert isinstance(first, Reply)
    assert (first.finish, first.prompt_tokens, first.completion_tokens, first.confidence) == (
        "stop",
        11,
        3,
        None,
    )
    assert set(fake.paths) == {"/v1/chat/completions"}
    assert fake.bodies[0] | {"messages": []} == {
        "model": "large",
        "messages": [],
        "max_tokens": 9,
        "temperature": 0.0,
    }


def test_requests_are_taken_as_they_are_needed() -> None:
    taken: list[int] = []

    def requests() -> Any:
        for k in range(1000):
            taken.append(k)
            yield ask(str(k))

    with endpoint.serving(echo) as fake:
        stream = EndpointPool([fake.url], "large", concurrency=3).ask_all(requests())
        next(stream)
        assert len(taken) <= 12
        stream.close()
    assert len(fake.bodies) <= 12


def test_at_most_so_many_are_in_flight() -> None:
    together = threading.Barrier(4)  # breaks unless four are in flight at once

    def manners(body: dict[str, Any], before: int) -> endpoint.Turn:
        together.wait(timeout=30)
        return says("yes")

    with endpoint.serving(manners) as fake:
        answers(EndpointPool([fake.url], "large", concurrency=4), [str(k) for k in range(16)])
        assert fake.most_at_once == 4


@pytest.mark.parametrize(
    "bad",
    [
        fails(429, "slow down"),
        fails(429, "slow down", **{"retry-after": "0.01"}),
        fails(429, "slow down", **{"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        fails(429, "slow down", **{"retry-after": "soon"}),
        fails(500),
        fails(503),
        (200, {}, b"<html>try later</html>"),
        (200, {}, b'{"choices": []}'),
        (200, {}, b'{"choices": [{"message": {"content": [1]}}]}'),
        (200, {}, b"null"),
        (200, {"content-encoding": "gzip"}, b"no gzip"),
        (200, {"content-length": "999"}, b"cut off"),
        (0, {}, b""),
    ],
    ids=lambda turn: f"{turn[0]} {turn[2][:12]!r}",
)
def test_what_may_pass_is_asked_again(bad: endpoint.Turn) -> None:
    def manners(body: dict[str, Any], before: int) -> endpoint.Turn:
        return bad if before < 2 else says("at last")

    with endpoint.serving(manners) as fake:
        one = EndpointPool([fake.url], "large", concurrency=2, timeout_s=1)
        found = answers(one, ["a", "b"])
    assert [getattr(reply, "text", reply) for reply in found] == ["at last"] * 2
    assert one.retries == 4
    assert len(fake.bodies) == 6


def test_a_request_that_never_works_is_given_up_and_the_others_go_on() -> None:
    def manners(body: dict[str, Any], before: int) -> endpoint.Turn:
        return fails(500, "out of order") if body["messages"][-1]["content"] == "3" else says("yes")

    with endpoint.serving(manners) as fake:
        found = answers(EndpointPool([fake.url], "large"), [str(k) for k in range(8)])
    assert [isinstance(reply, Refusal) for reply in found] == [k == 3 for k in range(8)]
    assert found[3] == Refusal("HTTP 500: out of order (6 attempts)", 500)
    assert fake.questions.count("3") == endpoint_pool.ATTEMPTS


def test_a_request_that_is_refused_is_not_asked_again() -> None:
    def manners(body: dict[str, Any], before: int) -> endpoint.Turn:
        return fails(400, "too long") if body["messages"][-1]["content"] == "long" else says("yes")

    with endpoint.serving(manners) as fake:
        found = answers(EndpointPool([fake.url], "large"), ["long"] * 30 + ["short"])
    # and so many in a row end nothing
    assert found[:30] == [Refusal("HTTP 400: too long", 400)] * 30
    assert isinstance(found[30], Reply)
    assert len(fake.bodies) == 31


@pytest.mark.parametrize(
    ("status", "said"), [(401, "the key is not accepted"), (404, "there is no such model")]
)
def test_what_no_request_can_get_past_ends_it_all(status: int, said: str) -> None:
    with endpoint.serving(lambda body, before: fails(status, "go away")) as fake:
        one = EndpointPool([fake.url], "large", concurrency=2)
        with pytest.raises(NetworkError, match=f"{said}.*HTTP {status}: go away"):
            list(one.ask_all(ask(str(k)) for k in range(1000)))
    assert len(fake.bodies) < 20


@pytest.mark.parametrize("status", [401, 403, 404])
def test_an_endpoint_that_refuses_is_left_out_while_another_answers(
    status: int, capsys: Any
) -> None:
    refuses: endpoint.Manners = lambda body, before: fails(status)  # noqa: E731
    with (
        endpoint.serving(refuses) as bad,
        endpoint.serving(echo) as good,
        endpoint.serving(refuses) as worse,
    ):
        found = answers(EndpointPool([bad.url, good.url], "large", concurrency=2), ["a"] * 20)
        assert [getattr(reply, "text", reply) for reply in found] == ["A"] * 20
        said = " ".join(capsys.readouterr().err.split())
        assert said.count("is asked no more: ") == 1
        assert f"{urlsplit(bad.url).netloc} is asked no more" in said
        with pytest.raises(NetworkError, match=f"HTTP {status}"):
            answers(EndpointPool([bad.url, worse.url], "large", concurrency=2), ["a"] * 20)


def test_a_slow_endpoint_keeps_no_more_than_its_own_places() -> None:
    def slowly(body: dict[str, Any], before: int) -> endpoint.Turn:
        while len(quick.bodies) < 41:
            threading.Event().wait(0.01)
        return echo(body, before)

    with endpoint.serving(slowly) as slow, endpoint.serving(echo) as quick:
        found = answers(
            EndpointPool([slow.url, quick.url], "large", concurrency=2),
            [f"t{k}" for k in range(60)],
        )
    assert [getattr(reply, "text", reply) for reply in found] == [f"T{k}" for k in range(60)]
    assert max(slow.most_at_once, quick.most_at_once) <= 2
    assert len(slow.bodies) < 20 < len(quick.bodies)


def test_what_was_answered_comes_before_the_end() -> None:
    """Answers that were paid for are not lost to the failure of a request beside them."""
    with endpoint.serving(
        lambda body, before: says("yes") if len(fake.bodies) <= 10 else fails(403)
    ) as fake:
        found: list[Reply | Refusal] = []
        with pytest.raises(NetworkError, match="the key may not do this"):
            for _, reply in EndpointPool([fake.url], "large", concurrency=1).ask_all(
                ask(str(k)) for k in range(99)
            ):
                found.append(reply)
    assert [getattr(reply, "text", reply) for reply in found] == ["yes"] * 10


@pytest.mark.parametrize(
    ("refusal", "said", "most"),
    [
        (
            fails(500),
            "answered none of 16 requests in a row: HTTP 500",
            40 * endpoint_pool.ATTEMPTS,
        ),
        (
            fails(400, "no such model"),
            "answered none of 64 requests in a row: HTTP 400: no such model",
            100,
        ),
        (None, "answered none of 16 requests in a row: ConnectError", 1),
    ],
    ids=["answers nothing", "refuses everything", "is not there"],
)
def test_an_endpoint_is_given_up_that(refusal: endpoint.Turn | None, said: str, most: int) -> None:
    with contextlib.ExitStack() as stack:
        fake = stack.enter_context(endpoint.serving(lambda body, before: refusal or says("yes")))
        if refusal is None:
            stack.close()
        with pytest.raises(NetworkError, match=said):
            list(
                EndpointPool([fake.url], "large", concurrency=4).ask_all(
                    ask(str(k)) for k in range(1000)
                )
            )
    assert len(fake.bodies) < most


def test_a_slow_endpoint_is_left_after_its_time() -> None:
    """One that sends a byte now and then would never meet a timeout between two bytes."""
    ended = threading.Event()

    def manners(body: dict[str, Any], before: int) -> endpoint.Turn:
        if before == 0:
            ended.wait(20)
        return says("yes")

    with endpoint.serving(manners) as fake:
        begun = time.monotonic()
        found = answers(EndpointPool([fake.url], "large", timeout_s=0.2), ["a"])
        assert time.monotonic() - begun < 19  # it did not wait for the first attempt
        ended.set()
    assert isinstance(found[0], Reply)
    assert len(fake.bodies) == 2


def test_an_endless_reply_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_client, "MAX_BYTES", 1000)
    with endpoint.serving(lambda body, before: says("x" * 5000)) as fake:
        (found,) = answers(EndpointPool([fake.url], "large"), ["a"])
    assert isinstance(found, Refusal)
    assert "more than 1000 bytes" in found.message


def test_options_are_learnt_from_refusals() -> None:
    def manners(body: dict[str, Any], before: int) -> endpoint.Turn:
        if "max_tokens" in body:
            return fails(400, "Unsupported parameter: use 'max_completion_tokens' instead.")
        if "temperature" in body:
            return fails(400, "'temperature' does not support 0.0 with this model.")
        return says("yes")

    with endpoint.serving(manners) as fake:
        found = answers(EndpointPool([fake.url], "large", concurrency=1), ["a", "b", "c"])
    assert all(isinstance(reply, Reply) for reply in found)
    assert fake.bodies[-1]["max_completion_tokens"] == 9
    assert len(fake.bodies) == 5


def test_what_one_endpoint_does_not_know_is_left_out_for_it_alone() -> None:
    names = ("structured_outputs", "logprobs", "response_format")
    request = EndpointRequest(
        [{"role": "user", "content": "a"}], 9, options=dict.fromkeys(names, 1)
    )

    def old(body: dict[str, Any], before: int) -> endpoint.Turn:
        unknown = [name for name in names if name in body]
        return (
            fails(400, f"{unknown[0]}: Extra inputs are not permitted") if unknown else says("yes")
        )

    with endpoint.serving(old) as first, endpoint.serving(echo) as second:
        pool = EndpointPool([first.url, second.url], "large", concurrency=4)
        assert all(isinstance(reply, Reply) for _, reply in pool.ask_all([request] * 40))
    assert not {*names} & first.bodies[-1].keys()
    assert all({*names} <= body.keys() for body in second.bodies)


def test_requests_on_their_way_learn_what_the_first_one_learnt() -> None:
    together = threading.Barrier(4)  # so that four are refused before any has learnt of it

    def manners(body: dict[str, Any], before: int) -> endpoint.Turn:
        if "temperature" not in body:
            return says("yes")
        together.wait(timeout=30)
        return fails(400, "'temperature' does not support 0.0 with this model.")

    with endpoint.serving(manners) as fake:
        found = answers(EndpointPool([fake.url], "large", concurrency=4), ["a", "b", "c", "d"])
    assert [getattr(reply, "text", reply) for reply in found] == ["yes"] * 4


def test_a_refusal_to_speak_is_an_answer_without_words() -> None:
    with endpoint.serving(lambda body, before: says(None, usage=None)) as fake:
        (found,) = answers(EndpointPool([fake.url], "large"), ["a"])
    assert isinstance(found, Reply)
    assert (found.text, found.prompt_tokens) == ("", None)


def test_the_key_is_sent_and_said_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "k" * 7 + "-made-up"
    monkeypatch.setenv("A_KEY", f" {key}\n")
    with endpoint.serving(lambda body, before: fails(401, "bad key")) as fake:
        one = EndpointPool([fake.url], "large", key_env="A_KEY")
        with pytest.raises(NetworkError) as caught:
            list(one.ask_all([ask("a")]))
    assert fake.headers[0]["authorization"] == f"Bearer {key}"
    assert key not in caught.value.message + caught.value.hint
    monkeypatch.delenv("A_KEY")
    with pytest.raises(UsageError, match="the environment variable A_KEY is not set"):
        EndpointPool([fake.url], "large", key_env="A_KEY")


def test_slmctls_own_server(desk_url: str) -> None:
    texts = [text for text, _ in tiny.rows(20, seed=5)]
    found = answers(EndpointPool([desk_url], "tiny-desk", concurrency=4), texts)
    assert all(isinstance(reply, Reply) and reply.text in tiny.LABELS for reply in found)
    assert all(isinstance(reply, Reply) and 0 < (reply.confidence or 0) <= 1 for reply in found)
    # a 404, as OpenAI has it
    with pytest.raises(NetworkError, match="'another' is not served here"):
        answers(EndpointPool([desk_url], "another"), ["a"])


def test_an_endpoint_that_says_it_is_too_much_gets_less_at_once_and_then_more_again() -> None:
    """It takes 3 at once: what goes beyond is refused. The client comes
    down to that, and not to one for ever.
    """
    now, lock, seen, crowded = [0], threading.Lock(), list[int](), threading.Event()

    def manners(body: dict[str, Any], before: int) -> endpoint.Turn:
        with lock:
            now[0] += 1
            mine = now[0]
            if mine > 3:
                crowded.set()
        crowded.wait(30)  # the first ones stay until there are too many, however slowly these come
        time.sleep(0.005)
        with lock:
            now[0] -= 1
            seen.append(mine)
        return fails(429, "too many", **{"retry-after": "0.02"}) if mine > 3 else echo(body, before)

    with endpoint.serving(manners) as fake:
        found = answers(
            EndpointPool([fake.url], "large", concurrency=16), [f"t{k}" for k in range(120)]
        )
    assert all(isinstance(reply, Reply) for reply in found)
    assert max(seen[:16]) > 3
    late = seen[len(seen) // 2 :]
    # most of what it is asked then is taken
    assert sum(count > 3 for count in late) < 0.3 * len(late)
    assert max(late) > 1


def test_a_watch_lets_requests_out_and_hears_of_those_that_fail() -> None:
    class Watch:
        out, kept, lost = list[int](), list[tuple[int, str]](), list[tuple[int, int]]()

        def may_send(self, index: int) -> Literal["send", "wait", "stop"]:
            if index == 2:
                return "stop"
            self.out.append(index)
            return "wait" if self.out.count(index) == 1 else "send"

        def answered(self, index: int, reply: Reply) -> None:
            self.kept.append((index, reply.text))

        def failed(self, index: int, error: EndpointError) -> None:
            self.lost.append((index, error.status))

    def manners(body: dict[str, Any], before: int) -> endpoint.Turn:
        return (
            fails(500)
            if before == 0 and body["messages"][0]["content"] == "b"
            else echo(body, before)
        )

    watch = Watch()
    with endpoint.serving(manners) as fake:
        one = EndpointPool([fake.url], "large", concurrency=2)
        found = dict(one.ask_all([ask("a"), ask("b"), ask("c")], watch=watch))
    assert [getattr(found[k], "text", None) for k in range(3)] == ["A", "B", None]
    assert found[2] == Refusal("it was not sent", endpoint_pool.NOT_SENT)
    assert len(fake.bodies) == 3
    assert sorted(watch.kept) == [(0, "A"), (1, "B")]
    assert watch.lost == [(1, 500)]
