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
    return {
        word: begin + step * k for k, names in enumerate(words.split("|")) for word in names.split()
    }


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
    "hundert": 100,
    "hundred": 100,
    "tausend": 1000,
    "thousand": 1000,
    "tsd": 1000,
    "million": 10**6,
    "millionen": 10**6,
    "mio": 10**6,
    "milliarden": 10**9,
    "mrd": 10**9,
    "billion": 10**9,
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
_VAGUE = {
    word: ("percent" if value in (25, 50) else "number", Fraction(value))
    for value, words in (
        (1, "first erste ersten"),
        (25, "quarter viertel"),
        (12, "dozen dutzend monthly monatlich"),
        (
            2,
            "twice both double pair couple beide beiden zweimal doppelt doppelte second zweite "
            "zweiten",
        ),
        (3, "third dritte dritten dreimal"),
        (50, "half halb halbe halben hälfte"),
    )
    for word in words.split()
} | {name: ("month", month) for name, month in _MONTHS.items()}
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


_MONTH, _TH, _IN_LINK = rf"(?:{_any(_MONTHS)})\b", r"(?:st|nd|rd|th|\.)", r"[^\s<>\"'()\[\]{}|]"
_WORD = _any((*_SMALL, *_LARGE))
# a number is not the beginning of a code, but may have its unit or a large word after it
_AFTER_NUMBER = (
    rf"(?:[ ]?(?:{_any(_LARGE)})\b|(?:st|nd|rd|th)\b"
    r"|(?=-?(?:[kcm]?[gml]|h|min|s|[kmgt]b|k?wh?|v|x|ct|eur|uhr|euros?"
    r"|(?:day|week|month|year|hour)s?)\b)|(?=-\d{1,4}\b(?!-))|(?![\w/-]{1,20}\d|\w))"
)
_FACT = re.compile(
    rf"""(?P<address>(?<![\w.+-])[\w.+-]{{1,64}}@[\w-]{{1,63}}(?:\.[\w-]{{1,63}}){{1,4}})
    |(?P<link>(?:https?://|\bwww\.){_IN_LINK}{{1,2000}}|(?<![\w-])(?:[a-z0-9-]{{1,63}}\.){{1,4}}
      (?:com|de|org|net|eu|at|ch|io|info|shop|app|uk|example)\b(?:/{_IN_LINK}{{0,2000}})?)
    |(?P<idiom>\b24/7\b|^[ ]{{0,8}}\d\d?[.)][ ](?!{_MONTH})|\b(?:step|schritt|punkt)[ ]\d\d?\b
      |(?<!\bin[ ])(?<!within[ ])(?<!innerhalb[ ]von[ ])(?<!binnen[ ])\b24[ ](?:hours|stunden)\b
      |\b100[ ]?(?:%|per[ ]?cent\b|prozent\b)
      |\b(?:two|three|four|zwei|drei|vier|[2-4])[ ](?:options|ways|choices
      |possibilities|steps|optionen|wege|möglichkeiten|schritte)\b)
    |(?P<time>\b\d\d?:\d\d(?![\d:])(?:[ ]?(?:uhr|[ap]\.?m)\b)?
      |\b\d\d?(?:\.\d\d)?[ ]?(?:uhr|[ap]\.?m)\b)
    |(?P<date>\b\d{{4}}-\d\d?-\d\d?\b|\b\d\d?/\d\d?(?:/(?:\d{{4}}|\d\d))?\b(?!/)
      |\b\d\d?\.[ ]?\d\d?\.(?:[ ]?\d{{4}}\b|\d\d\b|(?!\d))
      |\b\d\d?{_TH}?[ ](?:of[ ])?{_MONTH}(?:,?[ ]\d{{4}}\b)?
      |\b{_MONTH}\.?[ ]\d\d?(?!\d|[.:,]\d){_TH}?(?:,?[ ]\d{{4}}\b)?|\b{_MONTH}[ ]\d{{4}}\b)
    |(?P<cents>\b\d{{1,9}}[ ]?(?:€|euros?|dollars?|pounds?|franken)
      [ ](?:(?:and|und)[ ])?\d\d?[ ]?(?:cents?|ct|pence)\b)
    |(?P<weekday>\b(?:{_any(_DAYS)})s?\b)
    |(?P<month>\b(?:{_any(name for name in _MONTHS if len(name) > 3 or name == "mai")})\b)
    |(?P<words>\b(?:(?:{_WORD}|und){{1,12}}+)(?:[ -](?:(?<=d[ ])and[ ])?(?:{_WORD})){{0,12}}\b)
    |(?P<grouped>\b[1-9]\d{{0,2}}(?:[.,'’ ]\d{{3}}){{1,9}}(?:[.,]\d\d?)?
      (?![.,:/ -]?\d){_AFTER_NUMBER})
    |(?P<digits>(?:\+|\b)\d(?:[ ()/-]{{0,2}}\d){{6,18}}\b(?!,\d))
    |(?P<number>\b\d{{1,15}}(?:[.,]\d{{1,15}})?(?![.,:/]?\d){_AFTER_NUMBER})
    |(?P<code>\w{{1,40}}(?:[-_/.:]\w{{1,40}}){{0,9}})""",
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
        if vague and _is_name(match):
            readings = tuple(
                ("name" if kind == "number" else kind, *values) for kind, *values in readings
            )
        kind = str(readings[0][0]) if readings else ""
        # `may I` is no month, and `one of us` no number
        is_vague = (
            match[0][0].islower() if kind in ("weekday", "month") else match[0].casefold() in _ONE
        )
        if readings and (vague or not is_vague):
            yield Fact(_SHOWN.get(kind, kind), match[0].strip(" .,"), readings)
    for word in (
        dict.fromkeys(re.findall(r"[^\W\d_]{3,12}|\d{3,15}", text.casefold())) if vague else ()
    ):
        if word in _VAGUE or word.isdecimal():
            yield Fact("number", word, (_VAGUE.get(word) or ("name", Fraction(word)),))


def _is_name(match: re.Match[str]) -> bool:
    """True for a number in digits of which the words before it say that it names something."""
    named = _NAMED.search(match.string, max(0, match.start() - 40), match.start())
    return match[0].isdecimal() and len(match[0]) > 2 and named is not None


def _numbering(text: str) -> set[int]:
    """The places of the numbers that count from 1 on, as in `1. check 2. send`."""
    places, run = set[int](), list[int]()
    for match in _NUMBERING.finditer(text):
        number = int(match["number"])
        run = run if number == len(run) + 1 else []
        if number == len(run) + 1:
            run.append(match.start())
        places.update(run if len(run) > 1 else [])
    return places


def joined(text: str) -> str:
    """The letters and digits of a text, by which codes are compared however they are grouped."""
    return re.sub(r"[\W_]+", "", in_normal_form(text, "NFKC").casefold())


def _code(match: re.Match[str]) -> Iterator[Reading]:
    """A word with two digits or more, or digits in groups; of a phone
    number the last ones, without country and 0.
    """
    if sum(map(str.isdigit, match[0])) > 1:
        code = joined(match[0])
        yield "code", code[-8:] if match[0][0] in "+0" and code.isdecimal() else code
        yield from _measured(match, [Fraction(code)]) if match[0].isdecimal() else ()


def _time(match: re.Match[str]) -> Iterator[Reading]:
    """A time of the day; one without a half of the day may be in either."""
    hour, minute = map(int, (*re.findall(r"\d+", match[0]), 0)[:2])
    half = re.search(r"[ap](?=\.?m)|uhr", match[0].casefold())
    if hour <= 24 and minute < 60:
        yield (
            "time",
            60 * (hour % 12 + 12 * (half[0] == "p") if half and half[0] != "uhr" else hour)
            + minute,
        )
        yield from (("time", 60 * (hour + 12) + minute),) if half is None and hour < 12 else ()


def _date(match: re.Match[str]) -> Iterator[Reading]:
    numbers = [int(part) for part in re.findall(r"\d+", match[0])]
    named = [
        _MONTHS[word]
        for word in re.findall(r"[^\W\d_]{3,9}", match[0].casefold())
        if word in _MONTHS
    ]
    if named:
        year, day = ([*filter(fits, numbers), 0][0] for fits in ((31).__lt__, (31).__ge__))
        yield from dated(year, named[0], day)
    elif "-" in match[0]:
        yield from dated(*numbers)
    else:
        first, second, year = (*numbers, 0)[:3]
        year += 2000 if 0 < year < 100 else 0
        may_end = "." in match[0] and not year  # `3.5.` may be a number at the end of a sentence
        measured = (
            [*_measured(match, [Fraction(f"{first}.{match[0].split('.')[1].strip()}")])]
            if may_end
            else []
        )
        if not measured or measured[0][0] == "number":
            yield from dated(year, second, first)
            yield from dated(year, first, second) if "/" in match[0] else ()
        yield from measured


def dated(year: int, month: int, day: int) -> Iterator[Reading]:
    """The readings of a day, or of a month where `day` is 0; none if there is no such day."""
    if (
        1 <= month <= 12
        and day <= calendar.monthrange(year or LEAP, month)[1]
        and (not year or 1900 < year < 2200)
    ):
        yield "date", year, month, day
        yield from (("yearless", month, day),) if year and day else ()


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
            total, group = total + _LARGE[part] * (group or 1), 0
    if total + group and (len(parts) > 1 or group):
        yield from _measured(match, [Fraction(total + group)])


def _digits(match: re.Match[str]) -> Iterator[Reading]:
    """A number in digits; a single mark before three digits is one of thousands or of decimals."""
    text = re.sub(r"['’ ]", "", re.match(r"\d(?:[.,'’ ]?\d)*", match[0])[0])  # type: ignore[index] # begins so
    after = re.sub(r"[\d.,'’ ]", "", match[0]).casefold()
    marks, values = re.findall(r"[.,]", text), []
    if len({*marks}) == 1 and (len(marks) > 1 or re.search(r"[.,]\d{3}$", text)):
        values.append(Fraction(re.sub(r"[.,]", "", text)))
    if len(marks) < 2 or len({*marks}) == 2:
        whole, _, part = text.rpartition(marks[-1]) if marks else (text, "", "0")
        values.append(Fraction(f"{re.sub(r'[.,]', '', whole)}.{part}"))
    measured = [*_measured(match, [value * _LARGE.get(after, 1) for value in values])]
    if len(text) > 4 and match[0].isdecimal() and measured[0][0] != "amount":
        yield "code", text
    yield from measured
    if after in ("st", "nd", "rd", "th") or _ORDINAL.match(match.string, match.end()):
        yield "day", int(values[0])


def _measured(match: re.Match[str], values: list[Fraction]) -> Iterator[Reading]:
    """The readings of a number with the unit around it."""
    unit = _AFTER.match(match.string, match.end())
    kind = str(unit.lastgroup) if unit else ""
    if kind in ("amount", "cents") or _BEFORE.search(
        match.string, max(0, match.start() - 5), match.start()
    ):
        yield from (("amount", value / 100 if kind == "cents" else value) for value in values)
        return
    yield from (("percent" if kind == "percent" else "number", value) for value in values)
    if unit and kind == "unit":
        name = unit["unit"].casefold()
        name = next((part for part in (name, name[:-1], name[:-2]) if part in _PARTS), "")
        days = {"week": 7, "woche": 7, "day": 1, "tag": 1}.get(name)
        for value in values if name else ():
            yield "number", _PARTS[name] * value
            yield from (("days", int(days * value)),) if days else ()


_READERS: dict[str, Callable[[re.Match[str]], Iterator[Reading]]] = {
    "address": lambda match: iter([("address", match[0].casefold())]),
    "link": lambda match: iter(
        [("link", _SCHEME.sub("", match[0].casefold()).rstrip(".,;:!?/*_"))]
    ),
    "idiom": lambda _: iter(()),
    "time": _time,
    "date": _date,
    "cents": _cents,
    "weekday": lambda match: iter([("weekday", _DAYS[match[0].casefold().removesuffix("s")])]),
    "month": lambda match: iter([("month", _MONTHS[match[0].casefold()])]),
    "words": _words,
    "grouped": _digits,
    "digits": _code,
    "number": _digits,
    "code": _code,
}
