"""Write `contract-terms.tar.xz`: contracts and letters of an invented maker of instruments, and a
workbook of terms.

    python examples/data/make_contracts.py [--seed N] [--out DIR]

Needs slmctl[dev] (python-docx, fpdf2). The seed decides every text and answer; files are stored
uncompressed, since the archive compresses what they have in common.
"""

from __future__ import annotations

import argparse
import io
import lzma
import random
import re
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from typing import Any

import docx
import phrases_contracts as phrases
import phrases_words as words
from docx.enum.text import WD_BREAK
from fpdf import FPDF
from generate import expand

from slmctl.stages.predict import workbook_writer

SEED, COUNT = 5279, 320
ARCHIVE, FILES, WORKBOOK = "contract-terms.tar.xz", "data/contracts", "data/terms.xlsx"
FIELDS = (
    "supplier",
    "contract_no",
    "start_date",
    "notice_period",
    "annual_fee",
    "governing_law",
    "contact_email",
    "deliverables",
)
ABSENT = {
    "notice_period": 0.12,
    "annual_fee": 0.08,
    "governing_law": 0.18,
    "contact_email": 0.2,
    "deliverables": 0.06,
}
# pages, one contract each
LONG = (6, 6, 7, 8, 8, 9, 10, 11, 12, 14, 15, 16, 18, 20, 22, 24, 27, 30)
LETTERS = 0.28  # share of the others that are letters of a page or two
REPEATED = 0.3  # share of contracts that state some terms once more, in a table
LATE = 0.35  # share of agreements that name the parties at the end
FORMATS = ("docx",) * 9 + ("pdf",) * 8 + ("eml",) * 3
PAGE = 1400  # characters after which a DOCX has a page break
MEMBERS = 32_000_000  # bytes of the dictionary by which files are compared
# parts that python-docx's blank document does not need
DROPPED = ("stylesWithEffects", "thumbnail", "customXml")
STYLES = {
    "Normal",
    "Heading 1",
    "Title",
    "List Bullet",
    "Table Grid",
    "Normal Table",
    "Default Paragraph Font",
    "No List",
}
_SLOT = re.compile(r"\[(other:)?(\w+)\]")
# "title", "head", "text": a text; "list": texts; "table": rows; "page": a page break
Block = tuple[str, Any]


@dataclass
class Contract:
    """What is agreed, and how it is put.

    Attributes:
        terms: Answer of each field; a missing field is None, of deliverables an empty list.
    """

    rng: random.Random
    language: str
    terms: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        """Draw the terms."""
        self.terms = {name: self.drawn(name) for name in FIELDS if name != "deliverables"}
        self.terms["deliverables"] = self.things(self.rng.choice((2, 2, 3, 3, 4)))
        for name, share in ABSENT.items():
            if self.rng.random() < share:
                self.terms[name] = [] if name == "deliverables" else None

    def drawn(self, name: str) -> Any:
        """A value such as a field may have."""
        rng, language = self.rng, self.language
        if name == "supplier":
            parts = (
                rng.choice(kind)
                for kind in (phrases.NAMES, phrases.TRADES[language], phrases.FORMS[language])
            )
            return " ".join(parts)
        if name == "contract_no":
            return f"TW-{rng.randrange(19, 27)}-{rng.randrange(1000, 9999)}"
        if name == "start_date":
            return date(2021, 1, 1) + timedelta(rng.randrange(2200))
        if name == "annual_fee":
            return rng.randrange(3000, 96000, rng.choice((10, 50, 100)))
        if name == "contact_email":
            person = f"{rng.choice(words.FIRST_NAMES)}.{rng.choice(words.SURNAMES)}".lower()
            return f"{person}@example.{rng.choice(('com', 'net', 'org'))}"
        if name == "deliverables":
            return self.things(1)[0]
        return rng.choice(
            {"notice_period": phrases.PERIODS, "governing_law": phrases.LAWS}[name][language]
        )

    def things(self, count: int) -> list[str]:
        """Distinct services."""
        kinds, objects = phrases.THINGS[self.language]
        return [f"{self.rng.choice(kinds)} {thing}" for thing in self.rng.sample(objects, count)]

    def other(self, name: str) -> Any:
        """A value of the same form that is not the answer."""
        while True:
            value, own = self.drawn(name), self.terms[name]
            same = value.split()[0] == own.split()[0] if name == "supplier" else value == own
            if not same and not (name == "deliverables" and value in own):
                return value

    def shown(self, value: Any) -> str:
        """A value as the text has it: a date or a number in one of its forms."""
        if isinstance(value, date):
            month, german = phrases.MONTHS[self.language][value.month - 1], self.language == "de"
            if german:
                return self.rng.choice((f"{value:%d.%m.%Y}", f"{value.day}. {month} {value.year}"))
            day = f"{month} {value.day}, {value.year}"
            return self.rng.choice((f"{value.day} {month} {value.year}", day, value.isoformat()))
        if isinstance(value, int):
            text = self.rng.choice((f"{value:,}", f"{value:,.2f}"))
            return text.translate(str.maketrans(",.", ".,")) if self.language == "de" else text
        return str(value)

    def say(self, phrase: str | Sequence[str]) -> str:
        """A phrase, or one of several, with its slots filled."""
        text = expand(phrase if isinstance(phrase, str) else self.rng.choice(phrase), self.rng)
        return _SLOT.sub(lambda found: self._value(found[2], other=bool(found[1])), text)

    def _value(self, name: str, *, other: bool) -> str:
        if name == "city":
            return self.rng.choice(phrases.CITIES[self.language])
        if name == "person":
            return f"{self.rng.choice(words.FIRST_NAMES)} {self.rng.choice(words.SURNAMES)}"
        return self.shown(self.other(name) if other else self.terms[name])

    # Parts of a text

    def clause(self, name: str) -> list[Block]:
        """The clause that holds a term."""
        head: Block = "head", phrases.HEADS[name][self.language]
        if name != "deliverables":
            return [head, ("text", self.say(phrases.TERMS[name][self.language]))]
        before, after = self.rng.choice(phrases.DELIVERS[self.language])
        items: list[str] = self.terms[name]
        numbered = [[str(number), item] for number, item in enumerate(items, 1)]
        forms: tuple[Block, ...] = (
            ("list", items),
            ("table", numbered),
            ("text", f"{', '.join(items)}."),
        )
        return [head, ("text", self.say(before)), self.rng.choice(forms), ("text", self.say(after))]

    def held(self) -> list[str]:
        """Fields with a value that a clause states, in an order of this contract."""
        names = [name for name in FIELDS[1:] if self.terms[name] not in (None, [])]
        return self.rng.sample(names, len(names))

    def key_terms(self) -> list[Block]:
        """A table that repeats some terms."""
        labels = phrases.LABELS[self.language]
        names = [name for name in self.rng.sample(list(labels), 4) if self.terms[name] is not None]
        rows = [
            [labels[name], self.shown(self.terms[name])] for name in sorted(names, key=FIELDS.index)
        ]
        return [("head", phrases.ABOUT["table"][self.language]), ("table", rows)]

    def boilerplate(self, count: int) -> list[list[Block]]:
        """Clauses without a term."""
        chosen = self.rng.sample(phrases.CLAUSES[self.language], count)
        return [[("head", head), ("text", self.say(text))] for head, text in chosen]

    def annex(self) -> list[Block]:
        """A page with a table of prices or of dates, none of them a term."""
        rng, language, kind = self.rng, self.language, self.rng.choice(("prices", "log"))
        rows = [list(phrases.COLUMNS[kind][language])]
        for _ in range(rng.randrange(10, 26)):
            part, day = (
                rng.choice(phrases.PARTS[language]),
                date(2020, 1, 1) + timedelta(rng.randrange(330)),
            )
            price = [
                f"{rng.randrange(100000, 999999)}",
                f"{part} {rng.randrange(90)}",
                f"{rng.randrange(4, 400)},50",
            ]
            visit = [
                f"{day:%d.%m.%Y}",
                rng.choice(phrases.CITIES[language]),
                str(rng.randrange(1, 9)),
            ]
            rows.append(price if kind == "prices" else visit)
        return [("page", None), ("head", phrases.ABOUT[kind][language]), ("table", rows)]

    def agreement(self, pages: int) -> tuple[str, list[Block]]:
        """A contract of about so many pages: (its title, its blocks)."""
        title = self.say(phrases.TITLES[self.language])
        parts = [self.clause(name) for name in self.held()]
        parts += self.boilerplate(
            min(len(phrases.CLAUSES["de"]), (2, 3, 6, 8, 9)[min(pages, 5) - 1])
        )
        self.rng.shuffle(parts)
        for _ in range(max(0, pages - 3)):
            parts.insert(self.rng.randrange(len(parts) // 2, len(parts) + 1), self.annex())
        if self.rng.random() < REPEATED:
            parts.insert(self.rng.choice((0, len(parts))), self.key_terms())
        begin: list[Block] = [("title", title)]
        parties: Block = ("text", self.say(phrases.PARTIES[self.language]))
        if self.rng.random() < LATE:
            parts.append([("head", phrases.ABOUT["parties"][self.language]), parties])
        else:
            begin.append(parties)
        return title, [*begin, *(block for part in parts for block in part), self._about("signed")]

    def letter(self) -> tuple[str, list[Block]]:
        """A letter that states the terms: (its title, its blocks)."""
        title = self.say(phrases.TITLES[self.language])
        parts = [
            [block for block in self.clause(name) if block[0] != "head"] for name in self.held()
        ]
        parts += [[block] for _, block in self.boilerplate(self.rng.randrange(3))]
        self.rng.shuffle(parts)
        if self.rng.random() < REPEATED:
            parts.append(self.key_terms())
        sender: Block = ("text", self.say("[supplier]\n[city], [other:start_date]"))
        begin = [sender, ("head", title), self._about("greeting"), self._about("reason")]
        return title, [*begin, *(block for part in parts for block in part), self._about("closing")]

    def _about(self, name: str) -> Block:
        return "text", self.say(phrases.ABOUT[name][self.language])


# Files


def as_docx(title: str, blocks: Iterable[Block], *, stored: bool) -> bytes:
    """A Word document with explicit page breaks."""
    document, room = docx.Document(), PAGE
    for relation in list(document.part.rels.values()):
        if any(name in relation.reltype or name in relation.target_ref for name in DROPPED):
            document.part.drop_rel(relation.rId)
    for relation in [
        each for each in document.part.package.rels.values() if "thumbnail" in each.reltype
    ]:
        document.part.package.rels.pop(relation.rId)
    for style in [style for style in document.styles if style.name not in STYLES]:
        style.delete()
    document.styles.element.remove(document.styles.latent_styles.element)
    document.core_properties.title, document.core_properties.author = title, "Tarnwick"
    document.core_properties.created = document.core_properties.modified = datetime(
        2026, 1, 1, tzinfo=UTC
    )
    for kind, value in blocks:
        size = len(str(value))
        if kind == "page" or size > room:
            document.add_paragraph().add_run().add_break(WD_BREAK.PAGE)
            room = PAGE
        room -= size
        if kind == "table":
            table = document.add_table(len(value), len(value[0]), style="Table Grid")
            for row, cells in zip(table.rows, value, strict=True):
                for cell, text in zip(row.cells, cells, strict=True):
                    cell.text = text
        elif kind == "list":
            for item in value:
                document.add_paragraph(item, style="List Bullet")
        elif kind != "page":
            document.add_paragraph(
                value, style={"title": "Title", "head": "Heading 1", "text": "Normal"}[kind]
            )
    return _zipped_again(document, zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED)


def _zipped_again(document: Any, compression: int) -> bytes:
    """The parts of a document in an archive without dates."""
    raw, out = io.BytesIO(), io.BytesIO()
    document.save(raw)
    with zipfile.ZipFile(raw) as parts, zipfile.ZipFile(out, "w") as archive:
        for part in parts.infolist():
            archive.writestr(zipfile.ZipInfo(part.filename), parts.read(part), compression)
    return out.getvalue()


class Pdf(FPDF):
    """Pages with a line at the top and their number at the bottom."""

    page_word = ""

    def header(self) -> None:
        """Write the line at the top."""
        self.set_font("Helvetica", size=8)
        self.cell(0, 8, "Tarnwick Instruments GmbH", new_x="LMARGIN", new_y="NEXT", align="R")

    def footer(self) -> None:
        """Write the number of the page."""
        self.set_y(-14)
        self.set_font("Helvetica", size=8)
        self.cell(0, 8, f"{self.page_word} {self.page_no()}", align="C")


def as_pdf(title: str, blocks: Iterable[Block], language: str, *, stored: bool) -> bytes:
    """A PDF with a text layer."""
    pdf = Pdf()
    pdf.page_word = "Seite" if language == "de" else "Page"
    pdf.set_compression(not stored)
    pdf.set_title(title)
    pdf.set_producer("Tarnwick")
    pdf.set_creation_date(datetime(2026, 1, 1, tzinfo=UTC))
    pdf.set_auto_page_break(True, margin=22)
    pdf.add_page()
    for kind, value in blocks:
        pdf.set_font(
            "Helvetica",
            style="B" if kind in ("title", "head") else "",
            size=15 if kind == "title" else 12,
        )
        if kind == "page":
            pdf.add_page()
        elif kind == "table":
            pdf.set_font(style="", size=9)
            with pdf.table(value, width=150, first_row_as_headings=False):
                pass
            pdf.ln(4)
        else:
            with pdf.unbreakable() as page:
                for text in [f"- {item}" for item in value] if kind == "list" else [value]:
                    page.multi_cell(0, 7, text, new_x="LMARGIN", new_y="NEXT")
                page.ln(0 if kind == "head" else 4)
    return bytes(pdf.output())


def as_mail(contract: Contract, title: str, name: str, attached: bytes) -> bytes:
    """A mail with the contract as attachment."""
    mail, about = EmailMessage(policy=SMTP), phrases.ABOUT
    sender, greeting = contract.say("[person]"), about["greeting"][contract.language]
    mail["Subject"], mail["To"] = title, "Tarnwick Instruments <contracts@example.com>"
    mail["From"] = f"{sender} <{contract.other('contact_email')}>"
    mail["Date"] = datetime.combine(contract.other("start_date"), datetime.min.time(), UTC)
    text = contract.say(about["mail"][contract.language])
    closing = about["closing"][contract.language].replace("[person]", sender)
    mail.set_content(f"{greeting}\n\n{text}\n\n{closing}\n")
    kind = (
        "pdf"
        if name.endswith(".pdf")
        else "vnd.openxmlformats-officedocument.wordprocessingml.document"
    )
    mail.add_attachment(attached, maintype="application", subtype=kind, filename=name)
    mail.set_boundary("=-tarnwick")
    return mail.as_bytes()


def contracts(seed: int) -> Iterator[tuple[str, bytes, Mapping[str, Any]]]:
    """(name, bytes, terms) of each file."""
    rng = random.Random(seed)
    pages = [
        *LONG,
        *(
            0 if rng.random() < LETTERS else rng.choice((1, 2, 2, 3, 3, 4, 4, 5))
            for _ in range(COUNT - len(LONG))
        ),
    ]
    rng.shuffle(pages)
    for number, count in enumerate(pages, 1):
        contract = Contract(rng, rng.choice(("de", "en")))
        title, blocks = contract.agreement(count) if count else contract.letter()
        kind, name = (
            rng.choice(FORMATS),
            f"{number:03} {title} {contract.terms['supplier'].split()[0]}",
        )
        if kind == "eml":
            inner = rng.choice(("pdf", "pdf", "docx"))
            content = as_mail(
                contract,
                title,
                f"{title}.{inner}",
                _file(inner, title, blocks, contract, stored=False),
            )
        else:
            content = _file(kind, title, blocks, contract, stored=True)
        yield f"{name}.{kind}", content, contract.terms


def _file(
    kind: str, title: str, blocks: Iterable[Block], contract: Contract, *, stored: bool
) -> bytes:
    if kind == "pdf":
        return as_pdf(title, blocks, contract.language, stored=stored)
    return as_docx(title, blocks, stored=stored)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the example contracts, and their terms.")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    made, table = list(contracts(options.seed)), io.BytesIO()
    with workbook_writer.writer(table, ["Datei", *FIELDS]) as write:
        write(
            [
                {"Datei": name, **{key: _cell(value) for key, value in terms.items()}}
                for name, _, terms in made
            ]
        )
    files = {f"{FILES}/{name}": content for name, content, _ in made} | {WORKBOOK: table.getvalue()}
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": MEMBERS}]
    with (
        lzma.open(options.out / ARCHIVE, "wb", filters=filters) as raw,
        tarfile.open(fileobj=raw, mode="w") as archive,
    ):
        # like beside like
        for name in sorted(files, key=lambda name: (name.rpartition(".")[2], name)):
            entry = tarfile.TarInfo(name)
            entry.size = len(files[name])
            archive.addfile(entry, io.BytesIO(files[name]))


def _cell(value: Any) -> Any:
    return (
        "; ".join(value)
        if isinstance(value, list)
        else value.isoformat()
        if isinstance(value, date)
        else value
    )


if __name__ == "__main__":
    main()
