"""Answers as a client is shown them, whole or as a stream: calls and
labels are read before they are written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.inference.events import Event, TokenInfo
from slmctl.server.forms.call_reader import CallReader, Part
from slmctl.server.forms.request import AnswerStream, CheckedRequest, ReplyChoice, WholeReply


def whole(
    checked: CheckedRequest,
    choices: Sequence[ReplyChoice],
    extras: Sequence[JsonObject],
    build: str,
    name: str,
) -> JsonObject:
    """Returns the JSON body of a whole answer of the model `name`;
    `extras` are slmctl's fields of each choice.
    """
    shown = [_shown(checked, choice) for choice in choices]
    return checked.form.whole(WholeReply(checked, shown, extras, build, name))


def stream(checked: CheckedRequest, build: str, name: str) -> AnswerStream:
    """Returns the writer of a streamed answer of the model `name`."""
    form = checked.form.stream(checked, build, name)
    return form if _reader(checked) is None else _InParts(form, checked)


class _Reader(Protocol):
    """Reads the pieces of one answer, and gives the parts of it that a client is shown."""

    def feed(self, piece: str) -> Iterable[Part]: ...
    def close(self) -> Iterable[Part]: ...


class _LabelReader:
    """Shows a label as JSON when it is whole."""

    def __init__(self, name: str) -> None:
        self._name, self._label = name, ""

    def feed(self, piece: str) -> Iterable[Part]:
        self._label += piece
        return ()

    def close(self) -> Iterable[Part]:
        yield Part("text", json.dumps({self._name: self._label}, ensure_ascii=False))


def _reader(checked: CheckedRequest) -> _Reader | None:
    """The reader of one answer; None where its pieces are shown as they come."""
    if checked.may_call:
        return CallReader(checked.model.task.form)
    return _LabelReader(checked.label_property) if checked.label_property else None


class _InParts:
    """A stream of answers that are read before they are shown."""

    def __init__(self, form: AnswerStream, checked: CheckedRequest) -> None:
        self._form = form
        self._readers = [
            reader for _ in checked.requests if (reader := _reader(checked)) is not None
        ]
        # of parts that are not shown yet
        self._tokens: list[list[TokenInfo]] = [[] for _ in checked.requests]
        self.opening = form.opening
        self.call = form.call
        self.ending = form.ending
        self.failed = form.failed

    def piece(self, index: int, event: Event) -> bytes:
        self._tokens[index] += event.get("tokens", [])
        return self._parts(index, self._readers[index].feed(event.get("piece", "")))

    def end(self, index: int, event: Event, extra: JsonObject) -> bytes:
        self._tokens[index] += event.get("tokens", [])
        rest = self._parts(index, self._readers[index].close())
        last = event.copy()
        last.pop("tokens", None)
        return rest + self._form.end(index, self._with_tokens(index, last), extra)

    def _parts(self, index: int, parts: Iterable[Part]) -> bytes:
        return b"".join(
            self._form.call(index, part.text)
            if part.kind == "name"
            else self._form.piece(index, self._with_tokens(index, {"piece": part.text}))
            for part in parts
        )

    def _with_tokens(self, index: int, event: Event) -> Event:
        tokens, self._tokens[index] = self._tokens[index], []
        return event | {"tokens": tokens} if tokens else event


def _shown(checked: CheckedRequest, choice: ReplyChoice) -> ReplyChoice:
    """An answer in the form that the client asked for: a message, or the
    call of a function with its arguments.
    """
    reader = _reader(checked)
    if reader is None:
        return replace(choice, function=checked.function)
    parts = [*reader.feed(choice.text), *reader.close()]
    name = next((part.text for part in parts if part.kind == "name"), checked.function)
    return replace(
        choice, function=name, text="".join(part.text for part in parts if part.kind != "name")
    )
