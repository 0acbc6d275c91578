"""A GGUF in a child process: many requests at once, shared prefix, constrained answers, probabilities.

quantize's check, predict, chat and serve all answer through this class, so the same code is measured and served.
llama.cpp runs in a child, since a crash of native code must not take the caller along.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import importlib.util
import itertools
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Self

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.child import DiedError, start
from slmctl.errors import MissingError, StageError
from slmctl.hardware import process_bytes, usable_cores
from slmctl.inference.escalation_policy import LABELS
from slmctl.inference.events import ControlTokens, EngineInfo, Event
from slmctl.installation import pip_line, timings_folder

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

State = Literal["ready", "hung", "dead"]


@dataclass(frozen=True)
class Request:
    """One prompt to answer.

    Attributes:
        prompt: The rendered prompt.
        prefix: Text at its start that other requests share; computed once.
        labels: The only answers allowed, or none for free text.
        end: Text that ends a label, such as `<|im_end|>`.
        max_tokens: Longest answer, in tokens.
        temperature: 0 takes the likeliest token.
        top_p: Share of the probability that is sampled from.
        stop: Texts that end an answer and are not part of it (free text).
        schema: The JSON Schema that an answer must satisfy, as JSON; empty for none.
        adapter: The LoRA adapter to answer with; empty for the model itself.
        alternatives: Number of likeliest tokens to send with each token of the answer; -1 sends no tokens.
        shorten: Shorten max_tokens to the room that the prompt leaves in the context, instead of refusing the request.
        logits: Number of last tokens of the prompt after each of which the logits are sent, in place of an answer.
        question: The text that an encoder reads, where one answers; empty for none.
        rest: Below 1, the end of an answer tells the `distribution` over the labels; branches that are likelier than
            this are looked at for it. The answer itself stays the same.
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
    adapter: str = ""
    alternatives: int = -1
    shorten: bool = False
    logits: int = 0
    question: str = ""
    rest: float = 1.0


@dataclass(frozen=True)
class Answer:
    """The answer to a request.

    Attributes:
        finish: `stop` (the model ended its turn) or `length` (it hit max_tokens).
        confidence: Product of the probabilities of the chosen tokens, each among the allowed ones; None if an endpoint
            sends no probabilities.
        labels: Of a request with labels: the probability of each label that was evaluated, likeliest first.
        logprobs: The log probability of each choice that the model made, among the tokens allowed there; a forced
            token is no choice, and the end of the turn is one.
        raw_logprobs: Of a request with labels: the same among the whole vocabulary. The lower it is, the less likely
            the model would have answered with any label.
        evidence: The label's score in an encoder's linear model before normalisation; None if a language model answers.
    """

    text: str
    finish: str
    confidence: float | None
    prompt_tokens: int
    completion_tokens: int
    labels: dict[str, float] = field(default_factory=dict)
    logprobs: tuple[float, ...] = ()
    raw_logprobs: tuple[float, ...] = ()
    evidence: float | None = None

    def probabilities(self) -> JsonObject:
        """The fields that `escalation_policy.signals` reads, as predictions hold them."""
        likeliest = dict(itertools.islice(self.labels.items(), LABELS))
        lists = {"labels": likeliest, "logprobs": self.logprobs, "raw_logprobs": self.raw_logprobs}
        fields = {"confidence": self.confidence, **{name: values for name, values in lists.items() if values}}
        return fields if self.evidence is None else fields | {"evidence": self.evidence}


class EngineError(StageError):
    """The engine could not answer: a request that does not fit, or a child that died."""


class EngineDiedError(EngineError):
    """The child died while it answered: this request may have killed it, or another one of the same batch."""


SEQUENCES, CONTEXT = 16, 2048  # of an engine: requests at the same time, and tokens of each
HEARTBEAT_S = 1.0  # between two questions whether the process lives
DOUBT_S = 4.0  # without a reply, after which it counts as hung
HANG_S = 20.0  # after which it is killed
STUCK_S = 300.0  # that one batch may take
LOAD_S = 1800.0  # that a file may take to load
MOST_DEADLY = 16  # requests in a row, each asked alone, that may kill the engine before retrying stops


Outcomes = Iterator[tuple[int, Answer | EngineError]]  # with the index of each request, as they are finished


class Answering:
    """Something that answers requests until it is closed.

    Attributes:
        state: `ready`, `hung` while the process runs and gives no sign of life, or `dead`.
        ahead: Number of requests that `ask_all` has under way.
        matmul_dtype: Type of the matrix products; None where it follows from the types of a file.
        on_death: Called from another thread, when the process has died.
    """

    build: str  # llama.cpp's, with EXPANDED where the file was expanded
    alive: bool  # False where the next request waits until another process has started
    state: State
    ahead: int
    matmul_dtype: str | None = None
    on_death: Callable[[], None]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        raise NotImplementedError

    def held_bytes(self) -> int:
        """Bytes that the processes and their grammars hold, with their part of shared memory; 0 without a process."""
        raise NotImplementedError

    def revive(self) -> None:
        """Start the process again if it has died.

        Raises:
            EngineError: The file cannot be loaded any more, or the system has no room for a process now.
        """
        raise NotImplementedError

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Callable[[], object]:
        """Start answering; `on_event` is called from another thread until `finish` or `error` has come.

        Returns:
            A function that cancels the request and frees its place; no event follows.
        """
        raise NotImplementedError

    def ask_all(
        self, requests: Iterable[Request], *, widen: bool = False, alone: bool = False, through: Answering | None = None
    ) -> Outcomes:
        """Answer many requests together, each with its index, in the order in which they finish.

        A request that cannot be answered gives its error in place of an answer.

        Args:
            requests: The requests to answer.
            widen: Ask those that do not fit the context once more after the others, in a longer one: as long as
                the model was trained on, and as the memory of all sequences holds. It stays, with fewer sequences
                in the same memory. Nobody else may ask meanwhile.
            alone: Ask those during which the engine died once more, one by one: most of them only shared a batch with
                one that ends it. After MOST_DEADLY in a row it is the machine that ends it, and the others keep
                their error.
            through: Gets each request first, instead of this one, and passes on those that it does not answer.
        """
        raise NotImplementedError

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


class Engine(Answering):
    """One GGUF file, loaded in a child process that is started again when it dies.

    Args:
        gguf: The file.
        sequences: Requests answered at the same time.
        context: Longest prompt with its answer, in tokens.
        threads: CPU threads; the cores this process may use, by default.
        adapters: LoRA adapters over the model, by the name that requests call them.
        hang_s: Seconds without a sign of life after which the process is killed.
        grammars: Requests have a schema; the tables of the vocabulary that grammars need are built with the file.
        classifier: Requests are for labels, so little else is done than reading prompts: the fused attention is used,
            and quantized weights are held as BF16 where prompts are read faster with them here (`expansion`).

    Raises:
        MissingError: llama-cpp-python is not installed.
        EngineError: The file cannot be loaded.
    """

    def __init__(
        self,
        gguf: Path,
        *,
        sequences: int = SEQUENCES,
        context: int = CONTEXT,
        threads: int | None = None,
        adapters: Mapping[str, Path] | None = None,
        hang_s: float = HANG_S,
        grammars: bool = False,
        classifier: bool = False,
    ) -> None:
        for package in ("llama_cpp", "llguidance"):
            if importlib.util.find_spec(package) is None:
                raise MissingError(
                    f"running a GGUF needs the package '{package}', which is not installed",
                    hint=pip_line("gguf"),
                )
        self.gguf = gguf
        self.sequences, self.context = sequences, context
        self._cells = sequences * context  # tokens that the memory holds, however it is shared out
        self._settings: dict[str, Any] = {
            "sequences": sequences, "context": context, "threads": threads or usable_cores(), "grammars": grammars,
            "classifier": classifier, "timings": timings_folder(),
            "adapters": {name: str(path) for name, path in (adapters or {}).items()},
        }  # fmt: skip
        self._ids = itertools.count()
        self._lock = threading.RLock()
        # each request with the child that answers it: when that child dies, only these requests fail
        self._pending: dict[str, tuple[subprocess.Popen[str], Callable[[Any], None]]] = {}
        self._child: subprocess.Popen[str] | None = None
        self._outbox: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.on_death = lambda: None
        self._listener: threading.Thread | None = None
        self._hang_s, self._heard = hang_s, time.monotonic()  # when the child last gave a sign of life
        self._start()

    def close(self) -> None:
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
    def build(self) -> str:  # type: ignore[override]
        return self.info["build"]

    @property
    def ahead(self) -> int:  # type: ignore[override]
        return 2 * self.sequences  # enough that a freed place is taken at once

    @property
    def matmul_dtype(self) -> str | None:  # type: ignore[override]
        return "bfloat16" if self.info["expanded"] else None

    @property
    def alive(self) -> bool:  # type: ignore[override]
        return self._child is not None and self._child.poll() is None

    @property
    def state(self) -> State:  # type: ignore[override]
        if not self.alive:
            return "dead"
        return "hung" if time.monotonic() - self._heard > min(DOUBT_S, self._hang_s / 2) else "ready"

    def held_bytes(self) -> int:
        child = self._child
        return process_bytes(child.pid) if child is not None else 0

    def revive(self) -> None:
        with self._lock:
            if not self.alive:
                self._start()

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Callable[[], object]:
        id = self._send(request.__dict__ | {"question": ""}, on_event)

        def cancel() -> None:
            with self._lock:
                if self._pending.pop(id, None) is not None and self._child is not None:
                    self._outbox.put(json.dumps({"cancel": id}) + "\n")

        return cancel

    def ask_all(
        self, requests: Iterable[Request], *, widen: bool = False, alone: bool = False, through: Answering | None = None
    ) -> Outcomes:
        first = through or self
        events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
        pending: dict[int, tuple[Request, list[str]]] = {}  # with the pieces of each answer
        long: dict[int, tuple[Request, int]] = {}  # with the tokens that each needs
        died: dict[int, Request] = {}
        waiting = enumerate(requests)

        def feed(count: int = 1) -> None:
            for index, request in itertools.islice(waiting, count):
                pending[index] = request, []
                first.submit(request, functools.partial(put, index))

        def put(index: int, event: Event) -> None:
            events.put((index, event))

        feed(first.ahead)
        while pending:
            index, event = events.get()
            if "piece" in event:
                pending[index][1].append(event["piece"])
                continue
            request, pieces = pending.pop(index)
            if widen and event.get("refused") and (needs := self._needs(request)) > self.context:
                long[index] = request, needs
            elif alone and event.get("died"):
                died[index] = request
            else:
                yield index, error_of(event) if "error" in event else answer_of(event, "".join(pieces))
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
            for place, answer in self.ask_all(fitting.values(), alone=alone, through=through):
                yield indices[place], answer
        yield from self._ask_alone(died, widen, through)

    def _ask_alone(self, died: Mapping[int, Request], widen: bool, through: Answering | None) -> Outcomes:
        """Answer requests during which the engine died, one by one, until MOST_DEADLY in a row end it again."""
        deadly = 0
        for index, request in died.items():
            if deadly < MOST_DEADLY:
                ((_, again),) = self.ask_all([request], widen=widen, through=through)
                deadly = deadly + 1 if isinstance(again, EngineDiedError) else 0
            yield index, again

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
        """Token ids of a rendered prompt."""
        tokens: list[int] = self._reply({"tokenize": text})["tokens"]
        return tokens

    def controls(self) -> ControlTokens:
        """The control tokens of the vocabulary."""
        controls: ControlTokens = self._reply({"controls": True})["controls"]
        return controls

    def logits(self, text: str, *, last: int = 1) -> npt.NDArray[np.float32]:
        """The scores of the next token after each of the last tokens of a text.

        Returns:
            Logits (last, n_vocab), those after the whole text in the last row.

        Raises:
            EngineError: The text does not fit, or the child died.
        """
        event = self._reply(Request(text, logits=last).__dict__)
        import numpy as np  # for a check alone: a tenth of a second of every command that finds a model

        rows = np.frombuffer(base64.b64decode(event["logits"]), np.float32)
        return rows.reshape(-1, self.info["n_vocab"])

    def _reply(self, message: dict[str, Any]) -> dict[str, Any]:
        """The child's only reply to a message."""
        events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._send(message, events.put)
        reply = events.get()
        if "error" in reply:
            raise error_of(reply)
        return reply

    def _send(self, message: dict[str, Any], on_event: Callable[[Any], None]) -> str:
        """Send a message to the child, a fresh one when it has died; returns the message's id."""
        id = str(next(self._ids))
        with self._lock:
            self.revive()
            assert self._child is not None
            self._pending[id] = self._child, on_event
            self._outbox.put(json.dumps({"id": id, **message}) + "\n")
        return id

    def _start(self) -> None:
        try:
            self._launch()
        except (OSError, RuntimeError) as error:  # no file descriptor, memory or thread left: later there may be
            raise EngineError(f"the engine cannot be started: {error}") from None

    def _launch(self) -> None:
        with contextlib.ExitStack() as undo:
            log = undo.enter_context(tempfile.TemporaryFile())
            child = start(
                "slmctl.inference.llama_child", str(self.gguf), json.dumps(self._settings), stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8",
                errors="replace",  # half a character at the end of a killed child's output
            )  # fmt: skip
            undo.callback(_end, child)
            info = self._loaded(child, log)
            outbox: queue.SimpleQueue[str | None] = queue.SimpleQueue()
            threading.Thread(target=_feed, args=(child, outbox), daemon=True).start()
            loaded = log.seek(0, os.SEEK_END)  # what it writes while it loads explains no later death
            listener = threading.Thread(target=self._listen, args=(child, outbox, log, loaded), daemon=True)
            listener.start()
            undo.pop_all()  # the listener ends them, when it has read why the child died
        self.info, self._heard = info, time.monotonic()
        self._child, self._outbox, self._listener = child, outbox, listener
        with contextlib.suppress(RuntimeError):  # without a thread left it is not watched, and answers all the same
            threading.Thread(target=self._watch, args=(child, outbox), daemon=True).start()

    def _loaded(self, child: subprocess.Popen[str], log: IO[bytes]) -> EngineInfo:
        """The first line of a child, which it writes when it has loaded the file."""
        assert child.stdout is not None
        late = threading.Timer(LOAD_S, child.kill)
        late.daemon = True
        late.start()
        line = child.stdout.readline()
        late.cancel()
        if line.endswith("\n"):
            info: EngineInfo = json.loads(line)
            return info
        child.communicate()
        raise EngineError(f"{self.gguf.name} cannot be loaded: {DiedError(1, _text(log)).words}")

    def _listen(
        self, child: subprocess.Popen[str], outbox: queue.SimpleQueue[str | None], log: IO[bytes], loaded: int
    ) -> None:
        assert child.stdout is not None
        try:
            self._relay(child.stdout)
        finally:  # whatever ended it, no request waits for a process that nobody hears
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(DOUBT_S)  # it may be about to say why it ends
            child.kill()
            self._mourn(child, outbox, log, loaded)

    def _relay(self, lines: Iterable[str]) -> None:
        """Hand on events until the first line that is not an event: the child was writing it when it died."""
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                return
            if not isinstance(event, dict):
                return
            self._heard = time.monotonic()
            if "pong" in event:
                if event["stuck_s"] > STUCK_S:
                    return
                continue
            id = event.pop("id", None)
            with self._lock:
                _, on_event = self._pending.get(id, (None, None))
                if "piece" not in event:
                    self._pending.pop(id, None)
            if on_event is not None:
                on_event(event)

    def _mourn(
        self, child: subprocess.Popen[str], outbox: queue.SimpleQueue[str | None], log: IO[bytes], loaded: int
    ) -> None:
        """Tell every request of a child that it has died."""
        assert child.stdout is not None
        code = child.wait()
        with log:
            death = DiedError(code, _text(log, loaded))
        killed = code == -signal.SIGKILL
        reason = f"exit {code}: {'killed, as the kernel does when memory runs out' if killed else death.words}"
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

    def _watch(self, child: subprocess.Popen[str], outbox: queue.SimpleQueue[str | None]) -> None:
        """Ask the child for a sign of life all the time, and kill one that has given none for long."""
        while True:
            outbox.put('{"ping": true}\n')
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(HEARTBEAT_S)
                return
            if child is self._child and time.monotonic() - self._heard > self._hang_s:
                child.kill()  # SIGKILL ends a process that is stopped, too; the listener tells its requests


def _end(child: subprocess.Popen[str]) -> None:
    child.kill()
    with contextlib.suppress(ValueError, OSError):  # its pipes may be closed
        child.communicate()


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
    labels, evidence = event.get("labels", {}), event.get("evidence")
    return Answer(text, event["finish"], event["confidence"], *counts, labels, *likely, evidence)


def error_of(event: Mapping[str, Any]) -> EngineError:
    """The error that ended a request."""
    return (EngineDiedError if event.get("died") else EngineError)(event["error"])


def _text(log: IO[bytes], start: int = 0) -> str:
    log.seek(start)
    return log.read().decode(errors="replace")
