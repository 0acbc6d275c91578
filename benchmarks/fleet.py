"""More than one model, and more than one machine.

    python -m benchmarks.fleet ray [RELEASE] [--rows N] [--repetitions N]

`ray` answers rows on a cluster of two nodes of this machine, of which one is killed in the middle, and in one process:
the rows that are lost, their order, and the time. Without RELEASE it is the tiny model of the tests.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import result
from slmctl.stages.predict import ray_answers

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # support/: the tiny model, and the nodes

ROWS = 20_000
KILL_AT = 0.3  # share of the rows that are answered when a node is killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    commands = parser.add_subparsers(dest="command", required=True)
    ray = commands.add_parser("ray")
    ray.add_argument("release", nargs="?", type=Path, help="a release; the tiny model of the tests by default")
    ray.add_argument("--rows", type=int, default=ROWS)
    ray.add_argument("--repetitions", type=int, default=1)
    options = parser.parse_args()
    measure_ray(options.release, options.rows, options.repetitions)


# Ray


def measure_ray(release: Path | None, count: int, repetitions: int) -> None:
    """Write results/fleet-ray.json."""
    from support import tiny

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = release.resolve() if release else tiny_release(folder)
        texts = [text for text, _ in tiny.rows(min(count, 2_000), seed=9)]
        source = folder / "in.jsonl"
        source.write_text("".join(json.dumps({"id": k, "text": texts[k % len(texts)]}) + "\n" for k in range(count)))
        words = [str(model), "--input", str(source), "--column", "text"]
        runs = [ray_run(folder, words, count) for _ in range(repetitions)]
        runs[0]["one_process_s"] = seconds_of_one(folder, words)
        whole = (folder / "one.jsonl").read_bytes().splitlines()
        for run in runs:
            lines = run.pop("lines")
            ids = [json.loads(line)["id"] for line in lines]
            run |= {"rows_lost": count - len(set(ids)), "in_order": ids == sorted(ids), "same_bytes": lines == whole}
    kept = [count - run["rows_lost"] for run in runs]
    rows = [
        result.compared(
            f"rows of {count:,} that come back, one of two nodes killed", kept, [count] * len(kept),
            peer="one process", goal=">= 1",
        ),
        result.compared(
            f"runs of {len(runs)} with the same bytes in the same order", [sum(run["same_bytes"] for run in runs)],
            [len(runs)], peer="one process", goal=">= 1",
        ),
    ]  # fmt: skip
    command = f"python -m benchmarks.fleet ray --rows {count} --repetitions {repetitions}"
    path = result.write(
        "fleet-ray", command, rows, ["ray", "llama-cpp-python"], runs=runs, model=model.name if release else "tiny"
    )
    sys.stdout.write(f"{path}\n{result.table('fleet-ray')}\n")


def tiny_release(folder: Path) -> Path:
    """A release of the tests' model: trained, quantized and published."""
    from support import tiny

    project = folder / "desk"
    project.mkdir()
    tiny.build_base(project / "base")
    (project / "slmctl.yaml").write_text(tiny.CONFIG, encoding="utf-8")
    tiny.write_csv(project / "tickets.csv", tiny.rows())
    return Path(tiny.ok(tiny.slmctl(project, "run")).splitlines()[-1])


def ray_run(folder: Path, words: Sequence[str], count: int) -> dict[str, Any]:
    """Answer the rows on two nodes, and kill one; returns the lines and the times."""
    from support import tiny

    out, journal = folder / "ray.jsonl", folder / ".ray.jsonl.answers"
    out.unlink(missing_ok=True)
    env = tiny.environment(**ray_answers.LOOPBACK)
    nodes = subprocess.Popen(
        [sys.executable, "-m", "support.ray_nodes"], cwd=ROOT / "tests", env=env, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert nodes.stdin is not None and nodes.stdout is not None
    with nodes:
        address = nodes.stdout.readline().strip()
        begun = time.monotonic()
        child = tiny.start(folder, "predict", *words, "--output", str(out), "--ray", address, env=env)
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
        "answered_at_kill": answered, "killed_after_s": round(killed, 1), "seconds": round(seconds, 1),
        "lines": out.read_bytes().splitlines(),
    }  # fmt: skip


def seconds_of_one(folder: Path, words: Sequence[str]) -> float:
    """Seconds of the same work in one process."""
    from support import tiny

    begun = time.monotonic()
    tiny.ok(tiny.slmctl(folder, "predict", *words, "--output", str(folder / "one.jsonl"), timeout=1800))
    return round(time.monotonic() - begun, 1)


if __name__ == "__main__":
    main()
