"""Prompts to write -> texts of a model on this machine: a release of a generate task, or the GGUF file of a base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from slmctl import console
from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact, canonical, sha256_bytes
from slmctl.config import LabelConfig
from slmctl.errors import UsageError
from slmctl.inference.engine import CONTEXT, SEQUENCES, Engine, EngineError, Request
from slmctl.model_files import memory
from slmctl.model_files.gguf_choice import gguf_file
from slmctl.stages.label.journal import Budget, Journal, TeacherAnswer
from slmctl.stages.label.teachers import KINDS, REFUSED, WRITING, WritingRequest
from slmctl.task.contract import FILENAME, Task


class ReleaseWriter:
    """A GGUF file on this machine that writes."""

    def __init__(self, config: LabelConfig, path: Path, journal: Journal, budget: Budget) -> None:
        self.name, self.journal = "/".join(path.parts[-2:]), journal
        self._config, self._budget = config, budget
        self._source = require(path)
        self._entry = gguf_file(self._source)

    def write(self, requests: Sequence[WritingRequest], *, in_batches: bool = True) -> list[TeacherAnswer | None]:
        """The texts of requests, in their order, from the journal where they are there; None for none.

        Raises:
            StageError: The file cannot be loaded.
            UsageError: It has no chat template.
        """
        keys = [self._key(request) for request in requests]
        left = [(key, each) for key, each in zip(keys, requests, strict=True) if key not in self.journal.answers]
        if left:
            path = self._source.file(self._entry.path)
            memory.require_engine(path, sequences=SEQUENCES, context=CONTEXT)
            with Engine(path) as engine, console.progress(f"write {self.name}", len(left), "texts") as meter:
                for index, answer in engine.ask_all(self._prompts(left, self._task(engine)), widen=True, alone=True):
                    if isinstance(answer, EngineError):
                        self.journal.fail(left[index][0], REFUSED)
                        continue
                    written = TeacherAnswer(answer.text, answer.finish, answer.prompt_tokens, answer.completion_tokens)
                    self.journal.answer(left[index][0], written)
                    meter.advance()
        return [self.journal.answers.get(key) for key in keys]

    def _key(self, request: WritingRequest) -> str:
        seed = self._config.seed + request.number
        content = ["write", self._entry.sha256, list(request.messages), self._config.max_tokens, request.number, seed]
        return sha256_bytes(canonical(content))[7:39]

    def _task(self, engine: Engine) -> Task:
        """Its own contract; of a bare file the chat template that it carries."""
        if (self._source.path / FILENAME).is_file():
            return Task.read(self._source.path)
        template: str = engine.info["chat_template"]
        if not template:
            raise UsageError(
                f"{self._entry.path} has no chat template, so it cannot be told what to write",
                hint="label.invent.release: a release of a generate task, or a base that was tuned to instructions",
            )
        controls = engine.controls()
        return Task(
            "generate", template, "", bos_token=controls["bos"], eos_token=controls["eos"],
            special_tokens=tuple(controls["tokens"]),
        )  # fmt: skip

    def _prompts(self, left: Sequence[tuple[str, WritingRequest]], task: Task) -> Iterator[Request]:
        for key, request in left:
            if self._budget.take(self.journal, key, 0.0) == "stop":
                return
            yield Request(
                task.prompt([{"role": turn["role"], "content": turn["content"]} for turn in request.messages]),
                max_tokens=self._config.max_tokens, temperature=WRITING, seed=self._config.seed + request.number,
                stop=(task.end,) if task.end else (),
            )  # fmt: skip


def require(path: Path) -> Artifact:
    """A model on this machine that can write.

    Raises:
        IntegrityError: It is damaged.
        UsageError: It is of another kind, or was trained for labels or objects.
    """
    source = artifact.foreign(path, "gguf") if path.suffix == ".gguf" else artifact.load(path)
    if source.kind not in KINDS:
        raise UsageError(f"{path} is of kind '{source.kind}', and a writer is a GGUF file", hint=" or ".join(KINDS))
    if (source.path / FILENAME).is_file() and (kind := Task.read(source.path).kind) != "generate":
        raise UsageError(
            f"label.invent.release: {path} is of a {kind} task, so it cannot write",
            hint="a release of a generate task, or the GGUF file of a base",
        )
    return source
