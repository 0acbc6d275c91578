"""merged -> gguf: files that llama.cpp runs, each held against
the merged model before it counts.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from slmctl import console, hardware
from slmctl.artifacts import atomic
from slmctl.artifacts.artifact import Artifact
from slmctl.config import QuantizeConfig, resolve_matmul_dtype
from slmctl.config.quant_type import QuantType
from slmctl.console import percent
from slmctl.errors import StageError
from slmctl.inference import engine
from slmctl.inference.supervised_child import EngineError
from slmctl.model_files import gguf_converter, hf_folder, memory, model_size, stored_weights
from slmctl.model_files.base_model import Base
from slmctl.model_files.gguf_choice import LORA_TYPE
from slmctl.model_files.quantizer import QuantizedFile
from slmctl.stages.quantize import gguf_files, importance_matrix, lora_gguf, parity
from slmctl.stages.quantize.gguf_files import ImportanceMatrix, LosslessFile
from slmctl.stages.quantize.stage import LARGE
from slmctl.task.contract import Task
from slmctl.task.documents import training
from slmctl.task.records import Record, read_records

PROBE_PROMPTS = 8  # held-out prompts that each file must answer
# within which a free answer must end, or twice the reference answer's if these are more
MAX_PROBE_TOKENS = 256
ENDLESS_PROBE_TOKENS = 8  # of an answer that need not end
# of the converter, or of llama.cpp, without tensors, and of this process by then
CHILD_BYTES = 200_000_000
LARGEST_TENSOR_BYTES = 8  # a weight of the embedding, as it is read and as it is written
AUTO_RECORDS = 128  # training records for `importance_matrix: auto`


def run(
    config: QuantizeConfig,
    *,
    merged: Artifact | None = None,
    prepared: Artifact | None = None,
    adapter: Artifact | None = None,
    base_files: Sequence[Artifact] = (),
    base: Artifact | None = None,
    out: Path,
    must_end: bool = True,
) -> dict[str, Any]:
    """Write one GGUF file a type, from one lossless conversion, and the adapter's own where the
    config asks for it.

    Args:
        base_files: The base's own GGUF files, an artifact a type, on which the adapter's file is
            checked.
        base: Write the base's own files and nothing else, without the other inputs.
        must_end: Refuse a file that never ends an answer; False for a model of random weights,
            which ends none.

    Raises:
        MissingError: The converter has not been fetched.
        StageError: A file could not be written, or differs from the merged model in its results.
    """
    if base is not None:
        return lora_gguf.write_base(config, base, out)
    assert merged is not None and prepared is not None  # the roles of the stage
    facts, task = Base.read(merged.path), Task.read(merged.path)
    if adapter is not None:
        _require_merged(adapter, merged)
    needed = _estimate_bytes(merged.path, config.types)
    memory.require(needed, "quantizing", hint="a smaller base, or a machine with more")
    held_out = training(read_records(prepared.file("validation.jsonl")), task)
    with tempfile.TemporaryDirectory(dir=out) as place:
        scratch = Path(place)
        lossless = gguf_files.convert(config, merged, facts, scratch)
        count = _importance_records(config, facts)
        measured = _compute_reference(count, merged, prepared, task, held_out, lossless)
        reference, matrix = measured.reference, measured.matrix
        checked = parity.check_lossless(lossless.path, reference, scratch=scratch)
        targets = gguf_files.plan(config, facts, out, weighted=bool(matrix))
        both_ways = config.importance_matrix == "auto" and facts.parameters < LARGE
        twins = gguf_files.unweighted_twins(targets, scratch) if both_ways else {}
        gguf_files.write(lossless, [*targets, *twins.values()], matrix, rows=measured.records)
        files = {}
        for target in targets:
            kept, distances = _closest(target, twins.get(target.type), reference, scratch)
            answers = _probe_answers(kept.path, task, held_out[:PROBE_PROMPTS], must_end=must_end)
            files[target.type] = gguf_files.entry(kept) | distances | answers
            _report_file(target.type, files[target.type])
        more = {}
        if adapter is not None:
            path = out / gguf_files.file_name(config, facts, LORA_TYPE)
            own = lora_gguf.write(adapter, merged, path)
            if base_files:
                own["bases"] = lora_gguf.check_on_bases(
                    path, base_files, files, reference, scratch=scratch
                )
            more["lora"] = own
    for note in gguf_files.dominated_files(files):
        console.say(f"  note: {note}")
    facts.write(out)
    return {
        "files": files,
        "lossless": {"type": lossless.type} | checked,
        "importance_rows": measured.records,
        "memory_estimate": needed,
        "converter_source_sha256": gguf_converter.source_hash(),
        **more,
    }


def _require_merged(adapter: Artifact, merged: Artifact) -> None:
    if merged.manifest.inputs.get("adapter", adapter.digest) != adapter.digest:
        raise StageError(
            f"{merged.path} was not merged from {adapter.path}", hint="slmctl run --until merge"
        )


def _estimate_bytes(folder: Path, types: Sequence[str]) -> int:
    """Estimated peak of this stage with its child processes: the
    reference, the largest tensor, or the answers.
    """
    memory.trim_heap()  # memory that a training in this process has freed would count as held
    model, cells = model_size.read(folder), PROBE_PROMPTS * engine.CONTEXT
    reference = model.stored_bytes(
        parity.BATCH_TOKENS, kept=2 * parity.MAX_LOGIT_BYTES // (4 * model.vocabulary)
    )
    converter = CHILD_BYTES + LARGEST_TENSOR_BYTES * model.vocabulary * model.hidden
    answers = (
        CHILD_BYTES + 2 * cells * model.cache + int(memory.repacked_bytes(types) * model.linear)
    )
    return max(reference, hardware.held_bytes() + max(converter, answers))


def _importance_records(config: QuantizeConfig, base: Base) -> int:
    """Number of training records that the importance matrix is
    measured on; 0 where no type takes one.
    """
    if not any(QuantType(name).takes_matrix for name in config.types):
        return 0
    auto = AUTO_RECORDS // 2 if base.parameters >= LARGE else AUTO_RECORDS
    return int(
        {"auto": auto, "off": 0}.get(str(config.importance_matrix), config.importance_matrix)
    )


class _Measured(NamedTuple):
    """The reference of all files by a merged model, the importance matrix, and the number of
    records that this one is of.
    """

    reference: parity.MergedModelReference
    matrix: ImportanceMatrix
    records: int


def _compute_reference(
    count: int,
    merged: Artifact,
    prepared: Artifact,
    task: Task,
    held_out: Sequence[Record],
    lossless: LosslessFile,
) -> _Measured:
    """Load the merged model once in transformers.

    Args:
        count: Training records to measure the matrix on.
    """
    tokenizer, model = (
        hf_folder.load_tokenizer(merged.path),
        hf_folder.load_model(merged.path, dtype="stored"),
    )
    reference = parity.reference(model, tokenizer, task, held_out)
    parity.check_head(lossless.path.name, lossless.head, reference)
    if not count:
        return _Measured(reference, {}, 0)
    texts = texts_of(training(read_records(prepared.file("train.jsonl")), task), task, count)
    # mean squares need no more, and it takes half the time
    if resolve_matmul_dtype("auto") == "bfloat16":
        stored_weights.multiply_in(model, torch.bfloat16)
    matrix = importance_matrix.measure(
        model, [parity.encode(tokenizer, text) for text in texts], lossless.head
    )
    return _Measured(reference, matrix, len(texts))


def texts_of(records: Sequence[Record], task: Task, count: int) -> list[str]:
    """Rendered prompts with answers of `count` records, spread evenly over all of them."""
    count = min(count, len(records))
    chosen = [records[index * len(records) // count] for index in range(count)]
    return [
        prompt_of(task, record) + task.rules.written(record.answer) + task.end for record in chosen
    ]


def prompt_of(task: Task, record: Record) -> str:
    """The rendered prompt of a record."""
    return task.prompt(record.prompt_messages, tools=record.tools)


def _closest(
    target: QuantizedFile,
    other: QuantizedFile | None,
    reference: parity.MergedModelReference,
    scratch: Path,
) -> tuple[QuantizedFile, dict[str, Any]]:
    """Compare a file with the merged model; of two written with and
    without the matrix keep the closer one.
    """
    weighted = parity.check(target.path, reference, scratch=scratch)
    if other is None:
        return target, weighted
    plain = parity.check(other.path, reference, scratch=scratch)
    both = {"kl_weighted": weighted.get("kl_mean"), "kl_plain": plain.get("kl_mean")}
    if not (
        "kl_mean" in plain and "kl_mean" in weighted and plain["kl_mean"] < weighted["kl_mean"]
    ):
        other.path.unlink()
        return target, weighted | both
    atomic.move(other.path, target.path)
    return dataclasses.replace(target, weighted=False), plain | both


def _report_file(name: str, entry: dict[str, Any]) -> None:
    parts = [console.size(entry["size"]), f"{entry['bits_per_weight']:.2f} bits a weight"]
    if entry["fallback_tensors"]:
        parts.append(
            f"{entry['fallback_tensors']} of {entry['matrices']} tensors kept at a higher type"
        )
    if "kl_mean" in entry:
        parts.append(
            f"{entry['kl_mean']:.4f} nats from the merged model, "
            f"{percent(entry['top1_agreement'])} the same tokens"
        )
    console.say(f"  {name}: {', '.join(parts)}")


def _probe_answers(
    path: Path, task: Task, probes: Sequence[Record], *, must_end: bool = True
) -> dict[str, Any]:
    """Answer held-out prompts with the engine that will serve the file.

    Raises:
        StageError: The engine fails on it, or no answer ends within its tokens and one must.
    """
    with engine.Engine(path, sequences=PROBE_PROMPTS) as model:
        longest = [
            _longest_answer(model, task, probe) if must_end else ENDLESS_PROBE_TOKENS
            for probe in probes
        ]
        requests = [
            engine.Request(prompt_of(task, probe), max_tokens=count)
            for probe, count in zip(probes, longest, strict=True)
        ]
        answers = [answer for _, answer in model.ask_all(requests, widen=True)]
    failed = [answer for answer in answers if isinstance(answer, EngineError)]
    if failed:
        raise StageError(f"{path.name} does not answer: {failed[0].message}")
    stopped = sum(
        isinstance(a, engine.Answer) and a.finish == "stop" and bool(a.text.strip())
        for a in answers
    )
    if stopped == 0 and must_end:
        raise StageError(
            f"{path.name} never ends an answer: 0 of {len(answers)} held-out prompts within "
            f"{max(longest)} tokens",
            hint="train longer: more finetune.epochs, or finetune.max_steps where it is set",
        )
    return {"probes": len(answers), "probes_stopped": stopped}


def _longest_answer(model: engine.Engine, task: Task, probe: Record) -> int:
    """Tokens within which a held-out prompt must be answered, as
    far as the context has room for them.
    """
    reference = model.tokenize(task.rules.written(probe.answer) + task.end)
    context = min(model.info["trained_context"], PROBE_PROMPTS * engine.CONTEXT)
    room = context - len(model.tokenize(prompt_of(task, probe)))
    return max(MAX_PROBE_TOKENS, min(2 * len(reference), room))
