"""Sensitive prompts of invented people, and the ways in which a value can be hidden in one."""

from __future__ import annotations

import base64
import codecs
import gzip
import html
import json
import quopri
import random
import re
import string
from collections.abc import Callable
from urllib.parse import quote, quote_plus

from slmctl.sensitive.rules import iban_remainder, luhn

Messages = list[dict[str, str]]
WORDS = (
    "kettle",
    "lamp",
    "parcel",
    "invoice",
    "courier",
    "chair",
    "bicycle",
    "garden",
    "window",
    "delivery",
)
NAMES = ("jane", "omar", "lucia", "piotr", "mei", "sven", "amara", "tomas", "ines", "yuki")
OPENINGS = (
    "Hello, my {word} has not come. My {what} is {value}, please look into it.",
    "Why was the {word} charged twice? {what}: {value}",
    "I moved. Old {word}, new {what} {value} from Monday on.",
    "{value} is the {what} that I gave you for the {word}.",
    "can you check {what} {value} for the {word} order",
)
WHAT = {
    "card": "card",
    "iban": "IBAN",
    "email": "e-mail",
    "phone": "phone number",
    "ip": "IP",
    "secret": "password",
}


def _card(choose: random.Random) -> str:
    body = choose.choice(("4", "51", "55", "2221")) + "".join(choose.choices(string.digits, k=14))
    number = next(body[:15] + check for check in string.digits if luhn(body[:15] + check))
    return " ".join(number[k : k + 4] for k in range(0, 16, 4)) if choose.random() < 0.7 else number


def _iban(choose: random.Random) -> str:
    bban = "".join(choose.choices(string.digits, k=18))
    check = 98 - int(str(int("".join(str(int(c, 36)) for c in bban + "DE00")))) % 97
    iban = f"DE{check:02}{bban}"
    assert iban_remainder(iban) == 1
    return (
        " ".join(iban[k : k + 4] for k in range(0, len(iban), 4)) if choose.random() < 0.7 else iban
    )


def _email(choose: random.Random) -> str:
    return f"{choose.choice(NAMES)}.{choose.choice(NAMES)}{choose.randint(1, 99)}@{choose.choice(WORDS)}-mail.org"


def _phone(choose: random.Random) -> str:
    rest = f"{choose.randint(1000, 9999)} {choose.randint(1000, 9999)}"
    return f"+44 20 {rest}" if choose.random() < 0.5 else f"+1 415 555 {choose.randint(1000, 9999)}"


def _ip(choose: random.Random) -> str:
    parts = [choose.randint(11, 250) for _ in range(4)]
    parts[0] += parts[0] == 127  # that is this machine's own address, and nobody's
    return ".".join(map(str, parts))


def _secret(choose: random.Random) -> str:
    return "".join(choose.choices(string.ascii_lowercase, k=5)) + "".join(
        choose.choices(string.digits, k=3)
    )


MAKE: dict[str, Callable[[random.Random], str]] = {
    "card": _card,
    "iban": _iban,
    "email": _email,
    "phone": _phone,
    "ip": _ip,
    "secret": _secret,
}


def prompts(count: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """(kind, text with `{value}` in it, value) of invented people's messages."""
    choose, found = random.Random(seed), []
    for k in range(count):
        kind = list(MAKE)[k % len(MAKE)]
        opening = OPENINGS[1] if kind == "secret" else choose.choice(OPENINGS)
        text = opening.replace("{word}", choose.choice(WORDS)).replace("{what}", WHAT[kind])
        found.append((kind, text, MAKE[kind](choose)))
    return found


def _said(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def _value(change: Callable[[str], str]) -> Callable[[str, str], Messages]:
    return lambda text, value: _said(text.replace("{value}", change(value)))


def _split(text: str, value: str) -> Messages:
    half = len(value) // 2
    first, _, rest = text.partition("{value}")
    return [
        {"role": "user", "content": first + value[:half]},
        {"role": "assistant", "content": "Please go on."},
        {"role": "user", "content": value[half:] + rest},
    ]


def _look_alike(value: str) -> str:
    return value.translate(str.maketrans("aeopcxyABEHKMOPCTX.-", "аеорсхуАВЕНКМОРСТХ․‐"))


def _wide(value: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in value)


def _middle(value: str, put: str) -> str:
    half = len(value) // 2
    return value[:half] + put + value[half:]


MUTATIONS: dict[str, Callable[[str, str], Messages]] = {
    "case": lambda text, value: _said(text.replace("{value}", value).swapcase()),
    "spaced": _value(lambda value: " ".join(value.replace(" ", ""))),
    "look-alikes": _value(_look_alike),
    "zero width": _value("\u200b".join),
    "full width": _value(_wide),
    "base64": _value(lambda value: base64.b64encode(value.encode()).decode()),
    "split over messages": _split,
    "quotes": _value(lambda value: f'"{value}"'),
    "percent": _value(lambda value: "".join(f"%{ord(c):02X}" for c in value)),
    "entities": _value(lambda value: "".join(f"&#{ord(c)};" for c in value)),
    "line break": _value(lambda value: _middle(value, "\n")),
    "tags": _value(lambda value: f"<b>{_middle(value, '</b><b>')}</b>"),
}
MORE: dict[str, Callable[[str, str], Messages]] = {  # beyond the twelve
    "json escapes": _value(lambda value: "".join(f"\\u{ord(c):04x}" for c in value)),
    "combining marks": _value("\u0323".join),
    "soft hyphen": _value(lambda value: _middle(value, "\u00ad")),
    "reversed": _value(lambda value: value[::-1]),
    "hex": _value(lambda value: value.encode().hex()),
    "whole in base64": lambda text, value: _said(
        base64.b64encode(text.replace("{value}", value).encode()).decode()
    ),
    "url-safe base64": _value(
        lambda value: base64.urlsafe_b64encode(f"<?{value}?>".encode()).decode().rstrip("=")
    ),
    "escaped twice": _value(lambda value: html.escape("".join(f"&#x{ord(c):x};" for c in value))),
    "letter by letter": lambda text, value: [
        {"role": "user", "content": part}
        for part in (*text.partition("{value}")[0].split(), *value)
    ],
    "in a list": _value(lambda value: "\n".join(f"- {part}" for part in value.split())),
}


# Encodings of a value: what people and tools write by accident, what they write on purpose once,
# and what nobody promises to read. The tables are those of `benchmarks.detectors`.


def _each(form: str) -> Callable[[str], str]:
    """Every character by its code, in a form such as `&#{0};`."""
    return lambda value: "".join(form.format(ord(c)) for c in value)


def _shifted(upper: int, lower: int, digit: int) -> Callable[[str], str]:
    """Letters and digits of another block; 0 leaves a class as it is."""

    def change(value: str) -> str:
        starts = ((upper, "A", "Z"), (lower, "a", "z"), (digit, "0", "9"))
        shift = {
            code: chr(start + code - ord(first))
            for start, first, last in starts
            if start
            for code in range(ord(first), ord(last) + 1)
        }
        return value.translate(shift)

    return change


def _codes(form: str, between: str) -> Callable[[str], str]:
    return lambda value: between.join(format(byte, form) for byte in value.encode())


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _b32(value: str) -> str:
    return base64.b32encode(value.encode()).decode()


def _inside(put: str) -> Callable[[str], str]:
    return lambda value: _middle(value, put)


def _between(put: str) -> Callable[[str], str]:
    return lambda value: put.join(value)


def _around(before: str, after: str) -> Callable[[str], str]:
    return lambda value: before + value + after


_SENTENCE = (
    "Hello, please note that it is {}, thank you very much for looking into this for me today."
)
EVERYDAY: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "upper case": str.upper,
    "lower case": str.lower,
    "swapped case": str.swapcase,
    "two spaces": lambda v: v.replace(" ", "  "),
    "no-break spaces": lambda v: v.replace(" ", "\u00a0"),
    "thin spaces": lambda v: v.replace(" ", "\u2009"),
    "tabs": lambda v: v.replace(" ", "\t"),
    "carriage return and line feed": lambda v: v.replace(" ", "\r\n"),
    "s p a c e d": lambda v: " ".join(v.replace(" ", "")),
    "zero-width space": _between("\u200b"),
    "zero-width non-joiner": _between("\u200c"),
    "word joiner": _between("\u2060"),
    "byte order mark": _between("\ufeff"),
    "soft hyphen": _inside("\u00ad"),
    "combining marks": _between("\u0323"),
    "struck through": _between("\u0336"),
    "variation selectors": _between("\ufe0f"),
    "NUL characters": _between("\0"),
    "right to left": _around("\u202e", "\u202c"),
    "left-to-right marks": _between("\u200e"),
    "full width": _wide,
    "mathematical bold": _shifted(0x1D400, 0x1D41A, 0x1D7CE),
    "mathematical sans": _shifted(0x1D5A0, 0x1D5BA, 0x1D7E2),
    "monospace": _shifted(0x1D670, 0x1D68A, 0x1D7F6),
    "double-struck": _shifted(0, 0x1D552, 0x1D7D8),
    "circled": _shifted(0x24B6, 0x24D0, 0),
    "black circled": _shifted(0x1F150, 0, 0),
    "black squared": _shifted(0x1F170, 0, 0),
    "tag characters": lambda v: "".join(chr(0xE0000 + ord(c)) for c in v),
    "Arabic digits": _shifted(0, 0, 0x660),
    "Devanagari digits": _shifted(0, 0, 0x966),
    "Bengali digits": _shifted(0, 0, 0x9E6),
    "subscript digits": _shifted(0, 0, 0x2080),
    "keycaps": lambda v: re.sub(r"(\d)", "\\1\ufe0f\u20e3", v),
    "Cyrillic look-alikes": _look_alike,
    "en dashes": lambda v: v.replace("-", "\u2013"),
    "minus signs": lambda v: v.replace("-", "\u2212"),
    "in quotes": _around('"', '"'),
    "in typographic quotes": _around("\u201c", "\u201d"),
    "in backticks": _around("`", "`"),
    "bold": _around("**", "**"),
    "in parentheses": _around("(", ")"),
    "in angles": _around("<", ">"),
    "in brackets": _around("[", "]"),
    "in braces": _around("{", "}"),
    "in guillemets": _around("«", "»"),
    "in JSON": lambda v: json.dumps({"value": v}),
    "in JSON in JSON": lambda v: json.dumps(json.dumps({"value": v})),
    "percent": lambda v: "".join(f"%{ord(c):02X}" for c in v),
    "percent, lower case": lambda v: "".join(f"%{ord(c):02x}" for c in v),
    "percent, twice": lambda v: "".join(f"%25{ord(c):02X}" for c in v),
    "in a URL": lambda v: f"https://a.test/?q={quote(v)}",
    "in a form": lambda v: f"q={quote_plus(v)}&x=1",
    "percent u": _each("%u{0:04x}"),
    "entities": _each("&#{0};"),
    "hexadecimal entities": _each("&#x{0:x};"),
    "entities without ;": _each("&#{0}"),
    "hexadecimal entities without ;": _each("&#x{0:x}"),
    "padded entities": _each("&#{0:07};"),
    "entities, twice": lambda v: html.escape("".join(f"&#{ord(c)};" for c in v)),
    "named entities": lambda v: (
        v.replace("@", "&commat;").replace(".", "&period;").replace("-", "&hyphen;")
    ),
    "backslash u": _each("\\u{0:04x}"),
    "backslash u, twice": _each("\\\\u{0:04x}"),
    "backslash u in braces": _each("\\u{{{0:x}}}"),
    "backslash U": _each("\\U{0:08x}"),
    "backslash x": _each("\\x{0:02x}"),
    "octal escapes": _each("\\{0:03o}"),
    "CSS escapes": _each("\\{0:x} "),
    "code points": _each("U+{0:04X} "),
    "quoted-printable": lambda v: "".join(f"={ord(c):02X}" for c in v),
    "quoted-printable line": lambda v: quopri.encodestring(_SENTENCE.format(v).encode()).decode(),
    "backslashes before signs": lambda v: re.sub(r"([^\w\s])", r"\\\1", v),
    "bold inside": lambda v: f"{v[:5]}<b>{v[5:8]}</b>{v[8:]}",
    "unknown tag inside": _inside("<x-y>"),
    "unknown tags around each": lambda v: "".join(f"<q>{c}</q>" for c in v),
    "spans around each": lambda v: "".join(f'<span class="c">{c}</span>' for c in v),
    "tag with attributes": _inside('<i data-a="b">'),
    "comment inside": _inside("<!-- x -->"),
    "CDATA": _around("<![CDATA[", "]]>"),
    "block tag around": _around("<td>", "</td>"),
    "mark inside": _inside("<wbr>"),
    "link": lambda v: f"[{v}](https://a.test)",
    "base64": lambda v: _b64(v.encode()),
    "base64 for URLs": lambda v: base64.urlsafe_b64encode(v.encode()).decode().rstrip("="),
    "base64 of a sentence": lambda v: _b64(_SENTENCE.format(v).encode()),
    "base64 in lines": lambda v: base64.encodebytes(_SENTENCE.format(v).encode()).decode(),
    "base64, twice": lambda v: _b64(_b64(v.encode()).encode()),
    "base64 of UTF-16": lambda v: _b64(v.encode("utf-16-le")),
    "data URL": lambda v: f"data:text/plain;base64,{_b64(v.encode())}",
    "hexadecimal": lambda v: v.encode().hex(),
    "hexadecimal, upper case": lambda v: v.encode().hex().upper(),
    "hexadecimal with 0x": lambda v: "0x" + v.encode().hex(),
    "hexadecimal with spaces": lambda v: v.encode().hex(" "),
    "hexadecimal with colons": lambda v: v.encode().hex(":"),
    "hexadecimal with 0x each": _codes("#x", ", "),
    "hexadecimal of a sentence": lambda v: _SENTENCE.format(v).encode().hex(),
    "base32": _b32,
    "base32 without padding": lambda v: _b32(v).rstrip("="),
    "base32, lower case": lambda v: _b32(v).lower(),
    "binary": _codes("08b", " "),
    "binary in one piece": _codes("08b", ""),
    "decimal codes": _codes("d", " "),
    "decimal codes with commas": _codes("d", ", "),
    "octal codes": _codes("03o", " "),
    "base64 of UTF-16 with its mark": lambda v: _b64(v.encode("utf-16")),
    "hexadecimal of UTF-16, big end first": lambda v: v.encode("utf-16-be").hex(),
    "hexadecimal of base64": lambda v: _b64(v.encode()).encode().hex(),
    "quoted lines": lambda v: "> " + v.replace(" ", "\n> "),
    "bold parts": lambda v: " ".join(f"**{part}**" for part in v.split()),
    "parts in backticks": lambda v: " ".join(f"`{part}`" for part in v.split()),
    "list of characters": lambda v: repr(list(v)),
    "list of codes": lambda v: repr(list(v.encode())),
    "repr of bytes": lambda v: repr(v.encode()),
    "String.fromCharCode": lambda v: f"String.fromCharCode({','.join(str(ord(c)) for c in v)})",
}
# Read by nobody here: encodings that are chosen to hide, and those that no everyday tool writes.
HIDDEN: dict[str, Callable[[str], str]] = {
    "base64, three times": lambda v: _b64(_b64(_b64(v.encode()).encode()).encode()),
    "base85": lambda v: base64.b85encode(v.encode()).decode(),
    "ascii85": lambda v: base64.a85encode(v.encode()).decode(),
    "gzip in base64": lambda v: _b64(gzip.compress(v.encode(), mtime=0)),
    "rot13": lambda v: codecs.encode(v, "rot13"),
    "next letter and digit": lambda v: "".join(chr(ord(c) + 1) if c.isalnum() else c for c in v),
    "reversed": lambda v: v[::-1],
    "every second character": lambda v: "q".join(v),
    "leetspeak": lambda v: v.translate(str.maketrans("aeiost", "431057")),
    "exclusive or, in hexadecimal": lambda v: bytes(byte ^ 42 for byte in v.encode()).hex(),
    "UTF-7": lambda v: v.encode("utf-7").decode().replace("@", "+AEA-"),
}
