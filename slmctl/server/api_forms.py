"""The APIs that are spoken here: each one's requests checked, and its answers in its own form."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.inference.events import Event, TokenInfo
from slmctl.server import openai_replies, openai_requests, responses_replies, responses_requests
from slmctl.server.call_reader import Part
from slmctl.server.openai_replies import ReplyChoice
from slmctl.server.openai_requests import Ceilings, CheckedRequest, ServedModel


class AnswerStream(Protocol):
    """A streamed answer, as server-sent events."""

    def opening(self) -> bytes: ...
    def call(self, index: int, name: str) -> bytes: ...
    def piece(self, index: int, event: Event) -> bytes: ...
    def end(self, index: int, event: Event, extra: JsonObject) -> bytes: ...
    def ending(self, lasts: Sequence[Event]) -> bytes: ...
    def failed(self, error: JsonObject) -> bytes: ...


def check(body: JsonObject, kind: str, models: Mapping[str, ServedModel], ceilings: Ceilings) -> CheckedRequest:
    """A request of one of the APIs (`chat`, `text` or `response`), every option checked.

    Raises:
        BadRequestError: An option is unknown or out of bounds; it is named.
    """
    if kind == "response":
        return responses_requests.check(body, models, ceilings)
    return openai_requests.check(body, kind, models, ceilings)


def whole(
    checked: CheckedRequest, choices: Sequence[ReplyChoice], extras: Sequence[JsonObject], build: str, name: str
) -> JsonObject:
    """The body of an answer that is not streamed, by the model `name`; `extras` is what slmctl adds to each choice."""
    shown = [_shown(checked, choice) for choice in choices]
    if checked.kind == "response":
        return responses_replies.whole(checked, shown[0], extras[0], name)
    return openai_replies.whole(checked, shown, extras, build, name)


def stream(checked: CheckedRequest, build: str, name: str) -> AnswerStream:
    """The answer as a stream, by the model `name`."""
    form: AnswerStream = (
        responses_replies.ResponseStream(checked, name)
        if checked.kind == "response"
        else openai_replies.Stream(checked, build, name)
    )
    if checked.may_call:
        return _TakenApart(form, checked)
    return _HeldBack(form, checked) if checked.label_property else form


class _HeldBack:
    """A stream of labels in JSON: a label is shown when it is whole."""

    def __init__(self, form: AnswerStream, checked: CheckedRequest) -> None:
        self._form, self._checked = form, checked
        self._choices = [ReplyChoice() for _ in checked.requests]
        self.opening, self.call, self.ending, self.failed = form.opening, form.call, form.ending, form.failed

    def piece(self, index: int, event: Event) -> bytes:
        """Nothing yet."""
        self._choices[index].add(event)
        return b""

    def end(self, index: int, event: Event, extra: JsonObject) -> bytes:
        """The label as JSON, and the end of its choice."""
        label = self._choices[index]
        label.add(event)
        piece: Event = {"piece": _shown(self._checked, label).text, "tokens": label.tokens}
        last = event.copy()
        last.pop("tokens", None)
        return self._form.piece(index, piece) + self._form.end(index, last, extra)


class _TakenApart:
    """A stream of answers that may call: the name of the function when it is decided, its arguments as they come."""

    def __init__(self, form: AnswerStream, checked: CheckedRequest) -> None:
        self._form = form
        self._readers = [checked.call_reader() for _ in checked.requests]
        self._tokens: list[list[TokenInfo]] = [[] for _ in checked.requests]  # of parts that are not shown yet
        self.opening, self.call, self.ending, self.failed = form.opening, form.call, form.ending, form.failed

    def piece(self, index: int, event: Event) -> bytes:
        """The parts that are decided with one more piece."""
        self._tokens[index] += event.get("tokens", [])
        return self._parts(index, self._readers[index].feed(event.get("piece", "")))

    def end(self, index: int, event: Event, extra: JsonObject) -> bytes:
        """The rest of a choice, and its end."""
        rest = self._parts(index, self._readers[index].close())
        tokens = [*self._tokens[index], *event.get("tokens", [])]
        return rest + self._form.end(index, event | ({"tokens": tokens} if tokens else {}), extra)

    def _parts(self, index: int, parts: Iterable[Part]) -> bytes:
        return b"".join(self._part(index, part) for part in parts)

    def _part(self, index: int, part: Part) -> bytes:
        if part.kind == "name":
            return self._form.call(index, part.text)
        tokens, self._tokens[index] = self._tokens[index], []
        return self._form.piece(index, {"piece": part.text, **({"tokens": tokens} if tokens else {})})


def _shown(checked: CheckedRequest, choice: ReplyChoice) -> ReplyChoice:
    """An answer in the form that the client asked for: a message, or the call of a function with its arguments."""
    if checked.may_call:
        reader = checked.call_reader()
        parts = [*reader.feed(choice.text), *reader.close()]
        name = next((part.text for part in parts if part.kind == "name"), "")
        return replace(choice, function=name, text="".join(part.text for part in parts if part.kind != "name"))
    text = choice.text
    if checked.label_property:
        text = json.dumps({checked.label_property: text}, ensure_ascii=False)
    return replace(choice, function=checked.function, text=text)
