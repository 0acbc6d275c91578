"""Answers with values that their question has or implies, and planted ones, in English and German,
from a seed.

Forms are written here by hand, without slmctl's code. A planted value is drawn at random: some may
follow from the question by chance, and count as missed.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

MONTHS = {
    "en": [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ],
    "de": [
        "Januar",
        "Februar",
        "März",
        "April",
        "Mai",
        "Juni",
        "Juli",
        "August",
        "September",
        "Oktober",
        "November",
        "Dezember",
    ],
}
DAYS = {
    "en": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "de": ["Montag", "Dienstag", "Mittwoch", "Donnerstag", "Freitag", "Samstag", "Sonntag"],
}
WORDS = {
    "en": "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen "
    "eighteen nineteen twenty twenty-one twenty-two",
    "de": "zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn "
    "sechzehn siebzehn "
    "achtzehn neunzehn zwanzig einundzwanzig zweiundzwanzig",
}
POLITE = {
    "en": [
        "Thank you for your message.",
        "One of our colleagues looks into it.",
        "We are here for you 24/7.",
        "A million thanks for your patience!",
        "May I ask for a photo?",
        "First of all, we are sorry about this.",
        "1. Open your account.\n2. Choose the order.",
        "On the one hand this is rare, on the other we know it.",
    ],
    "de": [
        "Vielen Dank für Ihre Nachricht.",
        "Eine unserer Kolleginnen kümmert sich darum.",
        "Tausend Dank!",
        "Wir sind rund um die Uhr, 24/7, für Sie da.",
        "Das tut uns zunächst einmal leid.",
        "1. Öffnen Sie Ihr Konto.\n2. Wählen Sie die Bestellung.",
        "Zum einen ist das selten, zum anderen bekannt.",
    ],
}
NAMES = ("orders", "support", "returns", "hilfe", "rechnung", "team", "service", "kontakt")
HOSTS = ("alderholt.example", "brindlecove.example", "moorfeld.de", "shop-kiefer.com")


@dataclass(frozen=True)
class Part:
    """A sentence of the question, one of an answer that rests on it,
    and one with a value that does not.
    """

    asked: str
    grounded: str
    planted: str
    value: str  # the planted one, as it is written


def found(values: Sequence[str], planted: Sequence[str]) -> tuple[int, int, int]:
    """Returns the numbers of planted values that were found, of those
    that were not, and of other values found.
    """
    left, hits = list(values), 0
    for value in sorted(planted, key=len, reverse=True):
        same = [name for name in left if name in value or value in name]
        if same:
            left.remove(max(same, key=len))
            hits += 1
    return hits, len(planted) - hits, len(left)


@dataclass(frozen=True)
class Planted:
    """An answer, the texts that it rests on, and its values that do not stand there."""

    answer: str
    texts: tuple[str, ...]
    values: tuple[str, ...]


# Cases by hand: the answer, what it rests on, and its values that do not stand there
HARD: list[tuple[str, str, tuple[str, ...]]] = [
    ("Your two-week trial ends on 15 May.", "trial started 1 May, 14 days", ()),
    ("Your three-week trial ends soon.", "trial started 1 May, 14 days", ("three",)),
    (
        "That makes 3 x 4 = 12, thirty-six in all three crates.",
        "three crates, 12 bottles each, 3 rows of 4",
        (),
    ),
    ("We charge 119 € (100 € and 19 % VAT).", "What is 100 € with VAT? VAT is 19 %", ()),
    ("We charge 116 € (100 € and 16 % VAT).", "What is 100 € with VAT?", ("116", "16")),
    (
        "Of your 80 boxes 20 are here, so 60 are missing, or 75 %.",
        "80 boxes ordered, 20 arrived",
        (),
    ),
    ("You owe 1.234,56 €.", "open invoice: EUR 1234.56", ()),
    ("You owe 1.234,65 €.", "open invoice: EUR 1234.56", ("1.234,65",)),
    ("We ship on Tuesday, 3 March 2026.", "please ship on 2026-03-03", ()),
    ("We ship on Friday, 3 March 2026.", "please ship on 2026-03-03", ("Friday",)),
    ("The meeting is at half past; bring 2 copies.", "bring two copies at half past four", ()),
    ("The train leaves at 16:45.", "my train goes at 4:45 pm", ()),
    ("The train leaves at 5:45.", "my train goes at 4:45 pm", ("5:45",)),
    ("We open at 9 a.m. and close at 5 p.m.", "Opening hours: 9:00-17:00", ()),
    ("We open at 8 a.m. and close at 5 p.m.", "Opening hours: 9:00-17:00", ("8 a.m",)),
    ("Please call +1 (415) 555-0134.", "phone 415 555 0134", ()),
    ("Please call +1 (415) 555-0143.", "phone 415 555 0134", ("+1 (415) 555-0143",)),
    ("IBAN DE89 3704 0044 0532 0130 00 is on file.", "Meine IBAN: DE89370400440532013000", ()),
    ("Version 2.10.3 fixes this.", "I run version 2.10.3", ()),
    ("Version 2.10.4 fixes this.", "I run version 2.10.3", ("2.10.4",)),
    ("The server 192.168.0.12 answers again.", "192.168.0.12 does not answer", ()),
    (
        "See https://alder.example/setup#step-2.",
        "https://alder.example/setup",
        ("https://alder.example/setup#step-2",),
    ),
    ("See docs.alder.example for more.", "Docs: https://docs.alder.example/setup", ()),
    ("It weighs 2.5 kg, which is 2500 g.", "the box is 2.5 kg", ()),
    ("Your invoice INV-2026-0042 is paid.", "invoice inv 2026 0042?", ()),
    ("Your invoice INV-2026-0024 is paid.", "invoice inv 2026 0042?", ("INV-2026-0024",)),
    ("In 2019 you chose the same colour.", "customer since 2019-05-02", ()),
    ("In 2018 you chose the same colour.", "customer since 2019-05-02", ("2018",)),
    ("Both of you get a third off.", "we are two; a third off, you said", ()),
    ("You get a dozen, so 12.", "I ordered a dozen", ()),
    ("Up to 10,000 rows are free.", "The free plan has 10k rows: 10 000", ()),
    ("It costs nine hundred and ninety-nine dollars.", "Is it $999?", ()),
    (
        "It costs nine hundred and eighty-nine dollars.",
        "Is it $999?",
        ("nine hundred and eighty-nine",),
    ),
    ("Seats 14A and 14B are yours.", "seats 14A, 14B please", ()),
    ("Seats 14A and 15B are yours.", "seats 14A, 14B please", ("15B",)),
    (
        "To Anna.Berg@alder.example, not a.berg@alder.example.",
        "anna.berg@alder.example",
        ("a.berg@alder.example",),
    ),
    ("Your refund of $1.5 million is late.", "$1,500,000 refund", ()),
    ("We may call you; march on!", "hello", ()),
    ("1) Open the lid.\n2) Press for 5 seconds.", "press five seconds", ()),
    ("1) Open the lid.\n2) Press for 15 seconds.", "press five seconds", ("15",)),
    ("Am 24.12. und am 31.12. ist zu.", "geschlossen: 24. Dezember, 31. Dezember", ()),
    ("Am 24.12. und am 30.12. ist zu.", "geschlossen: 24. Dezember, 31. Dezember", ("30.12",)),
    ("Das sind zweitausendfünfhundert Euro.", "Ich habe 2.500 € überwiesen", ()),
    (
        "Das sind zweitausendvierhundert Euro.",
        "Ich habe 2.500 € überwiesen",
        ("zweitausendvierhundert",),
    ),
    ("Der Vertrag läuft 24 Monate, also 2 Jahre.", "Laufzeit: zwei Jahre", ()),
    ("Der Vertrag läuft 36 Monate.", "Laufzeit: zwei Jahre", ("36",)),
    ("Bitte zahlen Sie die Hälfte, 49,95 €.", "Rechnung über 99,90 €, die Hälfte jetzt", ()),
    ("Wir sind werktags von 8 bis 18 Uhr erreichbar.", "Erreichbar 8-18 Uhr", ()),
    ("Wir sind werktags von 8 bis 20 Uhr erreichbar.", "Erreichbar 8-18 Uhr", ("20 Uhr",)),
    ("Ihr Paket kommt am 14. zu Ihnen.", "Lieferung am 14.03.2026", ()),
    ("Ihr Paket kommt am 17. zu Ihnen.", "Lieferung am 14.03.2026", ("17",)),
    ("Das kostet 20,- € je Stück.", "20 Euro je Stück?", ()),
    ("Die Nachzahlung beträgt 1,5 Mio. Euro.", "1.500.000 €", ()),
    ("Schreiben Sie an Platz 3, Halle B12.", "Halle B12, Platz 3", ()),
    ("Schreiben Sie an Platz 3, Halle B21.", "Halle B12, Platz 3", ("B21",)),
    ("Aus 50 Prozent werden so 25 %.", "50% und davon die Hälfte", ()),
    ("Elf Kisten, eine davon leer, also 10 volle.", "11 Kisten, eine ist leer", ()),
    (
        "Ich sehe 3 offene Posten: 10 €, 20 € und 5 €, zusammen 35 €.",
        "Offen: 10 €, 20 €, 5 €. Drei Posten.",
        (),
    ),
    ("Die Bestellung 4711-0815 ist da.", "Bestellung 47110815", ()),
    ("Die Bestellung 4711-0851 ist da.", "Bestellung 47110815", ("4711-0851",)),
    (
        "We will refund the full 129.90 within 5-7 business days.",
        "Policy: five to seven days. I paid 129,90",
        (),
    ),
    (
        "Your appointment on Thu 12 March at 10:30 is confirmed.",
        "Can I come on Thursday, March 12, at 10:30?",
        (),
    ),
    (
        "Ihr Termin am Donnerstag, 12.03., um 10.30 Uhr ist bestätigt.",
        "Donnerstag 12. März 10:30 Uhr?",
        (),
    ),
    ("It takes half an hour.", "it takes 30 minutes?", ()),
    ("Your iPhone 15 Pro is covered.", "my iphone 15 pro broke", ()),
    ("You paid $1,299 on 01/05/2026.", "charged $1299.00 on Jan 5, 2026", ()),
    ("You paid $1,299 on 01/05/2026.", "charged $1299.00 on 2026-05-01", ()),
    (
        "Order #4711 (2 items, €35.80), tracking JD0146000038.",
        "4711: two items at 17.90. tracking JD0146000038",
        (),
    ),
    (
        "Order #4711 ships to 10115 Berlin, Invalidenstr. 45.",
        "Nr 4711; Invalidenstraße 45, 10115 Berlin",
        (),
    ),
    (
        "On 3.3.26 we received 3 of 5 parts; two follow by Friday.",
        "3 of five came on 3 March 2026; rest by friday",
        (),
    ),
    (
        "From 1 January 2027 the fee is 12,50 € a month, 150 € a year.",
        "Gebühr ab 01.01.2027: 12,50 € monatlich",
        (),
    ),
    (
        "A 20% deposit (EUR 240) is due; the remaining EUR 960 on arrival.",
        "total EUR 1,200, deposit 20 percent",
        (),
    ),
    ("We answer within 24 hours.", "we answer within one day", ()),
    ("It weighs 1,5 kg.", "1500 g", ()),
    ("Bitte überweisen Sie 1.190 € (1.000 € zzgl. 19 % MwSt.).", "Netto 1000 EUR, MwSt 19%", ()),
    ("See page 12, section 3.2.", "section 3.2 on page 12", ()),
    ("see page 14, section 3.2.", "section 3.2 on page 12", ("14",)),
    ("The discount SAVE20 gives 20 %.", "code save20: 20% off", ()),
    ("The discount SAVE25 gives 20 %.", "code save20: 20% off", ("SAVE25",)),
    ("Call 0800/123 45 67 Mon-Fri 8am–6pm.", "Hotline 0800 1234567, Mon–Fri, 8:00 to 18:00", ()),
    ("Between 2015 and 2019, i.e. four years.", "from 2015 to 2019", ()),
    ("Es sind noch 14 Tage bis zum 1. April.", "heute ist der 18. März; 1. April", ()),
    ("Wir haben Ihre drei Fragen: erstens der Preis, zweitens die Farbe.", "drei Fragen", ()),
    ("You can pay in 12 instalments of 25 €.", "300 € in 12 rates", ()),
    ("The 7-inch tablet costs 99.", "7 inch tablet for 99?", ()),
    ("Ihre Kundennummer lautet 00012345.", "Kundennr. 12345", ()),
    ("Ihr Zug ICE 1601 fährt um 7:05 ab Gleis 8.", "ICE 1601, 07:05, Gleis 8", ()),
    ("The file is 2.4 MB (limit 5MB).", "limit 5 MB, my file has 2.4MB", ()),
    (
        "Mail info@moorfeld.de or visit moorfeld.de/hilfe.",
        "info@moorfeld.de, https://www.moorfeld.de/hilfe/",
        (),
    ),
    ("We open at nine.", "open from 9:00", ("nine",)),
    ("In Q3 2026 we grew 5 %.", "Q3 2026: five percent", ()),
    ("Since 3 pm yesterday, 2/3 of users are back.", "two thirds since 15:00", ("2/3",)),
    ("Your refund is EUR 49.-", "49 Euro", ()),
    ("Das sind 1,2 Mio. Euro bzw. 1.200 Tsd. Euro.", "1.200.000 Euro", ()),
]
# Forms that are not read: an hour and a half, a size and a list without spaces
BEYOND: list[tuple[str, str, tuple[str, ...]]] = [
    ("That is 90 minutes in total.", "an hour and a half", ()),
    ("The A4 sheet is 21 x 29.7 cm.", "print A4 21x29.7cm", ()),
    ("We sell 3 sizes: 38, 40 and 42.", "sizes 38/40/42", ("3",)),
]


def cases(count: int = 300, *, seed: int = 11) -> Iterator[Planted]:
    """Answers: those by hand, then ones of two to four parts each, of
    which about two in five are planted.
    """
    chance = random.Random(seed)
    yield from (Planted(answer, ("", text), values) for answer, text, values in (*HARD, *BEYOND))
    for number in range(count - len(HARD) - len(BEYOND)):
        language = "de" if number % 2 else "en"
        drawn = [
            (make(chance, language), chance.random() < 0.4)
            for make in chance.sample(PARTS, chance.randint(2, 4))
        ]
        said = [part.planted if wrong else part.grounded for part, wrong in drawn]
        said.insert(chance.randint(0, len(said)), chance.choice(POLITE[language]))
        texts = (
            chance.choice(("Answer as our house does.", "Beantworte die Mail.")),
            " ".join(p.asked for p, _ in drawn),
        )
        yield Planted("\n".join(said), texts, tuple(part.value for part, wrong in drawn if wrong))


def money(chance: random.Random, value: float, language: str) -> str:
    plain, thousands = f"{value:.2f}", f"{value:,.2f}"
    if language == "en":
        return chance.choice((f"€{thousands}", f"EUR {plain}", f"{plain} €", f"{thousands} euros"))
    comma, dotted = plain.replace(".", ","), thousands.translate(str.maketrans(",.", ".,"))
    return chance.choice((f"{comma} €", f"{dotted} Euro", f"EUR {comma}", f"{dotted} €"))


def day(
    chance: random.Random, date: datetime.date, language: str, *, year: bool | None = None
) -> str:
    month, dated = MONTHS[language][date.month - 1], chance.random() < 0.5 if year is None else year
    if language == "en":
        forms = [f"{date.day} {month}", f"{month} {date.day}", f"the {date.day}th of {month}"]
        return chance.choice(forms) + (f" {date.year}" if dated else "")
    forms = [
        f"{date.day}. {month}" + (f" {date.year}" if dated else ""),
        f"{date:%d.%m.}" + (f"{date.year}" * dated),
    ]
    return chance.choice(forms)


def other(chance: random.Random, right: float, low: int, high: int) -> int:
    return chance.choice([value for value in range(low, high) if value != right])


def some_date(chance: random.Random) -> datetime.date:
    return datetime.date(2026, 1, 1) + datetime.timedelta(days=chance.randrange(360))


def number(chance: random.Random, value: int, language: str) -> str:
    return (
        WORDS[language].split()[value - 2]
        if chance.random() < 0.5 and 2 <= value <= 22
        else str(value)
    )


# The parts: `en` and `de` are (asked, answered), where {} stands for the value


def _part(
    language: str, en: tuple[str, str], de: tuple[str, str], asked: str, right: str, wrong: str
) -> Part:
    question, answer = en if language == "en" else de
    return Part(question.format(asked), answer.format(right), answer.format(wrong), wrong)


def _refund(chance: random.Random, lang: str) -> Part:
    value, wrong = chance.randrange(500, 200_000) / 100, chance.randrange(500, 200_000) / 100
    return _part(
        lang,
        ("I paid {} for it.", "You get {} back."),
        ("Ich habe {} bezahlt.", "Sie erhalten {} zurück."),
        money(chance, value, lang),
        money(chance, value, lang),
        money(chance, wrong, lang),
    )


def _total(chance: random.Random, lang: str) -> Part:
    count, price = chance.randrange(2, 13), chance.randrange(300, 9000) / 100
    asked = (
        f"{number(chance, count, lang)} {'lamps at' if lang == 'en' else 'Lampen zu je'} "
        f"{money(chance, price, lang)}"
    )
    wrong = chance.randrange(1000, 90_000) / 100
    return _part(
        lang,
        ("I need {}.", "Together that is {}."),
        ("Ich brauche {}.", "Zusammen macht das {}."),
        asked,
        money(chance, count * price, lang),
        money(chance, wrong, lang),
    )


def _sum(chance: random.Random, lang: str) -> Part:
    a, b = chance.randrange(1000, 20_000) / 100, chance.randrange(300, 2000) / 100
    joint = " and for the postage " if lang == "en" else " und für den Versand "
    return _part(
        lang,
        ("I was charged {}.", "We refund the whole {}."),
        ("Mir wurden {} berechnet.", "Wir erstatten die ganzen {}."),
        money(chance, a, lang) + joint + money(chance, b, lang),
        money(chance, a + b, lang),
        money(chance, chance.randrange(1000, 30_000) / 100, lang),
    )


def _discount(chance: random.Random, lang: str) -> Part:
    share, price = chance.choice((5, 10, 15, 20, 25, 30)), chance.randrange(2000, 40_000) / 100
    percent = (
        f"{share} %"
        if chance.random() < 0.5
        else f"{share} {'percent' if lang == 'en' else 'Prozent'}"
    )
    rest = chance.choice((price * share / 100, price * (100 - share) / 100))
    asked = f"{percent} {'off' if lang == 'en' else 'Rabatt auf'} {money(chance, price, lang)}"
    return _part(
        lang,
        ("Do I get {}?", "Yes, that makes {}."),
        ("Bekomme ich {}?", "Ja, das macht {}."),
        asked,
        money(chance, round(rest, 2), lang),
        money(chance, chance.randrange(500, 40_000) / 100, lang),
    )


def _date(chance: random.Random, lang: str) -> Part:
    date, wrong = some_date(chance), some_date(chance)
    asked = chance.choice(
        (
            date.isoformat(),
            f"{date:%d.%m.%Y}" if lang == "de" else f"{date:%d/%m/%Y}",
            day(chance, date, lang),
        )
    )
    return _part(
        lang,
        ("I ordered on {}.", "Your order of {} is on its way."),
        ("Bestellt habe ich am {}.", "Ihre Bestellung vom {} ist unterwegs."),
        asked,
        day(chance, date, lang),
        day(chance, wrong, lang),
    )


def _deadline(chance: random.Random, lang: str) -> Part:
    date, span = some_date(chance), chance.choice((7, 10, 14, 21, 30))
    asked = f"{date:%d.%m.%Y}" if lang == "de" else date.isoformat()
    later = date + datetime.timedelta(days=span)
    wrong = later + datetime.timedelta(days=chance.choice((-5, -3, 2, 4, 9, 40)))
    spans = f" and have {span} days" if lang == "en" else f" und habe {span} Tage Zeit"
    return _part(
        lang,
        ("It came on {}.", "So you can send it back until {}."),
        ("Es kam am {}.", "Sie können es also bis zum {} zurücksenden."),
        asked + spans,
        day(chance, later, lang),
        day(chance, wrong, lang),
    )


def _count(chance: random.Random, lang: str) -> Part:
    value = chance.randrange(2, 23)
    return _part(
        lang,
        ("We are {} people.", "We have set a table for {}."),
        ("Wir sind {} Personen.", "Ein Tisch für {} steht bereit."),
        number(chance, value, lang),
        number(chance, value, lang),
        number(chance, other(chance, value, 2, 23), lang),
    )


def _weeks(chance: random.Random, lang: str) -> Part:
    weeks = chance.randrange(2, 7)
    wrong = number(chance, other(chance, 7 * weeks, 8, 60), lang)
    return _part(
        lang,
        ("I have been waiting for {} weeks.", "We are sorry about these {} days."),
        ("Ich warte seit {} Wochen.", "Diese {} Tage tun uns leid."),
        number(chance, weeks, lang),
        str(7 * weeks),
        wrong,
    )


def _code(chance: random.Random, lang: str) -> Part:
    letters, digits = (
        "".join(chance.choices("ABDEFGHKLMNPRST", k=2)),
        f"{chance.randrange(10**5):05}",
    )
    wrong = f"{letters}-{(int(digits) + chance.randrange(1, 10**5)) % 10**5:05}"
    forms = (
        f"{letters}-{digits}",
        f"{letters}{digits}".lower(),
        f"{letters} {digits}",
        f"#{letters}-{digits}",
    )
    return _part(
        lang,
        ("My order is {}.", "The order {} has left us."),
        ("Meine Bestellung ist {}.", "Die Bestellung {} ist verschickt."),
        chance.choice(forms),
        f"{letters}-{digits}",
        wrong,
    )


def _parcel(chance: random.Random, lang: str) -> Part:
    value, wrong = (f"{chance.randrange(10**11, 10**12)}" for _ in range(2))
    grouped = f"{value[:4]} {value[4:8]} {value[8:]}"
    return _part(
        lang,
        ("The parcel number is {}.", "We looked for {}."),
        ("Die Paketnummer ist {}.", "Wir haben {} gesucht."),
        grouped,
        value,
        wrong,
    )


def _address(chance: random.Random, lang: str) -> Part:
    name, wrong = chance.sample(NAMES, 2)
    host = chance.choice(HOSTS)
    return _part(
        lang,
        ("I wrote to {} already.", "Please write to {} again."),
        ("Ich habe schon an {} geschrieben.", "Bitte schreiben Sie an {}."),
        f"{name}@{host}",
        f"{name.title()}@{host}",
        f"{wrong}@{host}",
    )


def _link(chance: random.Random, lang: str) -> Part:
    host, (page, wrong) = (
        chance.choice(HOSTS),
        chance.sample(("returns", "track/order", "faq", "guarantee", "form"), 2),
    )
    return _part(
        lang,
        ("Is it {}?", "You find it at {}."),
        ("Ist es {}?", "Sie finden es unter {}."),
        f"https://www.{host}/{page}",
        chance.choice((f"{host}/{page}", f"https://{host}/{page}", host)),
        f"https://{host}/{wrong}",
    )


def _time(chance: random.Random, lang: str) -> Part:
    hour, half = chance.randrange(13, 20), chance.choice((0, 15, 30))
    twelve = f"{hour - 12}:{half:02} pm" if half else f"{hour - 12} pm"
    forms = (
        (f"{hour}:{half:02}", twelve)
        if lang == "en"
        else (f"{hour}:{half:02} Uhr", f"{hour}.{half:02} Uhr")
    )
    wrong = other(chance, hour, 8, 21)
    return _part(
        lang,
        ("Can you come at {}?", "We will be there at {}."),
        ("Können Sie um {} kommen?", "Wir sind um {} da."),
        chance.choice(forms),
        chance.choice(forms),
        f"{wrong}:{half:02}" + (" Uhr" if lang == "de" else ""),
    )


def _weekday(chance: random.Random, lang: str) -> Part:
    date = some_date(chance)
    names = DAYS[lang]
    right, wrong = names[date.weekday()], names[(date.weekday() + chance.randrange(1, 7)) % 7]
    asked = f"{date:%d.%m.%Y}" if lang == "de" else f"{date:%d %B %Y}"
    return _part(
        lang,
        ("Is {} free?", "That {} is free."),
        ("Ist der {} frei?", "Dieser {} ist frei."),
        asked,
        right,
        wrong,
    )


def _phone(chance: random.Random, lang: str) -> Part:
    value, wrong = (f"{chance.randrange(10**6, 10**7)}" for _ in range(2))
    return _part(
        lang,
        ("My number is {}.", "We ring you on {}."),
        ("Meine Nummer ist {}.", "Wir rufen Sie unter {} an."),
        f"030/{value}",
        f"+49 30 {value[:3]} {value[3:]}",
        f"+49 30 {wrong[:3]} {wrong[3:]}",
    )


def _large(chance: random.Random, lang: str) -> Part:
    value, wrong = (chance.randrange(1100, 99_000) for _ in range(2))
    mark = "," if lang == "en" else "."
    return _part(
        lang,
        ("We have {} bottles.", "For {} bottles we need a lorry."),
        ("Wir haben {} Flaschen.", "Für {} Flaschen brauchen wir einen Lkw."),
        str(value),
        f"{value:,}".replace(",", mark),
        f"{wrong:,}".replace(",", mark),
    )


def _rest(chance: random.Random, lang: str) -> Part:
    some, missing = chance.randrange(2, 9), chance.randrange(2, 9)
    joint = "cups, and got only" if lang == "en" else "Tassen und bekam nur"
    asked = f"{some + missing} {joint} {number(chance, some, lang)}"
    return _part(
        lang,
        ("I ordered {}.", "The {} that are missing follow."),
        ("Ich bestellte {}.", "Die {} fehlenden folgen."),
        asked,
        number(chance, missing, lang),
        number(chance, other(chance, missing, 10, 23), lang),
    )


def _share(chance: random.Random, lang: str) -> Part:
    value = chance.randrange(2, 23)
    forms = (
        f"{value} %",
        f"{value}%",
        f"{number(chance, value, lang)} {'percent' if lang == 'en' else 'Prozent'}",
    )
    return _part(
        lang,
        ("Is it {} VAT?", "Yes, {} are included."),
        ("Sind es {} MwSt.?", "Ja, {} sind enthalten."),
        chance.choice(forms),
        chance.choice(forms),
        f"{other(chance, value, 2, 40)} %",
    )


def _month(chance: random.Random, lang: str) -> Part:
    date = some_date(chance)
    wrong = other(chance, date.month, 1, 13)
    return _part(
        lang,
        ("I moved in on {}.", "The contract began in {}."),
        ("Eingezogen bin ich am {}.", "Der Vertrag begann im {}."),
        day(chance, date, lang, year=True),
        f"{MONTHS[lang][date.month - 1]} {date.year}",
        f"{MONTHS[lang][wrong - 1]} {date.year}",
    )


def _half(chance: random.Random, lang: str) -> Part:
    price = 2 * chance.randrange(10, 200)
    asked = f"{'half of' if lang == 'en' else 'die Hälfte von'} {price} €"
    return _part(
        lang,
        ("I want {} back.", "We send you {}."),
        ("Ich möchte {} zurück.", "Wir senden Ihnen {}."),
        asked,
        f"{price // 2} €",
        f"{other(chance, price // 2, 10, 400)} €",
    )


def _both(chance: random.Random, lang: str) -> Part:
    return _part(
        lang,
        ("{} chairs wobble.", "We replace the {} chairs."),
        ("{} Stühle wackeln.", "Wir ersetzen die {} Stühle."),
        "Both" if lang == "en" else "Beide",
        number(chance, 2, lang),
        number(chance, chance.randrange(3, 23), lang),
    )


def _street(chance: random.Random, lang: str) -> Part:
    house, wrong, code = (
        chance.randrange(23, 120),
        chance.randrange(121, 180),
        chance.randrange(10_000, 99_999),
    )
    return _part(
        lang,
        ("I live at {}.", "We deliver to {}."),
        ("Ich wohne {}.", "Wir liefern an {}."),
        f"Lindenweg {house}, {code} Moorfeld",
        f"Lindenweg {house}, {code} Moorfeld",
        f"Lindenweg {wrong}",
    )


PARTS: list[Callable[[random.Random, str], Part]] = [
    _refund,
    _total,
    _sum,
    _discount,
    _date,
    _deadline,
    _count,
    _weeks,
    _code,
    _parcel,
    _address,
    _link,
    _time,
    _weekday,
    _phone,
    _large,
    _rest,
    _share,
    _month,
    _half,
    _both,
    _street,
]
