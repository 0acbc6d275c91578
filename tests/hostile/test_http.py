"""HTTP as hostile clients write it, against a gateway: bounded room, no
fault of its own, others are served.
"""

from __future__ import annotations

import contextlib
import json
import re
import resource
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hostile import framing
from hypothesis import given, settings
from hypothesis import strategies as st
from support.endpoint import Turn, streams
from support.scale import FULL
from support.servers import settles
from support.serving import Gateway, figure, gateway, memory, post

CLIENTS = 3
SILENT_S = 20  # that no other client waits, on a machine that is busy
SENT = (400 << 20) if FULL else (24 << 20)  # bytes of an endless request
POST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
)
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


GO_ON = threading.Event()  # answers to "wait" come when it is set


def manners(body: dict[str, Any], before: int) -> Turn:
    if body["messages"][-1]["content"] == "wait":
        GO_ON.wait(60)
    return streams("hello")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    with gateway(folder, "--set=serve.receive_timeout_s=5", manners=manners) as running:
        running.healthy_s()
        before = memory(running.child.pid)
        yield running
        assert memory(running.child.pid) - before < 200 << 20


def talk(
    server: Gateway,
    segments: Iterator[bytes] | list[bytes],
    *,
    read: int = 1 << 20,
    hang_up: bool = False,
    quiet_s: float = 10,
) -> bytes:
    """Send segments, as many as are taken; the first bytes of what comes back until the server ends
    it.

    Without a first byte it is left after 10 s, later after `quiet_s` seconds without another.
    """
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        with contextlib.suppress(OSError):
            for segment in segments:
                sock.sendall(segment)
        answer = b""
        with contextlib.suppress(OSError):
            if hang_up:
                sock.shutdown(socket.SHUT_WR)
            while len(answer) < read and (part := sock.recv(65536)):
                answer += part
                sock.settimeout(quiet_s)
        return answer


ENDLESS = {
    "the line": (POST[:10], b"a" * 65536),
    "one header": (POST + b"X-A: ", b"a" * 65536),
    "a header's name": (POST, b"a" * 65536),
    "headers": (POST, b"x-a: y\r\n" * 8192),
    "line breaks before a request": (b"", b"\r\n" * 32768),
    "one trailer": (CHUNKED + b"1\r\nx\r\n0\r\nX-A: ", b"a" * 65536),
    "trailers": (CHUNKED + b"1\r\nx\r\n0\r\n", b"x-a: y\r\n" * 8192),
    "the length of a chunk": (CHUNKED, b"0" * 65536),
    "one extension": (CHUNKED + b"1;a=", b"a" * 65536),
    "extensions": (CHUNKED + b"1", b";a=b" * 16384),
    "extensions of small chunks": (CHUNKED, (b"1;" + b"a" * 500 + b"\r\nx\r\n") * 128),
    "trailers after an answer": (
        CHUNKED.replace(b"/v1/chat/completions", b"/nowhere") + b"0\r\n",
        b"x-a: y\r\n" * 8192,
    ),
}


@pytest.mark.parametrize("form", ENDLESS)
def test_an_endless_request_is_ended_and_costs_no_memory(server: Gateway, form: str) -> None:
    # trailers of one connection once took the gateway to 3.2 GB in 10 s, before it had looked at
    # the key
    opening, again = ENDLESS[form]
    before, sent = memory(server.child.pid), [0]

    def segments() -> Iterator[bytes]:
        yield opening
        while sent[0] < SENT:
            yield again
            sent[0] += len(again)

    answer = talk(server, segments(), hang_up=True)
    assert sent[0] < SENT, "all of it was taken"
    assert not answer or answer.split()[1] in (b"431", b"400", b"404"), answer[:100]
    assert memory(server.child.pid) - before < 30_000_000
    assert server.healthy_s() < SILENT_S


@pytest.mark.parametrize("size", [70_000, 35_000, 4096, 1000])
def test_a_head_is_refused_by_its_length_and_not_by_how_it_was_cut(
    server: Gateway, size: int
) -> None:
    def cut(raw: bytes) -> list[bytes]:
        return [raw[k : k + size] for k in range(0, len(raw), size)]

    head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-A: "
    fits = head + b"a" * (65_500 - len(head)) + b"\r\n\r\n"
    assert talk(server, cut(fits)).startswith(b"HTTP/1.1 200 ")
    answer = talk(server, cut(head + b"a" * 69_900 + b"\r\n\r\n"))
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


def test_a_body_in_chunks_of_a_byte_is_read(server: Gateway) -> None:
    body = json.dumps(
        {"messages": [{"role": "user", "content": "a" * 20_000}], "max_tokens": 4}
    ).encode()
    chunks = b"".join(b"1;e=f\r\n" + bytes([byte]) + b"\r\n" for byte in body)
    raw = (
        POST
        + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunks
        + b"0\r\nX-Sum: 1\r\n\r\n"
    )
    assert b'"content":"hello"' in talk(server, [raw])


def test_an_error_does_not_repeat_all_that_was_sent(server: Gateway) -> None:
    name = "a" * 500_000
    for body in (
        {name: 1},
        {"model": name},
        {"messages": [{"role": name}]},
        {"messages": [], "stop": [name] * 5},
    ):
        said = post(server.url, body)
        assert 400 <= said.status_code < 500
        assert len(said.content) < 2000


def whole(body: str = "hello") -> bytes:
    raw = json.dumps({"messages": [{"role": "user", "content": body}]}).encode()
    return POST + f"Content-Length: {len(raw)}\r\n\r\n".encode() + raw


@pytest.mark.parametrize(
    ("raw", "status", "late"),
    [
        (whole("a" * 120_000), 200, 0),
        (POST + b"Content-Length: 300000\r\n\r\n" + b"x" * 300_000, 400, 0),
        (POST + b"Content-Length: 1500000\r\n\r\n" + b"x" * 1_500_000, 413, 100),
        (
            POST.replace(b"json", b"text") + b"Content-Length: 300000\r\n\r\n" + b"x" * 300_000,
            415,
            100,
        ),
    ],
    ids=["answered", "no JSON", "too large", "another type"],
)
def test_a_request_behind_a_large_body_is_answered(
    server: Gateway, raw: bytes, status: int, late: int
) -> None:
    # bytes of the body before were counted as framing of the next one, which got 431
    end = len(raw) - late  # of what comes before a body is refused by its first bytes
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        for part, expected in ((raw[:end], status), (raw[end:] + whole("hello " * 2000), 200)):
            sock.sendall(part)
            reply = HTTPResponse(sock)
            reply.begin()
            assert (reply.status, bool(reply.read())) == (expected, True)


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        ([whole()], [b"200"]),
        ([whole(), b"GET /heal"], [b"200"]),  # the second one never ends
        ([whole() * 3], [b"200", b"200", b"200"]),
        ([b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"], [b"200"]),
        ([whole()[:-1]], []),
    ],
)
def test_a_client_that_ends_its_side_gets_its_answer(
    server: Gateway, sent: list[bytes], statuses: list[bytes]
) -> None:
    answer = talk(server, sent, hang_up=True)
    seen = re.findall(rb"HTTP/1\.1 (\d+)", answer)
    final = [status for status in seen if status != b"100"]  # an interim one may come before each
    assert final == statuses


def test_a_client_that_knows_no_interim_response_gets_none(server: Gateway) -> None:
    answer = talk(server, [whole().replace(b"HTTP/1.1", b"HTTP/1.0")], hang_up=True)
    seen = re.findall(rb"HTTP/1\.1 (\d+)", answer)
    assert seen in ([], [b"200"])  # its answer, where it came before the end was seen


def test_a_client_that_hangs_up_behind_a_whole_request_frees_its_place(server: Gateway) -> None:
    try:
        for _ in range(3):
            assert settles(lambda: figure(server.url, "slmctl_requests_running") == 0)
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
                sock.sendall(whole("wait"))
                assert settles(lambda: figure(server.url, "slmctl_requests_running") == 1)
            assert settles(lambda: figure(server.url, "slmctl_requests_running") == 0)
    finally:
        GO_ON.set()


def test_requests_in_a_row_are_answered_in_order_and_cost_no_memory(server: Gateway) -> None:
    count = 20_000
    before = memory(server.child.pid)
    one = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: %d\r\n\r\n"
    raw = b"".join(one % k for k in range(count))
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
        sock.sendall(raw[:60_000])
        answer = b""
        while answer.count(b"HTTP/1.1 200") < 500:
            part = sock.recv(65536)
            assert part
            answer += part
    ids = [
        int(line.split()[1]) for line in answer.split(b"\r\n") if line.startswith(b"x-request-id:")
    ]
    assert ids[:500] == list(range(500))
    talk(server, [raw], read=1000, hang_up=True)
    assert memory(server.child.pid) - before < 30_000_000


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that gives half a request little time, which the test below would wait for."""
    with gateway(tmp_path_factory.mktemp("hasty"), "--set=serve.receive_timeout_s=0.5") as running:
        yield running


@settings(max_examples=1000 if FULL else 8, deadline=None)
@given(random=st.randoms(use_true_random=True))
def test_whatever_is_sent_others_are_served(hasty: Gateway, random: Random) -> None:
    """By several clients at once, some of which do not wait for their answer."""
    streams = [(framing.stream(random), random.randrange(3) > 0) for _ in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        # a connection that may go on stays open for 30 s, which no client here waits for
        answers = [
            pool.submit(talk, hasty, sent, read=5_000_000, hang_up=ends, quiet_s=1)
            for sent, ends in streams
        ]
        assert hasty.healthy_s() < SILENT_S
    for answer in (each.result() for each in answers):
        assert not answer or answer.startswith(b"HTTP/1.1 "), answer[:100]
        assert b"HTTP/1.1 500" not in answer


def test_more_connections_than_files_end_the_oldest_idle_ones(tmp_path: Path) -> None:
    # 1,500 connections at `ulimit -n 1024` once wrote 27 MB of log, and /healthz was silent for 6 s
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(gateway(tmp_path))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for k in range(600):
            sock = stack.enter_context(
                socket.create_connection(("127.0.0.1", server.port), timeout=60)
            )
            if k % 2:
                sock.sendall(b"GET /healthz HTTP/1.1\r\n")
        assert all(server.healthy_s() < SILENT_S for _ in range(5))
        server.child.terminate()
        log = server.child.stderr.read() if server.child.stderr else ""
        assert log.count('"connections_full"') == 1
        assert len(log) < 10_000


def test_answers_that_are_not_read_end_their_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the answers to a row of requests for the page fill every buffer, and the rest would wait for
    # ever
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    patch = "from slmctl.server import connection\nconnection.UNREAD_S = 2.5\n"
    (tmp_path / "sitecustomize.py").write_text(patch)
    with gateway(tmp_path) as server, contextlib.ExitStack() as stack:
        server.healthy_s()
        for _ in range(20):
            sock = stack.enter_context(
                socket.create_connection(("127.0.0.1", server.port), timeout=10)
            )
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500)
        server.healthy_s()
        assert _open_connections(server) >= 15
        assert settles(lambda: _open_connections(server) <= 4), (
            "clients that do not read hold their connections"
        )


def _open_connections(server: Gateway) -> int:
    links = 0
    for path in Path(f"/proc/{server.child.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed in the meantime
            links += path.readlink().name.startswith("socket:")
    return links - 1  # the one that listens
