"""one model + records of a split -> predictions: every answer with its confidence, in the records' order."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from slmctl import console
from slmctl.artifacts.artifact import Artifact, canonical
from slmctl.config import PredictConfig
from slmctl.errors import StageError
from slmctl.inference import ENSEMBLE, WITH_ENCODER, engine
from slmctl.metrics import encoder_head
from slmctl.model_files.gguf_choice import gguf_file
from slmctl.stages.predict import latency, local_models, released
from slmctl.stages.predict.local_models import EngineAnswerer
from slmctl.stages.predict.prompts import asked, few_shot
from slmctl.task import untuned_prompt
from slmctl.task.contract import Task
from slmctl.task.records import Record, read_records, require_records, write_jsonl


def run(
    config: PredictConfig, *, model: Artifact, prepared: Artifact, out: Path, base: Artifact | None = None,
    encoder: Artifact | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Answer every record of one split, and write `predictions.jsonl` in the records' order.

    Raises:
        UsageError: The model has several GGUF files and none is chosen.
        StageError: The model could not answer a row.
    """
    if model.kind == "endpoint":
        from slmctl.stages.predict import endpoint_predictions  # httpx is needed for these alone

        metrics = endpoint_predictions.run(config, model=model, prepared=prepared, out=out)
    else:
        metrics = _run(config, model, prepared, base, out, encoder)
    # The model is part of the artifact: two files can give the same answers, and a report measures one of them.
    source = {key: metrics.get(key) for key in ("model", "kind", "sha256", "endpoint")}
    source |= {"base_sha256": metrics["base_sha256"]} if "base_sha256" in metrics else {}
    (out / "model.json").write_bytes(canonical(source))
    return metrics


def _run(
    config: PredictConfig,
    model: Artifact,
    prepared: Artifact,
    base: Artifact | None,
    out: Path,
    encoder: Artifact | None,
) -> dict[str, Any]:
    task = Task.read(prepared.path)
    records = require_records(prepared.file(f"{config.split}.jsonl"))
    untuned = model.kind == "base"  # it was not trained on the labels, so its prompt lists them
    own = released.contract(model, task) if config.release else task
    train = read_records(prepared.file("train.jsonl")) if config.shots else []
    examples = untuned_prompt.shots(task, train, config.shots or 0)
    kind, name = _named(config, model, encoder, len(examples))
    with local_models.opened(
        model, own, base=base, type=config.type, max_tokens=config.max_tokens, lora=config.lora,
        whole_labels=config.whole_labels, encoder=encoder,
    ) as (answerer, weights):  # fmt: skip
        if examples:
            prompts = few_shot(task, examples, records)
        elif config.release:
            prompts = [asked(own, released.as_asked(record, own, task)) for record in records]
        else:
            prompts = [asked(task, record, list_labels=untuned) for record in records]
        waits = latency.one_by_one(answerer, prompts)
        begun = time.monotonic()
        answers: dict[int, engine.Answer] = {}
        with console.progress(f"predict {name}", len(records), "rows") as meter:
            for index, answer in answerer.answer(prompts):
                if isinstance(answer, engine.EngineError):
                    raise StageError(f"row {records[index].id} could not be answered: {answer.message}")
                answers[index] = answer
                meter.advance()
        seconds = time.monotonic() - begun
    write_jsonl(out / "predictions.jsonl", (_line(record, answers[k]) for k, record in enumerate(records)))
    return {
        "model": name or Path(weights.path).stem,
        "kind": kind,
        **({"release": f"{model.metrics['project']} {model.metrics['version']}"} if config.release else {}),
        "split": config.split,
        "n": len(records),
        "size": weights.size,
        "sha256": weights.sha256,
        **({"base_sha256": gguf_file(base, config.type).sha256} if config.lora and base is not None else {}),
        "prompt_lists_labels": untuned and bool(task.labels),
        **({"shots": len(examples)} if examples else {}),
        "constrained_by": "labels" if task.labels else "schema" if task.constraint else "nothing",
        "engine": answerer.model.info["build"] if isinstance(answerer, EngineAnswerer) else None,
        "matmul_dtype": answerer.matmul_dtype,
        "latency_ms": waits,
        "rows_per_s": round(len(records) / max(seconds, 1e-9), 2),
    }


def _named(config: PredictConfig, model: Artifact, encoder: Artifact | None, shots: int) -> tuple[str, str]:
    """The kind of a model, and its name in a report; empty where its file has to give the name."""
    kind = "release" if config.release else "lora" if config.lora else ENSEMBLE if encoder else model.kind
    name = config.release or (config.type if model.kind in ("gguf", "published") else model.kind) or ""
    if model.kind == "encoder":
        name = encoder_head.NAME
    elif config.lora:
        name = f"lora-{name}"
    elif encoder is not None:
        name = f"{name}{WITH_ENCODER}"
    return kind, f"{name} ({shots}-shot)" if shots else name


def _line(record: Record, answer: engine.Answer) -> dict[str, Any]:
    return {
        "id": record.id,
        "answer": answer.text,
        "expected": record.answer,
        **answer.probabilities(),
        "finish": answer.finish,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
    }
