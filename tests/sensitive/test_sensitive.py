"""Personal data and secrets: what is found through which disguises, what is left alone, and what
replaces it.

Values are those that issuers keep for examples; keys are put together here, so that no scanner
takes them for real.
"""

from __future__ import annotations

import base64
import csv
import io
import itertools
import json
import random
import re
import stat
import subprocess
import threading
import tracemalloc
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import EXAMPLES, ROOT, disguises, hostile

from benchmarks import detectors
from slmctl import config, sensitive
from slmctl.artifacts import artifact
from slmctl.errors import UsageError
from slmctl.pipeline.graph import Project, StageRequest
from slmctl.sensitive import KINDS, SensitivePolicy, Tally, find, stand_ins
from slmctl.sensitive.rules import iban_remainder, luhn
from slmctl.server import api_keys

DATA = ROOT.parent / "shared" / "data"
KEY = bytes(range(32))
HAVE_STAND_INS = ("email", "phone", "card", "iban", "ip")
RANDOM = "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8s9T0"

VALUES = {
    "email": [
        "jane.doe@example.org",
        "j_doe+news@mail.example.co.uk",
        "o'brien@example.museum",
    ],
    "phone": [
        "+44 20 7946 0958",
        "0044 20 7946 0958",
        "+1 (415) 555-0132",
        "(415) 555-0132",
        "415-555-0132",
        "415.555.0132",
        "0151-23456789",
        "020 7946 0958",
        "07700900123",
        "06 39 98 01 23",
        "+49 (0)30 23125 000",
        "030/23125000",
        "(11) 91234-5678",
        "8 (912) 345-67-89",
        "612 34 56 78",
        "22 123 45 67",
        "601-123-456",
        "11 91234-5678",
        "333 2940955",
        "138 0013 8000",
    ],
    "card": [
        "4111 1111 1111 1111",
        "4111111111111111",
        "5555-5555-5555-4444",
        "378282246310005",
        "3782 822463 10005",
        "6011.1111.1111.1117",
        "30569309025904",
        "3530111333300000",
        "2223003122003222",
        "41 11 11 11 11 11 11 11",
    ],
    "iban": [
        "DE89 3704 0044 0532 0130 00",
        "GB29NWBK60161331926819",
        "fr14 2004 1010 0505 0001 3m02 606",
        "NL91-ABNA-0417-1643-00",
        "CH9300762011623852957",
        "NO93 8601 1117 947",
        "MT84MALT011000012345MTLCAST001S",
    ],
    "ip": [
        "10.1.2.3",
        "192.168.7.23",
        "8.8.8.8",
        "2a02:8070:1c3::7f",
        "fe80::1ff:fe23:4567:890a",
        "::ffff:10.1.2.3",
    ],
    "secret": [
        "AK" + "IA" + "IOSFODNN7EXAMPLE",
        "gh" + "p_" + RANDOM,
        "github" + "_pat_" + RANDOM,
        "gl" + "pat-" + RANDOM[:20],
        "xo" + "xb-" + "123456789012-" + RANDOM[:20],
        "sk" + "_live_" + RANDOM[:24],
        "AI" + "za" + RANDOM[:35],
        "sk" + "-" + RANDOM,
        "sk" + "-ant-" + "api03-" + RANDOM,
        "sk" + "-proj-" + RANDOM,
        "hf" + "_" + "AbCdEfGhIj" * 3,
        "ey" + "JhbGciOiJI." + "ey" + "JzdWIiOiIx." + RANDOM,
        "np" + "m_" + RANDOM,
        "SG" + "." + RANDOM[:22] + "." + RANDOM,
        "MTEyMzQ1Njc4OTAxMjM0NTY3" + ".GabcdE." + RANDOM[:30],
        "$2b$12$" + "R9h/cIPz0gi.URNNX3kh2OPST9/PgBkqquzi.Ss7KIUgO2t0jWMUW",
        "PuTTY-User-Key-" + "File-2: ssh-rsa\nPrivate-Lines: 1\nAAAA\nPrivate-MAC: 0a1b",
        "-----BEGIN " + "RSA PRIVATE KEY-----\nMIIE\nabcd\n-----END " + "RSA PRIVATE KEY-----",
    ],
}
IN_CONTEXT = {
    "phone": [
        ("call me on ", "4155550132"),
        ("Tel: ", "555 0132"),
        ("my mobile number is ", "612345678"),
        ("please call ", "4155550132"),
        ("my new number ", "612345678"),
        ("fax ", "23125-000"),
    ],
    "card": [
        ("credit card ", "4222222222222"),
    ],
    "secret": [
        ("password=", "hunter2"),
        ("Password: ", "Correct-Horse"),
        ("my password is ", "Tr0ub4dor"),
        ("PASSWORD: ", "swordfish"),
        ('"api_key": "', "abcdefgh"),
        ("DB_PASSWORD=", "letmein"),
        ("password: ", "myasc650"),
        ("my pin is ", "4321"),
        ("CVV ", "123"),
        ("Authorization: Bearer ", RANDOM),
        ("authorization: Basic ", "dXNlcjpwYXNz"),
        ("postgres://app:", "s3cret"),
        ("<password>", "swordfish</password>"),
        ("access token: ", "abc123def456"),
        ("aws_secret_access_key = ", RANDOM),
        ("Kennwort: ", "geheim1"),
        ("user: jane pass: ", "sunshine"),
        ("pass: ", "hunter2"),
        ("pw: ", "sunshine"),
        ("pw ", "hunter2"),
        ("my pw is ", "hunter2"),
        ("p/w: ", "hunter2"),
        ("Passwort lautet: ", "geheim1"),
        ("password -> ", "hunter2"),
        ("user=jane&pass=", "x1y2"),
        ("Benutzer: jane\nPasswort: ", "sonne"),
        ("Cookie: ", "session=8f2e9a71c0d34b"),
        ("set-cookie: ", "theme=dark-mode; sid=a81bc3"),
        ("your code is ", "482913"),
        ("Verification code: ", "482913"),
        ("DB_PASS=", "letmein"),
        ("export ACME_PASS=", "letmein"),
        ("smtpPass: ", "hunter2!x"),
        ("REDIS_PASS: ", "hunter2"),
        ("ENV DB_PASS ", "hunter2"),
        ("db:5432:mydb:jane:", "hunter2!x"),
        ("What is your password? ", "hunter2!x"),
        ("Basic ", "amFuZTpodW50ZXIyIXg="),
        ('{"auth": "', "amFuZTpodW50ZXIyIXg="),
        ('"pwd": {"value": "', "hunter2!x"),
        ("jane:", "$apr1$saltsalt$9Wg1JkW3xF5Gm8bQ2RZr01"),
        (
            "recovery phrase: ",
            "legal winner thank year wave sausage worth useful legal winner thank yellow",
        ),
        ("mật khẩu: ", "hunter2"),
        ("kata sandi: ", "hunter2"),
        ("รหัสผ่าน: ", "hunter2"),
        ("पासवर्ड: ", "hunter2"),
        ("parolă: ", "hunter2"),
        ("salasana on ", "hunter2"),
        ("lozinka je ", "hunter2"),
        ("пароль это ", "hunter2"),
    ],
}
NOTHING = [
    "order number 415-555-0132",
    "Order 4155550132 shipped on 2024-11-02.",
    "Invoice INV-2024-000123456 of 12.03.2024",
    "The total is 1,234,567.89 EUR, or 1.234.567,89",
    "It costs $4,111.11 and 1111.11",
    "version 1.2.3.4, v10.0.19045.1",
    "Chapter 3.2.1.4",
    "Meet on 01.02.2024 at 10:30-11:45",
    "2024-01-02 03:04:05.678901",
    "2019, 2020, 2021, 2022 and 2023",
    "Tracking 1Z999AA10123456784",
    "ISBN 978-3-16-148410-0",
    "EAN 4006381333931",
    "at 1700000000000, or 1700000000",
    "ratio 0.4111111111111111",
    "0.5234567890123456",
    "52.520008, 13.404954",
    "user@host, icon@2x.png, @jane, a@1.2.3",
    "git@github.com:acme/widgets.git",
    "We met at home. See you at ten.",
    "password reset needed",
    "Password: required",
    "password: [SECRET]",
    "password=<your password>",
    "PASSWORD=${DB_PASSWORD}",
    "my password is not working",
    "I forgot my password. It was working.",
    "the secret is out",
    "token: expired",
    "the key is under the mat",
    "My api key is invalid",
    "std::vector, a::b and dad::bad",
    "12:30:45:50",
    "00:1a:2b:3c:4d:5e",
    "part 0815-4711",
    "127.0.0.1, ::1, 0.0.0.0, 255.255.255.0",
    "serial 0012345678901",
    "scores 21 14 15 10 28 7",
    "1 2 3 4 5 6 7 8 9 10 11",
    "one two three four five six seven eight nine ten",
    "+1 for that, +20 000 000 users",
    "5+1234567890",
    "basket_case_of_things, task-force-management-office",
    "pin the message",
    "zip 90210-1234",
    "sort code 04-00-04",
    "DE89 3704 0044 0532 0130 01",
    "4111 1111 1111 1112",
    "612 345 678 inhabitants",
    "0xdeadbeef0123456789",
    "call on 12.11.2024 please",
    "call me at 10:30 on 12/11/2024",
    "call 911 or 112",
    "300 000 000 000",
    "Room 12.3.4.1.5",
    "uuid 8f98765b-4830-6496-1893-7fd2601e3c39",
    "password=your_password_here",
    "api_key: YOUR-API-KEY",
    "d41d8cd98f00b204e9800998ecf8427e",
    "look at this point in time",
    "Pass: yes",
    "I pass: 2 of 3 tests",
    "pass: 12:30",
    "boarding pass: AB1234",
    "season pass: 49.99",
    "password 10 characters",
    "passwords: see the vault",
    "password=<your password> then",
    "6 123 456 users",
    "612 345 678 EUR",
    "655 123 456 inhabitants",
    "chapter 3.2.1.4",
    "paragraph 3.2.1.4",
    "codes 52 49 12 99 45 31 77 60 11",
    "&#52 &#x",
    "a+b+c+d",
    "<x>1</x> and <y>",
    "U+0041 is A",
    "=3D =20 =C3=A9",
    "Cookie: consent=accepted",
    "the code is 482913 lines long",
    "WIFI:T:nopass;S:guest;;",
    "X1DE89A",
    "a 'b' + 'c' d",
    "report@2x.pdf",
    "AAAA AAAA AAAA",
    "01000001 is A",
    "de:ad:be:ef:00:11:22:33:44:55",
    "slm-app-key is the form of a key",
]


def kinds_in(text: str) -> set[str]:
    return {finding.kind for finding in find(text)}


def everything(action: str) -> SensitivePolicy:
    """A policy with one action for all kinds; secrets have no stand-in."""
    return SensitivePolicy(
        {kind: "redact" if kind == "secret" else action for kind in VALUES}, key=KEY
    )  # type: ignore[dict-item]


# Found


@pytest.mark.parametrize(
    ("kind", "value"), [(kind, value) for kind, values in VALUES.items() for value in values]
)
def test_value_is_found_where_it_stands(kind: str, value: str) -> None:
    text = f"Dear team: {value}, thanks."
    (finding,) = find(text)
    assert (finding.kind, text[finding.start : finding.end]) == (kind, value)
    assert finding.rule.startswith(f"{kind}/")
    assert [finding.kind for finding in find(value)] == [kind]


@pytest.mark.parametrize(
    ("kind", "before", "value"),
    [(kind, *case) for kind, cases in IN_CONTEXT.items() for case in cases],
)
def test_value_is_found_by_the_words_before_it(kind: str, before: str, value: str) -> None:
    text = f"{before}{value}" + ("@db.example.org/x" if "://" in before else "")
    (finding,) = find(text)
    assert finding.kind == kind
    assert text[finding.start : finding.end] == value.partition("<")[0]
    if before[0] not in "<p" and kind != "secret":
        assert not find(f"the thing {value}")


@pytest.mark.parametrize("text", NOTHING)
def test_nothing_is_found(text: str) -> None:
    assert [(finding.rule, text[finding.start : finding.end]) for finding in find(text)] == []


def test_hashes_ids_dates_and_amounts_are_left_alone() -> None:
    draw = random.Random(0)
    for _ in range(2000):
        for text in (
            f"id {uuid.UUID(int=draw.getrandbits(128))}",
            f"sha {draw.getrandbits(256):064x}",
            f"md5 {draw.getrandbits(128):032x}",
            f"order {draw.randrange(10**9, 10**12)}",
            f"{draw.randrange(10**8) / 100:,.2f} EUR",
            f"p = {draw.random()}",
            f"on {draw.randrange(1, 29):02}.{draw.randrange(1, 13):02}.{draw.randrange(1950, 2040)}",
        ):
            assert not find(text), text


def test_random_digits_are_rarely_a_card() -> None:
    """Luhn lets one of ten pass, and the issuers' ranges some of those:
    what an order number of 16 digits risks.
    """
    draw = random.Random(0)
    found = sum(bool(find(f"number {draw.randrange(10**15, 10**16)}")) for _ in range(5000))
    assert found < 0.05 * 5000


def test_several_in_order_without_overlap() -> None:
    text = "jane@example.org or +44 20 7946 0958, card 4111 1111 1111 1111, from 10.1.2.3"
    findings = find(text)
    assert [finding.kind for finding in findings] == ["email", "phone", "card", "ip"]
    assert all(left.end <= right.start for left, right in itertools.pairwise(findings))
    assert [finding.kind for finding in find(text, ["card", "ip"])] == ["card", "ip"]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("secret", "WIFI:T:WPA;S:guest;P:sunny;;"),
        ("secret", r"wifi:S:gu\;est;T:WPA;P:sun\;ny;H:true;;"),
        ("iban", "IBANDE89370400440532013000EUR"),
        ("iban", "xde89370400440532013000"),
        ("email", "see scan_jane.doe@acme-corp.com.png"),
    ],
)
def test_value_is_found_though_letters_stand_beside_it(kind: str, text: str) -> None:
    assert kinds_in(text) == {kind}


def test_a_password_in_a_url_is_a_secret_and_no_address() -> None:
    assert kinds_in("https://app:" + "s3cret@db.example.org/x") == {"secret"}
    assert kinds_in("ssh://jane@db.example.org/x") == {"email"}


def test_user_and_password_before_a_host_are_a_secret() -> None:
    (password, address) = find("root:hunter2!x@10.1.2.3")
    assert (password.kind, password.start, password.end, address.kind) == ("secret", 5, 14, "ip")
    assert "secret" in kinds_in("jane:Hund4711@localhost") & kinds_in("root:hunter2!x@db:3306")
    assert kinds_in("mailto:jane1@acme.com, E-Mail:jane.doe2@acme.com") == {"email"}


def test_address_of_a_server_is_found_though_its_word_ends_as_a_version_does() -> None:
    assert kinds_in("server 10.1.2.3") == {"ip"}
    assert kinds_in("ver 10.1.2.3, Version 10.1.2.3") == set()


# Disguises


NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
EVERYDAY = (
    "full width",
    "mathematical bold",
    "monospace",
    "Arabic digits",
    "keycaps",
    "Cyrillic look-alikes",
    "zero-width space",
    "soft hyphen",
    "struck through",
    "NUL characters",
    "no-break spaces",
    "thin spaces",
    "two spaces",
    "en dashes",
    "minus signs",
    "s p a c e d",
    "upper case",
    "lower case",
    "entities",
    "hexadecimal entities",
    "percent",
    "percent, twice",
    "backslash u",
    "bold inside",
    "right to left",
    "in quotes",
    "in backticks",
    "bold",
    "in parentheses",
    "in angles",
    "in JSON",
)
DISGUISES: dict[str, Callable[[str], str]] = {
    name: disguises.EVERYDAY[name] for name in EVERYDAY
} | {
    "line breaks": lambda t: t.replace(" ", "\n"),
    "in CSV": lambda t: f"x,{t},y",
    "end of sentence": lambda t: f"{t}.",
    "emoji beside": lambda t: f"\U0001f4de{t}\U0001f642",
    "label before": lambda t: f"is:{t}",
}
OF_KIND: dict[str, dict[str, Callable[[str], str]]] = {
    "email": {
        "[at] [dot]": lambda t: t.replace("@", " [at] ").replace(".", " [dot] "),
        "(at)": lambda t: t.replace("@", "(at)"),
        "[ät] [punkt]": lambda t: t.replace("@", " [ät] ").replace(".", " [punkt] "),
        "|at| |dot|": lambda t: t.replace("@", " |at| ").replace(".", " |dot| "),
        "at dot": lambda t: t.replace("@", " at ").replace(".", " dot "),
        "spaces": lambda t: t.replace("@", " @ ").replace(".org", " . org"),
        "in a file's name": lambda t: f"invoice_{t}.pdf",
        "backslashes": lambda t: t.replace(".", "\\.").replace("_", "\\_"),
    },
    "phone": {
        "dots": lambda t: re.sub(r"[ -]", ".", t),
        "underscores": lambda t: t.replace(" ", "_"),
        "words": lambda t: re.sub(r"\d", lambda m: f" {NAMES[int(m[0])]} ", t),
    },
    "card": {
        "underscores": lambda t: re.sub("[ -]", "_", t),
        "commas": lambda t: re.sub("[ -]", ",", t),
        "words": lambda t: re.sub(r"\d", lambda m: f" {NAMES[int(m[0])]} ", t),
        "code comments": lambda t: re.sub("[ -]", "/**/", t),
        "four spaces": lambda t: re.sub("[ -]", " " * 4, t),
        "arrows": lambda t: re.sub("[ -]", "\u2192", t),
        "emoji": lambda t: re.sub("[ -]", "\U0001f642", t),
        "LaTeX": lambda t: re.sub("[ -]", r"\\,", t),
        "as a float": lambda t: re.sub("[ -]", "", t) + ".0",
        "double words": lambda t: re.sub(
            r"\b(\w+) +\1\b", r"double \1", re.sub(r"\d", lambda m: f" {NAMES[int(m[0])]} ", t)
        ),
    },
    "iban": {
        "dots": lambda t: t.replace(" ", "."),
        "glued": lambda t: re.sub("[ -]", "", t),
        "strings of SQL": lambda t: f"'{t[:9]}'||'{t[9:]}'",
        "strings of a program": lambda t: f'"{t[:9]}" + "{t[9:]}"',
        "code comments": lambda t: t.replace(" ", "/* a */"),
    },
    "ip": {
        "defanged": lambda t: t.replace(".", "[.]"),
        "dot words": lambda t: t.replace(".", " dot "),
        "leading zeros": lambda t: re.sub(r"\b\d\b(?=[\d.]*$)", lambda m: m[0].zfill(3), t),
    },
    "secret": {
        "in code": lambda t: f"key = '{t}'",
        "in a header": lambda t: f"curl -H 'Authorization: Bearer {t}'",
    },
}
DISGUISED = {
    "email": VALUES["email"][:1],
    "phone": ["+44 20 7946 0958", "(415) 555-0132", "0151-23456789"],
    "card": ["4111 1111 1111 1111", "5555-5555-5555-4444", "378282246310005"],
    "iban": ["DE89 3704 0044 0532 0130 00", "GB29NWBK60161331926819"],
    "ip": ["192.168.7.23", "2a02:8070:1c3::7f"],
    "secret": ["AK" + "IA" + "IOSFODNN7EXAMPLE", "gh" + "p_" + RANDOM, "sk" + "-proj-" + RANDOM],
}


@pytest.mark.parametrize(
    ("kind", "how"), [(kind, how) for kind in DISGUISED for how in (*DISGUISES, *OF_KIND[kind])]
)
def test_disguise_hides_nothing(kind: str, how: str) -> None:
    disguise = DISGUISES.get(how) or OF_KIND[kind][how]
    for value in DISGUISED[kind]:
        text = f"I write it as {disguise(value)} today"
        assert kind in kinds_in(text), text
        left = everything("redact").apply(text).text
        assert f"[{kind.upper()}]" in left
        assert kind not in kinds_in(left)


FOLLOWED = (
    " / 0151 23456780",
    "/0151 23456780",
    ". 24 hours",
    " 24/7",
    ", 12.11.2024",
    " 12.11.2024",
    " 8-17",
    " (9-17)",
    "\n12345",
    " 030 12345678",
    " or 030 12345678",
    "; 4711",
    " 18:00",
    " x123",
    " - 2nd floor",
    "!",
)


@pytest.mark.parametrize("follows", FOLLOWED)
@pytest.mark.parametrize(
    "value", ["0151 23456789", "030 12345678", "020 7946 0958", "06 39 98 01 23", "(0161) 496 0123"]
)
def test_phone_number_is_found_where_other_digits_follow(value: str, follows: str) -> None:
    text = f"Please call {value}{follows}"
    covered = [text[finding.start : finding.end] for finding in find(text)]
    assert any(value in part for part in covered), covered
    second = re.search(r"0(?:151|30) \d{8}$", follows)
    assert not second or any(second[0] in part for part in covered), covered


EXPIRIES = (
    " 12/26",
    " 1226",
    "/1226",
    " exp 12/26",
    ", 12/2026, 123",
    "|12|26|123",
    ".12.26",
    "_12_26",
    "exp12/26",
    "12/26",
    "1226 123",
    " valid thru 12/26 cvv 123",
    "\n12/26",
    " - 12/26",
    ";12/26;123",
)


@pytest.mark.parametrize("expiry", EXPIRIES)
@pytest.mark.parametrize("value", ["4111 1111 1111 1111", "4111111111111111", "378282246310005"])
def test_card_is_found_where_its_expiry_follows(value: str, expiry: str) -> None:
    assert "card" in kinds_in(f"take {value}{expiry} please")


@pytest.mark.parametrize(
    ("brackets", "space"), list(itertools.product(("[]", "()", "{}", "<>", "||"), ("", " ")))
)
def test_every_sign_in_brackets_passes_the_quick_look(brackets: str, space: str) -> None:
    """`[ät]` did not, so that it was never undone."""
    first, last = brackets
    for at, dot in itertools.product(
        ("at", "AT", "@", "ät", "ÄT", "arroba"), ("dot", "punkt", "point", "punto", ".")
    ):
        text = f"jane.doe {first}{space}{at}{space}{last} acme {first}{space}{dot}{space}{last} com"
        assert kinds_in(text) == {"email"}, text


@pytest.mark.parametrize(
    "cue",
    (
        "password",
        "Kunde jane Passwort",
        "pw",
        "psw",
        "passcode",
        "kennwort",
        "api key",
        "access token",
        "secret",
        "credentials",
        "zugangsdaten",
        "wallet phrase",
        "my recovery phrase is",
        "my password is",
        "salasana",
        "What is your password?",
        "the router",
    ),
)
def test_quick_look_passes_all_that_a_rule_finds(cue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tab, a line end or an arrow after a word such as
    `Passwort` hid the value from all rules.
    """
    words = "apple banana cherry dog eagle fish grape house igloo jelly koala lemon"
    values = (
        "Sommer24!",
        "abcdefghijklmnop1",
        "Correct-Horse",
        "jane / hunter2!x",
        words,
        "fd00::beef",
    )
    signs = (" ", "\t", "\n", "\n\n", "->", " \N{RIGHTWARDS ARROW} ", "|", "- ", ", ", "'  '")
    texts = [f"{cue}{sign}{value}" for sign, value in itertools.product(signs, values)]
    quick = [find(text) for text in texts]
    monkeypatch.setattr(sensitive, "_may_hold", lambda text: True)
    assert [find(text) for text in texts] == quick
    assert sum(map(bool, quick)) >= len(signs)


def test_plus_that_is_said_is_a_part_of_the_number() -> None:
    assert kinds_in("plus four nine one five one two three four five six seven eight nine") == {
        "phone"
    }


def test_key_of_slmctl_itself_is_a_secret(tmp_path: Path) -> None:
    for name in ("app", "my.app-1", "A_b-c"):
        secret = api_keys.add(tmp_path / "keys.json", name)
        text = f"I use {secret} here"
        assert [(f.rule, text[f.start : f.end]) for f in find(text)] == [("secret/slmctl", secret)]


@pytest.mark.parametrize("name", disguises.EVERYDAY)
def test_everyday_encoding_hides_no_value(name: str) -> None:
    key = "sk" + "-" + "AbCdEfGhIjKlMnOpQrStUv" + "7"
    for kind, text, value in disguises.prompts(12, seed=9):
        encoded = disguises.EVERYDAY[name](key if kind == "secret" else value)
        assert find(text.replace("{value}", encoded)), (kind, encoded)


def test_phone_numbers_of_twelve_countries() -> None:
    """The figures of `benchmarks.detectors`, which are the same wherever it runs."""
    figures = detectors.of_phones(lambda text: find(text, ["phone"]))
    assert figures["recall"] > 0.96
    assert figures["precision"] > 0.99


@pytest.mark.parametrize("kind", DISGUISED)
def test_what_is_encoded_is_found(kind: str) -> None:
    for value in DISGUISED[kind]:
        if len(value) < 12:
            continue  # shorter ones cannot be told from words
        for raw in (value, f"it is {value}, please"):
            text = raw.encode()
            for encoded in (
                base64.b64encode(text),
                base64.urlsafe_b64encode(text).rstrip(b"="),
                text.hex().encode(),
            ):
                (finding,) = find(f"see {encoded.decode()} for it")
                assert (finding.kind, finding.start, finding.end) == (kind, 4, 4 + len(encoded))


def test_long_words_and_hashes_are_not_taken_for_encoded_text() -> None:
    for text in (
        "internationalization",
        "Uncharacteristically",
        "usr/local/share/doc/python3",
        "a" * 5000,
        "d41d8cd98f00b204e9800998ecf8427e",
        "state_of_the_art_machine",
        "2024-11-25/2024-12-01",
    ):
        assert not find(text), text


def test_positions_are_those_of_the_text_that_was_given() -> None:
    hidden = "\u200b".join("４１１１ 1111")
    text = f"é ｃard {hidden} 1111 1111 ok"
    (finding,) = find(text)
    assert text[finding.start : finding.end] == f"{hidden} 1111 1111"
    assert everything("redact").apply(text).text == "é ｃard [CARD] ok"


# Replaced


def test_actions() -> None:
    text = "jane@example.org paid with 4111 1111 1111 1111"
    policy = SensitivePolicy({"email": "keep", "card": "redact"})
    applied = policy.apply(text)
    assert (applied.text, applied.action, applied.sensitive) == (
        "jane@example.org paid with [CARD]",
        "keep",
        True,
    )
    assert [finding.kind for finding in applied.findings] == ["email", "card"]
    assert not SensitivePolicy({"email": "redact", "card": "redact"}).apply(text).sensitive
    for action in ("drop", "refuse"):
        applied = SensitivePolicy({"email": "redact", "card": action}).apply(text)
        assert (applied.text, applied.action, applied.sensitive) == (text, action, True)
    assert SensitivePolicy({"email": "refuse", "card": "drop"}).apply(text).action == "refuse"
    assert not SensitivePolicy({"phone": "redact"}).apply(text).findings


@pytest.mark.parametrize(
    ("actions", "key", "message"),
    [
        ({"emails": "keep"}, KEY, "'emails' is not a kind of sensitive data"),
        ({"secret": "pseudonymise"}, KEY, "there are no stand-ins for 'secret'"),
        ({"email": "pseudonymise"}, b"", "pseudonymise needs a key of at least 16 bytes"),
        ({"email": "pseudonymise"}, b"short", "pseudonymise needs a key of at least 16 bytes"),
    ],
)
def test_policy_that_cannot_be_followed(
    actions: dict[str, sensitive.Action], key: bytes, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        SensitivePolicy(actions, key=key)


@pytest.mark.parametrize("kind", HAVE_STAND_INS)
def test_stand_in_is_the_same_for_the_same_value_and_nobodys(kind: str) -> None:
    for value in VALUES[kind]:
        text = f"Dear team: {value}, thanks. Again, {value}, bye."
        once = everything("pseudonymise").apply(text)
        first, second = re.fullmatch(
            r"Dear team: (.+), thanks\. Again, (.+), bye\.", once.text
        ).groups()  # type: ignore[union-attr]
        assert first == second != value
        assert not find(once.text)
        assert everything("pseudonymise").apply(once.text).text == once.text
        other = SensitivePolicy({kind: "pseudonymise"}, key=bytes(32)).apply(text).text  # type: ignore[dict-item]
        assert first not in other


@pytest.mark.parametrize("kind", ["phone", "card", "iban"])
def test_stand_in_keeps_the_form(kind: str) -> None:
    for value in VALUES[kind]:
        stand_in = everything("pseudonymise").apply(value).text
        assert re.sub(r"[A-Za-z]", "A", re.sub(r"\d", "0", stand_in)) == re.sub(
            r"[A-Za-z]", "A", re.sub(r"\d", "0", value)
        )


def test_stand_ins_are_of_kept_ranges() -> None:
    stand_ins = {
        kind: [everything("pseudonymise").apply(v).text for v in VALUES[kind]]
        for kind in HAVE_STAND_INS
    }
    assert all(
        re.fullmatch(r"person-[0-9a-f]{10}@example\.com", value) for value in stand_ins["email"]
    )
    digits = {
        kind: ["".join(filter(str.isalnum, v)) for v in stand_ins[kind]]
        for kind in ("phone", "card", "iban")
    }
    assert all(value.startswith(("999", "00999", "000")) for value in digits["phone"])
    assert all(value.startswith("9999") and luhn(value) for value in digits["card"])
    for value, stand_in in zip(VALUES["iban"], digits["iban"], strict=True):
        assert stand_in[:2] == value[:2].upper()
        assert stand_in[2:4] in ("99", "00", "01")
        assert iban_remainder(stand_in) == 1
    assert all(
        re.match(r"192\.0\.2\.|198\.51\.100\.|203\.0\.113\.|2001:db8:", value)
        for value in stand_ins["ip"]
    )


def test_one_value_written_in_many_ways_has_one_stand_in() -> None:
    policy = everything("pseudonymise")
    emails = [
        "jane.doe@example.org",
        "JANE.DOE@example.ORG",
        "jane.doe [at] example [dot] org",
        "jane dot doe at example dot org",
    ]
    assert len({policy.apply(text).text for text in emails}) == 1
    cards = ["4111 1111 1111 1111", "4111-1111-1111-1111", "４１１１111111111111"]
    assert len({re.sub(r"\D", "", policy.apply(text).text) for text in cards}) == 1
    phones = ["+1 (415) 555-0132", "(415) 555-0132", "001 415 555 0132"]
    assert len({re.sub(r"\D", "", policy.apply(text).text)[-7:] for text in phones}) == 1


def test_many_values_have_many_stand_ins() -> None:
    policy = everything("pseudonymise")
    assert len({policy.apply(f"user{k}@example.org").text for k in range(2000)}) == 2000
    assert len({policy.apply(f"+44 20 7946 {k:04}").text for k in range(2000)}) == 2000


# Counted


def test_tally_counts_by_column_and_rule_and_adds_up() -> None:
    policy = SensitivePolicy({"email": "keep", "card": "redact", "secret": "drop"})
    first, second = Tally(), Tally()
    row = [
        ("user", "jane@example.org, 4111 1111 1111 1111"),
        ("user", "well?"),
        ("answer", "joe@example.org"),
    ]
    for where, text in row:
        first.add(where, policy.apply(text), policy)
    second.add("user", policy.apply("password=" + "hunter2"), policy)
    first.merge(second)
    assert first.counts == {
        ("answer", "email/address", "keep"): 1,
        ("user", "card/luhn", "redact"): 1,
        ("user", "email/address", "keep"): 1,
        ("user", "secret/assigned", "drop"): 1,
    }


def test_nothing_shows_a_value() -> None:
    policy = SensitivePolicy(dict.fromkeys(VALUES, "keep"), key=KEY)  # type: ignore[arg-type]
    tally = Tally()
    for values in VALUES.values():
        for value in values:
            applied = policy.apply(value)
            tally.add("text", applied, policy)
            shown = f"{find(value)!r} {applied!r} {policy!r}"
            assert value not in shown
            assert repr(KEY) not in shown
    shown = repr(tally)
    assert not [value for values in VALUES.values() for value in values if value in shown]


# Whatever comes

PIECES = st.sampled_from(
    [
        *(value for values in VALUES.values() for value in values),
        "call me on ",
        "password=",
        " at ",
        " dot ",
        "@",
        "\u200b",
        "\n",
        "0044 ",
        "+",
        "(",
        ")",
        "-",
        ". ",
        ":",
        "://",
        "[CARD]",
        "１",
        "four ",
        "&#64;",
        "%40",
        "<b>",
        "\ud800",
        "ß",
        "DE99",
    ]
)
TEXTS = st.one_of(
    st.text(max_size=80),
    st.lists(st.one_of(PIECES, st.text("0123456789 -.+/@a", max_size=9))).map("".join),
    st.lists(hostile.fragments("find"), max_size=9).map("".join),
)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
@example("+49 170 1234567 12 4111 1111 1111 1111")
def test_spans_are_within_the_text_in_order_and_apart(text: str) -> None:
    findings = find(text)
    assert all(0 <= finding.start < finding.end <= len(text) for finding in findings)
    assert all(left.end <= right.start for left, right in itertools.pairwise(findings))
    assert {finding.kind for finding in findings} <= set(KINDS)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_after_redaction_nothing_is_found(text: str) -> None:
    redacted = everything("redact").apply(text).text
    assert not find(redacted)


@pytest.mark.parametrize("action", ["redact", "pseudonymise"])
@pytest.mark.parametrize(
    "value",
    ["+44 20 7946 0958", "DE89 3704 0044 0532 0130 00", "jane.doe@example.org,4111 1111 1111 1111"],
)
def test_however_many_values_stand_in_a_row_none_is_left(value: str, action: str) -> None:
    for count in (5, 40):
        redacted = (
            everything(action)
            .apply(f"Call {value * count}\nand then {value * count}\nThe end")
            .text
        )
        assert not find(redacted)
        assert redacted.startswith("Call ") and redacted.endswith("\nThe end")
    assert (
        everything(action).apply("Hello\n" + "pin12345678," * 400 + "\nThe end").text
        == "Hello\n[SECRET]\nThe end"
    )


@pytest.mark.parametrize(
    "text", ["refund to 4111 1111 1111 1111,98765 43210", "at 10.1.2.3/98765 43210"]
)
def test_value_that_shows_beside_a_replaced_one_is_no_exception(text: str) -> None:
    for action in ("drop", "refuse", "keep"):
        applied = SensitivePolicy({"card": "redact", "ip": "redact", "phone": action}).apply(text)
        assert (applied.action, applied.sensitive) == (action, True)
        assert applied.text == (
            re.sub(r"4111.*?,|10.1.2.3/", _as_mark, text) if action == "keep" else text
        )
    assert "98765" not in everything("pseudonymise").apply(text).text


def _as_mark(found: re.Match[str]) -> str:
    return "[CARD]," if found[0].endswith(",") else "[IP]/"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("my number is 378282246310005", "card"),  # also a phone number
        ("password=hunter2@corp.com", "secret"),  # also an address
        ("DB_PASSWORD=10.20.30.40", "secret"),
        ("api_key: +4915123456789", "secret"),
        ("Authorization: Bearer a1b2c3d4@example.com", "secret"),
    ],
)
def test_value_of_two_kinds_is_replaced_where_one_of_them_is(text: str, kind: str) -> None:
    kept = SensitivePolicy({**dict.fromkeys(KINDS, "keep"), kind: "redact"})
    for policy in (kept, SensitivePolicy({kind: "redact"})):
        applied = policy.apply(text)
        assert applied.text.endswith(f"[{kind.upper()}]") and not applied.sensitive
    assert [finding.kind for finding in find(text, [kind])] == [kind]


def test_digits_of_a_kept_iban_are_no_phone_number() -> None:
    text = "NL91 ABNA 0417 1643 00"
    assert SensitivePolicy({"iban": "keep", "phone": "redact"}).apply(text).text == text
    assert not find(text, ["phone"])


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_after_pseudonyms_a_second_pass_changes_nothing(text: str) -> None:
    once = everything("pseudonymise").apply(text)
    again = everything("pseudonymise").apply(once.text)
    assert again.text == once.text
    assert not again.findings


@settings(max_examples=100, deadline=None)
@given(
    st.from_regex(r"\+49 [1-9][0-9]{2,4}[ /-][0-9]{4,6}", fullmatch=True),
    st.from_regex(r"[a-z]{1,9}@[a-z]{1,9}\.org", fullmatch=True),
)
def test_pseudonyms_are_consistent_within_any_text(phone: str, email: str) -> None:
    policy = everything("pseudonymise")
    alone = [policy.apply(value).text for value in (phone, email)]
    assert policy.apply(f"Reach {email} via {phone}.").text == f"Reach {alone[1]} via {alone[0]}."


PARTS = st.lists(
    st.one_of(
        st.sampled_from(
            [value for values in VALUES.values() for value in values if len(value) < 90]
        ),
        st.sampled_from(
            [
                "call me on 4155550132",
                "password: hunter2",
                "jane at example dot org",
                "DE89",
                "note",
                "Ａ",
            ]
        ),
    ),
    min_size=10,
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(PARTS, st.integers(150, 400))
def test_long_text_is_searched_in_windows_as_in_one_piece(parts: list[str], window: int) -> None:
    text = " and then she wrote, ".join(parts)
    whole = find(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sensitive, "WINDOW", window)
        patch.setattr(sensitive, "OVERLAP", 300)
        patch.setattr(sensitive, "CONTEXT", 120)
        assert find(text) == whole


def test_long_text_takes_bounded_memory() -> None:
    text = "é ".join(["a word"] * 200_000) + " jane@example.org"
    tracemalloc.start()
    (finding,) = find(text)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert text[finding.start :] == "jane@example.org"
    assert peak < 40 << 20  # in one piece 138 MB


# Real texts


def test_what_the_example_data_plants_is_found_and_nothing_else() -> None:
    planted = re.compile(r"555-01\d\d|[\w.]+@example\.\w+|(?:4111|5555|4242) ?\d{4}", re.IGNORECASE)
    folder = EXAMPLES
    count = 0
    for name in ("support_tickets.csv", "order_emails.jsonl", "replies.jsonl"):
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            spans = [(finding.start, finding.end) for finding in find(line)]
            for value in planted.finditer(line):
                count += 1
                assert any(start <= value.start() and value.end() <= end for start, end in spans), (
                    line
                )
            assert all(planted.search(line[start:end]) for start, end in spans), line
    assert count > 500


@pytest.mark.skipif(not DATA.exists(), reason="the data sets beside the project are absent")
def test_real_requests_hold_almost_nothing() -> None:
    banking = io.StringIO((DATA / "banking77" / "train.csv").read_text(encoding="utf-8"))
    texts = [row["text"] for row in csv.DictReader(banking)]
    clinc = json.loads((DATA / "clinc150" / "data_full.json").read_text(encoding="utf-8"))
    texts += [text for rows in clinc.values() for text, _ in rows]
    texts += [
        json.loads(line)["utterance"]
        for line in (DATA / "snips" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    found = [finding.rule for text in texts for finding in find(text)]
    assert found == ["secret/pin"]  # "make my pin 1234 for my checking account": what it is for


# The key


def test_key_is_made_once_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / ".keys" / "pseudonyms"
    made: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: made.append(stand_ins.make_key(path))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 1
    assert len(made) == 8
    assert len(made[0]) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {one.name for one in path.parent.iterdir()} == {"pseudonyms", ".gitignore"}


def asked(folder: Path, *sets: str) -> StageRequest:
    project = Project(root=folder, config=config.load(folder / config.FILENAME, sets))
    base = artifact.foreign(folder / "base", "base")
    return project.stage("prepare").request({"base": base})


def test_hash_of_the_key_is_in_the_recipe_and_the_key_is_not(
    tiny_project: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "desk"
    subprocess.run(["cp", "-r", str(tiny_project), str(folder)], check=True)
    assert asked(folder).recipe["sensitive"]["pseudonym_key"] is None
    assert not (folder / "runs" / ".keys").exists()
    first = asked(folder, "prepare.sensitive.email=pseudonymise")
    path = folder / config.PSEUDONYM_KEY
    key = path.read_bytes()
    assert first.recipe["sensitive"]["pseudonym_key"] == artifact.sha256_file(path)
    assert key.hex() not in json.dumps(first.recipe)
    assert asked(folder, "prepare.sensitive.email=pseudonymise").recipe_id == first.recipe_id
    path.write_bytes(bytes(32))
    assert asked(folder, "prepare.sensitive.email=pseudonymise").recipe_id != first.recipe_id
    with pytest.raises(UsageError, match=r"mine\.key does not exist"):
        asked(folder, "prepare.sensitive={email: pseudonymise, pseudonym_key: mine.key}")


def test_config_names_every_kind_and_its_actions() -> None:
    assert set(config.Sensitive().actions) == set(KINDS) == set(VALUES)
    for kind in KINDS:
        allowed = set(get_args(config.Sensitive.model_fields[kind].annotation))
        assert ("pseudonymise" in allowed) == (kind in HAVE_STAND_INS)
        assert allowed | {"pseudonymise"} == set(get_args(sensitive.Action))
    assert (
        SensitivePolicy(config.Sensitive().actions).apply("card 4111 1111 1111 1111").text
        == "card [CARD]"
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "{pseudonym_key: a.key}",
            "'pseudonym_key' is for stand-ins, and no kind is pseudonymised",
        ),
        (
            "{secret: pseudonymise}",
            "found 'pseudonymise', expected 'keep', 'redact', 'drop' or 'refuse'",
        ),
        ("{mail: redact}", "unknown key; did you mean 'email'?"),
    ],
)
def test_config_that_does_nothing_is_a_fault(text: str, fault: str) -> None:
    with pytest.raises(UsageError) as caught:
        config.parse(f"project: a\nbase: ./b\nprepare: {{sensitive: {text}}}")
    assert fault in caught.value.message
