"""Messages to an invented company's help desk, each with the one call
of a tool that it asks for, or none.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from typing import Any

import phrases_calls as phrases

COUNT = 2400
NONE = 0.25  # share of messages for which no tool fits
GERMAN = 0.2
MISSPELT = 0.15
# of a hundred messages: how many have no, one, two or three sentences before the wish
PLACES = (20, 28, 34, 18)
NAMES = (
    "bram",
    "edda",
    "farid",
    "greta",
    "hholt",
    "ines",
    "jonas",
    "keiko",
    "lars",
    "nadia",
    "otto",
    "priya",
    "rosa",
    "tamsin",
    "umar",
    "vera",
    "wilma",
    "yusuf",
    "zofia",
)

Values = dict[str, Any]
Expand = Callable[[str, random.Random], str]
Misspell = Callable[[str, int, random.Random], str]


class Message:
    """One message: the values that it names, each as a call has it and as people write it."""

    def __init__(self, rng: random.Random, language: str, expand: Expand) -> None:
        """Choose the day on which it is sent."""
        self.rng, self.language, self._expand = rng, language, expand
        self.sent = date(2026, 1, 5) + timedelta(days=rng.randrange(340))
        self.values: Values = {}

    def fill(self, phrase: str, *, past: bool = False, misspelt: Misspell | None = None) -> str:
        """Fill the slots of a phrase; the values stay in `values`."""
        text = self._expand(phrase, self.rng)
        if misspelt:  # before the values are filled in, which must stay as they are
            text = misspelt(text, 1, self.rng)
        while found := re.search(r"\[(\w+)\]", text):
            said = self._expand(self._value(found[1], past=past), self.rng)
            text = text[: found.start()] + said + text[found.end() :]
        text = re.sub(r" +([,.])", r"\1", text)
        return re.sub(r"\b(?:[Oo]n|[Ff]or) (today|tomorrow)\b", r"\1", text)

    def _value(self, name: str, *, past: bool) -> str:
        """Make a value for a slot, keep it as a call has it, and say it as people do."""
        rng = self.rng
        match name:
            case "account" | "device":
                return self._chosen(name, name)
            case "bill":
                return self._chosen("kind", "bill")
            case "item":
                return self._chosen("item", "item")
            case "items":
                return self._items()
            case "kind":
                self.values["kind"] = kind = rng.choice(sorted(phrases.KINDS[self.language]))
                return rng.choice(phrases.KINDS[self.language][kind])
            case "user":
                self.values["user"] = user = f"{rng.choice(NAMES)}{rng.randrange(1, 100):02d}"
                return user if rng.random() < 0.8 else user.capitalize()
            case "asset":
                letters = rng.choice(("LT", "MN", "PH", "PR", "PJ", "AX", "TK"))
                number = f"{rng.randrange(10000):04d}"
                self.values["asset"] = f"{letters}-{number}"
                return rng.choice(
                    (
                        f"{letters}-{number}",
                        f"{letters}-{number}",
                        f"{letters} {number}",
                        f"{letters.lower()}-{number}",
                    )
                )
            case "urgent":
                self.values["urgent"] = urgent = rng.random() < 0.4
                return rng.choice(phrases.URGENT[self.language][urgent])
            case "room":
                self.values["room"] = room = rng.choice(phrases.ROOMS)
                return room if rng.random() < 0.8 else room.lower()
            case "date":
                days = (
                    -rng.randrange(1, 40)
                    if past
                    else rng.choice((0, 1, rng.randrange(2, 45), rng.randrange(2, 45)))
                )
                return self._date("date", self.sent + timedelta(days=days))
            case "span":
                return self._span()
            case "start":
                return self._start()
            case "people":
                return self._people()
            case "cost_center":
                self.values["cost_center"] = center = str(rng.randrange(10000, 99999))
                return center if rng.random() < 0.8 else f"{center[:2]} {center[2:]}"
            case "amount":
                return self._amount()
        raise ValueError(f"no slot has the name {name}")

    def _chosen(self, argument: str, words: str) -> str:
        said = phrases.SAID[self.language][words]
        self.values[argument] = value = self.rng.choice(sorted(said))
        return self.rng.choice(said[value])

    def _items(self) -> str:
        said = self._chosen("item", "item")
        self.values["quantity"] = count = self.rng.choice(
            (1, 1, 2, 3, 4, self.rng.randrange(5, 13))
        )
        if self.language == "de":
            return f"{count}x {said}" if count > 1 else f"1 {said}"
        if count == 1:
            return f"{self.rng.choice(('a', 'one', '1'))} {said}"
        return (
            f"{self.rng.choice((str(count), phrases.NUMBERS['en'][count], f'{count} x'))} {said}s"
        )

    def _date(self, name: str, day: date) -> str:
        self.values[name] = day.isoformat()
        month = phrases.MONTHS[self.language][day.month - 1]
        if day == self.sent and self.rng.random() < 0.6:
            return {"en": "today", "de": "heutigen Tag"}[self.language]
        if day == self.sent + timedelta(days=1) and self.rng.random() < 0.6:
            return {"en": "tomorrow", "de": "morgigen Tag"}[self.language]
        numbers = f"{day.day}.{day.month}."
        whole = f"{day.day:02d}.{day.month:02d}.{day.year}"
        if day.year != self.sent.year:
            return self.rng.choice((f"{day.day} {month} {day.year}", day.isoformat(), whole))
        if self.language == "de":
            return self.rng.choice(
                (f"{day.day}. {month}", f"{day.day}. {month} {day.year}", numbers, whole)
            )
        forms = (
            f"{day.day} {month}",
            f"{month} {day.day}",
            f"{day.day} {month[:3]}",
            f"{month} {_ordinal(day.day)}",
            day.isoformat(),
            whole,
        )
        return self.rng.choice(forms)

    def _span(self) -> str:
        first = self.sent + timedelta(days=self.rng.randrange(2, 40))
        length = self.rng.choice((0, 0, 1, 2, 4, self.rng.randrange(5, 18)))
        said = (
            self._date("first_day", first),
            self._date("last_day", first + timedelta(days=length)),
        )
        form = self.rng.choice((phrases.SPANS if length else phrases.ONE_DAY)[self.language])
        return form.replace("[first_day]", said[0]).replace("[last_day]", said[1])

    def _start(self) -> str:
        hour, minute = self.rng.randrange(8, 18), self.rng.choice((0, 0, 15, 30, 45))
        self.values["start"] = f"{hour:02d}:{minute:02d}"
        if self.language == "de":
            return f"{hour}:{minute:02d} Uhr" if minute else f"{hour} Uhr"
        half = "am" if hour < 12 else "pm"
        short = f"{(hour - 1) % 12 + 1}{f':{minute:02d}' if minute else ''} {half}"
        return self.rng.choice(
            (f"{hour}:{minute:02d}", f"{hour:02d}:{minute:02d}", short, short.replace(" ", ""))
        )

    def _people(self) -> str:
        self.values["people"] = count = self.rng.randrange(2, 21)
        noun = {"en": "people", "de": "Leute"}[self.language]
        words = phrases.NUMBERS[self.language]
        said = words[count] if count < len(words) and self.rng.random() < 0.5 else str(count)
        return f"{said} {noun}" if self.rng.random() < 0.6 else said

    def _amount(self) -> str:
        whole, cents = (
            self.rng.choice((self.rng.randrange(4, 300), self.rng.randrange(4, 2600))),
            self.rng.randrange(100),
        )
        cents = self.rng.choice((0, 50, cents))
        self.values["amount"] = amount = whole + cents / 100 if cents else whole
        currency = self.rng.choice(("EUR", "EUR", "EUR", "GBP", "USD"))
        self.values["currency"] = currency
        sign = {"EUR": "€", "GBP": "£", "USD": "$"}[currency]
        if self.language == "de":
            digits = f"{amount:,.2f}".replace(",", " ").replace(".", ",").replace(" ", ".")
            word = {"EUR": "Euro", "GBP": "Pfund", "USD": "Dollar"}[currency]
            return self.rng.choice((f"{digits} {word}", f"{digits} {sign}", f"{currency} {digits}"))
        digits = f"{amount:,.2f}" if cents else f"{amount:,}"
        word = {"EUR": "euros", "GBP": "pounds", "USD": "dollars"}[currency]
        return self.rng.choice(
            (f"{digits} {word}", f"{sign}{digits}", f"{currency} {digits}", f"{digits} {currency}")
        )


def _ordinal(day: int) -> str:
    ending = "th" if 11 <= day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{ending}"


def _call(tool: dict[str, Any], values: Values) -> Values:
    arguments = {name: values[name] for name in sorted(tool["properties"])}
    return {"type": "function", "function": {"name": tool["name"], "arguments": arguments}}


def message(rng: random.Random, expand: Expand, misspell: Misspell) -> tuple[str, Values | None]:
    """Write a message, and the call that it asks for; None where no tool fits."""
    language = "de" if rng.random() < GERMAN else "en"
    made = Message(rng, language, expand)
    slip = misspell if rng.random() < MISSPELT else None
    tool = None if rng.random() < NONE else rng.choice(phrases.TOOLS)
    if tool is None:
        wish = made.fill(rng.choice(phrases.NEAR[language]), past=rng.random() < 0.5, misspelt=slip)
    else:
        past = tool["name"] == "claim_expense"
        wish = made.fill(
            rng.choice(phrases.WISHES[language][tool["name"]]), past=past, misspelt=slip
        )
    call = None if tool is None else _call(tool, made.values)
    count = rng.choices(range(4), PLACES)[0]
    sentences = _before(made, tool, count, misspell)
    wish = wish[:1].upper() + wish[1:]
    question = tool is None and wish.split(" ")[0].lower() in (
        "how",
        "can",
        "may",
        "is",
        "do",
        "does",
        "when",
        "where",
        "which",
        "what",
        "who",
        "wie",
        "ist",
        "wann",
        "darf",
    )
    sentences.append(wish + ("?" if question else rng.choice((".", ".", "!", ""))))
    if rng.random() < 0.55:
        sentences.append(made.fill(rng.choice(phrases.CLOSERS[language])))
    text = rng.choice((" ", " ", "\n")).join(sentences)
    return f"Sent {made.sent.isoformat()}\n{text}", call


def _before(
    made: Message, tool: dict[str, Any] | None, count: int, misspell: Misspell
) -> list[str]:
    """The sentences before the wish: an opening, and what is said in
    passing of other tools; some with typos.
    """
    rng, kept = made.rng, dict(made.values)
    others = [
        each["name"] for each in phrases.TOOLS if tool is None or each["name"] != tool["name"]
    ]
    sentences = []
    for place, name in enumerate(rng.sample(others, count)):
        pool: Sequence[str] = phrases.ASIDES[made.language][name]
        if place == 0 and rng.random() < 0.6:
            pool = phrases.OPENERS[made.language]
        said = made.fill(rng.choice(pool), past=True)
        sentences.append(misspell(said, 1, rng) if rng.random() < MISSPELT else said)
    made.values = kept
    return sentences


def build(
    rng: random.Random, expand: Expand, misspell: Misspell, add: Callable[[str], bool]
) -> list[Values]:
    """Write all messages as conversations, in mixed order; `add` refuses
    one that is nearly the same as another.
    """
    rows: list[Values] = []
    while len(rows) < COUNT:
        text, call = message(rng, expand, misspell)
        if not add(text):
            continue
        answer: Values = {"role": "assistant", "content": "No tool fits." if call is None else None}
        if call is not None:
            answer["tool_calls"] = [call]
        rows.append(
            {
                "id": f"H-{len(rows) + 1:04d}",
                "messages": [{"role": "user", "content": text}, answer],
            }
        )
    return rows


def tools() -> list[Values]:
    """Give the tools in OpenAI's form."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool["name"],
                "description": tool["description"],
                "parameters": {
                    "type": "object",
                    "properties": tool["properties"],
                    "required": list(tool["properties"]),
                },
            },
        }
        for tool in phrases.TOOLS
    ]
