"""An answer that may call a function, taken apart as it comes: a text, or a
name and then pieces of its arguments.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from slmctl.task.tool_calls import NAME, NO_CALL, CallForm


@dataclass(frozen=True)
class Part:
    """A part of an answer: a piece of its text, the name of the function
    it calls, or a piece of the arguments.
    """

    kind: Literal["text", "name", "arguments"]
    text: str


class CallReader:
    """Reads one answer, in pieces that may end anywhere.

    Args:
        form: The form in which the model writes a call. Its control tokens are not in a decoded
            answer.
    """

    def __init__(self, form: CallForm) -> None:
        self._before, self._between = form.bare(form.before), form.bare(form.between)
        self._step: Literal["opening", "arguments", "text", "end"] = "opening"
        self._held = ""  # text that may be the beginning of a call
        self._arguments = ""  # a JSON object, as far as it has come

    def feed(self, piece: str) -> Iterator[Part]:
        self._held += piece
        if self._step == "opening":
            yield from self._named()
        if self._step == "arguments":
            kept, self._held = (
                self._of_arguments(self._held if self._arguments else self._held.lstrip()),
                "",
            )
            if kept:
                yield Part("arguments", kept)
        elif self._step == "text" and self._held:
            text, self._held = self._held, ""
            yield Part("text", text)

    def close(self) -> Iterator[Part]:
        """The rest of an answer that ends here: one that was cut
        before its function has a name is a text.
        """
        if self._step == "opening" and (text := self._held.strip()):
            yield Part("text", text)

    def _of_arguments(self, piece: str) -> str:
        """The part of a piece that belongs to the object of arguments."""
        before, self._arguments = len(self._arguments), self._arguments + piece
        if "}" in piece:
            with contextlib.suppress(ValueError, RecursionError):  # it goes on
                _, end = json.JSONDecoder(strict=False).raw_decode(self._arguments)
                self._step = "end"
                return self._arguments[before:end]
        return piece

    def _named(self) -> Iterator[Part]:
        """Find the name, once it is whole; an answer that does
        not begin as a call does is a text.
        """
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
