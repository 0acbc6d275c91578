"""Files as people have them: twelve kinds of mess, made from one
seeded generator of support tickets.
"""

from __future__ import annotations

import csv
import io
import json
import random
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from support.workbooks import row as sheet_row
from support.workbooks import write_xlsx

Ticket = tuple[str, str]  # text, category
SENTENCES = {
    "en": {
        "invoice": "you charged me twice for {thing}, {n} euros|I need the invoice for {thing} "
        "again",
        "delivery": "nobody has brought {thing}, order {n}|where is the parcel with {thing}",
        "login": "I cannot sign in to pay {thing}|my password fails since I bought {thing}",
    },
    "de": {
        "Rechnung": "mir wurden für {thing} {n} € doppelt abgebucht|ich brauche die Rechnung für "
        "{thing} noch einmal",
        "Lieferung": "mir fehlt noch {thing} aus Auftrag {n}|wo bleibt das Paket für {thing}",
        "Zugang": "ich kann mich nicht anmelden und {thing} bezahlen|das Passwort geht nicht, seit "
        "{thing} da ist",
    },
    "fr": {
        "facture": "vous avez facturé {thing} deux fois, {n} €|je veux la facture pour {thing}",
        "livraison": "il me manque {thing} de la commande {n}|où est le colis avec {thing}",
        "accès": "je ne peux pas payer {thing}, mon compte est bloqué|mon mot de passe a changé "
        "avec {thing}",
    },
}
QUALITIES = {
    "en": "small large red green old new broken light heavy spare",
    "de": "kleine große rote grüne alte neue kaputte leichte schwere runde",
    "fr": "petite grande rouge verte vieille neuve cassée légère lourde ronde",
}
NOUNS = {
    "en": "lamp chair kettle desk clock mirror rug shelf",
    "de": "Lampe Bank Kanne Uhr Vase Truhe Matte Leiter",
    "fr": "lampe chaise table montre malle vase échelle brosse",
}
ARTICLES = {"en": "the", "de": "die", "fr": "la"}
OPENINGS = {
    "en": ["Hello, ", "Hi there, ", "Good morning, ", ""],
    "de": ["Guten Tag, ", "Hallo, ", "Moin, ", ""],
    "fr": ["Bonjour, ", "Salut, ", "Bonsoir, ", ""],
}
CLOSINGS = {
    "en": [
        "What can I do?",
        "Nobody answers me.",
        "Thanks for the help.",
        "Not for the first time.",
    ],
    "de": [
        "Was kann ich tun?",
        "Niemand antwortet mir.",
        "Vielen Dank dafür.",
        "Nicht zum ersten Mal.",
    ],
    "fr": [
        "Que puis-je faire ?",
        "Personne ne me répond.",
        "Merci de votre aide.",
        "Ce n'est pas nouveau.",
    ],
}


def tickets(count: int, language: str = "en", seed: int = 0) -> list[Ticket]:
    """So many different tickets with their categories; few of them
    have eight words in a row in common.
    """
    choose = random.Random(f"{language}{seed}")

    def thing() -> str:
        words = choose.choice(QUALITIES[language].split()), choose.choice(NOUNS[language].split())
        return " ".join([ARTICLES[language], *words])

    made: dict[str, str] = {}
    while len(made) < count:
        label = choose.choice(list(SENTENCES[language]))
        body = choose.choice(SENTENCES[language][label].split("|")).format(
            n=choose.randint(1000, 9999), thing=thing()
        )
        text = (
            f"{choose.choice(OPENINGS[language])}{body} ({thing()}). "
            f"{choose.choice(CLOSINGS[language])}"
        )
        made[text] = label
    return list(made.items())


def as_csv(header: Sequence[str], rows: Sequence[Sequence[object]], delimiter: str = ",") -> str:
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter, lineterminator="\r\n").writerows([header, *rows])
    return stream.getvalue()


def semicolons(folder: Path) -> Path:
    """An export of a German spreadsheet: semicolons, CP1252, euro signs, dates that are not ISO."""
    rows = [
        (f"A-{k:05}", f"{1 + k % 28:02}.{1 + k % 12:02}.2025", f"{10 + k % 90},50 €", text, label)
        for k, (text, label) in enumerate(tickets(240, "de"))
    ]
    header = ("Vorgangs-Nr.", "Eingang", "Betrag", "Nachricht", "Kategorie")
    path = folder / "Anfragen.csv"
    path.write_bytes(as_csv(header, rows, ";").encode("cp1252"))
    return path


ADJECTIVES = """leicht robust gefüttert wasserdicht gepolstert klassisch schmal rutschfest genäht geprägt matt gewachst
    knöchelhoch vegan waschbar geölt""".split()  # noqa: SIM905 - a list of words


def articles(folder: Path, count: int = 200) -> Path:
    """An article list of a merchandise system: semicolons, CP1252, a name in
    dots, and columns that the text holds.
    """
    choose = random.Random("articles")
    kinds = [
        "Wanderschuh",
        "Laufschuh",
        "Stiefel",
        "Sandale",
        "Hausschuh",
        "Halbschuh",
        "Gartenclog",
        "Ballerina",
    ]
    rows = []
    for k in range(count):
        brand, kind = (
            choose.choice(["Ahlers & Söhne", "Brücker", "Lindow", "Nordhaus"]),
            choose.choice(kinds),
        )
        size, colour = (
            choose.randint(36, 47),
            choose.choice(["schwarz", "weiß", "grün", "anthrazit"]) if k % 8 else "",
        )
        parts = [f"{brand} {kind}", f"Größe {size}", *([colour] if colour else [])]
        if k % 3 == 0:
            parts = [f"{kind} von {brand}", *parts[:0:-1]]
        title = f"{parts[0]} {' '.join(choose.sample(ADJECTIVES, 4))}, {', '.join(parts[1:])}"
        rows.append((f"B-{k:04}", title, brand, size, colour, f"{choose.randint(20, 180)},90"))
    path = folder / "artikel.csv"
    header = ("Art.-Nr.", "Bezeichnung", "Marke", "Größe", "Farbe", "Preis (brutto)")
    path.write_bytes(as_csv(header, rows, ";").encode("cp1252"))
    return path


REPORTS = {
    "Aufzug": "der Aufzug steht seit {n} im {place} still|die Tür vom Lift klemmt im {place}, seit "
    "{n}",
    "Heizung": "die Heizkörper im {place} bleiben seit {n} kalt|es ist im {place} seit {n} nicht "
    "warm zu bekommen",
    "Lärm": "seit {n} wird im {place} nachts gebohrt|die Nachbarn über dem {place} sind seit {n} "
    "zu laut",
    "Müll": "die Tonnen vor dem {place} sind seit {n} nicht geleert|im {place} stehen seit {n} "
    "alte Möbel",
    "Wasserschaden": "im {place} tropft es seit {n} durch die Decke|seit {n} steht der Boden im "
    "{place} unter Wasser",
}


def reports(folder: Path) -> Path:
    """An Excel export of a property manager: a title, umlauts, a name in
    brackets, slips, and a row with the sum.
    """
    choose = random.Random("reports")
    days = [
        "Montag",
        "gestern",
        "drei Tagen",
        "zwei Wochen",
        "dem Sturm",
        "heute früh",
        "Ostern",
        "Monaten",
    ]
    places = [
        f"{side} {part}"
        for side in ("vorderen", "hinteren", "linken", "rechten", "nördlichen", "südlichen")
        for part in ("Treppenhaus", "Keller", "Flur", "Hof", "Dachboden", "Waschraum", "Anbau")
    ]
    made: dict[str, str] = {}
    while len(made) < 480:
        label = choose.choice(list(REPORTS))
        body = choose.choice(REPORTS[label].split("|")).format(
            n=choose.choice(days), place=choose.choice(places)
        )
        opening, closing = choose.choice(OPENINGS["de"]), choose.choice(CLOSINGS["de"])
        made[f"{opening}{body} (Wohnung {choose.randint(1, 60)}). {closing}"] = label
    rows = list(made.items())
    slips = {"Aufzug": ["Aufug"] * 9, "Müll": ["Muell"] * 24, "Lärm": ["Laerm"] * 11 + ["lärm"]}
    cells = []
    for k, (text, label) in enumerate(rows, 1):
        label = slips[label].pop() if k % 4 == 0 and slips.get(label) else label
        cells.append((f"M-{k:04}", f"{1 + k % 28:02}.{1 + k % 12:02}.2025", text, label))
    sheet = [sheet_row(1, "Meldungen der Mieter, Stand 30.11.2025"), sheet_row(3, *REPORTS_HEADER)]
    sheet += [sheet_row(k, *row) for k, row in enumerate(cells, 4)]
    sheet.append(sheet_row(len(cells) + 4, "Summe", "", "", str(len(cells))))
    legend = [
        sheet_row(k, *row) for k, row in enumerate((("Kürzel", "Bedeutung"), ("M", "Meldung")), 1)
    ]
    return write_xlsx(
        folder / "Meldungen.xlsx", {"Export": "".join(sheet), "Legende": "".join(legend)}
    )


REPORTS_HEADER = ("Nr.", "Eingang", "Meldung (Text)", "Kategorie")


def quoted_newlines(folder: Path) -> Path:
    """E-mails whose line breaks stand inside quotes."""
    rows = [
        (k, f'{text}\n\nKind regards,\n"Customer" {k}', label)
        for k, (text, label) in enumerate(tickets(240), 1)
    ]
    path = folder / "mails.csv"
    path.write_text(as_csv(("id", "body", "queue"), rows), encoding="utf-8", newline="")
    return path


def workbook(folder: Path) -> Path:
    """A workbook whose first sheet is notes, and whose second has a title above its header."""
    notes = [
        sheet_row(1, "Read me"),
        sheet_row(2, "Export of the service desk"),
        sheet_row(3, "Questions: ext. 12"),
    ]
    table = [
        sheet_row(1, "Tickets of the service desk, 2025"),
        sheet_row(3, "No", "Subject", "Message", "Category"),
    ]
    table += [
        sheet_row(k + 4, f"T{k:04}", f"{label.capitalize()} question {k}", text, label)
        for k, (text, label) in enumerate(tickets(200))
    ]
    return write_xlsx(
        folder / "service desk.xlsx", {"Notes": "".join(notes), "Tickets": "".join(table)}
    )


def database(folder: Path) -> Path:
    """An SQLite file with tickets, and customers beside them."""
    path = folder / "crm.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE customers (customer INTEGER, city TEXT)")
        connection.executemany(
            "INSERT INTO customers VALUES (?, ?)", [(k, "Nowhere") for k in range(40)]
        )
        connection.execute(
            "CREATE TABLE tickets (ticket INTEGER, customer INTEGER, description TEXT, topic TEXT)"
        )
        rows = [(k, k * 7 % 80, text, label) for k, (text, label) in enumerate(tickets(240), 1)]
        connection.executemany("INSERT INTO tickets VALUES (?, ?, ?, ?)", rows)
    connection.close()
    return path


def parquet_folder(folder: Path) -> Path:
    """A folder of Parquet files, one a month, with times."""
    import datetime

    import pyarrow
    import pyarrow.parquet

    path = folder / "export"
    path.mkdir()
    rows = tickets(240)
    for month in range(3):
        part = rows[month * 80 : (month + 1) * 80]
        times = [datetime.datetime(2025, month + 1, 1 + k % 28, 9, k % 60) for k in range(80)]
        columns = {
            "created": times,
            "text": [text for text, _ in part],
            "label": [label for _, label in part],
        }
        pyarrow.parquet.write_table(pyarrow.table(columns), path / f"2025-{month + 1:02}.parquet")
    return path


def tools_jsonl(folder: Path) -> Path:
    """Conversations in OpenAI's form, in which the assistant calls a tool."""
    tool = {
        "type": "function",
        "function": {
            "name": "find_order",
            "description": "Look an order up.",
            "parameters": {
                "type": "object",
                "properties": {"number": {"type": "integer"}},
                "required": ["number"],
            },
        },
    }
    lines = []
    for text, _ in tickets(150):
        number = len(lines) + 1000
        call = {"name": "find_order", "arguments": json.dumps({"number": number})}
        messages = [
            {"role": "system", "content": "You help the customers of a shop."},
            {"role": "user", "content": text},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "type": "function", "function": call}],
            },
        ]
        lines.append({"messages": messages, "tools": [tool]})
    path = folder / "calls.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def chats(folder: Path, tools: float = 0.4) -> Path:
    """Conversations of a chat export of which a part holds calls of a
    tool, without a list of the tools.
    """
    lines = []
    for k, (text, label) in enumerate(tickets(240)):
        call = {"name": "find_order", "arguments": json.dumps({"number": k})}
        looked_up = [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "type": "function", "function": call}],
            },
            {"role": "tool", "tool_call_id": "1", "content": f"the order {k} is on its way"},
        ]
        answer = {
            "role": "assistant",
            "content": f"Your {label}, number {k}, is taken care of by a colleague.",
        }
        messages = [
            {"role": "user", "content": text},
            *(looked_up if k < 240 * tools else []),
            answer,
        ]
        lines.append(json.dumps({"messages": messages}) + "\n")
    path = folder / "chats.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def utf16(folder: Path) -> Path:
    """What a spreadsheet calls Unicode text: UTF-16 with tabs, in French."""
    rows = [(text, label) for text, label in tickets(240, "fr")]
    path = folder / "demandes.csv"
    path.write_bytes(as_csv(("demande", "catégorie"), rows, "\t").encode("utf-16"))
    return path


def swapped(folder: Path) -> Path:
    """Columns under each other's names."""
    path = folder / "swapped.csv"
    path.write_text(as_csv(("category", "text"), tickets(240)), encoding="utf-8", newline="")
    return path


SLIPS = (
    "Rechung",
    "rechnung",
    "Rechnng",
    "Rechnung.",
    "Lieferug",
    "lieferung",
    "Liefrung",
    "Lieferun",
    "Zugagn",
    "zugang",
    "Zuganng",
    "Zugang!",
)


def label_slips(folder: Path) -> Path:
    """Twelve labels that are misspelt."""
    rows = [[text, label] for text, label in tickets(360, "de")]
    right = {"r": "Rechnung", "l": "Lieferung", "z": "Zugang"}
    for slip in SLIPS:
        label = right[slip[0].lower()]
        next(row for row in rows if row[1] == label)[1] = slip
    path = folder / "anfragen.csv"
    path.write_text(as_csv(("Text", "Kategorie"), rows), encoding="utf-8", newline="")
    return path


def few_rows(folder: Path) -> Path:
    path = folder / "twenty.csv"
    path.write_text(as_csv(("text", "category"), tickets(20)), encoding="utf-8", newline="")
    return path


def one_class(folder: Path) -> Path:
    path = folder / "one.csv"
    rows = [(text, "complaint") for text, _ in tickets(200)]
    path.write_text(as_csv(("text", "category"), rows), encoding="utf-8", newline="")
    return path


def conflicts(folder: Path) -> Path:
    """Rows that stand there twice, and every tenth text once more with another label."""
    rows = tickets(200)
    labels = list(SENTENCES["en"])
    again = [(text, labels[(labels.index(label) + 1) % 3]) for text, label in rows[::10]]
    path = folder / "repeated.csv"
    path.write_text(
        as_csv(("text", "category"), [*rows, *rows[:60], *again]), encoding="utf-8", newline=""
    )
    return path
