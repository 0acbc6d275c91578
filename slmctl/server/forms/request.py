"""A request that has been checked, the model that it asks, and the form
of an API, which reads and answers it.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NoReturn, Protocol

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.config import ServeConfig
from slmctl.inference.engine import Request
from slmctl.inference.events import Event, TokenInfo, places_of
from slmctl.network.endpoint_replies import MAX_VALUES
from slmctl.server.forms.tool_requests import Offer
from slmctl.server.request_errors import RequestError
from slmctl.task.contract import Task
from slmctl.task.records import Message

Option = str | bool
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)  # the last one may lack its end
LABELS = 5  # the likeliest ones that an answer tells with their probabilities


@dataclass(frozen=True, eq=False)
class ServedModel:
    """One model that clients can ask for, by its name or another one.

    Attributes:
        name: The project's, which stays while releases change.
        adapter: The engine's LoRA adapter that answers; empty for the model itself.
        bare: It is a `.gguf` that carries no task: any system prompt, and completions of raw text.
        opening: The token that raw text must begin with for this model.
        aliases: Other names that mean it, such as `default`.
        version: The release's; empty where none is known.
        file: The name of the file that answers; empty where another server answers.
        digest: `sha256:…` of that file; empty where it is not known.
    """

    name: str
    task: Task
    adapter: str = ""
    bare: bool = False
    opening: str = ""
    aliases: tuple[str, ...] = ()
    version: str = ""
    file: str = ""
    digest: str = ""

    @property
    def title(self) -> str:
        """`support 1.0 (SmolLM2-135M-support-v1.0-Q8_0.gguf)`."""
        named = f"{self.name} {self.version}" if self.version else self.name
        return named + (f" ({self.file})" if self.file else "")

    @property
    def held(self) -> bool:
        """True where every answer must be one that the task allows."""
        return bool(self.task.labels or self.task.rules.constraint()) or self.calls

    @property
    def calls(self) -> bool:
        """True where an answer may call a function."""
        return self.task.rules.calls

    @property
    def release(self) -> dict[str, str]:
        """Version and file, as far as they are known: the name
        stays the same while releases change.
        """
        return {
            key: value for key, value in (("version", self.version), ("file", self.file)) if value
        }


@dataclass
class ReplyChoice:
    """One answer as it grows: its text, its tokens where they were asked for, and the event that
    ended it.

    Attributes:
        function: The function that it calls with its text as arguments; empty for a message.
    """

    text: str = ""
    tokens: list[TokenInfo] = field(default_factory=list)
    last: Event = field(default_factory=Event)
    function: str = ""

    def add(self, event: Event) -> None:
        self.text += event.get("piece", "")
        self.tokens += event.get("tokens", [])
        if "finish" in event:
            self.last = event


class AnswerStream(Protocol):
    """A streamed answer, as server-sent events."""

    def opening(self) -> bytes:
        """The beginning, before the first piece of any choice."""

    def call(self, index: int, name: str) -> bytes:
        """The function that a choice calls; its pieces from then on are the arguments."""

    def piece(self, index: int, event: Event) -> bytes:
        """A piece of one choice."""

    def end(self, index: int, event: Event, extra: JsonObject) -> bytes:
        """The end of one choice, with `extra` of slmctl's own, and tokens that had no piece."""

    def ending(self, lasts: Sequence[Event]) -> bytes:
        """The end of the whole, with the event that ended each choice."""

    def failed(self, error: JsonObject) -> bytes:
        """The error that ends a stream in place of `ending`."""


class Form(ABC):
    """The form of one API: reads its requests, and writes their answers.

    Attributes:
        question: The option that holds the question.
        reads: The options that are read; `options.sort` has the others.
        schema_option: The option that holds a client's own schema.
        calls: Its answers may call functions.
        several: One request may hold several prompts, each a separate conversation.
    """

    path: ClassVar[str]
    question: ClassVar[str]
    reads: ClassVar[frozenset[str]]
    schema_option: ClassVar[str] = "response_format"
    calls: ClassVar[bool] = True
    several: ClassVar[bool] = False

    @abstractmethod
    def read(self, body: JsonObject, model: ServedModel, settings: ServeConfig) -> CheckedRequest:
        """The request in a body of `read_body`, every option checked, as a model is asked it.

        Raises:
            RequestError: An option is unknown or out of bounds; it is named.
        """

    @abstractmethod
    def whole(self, answer: WholeReply) -> JsonObject:
        """The body of an answer that is not streamed."""

    def stream(self, checked: CheckedRequest, build: str, name: str) -> AnswerStream:
        """The answer as a stream, where the API has one."""
        raise NotImplementedError(f"{self.path} has no stream")


@dataclass(frozen=True)
class Question:
    """One question about the text of a request.

    Attributes:
        kind: `choice`, `predicate` or `score`.
        name: The client's name for it; None where it gave none.
        options: The values to choose from as the client names them: of a predicate true and false.
        labels: The model's label of each.
    """

    kind: str
    name: str | None
    options: tuple[Option, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class CheckedRequest:
    """A request that has been checked.

    Attributes:
        form: The API's that it came by.
        requests: The engine's requests, one a choice.
        turns: The conversation of each; empty where raw text is continued.
        sent: The conversation as the client sent it, without system messages that the model does
            not get.
        unread: Fields of its messages that are not part of `sent`, such as `tool_calls`.
        options: The sampling options that it set and the form of its answer, for the router.
        ignored: Its options that have no effect on a model of this task.
        schema: The client's own, to be checked before it is asked under.
        repeated: Its options that the answer of the Responses API repeats.
        label_property: The property of a JSON object in which the client wants a label; empty for
            the bare label.
        function: The function that is called with the answer as arguments; empty for a message.
        offer: The functions that the answer may call; None for a model that calls none.
        also: Texts of calls and tools, which are searched for sensitive data like the messages.
        questions: The questions about the conversation, of a decision.
    """

    form: Form
    model: ServedModel
    requests: tuple[Request, ...]
    turns: tuple[tuple[Message, ...], ...]
    sent: tuple[Message, ...]
    options: JsonObject
    unread: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    stream: bool = False
    with_usage: bool = False
    schema: JsonObject | None = None
    repeated: JsonObject = field(default_factory=dict)
    label_property: str = ""
    function: str = ""
    offer: Offer | None = None
    also: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def tells_tokens(self) -> bool:
        return self.requests[0].alternatives >= 0

    @property
    def may_call(self) -> bool:
        """True where the answer may call a function, or not, so
        that its text has to be read for it.
        """
        return self.offer is not None and self.form.calls

    @property
    def form_option(self) -> str:
        """The option that holds the client's own schema."""
        return "tools" if self.function or self.offer is not None else self.form.schema_option

    @property
    def client_form(self) -> str:
        """The client's own schema as JSON, or the grammar of its
        tools, to be checked; empty for none.
        """
        if self.schema is not None:
            return json.dumps(self.schema)
        return self.offer.checked_rules if self.offer is not None else ""

    @property
    def text(self) -> str:
        """The whole request, for a log that is to hold it."""
        return "\n".join(message["content"] for message in self.sent) or "\n".join(
            request.prompt for request in self.requests
        )

    def conversation(self, index: int) -> tuple[Message, ...]:
        """The conversation of one choice, as the client sent it."""
        return (
            (self.sent[index * len(self.sent) // len(self.requests)],)
            if self.form.several
            else self.sent
        )

    def failed_checks(self, index: int, text: str, finish: str, names: Sequence[str]) -> list[str]:
        """The checks among `names` that a draft of one choice
        fails; none for tasks without checks.
        """
        if not (names and self.model.task.rules.checks):
            return []
        turns = self.turns[index] or (Message(role="user", content=self.requests[index].prompt),)
        faults = self.model.task.rules.faults(text, turns, finish=finish)
        return [name for name in names if name in faults]

    def usage(self, lasts: Sequence[Event]) -> dict[str, int]:
        """Tokens of the prompts, each counted once, and of all
        answers, by the event that ended each.
        """
        prompts = {
            request.prompt: last["prompt_tokens"]
            for request, last in zip(self.requests, lasts, strict=True)
        }
        prompt, answer = sum(prompts.values()), sum(last["completion_tokens"] for last in lasts)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
        }

    def facts(self, event: Event) -> JsonObject:
        """slmctl's own fields of an answer: kind of task, confidence,
        labels, places of values, ignored options.
        """
        labels = dict(list(event.get("labels", {}).items())[:LABELS])
        return {
            "task": self.model.task.kind,
            "confidence": event.get("confidence"),
            **({"labels": labels} if labels else {}),
            **({"places": places} if (places := places_of(event)) else {}),
            **({"ignored": list(self.ignored)} if self.ignored else {}),
        }


@dataclass(frozen=True)
class WholeReply:
    """A whole answer.

    Attributes:
        choices: As a client is shown them, each with slmctl's own fields in `extras`.
        name: The model's that gave it.
    """

    checked: CheckedRequest
    choices: Sequence[ReplyChoice]
    extras: Sequence[JsonObject]
    build: str
    name: str


def read_body(raw: bytes) -> JsonObject:
    """Returns the JSON object in a body, without its values of null.

    Raises:
        RequestError: The body is not a JSON object, has more than MAX_VALUES values, or text that
            is not Unicode.
    """
    if _marks_in(raw) > MAX_VALUES and _marks_in(_STRING.sub(b"", raw)) > MAX_VALUES:
        raise RequestError(f"the body holds more than {MAX_VALUES} values", status=413)
    try:
        # as text: bytes would be read as UTF-16 too, and with halves of surrogate pairs let through
        body = json.loads(raw.decode(), parse_constant=_no_number)
        if b"\\u" in raw:
            # half of a surrogate pair can be spelled, but never written
            json.dumps(body, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise RequestError("the body is not valid JSON in UTF-8") from None
    if not isinstance(body, dict):
        raise RequestError("the body is not a JSON object")
    return {key: value for key, value in body.items() if value is not None}


def _marks_in(raw: bytes) -> int:
    """The commas and opening brackets, of which JSON has one for each value at least."""
    return raw.count(b",") + raw.count(b"[") + raw.count(b"{")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
