"""An encoder that tags the words of a text with the fields of a
schema: texts -> JSON answers with places.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.errors import DataError
from slmctl.inference import TAGGER_FILE, TOKENIZER
from slmctl.inference.events import ValuePlace
from slmctl.metrics import stored_arrays
from slmctl.metrics.label_sum import LabelSum
from slmctl.metrics.likelihood import normalised
from slmctl.models.documents import AROUND
from slmctl.models.onnx_encoder import Encoder, Floats, load_tokenizer
from slmctl.models.token_windows import Cutter, TokenWindow
from slmctl.task.documents import page_breaks, page_of
from slmctl.task.evidence import Evidence
from slmctl.task.field_habits import Habit, key_of
from slmctl.task.span_values import FieldValue, ReadAnswer, Reader
from slmctl.task.spans import SpanMark

_PROPERTY = re.compile(r"\.|\[\]")
LEAST = -30.0  # of a log probability
Logprobs = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TaggerHead:
    """Linear layers on an encoder, and the way in which marked places are read.

    Attributes:
        weights, bias: (1 + 2F, size) and (1 + 2F,) of the classes of a word: none, and begin and go
            on of each field.
        concluded: By field that the whole text decides, a sum of which the labels are its values as
            JSON.
        sharpness: Factor of the scores of a word.
        powers: Of the probabilities of a value and of a whole answer, by which they are calibrated.
        bounds: Least probability of each property that a language model is not asked for; none
            without one.
    """

    reader: Reader
    weights: Floats
    bias: Floats
    concluded: Mapping[int, LabelSum]
    sharpness: float = 1.0
    powers: tuple[float, float] = (1.0, 1.0)
    bounds: Mapping[str, float] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the head; `read` gives it back."""
        habits = [asdict(habit) for habit in self.reader.habits]
        facts = {
            "schema": self.reader.schema,
            "habits": habits,
            "sharpness": self.sharpness,
            "powers": self.powers,
            "bounds": dict(self.bounds),
        }
        arrays: dict[str, npt.NDArray[Any]] = {"weights": self.weights, "bias": self.bias}
        for number, summed in self.concluded.items():
            arrays |= {f"{number}/{name}": values for name, values in summed.arrays().items()}
        arrays["facts"] = np.array([json.dumps(facts, ensure_ascii=False)])
        np.savez_compressed(path, allow_pickle=False, **arrays)

    @classmethod
    def read(cls, path: Path, size: int) -> Self:
        """The head in a file, for an encoder with vectors of a size.

        Raises:
            IntegrityError: The file holds none.
        """
        with stored_arrays.opened(path) as kept:
            facts = json.loads(kept.labels("facts")[0])
            try:
                habits = [_habit(values) for values in facts["habits"]]
                reader, classes = Reader.of(facts["schema"], habits), 1 + 2 * len(habits)
                first, second = map(float, facts["powers"])
                sharpness = float(facts["sharpness"])
                bounds = {str(name): float(bound) for name, bound in facts["bounds"].items()}
            except (TypeError, AttributeError, DataError) as error:
                raise ValueError(str(error)) from error
            if len(reader.fields) != len(habits):
                raise ValueError("it has other fields than its schema")
            concluded = {}
            for number, habit in enumerate(habits):
                labels = [key_of(value) for value in habit.concluded]
                if len(labels) > 1:
                    concluded[number] = LabelSum.of(kept.within(f"{number}/"), labels)
            weights, bias = kept.numbers("weights", classes, size), kept.numbers("bias", classes)
            return cls(reader, weights, bias, concluded, sharpness, (first, second), bounds)


def _habit(values: JsonObject) -> Habit:
    endings = {ending: (int(cut), str(added)) for ending, (cut, added) in values["endings"].items()}
    return replace(Habit(**values), concluded=tuple(values["concluded"]), endings=endings)


@dataclass(frozen=True)
class TextScores:
    """The scores of a text.

    Attributes:
        words: (words, 1 + 2F) of its words.
        vector: (size,) mean of the vectors of its windows, of length 1.
        concluded: (values,) log probabilities of a field that the whole text decides.
    """

    words: Floats
    vector: Floats
    concluded: Mapping[int, Logprobs] = field(default_factory=dict)


@dataclass(frozen=True)
class TaggedAnswer:
    """The answer to a text, with the calibrated probabilities of the whole and of each value."""

    read: ReadAnswer
    confidence: float
    probabilities: tuple[float, ...]
    places: tuple[ValuePlace, ...]

    @property
    def text(self) -> str:
        return self.read.text

    @property
    def by_property(self) -> dict[str, float]:
        """The probability of each property of the answer, with all values in it."""
        shares = dict.fromkeys(self.read.answer, 1.0)
        for value, probability in zip(self.read.values, self.probabilities, strict=True):
            name = property_of(value.path)
            shares[name] = shares.get(name, 1.0) * probability
        return shares

    def unsure(self, bounds: Mapping[str, float]) -> list[str]:
        """The properties of less than their least probability."""
        return [name for name, share in self.by_property.items() if share < bounds.get(name, 0.0)]


class Tagger:
    """A tagger in memory; it may be asked from several threads.

    Args:
        folder: Holds ENCODER, TOKENIZER and TAGGER_FILE.
        head: In place of that of TAGGER_FILE.
        threads: As of `Encoder`.

    Raises:
        EngineError: The encoder cannot be loaded.
        IntegrityError: TAGGER_FILE is damaged, or of another encoder.
        MissingError: A package is not installed.
    """

    def __init__(
        self, folder: Path, head: TaggerHead | None = None, *, threads: int | None = None
    ) -> None:
        self.encoder = Encoder(folder, threads=threads)
        self.head = head or TaggerHead.read(folder / TAGGER_FILE, self.encoder.size)
        tokenizer = load_tokenizer(folder / TOKENIZER)
        longest = (tokenizer.truncation or {}).get("max_length", 1 << 20)
        self._cutter = Cutter(tokenizer, longest)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.encoder.close()

    def answers(self, texts: Sequence[str]) -> list[TaggedAnswer]:
        """The answers to some texts; raises an EngineError if ONNX Runtime fails."""
        return [
            self.answer(text, scores)
            for text, scores in zip(texts, self.scores(texts), strict=True)
        ]

    def scores(self, texts: Sequence[str]) -> list[TextScores]:
        """The scores of some texts, whose windows are computed
        together with others of like length.
        """
        head = self.head
        windows = [self._cutter.windows(Evidence(text)) for text in texts]
        flat = [window for each in windows for window in each]
        weights, bias = head.weights.T, head.bias

        def take(states: Floats, vector: Floats) -> tuple[Floats, Floats]:
            return (states @ weights + bias).astype(np.float32), vector

        read = iter(self.encoder.read([window.tokens for window in flat], take))
        return self._concluded(
            texts, [self._merged(each, [next(read) for _ in each]) for each in windows]
        )

    def _merged(
        self, windows: Sequence[TokenWindow], read: Sequence[tuple[Floats, Floats]]
    ) -> TextScores:
        """The scores of a text: each word's by the window in
        which it stands further from the edge.
        """
        parts = [np.zeros((0, len(self.head.bias)), np.float32)]
        for window, (scores, _) in zip(windows, read, strict=True):
            first, end = (place - window.first for place in window.own)
            parts.append(scores[window.places][first:end])
        total = np.zeros(self.encoder.size)
        for _, vector in read:
            total += vector
        length = float(np.linalg.norm(total)) or 1.0
        return TextScores(np.concatenate(parts), (total / length).astype(np.float32))

    def _concluded(self, texts: Sequence[str], scores: Sequence[TextScores]) -> list[TextScores]:
        vectors = np.array([each.vector for each in scores]).reshape(-1, self.encoder.size)
        tables = {}
        for number, summed in self.head.concluded.items():
            tables[number] = normalised(summed.scored(texts, vectors)[0])
        made = []
        for row, each in enumerate(scores):
            shares = {number: table[row] for number, table in tables.items()}
            made.append(replace(each, concluded=shares))
        return made

    def answer(self, text: str, scores: TextScores) -> TaggedAnswer:
        """The answer that the scores of a text make."""
        head, evidence = self.head, Evidence(text)
        logprobs = normalised(head.sharpness * scores.words.astype(np.float64))
        marks = list(marks_of(logprobs, evidence, self._needed()))
        begins = np.minimum(np.exp(logprobs[:, 1::2]), 1 - 1e-9)
        absent = np.maximum(np.log1p(-begins).sum(axis=0), LEAST)
        concluded: dict[int, tuple[Any, float]] = {}
        for number, (_, habit) in enumerate(head.reader.pairs):
            if habit.concluded:
                concluded[number] = self._conclusion(number, scores)
                absent[number] = concluded[number][1]
        tagged = [mark for mark in marks if mark.field not in concluded]
        read = head.reader.values(text, tagged, concluded, absent.tolist())
        return self._calibrated(text, read)

    def _conclusion(self, number: int, scores: TextScores) -> tuple[Any, float]:
        """Returns (the likeliest value, its log probability) of a
        field that the whole text decides.
        """
        if number not in scores.concluded:  # training rows have one value
            return self.head.reader.habits[number].concluded[0], 0.0
        table = scores.concluded[number]
        best = int(table.argmax())
        return json.loads(self.head.concluded[number].labels[best]), max(float(table[best]), LEAST)

    def _needed(self) -> list[int]:
        """Fields outside of lists that always have a value, which stands in the text."""
        optional = [
            each.nullable or each.listed or habit.left_out or habit.concluded or not habit.standing
            for each, habit in self.head.reader.pairs
        ]
        return [k for k, may_lack in enumerate(optional) if not may_lack]

    def _calibrated(self, text: str, read: ReadAnswer) -> TaggedAnswer:
        first, second = self.head.powers
        logprobs = [min(value.logprob, 0.0) for value in read.values]
        probabilities = tuple(math.exp(first * logprob) for logprob in logprobs)
        confidence = math.exp(max(second * sum(logprobs), LEAST))
        return TaggedAnswer(read, confidence, probabilities, tuple(_places(text, read.values)))


def property_of(path: str) -> str:
    """The property of an answer that a value is in, by its path."""
    return _PROPERTY.split(path, 1)[0]


def _places(text: str, values: Sequence[FieldValue]) -> Iterator[ValuePlace]:
    breaks = page_breaks(text)
    for value in values:
        if value.span is not None:
            start, end = value.span
            yield {
                "path": value.path,
                "value": value.value,
                "start": start,
                "end": end,
                "page": page_of(breaks, start),
                "around": text[max(0, start - AROUND) : end + AROUND],
            }


def classes_of(evidence: Evidence, marks: Sequence[SpanMark]) -> list[int]:
    """The class of each word of a text whose places are known."""
    words = evidence.words
    number, classes = {span: k for k, span in enumerate(words)}, [0] * len(words)
    for mark in marks:
        for k, span in enumerate(evidence.touched(mark.span)):
            classes[number[span]] = 1 + 2 * mark.field + (k > 0)
    return classes


def marks_of(
    logprobs: Logprobs, evidence: Evidence, needed: Sequence[int] = ()
) -> Iterator[SpanMark]:
    """The places on the likeliest path over words, where a field goes on after itself alone.

    Args:
        logprobs: (words, 1 + 2F) of each word's classes.
        needed: Fields that have one place at the least.
    """
    if not len(logprobs):
        return
    path, words = _path(logprobs), evidence.words
    marked = set()
    for first, end in _runs(path):
        number = (int(path[first]) - 1) // 2
        marked.add(number)
        yield _mark(number, logprobs, words, (first, end))
    for number in set(needed) - marked:
        begin = 1 + 2 * number
        first = int(logprobs[:, begin].argmax())
        behind = logprobs[first + 1 :]
        goes_on = behind[:, begin + 1] > behind[:, 0]
        length = len(goes_on) if goes_on.all() else int(goes_on.argmin())
        yield _mark(number, logprobs, words, (first, first + 1 + length))


def _path(logprobs: Logprobs) -> npt.NDArray[np.int64]:
    """The likeliest classes of words (words,), by Viterbi's algorithm."""
    count, classes = logprobs.shape
    before = np.zeros((count, classes), np.int64)
    best = np.where(np.arange(classes) % 2 == 0, -np.inf, logprobs[0])
    best[0] = logprobs[0, 0]
    inner = np.arange(2, classes, 2)
    for k in range(1, count):
        top = int(best.argmax())
        reached = np.full(classes, best[top])
        before[k] = top
        going = best[inner] >= best[inner - 1]
        before[k, inner] = np.where(going, inner, inner - 1)
        reached[inner] = np.where(going, best[inner], best[inner - 1])
        best = reached + logprobs[k]
    path = np.empty(count, np.int64)
    path[-1] = best.argmax()
    for k in range(count - 1, 0, -1):
        path[k - 1] = before[k, path[k]]
    return path


def _runs(path: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """The first word of each place of a path, and the end of its words."""
    for first in np.flatnonzero(path % 2).tolist():
        end = first + 1
        while end < len(path) and path[end] == path[first] + 1:
            end += 1
        yield first, end


def _mark(
    number: int, logprobs: Logprobs, words: Sequence[tuple[int, int]], run: tuple[int, int]
) -> SpanMark:
    first, end = run
    begin = 1 + 2 * number
    total = logprobs[first, begin] + logprobs[first + 1 : end, begin + 1].sum()
    if end < len(logprobs):  # it does not go on
        total += math.log1p(-min(math.exp(logprobs[end, begin + 1]), 1 - 1e-9))
    return SpanMark(number, words[first][0], words[end - 1][1], max(float(total), LEAST))
