"""Rules for e-mail addresses, cards, IBANs and IP addresses: a plain text -> its sensitive spans,
in linear time.

Each rule reads a text without disguises (`unmask`) and yields a `RuleMatch` with the canonical
value, which is equal for all spellings of the value. Stand-ins (`stand_ins`) are not matched.
Issuer ranges follow ISO/IEC 7812 and the networks' tables, IBAN structures the SWIFT registry,
country codes ITU-T E.164.

Time: no pattern of this package backtracks over more than a bounded number of characters.
Repetitions are bounded and possessive (`{1,64}+`), a search starts at a character that every value
contains (`@`, `at`, a digit), and text before it is matched in reverse.
`tests/sensitive/test_linear_time.py` computes the bound of every pattern.
"""

from __future__ import annotations

import functools
import ipaddress
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple


class RuleMatch(NamedTuple):
    """A sensitive span, `text[start:end]` of the text that the rule
    has read, with its canonical value.
    """

    kind: str
    rule: str
    start: int
    end: int
    value: str  # canonical


Rule = Callable[[str], Iterator[RuleMatch]]

_NO_DIGITS = bytes(set(range(256)) - set(b"0123456789"))


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def holds(text: str, parts: Iterable[str]) -> bool:
    """True if the text contains one of the parts. A loop, since `any`
    takes three times as long for every text.
    """
    for part in parts:  # noqa: SIM110
        if part in text:
            return True
    return False


def digit_count(text: str) -> int:
    """Number of ASCII digits in a text; a cheap first check of the rules."""
    return len(text.encode(errors="replace").translate(None, _NO_DIGITS))


# E-mail

_LOCAL_REVERSED = re.compile(r"(?P<space>\s{0,2}+)\"?+[\w.+%'!#$&*/=?^{|}~-]{1,64}+")
_LABEL, _TOP = r"[^\W_][\w-]{0,62}+(?<![-_])", r"(?P<top>xn--[\w-]{2,40}+|[^\W\d_]{2,24}+)(?![\w@])"
_DOMAIN = re.compile(rf"(?:{_LABEL}\.){{1,8}}{_TOP}")
_SPACED_DOMAIN = re.compile(rf"\s{{0,2}}+(?:{_LABEL}\s{{0,2}}+\.\s{{0,2}}+){{1,8}}{_TOP}")
# scheme://user:password@host is a secret, not an e-mail
_USER_IN_URL = re.compile(r"[^\s/@:]{0,300}+:[^\s/@]{0,300}+")
_URL_HEAD = 300  # characters before an @ that may belong to a URL
_TOPS = words(
    "com org net edu gov info biz io co ai app dev me eu uk de fr es it nl be ch at pl pt se no dk "
    "fi ie cz ru ua tr "
    "us ca mx br ar cl in cn jp kr au nz za sg hk il test example invalid"
)
_WORDS = words("in at me be it no us es")
_NOT_TOPS = words("png jpg jpeg gif svg webp ico css js py json html php pdf")  # icon@2x.png
_DOT = r"\s{1,3}+(?:dot|punkt|point|punto)\s{1,3}+|_dot_|-dot-"
AT_WORDS = "arroba|arobase|klammeraffe|ät"  # that mean nothing else
_SPELLED_AT = re.compile(
    rf"(?<=\s)(?:at|{AT_WORDS})(?=\s)|(?<=_)at(?=_)|(?<=-)at(?=-)|(?<=\*)at(?=\*)|(?<=/)at(?=/)",
    re.IGNORECASE,
)
_SPELLED_LOCAL_REVERSED = re.compile(
    r"\w{1,40}+(?!\w)(?:(?:[.+-]| (?:tod|tknup|tniop|erocsrednu|hsad|sunim|sulp) "
    r")\w{1,40}+(?!\w)){0,5}+",
    re.IGNORECASE,
)
_SPELLED_LABEL = re.compile(rf"[\w-]{{1,63}}?(?:(?P<dot>{_DOT})|\.(?=[a-z]))", re.IGNORECASE)
_LABEL_END = re.compile(r"[._\s-]")
_SPELLED_TOP = re.compile(r"[a-z]{2,8}+(?!\w)", re.IGNORECASE)
_SPELLED_LABELS = 5  # without the top-level domain
SAID_AT = re.compile(
    rf"(?:\b(?>at|{AT_WORDS})\s{{1,3}}+|_at_|-at-|\*at\*|/at/)"
    r"[\w-]{1,63}?(?:\.[a-z]|(?:\s{1,3}+|[_-])(?:dot|punkt|point|punto)[\s_-])"
)
_MAILBOXES = words(
    "gmail googlemail outlook hotmail live yahoo icloud me msn aol proton protonmail gmx web mail "
    "yandex qq 163"
)
_SIGNS = {"underscore": "_", "dash": "-", "minus": "-", "plus": "+"}
_SIGNS |= dict.fromkeys(("dot", "punkt", "point", "punto"), ".")
_SIGN_WORD = re.compile(
    "|".join(
        rf"{left}(?P<w{k}>{'|'.join(_SIGNS)}){right}"
        for k, (left, right) in enumerate(((r"\s{1,3}", r"\s{1,3}"), ("_", "_"), ("-", "-")))
    )
)
STAND_IN_EMAIL = re.compile(r"person-[0-9a-f]{10}@example\.com")
_CLONE_URL = re.compile(r"git@(?:github|gitlab|bitbucket)\.\w{2,24}")


def emails(text: str) -> Iterator[RuleMatch]:
    """Addresses with a plausible domain; addresses with spaces or
    spelled-out signs under stricter conditions.
    """
    at = text.find("@")
    while at >= 0:
        match = _email_at(text, at)
        if match:
            yield match
        at = text.find("@", at + 1)
    if SAID_AT.search(text.lower()):
        for sign in _SPELLED_AT.finditer(text):
            match = _spelled_email(text, *sign.span())
            if match:
                yield match


def _email_at(text: str, at: int) -> RuleMatch | None:
    begin = at + 2 if text.startswith(("[", "(", "<"), at + 1) else at + 1  # jane@[acme.com]
    domain = _DOMAIN.match(text, begin) or _SPACED_DOMAIN.match(text, begin)
    if domain and domain["top"].lower() in _NOT_TOPS:  # invoice_jane@example.org.pdf
        domain = _DOMAIN.match(text[: domain.start("top") - 1], begin)
    local = _LOCAL_REVERSED.match(text[max(0, at - 66) : at][::-1])
    if not domain or not local or _is_password_in_url(text, at):
        return None
    top, whole = domain["top"].lower(), domain[0]
    spaced = bool(local["space"]) or whole != whole.replace(" ", "").replace("\n", "")
    if top in _NOT_TOPS or (spaced and top not in _TOPS):
        return None
    name = local[0][::-1].lstrip().lstrip("./=&?#|{}'!*^~$%")
    if not name.strip().strip("."):
        return None
    value = "".join(f"{name}@{whole}".lower().split())
    if STAND_IN_EMAIL.fullmatch(value) or _CLONE_URL.fullmatch(value):
        return None
    return RuleMatch(
        "email", "email/spaced" if spaced else "email/address", at - len(name), domain.end(), value
    )


def _is_password_in_url(text: str, at: int) -> bool:
    slash = text.rfind("/", max(0, at - _URL_HEAD), at)
    # also as JSON: :\/\/
    has_scheme = text[max(0, slash - 4) : slash + 1].replace("\\", "").endswith("://")
    return has_scheme and _USER_IN_URL.fullmatch(text, slash + 1, at) is not None


def _spelled_email(text: str, start: int, end: int) -> RuleMatch | None:
    """The address around the word `at` in `text[start:end]`, as in `jane at example dot org` or
    `jane_at_example.org`.

    The longest domain that ends with a top-level domain is taken.
    """
    is_word = text[end].isspace()
    gap = 1 if not is_word else len(text[end : end + 3]) - len(text[end : end + 3].lstrip())
    before = text[max(0, start - 260) : start]
    before = before[:-1] if not is_word else before[:-3] + before[-3:].rstrip()
    local = _SPELLED_LOCAL_REVERSED.match(before[::-1])
    domain = _spelled_domain(text, end + gap)
    if not local or not domain:
        return None
    name, top = local[0][::-1], domain.top
    is_clear = text[start:end].lower() != "at"
    is_mailbox = is_clear or domain.label.lower() in _MAILBOXES or not name.isalpha()
    # look at this point in time; www.acme.com/at/news.info
    is_prose = not is_clear and top[0].lower() in _WORDS and "dot" not in domain.dot.lower()
    in_path = before.removesuffix(name).endswith("/") or name.startswith("www.")
    is_prose |= in_path and text[start - 1 : end] == "/at"
    if top[0].lower() not in _TOPS or not (domain.dot or is_mailbox) or is_prose:
        return None
    left = start - (len(text[max(0, start - 260) : start]) - len(before)) - len(name)
    value = _with_signs(name) + "@" + _with_signs(text[end + gap : top.end()])
    return RuleMatch("email", "email/spelled", left, top.end(), value)


class _Domain(NamedTuple):
    """The first label of a domain, the word `dot` before its top-level domain or '', and that."""

    label: str
    dot: str
    top: re.Match[str]


def _spelled_domain(text: str, start: int) -> _Domain | None:
    """The longest domain with spelled dots at a place of a text."""
    longest, position = None, start
    first = ""
    for _ in range(_SPELLED_LABELS):
        label = _SPELLED_LABEL.match(text, position)
        if not label:
            break
        position = label.end()
        first = first or _LABEL_END.split(label[0], maxsplit=1)[0]
        top = _SPELLED_TOP.match(text, position)
        if top:
            longest = _Domain(first, label["dot"] or "", top)
        if not text[position : position + 1].isalpha():
            break
    return longest


def _with_signs(text: str) -> str:
    """A spelled part of an address with signs in place of words such as `dot`."""
    return _SIGN_WORD.sub(lambda match: _SIGNS[match[match.lastindex or 0]], text.lower())


# Cards

_RUN = re.compile(r"\d(?:[^A-Za-z0-9]{0,40}+\d){11,}")
_USUAL_GAP = re.compile(r"[ \n\-./_*,:;|~'`+()]{0,3}")
_GROUPS = re.compile(r"\d+")
_ISSUERS: tuple[tuple[int, int, frozenset[int]], ...] = tuple(
    (first, last, frozenset(lengths))
    for first, last, lengths in (
        (4, 4, (13, 16, 19)),
        (51, 55, (16,)),
        (2221, 2720, (16,)),
        (34, 34, (15,)),
        (37, 37, (15,)),
        (6011, 6011, (16, 19)),
        (644, 659, (16, 19)),
        (622126, 622925, (16, 19)),
        (300, 305, (14, 16, 19)),
        (3095, 3095, (14, 16, 19)),
        (36, 36, (14, 16, 19)),
        (38, 39, (14, 16, 19)),
        (3528, 3589, (16, 17, 18, 19)),
        (62, 62, (16, 17, 18, 19)),
        (50, 50, (16, 18, 19)),
        (56, 58, (16, 18, 19)),
        (6304, 6304, (16, 18, 19)),
        (6759, 6763, (16, 18, 19)),
        (2200, 2204, (16, 17, 18, 19)),
        (60, 60, (16,)),
        (81, 82, (16,)),
    )
)
_SHAPES = frozenset(  # the last two are numbers with thousands separators of a spreadsheet
    tuple(map(int, shape.split("-")))
    for shape in words(
        "4-4-4-4 4-6-5 4-6-4 4-4-4-4-3 4-4-5 4-3-3-3 8-8 4-12 6-10 12-4 1-3-3-3-3-3 3-3-3-3-3"
    )
)
_CARD_WORD = re.compile(r"(?<!\[)card|visa|credit|debit|karte|carte|tarjeta", re.IGNORECASE)
_EXPIRY = re.compile(  # the expiry date after a card: 12/26, exp 12/2026, |12|26|123
    r"[\s.,;_|/x*-]{0,3}+(?:(?:exp(?:iry|ires|\.)?|valid|thru|gültig|bis)[\s:._-]{0,3}+){0,2}+"
    r"(?:0[1-9]|1[0-2])[\s./|_-]{0,3}+(?:20)?[2-4]\d(?:[\s.,;_|/-]{1,3}+(?:cvv2?|cvc2?)?[\s:]{0,2}+\d{3,4})?(?!\d)",
    re.IGNORECASE,
)
_GLUED_EXPIRY = re.compile(
    r"(?:0[1-9]|1[0-2])(?:(?:20)?[2-4]\d(?:\d{3})?|(?=[/.|-](?:20)?[2-4]\d(?!\d)))"
)
_WORD = re.compile(r"[^\W_]{0,24}+")
_FRACTION = re.compile(r"(?<!\d)(?:\d{1,3}\.|0,)\Z")
# a fraction; 4111111111111111.0 is a card that went through a float
_ENDLESS = re.compile(r"\.(?!0{1,2}(?!\d))\d")


def luhn(digits: str) -> bool:
    """True if the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    doubled = (int(digit) * 2 for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(d - 9 * (d > 9) for d in doubled)) % 10 == 0


def cards(text: str) -> Iterator[RuleMatch]:
    """13 to 19 digits of a known issuer that pass the Luhn test, in
    one piece or in the usual groups.
    """
    if digit_count(text) < 13:
        return
    for run in _RUN.finditer(text):
        groups = [match.span() for match in _GROUPS.finditer(text, *run.span())]
        first = 0
        while first < len(groups):
            card = _card_from(text, groups, first)
            if card is None:
                first += 1
                continue
            first, span = card
            digits = "".join(_GROUPS.findall(text[slice(*span)]))
            yield RuleMatch("card", "card/luhn", *span, digits)


def _card_from(
    text: str, groups: list[tuple[int, int]], first: int
) -> tuple[int, tuple[int, int]] | None:
    """Returns (index of the next group, place) of a card that begins
    with group `first`; None without one.
    """
    start, digits = groups[first][0], ""
    if text[start] in "0179":
        return None  # no issuer has these
    for last in range(first, min(len(groups), first + 19)):
        group_start, group_end = groups[last]
        before = len(digits)
        if before > 19:
            break
        digits += text[group_start : min(group_end, group_start + 26)]
        # with the whole group, or without an expiry date at its end
        for length in (len(digits), 16, 15):
            if not before < length <= len(digits) or length not in _card_lengths(digits[:6]):
                continue
            end = group_start + length - before
            has_rest = end < group_end
            is_card = luhn(digits[:length]) and (
                not has_rest or _is_glued_expiry(text, end, group_end)
            )
            is_card = is_card and not _is_placeholder(text, groups, first, last)
            if is_card and _written_as_card(text, [*groups[first:last], (group_start, end)]):
                return last + 1, (start, end)
    return None


def _is_placeholder(text: str, groups: list[tuple[int, int]], first: int, last: int) -> bool:
    """True for groups such as `2222 3333 4444 5555` in a longer row of their kind."""
    around = [text[start:end] for start, end in groups[max(0, first - 1) : last + 2]]
    return len(around) > 4 and all(len(group) == 4 and len({*group}) == 1 for group in around)


def _is_glued_expiry(text: str, start: int, end: int) -> bool:
    expiry = _GLUED_EXPIRY.match(text, start)
    return expiry is not None and expiry.end() == end


@functools.lru_cache(maxsize=4096)
def _card_lengths(head: str) -> frozenset[int]:
    """Lengths of the cards that begin with the six digits `head`; empty for a shorter head."""
    ranges = ((first, last, lengths) for first, last, lengths in _ISSUERS if len(head) == 6)
    return frozenset().union(
        *(n for first, last, n in ranges if first <= int(head[: len(str(first))]) <= last)
    )


def _written_as_card(text: str, groups: list[tuple[int, int]]) -> bool:
    sizes = tuple(end - start for start, end in groups)
    between = {text[left[1] : right[0]] for left, right in itertools.pairwise(groups)}
    start, end = groups[0][0], groups[-1][1]
    if not _stands_alone(text, start, end):
        return False
    if between == {"\\,"}:  # thin spaces of LaTeX
        return sizes in _SHAPES
    # a list of numbers, but after a word for card
    if any("," in gap and len(gap) > 1 for gap in between):
        return sizes in _SHAPES and _CARD_WORD.search(text, max(0, start - 40), start) is not None
    if not all(map(_USUAL_GAP.fullmatch, between)):
        return sizes in _SHAPES and len(between) == 1
    if len(sizes) == 1:
        # EAN-13 passes by chance
        return sizes[0] != 13 or bool(_CARD_WORD.search(text, max(0, start - 40), start))
    if sizes in _SHAPES or set(sizes) == {1}:
        return True
    regular = len(set(sizes[:-1])) == 1 and sizes[-1] <= sizes[0] <= 5
    # 4111 11 11 …
    regular |= sum(sizes) == 16 and max(sizes) == 4 and {4, 8, 12} <= {*itertools.accumulate(sizes)}
    return regular and len(between) == 1 and between != {","}


def _stands_alone(text: str, start: int, end: int) -> bool:
    """True if the digits are not part of a fraction or a hash; an expiry date may follow."""
    before, after = text[max(0, start - 24) : start], text[end : end + 24]
    has_expiry = _EXPIRY.match(text, end) is not None
    if _FRACTION.search(before) or (_ENDLESS.match(after) and not has_expiry):
        return False
    glued = _WORD.match(before[::-1])[0] + ("" if has_expiry else _WORD.match(after)[0])  # type: ignore[index]
    return not any(char.isdigit() for char in glued) and len(glued) < 20


# IBAN

_BBANS = dict(
    item.split(":")
    for item in words(
        "AD:8n12c AE:19n AL:8n16c AT:16n AZ:4a20c BA:16n BE:12n BG:4a6n8c BH:4a14c BI:23n "
        "BR:23n1a1c BY:4c4n16c "
        "CH:5n12c CR:18n CY:8n16c CZ:20n DE:18n DJ:23n DK:14n DO:4c20n EE:16n EG:25n ES:20n FI:14n "
        "FK:2a12n "
        "FO:14n FR:10n11c2n GB:4a14n GE:2a16n GI:4a15c GL:14n GR:7n16c GT:24c HN:4a20n HR:17n "
        "HU:24n IE:4a14n "
        "IL:19n IQ:4a15n IS:22n IT:1a10n12c JO:4a4n18c KW:4a22c KZ:3n13c LB:4n20c LC:4a24c "
        "LI:5n12c LT:16n "
        "LU:3n13c LV:4a13c LY:21n MC:10n11c2n MD:20c ME:18n MK:3n10c2n MN:16n MR:23n MT:4a5n18c "
        "MU:4a19n3a "
        "NI:4a20n NL:4a10n NO:11n OM:3n16c PK:4a16c PL:24n PS:4a21c PT:21n QA:4a21c RO:4a16c "
        "RS:18n RU:14n15c "
        "SA:2n18c SC:4a20n3a SD:14n SE:20n SI:15n SK:20n SM:1a10n12c SO:19n ST:21n SV:4a20n TL:19n "
        "TN:20n "
        "TR:6n16c UA:6n19c VA:18n VG:4a16n XK:16n YE:4a4n18c"
    )
)
_PART = re.compile(r"(\d{1,2}+)([nac])")
_CLASS = {"n": "[0-9]", "a": "[A-Z]", "c": "[A-Z0-9]"}
_IBANS = {
    country: re.compile(
        "".join(f"{_CLASS[kind]}{{{size}}}" for size, kind in _PART.findall(structure))
    )
    for country, structure in _BBANS.items()
}
_IBAN_LENGTHS = {
    country: sum(int(size) for size, _ in _PART.findall(structure))
    for country, structure in _BBANS.items()
}
_IBAN_GAP = r"[ \n\-./_*|~:,;]{0,3}+"
_IBAN_HEAD = re.compile(
    rf"(?<![0-9])([A-Z]){_IBAN_GAP}([A-Z]){_IBAN_GAP}([0-9]){_IBAN_GAP}([0-9])", re.IGNORECASE
)
_IBAN_NEXT = re.compile(r"[\W_]{0,40}+([A-Z0-9])", re.IGNORECASE)


def iban_remainder(iban: str) -> int:
    """The remainder modulo 97 of ISO 13616: 1 for a valid IBAN."""
    return int("".join(str(int(char, 36)) for char in iban[4:] + iban[:4])) % 97


def ibans(text: str) -> Iterator[RuleMatch]:
    """IBANs with the length and structure of a country, assigned check digits (02 to 98), and a
    valid remainder.

    An all-digit account part may touch other letters; with letters in it, the rule would find IBANs
    in hashes.
    """
    if digit_count(text) < 6:
        return
    done = 0
    chars: list[str]
    for head in _IBAN_HEAD.finditer(text):
        country = (head[1] + head[2]).upper()
        if head.start() < done or country not in _IBANS or not 2 <= int(head[3] + head[4]) <= 98:
            continue
        chars, end = [], head.end()
        while len(chars) < _IBAN_LENGTHS[country] and (follows := _IBAN_NEXT.match(text, end)):
            chars.append(follows[1].upper())
            end = follows.end()
        bban = "".join(chars)
        value = country + head[3] + head[4] + bban
        after = text[end : end + 1]
        is_glued = text[max(0, head.start() - 1) : head.start()].isalnum() or after.isalnum()
        if after.isdigit() or (is_glued and not bban.isdigit()):
            continue
        if _IBANS[country].fullmatch(bban) and iban_remainder(value) == 1:
            done = end
            yield RuleMatch("iban", "iban/mod97", head.start(), end, value)


# IP addresses

_V4 = re.compile(r"(?<![\w.])(?<!\w-)\d{1,3}+(?:(?:\.|\s\.\s)\d{1,3}+){3}(?![\w])(?!\.\d)")
_V6 = re.compile(
    r"(?:(?<![\w:.])|(?<=[g-z]:)|(?<=[a-z]{5}:))"  # after a label such as ip: too
    r"(?:[0-9a-f]{0,4}+:){2,7}(?:\d{1,3}+(?:\.\d{1,3}+){3}|[0-9a-f]{1,4}+)?(?![\w:])",
    re.IGNORECASE,
)
_IN_HOST = re.compile(
    r"\b(?:ip|ec2|host|dhcp|dsl|static|cable)[-_](\d{1,3}+(?:[-_]\d{1,3}+){3})(?![-_]?\w)",
    re.IGNORECASE,
)
_NUMBERED_WORDS = words(
    "version versión release firmware build driver update sdk api revision section chapter clause "
    "paragraph figure "
    "table article step abschnitt kapitel punkt ziffer klausel absatz anlage artikel art.-nr "
    "chapitre capítulo sección "
    "apartado punto cláusula §"
)
_NUMBERED = re.compile(
    rf"(?:\bv|\bver|versions|{'|'.join(map(re.escape, _NUMBERED_WORDS))})[ :.#=]{{0,3}}$",
    re.IGNORECASE,
)
_REVERSED = "|".join(re.escape(word[::-1]) for word in _NUMBERED_WORDS)
# a text is searched from its end too, where `noisreV` stands behind
_NUMBERED_REVERSED = re.compile(
    rf"[ :.#=]{{0,3}}+(?:(?:v|rev)\b|snoisrev|{_REVERSED})", re.IGNORECASE
)
DOCUMENTATION = tuple(
    ipaddress.ip_network(net)
    for net in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
)


def ips(text: str) -> Iterator[RuleMatch]:
    """IPv4 and IPv6 addresses, also in host names; without those of
    documentation and loopback, and version numbers.
    """
    for match in _V4.finditer(text) if text.count(".") > 2 and digit_count(text) > 3 else ():
        octets = [int(part) for part in _GROUPS.findall(match[0])]
        if max(octets) > 255 or octets[0] in (0, 255):
            continue
        at_home = octets[:2] == [192, 168]
        before = _NUMBERED.search(text, max(0, match.start() - 24), match.start())
        if at_home or not (before or _NUMBERED_REVERSED.match(text, match.end())):
            yield from _address("ip/v4", *match.span(), ".".join(map(str, octets)))
    for match in _IN_HOST.finditer(text) if digit_count(text) > 3 else ():
        yield from _address(
            "ip/host",
            *match.span(1),
            ".".join(str(int(part)) for part in _GROUPS.findall(match[1])),
        )
    for match in _V6.finditer(text) if text.count(":") > 1 else ():
        if any(char.isdigit() for char in match[0]) and len(match[0]) > 5:
            yield from _address("ip/v6", *match.span(), match[0].lower())


def _address(rule: str, start: int, end: int, written: str) -> Iterator[RuleMatch]:
    try:
        address = ipaddress.ip_address(written)
    except ValueError:
        return
    if not (
        address.is_loopback
        or address.is_unspecified
        or any(address in net for net in DOCUMENTATION)
    ):
        yield RuleMatch("ip", rule, start, end, str(address))
