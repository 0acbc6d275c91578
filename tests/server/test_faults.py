"""What must not happen when something breaks: every test is one of outcome, none of time."""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import Popen
from typing import Any

import httpx
import pytest
from support import tiny
from support.scale import FULL, sampled
from support.servers import settles
from support.serving import ENDLESS, ROOM, ask, begin, chat, end, ended, engine_of, figure, memory

TIE = 0.02  # nats between two tokens that may change places
BODY = {"messages": chat("hello"), "stream": True, **ENDLESS}


@pytest.fixture(scope="module")
def server(tiny_run: Path, endless: Path) -> Iterator[tuple[Popen[str], str]]:
    child, url = begin(tiny_run, str(endless), *ROOM, "--set=serve.receive_timeout_s=1")
    yield child, url
    end(child)


def streamed(lines: Iterator[str]) -> list[str]:
    """The events of a stream that was cut or ended."""
    return [line.removeprefix("data: ") for line in lines if line]


def is_honest(events: list[str]) -> bool:
    """Whether a stream ended with a finish and [DONE], or with an error and without it."""
    if events[-1] == "[DONE]":
        return json.loads(events[-2])["choices"][0]["finish_reason"] is not None
    return "error" in json.loads(events[-1])


@pytest.mark.parametrize("count", sampled([3, 20], [3]))
def test_a_killed_engine_is_replaced_and_requests_are_told(
    server: tuple[Popen[str], str], count: int
) -> None:
    child, url = server
    before = figure(url, "slmctl_engine_restarts_total")
    told = 0
    for _ in range(count):
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=BODY, timeout=60) as response:
            lines = response.iter_lines()
            first = next(lines)
            os.kill(engine_of(child), signal.SIGKILL)
            events = [first, *streamed(lines)]
        assert is_honest(events)
        told += "[DONE]" not in events
        assert ask(url, "hello", max_tokens=2).status_code == 200
        assert httpx.get(f"{url}/readyz").status_code == 200
    assert figure(url, "slmctl_engine_restarts_total") - before == count
    assert told > 0  # answers were cut, so their errors were seen
    assert figure(url, "slmctl_requests_running") == 0


@pytest.mark.parametrize("count", sampled([12, 100], [12]))
def test_clients_that_hang_up_free_their_places(server: tuple[Popen[str], str], count: int) -> None:
    _, url = server
    for _ in range(count):
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=BODY, timeout=60) as response:
            next(response.iter_lines())
    # another answer comes, though more clients have hung up than there are places
    assert ask(url, "hello", max_tokens=2).status_code == 200
    assert settles(lambda: figure(url, "slmctl_requests_running") == 0), "a place is never freed"


def test_sigterm_ends_every_stream_honestly(tiny_run: Path, endless: Path) -> None:
    child, url = begin(tiny_run, str(endless), *ROOM, "--set=serve.grace_s=0.2")
    with ThreadPoolExecutor(4) as pool:

        def stream(told: bool) -> list[str]:
            with httpx.stream(
                "POST", f"{url}/v1/chat/completions", json=BODY, timeout=60
            ) as response:
                lines = response.iter_lines()
                first = next(lines)
                if told:
                    child.send_signal(signal.SIGTERM)
                return [first, *streamed(lines)]

        others = [pool.submit(stream, False) for _ in range(3)]
        assert settles(
            lambda: figure(url, "slmctl_requests_running") >= 3 or all(one.done() for one in others)
        )
        found = [stream(True), *(one.result() for one in others)]
    assert all(map(is_honest, found))
    log = ended(child)
    assert [line["event"] for line in log][-1] == "stopped"


@pytest.mark.parametrize("number", sampled([signal.SIGTERM, signal.SIGINT], [signal.SIGTERM]))
def test_a_stop_that_reaches_the_whole_group_does_not_end_the_engine_first(
    tiny_run: Path, number: int
) -> None:
    child, url = begin(tiny_run)
    # the address was once printed before the socket listened
    assert ask(url, "hello").status_code == 200
    # Ctrl-C and systemd signal every process
    os.killpg(child.pid, number)
    events = [line["event"] for line in ended(child)]
    assert (events[0], *events[-2:]) == ("serving", "stopping", "stopped")
    assert "engine_died" not in events


def test_slow_clients_do_not_stop_a_normal_one(server: tuple[Popen[str], str]) -> None:
    _, url = server
    port = int(url.rpartition(":")[2])
    slow = []
    for k in range(200):
        sock = socket.create_connection(("127.0.0.1", port), timeout=60)
        half = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
            b"application/json\r\n"
        )
        sock.sendall(half[: 20 + k % 30] if k % 2 else half + b"Content-Length: 500\r\n\r\n{")
        slow.append(sock)
    assert ask(url, "hello", max_tokens=2).status_code == 200
    said = []
    for sock in slow:  # each is ended with a word, after `receive_s`
        with sock, sock.makefile("rb") as stream:
            said.append(stream.readline())
    assert {line.split()[1] for line in said} == {b"408"}


def test_bodies_sent_byte_by_byte_are_answered_or_ended_and_hold_up_nobody(
    server: tuple[Popen[str], str],
) -> None:
    _, url = server
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
        b"application/json\r\nContent-Length: "
    )
    raw = json.dumps({"messages": chat("hello"), "max_tokens": 2}).encode()

    def send(declared: int) -> bytes:
        """The first line that comes back, to a body of which no
        more than a byte is sent at a time.
        """
        with socket.create_connection(
            ("127.0.0.1", int(url.rpartition(":")[2])), timeout=60
        ) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(head + f"{declared}\r\n\r\n".encode())
            for byte in itertools.islice(itertools.cycle(raw), declared):
                if select.select([sock], [], [], 0.05 if declared > len(raw) else 0)[0]:
                    break  # it is answered already
                sock.sendall(bytes([byte]))
            with sock.makefile("rb") as stream:
                return stream.readline()

    with ThreadPoolExecutor(32) as pool:
        # for minutes, of a second that there is
        slow = [pool.submit(send, 10_000) for _ in range(31)]
        assert pool.submit(send, len(raw)).result().split()[1] == b"200"
        assert ask(url, "hello", max_tokens=2).status_code == 200
        assert {each.result().split()[1] for each in slow} == {b"408"}
    assert settles(lambda: figure(url, "slmctl_requests_running") == 0)


def test_a_stream_that_is_read_byte_by_byte_comes_whole_and_holds_up_nobody(
    server: tuple[Popen[str], str],
) -> None:
    _, url = server
    raw = json.dumps(BODY | {"max_tokens": 40}).encode()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        sock.settimeout(60)
        sock.connect(("127.0.0.1", int(url.rpartition(":")[2])))
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close"
        sock.sendall(
            f"{head}\r\nContent-Type: application/json\r\nContent-Length: "
            f"{len(raw)}\r\n\r\n".encode()
            + raw
        )
        answer = b""
        while byte := sock.recv(1):
            answer += byte
            if len(answer) % 2000 == 1:
                assert ask(url, "hello", max_tokens=2).status_code == 200
    events = streamed(line for line in answer.decode().splitlines() if line.startswith("data: "))
    assert answer.startswith(b"HTTP/1.1 200 ") and events[-1] == "[DONE]" and is_honest(events)


def differ(url: str, count: int, length: int) -> int:
    """Answers that part from those asked for alone, eight being asked for at a time, where the
    model was of one mind.

    Sums of floats depend on the batch in their last bits, so two tokens as likely as each other may
    change places.
    """
    texts = [text for text, _ in tiny.rows(count, seed=9)]

    def answer(text: str) -> list[dict[str, Any]]:
        said = ask(
            url, text, max_tokens=length, temperature=0, logprobs=True, top_logprobs=2
        ).json()
        return list(said["choices"][0]["logprobs"]["content"])

    def parts(alone: list[dict[str, Any]], together: list[dict[str, Any]]) -> bool:
        pairs = itertools.zip_longest(alone, together, fillvalue={"token": "", "top_logprobs": []})
        for one, other in pairs:
            if one["token"] != other["token"]:
                likelihoods = [token["logprob"] for token in one["top_logprobs"]]
                return len(likelihoods) < 2 or likelihoods[0] - likelihoods[1] > TIE
        return False

    alone = [answer(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        return sum(map(parts, alone, pool.map(answer, texts)))


def test_answers_at_temperature_0_do_not_depend_on_company(
    server: tuple[Popen[str], str], desk_url: str
) -> None:
    assert differ(server[1], 16, 12) + differ(desk_url, 12, 12) == 0


@pytest.mark.slow
def test_many_answers_at_temperature_0_do_not_depend_on_company(
    server: tuple[Popen[str], str], tiny_run: Path
) -> None:
    child, url = begin(tiny_run)
    try:
        assert differ(url, 200 if FULL else 60, 12) == 0
    finally:
        end(child)
    # of an untrained model, which is often in two minds
    assert differ(server[1], 100 if FULL else 30, 48) == 0


@pytest.mark.slow
def test_memory_grows_by_at_most_20_mb_over_2000_requests(server: tuple[Popen[str], str]) -> None:
    child, url = server
    with httpx.Client(timeout=60) as client, ThreadPoolExecutor(8) as pool:

        def ask(k: int) -> int:
            body = {"messages": chat(f"hello {k}"), "max_tokens": 4, "stream": k % 2 == 0}
            return client.post(f"{url}/v1/chat/completions", json=body).status_code

        assert set(pool.map(ask, range(300))) == {200}
        pids = (child.pid, engine_of(child))
        before = sum(map(memory, pids))
        assert set(pool.map(ask, range(2000))) == {200}
        assert sum(map(memory, pids)) - before <= 20_000_000
