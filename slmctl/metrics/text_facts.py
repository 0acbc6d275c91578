"""A text -> its facts: numbers, amounts, dates, times, mail addresses, links and codes, in English
and German forms.

A fact has readings, the values that it may stand for: `1.500` is 1500 or 1.5, `two weeks` are 2 or
14, `3/4/2026` is a day of April or of March. Two facts are the same where they have a reading in
common.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from slmctl.normal_forms import in_normal_form

# ("number" | "amount" | "percent" | "name", Fraction), ("date", year or 0, month, day or 0),
# ("yearless", month, day), ("time", minute of the day), ("weekday", 0 to 6), ("month", 1 to 12),
# ("day", of a month), or a kind and its text
Reading: TypeAlias = tuple[str | int | Fraction, ...]


def _numbered(words: str, begin: int = 0, step: int = 1) -> dict[str, int]:
    numbers: dict[str, int] = {}
    for k, names in enumerate(words.split("|")):
        numbers |= dict.fromkeys(names.split(), begin + step * k)
    return numbers


_SMALL = _numbered(
    "null zero|eins ein eine einen einem einer one|zwei zwo two|drei three|vier four|fünf "
    "five|sechs six|sieben seven|"
    "acht eight|neun nine|zehn ten|elf eleven|zwölf twelve|dreizehn thirteen|vierzehn "
    "fourteen|fünfzehn fifteen|"
    "sechzehn sixteen|siebzehn seventeen|achtzehn eighteen|neunzehn nineteen"
) | _numbered(
    "zwanzig twenty|dreißig dreissig thirty|vierzig forty|fünfzig fifty|sechzig sixty|siebzig "
    "seventy|achtzig eighty|"
    "neunzig ninety",
    20,
    10,
)
_LARGE = {
    **dict.fromkeys(("hundert", "hundred"), 100),
    **dict.fromkeys(("tausend", "thousand", "tsd"), 1000),
    **dict.fromkeys(("million", "millionen", "mio"), 10**6),
    **dict.fromkeys(("milliarden", "mrd", "billion"), 10**9),
}
_MONTHS = _numbered(
    "january jan januar jänner|february feb februar|march mar märz mär|april apr|may mai|june jun "
    "juni|july jul juli|"
    "august aug|september sep sept|october oct oktober okt|november nov|december dec dezember dez",
    1,
)
_DAYS = _numbered(
    "monday montag|tuesday dienstag|wednesday mittwoch|thursday donnerstag|friday freitag|saturday "
    "samstag sonnabend|"
    "sunday sonntag"
)
# words that are no fact of an answer, though one may follow from them: `both chairs`, `half the
# price`
_VAGUE_NUMBERS = {
    1: "first erste ersten",
    2: "twice both double pair couple beide beiden zweimal doppelt doppelte second zweite zweiten",
    3: "third dritte dritten dreimal",
    12: "dozen dutzend monthly monatlich",
}
_VAGUE_SHARES = {25: "quarter viertel", 50: "half halb halbe halben hälfte"}  # in percent
_VAGUE: dict[str, Reading] = {name: ("month", month) for name, month in _MONTHS.items()}
for _value, _names in _VAGUE_NUMBERS.items():
    _VAGUE |= dict.fromkeys(_names.split(), ("number", Fraction(_value)))
for _value, _names in _VAGUE_SHARES.items():
    _VAGUE |= dict.fromkeys(_names.split(), ("percent", Fraction(_value)))
_SCHEME = re.compile(r"^(?:https?://)?(?:www\.)?")
LEAP = 2024  # for dates without a year
_ONE = [word for word, value in _SMALL.items() if value == 1]
_SHOWN = {"percent": "number", "weekday": "date", "month": "date"}
_PARTS = {
    "woche": 7,
    "week": 7,
    "jahr": 12,
    "year": 12,
    "stunde": 60,
    "hour": 60,
    "tag": 24,
    "day": 24,
    "minute": 60,
    "dutzend": 12,
    "dozen": 12,
    "kg": 1000,
    "km": 1000,
}  # of a unit, in the next smaller one


def _any(words: Iterable[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


_MONTH = rf"(?:{_any(_MONTHS)})\b"
_MONTH_ALONE = _any(name for name in _MONTHS if len(name) > 3 or name == "mai")
_TH = r"(?:st|nd|rd|th|\.)"
_IN_LINK = r"[^\s<>\"'()\[\]{}|]"
_WORD = _any((*_SMALL, *_LARGE))
# a number is not the beginning of a code, but may have its unit or a large word after it
_AFTER_NUMBER = (
    rf"(?:[ ]?(?:{_any(_LARGE)})\b|(?:st|nd|rd|th)\b"
    r"|(?=-?(?:[kcm]?[gml]|h|min|s|[kmgt]b|k?wh?|v|x|ct|eur|uhr|euros?"
    r"|(?:day|week|month|year|hour)s?)\b)|(?=-\d{1,4}\b(?!-))|(?![\w/-]{1,20}\d|\w))"
)
_ADDRESS = rf"""(?P<address>(?<![\w.+-])[\w.+-]{{1,64}}@[\w-]{{1,63}}(?:\.[\w-]{{1,63}}){{1,4}})
    |(?P<link>(?:https?://|\bwww\.){_IN_LINK}{{1,2000}}|(?<![\w-])(?:[a-z0-9-]{{1,63}}\.){{1,4}}
      (?:com|de|org|net|eu|at|ch|io|info|shop|app|uk|example)\b(?:/{_IN_LINK}{{0,2000}})?)"""
_IDIOM = rf"""(?P<idiom>
      \b24/7\b|^[ ]{{0,8}}\d\d?[.)][ ](?!{_MONTH})|\b(?:step|schritt|punkt)[ ]\d\d?\b
      |(?<!\bin[ ])(?<!within[ ])(?<!innerhalb[ ]von[ ])(?<!binnen[ ])\b24[ ](?:hours|stunden)\b
      |\b100[ ]?(?:%|per[ ]?cent\b|prozent\b)
      |\b(?:two|three|four|zwei|drei|vier|[2-4])[ ](?:options|ways|choices
      |possibilities|steps|optionen|wege|möglichkeiten|schritte)\b)"""
_TIME = r"""(?P<time>\b\d\d?:\d\d(?![\d:])(?:[ ]?(?:uhr|[ap]\.?m)\b)?
      |\b\d\d?(?:\.\d\d)?[ ]?(?:uhr|[ap]\.?m)\b)"""
_DATE = rf"""(?P<date>\b\d{{4}}-\d\d?-\d\d?\b|\b\d\d?/\d\d?(?:/(?:\d{{4}}|\d\d))?\b(?!/)
      |\b\d\d?\.[ ]?\d\d?\.(?:[ ]?\d{{4}}\b|\d\d\b|(?!\d))
      |\b\d\d?{_TH}?[ ](?:of[ ])?{_MONTH}(?:,?[ ]\d{{4}}\b)?
      |\b{_MONTH}\.?[ ]\d\d?(?!\d|[.:,]\d){_TH}?(?:,?[ ]\d{{4}}\b)?|\b{_MONTH}[ ]\d{{4}}\b)
    |(?P<cents>\b\d{{1,9}}[ ]?(?:€|euros?|dollars?|pounds?|franken)
      [ ](?:(?:and|und)[ ])?\d\d?[ ]?(?:cents?|ct|pence)\b)
    |(?P<weekday>\b(?:{_any(_DAYS)})s?\b)
    |(?P<month>\b(?:{_MONTH_ALONE})\b)"""
_NUMBER = rf"""(?P<words>
      \b(?:(?:{_WORD}|und){{1,12}}+)(?:[ -](?:(?<=d[ ])and[ ])?(?:{_WORD})){{0,12}}\b)
    |(?P<grouped>\b[1-9]\d{{0,2}}(?:[.,'’ ]\d{{3}}){{1,9}}(?:[.,]\d\d?)?
      (?![.,:/ -]?\d){_AFTER_NUMBER})
    |(?P<digits>(?:\+|\b)\d(?:[ ()/-]{{0,2}}\d){{6,18}}\b(?!,\d))
    |(?P<number>\b\d{{1,15}}(?:[.,]\d{{1,15}})?(?![.,:/]?\d){_AFTER_NUMBER})
    |(?P<code>\w{{1,40}}(?:[-_/.:]\w{{1,40}}){{0,9}})"""
_FACT = re.compile(
    "|".join([_ADDRESS, _IDIOM, _TIME, _DATE, _NUMBER]),
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
_ORDINAL = re.compile(r"\.\s[a-zäöü]")  # after a number of German
_NUMBERING = re.compile(  # of a list within a line; not `am 1. und 2.`
    r"(?<![\w.,:/-])(?<!(?:am|im) )(?<!(?:de[rmn]|[vz]om|zum) )(?P<number>\d\d?)[.)] "
    rf"(?!{_MONTH}|(?:und|oder|bis)\b)",
    re.IGNORECASE,
)
_NAMED = re.compile(  # the words before a number that is a name
    r"(?:#|\b(?:(?<!to "
    r")order|invoice|ticket|case|ref(?:erence)?|customer|account|contract|policy|tracking|phone|tel"
    r"|fax|hotline|bestellung|auftrag|rechnung|vorgang|kunde|konto|vertrag|sendung|paket|telefon|plz|\w{0,20}(?:number|nummer|nr|no))\b)"
    r"\W{0,3}(?:(?:number|nummer|nr|no|id|is|ist)\b\W{0,3}){0,2}$",
    re.IGNORECASE,
)
_BEFORE = re.compile(r"(?:[€$£]|\b(?:EUR|USD|CHF|GBP))\s?$")
_AFTER = re.compile(
    r"(?:,[-–]{1,2})?[\s-]?(?:(?P<amount>[€$£]|(?:eur|usd|chf|gbp|euros?|dollars?|pounds?|franken)\b)"
    r"|(?P<cents>(?:cents?|ct|pence)\b)|(?P<percent>%|(?:per\s?cent|prozent)\b)|(?P<unit>[a-zäöü]{2,9}))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Fact:
    """A value in a text: its kind (number, amount, date, time, address,
    link, code), characters and readings.
    """

    kind: str
    text: str
    readings: tuple[Reading, ...]


def facts_of(text: str, *, vague: bool = False) -> Iterator[Fact]:
    """The facts of a text; with `vague` also what can be the source of one: words such as `both`,
    digits in a code.

    With `vague` a number that names something, such as an order, is a name: no amount and no sum
    follows from it.
    """
    text = in_normal_form(text, "NFKC")
    numbering = set() if vague else _numbering(text)
    for match in _FACT.finditer(text):
        if match.start() in numbering:
            continue
        readings = tuple(_READERS[str(match.lastgroup)](match))
        if not readings:
            continue
        if vague and _is_name(match):
            readings = tuple(map(_as_name, readings))
        kind = str(readings[0][0])
        if vague or not _is_vague(kind, match[0]):
            yield Fact(_SHOWN.get(kind, kind), match[0].strip(" .,"), readings)
    if not vague:
        return
    words = re.findall(r"[^\W\d_]{3,12}|\d{3,15}", text.casefold())
    for word in dict.fromkeys(words):
        if word in _VAGUE:
            yield Fact("number", word, (_VAGUE[word],))
        elif word.isdecimal():
            yield Fact("number", word, (("name", Fraction(word)),))


def _as_name(reading: Reading) -> Reading:
    kind, *values = reading
    return ("name", *values) if kind == "number" else reading


def _is_vague(kind: str, text: str) -> bool:
    """True for the `may` of `may I`, which is no month, and for the `one` of `one of us`."""
    if kind in ("weekday", "month"):
        return text[0].islower()
    return text.casefold() in _ONE


def _is_name(match: re.Match[str]) -> bool:
    """True for a number in digits of which the words before it say that it names something."""
    named = _NAMED.search(match.string, max(0, match.start() - 40), match.start())
    return match[0].isdecimal() and len(match[0]) > 2 and named is not None


def _numbering(text: str) -> set[int]:
    """The places of the numbers that count from 1 on, as in `1. check 2. send`."""
    places: set[int] = set()
    run: list[int] = []
    for match in _NUMBERING.finditer(text):
        number = int(match["number"])
        if number != len(run) + 1:
            run = []
        if number == len(run) + 1:
            run.append(match.start())
        if len(run) > 1:
            places.update(run)
    return places


def joined(text: str) -> str:
    """The letters and digits of a text, by which codes are compared however they are grouped."""
    return re.sub(r"[\W_]+", "", in_normal_form(text, "NFKC").casefold())


def _code(match: re.Match[str]) -> Iterator[Reading]:
    """A word with two digits or more, or digits in groups; of a phone
    number the last ones, without country and 0.
    """
    text = match[0]
    if sum(map(str.isdigit, text)) < 2:
        return
    code = joined(text)
    is_phone = text[0] in "+0" and code.isdecimal()
    yield "code", code[-8:] if is_phone else code
    if text.isdecimal():
        yield from _measured(match, [Fraction(code)])


def _time(match: re.Match[str]) -> Iterator[Reading]:
    """A time of the day; one without a half of the day may be in either."""
    hour, minute = map(int, (*re.findall(r"\d+", match[0]), 0)[:2])
    half = re.search(r"[ap](?=\.?m)|uhr", match[0].casefold())
    if hour > 24 or minute >= 60:
        return
    if half is not None and half[0] != "uhr":
        hour %= 12
        if half[0] == "p":
            hour += 12
    yield "time", 60 * hour + minute
    if half is None and hour < 12:
        yield "time", 60 * (hour + 12) + minute


def _date(match: re.Match[str]) -> Iterator[Reading]:
    text = match[0]
    numbers = [int(part) for part in re.findall(r"\d+", text)]
    words = re.findall(r"[^\W\d_]{3,9}", text.casefold())
    months = [_MONTHS[word] for word in words if word in _MONTHS]
    if months:
        year = next((number for number in numbers if number > 31), 0)
        day = next((number for number in numbers if number <= 31), 0)
        yield from dated(year, months[0], day)
    elif "-" in text:
        yield from dated(*numbers)
    else:
        yield from _short_date(match, *numbers)


def _short_date(match: re.Match[str], first: int, second: int, year: int = 0) -> Iterator[Reading]:
    """The readings of `3.5.2026` and `3/5/26`, with or without a year."""
    text = match[0]
    if 0 < year < 100:
        year += 2000
    measured: list[Reading] = []
    if "." in text and not year:  # `3.5.` may be a number at the end of a sentence
        decimals = text.split(".")[1].strip()
        measured = [*_measured(match, [Fraction(f"{first}.{decimals}")])]
    if not measured or measured[0][0] == "number":
        yield from dated(year, second, first)
        if "/" in text:
            yield from dated(year, first, second)
    yield from measured


def dated(year: int, month: int, day: int) -> Iterator[Reading]:
    """The readings of a day, or of a month where `day` is 0; none if there is no such day."""
    if not 1 <= month <= 12 or day > calendar.monthrange(year or LEAP, month)[1]:
        return
    if year and not 1900 < year < 2200:
        return
    yield "date", year, month, day
    if year and day:
        yield "yearless", month, day


def _cents(match: re.Match[str]) -> Iterator[Reading]:
    """The amount of `49 euros and 90 cents`."""
    whole, cents = re.findall(r"\d+", match[0])
    yield "amount", Fraction(100 * int(whole) + int(cents), 100)


def _words(match: re.Match[str]) -> Iterator[Reading]:
    """A number in words, `two hundred and five` or `zweihundertfünf`;
    none for 0, and for `a million thanks`.
    """
    total = group = 0
    parts = re.findall(_WORD, match[0].casefold())
    for part in parts:
        if part in _SMALL:
            group += _SMALL[part]
        elif _LARGE[part] == 100:
            group = 100 * (group or 1)
        else:
            total += _LARGE[part] * (group or 1)
            group = 0
    if total + group and (len(parts) > 1 or group):
        yield from _measured(match, [Fraction(total + group)])


def _digits(match: re.Match[str]) -> Iterator[Reading]:
    """A number in digits; a single mark before three digits is one of thousands or of decimals."""
    figure = re.match(r"\d(?:[.,'’ ]?\d)*", match[0])
    assert figure is not None  # it begins so
    text = re.sub(r"['’ ]", "", figure[0])
    after = re.sub(r"[\d.,'’ ]", "", match[0]).casefold()
    values = _values(text)
    measured = [*_measured(match, [value * _LARGE.get(after, 1) for value in values])]
    if len(text) > 4 and match[0].isdecimal() and measured[0][0] != "amount":
        yield "code", text
    yield from measured
    if after in ("st", "nd", "rd", "th") or _ORDINAL.match(match.string, match.end()):
        yield "day", int(values[0])


def _values(text: str) -> list[Fraction]:
    """The values that digits with marks may have, `1.500` two of them."""
    marks = re.findall(r"[.,]", text)
    kinds = len({*marks})
    values = []
    if kinds == 1 and (len(marks) > 1 or re.search(r"[.,]\d{3}$", text)):
        values.append(Fraction(re.sub(r"[.,]", "", text)))
    if not marks:
        values.append(Fraction(text))
    elif len(marks) == 1 or kinds == 2:
        whole, part = text.rsplit(marks[-1], 1)
        whole = re.sub(r"[.,]", "", whole)
        values.append(Fraction(f"{whole}.{part}"))
    return values


def _measured(match: re.Match[str], values: list[Fraction]) -> Iterator[Reading]:
    """The readings of a number with the unit around it."""
    unit = _AFTER.match(match.string, match.end())
    kind = str(unit.lastgroup) if unit else ""
    if kind == "cents":
        yield from (("amount", value / 100) for value in values)
        return
    begin = max(0, match.start() - 5)
    if kind == "amount" or _BEFORE.search(match.string, begin, match.start()):
        yield from (("amount", value) for value in values)
        return
    shown = "percent" if kind == "percent" else "number"
    yield from ((shown, value) for value in values)
    if unit and kind == "unit":
        yield from _in_smaller_units(unit["unit"].casefold(), values)


def _in_smaller_units(name: str, values: list[Fraction]) -> Iterator[Reading]:
    """The numbers in the next smaller unit, and in days; none for an unknown unit."""
    unit = next((part for part in (name, name[:-1], name[:-2]) if part in _PARTS), None)
    if unit is None:
        return
    days = {"week": 7, "woche": 7, "day": 1, "tag": 1}.get(unit)
    for value in values:
        yield "number", _PARTS[unit] * value
        if days:
            yield "days", int(days * value)


def _address(match: re.Match[str]) -> Iterator[Reading]:
    yield "address", match[0].casefold()


def _link(match: re.Match[str]) -> Iterator[Reading]:
    link = _SCHEME.sub("", match[0].casefold())
    yield "link", link.rstrip(".,;:!?/*_")


def _idiom(_: re.Match[str]) -> Iterator[Reading]:
    return iter(())


def _weekday(match: re.Match[str]) -> Iterator[Reading]:
    day = match[0].casefold().removesuffix("s")
    yield "weekday", _DAYS[day]


def _month(match: re.Match[str]) -> Iterator[Reading]:
    yield "month", _MONTHS[match[0].casefold()]


_READERS: dict[str, Callable[[re.Match[str]], Iterator[Reading]]] = {
    "address": _address,
    "link": _link,
    "idiom": _idiom,
    "time": _time,
    "date": _date,
    "cents": _cents,
    "weekday": _weekday,
    "month": _month,
    "words": _words,
    "grouped": _digits,
    "digits": _code,
    "number": _digits,
    "code": _code,
}
