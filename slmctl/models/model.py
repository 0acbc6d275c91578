"""A model that can answer: its name in reports, the hash that policies
are bound to, and how it is loaded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from slmctl.artifacts.artifact import Artifact, FileEntry
from slmctl.errors import DataError
from slmctl.inference.engine import CONTEXT, SEQUENCES, Answer, Answering, Outcomes, Request
from slmctl.inference.events import EXPANDED
from slmctl.models.prompts import Prompt
from slmctl.task.contract import FILENAME, Task
from slmctl.task.engine_requests import engine_request


@dataclass(frozen=True)
class Loading:
    """Size of a model's context, and the kind of its requests; see `inference.engine.Engine`.

    Attributes:
        sequences: Requests answered at the same time.
        context: Longest prompt with its answer, in tokens.
        adapters: LoRA adapters over the model, by the name that requests call them.
        grammars: Requests are held to a schema.
        mostly_reads: Reading takes more time than writing; see `Task.mostly_reads`.
    """

    sequences: int = SEQUENCES
    context: int = CONTEXT
    adapters: Mapping[str, Path] = field(default_factory=dict)
    grammars: bool = False
    mostly_reads: bool = False

    @classmethod
    def of(
        cls, task: Task | None, *, sequences: int = SEQUENCES, context: int = CONTEXT
    ) -> Loading:
        """The settings for answers to a task.

        Args:
            task: None for a file that carries none.
        """
        return cls(
            sequences,
            context,
            {},
            bool(task and task.rules.constraint()),
            bool(task and task.mostly_reads),
        )


@dataclass(frozen=True)
class OpenModel:
    """A model in memory, which answers the prompts of a task.

    Attributes:
        adapter: The adapter's name inside of it.
        engine: The build of llama.cpp that predictions name; None for a model that another program
            computes.
    """

    model: Answering
    task: Task
    max_tokens: int
    adapter: str = ""
    engine: str | None = None

    def answer(self, prompts: Sequence[Prompt]) -> Outcomes:
        """The answers, each with the index of its prompt, in the
        order in which they are finished.
        """
        allowed = self.task.rules.constraint()

        def request(prompt: Prompt) -> Request:
            return engine_request(
                self.task,
                prompt.text,
                prefix=prompt.prefix,
                constraint=prompt.constraint or allowed,
                max_tokens=self.max_tokens,
                adapter=self.adapter,
                question=prompt.question,
                document=prompt.messages[-1]["content"] if prompt.messages else "",
            )

        requests = map(request, prompts)
        for index, answer in self.model.ask_all(requests, widen=True, alone=True):
            if (
                isinstance(answer, Answer)
                and (kept := self.task.rules.kept(answer.text)) != answer.text
            ):
                answer = dataclasses.replace(answer, text=kept)  # in the one form of answers
            yield index, answer


@dataclass(frozen=True)
class TaskInModel:
    """The task of a loaded model.

    Attributes:
        bare: The model carries none, so it is made of its chat template.
        opening: The token that raw text must begin with, or "".
    """

    task: Task
    bare: bool = False
    opening: str = ""


@dataclass(frozen=True)
class Model:
    """A model on this machine.

    Attributes:
        artifact: An artifact, a release or a foreign model.
        untuned: It was not trained on the task, so prompts list the labels.
        is_remote: It answers behind an endpoint, which rows leave this machine for.
        needs_base: It answers on a base.
        adapter: The name inside of the engine of an adapter that answers.
        is_gguf: llama.cpp's engine answers by a file of it, so an encoder may look first.
        takes_policy: A policy can keep or escalate its answers.
        learns_validation: It has learned the validation rows too, so its answers to them tell
            nothing.
        place: Its place in reports, as the pipeline makes models.
        is_source: GGUF files are made of it.
        is_candidate: A file of it may be the one to release.
        is_reference: It is the release that gates compare with.
        is_baseline: It counts as a baseline where another model is measured.
        writes: It writes token after token, so a grammar has to hold its answers to a schema.
    """

    artifact: Artifact
    untuned: ClassVar[bool] = False
    is_remote: ClassVar[bool] = False
    needs_base: ClassVar[bool] = False
    adapter: ClassVar[str] = ""
    is_gguf: ClassVar[bool] = False
    takes_policy: ClassVar[bool] = False
    learns_validation: ClassVar[bool] = False
    place: ClassVar[int] = 10
    is_source: ClassVar[bool] = False
    is_candidate: ClassVar[bool] = False
    is_reference: ClassVar[bool] = False
    is_baseline: ClassVar[bool] = False
    writes: ClassVar[bool] = True

    @classmethod
    def is_trained_here(cls) -> bool:
        """True where the training that a report is about made it."""
        return not (cls.untuned or cls.is_remote or cls.is_reference)

    @property
    def kind(self) -> str:
        """Its kind in predictions and reports."""
        return self.artifact.kind

    @property
    def title(self) -> str:
        """Its name in reports."""
        return self.kind

    @property
    def task(self) -> Task | None:
        """The task that it carries; None for a bare file."""
        return Task.read(self.artifact.path) if (self.artifact.path / FILENAME).exists() else None

    @property
    def file(self) -> FileEntry:
        """The model's own file, without an encoder's."""
        raise NotImplementedError

    @property
    def path(self) -> Path:
        """The path of that file."""
        return self.artifact.file(self.file.path)

    @property
    def digest(self) -> str:
        """The hash that a policy is bound to: of a file; of file and
        encoder where both answer; of an artifact.
        """
        return self.weights.sha256

    @property
    def weights(self) -> FileEntry:
        """All that answers as one file: its name, the bytes of all, and the
        hash that predictions and policies hold.
        """
        size = sum(entry.size for entry in self.artifact.files(".safetensors"))
        return FileEntry(
            self.artifact.path.name, size, self.artifact.digest.removeprefix("sha256:")
        )

    @property
    def base_sha256(self) -> str | None:
        """The hash of the base's file that an adapter's own file
        answers on; None for all other models.
        """
        return None

    def variants(self) -> Sequence[str | None]:
        """The quantization types of its files, which are measured one by
        one; (None,) for a model without several.
        """
        return (None,)

    def task_in(self, engine: Answering) -> TaskInModel:
        """The task that it carries, or one of its chat template.

        Raises:
            UsageError: It has neither.
        """
        assert self.task is not None
        return TaskInModel(self.task)

    def read_task(self) -> Task:
        """The task that it carries, or one of its chat template, for which
        it is loaded; raises what both raise.
        """
        if self.task is not None:
            return self.task
        with self.load(Loading(sequences=1, context=128)) as engine:
            return self.task_in(engine).task

    def other_build(self, build: str) -> str:
        """A note where the engine is another build than the one that
        measured the file; empty where it is the same.
        """
        measured, used = (
            self.artifact.manifest.environment.get("llama_cpp_python"),
            build.removesuffix(EXPANDED),
        )
        report = self.artifact.path / "report.json"
        if report.is_file():
            entries = json.loads(report.read_bytes())["models"].values()
            builds = [
                entry.get("engine") for entry in entries if entry.get("sha256") == self.file.sha256
            ]
            measured, used = builds[0] if builds else None, build
        if not measured or measured == used:
            return ""
        name = self.path.name
        return (
            f"this engine is llama-cpp-python {used}, and {name} was measured with {measured}: "
            "measure it again"
        )

    def bytes(self, loading: Loading) -> int:
        """Estimate of the memory that its processes hold while it answers."""
        raise NotImplementedError

    def require_room(self, loading: Loading, *others: Path) -> None:
        """Refuse to load it where the memory is not enough for it and other encoders; an encoder
        alone is small.

        Raises:
            FullError: It is not.
        """

    def load(self, loading: Loading) -> Answering:
        """The model in memory, for the server and the terminal.

        Raises:
            SlmctlError: It cannot be loaded.
        """
        raise NotImplementedError

    @contextlib.contextmanager
    def open(
        self, task: Task, *, max_tokens: int = 256, whole_labels: bool | None = None
    ) -> Iterator[OpenModel]:
        """The model in memory, for prompts of a task.

        Args:
            task: The contract that its answers are held to.
            whole_labels: Score labels by all of their tokens; None for doing so with an untuned
                base.

        Raises:
            DataError: The answers cannot be held to the task's schema.
            SlmctlError: It cannot be loaded, or memory is short.
        """
        if task.is_json and self.writes:
            from slmctl.inference import grammar_pool  # with it comes numpy

            if fault := grammar_pool.fault_of(task.rules.constraint()):
                raise DataError(fault, hint="change that part of the schema")
        whole = self.untuned if whole_labels is None else whole_labels
        loaded = self._loaded(task, max_tokens, whole)
        if task.document is not None:
            from slmctl.models import documents  # with it comes numpy

            loaded = documents.reading(loaded, {self.adapter: task})
        with loaded:
            engine = loaded.build if self.is_gguf else None
            yield OpenModel(loaded, task, max_tokens, self.adapter, engine)

    def _loaded(self, task: Task, max_tokens: int, whole_labels: bool) -> Answering:
        loading = Loading.of(task)
        self.require_room(loading)
        return self.load(loading)
