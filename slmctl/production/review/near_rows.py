"""Finds the training rows nearest to a text, by their common words."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slmctl.deduplication import minhash
from slmctl.task.records import Record

MAX_ROWS = 200_000  # training rows that are searched
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Neighbour:
    """A training row near a text; `similarity` is the cosine of their TF-IDF vectors, 0 to 1."""

    text: str
    answer: str
    similarity: float


class TrainingRows:
    """An index of training rows, (input, answer) each, for the cosine of
    TF-IDF vectors over words, in plain numpy.
    """

    def __init__(self, rows: Sequence[tuple[str, str]]) -> None:
        self._rows = rows
        counts = [Counter(_words(text)) for text, _ in rows]
        self._vocabulary: dict[str, int] = {}
        words = []
        owners = []
        weights = []
        for owner, count in enumerate(counts):
            for word, times in count.items():
                words.append(self._vocabulary.setdefault(word, len(self._vocabulary)))
                owners.append(owner)
                weights.append(1 + math.log(times))
        order = np.argsort(np.array(words, dtype=np.int64), kind="stable")
        self._owners = np.array(owners, dtype=np.int64)[order]
        of_word = np.bincount(np.array(words, dtype=np.int64), minlength=len(self._vocabulary))
        self._starts = np.concatenate([[0], np.cumsum(of_word)])
        self._rarity: npt.NDArray[np.float64] = np.log((1 + len(rows)) / (1 + of_word)) + 1
        weight = np.array(weights, dtype=np.float64)[order] * np.repeat(self._rarity, of_word)
        norms = np.sqrt(np.bincount(self._owners, weight**2, minlength=len(rows)))
        self._weights = weight / norms[self._owners] if len(weight) else weight

    @classmethod
    def of(cls, prepared: Path) -> TrainingRows:
        """The index of the first MAX_ROWS training rows of a prepared data set."""
        with (prepared / "train.jsonl").open(encoding="utf-8") as stream:
            records = (
                Record.from_json(json.loads(line)) for line in itertools.islice(stream, MAX_ROWS)
            )
            return cls([(record.input, record.answer) for record in records])

    def nearest(self, text: str, count: int = 5) -> list[Neighbour]:
        """Up to `count` rows with the highest similarity, the nearest
        first; only rows with a common word.
        """
        scores = self._scores(text)
        top = np.argsort(-scores, kind="stable")[:count]
        rows = [(*self._rows[int(k)], float(scores[k])) for k in top if scores[k] > 0]
        return [Neighbour(text, answer, round(score, 4)) for text, answer, score in rows]

    def similarity(self, text: str) -> float:
        return float(self._scores(text).max(initial=0.0))

    def _scores(self, text: str) -> npt.NDArray[np.float64]:
        """The cosine of a text with each row, (rows,)."""
        scores = np.zeros(len(self._rows))
        squares = 0.0
        for word, times in Counter(_words(text)).items():
            place = self._vocabulary.get(word)
            rarity = (
                math.log(1 + len(self._rows)) + 1 if place is None else float(self._rarity[place])
            )
            weight = (1 + math.log(times)) * rarity
            squares += weight**2
            if place is not None:
                some = slice(self._starts[place], self._starts[place + 1])
                # += is safe: a word has a row once
                scores[self._owners[some]] += weight * self._weights[some]
        return scores / math.sqrt(squares) if squares else scores


def _words(text: str) -> list[str]:
    return _WORD.findall(minhash.normalise(text))
