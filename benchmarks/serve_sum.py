"""A served release with the members of a sum beside the GGUF file alone: bytes, memory, and waits
of 1 and 8 clients.

    python -m benchmarks.serve_sum TEXTS FILE NAME=RELEASE...

TEXTS is a CSV with a column `text`, FILE a gguf artifact of the task, which is the peer. Sides
alternate; each answers the same questions in each of REPEAT rounds, in a server of its own.
"""

from __future__ import annotations

import asyncio
import csv
import statistics
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks import program, result
from benchmarks.serve import server

PEER, REPEAT, ALONE, TOGETHER, CLIENTS = "the file alone", 3, 60, 240, 8
METRICS = {
    "bytes, MB": "",
    "memory, MB": "",
    "wait of one client, ms": "<= 1.5",
    "wait of 8 clients, ms": "<= 1.5",
}


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("texts", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("releases", nargs="+", metavar="NAME=RELEASE")
    options = parser.parse_args()
    with options.texts.open(encoding="utf-8", newline="") as stream:
        texts = [row["text"] for row in csv.DictReader(stream)][: ALONE + TOGETHER]
    models = {PEER: options.file} | {
        name: Path(path) for name, _, path in (each.partition("=") for each in options.releases)
    }
    runs = program.alternating(
        list(models), REPEAT, lambda side: asyncio.run(measured(models[side], texts))
    )
    rows = [
        result.compared(
            f"{side}: {metric}",
            *([run[metric] for run in runs[each]] for each in (side, PEER)),
            peer=PEER,
            digits=1,
            goal=goal,
        )
        for side in list(models)[1:]
        for metric, goal in METRICS.items()
    ]
    result.write(
        "serve-sum",
        "python -m benchmarks.serve_sum TEXTS FILE NAME=RELEASE...",
        rows,
        ("llama-cpp-python", "scikit-learn"),
    )


async def measured(model: Path, texts: list[str]) -> dict[str, Any]:
    """One round of a model in a server of its own."""
    waits: list[float] = []
    with server("slmctl", model, "Q8_0") as (url, pid):
        async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
            name = (await client.get("/v1/models")).json()["data"][0]["id"]

            async def ask(text: str) -> None:
                begun = time.perf_counter()
                body = {"model": name, "messages": [{"role": "user", "content": text}]}
                (await client.post("/v1/chat/completions", json=body)).raise_for_status()
                waits.append(1000 * (time.perf_counter() - begun))

            for text in texts[:5]:  # the first answers load what is needed
                await ask(text)
            waits.clear()
            for text in texts[:ALONE]:
                await ask(text)
            alone = statistics.median(waits)
            waits.clear()
            left = iter(texts[ALONE:])

            async def one_client() -> None:
                for text in left:
                    await ask(text)

            await asyncio.gather(*(one_client() for _ in range(CLIENTS)))
        held = sum(map(program.pss_bytes, family(pid)))
    size = sum(path.stat().st_size for path in model.rglob("*") if path.suffix in (".gguf", ".npz"))
    figures = size / 1e6, held / 1e6, alone, statistics.median(waits)
    return dict(zip(METRICS, figures, strict=True))


def family(pid: int) -> list[int]:
    """A process and all below it."""
    children = [
        int(p)
        for t in Path(f"/proc/{pid}/task").iterdir()
        for p in (t / "children").read_text().split()
    ]
    return [pid, *(each for child in children for each in family(child))]


if __name__ == "__main__":
    main()
