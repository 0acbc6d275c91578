"""The linear members of a sum, on a sentence encoder and on words: text -> the score of every label."""

from __future__ import annotations

import math
import statistics
import threading
import timeit
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slmctl.errors import IntegrityError
from slmctl.inference.engine import Answering, Outcomes, Request, answer_of
from slmctl.inference.escalation_policy import LINEAR, WORDS
from slmctl.inference.events import Event, TokenAlternative
from slmctl.inference.supervised_child import EngineDiedError, EngineError, State
from slmctl.inference.turns import Turns
from slmctl.metrics import label_sum
from slmctl.metrics.label_sum import LabelSum
from slmctl.metrics.likelihood import normalised
from slmctl.models.onnx_encoder import Encoder

FLOOR = math.exp(label_sum.LEAST)  # the least probability of a label in an answer
TOGETHER, LISTED = 32, 64  # texts that the encoder reads at once: of those that wait, and of a list
CHARACTERS = 1 << 16  # of those that wait, in all; a longer text is read alone, so that others wait for one alone
SHARED = 4  # of those that wait, where several clients ask: who comes then waits for few
ENDED = "the linear members have ended"
Floats = npt.NDArray[np.float64]
OnEvent = Callable[[Event], None]
Cancel = Callable[[], object]


@dataclass(frozen=True)
class Scores:
    """The scores of one text.

    Attributes:
        labels: The L labels.
        summed: (L,) weighted sum of the linear members' log probabilities.
        evidence: (L,) scores of one of them for each label, before normalisation over labels.
        of_file: The weight of a file's log probabilities beside them.
        words: The scores of words alone, beside an encoder.
    """

    labels: tuple[str, ...]
    summed: Floats
    evidence: Floats
    of_file: float = 0.0
    words: Scores | None = None

    def answer(self, labels: tuple[str, ...]) -> Event:
        """The end of an answer by these scores alone, with the probability of every one of `labels`."""
        shares = self._with(None, labels)
        sure = next(iter(shares.values()))
        evidence = dict(zip(self.labels, self.evidence.tolist(), strict=True))
        return {
            "finish": "stop", "prompt_tokens": 0, "completion_tokens": 0, "labels": shares, "distribution": shares,
            "confidence": sure, "logprobs": [math.log(max(sure, FLOOR))],
            "evidence": round(evidence.get(next(iter(shares)), 0.0), 6),
        }  # fmt: skip

    def beside(self, event: Event, labels: tuple[str, ...]) -> Event:
        """The end of a model's answer with the probabilities of the whole sum.

        `raw_logprobs` keeps how likely the model would have answered with any label, `first` the answer without it.
        """
        both = self._with(event["labels"], labels)
        sure = next(iter(both.values()))
        allowed = sum(event["raw_logprobs"]) - sum(event["logprobs"])
        best = math.log(max(sure, FLOOR))
        every = event.get("distribution")
        more: Event = {} if every is None else {"distribution": self._with(every, labels)}
        words: Event = {} if self.words is None else {"first": self.words.answer(labels)}
        return event | more | {
            "labels": both, "confidence": sure, "logprobs": [best], "raw_logprobs": [best + allowed],
            "first": self.answer(labels) | words,
        }  # fmt: skip

    def _with(self, reached: dict[str, float] | None, labels: tuple[str, ...]) -> dict[str, float]:
        """The probability of every label by the sum, likeliest first, with those that a model reached."""
        by_label, least = dict(zip(self.labels, self.summed.tolist(), strict=True)), float(self.summed.min())
        scores = np.array([by_label.get(label, least) for label in labels])
        if reached is not None:
            scores = scores + self.of_file * label_sum.spread(reached, labels)
        shares = np.exp(normalised(scores[None])[0])
        order = sorted(range(len(labels)), key=lambda k: (-shares[k], k))
        return {labels[k]: float(f"{shares[k]:.6g}") for k in order}


class LinearMembers(Answering):
    """The linear members of a sum, asked as an engine is; they live in this process.

    Args:
        model: Members and weights; those without a weight are not asked.
        folder: The folder of the encoder; it is not opened if no weight is the encoder's.

    Raises:
        EngineError: The encoder cannot be loaded.
        IntegrityError: The model is for vectors of another size.
        MissingError: onnxruntime or tokenizers is not installed.
    """

    def __init__(self, model: LabelSum, folder: Path) -> None:
        self._model, self.on_death = model.only(model.weights), lambda: None
        self._encoder = Encoder(folder) if self._model.size else None
        self._words = words_of(self._model) if self._encoder is not None else None
        if self._encoder is not None and self._model.size != self._encoder.size:
            self._encoder.close()
            raise IntegrityError(f"the linear model reads vectors of {self._model.size} numbers, and the encoder in "
                                 f"{folder.name} computes {self._encoder.size}", hint="slmctl encode")  # fmt: skip
        self._waiting, self._closed = Turns[tuple[str, Future[Scores]]](), False
        self._change = threading.Condition()  # of both
        self._scoring = ThreadPoolExecutor(1)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @property
    def build(self) -> str:
        return self._encoder.build if self._encoder is not None else ""

    @property
    def alive(self) -> bool:
        return not self._closed

    @property
    def state(self) -> State:
        return "dead" if self._closed else "ready"

    def held_bytes(self) -> int:
        return 0  # no process of their own

    def revive(self) -> None:
        """Nothing dies without this process."""

    def with_reader(self, reader: object) -> LinearMembers:
        return self  # a text is read as a whole, whatever its length

    def close(self) -> None:
        """End the thread; who still waits gets an error."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join(timeout=5)

    def scored(self, texts: Sequence[str]) -> list[Scores]:
        """The scores of each text.

        Raises:
            EngineError: The encoder failed, or computed NaN.
        """
        vectors = np.zeros((len(texts), 0), np.float32)
        if self._encoder is not None:
            vectors = self._encoder.encode(texts)
        summed, evidence = self._model.scored(texts, vectors)
        if np.isnan(summed).any():
            raise EngineError("the encoder computed NaN: its file is damaged, or its products are wrong here")
        labels, of_file = self._model.labels, self._model.of_file
        scores = [Scores(labels, *row, of_file) for row in zip(summed, evidence, strict=True)]
        if self._words is None:
            return scores
        words = [Scores(labels, *row) for row in zip(*self._words.scored(texts, vectors), strict=True)]
        return [replace(both, words=alone) for both, alone in zip(scores, words, strict=True)]

    def timed(self, texts: Sequence[str]) -> dict[str, float]:
        """Median milliseconds of a text, read alone, by all members and by words."""
        looks: dict[str, Callable[[str], object]] = {LINEAR: lambda text: self.scored([text])}
        if (words := self._words) is not None:
            looks[WORDS] = lambda text: words.scored([text], np.zeros((1, 0), np.float32))
        times = {name: [timeit.timeit(partial(look, text), number=1) for text in texts] for name, look in looks.items()}
        return {name: 1000 * statistics.median(seconds) for name, seconds in times.items()}

    def submit(self, request: Request, on_event: OnEvent) -> Cancel:
        scores, cancelled = Future[Scores](), threading.Event()
        labels = request.labels

        def finish(done: Future[Scores]) -> None:
            if not cancelled.is_set():
                tell(on_event, done, lambda scores: scores.answer(labels), alternatives=request.alternatives)

        def cancel() -> None:
            cancelled.set()
            scores.cancel()

        scores.add_done_callback(finish)
        self.read(request, scores)
        return cancel

    def read(self, request: Request, scores: Future[Scores]) -> None:
        """Have a question read with those that wait; its scores, or the error, come into the future."""
        with self._change:
            if not self._closed:
                self._waiting.put(request.client, (request.question, scores))
                self._change.notify()
                return
        scores.set_exception(EngineDiedError(ENDED))

    def ask_all(self, requests: Iterable[Request], **how: object) -> Outcomes:
        listed = list(requests)
        for start in range(0, len(listed), LISTED):
            block = listed[start : start + LISTED]
            for index, (request, scores) in enumerate(zip(block, self._listed(block), strict=True), start):
                if isinstance(scores, EngineError):
                    yield index, scores
                else:
                    event = scores.answer(request.labels)
                    yield index, answer_of(event, next(iter(event["labels"])))

    def _listed(self, block: Sequence[Request]) -> Sequence[Scores | EngineError]:
        """The scores of each request, or its error; those that fail together are read once more, each alone."""
        try:
            return self.scored([request.question for request in block])
        except EngineError as error:
            return [error] if len(block) == 1 else [each for request in block for each in self._listed([request])]

    def _work(self) -> None:
        try:
            while block := self._next():
                self._answer(block)
        finally:
            with self._change:
                self._closed = True
            self._scoring.shutdown()
            if self._encoder is not None:
                self._encoder.close()
            for _, waiting in self._waiting:
                if waiting.set_running_or_notify_cancel():
                    waiting.set_exception(EngineDiedError(ENDED))

    def _next(self) -> list[tuple[str, Future[Scores]]]:
        """The texts that wait, some at most, without those that were cancelled; none where this was closed."""
        block: list[tuple[str, Future[Scores]]] = []
        with self._change:
            while not (block or self._closed):
                self._change.wait_for(lambda: self._waiting or self._closed)
                most = SHARED if self._waiting.is_shared else TOGETHER
                length = 0
                while (entry := self._waiting.next()) is not None and len(block) < most and not self._closed:
                    length += len(entry[0])
                    if block and length > CHARACTERS:
                        break
                    self._waiting.take()
                    if entry[1].set_running_or_notify_cancel():
                        block.append(entry)
        return block

    def _answer(self, block: Sequence[tuple[str, Future[Scores]]], *, again: bool = True) -> None:
        """Give each text its scores; those that fail together are read once more, each alone."""
        scoring = self._scoring.submit(self.scored, [text for text, _ in block])
        # whatever was raised, these texts are told, and the next ones are read
        if (error := scoring.exception()) is None:
            for (_, waiting), scores in zip(block, scoring.result(), strict=True):
                waiting.set_result(scores)
            return
        for entry in block:
            if again and not self._closed:
                self._answer([entry], again=False)
            else:
                entry[1].set_exception(error)


def words_of(model: LabelSum) -> LabelSum | None:
    """The words of a sum, with their weight; None without any."""
    return model.only({WORDS: model.weights[WORDS]}) if model.words is not None else None


def tell(
    on_event: OnEvent, done: Future[Scores], ending: Callable[[Scores], Event], *, alternatives: int
) -> None:  # fmt: skip
    """Send the events of an answer by the scores that a future holds, or the error in place of them.

    Args:
        ending: The end of the answer.
        alternatives: As in a Request.
    """
    events: list[Event] = [{"error": "the encoder's part of the answer cannot be computed"}]
    try:
        if (error := done.exception()) is not None:
            died = isinstance(error, EngineDiedError)
            events = [{"error": f"the encoder failed: {str(error) or type(error).__name__}", "died": died}]
        else:
            answer = ending(done.result())
            events = [_piece(answer, alternatives), answer]
    finally:  # an exception in a callback of a future is logged, and nobody hears it
        for event in events:
            on_event(event)


def _piece(answer: Event, alternatives: int) -> Event:
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
