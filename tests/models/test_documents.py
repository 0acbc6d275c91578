"""One answer to a document whose windows were asked one by one."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest

from slmctl.inference.engine import Answer, Answering, Outcomes, Request
from slmctl.inference.events import Event
from slmctl.inference.supervised_child import EngineError
from slmctl.models.composition import Composition
from slmctl.models.documents import DocumentReader, reading
from slmctl.task.contract import Task
from slmctl.task.documents import WindowForm

FORM = WindowForm(size=120, overlap=20)
SCHEMA = {
    "type": "object",
    "properties": {
        "fee": {"type": "number"}, "law": {"type": ["string", "null"]},
        "parts": {"type": "array", "items": {"type": "string"}}, "start": {"type": "string"},
    },
    "required": ["fee", "law", "parts"],
}  # fmt: skip
EXTRACT = Task("extract", "", "", schema=SCHEMA, document=FORM)
CLASSIFY = Task("classify", "", "", labels=("a", "b", "c"), document=FORM)
FILLER = "Nothing of interest stands in this paragraph of the contract.\n\n"
EMPTY = {"fee": None, "law": None, "parts": [], "start": None}


class Scripted(Answering):
    """A model that answers a window by the first text of a script that stands in it."""

    ahead, on_death = 4, lambda: None

    def __init__(self, script: Mapping[str, Event], rest: Event) -> None:
        self.script, self.rest, self.asked = script, rest, list[Request]()

    def event_of(self, request: Request) -> Event:
        self.asked.append(request)
        return next((event for text, event in self.script.items() if text in request.prompt), self.rest)

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Callable[[], object]:
        event = self.event_of(request)
        if "error" not in event:
            on_event({"piece": event["piece"], "tokens": event.get("tokens", [])})
            event = {key: value for key, value in event.items() if key not in ("piece", "tokens")}
        on_event(event)
        return lambda: None

    def ask_all(self, requests: Iterable[Request], **how: object) -> Outcomes:
        for index, request in enumerate(requests):
            event = self.event_of(request)
            if "error" in event:
                yield index, EngineError(event["error"])
                continue
            yield index, Answer(event["piece"], event["finish"], event["confidence"], 1, 1, event.get("labels", {}),
                                tuple(event["logprobs"]))  # fmt: skip


def said(value: Any, confidence: float = 0.9, **more: Any) -> Event:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return {"piece": text, "finish": "stop", "confidence": confidence, "prompt_tokens": 1, "completion_tokens": 1,
            "logprobs": [math.log(confidence)], **more}  # fmt: skip


def asked(task: Task, text: str, **more: Any) -> Request:
    schema = json.dumps(task.schema) if task.schema else ""
    return Request(f"<user>{text}<end>", labels=task.labels, schema=schema, question=text, document=text, **more)


def both(model: Scripted, task: Task, text: str) -> Answer:
    """The answer, which is the same by `ask_all` and by `submit`."""
    reader = reading(model, {"": task})
    ((_, listed),) = reader.ask_all([asked(task, text)])
    alone = reader.ask(asked(task, text))
    assert isinstance(listed, Answer)
    assert listed == alone or (listed.text == alone.text and listed.places == alone.places)
    return alone


def test_values_of_all_windows_make_one_object_with_their_places() -> None:
    pages = "The fee is 4,800 euros.", "Dutch law applies.", "Parts: a pump, a hose."
    text = "\f".join(f"{page}\n\n{FILLER * 3}" for page in pages)
    model = Scripted(
        {
            "4,800": said(EMPTY | {"fee": 4800}), "Dutch": said(EMPTY | {"law": "Dutch law"}),
            "pump": said(EMPTY | {"parts": ["pump", "hose", "rocket"]}),
        }, said(EMPTY),
    )  # fmt: skip
    answer = both(model, EXTRACT, text)
    assert json.loads(answer.text) == {"fee": 4800, "law": "Dutch law", "parts": ["pump", "hose"]}
    places = {place["path"]: place for place in answer.places}
    assert text[places["fee"]["start"] : places["fee"]["end"]] == "4,800"
    assert (places["law"]["page"], places["parts[]"]["page"]) == (2, 3)
    assert "Dutch law applies" in places["law"]["around"]
    windows = model.asked[: len(model.asked) // 2]
    assert all(request.prompt.startswith("<user>[page") and request.prompt.endswith("<end>") for request in windows)
    assert all("null" in request.schema and not request.document for request in windows)


def test_a_value_that_stands_nowhere_is_not_taken_and_two_likely_ones_are_a_conflict() -> None:
    text = f"The fee is 4,800 euros.\n\n{FILLER * 3}The fee is 5,200 euros from then on.\n\n{FILLER * 2}"
    model = Scripted(
        {"4,800": said(EMPTY | {"fee": 4800}, 0.8), "5,200": said(EMPTY | {"fee": 5200}, 0.7)},
        said(EMPTY | {"law": "Martian law"}),
    )
    answer = both(model, EXTRACT, text)
    assert json.loads(answer.text)["fee"] == 4800 and json.loads(answer.text)["law"] is None
    assert [(place["value"], place.get("conflict", False)) for place in answer.places] == [(4800, False), (5200, True)]
    assert answer.confidence is not None and answer.confidence < 0.8


def test_the_probability_of_a_value_is_that_of_its_tokens() -> None:
    def token(text: str, chance: float) -> Any:
        return {"token": text, "bytes": list(text.encode()), "logprob": math.log(chance), "top": []}

    text = f"The fee is 4,800 euros.\n\n{FILLER * 3}The fee is 5,200 euros.\n\n{FILLER * 2}"
    low = said(EMPTY | {"fee": 4800}) | {"tokens": [token('{"fee": ', 0.3), token("4800", 0.9), token(", …", 0.1)]}
    high = said(EMPTY | {"fee": 5200}) | {"tokens": [token('{"fee": ', 0.9), token("52", 0.6), token("00", 1.0)]}
    reader = reading(Scripted({"4,800": low, "5,200": high}, said(EMPTY)), {"": EXTRACT})
    assert json.loads(reader.ask(asked(EXTRACT, text)).text)["fee"] == 4800


def test_a_window_that_is_not_read_is_an_error_with_its_page() -> None:
    text = f"{FILLER * 4}\fbroken\n\n{FILLER * 4}"
    model = Scripted({"broken": {"error": "no room", "refused": True}}, said(EMPTY))
    reader = reading(model, {"": EXTRACT})
    ((_, outcome),) = reader.ask_all([asked(EXTRACT, text)])
    assert isinstance(outcome, EngineError) and outcome.message == "page 1 of 2 was not read: no room"
    events: list[Event] = []
    reader.submit(asked(EXTRACT, text), events.append)
    assert [event["error"] for event in events] == ["page 1 of 2 was not read: no room"]
    assert events[0]["refused"]


def test_the_mean_log_probability_decides_a_label_and_the_loudest_window_is_its_place() -> None:
    text = f"alpha {FILLER * 2}\fbeta {FILLER * 2}"
    model = Scripted(
        {"alpha": said("a", 0.6, labels={"a": 0.6, "b": 0.39, "c": 0.01})},
        said("b", 0.9, labels={"b": 0.9, "c": 0.09, "a": 0.01}),
    )
    answer = both(model, CLASSIFY, text)
    assert answer.text == "b" and next(iter(answer.labels)) == "b"
    assert sum(answer.labels.values()) == pytest.approx(1, abs=1e-4)
    assert answer.places[0]["page"] == 2 or answer.places[0]["start"] > 0


def test_a_short_text_is_asked_as_it_is_and_a_request_without_document_is_not_touched() -> None:
    model = Scripted({}, said({"fee": 12, "law": None, "parts": []}))
    reader = reading(model, {"": EXTRACT})
    short = asked(EXTRACT, "The fee is 12.")
    answer = reader.ask(short)
    assert model.asked[-1].prompt == short.prompt and model.asked[-1].schema == short.schema
    assert [place["value"] for place in answer.places] == [12]
    plain = Request("<user>" + FILLER * 9)
    ((_, whole),) = reader.ask_all([plain])
    assert model.asked[-1] is plain and whole.text == model.rest["piece"]  # type: ignore[union-attr]
    assert reading(model, {"": Task("extract", "", "", schema=SCHEMA)}) is model
    assert isinstance(reader, DocumentReader) and isinstance(reader, Composition)
