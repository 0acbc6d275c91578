"""A second opinion on a label: a linear model on a frozen sentence encoder, beside the model that answers.

The two err on other rows, so the mean of their log probabilities answers (a logarithmic pool): neither is weighted,
since the linear model was sharpened on validation rows as far as its probabilities are right there. It holds no text of
a training row.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slmctl.inference import ENCODER, OPINION
from slmctl.inference.encoder import Encoder, EncoderError
from slmctl.inference.events import Event, TokenAlternative

FLOOR = 1e-6  # the least probability of a label for each of the two, so that neither overrules the other for good
TOGETHER = 16  # texts that the encoder reads at once, of those that wait
ENDED = "the encoder has ended"
Floats = npt.NDArray[np.float64]
OnEvent = Callable[[Event], None]
Cancel = Callable[[], None]


@dataclass(frozen=True)
class OpinionHead:
    """Logistic regression over the vectors of an encoder.

    Attributes:
        labels: The L labels.
        weights, bias: (L, size) and (L,).
    """

    labels: tuple[str, ...]
    weights: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]

    def write(self, folder: Path) -> None:
        """Write `second_opinion.npz`, arrays of numpy without a pickle."""
        with (folder / OPINION).open("wb") as stream:
            np.savez_compressed(stream, labels=np.array(self.labels), weights=self.weights, bias=self.bias)

    @classmethod
    def read(cls, folder: Path) -> OpinionHead:
        """The head that `write` left."""
        with np.load(folder / OPINION, allow_pickle=False) as kept:
            return cls(tuple(map(str, kept["labels"])), kept["weights"], kept["bias"])


class SecondOpinion:
    """An encoder with its head, asked from any thread; each text is read by itself, so its opinion is always the same.

    Args:
        folder: The folder of the encoder and of the head.

    Raises:
        EncoderError: The encoder cannot be loaded.
        MissingError: llama-cpp-python is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self._head = OpinionHead.read(folder)
        self._encoder = Encoder(folder / ENCODER)
        self._waiting: queue.SimpleQueue[tuple[str, Future[Floats]] | None] = queue.SimpleQueue()
        self._lock, self._closed = threading.Lock(), False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """The id of the encoder's process; 0 without one."""
        return self._encoder.pid

    def close(self) -> None:
        """End the encoder's process; who still waits gets an error."""
        with self._lock:
            self._closed = True
            self._waiting.put(None)
        if pid := self.pid:  # the thread that reads from it then ends it for good
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._thread.join(timeout=5)

    def beside(
        self, question: str, labels: tuple[str, ...], on_event: OnEvent, submit: Callable[[OnEvent], Cancel], *,
        alternatives: int = -1,
    ) -> Cancel:  # fmt: skip
        """Have a question answered by the model and here, as `Engine.submit` does; pieces come when both have answered.

        Args:
            labels: The answers that are allowed.
            submit: Has the model answer.
            alternatives: Number of likeliest labels that go with the answer, which then counts as one token; -1 for no
                tokens.
        """
        opinion: Future[Floats] = Future()
        cancelled = threading.Event()

        def relay(event: Event) -> None:
            if "finish" in event:
                opinion.add_done_callback(functools.partial(finish, event))
            elif "piece" not in event:
                on_event(event)

        def finish(event: Event, done: Future[Floats]) -> None:
            if cancelled.is_set():
                return
            error, both = "the encoder's opinion could not be added", None
            try:
                if (fault := done.exception()) is not None:
                    error = str(fault)
                else:
                    both = self._together(event, done.result(), labels)
            finally:  # a callback's exception is heard by nobody
                if both is None:
                    on_event({"error": error, "died": True})
            if both is not None:
                on_event(_piece(both, alternatives))
                on_event(both)

        cancel = submit(relay)
        with self._lock:
            if self._closed:
                opinion.set_exception(EncoderError(ENDED))
            else:
                self._waiting.put((question, opinion))

        def cancel_both() -> None:
            cancelled.set()
            cancel()
            opinion.cancel()

        return cancel_both

    def _together(self, event: Event, opinion: Floats, labels: tuple[str, ...]) -> Event:
        """The end of an answer with the probabilities of both: their product over the labels, made a distribution.

        `raw_logprobs` keeps how likely the model would have answered with any label.
        """
        both = self._shares(event["labels"], opinion, labels)
        sure = next(iter(both.values()))
        allowed = sum(event["raw_logprobs"]) - sum(event["logprobs"])
        best = math.log(max(sure, FLOOR))
        every = event.get("distribution")
        more: Event = {} if every is None else {"distribution": self._shares(every, opinion, labels)}
        return event | more | {
            "labels": both, "confidence": sure, "logprobs": [best], "raw_logprobs": [best + allowed]
        }  # fmt: skip

    def _shares(self, reached: dict[str, float], opinion: Floats, labels: tuple[str, ...]) -> dict[str, float]:
        """The probability of every label by both, likeliest first, from those that the model reached."""
        left = max(0.0, 1.0 - sum(reached.values())) / max(1, len(labels) - len(reached))
        own = np.log(np.maximum([reached.get(label, left) for label in labels], FLOOR))
        by_label = dict(zip(self._head.labels, opinion.tolist(), strict=True))
        least = math.log(FLOOR)
        scores = (own + np.array([max(by_label.get(label, least), least) for label in labels])) / 2
        scores -= scores.max()
        shares = np.exp(scores) / np.exp(scores).sum()
        order = sorted(range(len(labels)), key=lambda k: (-shares[k], k))
        return {labels[k]: float(f"{shares[k]:.6g}") for k in order}

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

    def _next(self) -> list[tuple[str, Future[Floats]]]:
        """The texts that wait, TOGETHER at most, without those that were cancelled; none where this was closed."""
        block: list[tuple[str, Future[Floats]]] = []
        while not self._closed and len(block) < TOGETHER and not (block and self._waiting.empty()):
            entry = self._waiting.get()
            if entry is not None and entry[1].set_running_or_notify_cancel():
                block.append(entry)
        for _, waiting in block if self._closed else ():
            waiting.set_exception(EncoderError(ENDED))
        return block if not self._closed else []

    def _answer(self, block: Sequence[tuple[str, Future[Floats]]], *, again: bool = True) -> None:
        """Give each text its log probabilities (L,); those that fail together are read once more, each alone."""
        try:
            vectors = self._encoder.encode([text for text, _ in block], together=1)
        except (EncoderError, OSError, ValueError) as error:
            for entry in block:
                if again and not self._closed:
                    self._answer([entry], again=False)
                else:
                    entry[1].set_exception(error)
            return
        scores = (vectors @ self._head.weights.T + self._head.bias).astype(np.float64)
        scores -= scores.max(axis=1, keepdims=True)
        logprobs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        for (_, waiting), row in zip(block, logprobs, strict=True):
            waiting.set_result(row)


def _piece(answer: Event, alternatives: int) -> Event:
    """The label of an answer as its only piece, and as one token where tokens are asked for."""
    label = next(iter(answer["labels"]))
    if alternatives < 0:
        return {"piece": label}
    listed = list(answer["labels"].items())
    first, *top = [
        TokenAlternative(token=text, bytes=list(text.encode()), logprob=math.log(max(share, FLOOR)))
        for text, share in [listed[0], *listed[:alternatives]]
    ]
    return {"piece": label, "tokens": [{**first, "top": top}]}
