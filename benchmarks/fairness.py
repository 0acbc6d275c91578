"""How long one key's short questions take while another key floods, beside two clients that ask one
thing at a time.

    python -m benchmarks.fairness FOLDER RECORDS [--documents] [--type TYPE] [--repeat N]
    [--questions N] [--note TEXT]

FOLDER and RECORDS are those of `benchmarks.serve`. The flood are 24 clients of one key, with short
texts or with long ones, of a key without a limit or with `--concurrency 4`. Each pair of phases is
measured one after the other on the same server, so the ratio is of the same minutes; the figure of
a phase is the median of the other key's questions.

With --documents FOLDER is of a task that reads windows, and RECORDS are its documents: the flood
sends them as files, or several as one long text, and the other key asks one text of a single line,
or sends a file too.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import httpx

from benchmarks import program, result
from benchmarks.serve import Asked, ask, asking, classify, require_good, server
from slmctl.server import api_keys
from slmctl.task.contract import Task
from slmctl.task.records import read_records

FLOOD, LIMIT, JOINED = 24, 4, 8  # clients; `--concurrency`; texts that make a long one
RETRY_S = 5.0  # of a client over its limit, as SDKs wait after some tries
KINDS = {"a key without a limit": "flood", f"a key with --concurrency {LIMIT}": "limited"}


async def quiet_ms(
    quiet: httpx.AsyncClient,
    other: httpx.AsyncClient,
    clients: int,
    shorts: Sequence[Asked],
    others: Sequence[Asked],
) -> float:
    """The median of the quiet key's questions in milliseconds, while so
    many clients of the other key ask on.
    """
    turns = itertools.cycle(others)

    async def ask_on() -> None:
        while True:
            if (await ask(other, next(turns))).status == 429:  # over its limit
                await asyncio.sleep(RETRY_S)

    flood = [asyncio.create_task(ask_on()) for _ in range(clients)]
    await asyncio.sleep(1)
    said = [await ask(quiet, each) for each in shorts]
    for task in flood:
        task.cancel()
    await asyncio.gather(*flood, return_exceptions=True)
    require_good("the quiet key", said)
    return 1000 * statistics.median(one.seconds for one in said)


def whole(task: Task, text: str) -> Asked:
    return Asked({"messages": task.messages(text), "temperature": 0})


def line(task: Task, text: str) -> Asked:
    """A question with the first line of a document alone."""
    return whole(task, text.strip().partition("\n")[0][:200])


def file(task: Task, text: str) -> Asked:
    """A question with a document as a file."""
    *before, message = task.messages("")
    data = base64.b64encode(text.encode()).decode()
    part = {"type": "file", "file": {"filename": "document.txt", "file_data": data}}
    return Asked({"messages": [*before, {**message, "content": [part]}], "temperature": 0})


async def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("records", type=Path)
    parser.add_argument("--type", default="Q8_0")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--questions", type=int, default=15, help="of each phase")
    parser.add_argument(
        "--documents",
        action="store_true",
        help="floods of files and of long texts, read in windows",
    )
    parser.add_argument("--note", default="")
    options = parser.parse_args()
    task, texts = (
        Task.read(options.folder),
        [record.input for record in read_records(options.records)],
    )
    own, others = texts[: options.questions], texts[options.questions :][:200]
    joined = [" ".join(others[k : k + JOINED]) for k in range(len(others))]
    if options.documents:
        quiet = {
            "short question": [line(task, text) for text in own],
            "file": [file(task, text) for text in own],
        }
        floods = {
            "files": [file(task, text) for text in others],
            "long texts": [whole(task, text) for text in joined],
        }
    else:
        quiet = {"short question": [Asked(classify(task, text)) for text in own]}
        floods = {
            "short texts": [Asked(classify(task, text)) for text in others],
            "long texts": [Asked(classify(task, text)) for text in joined],
        }
    packages = ("llama-cpp-python", "starlette", "uvicorn", "httptools")
    name = "fairness-documents" if options.documents else "fairness"
    command = (
        f"python -m benchmarks.fairness FOLDER RECORDS --type {options.type}"
        + " --documents" * options.documents
    )
    more = ("--set=serve.documents=true",) if options.documents else ()
    rows = []
    async with AsyncExitStack() as stack:
        keys = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "keys.json"
        limits = {"quiet": None, "flood": None, "limited": LIMIT}
        secrets = {
            name: api_keys.add(keys, name, concurrency=limit) for name, limit in limits.items()
        }
        url, _ = stack.enter_context(
            server("slmctl", options.folder, options.type, "--keys", str(keys), *more)
        )
        clients = {
            name: await stack.enter_async_context(asking(url, secret))
            for name, secret in secrets.items()
        }
        for asks, flood in itertools.product(quiet.values(), floods.values()):
            await quiet_ms(clients["quiet"], clients["flood"], 1, asks[:2], flood)  # warm
        pairs = itertools.product(quiet.items(), floods.items(), KINDS.items())
        for (question, asks), (what, flood), (words, key) in pairs:
            alone, flooded = list[float](), list[float]()
            for _ in range(options.repeat):
                for found, count in ((alone, 1), (flooded, FLOOD)):
                    found.append(await quiet_ms(clients["quiet"], clients[key], count, asks, flood))
            metric = f"flood of {what} by {words}: ms for another key's {question}"
            rows.append(
                result.compared(metric, flooded, alone, peer="two clients", goal="<= 1.2", digits=1)
            )
            result.write(name, command, rows, packages, note=options.note)


if __name__ == "__main__":
    asyncio.run(main())
