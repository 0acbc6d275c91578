"""The server beside `llama_cpp.server` and xllamacpp's on the same GGUF file, on the loopback, and
under faults.

    python -m benchmarks.serve FOLDER RECORDS [--requests N] [--seconds S] [--repeat N] [--type
    TYPE] [--one-client]

FOLDER is a gguf artifact or a release of a task of kind `classify`, RECORDS the `test.jsonl` of its
data set. Each server is a process of its own, and one runs at a time. A classify request is the
task's system prompt and a record's text, with at most 8 answer tokens; free text is a bare file's
answer of up to 64 tokens at temperature 0, and an extract request one under a JSON Schema with the
labels, which `llama_cpp.server` is not asked for.

With --one-client the server is measured beside its own engine in this process, asked for one label
after another.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import itertools
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks import program, result
from slmctl.hardware import usable_cores
from slmctl.inference.engine import Engine
from slmctl.model_files.gguf_choice import is_lora, is_type
from slmctl.task.contract import Task
from slmctl.task.engine_requests import engine_request
from slmctl.task.records import read_records

SEQUENCES, CONTEXT = 8, 1024
ANSWER, FREE, JSON = 8, 64, 128  # tokens
TEXTS = 100  # stories that must be the same at concurrency 1 and 8
XLLAMACPP = """
import sys, threading, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.hostnames, p.port = sys.argv[1], ["127.0.0.1"], int(sys.argv[2])
p.n_parallel, p.n_ctx = int(sys.argv[3]), int(sys.argv[3]) * int(sys.argv[4])
p.cpuparams.n_threads = int(sys.argv[5])
server = xllamacpp.Server(p)
threading.Event().wait()
"""
STATUS_GONE = 499  # our own word for a request that the client broke off
STATUS_CUT = 599  # and for a stream that ended with an error, or without its end


@dataclass(frozen=True)
class Asked:
    """What one client sends, and whether it hangs up after the first line."""

    body: dict[str, Any]
    hangs_up: bool = False


@dataclass(frozen=True)
class Said:
    """What came of it: status, seconds, tokens, text."""

    status: int
    seconds: float
    tokens: int = 0
    text: str = ""


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("records", type=Path)
    parser.add_argument("--type", default="Q8_0")
    parser.add_argument(
        "--requests", type=int, default=200, help="a measurement of classify requests"
    )
    parser.add_argument("--seconds", type=float, default=20, help="of each step of the open loop")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--growth", type=int, default=2000, help="requests over which memory is watched"
    )
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--note", default="")
    parser.add_argument("--one-client", action="store_true")
    options = parser.parse_args()
    (file,) = [
        p
        for p in options.folder.glob("*.gguf")
        if is_type(p.name, options.type) and not is_lora(p.name)
    ]
    task = Task.read(options.folder)
    texts = [record.input for record in read_records(options.records)]
    if options.one_client:
        ask = functools.partial(
            one_client, options=options, file=file, task=task, texts=texts[: options.requests]
        )
        write_one_client(program.alternating(("slmctl", "engine"), options.repeat, ask))
        return
    sides = ("slmctl", "llama_cpp.server", "xllamacpp")
    runs = program.alternating(
        sides, options.repeat, lambda side: asyncio.run(beside(side, options, file, task, texts))
    )
    own = asyncio.run(alone(options, file, task, texts))
    sys.stderr.write(json.dumps(own) + "\n")
    name = f"serve-{options.type.lower()}"
    result.write(
        name,
        f"python -m benchmarks.serve FOLDER RECORDS --type {options.type}",
        rows_of(runs, own),
        ("llama-cpp-python", "xllamacpp", "starlette", "uvicorn", "httptools"),
        file=file.name,
        note=options.note,
        requests=options.requests,
        open_loop=own["open_loop"],
        concurrency=own["concurrency"],
        mixed=own["mixed"],
    )


def rows_of(runs: dict[str, list[dict[str, Any]]], own: dict[str, Any]) -> list[result.Row]:
    """The figures beside the peers, and those that have a bound of their own."""

    def rate(side: str, name: str) -> list[float]:
        return [run[name] for run in runs[side]]

    table = []
    for name, words, goals in (
        (
            "classify_8",
            "classify, concurrency 8: requests/s",
            {"llama_cpp.server": ">= 6", "xllamacpp": ">= 2.7"},
        ),
        (
            "classify_1",
            "classify, concurrency 1: requests/s",
            {"llama_cpp.server": "", "xllamacpp": ">= 1.5"},
        ),
        (
            "free_8",
            "free text, concurrency 8: tokens/s",
            {"llama_cpp.server": "", "xllamacpp": ">= 1.2"},
        ),
        ("extract_8", "JSON under a schema, concurrency 8: requests/s", {"xllamacpp": ">= 1.5"}),
    ):
        for peer, goal in goals.items():
            table.append(
                result.compared(
                    words, rate("slmctl", name), rate(peer, name), peer=peer, goal=goal, digits=2
                )
            )

    return table + [
        result.single(metric, own[name], "bound", most, f"<= {most:g}")
        for metric, name, most in (
            ("gateway's CPU time, share of the engine's", "cpu_share", 0.03),
            ("memory growth, MB", "growth_mb", 20),
            ("errors among accepted requests", "errors", 0),
            ("answers at temperature 0 that differ at concurrency 1 and 8", "differ", 0),
        )
    ]


def one_client(
    side: str, options: argparse.Namespace, file: Path, task: Task, texts: Sequence[str]
) -> dict[str, float]:
    """Seconds from start to the first label, and milliseconds of a
    label, of requests one after the other.
    """
    begun, times = time.perf_counter(), list[float]()
    with contextlib.ExitStack() as stack:
        if side == "engine":
            engine = stack.enter_context(
                Engine(file, sequences=SEQUENCES, context=CONTEXT, mostly_reads=True)
            )
            prompts = [task.prompt(task.messages(text)) for text in texts]
            shared, _, _ = task.prompt(task.messages("QUESTION")).partition("QUESTION")
            requests = [
                engine_request(task, text, prefix=shared, max_tokens=ANSWER) for text in prompts
            ]
            calls = [functools.partial(engine.ask, request) for request in requests]
        else:
            url, _ = stack.enter_context(server(side, options.folder, options.type))
            client = stack.enter_context(httpx.Client(base_url=url, timeout=60, trust_env=False))
            bodies = [classify(task, text) for text in texts]
            calls = [
                functools.partial(client.post, "/v1/chat/completions", json=body) for body in bodies
            ]
        for call in calls:
            asked = time.perf_counter()
            call()
            times.append(time.perf_counter() - asked)
            if len(times) == 1:
                first = time.perf_counter() - begun
    return {"first_s": first, "median_ms": 1000 * statistics.median(times[8:])}


def write_one_client(runs: dict[str, list[dict[str, Any]]]) -> None:
    (label, bare), (first, loaded) = (
        [[run[name] for run in runs[side]] for side in ("slmctl", "engine")]
        for name in ("median_ms", "first_s")
    )
    later = statistics.median(first) - statistics.median(loaded)
    rows = [
        result.compared(
            "one client, ms for a label",
            label,
            bare,
            peer="its engine alone",
            goal="<= 1.15",
            digits=1,
        ),
        result.single(
            "seconds to the first answer, after the engine's own", later, "goal", 1.5, "<= 1.5"
        ),
    ]
    result.write(
        "serve-one-client",
        "python -m benchmarks.serve FOLDER RECORDS --one-client",
        rows,
        ("llama-cpp-python", "starlette", "uvicorn", "httptools"),
    )


async def beside(
    side: str, options: argparse.Namespace, file: Path, task: Task, texts: Sequence[str]
) -> dict[str, float]:
    """What every server is measured by."""
    found = {}
    model = options.folder if side == "slmctl" else file
    with server(side, model, options.type) as (url, _):
        async with asking(url) as client:
            asks = [
                Asked(classify(task, text))
                for text in itertools.islice(itertools.cycle(texts), options.requests)
            ]
            await closed(client, asks[:8], 8)  # warm
            for width in (1, 8):
                part = asks if width > 1 else asks[: max(20, len(asks) // 4)]
                begun = time.perf_counter()
                said = await closed(client, part, width)
                require_good(side, said)
                found[f"classify_{width}"] = len(part) / (time.perf_counter() - begun)
    with server(side, file, options.type) as (url, _):
        async with asking(url) as client:
            asks = [Asked(free(text)) for text in texts[: max(16, options.requests // 8)]]
            await closed(client, asks[:8], 8)
            begun = time.perf_counter()
            said = await closed(client, asks, 8)
            require_good(side, said)
            found["free_8"] = sum(one.tokens for one in said) / (time.perf_counter() - begun)
            if side != "llama_cpp.server":
                asks = [
                    Asked(extract(task, text)) for text in texts[: max(16, options.requests // 4)]
                ]
                await closed(client, asks[:8], 8)
                begun = time.perf_counter()
                said = await closed(client, asks, 8)
                seconds = time.perf_counter() - begun
                require_good(side, said)
                found["extract_8"] = whole_answers(side, said) / seconds
    return found


async def alone(
    options: argparse.Namespace, file: Path, task: Task, texts: Sequence[str]
) -> dict[str, Any]:
    """What only our own server is measured by: width, load beyond its
    capacity, faults, memory, CPU time.
    """
    asks = [
        Asked(classify(task, text))
        for text in itertools.islice(itertools.cycle(texts), options.requests)
    ]
    errors, found = 0, dict[str, Any]()
    with server("slmctl", options.folder, options.type) as (url, pid):
        engine = engine_of(pid)
        async with asking(url) as client:
            await closed(client, asks[:8], 8)
            before = cpu_seconds(pid), cpu_seconds(engine)
            widths: dict[int, dict[str, float]] = {}
            for width in options.concurrency:
                begun = time.perf_counter()
                said = await closed(client, asks, width)
                errors += sum(one.status >= 500 for one in said)
                widths[width] = {
                    "requests_per_s": round(len(said) / (time.perf_counter() - begun), 2)
                } | waits(said)
            used = cpu_seconds(pid) - before[0], cpu_seconds(engine) - before[1]
            found |= {"concurrency": widths, "cpu_share": used[0] / used[1]}
            capacity = (
                widths[8]["requests_per_s"]
                if 8 in widths
                else max(w["requests_per_s"] for w in widths.values())
            )
            found["open_loop"] = {}
            for times in (0.5, 1, 2, 3):
                said = await open_loop(client, asks, capacity * times, options.seconds)
                errors += sum(one.status >= 500 for one in said)
                counts = Counter(str(one.status) for one in said)
                found["open_loop"][f"{times:g}x"] = {
                    "sent": len(said),
                    "status": dict(counts),
                } | waits(said)
            said = await closed(client, mixed(task, texts, options.requests), 8)
            errors += sum(one.status >= 500 for one in said)
            found["mixed"] = {"status": dict(Counter(str(one.status) for one in said))} | waits(
                said
            )
            grown = [asks[k % len(asks)] for k in range(options.growth)]
            await closed(client, grown[: options.growth // 10], 8)
            held = memory(pid) + memory(engine)
            errors += sum(one.status >= 500 for one in await closed(client, grown, 8))
            found["growth_mb"] = (memory(pid) + memory(engine) - held) / 1e6
    with server("slmctl", file, options.type) as (url, _):
        async with asking(url) as client:
            frees = [Asked(free(text)) for text in texts[:TEXTS]]
            one, many = await closed(client, frees, 1), await closed(client, frees, 8)
            found["differ"] = sum(a.text != b.text for a, b in zip(one, many, strict=True))
            # every second client hangs up while its text is being written; the others get theirs
            # whole
            streams = [
                Asked(asked.body | {"stream": True}, hangs_up=k % 2 == 0)
                for k, asked in enumerate(frees)
            ]
            errors += sum(one.status >= 500 for one in await closed(client, streams, 8))
    return found | {"errors": errors}


def mixed(task: Task, texts: Sequence[str], count: int) -> list[Asked]:
    """Short, medium and long prompts, streaming or not; one in 20 is invalid."""
    choose = random.Random(0)
    asks = []
    for k in range(count):
        text = " ".join(
            itertools.islice(
                itertools.cycle(texts), k % len(texts), k % len(texts) + (1, 6, 24)[k % 3]
            )
        )
        body = classify(task, text) | {"stream": k % 2 == 0}
        asks.append(Asked(body | ({"temperature": "hot"} if choose.random() < 0.05 else {})))
    return asks


def classify(task: Task, text: str) -> dict[str, Any]:
    return {"messages": task.messages(text), "max_tokens": ANSWER, "temperature": 0}


def free(text: str) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": f"Tell a story: {text}"}],
        "max_tokens": FREE,
        "temperature": 0,
    }


def extract(task: Task, text: str) -> dict[str, Any]:
    """A request for JSON whose strings are bounded, so that an answer
    ends whatever the model has learned.
    """
    properties = {
        "category": {"enum": sorted(task.labels)},
        "quote": {"type": "string", "maxLength": 40},
        "urgent": {"type": "boolean"},
    }
    schema = {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }
    return {
        "messages": [{"role": "user", "content": f"Answer as JSON. {text}"}],
        "max_tokens": JSON,
        "temperature": 0,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "record", "schema": schema},
        },
    }


async def closed(client: httpx.AsyncClient, asks: Sequence[Asked], width: int) -> list[Said]:
    """Every request, by so many clients who each wait for their answer."""
    found: list[Said | None] = [None] * len(asks)
    left = iter(enumerate(asks))

    async def one() -> None:
        for index, asked in left:
            found[index] = await ask(client, asked)

    await asyncio.gather(*(one() for _ in range(width)))
    return [said for said in found if said is not None]


async def open_loop(
    client: httpx.AsyncClient, asks: Sequence[Asked], rate: float, seconds: float
) -> list[Said]:
    """Requests that come at a rate, whether the earlier ones are answered or not."""
    count = max(1, int(rate * seconds))
    tasks = []
    for k in range(count):
        tasks.append(asyncio.create_task(ask(client, asks[k % len(asks)])))
        await asyncio.sleep(1 / rate)
    return list(await asyncio.gather(*tasks))


async def ask(client: httpx.AsyncClient, asked: Asked) -> Said:
    begun = time.perf_counter()
    if asked.hangs_up or asked.body.get("stream"):
        async with client.stream("POST", "/v1/chat/completions", json=asked.body) as response:
            lines = []
            async for line in response.aiter_lines():
                lines.append(line)
                if asked.hangs_up and response.status_code == 200:
                    return Said(STATUS_GONE, time.perf_counter() - begun)
            status = response.status_code
            return Said(
                STATUS_CUT if status == 200 and not is_whole(lines) else status,
                time.perf_counter() - begun,
            )
    response = await client.post("/v1/chat/completions", json=asked.body)
    seconds = time.perf_counter() - begun
    if response.status_code != 200:
        return Said(response.status_code, seconds)
    body = response.json()
    return Said(
        200, seconds, body["usage"]["completion_tokens"], body["choices"][0]["message"]["content"]
    )


def is_whole(lines: Sequence[str]) -> bool:
    """Whether a stream ended as it should, and told no error on the way."""
    events = [line.removeprefix("data:").strip() for line in lines if line.startswith("data:")]
    return events[-1:] == ["[DONE]"] and not any(
        "error" in json.loads(event) for event in events[:-1]
    )


def require_good(side: str, said: Sequence[Said]) -> None:
    bad = Counter(one.status for one in said if one.status != 200)
    if bad:
        sys.exit(f"{side}: {dict(bad)}")


def whole_answers(side: str, said: Sequence[Said]) -> int:
    """Number of answers with every key, and one at least; the others
    were cut, or the schema was not held.
    """
    whole = 0
    for one in said:
        with contextlib.suppress(ValueError, AttributeError):
            whole += json.loads(one.text).keys() == {"category", "quote", "urgent"}
    if not whole:
        sys.exit(f"{side} answers {said[0].text!r} under the schema")
    return whole


def waits(said: Sequence[Said]) -> dict[str, float]:
    """Milliseconds that answers took."""
    times = sorted(one.seconds * 1000 for one in said if one.status == 200)
    if not times:
        return {}
    return {
        "median_ms": round(statistics.median(times), 1),
        "p95_ms": round(times[int(len(times) * 0.95)], 1),
    }


@contextlib.asynccontextmanager
async def asking(url: str, key: str = "") -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=1000, max_keepalive_connections=1000)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(
        base_url=url, timeout=300, limits=limits, trust_env=False, headers=headers
    ) as client:
        yield client


@contextlib.contextmanager
def server(side: str, model: Path, type_name: str, *more: str) -> Iterator[tuple[str, int]]:
    """A server's address and process id, for the length of a block;
    further arguments are for our own.
    """
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    threads, many = str(usable_cores()), str(SEQUENCES * CONTEXT)
    commands = {
        "slmctl": [
            "-m",
            "slmctl",
            "-q",
            "-C",
            str(Path(__file__).parent),
            "serve",
            str(model.resolve()),
            "--port",
            str(port),
            *(["--type", type_name] if model.is_dir() else []),
            f"--set=serve.context_length={CONTEXT}",
            f"--set=serve.sequences={SEQUENCES}",
            *more,
        ],
        "llama_cpp.server": [
            "-m",
            "llama_cpp.server",
            "--model",
            str(model),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--n_ctx",
            many,
            "--n_threads",
            threads,
            "--interrupt_requests",
            "False",
            "--verbose",
            "False",
        ],
        "xllamacpp": [
            "-c",
            XLLAMACPP,
            str(model),
            str(port),
            str(SEQUENCES),
            str(CONTEXT),
            threads,
        ],
    }
    environment = program.SPIN | os.environ
    child = subprocess.Popen(
        [sys.executable, *commands[side]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(child, url)
        yield url, child.pid
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(timeout=15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def wait_for(child: subprocess.Popen[bytes], url: str) -> None:
    for _ in range(600):
        if child.poll() is not None:
            sys.exit(f"the server ended with {child.returncode}")
        with contextlib.suppress(httpx.HTTPError):  # 401: a server that asks for keys
            if httpx.get(f"{url}/v1/models", timeout=5, trust_env=False).status_code in (200, 401):
                return
        time.sleep(0.2)
    sys.exit("the server did not start")


def engine_of(pid: int) -> int:
    """The engine's process below our server's."""
    children = [
        p for t in Path(f"/proc/{pid}/task").iterdir() for p in (t / "children").read_text().split()
    ]
    (found,) = [
        int(p)
        for p in children
        if b"slmctl.inference.llama_child" in Path(f"/proc/{p}/cmdline").read_bytes()
    ]
    return found


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
