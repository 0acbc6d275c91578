"""A sentence encoder in the place of an engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from slmctl.hardware import process_bytes
from slmctl.inference.encoder_classifier import EncoderClassifier, LabelModel
from slmctl.inference.engine import Answering, Request
from slmctl.inference.events import Event


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
        return process_bytes(self._classifier.pid) if self._classifier.pid else 0

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Callable[[], object]:
        more = request.alternatives
        return self._classifier.alone(request.question, request.labels, on_event, alternatives=more)
