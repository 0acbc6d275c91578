"""The encoding of a text file: by its byte order mark, or by what decodes and reads as text.

A bounded sample decides: the whole of a small file, of a larger one its start, its end and pieces between. Without a
mark, NUL bytes beside every other one show UTF-16; what decodes as UTF-8 is UTF-8; what else reads as a western
language is CP1252, which has all letters of latin-1. Bytes 0x80 to 0x9f are CP1252, never the control characters that
latin-1 has there. A guess between encodings of one byte a character is never certain, and said to be a guess.
Of 112 short CP1252 files, charset-normalizer read 59 right, and this all of them.
"""

from __future__ import annotations

import codecs
import io
import itertools
import re
import string
import unicodedata
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

SAMPLE = 1 << 20  # bytes at the start and at the end of a file
PIECES, PIECE = 31, 1 << 15  # between them, and the bytes of each
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_MORE = (
    "cp1250", "cp1251", "cp1253", "cp1254", "cp850", "mac_roman", "koi8-r", "shift_jis", "euc_jp", "euc_kr", "gb18030",
    "big5",
)  # fmt: skip
_WORDS = 1 << 14  # characters among which words are looked for
_OTHERS = ("idna", "punycode", "unicode-escape", "raw-unicode-escape", "utf-7", "undefined", "charmap")
_LATIN1 = ("iso8859-1", "ascii")  # read as CP1252, which has their characters and more: as browsers do

# What no western text holds often: a symbol inside a word, a capital after a small letter, three letters beyond ASCII.
_ODD = re.compile(
    r"(?<=[A-Za-zÀ-ÖØ-öø-ÿ])[¡-©«¬®-±²-³µ¶¸-¿×÷†‡ˆ‰‹›•˜™„“”‚ƒ](?=[a-zß-öø-ÿ])"
    r"|(?<=[a-zß-öø-ÿ])[À-ÖØ-ÞŠŒŽŸ]"
    r"|[À-ÖØ-öø-ÿŠŒŽšœžŸ]{3,}"
)
_BEYOND_ASCII = re.compile(r"[^\s,;\"\x00-\x1f\x7f]*[^\x00-\x7f][^\s,;\"\x00-\x1f\x7f]*")  # a word with such a letter
_EDGES = string.punctuation + "„“”‚‘’«»‹›–—…¿¡"  # what stands before and after words
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x19\x1b-\x1f\x7f]")  # 0x1a ends files of DOS


class Encoding(NamedTuple):
    """The encoding of a text: Python's name for it, false where it is a guess, and the mark that it begins with."""

    name: str
    certain: bool = True
    mark: bytes = b""

    @property
    def title(self) -> str:
        """The name as people write it: `UTF-8`, `UTF-16`, `CP1252`."""
        return re.sub(r"^(UTF-(?:16|32))-[LB]E$", r"\1", self.name.upper().replace("_", "-"))


def known(name: str) -> str | None:
    """Python's name of an encoding of text; None for one that it does not know, or that is no plain encoding."""
    try:
        codec = codecs.lookup(name)
        io.TextIOWrapper(io.BytesIO(), codec.name)
    except (LookupError, ValueError, TypeError):
        return None
    if codec.name.replace("_", "-") in _OTHERS:
        return None
    return "cp1252" if codec.name in _LATIN1 else "utf-8" if codec.name == "utf-8-sig" else codec.name


def named(name: str, head: bytes) -> Encoding:
    """The encoding that a config names (see `known`), with the mark that a file in it begins with."""
    for mark, marked in _MARKS:
        if head.startswith(mark) and marked in (name, f"{name}-le", f"{name}-be"):
            return Encoding(marked, True, mark)
    return Encoding({"utf-16": "utf-16-le", "utf-32": "utf-32-le"}.get(name, name))


def recognise(sample: Sequence[bytes]) -> Encoding | None:
    """The encoding of a text of which these pieces are known, the first of them its start.

    None where it is no text, or in no encoding that can be told from others.
    """
    head = sample[0] if sample else b""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return Encoding(name, True, mark)
    if wide := _utf16(head):
        return Encoding(wide)
    characters, broken = _beyond_ascii(sample)
    if not broken:
        return Encoding("utf-8")
    if characters >= broken:  # text in UTF-8 with damage, or with lines in another encoding
        return Encoding("utf-8")
    return Encoding("cp1252", certain=False) if _is_western(sample) else None


def others(head: bytes) -> Iterator[tuple[str, str]]:
    """Encodings in which the start of a text reads as text, each with a few words as it has them."""
    for name in _MORE:
        text = codecs.getincrementaldecoder(name)("replace").decode(head)
        words = [word for word in _BEYOND_ASCII.findall(text[:_WORDS]) if not word.isspace()]
        if words and sum(map(_is_odd, words)) * 10 <= len(words):
            yield name, " ".join(word.strip("\"';,") for word in words[:3])[:40]


def _is_odd(word: str) -> bool:
    """True for a word of two scripts, with a symbol inside or with a capital after a small letter."""
    inner = word.strip(_EDGES)
    if "\ufffd" in word or any(unicodedata.category(char) in ("Cc", "Cn", "Co") for char in word):
        return True
    if any(ord(char) > 127 and unicodedata.category(char)[0] in "SPN" and char not in "’‘´`–—·" for char in inner):
        return True
    if any(before.islower() and after.isupper() for before, after in itertools.pairwise(inner)):
        return True
    letters = {unicodedata.name(char, "?").partition(" ")[0] for char in inner if char.isalpha()}
    return len(letters) > 1 and not letters <= {"CJK", "HIRAGANA", "KATAKANA", "HALFWIDTH"}


def sampled(stream: BinaryIO, size: int | None) -> list[bytes]:
    """Pieces of a file by which its encoding is told. Where it has no size, it is packed: its start."""
    if size is None:
        return [stream.read(2 * SAMPLE)]
    if size <= 2 * SAMPLE + PIECES * PIECE:
        return [stream.read(size)]
    pieces = [stream.read(SAMPLE)]
    step = (size - 2 * SAMPLE) // (PIECES + 1)
    for place in [*range(SAMPLE + step, size - SAMPLE - PIECE, step), size - SAMPLE]:
        stream.seek(place)
        pieces.append(stream.read(SAMPLE if place == size - SAMPLE else PIECE))
    return pieces


def _utf16(head: bytes) -> str:
    """The name of UTF-16 without a mark; empty where NUL bytes do not show it.

    Delimiters, line ends and western letters have a NUL in the same half of each unit.
    """
    even, odd = head[::2].count(0), head[1::2].count(0)
    few, many = sorted((even, odd))
    if not many or many * 20 < len(head) or few * 20 > many:
        return ""
    if many * 3 < len(head) and not _beyond_ascii([head])[1]:
        return ""  # UTF-8 with NUL bytes in it
    name = "utf-16-le" if odd > even else "utf-16-be"
    try:
        text = codecs.getincrementaldecoder(name)().decode(head)
    except UnicodeDecodeError:
        return ""
    return "" if _CONTROL.search(text) else name


def _beyond_ascii(sample: Sequence[bytes]) -> tuple[int, int]:
    """The number of characters beyond ASCII if this is UTF-8, and of bytes that then are none."""
    characters = broken = 0
    for k, piece in enumerate(sample):
        if piece.isascii():
            continue
        piece = re.sub(rb"\A[\x80-\xbf]{1,3}", b"", piece) if k else piece  # a character that the piece cuts
        text = piece.decode("utf-8", "surrogateescape")
        cut = re.search(r"[\udcc2-\udcf4][\udc80-\udcbf]{0,2}\Z", text)  # another one
        lone = len(re.findall(r"[\udc80-\udcff]", text))
        characters += len(text) - len(text.encode("ascii", "ignore")) - lone
        # a byte alone at the end of a file is one of CP1252, if it is not the first half of most umlauts
        is_cut = cut is not None and (k < len(sample) - 1 or characters or len(cut[0]) > 1 or cut[0] in "\udcc2\udcc3")
        broken += lone - (len(cut[0]) if cut is not None and is_cut else 0)
    return characters, broken


def _is_western(sample: Sequence[bytes]) -> bool:
    """True for what is CP1252 and reads as text: most letters are ASCII, and few others stand where none do."""
    beyond = odd = control = size = letters = 0
    for piece in sample:
        try:
            text = piece.decode("cp1252")
        except UnicodeDecodeError:
            return False
        size += len(text)
        control += len(_CONTROL.findall(text))
        beyond += len(re.findall(r"[^\x00-\x7f]", text))
        odd += sum(len(match[0]) for match in _ODD.finditer(text))
        letters += len(re.findall(r"[A-Za-z]", text))
    return control * 1000 <= size and beyond <= letters and odd * 10 <= beyond
