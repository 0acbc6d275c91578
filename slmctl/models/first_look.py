"""An encoder, then a model: a label of the encoder that its policy keeps is the answer, and the model is not asked."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from slmctl.artifacts.artifact import Artifact
from slmctl.inference import ENCODER
from slmctl.inference.engine import Answering, Request
from slmctl.inference.escalation_policy import Decision, Policy
from slmctl.inference.events import Event
from slmctl.metrics.encoder_head import EncoderModel
from slmctl.models.composition import Composition
from slmctl.models.encoder_classifier import Cancel, EncoderClassifier, OnEvent
from slmctl.task.contract import Task


class EncoderFirst:
    """An encoder before a model: a label that its policy keeps is the answer, and the model is not asked.

    Args:
        policy: Fitted on the encoder's own answers.
        labels: Those that it was fitted for.

    Attributes:
        kept: Number of answers that were the encoder's.
    """

    def __init__(self, encoder: EncoderClassifier, policy: Policy, labels: tuple[str, ...]) -> None:
        self.encoder, self.policy, self.labels = encoder, policy, labels
        self.kept = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.encoder.close()

    def before(
        self, question: str, on_event: OnEvent, submit: Callable[[OnEvent], Cancel], *, alternatives: int = -1
    ) -> Cancel:
        """Have a question with these labels answered here, or by the model; as `EncoderClassifier.beside`."""
        pieces, cancels, cancelled = list[Event](), list[Cancel](), threading.Event()

        def relay(event: Event) -> None:
            if "piece" in event:
                pieces.append(event)
            elif (decision := self._decision(event, pieces)) is not None and decision.keep:
                self.kept += 1
                on_event(pieces[0])
                on_event(event | {"p_correct": decision.p_correct})
            elif not cancelled.is_set():
                cancels.append(submit(on_event))
                if cancelled.is_set():  # meanwhile, so nobody else cancels this one
                    cancels[-1]()

        def cancel() -> None:
            cancelled.set()
            for each in cancels:
                each()

        cancels.append(self.encoder.alone(question, self.labels, relay, alternatives=alternatives))
        return cancel

    def _decision(self, event: Event, pieces: Sequence[Event]) -> Decision | None:
        """The policy's decision on an answer of the encoder; None where that failed, or has none of its signals."""
        with contextlib.suppress(ValueError):
            if "finish" in event:
                return self.policy.judge(event, pieces[0]["piece"])
        return None


@dataclass(frozen=True)
class FirstLookFiles:
    """An encoder and the policy of its answers, for a task."""

    encoder: Artifact
    policy: Artifact
    task: Task

    @property
    def path(self) -> Path:
        """The encoder's file."""
        return self.encoder.file(ENCODER)

    def load(self) -> EncoderFirst:
        """Both, loaded."""
        encoder = EncoderClassifier(self.path, EncoderModel.read(self.encoder.path))
        return EncoderFirst(encoder, Policy.read(self.policy.path), self.task.labels)


class FirstLookEngine(Composition):
    """A model whose questions the encoder sees first; whoever opened the encoder closes it."""

    ahead = 512  # questions of a list that wait, so that batches are full and the model is asked last

    def __init__(self, first: EncoderFirst, engine: Answering) -> None:
        super().__init__(engine)
        self._first = first

    def held_bytes(self) -> int:
        return super().held_bytes() + self._first.encoder.held_bytes()

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Callable[[], object]:
        if not request.question or request.labels != self._first.labels or request.adapter:
            return self.engine.submit(request, on_event)
        submit = functools.partial(self.engine.submit, request)
        return self._first.before(request.question, on_event, submit, alternatives=request.alternatives)
