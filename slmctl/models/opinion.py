"""A model and an encoder: the encoder's opinion is added to every label that the model gives."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from slmctl.artifacts.artifact import Artifact, FileEntry
from slmctl.inference import ENCODER, ENSEMBLE, WITH_ENCODER
from slmctl.inference.engine import Answering, Request
from slmctl.inference.events import Event
from slmctl.model_files import memory
from slmctl.model_files.gguf_choice import answering_sha256
from slmctl.models.composition import Composition
from slmctl.models.encoder_classifier import EncoderClassifier
from slmctl.models.gguf import GgufModel
from slmctl.models.model import Loading, Model


class OpinionEngine(Composition):
    """A model whose labels are those of both; an adapter over it, and a text without labels, is the model's alone.

    Args:
        folder: The folder of the encoder and its head.
        load: Loads the model.

    Raises:
        EncoderError: The encoder cannot be loaded.
        EngineError: The model cannot be loaded.
    """

    def __init__(self, folder: Path, load: Callable[[], Answering]) -> None:
        with contextlib.ExitStack() as undo:
            self._opinion = EncoderClassifier.opinion(folder)
            undo.callback(self._opinion.close)
            super().__init__(load())
            undo.pop_all()

    def close(self) -> None:
        self._opinion.close()
        super().close()

    def held_bytes(self) -> int:
        return super().held_bytes() + self._opinion.held_bytes()

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Callable[[], object]:
        if not (request.labels and request.question) or request.adapter:
            return self.engine.submit(request, on_event)
        submit = functools.partial(self.engine.submit, request)
        more = request.alternatives
        return self._opinion.beside(request.question, request.labels, on_event, submit, alternatives=more)


@dataclass(frozen=True)
class FileWithOpinion(Model):
    """A GGUF file with the opinion of an encoder beside it in the same folder, or in one of its own.

    Attributes:
        model: The file by itself.
        encoder: The encoder's artifact; None for that of the same folder.
    """

    is_gguf = takes_policy = True
    place = 6
    model: GgufModel
    encoder: Artifact | None = None

    @property
    def kind(self) -> str:
        return self.model.kind if self.encoder is None else ENSEMBLE

    @property
    def title(self) -> str:
        return self.model.title if self.encoder is None else f"{self.model.title}{WITH_ENCODER}"

    @property
    def weights(self) -> FileEntry:
        own = self.file
        digest = answering_sha256(self.artifact, own, self.encoder)
        return FileEntry(own.path, own.size + self._encoder.stat().st_size, digest)

    @property
    def file(self) -> FileEntry:
        return self.model.file

    @property
    def _encoder(self) -> Path:
        return (self.encoder or self.artifact).file(ENCODER)

    def variants(self) -> Sequence[str | None]:
        return self.model.variants()

    def bytes(self, loading: Loading) -> int:
        return self.model.bytes(loading) + memory.encoder_bytes(self._encoder)

    def require_room(self, loading: Loading, *others: Path) -> None:
        self.model.require_room(loading, self._encoder, *others)

    def load(self, loading: Loading) -> Answering:
        return OpinionEngine((self.encoder or self.artifact).path, functools.partial(self.model.load, loading))
