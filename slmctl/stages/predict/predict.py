"""one model + records of a split -> predictions: every answer with its confidence, in the records' order."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmctl import console
from slmctl.artifacts.artifact import Artifact, FileEntry, canonical
from slmctl.config import PredictConfig, resolve_matmul_dtype
from slmctl.errors import StageError
from slmctl.inference import engine, json_grammar
from slmctl.inference.escalation_policy import LABELS
from slmctl.model_files import memory
from slmctl.model_files.gguf_choice import gguf_file, lora_file
from slmctl.stages.predict import latency, released
from slmctl.stages.predict.prompts import Prompt, asked, few_shot
from slmctl.task import untuned_prompt
from slmctl.task.contract import Task
from slmctl.task.records import Record, read_records, require_records, write_jsonl

if TYPE_CHECKING:
    from slmctl.stages.predict.transformers_answerer import HfAnswerer

LORA = "lora"  # the adapter's name inside of the engine


def run(
    config: PredictConfig, *, model: Artifact, prepared: Artifact, out: Path, base: Artifact | None = None
) -> dict[str, Any]:
    """Answer every record of one split, and write `predictions.jsonl` in the records' order.

    Raises:
        UsageError: The model has several GGUF files and none is chosen.
        StageError: The model could not answer a row.
    """
    if model.kind == "endpoint":
        from slmctl.stages.predict import endpoint_predictions  # httpx is needed for these alone

        metrics = endpoint_predictions.run(config, model=model, prepared=prepared, out=out)
    else:
        metrics = _run(config, model, prepared, base, out)
    # The model is part of the artifact: two files can give the same answers, and a report measures one of them.
    source = {key: metrics.get(key) for key in ("model", "kind", "sha256", "endpoint")}
    source |= {"base_sha256": metrics["base_sha256"]} if "base_sha256" in metrics else {}
    (out / "model.json").write_bytes(canonical(source))
    return metrics


def _run(
    config: PredictConfig, model: Artifact, prepared: Artifact, base: Artifact | None, out: Path
) -> dict[str, Any]:
    """Answer with a model on this machine."""
    task = Task.read(prepared.path)
    records = require_records(prepared.file(f"{config.split}.jsonl"))
    untuned = model.kind == "base"  # it was not trained on the labels, so its prompt lists them
    name = config.release or (config.type if model.kind in ("gguf", "published") else model.kind)
    if config.lora:
        name = f"lora-{name}"
    own = released.contract(model, task) if config.release else task
    train = read_records(prepared.file("train.jsonl")) if config.shots else []
    examples = untuned_prompt.shots(task, train, config.shots or 0)
    if examples:
        name = f"{name} ({len(examples)}-shot)"
    asking = opened(model, own, base=base, type=config.type, max_tokens=config.max_tokens, lora=config.lora)
    with asking as (answerer, weights):
        if examples:
            prompts = few_shot(task, examples, records)
        elif config.release:
            prompts = [asked(own, released.as_asked(record, own, task)) for record in records]
        else:
            prompts = [asked(task, record, list_labels=untuned) for record in records]
        waits = latency.one_by_one(answerer, prompts)
        begun = time.monotonic()
        answers: list[engine.Answer | None] = [None] * len(records)
        with console.progress(f"predict {name}", len(records), "rows") as meter:
            for index, answer in answerer.answer(prompts):
                if isinstance(answer, engine.EngineError):
                    raise StageError(f"row {records[index].id} could not be answered: {answer.message}")
                answers[index] = answer
                meter.advance()
        seconds = time.monotonic() - begun
    write_jsonl(
        out / "predictions.jsonl", (_line(record, answer) for record, answer in zip(records, answers, strict=True))
    )
    return {
        "model": name or Path(weights.path).stem,
        "kind": "release" if config.release else "lora" if config.lora else model.kind,
        **({"release": f"{model.metrics['project']} {model.metrics['version']}"} if config.release else {}),
        "split": config.split,
        "n": len(records),
        "size": weights.size,
        "sha256": weights.sha256,
        **({"base_sha256": gguf_file(base, config.type).sha256} if config.lora and base is not None else {}),
        "prompt_lists_labels": untuned and bool(task.labels),
        **({"shots": len(examples)} if examples else {}),
        "constrained_by": "labels" if task.labels else "schema" if task.constraint else "nothing",
        "engine": answerer.model.info["build"] if isinstance(answerer, GgufAnswerer) else None,
        "matmul_dtype": answerer.matmul_dtype,
        "latency_ms": waits,
        "rows_per_s": round(len(records) / max(seconds, 1e-9), 2),
    }


@contextlib.contextmanager
def opened(
    model: Artifact, task: Task, *, base: Artifact | None = None, type: str | None = None, max_tokens: int = 256,
    lora: bool = False,
) -> Iterator[tuple[GgufAnswerer | HfAnswerer, FileEntry]]:  # fmt: skip
    """A model for answering, and the file that answers: the GGUF itself, or the safetensors of an HF model.

    Args:
        model: An artifact, or a release.
        task: The contract that its answers are held to.
        base: The base of an adapter.
        type: The quantization type, of a model with several GGUF files.
        max_tokens: The longest answer.
        lora: Load the adapter's own file on the base's, as the server loads it for several adapters.

    Raises:
        DataError: The answers cannot be held to the task's schema.
    """
    if task.kind == "extract":
        json_grammar.require(task.schema or {})
    if not lora and model.kind not in ("gguf", "published"):
        from slmctl.stages.predict.transformers_answerer import HfAnswerer  # torch is needed for HF models alone

        dtype = resolve_matmul_dtype("auto")
        try:
            yield (
                HfAnswerer(model, task, base=base, max_tokens=max_tokens, matmul_dtype=dtype),
                _whole(model, base),
            )
        finally:
            memory.trim_heap()  # the keys and values of its batches
        return
    own, entry = (base, gguf_file(base, type)) if lora and base is not None else (model, gguf_file(model, type))
    path = own.file(entry.path)
    memory.require_engine(path, sequences=engine.SEQUENCES, context=engine.CONTEXT)
    if lora:
        adapter = lora_file(model)
        with engine.Engine(path, adapters={LORA: model.file(adapter.path)}) as loaded:
            size = adapter.size + entry.size
            yield GgufAnswerer(loaded, task, max_tokens, adapter=LORA), dataclasses.replace(adapter, size=size)
        return
    with engine.Engine(path, grammars=bool(task.constraint), classifier=bool(task.labels)) as loaded:
        yield GgufAnswerer(loaded, task, max_tokens), entry


class GgufAnswerer:
    """Answers through the engine."""

    def __init__(self, model: engine.Engine, task: Task, max_tokens: int, adapter: str = "") -> None:
        self.model, self.task, self.max_tokens, self.adapter = model, task, max_tokens, adapter
        self.matmul_dtype = "bfloat16" if model.info["expanded"] else None  # None: by the types of the file

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, engine.Answer | engine.EngineError]]:
        requests = (request(self.task, prompt, max_tokens=self.max_tokens, adapter=self.adapter) for prompt in prompts)
        for index, answer in self.model.ask_all(requests, widen=True, alone=True):
            yield index, kept(self.task, answer)


def kept(task: Task, answer: engine.Answer | engine.EngineError) -> engine.Answer | engine.EngineError:
    """An answer with its text as answers are kept, whatever the form in which the model writes it."""
    if task.kind != "call" or isinstance(answer, engine.EngineError):
        return answer
    return dataclasses.replace(answer, text=task.kept(answer.text))


def request(task: Task, prompt: Prompt, *, max_tokens: int, adapter: str = "") -> engine.Request:
    """The engine's request for a prompt, constrained to the answers that the task allows."""
    return engine.Request(
        prompt.text, prompt.prefix, labels=task.labels, end=task.end, max_tokens=max_tokens, stop=(task.end,),
        schema=prompt.constraint or task.constraint, adapter=adapter,
    )  # fmt: skip


def _whole(model: Artifact, base: Artifact | None) -> FileEntry:
    """The weights of an HF model as one entry; an adapter's size includes its base, which it needs."""
    size = sum(entry.size for entry in model.files(".safetensors"))
    if model.kind == "adapter" and base is not None:
        size += sum(entry.size for entry in base.files(".safetensors"))
    return FileEntry(model.path.name, size, model.digest.removeprefix("sha256:"))


def _line(record: Record, answer: engine.Answer | None) -> dict[str, Any]:
    assert answer is not None
    likeliest = dict(itertools.islice(answer.labels.items(), LABELS))
    return {
        "id": record.id,
        "answer": answer.text,
        "expected": record.answer,
        "confidence": answer.confidence,
        **({"labels": likeliest} if likeliest else {}),
        **({"logprobs": answer.logprobs} if answer.logprobs else {}),
        **({"raw_logprobs": answer.raw_logprobs} if answer.raw_logprobs else {}),
        "finish": answer.finish,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
    }
