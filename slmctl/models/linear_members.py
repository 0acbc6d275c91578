"""The linear members of a sum, on a sentence encoder and on words:
text -> the score of every label.
"""

from __future__ import annotations

import math
import statistics
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slmctl.errors import IntegrityError
from slmctl.inference.engine import Request
from slmctl.inference.escalation_policy import LINEAR, WORDS
from slmctl.inference.events import Event
from slmctl.inference.supervised_child import EngineError
from slmctl.metrics import label_sum
from slmctl.metrics.label_sum import LabelSum
from slmctl.metrics.likelihood import normalised
from slmctl.models.batch_reader import FLOOR, BatchReader, Reply
from slmctl.models.onnx_encoder import Encoder

Floats = npt.NDArray[np.float64]


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
        """The end of an answer by these scores alone, with the
        probability of every one of `labels`.
        """
        shares = self._with(None, labels)
        sure = next(iter(shares.values()))
        evidence = dict(zip(self.labels, self.evidence.tolist(), strict=True))
        support = round(evidence.get(next(iter(shares)), 0.0), 6)
        return {
            "finish": "stop",
            "prompt_tokens": 0,
            "completion_tokens": 0,
            "labels": shares,
            "distribution": shares,
            "confidence": sure,
            "logprobs": [math.log(max(sure, FLOOR))],
            "evidence": support,
        }

    def beside(self, event: Event, labels: tuple[str, ...]) -> Event:
        """The end of a model's answer with the probabilities of the whole sum.

        `raw_logprobs` keeps how likely the model would have answered with any label, `first` the
        answer without it.
        """
        both = self._with(event["labels"], labels)
        sure = next(iter(both.values()))
        allowed = sum(event["raw_logprobs"]) - sum(event["logprobs"])
        best = math.log(max(sure, FLOOR))
        every = event.get("distribution")
        more: Event = {} if every is None else {"distribution": self._with(every, labels)}
        words: Event = {} if self.words is None else {"first": self.words.answer(labels)}
        first = self.answer(labels) | words
        logprobs: Event = {"logprobs": [best], "raw_logprobs": [best + allowed]}
        return event | more | logprobs | {"labels": both, "confidence": sure, "first": first}

    def _with(self, reached: dict[str, float] | None, labels: tuple[str, ...]) -> dict[str, float]:
        """The probability of every label by the sum, likeliest
        first, with those that a model reached.
        """
        by_label, least = (
            dict(zip(self.labels, self.summed.tolist(), strict=True)),
            float(self.summed.min()),
        )
        scores = np.array([by_label.get(label, least) for label in labels])
        if reached is not None:
            scores = scores + self.of_file * label_sum.spread(reached, labels)
        shares = np.exp(normalised(scores[None])[0])
        order = sorted(range(len(labels)), key=lambda k: (-shares[k], k))
        return {labels[k]: float(f"{shares[k]:.6g}") for k in order}


class LinearMembers(BatchReader[Scores]):
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
        self._model = model.only(model.weights)
        self._encoder = Encoder(folder) if self._model.size else None
        self._words = words_of(self._model) if self._encoder is not None else None
        if self._encoder is not None and self._model.size != self._encoder.size:
            self._encoder.close()
            raise IntegrityError(
                f"the linear model reads vectors of {self._model.size} numbers, and the encoder in "
                f"{folder.name} computes {self._encoder.size}",
                hint="slmctl encode",
            )
        super().__init__()

    @property
    def build(self) -> str:
        return self._encoder.build if self._encoder is not None else ""

    def end(self) -> None:
        if self._encoder is not None:
            self._encoder.close()

    def reply(self, read: Scores, request: Request) -> Reply:
        return label_reply(read.answer(request.labels))

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
            raise EngineError(
                "the encoder computed NaN: its file is damaged, or its products are wrong here"
            )
        labels, of_file = self._model.labels, self._model.of_file
        scores = [Scores(labels, *row, of_file) for row in zip(summed, evidence, strict=True)]
        if self._words is None:
            return scores
        words = [
            Scores(labels, *row) for row in zip(*self._words.scored(texts, vectors), strict=True)
        ]
        return [replace(both, words=alone) for both, alone in zip(scores, words, strict=True)]

    def timed(self, texts: Sequence[str]) -> dict[str, float]:
        """Median milliseconds of a text, read alone, by all members and by words."""
        looks: dict[str, Callable[[str], object]] = {LINEAR: lambda text: self.scored([text])}
        if (words := self._words) is not None:
            looks[WORDS] = lambda text: words.scored([text], np.zeros((1, 0), np.float32))
        times = {
            name: [timeit.timeit(partial(look, text), number=1) for text in texts]
            for name, look in looks.items()
        }
        return {name: 1000 * statistics.median(seconds) for name, seconds in times.items()}


def label_reply(event: Event) -> Reply:
    """The reply that the end of an answer with labels makes: the likeliest one."""
    return next(iter(event["labels"])), event


def words_of(model: LabelSum) -> LabelSum | None:
    """The words of a sum, with their weight; None without any."""
    return model.only({WORDS: model.weights[WORDS]}) if model.words is not None else None
