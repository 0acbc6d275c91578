"""A frozen sentence encoder with a linear model: text -> the scores of every label, asked as an engine is."""

from __future__ import annotations

import contextlib
import math
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from slmctl.hardware import process_bytes
from slmctl.inference import ENCODER
from slmctl.inference.engine import Answering, Outcomes, Request, answer_of
from slmctl.inference.events import Event, TokenAlternative
from slmctl.metrics.encoder_head import OpinionHead, normalised
from slmctl.models.encoder_process import Encoder, EncoderError

FLOOR = 1e-6  # the least probability of a label for each of the two, so that neither overrules the other for good
TOGETHER, LISTED = 32, 64  # texts that the encoder reads at once: of those that wait, and of a list
ENDED = "the encoder has ended"
Floats = npt.NDArray[np.float64]
OnEvent = Callable[[Event], None]
Cancel = Callable[[], object]


class LabelModel(Protocol):
    """A linear model over the vectors of an encoder, or over vectors and words of texts."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The L labels."""

    def scored(self, texts: Sequence[str], vectors: npt.NDArray[np.float32]) -> tuple[Floats, Floats]:
        """For n texts and their vectors (n, size), of every label the log probability and the evidence, each (n, L)."""


@dataclass(frozen=True)
class Scores:
    """The scores of one text.

    Attributes:
        labels: The L labels.
        logprobs: (L,) log probabilities.
        evidence: (L,) scores of the linear model for each label, before normalisation over labels.
    """

    labels: tuple[str, ...]
    logprobs: Floats
    evidence: Floats

    def answer(self, labels: tuple[str, ...]) -> Event:
        """The end of an answer by these scores alone, with the probability of every one of `labels`."""
        least, by_label = math.log(FLOOR), self._of(self.logprobs)
        shares = _shares(labels, [by_label.get(label, least) for label in labels])
        sure = next(iter(shares.values()))
        return {
            "finish": "stop", "prompt_tokens": 0, "completion_tokens": 0, "labels": shares, "distribution": shares,
            "confidence": sure, "logprobs": [math.log(max(sure, FLOOR))],
            "evidence": round(self._of(self.evidence).get(next(iter(shares)), 0.0), 6),
        }  # fmt: skip

    def beside(self, event: Event, labels: tuple[str, ...]) -> Event:
        """The end of a model's answer with the probabilities of both: their product, made a distribution.

        `raw_logprobs` keeps how likely the model would have answered with any label.
        """
        both = self._with(event["labels"], labels)
        sure = next(iter(both.values()))
        allowed = sum(event["raw_logprobs"]) - sum(event["logprobs"])
        best = math.log(max(sure, FLOOR))
        every = event.get("distribution")
        more: Event = {} if every is None else {"distribution": self._with(every, labels)}
        return event | more | {
            "labels": both, "confidence": sure, "logprobs": [best], "raw_logprobs": [best + allowed]
        }  # fmt: skip

    def _with(self, reached: dict[str, float], labels: tuple[str, ...]) -> dict[str, float]:
        """The probability of every label by both, from those that the model reached."""
        left = max(0.0, 1.0 - sum(reached.values())) / max(1, len(labels) - len(reached))
        own = np.log(np.maximum([reached.get(label, left) for label in labels], FLOOR))
        by_label, least = self._of(self.logprobs), math.log(FLOOR)
        return _shares(labels, (own + np.array([max(by_label.get(label, least), least) for label in labels])) / 2)

    def _of(self, values: Floats) -> dict[str, float]:
        return dict(zip(self.labels, values.tolist(), strict=True))


def _shares(labels: tuple[str, ...], scores: Sequence[float] | Floats) -> dict[str, float]:
    """The probability of each label, likeliest first, by log probabilities that need not add up to one."""
    logprobs = normalised(np.array([scores]))[0]
    order = sorted(range(len(labels)), key=lambda k: (-logprobs[k], k))
    return {labels[k]: float(f"{math.exp(logprobs[k]):.6g}") for k in order}


class EncoderClassifier(Answering):
    """An encoder with a linear model, asked as an engine is; its process is started again when it has died.

    Args:
        gguf: The file of the encoder.
        alone: Each text is read by itself, so that its last digits are the same whatever is asked beside it; batches
            are read in a third of the time.

    Raises:
        EncoderError: The encoder cannot be loaded.
        MissingError: llama-cpp-python is not installed.
    """

    alive, state = True, "ready"  # the next question starts its process again

    def __init__(self, gguf: Path, model: LabelModel, *, alone: bool = False) -> None:
        self._model, self._together = model, 1 if alone else TOGETHER
        self._encoder = Encoder(gguf)
        self.build, self.on_death = self._encoder.build, lambda: None
        self._waiting: queue.SimpleQueue[tuple[str, Future[Scores]] | None] = queue.SimpleQueue()
        self._lock, self._closed = threading.Lock(), False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @classmethod
    def opinion(cls, folder: Path) -> EncoderClassifier:
        """Returns the encoder and its linear model in a folder, to be averaged with a language model's answer."""
        return cls(folder / ENCODER, OpinionHead.read(folder), alone=True)

    @property
    def pid(self) -> int:
        """The id of the encoder's process; 0 without one."""
        return self._encoder.pid

    def held_bytes(self) -> int:
        return process_bytes(pid) if (pid := self.pid) else 0

    def close(self) -> None:
        """End the process; who still waits gets an error."""
        with self._lock:
            self._closed = True
            self._waiting.put(None)
        if pid := self.pid:  # the thread that reads from it then ends it for good
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._thread.join(timeout=5)

    def scored(self, texts: Sequence[str], *, together: int) -> list[Scores]:
        """The scores of each text.

        Args:
            together: Texts that may share a batch of the encoder.

        Raises:
            EncoderError: Its process ended.
        """
        scored = self._model.scored(texts, self._encoder.encode(texts, together=together))
        return [Scores(self._model.labels, *row) for row in zip(*scored, strict=True)]

    def submit(self, request: Request, on_event: OnEvent) -> Cancel:
        scores: Future[Scores] = Future()
        cancelled = threading.Event()

        def finish(done: Future[Scores]) -> None:
            if cancelled.is_set():
                return
            if (fault := done.exception()) is not None:
                on_event({"error": str(fault), "died": True})
            else:
                answer = done.result().answer(request.labels)
                on_event(piece_of(answer, request.alternatives))
                on_event(answer)

        def cancel() -> None:
            cancelled.set()
            scores.cancel()

        scores.add_done_callback(finish)
        self.read(request.question, scores)
        return cancel

    def read(self, question: str, scores: Future[Scores]) -> None:
        """Have a text read with those that wait; its scores, or the error, come into the future."""
        with self._lock:
            if not self._closed:
                self._waiting.put((question, scores))
                return
        scores.set_exception(EncoderError(ENDED))

    def ask_all(self, requests: Iterable[Request], **how: object) -> Outcomes:
        listed = list(requests)
        for start in range(0, len(listed), LISTED):
            block = listed[start : start + LISTED]
            scored = self.scored([request.question for request in block], together=LISTED)
            for index, (request, scores) in enumerate(zip(block, scored, strict=True), start):
                event = scores.answer(request.labels)
                yield index, answer_of(event, next(iter(event["labels"])))

    def _work(self) -> None:
        try:
            while block := self._next():
                self._answer(block)
        finally:
            with self._lock:
                self._closed = True
            self._encoder.close()
            while not self._waiting.empty():
                if (entry := self._waiting.get()) is not None and entry[1].set_running_or_notify_cancel():
                    entry[1].set_exception(EncoderError(ENDED))

    def _next(self) -> list[tuple[str, Future[Scores]]]:
        """The texts that wait, TOGETHER at most, without those that were cancelled; none where this was closed."""
        block: list[tuple[str, Future[Scores]]] = []
        while not self._closed and len(block) < TOGETHER and not (block and self._waiting.empty()):
            entry = self._waiting.get()
            if entry is not None and entry[1].set_running_or_notify_cancel():
                block.append(entry)
        for _, waiting in block if self._closed else ():
            waiting.set_exception(EncoderError(ENDED))
        return block if not self._closed else []

    def _answer(self, block: Sequence[tuple[str, Future[Scores]]], *, again: bool = True) -> None:
        """Give each text its scores; those that fail together are read once more, each alone."""
        try:
            scored = self.scored([text for text, _ in block], together=self._together)
        except (EncoderError, OSError, ValueError) as error:
            for entry in block:
                if again and not self._closed:
                    self._answer([entry], again=False)
                else:
                    entry[1].set_exception(error)
            return
        for (_, waiting), scores in zip(block, scored, strict=True):
            waiting.set_result(scores)


def piece_of(answer: Event, alternatives: int) -> Event:
    """The label of an answer as its only piece, and as one token where `Request.alternatives` asks for tokens."""
    label = next(iter(answer["labels"]))
    if alternatives < 0:
        return {"piece": label}
    listed = list(answer["labels"].items())
    first, *top = [
        TokenAlternative(token=text, bytes=list(text.encode()), logprob=math.log(max(share, FLOOR)))
        for text, share in [listed[0], *listed[:alternatives]]
    ]
    return {"piece": label, "tokens": [{**first, "top": top}]}
