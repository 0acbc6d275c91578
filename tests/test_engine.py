"""The engine over a real GGUF in a real child process."""

from __future__ import annotations

import os
import queue
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slmctl import converter
from slmctl.artifact import Artifact
from slmctl.engine import Answer, Engine, EngineError, Request
from slmctl.task import Task

TEXTS = [
    "refund my card please",
    "where is the courier",
    "password reset",
    "hello",
    "a b c d e",
    "twice charged é 你好",
]


@pytest.fixture(scope="module")
def gguf(artifacts: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The untrained base: its text goes on and on, whatever the training of the others learned."""
    target = tmp_path_factory.mktemp("untrained") / "tiny-F16.gguf"
    converter.convert(artifacts["base"].path, target, dtype="f16", metadata={})
    return target


@pytest.fixture(scope="module")
def task(artifacts: dict[str, Artifact]) -> Task:
    return Task.read(artifacts["gguf"].path)


@pytest.fixture(scope="module")
def shared_engine(gguf: Path) -> Iterator[Engine]:
    with Engine(gguf, sequences=4, context=256, threads=1) as model:
        yield model


@pytest.fixture
def model(gguf: Path) -> Iterator[Engine]:
    """An engine that a test may kill."""
    with Engine(gguf, sequences=2, context=256, threads=1) as model:
        yield model


def free(task: Task, text: str, **more: Any) -> Request:
    """A request for free text that does not soon stop: the prompt is no turn."""
    return Request(text, **{"max_tokens": 24, **more})


def child_of(model: Engine) -> int:
    assert model._child is not None
    return model._child.pid


def all_together(model: Engine, requests: list[Request]) -> list[Answer | EngineError]:
    found = dict(model.ask_all(requests))
    return [found[k] for k in range(len(requests))]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.sampled_from(TEXTS), min_size=2, max_size=9),
    labelled=st.lists(st.booleans(), min_size=9, max_size=9),
    shared=st.lists(st.booleans(), min_size=9, max_size=9),
)
def test_answers_do_not_depend_on_company(
    shared_engine: Engine, task: Task, texts: list[str], labelled: list[bool], shared: list[bool]
) -> None:
    head = task.prompt(task.messages("\x00")).partition("\x00")[0]
    requests = [
        Request(
            task.prompt(task.messages(text)),
            prefix=head if shared[k] else "",
            labels=task.labels if labelled[k] else (),
            end=task.end,
            max_tokens=12,
        )
        for k, text in enumerate(texts)
    ]
    alone = [shared_engine.ask(request) for request in requests]
    together = all_together(shared_engine, requests)
    for one, other in zip(alone, together, strict=True):
        assert isinstance(other, Answer)
        assert (one.text, one.finish, one.prompt_tokens, one.completion_tokens) == (
            other.text, other.finish, other.prompt_tokens, other.completion_tokens,
        )  # fmt: skip
        assert other.confidence == pytest.approx(one.confidence, rel=0.02, abs=1e-3)


def test_a_label_is_always_one_of_the_labels(shared_engine: Engine, task: Task) -> None:
    labels = ("billing", "bill", "delivery late", "账单")  # one begins another, one is in no training text
    for text in TEXTS:
        answer = shared_engine.ask(
            Request(task.prompt(task.messages(text)), labels=labels, end=task.end, max_tokens=12)
        )
        assert answer.text in labels
        assert answer.finish == "stop"
        assert 0 < answer.confidence <= 1


def test_pieces_join_to_the_text(shared_engine: Engine, task: Task) -> None:
    for text in TEXTS:
        *pieces, answer = shared_engine.stream(free(task, text, temperature=1.0, seed=3))
        assert isinstance(answer, Answer)
        assert "".join(str(piece) for piece in pieces) == answer.text
        assert len(pieces) > 1 or answer.completion_tokens < 3


def test_max_tokens_ends_with_length(shared_engine: Engine, task: Task) -> None:
    answer = shared_engine.ask(free(task, "hello", max_tokens=3, temperature=2.0, seed=1))
    assert (answer.finish, answer.completion_tokens) == ("length", 3)


def test_the_end_of_the_turn_ends_with_stop(artifacts: dict[str, Artifact], task: Task) -> None:
    found = artifacts["gguf"]
    with Engine(found.file(found.files("F16.gguf")[0].path), sequences=1, context=256, threads=1) as trained:
        answer = trained.ask(Request(task.prompt(task.messages(TEXTS[0])), max_tokens=32))
    assert answer.finish == "stop"
    assert task.end not in answer.text


def test_a_stop_string_cuts_wherever_the_tokens_break(shared_engine: Engine, task: Task) -> None:
    request = free(task, "hello", temperature=1.0, seed=5, max_tokens=40)
    *pieces, whole = shared_engine.stream(request)
    assert isinstance(whole, Answer)
    at = len(str(pieces[0])) - 1  # from inside the first piece into those after it
    stop = whole.text[at : at + 6]
    *pieces, cut = shared_engine.stream(free(task, "hello", temperature=1.0, seed=5, max_tokens=40, stop=(stop,)))
    assert isinstance(cut, Answer)
    assert cut.finish == "stop"
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert "".join(map(str, pieces)) == cut.text  # no part of the stop string was shown


def test_text_holds_back_half_characters_and_half_stop_strings() -> None:
    llama = pytest.importorskip("slmctl._llama")
    text = llama.Text(["<end>", "账单"])
    raw = "äbc账 <en d><e".encode()
    shown = [text.push(raw[k : k + 1]) for k in range(len(raw))]
    assert "".join(shown) == "äbc账 <en d>"
    assert shown[0] == "", "half a character was shown"
    assert text.push(b"nd>more") == ""
    assert text.stopped
    assert llama.Text([]).push("账".encode()[:2], final=True) == "\ufffd"


def test_seeds_reproduce_at_temperature_1(shared_engine: Engine, task: Task) -> None:
    def ask(seed: int) -> str:
        return shared_engine.ask(free(task, "hello", temperature=1.0, seed=seed)).text

    assert ask(7) == ask(7)
    assert len({ask(seed) for seed in range(4)}) > 1


def test_top_p_of_nothing_is_the_likeliest_token(shared_engine: Engine, task: Task) -> None:
    greedy = shared_engine.ask(free(task, "courier"))
    assert shared_engine.ask(free(task, "courier", temperature=1.0, top_p=0.0, seed=9)).text == greedy.text


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


def test_a_killed_child_is_said_and_replaced(model: Engine, task: Task) -> None:
    before = child_of(model)
    answers = model.stream(free(task, "hello", temperature=1.5, max_tokens=200, seed=2))
    next(answers)
    os.kill(before, signal.SIGKILL)
    with pytest.raises(EngineError, match=r"the engine died \(exit -9\) while it answered request \d+"):
        list(answers)
    assert model.ask(free(task, "hello", max_tokens=3)).completion_tokens == 3
    assert child_of(model) != before


def test_every_request_of_a_killed_child_is_told(model: Engine, task: Task) -> None:
    # A request sent right after the child's death started a fresh one, and those of the old one waited for ever.
    events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    model.submit(free(task, "hello", temperature=1.5, max_tokens=200), events.put)
    assert model._child is not None
    model._child.kill()
    model._child.wait()
    assert model.ask(free(task, "hello", max_tokens=3)).completion_tokens == 3
    while "piece" in (event := events.get(timeout=60)):
        pass
    assert "the engine died" in event["error"]


def test_a_child_killed_between_requests_is_replaced(model: Engine, task: Task) -> None:
    assert model._child is not None
    model._child.kill()
    model._child.wait()
    assert model.tokenize("hello")  # it once waited for ever
    model._child.kill()
    model._child.wait()
    assert model.ask(free(task, "hello", max_tokens=3)).completion_tokens == 3


def test_cancel_frees_the_place(model: Engine, task: Task) -> None:
    for _ in range(5):  # more than there are places
        for _ in model.stream(free(task, "hello", temperature=1.5, max_tokens=200)):
            break  # leaving the stream cancels
    events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    cancel = model.submit(free(task, "hello", temperature=1.5, max_tokens=200), events.put)
    events.get(timeout=60)
    cancel()
    assert model.ask(free(task, "hello", max_tokens=3)).completion_tokens == 3
    while not events.empty():
        assert "piece" in events.get()  # neither an end nor an error follows a cancelled request


def test_no_secret_reaches_the_child(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "hunter2")
    with Engine(gguf, sequences=1, context=128, threads=1) as model:
        seen = Path(f"/proc/{child_of(model)}/environ").read_bytes()
    assert b"hunter2" not in seen
    assert b"HF_TOKEN" not in seen


def test_a_file_that_is_no_model_cannot_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 64)
    with pytest.raises(EngineError, match=r"broken\.gguf cannot be loaded"):
        Engine(path)
