"""A model on this machine, opened for answering: a GGUF file by the engine, an HF model by transformers."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmctl.artifacts.artifact import Artifact, FileEntry
from slmctl.config import resolve_matmul_dtype
from slmctl.errors import DataError
from slmctl.inference import ENCODER, engine, grammar_pool
from slmctl.inference.encoder import Encoder
from slmctl.inference.encoder_classifier import EncoderFirst, Scores
from slmctl.metrics import linear_baseline
from slmctl.metrics.encoder_head import EncoderModel
from slmctl.model_files import encoder_source, memory
from slmctl.model_files.gguf_choice import answering_sha256, gguf_file, lora_file, opinion_of
from slmctl.stages.predict.prompts import Prompt
from slmctl.task.contract import Task
from slmctl.task.engine_requests import engine_request

if TYPE_CHECKING:
    from slmctl.stages.predict.transformers_answerer import HfAnswerer

TOGETHER = 64  # texts that an encoder reads before their answers are given
LORA = "lora"  # the adapter's name inside of the engine


@contextlib.contextmanager
def opened(
    model: Artifact, task: Task, *, base: Artifact | None = None, type: str | None = None, max_tokens: int = 256,
    lora: bool = False, whole_labels: bool | None = None, encoder: Artifact | None = None,
    first_look: EncoderFirst | None = None,
) -> Iterator[tuple[EngineAnswerer | HfAnswerer | LinearAnswerer | EncoderAnswerer, FileEntry]]:  # fmt: skip
    """A model for answering, and the file that answers: the GGUF itself, or the safetensors of an HF model.

    Args:
        model: An artifact, or a release.
        task: The contract that its answers are held to.
        base: The base of an adapter.
        type: The quantization type, of a model with several GGUF files.
        max_tokens: The longest answer.
        lora: Load the adapter's own file on the base's, as the server loads it for several adapters.
        whole_labels: Score labels by all of their tokens; None for doing so with an untuned base.
        encoder: The encoder whose opinion is added to a file's; a release may have one of its own.
        first_look: Answers before a GGUF file where it is sure.

    Raises:
        DataError: The answers cannot be held to the task's schema.
    """
    if task.is_json and (fault := grammar_pool.fault_of(task.constraint)):
        raise DataError(fault, hint="change that part of the schema")
    if lora and base is not None:
        own, under = lora_file(model), gguf_file(base, type)
        with _engine(base.file(under.path), adapters={LORA: model.file(own.path)}) as loaded:
            both = dataclasses.replace(own, size=own.size + under.size)
            yield EngineAnswerer(loaded, task, max_tokens, adapter=LORA), both
    elif model.kind == "linear":
        yield LinearAnswerer(linear_baseline.read(model.path)), model.manifest.files[0]
    elif model.kind == "encoder":
        with Encoder(model.file(encoder_source.GGUF)) as reader:
            yield EncoderAnswerer(reader, EncoderModel.read(model.path), task.labels), _all_files(model)
    elif model.kind in ("gguf", "published"):
        entry = gguf_file(model, type)
        options = {"grammars": bool(task.constraint), "classifier": bool(task.labels)}
        opinion = opinion_of(encoder or model)
        with _engine(model.file(entry.path), opinion=opinion, first_look=first_look, **options) as loaded:
            if opinion is not None:
                digest = answering_sha256(model, entry, encoder)
                entry = FileEntry(entry.path, entry.size + (opinion / ENCODER).stat().st_size, digest)
            yield EngineAnswerer(loaded, task, max_tokens), entry
    else:
        from slmctl.stages.predict.transformers_answerer import HfAnswerer  # torch is needed for HF models alone

        whole = model.kind == "base" if whole_labels is None else whole_labels
        settings: dict[str, Any] = {
            "max_tokens": max_tokens,
            "matmul_dtype": resolve_matmul_dtype("auto"),
            "whole_labels": whole,
        }
        try:
            yield HfAnswerer(model, task, base=base, **settings), _whole(model, base)
        finally:
            memory.trim_heap()  # the keys and values of its batches


def _engine(path: Path, opinion: Path | None = None, **options: Any) -> engine.Engine:
    """The engine of a file, where the memory is enough for it."""
    encoders = [opinion / ENCODER] if opinion is not None else []
    memory.require_engine(path, sequences=engine.SEQUENCES, context=engine.CONTEXT, encoders=encoders)
    return engine.Engine(path, opinion=opinion, **options)


class EngineAnswerer:
    """Answers through the engine."""

    def __init__(self, model: engine.Engine, task: Task, max_tokens: int, adapter: str = "") -> None:
        self.model, self.task, self.max_tokens, self.adapter = model, task, max_tokens, adapter
        self.matmul_dtype = "bfloat16" if model.info["expanded"] else None  # None: by the types of the file

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, engine.Answer | engine.EngineError]]:
        requests = (
            engine_request(
                self.task, prompt.text, prefix=prompt.prefix, constraint=prompt.constraint, max_tokens=self.max_tokens,
                adapter=self.adapter, question=prompt.question,
            )
            for prompt in prompts
        )  # fmt: skip
        for index, answer in self.model.ask_all(requests, widen=True, alone=True):
            if self.task.rules.calls and isinstance(answer, engine.Answer):
                answer = dataclasses.replace(answer, text=self.task.kept(answer.text))  # in the one form of answers
            yield index, answer


class LinearAnswerer:
    """Answers by the linear model, from the text of each question alone."""

    def __init__(self, model: linear_baseline.LinearModel) -> None:
        self.model = model
        self.matmul_dtype = None

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, engine.Answer | engine.EngineError]]:
        labels, chances = self.model.answers([prompt.question for prompt in prompts])
        for index, (label, chance) in enumerate(zip(labels, chances or [], strict=True)):
            yield index, engine.Answer(label, "stop", chance, 0, 0)


class EncoderAnswerer:
    """Answers by linear models on a sentence encoder and on TF-IDF, from the text of each question alone."""

    def __init__(self, encoder: Encoder, model: EncoderModel, labels: tuple[str, ...]) -> None:
        self.encoder, self.model, self.labels = encoder, model, labels
        self.matmul_dtype = None

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, engine.Answer]]:
        for start in range(0, len(prompts), TOGETHER):
            texts = [prompt.question for prompt in prompts[start : start + TOGETHER]]
            scored = self.model.scored(texts, self.encoder.encode(texts))
            for k, row in enumerate(zip(*scored, strict=True), start):
                event = Scores(self.model.labels, *row).answer(self.labels)
                yield k, engine.answer_of(event, next(iter(event["labels"])))


def _all_files(model: Artifact) -> FileEntry:
    """An artifact whose files answer together, as one entry."""
    size = sum(entry.size for entry in model.manifest.files)
    return FileEntry(model.path.name, size, model.digest.removeprefix("sha256:"))


def _whole(model: Artifact, base: Artifact | None) -> FileEntry:
    """The weights of an HF model as one entry; an adapter's size includes its base, which it needs."""
    parts = [model, base] if model.kind == "adapter" and base is not None else [model]
    size = sum(entry.size for part in parts for entry in part.files(".safetensors"))
    return FileEntry(model.path.name, size, model.digest.removeprefix("sha256:"))
