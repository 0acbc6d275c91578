"""Hostile documents: each is its text or one sentence; the others are
read, nothing is written, no byte leaves.
"""

from __future__ import annotations

import functools
import io
import json
import os
import resource
import socket
import zipfile
import zlib
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path

import pytest
from support import papers

from slmctl.config import Source, SourceLimits
from slmctl.sources import snapshot
from slmctl.sources.documents.document_child import MEMORY
from slmctl.sources.rows import Row, read_rows

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
PARAGRAPH = "<w:p><w:r><w:t>{}</w:t></w:r></w:p>"
SERVER = socket.create_server(("127.0.0.1", 0))  # nobody may come
ADDRESS = f"http://127.0.0.1:{SERVER.getsockname()[1]}"


# Files made by hand, since no program writes them


def pdf(*objects: bytes, root: int = 1, end: bytes = b"\n%%EOF\n") -> bytes:
    """A PDF of numbered objects, with a right cross-reference table."""
    out, places = bytearray(b"%PDF-1.7\n"), []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    trailer = b"trailer\n<</Size %d/Root %d 0 R>>\nstartxref\n%d" % (
        len(objects) + 1,
        root,
        len(out),
    )
    return (
        bytes(out)
        + b"xref\n0 %d\n0000000000 65535 f \n%s%s" % (len(objects) + 1, table, trailer)
        + end
    )


def stream(content: bytes, keys: bytes = b"") -> bytes:
    return b"<</Length %d%s>>\nstream\n%s\nendstream" % (len(content), keys, content)


FONT = b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"
CATALOG = b"<</Type/Catalog/Pages 2 0 R>>"
TEXT = b"BT /F 12 Tf 20 20 Td (Hello) Tj ET"


def page(content: int, more: bytes = b"") -> bytes:
    return (
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]/Contents %d 0 R/Resources<</Font<</F 5 0 "
        b"R>>%s>>>>"
        % (
            content,
            more,
        )
    )


def one_page(content: bytes, more: bytes = b"", *objects: bytes) -> bytes:
    return pdf(
        CATALOG, b"<</Type/Pages/Kids[3 0 R]/Count 1>>", page(4, more), content, FONT, *objects
    )


def many_pages(count: int) -> bytes:
    kids = b" ".join(b"%d 0 R" % number for number in range(6, 6 + count))
    tree = b"<</Type/Pages/Kids[%s]/Count %d>>" % (kids, count)
    return pdf(CATALOG, tree, b"null", stream(TEXT), FONT, *[page(4)] * count)


def flate_bomb(size: int) -> bytes:
    """A stream that is packed twice: kilobytes that unpack to `size` bytes."""
    packer = zlib.compressobj()
    first, more = (
        packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2)
    )
    return stream(zlib.compress(first + more * (size >> 20)), b"/Filter[/FlateDecode/FlateDecode]")


def forms(levels: int) -> bytes:
    """A form that draws the next one ten times, and so on."""
    parts = [
        stream(
            b"/X Do " * 10 if number < levels - 1 else TEXT,
            b"/Type/XObject/Subtype/Form/BBox[0 0 200 200]"
            b"/Resources<</Font<</F 5 0 R>>/XObject<</X %d 0 R>>>>" % (7 + number),
        )
        for number in range(levels)
    ]
    return one_page(stream(b"/X Do"), b"/XObject<</X 6 0 R>>", *parts)


def docx(body: str | bytes, **parts: str | bytes) -> bytes:
    """A DOCX around the XML of a body, or around a whole document in bytes."""
    document = (
        body if isinstance(body, bytes) else f"<w:document {W}><w:body>{body}</w:body></w:document>"
    )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {"word/document.xml": document, **parts}.items():
            archive.writestr(name, content)
    return out.getvalue()


def relation(kind: str, target: str, mode: str = "Internal") -> str:
    return (
        "<Relationships "
        'xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r" '
        f'Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/{kind}" '
        f'Target="{target}" '
        f'TargetMode="{mode}"/></Relationships>'
    )


def entities(declared: str, used: str) -> str:
    body = f"<w:document {W}><w:body>{PARAGRAPH.format(used)}</w:body></w:document>"
    return f'<?xml version="1.0"?><!DOCTYPE d [{declared}]>{body}'


NO_ENTITIES = "declares entities in its XML, which no DOCX does"
LAUGHS = "".join(f'<!ENTITY a{k} "{f"&a{k - 1};" * 10}">' for k in range(1, 12))


def lying(content: bytes) -> bytes:
    """A DOCX whose directory says that its text has 10 bytes."""
    made = docx(content)
    size = len(content).to_bytes(4, "little")
    return made.replace(size, (10).to_bytes(4, "little"))


def in_mails(depth: int) -> EmailMessage:
    inner = papers.mail("the end")
    for _ in range(depth):
        outer = papers.mail("see below")
        outer.add_attachment(inner)
        inner = outer
    return inner


def parts(depth: int) -> bytes:
    """Multiparts in multiparts, which no program nests so."""
    head = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (k, k) for k in range(depth)
    )
    return b"From: a@example.com\n" + head + b"Content-Type: text/plain\n\ndeep\n"


def attached(name: str, content: bytes = b"the plan", kind: str = "text/plain") -> EmailMessage:
    return papers.mail("see", attached=[(name, content, kind)])


SEE = "see\n\f[attachment: {}]\nthe plan"


@functools.cache
def bomb() -> bytes:
    return docx("<w:p/>" * 12_000_000)


# File -> (content, its text or the sentence after its name).
CASES: dict[str, tuple[object, str]] = {
    # PDF
    "pages.pdf": (many_pages(10_000), "has 10,000 pages, more than 2,000"),
    "encrypted.pdf": (papers.pdf(["x"], password="pw"), "is encrypted: its text needs a password"),
    "circle of pages.pdf": (pdf(CATALOG, b"<</Type/Pages/Kids[2 0 R 2 0 R]/Count 2>>"), "*"),
    "circle of forms.pdf": (
        one_page(
            stream(b"/X Do"),
            b"/XObject<</X 6 0 R>>",
            stream(
                TEXT + b" /X Do",
                b"/Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</Font<</F 5 0 R>>"
                b"/XObject<</X 6 0 R>>>>",
            ),
        ),
        "*",
    ),
    "length of itself.pdf": (one_page(b"<</Length 4 0 R>>\nstream\n" + TEXT + b"\nendstream"), "*"),
    "root of itself.pdf": (pdf(b"1 0 R"), "*"),
    "no page.pdf": (pdf(CATALOG, b"<</Type/Pages/Kids[]/Count 0>>"), "*"),
    "counts wrongly.pdf": (pdf(CATALOG, b"<</Type/Pages/Kids[]/Count 999999999>>"), "*"),
    "deep array.pdf": (pdf(b"[" * 200_000), "*"),
    "cut.pdf": (papers.pdf(["Hello"])[:-200], "is cut off: it lacks the end of a PDF"),
    "head alone.pdf": (b"%PDF-1.7\n%%EOF", "*"),
    "noise.pdf": (b"%PDF-1.7\n" + bytes(range(256)) * 40 + b"%%EOF", "*"),
    "actions.pdf": (
        pdf(
            b"<</Type/Catalog/Pages 2 0 R/OpenAction<</S/URI/URI(%s)>>>>" % ADDRESS.encode(),
            b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
            page(4),
            stream(TEXT),
            FONT,
        ),
        "Hello",
    ),
    "far stream.pdf": (
        one_page(b"<</Length 0/F(%s/x)>>\nstream\n\nendstream" % ADDRESS.encode()),
        "*",
    ),
    # DOCX
    "bomb.docx": (bomb, "unpacks to more than 250 times its size, as a zip bomb does"),
    "lies.docx": (lying(f"<w:document {W}>{'x' * 70_000}</w:document>".encode()), "*"),
    "external entity.docx": (
        docx(entities('<!ENTITY e SYSTEM "file:///etc/passwd">', "&e;").encode()),
        "declares entities in its XML, which no DOCX does",
    ),
    "remote entity.docx": (
        docx(entities(f'<!ENTITY e SYSTEM "{ADDRESS}/e">', "&e;").encode()),
        "declares entities in its XML, which no DOCX does",
    ),
    "laughs.docx": (
        docx(entities('<!ENTITY a0 "ha">' + LAUGHS, "&a11;").encode()),
        "declares entities in its XML, which no DOCX does",
    ),
    "wide laughs.docx": (
        docx(entities('<!ENTITY a0 "ha">' + LAUGHS, "&a11;").encode("utf-16")),
        NO_ENTITIES,
    ),
    "wide entity.docx": (
        docx(entities('<!ENTITY e SYSTEM "file:///etc/passwd">', "&e;").encode("utf-16")),
        NO_ENTITIES,
    ),
    # its text was taken: the declaration was looked for in ASCII
    "wide inner entity.docx": (
        docx(entities('<!ENTITY e "Hello">', "&e;").encode("utf-16")),
        NO_ENTITIES,
    ),
    "late entity.docx": (
        docx(f"<!--{'x' * 5_000}-->{entities('', 'Hello')[21:]}".encode()),
        NO_ENTITIES,
    ),
    "remote template.docx": (
        docx(
            PARAGRAPH.format("Hello"),
            **{
                "word/_rels/document.xml.rels": relation(
                    "attachedTemplate", f"{ADDRESS}/t", "External"
                )
            },
        ),
        "Hello",
    ),
    "remote picture.docx": (
        docx(
            PARAGRAPH.format("Hello"),
            **{"word/_rels/document.xml.rels": relation("image", f"{ADDRESS}/i.png", "External")},
        ),
        "Hello",
    ),
    "far body.docx": (
        docx("", **{"_rels/.rels": relation("officeDocument", "../../../etc/passwd")}),
        "*",
    ),
    "remote body.docx": (
        docx("", **{"_rels/.rels": relation("officeDocument", f"{ADDRESS}/d", "External")}),
        "*",
    ),
    "deep.docx": (
        docx("<w:p>" + "<w:ins>" * 60_000 + "</w:ins>" * 60_000 + "</w:p>"),
        "is nested too deep",
    ),
    "deep tables.docx": (
        docx("<w:tbl><w:tr><w:tc>" * 5_000 + "<w:p/>" + "</w:tc></w:tr></w:tbl>" * 5_000),
        "is nested too deep",
    ),
    "blank.docx": (docx("<w:p/>" * 500_000), "holds no text"),
    "cut.docx": (papers.word("Hello")[:-300], "*"),
    "no xml.docx": (docx(b"<w:document"), "*"),
    "no body.docx": (docx(f"<w:x {W}/>".encode()), "is no DOCX: it is another kind of Office file"),
    "encrypted.docx": (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
        "is encrypted, or an old Word file (.doc): save it as DOCX without a password",
    ),
    "workbook.docx": (
        docx(
            "",
            **{
                "_rels/.rels": relation("officeDocument", "xl/workbook.xml"),
                "xl/workbook.xml": "<workbook/>",
            },
        ),
        "is no DOCX: it is another kind of Office file",
    ),
    # Mails
    "mails in mails.eml": (in_mails(50), "has mails or parts nested more than 20 deep"),
    "parts in parts.eml": (parts(3_000), "has mails or parts nested more than 20 deep"),
    "many parts.eml": (
        b"From: a\nContent-Type: multipart/mixed; boundary=b\n\n"
        + b"--b\nContent-Type: text/plain\n\nx\n" * 2_000,
        "has more than 1,000 parts",
    ),
    "climbs.eml": (attached("../../x.txt"), SEE.format("x.txt")),
    "climbs back.eml": (attached("..\\..\\x.txt"), SEE.format("x.txt")),
    "absolute.eml": (attached("/etc/cron.d/x.txt"), SEE.format("x.txt")),
    "odd name.eml": (
        bytes(attached("x.txt")).replace(
            b'filename="x.txt"', b"filename*=utf-8''a%00%0A%1b[31mb.txt"
        ),
        SEE.format("a [31mb.txt"),
    ),
    "bomb inside.eml": (
        lambda: attached("b.docx", bomb(), "application/zip"),
        "has an attachment, b.docx, that unpacks to more than 250 times its size, as a zip bomb "
        "does",
    ),
    "secret inside.eml": (
        attached("b.pdf", papers.pdf(["x"], password="pw"), "application/pdf"),
        "has an attachment, b.pdf, that is encrypted: its text needs a password",
    ),
    "loads.eml": (
        papers.mail(html=f'<img src="{ADDRESS}/i"><link href="{ADDRESS}/c"><p>Hello</p>'),
        "Hello",
    ),
    "outside body.eml": (
        f'From: a\nContent-Type: message/external-body; access-type=URL; URL="{ADDRESS}"\n\nFrom: '
        "b\n\n",
        "holds no text",
    ),
    "sealed.eml": (
        b"From: a\nContent-Type: application/pkcs7-mime\n\nMIIB",
        "is an encrypted mail",
    ),
    "charset.eml": (b"From: a\nContent-Type: text/plain; charset=x-none\n\nHello", "Hello"),
    "headers.eml": (b"X: y\n" * 50_000 + b"\nHello", "Hello"),
    "no mail.eml": (b"\x00\x01\x02" * 99, "*"),
    "no box.mbox": (b"Hello\n", "is no mailbox: it does not begin with 'From '"),
    "one line.mbox": (lambda: b"From a\n\n" + b"x" * 4_000_000, "*"),
    # Texts
    "open tags.html": (b"<a " * 100_000, "*"),
    "quotes.html": (b'<p a="' * 70_000, "*"),
    "loads.html": (
        f'<meta http-equiv=refresh content="0;{ADDRESS}"><img src="{ADDRESS}"><p>Hello',
        "Hello",
    ),
    "binary.txt": (bytes(range(256)) * 9, "holds no text"),
    "wrong.txt": (("Größe\n" * 9).encode() + b"\xff\xfe\xfd", "*"),
    "empty.txt": (b"", "is empty"),
    "blank.pdf": (b" \n", "is empty"),
    "long.txt": (lambda: b"x" * 11_000_000, "has 11,000,000 characters, more than 10,000,000"),
    # Other kinds than their names say
    "word.pdf": (
        papers.word("x"),
        "is no PDF: by its first bytes it is a zip archive, as DOCX and XLSX are",
    ),
    "pdf.docx": (papers.pdf(["x"]), "is no DOCX: by its first bytes it is a PDF"),
    "pdf.txt": (papers.pdf(["x"]), "is no text: by its first bytes it is a PDF"),
    "picture.pdf": (
        b"\x89PNG\r\n\x1a\n" + bytes(60),
        "is no PDF: by its first bytes it is a picture",
    ),
    "program.txt": (b"\x7fELF" + bytes(60), "is no text: by its first bytes it is a program"),
    "page.pdf": (b"<html><body>Hello</body></html>", "is no PDF: was it renamed?"),
}


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    """The rows of all cases, read together from one folder."""
    root = tmp_path_factory.mktemp("hostile")
    contents = {
        name: content() if callable(content) else content for name, (content, _) in CASES.items()
    }
    folder = papers.write(
        root / "in", contents | {"a good one.txt": "fine", "zz good one.txt": "fine"}
    )
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    (copy,) = snapshot.gather([Source(path=folder)], root / "copies", SourceLimits())
    after = {
        path: path.stat().st_mtime_ns for path in root.rglob("*") if "copies" not in path.parts
    }
    assert after == before
    assert sorted(path.name for path in (root / "copies").iterdir()) == [copy.local.name]
    return {
        str(row.columns["file"]).partition("#")[0]: row
        for row in read_rows(copy.local, **copy.reading)
    }


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_document_is_its_text_or_one_sentence(read: dict[str, Row], name: str) -> None:
    row, expected = read[name], CASES[name][1]
    assert "root:" not in json.dumps(row)  # of /etc/passwd
    if row.fault:
        assert row.fault.startswith(name) and "\n" not in row.fault and len(row.fault) < 300
        assert "Traceback" not in row.fault and "Error" not in row.fault, row.fault
    if expected != "*":
        assert (row.fault.removeprefix(name).lstrip() or row.columns["text"]) == expected


def test_the_others_are_read_and_no_byte_leaves(read: dict[str, Row]) -> None:
    assert [read[name].columns["text"] for name in ("a good one.txt", "zz good one.txt")] == [
        "fine",
        "fine",
    ]
    assert len(read) == len(CASES) + 2
    with SERVER, pytest.raises(BlockingIOError):
        SERVER.setblocking(False)
        SERVER.accept()
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < 1.1 * MEMORY


def test_names_and_links(tmp_path: Path) -> None:
    folder = papers.write(
        tmp_path / "in",
        {
            "a\nb.txt": "x",
            "\x1b[31m.txt": "x",
            " .txt": "x",
            "-rf.txt": "x",
            "%s.txt": "x",
            "~$open.docx": "x",
            "_x.txt": "x",
        },
    )
    (folder / os.fsdecode(b"\xff.txt")).write_text("x")
    (tmp_path / "secret.txt").write_text("x")
    (folder / "out.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "in.txt").symlink_to(folder / "-rf.txt")
    (folder / "circle.txt").symlink_to(folder / "circle.txt")
    (folder / "gone.txt").symlink_to(folder / "nowhere.txt")
    (folder / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.txt")
    (copy,) = snapshot.gather([Source(path=folder)], tmp_path / "copies", SourceLimits())
    read = {str(row.columns["file"]): row for row in read_rows(copy.local, **copy.reading)}
    assert set(read) == {
        "a\nb.txt",
        "\x1b[31m.txt",
        " .txt",
        "-rf.txt",
        "%s.txt",
        "\\xff.txt",
        "out.txt",
        "in.txt",
    }
    assert {name for name, row in read.items() if row.fault} == {"out.txt"}
    assert read["out.txt"].fault == "out.txt is a link to a file outside of the folder"


@pytest.mark.slow
def test_200_megabytes_of_text_are_not_read(tmp_path: Path) -> None:
    folder = papers.write(tmp_path / "in", {"a.txt": "x", "b.pdf": "x"})
    os.truncate(folder / "a.txt", 200_000_000)
    os.truncate(folder / "b.pdf", 300_000_000)
    (copy,) = snapshot.gather([Source(path=folder)], tmp_path / "copies", SourceLimits())
    faults = [row.fault for row in read_rows(copy.local, **copy.reading)]
    assert faults == ["a.txt has more than 40 MB", "b.pdf has more than 256 MB"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            lambda: one_page(flate_bomb(4 << 30)),
            "takes too much memory, or is so damaged that its reader ends",
        ),
        (lambda: forms(12), "takes too much"),  # a form that draws another one ten times, and so on
    ],
)
def test_a_document_that_grows_without_end_ends_its_reader_alone(
    tmp_path: Path, content: Callable[[], bytes], sentence: str
) -> None:
    folder = papers.write(tmp_path / "in", {"a.pdf": content(), "b.txt": "fine"})
    (copy,) = snapshot.gather([Source(path=folder)], tmp_path / "copies", SourceLimits())
    first, second = read_rows(copy.local, **copy.reading)
    assert (first.fault.startswith(f"a.pdf {sentence}"), second.columns["text"]) == (True, "fine")
