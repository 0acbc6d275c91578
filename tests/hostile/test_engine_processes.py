"""An engine's process that is stopped, dies in a line, or cannot be
started: requests are told, and it comes back.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from support.scale import sampled
from support.servers import settles

pytest.importorskip("llama_cpp")

from slmctl.inference import engine as engines
from slmctl.inference import supervised_child
from slmctl.inference.engine import Answer, Engine, Event, Request
from slmctl.inference.supervised_child import EngineDiedError, EngineError


@pytest.fixture
def model(endless: Path) -> Iterator[Engine]:
    with Engine(endless, sequences=2, context=256, threads=1, hang_s=600) as engine:
        yield engine


def child(engine: Engine) -> subprocess.Popen[str]:
    assert engine._child is not None
    return engine._child


def test_a_stopped_process_is_found_killed_and_replaced(
    model: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised_child, "DOUBT_S", 0.5)
    monkeypatch.setattr(supervised_child, "HEARTBEAT_S", 0.1)
    deaths: list[str] = []
    model.on_death = lambda: deaths.append(model.state)
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    model.submit(Request("hello", max_tokens=230, temperature=1.5), events.put)
    before = child(model)
    os.kill(before.pid, signal.SIGSTOP)
    assert settles(lambda: model.state == "hung")
    monkeypatch.setattr(model, "_hang_s", 1.0)
    assert settles(lambda: deaths)
    monkeypatch.undo()
    assert deaths == ["dead"]
    while "piece" in (event := events.get(timeout=60)):
        pass
    assert event["died"]
    assert model.ask(Request("hello", max_tokens=2)).completion_tokens == 2
    assert (model.state, child(model) is before) == ("ready", False)


def test_a_busy_process_says_that_it_lives(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    relay, told = Engine._relay, Counter[str]()

    def counted(self: Engine, lines: Iterable[str]) -> None:
        relay(self, (line for line in lines if told.update([line[:8]]) is None))

    monkeypatch.setattr(Engine, "_relay", counted)
    monkeypatch.setattr(supervised_child, "HEARTBEAT_S", 0.01)
    with Engine(endless, sequences=2, context=256, threads=1, hang_s=600) as engine:
        before = child(engine)
        # it is never idle
        assert len(list(engine.ask_all([Request("hello " * 200, max_tokens=20)] * 40))) == 40
        assert told['{"pong":'] > 3 and child(engine) is before


def test_who_only_shared_a_batch_with_one_that_ends_the_process_is_asked_again(
    model: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, asked = model.submit, Counter[str]()

    def mortal(request: Request, on_event: Callable[[Event], None]) -> Callable[[], None]:
        asked[request.prompt] += 1
        cancel = submit(request, on_event)
        if "poison" in request.prompt:
            child(model).kill()
        return cancel

    monkeypatch.setattr(model, "submit", mortal)
    prompts = ["hello", "poison", "world", "poison again", "hello world"]
    answers = dict(model.ask_all([Request(prompt, max_tokens=4) for prompt in prompts], alone=True))
    assert {k for k, answer in answers.items() if isinstance(answer, EngineDiedError)} == {1, 3}
    assert {k for k, answer in answers.items() if isinstance(answer, Answer)} == {0, 2, 4}
    asked.clear()
    monkeypatch.setattr(engines, "MOST_DEADLY", 2)
    answers = dict(
        model.ask_all([Request(f"poison {k}", max_tokens=4) for k in range(4)], alone=True)
    )
    assert all(isinstance(answers[k], EngineDiedError) for k in range(4))
    assert sum(asked.values()) == 4 + 2, (
        "the machine ends them, so that no other was to be asked again"
    )


def replaced(monkeypatch: pytest.MonkeyPatch, output: str) -> None:
    """Have the next processes write this after they were loaded, and end in the last line."""
    ready = json.dumps({"ready": True, "chat_template": "", "name": "", "trained_context": 9})
    program = (
        f"import sys\nsys.stdout.buffer.write({(ready + chr(10)).encode()!r})\nsys.stdout.flush()\n"
    )
    program += f"sys.stdin.readline()\nsys.stdout.buffer.write({output.encode('latin-1')!r})\nsys.stdout.flush()\n"

    instead(monkeypatch, program)


def instead(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Have the next processes run another program."""

    def start(*args: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", program], **options)

    monkeypatch.setattr(supervised_child, "start", start)


TORN = ('{"id": "0", "pie', '{"id": "0", "piece": "\xc3', "[]\n", "7\n", "\x00\n", '"x')


@pytest.mark.parametrize("output", sampled(TORN, TORN[:3]))
def test_a_torn_line_leaves_no_request_waiting(
    endless: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    replaced(monkeypatch, output)
    with Engine(endless, sequences=1, context=64) as engine, pytest.raises(EngineDiedError):
        engine.ask(Request("hello"))


def test_a_file_whose_process_writes_half_a_line_cannot_be_loaded(
    endless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead(monkeypatch, "import sys; sys.stdout.write('{\"ready\": tr')")
    with pytest.raises(EngineError, match="cannot be loaded"):
        Engine(endless)


@pytest.mark.parametrize("where", ["TemporaryFile", "start"])
def test_a_system_without_descriptors_is_an_error_that_passes(
    model: Engine, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def none_left(*_: Any, **__: Any) -> Any:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(
            supervised_child.tempfile if where == "TemporaryFile" else supervised_child,
            where,
            none_left,
        )
        child(model).kill()
        child(model).wait()
        for _ in range(3):
            with pytest.raises(
                EngineError, match=r"cannot be started: \[Errno 24\] Too many open files"
            ):
                model.revive()
    model.revive()
    assert model.ask(Request("hello", max_tokens=2)).completion_tokens == 2


def test_a_server_goes_on_restarting_when_the_system_has_no_descriptor(
    model: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slmctl.server import backends

    log, metrics = Mock(), Mock()
    tries = 0
    real = supervised_child.start

    def scarce(*args: str, **options: Any) -> subprocess.Popen[str]:
        nonlocal tries
        tries += 1
        if tries <= 2:
            raise OSError(24, "Too many open files")
        return real(*args, **options)

    monkeypatch.setattr(supervised_child, "start", scarce)

    def events() -> list[str]:
        return [call.args[0] for call in log.event.call_args_list]

    async def serve() -> None:
        local = backends.LocalEngine(model, "desk")
        local.start(log, metrics)
        child(model).kill()
        for _ in range(600):
            await asyncio.sleep(0.05)
            if "engine_restarted" in events():
                break
        assert local.ready
        await local.close()

    asyncio.run(serve())
    assert events().count("engine_cannot_start") == 2
    assert model.ask(Request("hello", max_tokens=2)).completion_tokens == 2


@pytest.mark.parametrize("size", sampled([0, 3, 4, 8, 24, 200, 4000], [0, 24, 4000]))
def test_a_head_that_is_cut_cannot_be_loaded(endless: Path, tmp_path: Path, size: int) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(endless.read_bytes()[:size])
    with pytest.raises(EngineError, match=r"cut\.gguf cannot be loaded"):
        Engine(path, sequences=1, context=64)


@pytest.mark.parametrize("at", sampled([4, 8, 16, 24, 40, 64], [8, 24]))
def test_a_head_that_lies_is_an_error_or_a_model(endless: Path, tmp_path: Path, at: int) -> None:
    """Counts and lengths of 2 ** 62: the process refuses them or dies, and the caller is told."""
    path, raw = tmp_path / "lies.gguf", bytearray(endless.read_bytes())
    raw[at : at + 8] = (1 << 62).to_bytes(8, "little")
    path.write_bytes(raw)
    try:
        with Engine(path, sequences=1, context=64) as engine:
            engine.ask(Request("hello", max_tokens=2))
    except EngineError as error:
        assert error.message
