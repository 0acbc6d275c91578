"""Undoes disguises of a text for matching, and maps every character back to its place in the
original.

Undone: other widths, styles and scripts of letters and digits, look-alikes of Cyrillic and Greek,
zero-width characters, odd spaces, dashes and dots, percent, HTML, backslash and quoted-printable
escapes, HTML tags and comments, `[at]` and `(dot)`, letters with s p a c e s between them, digits
as English words, and text as base64 (also twice, and in lines), base32, hexadecimal, binary or
decimal codes. The result is for matching, never for output.

Time and memory are linear in the text: a fixed number of passes, each over a view of at most a few
times its length.
"""

from __future__ import annotations

import base64
import html
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from slmctl.sensitive.rules import AT_WORDS, digit_count

_LOOKALIKES = str.maketrans(
    "АВЕЅІЈКМНОРСТУХаеорсухіјѕһԁԛԝѵΑΒΕΖΗΙΚΜΝΟΡΤΥΧαορνıɡɑ·•∙⋅‧・。᛫−⁃˗➖ー∶ː꞉⁄∕‗＿’‘`´“”„‟",
    "ABESIJKMHOPCTYXaeopcyxijshdqwvABEZHIKMNOPTYXaopviga........-----::://__''''\"\"\"\"",
)
_FILLERS = "\u115f\u1160\u3164\uffa0\u2800"  # invisible letters and symbols
# Letters without a simpler form in Unicode: (first code, last code, plain letter of the first).
_LETTERS = ((0x1F150, 0x1F169, "A"), (0x1F170, 0x1F189, "A"), (0xE0020, 0xE007E, " "))


class _Folds(dict[int, str]):
    """The plain form of each character, computed once; a table for `str.translate`."""

    def __missing__(self, code: int) -> str:
        letter = next(
            (
                chr(ord(char) + code - first)
                for first, last, char in _LETTERS
                if first <= code <= last
            ),
            "",
        )
        self[code] = result = letter or "".join(
            map(_fold, unicodedata.normalize("NFKC", chr(code)))
        )
        return result


def _fold(char: str) -> str:
    category = unicodedata.category(char)
    if category in ("Cf", "Mn", "Me") or char in _FILLERS:
        return ""
    if category in ("Zs", "Zl", "Zp", "Cc"):
        return (
            "\n"
            if char in "\n\r\x85\u2028\u2029"
            else " "
            if category == "Zs" or char in "\t\v\f"
            else ""
        )
    digit = unicodedata.digit(char, None)
    if digit is not None:
        return str(digit)
    return "-" if category == "Pd" else char.translate(_LOOKALIKES)


FOLDS = _Folds()


@dataclass(frozen=True)
class View:
    """A text for matching; `starts` and `ends` give the span in the
    original text of each of its characters.
    """

    text: str
    starts: Sequence[int]
    ends: Sequence[int]

    def origin(self, start: int, end: int) -> tuple[int, int]:
        """The (start, end) in the original text of `text[start:end]`."""
        return self.starts[start], self.ends[end - 1]

    def rewrite(self, pattern: re.Pattern[str], put: Callable[[re.Match[str]], str]) -> View:
        """This view with every match replaced; each character of a
        replacement maps to the whole match.
        """
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
        return View(
            "".join([*pieces, self.text[done:]]),
            [*starts, *self.starts[done:]],
            [*ends, *self.ends[done:]],
        )


_ESCAPE = re.compile(
    r"%[0-7][0-9a-f]|(?:%[89a-f][0-9a-f]){1,4}|%u[0-9a-f]{4}|&(?:#\d{1,7}+;?|#x[0-9a-f]{1,6}+;?|[a-z]{2,9}+;)"
    # a surrogate pair, as JSON escapes it
    r"|\\{1,4}+ud[89ab][0-9a-f]{2}\\{1,4}+ud[c-f][0-9a-f]{2}"
    r"|(?-i:\\{1,4}+U[0-9A-Fa-f]{8})|\\{1,4}+(?:u[0-9a-f]{4}|u\{[0-9a-f]{1,6}+\}|x[0-9a-f]{2}|x\{[0-9a-f]{1,6}+\}|[01][0-7]{2}"
    r"|[nrt_.@+*#()\[\]\"'/:= -])"
    r"|(?<!\w)u\+[0-9a-f]{4,6}+(?!\w) ?",
    re.IGNORECASE,
)
_CSS_ESCAPE = re.compile(r"\\(?:00)?(?:00)?([2-7][0-9a-f])(?: |(?=\\)|(?![0-9a-f]))", re.IGNORECASE)
_ESCAPING = re.compile(r"[%&\\]|[uU]\+[0-9a-fA-F]")
_COMMENT = re.compile(r"<!--[^<>]{0,200}+>|<!\[CDATA\[|\]\]>")
_INLINE_TAG = re.compile(
    r"</?(?>b|i|u|em|strong|span|code|wbr|font|sup|sub|small|mark|tt|a)(?:\s[^<>]{0,200}+)?+/?>",
    re.IGNORECASE,
)
_BLOCK_TAG = re.compile(r"</?(?>br|pre|p|div|td|tr|th|li)(?:\s[^<>]{0,200}+)?+/?>", re.IGNORECASE)
_TAG = re.compile(r"</?(?P<name>[a-z][\w:-]{0,40}+)(?:\s[^<>@]{0,200}+)?+>", re.IGNORECASE)
_PLUS = re.compile(r"(?<=\w)\+(?=\w)")  # a space in URL-encoded form data
# **bold** **parts**, quoted lines
_MARKUP = re.compile(r"(?<=\w)(?:[*`]{1,3}+ [*`]{1,3}+|\n>{1,3}+ ?)(?=[\w+(])")
# concatenated strings of a program: 'DE89 3704' || '0044', or "DE89 3704" "0044"
_JOINED = re.compile(r"['\"](?:\s{0,2}+(?:\|\||\.\.|<>|[+.&~\\])\s{0,2}+|\s{1,3}+)['\"]")
_SAID_PLUS = re.compile(r"\bplus (?=\d)", re.IGNORECASE)
_WORD_GAP = r"[ ,.()]{1,2}+[^\W\d_]{1,12}+[ ,.()]{1,2}+"  # 4111 and 1111 and …, a) 4111 b) 1111 …
_GROUPS_IN_WORDS = re.compile(
    rf"\d{{2,4}}+(?:{_WORD_GAP}\d{{4}}){{3,6}}(?:{_WORD_GAP}\d{{1,4}})?(?!\d)"
)
_BETWEEN_GROUPS = re.compile(r"\D{3,16}")
_NUMBERING = re.compile(r"\n {0,8}+\d{1,2}[.)]\s")
_CODE_COMMENT = re.compile(r"/\*[^*/]{0,200}+\*/")
_PART = r"['\"](?:.|[^'\"\s]{2,4})['\"]"
_LISTED = re.compile(rf"{_PART}(?:, {{0,2}}+{_PART}){{3,}}")  # ['a', 'b'], or '4111', '1111'
_LISTED_PART = re.compile(r"['\"](.|[^'\"\s]{2,4})['\"](?:, {0,2}+)?")
_AT_SIGN = rf"[\[({{<|]\s?(?:at|@|{AT_WORDS})\s?[\])}}>|]"
_DOT_SIGN = r"[\[({<|]\s?(?:dot|punkt|point|punto|\.)\s?[\])}>|]"
_AT = re.compile(rf"\s{{0,2}}+{_AT_SIGN}\s{{0,2}}+|(?<=\w)\(a\)(?=[\w-]{{1,63}}+\.)", re.IGNORECASE)
_DOT = re.compile(rf"\s{{0,2}}+{_DOT_SIGN}\s{{0,2}}+", re.IGNORECASE)
BRACKETED = re.compile(rf"{_AT_SIGN}|{_DOT_SIGN}|\(a\)")  # all that these match, in lower case
_BRACKET = re.compile(r"[\[({<|]\s?[aäkp@d.]", re.IGNORECASE)
_SAID_DOT = re.compile(r"\d[ _-]?[dp]", re.IGNORECASE)
_DOT_OF_DIGITS = re.compile(r"(?<=\d)[ _-]?(?:dot|punkt|point)[ _-]?(?=\d)", re.IGNORECASE)
_LONE = re.compile(r" \S {1,2}+\S {1,2}+\S ")
_SPACED = re.compile(r"(?<!\S)(?:\S {1,2}+){5,400}\S(?!\S)")
_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_DIGITS = {name: str(digit) for digit, name in enumerate(_NAMES)} | {
    "oh": "0",
    "nought": "0",
    "null": "0",
}
_DIGIT = rf"(?>(?:(?:double|triple) )?(?:{'|'.join(_DIGITS)}|\d))(?!\w)"
_PAUSE = "(?> (?:dot|punkt|point) |[ ,.()/-]{1,4})"
_DIGIT_WORDS = re.compile(rf"\b{_DIGIT}(?:{_PAUSE}{_DIGIT}){{2,}}", re.IGNORECASE)
_TELLING = "(?>zero|one|two|three|four|five|six|seven|eight|nine|null)"
TWO_NUMBERS = re.compile(rf"{_TELLING}{_PAUSE}(?:double |triple )?+(?>{_TELLING}|oh|nought|\d)")
_DIGIT_WORD = re.compile(rf"(?:(double|triple) )?({'|'.join(_DIGITS)}|\d)", re.IGNORECASE)

_URL_SAFE = str.maketrans("-_", "+/")
_ENCODED = re.compile(r"[A-Za-z0-9+/_-]{11,}+={0,6}+")
_SHORTEST = 16  # characters of an encoded text without padding; shorter ones are words
# base64 in lines, as e-mail has it
_WRAPPED = re.compile(r"(?<=[A-Za-z0-9+/]{60})\n{1,2}(?=[A-Za-z0-9+/=])")
_QUOTED = re.compile(r"=(?:([2-7][0-9A-F])|\n)")  # quoted-printable


def _of_codes(code: str, number_base: int) -> Callable[[re.Match[str]], str]:
    """A replacement function that decodes a match of character codes;
    unprintable characters become spaces.
    """
    pattern = re.compile(code, re.IGNORECASE)

    def characters(match: re.Match[str]) -> str:
        before = match.string[max(0, match.start() - 1) : match.start()]
        after = match.string[match.end() : match.end() + 1]
        if before.isalnum() or after.isalnum():
            return match[0]  # part of a longer word
        numbers = (int(number, number_base) for number in pattern.findall(match[0]))
        return "".join(chr(number) if 32 <= number < 127 else " " for number in numbers)

    return characters


_CODES = (  # sequences of character codes: hexadecimal, binary, decimal, octal
    (
        re.compile(
            r"(?:0x|\\x)?+[2-7][0-9a-f](?:[ ,:-]{0,2}+(?:0x|\\x)?+[2-7][0-9a-f]){7,}", re.IGNORECASE
        ),
        _of_codes("[2-7][0-9a-f]", 16),
    ),
    (re.compile(r"(?<!\w)[01]{8}(?:[ ,]{0,2}+[01]{8}){7,}"), _of_codes("[01]{8}", 2)),
    (
        re.compile(r"(?<![\w.,])\d{2,3}+(?:[ ,;]{1,2}+\d{2,3}+(?![\w.])){7,}"),
        _of_codes(r"\d{2,3}+", 10),
    ),
    (
        re.compile(r"\bcha?r\(\d{2,3}+\)(?:[ .+&|]{1,4}+cha?r\(\d{2,3}+\)){3,}", re.IGNORECASE),
        _of_codes(r"\d{2,3}+", 10),
    ),
    (
        re.compile(r"(?<!\w)0?[01][0-7]{2}(?:[ ,;]{1,2}+0?[01][0-7]{2}(?!\w)){7,}"),
        _of_codes(r"\d{3,4}+", 8),
    ),
)


def views(text: str) -> list[View]:
    """The views of a text to search: disguises undone, as written, and
    with spelled-out parts joined or decoded.
    """
    folded = _folded(text)
    plain = _undisguised(folded)
    result = [plain] if folded is plain else [plain, folded]
    low = plain.text.lower()
    if TWO_NUMBERS.search(low):
        digits = plain.rewrite(_DIGIT_WORDS, lambda match: _DIGIT_WORD.sub(_digits, match[0]))
        result.append(digits.rewrite(_DOT_OF_DIGITS, lambda _: " . "))
    if "plus " in low:
        result += [
            view.rewrite(_SAID_PLUS, lambda _: "+")
            for view in result[-2:]
            if _SAID_PLUS.search(view.text)
        ]
    result += _decoded_views(plain)
    if "<" in plain.text:
        result.append(_without_tags(plain))
    for pattern, put in (
        (_PLUS, " "),
        (_MARKUP, " "),
        (_JOINED, ""),
        (_CODE_COMMENT, ""),
        (_NUMBERING, "\n"),
    ):
        if pattern.search(plain.text):
            result.append(plain.rewrite(pattern, lambda _, put=put: put))  # type: ignore[misc]
    if digit_count(plain.text) > 12 and _GROUPS_IN_WORDS.search(plain.text):
        result.append(
            plain.rewrite(_GROUPS_IN_WORDS, lambda match: _BETWEEN_GROUPS.sub(" ", match[0]))
        )
    if _LISTED.search(plain.text):
        result.append(plain.rewrite(_LISTED, lambda match: _LISTED_PART.sub(r"\1", match[0])))
    together = [view for view in result if _LONE.search(view.text)]
    result += [view.rewrite(_SPACED, lambda match: match[0].replace(" ", "")) for view in together]
    return [view for view in result if view is plain or view.text != plain.text]


def is_encoded(text: str) -> bool:
    """True if a text contains another text in base64, base32 or hexadecimal without separators."""
    return any(_decoded(run) for run in _ENCODED.findall(text))


def _decoded_views(plain: View) -> Iterator[View]:
    """Views with decoded parts: base64, base32 and hexadecimal up to
    twice; character codes; quoted-printable.
    """
    view = plain.rewrite(_WRAPPED, lambda _: "") if "\n" in plain.text else plain
    for _ in range(2):
        if not is_encoded(view.text):
            break
        view = view.rewrite(_ENCODED, lambda match: _decoded(match[0]).translate(FOLDS) or match[0])
        view = _undisguised(view)
        yield view
    if digit_count(plain.text) > 7:
        for pattern, characters in _CODES:
            if pattern.search(plain.text):
                yield plain.rewrite(pattern, characters)
    if "=40" in plain.text or (plain.text.count("=") > 2 and len(_QUOTED.findall(plain.text)) > 2):
        yield plain.rewrite(_QUOTED, lambda match: chr(int(match[1], 16)) if match[1] else "")


def _decoded(run: str) -> str:
    """The text that a run of letters and digits encodes; '' if it
    encodes none, like nearly every word.
    """
    bare = run.rstrip("=")
    if (len(bare) < _SHORTEST and bare == run) or (
        bare.isalpha() and (bare.islower() or bare.istitle())
    ):
        return ""
    return next(
        (
            text
            for decode in (_from_hex, _from_base64, _from_base32)
            if (text := _printable(decode, bare))
        ),
        "",
    )


def _printable(decode: Callable[[str], bytes], run: str) -> str:
    try:
        raw = decode(run)
        text = raw.decode(_encoding(raw))
    except ValueError:  # includes binascii.Error and UnicodeDecodeError
        return ""
    return text if all(char.isprintable() or char in "\r\n\t" for char in text) else ""


def _encoding(raw: bytes) -> str:
    """The encoding of decoded bytes: UTF-16 (PowerShell writes it) by
    its mark or its zero bytes, else UTF-8.
    """
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    return "utf-16-le" if raw[1:2] == b"\0" else "utf-16-be" if raw[:1] == b"\0" else "utf-8"


def _from_hex(run: str) -> bytes:
    return bytes.fromhex(run)


def _from_base64(run: str) -> bytes:
    return base64.b64decode(run.translate(_URL_SAFE) + "=" * (-len(run) % 4), validate=True)


def _from_base32(run: str) -> bytes:
    return base64.b32decode(run + "=" * (-len(run) % 8), casefold=run.islower())


def _undisguised(view: View) -> View:
    """A folded view with escapes, tags and words for signs undone."""
    # twice, since %2540 is an escaped escape
    for _ in range(2) if _ESCAPING.search(view.text) else ():
        view = view.rewrite(_ESCAPE, _unescape)
    if "\\" in view.text:
        view = view.rewrite(_CSS_ESCAPE, lambda match: chr(int(match[1], 16)))
    if "<" in view.text or "]]>" in view.text:
        view = view.rewrite(_COMMENT, lambda _: "")
        view = view.rewrite(_INLINE_TAG, lambda _: "").rewrite(_BLOCK_TAG, lambda _: "\n")
    if _BRACKET.search(view.text):
        view = view.rewrite(_AT, lambda _: "@").rewrite(_DOT, lambda _: ".")
    return view.rewrite(_DOT_OF_DIGITS, lambda _: ".") if _SAID_DOT.search(view.text) else view


def _folded(text: str) -> View:
    if text.isascii() and text.isprintable():
        return View(text, range(len(text)), range(1, len(text) + 1))
    starts, ends = [], []
    pieces = []
    for index, char in enumerate(text):
        piece = FOLDS[ord(char)]
        pieces.append(piece)
        starts += [index] * len(piece)
        ends += [index + 1] * len(piece)
        if not piece and ends:
            ends[-1] = index + 1  # a zero-width character belongs to the one before it
    return View("".join(pieces), starts, ends)


def _without_tags(view: View) -> View:
    """A view without tags of any name that are closed in it, or that are inside a word or number.

    Text that only looks like a tag stays, such as the placeholder in `password=<your password>`.
    """
    closed = {match["name"].lower() for match in _TAG.finditer(view.text) if match[0][1] == "/"}

    def put(match: re.Match[str]) -> str:
        around = (
            match.string[max(0, match.start() - 1) : match.start()]
            + match.string[match.end() : match.end() + 1]
        )
        return (
            ""
            if match["name"].lower() in closed or around[:1].isalnum() or around[-1:].isalnum()
            else match[0]
        )

    return view.rewrite(_TAG, put)


def _unescape(match: re.Match[str]) -> str:
    escape = match[0]
    if escape[0] == "%" and escape[1] not in "uU":
        plain = unquote(escape, errors="replace")
    elif escape[0] == "&":
        plain = html.unescape(escape if escape[-1] == ";" else escape + ";")
    else:
        plain = _unescaped_code(escape.lstrip("\\%").rstrip(" "))
    return plain.translate(FOLDS)


def _unescaped_code(code: str) -> str:
    """The character of an escape, given without its backslash:
    `u0034`, `u{34}`, `x34`, `064` or `n`.
    """
    if "\\" in code:
        return bytes.fromhex("".join(half[1:] for half in code.split("\\") if half)).decode(
            "utf-16-be"
        )
    if len(code) < 2:
        return {"n": "\n", "r": "\n", "t": " ", "": " "}.get(code, code)
    if code[0].isdigit():
        return chr(int(code, 8))
    number = int(code[1:].strip("{}+"), 16)
    return chr(number) if number <= 0x10FFFF else code


def _digits(match: re.Match[str]) -> str:
    digit = _DIGITS.get(match[2].lower(), match[2])
    return " ".join([digit] * {"double": 2, "triple": 3}.get((match[1] or "").lower(), 1))
