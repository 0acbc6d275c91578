"""Text as a reader understands it: disguises undone, every character mapped back to where it came from.

Undone: other widths, styles and scripts of letters and digits, look-alikes of Cyrillic and Greek, characters
without width, odd spaces, dashes and dots, percent, HTML and backslash escapes, inline HTML tags, `[at]` and
`(dot)`, letters with s p a c e s between them, digits as English words, text in base64 or hexadecimal. The result is
for matching, never for output.
"""

from __future__ import annotations

import base64
import binascii
import html
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

_LOOKALIKES = str.maketrans(
    "АВЕЅІЈКМНОРСТУХаеорсухіјѕһԁԛԝѵΑΒΕΖΗΙΚΜΝΟΡΤΥΧαορνıɡɑ" "·•∙⋅‧・。᛫" "−⁃˗➖ー" "∶ː꞉" "⁄∕" "‗＿" "’‘`´",
    "ABESIJKMHOPCTYXaeopcyxijshdqwvABEZHIKMNOPTYXaopviga" "........" "-----" ":::" "//" "__" "''''",
)  # fmt: skip
_FILLERS = "\u115f\u1160\u3164\uffa0\u2800"  # letters and symbols that show nothing


class _Folds(dict[int, str]):
    """What each character is read as, worked out once; a table for `str.translate`."""

    def __missing__(self, code: int) -> str:
        self[code] = result = "".join(map(_fold, unicodedata.normalize("NFKC", chr(code))))
        return result


def _fold(char: str) -> str:
    category = unicodedata.category(char)
    if category in ("Cf", "Mn", "Me") or char in _FILLERS:
        return ""
    if category in ("Zs", "Zl", "Zp", "Cc"):
        return "\n" if char in "\n\r\x85\u2028\u2029" else " " if category == "Zs" or char in "\t\v\f" else ""
    digit = unicodedata.digit(char, None)
    if digit is not None:
        return str(digit)
    return "-" if category == "Pd" else char.translate(_LOOKALIKES)


FOLDS = _Folds()


@dataclass(frozen=True)
class View:
    """A text to match in, and for each of its characters the span of the given text that it stands for."""

    text: str
    starts: Sequence[int]
    ends: Sequence[int]

    def origin(self, start: int, end: int) -> tuple[int, int]:
        """The span of the given text that `text[start:end]` stands for."""
        return self.starts[start], self.ends[end - 1]

    def rewrite(self, pattern: re.Pattern[str], put: Callable[[re.Match[str]], str]) -> View:
        """This view with every match replaced; what is put stands for the whole match."""
        pieces: list[str] = []
        starts: list[int] = []
        ends: list[int] = []
        done = 0
        for match in pattern.finditer(self.text):
            start, end = match.span()
            new = put(match)
            pieces += [self.text[done:start], new]
            starts += [*self.starts[done:start], *[self.starts[start]] * len(new)]
            ends += [*self.ends[done:start], *[self.ends[end - 1]] * len(new)]
            done = end
        if not pieces:
            return self
        return View("".join([*pieces, self.text[done:]]), [*starts, *self.starts[done:]], [*ends, *self.ends[done:]])


_ESCAPE = re.compile(
    r"%[0-7][0-9a-f]|(?:%[89a-f][0-9a-f]){1,4}|&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z]{2,9});|\\(?:u[0-9a-f]{4}|x[0-9a-f]{2}|[nrt_.@+*#()\[\]-])",
    re.IGNORECASE,
)
_INLINE_TAG = re.compile(
    r"</?(?:b|i|u|em|strong|span|code|wbr|font|sup|sub|small|mark|tt|a)(?:\s[^<>]{0,200})?/?>", re.IGNORECASE
)
_BLOCK_TAG = re.compile(r"</?(?:br|p|div|pre|td|tr|th|li)(?:\s[^<>]{0,200})?/?>", re.IGNORECASE)
_AT = re.compile(r"\s{0,2}[\[({<]\s?(?:at|@|ät|arroba)\s?[\])}>]\s{0,2}", re.IGNORECASE)
_DOT = re.compile(r"\s{0,2}[\[({<]\s?(?:dot|punkt|point|punto|\.)\s?[\])}>]\s{0,2}", re.IGNORECASE)
_BRACKET = re.compile(r"[\[({<]\s?[aäp@d.]", re.IGNORECASE)
_SAID_DOT = re.compile(r"\d ?[dp]", re.IGNORECASE)
_DOT_OF_DIGITS = re.compile(r"(?<=\d) ?(?:dot|punkt|point) ?(?=\d)", re.IGNORECASE)
_LONE = re.compile(r" \S {1,2}\S {1,2}\S ")
_SPACED = re.compile(r"(?<!\S)(?:\S {1,2}){5,}\S(?!\S)")
_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_DIGITS = {name: str(digit) for digit, name in enumerate(_NAMES)} | {"oh": "0", "nought": "0", "null": "0"}
_DIGIT = rf"(?:(?:double|triple) )?(?:{'|'.join(_DIGITS)}|\d)"
_PAUSE = "(?:[ ,.()/-]{1,4}| (?:dot|punkt|point) )"
_DIGIT_WORDS = re.compile(rf"\b{_DIGIT}(?:{_PAUSE}{_DIGIT}){{3,}}\b", re.IGNORECASE)
_TELLING = "(?:zero|one|two|three|four|five|six|seven|eight|nine|null)"
TWO_NUMBERS = re.compile(rf"{_TELLING}{_PAUSE}(?:double |triple )?(?:{_TELLING}|oh|nought|\d)")
_DIGIT_WORD = re.compile(rf"(?:(double|triple) )?({'|'.join(_DIGITS)}|\d)", re.IGNORECASE)


_URL_SAFE = str.maketrans("-_", "+/")
_ENCODED = re.compile(r"[A-Za-z0-9+/_-]{11,}={1,2}|[A-Za-z0-9+/_-]{16,}")


def views(text: str) -> list[View]:
    """The ways to read a text: with disguises undone, and, where it spells something out, put together as well."""
    plain = _plain(text)
    result = [plain]
    if TWO_NUMBERS.search(plain.text.lower()):
        said = plain.rewrite(_DIGIT_WORDS, lambda match: _DIGIT_WORD.sub(_digits, match[0]))
        result.append(said.rewrite(_DOT_OF_DIGITS, lambda _: " . "))
    if is_encoded(plain.text):
        result.append(plain.rewrite(_ENCODED, lambda match: _decoded(match[0]).translate(FOLDS) or match[0]))
    together = [view for view in result if _LONE.search(view.text)]
    result += [view.rewrite(_SPACED, lambda match: match[0].replace(" ", "")) for view in together]
    return [view for view in result if view is plain or view.text != plain.text]


def is_encoded(text: str) -> bool:
    """Whether a text holds another one in base64 or hexadecimal."""
    return any(_decoded(run) for run in _ENCODED.findall(text))


def _decoded(run: str) -> str:
    """The text that a run of letters and digits stands for; empty where it is none, as nearly any word is."""
    run = run.rstrip("=")
    if run.isalpha() and (run.islower() or run.istitle()):
        return ""
    try:
        raw = bytes.fromhex(run)
    except ValueError:
        try:
            raw = base64.b64decode(run.translate(_URL_SAFE) + "=" * (-len(run) % 4), validate=True)
        except binascii.Error:
            return ""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return ""
    return text if all(char.isprintable() or char in "\r\n\t" for char in text) else ""


def _plain(text: str) -> View:
    view = View(text, range(len(text)), range(1, len(text) + 1))
    if not text.isascii() or not text.isprintable():
        view = _folded(text)
    for _ in range(2) if "%" in text or "&" in text or "\\" in text else ():  # %2540 is an escaped escape
        view = view.rewrite(_ESCAPE, _unescape)
    if "<" in view.text:
        view = view.rewrite(_INLINE_TAG, lambda _: "").rewrite(_BLOCK_TAG, lambda _: "\n")
    if _BRACKET.search(view.text):
        view = view.rewrite(_AT, lambda _: "@").rewrite(_DOT, lambda _: ".")
    return view.rewrite(_DOT_OF_DIGITS, lambda _: ".") if _SAID_DOT.search(view.text) else view


def _folded(text: str) -> View:
    pieces, starts, ends = [], [], []
    for index, char in enumerate(text):
        piece = FOLDS[ord(char)]
        pieces.append(piece)
        starts += [index] * len(piece)
        ends += [index + 1] * len(piece)
        if not piece and ends:
            ends[-1] = index + 1  # what has no width belongs to the character before it
    return View("".join(pieces), starts, ends)


def _unescape(match: re.Match[str]) -> str:
    escape = match[0]
    if escape[0] == "%":
        plain = unquote(escape, errors="replace")
    elif escape[0] == "&":
        plain = html.unescape(escape)
    elif len(escape) == 2:
        plain = {"n": "\n", "r": "\n", "t": " "}.get(escape[1], escape[1])
    else:
        plain = chr(int(escape[2:], 16))
    return plain.translate(FOLDS)


def _digits(match: re.Match[str]) -> str:
    digit = _DIGITS.get(match[2].lower(), match[2])
    return " ".join([digit] * {"double": 2, "triple": 3}.get((match[1] or "").lower(), 1))
