"""Collecting under load: 2,000 requests, a server that is killed and a disk that is full in between."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from support import endpoint, tiny
from support.endpoint import streams
from support.serving import chat, figure, settles

from slmctl.production.records import CollectedRow, collected_files
from slmctl.task.contract import Task

CLASSIFY = Task("classify", tiny.TEMPLATE, "<|im_end|>", labels=("billing", "delivery"))
WIDTH = 8  # clients at the same time


class Life:
    """One life of a server that collects everything, from its start to its end or its kill."""

    def __init__(self, folder: Path, url: str, *, file_bytes: int = 0) -> None:
        def limit() -> None:  # a disk that takes no more, as every write finds: SIGXFSZ is ignored by Python
            if file_bytes:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

        named = ("--engine-url", url, "--engine-model", "large", "--set=serve.collect={kept: 100%}")
        named += ("--set=serve.sequences=8", "--set=serve.max_waiting_requests=500")
        self.child = subprocess.Popen(
            tiny.command(folder, "serve", str(folder), "--port", "0", *named), text=True, start_new_session=True,
            env=tiny.environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, preexec_fn=limit,
        )  # fmt: skip
        assert self.child.stdout is not None
        self.url = self.child.stdout.readline().strip()

    def ask(self, texts: Sequence[str], stop: threading.Event | None = None) -> list[str]:
        """The texts that were answered, of many clients at the same time."""

        def one(text: str) -> str:
            if stop is not None and stop.is_set():
                return ""
            try:
                body = {"messages": chat(text), "stream": len(text) % 2 == 0}
                return text if client.post(f"{self.url}/v1/chat/completions", json=body).status_code == 200 else ""
            except httpx.HTTPError:
                return ""

        with httpx.Client(timeout=60) as client, ThreadPoolExecutor(WIDTH) as pool:
            return [text for text in pool.map(one, texts) if text]

    def counts(self) -> tuple[float, float]:
        """Lines that the server says it has written, and has lost."""
        return (
            figure(self.url, 'slmctl_collected_total{chosen="uniform"}'), figure(self.url, "slmctl_collect_lost_total")
        )  # fmt: skip

    def settled(self, answers: int) -> tuple[int, int]:
        """The counts when every answer has become a line or a loss."""
        assert settles(lambda: sum(self.counts()) == answers)
        written, lost = self.counts()
        return int(written), int(lost)


def lines(folder: Path) -> list[CollectedRow]:
    return [row for path in collected_files([folder / "collected"]) for row in CollectedRow.read(path)]


@pytest.mark.slow
def test_every_line_is_whole_and_the_counts_are_the_servers_own(tmp_path: Path) -> None:
    CLASSIFY.write(tmp_path)
    texts = [f"request {k} about a kettle" for k in range(2000)]
    with endpoint.serving(lambda body, before: streams("delivery")) as fake:
        # a whole life
        first = Life(tmp_path, fake.url)
        assert len(first.ask(texts[:600])) == 600
        assert first.settled(600) == (600, 0)
        assert len(lines(tmp_path)) == 600
        # killed at work: what it had counted is there, and nothing that was not answered or asked
        stop = threading.Event()
        threading.Timer(0.5, lambda: (stop.set(), first.child.send_signal(signal.SIGKILL))).start()
        first.ask(texts[600:1200], stop)
        first.child.communicate()
        survived = lines(tmp_path)
        assert 600 <= len(survived) <= 1200
        assert len({row.id for row in survived}) == len(survived)
        # a disk that is full soon: every answer is given, and each is a line or a loss
        size = sum(path.stat().st_size for path in collected_files([tmp_path / "collected"]))
        second = Life(tmp_path, fake.url, file_bytes=size + 50_000)
        assert len(second.ask(texts[1200:1700])) == 500
        written, lost = second.settled(500)
        assert lost > 0
        assert written > 0
        assert len(lines(tmp_path)) == len(survived) + written
        end_quietly(second)
        # and there is room again
        third = Life(tmp_path, fake.url)
        assert len(third.ask(texts[1700:])) == 300
        assert third.settled(300) == (300, 0)
        end_quietly(third)
    found = lines(tmp_path)
    assert len(found) == len(survived) + written + 300
    assert {row.text for row in found} <= set(texts)
    whole = [line for path in collected_files([tmp_path / "collected"]) for line in path.read_bytes().splitlines()]
    assert len(whole) == len(found)  # every line is a whole one: what the kill tore was cut off
    assert all(isinstance(json.loads(line), dict) for line in whole)


def end_quietly(life: Life) -> None:
    life.child.send_signal(signal.SIGTERM)
    life.child.communicate(timeout=60)
    assert life.child.returncode == 0
