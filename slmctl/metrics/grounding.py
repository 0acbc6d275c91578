"""An answer and the texts that it rests on -> its ungrounded
facts, which no text has or implies.
"""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import ceil, floor

from slmctl.metrics.text_facts import LEAP, Fact, Reading, dated, facts_of, joined

MOST_FACTS = 50  # ungrounded facts of one answer that are named
# values of the texts that are combined, the last ones first; as many of the answer beside them
MOST_OPERANDS = 40
MOST_DAYS = 400  # between two dates, one of which follows from the other
OPERANDS = ("number", "amount", "percent", "date", "days")


def ungrounded(answer: str, texts: Sequence[str], *, constants: str = "") -> list[Fact]:
    """The facts of an answer that no text has or implies, in order, at most MOST_FACTS of them.

    A fact is implied by its value in another form, by a sum, difference, product or share in
    percent of two values, and by a date some days apart; an implied value can imply others.
    `constants`, the system prompt, are one more text, but two numbers of it imply nothing: a dozen
    terms would imply nearly every other one below 50.
    """
    grounds = _Grounds(texts, constants)
    facts = (fact for fact in facts_of(answer) if not grounds.hold(fact))
    return list(itertools.islice(facts, MOST_FACTS))


class _Grounds:
    """The values in texts, and the values that follow from two of them."""

    def __init__(self, texts: Sequence[str], constants: str) -> None:
        self._stated: set[Reading] = set()
        self._derived: set[Reading] = set()
        self._operands: list[Reading] = []
        self._constants: set[Reading] = set()
        self._joined = joined(" ".join([constants, *texts]))
        for text in [*reversed(texts), constants]:  # the question is the last text
            readings: list[Reading] = []
            for fact in facts_of(text, vague=True):
                readings += fact.readings
            if text is constants:
                numbers = {reading for reading in readings if reading[0] in ("number", "days")}
                self._constants = numbers - {*self._operands}
            whole = Fraction()
            for reading in readings:
                self._stated.update(_implied(reading))
                self._combine(reading, MOST_OPERANDS)
                if reading[0] == "amount":
                    whole += Fraction(reading[1])
            self._derived.add(("amount", whole))

    def hold(self, fact: Fact) -> bool:
        """True where the texts have or imply one of the fact's readings."""
        if any(reading in self._stated or self._within(reading) for reading in fact.readings):
            return True
        implied = [reading for reading in fact.readings if reading in self._derived]
        for reading in implied:
            self._stated.update(_implied(reading))
            self._combine(reading, 2 * MOST_OPERANDS)
        return bool(implied)

    def _within(self, reading: Reading) -> bool:
        """True for a code that is part of a longer one."""
        if reading[0] != "code":
            return False
        code = str(reading[1])
        return len(code) > 3 and code in self._joined

    def _combine(self, reading: Reading, most: int) -> None:
        """Derive values from one more operand and each of the others."""
        kind = reading[0]
        if kind not in OPERANDS or reading in self._operands or len(self._operands) >= most:
            return
        others = [other for other in self._operands if not {reading, other} <= self._constants]
        if kind == "percent":
            others.append(reading)
        for other in others:
            for result in (*_results(reading, other), *_results(other, reading)):
                if result[0] == "date":
                    self._derived.add(result)
                else:
                    self._derived.update(_implied(result))
        self._operands.append(reading)


def _implied(reading: Reading) -> Iterator[Reading]:
    """The readings of an answer that a value in a text grounds by itself."""
    yield reading
    match reading:
        case ("number", value):
            yield "amount", value
        case ("name", value):
            yield "number", value
        case ("amount" | "percent", value):
            yield "number", value
        case ("date", int(year), int(month), int(day)):
            yield "date", 0, month, day
            yield "date", year, month, 0
            yield "month", month
            yield "day", day
            yield ("number", Fraction(year)) if year else ("yearless", month, day)
            if year and day:
                yield "weekday", _date(year, month, day).weekday()
        case ("link", str(text)):
            for place, letter in enumerate(text):
                if letter == "/":
                    yield "link", text[:place]
        case ("address", str(text)):
            yield "link", text.partition("@")[2]


def _results(first: Reading, second: Reading) -> Iterator[Reading]:
    """Values that follow from two values in this order."""
    match first, second:
        case ("date", int(year), int(month), int(day)), ("days", int(days)):
            if day and days <= MOST_DAYS:
                yield from _moved(year, month, day + days)
                yield from _moved(year, month, day - days)
        case ("date", *_), ("date", *_):
            yield from _days_between(first, second)
        case ("percent", Fraction() as share), (str(kind), Fraction() as value):
            yield from _in_cents(kind, value * share / 100)
            yield from _in_cents(kind, value * (100 - share) / 100)
            yield from _in_cents(kind, value * (100 + share) / 100)
        case (_, Fraction()), ("percent", _):
            return
        case (str(kind), Fraction() as a), (str(other_kind), Fraction() as b):
            if kind == other_kind:
                yield kind, a + b
                yield kind, abs(a - b)
                if b:
                    yield "percent", 100 * a / b
            if other_kind == "number":
                yield kind, a * b
                if b:
                    yield from _in_cents(kind, a / b)


def _moved(year: int, month: int, day: int) -> Iterator[Reading]:
    """The readings of a day of a month, counted on beyond its ends."""
    date = _date(year, month, day)
    yield from dated(date.year if year else 0, date.month, date.day)
    yield "date", 0, date.month, date.day


def _days_between(first: Reading, second: Reading) -> Iterator[Reading]:
    """The days from one date to another, with and without the last."""
    year, *day = map(int, first[1:])
    other, *last = map(int, second[1:])
    if day[-1] and last[-1]:
        apart = _date(other or year, *last) - _date(year or other, *day)
        days = Fraction(abs(apart.days))
        yield "number", days
        yield "number", days + 1


def _date(year: int, month: int, day: int) -> datetime.date:
    """A day of a month, counted on beyond its ends: there may be no 29
    February in the year of another date.
    """
    return datetime.date(year or LEAP, month, 1) + datetime.timedelta(day - 1)


def _in_cents(kind: str, value: Fraction) -> Iterator[Reading]:
    """A value, and the values to two digits next to it: people and programs round differently."""
    yield kind, value
    yield kind, Fraction(floor(100 * value), 100)
    yield kind, Fraction(ceil(100 * value), 100)
