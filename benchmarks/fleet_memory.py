"""A fleet within a budget of memory, beside the same load on a server that has every model loaded.

Clients are closed loops that wait a moment between two questions; which model they ask follows a power law, as one
busy model and several rare ones do. A 503 is asked again after its Retry-After, as OpenAI's client does, within the
answer's time; what is still refused after RETRIES is an error.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks import result
from slmctl.inference.engine import Engine
from slmctl.model_files.gguf_choice import gguf_file
from slmctl.pipeline.resolve import open_model
from slmctl.task.contract import Task

RETRIES = 2
ANSWER_TOKENS = 16
TEXTS = (
    "where is my parcel, the tracking has not moved since monday",
    "the card was charged twice for one invoice",
    "i cannot sign in since you changed the password rules",
    "please send two kettles and a green lamp to the office",
)


@dataclass
class Load:
    """What came of a load.

    Attributes:
        seconds: Of every answer, retries included, by model.
        refused: Answers of 503 that were asked again.
        errors: Requests without an answer, by status.
        peak_bytes: Most that the engines held together, as /metrics tells it.
        loads: Times that a model was loaded meanwhile.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    refused: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    peak_bytes: float = 0.0
    loads: float = 0.0

    @property
    def p95_s(self) -> float:
        return statistics.quantiles([each for part in self.seconds.values() for each in part], n=20)[-1]


def measure(
    releases: Sequence[Path], *, budget: str, minutes: float, clients: int, skew: float, think_s: float, context: int,
    sequences: int, repetitions: int,
) -> None:  # fmt: skip
    """Write results/fleet-memory.json."""
    models = {f"m{place}-{release.parent.name}": release.resolve() for place, release in enumerate(releases)}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        runs = []
        for turn in range(repetitions):
            within, cold = _within(folder, models, budget, minutes, clients, skew, think_s, context, sequences, turn)
            with server(folder, models, context=context, sequences=sequences) as url:
                whole = asyncio.run(load(url, list(models), minutes, clients, skew, think_s, turn))
            runs.append((within, whole, cold))
    rows = [
        result.compared(
            "p95 of an answer under the budget (s)", [within.p95_s for within, _, _ in runs],
            [whole.p95_s for _, whole, _ in runs], peer="every model loaded", goal="<= 1.3",
        ),
        result.compared(
            "requests without an answer, and 1", [sum(within.errors.values()) + 1 for within, _, _ in runs],
            [1] * len(runs), peer="none, and 1", goal="<= 1",
        ),
        *(
            result.compared(
                f"first answer of {name}, cold (s)", [cold[name][0] for _, _, cold in runs],
                [cold[name][1] for _, _, cold in runs], peer="its bare load", goal="<= 2",
            )
            for name in models
        ),
    ]  # fmt: skip
    command = (
        f"python -m benchmarks.fleet memory RELEASE... --budget {budget} --minutes {minutes:g} --clients {clients} "
        f"--skew {skew:g} --think {think_s:g} --context {context} --sequences {sequences} --repetitions {repetitions}"
    )
    about = [{"within": told(within), "all_loaded": told(whole)} for within, whole, _ in runs]
    sizes = {name: gguf_file(open_model(release, ("published", "gguf"))).size for name, release in models.items()}
    path = result.write("fleet-memory", command, rows, ["llama-cpp-python"], runs=about, file_bytes=sizes)
    sys.stdout.write(f"{path}\n{result.table('fleet-memory')}\n")


def _within(
    folder: Path, models: dict[str, Path], budget: str, minutes: float, clients: int, skew: float, think_s: float,
    context: int, sequences: int, turn: int,
) -> tuple[Load, dict[str, tuple[float, float]]]:  # fmt: skip
    """The load under the budget, and of each model the seconds of its first answer and of its bare load."""
    cold = {}
    with server(folder, models, context=context, sequences=sequences, budget=budget) as url:
        for name, release in models.items():
            bare = bare_load_s(release, context, sequences)
            begun = time.monotonic()
            with httpx.Client(base_url=url, timeout=300) as client:
                client.post("/v1/chat/completions", json=body(name, TEXTS[0])).raise_for_status()
            cold[name] = time.monotonic() - begun, bare
        return asyncio.run(load(url, list(models), minutes, clients, skew, think_s, turn)), cold


def told(load: Load) -> dict[str, Any]:
    """A load as JSON."""
    by_model = {
        name: {
            "answers": len(seconds),
            "median_s": round(statistics.median(seconds), 3),
            "most_s": round(max(seconds), 3),
        }
        for name, seconds in sorted(load.seconds.items())
    }
    return {
        "models": by_model, "refused_and_asked_again": load.refused, "errors": dict(load.errors),
        "peak_engine_bytes": load.peak_bytes, "loads": load.loads,
    }  # fmt: skip


def bare_load_s(release: Path, context: int, sequences: int) -> float:
    """Seconds until an engine of the release is there, and nothing else."""
    model = open_model(release, ("published", "gguf"))
    is_classifier = bool(Task.read(model.path).labels)
    begun = time.monotonic()
    with Engine(model.file(gguf_file(model).path), sequences=sequences, context=context, classifier=is_classifier):
        return time.monotonic() - begun


@contextmanager
def server(folder: Path, models: dict[str, Path], *, context: int, sequences: int, budget: str = "") -> Iterator[str]:
    """A server of the models: under a budget each is loaded when it is asked for, without one all are at the start."""
    fleet = {name: {"release": str(release), "pin": not budget} for name, release in models.items()}
    serve: dict[str, Any] = {"fleet": fleet, "context_length": context, "sequences": sequences, "port": 0}
    settings = {
        "project": "fleet", "version": "1.0", "base": "./base", "task": {"kind": "generate"},
        "prepare": {"sources": [{"path": "rows.csv"}]},
        "serve": serve | ({"memory": budget} if budget else {}),
    }  # fmt: skip
    (folder / "slmctl.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    with (folder / "log").open("a", encoding="utf-8") as log:
        command = [sys.executable, "-m", "slmctl", "-C", str(folder), "serve"]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert child.stdout is not None
        try:
            url = child.stdout.readline().strip()
            assert url, (folder / "log").read_text(encoding="utf-8")[-2000:]
            yield url
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait(60)


def body(model: str, text: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": ANSWER_TOKENS}


async def load(
    url: str, models: Sequence[str], minutes: float, clients: int, skew: float, think_s: float, seed: int
) -> Load:
    """Ask for so many minutes."""
    outcome, weights = Load(), [1 / (rank + 1) ** skew for rank in range(len(models))]
    ends_at = time.monotonic() + 60 * minutes

    async def client(number: int, http: httpx.AsyncClient) -> None:
        choose = random.Random(1000 * seed + number)
        while time.monotonic() < ends_at:
            model = choose.choices(models, weights)[0]
            await _ask(http, model, choose.choice(TEXTS), outcome)
            await asyncio.sleep(choose.expovariate(1 / think_s) if think_s else 0)

    async def total(http: httpx.AsyncClient, family: str) -> float:
        page = (await http.get("/metrics")).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in page if line.startswith(family + "{"))

    async def watch(http: httpx.AsyncClient) -> None:
        while True:
            outcome.peak_bytes = max(outcome.peak_bytes, await total(http, "slmctl_model_bytes"))
            await asyncio.sleep(2)

    limits = httpx.Limits(max_connections=clients + 2)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as http:
        outcome.loads -= await total(http, "slmctl_model_loads_total")
        watching = asyncio.create_task(watch(http))
        await asyncio.gather(*(client(number, http) for number in range(clients)))
        watching.cancel()
        outcome.loads += await total(http, "slmctl_model_loads_total")
    return outcome


async def _ask(http: httpx.AsyncClient, model: str, text: str, outcome: Load) -> None:
    begun = time.monotonic()
    for again in range(RETRIES + 1):
        answer = await http.post("/v1/chat/completions", json=body(model, text))
        if answer.status_code != 503 or again == RETRIES:
            break
        outcome.refused += 1
        await asyncio.sleep(float(answer.headers.get("retry-after", "1")))
    if answer.status_code == 200:
        outcome.seconds.setdefault(model, []).append(time.monotonic() - begun)
    else:
        outcome.errors[f"{answer.status_code} {json.loads(answer.content)['error']['code']}"] += 1
