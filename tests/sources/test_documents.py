"""A folder of documents is read once, one row a document; what cannot be
read whole is a row with its reason.
"""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import papers, tiny, workbooks
from support.forks import Forks
from support.papers import PAGE

from slmctl import console
from slmctl.config import Source, SourceLimits
from slmctl.errors import DataError, IntegrityError
from slmctl.sources import snapshot
from slmctl.sources.documents import page_text, readers
from slmctl.sources.rows import Row, read_rows

pytestmark = pytest.mark.usefixtures("forked_readers")
LIMITS = SourceLimits()


def gathered(folder: Path, **source: Any) -> list[Source]:
    return snapshot.gather(
        [Source.model_validate({"path": folder, **source})], folder.parent / "copies", LIMITS
    )


def rows(folder: Path, **source: Any) -> dict[str, Row]:
    """The rows of a folder by the name of their file, read as every later stage reads them."""
    (copy,) = gathered(folder, **source)
    return {str(row.columns["file"]): row for row in read_rows(copy.local, **copy.reading)}


# Formats

ATTACHED = [
    ("../../Plan.pdf", papers.pdf(["Seite A", "Seite B"]), "application/pdf"),
    ("logo.png", b"\x89PNG", "image/png"),
    ("n.docx", papers.word("Notiz"), "application/octet-stream"),
]
TERMS = [["Leistung", "Preis"], ["Wartung", "1.200,00 EUR"], ["Prüfung", "99,50 EUR"]]


@pytest.mark.parametrize(
    ("name", "content", "text", "pages"),
    [
        ("a.txt", "Grüße aus Köln\r\nZeile zwei\r\n", "Grüße aus Köln\nZeile zwei", 1),
        ("a.txt", "Grüße aus Köln".encode("cp1252"), "Grüße aus Köln", 1),
        ("a.txt", "Größe".encode("utf-16"), "Größe", 1),
        ("a.TXT", "one\ftwo", "one\ftwo", 2),
        ("a.txt", "of\ufb01ce  u\u0308ber soft\u00adly", "office  über softly", 1),
        ("a.md", "# Titel\n\n- Punkt", "# Titel\n\n- Punkt", 1),
        (
            "a.html",
            "<title>x</title><p>Hällo</p><table><tr><td>a</td><td>b</td></tr></table>",
            "Hällo\n\na b",
            1,
        ),
        ("a.htm", '<meta charset="koi8-r"><p>привет</p>'.encode("koi8-r"), "привет", 1),
        # of an even length this was Chinese
        *(
            ("a.htm", f'<meta charset="utf-16"><p>Größe{sign}</p>', f"Größe{sign}", 1)
            for sign in (".", "!?")
        ),
        ("a.pdf", papers.pdf(["Fläche: 40 m²", "Seite zwei"]), "Fläche: 40 m²\fSeite zwei", 2),
        (
            "a.pdf",
            papers.pdf(["Die Kün-\ndigung, ihre E-\nMail, Vor-\nund Nachteile"]),
            "Die Kündigung, ihre E-\nMail, Vor-\nund Nachteile",
            1,
        ),
        (
            "a.docx",
            papers.word("Vertrag", TERMS, "Ort, Datum", header="KOPF"),
            "Vertrag\nLeistung | Preis\nWartung | 1.200,00 EUR\nPrüfung | 99,50 EUR\nOrt, Datum",
            1,
        ),
        ("a.docx", papers.word("eins", PAGE, "zwei"), "eins\fzwei", 2),
        ("a.eml", papers.mail("Hallo"), "Hallo", 1),
        ("a.eml", papers.mail(html="<p>Nur <b>HTML</b>, größer</p>"), "Nur HTML, größer", 1),
        ("a.eml", papers.mail("plain", html="<p>rich</p>"), "plain", 1),
        (
            "a.eml",
            papers.mail("siehe Anhang", attached=ATTACHED),
            "siehe Anhang\n\f[attachment: Plan.pdf]\nSeite A\fSeite B\f[attachment: n.docx]\nNotiz",
            4,
        ),
        # both were rejected: Exchange adds an empty file, and a shift of characters is the control
        # character ESC
        (
            "a.eml",
            papers.mail("Hallo", attached=[("ATT00001.txt", b"\r\n", "text/plain")]),
            "Hallo",
            1,
        ),
        (
            "a.eml",
            b"From: a\nContent-Type: text/plain; charset=ISO-2022-JP\n\n"
            + "契約".encode("iso2022_jp"),
            "契約",
            1,
        ),
    ],
)
def test_the_text_of_a_file(tmp_path: Path, name: str, content: Any, text: str, pages: int) -> None:
    row = rows(papers.write(tmp_path / "in", {name: content}))[name]
    assert (row.fault, row.columns["text"], row.columns["pages"]) == ("", text, pages)


def test_a_document_of_every_format_is_named_by_its_file_alone() -> None:
    for suffix in readers.KINDS:  # console.py holds these suffixes too
        assert console.place(f"letters/a{suffix}", 3) == f"letters/a{suffix}"
    assert console.place("letters/a.csv", 3) == "letters/a.csv line 3"


def test_a_mail_has_its_headers_and_a_mail_in_it_its_own(tmp_path: Path) -> None:
    inner = papers.mail(
        "Frist: 1. Mai", subject="Kündigung", date="Mon, 02 Mar 2026 10:00:00 +0100"
    )
    outer = papers.mail(
        "zur Kenntnis",
        subject="WG: =?utf-8?q?K=C3=BCndigung?=",
        **{"from": "Ann Möller <a@example.com>"},
    )
    outer.add_attachment(inner, filename="mail.eml")
    columns = rows(papers.write(tmp_path / "in", {"sent/a.eml": outer}))["sent/a.eml"].columns
    assert (columns["subject"], columns["from"], columns["folder"]) == (
        "WG: Kündigung",
        "Ann Möller <a@example.com>",
        "sent",
    )
    assert columns["text"] == (
        "zur Kenntnis\n\f[attachment: mail.eml]\nSubject: Kündigung\nFrom: ann@example.com\n"
        "Date: 2026-03-02T10:00:00+01:00\n\nFrist: 1. Mai"
    )


def test_a_mailbox_is_a_row_a_mail_and_a_bad_one_costs_itself(tmp_path: Path) -> None:
    bad = papers.mail("x", attached=[("a.pdf", b"%PDF-1.4 cut", "application/pdf")])
    (tmp_path / "in").mkdir()
    papers.write_mailbox(
        tmp_path / "in" / "box.mbox",
        [papers.mail("From here on\n\nFrom there"), bad, papers.mail("two")],
    )
    read = rows(tmp_path / "in")
    assert read["box.mbox#1"].columns["text"] == "From here on\n\nFrom there"
    assert read["box.mbox#2"].fault == (
        "box.mbox#2 has an attachment, a.pdf, that is cut off: it lacks the end of a PDF"
    )
    assert read["box.mbox#3"].columns["text"] == "two"


def text_of_word(tmp_path: Path, body: str) -> object:
    """The text that is read of a DOCX whose body is this XML."""
    names = (
        'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main" xmlns:m="urn:mc"'
    )
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "a.docx", "w") as archive:
        archive.writestr(
            "word/document.xml", f"<w:document {names}><w:body>{body}</w:body></w:document>"
        )
    return rows(tmp_path / "in")["a.docx"].columns["text"]


def test_word_s_page_breaks_count_once(tmp_path: Path) -> None:
    """Word writes the breaks that it has rendered beside those that the author set."""
    rendered = "<w:r><w:lastRenderedPageBreak/><w:t>{}</w:t></w:r>"
    body = (
        '<w:p><w:r><w:t>one</w:t></w:r></w:p><w:p><w:r><w:br w:type="page"/></w:r></w:p>'
        f"<w:p>{rendered.format('two')}</w:p>"
        f"<w:p><w:pPr><w:pageBreakBefore/></w:pPr>{rendered.format('three')}</w:p>"
        '<w:p><w:pPr><w:pageBreakBefore w:val="0"/></w:pPr><w:r><w:t>still three</w:t></w:r></w:p>'
    )
    assert text_of_word(tmp_path, body) == "one\ftwo\fthree\nstill three"


def test_word_s_controls_changes_and_notes(tmp_path: Path) -> None:
    """Text in content controls and insertions is text, deleted
    text is none, and a box stands once.
    """
    body = (
        "<w:sdt><w:sdtContent><w:p><w:r><w:t>Mieter: "
        "</w:t></w:r><w:sdt><w:sdtContent><w:r><w:t>Ann</w:t></w:r>"
        "</w:sdtContent></w:sdt></w:p></w:sdtContent></w:sdt>"
        "<w:p><w:ins><w:r><w:t>neu</w:t></w:r></w:ins><w:del><w:r><w:delText>alt</w:delText></w:r></w:del></w:p>"
        "<w:p><w:r><m:AlternateContent><m:Choice><w:txbxContent><w:p><w:r><w:t>Kasten</w:t></w:r></w:p></w:txbxContent>"
        "</m:Choice><m:Fallback><w:txbxContent><w:p><w:r><w:t>Kasten</w:t></w:r></w:p></w:txbxContent></m:Fallback>"
        "</m:AlternateContent></w:r><w:r><w:t>Ende</w:t><w:tab/><w:t>x</w:t></w:r></w:p>"
    )
    assert text_of_word(tmp_path, body) == "Mieter: Ann\nneu\n\nKastenEnde\tx"


def test_text_that_word_does_not_show_is_not_read(tmp_path: Path) -> None:
    """Rows of a table whose deletion is tracked, and hidden text, stood
    in the text as if they were agreed.
    """
    run = "<w:r>{}<w:t>{}</w:t></w:r>"
    cell, row = f"<w:tc><w:p>{run}</w:p></w:tc>", "<w:tr>{}{}</w:tr>"
    body = (
        "<w:tbl>"
        + row.format("", cell.format("", "kept"))
        + row.format("<w:trPr><w:del/></w:trPr>", cell.format("", "100 EUR"))
        + row.format("<w:trPr><w:ins/></w:trPr>", cell.format("", "200 EUR"))
        + "</w:tbl>"
        f"<w:p>{run.format('<w:rPr><w:b/><w:vanish/></w:rPr>', 'hidden')}"
        f"{run.format('<w:rPr><w:vanish w:val=' + chr(34) + '0' + chr(34) + '/></w:rPr>', 'shown')}</w:p>"
        "<w:p><w:pPr><w:rPr><w:vanish/></w:rPr></w:pPr><w:r><w:t>its mark alone is "
        "hidden</w:t></w:r></w:p>"
    )
    assert text_of_word(tmp_path, body) == "kept\n200 EUR\nshown\nits mark alone is hidden"


# Pages


@pytest.mark.parametrize(
    ("pages", "left"),
    [
        (["AG\nMiete\n1/3", "AG\nFrist\n2/3", "AG\nHaft\n3/3"], ["Miete", "Frist", "Haft"]),
        (["AG\nMiete\n1/2", "AG\nFrist\n2/2"], None),  # two pages show no repetition
        (["AG\nMiete", "AG\nFrist", "Haft", "Ort"], None),  # on half of the pages
        (["Teil 1", "Teil 2", "Teil 3"], None),  # else nothing were left
        # amounts are no numbers of pages
        (["a\nSumme 10,50", "b\nSumme 20,50", "c\nSumme 30,50"], None),
        (["a\n3 20 7", "b\n5 10 9", "c\n1 30 8"], None),  # nor are rows of a table
        (["a\n- 3 -", "b\n- 4 -", "c\n- 5 -"], ["a", "b", "c"]),
        (
            ["a\nAG 17, page 3 of 9", "b\nAG 17, page 4 of 9", "c\nAG 17, page 5 of 9"],
            ["a", "b", "c"],
        ),
        # a number that does not go with the page
        (["a\nDue: 120 EUR", "b\nDue: 340 EUR", "c\nDue: 560 EUR"], None),
        (["Fee 2022: 85 EUR\na", "Fee 2023: 90 EUR\nb", "Fee 2024: 97 EUR\nc"], None),
        # amid a page
        (["a\nb\nc\nAG\nd\ne\nf", "g\nh\ni\nAG\nj\nk\nl", "m\nn\no\nAG\np\nq\nr"], None),
    ],
)
def test_lines_that_repeat_at_the_edges_of_most_pages_go(
    pages: list[str], left: list[str] | None
) -> None:
    assert page_text.cleaned(pages) == (pages if left is None else left)


def test_headers_and_footers_of_most_pages_go(tmp_path: Path) -> None:
    words = ["Miete", "Frist", "Haftung", "Gerichtsstand"]
    made = papers.pdf(
        [f"{word} ist geregelt.\nMuster AG zahlt." for word in words],
        header="Vertrag 17, Muster AG",
        footer="Seite {} von 4",
    )
    text = str(rows(papers.write(tmp_path / "in", {"a.pdf": made}))["a.pdf"].columns["text"])
    assert text == "\f".join(f"{word} ist geregelt." for word in words)


def test_a_scanned_page_is_said_and_its_document_rejected_unless_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = papers.write(
        tmp_path / "in", {"a.pdf": papers.pdf(["one", None, "three"]), "b.pdf": papers.pdf(["b"])}
    )
    read = rows(folder)
    assert read["a.pdf"].fault == "a.pdf: 1 of 3 pages have no text: scanned?"
    assert "a.pdf: 1 of 3 pages have no text: scanned?" in capsys.readouterr().err
    assert rows(folder, documents={"scanned": "keep"})["a.pdf"].columns["text"] == "one\f\fthree"


def test_form_feeds_of_a_text_are_bounded_as_pages_are(tmp_path: Path) -> None:
    read = rows(
        papers.write(tmp_path / "in", {"a.txt": "x\f" * 1_999 + "x", "b.txt": "x\f" * 2_000 + "x"})
    )
    assert (read["a.txt"].fault, read["b.txt"].fault) == (
        "",
        "b.txt has 2,001 pages, more than 2,000",
    )


def test_a_file_of_another_kind_and_one_without_text_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "a.txt": "a",
        "blank.txt": " \n",
        "old.doc": "x",
        "note.rtf": "x",
        "terms.csv": "file,fee\na.txt,1\n",
    }
    read = rows(
        papers.write(tmp_path / "in", files),
        answers={"path": tmp_path / "in" / "terms.csv", "file": "file"},
    )
    assert list(read) == ["a.txt", "blank.txt"]
    assert "2 files of other kinds left out: note.rtf, old.doc\n" in capsys.readouterr().err
    empty = rows(papers.write(tmp_path / "bare", {"blank.html": "<p> </p>", "b.txt": "b"}))
    assert empty["blank.html"].fault == "blank.html holds no text"


# Answers


def test_answers_are_joined_by_file_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["2024/Mietvertrag.pdf", "b.txt", "Bürgschaft.txt", "d.txt", "lost.txt"]
    folder = papers.write(
        tmp_path / "in",
        {name: papers.pdf(["x"]) if name.endswith("pdf") else "x" for name in names},
    )
    table = [
        ("Datei", "Art"),
        ("2024\\mietvertrag.PDF", "Miete"),
        ("B", "Kauf"),
        ("Bu\u0308rgschaft.txt", "Pfand"),
        ("./d.txt", "Leihe"),
        ("z.pdf", "Tausch"),
    ]
    book = workbooks.write_xlsx(
        tmp_path / "felder.xlsx",
        {"A": "".join(workbooks.row(k, *cells) for k, cells in enumerate(table, 1))},
    )
    read = rows(folder, answers={"path": book, "file": "Datei"})
    assert {name: row.columns.get("Art") for name, row in read.items()} == {
        "2024/Mietvertrag.pdf": "Miete",
        "b.txt": "Kauf",
        "Bürgschaft.txt": "Pfand",
        "d.txt": "Leihe",
        "lost.txt": None,
    }
    assert read["lost.txt"].fault == "lost.txt has no answer in felder.xlsx"
    spoken = capsys.readouterr().err
    assert "1 document without an answer in felder.xlsx: lost.txt" in spoken
    assert "1 answer of felder.xlsx without a document: z.pdf" in spoken


def test_a_misnamed_file_is_paired_with_its_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # both stood in the list, as if they had nothing to do with each other
    names = ["supply_011.docx", "contract 2.txt", "lease.docx", "x.txt", "part-1.txt", "part_1.txt"]
    folder = papers.write(
        tmp_path / "in", {name: papers.word("x") if "docx" in name else "x" for name in names}
    )
    rows_of = ["supply-011.docx", "contract 3.txt", "lease.pdf", "y.txt", "part 1.txt"]
    (tmp_path / "t.csv").write_text("file,fee\n" + "".join(f"{name},1\n" for name in rows_of))
    rows(folder, answers={"path": tmp_path / "t.csv", "file": "file"})
    paired = [line.strip() for line in capsys.readouterr().err.splitlines() if "probably" in line]
    assert paired == [
        "lease.docx and lease.pdf are probably the same: rename one",
        "supply_011.docx and supply-011.docx are probably the same: rename one",
    ]  # a number tells two files apart, and two files like one answer are no pair


def test_an_unreadable_document_keeps_its_reason_where_the_table_lacks_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "a.txt": "x",
        "lost.txt": "x",
        "empty.docx": papers.word(""),
        "scan.pdf": papers.pdf([None]),
        "locked.pdf": papers.pdf(["x"], password="secret"),
    }
    (tmp_path / "t.csv").write_text("file,fee\na.txt,1\n")
    folder = papers.write(tmp_path / "in", files)
    read = rows(folder, answers={"path": tmp_path / "t.csv", "file": "file"})
    assert {name: row.fault for name, row in read.items()} == {
        "a.txt": "",
        "lost.txt": "lost.txt has no answer in t.csv",
        "empty.docx": "empty.docx holds no text",
        "locked.pdf": "locked.pdf is encrypted: its text needs a password",
        "scan.pdf": "scan.pdf: 1 of 1 page has no text: scanned?",
    }
    said = capsys.readouterr().err
    for fault in (
        "empty.docx holds no text",
        "locked.pdf is encrypted",
        "scan.pdf: 1 of 1 page has no text: scanned?",
    ):
        assert said.count(fault) == 1
    assert (
        "4 documents without an answer in t.csv: empty.docx, locked.pdf, lost.txt, scan.pdf" in said
    )


def test_answers_that_cannot_be_read_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # only the documents were named, as without an answer
    (tmp_path / "f.csv").write_text(
        "file,Art,Frist\na.txt,Miete,1,5\nb.txt,Kauf,2\nc.txt,Leihe,2,5\n"
    )
    rows(
        papers.write(tmp_path / "in", {"b.txt": "x"}),
        answers={"path": tmp_path / "f.csv", "file": "file"},
    )
    said = "2 rows of f.csv cannot be read; f.csv line 2: has 4 fields, the header has 3"
    assert said in capsys.readouterr().err


def test_answers_are_json_files_beside(tmp_path: Path) -> None:
    folder = papers.write(
        tmp_path / "in",
        {
            "a.txt": "x",
            "a.json": '{"term": 12}',
            "b.txt": "x",
            "b.txt.json": '["y"]',
            "c.txt": "x",
            "c.json": "{",
        },
    )
    read = rows(folder, answers="json")
    assert [read[name].columns.get("answer") for name in ("a.txt", "b.txt")] == [
        {"term": 12},
        ["y"],
    ]
    assert read["c.txt"].fault.startswith("c.txt has an answer, c.json, that is not JSON")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("name,label\na.txt,x\n", "has no column 'file'"),
        ("file,label\na.txt,x\nA.TXT,y\n", "names 'A.TXT' twice, in rows 2 and 3"),
        ("file,text\na.txt,x\n", "has a column 'text'"),
        ("file,date\na.txt,x\n", "has a column 'date'"),  # it took the place of the mail's
        ("file,label\na,x\n", "may be the answer of a.txt and of sub/a.txt"),
    ],
)
def test_answers_that_cannot_be_joined(tmp_path: Path, table: str, message: str) -> None:
    folder = papers.write(tmp_path / "in", {"a.txt": "x", "sub/a.txt": "x"})
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(DataError, match=message):
        gathered(folder, answers={"path": tmp_path / "t.csv", "file": "file"})


# The source


def test_a_copy_is_made_again_when_anything_in_it_changes(tmp_path: Path) -> None:
    folder = papers.write(tmp_path / "in", {"a.txt": "one", "b.txt": "two"})
    source = Source(path=folder)
    with pytest.raises(IntegrityError, match="there is no copy of the source 'in'"):
        snapshot.gathered([source], tmp_path / "copies")
    (first,) = gathered(folder)
    assert not snapshot.is_file(source) and snapshot.host_of(source, tmp_path) == ""
    made = first.local.stat().st_mtime_ns
    os.utime(folder / "a.txt", (1, 1))
    assert gathered(folder)[0].local.stat().st_mtime_ns == made  # read once
    assert snapshot.copies_of(source, tmp_path / "copies") == {first.local}
    keys = {first.local}
    for change in (
        lambda: (folder / "a.txt").write_text("six"),
        lambda: (folder / "b.txt").rename(folder / "c.txt"),
    ):
        change()
        keys.add(gathered(folder)[0].local)
    keys.add(gathered(folder, documents={"scanned": "keep"})[0].local)
    assert len(keys) == 4
    assert (first.title, first.id) == ("in", "file")


@pytest.mark.parametrize(
    ("files", "path", "expected"),
    [
        (["a.pdf", "b.docx"], ".", True),
        (["a.pdf", "rows.csv"], ".", False),  # as before: its tables are the rows
        (["README.md", "rows.csv"], ".", False),
        (["a.pdf", "rows.csv"], "*.pdf", True),
        (["a.pdf", "rows.csv"], "*", False),
        (["a.eml"], "a.eml", True),
        (["rows.csv"], "rows.csv", False),
        ([], ".", False),
    ],
)
def test_which_path_is_of_documents(
    tmp_path: Path, files: list[str], path: str, expected: bool
) -> None:
    folder = papers.write(tmp_path / "in", dict.fromkeys(files, "x"))
    assert snapshot.is_file(Source(path=folder / path)) is not expected


def configure(desk: Path, source: dict[str, Any], **task: Any) -> None:
    values = yaml.safe_load((desk / "slmctl.yaml").read_text())
    values["prepare"]["sources"] = [source]
    values["task"] |= task
    (desk / "slmctl.yaml").write_text(yaml.safe_dump(values))


def test_prepare_reads_a_folder_whose_folders_are_labels(stages: Forks, desk: Path) -> None:
    pairs = tiny.rows(300)
    for number, (text, label) in enumerate(pairs):
        name = (
            f"contracts/{label}/{number:03}.docx"
            if number % 50 == 0
            else f"contracts/{label}/{number:03}.txt"
        )
        papers.write(desk, {name: papers.word(text) if name.endswith("docx") else text})
    papers.write(desk, {"contracts/other/locked.pdf": papers.pdf(["x"], password="secret")})
    configure(desk, {"path": "contracts", "input": "text", "output": "folder"})
    plan = stages.run(desk, "run", "--plan")
    assert plan.returncode == 0, plan.stderr
    assert (
        "301 documents of contracts not read yet; rows and times are known after slmctl prepare"
        in plan.stdout
    )
    done = stages.run(desk, "prepare")
    path = Path(tiny.ok(done))
    # names are relative to the folder
    assert "contracts/other/locked.pdf is encrypted" not in done.stderr
    assert "other/locked.pdf is encrypted: its text needs a password" in done.stderr
    metrics = json.loads((path / "manifest.json").read_text())["metrics"]
    assert (metrics["rows_in"], metrics["rejected"]) == (301, 1)
    (rejected,) = [json.loads(line) for line in (path / "rejected.jsonl").read_text().splitlines()]
    assert "other/locked.pdf is encrypted" in json.dumps(rejected)
    # "row 33" of a folder helped nobody
    assert rejected["source"]["file"] == "contracts/other/locked.pdf"
    few = stages.run(desk, "prepare", "--set", "prepare.max_rejected=0%")
    assert few.returncode == 3
    assert "; first contracts/other/locked.pdf: other/locked.pdf is encrypted" in few.stderr
    again = stages.run(desk, "prepare")
    assert (Path(tiny.ok(again)), "current" in again.stderr, "reading" in again.stderr) == (
        path,
        True,
        False,
    )
    record = json.loads((path / "train.jsonl").read_text().splitlines()[0])
    assert record["source"]["file"].startswith("contracts/") and record["source"]["file"].endswith(
        ".txt"
    )
    name = f"{pairs[1][1]}/001.txt"
    traced = stages.run(desk, "trace", "--id", name)
    assert (traced.returncode, f"{path.parent.name}/{path.name}" in traced.stdout) == (105, True), (
        traced.stderr
    )
    explained = stages.run(desk, "prepare", "--explain")
    assert explained.returncode == 0, explained.stderr


def test_a_missing_package_is_named_with_its_pip_line(desk: Path) -> None:
    configure(desk, {"path": "contracts", "input": "text", "output": "folder"})
    raises = "raise ModuleNotFoundError(\"No module named 'pypdfium2'\", name='pypdfium2')"
    papers.write(
        desk, {"contracts/a.pdf": papers.pdf(["x"]), "hidden/pypdfium2/__init__.py": raises}
    )
    done = tiny.slmctl(desk, "prepare", env=tiny.environment(PYTHONPATH=str(desk / "hidden")))
    assert done.returncode == 4, done.stderr
    assert "needs the package 'pypdfium2', which is not installed" in done.stderr
    assert "documents]" in done.stderr
