"""Rows of JSON, as lines or as one array, read strictly: a value that the standard forbids is a fault."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn, TextIO

from slmctl.artifacts.bounded_json import is_deeper
from slmctl.errors import DataError
from slmctl.sources.rows.cells import MAX_DEPTH, MAX_ROW, Row, listed, too_long
from slmctl.sources.rows.lines import lines

MAX_DIGITS = 1000  # of a whole number; Python itself refuses to read more than 4,300
_CHUNK = 1 << 18  # characters
_TAIL = 16  # characters; a token other than a text that the end of a chunk cuts in two is shorter
_SPACE = " \t\r\n"
_SPACES = re.compile(f"[{_SPACE}]*")


def line_rows(stream: TextIO) -> Iterator[Row]:
    """One object a line; a row's number is that of its line, and blank lines are no rows."""
    decoder = _Decoder()
    for number, line in enumerate(lines(stream), 1):
        if line is None:
            yield Row(number, {}, too_long())
        elif text := line.strip(_SPACE):
            yield decoder.row(number, text)


def array_rows(stream: TextIO, file: str, *, key: str | None = None) -> Iterator[Row]:
    """The objects of one array, by their places: the whole file, or the array `key` of an object, or its only one.

    Raises:
        DataError: It is not JSON, or holds no such array, or several. Rows before the fault have been yielded by then.
    """
    window = _Window(stream, file)
    start = window.peek()
    if start == "[" and key is None:
        yield from _items(window)
    elif start == "{":
        yield from _items_inside(window, key)
    elif start:
        what = "array of objects" if key is None else f"object with an array '{key}'"
        raise DataError(f"{file} holds no {what}", hint="a .json file is one array of objects, or an object with one")
    if window.peek():
        raise DataError(f"{file} goes on after the end of its array", hint="one object a line is .jsonl")


def is_lines(stream: TextIO) -> bool:
    """True for a text of one object a line, which is JSONL whatever its name; two lines decide."""
    first = ""
    while not first.strip(_SPACE):
        first = stream.readline(MAX_ROW + 1)
        if not first or len(first) > MAX_ROW:
            return False
    if not _Decoder().row(1, first.strip(_SPACE)).columns:
        return False
    while line := stream.readline(_CHUNK):
        if line.strip(_SPACE):
            return line.lstrip(_SPACE).startswith("{")
    return False


def _items(window: _Window) -> Iterator[Row]:
    number = 0
    window.take("[")
    listed = window.peek() == "["  # the first row tells what the rows are
    while window.peek() != "]":
        if number:
            window.take(",")
        number += 1
        yield _row(number, *window.value(), listed=listed)
    window.take("]")


def _items_inside(window: _Window, key: str | None) -> Iterator[Row]:
    """The values of the array `key` in an object, or of its only array of objects, whatever else stands beside it."""
    names: list[str] = []
    first = True
    window.take("{")
    while window.peek() != "}":
        if not first:
            window.take(",")
        first = False
        name = str(window.value()[0])
        window.take(":")
        if window.peek() != "[":
            window.value()
        elif name == key or (key is None and window.opens_objects()):
            names.append(name)
            if len(names) > 1:
                raise DataError(f"{window.file} holds several arrays: {listed(names)}", hint=f"sheet: {names[0]}")
            yield from _items(window)
        else:
            for _ in _items(window):
                pass  # an array may be longer than a value can be
    window.take("}")
    if not names:
        what = "without an array of objects" if key is None else f"without an array '{key}'"
        raise DataError(f"{window.file} is an object {what}", hint="one object a line is .jsonl")


class _Decoder:
    """JSON as its standard has it: no NaN, no key twice, no half of a surrogate pair, no infinite number.

    A fault does not stop it, so the end of every value is known.
    """

    def __init__(self) -> None:
        self._fault = ""
        self._json = json.JSONDecoder(
            object_pairs_hook=self._object, parse_float=self._float, parse_int=self._int, parse_constant=self._constant
        )

    def decode(self, text: str, at: int = 0) -> tuple[Any, int, str]:
        """A value, the place after it, and its fault.

        Raises:
            JSONDecodeError: The syntax is wrong, or the text ends too early.
            RecursionError: It is nested too deep to be read at all.
        """
        self._fault = ""
        value, end = self._json.raw_decode(text, at)
        if not self._fault and text.count("[", at, end) + text.count("{", at, end) > MAX_DEPTH:
            self._fault = _TOO_DEEP if is_deeper(value, MAX_DEPTH) else ""
        if not self._fault and text.find("\\u", at, end) >= 0:
            try:
                json.dumps(value, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                self._fault = "a text holds half of a surrogate pair"
        return value, end, self._fault

    def row(self, number: int, text: str) -> Row:
        try:
            value, end, fault = self.decode(text)
        except RecursionError:
            return Row(number, {}, f"not valid JSON: {_TOO_DEEP}")
        except json.JSONDecodeError as error:
            return Row(number, {}, f"not valid JSON: {error.msg} at character {error.pos + 1}")
        return _row(number, value, fault or ("" if end == len(text) else f"Extra data at character {end + 1}"))

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            self._fault = "a key stands twice in an object"
        return result

    def _float(self, text: str) -> float:
        value = float(text)
        if math.isinf(value):
            self._fault = f"{text[:20]} is too large a number"
        return value

    def _int(self, text: str) -> int:
        if len(text) > MAX_DIGITS:
            self._fault = f"a number has {len(text):,} digits"
            return 0
        return int(text)

    def _constant(self, name: str) -> None:
        self._fault = f"{name} is not JSON"


_TOO_DEEP = f"nested more than {MAX_DEPTH} deep"


def _row(number: int, value: Any, fault: str, *, listed: bool = False) -> Row:
    """A value as a row; where rows may be arrays (`listed`), their columns are called "1", "2" and so on."""
    if fault:
        return Row(number, {}, f"not valid JSON: {fault}")
    if listed and isinstance(value, list) and value:
        return Row(number, {str(place): inner for place, inner in enumerate(value, 1)})
    return Row(number, value) if isinstance(value, dict) else Row(number, {}, "not a JSON object")


class _Window:
    """A JSON text of any length, of which only the part that is being read is held."""

    def __init__(self, stream: TextIO, file: str) -> None:
        self.file = file
        self._stream, self._text, self._at = stream, "", 0
        self._decoder = _Decoder()
        self._let_go = 0  # characters before those that are held

    def peek(self) -> str:
        """The next character that is not space; empty at the end."""
        while True:
            spaces = _SPACES.match(self._text, self._at)
            self._at = spaces.end() if spaces else self._at
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def take(self, character: str) -> None:
        """Go past a character that must come next."""
        if self.peek() != character:
            self._fail(f"'{character}' is missing", self._at)
        self._at += 1

    def opens_objects(self) -> bool:
        """True where the array that comes next has an object as its first value."""
        while not (rest := self._text[self._at + 1 :].lstrip(_SPACE)) and self._more():
            pass
        return rest.startswith("{")

    def value(self) -> tuple[Any, str]:
        self.peek()
        while True:
            try:
                value, end, fault = self._decoder.decode(self._text, self._at)
            except RecursionError:
                self._fail(_TOO_DEEP, self._at)
            except json.JSONDecodeError as error:
                place = self._let_go + error.pos
                cut = error.msg.startswith("Unterminated string") or len(self._text) - error.pos < _TAIL
                if not cut or not self._more():
                    self._fail(error.msg, place - self._let_go)
                continue
            whole, length = end < len(self._text), end - self._at
            if whole or not self._more():  # a number at the end of what was read may go on
                self._at += length
                return value, fault

    def _more(self) -> bool:
        """Read on; false at the end."""
        if len(self._text) - self._at > MAX_ROW:
            self._fail(f"a value {too_long()}", self._at)
        piece = self._stream.read(max(_CHUNK, len(self._text) - self._at))
        self._let_go += self._at
        self._text, self._at = self._text[self._at :] + piece, 0
        return bool(piece)

    def _fail(self, what: str, at: int) -> NoReturn:
        raise DataError(f"{self.file} is not valid JSON at character {self._let_go + at + 1:,}: {what}")
