"""merged -> gguf: files that llama.cpp runs, each loaded and asked before it counts."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import gguf

from slmctl import console, converter, engine
from slmctl.artifact import Artifact, sha256_file
from slmctl.base import Base
from slmctl.config import QuantizeConfig
from slmctl.errors import StageError
from slmctl.records import Record, read_records
from slmctl.task import Task

PROBES = 8  # held-out prompts that each file must answer
FREE_TOKENS = 256  # within which a free answer must end


def run(config: QuantizeConfig, *, merged: Artifact, prepared: Artifact, out: Path) -> dict[str, Any]:
    """Write one GGUF file a type, from one lossless conversion.

    Raises:
        MissingError: The converter has not been fetched.
        StageError: A file could not be written, or does not answer and stop.
    """
    base, task = Base.read(merged.path), Task.read(merged.path)
    probes = read_records(prepared.file("validation.jsonl"))[:PROBES]
    files: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        lossless, dtype = Path(scratch) / "lossless.gguf", _dtype(merged.path)
        converter.convert(merged.path, lossless, dtype=dtype, metadata=_metadata(config, base))
        for name in dict.fromkeys(config.types):
            target = out / file_name(config, base, name)
            engine.quantize(lossless, target, name)
            measured = measure(target)
            measured |= _must_answer(target, task, probes)
            files[name] = {"file": target.name, "size": target.stat().st_size, **measured}
            files[name]["sha256"] = sha256_file(target).removeprefix("sha256:")
            note = (
                f", {measured['fallback_tensors']} tensors kept at a higher type"
                if measured["fallback_tensors"]
                else ""
            )
            console.say(
                f"  {name}: {console.size(files[name]['size'])}, {measured['bits_per_weight']:.2f} bits a weight{note}"
            )
        source = converter.source_hash()
    base.write(out)
    return {"files": files, "converted_as": dtype, "converter_source_sha256": source}


def file_name(config: QuantizeConfig, base: Base, type_name: str) -> str:
    """A name by the GGUF convention: `SmolLM2-135M-acme-support-v1.0-Q4_K_M.gguf`."""
    stem = re.split(r"[-_](?=\d+(?:\.\d+)?[KMBT](?:[-_.]|$))", base.name, maxsplit=1, flags=re.IGNORECASE)[0]
    return f"{stem}-{base.size_label}-{config.project}-v{config.version}-{type_name}.gguf"


def measure(path: Path) -> dict[str, Any]:
    """Real bits a weight of a GGUF file, and how many tensors fell back to another type than most.

    K-quants need rows of a multiple of 256; tensors with other rows silently get a larger type.
    """
    tensors = gguf.GGUFReader(path).tensors
    weights = sum(int(t.n_elements) for t in tensors)
    matrices = [t for t in tensors if len(t.shape) > 1]
    types: dict[str, int] = {}
    for tensor in matrices:
        types[tensor.tensor_type.name] = types.get(tensor.tensor_type.name, 0) + 1
    odd_rows = [t for t in matrices if int(t.shape[0]) % 256 and "_K" not in t.tensor_type.name]
    is_k = "_K" in path.stem.rpartition("-")[2]
    return {
        "bits_per_weight": round(sum(int(t.n_bytes) for t in tensors) * 8 / weights, 3),
        "tensor_types": dict(sorted(types.items())),
        "fallback_tensors": len(odd_rows) if is_k else 0,
    }


def _must_answer(path: Path, task: Task, probes: list[Record]) -> dict[str, Any]:
    """Load the file, see that it ends a turn as its task says, and ask it held-out prompts."""
    with engine.Engine(path, sequences=PROBES) as model:
        template = model.info["chat_template"]
        if template != task.chat_template:
            raise StageError(f"{path.name} carries another chat template than it was trained with")
        if len(model.tokenize(task.end)) != 1:
            raise StageError(f"{path.name} does not read '{task.end}' as one token, so it could not end a turn")
        requests = [engine.Request(task.prompt(probe.prompt_messages), max_tokens=FREE_TOKENS) for probe in probes]
        answers = [answer for _, answer in model.ask_all(requests)]
    failed = [answer for answer in answers if isinstance(answer, engine.EngineError)]
    if failed:
        raise StageError(f"{path.name} does not answer: {failed[0].message}")
    stopped = sum(isinstance(a, engine.Answer) and a.finish == "stop" and bool(a.text.strip()) for a in answers)
    if stopped == 0:
        raise StageError(
            f"{path.name} never ends an answer: 0 of {len(answers)} held-out prompts within {FREE_TOKENS} tokens",
            hint="train longer: --set finetune.epochs=4",
        )
    return {"probes": len(answers), "probes_stopped": stopped}


def _metadata(config: QuantizeConfig, base: Base) -> dict[str, str]:
    fields = {
        "general.name": f"{base.name} {config.project} {config.version}",
        "general.finetune": config.project,
        "general.version": f"v{config.version}",
        "general.license": base.license,
        "general.quantized_by": "slmctl",
    }
    return {key: value for key, value in fields.items() if value}


def _dtype(folder: Path) -> str:
    """The GGUF type that holds a model's weights without loss."""
    config = json.loads((folder / "config.json").read_bytes())
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return {"float16": "f16", "bfloat16": "bf16"}.get(dtype, "f32")
