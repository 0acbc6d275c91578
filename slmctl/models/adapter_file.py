"""An adapter's own GGUF file on its base's, as the server loads it for several adapters."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from slmctl.artifacts.artifact import Artifact, FileEntry
from slmctl.inference.engine import Answering
from slmctl.model_files.gguf_choice import gguf_file, lora_file
from slmctl.models.gguf import GgufModel
from slmctl.models.model import Loading, Model

KIND = "lora"  # in predictions and reports, and the adapter's name inside of the engine


@dataclass(frozen=True)
class AdapterFile(Model):
    """The adapter's file of an artifact, on the base's file of a type."""

    needs_base = is_gguf = True
    adapter, place = KIND, 5
    base: Artifact
    type: str | None = None

    @property
    def kind(self) -> str:
        return KIND

    @property
    def title(self) -> str:
        return f"{KIND}-{self.type or ''}"

    @property
    def weights(self) -> FileEntry:
        own = lora_file(self.artifact)
        return dataclasses.replace(own, size=own.size + gguf_file(self.base, self.type).size)

    @property
    def base_sha256(self) -> str:
        return gguf_file(self.base, self.type).sha256

    def require_room(self, loading: Loading, *others: Path) -> None:
        GgufModel(self.base, self.type).require_room(loading, *others)

    def load(self, loading: Loading) -> Answering:
        own = self.artifact.file(lora_file(self.artifact).path)  # in memory the base keeps its type
        loading = Loading(loading.sequences, loading.context, {KIND: own})
        return GgufModel(self.base, self.type).load(loading)
