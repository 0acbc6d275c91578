"""An answer that may call a function, taken apart as it comes: a text, or a name and then pieces of its arguments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from slmctl.task.tool_calls import NAME, NO_CALL, CallForm


@dataclass(frozen=True)
class Part:
    """A part of an answer: a piece of its text, the name of the function it calls, or a piece of the arguments."""

    kind: Literal["text", "name", "arguments"]
    text: str


class CallReader:
    """Reads one answer, in pieces that may end anywhere.

    Args:
        form: The form in which the model writes a call. Its control tokens are not in a decoded answer.
    """

    def __init__(self, form: CallForm) -> None:
        self._before, self._between = form.bare(form.before), form.bare(form.between)
        self._step: Literal["opening", "arguments", "text", "end"] = "opening"
        self._held = ""  # that may belong to what comes next
        self._object = _ObjectEnd()

    def feed(self, piece: str) -> Iterator[Part]:
        """The parts that are known with one more piece."""
        self._held += piece
        if self._step == "opening":
            yield from self._named()
        if self._step == "arguments":
            if not self._object.is_begun:
                self._held = self._held.lstrip()
            kept, self._held = self._held[: self._object.length_in(self._held)], ""
            if kept:
                yield Part("arguments", kept)
            if self._object.is_whole:
                self._step = "end"
        elif self._step == "text" and self._held:
            text, self._held = self._held, ""
            yield Part("text", text)

    def close(self) -> Iterator[Part]:
        """The rest of an answer that ends here: one that was cut before its function has a name is a text."""
        if self._step == "opening" and (text := self._held.strip()):
            yield Part("text", text)

    def _named(self) -> Iterator[Part]:
        """Find the name, once it is whole; an answer that does not begin as a call does is a text."""
        text = self._held.lstrip()
        if NO_CALL.startswith(text) or self._before.startswith(text):
            return  # either may still come
        name = NAME.match(rest := text.removeprefix(self._before).lstrip())
        after = rest[name.end() :].lstrip() if name else rest
        if not text.startswith(self._before) or not (
            self._between.startswith(after) or after.startswith(self._between)
        ):
            self._step = "text"
        elif name and after and after.startswith(self._between):
            self._step, self._held = "arguments", after[len(self._between) :]
            yield Part("name", name.group())


class _ObjectEnd:
    """The end of a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self._depth, self._in_text, self._is_escaped = 0, False, False
        self.is_whole = False

    @property
    def is_begun(self) -> bool:
        return self._depth > 0

    def length_in(self, piece: str) -> int:
        """Characters of a piece that belong to the object."""
        for place, character in enumerate(piece):
            if self._in_text:
                if self._is_escaped:
                    self._is_escaped = False
                elif character == "\\":
                    self._is_escaped = True
                elif character == '"':
                    self._in_text = False
            elif character == '"':
                self._in_text = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if not self._depth:
                    self.is_whole = True
                    return place + 1
        return len(piece)
