"""Models in the form of transformers: a base, a merged model, an adapter on its base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slmctl.artifacts.artifact import Artifact, FileEntry
from slmctl.config import resolve_matmul_dtype
from slmctl.errors import StageError
from slmctl.inference.engine import Answering
from slmctl.models.model import Model
from slmctl.task.contract import Task


@dataclass(frozen=True)
class HfModel(Model):
    """A whole model that was trained on the task."""

    is_source, place = True, 3

    def _loaded(self, task: Task, max_tokens: int, whole_labels: bool) -> Answering:
        # torch is needed for these alone
        from slmctl.model_files.transformers_answerer import HfAnswerer

        folder, adapter = self._folders()
        return HfAnswerer(
            folder,
            adapter=adapter,
            labels=task.labels,
            end=task.end,
            max_tokens=max_tokens,
            matmul_dtype=resolve_matmul_dtype("auto"),
            whole_labels=whole_labels,
        )

    def _folders(self) -> tuple[Path, Path | None]:
        """Returns (folder of a whole model, folder of an adapter on it or None)."""
        return self.artifact.path, None


@dataclass(frozen=True)
class UntunedBase(HfModel):
    """A base, which was not trained on the task."""

    untuned = True
    is_source = False
    place = 1


@dataclass(frozen=True)
class AdapterOnBase(HfModel):
    """An adapter, and the base that it was trained on; None where that is not here."""

    needs_base, place = True, 2
    base: Artifact | None = None

    @property
    def weights(self) -> FileEntry:
        own, below = (
            super().weights,
            self.base.files(".safetensors") if self.base is not None else (),
        )
        return FileEntry(own.path, own.size + sum(entry.size for entry in below), own.sha256)

    def _folders(self) -> tuple[Path, Path | None]:
        if self.base is None:
            raise StageError(
                "an adapter answers on top of its base, which is not here", hint="--base PATH"
            )
        return self.base.path, self.artifact.path
