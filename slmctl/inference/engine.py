"""A GGUF in a child process: many requests at once, shared prefix, constrained answers, probabilities.

One llama.cpp in the product: quantize's check, predict, chat and serve all answer through this
class, so what is measured is what is served. llama.cpp runs in a child, since a crash of native code
must not take the caller along; the child gets no secrets in its environment.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import itertools
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from slmctl import child_environment
from slmctl.errors import MissingError, StageError


@dataclass(frozen=True)
class Request:
    """One prompt to answer.

    Attributes:
        prompt: The rendered prompt.
        prefix: Text at its start that other requests share; computed once.
        labels: The only answers allowed, or none for free text.
        end: What ends a label, such as `<|im_end|>`.
        max_tokens: Longest answer, in tokens.
        temperature: 0 takes the likeliest token.
        top_p: Share of the probability that is sampled from.
        stop: Texts that end an answer and are not part of it (free text).
        schema: The JSON Schema that an answer must satisfy, as JSON; empty for none.
        every_label: Find the probability of every label, at a price; else of those that were looked at.
        adapter: The LoRA adapter to answer with; empty for the model itself.
        alternatives: Tell every token, with so many of the likeliest ones in its place; -1 tells none.
        max_prompt: Longest prompt, in tokens; 0 for what the context holds.
        shorten: Shorten max_tokens to what the prompt leaves of the context, in place of refusing.
    """

    prompt: str
    prefix: str = ""
    labels: tuple[str, ...] = ()
    end: str = ""
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    schema: str = ""
    every_label: bool = False
    adapter: str = ""
    alternatives: int = -1
    max_prompt: int = 0
    shorten: bool = False


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    Attributes:
        finish: `stop` (the model ended its turn) or `length` (it hit max_tokens).
        confidence: Product of the probabilities of the choices made, each among what was allowed; None where an
            endpoint does not say it.
        labels: Of labels, the probability of each that was looked at, likeliest first; over all labels it is 1.
        logprobs: The log probability of each choice that the model made, among what was allowed there; what is
            forced is no choice, and the end of the turn is one.
        raw_logprobs: Of labels, the same among the whole vocabulary: how much less it is, the less the model
            wanted to say any label.
    """

    text: str
    finish: str
    confidence: float | None
    prompt_tokens: int
    completion_tokens: int
    labels: dict[str, float] = field(default_factory=dict)
    logprobs: tuple[float, ...] = ()
    raw_logprobs: tuple[float, ...] = ()


class EngineError(StageError):
    """The engine could not answer: a request that does not fit, or a child that died."""


class EngineDiedError(EngineError):
    """The child died while it answered: this request may have killed it, or another one beside it."""


# {"piece": text, "tokens"?: [{"token", "bytes", "logprob", "top"}]} …, then either
# {"finish", "prompt_tokens", "completion_tokens", "confidence", "logprobs", "labels"?, "raw_logprobs"?, "tokens"?} with
# the fields of an Answer, or {"error": text, "refused"?: the request is at fault, "died"?: the child ended}
Event = dict[str, Any]


class Engine:
    """One GGUF file, loaded in a child process that is started again when it dies.

    Args:
        gguf: The file.
        sequences: Requests answered at the same time.
        context: Longest prompt with its answer, in tokens.
        threads: CPU threads; the cores this process may use, by default.
        adapters: LoRA adapters over the model, by the name that requests call them.

    Raises:
        MissingError: llama-cpp-python is not installed.
        EngineError: The file cannot be loaded.
    """

    def __init__(
        self,
        gguf: Path,
        *,
        sequences: int = 16,
        context: int = 2048,
        threads: int | None = None,
        adapters: Mapping[str, Path] | None = None,
    ) -> None:
        for package in ("llama_cpp", "llguidance"):
            if importlib.util.find_spec(package) is None:
                raise MissingError(
                    f"running a GGUF needs the package '{package}', which is not installed",
                    hint="pip install 'slmctl[gguf]'",
                )
        self.gguf = gguf
        self.sequences, self.context = sequences, context
        self._cells = sequences * context  # tokens that the memory holds, however it is shared out
        self._settings: dict[str, Any] = {
            "sequences": sequences,
            "context": context,
            "threads": threads or usable_cores(),
        }
        self._settings["adapters"] = {name: str(path) for name, path in (adapters or {}).items()}
        self._ids = itertools.count()
        self._lock = threading.RLock()
        # each request with the child that answers it: when that one dies, these are told and no others
        self._pending: dict[str, tuple[subprocess.Popen[str], Callable[[Event], None]]] = {}
        self._child: subprocess.Popen[str] | None = None
        self._outbox: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.on_death: Callable[[], None] = lambda: None  # called from another thread, when the child has died
        self._listener: threading.Thread | None = None
        self.info: Event = {}
        self._start()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child."""
        with self._lock:
            child, self._child = self._child, None
        if child is not None:
            assert self._listener is not None
            self._outbox.put(None)
            try:
                child.wait(timeout=5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            self._listener.join(timeout=5)

    @property
    def alive(self) -> bool:
        """Whether the child lives; the next request to a dead one starts another, and waits for it."""
        return self._child is not None and self._child.poll() is None

    def revive(self) -> None:
        """Start the child again if it has died.

        Raises:
            EngineError: The file cannot be loaded any more.
        """
        with self._lock:
            if not self.alive:
                self._start()

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Callable[[], None]:
        """Start answering; `on_event` is called from another thread until `finish` or `error` has come.

        Returns:
            A function that cancels the request and frees its place; no event follows.
        """
        id = self._send(request.__dict__, on_event)

        def cancel() -> None:
            with self._lock:
                if self._pending.pop(id, None) is not None and self._child is not None:
                    self._write({"cancel": id})

        return cancel

    def stream(self, request: Request) -> Iterator[str | Answer]:
        """Pieces of the answer as they come, then the whole Answer; leaving early cancels.

        Raises:
            EngineError: The request does not fit, or the child died.
        """
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        cancel = self.submit(request, events.put)
        text = ""
        try:
            while "finish" not in (event := events.get()):
                if "error" in event:
                    raise error_of(event)
                text += event["piece"]
                yield event["piece"]
            yield answer_of(event, text)
        finally:
            cancel()

    def ask(self, request: Request) -> Answer:
        """The whole answer to one request."""
        *_, answer = self.stream(request)
        assert isinstance(answer, Answer)
        return answer

    def ask_all(
        self, requests: Iterable[Request], *, widen: bool = False
    ) -> Iterator[tuple[int, Answer | EngineError]]:
        """Answer many requests together, each with its index, in the order in which they finish.

        A request that cannot be answered gives its error in place of an answer.

        Args:
            requests: What to answer.
            widen: Ask those that do not fit the context once more after the others, in a longer one: as long as
                the model was trained on, and as the memory of all sequences holds. It stays, with fewer sequences
                in the same memory. Nobody else may ask meanwhile.
        """
        events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
        texts: dict[int, str] = {}
        asked: dict[int, Request] = {}
        long: dict[int, tuple[Request, int]] = {}  # with the tokens that each needs
        waiting = enumerate(requests)

        def feed() -> bool:
            index, request = next(waiting, (-1, None))
            if request is None:
                return False
            texts[index], asked[index] = "", request
            self.submit(request, lambda event: events.put((index, event)))
            return True

        for _ in range(self.sequences * 2):  # enough that a freed place is taken at once
            feed()
        while texts:
            index, event = events.get()
            if "piece" in event:
                texts[index] += event["piece"]
                continue
            text, request = texts.pop(index), asked.pop(index)
            if widen and event.get("refused") and (needs := self._needs(request)) > self.context:
                long[index] = request, needs
            else:
                yield index, error_of(event) if "error" in event else answer_of(event, text)
            feed()
        widest = max(self.context, min(self.info["trained_context"], self._cells))
        fitting = {index: request for index, (request, needs) in long.items() if needs <= widest}
        for index in long.keys() - fitting.keys():
            what = f"a prompt with its answer of up to {long[index][1]} tokens"
            yield index, EngineError(f"{what} does not fit the context of {widest} tokens")
        if fitting:
            longest = max(long[index][1] for index in fitting)
            self._widen(min(max(longest, 2 * self.context), widest))
            indices = list(fitting)
            for place, answer in self.ask_all(fitting.values()):
                yield indices[place], answer

    def _needs(self, request: Request) -> int:
        """Tokens of a prompt with its answer; 0 for what cannot be read as tokens."""
        with contextlib.suppress(EngineError):
            ends = [len(self.tokenize(label + request.end)) for label in request.labels]
            return len(self.tokenize(request.prompt)) + max(ends, default=request.max_tokens)
        return 0

    def _widen(self, context: int) -> None:
        """Start the child again with another context, and as many sequences as the same memory then holds."""
        self.close()
        self.context, self.sequences = context, self._cells // context
        self._settings |= {"context": self.context, "sequences": self.sequences}
        self.revive()

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a rendered prompt, as the engine reads it."""
        tokens: list[int] = self._reply({"tokenize": text})["tokens"]
        return tokens

    def controls(self) -> dict[str, Any]:
        """The control tokens: `tokens` (texts), `bos`, `eos`, and whether prompts begin with bos (`adds_bos`)."""
        controls: dict[str, Any] = self._reply({"controls": True})["controls"]
        return controls

    def logits(self, text: str, *, last: int = 1) -> npt.NDArray[np.float32]:
        """What the model expects after each of the last tokens of a text.

        Returns:
            Logits (last, n_vocab), those after the whole text in the last row.

        Raises:
            EngineError: The text does not fit, or the child died.
        """
        event = self._reply({**Request(text).__dict__, "max_tokens": 0, "logits": last})
        rows = np.frombuffer(base64.b64decode(event["logits"]), np.float32)
        return rows.reshape(-1, self.info["n_vocab"])

    def _reply(self, message: dict[str, Any]) -> Event:
        """What the child says to a question that has one reply."""
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._send(message, events.put)
        event = events.get()
        if "error" in event:
            raise error_of(event)
        return event

    def _send(self, message: dict[str, Any], on_event: Callable[[Event], None]) -> str:
        """Have the child do something, in a fresh one when it has died; returns the id of what was asked."""
        id = str(next(self._ids))
        with self._lock:
            self.revive()
            assert self._child is not None
            self._pending[id] = self._child, on_event
            self._write({"id": id, **message})
        return id

    def _start(self) -> None:
        log = tempfile.TemporaryFile()  # noqa: SIM115 - the listener closes it, when it has read why the child died
        child = _python("serve", str(self.gguf), json.dumps(self._settings), stderr=log)
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line:
            child.communicate()
            with log:
                raise EngineError(f"{self.gguf.name} cannot be loaded: {_last_words(log)}")
        self.info = json.loads(line)
        self._child, self._outbox = child, queue.SimpleQueue()
        threading.Thread(target=_feed, args=(child, self._outbox), daemon=True).start()
        loaded = log.seek(0, os.SEEK_END)  # what was said while it loaded explains no later death
        self._listener = threading.Thread(target=self._listen, args=(child, self._outbox, log, loaded), daemon=True)
        self._listener.start()

    def _listen(
        self, child: subprocess.Popen[str], outbox: queue.SimpleQueue[str | None], log: IO[bytes], loaded: int
    ) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            event = json.loads(line)
            id = event.pop("id")
            with self._lock:
                _, on_event = self._pending.get(id, (None, None))
                if "piece" not in event:
                    self._pending.pop(id, None)
            if on_event is not None:
                on_event(event)
        code = child.wait()
        with log:
            reason = _reason(code, _last_words(log, loaded))
        with self._lock:
            child.stdout.close()
            outbox.put(None)
            unexpected = child is self._child
            lost = {id: on_event for id, (owner, on_event) in self._pending.items() if owner is child}
            for id in lost:
                del self._pending[id]
        for id, on_event in lost.items():
            on_event({"error": f"the engine died ({reason}) while it answered request {id}", "died": True})
        if unexpected:
            self.on_death()

    def _write(self, message: dict[str, Any]) -> None:
        self._outbox.put(json.dumps(message) + "\n")


def _feed(child: subprocess.Popen[str], outbox: queue.SimpleQueue[str | None]) -> None:
    """Write what the child is to do, in a thread of its own: a child that does not read holds up nobody else."""
    assert child.stdin is not None
    # an OSError: the child has died; the listening thread says so to every request
    with contextlib.suppress(OSError), child.stdin as pipe:
        while (line := outbox.get()) is not None:
            pipe.write(line)
            pipe.flush()


def answer_of(event: Event, text: str) -> Answer:
    """An Answer from the text so far and the event that ended it."""
    counts = event["prompt_tokens"], event["completion_tokens"]
    likely = tuple(event.get("logprobs", ())), tuple(event.get("raw_logprobs", ()))
    return Answer(text, event["finish"], event["confidence"], *counts, event.get("labels", {}), *likely)


def error_of(event: Event) -> EngineError:
    """The error that ended a request."""
    return (EngineDiedError if event.get("died") else EngineError)(event["error"])


def is_type(path: str, type_name: str) -> bool:
    """Whether a GGUF file's name ends with this type: `F16` is not the end of `…-BF16.gguf`."""
    return re.search(rf"(^|[-._]){re.escape(type_name)}\.gguf$", path) is not None


def is_lora(path: str) -> bool:
    """Whether a GGUF file is an adapter, as quantize names it, and no model by itself."""
    return path.endswith("-LoRA.gguf")


def usable_cores() -> int:
    """Cores that this process may run on, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0))


def _reason(code: int, words: str) -> str:
    """Why a child ended, by its exit code and what it last said."""
    if code == -signal.SIGKILL:
        return f"exit {code}: killed, as the kernel does when memory runs out"
    return f"exit {code}: {words}"


def _last_words(log: IO[bytes], start: int = 0) -> str:
    log.seek(start)
    lines = log.read().decode(errors="replace").strip().splitlines()
    errors = [line for line in lines if "error" in line.lower()] or lines
    return errors[-1] if errors else "no reason given"


def _python(*args: str, stderr: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "slmctl.inference.llama_child", *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        encoding="utf-8",
        env=child_environment.bare(),
    )
