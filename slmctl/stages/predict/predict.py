"""one model + records of a split -> predictions: every answer with
its confidence, in the records' order.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slmctl import console, models
from slmctl.artifacts.artifact import Artifact, canonical
from slmctl.config import PredictConfig
from slmctl.errors import StageError
from slmctl.inference import engine
from slmctl.inference.supervised_child import EngineError
from slmctl.metrics.statistics import hashed_position
from slmctl.models.model import Model
from slmctl.models.prompts import asked, few_shot
from slmctl.stages.predict import latency, released
from slmctl.task import untuned_prompt
from slmctl.task.contract import Task
from slmctl.task.documents import training
from slmctl.task.records import Record, read_records, require_records, write_jsonl


def run(
    config: PredictConfig,
    *,
    model: Artifact,
    prepared: Artifact,
    out: Path,
    base: Artifact | None = None,
    sum: Artifact | None = None,
) -> dict[str, Any]:
    """Answer every record of one split, and write `predictions.jsonl` in the records' order.

    Raises:
        UsageError: The model has several GGUF files and none is chosen.
        StageError: The model could not answer a row.
    """
    source = models.of(
        model,
        type=config.type,
        base=base,
        sum=sum,
        own_file=config.lora,
        release=config.release or "",
    )
    if source.is_remote:
        from slmctl.stages.predict import endpoint_predictions  # httpx is needed for these alone

        metrics = endpoint_predictions.run(config, model=model, prepared=prepared, out=out)
    else:
        metrics = _run(config, source, prepared, out)
    # The model is part of the artifact: two files can give the same answers, and a report measures
    # one of them.
    named = {key: metrics.get(key) for key in ("model", "kind", "sha256", "endpoint")}
    named |= {"base_sha256": metrics["base_sha256"]} if "base_sha256" in metrics else {}
    (out / "model.json").write_bytes(canonical(named))
    return metrics


def _run(config: PredictConfig, model: Model, prepared: Artifact, out: Path) -> dict[str, Any]:
    task, release = Task.read(prepared.path), model.artifact.metrics
    records = require_records(prepared.file(f"{config.split}.jsonl"))
    sample = drawn(records, config.sample)
    own = released.contract(model.artifact, task) if config.release else task
    train = training(read_records(prepared.file("train.jsonl")), task) if config.shots else []
    examples = untuned_prompt.shots(task, train, config.shots or 0)
    name = f"{model.title}{f' ({len(examples)}-shot)' if examples else ''}"
    with model.open(
        own, max_tokens=config.max_tokens, whole_labels=config.whole_labels
    ) as answerer:
        if examples:
            prompts = few_shot(task, examples, sample)
        elif config.release:
            prompts = [asked(own, released.as_asked(record, own, task)) for record in sample]
        else:
            prompts = [asked(task, record, list_labels=model.untuned) for record in sample]
        waits = latency.one_by_one(answerer, prompts)
        step_ms = answerer.model.step_ms([prompt.question for prompt in prompts[: latency.ROWS]])
        begun = time.monotonic()
        answers: dict[str, engine.Answer] = {}
        with console.progress(f"predict {name}", len(sample), "rows") as meter:
            for index, answer in answerer.answer(prompts):
                if isinstance(answer, EngineError):
                    raise StageError(
                        f"row {sample[index].id} could not be answered: {answer.message}"
                    )
                answers[sample[index].id] = answer
                meter.advance()
        seconds = time.monotonic() - begun
    write_jsonl(
        out / "predictions.jsonl", (_line(record, answers.get(record.id)) for record in records)
    )
    return {
        "model": name,
        "kind": model.kind,
        **({"release": f"{release['project']} {release['version']}"} if config.release else {}),
        "split": config.split,
        **({"learned": True} if model.learns_validation and config.split == "validation" else {}),
        "n": len(records),
        **({"sample": len(sample)} if len(sample) < len(records) else {}),
        "size": model.weights.size,
        "sha256": model.digest,
        **({"base_sha256": model.base_sha256} if model.base_sha256 is not None else {}),
        "prompt_lists_labels": model.untuned and bool(task.labels),
        **({"shots": len(examples)} if examples else {}),
        "constrained_by": "labels"
        if task.labels
        else "schema"
        if task.rules.constraint()
        else "nothing",
        "engine": answerer.engine,
        "matmul_dtype": answerer.model.matmul_dtype,
        "latency_ms": waits,
        **({"step_ms": step_ms | {"": waits["median"]}} if step_ms else {}),
        "rows_per_s": round(len(sample) / max(seconds, 1e-9), 2),
    }


def drawn(records: Sequence[Record], count: int) -> list[Record]:
    """A sample of some records by a hash of their ids, in the records' order; 0 for all."""
    if not 0 < count < len(records):
        return list(records)
    order = sorted(records, key=lambda record: hashed_position(f"sample/{record.id}"))
    ids = {record.id for record in order[:count]}
    return [record for record in records if record.id in ids]


def _line(record: Record, answer: engine.Answer | None) -> dict[str, Any]:
    """A line of predictions; without an answer, of a row that is not of the sample."""
    if answer is None:
        line = {
            "id": record.id,
            "answer": None,
            "expected": record.answer,
            "not_sent": "not of the sample",
        }
        return line | {"prompt_tokens": 0, "completion_tokens": 0}
    return {
        "id": record.id,
        "answer": answer.text,
        "expected": record.answer,
        **answer.probabilities(),
        "finish": answer.finish,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        **({"places": answer.places} if answer.places else {}),
    }
