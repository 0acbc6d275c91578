"""A model and an encoder: the encoder's opinion is added to every label that the model gives.

The two err on other rows, so the mean of their log probabilities answers (a logarithmic pool): neither is weighted,
since the linear model was sharpened on validation rows as far as its probabilities are right there. It holds no text of
a training row.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from slmctl.artifacts.artifact import Artifact, FileEntry
from slmctl.errors import IntegrityError
from slmctl.inference import ENCODER, ENSEMBLE, OPINION, WITH_ENCODER
from slmctl.inference.engine import Answering, Request
from slmctl.inference.events import Event
from slmctl.model_files import memory
from slmctl.model_files.gguf_choice import answering_sha256
from slmctl.models.composition import Composition
from slmctl.models.encoder_classifier import Cancel, EncoderClassifier, OnEvent, Scores, tell
from slmctl.models.gguf import GgufModel
from slmctl.models.model import Loading, Model


class OpinionEngine(Composition):
    """A model that averages its log probabilities of labels with an encoder's.

    Requests without labels, and requests to a LoRA adapter, go to the model alone.

    Pieces come when both have answered. Closing it closes both.
    """

    def __init__(self, engine: Answering, encoder: EncoderClassifier) -> None:
        super().__init__(engine, encoder)
        self._encoder = encoder

    def submit(self, request: Request, on_event: OnEvent) -> Cancel:
        if not (request.labels and request.question) or request.adapter:
            return self.engine.submit(request, on_event)
        opinion, cancelled = Future[Scores](), threading.Event()

        def relay(event: Event) -> None:
            if "finish" in event:
                opinion.add_done_callback(functools.partial(finish, event))
            elif "piece" not in event:
                on_event(event)

        def finish(event: Event, done: Future[Scores]) -> None:
            if not cancelled.is_set():
                labels, tokens = request.labels, request.alternatives
                tell(on_event, done, lambda scores: scores.beside(event, labels), alternatives=tokens)

        cancel = self.engine.submit(request, relay)
        self._encoder.read(request, opinion)

        def cancel_both() -> None:
            cancelled.set()
            cancel()
            opinion.cancel()

        return cancel_both


@dataclass(frozen=True)
class FileWithOpinion(Model):
    """A GGUF file and an encoder; their log probabilities of labels are averaged.

    Attributes:
        model: The GGUF file alone.
        encoder: The encoder's artifact; None for an encoder in the file's own folder.
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
        other, labels = self.encoder or self.artifact, self.task and self.task.labels
        measured = other.metrics.get("second_opinion", {}).get("files", {})  # of a release
        parts = {entry.path: entry.sha256 for entry in other.manifest.files if entry.path in (ENCODER, OPINION)}
        if measured and measured != parts:
            raise IntegrityError(f"the second opinion in {other.path} is not the one that was measured",
                                 hint="fetch the release again")  # fmt: skip
        with contextlib.ExitStack() as undo:
            encoder = undo.enter_context(EncoderClassifier.opinion(other.path, labels or None))
            both = OpinionEngine(self.model.load(loading), encoder)
            undo.pop_all()
        return both
