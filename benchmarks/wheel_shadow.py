"""The cost of a shadow release to the clients: the same requests to a server with one and to a server without.

    python -m benchmarks.wheel shadow FOLDER RECORDS [--shadow FOLDER] [--pairs N] [--requests N] [--load SHARE]

FOLDER is a gguf artifact or a release of kind `classify`, RECORDS the `test.jsonl` of its data set; the shadow is the
same model by default. Both servers run all the time and collect; blocks of requests go to one and then to the other, in
an order that alternates, each after the shadow has answered what was left to it. Requests come at random times, at a
share of what the server can do.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx

from benchmarks import result
from benchmarks.serve import Asked, Said, ask, asking, classify, closed, require_good
from slmctl.task.contract import Task
from slmctl.task.records import read_records

GOAL = "<= 1.02"
SETTINGS = ("--set=serve.context_length=1024", "--set=serve.sequences=8")


def run(arguments: Sequence[str]) -> Path:
    """Measure, and write `results/wheel-shadow.json`."""
    parser = argparse.ArgumentParser(prog="benchmarks.wheel shadow")
    parser.add_argument("folder", type=Path)
    parser.add_argument("records", type=Path)
    parser.add_argument("--shadow", type=Path, help="the model itself by default")
    parser.add_argument("--pairs", type=int, default=20, help="blocks of requests to each server")
    parser.add_argument("--requests", type=int, default=60, help="of a block")
    parser.add_argument("--load", type=float, default=0.5, help="share of the requests a second that it can answer")
    options = parser.parse_args(arguments)
    task = Task.read(options.folder)
    texts = [record.input for record in read_records(options.records)]
    with tempfile.TemporaryDirectory() as scratch:
        shadow = str((options.shadow or options.folder).resolve())
        with server(options.folder, Path(scratch)) as plain, server(options.folder, Path(scratch), shadow) as shadowed:
            times, rate, fates = asyncio.run(measured(options, plain, shadowed, task, texts))
    rows = [
        result.compared(
            f"{name} of an answer, ms", *(found[name] for found in times), peer="without a shadow", goal=goal, digits=1
        )
        for name, goal in (("p95", GOAL), ("median", ""))
    ]
    pooled = {name: round(p95(found["all"]), 1) for name, found in zip(("with", "without"), times, strict=True)}
    return result.write(
        "wheel-shadow", "python -m benchmarks.wheel shadow FOLDER RECORDS", rows,
        ("llama-cpp-python", "starlette", "uvicorn"), pairs=options.pairs, requests=options.requests,
        load=options.load, requests_per_s=round(rate, 2), shadow=fates, pooled_p95_ms=pooled,
    )  # fmt: skip


Times = dict[str, list[float]]


async def measured(
    options: argparse.Namespace, plain: str, shadowed: str, task: Task, texts: Sequence[str]
) -> tuple[tuple[Times, Times], float, dict[str, float]]:
    """Milliseconds with and without the shadow, a value a block; the rate of requests; what became of the shadow's."""
    found: dict[str, Times] = {url: {"p95": [], "median": [], "all": []} for url in (shadowed, plain)}
    asks = itertools.cycle([Asked(classify(task, text)) for text in texts])
    async with asking(plain) as one, asking(shadowed) as other:
        clients = {plain: one, shadowed: other}
        for client in clients.values():
            await closed(client, list(itertools.islice(asks, 16)), 8)  # warm
        begun = time.perf_counter()
        await closed(one, list(itertools.islice(asks, 40)), 8)
        rate = options.load * 40 / (time.perf_counter() - begun)
        for pair in range(options.pairs):
            block = list(itertools.islice(asks, options.requests))
            for url in (plain, shadowed) if pair % 2 else (shadowed, plain):
                await settled(other)
                said = await at_random(clients[url], block, rate, seed=pair)
                require_good(url, said)
                spent = [1000 * answer.seconds for answer in said]
                found[url]["p95"].append(p95(spent))
                found[url]["median"].append(statistics.median(spent))
                found[url]["all"] += spent
            sys.stderr.write(
                f"pair {pair}: p95 with {found[shadowed]['p95'][-1]:.1f}, without {found[plain]['p95'][-1]:.1f} ms\n"
            )
        await settled(other)
        return (found[shadowed], found[plain]), rate, await fates_of(other)


async def at_random(client: httpx.AsyncClient, asks: Sequence[Asked], rate: float, *, seed: int) -> list[Said]:
    """Requests that come at random times (a Poisson process), the same for both servers."""
    chance, tasks = random.Random(seed), []
    for asked in asks:
        tasks.append(asyncio.create_task(ask(client, asked)))
        await asyncio.sleep(chance.expovariate(rate))
    return list(await asyncio.gather(*tasks))


async def settled(client: httpx.AsyncClient) -> None:
    """Wait until the shadow has nothing left to do."""
    before = await fates_of(client)
    while True:
        await asyncio.sleep(1)
        now = await fates_of(client)
        if now == before:
            return
        before = now


async def fates_of(client: httpx.AsyncClient) -> dict[str, float]:
    """What became of the questions for the shadow."""
    lines = (await client.get("/metrics")).text.splitlines()
    counted = [line.partition("{fate=")[2] for line in lines if line.startswith("slmctl_shadow_total{")]
    return {line.split('"')[1]: float(line.rpartition(" ")[2]) for line in counted}


def p95(values: Sequence[float]) -> float:
    return sorted(values)[int(len(values) * 0.95)]


@contextlib.contextmanager
def server(model: Path, scratch: Path, shadow: str = "") -> Iterator[str]:
    """The address of a server, for the length of a block."""
    collect = f"--set=serve.collect={{to: {scratch / ('shadowed' if shadow else 'plain')}}}"
    command = [
        "-m",
        "slmctl",
        "-q",
        "-C",
        str(scratch),
        "serve",
        str(model.resolve()),
        "--port",
        "0",
        collect,
        *SETTINGS,
    ]
    child = subprocess.Popen(
        [sys.executable, *command, *(["--shadow", shadow] if shadow else [])], stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    try:
        url = child.stdout.readline().strip()
        if not url.startswith("http"):
            sys.exit(f"the server ended with {child.wait()}")
        yield url
    finally:
        child.terminate()
        child.wait(30)
