"""Freeze the date that a chat template asks for, so that every engine renders the prompts of
training.

Templates get today's date from `strftime_now(FORMAT)`. transformers and llama.cpp return the
clock's date at each call, and other engines lack the function. A stored template has the text of
one day in place of each call.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from typing import NamedTuple

import jinja2

from slmctl.errors import DataError

NAME = "strftime_now"
_BLANK = ("whitespace", "comment", "linecomment")


class _Token(NamedTuple):
    """A token of the template's source, and its place there."""

    kind: str
    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)


def freeze(source: str, day: datetime.date) -> str:
    """A template with every `strftime_now(FORMAT)` replaced by the text of a day; unchanged without
    one.

    The name alone, as in `strftime_now is defined`, becomes `true`.

    Raises:
        DataError: The template is not valid Jinja, or computes the format.
    """
    if NAME not in source:
        return source
    source = source.replace("\r\n", "\n").replace("\r", "\n")  # as Jinja reads it
    parts, done = [], 0
    tokens = list(_tokens(source))
    for at, token in enumerate(tokens):
        if (token.kind, token.text) != ("name", NAME) or (at and tokens[at - 1].text == "."):
            continue
        call = tokens[at + 1 : at + 4]
        end, text = token.end, "true"
        if call and call[0].text == "(":
            if [part.kind for part in call] != ["operator", "string", "operator"] or call[
                2
            ].text != ")":
                raise DataError(
                    f"the chat template of the base computes the format that it gives to {NAME}, "
                    "so its date cannot be "
                    "frozen",
                    hint="write the format as a text into the base's chat_template.jinja",
                )
            end, text = (
                call[2].end,
                json.dumps(day.strftime(_value(call[1].text)), ensure_ascii=False),
            )
        parts += [source[done : token.start], text]
        done = end
    return "".join([*parts, source[done:]])


def _tokens(source: str) -> Iterator[_Token]:
    """The tokens of a template but blanks. Places are searched, since
    Jinja's lexer drops blanks that a `-` strips.
    """
    place = 0
    lexer = jinja2.Environment(keep_trailing_newline=True)  # noqa: S701 - nothing is rendered
    try:
        for _, kind, text in lexer.lex(source):
            place = source.index(text, place)
            if kind not in _BLANK:
                yield _Token(kind, text, place)
            place += len(text)
    except jinja2.TemplateSyntaxError as error:
        raise DataError(f"the chat template of the base is not valid: {error}") from None


def _value(literal: str) -> str:
    """The text of a Jinja string literal."""
    return literal[1:-1].encode("ascii", "backslashreplace").decode("unicode-escape")
