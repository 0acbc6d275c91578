"""A sentence encoder with linear models on it and on TF-IDF, asked as an engine is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from slmctl.artifacts.artifact import FileEntry
from slmctl.inference import ENCODER
from slmctl.inference.engine import Answering, Outcomes, Request, answer_of
from slmctl.inference.events import Event
from slmctl.metrics import encoder_head
from slmctl.metrics.encoder_head import EncoderModel
from slmctl.model_files import memory
from slmctl.models.encoder_classifier import EncoderClassifier, LabelModel
from slmctl.models.model import Loading, Model

TOGETHER = 64  # texts that are read before their answers are given


class EncoderEngine(Answering):
    """An encoder with a linear model, asked as an engine is; its process is started again when it has died.

    Args:
        gguf: The file of the encoder.

    Raises:
        EncoderError: The encoder cannot be loaded.
        MissingError: llama-cpp-python is not installed.
    """

    alive, state = True, "ready"  # the next question starts its process again

    def __init__(self, gguf: Path, model: LabelModel) -> None:
        self._classifier = EncoderClassifier(gguf, model)
        self.build, self.on_death = self._classifier.build, lambda: None

    def close(self) -> None:
        self._classifier.close()

    def held_bytes(self) -> int:
        return self._classifier.held_bytes()

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Callable[[], object]:
        more = request.alternatives
        return self._classifier.alone(request.question, request.labels, on_event, alternatives=more)

    def ask_all(self, requests: Iterable[Request], **how: object) -> Outcomes:
        listed = list(requests)
        for start in range(0, len(listed), TOGETHER):
            block = listed[start : start + TOGETHER]
            scored = self._classifier.scored([request.question for request in block], together=TOGETHER)
            for index, (request, scores) in enumerate(zip(block, scored, strict=True), start):
                event = scores.answer(request.labels)
                yield index, answer_of(event, next(iter(event["labels"])))


class EncoderAlone(Model):
    """The artifact of `encode`, which answers without another model."""

    takes_policy = is_baseline = True
    place = 0

    @property
    def title(self) -> str:
        return encoder_head.NAME

    @property
    def weights(self) -> FileEntry:
        size = sum(entry.size for entry in self.artifact.manifest.files)
        return FileEntry(self.artifact.path.name, size, self.artifact.digest.removeprefix("sha256:"))

    @property
    def file(self) -> FileEntry:
        return next(entry for entry in self.artifact.manifest.files if entry.path == ENCODER)

    def bytes(self, loading: Loading) -> int:
        return memory.encoder_bytes(self.path)

    def load(self, loading: Loading) -> Answering:
        return EncoderEngine(self.path, EncoderModel.read(self.artifact.path))
