"""A GGUF in a child process: many requests at once, shared prefix, constrained answers,
probabilities.

quantize's check, predict, chat and serve all answer through this class, so the same code is
measured and served. llama.cpp runs in a child, since a crash of native code must not take the
caller along.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import queue
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.hardware import usable_cores
from slmctl.inference.escalation_policy import LABELS
from slmctl.inference.events import ControlTokens, EngineInfo, Event, ValuePlace, places_of
from slmctl.inference.supervised_child import (
    HANG_S,
    EngineDiedError,
    EngineError,
    State,
    Supervised,
    error_of,
)
from slmctl.installation import require, timings_folder


@dataclass(frozen=True)
class Request:
    """One prompt to answer.

    Attributes:
        prefix: Text at its start that other requests share; computed once.
        labels: The only answers allowed, or none for free text.
        written_labels: The labels as the model writes them, in the same order; none where it writes
            them as they are.
        end: Text that ends a label, such as `<|im_end|>`.
        max_tokens: Longest answer, in tokens.
        temperature: 0 takes the likeliest token.
        top_p: Share of the probability that is sampled from.
        stop: Texts that end an answer and are not part of it (free text).
        schema: The JSON Schema that an answer must satisfy, as JSON; empty for none.
        adapter: The LoRA adapter to answer with; empty for the model itself.
        alternatives: Number of likeliest tokens to send with each token of the answer; -1 sends no
            tokens.
        shorten: Shorten max_tokens to the room that the prompt leaves in the context, instead of
            refusing the request.
        question: The text that an encoder reads, where one answers; empty for none.
        document: The text in the prompt that is asked in windows where it is long; empty for none.
        client: Who asks: clients take turns, and have equal parts of each batch.
        rest: Below 1, the end of an answer tells the `distribution` over the labels; branches that
            are likelier than this are looked at for it. The answer itself stays the same.
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
    question: str = ""
    document: str = ""
    rest: float = 1.0
    client: str = ""
    written_labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """The answer to a request.

    Attributes:
        finish: `stop` (the model ended its turn) or `length` (it hit max_tokens).
        confidence: Product of the probabilities of the chosen tokens, each among the allowed ones;
            None if an endpoint sends no probabilities.
        labels: Of a request with labels: the probability of each label that was evaluated,
            likeliest first.
        logprobs: The log probability of each choice that the model made, among the tokens allowed
            there; a forced token is no choice, and the end of the turn is one.
        raw_logprobs: Of a request with labels: the same among the whole vocabulary. The lower it
            is, the less likely the model would have answered with any label.
        evidence: The label's score in an encoder's linear model before normalisation; None if a
            language model answers.
        first: Of a sum, the answer that its linear members give alone.
        places: The places of its values in a document.
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
    first: Answer | None = None
    places: tuple[ValuePlace, ...] = ()

    def probabilities(self) -> JsonObject:
        """The fields that `escalation_policy.signals` reads, as predictions hold them."""
        likeliest = dict(itertools.islice(self.labels.items(), LABELS))
        lists = {"labels": likeliest, "logprobs": self.logprobs, "raw_logprobs": self.raw_logprobs}
        fields: JsonObject = {
            "confidence": self.confidence,
            **{name: values for name, values in lists.items() if values},
        }
        if self.evidence is not None:
            fields["evidence"] = self.evidence
        if self.first is not None:
            fields["first"] = {"answer": self.first.text, **self.first.probabilities()}
        return fields


SEQUENCES, CONTEXT = 16, 2048  # of an engine: requests at the same time, and tokens of each
# requests in a row, each asked alone, that may kill the engine before retrying stops
MOST_DEADLY = 16


# with the index of each request, as they are finished
Outcomes = Iterator[tuple[int, Answer | EngineError]]


class Answering:
    """Something that answers requests until it is closed.

    Attributes:
        ahead: Number of requests that `ask_all` has under way.
        matmul_dtype: Type of the matrix products; None where it follows from the types of a file.
        on_death: Called from another thread, when the process has died.
    """

    ahead: int
    matmul_dtype: str | None = None
    on_death: Callable[[], None]

    @property
    def build(self) -> str:
        """The build of llama.cpp, with EXPANDED where the file was expanded."""
        raise NotImplementedError

    @property
    def alive(self) -> bool:
        """False where the next request waits until another process has started."""
        raise NotImplementedError

    @property
    def state(self) -> State:
        """`ready`, `hung` while the process runs and gives no sign of life, or `dead`."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        raise NotImplementedError

    def with_reader(self, reader: Callable[[Answering], Answering]) -> Answering:
        """This one, with a reader around the part that is asked prompts."""
        return reader(self)

    def prompts(self, request: Request) -> Iterable[str]:
        """The prompts that a request is asked in."""
        return [request.prompt]

    def held_bytes(self) -> int:
        """Bytes that the processes and their grammars hold, with their part
        of shared memory; 0 without a process.
        """
        raise NotImplementedError

    def revive(self) -> None:
        """Start the process again if it has died.

        Raises:
            EngineError: The file cannot be loaded any more, or the system has no room for a process
                now.
        """
        raise NotImplementedError

    def step_ms(self, texts: Sequence[str]) -> dict[str, float]:
        """Median milliseconds of a text by each part that may look first; empty without any."""
        return {}

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Callable[[], object]:
        """Start answering; `on_event` is called from another thread until `finish` or `error` has
        come.

        Returns:
            A function that cancels the request and frees its place; no event follows.
        """
        raise NotImplementedError

    def ask_all(
        self,
        requests: Iterable[Request],
        *,
        widen: bool = False,
        alone: bool = False,
        through: Answering | None = None,
    ) -> Outcomes:
        """Answer many requests together, each with its index, in the order in which they finish.

        A request that cannot be answered gives its error in place of an answer. Nobody else may ask
        until the last outcome is taken, or the iterator closed: the process waits until its batches
        are full.

        Args:
            widen: Ask those that do not fit the context once more after the others, in a longer
                one: as long as the model was trained on, and as the memory of all sequences holds.
                It stays, with fewer sequences in the same memory.
            alone: Ask those during which the engine died once more, one by one: most of them only
                shared a batch with one that ends it. After MOST_DEADLY in a row it is the machine
                that ends it, and the others keep their error.
            through: Gets each request first, instead of this one, and passes on those that it does
                not answer.
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


class Engine(Supervised, Answering):
    """One GGUF file, loaded in a child process that is started again when it dies.

    Args:
        sequences: Requests answered at the same time.
        context: Longest prompt with its answer, in tokens.
        threads: CPU threads; the cores this process may use, by default.
        adapters: LoRA adapters over the model, by the name that requests call them.
        hang_s: Seconds without a sign of life after which the process is killed.
        grammars: Requests have a schema; the tables of the vocabulary that grammars need are built
            with the file.
        mostly_reads: Requests are for labels or about documents, so reading takes the time:
            quantized weights are held as BF16 where prompts are read faster with them here
            (`expansion`); without grammars the fused attention is used for a file that is not
            quantized too.

    Raises:
        MissingError: llama-cpp-python is not installed.
        EngineError: The file cannot be loaded.
    """

    name, stuck_s = "the engine", 300.0  # that one batch may take
    info: EngineInfo

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
        mostly_reads: bool = False,
    ) -> None:
        require("running a GGUF", "gguf", "llama_cpp", "llguidance")
        self.sequences, self.context = sequences, context
        self._cells = sequences * context  # tokens that the memory holds, however it is shared out
        self._settings: dict[str, Any] = {
            "sequences": sequences,
            "context": context,
            "threads": threads or usable_cores(),
            "grammars": grammars,
            "mostly_reads": mostly_reads,
            "timings": timings_folder(),
            "adapters": {name: str(path) for name, path in (adapters or {}).items()},
        }
        super().__init__(gguf, hang_s=hang_s)

    def command(self) -> tuple[str, ...]:
        return "slmctl.inference.llama_child", str(self.gguf), json.dumps(self._settings)

    @property
    def ahead(self) -> int:  # type: ignore[override]
        return 2 * self.sequences  # enough that a freed place is taken at once

    @property
    def matmul_dtype(self) -> str | None:  # type: ignore[override]
        return "bfloat16" if self.info["expanded"] else None

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Callable[[], object]:
        id = self.send(request.__dict__ | {"question": "", "document": ""}, on_event)
        return functools.partial(self.cancel, id)

    def ask_all(
        self,
        requests: Iterable[Request],
        *,
        widen: bool = False,
        alone: bool = False,
        through: Answering | None = None,
    ) -> Outcomes:
        first = through or self
        events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
        pending: dict[int, tuple[Request, list[str]]] = {}  # with the pieces of each answer
        long: dict[int, tuple[Request, int]] = {}  # with the tokens that each needs
        died: dict[int, Request] = {}
        waiting = enumerate(requests)

        def feed(count: int = 1) -> None:
            taken = list(itertools.islice(waiting, count))
            for index, request in taken:
                pending[index] = request, []
                first.submit(request, functools.partial(put, index))
            if len(taken) < count:
                self.tell({"fill": "rest"})

        def put(index: int, event: Event) -> None:
            events.put((index, event))

        # the same requests make the same batches, however fast they come: answers are then equal to
        # the last digit
        self.tell({"fill": "all"})
        try:
            feed(first.ahead)
            while pending:
                index, event = events.get()
                if "piece" in event:
                    pending[index][1].append(event["piece"])
                    continue
                request, pieces = pending.pop(index)
                needs = self._needs(request, first) if widen and event.get("refused") else 0
                if needs > self.context:
                    long[index] = request, needs
                elif alone and event.get("died"):
                    died[index] = request
                elif "error" in event:
                    yield index, error_of(event)
                else:
                    yield index, answer_of(event, "".join(pieces))
                feed()
        finally:
            self.tell({"fill": ""})
        yield from self._ask_long(long, alone, through)
        yield from self._ask_alone(died, widen, through)

    def _ask_long(
        self, long: Mapping[int, tuple[Request, int]], alone: bool, through: Answering | None
    ) -> Outcomes:
        """Answer requests that did not fit, each with the tokens that it needs, in a wider
        context.
        """
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

    def _ask_alone(
        self, died: Mapping[int, Request], widen: bool, through: Answering | None
    ) -> Outcomes:
        """Answer requests during which the engine died, one by one,
        until MOST_DEADLY in a row end it again.
        """
        deadly = 0
        for index, request in died.items():
            if deadly < MOST_DEADLY:
                ((_, again),) = self.ask_all([request], widen=widen, through=through)
                deadly = deadly + 1 if isinstance(again, EngineDiedError) else 0
            yield index, again

    def _needs(self, request: Request, first: Answering) -> int:
        """Tokens of the longest prompt of a request with its answer;
        0 if the engine cannot tokenize it.
        """
        with contextlib.suppress(EngineError):
            ends = [
                len(self.tokenize(label + request.end))
                for label in request.written_labels or request.labels
            ]
            longest = max(len(self.tokenize(prompt)) for prompt in first.prompts(request))
            return longest + max(ends, default=request.max_tokens)
        return 0

    def _widen(self, context: int) -> None:
        """Start the child again with another context, and as many
        sequences as the same memory then holds.
        """
        self.close()
        self.context, self.sequences = context, self._cells // context
        self._settings |= {"context": self.context, "sequences": self.sequences}
        self.revive()

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a rendered prompt."""
        tokens: list[int] = self.reply({"tokenize": text})["tokens"]
        return tokens

    def controls(self) -> ControlTokens:
        """The control tokens of the vocabulary."""
        controls: ControlTokens = self.reply({"controls": True})["controls"]
        return controls


def answer_of(event: Event, text: str) -> Answer:
    """An Answer from the text so far and the event that ended it."""
    counts = event["prompt_tokens"], event["completion_tokens"]
    likely = tuple(event.get("logprobs", ())), tuple(event.get("raw_logprobs", ()))
    labels, evidence = event.get("labels", {}), event.get("evidence")
    alone = (
        answer_of(first, next(iter(first["labels"])))
        if (first := event.get("first")) is not None
        else None
    )
    places = tuple(places_of(event))
    return Answer(
        text,
        event["finish"],
        event["confidence"],
        *counts,
        labels,
        *likely,
        evidence,
        alone,
        places,
    )
