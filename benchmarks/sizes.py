"""Memory and time of every stage for Llamas of 0.1 to 7 billion random weights, each stage beside
its own estimate.

    python -m benchmarks.sizes 1B 3B 7B [--keep FOLDER]

The weights are random and in bfloat16, and are written shard by shard. A stage runs in a process of
its own; its peak is the highest sum of anonymous memory over it and its children, 20 times a
second. Pages of mapped files are left out: the kernel drops them when memory runs short. But
llama.cpp reads the whole GGUF for every token, so where it answers the file counts. A 7B needs 60
GB of free disk.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import program, result

STAGES = ("finetune", "merge", "quantize", "predict", "predict-gguf")
INPUTS = {
    "finetune": ("base", "prepared"),
    "merge": ("base", "adapter"),
    "quantize": ("merged", "prepared"),
    "predict": ("merged", "prepared"),
    "predict-gguf": ("gguf", "prepared"),
}
LEAVES = dict(
    zip(STAGES, ("adapter", "merged", "gguf", "predictions", "predictions-gguf"), strict=True)
)
TYPES = ("Q8_0", "Q4_K_M")
RECORDS = 160  # of which the stages take what they need
ANSWERED = 8  # rows of predict
STEPS = 3
SHAPES: dict[str, dict[str, Any]] = {
    "0.1B": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "intermediate_size": 2048,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
    },
    "0.3B": {
        "hidden_size": 1024,
        "num_hidden_layers": 20,
        "intermediate_size": 3072,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    },
    "1B": {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "3B": {
        "hidden_size": 3072,
        "num_hidden_layers": 28,
        "intermediate_size": 8192,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "7B": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "intermediate_size": 12288,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 64000,
    },
}
CONFIG = """\
project: sizes
version: "1.0"
base: ./base
task: {kind: classify, labels: from-data, system: Name the category.}
prepare: {sources: [{path: tickets.csv, input: text, output: category}]}
"""


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("sizes", nargs="*", choices=[*SHAPES, []], help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--keep", type=Path, help="folder to work in and to keep")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the section of the stage"
    )
    parser.add_argument(
        "--one", choices=STAGES, help="run one stage in the folder, and print what it found"
    )
    options = parser.parse_args()
    if options.one:
        sys.stdout.write(json.dumps(run(options.one, options.keep, options.set)) + "\n")
        return
    kept = result.FOLDER / "sizes.json"  # what was measured on another day stays
    measured: dict[str, dict[str, Any]] = (
        json.loads(kept.read_bytes())["measured"] if kept.exists() else {}
    )
    for name in options.sizes:
        title = " ".join((name, *options.set))
        with tempfile.TemporaryDirectory() as scratch:
            folder = options.keep or Path(scratch)
            if not (folder / "base").exists():
                write_model(folder, SHAPES[name])
            for stage in options.stages:
                measured.setdefault(title, {})[stage] = stage_in_child(stage, folder, options.set)
    rows = [
        result.compared(
            f"{name} {stage}: peak, GB",
            [found["peak_gb"]],
            [found["estimate_gb"]],
            peer="its estimate",
            goal="<= 1.15" if found["estimate_gb"] else "",
            digits=2,
        )
        for name, stages in measured.items()
        for stage, found in stages.items()
        if found.get("estimate_gb")
    ]
    result.write(
        "sizes",
        "python -m benchmarks.sizes 1B 3B 7B",
        rows,
        ("torch", "transformers", "peft", "llama-cpp-python"),
        measured=measured,
    )


def write_model(folder: Path, shape: dict[str, Any]) -> None:
    """A base and a prepared data set: tokenizer and records of the tests'
    tiny project, weights of the given shape.
    """
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from support import tiny

    from slmctl.model_files.base_model import Base

    desk = folder / "desk"
    desk.mkdir(parents=True)
    tiny.build_base(desk / "base")
    (desk / "slmctl.yaml").write_text(CONFIG, encoding="utf-8")
    tiny.write_csv(
        desk / "tickets.csv", [(" ".join([text] * 6), label) for text, label in tiny.rows(RECORDS)]
    )
    tiny.ok(tiny.slmctl(desk, "run", "--until", "prepare"))
    for kind in ("base", "prepared"):
        shutil.copytree(next((desk / "runs" / kind).iterdir()), folder / kind)
    for path in (folder / "base").glob("*.safetensors*"):
        path.unlink()
    write_weights(folder / "base", shape)
    test = folder / "prepared" / "test.jsonl"
    test.write_text(
        "".join(test.read_text(encoding="utf-8").splitlines(keepends=True)[:ANSWERED]),
        encoding="utf-8",
    )
    base = Base.read(folder / "base")
    count = sum(path.stat().st_size for path in (folder / "base").glob("*.safetensors")) // 2
    Base(**{**base.__dict__, "parameters": count}).write(folder / "base")


def write_weights(folder: Path, shape: dict[str, Any]) -> None:
    """Random weights as the class initialises them, one layer a
    shard, so that a layer is held at a time.
    """
    import torch
    from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

    from slmctl.model_files import hf_folder

    tokens = AutoConfig.from_pretrained(folder)
    config = LlamaConfig(
        **shape,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        dtype="bfloat16",
        max_position_embeddings=4096,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    with torch.device("meta"):
        described = LlamaForCausalLM(config).state_dict()
    shards: dict[str, list[str]] = {}
    for name in described:
        if not (config.tie_word_embeddings and name == "lm_head.weight"):
            place = name.split(".")[2] if ".layers." in name else name.replace(".", "_")
            shards.setdefault(f"model-{place}.safetensors", []).append(name)
    random = torch.Generator().manual_seed(0)
    for file, names in shards.items():
        tensors = {}
        for name in names:
            shape_of = described[name].shape
            draw = torch.empty(shape_of, dtype=torch.bfloat16)
            tensors[name] = (
                draw.normal_(0, 0.02, generator=random) if len(shape_of) > 1 else draw.fill_(1)
            )
        hf_folder.save(tensors, folder / file)
    index = {
        "metadata": {},
        "weight_map": {name: file for file, names in shards.items() for name in names},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def stage_in_child(stage: str, folder: Path, settings: list[str]) -> dict[str, Any]:
    """Run a stage in a process of its own, and watch its memory."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.sizes",
        "--one",
        stage,
        "--keep",
        str(folder),
        "--set",
        *settings,
    ]
    begun, peak = time.monotonic(), 0
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out:
        child = subprocess.Popen(command, stdout=out)
        while child.poll() is None:
            peak = max(peak, sum(map(anonymous_bytes, family(child.pid))))
            time.sleep(0.05)
        if child.returncode:
            sys.exit(f"{stage} ended with exit {child.returncode}")
        out.seek(0)
        found: dict[str, Any] = json.loads(out.read().splitlines()[-1])
    peak += found.get("mapped_bytes", 0)
    found |= {"peak_gb": round(peak / 1e9, 2), "seconds": round(time.monotonic() - begun, 1)}
    sys.stderr.write(f"{stage}: {json.dumps(found)}\n")
    return found


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for each in found:
        for task in Path(f"/proc/{each}/task").glob("*/children"):
            try:
                found += map(int, task.read_text(encoding="ascii").split())
            except OSError:
                continue
    return found


def anonymous_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def run(stage: str, folder: Path, settings: list[str]) -> dict[str, Any]:
    """Run a stage on the folders beside it; what it estimated is taken where it asks for memory."""
    from slmctl import hardware
    from slmctl.artifacts import artifact
    from slmctl.config import sections
    from slmctl.model_files import memory

    name = stage.partition("-")[0]
    estimates = [0.0]
    require = memory.require

    def noted(needed: int, *args: Any, **options: Any) -> None:
        estimates.append(needed / 1e9)
        require(needed, *args, **options)

    memory.require = noted
    asked: dict[str, Any] = {
        "finetune": {"max_steps": STEPS, "learning_rate": 4e-4, "matmul_dtype": "bfloat16"},
        "quantize": {"project": "sizes", "version": "1.0", "types": list(TYPES)},
        "predict-gguf": {"type": TYPES[0]},
    }.get(stage, {})
    asked |= dict(pair.split("=", 1) for pair in settings)
    config = getattr(sections, f"{name.capitalize()}Config").model_validate(asked)
    sources = {kind: artifact.foreign(folder / kind, kind) for kind in INPUTS[stage]}
    if name == "predict":
        sources["model"] = sources.pop(INPUTS[stage][0])
    out = folder / LEAVES[stage]
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    more: dict[str, Any] = {"keep": folder / "keep"} if name == "finetune" else {}
    if name == "quantize":
        more = {"must_end": False}  # random weights end no answer
    found = importlib.import_module(f"slmctl.stages.{name}.{name}").run(
        config, out=out, **sources, **more
    )
    shutil.copyfile(folder / "prepared" / "task.json", out / "task.json")
    kept = ("tokens_per_s", "rows_per_s", "lossless", "files", "memory_estimate", "memory_peak")
    mapped = {}
    if stage == "predict-gguf":
        (file,) = (folder / "gguf").glob(f"*-{TYPES[0]}.gguf")
        copied = memory.AMX in hardware.cpu_flags()  # then the pages of the file are not read again
        mapped = {"mapped_bytes": 0 if copied else file.stat().st_size}
    return {
        "estimate_gb": round(max(estimates), 2),
        **mapped,
        **{key: found[key] for key in kept if key in found},
    }


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
