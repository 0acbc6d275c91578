"""JSON Schemas made at random, sent to an engine that answers others meanwhile."""

from __future__ import annotations

import json
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from hostile.fuzz import Outcome
from support import tiny

from slmctl.inference.engine import Engine, EngineError, Request
from slmctl.model_files import gguf_converter

COUNTS = (0, 1, 2, 3, 7, 50, 1000, 10**6, 10**12, -1, 0.5, "1", None)
SCALARS: tuple[Any, ...] = (
    {"type": "string"}, {"type": "integer"}, {"type": "number"}, {"type": "boolean"}, {"type": "null"}, {}, True, False,
    {"const": "x"}, {"const": {"a": [1, None]}}, {"enum": [1, "a", None]}, {"enum": []}, {"$ref": "#"},
    {"$ref": "#/$defs/d"}, {"$ref": "#/nowhere"}, {"$ref": "http://x/y"}, {"type": 5}, {"type": ["string", "null"]},
    {"type": "string", "format": "date-time"}, {"type": "string", "format": "?"}, {"not": {}},
    {"type": "string", "pattern": "^(a|b)*c$"}, {"type": "string", "pattern": "(a{0,99}){0,99}"},
    {"type": "string", "pattern": "["}, {"type": "string", "pattern": "^.*a.{60}b$"},
    {"type": "integer", "minimum": -(10**30), "maximum": 10**30}, {"type": "number", "multipleOf": 1e-300},
)  # fmt: skip


def run(seconds: float, seed: int) -> Outcome:
    """Ask for answers under schemas until the time is over."""
    choose, outcome = random.Random(seed), Outcome()
    with tempfile.TemporaryDirectory() as folder:
        gguf = Path(folder) / "tiny-F16.gguf"
        gguf_converter.convert(tiny.build_base(Path(folder) / "base"), gguf, dtype="f16", metadata={})
        with Engine(gguf, sequences=4, context=512, threads=1) as engine:
            _ask(engine, choose, outcome, seconds)
    return outcome


def _ask(engine: Engine, choose: random.Random, outcome: Outcome, seconds: float) -> None:
    done, deaths = threading.Event(), list[float]()
    engine.on_death = lambda: deaths.append(time.monotonic())
    beside = threading.Thread(target=_probe, args=(engine, done, outcome))
    beside.start()
    assert engine._child is not None
    pid, ends_at, warm_at, warm = engine._child.pid, time.monotonic() + seconds, time.monotonic() + seconds / 10, 0
    while time.monotonic() < ends_at and not deaths:
        requests = [Request("hello", schema=json.dumps(_schema(choose, 4)), max_tokens=choose.choice((1, 24, 200)),
                            temperature=choose.choice((0.0, 2.0))) for _ in range(choose.randint(1, 8))]  # fmt: skip
        for index, answer in engine.ask_all(requests):
            outcome.cases += 1
            if isinstance(answer, EngineError) and "gramma" not in answer.message and "schema" not in answer.message:
                outcome.notes.append(f"{requests[index].schema[:300]}: {answer.message}")
        if warm_at < time.monotonic() and not warm:
            warm = _memory(pid)
    outcome.deaths = len(deaths)
    if warm and not deaths:
        outcome.growth = max(0, _memory(pid) - warm)
    done.set()
    beside.join()


def _probe(engine: Engine, done: threading.Event, outcome: Outcome) -> None:
    """Time answers without a schema; as long as a sleep took too long, the machine is at fault."""
    while not done.is_set():
        begun = time.monotonic()
        time.sleep(0.02)
        busy = time.monotonic() - begun - 0.02
        begun = time.monotonic()
        engine.tokenize("hello")
        outcome.freeze_s = max(outcome.freeze_s, time.monotonic() - begun - 4 * busy)


def _memory(pid: int) -> int:
    """Resident bytes of a process and of its children, each page that they share counted once."""
    total, pids = 0, [pid]
    while pids:
        process = Path("/proc") / str(pids.pop())
        try:
            status = (process / "smaps_rollup").read_text()
            pids += map(int, (process / "task" / process.name / "children").read_text().split())
        except OSError:
            continue  # it has ended meanwhile
        total += sum(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("Pss_Anon:"))
    return total


def _schema(choose: random.Random, depth: int) -> Any:
    """A schema that may be valid."""
    if depth == 0 or choose.random() < 0.2:
        return choose.choice(SCALARS)
    kind, part = choose.randrange(6), lambda: _schema(choose, depth - 1)
    if kind == 0:
        size = choose.choice(COUNTS)
        return {"type": "array", "items": part(), "minItems": size, "maxItems": choose.choice((size, *COUNTS))}
    if kind == 1:
        keys = [choose.choice(("a", "b", "", "ä" * 40, "$ref")) for _ in range(choose.randint(0, 4))]
        required = [key for key in keys if choose.random() < 0.7]
        return {"type": "object", "properties": {key: part() for key in keys}, "required": required,
                "additionalProperties": choose.choice((False, part()))}  # fmt: skip
    if kind == 2:
        return {
            choose.choice(("anyOf", "allOf", "oneOf", "prefixItems")): [part() for _ in range(choose.randint(1, 5))]
        }
    if kind == 3:
        return {"$defs": {"d": part()}, "anyOf": [part(), {"$ref": "#/$defs/d"}]}
    if kind == 4:
        low = choose.choice((0, 1, 40, 3000))
        return {"type": "string", "minLength": low, "maxLength": choose.choice((low, 10**6))}
    return {"enum": [f"{choose.random()}" * choose.choice((1, 30)) for _ in range(choose.choice((1, 30, 3000)))]}
