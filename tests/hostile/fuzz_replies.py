"""Fuzz target `replies`: a gateway whose engine answers anything, asked by several clients at once."""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from random import Random

import httpx
from hostile import replies
from hostile.fuzz import Outcome
from hostile.fuzz_http import CLIENTS, Watch
from support import endpoint, serving, tiny
from support.endpoint import Turn

from slmctl.task.contract import Task

TASKS = [
    Task("classify", tiny.TEMPLATE, "<|im_end|>", labels=("billing", "delivery")),
    Task("extract", tiny.TEMPLATE, "<|im_end|>", schema=tiny.SCHEMA),
    Task("generate", tiny.TEMPLATE, "<|im_end|>"),
]


def run(seconds: float, seed: int) -> Outcome:
    """A third of the time for each kind of task."""
    outcome = Outcome()
    for task in TASKS:
        _run(task, seconds / len(TASKS), f"{seed}/{task.kind}", outcome)
    return outcome


def _run(task: Task, seconds: float, seed: str, outcome: Outcome) -> None:
    random, lock = Random(seed), threading.Lock()

    def manners(body: dict[str, object], before: int) -> Turn:
        with lock:
            return replies.any_reply(random, stream=True)

    with (
        tempfile.TemporaryDirectory() as folder,
        (Path(folder) / "log").open("w+") as log,
        endpoint.serving(manners) as fake,
    ):
        task.write(Path(folder))
        args = (folder, "--engine-url", fake.url, "--engine-model", "large", "--set=serve.answer_timeout_s=5")
        child, url = serving.begin(Path(folder), *args, log=log)
        watch = Watch(url, child.pid, seconds, outcome)
        threads = [threading.Thread(target=watch.run)]
        threads += [threading.Thread(target=_client, args=(watch, Random(f"{seed}/{k}"))) for k in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        child.terminate()
        child.communicate(timeout=60)
        outcome.deaths += child.returncode != 0
        log.seek(0)
        outcome.tracebacks += log.read().count("Traceback")


def _client(watch: Watch, random: Random) -> None:
    with httpx.Client(timeout=60) as client:
        while time.monotonic() < watch.ends:
            body = {
                "messages": serving.chat("hello"),
                "stream": random.randrange(2) == 1,
                "logprobs": random.randrange(2) == 1,
            }
            said = client.post(f"{watch.url}/v1/chat/completions", json=body)
            if said.status_code not in (200, 400, 502, 504):
                watch.outcome.notes.append(f"status {said.status_code}")
            if client.get(f"{watch.url}/metrics").status_code != 200:
                watch.outcome.notes.append("/metrics is dead")
            watch.outcome.cases += 1
