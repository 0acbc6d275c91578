"""The places of a value in a text: the same words, number or date, however it is written there."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from datetime import date
from functools import cached_property
from typing import Any

from slmctl.normal_forms import in_normal_form

Span = tuple[int, int]  # first character and the one behind the last, in the text
# with accents that stand by themselves; the v of v1.2.3 is a word of its own
_WORD = re.compile(r"[vV](?=\d+\.\d)|[\w\u0300-\u036f]+|[^\w\s]")
_NUMBER = re.compile(r"\d+(?:[.,]\d+|['’\u00a0\u202f ]\d{3}(?!\d))*")
_UNDIVIDED = re.compile(r"\d[^ ]*")
_NAME, _YEAR = r"(?P<month>[^\W\d_]{3,10})\.?", r"(?P<year>\d{4})(?!\d)"
_OF = r"(?:(?:del?|of)\s{1,2})?"  # 3 de mayo de 2024
_DAY_FIRST = re.compile(
    rf"(?<!\d)(?P<day>\d{{1,2}})(?:[.)º]|er|st|nd|rd|th)?[\s-]{{0,2}}{_OF}{_NAME},?[\s-]{{0,2}}{_OF}{_YEAR}",
    re.IGNORECASE,
)
_MONTH_FIRST = re.compile(
    rf"(?<!\w){_NAME}\s{{1,2}}(?P<day>\d{{1,2}})(?:st|nd|rd|th)?,?\s{{1,2}}{_YEAR}"
)
# 20240503
_COMPACT = re.compile(r"(?<!\d)(?P<year>(?:19|20)\d\d)(?P<month>\d\d)(?P<day>\d\d)(?!\d)")
_MONTH_ALONE = re.compile(
    rf"(?:(?<!\w){_NAME},?[\s-]{{1,2}}{_OF}|(?<![\w./-])(?P<digits>\d{{1,2}})[./]){_YEAR}",
    re.IGNORECASE,
)
_IN_DIGITS = re.compile(r"(?<!\d)(\d{1,4})([./-])\s?(\d{1,2})\2\s?(\d{2,4})(?!\d)")
LEAST_STEM, ENDING = 3, 2  # letters of a word without its ending; of the ending
_ISO = re.compile(r"\d{4}-\d\d(?:-\d\d)?")
# The first letters of the months in English, German, French, Spanish and Italian; March is also
# "mär", "mrz".
_MONTHS = (
    "jan jän ene gen",
    "feb fév fev",
    "mar mär mrz",
    "apr avr abr",
    "may mai mag",
    "jun juin giu",
    "jul juil lug",
    "aug aoû aou ago",
    "sep set",
    "oct okt ott",
    "nov",
    "dec dez déc dic",
)
_MONTH_OF = {name: k for k, names in enumerate(_MONTHS, 1) for name in names.split()}


class Evidence:
    """A text in which values are looked for; the work on the text is done once."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._known: dict[tuple[str, Any], list[Span]] = {}

    def spans(self, value: Any) -> list[Span]:
        """The places of a scalar of JSON, in order; none for true, false and
        null. A sign of a number may be apart.
        """
        if value is None or isinstance(value, bool):
            return []
        key = type(value).__name__, value
        if key not in self._known:
            self._known[key] = self._look_up(value)
        return self._known[key]

    def within(self, value: Any, window: Span) -> list[Span]:
        """The places of a scalar that lie in a window."""
        spans = self.spans(value)
        first = bisect_left(spans, window[0], key=lambda span: span[0])
        last = bisect_left(spans, window[1], lo=first, key=lambda span: span[0])
        return [span for span in spans[first:last] if span[1] <= window[1]]

    def inflected(self, text: str) -> list[Span]:
        """The places of the same words but for the ending of the last
        one, such as `two kettles` for a kettle.
        """
        key = [word for word, *_ in _words(text)]
        if not key or len(key[-1]) < LEAST_STEM:
            return []
        *before, own_last = key
        stem = own_last[: max(LEAST_STEM, len(own_last) - ENDING)]
        spans = []
        for first in range(len(self._words) - len(key) + 1):
            words = self._words[first : first + len(key)]
            last = words[-1][0]
            is_inflected = last.startswith(stem) and abs(len(last) - len(own_last)) <= ENDING
            if is_inflected and [word for word, *_ in words[:-1]] == before:
                spans.append((words[0][1], words[-1][2]))
        return spans

    @property
    def words(self) -> list[Span]:
        """The places of all words and signs, in order."""
        return [(start, end) for _, start, end in self._words]

    def touched(self, span: Span) -> list[Span]:
        """The places of the words and signs of which a place holds a part."""
        first = bisect_right(self._words, span[0], key=lambda word: word[2])
        last = bisect_left(self._words, span[1], lo=first, key=lambda word: word[1])
        return [(start, end) for _, start, end in self._words[first:last]]

    def _look_up(self, value: Any) -> list[Span]:
        if isinstance(value, int | float):
            return self._numbers.get(abs(value), [])
        text = str(value)
        spans = set(self._words_of(text))
        if _ISO.fullmatch(text):
            spans |= {span for day, span in self._dates if day == text}
        return sorted(spans)

    def _words_of(self, text: str) -> list[Span]:
        """The places of the same words and signs, whatever their
        case and the white space between them.
        """
        key_words = _words(text)
        if not key_words:
            return []
        key = [word for word, *_ in key_words]
        spans = []
        for first in self._starts.get(key[0], []):
            words = self._words[first : first + len(key)]
            if [word for word, *_ in words] == key:
                spans.append((words[0][1], words[-1][2]))
        return spans

    @cached_property
    def _words(self) -> list[tuple[str, int, int]]:
        return _words(self.text)

    @cached_property
    def _starts(self) -> dict[str, list[int]]:
        starts: dict[str, list[int]] = {}
        for k, (word, *_) in enumerate(self._words):
            starts.setdefault(word, []).append(k)
        return starts

    @cached_property
    def _numbers(self) -> dict[float, list[Span]]:
        numbers: dict[float, list[Span]] = {}
        for start, number in numbers_in(self.text):
            for value in readings(number):
                numbers.setdefault(value, []).append((start, start + len(number)))
        return {value: sorted(spans) for value, spans in numbers.items()}

    @cached_property
    def _dates(self) -> list[tuple[str, Span]]:
        return sorted(dates(self.text), key=lambda pair: pair[1])


def numbers_in(text: str) -> Iterator[tuple[int, str]]:
    """Returns (place, digits) of each number; digits that a space
    divides are one number, and several.
    """
    for match in _NUMBER.finditer(text):
        yield match.start(), match.group()
        if " " in match.group():
            for part in _UNDIVIDED.finditer(match.group()):
                yield match.start() + part.start(), part.group()


def _words(text: str) -> list[tuple[str, int, int]]:
    """The words and signs of a text in one form, with their places."""
    words = []
    for match in _WORD.finditer(text):
        word = in_normal_form(match.group(), "NFKC").casefold()
        words.append((word, match.start(), match.end()))
    return words


def readings(number: str) -> set[float]:
    """The values that digits with separators can mean: `1.234` is
    1234 in German and 1.234 in English.
    """
    digits = re.sub(r"['’\u00a0\u202f ]", "", number)
    values = set[float]()
    for thousands, point in ((",", "."), (".", ",")):
        whole, *decimals = digits.split(point)
        groups = whole.split(thousands)
        has_whole_groups = all(len(group) == 3 for group in groups[1:])
        if not has_whole_groups or len(decimals) > 1 or thousands in "".join(decimals):
            continue
        values.add(float(f"{''.join(groups)}.{''.join(decimals) or 0}"))
    return values


def dates(text: str) -> Iterator[tuple[str, Span]]:
    """Returns (YYYY-MM-DD or YYYY-MM, place) of each date and month;
    digits that two orders allow are both.
    """
    for pattern in (_DAY_FIRST, _MONTH_FIRST, _COMPACT):
        for match in pattern.finditer(text):
            yield from _dated(match, match["year"], _month(match["month"]), match["day"])
    for match in _IN_DIGITS.finditer(text):
        yield from _in_digits(match)
    for match in _MONTH_ALONE.finditer(text):
        month = _month(match["month"] or match["digits"])
        if 1 <= month <= 12:
            yield f"{match['year']}-{month:02}", match.span()


def _in_digits(match: re.Match[str]) -> Iterator[tuple[str, Span]]:
    first, second = match[1], match[3]
    last = match[4]
    if len(first) == 4:
        yield from _dated(match, first, int(second), last)
    if len(first) > 2:
        return
    years = [last] if len(last) == 4 else [f"19{last}", f"20{last}"]
    for year in years:
        yield from _dated(match, year, int(second), first)
        if first != second:
            yield from _dated(match, year, int(first), second)


def _month(name: str) -> int:
    if name.isdecimal():
        return int(name)
    lowered = name.casefold()
    return _MONTH_OF.get(lowered[:4], _MONTH_OF.get(lowered[:3], 0))


def _dated(match: re.Match[str], year: str, month: int, day: str) -> Iterator[tuple[str, Span]]:
    try:
        yield date(int(year), month, int(day)).isoformat(), match.span()
    except ValueError:  # no such day
        return
