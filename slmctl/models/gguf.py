"""A GGUF file, of an artifact, of a release or without a task, which
answers through llama.cpp's engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slmctl.artifacts.artifact import FileEntry
from slmctl.errors import UsageError
from slmctl.inference.engine import Answering, Engine
from slmctl.model_files import memory
from slmctl.model_files.gguf_choice import gguf_file
from slmctl.models.model import Loading, Model, TaskInModel
from slmctl.task.contract import Task


@dataclass(frozen=True)
class GgufModel(Model):
    """The smallest GGUF file, or the one of a type such as `Q4_K_M`."""

    is_gguf = takes_policy = is_candidate = True
    place = 4
    type: str | None = None

    @property
    def file(self) -> FileEntry:
        return gguf_file(self.artifact, self.type)

    @property
    def weights(self) -> FileEntry:
        return self.file

    @property
    def title(self) -> str:
        return self.type or self.path.stem

    def variants(self) -> Sequence[str | None]:
        return list(self.artifact.metrics.get("files") or ()) or [None]

    def task_in(self, engine: Answering) -> TaskInModel:
        if self.task is not None:
            return TaskInModel(self.task)
        assert isinstance(engine, Engine)  # a file without a task is in no sum
        template: str = engine.info["chat_template"]
        if not template:
            raise UsageError(
                f"{self.path.name} has no chat template, so it cannot be asked in turns",
                hint="serve a release that slmctl made",
            )
        controls = engine.controls()
        task = Task(
            "generate",
            template,
            "",
            bos_token=controls["bos"],
            eos_token=controls["eos"],
            special_tokens=tuple(controls["tokens"]),
        )
        opening = controls["bos"] if controls["adds_bos"] else ""
        return TaskInModel(task, bare=True, opening=opening)

    def bytes(self, loading: Loading) -> int:
        return memory.engine_bytes(
            self.path,
            sequences=loading.sequences,
            context=loading.context,
            mostly_reads=loading.mostly_reads,
            grammars=loading.grammars,
        )

    def require_room(self, loading: Loading, *others: Path) -> None:
        memory.require_engine(
            self.path, sequences=loading.sequences, context=loading.context, encoders=others
        )

    def load(self, loading: Loading) -> Answering:
        return Engine(self.path, **vars(loading))


class ReleasedFile(GgufModel):
    """A file of a release."""

    place = 7


@dataclass(frozen=True)
class ReferenceFile(ReleasedFile):
    """A file of the release that gates compare with, by the name that they call it."""

    is_reference = True
    is_candidate = takes_policy = False
    place = 8
    name: str = ""

    @property
    def kind(self) -> str:
        return "release"

    @property
    def title(self) -> str:
        return self.name
