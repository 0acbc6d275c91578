"""An encoder that tags words as a model, and beside a language model:
each value from the one that is surer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.inference.engine import Answering, Request
from slmctl.inference.events import Event, places_of
from slmctl.metrics import answer_metrics
from slmctl.models.batch_reader import FLOOR, BatchReader, Reply
from slmctl.models.beside import AHEAD, Beside
from slmctl.models.tagger import TaggedAnswer, Tagger, property_of


class TaggerAnswers(BatchReader[TaggedAnswer]):
    """A tagger that is asked as an engine is; it reads the whole text of a question, without a
    prompt.

    Attributes:
        tagger: Is closed with it.
    """

    def __init__(self, tagger: Tagger) -> None:
        self.tagger = tagger
        super().__init__()

    @property
    def build(self) -> str:
        return self.tagger.encoder.build

    def end(self) -> None:
        self.tagger.encoder.close()

    def scored(self, texts: Sequence[str]) -> Sequence[TaggedAnswer]:
        return self.tagger.answers(texts)

    def reply(self, read: TaggedAnswer, request: Request) -> Reply:
        return read.text, {
            "finish": "stop",
            "prompt_tokens": 0,
            "completion_tokens": 0,
            "confidence": read.confidence,
            "logprobs": logarithms(read.probabilities),
            "places": list(read.places),
        }


class FieldSum(Beside[TaggedAnswer]):
    """A tagger that looks first, and a language model that is asked if it is not sure of every
    property.

    A property is the tagger's if its probability reaches a bound, which validation rows chose, and
    else the model's.
    """

    ahead = AHEAD

    def __init__(self, engine: Answering, tagger: TaggerAnswers) -> None:
        super().__init__(engine, tagger)
        self._tagger, self._bounds = tagger, tagger.tagger.head.bounds

    def reads(self, request: Request) -> bool:
        return bool(request.question and request.schema)

    def looks_first(self, request: Request) -> bool:
        return True

    def alone(self, read: TaggedAnswer, request: Request) -> Reply | None:
        return None if read.unsure(self._bounds) else self._tagger.reply(read, request)

    def together(self, read: TaggedAnswer, text: str, event: Event, request: Request) -> Reply:
        written, unsure = answer_metrics.parse(text), read.unsure(self._bounds)
        own, ending = self._tagger.reply(read, request)
        ending["prompt_tokens"], ending["completion_tokens"] = (
            event["prompt_tokens"],
            event["completion_tokens"],
        )
        if not isinstance(written, dict):  # it was cut
            return own, ending
        sure = [share for name, share in read.by_property.items() if name not in unsure]
        confidence = math.prod(sure) * (event["confidence"] or 0.0)
        logprobs = [*logarithms(sure), *event["logprobs"]]
        places = [place for place in read.places if property_of(place["path"]) not in unsure]
        places += [place for place in places_of(event) if property_of(place["path"]) in unsure]
        ending |= {"confidence": confidence, "logprobs": logprobs, "places": places}
        return json.dumps(united(read, written, unsure), ensure_ascii=False, sort_keys=True), ending


def logarithms(probabilities: Iterable[float]) -> list[float]:
    return [math.log(max(probability, FLOOR)) for probability in probabilities]


def united(read: TaggedAnswer, written: JsonObject, unsure: Sequence[str]) -> JsonObject:
    """The tagger's object with some of its properties as a model wrote them."""
    kept = {name: value for name, value in read.read.answer.items() if name not in unsure}
    return kept | {name: written[name] for name in unsure if name in written}
