"""The common part of chats and completions; `chat` and `text` hold the differences."""

from __future__ import annotations

import functools
import json
import secrets
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.config import ServeConfig
from slmctl.inference.engine import Request
from slmctl.inference.events import Event, TokenInfo
from slmctl.sensitive.conversation_veto import unread_fields
from slmctl.server.forms import client_schemas, options, tool_requests
from slmctl.server.forms.client_schemas import AnswerForm
from slmctl.server.forms.options import SortedOptions, flag, number
from slmctl.server.forms.request import (
    AnswerStream,
    CheckedRequest,
    Form,
    ReplyChoice,
    ServedModel,
    WholeReply,
)
from slmctl.server.forms.tool_requests import Offer
from slmctl.server.request_errors import RequestError
from slmctl.task.records import Message, question_of

CHOICES = 8  # ceiling of `n`, and of the prompts of one completion
STOPS = 4
# a prompt with more of them, on the average, is refused before it is read token by token
BYTES_A_TOKEN = 64
READ = options.EVERYWHERE | {"max_tokens", "seed", "stop", "n", "logprobs"}
ROUTED = (
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "response_format",
    "structured_outputs",
)
CHOICE = ("tools", "tool_choice")  # options of a model that calls functions
Fits = Callable[[int], None]  # raises for a number of characters that does not fit
CALL_FIELDS = ("tool_calls", "tool_call_id")  # of messages to a model that calls functions


@dataclass(frozen=True)
class RenderedPrompt:
    """A rendered prompt, the text at its start that other requests share,
    and the conversation that it is made of.
    """

    text: str
    prefix: str
    turns: tuple[Message, ...]
    drops_system: bool = False  # the client's system prompt was left out


@dataclass(frozen=True)
class PromptedTurns:
    """The conversation of a request, its messages as texts, and its prompts."""

    turns: Sequence[Message]
    sent: Sequence[Message]
    prompts: Sequence[RenderedPrompt]


class CompletionForm(Form):
    """The form of a chat, or of a completion.

    Attributes:
        kinds: OpenAI's words for an answer and for a chunk of it.
        prefix: The id's.
    """

    kinds: ClassVar[tuple[str, str]]
    prefix: ClassVar[str]

    @abstractmethod
    def prompted(
        self, body: JsonObject, model: ServedModel, offer: Offer | None, fits: Fits
    ) -> PromptedTurns:
        """The conversation in a body, and its prompts, which are
        rendered of a length that `fits` lets pass.
        """

    @abstractmethod
    def alternatives(self, body: JsonObject) -> int:
        """Number of likeliest tokens to report in the place of each; -1 reports no token."""

    @abstractmethod
    def fields(self, checked: CheckedRequest, index: int, choice: ReplyChoice) -> JsonObject:
        """The answer among the fields of a choice."""

    @abstractmethod
    def logprobs(self, tokens: Sequence[TokenInfo], offset: int) -> JsonObject:
        """Tokens with their log probabilities; the first one stands
        `offset` characters behind the answer's start.
        """

    # Requests

    def read(self, body: JsonObject, model: ServedModel, settings: ServeConfig) -> CheckedRequest:
        listed = options.sort(body, self.reads, model.task, calls=self.calls)
        return self.checked(listed.read, listed, model, settings)

    def checked(
        self, body: JsonObject, listed: SortedOptions, model: ServedModel, settings: ServeConfig
    ) -> CheckedRequest:
        """The request in the options that are read, which may come from another form.

        Raises:
            RequestError: One of them is out of bounds.
        """
        if listed.function is not None:
            body = body | {"response_format": client_schemas.called_form(body, listed.function)}
        offer = tool_requests.offer(body, model.task) if model.calls else None
        option = "tools" if listed.function else "response_format"
        form = client_schemas.answer_form(body, model.task, is_held=model.held, option=option)
        common = self._common(body, model, settings, form, offer)
        fits = functools.partial(self._require_fit, model, settings)
        prompted = self.prompted(body, model, offer, fits)
        for prompt in prompted.prompts:
            fits(len(prompt.text))
        requests = self._requests(body, common, prompted.prompts, model)
        sent, drops_system = prompted.sent, prompted.prompts[0].drops_system
        # neither the model nor the generalist gets them, so they are neither searched nor collected
        if drops_system:
            sent = [message for message in sent if message["role"] != "system"]
        unread = {name for message in body.get("messages", ()) for name in unread_fields(message)}
        routed = (*ROUTED, *(CHOICE if offer is not None else ()))
        return CheckedRequest(
            form=self,
            model=model,
            requests=requests,
            turns=tuple(
                p.turns
                for p in prompted.prompts
                for _ in range(len(requests) // len(prompted.prompts))
            ),
            sent=tuple(sent),
            unread=tuple(sorted(unread.difference(CALL_FIELDS if model.calls else ()))),
            options={name: body[name] for name in routed if name in body},
            ignored=(
                *(["system"] if drops_system else []),
                *sorted({*listed.ignored, *form.ignored}),
            ),
            stream=flag(body, "stream"),
            with_usage=_stream_options(body),
            schema=form.schema,
            label_property=form.label_property,
            function=listed.function.name if listed.function else "",
            offer=offer,
            also=tuple(tool_requests.texts(prompted.turns, offer)) if offer is not None else (),
        )

    def _common(
        self,
        body: JsonObject,
        model: ServedModel,
        settings: ServeConfig,
        form: AnswerForm,
        offer: Offer | None,
    ) -> Request:
        """The engine's request without its prompt."""
        task, labels = model.task, model.task.labels or form.choices
        length_name = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
        length = number(body, length_name, settings.max_tokens, 1, settings.max_tokens, whole=True)
        temperature = number(body, "temperature", 0.0, 0, 2)
        if offer is not None:
            constraint = task.form.rules(offer.callable, must_call=offer.must_call)
        else:
            constraint = task.rules.constraint() or (
                json.dumps(form.schema) if form.schema is not None else ""
            )
        return Request(
            prompt="",
            labels=labels,
            end=task.end,
            max_tokens=int(length),
            temperature=0.0 if labels else temperature,
            top_p=number(body, "top_p", 1.0, 0, 1),
            seed=int(
                number(
                    body,
                    "seed",
                    secrets.randbits(31) if temperature else 0,
                    0,
                    2**63 - 1,
                    whole=True,
                )
            ),
            stop=(*_stops(body), *([task.end] if task.end else [])),
            schema=constraint,
            adapter=model.adapter,
            alternatives=self.alternatives(body),
            shorten=length_name not in body,
            written_labels=task.written_labels(labels),
        )

    def _requests(
        self,
        body: JsonObject,
        common: Request,
        prompts: Sequence[RenderedPrompt],
        model: ServedModel,
    ) -> tuple[Request, ...]:
        """The engine's requests: `n` for each prompt."""
        in_windows = model.task.document is not None
        count = int(number(body, "n", 1, 1, CHOICES, whole=True))
        if count * len(prompts) > CHOICES:
            raise RequestError(f"'n' times the prompts must be at most {CHOICES}", "n")
        return tuple(
            replace(
                common,
                prompt=prompt.text,
                prefix=prompt.prefix,
                seed=(common.seed + k) % 2**63,
                question=question_of(prompt.turns) if common.labels or model.task.schema else "",
                document=prompt.turns[-1]["content"] if in_windows and prompt.turns else "",
            )
            for prompt in prompts
            for k in range(count)
        )

    def _require_fit(self, model: ServedModel, settings: ServeConfig, length: int) -> None:
        """Refuse a prompt of so many characters that is surely too long
        for the model, unless it reads windows.
        """
        longest = settings.context_length - 1
        if model.task.document is None and length > BYTES_A_TOKEN * longest:
            raise RequestError(
                f"the prompt does not fit: it has more than {BYTES_A_TOKEN} times as many "
                "characters as the "
                f"{longest} tokens allowed",
                self.question,
            )

    # Answers

    def whole(self, answer: WholeReply) -> JsonObject:
        checked, choices = answer.checked, list[JsonObject]()
        for index, choice in enumerate(answer.choices):
            tokens = self.logprobs(choice.tokens, 0) if checked.tells_tokens else None
            fields = self.fields(checked, index, choice)
            finish = finish_of(checked, choice.function, choice.last)
            choices.append({"index": index, **fields, "logprobs": tokens, "finish_reason": finish})
            if len(answer.choices) > 1:
                choices[-1]["slmctl"] = answer.extras[index]
        return {
            **self.head(checked, answer.build, self.kinds[0], answer.name),
            "choices": choices,
            "usage": checked.usage([choice.last for choice in answer.choices]),
            "slmctl": answer.extras[0],
        }

    def stream(self, checked: CheckedRequest, build: str, name: str) -> AnswerStream:
        return Stream(self, checked, build, name)

    def head(self, checked: CheckedRequest, build: str, kind: str, name: str) -> JsonObject:
        """The first fields of an answer or a chunk."""
        return {
            "id": f"{self.prefix}-{checked.id}",
            "object": kind,
            "created": checked.created,
            "model": name,
            "system_fingerprint": build,
        }


class Stream:
    """The chunks of a streamed chat or completion, as server-sent events."""

    def __init__(
        self, form: CompletionForm, checked: CheckedRequest, build: str, name: str
    ) -> None:
        self.form, self.checked = form, checked
        self._head = json.dumps(form.head(checked, build, form.kinds[1], name))[:-1]
        self._length = [0] * len(checked.requests)  # characters of each choice so far
        self.functions = [checked.function] * len(checked.requests)  # that each choice calls

    def opening(self) -> bytes:
        return b""

    def call(self, index: int, name: str) -> bytes:
        self.functions[index] = name
        return b""

    def part(self, index: int, text: str) -> dict[str, Any]:
        """A piece of text among the fields of a chunk."""
        return {"text": text}

    def last_part(self) -> dict[str, Any]:
        """The field of the chunk that ends a choice."""
        return {"text": ""}

    def piece(self, index: int, event: Event) -> bytes:
        text = event.get("piece", "")
        part = self.part(index, text)
        if self.checked.tells_tokens:
            part["logprobs"] = self.form.logprobs(event.get("tokens", []), self._length[index])
        self._length[index] += len(text)
        return self.chunk(index, part)

    def end(self, index: int, event: Event, extra: JsonObject) -> bytes:
        rest = self.piece(index, event | {"piece": ""}) if event.get("tokens") else b""
        finish = finish_of(self.checked, self.functions[index], event)
        return rest + self.chunk(index, self.last_part(), finish, slmctl=extra)

    def ending(self, lasts: Sequence[Event]) -> bytes:
        counts = (
            self._line(choices=[], usage=self.checked.usage(lasts))
            if self.checked.with_usage
            else b""
        )
        return counts + b"data: [DONE]\n\n"

    def failed(self, error: JsonObject) -> bytes:
        return f"data: {json.dumps(error)}\n\n".encode()

    def chunk(
        self, index: int, part: dict[str, Any], finish: str | None = None, **more: Any
    ) -> bytes:
        """A chunk with fields of one choice."""
        return self._line(choices=[{"index": index, **part, "finish_reason": finish}], **more)

    def _line(self, **fields: Any) -> bytes:
        return f"data: {self._head}, {json.dumps(fields)[1:]}\n\n".encode()


def finish_of(checked: CheckedRequest, function: str, last: Event) -> str:
    """OpenAI's word for the end of an answer; a call that the client
    made a model make ends as a text does.
    """
    return (
        "tool_calls"
        if function and checked.may_call and last["finish"] == "stop"
        else last["finish"]
    )


def _stops(body: JsonObject) -> list[str]:
    stop = body.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not (
        isinstance(stops, list)
        and len(stops) <= STOPS
        and all(isinstance(s, str) and s for s in stops)
    ):
        raise RequestError(f"'stop' must be a text or up to {STOPS} texts", "stop")
    return stops


def _stream_options(body: JsonObject) -> bool:
    listed = body.get("stream_options", {})
    if not isinstance(listed, dict) or not set(listed) <= {"include_usage", "include_obfuscation"}:
        raise RequestError("'stream_options' may hold include_usage alone", "stream_options")
    return flag(listed, "include_usage", "stream_options")
