"""A tagger beside a language model: each property from the surer one,
and no question that nobody needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from slmctl.inference.engine import Answer, Answering, Request
from slmctl.inference.events import Event
from slmctl.models.field_sum import FieldSum, TaggerAnswers, united
from slmctl.models.tagger import TaggedAnswer
from slmctl.stages.sum.fields import NEVER, Judged
from slmctl.task.span_values import FieldValue, ReadAnswer

ANSWER = {"goods": ["lamp", "chair"], "place": None}
PLACES = [("goods[]", 0), ("goods[]", 5)]


def tagged(first: float = 0.9, second: float = 0.9, third: float = 0.6) -> TaggedAnswer:
    values = [
        FieldValue("goods[]", "lamp", 0.0),
        FieldValue("goods[]", "chair", 0.0),
        FieldValue("place", None, 0.0),
    ]
    places: list[Any] = [
        {"path": path, "value": "x", "start": start, "end": start + 4, "page": 1, "around": ""}
        for path, start in PLACES
    ]
    shares = first, second, third
    return TaggedAnswer(
        ReadAnswer(ANSWER, tuple(values)), first * second * third, shares, tuple(places)
    )


class Writer(Answering):
    """A language model that writes what it is given, in pieces."""

    build, ahead, alive, state = "writer", 1, True, "ready"  # type: ignore[assignment]

    def __init__(self, text: str) -> None:
        self.text, self.asked = text, 0
        self.on_death = lambda: None

    def close(self) -> None: ...

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Callable[[], object]:
        self.asked += 1
        for piece in self.text:
            on_event({"piece": piece})
        on_event(
            {
                "finish": "stop",
                "prompt_tokens": 7,
                "completion_tokens": 3,
                "confidence": 0.5,
                "logprobs": [-0.7],
            }
        )
        return lambda: None


class Known(TaggerAnswers):
    """A tagger that has one answer to all."""

    def __init__(self, answer: TaggedAnswer, bounds: dict[str, float]) -> None:
        head = type("Head", (), {"bounds": bounds})()
        encoder = type("Encoder", (), {"build": "", "close": lambda self: None})()
        super().__init__(type("Tagger", (), {"head": head, "encoder": encoder})())  # type: ignore[arg-type]
        self.answer = answer

    def scored(self, texts: Any) -> list[TaggedAnswer]:
        return [self.answer for _ in texts]


def asked(
    text: str, bounds: dict[str, float], request: Request | None = None
) -> tuple[Answer, Writer, int]:
    writer = Writer(text)
    with FieldSum(writer, Known(tagged(), bounds)) as model:
        answer = model.ask(request or Request("", question="lamp chair", schema="{}"))
        return answer, writer, model.kept


def test_who_is_sure_of_every_property_asks_nobody() -> None:
    answer, writer, kept = asked("{}", {"goods": 0.8, "place": 0.5})
    assert json.loads(answer.text) == ANSWER and (writer.asked, kept) == (0, 1)
    assert answer.confidence == pytest.approx(0.486) and [
        place["start"] for place in answer.places
    ] == [0, 5]


def test_an_unsure_property_is_the_language_models() -> None:
    written = {"goods": ["table"], "place": "office", "more": 1}
    answer, writer, kept = asked(json.dumps(written), {"goods": 0.8, "place": 0.7})
    assert json.loads(answer.text) == {"goods": ["lamp", "chair"], "place": "office"}
    assert (writer.asked, kept, answer.prompt_tokens) == (1, 0, 7)
    assert answer.confidence == pytest.approx(0.81 * 0.5) and len(answer.places) == 2
    answer, *_ = asked(json.dumps(written), {"goods": 0.9, "place": 0.5})
    assert json.loads(answer.text) == {"goods": ["table"], "place": None} and not answer.places


def test_an_answer_that_was_cut_leaves_the_taggers() -> None:
    answer, writer, _ = asked('{"goods": ["tab', {"place": NEVER})
    assert json.loads(answer.text) == ANSWER and writer.asked == 1


@pytest.mark.parametrize(
    "request_of",
    [{"schema": "{}"}, {"question": "lamp"}, {"question": "x", "schema": "{}", "adapter": "a"}],
)
def test_other_requests_go_to_the_language_model(request_of: dict[str, str]) -> None:
    answer, writer, kept = asked("hello", {}, Request("", **request_of))  # type: ignore[arg-type]
    assert (answer.text, writer.asked, kept) == ("hello", 1, 0)


def test_a_property_that_both_leave_out_stays_out() -> None:
    assert united(tagged(), {}, ["place"]) == {"goods": ["lamp", "chair"]}


def judged(shares: list[float], right: list[bool], written: list[bool]) -> Judged:
    return Judged(np.array(shares), np.array(right), np.array(written))


def test_a_bound_asks_as_little_as_is_as_right() -> None:
    shares = np.linspace(0.01, 1, 100).tolist()
    low = [share > 0.3 for share in shares]
    assert judged(shares, low, [True] * 100).bound() == pytest.approx(0.3, abs=0.021)
    assert judged(shares, [True] * 100, [True] * 100).bound() == 0.0
    assert judged(shares, [False] * 100, [True] * 100).bound() >= 1.0
    one = [share != 0.5 for share in shares]  # one row of a hundred tells nothing
    assert judged(shares, one, [True] * 100).bound() == 0.0
