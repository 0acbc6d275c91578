"""Rows of JSONL or of a JSON array, read strictly: a value that the
JSON standard forbids is a fault.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn, TextIO

from slmctl.artifacts.bounded_json import is_deeper
from slmctl.errors import DataError
from slmctl.sources.rows.cells import FAULT, MAX_DEPTH, MAX_ROW, Row, listed, too_long
from slmctl.sources.rows.lines import lines

MAX_DIGITS = 1000  # of a whole number; Python itself refuses to read more than 4,300
_CHUNK = 1 << 18  # characters
# characters; an error this close to the end of a chunk may be a token that is cut in two
_TAIL = 16
_SPACE = " \t\r\n"
_SPACES = re.compile(f"[{_SPACE}]*")


def line_rows(stream: TextIO) -> Iterator[Row]:
    """The rows of JSONL, numbered by line; blank lines are skipped."""
    decoder = _Decoder()
    for number, line in enumerate(lines(stream), 1):
        if line is None:
            yield Row(number, {}, too_long())
        elif text := line.strip(_SPACE):
            yield decoder.row(number, text)


def array_rows(stream: TextIO, file: str, *, key: str | None = None) -> Iterator[Row]:
    """The objects of an array, numbered from 1: the file's array, or the array `key` (or the only
    one) of its object.

    Raises:
        DataError: The file is not JSON, or holds no such array, or several; raised after the rows
            before the fault.
    """
    window = _Window(stream, file)
    start = window.peek()
    if start == "[" and key is None:
        yield from _items(window)
    elif start == "{":
        yield from _items_inside(window, key)
    elif start:
        what = "array of objects" if key is None else f"object with an array '{key}'"
        raise DataError(
            f"{file} holds no {what}",
            hint="a .json file is one array of objects, or an object with one",
        )
    if window.peek():
        raise DataError(
            f"{file} goes on after the end of its array", hint="one object a line is .jsonl"
        )


def is_lines(stream: TextIO) -> bool:
    """True for JSONL, whatever the file's name: the first two lines decide."""
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
    listed = window.peek() == "["  # the first row decides: arrays or objects
    while window.peek() != "]":
        if number:
            window.take(",")
        number += 1
        yield _row(number, *window.value(), listed=listed)
    window.take("]")


def _items_inside(window: _Window, key: str | None) -> Iterator[Row]:
    """The rows of the array `key` in an object, or of its only array
    of objects; other keys are skipped.
    """
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
                raise DataError(
                    f"{window.file} holds several arrays: {listed(names)}",
                    hint=f"sheet: {names[0]}",
                )
            yield from _items(window)
        else:
            for _ in _items(window):
                pass  # item by item, since an array may exceed the limit of a value
    window.take("}")
    if not names:
        what = "without an array of objects" if key is None else f"without an array '{key}'"
        raise DataError(f"{window.file} is an object {what}", hint="one object a line is .jsonl")


class Decoded(NamedTuple):
    """A value, the index after it, and what is wrong with it or ''."""

    value: Any
    end: int
    fault: str


class _Decoder:
    """A strict JSON decoder: no NaN, no infinity, no key twice, no lone surrogate.

    It decodes on after a fault, so the end of every value is known.
    """

    def __init__(self) -> None:
        self._fault = ""
        self._json = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_float=self._float,
            parse_int=self._int,
            parse_constant=self._constant,
        )

    def decode(self, text: str, at: int = 0) -> Decoded:
        """The value at a place of a text.

        Raises:
            JSONDecodeError: The syntax is wrong, or the text ends too early.
            RecursionError: The value is nested too deep for Python's decoder.
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
        return Decoded(value, end, self._fault)

    def row(self, number: int, text: str) -> Row:
        try:
            read = self.decode(text)
        except RecursionError:
            return Row(number, {}, f"not valid JSON: {_TOO_DEEP}")
        except json.JSONDecodeError as error:
            return Row(number, {}, f"not valid JSON: {error.msg} at character {error.pos + 1}")
        extra = "" if read.end == len(text) else f"Extra data at character {read.end + 1}"
        return _row(number, read.value, read.fault or extra)

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
    """A value as a row; with `listed` an array is a row too,
    with the columns "1", "2" and so on.
    """
    if fault:
        return Row(number, {}, f"not valid JSON: {fault}")
    if listed and isinstance(value, list) and value:
        return Row(number, {str(place): inner for place, inner in enumerate(value, 1)})
    if not isinstance(value, dict):
        return Row(number, {}, "not a JSON object")
    return Row(number, value, str(value.pop(FAULT, "")))


class _Window:
    """A reader of JSON text of any length, which holds only the part that is being read."""

    def __init__(self, stream: TextIO, file: str) -> None:
        self.file = file
        self._stream = stream
        self._text = ""
        self._at = 0
        self._decoder = _Decoder()
        self._let_go = 0  # number of characters before `_text`, which are no longer held

    def peek(self) -> str:
        """The next character that is not white space, without taking it; '' at the end."""
        while True:
            spaces = _SPACES.match(self._text, self._at)
            self._at = spaces.end() if spaces else self._at
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def take(self, character: str) -> None:
        """Take `character`; raises DataError if another one comes next."""
        if self.peek() != character:
            self._fail(f"'{character}' is missing", self._at)
        self._at += 1

    def opens_objects(self) -> bool:
        """True if the next array has an object as its first value."""
        while not (rest := self._text[self._at + 1 :].lstrip(_SPACE)) and self._more():
            pass
        return rest.startswith("{")

    def value(self) -> tuple[Any, str]:
        self.peek()
        while True:
            try:
                read = self._decoder.decode(self._text, self._at)
            except RecursionError:
                self._fail(_TOO_DEEP, self._at)
            except json.JSONDecodeError as error:
                place = self._let_go + error.pos
                cut = (
                    error.msg.startswith("Unterminated string")
                    or len(self._text) - error.pos < _TAIL
                )
                if not cut or not self._more():
                    self._fail(error.msg, place - self._let_go)
                continue
            whole, length = read.end < len(self._text), read.end - self._at
            # a number at the end of the text read so far may continue
            if whole or not self._more():
                self._at += length
                return read.value, read.fault

    def _more(self) -> bool:
        """Read another piece; False at the end."""
        if len(self._text) - self._at > MAX_ROW:
            self._fail(f"a value {too_long()}", self._at)
        piece = self._stream.read(max(_CHUNK, len(self._text) - self._at))
        self._let_go += self._at
        self._text, self._at = self._text[self._at :] + piece, 0
        return bool(piece)

    def _fail(self, what: str, at: int) -> NoReturn:
        raise DataError(
            f"{self.file} is not valid JSON at character {self._let_go + at + 1:,}: {what}"
        )
