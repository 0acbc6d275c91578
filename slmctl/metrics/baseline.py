"""Training rows -> the answers of the baselines: models that cost next to nothing, and that every
model should beat.

A report and its gates hold them by name; `BASELINES` knows the rest of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from slmctl.inference import TAGGER

_ON_ENCODER = "slmctl run --set publish.model=linear"
_ROWS = 256  # of the rows to answer that are compared with the training rows at once


@dataclass(frozen=True)
class BaselineRows:
    """The rows of a report as baselines need them.

    Attributes:
        texts, answers: The training rows.
        choosing, chosen: Texts and answers of the validation rows.
        asked: The texts to answer.
        several: The labels of which an answer lists any number; () for one label, or other answers.
        empty: The answer that says nothing.
    """

    texts: Sequence[str]
    answers: Sequence[str]
    choosing: Sequence[str]
    chosen: Sequence[str]
    asked: Sequence[str]
    several: tuple[str, ...] = ()
    empty: str = ""


Answered = tuple[Sequence[str], Sequence[float] | None]  # an answer to each text; confidences


class Baseline:
    """One baseline, by default a trivial one.

    Attributes:
        name: In reports and gates.
        in_words: The same within a sentence.
        is_trivial: It only shows how hard the task is: charts have it if there is no other.
        on_encoder: The stage `encode` makes it, and its answers are predictions.
        release: The command that releases it; empty for none.
    """

    name: ClassVar[str]
    in_words: ClassVar[str]
    is_trivial: ClassVar[bool] = True
    on_encoder: ClassVar[bool] = False
    release: ClassVar[str] = ""

    def answers(self, rows: BaselineRows) -> Answered:
        """The answers to `rows.asked`, unless the stage `encode` makes them."""
        raise NotImplementedError(self.name)


class Majority(Baseline):
    """The most frequent answer of the training rows."""

    name = "majority"
    in_words = "always answering the most frequent label"

    def answers(self, rows: BaselineRows) -> Answered:
        from slmctl.metrics import linear_baseline

        return [linear_baseline.most_frequent(rows.answers)] * len(rows.asked), None


class TfidfLogistic(Baseline):
    """Logistic regression on TF-IDF; of several labels each against the rest."""

    name = "tfidf_logistic"
    in_words = "the linear baseline"
    is_trivial = False
    release = f"{_ON_ENCODER} --set encode.encoder=none"

    def answers(self, rows: BaselineRows) -> Answered:
        from slmctl.metrics import linear_baseline

        model = linear_baseline.fit(
            rows.texts,
            rows.answers,
            choosing=rows.choosing,
            chosen=rows.chosen,
            several=rows.several,
        )
        return model.answers(rows.asked)


class Nearest(Baseline):
    """The answer of the training row with the likest words: cosine of TF-IDF of words and pairs."""

    name = "nearest"
    in_words = "repeating the answer of the most similar training row"
    is_trivial = False

    def answers(self, rows: BaselineRows) -> Answered:
        from sklearn.feature_extraction.text import TfidfVectorizer

        from slmctl.metrics import linear_baseline

        words = TfidfVectorizer(**linear_baseline.FEATURES["words"], sublinear_tf=True)
        try:
            learned = words.fit_transform(_beginnings(rows.texts))
        except ValueError:  # there is no word in any text
            return Majority().answers(rows)
        vectors = words.transform(_beginnings(rows.asked))
        answers: list[str] = []
        for start in range(0, len(rows.asked), _ROWS):
            alike = vectors[start : start + _ROWS] @ learned.T
            answers += [rows.answers[place] for place in alike.toarray().argmax(axis=1)]
        return answers, None


def _beginnings(texts: Sequence[str]) -> list[str]:
    from slmctl.metrics import linear_baseline

    return [text[: linear_baseline.LONGEST] for text in texts]


class Copy(Baseline):
    """The input as it is."""

    name = "copy"
    in_words = "copying the input"

    def answers(self, rows: BaselineRows) -> Answered:
        return rows.asked, None


class Empty(Baseline):
    """The answer that says nothing."""

    name = "empty"
    in_words = "answering nothing"

    def answers(self, rows: BaselineRows) -> Answered:
        return [rows.empty] * len(rows.asked), None


class NoCall(Empty):
    """Never a call."""

    name = "no_call"
    in_words = "never calling a tool"


class EncoderLogistic(Baseline):
    """Linear models on the encoder and on words."""

    name = "encoder_logistic"
    in_words = "the linear model on encoder and words"
    is_trivial = False
    on_encoder = True
    release = _ON_ENCODER


class EncoderTagger(Baseline):
    """An encoder that tags the words of values."""

    name = TAGGER
    in_words = "the encoder that tags words"
    is_trivial = False
    on_encoder = True
    release = _ON_ENCODER


_ALL = (
    EncoderLogistic(),
    EncoderTagger(),
    TfidfLogistic(),
    Nearest(),
    Majority(),
    Copy(),
    Empty(),
    NoCall(),
)
BASELINES: Mapping[str, Baseline] = {each.name: each for each in _ALL}
RELEASED = tuple(each for each in _ALL if each.release)  # the better one first


def of_encoder(*, tags: bool) -> Baseline:
    """The baseline that the stage `encode` makes: of labels, or of values if it tags."""
    return BASELINES[EncoderTagger.name if tags else EncoderLogistic.name]
