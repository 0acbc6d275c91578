"""How long one key's short questions take while another key floods, beside two clients that ask one thing at a time.

    python -m benchmarks.fairness FOLDER RECORDS [--type TYPE] [--repeat N] [--questions N] [--note TEXT]

FOLDER and RECORDS are those of `benchmarks.serve`. The flood are 24 clients of one key, with short texts or with long
ones, of a key without a limit or with `--concurrency 4`. Each pair of phases is measured one after the other on the
same server, so the ratio is of the same minutes; the figure of a phase is the median of the short questions.
"""

from __future__ import annotations

import asyncio
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
    quiet: httpx.AsyncClient, other: httpx.AsyncClient, clients: int, shorts: Sequence[Asked], others: Sequence[Asked]
) -> float:
    """The median of the quiet key's questions in milliseconds, while so many clients of the other key ask on."""
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


async def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("records", type=Path)
    parser.add_argument("--type", default="Q8_0")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--questions", type=int, default=15, help="of each phase")
    parser.add_argument("--note", default="")
    options = parser.parse_args()
    task, texts = Task.read(options.folder), [record.input for record in read_records(options.records)]
    shorts = [Asked(classify(task, text)) for text in texts[: options.questions]]
    floods = {
        "short": [Asked(classify(task, text)) for text in texts[options.questions :][:200]],
        "long": [Asked(classify(task, " ".join(texts[k : k + JOINED]))) for k in range(options.questions, 200)],
    }
    packages = ("llama-cpp-python", "starlette", "uvicorn", "httptools")
    command = f"python -m benchmarks.fairness FOLDER RECORDS --type {options.type}"
    rows = []
    async with AsyncExitStack() as stack:
        keys = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "keys.json"
        limits = {"quiet": None, "flood": None, "limited": LIMIT}
        secrets = {name: api_keys.add(keys, name, concurrency=limit) for name, limit in limits.items()}
        url, _ = stack.enter_context(server("slmctl", options.folder, options.type, "--keys", str(keys)))
        clients = {name: await stack.enter_async_context(asking(url, secret)) for name, secret in secrets.items()}
        await quiet_ms(clients["quiet"], clients["flood"], 1, shorts, floods["short"])  # warm
        for (length, others), (words, name) in itertools.product(floods.items(), KINDS.items()):
            alone, flooded = list[float](), list[float]()
            for _ in range(options.repeat):
                for found, count in ((alone, 1), (flooded, FLOOD)):
                    found.append(await quiet_ms(clients["quiet"], clients[name], count, shorts, others))
            metric = f"flood of {length} texts by {words}: ms for another key's short question"
            rows.append(result.compared(metric, flooded, alone, peer="two clients", goal="<= 1.2", digits=1))
            result.write("fairness", command, rows, packages, note=options.note)


if __name__ == "__main__":
    asyncio.run(main())
