"""More than one model, and more than one machine.

    python -m benchmarks.fleet ray [RELEASE] [--rows N] [--repetitions N] python -m benchmarks.fleet
    adapters [BASE --data CSV] [--adapters N] [--rows N] [--repetitions N]

`ray` answers rows on a cluster of two nodes of this machine, of which one is killed in the middle,
and in one process: the rows that are lost, their order, their answers, and the time. Without
RELEASE it is a model of 7,000 weights.

`adapters` trains adapters on one base, and serves them on the base's file beside their merged
files: memory, rows/s and the accuracy of each, paired (`fleet_adapters`). Without BASE it is a
random model of 0.1 million weights.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import fleet_adapters, program, result
from slmctl.stages.predict import ray_answers

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # support/: the tiny model, and the nodes

ROWS = 20_000
KEPT = ROOT / "tests" / "fixtures" / "0.1.0" / "published"
KILL_AT = 0.3  # share of the rows that are answered when a node is killed


def main() -> None:
    parser = program.parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    ray = commands.add_parser("ray")
    ray.add_argument("release", nargs="?", type=Path, help="a release; one of the tests by default")
    ray.add_argument("--rows", type=int, default=ROWS)
    ray.add_argument("--repetitions", type=int, default=1)
    adapters = commands.add_parser("adapters")
    adapters.add_argument(
        "base", nargs="?", default="", help="what `base:` takes; a random model by default"
    )
    adapters.add_argument(
        "--data", type=Path, help="rows as CSV or another file; those of the tests by default"
    )
    adapters.add_argument("--input", default="text", help="the column that is asked")
    adapters.add_argument("--output", default="category", help="the column of the answers")
    adapters.add_argument(
        "--training", default=fleet_adapters.TINY, help="the section finetune, such as {epochs: 1}"
    )
    adapters.add_argument("--adapters", type=int, default=10)
    adapters.add_argument("--rows", type=int, default=600, help="asked of all adapters together")
    adapters.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    if options.command == "adapters":
        setup = fleet_adapters.Setup(
            options.base, options.data, options.input, options.output, options.training
        )
        fleet_adapters.measure(setup, options.adapters, options.rows, options.repetitions)
        return
    measure_ray(options.release, options.rows, options.repetitions)


# Ray


def measure_ray(release: Path | None, count: int, repetitions: int) -> None:
    """Write results/fleet-ray.json."""
    from support import tiny

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = (release or KEPT).resolve()
        texts = [text for text, _ in tiny.rows(min(count, 2_000), seed=9)]
        source = folder / "in.jsonl"
        program.write_jsonl(
            source, [{"id": k, "text": texts[k % len(texts)]} for k in range(count)]
        )
        words = [str(model), "--input", str(source), "--column", "text"]
        runs = [ray_run(folder, words, count) for _ in range(repetitions)]
        runs[0]["one_process_s"] = seconds_of_one(folder, words)
        whole = program.read_jsonl(folder / "one.jsonl")
    for run in runs:
        ours = run.pop("rows")
        places = [row["id"] for row in ours]
        pairs = list(zip(ours, whole, strict=True))
        run |= {
            "rows_lost": count - len(set(places)),
            "in_order": places == list(range(count)),
            "same_answers": sum((a["id"], a["answer"]) == (b["id"], b["answer"]) for a, b in pairs),
            "largest_difference_of_a_confidence": max(
                abs(a["confidence"] - b["confidence"]) for a, b in pairs
            ),
        }
    kept = [count - run["rows_lost"] for run in runs]
    rows = [
        result.compared(
            f"rows of {count:,} that come back, one of two nodes killed",
            kept,
            [count] * len(kept),
            peer="one process",
            goal=">= 1",
        ),
        result.compared(
            "of these, with the same answer in the same place",
            [run["same_answers"] for run in runs],
            [count] * len(kept),
            peer="one process",
            goal=">= 1",
        ),
    ]
    command = f"python -m benchmarks.fleet ray --rows {count} --repetitions {repetitions}"
    named = release.name if release else "7K weights"
    result.write("fleet-ray", command, rows, ["ray", "llama-cpp-python"], runs=runs, model=named)


def ray_run(folder: Path, words: Sequence[str], count: int) -> dict[str, Any]:
    """Answer the rows on two nodes, and kill one; returns the rows and the times."""
    from support import tiny

    out, journal = folder / "ray.jsonl", folder / ".ray.jsonl.answers"
    out.unlink(missing_ok=True)
    env = tiny.environment(**ray_answers.LOOPBACK)
    nodes = subprocess.Popen(
        [sys.executable, "-m", "support.ray_nodes"],
        cwd=ROOT / "tests",
        env=env,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert nodes.stdin is not None and nodes.stdout is not None
    with nodes:
        address = nodes.stdout.readline().strip()
        begun = time.monotonic()
        child = tiny.start(
            folder, "predict", *words, "--output", str(out), "--ray", address, env=env
        )
        answered = 0
        while answered < KILL_AT * count:
            assert child.poll() is None, child.communicate()
            time.sleep(0.1)
            answered = journal.read_bytes().count(b"\n") if journal.exists() else 0
        nodes.stdin.write("kill\n")
        nodes.stdin.flush()
        nodes.stdout.readline()
        killed = time.monotonic() - begun
        _, said = child.communicate(timeout=1800)
        assert child.returncode == 0, said
        seconds = time.monotonic() - begun
        nodes.stdin.close()
    return {
        "answered_at_kill": answered,
        "killed_after_s": round(killed, 1),
        "seconds": round(seconds, 1),
        "rows": program.read_jsonl(out),
    }


def seconds_of_one(folder: Path, words: Sequence[str]) -> float:
    """Seconds of the same work in one process."""
    from support import tiny

    begun = time.monotonic()
    tiny.ok(
        tiny.slmctl(folder, "predict", *words, "--output", str(folder / "one.jsonl"), timeout=1800)
    )
    return round(time.monotonic() - begun, 1)


if __name__ == "__main__":
    main()
