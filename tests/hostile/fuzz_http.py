"""Fuzz target `http`: hostile HTTP against a served release, from several clients at once."""

from __future__ import annotations

import contextlib
import json
import socket
import tempfile
import threading
import time
from pathlib import Path
from random import Random

import httpx
from hostile import framing
from hostile.fuzz import Outcome
from support import TESTS, serving

CLIENTS = 4
RELEASE = TESTS / "fixtures" / "0.1.0" / "published"


class Watch:
    """Asks /healthz the whole time; the longest answer and the growth of the server stand in the outcome."""

    def __init__(self, url: str, pid: int, seconds: float, outcome: Outcome) -> None:
        self.url, self.pid, self.outcome = url, pid, outcome
        self.ends, self.settled = time.monotonic() + seconds, time.monotonic() + seconds / 10
        self.first = 0

    def run(self) -> None:
        with httpx.Client(timeout=60) as client:
            while time.monotonic() < self.ends:
                begun = time.monotonic()
                try:
                    assert client.get(f"{self.url}/healthz").status_code == 200
                except httpx.HTTPError as error:
                    self.outcome.notes.append(f"/healthz: {type(error).__name__}")
                    return
                self.outcome.freeze_s = max(self.outcome.freeze_s, time.monotonic() - begun)
                size = serving.memory(self.pid)
                if not self.first and time.monotonic() > self.settled:
                    self.first = size
                self.outcome.growth = max(self.outcome.growth, size - self.first if self.first else 0)
                time.sleep(0.02)


def run(seconds: float, seed: int) -> Outcome:
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
        child, url = serving.begin(Path(folder), str(RELEASE), "--set=serve.receive_timeout_s=2", log=log)
        watch = Watch(url, child.pid, seconds, outcome)
        threads = [threading.Thread(target=watch.run)]
        threads += [threading.Thread(target=_client, args=(watch, Random(f"{seed}/{k}"))) for k in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        outcome.deaths = int(serving.figure(url, "slmctl_engine_restarts_total"))
        child.terminate()
        child.communicate(timeout=60)
        outcome.deaths += child.returncode != 0
        log.seek(0)
        text = log.read()
    outcome.tracebacks = text.count("Traceback")
    refused = [json.loads(line) for line in text.splitlines() if '"status": 500' in line]
    outcome.notes += [f"500 for {line['method']} {line['path']}" for line in refused[:5]]
    return outcome


def _client(watch: Watch, random: Random) -> None:
    port = int(watch.url.rpartition(":")[2])
    while time.monotonic() < watch.ends:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port), timeout=random.choice([0.05, 3])) as sock,
        ):
            for part in framing.stream(random):
                sock.sendall(part)
            if random.randrange(3):
                sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
        watch.outcome.cases += 1
