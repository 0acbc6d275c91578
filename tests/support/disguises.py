"""Sensitive prompts of invented people, and the ways in which a value can be hidden in one."""

from __future__ import annotations

import base64
import html
import random
import string
from collections.abc import Callable

from slmctl.sensitive.rules import iban_remainder, luhn

Messages = list[dict[str, str]]
WORDS = ("kettle", "lamp", "parcel", "invoice", "courier", "chair", "bicycle", "garden", "window", "delivery")
NAMES = ("jane", "omar", "lucia", "piotr", "mei", "sven", "amara", "tomas", "ines", "yuki")
OPENINGS = (
    "Hello, my {word} has not come. My {what} is {value}, please look into it.",
    "Why was the {word} charged twice? {what}: {value}",
    "I moved. Old {word}, new {what} {value} from Monday on.",
    "{value} is the {what} that I gave you for the {word}.",
    "can you check {what} {value} for the {word} order",
)
WHAT = {"card": "card", "iban": "IBAN", "email": "e-mail", "phone": "phone number", "ip": "IP", "secret": "password"}


def _card(choose: random.Random) -> str:
    body = choose.choice(("4", "51", "55", "2221")) + "".join(choose.choices(string.digits, k=14))
    number = next(body[:15] + check for check in string.digits if luhn(body[:15] + check))
    return " ".join(number[k : k + 4] for k in range(0, 16, 4)) if choose.random() < 0.7 else number


def _iban(choose: random.Random) -> str:
    bban = "".join(choose.choices(string.digits, k=18))
    check = 98 - int(str(int("".join(str(int(c, 36)) for c in bban + "DE00")))) % 97
    iban = f"DE{check:02}{bban}"
    assert iban_remainder(iban) == 1
    return " ".join(iban[k : k + 4] for k in range(0, len(iban), 4)) if choose.random() < 0.7 else iban


def _email(choose: random.Random) -> str:
    return f"{choose.choice(NAMES)}.{choose.choice(NAMES)}{choose.randint(1, 99)}@{choose.choice(WORDS)}-mail.org"


def _phone(choose: random.Random) -> str:
    rest = f"{choose.randint(1000, 9999)} {choose.randint(1000, 9999)}"
    return f"+44 20 {rest}" if choose.random() < 0.5 else f"+1 415 555 {choose.randint(1000, 9999)}"


def _ip(choose: random.Random) -> str:
    return ".".join(str(choose.randint(11, 250)) for _ in range(4))


def _secret(choose: random.Random) -> str:
    return "".join(choose.choices(string.ascii_lowercase, k=5)) + "".join(choose.choices(string.digits, k=3))


MAKE: dict[str, Callable[[random.Random], str]] = {
    "card": _card, "iban": _iban, "email": _email, "phone": _phone, "ip": _ip, "secret": _secret,
}  # fmt: skip


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
    "whole in base64": lambda text, value: _said(base64.b64encode(text.replace("{value}", value).encode()).decode()),
    "url-safe base64": _value(lambda value: base64.urlsafe_b64encode(f"<?{value}?>".encode()).decode().rstrip("=")),
    "escaped twice": _value(lambda value: html.escape("".join(f"&#x{ord(c):x};" for c in value))),
    "letter by letter": lambda text, value: [
        {"role": "user", "content": part} for part in (*text.partition("{value}")[0].split(), *value)
    ],
    "in a list": _value(lambda value: "\n".join(f"- {part}" for part in value.split())),
}
