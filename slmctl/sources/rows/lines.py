"""The text of a file: unpacked, decoded and cut into lines, with memory for one line of a bounded length."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from slmctl.errors import DataError
from slmctl.sources.rows.cells import MAX_ROW

GZIP = b"\x1f\x8b"
MAX_RATIO = 250  # gzip reaches 1032 on zeros and seldom 50 on texts
UNPACKED_ANYWAY = 64 << 20  # bytes that any packed file may become
_PIECE = 1 << 16  # characters a read, where a line that is too long is passed over
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """The text of a file, gzip undone, by its byte order mark or as UTF-8; line ends are left as they are.

    Raises:
        DataError: It is not a text in a known encoding, or gzip that is damaged or grows without bound.
    """
    with path.open("rb") as raw:
        packed = raw.read(2) == GZIP
        raw.seek(0)
        if path.suffix.lower() == ".gz" and not packed:
            raise DataError(f"{path.name} is not a gzip file", hint="rename it if it is not packed")
        source: io.BufferedReader = io.BufferedReader(_Unpacked(raw, path)) if packed else raw
        head = source.peek(4)[:4]
        encoding = next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")
        if head.startswith(codecs.BOM_UTF8):
            source.read(len(codecs.BOM_UTF8))
        elif encoding == "utf-8" and b"\0" in head[:2]:
            raise DataError(
                f"{path.name} is not UTF-8: it looks like UTF-16 without a byte order mark",
                hint=_iconv(path, "UTF-16BE" if head[:1] == b"\0" else "UTF-16LE"),
            )
        try:
            yield io.TextIOWrapper(source, encoding, newline="")
        except UnicodeDecodeError as error:
            if encoding != "utf-8":
                raise DataError(
                    f"{path.name} begins with the mark of {encoding.upper()}, and is not: {error.reason}",
                    hint="was it cut, or joined from files of two encodings?",
                ) from None
            raise DataError(f"{path.name} is not UTF-8{_where(path)}", hint=_iconv(path, "LATIN1")) from None


def lines(stream: TextIO) -> Iterator[str | None]:
    """The lines of a text with their ends; None stands for one that is too long.

    Only CR, LF and CR LF end a line. Where CSV is written across lines, it is put together again by its reader.
    """
    while line := stream.readline(MAX_ROW + 1):
        if len(line) <= MAX_ROW:
            yield line
            continue
        while line and line[-1] not in "\r\n":
            line = stream.readline(_PIECE)
        yield None


class _Unpacked(io.RawIOBase):
    """The content of a gzip file, up to a bound that no real text reaches."""

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
            raise DataError(f"{self._name} is a damaged gzip file: {error}", hint=f"gzip --test {self._name}") from None
        self._left -= len(piece)
        if self._left < 0:
            raise DataError(
                f"{self._name} unpacks to more than {MAX_RATIO} times its size, as a gzip bomb does",
                hint=f"gunzip {self._name} yourself if it is right",
            )
        buffer[: len(piece)] = piece
        return len(piece)


def _where(path: Path) -> str:
    """`: line 17 holds the byte 0xe4`, by a second reading of a file that is not UTF-8."""
    decoder, seen = codecs.getincrementaldecoder("utf-8")(), 0
    with path.open("rb") as raw:
        if raw.read(2) == GZIP:
            return ""
        raw.seek(0)
        for line in iter(lambda: raw.readline(_PIECE), b""):
            try:
                decoder.decode(line)
            except UnicodeDecodeError as error:
                return f": line {seen + 1} holds the byte 0x{error.object[error.start]:02x}"
            seen += line.endswith(b"\n")
    return ": it ends inside a character"


def _iconv(path: Path, encoding: str) -> str:
    name, _, packed = path.name.partition(".gz")
    target = f"utf8{Path(name).suffix}"
    if packed or path.suffix == ".gz":
        return f"zcat '{path.name}' | iconv -f {encoding} -t UTF-8 > {target}"
    return f"iconv -f {encoding} -t UTF-8 '{path.name}' > {target}"
