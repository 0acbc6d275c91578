"""Documents that LibreOffice, a browser's print and mail programs write:
text, umlauts, ligatures, tables in order.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from support import papers

from slmctl.config import Source, SourceLimits
from slmctl.sources import snapshot
from slmctl.sources.rows import Row, read_rows

pytestmark = pytest.mark.slow

STYLE = (
    "<style>@page{margin:2cm} p{font-family:'DejaVu Serif'} .narrow{width:9em;hyphens:auto}</style>"
)
# Body of an HTML page -> what its text must hold, in this order, white space aside.
PAGES: dict[str, tuple[str, list[str]]] = {
    "umlauts": (
        "<p>Müller &amp; Söhne, Größe, Straße, ÄÖÜ</p>",
        ["Müller & Söhne, Größe, Straße, ÄÖÜ"],
    ),
    "ligatures": (
        "<p>office, affluent, find, flow, Auflage</p>",
        ["office, affluent, find, flow, Auflage"],
    ),
    "signs": (
        "<p>„Frist“ – 1.200,50 € § 5 Abs. 2 … 50 % ²</p>",
        ["„Frist“ – 1.200,50 € § 5 Abs. 2 … 50 % ²"],
    ),
    "table": (
        "<p>Vor</p><table border=1><tr><th>Posten<th>Preis<tr><td>Wartung<td>99,50 "
        "€<tr><td>Prüfung<td>12 €"
        "</table><p>Nach</p>",
        ["Vor", "Posten", "Preis", "Wartung", "99,50 €", "Prüfung", "12 €", "Nach"],
    ),
    "lists": (
        "<ol><li>Erstens<li>Zweitens</ol><ul><li>Punkt</ul>",
        ["Erstens", "Zweitens", "Punkt"],
    ),
    "headings": (
        "<h1>Vertrag</h1><h2>§ 1 Miete</h2><p>400 Euro</p>",
        ["Vertrag", "§ 1 Miete", "400 Euro"],
    ),
    "marked": (
        "<p>Das ist <b>fett</b>, <i>kursiv</i> und <a href='x'>ein Link</a>.</p>",
        ["Das ist fett, kursiv und ein Link."],
    ),
    "french": (
        "<p>Résiliation à l’échéance, œuvre, garçon</p>",
        ["Résiliation à l’échéance, œuvre, garçon"],
    ),
    "polish": ("<p>Umowa najmu: zażółć gęślą jaźń</p>", ["Umowa najmu: zażółć gęślą jaźń"]),
    "pages": (
        "<p>Seite eins</p><p style='page-break-before:always'>Seite zwei</p>",
        ["Seite eins", "Seite zwei"],
    ),
}
NARROW = (
    "<p class=narrow>Grundstücksverkehrsgenehmigungszuständigkeit und "
    "Kündigungsfristverlängerung der E-Mail</p>"
)


def page(body: str) -> str:
    return f"<html lang=de><head><meta charset=utf-8>{STYLE}</head><body>{body}</body></html>"


def run(*command: object) -> None:
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=300)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each program and format, with a file for each of PAGES."""
    office, browser = shutil.which("soffice"), shutil.which("chromium")
    if office is None or browser is None:
        pytest.skip(
            "LibreOffice or chromium is not installed: apt-get install libreoffice-writer-nogui "
            "chromium"
        )
    root = tmp_path_factory.mktemp("formats")
    html = papers.write(
        root / "html", {f"{name}.html": page(body) for name, (body, _) in PAGES.items()}
    )
    papers.write(root, {"narrow.html": page(NARROW)})
    files = sorted(html.iterdir())
    profile = f"-env:UserInstallation={(root / 'profile').as_uri()}"
    convert = (office, profile, "--headless", "--infilter=HTML (StarWriter)", "--convert-to")
    for kind, wanted in (("docx", "docx:MS Word 2007 XML"), ("pdf", "pdf:writer_pdf_Export")):
        run(*convert, wanted, "--outdir", root / f"office-{kind}", *files)
    (root / "browser-pdf").mkdir()
    for file in [*files, root / "narrow.html"]:
        out = root / "browser-pdf" / f"{file.stem}.pdf"
        run(
            browser,
            "--headless",
            "--no-sandbox",
            "--no-pdf-header-footer",
            f"--print-to-pdf={out}",
            file.as_uri(),
        )
    return root


def rows(folder: Path) -> dict[str, Row]:
    (copy,) = snapshot.gather([Source(path=folder)], folder.parent / "copies", SourceLimits())
    return {
        Path(str(row.columns["file"])).stem: row for row in read_rows(copy.local, **copy.reading)
    }


@pytest.mark.parametrize("folder", ["html", "office-docx", "office-pdf", "browser-pdf"])
def test_every_page_has_its_text_in_order(made: Path, folder: str) -> None:
    read = rows(made / folder)
    for name, (_, expected) in PAGES.items():
        assert read[name].fault == "", name
        text, at = " ".join(str(read[name].columns["text"]).split()), 0
        for piece in expected:
            at = text.find(piece, at)
            assert at >= 0, (name, piece, text)
    if folder != "html":
        assert read["pages"].columns["pages"] == 2
    if folder == "browser-pdf":  # words that it has divided at line ends are whole again
        text = str(read["narrow"].columns["text"])
        assert (
            "Grundstücksverkehrsgenehmigungszuständigkeit" in text
            and "Kündigungsfristverlängerung" in text
        )


OUTLOOK = b"""From: =?iso-8859-1?Q?M=FCller=2C_Ann?= <ann@example.com>\r
Subject: =?iso-8859-1?Q?K=FCndigung_f=FCr_den_Vertrag?=\r
 =?iso-8859-1?Q?_Nr=2E_7?=\r
Date: Mon, 2 Mar 2026 10:00:00 +0100\r
MIME-Version: 1.0\r
Content-Type: multipart/alternative; boundary="_000_X"\r
\r
--_000_X\r
Content-Type: text/plain; charset="iso-8859-1"\r
Content-Transfer-Encoding: quoted-printable\r
\r
Gr=FC=DFe aus K=F6ln, der lange Satz wird =\r
umbrochen.\r
--_000_X\r
Content-Type: text/html; charset="iso-8859-1"\r
Content-Transfer-Encoding: quoted-printable\r
\r
<html><body><p class=3DMsoNormal>Gr=FC=DFe</p></body></html>\r
--_000_X--\r
"""
APPLE = """From: Ann <ann@example.com>
Subject: Vertrag
Content-Type: multipart/mixed; boundary=Apple-Mail-1

--Apple-Mail-1
Content-Transfer-Encoding: base64
Content-Type: text/plain; charset=utf-8

R3LDvMOfZSBhdXMgS8O2bG4=
--Apple-Mail-1
Content-Disposition: attachment; filename*0*=utf-8''Verl%C3%A4ngerung; filename*1=-2026.txt
Content-Type: text/plain; charset=utf-8

Bis Mai.
--Apple-Mail-1--
"""
OLD = b"From: ann@example.com\nSubject: Gr\xfc\xdfe\n\nGr\xfc\xdfe aus K\xf6ln\n"


def test_mails_as_their_programs_write_them(tmp_path: Path) -> None:
    read = rows(
        papers.write(tmp_path / "in", {"outlook.eml": OUTLOOK, "apple.eml": APPLE, "old.eml": OLD})
    )
    outlook = read["outlook"].columns
    assert outlook["text"] == "Grüße aus Köln, der lange Satz wird umbrochen."
    assert (outlook["subject"], outlook["from"]) == (
        "Kündigung für den Vertrag Nr. 7",
        "Müller, Ann <ann@example.com>",
    )
    assert outlook["date"] == "2026-03-02T10:00:00+01:00"
    assert (
        read["apple"].columns["text"]
        == "Grüße aus Köln\f[attachment: Verlängerung-2026.txt]\nBis Mai."
    )
    assert (read["old"].columns["subject"], read["old"].columns["text"]) == (
        "Grüße",
        "Grüße aus Köln",
    )
