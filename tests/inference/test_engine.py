"""The engine over a real GGUF in a real child process."""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import queue
import resource
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import tiny
from support.label_scores import label_probabilities, last_logits

from slmctl.artifacts.artifact import Artifact
from slmctl.inference.engine import Answer, Engine, Request, answer_of
from slmctl.inference.scheduler import Text
from slmctl.inference.supervised_child import EngineError
from slmctl.task.contract import Task

TEXTS = [
    "refund my card please",
    "where is the courier",
    "password reset",
    "hello",
    "a b c d e",
    "twice charged é 你好",
]


@pytest.fixture(scope="module")
def task(artifacts: dict[str, Artifact]) -> Task:
    return Task.read(artifacts["gguf"].path)


@pytest.fixture(scope="module")
def shared_engine(endless: Path) -> Iterator[Engine]:
    with Engine(endless, sequences=4, context=256, threads=1) as model:
        yield model


@pytest.fixture
def model(endless: Path) -> Iterator[Engine]:
    """An engine that a test may kill."""
    with Engine(endless, sequences=2, context=256, threads=1) as model:
        yield model


def child_of(model: Engine) -> int:
    assert model._child is not None
    return model._child.pid


def all_together(model: Engine, requests: list[Request]) -> list[Answer | EngineError]:
    found = dict(model.ask_all(requests))
    return [found[k] for k in range(len(requests))]


SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "topic": {"enum": ["billing", "delivery", None]},
            "lines": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 40}},
                    "required": ["n"],
                    "additionalProperties": False,
                },
                "maxItems": 2,
            },
            "note": {"type": "string", "maxLength": 8},
        },
        "required": ["topic", "lines", "note"],
        "additionalProperties": False,
    }
)
KINDS = ("free", "labels", "json", "short", "stop", "long", "empty", "cancel")


def request(task: Task, kind: str, text: str, *, shared: bool) -> Request:
    """A request of some kind; three kinds cannot be answered, or are cancelled."""
    head = task.prompt(task.messages("\x00")).partition("\x00")[0]
    prompt = {"long": "hello " * 400, "empty": ""}.get(kind, task.prompt(task.messages(text)))
    more: dict[str, Any] = {
        "labels": {"labels": ("billing", "bill", "delivery late"), "end": task.end},
        "json": {"schema": SCHEMA, "max_tokens": 60},
        "short": {"schema": SCHEMA, "max_tokens": 5},
        "stop": {"stop": ("e", "ab")},
    }.get(kind, {})
    return Request(prompt, **{"prefix": head if shared else "", "max_tokens": 12, **more})


def test_the_same_requests_are_answered_alike_to_the_last_digit(
    artifacts: dict[str, Artifact], task: Task
) -> None:
    """Grammars and requests of a run arrive as fast as the machine lets
    them; what is decoded together is the same.
    """
    (gguf,) = artifacts["gguf"].path.glob("*-Q8_0.gguf")
    texts = [f"{TEXTS[k % 6]} {'late ' * (k % 7)}{k}" for k in range(40)]
    runs = []
    for _ in range(2):
        with Engine(gguf, sequences=8, context=256, threads=2, grammars=True) as engine:
            runs.append(
                all_together(engine, [request(task, "json", text, shared=True) for text in texts])
            )
    assert runs[0] == runs[1]


def facts(answer: Answer | EngineError) -> tuple[Any, ...]:
    """What must be the same in any company."""
    if isinstance(answer, EngineError):
        return (answer.message,)
    return answer.text, answer.finish, answer.prompt_tokens, answer.completion_tokens


def outcome(model: Engine, request: Request) -> Answer | EngineError:
    try:
        return model.ask(request)
    except EngineError as error:
        return error


class Heard:
    """The events of one request."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.begun = threading.Event()

    def put(self, event: dict[str, Any]) -> None:
        self.events.put(event)
        self.begun.set()

    def answer(self) -> Answer | EngineError:
        text = ""
        while "piece" in (event := self.events.get(timeout=60)):
            text += event["piece"]
        return EngineError(event["error"]) if "error" in event else answer_of(event, text)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    asked=st.lists(
        st.tuples(st.sampled_from(KINDS), st.sampled_from(TEXTS), st.booleans(), st.integers(0, 2)),
        min_size=2,
        max_size=12,
    )
)
def test_answers_do_not_depend_on_company(
    shared_engine: Engine, task: Task, asked: list[tuple[str, str, bool, int]]
) -> None:
    requests = [request(task, kind, text, shared=shared) for kind, text, shared, _ in asked]
    kept = [k for k, (kind, *_) in enumerate(asked) if kind != "cancel"]
    alone = {k: outcome(shared_engine, requests[k]) for k in kept}
    heard = [Heard() for _ in asked]
    for k, (kind, _, _, wait) in enumerate(asked):
        cancel = shared_engine.submit(requests[k], heard[k].put)
        if wait == 2:  # let it begin before the next one comes
            assert heard[k].begun.wait(60)
        if kind == "cancel":  # before or after it has begun
            cancel()
    for k in kept:
        together = heard[k].answer()
        assert facts(together) == facts(alone[k])
        if isinstance(together, Answer):
            one = alone[k]
            assert isinstance(one, Answer)
            assert together.confidence == pytest.approx(one.confidence, rel=0.02, abs=1e-3)
            for label, probability in together.labels.items():
                assert one.labels[label] == pytest.approx(probability, abs=2e-3)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_json_is_valid_against_its_schema(
    shared_engine: Engine, task: Task, temperature: float
) -> None:
    check = jsonschema.Draft202012Validator(json.loads(SCHEMA))
    for seed, text in enumerate(TEXTS):
        asked = Request(
            task.prompt(task.messages(text)),
            schema=SCHEMA,
            max_tokens=120,
            temperature=temperature,
            seed=seed,
            stop=('"',),
        )
        *pieces, answer = shared_engine.stream(asked)
        assert isinstance(answer, Answer)
        assert "".join(map(str, pieces)) == answer.text
        assert answer.finish == "stop"
        value = json.loads(answer.text)
        assert not list(check.iter_errors(value))
        assert answer.text == json.dumps(value, ensure_ascii=False, sort_keys=True)
        assert 0 < answer.confidence <= 1


def test_what_the_grammar_forces_is_not_asked_and_ends_with_length_where_it_is_cut(
    shared_engine: Engine, task: Task
) -> None:
    schema = {"type": "object", "properties": {"kind": {"const": "delivery"}}, "required": ["kind"]}
    asked = Request(
        task.prompt(task.messages("hello")),
        schema=json.dumps(schema | {"additionalProperties": False}),
    )
    whole = '{"kind": "delivery"}'
    tokens = len(shared_engine.tokenize(whole))
    for most in (40, tokens):
        answer = shared_engine.ask(dataclasses.replace(asked, max_tokens=most))
        assert (answer.text, answer.confidence, answer.finish) == (whole, 1.0, "stop")
        assert answer.completion_tokens == tokens
    # the grammar had taken all that it forces, and the cut answer once ended with `stop`
    cut = shared_engine.ask(dataclasses.replace(asked, max_tokens=tokens - 2))
    assert (cut.finish, cut.completion_tokens) == ("length", tokens - 2)
    assert whole.startswith(cut.text) and cut.text != whole


def test_a_schema_without_a_grammar_fails_alone(shared_engine: Engine, task: Task) -> None:
    prompt = task.prompt(task.messages("hello"))
    bad = Request(prompt, schema='{"type": "array", "uniqueItems": true}', max_tokens=40)
    first, second = all_together(shared_engine, [bad, Request(prompt, max_tokens=4)])
    assert isinstance(first, EngineError)
    assert "uniqueItems" in first.message
    assert isinstance(second, Answer)


# of the second ones, all begin with the same tokens: they were once asked right after the prompt
@pytest.mark.parametrize(
    "labels",
    [
        ("billing", "bill", "delivery late", "账单"),
        ("courier truck late", "courier truck", "courier truck lost"),
    ],
)
def test_labels_have_their_probabilities(
    shared_engine: Engine, task: Task, labels: tuple[str, ...]
) -> None:
    prompts = [task.prompt(task.messages(text)) for text in TEXTS]
    own = {label: shared_engine.tokenize(label + task.end) for label in labels}
    rows = [
        (shared_engine.tokenize(prompt + k + task.end), len(own[k]) + 1)
        for prompt in prompts
        for k in labels
    ]
    logits = iter(last_logits(shared_engine.gguf, rows))
    for prompt in prompts:
        answer = shared_engine.ask(Request(prompt, labels=labels, end=task.end, max_tokens=12))
        by_label = {label: next(logits) for label in labels}
        wanted = label_probabilities(own, by_label.__getitem__)
        assert answer.finish == "stop"
        assert next(iter(answer.labels.items())) == (answer.text, answer.confidence)
        assert answer.labels == pytest.approx(
            {label: wanted[label] for label in answer.labels}, abs=0.01
        )


def test_labels_do_not_depend_on_company_in_a_quantized_file(
    artifacts: dict[str, Artifact], task: Task
) -> None:
    found = artifacts["gguf"]
    requests = [
        Request(task.prompt(task.messages(text)), labels=task.labels, end=task.end)
        for text, _ in tiny.rows(40, seed=3)
    ]
    with Engine(
        found.file(found.files("Q8_0.gguf")[0].path), sequences=8, context=256, threads=1
    ) as model:
        alone = [model.ask(one) for one in requests]
        together = all_together(model, requests)
    for wanted, got in zip(alone, together, strict=True):
        assert isinstance(got, Answer)
        assert got.text == wanted.text
        assert got.labels == pytest.approx(wanted.labels, abs=0.02)
    assert len({answer.confidence for answer in alone}) > 5


def test_text_that_is_no_unicode_fails_alone(model: Engine, task: Task) -> None:
    # the child could once not encode it, and died with everyone's requests
    before = child_of(model)
    for bad in (
        Request("half a pair: \ud800"),
        Request("hello", labels=("\udfff", "a"), end=task.end),
        Request("hello", prefix="\ud800"),
    ):
        with pytest.raises(EngineError, match="is no Unicode"):
            model.ask(bad)
    with pytest.raises(EngineError, match="no grammar can be made"):
        model.ask(Request("hello", schema='{"const": "\\ud800"}', max_tokens=40))
    with pytest.raises(EngineError, match="is no Unicode"):
        model.tokenize("\ud800")
    assert model.ask(Request("hello", max_tokens=3, stop=("\ud800",))).completion_tokens == 3
    assert child_of(model) == before


def test_the_choices_multiply_to_the_confidence(shared_engine: Engine, task: Task) -> None:
    prompt = task.prompt(task.messages("hello"))
    for asked in (
        Request(prompt, max_tokens=6, temperature=1.0, seed=2),
        Request(prompt, schema=SCHEMA, max_tokens=60),
        Request(prompt, labels=("billing", "bill", "delivery late", "账单"), end=task.end),
    ):
        answer = shared_engine.ask(asked)
        assert answer.logprobs
        assert np.exp(sum(answer.logprobs)) == pytest.approx(answer.confidence, rel=1e-3)
    assert len(answer.raw_logprobs) == len(answer.logprobs)
    # the first choice against the logits: among the labels' tokens, and among all tokens
    ((logits,),) = last_logits(shared_engine.gguf, [(shared_engine.tokenize(prompt), 1)])
    tokens = shared_engine.tokenize(answer.text + task.end)
    whole = logits[tokens[0]] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    assert answer.raw_logprobs[0] == pytest.approx(whole, abs=0.02)
    assert all(
        raw <= among + 1e-6 for raw, among in zip(answer.raw_logprobs, answer.logprobs, strict=True)
    )


@pytest.mark.parametrize("kind", ["free", "labels", "json", "stop"])
def test_tokens_are_told_with_what_stood_beside_them(
    shared_engine: Engine, task: Task, kind: str
) -> None:
    asked = dataclasses.replace(request(task, kind, "hello", shared=True), alternatives=3)
    heard = Heard()
    shared_engine.submit(asked, heard.put)
    events = [heard.events.get(timeout=60)]
    while "piece" in events[-1]:
        events.append(heard.events.get(timeout=60))
    text = "".join(event.get("piece", "") for event in events)
    tokens = [token for event in events for token in event.get("tokens", [])]
    raw = b"".join(bytes(token["bytes"]) for token in tokens)
    assert (
        raw.decode(errors="replace").startswith(text)
        if kind == "stop"
        else raw.decode(errors="replace") == text
    )
    for token in tokens:
        assert token["logprob"] <= 0
        assert 1 <= len(token["top"]) <= 3
        assert token["top"][0]["logprob"] >= token["logprob"] - 1e-6


def test_one_label_begins_another_without_an_end(shared_engine: Engine) -> None:
    with pytest.raises(EngineError, match="the label 'bill' begins or equals 'billing'"):
        shared_engine.ask(Request("hello", labels=("billing", "bill")))


def test_max_tokens_ends_with_length(shared_engine: Engine) -> None:
    answer = shared_engine.ask(Request("hello", max_tokens=3, temperature=2.0, seed=1))
    assert (answer.finish, answer.completion_tokens) == ("length", 3)


def test_the_end_of_the_turn_ends_with_stop(artifacts: dict[str, Artifact], task: Task) -> None:
    found = artifacts["gguf"]
    with Engine(
        found.file(found.files("F16.gguf")[0].path), sequences=1, context=256, threads=1
    ) as trained:
        answer = trained.ask(Request(task.prompt(task.messages(TEXTS[0])), max_tokens=32))
    assert answer.finish == "stop"
    assert task.end not in answer.text


def test_a_stop_string_cuts_wherever_the_tokens_break(shared_engine: Engine) -> None:
    request = Request("hello", temperature=1.0, seed=5, max_tokens=40)
    *pieces, whole = shared_engine.stream(request)
    assert isinstance(whole, Answer)
    at = len(str(pieces[0])) - 1  # from inside the first piece into those after it
    stop = whole.text[at : at + 6]
    *pieces, cut = shared_engine.stream(
        Request("hello", temperature=1.0, seed=5, max_tokens=40, stop=(stop,))
    )
    assert isinstance(cut, Answer)
    assert cut.finish == "stop"
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert "".join(map(str, pieces)) == cut.text  # no part of the stop string was shown


def test_text_holds_back_half_characters_and_half_stop_strings() -> None:
    text = Text(["<end>", "账单"])
    raw = "äbc账 <en d><e".encode()
    shown = [text.push(raw[k : k + 1]) for k in range(len(raw))]
    assert "".join(shown) == "äbc账 <en d>"
    assert shown[0] == "", "half a character was shown"
    assert text.push(b"nd>more") == ""
    assert text.stopped
    assert Text([]).push("账".encode()[:2], final=True) == "\ufffd"


def test_seeds_reproduce_at_temperature_1(shared_engine: Engine) -> None:
    def ask(seed: int) -> str:
        return shared_engine.ask(Request("hello", temperature=1.0, seed=seed, max_tokens=24)).text

    assert ask(7) == ask(7)
    assert len({ask(seed) for seed in range(4)}) > 1


def test_a_draw_does_not_depend_on_company(shared_engine: Engine) -> None:
    requests = [
        Request(text, temperature=0.9, top_p=0.9, seed=k, max_tokens=24)
        for k, text in enumerate(TEXTS * 2)
    ]
    alone = [shared_engine.ask(request).text for request in requests]
    together = all_together(shared_engine, requests)
    # float sums depend on the batch in their last bits, so a draw may differ once in thousands of
    # tokens
    same = sum(
        isinstance(one, Answer) and one.text == text
        for one, text in zip(together, alone, strict=True)
    )
    assert same >= len(requests) - 1


def test_top_p_of_nothing_is_the_likeliest_token(shared_engine: Engine) -> None:
    greedy = shared_engine.ask(Request("courier", max_tokens=24))
    assert (
        shared_engine.ask(
            Request("courier", temperature=1.0, top_p=0.0, seed=9, max_tokens=24)
        ).text
        == greedy.text
    )


def test_a_prompt_that_does_not_fit_fails_alone(shared_engine: Engine, task: Task) -> None:
    long = task.prompt(task.messages("hello " * 400))
    with pytest.raises(EngineError, match=r"does not fit the context of 256 tokens"):
        shared_engine.ask(Request(long))
    with pytest.raises(EngineError, match="the prompt is empty"):
        shared_engine.ask(Request(""))
    good = Request(task.prompt(task.messages("hello")), max_tokens=8)
    assert shared_engine.ask(good).text
    first, second = all_together(shared_engine, [Request(long), good])
    assert isinstance(first, EngineError)
    assert isinstance(second, Answer)


def test_a_killed_child_is_said_and_replaced(model: Engine) -> None:
    before = child_of(model)
    answers = model.stream(Request("hello", temperature=1.5, max_tokens=200, seed=2))
    next(answers)
    os.kill(before, signal.SIGKILL)
    with pytest.raises(
        EngineError, match=r"the engine died \(exit -9: killed.*\) while it answered request \d+"
    ):
        list(answers)
    assert model.ask(Request("hello", max_tokens=3)).completion_tokens == 3
    assert child_of(model) != before


def test_every_request_of_a_killed_child_is_told_and_the_next_one_is_answered(
    model: Engine,
) -> None:
    # A request sent right after the child's death started a fresh one, and those of the old one
    # waited for ever.
    heard = Heard()
    model.submit(Request("hello", temperature=1.5, max_tokens=200), heard.put)
    for send in (
        lambda: model.ask(Request("hello", max_tokens=3)),
        lambda: model.tokenize("hello"),
    ):
        assert model._child is not None
        model._child.kill()
        model._child.wait()
        assert send()
    lost = heard.answer()
    assert isinstance(lost, EngineError) and "the engine died" in lost.message


def test_a_child_that_runs_out_of_memory_is_said_and_replaced(model: Engine) -> None:
    before = child_of(model)
    used = int(Path(f"/proc/{before}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(before, resource.RLIMIT_AS, (used, used))
    with pytest.raises(
        EngineError, match=r"the engine died \(exit .*\) while it answered request \d+"
    ):
        while True:  # until something has to be allocated
            model.ask(Request("hello " * 200, schema=SCHEMA, max_tokens=30))
    assert model.ask(Request("hello", max_tokens=3)).completion_tokens == 3
    assert child_of(model) != before


def test_cancel_frees_the_place(model: Engine) -> None:
    for _ in range(5):  # more than there are places
        for _ in model.stream(Request("hello", max_tokens=200)):
            break  # leaving the stream cancels
    events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    cancel = model.submit(Request("hello", max_tokens=200), events.put)
    events.get(timeout=60)
    cancel()
    assert model.ask(Request("hello", max_tokens=3)).completion_tokens == 3
    while not events.empty():
        assert "piece" in events.get()  # neither an end nor an error follows a cancelled request


def test_no_secret_reaches_the_child(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "hunter2")
    with Engine(endless, sequences=1, context=128, threads=1) as model:
        seen = Path(f"/proc/{child_of(model)}/environ").read_bytes()
    assert b"hunter2" not in seen
    assert b"HF_TOKEN" not in seen


def test_a_file_that_is_no_model_cannot_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 64)
    with pytest.raises(EngineError, match=r"broken\.gguf cannot be loaded"):
        Engine(path)


def test_what_a_schema_needs_of_the_vocabulary_is_read_while_the_file_is_loaded_and_counted(
    endless: Path,
) -> None:
    with Engine(endless, sequences=1, context=256, threads=1) as plain:
        without = plain.held_bytes()
    with Engine(endless, sequences=1, context=256, threads=1, grammars=True) as model:
        deadline = time.monotonic() + 60
        # a process of its own, before anybody has asked for JSON
        while model.held_bytes() < without + (8 << 20):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        answer = model.ask(Request("hello", schema=SCHEMA, max_tokens=120))
        assert set(json.loads(answer.text)) == set(json.loads(SCHEMA)["required"])


@pytest.mark.parametrize("name", ["weights of mine", "gewichte-ä\u2028\x85"])
def test_the_pages_of_a_file_are_given_back_and_read_again(tmp_path: Path, name: str) -> None:
    from slmctl.inference import model_loading

    path = tmp_path / name
    path.write_bytes(bytes(range(256)) * (1 << 12))

    def resident() -> int:
        lines = iter(Path("/proc/self/smaps").read_text(encoding="utf-8").split("\n"))
        next(line for line in lines if line.endswith(str(path)))
        return next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))

    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[:] == path.read_bytes()
        assert resident() == 1024
        model_loading.forget(str(path))
        assert resident() == 0
        assert mapped[5000] == 5000 % 256
        assert 0 < resident() < 1024
        assert mapped[:] == path.read_bytes()
