"""Write the example data: tickets, letters, order e-mails and reply drafts of an invented shop, and
a help desk.

    python examples/data/generate.py [--out DIR]

The same bytes come out on every machine: one seed, the standard library only, no clock and no set
order.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import calls
import phrases_letters as letters
import phrases_support as support
import phrases_tickets as phrases
import phrases_words as words

SEED = 4127
NEAR = 82.0  # two fresh tickets are never as alike as this, in percent (indel ratio)
CALLS_NEAR = 88.0  # nor two messages to the help desk
NEAR_DUPLICATES = 60
EXACT_DUPLICATES = 26
USUAL = 1  # the smaller, the more often the first phrases of a list are chosen
MISSPELT = 0.15  # share of tickets with typos
GERMAN = 0.11  # share of tickets in German
# of a hundred tickets: how many name no, one or two requests beside their own
MENTIONS = (50, 38, 12)
CONTRAST = 0.35  # share of these mentions that stand in the sentence that asks
THREAD = 0.12  # share of the others that stand in a quoted mail
DEVICE_SITUATIONS = ("faulty", "damaged", "unpacked")
DEVICE_REQUESTS = ("repair", "setup_help", "product_question")
# of a hundred tickets: how many tell nothing, one thing or two of what happened
SITUATIONS = (14, 62, 24)
SLOT = re.compile(r"\[(\w+)\]")


# --- phrases
# ---------------------------------------------------------------------------------------------


def sentence(text: str) -> str:
    """Start a text with a capital letter."""
    return text[:1].upper() + text[1:]


def expand(phrase: str, rng: random.Random) -> str:
    """Choose one alternative of every ``{a|b}`` in a phrase, innermost first."""
    while True:
        found = re.search(r"\{([^{}]*)\}", phrase)
        if found is None:
            return phrase
        phrase = (
            phrase[: found.start()] + rng.choice(found.group(1).split("|")) + phrase[found.end() :]
        )


def usual(phrases: Sequence[str], rng: random.Random) -> str:
    """Choose a phrase: the first of a list are the usual ones, the rest its long tail."""
    return rng.choices(phrases, [1 / (rank + USUAL) for rank in range(len(phrases))])[0]


@dataclass
class Slots:
    """Fills ``[name]`` slots; what one ticket is about stays the same from sentence to sentence."""

    rng: random.Random
    kept: dict[str, str] = field(default_factory=dict)
    person: tuple[str, str] = ("", "")  # who writes

    def __post_init__(self) -> None:
        """Choose who writes."""
        self.person = (
            self.person
            if any(self.person)
            else (self.rng.choice(words.FIRST_NAMES), self.rng.choice(words.SURNAMES))
        )

    def aside(self) -> Slots:
        """Give the slots of a passing mention: of the same goods, with
        numbers, dates and addresses of its own.
        """
        goods = {
            name: self.kept[name]
            for name in ("thing", "device", "plan", "ding")
            if name in self.kept
        }
        return Slots(self.rng, goods, self.person)

    def fill(self, phrase: str, *, keep: bool = True) -> str:
        """Fill every slot of a phrase; a slot that occurs twice in it gets two different values."""
        used: list[str] = []

        def value(found: re.Match[str]) -> str:
            name = found.group(1)
            if keep and name in self.kept and self.kept[name] not in used:
                chosen = self.kept[name]
            else:
                chosen = self.make(name)
                while chosen in used and name not in ("first", "name"):
                    chosen = self.make(name)
                if keep:
                    self.kept.setdefault(name, chosen)
            used.append(chosen)
            return chosen

        text = SLOT.sub(value, expand(phrase, self.rng))
        text = re.sub(r"\b([Aa]) (?=[aeio](?!ne))", r"\1n ", text)
        text = re.sub(r"\b([Oo]rder|[Nn]umber) order\b", r"\1", text.replace("boxs", "boxes"))
        return re.sub(r" +", " ", re.sub(r" +([,:?.](?: |$))", r"\1", text)).strip()

    def make(self, name: str) -> str:
        """Make up one value for a slot."""
        rng = self.rng
        match name:
            case "thing":
                return rng.choice(words.DEVICES if rng.random() < 0.6 else words.GOODS)
            case "device":
                return rng.choice(words.DEVICES)
            case "plan":
                return rng.choice(words.PLANS)
            case "order":
                number = rng.randrange(20000, 99999)
                return rng.choice(
                    (f"BC-{number}", f"order BC-{number}", f"order {number}", f"#{number}")
                )
            case "customer":
                return f"C-{rng.randrange(10000, 99999)}"
            case "amount":
                euros, cents = rng.randrange(9, 240), rng.choice(("00", "50", "90", "95", "99"))
                return rng.choice(
                    (
                        f"{euros}.{cents}",
                        f"{euros} euros",
                        f"EUR {euros}.{cents}",
                        f"{euros},{cents}",
                    )
                )
            case "code":
                return rng.choice(words.CODES)
            case "date":
                return self.date()
            case "time":
                return f"{rng.randrange(6, 21)}:{rng.choice(('00', '15', '30', '45'))}"
            case "first":
                return self.person[0]
            case "name":
                return " ".join(self.person)
            case "agent":
                return rng.choice([name for name in words.FIRST_NAMES if name != self.person[0]])
            case "betrag":
                return f"{rng.randrange(9, 240)},{rng.choice(('00', '50', '90', '95', '99'))} Euro"
            case "nr":
                return f"BC-{rng.randrange(20000, 99999)}"
            case "email":
                return self.email()
            case "phone":
                return (
                    f"{rng.choice(('', '(212) ', '303-', '+1 646 '))}555-01{rng.randrange(100):02d}"
                )
            case "card":
                return rng.choice(words.CARDS)
            case "street":
                return f"{rng.randrange(1, 140)} {rng.choice(words.STREETS)}"
            case _:
                return rng.choice(words.LISTS[name])

    def date(self) -> str:
        """Make up a day of the year, written in one of several ways."""
        day, month = self.rng.randrange(1, 29), self.rng.randrange(12)
        name = words.LISTS["month"][month]
        forms = (f"{day} {name}", f"{name} {day}", f"{day}/{month + 1:02d}", f"{day}.{month + 1}.")
        return self.rng.choice(forms)

    def email(self) -> str:
        """Make up an e-mail address in a domain that is reserved for examples."""
        first, last = (name.lower() for name in self.person)
        local = self.rng.choice(
            (f"{first}.{last}", f"{first[0]}{last}", f"{first}{self.rng.randrange(10, 99)}")
        )
        return f"{local}@example.{self.rng.choice(('com', 'org', 'net'))}"


# --- likeness
# --------------------------------------------------------------------------------------------


def normalise(text: str) -> str:
    """Casefold, turn digits to 0 and collapse everything that is neither letter nor digit."""
    return re.sub(r"[\W_]+", " ", re.sub(r"\d", "0", text.casefold())).strip()


def indel_ratio(left: str, right: str) -> float:
    """Likeness in percent: 100 * 2 * (longest common subsequence) / (both lengths)."""
    if not left or not right:
        return 0.0
    where: dict[str, int] = {}
    for position, char in enumerate(left):
        where[char] = where.get(char, 0) | 1 << position
    full = (1 << len(left)) - 1
    state = full
    for char in right:
        matched = state & where.get(char, 0)
        state = ((state + matched) | (state - matched)) & full
    common = len(left) - state.bit_count()
    return 200.0 * common / (len(left) + len(right))


class Seen:
    """The texts so far, to refuse one that is nearly the same."""

    def __init__(self, limit: float) -> None:
        """Refuse texts that are at least ``limit`` percent like an earlier one."""
        self.limit = limit
        self.texts: list[tuple[str, frozenset[str]]] = []

    def add(self, text: str) -> bool:
        """Keep the text and say True, or say False when one much like it is there already."""
        plain = normalise(text)
        bag = frozenset(plain.split())
        for other, other_bag in self.texts:
            shorter, longer = sorted((len(plain), len(other)))
            if 200.0 * shorter < self.limit * (shorter + longer):
                continue
            if len(bag & other_bag) * 10 < min(len(bag), len(other_bag)) * 5:
                continue
            if indel_ratio(plain, other) >= self.limit:
                return False
        self.texts.append((plain, bag))
        return True


# --- support tickets
# -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ticket:
    """One row of the ticket file; ``origin`` says how it came about and isn't written."""

    received: datetime
    channel: str
    customer_id: str
    text: str
    category: str
    origin: str = "fresh"


VOICES = {"plain": 33, "polite": 16, "terse": 24, "angry": 10, "rambling": 6, "nonnative": 11}
# How often a voice has an opening, a filler, a passing mention, an ask and a closing.
HABITS: dict[str, tuple[float, float, float, float, float]] = {
    "plain": (0.15, 0.08, 0.08, 0.14, 0.12),
    "polite": (0.70, 0.12, 0.08, 0.22, 0.55),
    "terse": (0.05, 0.02, 0.05, 0.10, 0.04),
    "angry": (0.35, 0.08, 0.08, 0.18, 0.25),
    "rambling": (0.80, 1.00, 0.30, 0.45, 0.60),
    "nonnative": (0.35, 0.08, 0.08, 0.16, 0.25),
}
NEIGHBOURS = {
    "a": "s",
    "e": "r",
    "i": "o",
    "o": "p",
    "n": "m",
    "t": "r",
    "s": "d",
    "r": "e",
    "l": "k",
    "d": "f",
}
PLAIN_FORMS = (
    ("haven't", "have not"),
    ("hasn't", "has not"),
    ("doesn't", "does not"),
    ("don't", "do not"),
    ("can't", "can not"),
    ("isn't", "is not"),
    ("I've", "I have"),
    ("I'm", "I am"),
    ("it's", "it is"),
    ("won't", "will not"),
    ("wasn't", "was not"),
    ("I'd like", "I would like"),
    ("didn't", "did not"),
)


def typo(word: str, rng: random.Random) -> str:
    """Misspell a word in one of the usual ways."""
    at = rng.randrange(1, len(word) - 1)
    match rng.randrange(4):
        case 0:
            return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        case 1:
            return word[:at] + word[at + 1 :]
        case 2:
            return word[:at] + word[at] + word[at:]
        case _:
            return word[:at] + NEIGHBOURS.get(word[at], word[at]) + word[at + 1 :]


def with_typos(text: str, count: int, rng: random.Random) -> str:
    """Misspell up to ``count`` longer words of a text."""
    parts = text.split(" ")
    able = [
        i
        for i, part in enumerate(parts)
        if len(part.strip(".,?!:;")) > 4 and part.strip(".,?!:;").isalpha()
    ]
    for i in rng.sample(able, min(count, len(able))):
        bare = parts[i].strip(".,?!:;")
        parts[i] = parts[i].replace(bare, typo(bare, rng))
    return " ".join(parts)


def nonnative(text: str, rng: random.Random) -> str:
    """Write as someone does whose first language has no articles or contractions."""
    for short, full in PLAIN_FORMS:
        text = text.replace(short, full)
    return re.sub(r"\b(the|a|an) (?=\w)", lambda m: "" if rng.random() < 0.45 else m.group(0), text)


def join(parts: Sequence[str], voice: str, rng: random.Random) -> str:
    """Put the sentences of a ticket together, as carefully as its voice does."""
    style = rng.random()
    sloppy = {
        "plain": 0.3,
        "polite": 0.04,
        "terse": 0.55,
        "angry": 0.3,
        "rambling": 0.4,
        "nonnative": 0.3,
    }
    if style < sloppy[voice]:
        glue = rng.choice((" ", ", ", ". ", " - ", "... "))
        text = parts[0]
        for part in parts[1:]:
            text += (" " if text[-1] in "?!.," else glue) + part
        if rng.random() < 0.7:
            text = text.lower()
        if rng.random() < 0.4:
            text = re.sub(r"[',?]", "", text)
        return text
    text = " ".join(
        sentence(part) + ("" if part[-1] in "?!." else "!" if voice == "angry" else ".")
        for part in parts
    )
    if voice == "angry" and rng.random() < 0.35:
        return text.upper()
    return text


def about(frame: str, slots: Slots, action: str, other: str = "") -> str:
    """Fill a frame: @ is its action, ~ the one that it excludes."""
    return slots.fill(frame).replace("~", other).replace("@", action)


def noun(wants: Sequence[str], slots: Slots) -> str:
    """Choose what a sender wants, as a noun: what begins with a
    verb cannot stand in every sentence.
    """
    while True:
        text = slots.fill(usual(wants, slots.rng))
        if not text.startswith(("to ", "out of ", "my parcels to ")):
            return text


def request(category: str, slots: Slots, excluded: str) -> str:
    """Write the sentence that asks; with ``excluded`` it names that
    category too, to say that it is not meant.
    """
    rng, mine = slots.rng, phrases.REQUESTS[category]
    form = rng.choices(("say", "do", "want"), (0 if excluded else 36, 40, 24))[0]
    if form == "say":
        return slots.fill(usual(mine.say, rng))
    if excluded:
        other = phrases.REQUESTS[excluded]
        if form == "do":
            named = slots.aside().fill(usual(other.do, rng))
            return about(
                rng.choice(phrases.CONTRAST_DO), slots, slots.fill(usual(mine.do, rng)), named
            )
        named = noun(other.want, slots.aside())
        return about(rng.choice(phrases.CONTRAST_WANT), slots, noun(mine.want, slots), named)
    if form == "do":
        return about(usual(phrases.ASK_DO, rng), slots, slots.fill(usual(mine.do, rng)))
    wanted = slots.fill(usual(mine.want, rng))
    frames = phrases.ASK_WANT[:1] if wanted.startswith(("to ", "out of ")) else phrases.ASK_WANT
    return about(usual(frames, rng), slots, wanted)


def mention(category: str, slots: Slots) -> str:
    """Write a sentence that only excludes, settles, declines or
    quotes another category's request.
    """
    rng, other = slots.rng, phrases.REQUESTS[category]
    kind = rng.choices(("do", "want", "offer", "done", "matter", "quote"), (20, 20, 16, 20, 16, 8))[
        0
    ]
    if kind == "want":
        return about(rng.choice(phrases.EXCLUDE_WANT), slots, noun(other.want, slots))
    frames, actions = {
        "do": (phrases.EXCLUDE_DO, other.do),
        "offer": (phrases.OFFER_DO, other.do),
        "done": (phrases.DONE, other.done),
        "matter": (phrases.MATTER, other.matter),
        "quote": (phrases.QUOTES, other.notes),
    }[kind]
    return about(rng.choice(frames), slots, slots.fill(usual(actions, rng)).rstrip("."))


def german_request(category: str, slots: Slots, excluded: str) -> str:
    """Write the sentence that asks, in German."""
    rng, mine = slots.rng, phrases.GERMAN[category]
    if excluded:
        named = slots.aside().fill(rng.choice(phrases.GERMAN[excluded].want))
        return about(
            rng.choice(phrases.GERMAN_CONTRAST), slots, slots.fill(rng.choice(mine.want)), named
        )
    form = rng.choices(("say", "do", "want"), (36, 40, 24))[0]
    if form == "say":
        return slots.fill(rng.choice(mine.say))
    frames, actions = (
        (phrases.GERMAN_ASK_DO, mine.do) if form == "do" else (phrases.GERMAN_ASK_WANT, mine.want)
    )
    return about(rng.choice(frames), slots, slots.fill(rng.choice(actions)))


def german_mention(category: str, slots: Slots) -> str:
    """Write a German sentence that only excludes or declines another category's request."""
    rng, other = slots.rng, phrases.GERMAN[category]
    offered = rng.random() < 0.4
    named = slots.fill(rng.choice(other.do if offered else other.want))
    return about(
        rng.choice(phrases.GERMAN_OFFER if offered else phrases.GERMAN_EXCLUDE), slots, "", named
    )


def write_ticket(category: str, rng: random.Random) -> str:
    """Write the text of one ticket."""
    voice = rng.choices(list(VOICES), weights=list(VOICES.values()))[0]
    opening, filler, _, _, closing = HABITS[voice]
    german = rng.random() < GERMAN
    slots = Slots(rng)
    mine = phrases.REQUESTS[category]
    others = rng.sample(mine.near.split(), rng.choices((0, 1, 2), MENTIONS)[0])
    excluded = others.pop() if others and rng.random() < CONTRAST else ""
    situation = rng.choice(mine.fits.split())
    device = category in DEVICE_REQUESTS or situation in DEVICE_SITUATIONS
    product = rng.choice(words.DEVICES if device or rng.random() < 0.6 else words.GOODS)
    slots.kept |= {"thing": product, "device": product}
    situations = (phrases.GERMAN_SITUATIONS if german else phrases.SITUATIONS)[situation]
    asked = (german_request if german else request)(category, slots, excluded)
    parts = [
        slots.fill(phrase)
        for phrase in rng.sample(situations, rng.choices((0, 1, 2), SITUATIONS)[0])
    ]
    if not german and rng.random() < filler:
        for phrase in rng.sample(support.FILLERS, rng.choice((1, 2)) if voice == "rambling" else 1):
            parts.insert(rng.randrange(len(parts) + 1), slots.fill(phrase))
    parts.insert(len(parts) if rng.random() < 0.8 else rng.randrange(len(parts) + 1), asked)
    place = parts.index(asked)
    thread = ""
    for other in others:
        if not german and rng.random() < THREAD:
            note = slots.aside().fill(rng.choice(phrases.REQUESTS[other].notes))
            thread = about(rng.choice(phrases.THREADS), slots, note).replace("\\n", "\n")
        else:
            said = (german_mention if german else mention)(other, slots.aside())
            parts.insert(rng.randrange(place + 1) if rng.random() < 0.6 else len(parts), said)
            place = parts.index(asked)
    if rng.random() < opening:
        parts.insert(
            0,
            slots.fill(rng.choice(phrases.GERMAN_OPENINGS if german else support.OPENINGS[voice])),
        )
    if rng.random() < closing:
        parts.append(
            slots.fill(rng.choice(phrases.GERMAN_CLOSINGS if german else support.CLOSINGS[voice]))
        )
    if voice == "nonnative" and not german:
        parts = [nonnative(part, rng) for part in parts]
    text = join(parts, voice, rng)
    if rng.random() < MISSPELT:
        text = with_typos(text, rng.choice((1, 1, 2, 3)), rng)
    return f"{text}\n{thread}" if thread else text


def resent(text: str, rng: random.Random) -> str:
    """Write a ticket again as its sender would a day later: the same with a small change."""
    match rng.randrange(6):
        case 0:
            return rng.choice(("Resending: ", "2nd try: ", "Again: ", "Reminder. ")) + text
        case 1:
            return text.rstrip(".!?") + rng.choice(
                (" !! urgent", " ?? hello", ", 2nd mail", " ... anyone")
            )
        case 2:
            return with_typos(text, 2, rng)
        case 3:
            return text + rng.choice(
                (" Please answer.", " Any news?", " Still the same", " Thanks!")
            )
        case 4:
            return with_typos(text.lower().rstrip("."), 1, rng)
        case _:
            return with_typos(text, 1, rng) + rng.choice((" please", " pls", " !"))


def build_tickets(rng: random.Random) -> list[Ticket]:
    """Write all tickets, in the order in which they came in."""
    seen = Seen(NEAR)
    start = datetime(2025, 2, 3)
    tickets: list[Ticket] = []

    def envelope(text: str, category: str, origin: str) -> Ticket:
        moment = start + timedelta(minutes=rng.randrange(210 * 24 * 60))
        channel = rng.choices(("web_form", "email", "chat", "app"), weights=(38, 30, 20, 12))[0]
        return Ticket(moment, channel, f"C-{rng.randrange(10000, 99999)}", text, category, origin)

    for category, wanted in phrases.REQUESTS.items():
        for _ in range(wanted.count):
            text = write_ticket(category, rng)
            while not 4 <= len(text.split()) <= 60 or not seen.add(text):
                text = write_ticket(category, rng)
            tickets.append(envelope(text, category, "fresh"))
    chosen = rng.sample(tickets, NEAR_DUPLICATES + EXACT_DUPLICATES)
    for place, ticket in enumerate(chosen):
        later = ticket.received + timedelta(minutes=rng.randrange(30, 4 * 24 * 60))
        if place < NEAR_DUPLICATES:
            text = ticket.text
            while normalise(text) == normalise(ticket.text):
                text = resent(ticket.text, rng)
            tickets.append(replace(ticket, received=later, text=text, origin="near"))
        else:
            tickets.append(replace(ticket, received=later, origin="exact"))
    for text, category in words.BROKEN:
        tickets.append(envelope(text, category, "broken"))
    return sorted(tickets, key=lambda ticket: (ticket.received, ticket.customer_id, ticket.text))


def tickets_csv(tickets: Iterable[Ticket]) -> str:
    """Give the tickets as CSV text."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("ticket_id", "received", "channel", "customer_id", "text", "category"))
    for number, ticket in enumerate(tickets, start=1):
        moment = ticket.received.strftime("%Y-%m-%dT%H:%M")
        row = (
            f"T-{number:05d}",
            moment,
            ticket.channel,
            ticket.customer_id,
            ticket.text,
            ticket.category,
        )
        writer.writerow(row)
    return out.getvalue()


# --- letters with several requests
# -----------------------------------------------------------------------

LETTER_COUNT = 1500
ASKED = (4, 42, 38, 16)  # of a hundred letters: how many ask for nothing, one, two or three things
ALSO = (
    "also",
    "and",
    "one more thing:",
    "secondly,",
    "besides,",
    "while I'm at it,",
    "and then",
    "",
)


def write_letter(rng: random.Random) -> tuple[str, list[str]]:
    """Write a letter and what it asks for; it may name one more thing, that it does not ask for."""
    voice = rng.choices(list(VOICES), weights=list(VOICES.values()))[0]
    opening, _, _, _, closing = HABITS[voice]
    first = rng.choice(list(phrases.REQUESTS))
    mine, slots = phrases.REQUESTS[first], Slots(rng)
    near = [name for name in dict.fromkeys(mine.near.split()) if name != first]
    topics = [first, *rng.sample(near, min(2, len(near)))][: rng.choices((0, 1, 2, 3), ASKED)[0]]
    others = [name for name in near if name not in topics]
    slots.kept |= dict.fromkeys(("thing", "device"), rng.choice(words.DEVICES))
    situation = phrases.SITUATIONS[rng.choice(mine.fits.split())]
    parts = [slots.fill(rng.choice(situation))] if rng.random() < 0.6 or not topics else []
    for place, topic in enumerate(topics):
        asked = request(topic, slots if place == 0 else slots.aside(), "")
        parts.append(f"{rng.choice(ALSO)} {asked}".strip() if place else asked)
    if others and rng.random() < (0.3 if topics else 1):
        parts.insert(rng.randrange(len(parts) + 1), mention(rng.choice(others), slots.aside()))
    if rng.random() < opening:
        parts.insert(0, slots.fill(rng.choice(support.OPENINGS[voice])))
    if rng.random() < closing:
        parts.append(slots.fill(rng.choice(support.CLOSINGS[voice])))
    if voice == "nonnative":
        parts = [nonnative(part, rng) for part in parts]
    text = join(parts, voice, rng)
    return with_typos(text, 1, rng) if rng.random() < MISSPELT else text, sorted(topics)


def letters_csv(rng: random.Random) -> str:
    """Give all letters as CSV text; the topics of each stand in
    one cell, `[]` where there are none.
    """
    seen, out = Seen(NEAR), io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("letter_id", "text", "topics"))
    while len(seen.texts) < LETTER_COUNT:
        text, topics = write_letter(rng)
        if 4 <= len(text.split()) <= 80 and seen.add(text):
            writer.writerow((f"L-{len(seen.texts):04d}", text, "; ".join(topics) or "[]"))
    return out.getvalue()


# --- order e-mails
# ---------------------------------------------------------------------------------------

ORDER_COUNT = 900
NUMBER_WORDS = ("", "one", "two", "three", "four", "five", "six")
Fields = dict[str, object]


def item_phrase(name: str, quantity: int, rng: random.Random) -> str:
    """Name an item with its quantity as people do in an e-mail."""
    plural = name + ("es" if name.endswith("x") else "s")
    if quantity == 1:
        article = "an" if name[0] in "aeio" else "a"
        return f"{rng.choice((article, 'one', '1 x', '1'))} {name}"
    form = rng.choice(("word", "word", "digit", "times"))
    if form == "times":
        return f"{quantity} x {name}"
    return f"{NUMBER_WORDS[quantity] if form == 'word' and quantity < 7 else quantity} {plural}"


def item_list(items: Sequence[tuple[str, int]], rng: random.Random, *, as_lines: bool) -> str:
    """Write the items into a sentence, or one a line."""
    if as_lines:
        mark = rng.choice(("- ", "* ", ""))
        return "\n" + "\n".join(f"{mark}{quantity} x {name}" for name, quantity in items)
    named = [item_phrase(name, quantity, rng) for name, quantity in items]
    return named[0] if len(named) == 1 else ", ".join(named[:-1]) + " and " + named[-1]


def written_date(moment: datetime, rng: random.Random) -> str:
    """Write a date with its year, in a form that can be read in one way only."""
    month = words.LISTS["month"][moment.month - 1]
    forms = [
        f"{moment.day} {month} {moment.year}",
        f"{month} {moment.day}, {moment.year}",
        f"{moment:%Y-%m-%d}",
    ]
    if moment.day > 12:
        forms.append(f"{moment:%d/%m/%Y}")
    return rng.choice(forms)


def order_email(intent: str, rng: random.Random) -> tuple[str, Fields]:
    """Write one e-mail and the fields that can be read from it."""
    slots = Slots(rng)
    number = None if intent == "new_order" else f"BC-{rng.randrange(20000, 99999)}"
    names = rng.sample(words.DEVICES + words.GOODS, rng.choices((1, 2, 3), weights=(5, 4, 2))[0])
    items = [
        (name, rng.choices((1, 2, 3, 4, 6, 12), weights=(8, 5, 3, 2, 1, 1))[0]) for name in names
    ]
    if intent == "change_address":
        items = []
    moment = (
        datetime(2025, 3, 1) + timedelta(days=rng.randrange(300)) if rng.random() < 0.6 else None
    )
    contact = slots.email() if rng.random() < 0.5 else None

    request = slots.fill(rng.choice(letters.REQUESTS[intent]))
    request = sentence(request).replace("#", number or "")
    ends_with_items = request.endswith(": @.")
    listed = item_list(items, rng, as_lines=ends_with_items) if items else ""
    body = [
        sentence(
            request.replace(": @.", ":" + listed)
            if ends_with_items
            else request.replace("@", listed)
        )
    ]
    if not body[0].endswith((".", "?")):
        body[0] += "\n"
    if rng.random() < 0.2:
        body.insert(0, sentence(slots.fill(rng.choice(letters.INTROS))))
    if moment is not None:
        phrase = slots.fill(rng.choice(letters.DATES[intent]))
        body.append(sentence(phrase.replace("~", written_date(moment, rng))))
    for phrase in rng.sample(letters.ASIDES, rng.choice((0, 0, 1, 1))):
        aside = slots.fill(phrase)
        if not any(name in aside for name in names):
            body.append(sentence(aside))
    if contact is not None:
        body.append(sentence(slots.fill(rng.choice(letters.CONTACTS)).replace("^", contact)))
    glue = rng.choice((" ", "\n"))
    text = glue.join(body).replace("\n ", "\n").replace("\n\n", "\n").strip()
    subject = sentence(slots.fill(rng.choice(letters.SUBJECTS[intent])).replace("#", number or ""))
    start = [f"Subject: {subject}"] if rng.random() < 0.6 else []
    start.append(sentence(slots.fill(rng.choice(letters.GREETINGS))) + ",")
    end = [sentence(slots.fill(rng.choice(letters.SIGN_OFFS))), slots.make("name")]
    fields: Fields = {
        "intent": intent,
        "order_id": number,
        "items": [{"name": name, "quantity": quantity} for name, quantity in items],
        "requested_date": moment.strftime("%Y-%m-%d") if moment else None,
        "contact_email": contact,
    }
    return "\n".join([*start, text, *end]), fields


def build_orders(rng: random.Random) -> list[Fields]:
    """Write all order e-mails."""
    seen = Seen(88.0)
    rows: list[Fields] = []
    while len(rows) < ORDER_COUNT:
        intent = rng.choices(letters.INTENTS, weights=(30, 18, 16, 22, 14))[0]
        email, fields = order_email(intent, rng)
        if seen.add(email):
            rows.append({"id": f"O-{len(rows) + 1:04d}", "email": email, "fields": fields})
    return rows


def order_schema() -> Fields:
    """Give the JSON Schema of the fields of an order e-mail."""

    def optional(description: str, **more: str) -> Fields:
        return {"type": ["string", "null"], "description": description, **more}

    item = {
        "type": "object",
        "properties": {
            "name": {
                "type": "string",
                "minLength": 1,
                "description": "the product, in the singular",
            },
            "quantity": {"type": "integer", "minimum": 1},
        },
        "required": ["name", "quantity"],
        "additionalProperties": False,
    }
    properties: Fields = {
        "intent": {"enum": list(letters.INTENTS), "description": "what the sender wants done"},
        "order_id": optional("the order that it is about", pattern="^BC-[0-9]{5}$"),
        "items": {
            "type": "array",
            "items": item,
            "description": "what is to be ordered, added, cancelled or returned, as listed",
        },
        "requested_date": optional("the date that the sender names, ISO 8601", format="date"),
        "contact_email": optional("the address that answers should go to", format="email"),
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Fields of an order e-mail",
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


# --- reply drafts
# ----------------------------------------------------------------------------------------


def reply_pair(category: str, rng: random.Random) -> tuple[str, str]:
    """Write a customer's message and the answer of the house."""
    slots = Slots(rng)
    core = slots.fill(rng.choice(support.CORES[category]))
    about = (
        slots.kept.get("thing")
        or slots.kept.get("device")
        or letters.REPLY_ABOUT.get(category, "order")
    )
    parts = [core]
    if rng.random() < 0.4:
        parts.append(slots.fill(rng.choice(support.ASKS[category])))
    if rng.random() < 0.6:
        parts.insert(0, slots.fill(rng.choice(support.OPENINGS["plain"])))
    name = rng.choice(words.FIRST_NAMES) if rng.random() < 0.6 else None
    if name is not None:
        parts.append(rng.choice(("Thanks, ", "Regards, ", "", "Best, ")) + name)
    slots.kept["about"] = about
    said = [sentence(slots.fill(rng.choice(part))) for part in letters.REPLIES[category]]
    greeting = f"Hello {name}," if name is not None else "Hello,"
    return join(parts, "polite", rng), "\n".join([greeting, " ".join(said), letters.REPLY_END])


def build_replies(rng: random.Random) -> list[Fields]:
    """Write all pairs of a message and its reply, in mixed order."""
    seen = Seen(88.0)
    pairs: list[tuple[str, str]] = []
    for category in letters.REPLIES:
        wanted = len(pairs) + letters.REPLY_COUNT_PER_CATEGORY
        while len(pairs) < wanted:
            message, reply = reply_pair(category, rng)
            if 25 <= len(reply.split()) <= 60 and seen.add(message):
                pairs.append((message, reply))
    rng.shuffle(pairs)
    return [
        {"id": f"R-{number:04d}", "message": message, "reply": reply}
        for number, (message, reply) in enumerate(pairs, start=1)
    ]


# --- the command
# -----------------------------------------------------------------------------------------


def json_lines(rows: Iterable[Fields]) -> str:
    """Give rows as JSON Lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def build_all(seed: int = SEED) -> dict[str, str]:
    """Give the text of every data file by its name."""
    return {
        "support_tickets.csv": tickets_csv(build_tickets(random.Random(seed))),
        "order_emails.jsonl": json_lines(build_orders(random.Random(seed + 1))),
        "order_emails.schema.json": json.dumps(order_schema(), indent=2) + "\n",
        "replies.jsonl": json_lines(build_replies(random.Random(seed + 2))),
        "help_desk.jsonl": json_lines(
            calls.build(random.Random(seed + 3), expand, with_typos, Seen(CALLS_NEAR).add)
        ),
        "help_desk.tools.json": json.dumps(calls.tools(), indent=2) + "\n",
        "customer_letters.csv": letters_csv(random.Random(seed + 4)),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the data files and say which."""
    parser = argparse.ArgumentParser(description="Write the example data of slmctl.")
    parser.add_argument(
        "--seed", type=int, default=SEED, help="start of all chances (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).resolve().parent, help="folder to write to"
    )
    options = parser.parse_args(arguments)
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in build_all(options.seed).items():
        (folder / name).write_bytes(text.encode("utf-8"))
        sys.stdout.write(f"{folder / name}: {text.count(chr(10))} lines\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
