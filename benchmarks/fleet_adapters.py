"""Adapters over one base beside merged files of their own: memory, rows a second, and the accuracy
of each.

Every adapter is a training of the same rows with another seed, through the program itself: its file
and the merged one are written, checked and measured by `slmctl run`. Then one engine holds the
base's file with all adapters, and as many engines hold a merged file each. Both answer the same
rows, asked of all models in turn.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import program, result
from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact
from slmctl.inference.engine import Answer, Engine
from slmctl.model_files.gguf_choice import gguf_file, lora_file
from slmctl.models.prompts import asked
from slmctl.task.contract import Task
from slmctl.task.engine_requests import engine_request
from slmctl.task.records import Record, read_records

TYPE = "Q8_0"
# of every engine, so that one engine is not held against ten times its keys and values
SEQUENCES, CONTEXT = 4, 512
TINY = "{epochs: 14, learning_rate: 4e-3, batch_size: 8, lora: {rank: 16, alpha: 32}}"
CONFIG = """\
project: adapters
version: "1.0"
base: BASE
pull: {rehearse: false}
task: {kind: classify, labels: from-data, system: Name the category.}
prepare:
  sources: [{path: ROWS, input: INPUT, output: OUTPUT}]
finetune: TRAINING
quantize: {types: [Q8_0], lora_gguf: true}
evaluate: {models: [gguf, lora]}
"""


@dataclass(frozen=True)
class Setup:
    """The base and the rows that the adapters are trained on, and the
    section finetune; tiny ones by default.
    """

    base: str = ""
    rows: Path | None = None
    input: str = "text"
    output: str = "category"
    training: str = TINY


@dataclass(frozen=True)
class Made:
    """One adapter: the artifact with its file and the merged one, the
    base's file, and what a report says of both.
    """

    gguf: Artifact
    base: Path
    merged_right: float
    lora_right: float
    only_merged: int
    only_lora: int
    rows: int


def measure(setup: Setup, count: int, rows: int, repetitions: int) -> None:
    """Write results/fleet-adapters.json."""
    with tempfile.TemporaryDirectory() as place:
        folder = project(Path(place), setup)
        made = [train(folder, seed) for seed in range(count)]
        (data,) = folder.glob("runs/prepared/*/task.json")
        records = read_records(data.with_name("test.jsonl"))
        plan = [(k % count, records[k % len(records)]) for k in range(rows)]
        task = Task.read(data.parent)
        sizes = {
            "base": made[0].base.stat().st_size,
            "adapter": made[0].gguf.metrics["lora"]["size"],
        }
        shared: list[dict[str, Any]] = []
        apart: list[dict[str, Any]] = []
        for _ in range(repetitions):
            shared.append(run(task, plan, count, one_base(made)))
            apart.append(run(task, plan, count, merged_files(made)))
    name = Path(setup.base).name if setup.base else ""
    peer = f"{count} merged files"
    of = f"{count} adapters on one base"
    figures = [
        result.compared(
            f"{of}: memory, MB", *both("pss_mb", shared, apart), peer=peer, goal="<= 0.6"
        ),
        result.compared(f"{of}: rows/s", *both("rows_per_s", shared, apart), peer=peer),
        result.compared(f"{of}: seconds to load", *both("load_s", shared, apart), peer=peer),
        result.compared(
            f"{of}: mean accuracy, {TYPE}",
            [sum(each.lora_right for each in made) / count],
            [sum(each.merged_right for each in made) / count],
            peer=f"merged {TYPE}",
            goal=">= 0.99",
        ),
    ]
    result.write(
        "fleet-adapters",
        f"python -m benchmarks.fleet adapters{name and f' {name} --data CSV'} --adapters {count} "
        f"--rows {rows}",
        figures,
        ["torch", "llama-cpp-python"],
        base=name or "0.1M random weights",
        sequences=SEQUENCES,
        context=CONTEXT,
        files=sizes,
        adapters=[accuracy(each) for each in made],
        shared=shared,
        apart=apart,
    )


def both(key: str, *runs: Sequence[dict[str, Any]]) -> list[list[float]]:
    return [[float(each[key]) for each in side] for side in runs]


def accuracy(made: Made) -> dict[str, Any]:
    """Both files of an adapter on the same held-out rows, paired."""
    return {
        "merged": made.merged_right,
        "lora": made.lora_right,
        "rows": made.rows,
        "only_merged_right": made.only_merged,
        "only_lora_right": made.only_lora,
    }


def project(place: Path, setup: Setup) -> Path:
    """A project with the rows; without a base, with the tiny random one of the tests."""
    from support import tiny

    folder = place / "desk"
    folder.mkdir()
    if not setup.base:
        tiny.build_base(folder / "base")
    rows = setup.rows or tiny.write_csv(folder / "tickets.csv", tiny.rows(400))
    base = (
        str(Path(setup.base).resolve()) if Path(setup.base).exists() and setup.base else setup.base
    )
    values = {
        "BASE": base or "./base",
        "ROWS": str(rows.resolve()),
        "INPUT": setup.input,
        "OUTPUT": setup.output,
        "TRAINING": setup.training,
    }
    text = re.sub("|".join(values), lambda found: values[found[0]], CONFIG)
    (folder / "slmctl.yaml").write_text(text, encoding="utf-8")
    return folder


def train(folder: Path, seed: int) -> Made:
    """One adapter, from the training to the report."""
    from support import tiny

    sets = ("--set", f"finetune.seed={seed}")
    report = artifact.load(
        Path(tiny.ok(tiny.slmctl(folder, "run", "--until", "evaluate", *sets, timeout=7200)))
    )
    made = {entry.digest: entry for entry in map(artifact.load, folder.glob("runs/gguf/[!.]*"))}
    models = report.metrics["models"]
    gguf = next(each for each in made.values() if models[TYPE]["sha256"] in sha256s(each))
    base = made[gguf.metrics["lora"]["bases"][TYPE]["artifact"]]
    pair = report.metrics["pairs"][f"{TYPE}|lora-{TYPE}"]
    sys.stderr.write(
        f"adapter {seed}: {models[TYPE]['right']} and {models[f'lora-{TYPE}']['right']} rows "
        "right\n"
    )
    return Made(
        gguf,
        base.file(gguf_file(base).path),
        models[TYPE]["metrics"]["accuracy"],
        models[f"lora-{TYPE}"]["metrics"]["accuracy"],
        pair["only_first"],
        pair["only_second"],
        pair["n"],
    )


def sha256s(made: Artifact) -> set[str]:
    return {entry.sha256 for entry in made.files(".gguf")}


@contextmanager
def one_base(made: Sequence[Made]) -> Iterator[list[tuple[Engine, str]]]:
    """One engine with every adapter: the engine and the adapter's name of each model."""
    paths = {f"a{k}": each.gguf.file(lora_file(each.gguf).path) for k, each in enumerate(made)}
    with Engine(made[0].base, sequences=SEQUENCES, context=CONTEXT, adapters=paths) as engine:
        yield [(engine, name) for name in paths]


@contextmanager
def merged_files(made: Sequence[Made]) -> Iterator[list[tuple[Engine, str]]]:
    """An engine for each merged file, whose weights keep their type as the base's do."""
    with ExitStack() as stack:
        paths = [each.gguf.file(gguf_file(each.gguf, TYPE).path) for each in made]
        engines = [
            stack.enter_context(Engine(path, sequences=SEQUENCES, context=CONTEXT))
            for path in paths
        ]
        yield [(engine, "") for engine in engines]


def run(task: Task, plan: Sequence[tuple[int, Record]], count: int, opening: Any) -> dict[str, Any]:
    """Open the models, answer the rows of the plan, and say what that took."""
    begun = time.monotonic()
    with opening as models:
        load_s = time.monotonic() - begun
        shares: dict[Engine, list[Any]] = {}
        for place, record in plan:
            engine, adapter = models[place]
            prompt = asked(task, record)
            shares.setdefault(engine, []).append(
                engine_request(
                    task, prompt.text, prefix=prompt.prefix, max_tokens=32, adapter=adapter
                )
            )
        begun = time.monotonic()
        with ThreadPoolExecutor(len(shares)) as pool:
            answers = list(pool.map(lambda engine: list(engine.ask_all(shares[engine])), shares))
        seconds = time.monotonic() - begun
        assert all(isinstance(answer, Answer) for some in answers for _, answer in some), (
            "a row has no answer"
        )
        memory = (
            sum(program.pss_bytes(engine._child.pid) for engine in shares if engine._child) / 1e6
        )
    sys.stderr.write(f"{len(shares)} engines: {memory:.0f} MB, {len(plan) / seconds:.1f} rows/s\n")
    return {
        "engines": len(shares),
        "load_s": round(load_s, 2),
        "pss_mb": round(memory, 1),
        "rows_per_s": round(len(plan) / seconds, 2),
    }
