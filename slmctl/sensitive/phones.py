"""The rule for phone numbers: international, common national forms, and any number after a word for
phone.

Found are `+` or `00` with an assigned country code and a valid length for it; ten digits of North
America in groups; a leading 0 with an area code, in groups or as a mobile number; groups as in
Brazil, Russia, China, India, Italy, Spain and Poland; digits spelled one by one; and 7 to 15 digits
after `tel`, `call me on` and similar words. Other digits may follow: a second number, a date,
opening hours. Not found are dates, amounts, and national forms after a word such as `order` or
`ticket`.

libphonenumber found as many numbers of 12 countries, with 18 % false findings; this rule had none
(`benchmarks/README.md`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from slmctl.sensitive.rules import RuleMatch, digit_count, words
from slmctl.sensitive.unmask import FOLDS

_GAP = r"[ \-./()_*~\n]{0,3}+"
_START = r"(?<![^\W_])(?<!\+)(?<!\d[.,/\-])"
_END = r"(?![^\W_])(?![.,/\-]\d)"
_SEVEN = re.compile(r"\d(?:[ \-./()_*~\n]{0,4}+\d){6}")
_PLUS = re.compile(r"(?<![\w+])\+[ (]{0,2}+\d(?:[ \-./()\[\]_*~\n]{0,3}+ {0,37}+\d){6,14}(?!\d)")
_DOUBLE_ZERO = re.compile(
    rf"{_START}(?<!\d{{4}} )\(?00[ \-./)]{{0,2}}+[1-9](?:{_GAP}\d){{6,14}}(?!\w)"
)
_AMERICA = re.compile(
    rf"{_START}(?:1[ .\-/]{{1,2}}+)?(?:\( ?[2-9][0-8]\d ?\)[ .\-/_*~\n]{{0,3}}+|[2-9][0-8]\d[ "
    rf".\-/_*~\n]{{1,3}}+)"
    rf"[2-9]\d\d[ .\-/_*~\n]{{1,3}}+\d{{4}}{_END}"
)
# The trunk prefix 0, an area code, and all groups that follow, which may include another number.
_TRUNK_GROUPS = r"\(?0[1-9]\d{0,4}+\)?+(?:[ \-./()_*~\n]{1,3}+\d{2,8}+(?![^\W_])){1,12}+"
_TRUNK = re.compile(rf"{_START}(?<!\d{{4}} ){_TRUNK_GROUPS}")
_ANOTHER = re.compile(
    rf"(?P<gap>[ /,;|&+\n-]{{1,4}}+(?:(?>and|or|und|oder|et|ou|y|o) )?+){_TRUNK_GROUPS}"
)
_STRONG_GAP = re.compile(r"\. |/ | /|\n\n| - ")
_MOBILE = re.compile(rf"{_START}(?:07\d{{9}}|01[5-7]\d{{8,9}}|0[67]\d{{8}}|04\d{{8}}){_END}")
_NATIONAL = re.compile(  # Brazil, Russia, China, India, Italy, Spain and Poland
    rf"{_START}(?<!\d )(?:\(\d\d\) ?9?\d{{4}}-\d{{4}}|\d\d 9\d{{4}}[ -]\d{{4}}"
    rf"|8[ -]?\(?9\d\d\)?[ -]?\d{{3}}[ -]\d\d[ -]\d\d|1[3-9]\d[ -]\d{{4}}[ -]\d{{4}}|[6-9]\d{{4}}[ "
    rf"-]\d{{5}}"
    rf"|3[2-9]\d[ -](?:\d{{6,7}}|\d{{3}} \d{{4}})|[6-9]\d\d \d\d \d\d \d\d|(?:\([1-9]\d\)|[1-9]\d) "
    rf"\d{{3}} \d\d \d\d"
    rf"|[5-9]\d\d-\d{{3}}-\d{{3}}|[5-9]\d\d \d{{3}} \d{{3}}(?! ?[^\W\d]| ?[€$%£])){_END}"
)
_SPELLED = re.compile(r"(?<![\w.,])(?:\+ ?)?\d(?:[ .\-_*/()]{1,4}+\d){8,14}(?!\w)")
_NUMBER = re.compile(rf"{_START}\(?\d(?:{_GAP}\d){{6,14}}(?!\w)")
_GROUP = re.compile(r"\d+")
_FOREIGN = (  # words for phone, folded as in `unmask`
    r"\b(?:telefoon(?:nummer)?|cellulare|celular|portable|msisdn|wa\.me|телефон|тел|моб)"
    r"|手机|手機|电话|電話|携帯|전화|휴대폰|هاتف|جوال|טלפון"
).translate(FOLDS)
_PHONE_WORD = re.compile(
    rf"(?<!\[)(?:(?>{_FOREIGN})|\b(?>(?:tele)?(?:phone|fon)s?)|\btel|\bmobile?|\bm[oó]vil|\bcell(?:phone)?|\bhandy(?:nummer)?|\brufnummer|\bfax"
    r"|\bhotline|\bwhatsapp|\blandline|\bt[eé]l[eé]phone|\btel[eé]fono"
    r"|\b(?>call|ring|dial|text|sms|reach|contact|phone)(?>ed|ing)?+\W{1,2}+(?>me|us|him|her|them|back|on|at)\b"
    r"|\b(?>call|ring|dial|text|sms|my (?:new |old )?number|contact(?: "
    r"number)?|ll[aá]m[ae](?:me|nos)?"
    r"|appele[rz](?:-(?:moi|nous))?|(?:mi|mon) n[uú]m[eé]ro)\b)"
    r"[^\w\n(+]{0,3}+(?>(?:me|us|back|number|no|nr|num|is|was|at|on|under|the|my|our|line|please|today|tonight|tomorrow|again|es|est|al|au)\b[^\w\n(+]{0,3}+){0,5}+$",
    re.IGNORECASE,
)
_OTHER = re.compile(
    r"(?<!\[)\b(?:order|invoice|ref(?:erence)?|ticket|case|tracking|sku|serial|article|isbn|part|policy|claim|account"
    r"|booking|confirmation|transaction|parcel|imei|vin|model|item|id|asin|bestell\w{0,20}+|rechnung\w{0,20}+"
    r"|auftrag\w{0,20}+)s?\b"
    r"\W{0,3}+(?:(?:number|no|nr|num|code|id|is|was)\b\W{0,3}+){0,3}+$",
    re.IGNORECASE,
)
_DATE = re.compile(
    r"\(?\d{1,2}[./ -]\d{1,2}[./ -](?:19|20)\d\d(?!\d)|(?:19|20)\d\d[./-]\d\d?[./-]\d\d?(?!\d)"
)
# Country code -> least and largest number of digits after it; other codes: 6 to 12.
_LENGTHS = {
    "1": (10, 10),
    "7": (10, 10),
    "20": (8, 10),
    "27": (9, 9),
    "30": (10, 10),
    "31": (9, 9),
    "32": (8, 9),
    "33": (9, 9),
    "34": (9, 9),
    "36": (8, 9),
    "39": (8, 11),
    "40": (9, 9),
    "41": (9, 9),
    "43": (7, 13),
    "44": (9, 10),
    "45": (8, 8),
    "46": (7, 10),
    "47": (8, 8),
    "48": (9, 9),
    "49": (7, 12),
    "52": (10, 11),
    "55": (10, 11),
    "61": (9, 9),
    "64": (8, 10),
    "65": (8, 8),
    "81": (9, 10),
    "82": (8, 10),
    "86": (10, 11),
    "90": (10, 10),
    "91": (10, 10),
    "351": (9, 9),
    "353": (7, 10),
    "358": (6, 11),
    "380": (9, 9),
    "420": (9, 9),
    "852": (8, 8),
}
_CODES = (
    frozenset(_LENGTHS)
    | words(
        "51 53 54 56 57 58 60 62 63 66 84 92 93 94 95 98 211 212 213 216 218 290 291 297 298 299 "
        "350 352 354 355 "
        "356 357 359 370 371 372 373 374 375 376 377 378 379 381 382 383 385 386 387 389 421 423 "
        "500 501 502 503 "
        "504 505 506 507 508 509 590 591 592 593 594 595 596 597 598 599 670 672 673 674 675 676 "
        "677 678 679 680 "
        "681 682 683 685 686 687 688 689 690 691 692 800 808 850 853 855 856 870 878 880 881 882 "
        "883 886 960 961 "
        "962 963 964 965 966 967 968 970 971 972 973 974 975 976 977 979 992 993 994 995 996 998"
    )
    | frozenset(str(code) for code in range(220, 270) if code != 259)
)


def phones(text: str) -> Iterator[RuleMatch]:
    """Every phone number in a text; several rules may yield the
    same number with different spans.
    """
    if digit_count(text) < 7 or not _SEVEN.search(text):
        return
    # ends of numbers that were followed, so that a long list of numbers is walked once
    followed: set[int] = set()
    for phone in _written(text):
        yield phone
        yield from _others(text, phone.end, followed)


def _written(text: str) -> Iterator[RuleMatch]:
    """The numbers that are recognised by their form, or by a word before them."""
    for match in _PLUS.finditer(text) if "+" in text else ():
        yield from _international(text, match.start(), match.end(), 0)
    for match in _DOUBLE_ZERO.finditer(text):
        if not _is_other(text, match.start()):
            yield from _international(text, match.start(), match.end(), 2)
    for match in _TRUNK.finditer(text):
        if not _is_other(text, match.start()):
            yield from _trunk(text, *match.span())
    for rule, pattern in (("america", _AMERICA), ("mobile", _MOBILE), ("national", _NATIONAL)):
        for match in pattern.finditer(text):
            is_valid = rule != "america" or _is_american(digits_of(match[0])[-10:])
            if is_valid and not _is_other(text, match.start()):
                yield _phone(f"phone/{rule}", text, *match.span())
    for match in _SPELLED.finditer(text):
        if _is_spelled_phone(match[0]):
            yield _phone("phone/said", text, *match.span())
    for match in _NUMBER.finditer(text):
        start, number = match.start(), match[0]
        if digits_of(number).startswith(("000", "00999")) or _DATE.match(number):
            continue
        if _PHONE_WORD.search(text[max(0, start - 60) : start]):
            yield _phone("phone/after-word", text, start, match.end())


def _others(text: str, end: int, followed: set[int]) -> Iterator[RuleMatch]:
    """The numbers that follow a number, such as the second of `0151 23456789 / 0151 23456780`."""
    while end not in followed and (match := _ANOTHER.match(text, end)):
        followed.add(end)
        phone = next(_trunk(text, match.end("gap"), match.end()), None)
        if phone is None:
            return
        yield phone
        end = phone.end


def _phone(rule: str, text: str, start: int, end: int) -> RuleMatch:
    return RuleMatch("phone", rule, start, end, canonical(text[start:end]))


def digits_of(text: str) -> str:
    return "".join(filter(str.isdigit, text))


def canonical(written: str) -> str:
    """The digits, with the country code if the form shows it: equal for
    `+1 415…`, `001 415…` and `(415) …`.
    """
    digits = digits_of(written)
    if "+" in written:
        return digits
    if digits.startswith("00"):
        return digits[2:]
    return "1" + digits if _is_american(digits) else digits


def _is_american(digits: str) -> bool:
    """True for a number of North America: area code and exchange start with
    2 to 9; N9X and N11 are not area codes.
    """
    return (
        len(digits) == 10
        and digits[0] > "1"
        and digits[1] != "9"
        and digits[1:3] != "11"
        and digits[3] > "1"
    )


def _group_ends(text: str, start: int, end: int) -> list[int]:
    return [group.end() for group in _GROUP.finditer(text, start, end)]


def _international(text: str, start: int, end: int, skip: int) -> Iterator[RuleMatch]:
    """The longest prefix, ending with a group, that is a valid number of its country."""
    for group_end in reversed(_group_ends(text, start, end)):
        digits = digits_of(text[start:group_end])[skip:]
        if _valid(digits):
            yield RuleMatch("phone", "phone/international", start, group_end, digits)
            return


def _valid(digits: str) -> bool:
    code = next((digits[:size] for size in (1, 2, 3) if digits[:size] in _CODES), "")
    if not code or digits.endswith("000000"):
        return False
    if code == "1":
        return _is_american(digits[1:])
    rest = digits[len(code) :].removeprefix("0")  # +44 (0)20 …
    low, high = _LENGTHS.get(code, (6, 12))
    return low <= len(rest) <= high


def _trunk(text: str, start: int, end: int) -> Iterator[RuleMatch]:
    """The first number, 9 to 12 digits, in groups that begin with the trunk prefix 0.

    It ends before a separator such as ` / ` or another number, else after the most groups that it
    can have.
    """
    if _DATE.match(text, start):
        return
    ends = [at for at in _group_ends(text, start, end) if 9 <= len(digits_of(text[start:at])) <= 12]
    for group_end in ends:
        if (
            group_end == ends[-1]
            or _STRONG_GAP.match(text, group_end)
            or _begins_number(text, group_end, end)
        ):
            following = text[group_end : group_end + 2]
            # an amount or a version
            if following[:1] not in (".", ",") or not following[1:].isdigit():
                yield _phone("phone/trunk", text, start, group_end)
            return


def _begins_number(text: str, start: int, end: int) -> bool:
    """True if `text[start:end]` begins with another number that has a trunk prefix."""
    digits = digits_of(text[start:end])
    return digits[:1] == "0" and digits[1:2] != "0" and len(digits) >= 9


def _is_spelled_phone(written: str) -> bool:
    digits = digits_of(written)
    if "+" in written:
        return _valid(digits)
    if digits.startswith("00"):
        return _valid(digits[2:])
    if digits[0] == "0":
        return 10 <= len(digits) <= 11
    return _is_american(digits.removeprefix("1"))


def _is_other(text: str, start: int) -> bool:
    """True if the words before a number name something else, such as an order."""
    return bool(_OTHER.search(text[max(0, start - 40) : start]))
