"""slmctl's way from an adapter to four GGUF files beside the usual one, alternating, three times each.

    python -m benchmarks.quantize BASE ADAPTER [--repeat N]

BASE is a base artifact or an HF folder with its `base.json`, ADAPTER a LoRA adapter on it. The peer is PEFT's `merge_and_unload` with
`save_pretrained`, llama.cpp's `convert_hf_to_gguf.py`, and one process with `llama_model_quantize` a type. Both
end with the same four types. What slmctl does beyond that (the importance matrix, and each file held against the
merged model) is measured too, in rows of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import result

TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M")
REPEAT = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("base", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--repeat", type=int, default=REPEAT)
    parser.add_argument("--step", choices=STEPS, help="run one step in this process")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--type", default="")
    options = parser.parse_args()
    if options.step:
        STEPS[options.step](options.base, options.adapter, options.out, options.type)
        return
    ours: list[dict[str, dict[str, float]]] = []
    theirs: list[dict[str, dict[str, float]]] = []
    for _ in range(options.repeat):
        ours.append(chain(OURS, options))
        theirs.append(chain(PEERS, options))
    name = json.loads((options.base / "base.json").read_bytes())["name"]
    packages = ("torch", "transformers", "peft", "llama-cpp-python")
    command = "python -m benchmarks.quantize BASE ADAPTER"
    path = result.write("quantize", command, rows_of(name, ours, theirs), packages, types=TYPES, ours=ours, theirs=theirs)
    sys.stdout.write(result.table("quantize") + f"\n\n{path}\n")


def rows_of(name: str, ours: list[Any], theirs: list[Any]) -> list[result.Row]:
    """The figures that the goals are set for, and each step's own."""

    def total(runs: list[Any], steps: tuple[str, ...]) -> list[float]:
        return [sum(run[step]["seconds"] for step in steps) for run in runs]

    def peak(runs: list[Any], steps: tuple[str, ...]) -> list[float]:
        return [max(run[step]["rss_gb"] for step in steps) for run in runs]

    peer_steps = tuple(PEERS)
    peer = "peft, convert_hf_to_gguf, llama_model_quantize"
    files = ("merge", "files")
    return [
        result.compared(
            f"{name}: adapter to four files, s", total(ours, files), total(theirs, peer_steps), peer=peer,
            goal="<= 0.9", digits=1,
        ),
        result.compared(
            f"{name}: highest peak memory, GB", peak(ours, files), peak(theirs, peer_steps), peer=peer, goal="<= 1"
        ),
        result.compared(
            f"{name}: merge, peak memory, GB", peak(ours, ("merge",)), peak(theirs, ("peer-merge",)), peer="peft",
            goal="<= 0.5",
        ),
        result.compared(
            f"{name}: merge, s", total(ours, ("merge",)), total(theirs, ("peer-merge",)), peer="peft", digits=1
        ),
        result.compared(
            f"{name}: convert and quantize, s", total(ours, ("files",)), total(theirs, peer_steps[1:]),
            peer="convert_hf_to_gguf, llama_model_quantize", digits=1,
        ),
        result.compared(
            f"{name}: the same with importance and every check, s", total(ours, ("merge", "files", "checks")),
            total(theirs, peer_steps), peer=f"{peer}, unchecked", digits=1,
        ),
        result.compared(
            f"{name}: peak memory with importance and every check, GB", peak(ours, ("merge", "files", "checks")),
            peak(theirs, peer_steps), peer=f"{peer}, unchecked",
        ),
    ]  # fmt: skip


def chain(steps: dict[str, str], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Run steps after one another, each in a process of its own, in one folder."""
    found = {}
    with tempfile.TemporaryDirectory() as place:
        for name, type_name in steps.items():
            found[name] = measured(name, type_name, options, Path(place))
            sys.stderr.write(f"{name}: {found[name]['seconds']:.1f} s, {found[name]['rss_gb']:.2f} GB\n")
    return found


def measured(step: str, type_name: str, options: argparse.Namespace, out: Path) -> dict[str, float]:
    """Seconds of a step, and the highest peak among its process and what that started."""
    script = [sys.executable, "-m", "benchmarks.quantize", str(options.base), str(options.adapter)]
    command = [*script, "--step", step.partition("/")[0], "--out", str(out), "--type", type_name]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "GOMP_SPINCOUNT": "10000"}
    begun = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begun
    if done.returncode != 0:
        sys.exit(done.stderr)
    return {"seconds": seconds, "rss_gb": json.loads(done.stdout.splitlines()[-1])["rss_gb"]}


def report() -> None:
    """Print the highest resident memory of this process or one that it waited for."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peak = max(resource.getrusage(kind).ru_maxrss for kind in kinds) * 1024 / 1e9
    sys.stdout.write("\n" + json.dumps({"rss_gb": peak}) + "\n")


def our_merge(base: Path, adapter: Path, out: Path, _: str) -> None:
    from slmctl import artifact
    from slmctl.config import MergeConfig
    from slmctl.model import merge

    (out / "merged").mkdir()
    opened = artifact.foreign(base, "base"), artifact.foreign(adapter, "adapter")
    merge.run(MergeConfig(), base=opened[0], adapter=opened[1], out=out / "merged")
    report()


def our_files(_base: Path, _adapter: Path, out: Path, _: str) -> None:
    """The conversion and the ladder, as `quantize` writes them."""
    from slmctl import artifact
    from slmctl.base import Base
    from slmctl.config import QuantizeConfig
    from slmctl.model import _ladder

    config = QuantizeConfig(project="bench", version="1.0", types=list(TYPES))
    merged, (out / "files").mkdir()
    report()


STEPS: dict[str, Any] = {}
OURS: dict[str, str] = {}
PEERS: dict[str, str] = {}
