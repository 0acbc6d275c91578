"""A second opinion on a label: a linear model on a frozen sentence encoder, beside the model that answers.

The two err on other rows, so their log probabilities are added: neither is weighted, since the linear model was
sharpened on validation rows as far as its probabilities are right there. It holds no text of a training row.
"""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slmctl.inference import ENCODER, OPINION
from slmctl.inference.encoder import Encoder, EncoderError
from slmctl.inference.events import Event, TokenInfo

FLOOR = 1e-6  # the least probability of a label that the model did not look at
TOGETHER = 64  # texts that the encoder reads at once, of those that wait
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
    """An encoder with its head, asked from any thread: what waits is read together.

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
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """The id of the encoder's process; 0 without one."""
        return self._encoder.pid

    def close(self) -> None:
        """End the encoder's process; who still waits gets an error."""
        self._waiting.put(None)
        self._encoder.close()
        self._thread.join(timeout=5)

    def beside(
        self, question: str, labels: tuple[str, ...], on_event: OnEvent, submit: Callable[[OnEvent], Cancel]
    ) -> Cancel:
        """Have a question answered by the model and here, as `Engine.submit` does; pieces come when both have answered.

        Args:
            labels: The answers that are allowed.
            submit: Has the model answer.
        """
        opinion: Future[Floats] = Future()
        tokens: list[TokenInfo] = []
        cancelled = threading.Event()

        def relay(event: Event) -> None:
            if "piece" in event:
                tokens.extend(event.get("tokens", ()))
            elif "finish" in event:
                opinion.add_done_callback(functools.partial(finish, event))
            else:
                on_event(event)

        def finish(event: Event, done: Future[Floats]) -> None:
            if cancelled.is_set():
                return
            if (error := done.exception()) is not None:
                on_event({"error": str(error)})
                return
            both = self._together(event, done.result(), labels)
            label = next(iter(both["labels"]))
            piece: Event = {"piece": label}
            if tokens and label == next(iter(event["labels"])):  # else they spell another label
                piece["tokens"] = tokens
            on_event(piece)
            on_event(both)

        cancel = submit(relay)
        self._waiting.put((question, opinion))

        def cancel_both() -> None:
            cancelled.set()
            cancel()

        return cancel_both

    def _together(self, event: Event, opinion: Floats, labels: tuple[str, ...]) -> Event:
        """The end of an answer with the probabilities of both: their product over the labels, made a distribution.

        `raw_logprobs` keeps how likely the model would have answered with any label.
        """
        reached = event["labels"]
        left = max(0.0, 1.0 - sum(reached.values())) / max(1, len(labels) - len(reached))
        own = np.log(np.maximum([reached.get(label, left) for label in labels], FLOOR))
        places = {label: place for place, label in enumerate(self._head.labels)}
        unseen = float(np.log(FLOOR))
        scores = own + np.array([opinion[places[label]] if label in places else unseen for label in labels])
        scores -= scores.max()
        shares = np.exp(scores) / np.exp(scores).sum()
        order = sorted(range(len(labels)), key=lambda k: (-shares[k], k))
        sure = float(f"{shares[order[0]]:.6g}")
        allowed = sum(event["raw_logprobs"]) - sum(event["logprobs"])
        best = float(np.log(max(sure, FLOOR)))
        return event | {
            "labels": {labels[k]: float(f"{shares[k]:.6g}") for k in order}, "confidence": sure,
            "logprobs": [best], "raw_logprobs": [best + allowed],
        }  # fmt: skip

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            block, ended = [first], False
            while len(block) < TOGETHER and not self._waiting.empty():
                if (more := self._waiting.get()) is None:
                    ended = True
                    break
                block.append(more)
            try:
                vectors = self._encoder.encode([text for text, _ in block])
            except (EncoderError, OSError, ValueError) as error:
                for _, waiting in block:
                    waiting.set_exception(error)
            else:
                scores = (vectors @ self._head.weights.T + self._head.bias).astype(np.float64)
                scores -= scores.max(axis=1, keepdims=True)
                logprobs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
                for (_, waiting), row in zip(block, logprobs, strict=True):
                    waiting.set_result(row)
            if ended:
                return
