"""One answer to a document whose windows were asked one by one."""

import json
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from slmctl.cli import terminal_chat
from slmctl.errors import StageError
from slmctl.inference.engine import Answer, Answering, Engine, Outcomes, Request
from slmctl.inference.events import Event, places_of
from slmctl.inference.supervised_child import EngineError, Message
from slmctl.models import documents
from slmctl.models.composition import Composition
from slmctl.models.documents import DocumentReader, reading
from slmctl.pipeline import model_lookup
from slmctl.stages.predict import row_answers
from slmctl.task import label_sets
from slmctl.task.contract import Task
from slmctl.task.documents import WindowForm

FORM = WindowForm(size=120, overlap=20)
SCHEMA = {
    "type": "object",
    "properties": {
        "fee": {"type": "number"},
        "law": {"type": ["string", "null"]},
        "parts": {"type": "array", "items": {"type": "string"}},
        "start": {"type": "string"},
    },
    "required": ["fee", "law", "parts"],
}
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
        return next(
            (event for text, event in self.script.items() if text in request.prompt), self.rest
        )

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
            yield (
                index,
                Answer(
                    event["piece"],
                    event["finish"],
                    event["confidence"],
                    1,
                    1,
                    event.get("labels", {}),
                    tuple(event["logprobs"]),
                ),
            )


def said(value: Any, confidence: float = 0.9, **more: Any) -> Event:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return {
        "piece": text,
        "finish": "stop",
        "confidence": confidence,
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "logprobs": [math.log(confidence)],
        **more,
    }


def asked(task: Task, text: str, **more: Any) -> Request:
    schema = json.dumps(task.schema) if task.schema else ""
    return Request(
        f"<user>{text}<end>",
        labels=task.labels,
        schema=schema,
        question=text,
        document=text,
        **more,
    )


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
            "4,800": said(EMPTY | {"fee": 4800}),
            "Dutch": said(EMPTY | {"law": "Dutch law"}),
            "pump": said(EMPTY | {"parts": ["pump", "hose", "rocket"]}),
        },
        said(EMPTY),
    )
    answer = both(model, EXTRACT, text)
    assert json.loads(answer.text) == {"fee": 4800, "law": "Dutch law", "parts": ["pump", "hose"]}
    places = {place["path"]: place for place in answer.places}
    assert text[places["fee"]["start"] : places["fee"]["end"]] == "4,800"
    assert (places["law"]["page"], places["parts[]"]["page"]) == (2, 3)
    assert "Dutch law applies" in places["law"]["around"]
    windows = model.asked[: len(model.asked) // 2]
    assert all(
        request.prompt.startswith("<user>[page") and request.prompt.endswith("<end>")
        for request in windows
    )
    assert all("null" in request.schema and not request.document for request in windows)


def test_a_value_that_stands_nowhere_is_not_taken_and_two_likely_ones_are_a_conflict() -> None:
    text = (
        f"The fee is 4,800 euros.\n\n{FILLER * 3}The fee is 5,200 euros from then "
        f"on.\n\n{FILLER * 2}"
    )
    model = Scripted(
        {"4,800": said(EMPTY | {"fee": 4800}, 0.8), "5,200": said(EMPTY | {"fee": 5200}, 0.7)},
        said(EMPTY | {"law": "Martian law"}),
    )
    answer = both(model, EXTRACT, text)
    assert json.loads(answer.text)["fee"] == 4800 and json.loads(answer.text)["law"] is None
    assert [(place["value"], place.get("conflict", False)) for place in answer.places] == [
        (4800, False),
        (5200, True),
    ]
    assert answer.confidence is not None and answer.confidence < 0.8


def test_the_probability_of_a_value_is_that_of_its_tokens() -> None:
    def token(text: str, chance: float) -> Any:
        return {"token": text, "bytes": list(text.encode()), "logprob": math.log(chance), "top": []}

    text = f"The fee is 4,800 euros.\n\n{FILLER * 3}The fee is 5,200 euros.\n\n{FILLER * 2}"
    low = said(EMPTY | {"fee": 4800}) | {
        "tokens": [token('{"fee": ', 0.3), token("4800", 0.9), token(", …", 0.1)]
    }
    high = said(EMPTY | {"fee": 5200}) | {
        "tokens": [token('{"fee": ', 0.9), token("52", 0.6), token("00", 1.0)]
    }
    reader = reading(Scripted({"4,800": low, "5,200": high}, said(EMPTY)), {"": EXTRACT})
    assert json.loads(reader.ask(asked(EXTRACT, text)).text)["fee"] == 4800


def test_a_window_that_is_not_read_is_an_error_with_its_page() -> None:
    text = f"{FILLER * 4}\fbroken\n\n{FILLER * 4}"
    model = Scripted({"broken": {"error": "no room", "refused": True}}, said(EMPTY))
    reader = reading(model, {"": EXTRACT})
    ((_, outcome),) = reader.ask_all([asked(EXTRACT, text)])
    assert (
        isinstance(outcome, EngineError) and outcome.message == "page 1 of 2 was not read: no room"
    )
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


@pytest.mark.parametrize(
    "task", [EXTRACT, Task("tag", "", "", schema=label_sets.schema(["a", "b"]), document=FORM)]
)
def test_an_answer_that_was_cut_is_no_answer_and_ends_nobody(task: Task) -> None:
    text = f"alpha {FILLER * 4}omega"
    whole = EMPTY if task is EXTRACT else ["a"]
    model = Scripted({"omega": said('{"fe', finish="length")}, said(whole))
    answer = both(model, task, text)
    assert (answer.text, answer.finish) == ('{"fe', "length")
    cells = row_answers.columns(task, answer, [])
    assert cells["answer"] is None and "cut" in str(cells["error"])


def test_items_are_kept_of_which_a_value_stands_and_nulls_stay_null() -> None:
    item = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "kind": {"enum": ["goods", "service"]}},
    }
    party = {
        "type": ["object", "null"],
        "properties": {"name": {"type": "string"}},
        "required": ["name"],
    }
    schema = {
        "type": "object",
        "properties": {"items": {"type": "array", "items": item}, "by": party},
        "required": ["by"],
    }
    text = f"Item pump.\n\n{FILLER * 4}Item hose."
    task = Task("extract", "", "", schema=schema, document=FORM)
    model = Scripted(
        {
            "pump": said({"items": [{"name": "pump", "kind": "goods"}], "by": None}),
            "hose": said(
                {
                    "items": [
                        {"name": "hose", "kind": "service"},
                        {"name": "kite", "kind": "goods"},
                    ],
                    "by": None,
                }
            ),
        },
        said({"items": [], "by": None}),
    )
    items = [{"name": "pump", "kind": "goods"}, {"name": "hose", "kind": "service"}]
    assert json.loads(both(model, task, text).text) == {"items": items, "by": None}


def test_a_merge_that_fails_is_an_error_and_the_first_error_cancels_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = f"{FILLER * 9}"
    reader = reading(Scripted({}, said(EMPTY)), {"": EXTRACT})
    monkeypatch.setattr(documents, "_by_values", lambda *_: 1 / 0)
    monkeypatch.setattr("threading.excepthook", lambda *_: None)
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    reader.submit(asked(EXTRACT, text), events.put)
    assert "cannot be merged" in events.get(timeout=5)["error"]
    model = Scripted({}, {"error": "no room"})
    reading(model, {"": EXTRACT}).submit(asked(EXTRACT, text), events.put)
    assert "no room" in events.get(timeout=5)["error"] and len(model.asked) == 1


def test_the_place_is_that_of_the_label_that_a_sum_decides_on() -> None:
    text = f"alpha {FILLER * 2}\fbeta {FILLER * 2}"
    model = Scripted(
        {"alpha": said("a", 0.9, labels={"a": 0.9, "b": 0.08, "c": 0.02})},
        said("a", 0.6, labels={"a": 0.6, "b": 0.3, "c": 0.1}),
    )
    events: list[Event] = []
    done = threading.Event()
    reader = reading(model, {"": CLASSIFY})
    reader.submit(
        asked(CLASSIFY, text),
        lambda event: (events.append(event), "finish" in event and done.set()),
    )
    assert done.wait(5)
    (own,) = places_of(events[-1])
    (other,) = places_of(events[-1] | {"labels": {"b": 0.9, "a": 0.1}})
    assert own["value"] == "a" and other["value"] == "b" and own["start"] < other["start"]


def test_a_prompt_without_the_document_is_refused() -> None:
    reader = reading(Scripted({}, said(EMPTY)), {"": EXTRACT})
    with pytest.raises(EngineError, match="changes the text"):
        reader.submit(replace(asked(EXTRACT, FILLER * 9), prompt="something else"), print)


def test_a_megabyte_is_merged_in_seconds() -> None:
    text = " ".join(f"{FILLER}{k}" for k in range(15_000))
    answers = {"fee": 4800, "law": "Dutch law", "parts": ["pump", "hose"], "start": "2024-03-01"}
    reader = reading(
        Scripted({}, said(answers)), {"": replace(EXTRACT, document=WindowForm(1000, 125))}
    )
    begun = time.process_time()
    reader.ask(asked(EXTRACT, text))
    # it took minutes while each window searched the whole text
    assert time.process_time() - begun < 20


@pytest.mark.parametrize("interactive", [True, False])
def test_a_chat_asks_in_windows_and_a_line_without_answer_ends_no_other(
    interactive: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # `chat` asked the whole line in one prompt, and the first one that did not fit ended it
    task = replace(CLASSIFY, chat_template="{{ messages[-1]['content'] }}")
    model = Scripted(
        {"broken": {"error": "no room", "refused": True}}, said("b", labels={"b": 0.9, "a": 0.1})
    )
    loaded = SimpleNamespace(read_task=lambda: task, load=lambda loading: model)
    monkeypatch.setattr(model_lookup, "served", lambda *_: loaded)
    monkeypatch.setattr(model_lookup, "newest_policy", lambda *_: None)
    spoken = model_lookup.spoken_to(SimpleNamespace(directory=None), None, None)  # type: ignore[arg-type]
    lines = [f"{FILLER * 4}".replace("\n", " "), "broken", "\n", "short"]
    with (
        pytest.raises(StageError, match="1 of 3 lines have no answer")
        if not interactive
        else nullcontext()
    ):
        terminal_chat.chat(
            spoken.load(), task, lines, max_tokens=4, interactive=interactive, policy=spoken.policy
        )
    assert (
        len(model.asked) > 3 and max(len(request.prompt) for request in model.asked) < 2 * FORM.size
    )
    heard = capsys.readouterr()
    assert [line[:1] for line in heard.out.splitlines()] == ["b", "", "b"]
    assert "no answer to line 2: no room" in heard.err


class Narrow(Engine):
    """An engine with a context of 30 tokens, a token a word, which grows to 80."""

    def __init__(self) -> None:
        self.sequences, self.context, self._cells = 4, 30, 120
        self.info = {"trained_context": 80}  # type: ignore[typeddict-item]

    def tokenize(self, text: str) -> list[int]:
        return [*range(len(text.split()))]

    def _widen(self, context: int) -> None:
        self.context = context

    def tell(self, message: Message) -> None:
        pass

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Callable[[], object]:
        fits = len(self.tokenize(request.prompt)) + request.max_tokens <= self.context
        event = said(EMPTY) if fits else {"error": "no room", "refused": True}
        if fits:
            on_event({"piece": event.pop("piece"), "tokens": []})  # type: ignore[typeddict-item]
        on_event(event)
        return lambda: None


class Around(Composition):
    """A model that asks the one in it, as a sum does."""

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Callable[[], object]:
        return self.engine.submit(request, on_event)


@pytest.mark.parametrize("around", [lambda reader: reader, Around])
@pytest.mark.parametrize(("max_tokens", "context"), [(2, 30), (16, 60), (35, 63), (60, None)])
def test_a_document_needs_the_context_of_its_longest_window(
    max_tokens: int, context: int | None, around: Callable[[Answering], Answering]
) -> None:
    # a document was refused by the length of its whole text, or its windows were asked in a context
    # for it
    text, model = "word " * 200, Narrow()
    ((_, outcome),) = around(reading(model, {"": EXTRACT})).ask_all(
        [asked(EXTRACT, text, max_tokens=max_tokens)], widen=True
    )
    if context is None:
        assert (
            isinstance(outcome, EngineError) and "up to 88 tokens does not fit" in outcome.message
        )
    else:
        assert isinstance(outcome, Answer) and model.context == context
