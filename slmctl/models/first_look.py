"""An encoder, then a model: a label of the encoder that its policy keeps is the answer, and the model is not asked."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from slmctl.artifacts.artifact import Artifact
from slmctl.inference.engine import Answering, Request
from slmctl.inference.escalation_policy import Decision, Policy
from slmctl.inference.events import Event
from slmctl.inference.supervised_child import EngineError, State
from slmctl.models.composition import Composition
from slmctl.models.encoder import EncoderAlone
from slmctl.models.linear_members import Cancel, OnEvent
from slmctl.models.model import Loading
from slmctl.task.contract import Task


@dataclass(frozen=True)
class FirstLookFiles:
    """An encoder and the policy of its answers, for a task."""

    encoder: Artifact
    policy: Artifact
    task: Task

    def before(self, engine: Answering) -> FirstLookEngine:
        """The encoder, loaded before a model that is open."""
        encoder, policy = EncoderAlone(self.encoder).load(Loading()), Policy.read(self.policy.path)
        return FirstLookEngine(engine, encoder, policy, self.task.labels)


class FirstLookEngine(Composition):
    """An encoder before a model: a label that its policy keeps is the answer, and the model is not asked.

    Args:
        engine: The model; its opener closes it.
        policy: Fitted on the encoder's own answers.
        labels: Those that it was fitted for.

    Attributes:
        kept: Number of answers that were the encoder's.
    """

    ahead = 512  # questions of a list that wait, so that batches are full and the model is asked last

    def __init__(
        self, engine: Answering, encoder: Answering, policy: Policy, labels: tuple[str, ...]
    ) -> None:  # fmt: skip
        super().__init__(engine)
        self.encoder, self.policy, self.labels = encoder, policy, labels
        self.kept = 0

    @property
    def state(self) -> State:
        """An encoder that hangs holds its questions up, and one that has ended leaves them to the model."""
        return "hung" if self.encoder.state == "hung" else super().state

    def close(self) -> None:
        self.encoder.close()

    def held_bytes(self) -> int:
        return super().held_bytes() + self.encoder.held_bytes()

    def submit(self, request: Request, on_event: OnEvent) -> Cancel:
        if not request.question or request.labels != self.labels or request.adapter:
            return self.engine.submit(request, on_event)
        pieces, cancels, cancelled = list[Event](), list[Cancel](), threading.Event()

        def relay(event: Event) -> None:
            if "piece" in event:
                pieces.append(event)
                return
            decision: Decision | None = None
            try:
                decision = self._decision(event, pieces)
            finally:  # whatever is raised here is heard by nobody, and the model answers
                if decision is not None and decision.keep:
                    self.kept += 1
                    on_event(pieces[0])
                    on_event(event | {"p_correct": decision.p_correct})
                elif not cancelled.is_set():
                    ask_model()

        def ask_model() -> None:
            try:
                cancels.append(self.engine.submit(request, on_event))
            except EngineError as error:
                on_event({"error": error.message, "died": True})
                return
            if cancelled.is_set():  # meanwhile, so nobody else cancels this one
                cancels[-1]()

        def cancel() -> None:
            cancelled.set()
            for each in cancels:
                each()

        cancels.append(self.encoder.submit(request, relay))
        return cancel

    def _decision(self, event: Event, pieces: Sequence[Event]) -> Decision | None:
        """The policy's decision on an answer of the encoder; None where that failed, or has none of its signals."""
        with contextlib.suppress(ValueError):
            if "finish" in event:
                return self.policy.judge(event, pieces[0]["piece"])
        return None
