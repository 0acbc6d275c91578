"""Stand-ins (pseudonyms): equal values get equal stand-ins of the same form, which are nobody's
real value.

| kind  | stand-in | why it is not a real value |
|---|---|---|
| email | `person-<10 hex digits>@example.com` | RFC 2606 keeps the domain for examples |
| phone | the digits after `+999`, `00999` or `000` | no country code; no number begins so |
| card  | `9999…`, valid by Luhn | no network issues cards that begin with 9 |
| iban  | the country, check digits 99, 00 or 01, valid by mod 97 | ISO 13616 gives 02 to 98 |
| ip    | 192.0.2.0/24, 198.51.100.0/24, 203.0.113.0/24, 2001:db8::/32 | RFC 5737, RFC 3849 |

No rule matches a stand-in, so a second pass changes and counts nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from slmctl.artifacts import atomic
from slmctl.sensitive.phones import digits_of
from slmctl.sensitive.rules import DOCUMENTATION, RuleMatch, iban_remainder, luhn

KEY_BYTES = 32
KINDS = ("email", "phone", "card", "iban", "ip")


def make_key(path: Path) -> bytes:
    """The key in the file `path`; a missing file is created with a random key, readable by its
    owner only.

    Several processes that create it at once all return the key of the first.
    """
    if not path.exists():
        # a folder of the user's, with its own .gitignore
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(mode=0o700, parents=True)
            # the key must not be committed
            (path.parent / ".gitignore").write_text("*\n", encoding="utf-8")
        # keeps the key of a process that was faster
        with atomic.file(path, 0o600, replace=False) as draft:
            draft.write_bytes(secrets.token_bytes(KEY_BYTES))
    return path.read_bytes()


def stand_in(match: RuleMatch, form: str, key: bytes, is_clean: Callable[[str], bool]) -> str:
    """The stand-in of a value, equal for equal canonical value and key.

    Args:
        form: The written value with disguises undone; the stand-in keeps its separators and length.
        key: Key of the HMAC that determines the stand-in; without it, values cannot be recovered by
            trying.
        is_clean: Returns True for a text that no rule matches. A stand-in with a part that looks
            like a value by chance (a phone number inside an IBAN) is replaced by another one.
    """
    message = f"{match.kind}\0{match.value}".encode(errors="replace")
    written = ""
    for attempt in range(20):
        written = _written(
            match, form, hmac.digest(key, message + bytes([attempt]), hashlib.sha256)
        )
        if is_clean(written):
            break
    return written


def _written(match: RuleMatch, form: str, seed: bytes) -> str:
    if match.kind == "email":
        return f"person-{seed.hex()[:10]}@example.com"
    if match.kind == "phone":
        return _filled(form, _phone(form, seed))
    if match.kind == "card":
        return _filled(form, _card(len(match.value), seed))
    if match.kind == "iban":
        return _filled(form, _iban(match.value, seed))
    return _ip(match.value, seed)


def _digits(seed: bytes, count: int) -> str:
    return str(int.from_bytes(seed)).zfill(78)[-count:]


def _filled(form: str, chars: str) -> str:
    """`form` with its letters and digits replaced, in order."""
    left = iter(chars)
    return "".join(next(left) if char.isalnum() else char for char in form)


def _phone(form: str, seed: bytes) -> str:
    digits = digits_of(form)
    head = (
        "999" if "+" in form else "00999" if digits.startswith("0") and len(digits) > 8 else "000"
    )
    return head + _digits(seed, len(digits) - len(head))


def _card(length: int, seed: bytes) -> str:
    body = "9999" + _digits(seed, length - 5)
    return next(body + check for check in "0123456789" if luhn(body + check))


def _iban(value: str, seed: bytes) -> str:
    for bban in _bbans(value[4:], seed):
        for check in ("99", "00", "01"):
            if iban_remainder(value[:2] + check + bban) == 1:
                return value[:2] + check + bban
    raise AssertionError("unreachable: three of 97 bodies fit")


def _bbans(bban: str, seed: bytes) -> Iterator[str]:
    """Endless account parts of the same shape: a letter for each letter, a digit for each digit."""
    while True:
        digits = _digits(seed, len(bban))
        yield "".join(
            chr(65 + (seed[k % 32] + int(digit)) % 26) if char.isalpha() else digit
            for k, (char, digit) in enumerate(zip(bban, digits, strict=True))
        )
        seed = hashlib.sha256(seed).digest()


def _ip(value: str, seed: bytes) -> str:
    number = int.from_bytes(seed[:8])
    if ":" not in value:
        net = DOCUMENTATION[number % 3]
        return str(net[1 + seed[8] % 254])
    return str(ipaddress.IPv6Address(int(DOCUMENTATION[3].network_address) + (number << 32) + 1))
