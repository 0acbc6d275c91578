"""merged -> gguf: files that llama.cpp runs, each held against the merged model before it counts."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slmctl import console
from slmctl.artifacts import atomic
from slmctl.artifacts.artifact import Artifact, sha256_file
from slmctl.config import QuantizeConfig
from slmctl.errors import StageError
from slmctl.inference import engine
from slmctl.model_files import gguf_converter, gguf_header, hf_folder
from slmctl.model_files.base_model import Base
from slmctl.model_files.gguf_header import Head
from slmctl.model_files.quantizer import Target
from slmctl.stages.quantize import gguf_files, importance_matrix, lora_gguf, parity
from slmctl.stages.quantize.gguf_files import WEIGHTED, Lossless, Matrix
from slmctl.task.contract import Task
from slmctl.task.records import Record, read_records

PROBES = 8  # held-out prompts that each file must answer
FREE_TOKENS = 256  # within which a free answer must end
AUTO_ROWS = 128  # training records for `importance: auto`


def run(
    config: QuantizeConfig, *, merged: Artifact, prepared: Artifact, adapter: Artifact | None = None, out: Path
) -> dict[str, Any]:
    """Write one GGUF file a type, from one lossless conversion, and the adapter's own where it is asked for.

    Raises:
        MissingError: The converter has not been fetched.
        StageError: A file could not be written, or is not what the merged model is.
    """
    base, task = Base.read(merged.path), Task.read(merged.path)
    if adapter is not None and merged.manifest.inputs.get("adapter", adapter.digest) != adapter.digest:
        raise StageError(f"{merged.path} was not merged from {adapter.path}", hint="slmctl run --until merge")
    held_out = read_records(prepared.file("validation.jsonl"))
    with tempfile.TemporaryDirectory(dir=out) as place:
        scratch = Path(place)
        lossless = gguf_files.convert(config, merged, base, scratch)
        wanted, matrix, rows = _computed(config, merged, prepared, task, held_out, lossless)
        checked = parity.check(lossless.path, lossless.head, wanted, scratch=scratch)
        parity.check_lossless(checked, lossless.path.name)
        if "kl_mean" not in checked:
            console.say(
                f"  note: no held-out record has under {parity.LONGEST} tokens, so next tokens were not compared"
            )
        targets = gguf_files.plan(config, base, out, weighted=bool(matrix))
        # `auto` writes what may go without the matrix both ways, and keeps the one that is closer
        both = [target for target in targets if config.importance_matrix == "auto" and gguf_files.has_choice(target)]
        others = {target.type: Target(target.type, scratch / target.path.name) for target in both}
        gguf_files.write(lossless, [*targets, *others.values()], matrix, rows=rows)
        files = {}
        for target in targets:
            kept, distances = _closest(target, others.get(target.type), wanted, scratch)
            answered = _must_answer(kept.path, task, held_out[:PROBES])
            files[target.type] = _entry(kept, gguf_header.read(kept.path)) | distances | answered
            _say(target.type, files[target.type])
        lora = {}
        if adapter is not None:
            lora = lora_gguf.write(adapter, merged, out / gguf_files.file_name(config, base, "F16-LoRA"))
    for note in gguf_files.dominated(files):
        console.say(f"  note: {note}")
    base.write(out)
    return {
        "files": files, "lossless": {"type": lossless.type} | checked, "importance_rows": rows,
        "converter_source_sha256": gguf_converter.source_hash(),
    } | ({"lora": lora} if lora else {})  # fmt: skip


def _computed(
    config: QuantizeConfig,
    merged: Artifact,
    prepared: Artifact,
    task: Task,
    held_out: Sequence[Record],
    lossless: Lossless,
) -> tuple[parity.Reference, Matrix, int]:
    """What needs the merged model in transformers: what files must match, and the importance matrix with its rows."""
    tokenizer, model = hf_folder.load_tokenizer(merged.path), hf_folder.load_model(merged.path)
    wanted = parity.reference(model, tokenizer, task, held_out)
    parity.check_head(lossless.path.name, lossless.head, wanted)
    count = {"auto": AUTO_ROWS, "off": 0}.get(str(config.importance_matrix), config.importance_matrix)
    if not count or not any(WEIGHTED.match(name) for name in config.types):
        return wanted, {}, 0
    texts = texts_of(read_records(prepared.file("train.jsonl")), task, int(count))
    matrix = importance_matrix.measure(model, [parity.encode(tokenizer, text) for text in texts], lossless.head)
    return wanted, matrix, len(texts)


def texts_of(records: Sequence[Record], task: Task, count: int) -> list[str]:
    """Rendered prompts with answers of `count` records, spread evenly over the whole of them."""
    count = min(count, len(records))
    chosen = [records[index * len(records) // count] for index in range(count)]
    return [asked_of(task, record) + task.defused(record.answer) + task.end for record in chosen]


def asked_of(task: Task, record: Record) -> str:
    """The rendered prompt of a record."""
    return task.prompt(record.prompt_messages, tools=record.tools)


def _closest(
    target: Target, other: Target | None, wanted: parity.Reference, scratch: Path
) -> tuple[Target, dict[str, Any]]:
    """Hold a file against the merged model; where it was written both ways, keep the closer one under its name."""
    weighted = parity.check(target.path, gguf_header.read(target.path), wanted, scratch=scratch)
    if other is None:
        return target, weighted
    plain = parity.check(other.path, gguf_header.read(other.path), wanted, scratch=scratch)
    both = {"kl_weighted": weighted.get("kl_mean"), "kl_plain": plain.get("kl_mean")}
    if not ("kl_mean" in plain and "kl_mean" in weighted and plain["kl_mean"] < weighted["kl_mean"]):
        other.path.unlink()
        return target, weighted | both
    atomic.move(other.path, target.path)
    return dataclasses.replace(target, weighted=False), plain | both


def _entry(target: Target, head: Head) -> dict[str, Any]:
    return {
        "file": target.path.name,
        "size": target.path.stat().st_size,
        "sha256": sha256_file(target.path).removeprefix("sha256:"),
        "importance": target.weighted,
        **gguf_files.measure(head, target.type),
    }


def _say(name: str, entry: dict[str, Any]) -> None:
    parts = [console.size(entry["size"]), f"{entry['bits_per_weight']:.2f} bits a weight"]
    if entry["fallback_tensors"]:
        parts.append(f"{entry['fallback_tensors']} of {entry['matrices']} tensors kept at a higher type")
    if "kl_mean" in entry:
        parts.append(
            f"{entry['kl_mean']:.4f} nats from the merged model, {entry['top1_agreement']:.1%} the same tokens"
        )
    console.say(f"  {name}: {', '.join(parts)}")


def _must_answer(path: Path, task: Task, probes: Sequence[Record]) -> dict[str, Any]:
    """Ask a file held-out prompts through the engine that will serve it; it must end at least one answer."""
    with engine.Engine(path, sequences=PROBES) as model:
        requests = [engine.Request(asked_of(task, probe), max_tokens=FREE_TOKENS) for probe in probes]
        answers = [answer for _, answer in model.ask_all(requests, widen=True)]
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
