"""The text of a file: gzip unpacked, decoded and cut into lines, holding
one line of bounded length in memory.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from slmctl.errors import DataError, UsageError
from slmctl.sources.rows import encodings
from slmctl.sources.rows.cells import MAX_ROW
from slmctl.sources.rows.encodings import Encoding

GZIP = b"\x1f\x8b"
MAX_RATIO = 250  # gzip reaches 1032 on zeros and seldom 50 on texts
UNPACKED_ANYWAY = 64 << 20  # bytes that a packed file may unpack to, regardless of its size
_NAMES = (
    "utf-8, utf-16, cp1252, cp1250, cp1251, cp850, mac-roman, shift-jis, gb18030, or another "
    "name that Python has"
)
_PIECE = 1 << 16  # bytes or characters of a read, where a line is skipped or looked for


def encoding_of(path: Path, name: str | None = None) -> Encoding:
    """The encoding of a text file, plain or packed with gzip: `name`, or recognised from a sample.

    Raises:
        DataError: The file is not text, has no recognisable encoding, or is damaged gzip.
        UsageError: `name` is not an encoding.
    """
    with _unpacked(path) as source:
        if name is not None:
            codec = encodings.known(name)
            if codec is None:
                raise UsageError(f"'{name}' is no encoding", hint=_NAMES)
            return encodings.named(codec, source.read(4))
        size = None if isinstance(source.raw, _Unpacked) else os.fstat(source.fileno()).st_size
        sample = encodings.sampled(source, size)
    recognised = encodings.recognise(sample)
    if recognised is not None:
        return recognised
    if is_binary(sample[0]):
        raise DataError(
            f"{path.name} holds no text: it looks like a file of another kind",
            hint="has its name the right suffix? else say format: parquet, for example",
        )
    where = _where(path, Encoding("utf-8"))
    readings = [f"{name} reads '{words}'" for name, words in encodings.others(sample[0])][:3]
    hint = f"say which it is: encoding: {_NAMES}"
    if readings:
        hint = f"say which it is, encoding: NAME; {'; '.join(readings)}"
    raise DataError(f"{path.name} is neither UTF-8 nor CP1252{where}", hint=hint)


@contextlib.contextmanager
def opened(path: Path, encoding: Encoding) -> Iterator[TextIO]:
    """Yield a file, plain or packed with gzip, as a text stream without byte order mark; line ends
    are unchanged.

    Raises:
        DataError: The file is not in this encoding, or is damaged gzip, or unpacks to too much.
    """
    with _unpacked(path) as source:
        if source.peek(len(encoding.mark)).startswith(encoding.mark):
            source.read(len(encoding.mark))
        try:
            yield io.TextIOWrapper(source, encoding.name, newline="")
        except UnicodeDecodeError:
            where = _where(path, encoding)
            message = f"{path.name} is not {encoding.title}{where}"
            if "ends inside" in where:
                hint = "was it cut?"
            elif encoding.mark:
                hint = (
                    f"it begins with the mark of {encoding.title}: was it cut, or joined from "
                    "files of two encodings?"
                )
            elif encoding.name == "utf-8":
                hint = (
                    "encoding: cp1252 if all of it is; single lines of another encoding must "
                    "be corrected"
                )
            else:
                hint = f"say which it is: encoding: {_NAMES}"
            raise DataError(message, hint=hint) from None


def lines(stream: TextIO) -> Iterator[str | None]:
    """The lines of a text with their line ends; None for a line with more than MAX_ROW characters.

    Only CR, LF and CR LF end a line. A CSV row that spans lines is joined by its reader.
    """
    while line := stream.readline(MAX_ROW + 1):
        if len(line) <= MAX_ROW:
            yield line
            continue
        while line and line[-1] not in "\r\n":
            line = stream.readline(_PIECE)
        yield None


class _Unpacked(io.RawIOBase):
    """The unpacked content of a gzip file, up to MAX_RATIO times
    its size, which no real text reaches.
    """

    def __init__(self, raw: BinaryIO, path: Path) -> None:
        self._inner = gzip.GzipFile(fileobj=raw)
        self._name = path.name
        self._left = max(UNPACKED_ANYWAY, MAX_RATIO * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # the buffer protocol has no type before Python 3.12
        try:
            piece = self._inner.read(len(buffer))
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(
                f"{self._name} is a damaged gzip file: {error}", hint=f"gzip --test {self._name}"
            ) from None
        self._left -= len(piece)
        if self._left < 0:
            raise DataError(
                f"{self._name} unpacks to more than {MAX_RATIO} times its size, as a gzip bomb "
                "does",
                hint=f"gunzip {self._name} yourself if it is right",
            )
        buffer[: len(piece)] = piece
        return len(piece)


@contextlib.contextmanager
def _unpacked(path: Path) -> Iterator[io.BufferedReader]:
    with path.open("rb") as raw:
        packed = raw.read(2) == GZIP
        raw.seek(0)
        if path.suffix.lower() == ".gz" and not packed:
            raise DataError(f"{path.name} is not a gzip file", hint="rename it if it is not packed")
        yield io.BufferedReader(_Unpacked(raw, path)) if packed else raw


def _where(path: Path, encoding: Encoding) -> str:
    """The first place where a file is not in an encoding, by a second
    reading: `: line 17 holds the byte 0xe4`.
    """
    inner = codecs.getincrementaldecoder(encoding.name)()
    decoder, seen = io.IncrementalNewlineDecoder(inner, translate=True), 1
    with _unpacked(path) as source:
        source.read(len(encoding.mark))
        try:
            for piece in iter(lambda: source.read(_PIECE), b""):
                seen += decoder.decode(piece).count("\n")
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            before = error.object[: error.start].decode(encoding.name, "replace")
            seen += len(re.findall(r"\r\n|\r|\n", before))
            if error.reason == "unexpected end of data" or error.reason == "truncated data":
                return f": it ends inside a character, in line {seen}"
            return f": line {seen} holds the byte 0x{error.object[error.start]:02x}"
    return ""


def is_binary(head: bytes) -> bool:
    return b"\0" in head or sum(
        byte < 32 and byte not in b"\t\n\r\f\x1a" for byte in head[:_PIECE]
    ) * 100 > len(head)
