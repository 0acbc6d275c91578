"""merged -> gguf: files that llama.cpp runs, each held against the merged model before it counts."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slmctl import console, converter, engine, weights
from slmctl.artifact import Artifact, sha256_file
from slmctl.base import Base
from slmctl.config import QuantizeConfig
from slmctl.errors import StageError
from slmctl.model import _gguf, _importance, _ladder, _lora_gguf, _parity
from slmctl.model._gguf import Head
from slmctl.model._ladder import WEIGHTED, Lossless, Matrix
from slmctl.quantizer import Target
from slmctl.records import Record, read_records
from slmctl.task import Task

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
    held_out = read_records(prepared.file("validation.jsonl"))
    with tempfile.TemporaryDirectory(dir=out) as place:
        scratch = Path(place)
        lossless = _ladder.convert(config, merged, base, scratch)
        wanted, matrix, rows = _computed(config, merged, prepared, task, held_out, lossless)
        checked = _parity.check(lossless.path, lossless.head, wanted, scratch=scratch)
        _parity.check_lossless(checked, lossless.path.name)
        targets = _ladder.plan(config, base, out, weighted=bool(matrix))
        _ladder.write(lossless, targets, matrix, rows=rows)
        files = {}
        for target in targets:
            head = _gguf.read(target.path)
            parity = _parity.check(target.path, head, wanted, scratch=scratch)
            answered = _must_answer(target.path, task, held_out[:PROBES])
            files[target.type] = _entry(target, head) | parity | answered
            _say(target.type, files[target.type])
        lora = {}
        if adapter is not None:
            lora = _lora_gguf.write(adapter, merged, out / _ladder.file_name(config, base, "F16-LoRA"))
    for note in _ladder.dominated(files):
        console.say(f"  note: {note}")
    base.write(out)
    return {
        "files": files, "lossless": {"type": lossless.type} | checked, "importance_rows": rows,
        "converter_source_sha256": converter.source_hash(),
    } | ({"lora": lora} if lora else {})  # fmt: skip


def _computed(
    config: QuantizeConfig,
    merged: Artifact,
    prepared: Artifact,
    task: Task,
    held_out: Sequence[Record],
    lossless: Lossless,
) -> tuple[_parity.Reference, Matrix, int]:
    """What needs the merged model in transformers: what files must match, and the importance matrix with its rows."""
    tokenizer, model = weights.load_tokenizer(merged.path), weights.load_model(merged.path)
    wanted = _parity.reference(model, tokenizer, task, held_out)
    _parity.check_head(lossless.path.name, lossless.head, wanted)
    count = {"auto": AUTO_ROWS, "off": 0}.get(str(config.importance), config.importance)
    if not count or not any(WEIGHTED.match(name) for name in config.types):
        return wanted, {}, 0
    records = _spread(read_records(prepared.file("train.jsonl")), int(count))
    texts = [task.prompt(record.prompt_messages) + task.defused(record.answer) + task.end for record in records]
    matrix = _importance.measure(model, [_parity.encode(tokenizer, text) for text in texts], lossless.head)
    return wanted, matrix, len(records)


def _spread(records: Sequence[Record], count: int) -> list[Record]:
    """`count` records from the whole of the data set, evenly."""
    if len(records) <= count:
        return list(records)
    return [records[index * len(records) // count] for index in range(count)]


def _entry(target: Target, head: Head) -> dict[str, Any]:
    return {
        "file": target.path.name,
        "size": target.path.stat().st_size,
        "sha256": sha256_file(target.path).removeprefix("sha256:"),
        "importance": target.weighted,
        **_ladder.measure(head, target.type),
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
