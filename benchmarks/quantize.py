"""slmctl's way from an adapter to four GGUF files beside the usual one, alternating, three times
each.

    python -m benchmarks.quantize BASE ADAPTER [PREPARED] [--repeat N]

All three are artifacts of a project (`runs/base/...`). The peer is PEFT's `merge_and_unload` with
`save_pretrained`, llama.cpp's `convert_hf_to_gguf.py`, and one process with `llama_model_quantize`
a type. Both end with the same four types. What slmctl does beyond that (the importance matrix, and
each file held against the merged model) is measured in rows of its own, where PREPARED is given.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import program, result
from slmctl.model_files import gguf_converter

TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M")
REPEAT = 3
Figures = dict[str, dict[str, float]]  # seconds and peak memory of each step


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("prepared", type=Path, nargs="?")
    parser.add_argument("--repeat", type=int, default=REPEAT)
    parser.add_argument("--step", choices=STEPS, help="run one step in this process")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.step:
        STEPS[options.step](options)
        report()
        return
    ours: list[Figures] = []
    theirs: list[Figures] = []
    for _ in range(options.repeat):
        ours.append(chain(OURS if options.prepared is None else (*OURS, "stage"), options))
        theirs.append(chain(PEERS, options))
    name = json.loads((options.base / "base.json").read_bytes())["name"]
    result.write(
        "quantize",
        "python -m benchmarks.quantize BASE ADAPTER PREPARED",
        rows_of(name, ours, theirs),
        ("torch", "transformers", "peft", "llama-cpp-python"),
        types=TYPES,
        ours=ours,
        theirs=theirs,
    )


def rows_of(name: str, ours: list[Figures], theirs: list[Figures]) -> list[result.Row]:
    """The figures that the goals are set for, and each step's own."""

    def total(runs: list[Figures], steps: Sequence[str]) -> list[float]:
        return [sum(run[step]["seconds"] for step in steps) for run in runs]

    def peak(runs: list[Figures], steps: Sequence[str]) -> list[float]:
        return [max(run[step]["rss_gb"] for step in steps) for run in runs]

    peer = "peft, convert_hf_to_gguf, llama_model_quantize"
    rows = [
        result.compared(
            f"{name}: adapter to four files, s",
            total(ours, OURS),
            total(theirs, PEERS),
            peer=peer,
            goal="<= 0.9",
            digits=1,
        ),
        result.compared(
            f"{name}: highest peak memory, GB",
            peak(ours, OURS),
            peak(theirs, PEERS),
            peer=peer,
            goal="<= 1",
        ),
        result.compared(
            f"{name}: merge, peak memory, GB",
            peak(ours, OURS[:1]),
            peak(theirs, PEERS[:1]),
            peer="peft",
            goal="<= 0.5",
        ),
        result.compared(
            f"{name}: merge, s",
            total(ours, OURS[:1]),
            total(theirs, PEERS[:1]),
            peer="peft",
            digits=1,
        ),
        result.compared(
            f"{name}: convert and quantize, s",
            total(ours, OURS[1:]),
            total(theirs, PEERS[1:]),
            peer="convert_hf_to_gguf, llama_model_quantize",
            digits=1,
        ),
    ]
    if "stage" in ours[0]:
        checked = ("merge", "stage")
        rows += [
            result.compared(
                f"{name}: with importance and every check, s",
                total(ours, checked),
                total(theirs, PEERS),
                peer=f"{peer}, unchecked",
                digits=1,
            ),
            result.compared(
                f"{name}: peak memory with every check, GB",
                peak(ours, checked),
                peak(theirs, PEERS),
                peer=f"{peer}, unchecked",
            ),
        ]
    return rows


def chain(steps: Sequence[str], options: argparse.Namespace) -> Figures:
    """Run steps after one another, each in a process of its own, in one folder."""
    found = {}
    with tempfile.TemporaryDirectory() as place:
        for step in steps:
            found[step] = measured(step, options, Path(place))
            sys.stderr.write(
                f"{step}: {found[step]['seconds']:.1f} s, {found[step]['rss_gb']:.2f} GB\n"
            )
    return found


def measured(step: str, options: argparse.Namespace, out: Path) -> dict[str, float]:
    """Seconds of a step, and the highest peak among its process and what that started."""
    inputs = [
        str(path) for path in (options.base, options.adapter, options.prepared) if path is not None
    ]
    command = [
        sys.executable,
        "-m",
        "benchmarks.quantize",
        *inputs,
        "--step",
        step,
        "--out",
        str(out),
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"} | program.SPIN
    if step == "peer-convert":  # the script as its users run it
        script = gguf_converter.require() / gguf_converter.SCRIPT
        command = [
            sys.executable,
            "-c",
            MEASURED,
            str(script),
            str(out / "peer"),
            "--outtype",
            "f16",
            "--outfile",
            str(out / "peer.gguf"),
        ]
    begun = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begun
    if done.returncode != 0:
        sys.exit(f"{step}: {done.stderr}")
    return {"seconds": seconds, "rss_gb": json.loads(done.stdout.splitlines()[-1])["rss_gb"]}


# A program as it is, and then the peak of its process.
MEASURED = """
import json, resource, subprocess, sys
code = subprocess.run([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL).returncode
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
sys.stdout.write(json.dumps({"rss_gb": peak}) + "\\n")
sys.exit(code)
"""


def report() -> None:
    """Print the highest resident memory of this process or one that it waited for."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peak = max(resource.getrusage(kind).ru_maxrss for kind in kinds) * 1024 / 1e9
    sys.stdout.write("\n" + json.dumps({"rss_gb": peak}) + "\n")


def merge(options: argparse.Namespace) -> None:
    from slmctl.artifacts import artifact
    from slmctl.config import MergeConfig
    from slmctl.stages.merge import merge

    (options.out / "merged").mkdir()
    base, adapter = (
        artifact.foreign(options.base, "base"),
        artifact.foreign(options.adapter, "adapter"),
    )
    merge.run(MergeConfig(), base=base, adapter=adapter, out=options.out / "merged")


def files(options: argparse.Namespace) -> None:
    """The conversion and the ladder, as `quantize` writes them."""
    from slmctl.artifacts import artifact
    from slmctl.config import QuantizeConfig
    from slmctl.model_files.base_model import Base
    from slmctl.stages.quantize import gguf_files

    config, out = QuantizeConfig(project="bench", types=list(TYPES)), options.out / "files"
    (out / "scratch").mkdir(parents=True)
    merged, base = (
        artifact.foreign(options.out / "merged", "merged"),
        Base.read(options.out / "merged"),
    )
    lossless = gguf_files.convert(config, merged, base, out / "scratch")
    gguf_files.write(lossless, gguf_files.plan(config, base, out, weighted=False))


def stage(options: argparse.Namespace) -> None:
    """The whole stage: importance matrix, files, and every check."""
    from slmctl.artifacts import artifact
    from slmctl.config import QuantizeConfig
    from slmctl.stages.quantize import quantize

    config, out = QuantizeConfig(project="bench", types=list(TYPES)), options.out / "stage"
    out.mkdir()
    shutil.copyfile(options.prepared / "task.json", options.out / "merged" / "task.json")
    merged, prepared = (
        artifact.foreign(options.out / "merged", "merged"),
        artifact.foreign(options.prepared, "prepared"),
    )
    quantize.run(config, merged=merged, prepared=prepared, out=out)


def peer_merge(options: argparse.Namespace) -> None:
    """As PEFT's documentation has it: load in the base's own type, merge, save."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(options.base), options.adapter
    )
    model.merge_and_unload().save_pretrained(options.out / "peer")
    AutoTokenizer.from_pretrained(options.base).save_pretrained(options.out / "peer")


def peer_quantize(options: argparse.Namespace, type_name: str) -> None:
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{type_name}")
    params.nthread = len(os.sched_getaffinity(0))
    source, target = options.out / "peer.gguf", options.out / f"peer-{type_name}.gguf"
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params) != 0:
        sys.exit(f"llama.cpp could not write {target}")


STEPS: dict[str, Callable[[argparse.Namespace], None]] = {
    "merge": merge,
    "files": files,
    "stage": stage,
    "peer-merge": peer_merge,
    **{f"peer-{name}": functools.partial(peer_quantize, type_name=name) for name in TYPES},
}
OURS = ("merge", "files")
PEERS = ("peer-merge", "peer-convert", *(f"peer-{name}" for name in TYPES))


if __name__ == "__main__":
    main()
