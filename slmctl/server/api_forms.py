"""The APIs that are spoken here: each one's requests checked, and its answers in its own form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.inference.events import Event
from slmctl.server import openai_replies, openai_requests, responses_replies, responses_requests
from slmctl.server.openai_replies import ReplyChoice
from slmctl.server.openai_requests import Ceilings, CheckedRequest, ServedModel


class AnswerStream(Protocol):
    """A streamed answer, as server-sent events."""

    def opening(self) -> bytes: ...
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
    shown = [replace(choice, text=_shown(checked, choice.text)) for choice in choices]
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
    return _HeldBack(form, checked) if checked.label_property else form


class _HeldBack:
    """A stream of labels in JSON: a label is shown when it is whole."""

    def __init__(self, form: AnswerStream, checked: CheckedRequest) -> None:
        self._form, self._checked = form, checked
        self._choices = [ReplyChoice() for _ in checked.requests]
        self.opening, self.ending, self.failed = form.opening, form.ending, form.failed

    def piece(self, index: int, event: Event) -> bytes:
        """Nothing yet."""
        self._choices[index].add(event)
        return b""

    def end(self, index: int, event: Event, extra: JsonObject) -> bytes:
        """The label as JSON, and the end of its choice."""
        label = self._choices[index]
        label.add(event)
        piece: Event = {"piece": _shown(self._checked, label.text), "tokens": label.tokens}
        last = event.copy()
        last.pop("tokens", None)
        return self._form.piece(index, piece) + self._form.end(index, last, extra)


def _shown(checked: CheckedRequest, text: str) -> str:
    """The text of an answer in the form that the client asked for."""
    return json.dumps({checked.label_property: text}, ensure_ascii=False) if checked.label_property else text
