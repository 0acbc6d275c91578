"""Collecting under load, and by a server that is killed at work."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from support import production, tiny
from support.endpoint import streams
from support.servers import settles
from support.serving import Gateway, chat, figure, gateway

from slmctl.production.records import collected_files
from slmctl.task.contract import Task

CLASSIFY = Task("classify", tiny.TEMPLATE, "<|im_end|>", labels=("billing", "delivery"))
ROOM = ("--set=serve.collect={kept: 100%}", "--set=serve.max_waiting_requests=500")


def ask(server: Gateway, texts: Sequence[str], stop: threading.Event | None = None) -> int:
    """The number of texts that were answered, of eight clients at the same time."""

    def one(text: str) -> bool:
        if stop is not None and stop.is_set():
            return False
        try:
            body = {"messages": chat(text), "stream": len(text) % 2 == 0}
            return client.post(f"{server.url}/v1/chat/completions", json=body).status_code == 200
        except httpx.HTTPError:
            return False

    with httpx.Client(timeout=60) as client, ThreadPoolExecutor(8) as pool:
        return sum(pool.map(one, texts))


def settled(server: Gateway, count: int) -> bool:
    """Whether every answer becomes a line."""
    return settles(lambda: figure(server.url, 'slmctl_collected_total{chosen="uniform"}') == count)


@pytest.mark.slow
def test_every_line_is_whole_and_the_counts_are_the_servers_own(tmp_path: Path) -> None:
    texts, stop = [f"request {k} about a kettle" for k in range(1500)], threading.Event()
    folder = tmp_path / "collected"
    with gateway(
        tmp_path, *ROOM, task=CLASSIFY, manners=lambda body, before: streams("delivery")
    ) as server:
        assert ask(server, texts[:600]) == 600
        assert settled(server, 600) and len(production.rows(folder)) == 600
        # killed at work: what it had counted is there, and nothing that was not answered or asked
        threading.Timer(0.5, lambda: (stop.set(), server.child.send_signal(signal.SIGKILL))).start()
        ask(server, texts[600:1200], stop)
        server.child.communicate()
    survived = len(production.rows(folder))
    assert 600 <= survived <= 1200
    with gateway(
        tmp_path, *ROOM, task=CLASSIFY, manners=lambda body, before: streams("delivery")
    ) as server:
        assert ask(server, texts[1200:]) == 300
        assert settled(server, 300)
    found = production.rows(folder)
    assert len(found) == len({row.id for row in found}) == survived + 300
    assert {row.text for row in found} <= set(texts)
    whole = [line for path in collected_files([folder]) for line in path.read_bytes().splitlines()]
    assert len(whole) == len(found)  # every line is a whole one: what the kill tore was cut off
    assert all(isinstance(json.loads(line), dict) for line in whole)
