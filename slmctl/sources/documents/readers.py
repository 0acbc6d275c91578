"""The content of one file -> its documents: text, pages and, of a mail, its headers; pages end in a
form feed.

No link and no other file is read. A page of a PDF that holds no text is recognised if `recognise`
is given. A document that cannot be read to its end raises DataError, whose message goes on after
the name of the file: `is encrypted`.
"""

from __future__ import annotations

import contextlib
import io
import re
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree
from xml.parsers import expat

from slmctl.errors import DataError
from slmctl.sources.documents import html_text, page_text
from slmctl.sources.rows import encodings
from slmctl.sources.rows.cells import MAX_ROW, too_long
from slmctl.sources.rows.lines import MAX_RATIO, UNPACKED_ANYWAY, is_binary

if TYPE_CHECKING:
    import pypdfium2

    from slmctl.sources.documents.recognition import PageText

    Recognise = Callable[[pypdfium2.PdfPage], PageText]

KINDS = {
    ".pdf": "pdf",
    ".docx": "docx",
    ".eml": "mail",
    ".mbox": "mailbox",
    ".html": "html",
    ".htm": "html",
    ".txt": "text",
    ".md": "text",
}
MAX_BYTES = 256_000_000  # of one document
MAX_PAGES = 2_000
MAX_GARBAGE = 0.3  # of the signs of a text layer
PAGE = "\f"  # between two pages

_NAMES = {"pdf": "PDF", "docx": "DOCX", "mail": "mail", "html": "HTML", "text": "text"}
_OLE, _ZIP = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"PK\x03\x04"
# The first bytes of files that are taken for documents by their names.
_STARTS = {
    b"%PDF-": "a PDF",
    _ZIP: "a zip archive, as DOCX and XLSX are",
    _OLE: "an old or encrypted Office file",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"II*\0": "a picture",
    b"MM\0*": "a picture",
    b"{\\rtf": "an RTF",
    b"\x1f\x8b": "a gzip file",
    b"\x7fELF": "a program",
    b"MZ\x90": "a program",
}
_CHARSET = re.compile(
    rb"<meta[^>]{0,200}?charset\s{0,5}=\s{0,5}[\"']?([A-Za-z0-9_.:-]{2,40})", re.IGNORECASE
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f\u00ad\ufeff\ufffe\uffff]")
_GARBAGE = {"Cc", "Cn", "Co"}  # categories of signs without a meaning in a text
_LIGATURES = {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"}
_TRANSLATED = str.maketrans(_LIGATURES | {chr(half): "\ufffd" for half in range(0xD800, 0xE000)})


@dataclass(frozen=True)
class Document:
    """The text of a document, with what its file says about it.

    Attributes:
        text: Its pages, with PAGE between two of them.
        bare: Number of pages without text that show something: scanned ones, most often.
        recognised: Number of pages with a text that was recognised in a picture.
        certainty: The least one of these, 0 to 1.
        subject, sender, date: Headers of a mail; the date in ISO 8601 where it is one.
    """

    text: str
    bare: int = 0
    subject: str = ""
    sender: str = ""
    date: str = ""
    recognised: int = 0
    certainty: float = 1.0

    @property
    def pages(self) -> int:
        """Number of its pages."""
        return self.text.count(PAGE) + 1


def content(path: Path) -> bytes:
    """The bytes of a document that is no mailbox.

    Raises:
        DataError: It is too large.
    """
    # a character has at most 4 bytes
    most = 4 * MAX_ROW if kind_of(path.name) in ("text", "html") else MAX_BYTES
    if path.stat().st_size > most:
        raise DataError(f"has more than {most / 1e6:.0f} MB")
    return path.read_bytes()


def kind_of(name: str) -> str:
    """The kind of a document by the suffix of its name, a value of KINDS; '' for another file."""
    return KINDS.get(Path(name).suffix.lower(), "")


def read(data: bytes, kind: str, recognise: Recognise | None = None) -> Document:
    """The document of a kind, a value of KINDS that is no mail.

    Args:
        recognise: Reads a page that is a picture; without it such a page is bare.

    Raises:
        DataError: It cannot be read to its end, or is of another kind.
    """
    require_kind(data, kind)
    readers: dict[str, Callable[[bytes], Document]] = {
        "pdf": lambda data: _of_pdf(data, recognise),
        "docx": _of_docx,
        "html": of_html,
        "text": lambda data: of_text(decoded(data)),
    }
    return readers[kind](data)


def require_kind(data: bytes, kind: str) -> None:
    """Refuse content that is not of the kind that the name says, by its first bytes.

    Raises:
        DataError: It is another kind, or empty.
    """
    if not data.strip():
        raise DataError("is empty")
    start = next((what for start, what in _STARTS.items() if data.startswith(start)), "")
    fits = {"pdf": b"%PDF-" in data[:1024], "docx": data.startswith(_ZIP)}.get(kind, not start)
    if not fits and kind == "docx" and data.startswith(_OLE):
        raise DataError(
            "is encrypted, or an old Word file (.doc): save it as DOCX without a password"
        )
    if not fits:
        raise DataError(
            f"is no {_NAMES[kind]}: "
            + (f"by its first bytes it is {start}" if start else "was it renamed?")
        )


# Texts


def decoded(data: bytes, charset: str | None = None) -> str:
    """Bytes as text: in a declared character set if they are in it, else in the encoding that they
    are recognised as.

    Raises:
        DataError: They are no text, or in an encoding that cannot be recognised.
    """
    head = data[: encodings.SAMPLE]
    name = encodings.known(charset) if charset and charset.lower() != "us-ascii" else None
    if name and name.startswith(("utf-16", "utf-32")) and b"\0" not in data:
        name = None  # a page saved anew in another encoding, with its old `meta`
    recognised = encodings.recognise([head])
    if recognised is not None and recognised.mark:
        data, name = data.removeprefix(recognised.mark), None
    codec = name or (recognised.name if recognised else "")
    # which need such bytes
    if is_binary(head) and not any(form in codec for form in ("16", "32", "iso2022")):
        raise DataError("holds no text")
    if recognised is None and name is None:
        raise DataError("is neither UTF-8 nor CP1252")
    for each in filter(None, (name, recognised.name if recognised else None)):
        try:
            return data.decode(each)
        except UnicodeDecodeError as error:
            place, codec = error.start, each
    raise DataError(f"is not {codec.upper()}: byte {place:,} is 0x{data[place]:02x}")


def of_text(text: str, bare: int = 0) -> Document:
    """A text as a document: composed letters, no ligatures, no control characters, line ends of one
    kind.

    Raises:
        DataError: It is longer than a row may be, or has too many pages.
    """
    text = (
        text.replace("\r\n", "\n")
        .replace("\r", "\n")
        .replace("\u2028", "\n")
        .replace("\u2029", "\n")
    )
    text = unicodedata.normalize("NFC", _CONTROL.sub("", text).translate(_TRANSLATED))
    if len(text) > MAX_ROW:
        raise DataError(too_long(len(text)))
    document = Document(text.strip(" \n"), bare)
    _require_pages(document.pages)
    return document


def _require_pages(count: int) -> None:
    if count > MAX_PAGES:
        raise DataError(f"has {count:,} pages, more than {MAX_PAGES:,}")


def of_html(data: bytes, charset: str | None = None) -> Document:
    """The text of HTML, in the character set of the mail around it or of its own `meta`."""
    declared = charset or (match[1].decode() if (match := _CHARSET.search(data[:4096])) else None)
    return of_text(html_text.text_of(decoded(data, declared)))


# PDF


def _of_pdf(data: bytes, recognise: Recognise | None) -> Document:
    import pypdfium2

    if b"%%EOF" not in data[-8192:]:
        raise DataError("is cut off: it lacks the end of a PDF")
    try:
        with pypdfium2.PdfDocument(data) as pdf:
            count = len(pdf)
            _require_pages(count)  # before they are read
            return _of_pages(map(pdf.__getitem__, range(count)), recognise)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise DataError("is encrypted: its text needs a password") from None
        raise DataError(f"is a damaged PDF: {str(error)[:200]}") from None


def _of_pages(pages: Iterator[pypdfium2.PdfPage], recognise: Recognise | None) -> Document:
    texts: list[str] = []
    certainties: list[float] = []
    size = bare = 0
    for number, page in enumerate(pages, 1):
        text = _layer(page)
        if not text and _shows_something(page):
            if recognise is None:
                bare += 1
            elif (read := _recognised(page, number, recognise)).text:
                text = read.text
                certainties.append(read.certainty)
        page.close()
        size += len(text)
        if size > MAX_ROW:
            raise DataError(too_long())
        texts.append(text)
    if not texts:
        raise DataError("has no page")
    whole = of_text(PAGE.join(page_text.cleaned(texts)), bare)
    return replace(
        whole, recognised=len(certainties), certainty=min(certainties, default=whole.certainty)
    )


def _layer(page: pypdfium2.PdfPage) -> str:
    """The text layer of a page; '' for one whose signs mean nothing, as a broken font leaves."""
    content = page.get_textpage()
    text: str = content.get_text_bounded()
    content.close()
    signs = [sign for sign in text if not sign.isspace()]
    garbage = sum(unicodedata.category(sign) in _GARBAGE or sign == "\ufffd" for sign in signs)
    return text if garbage <= MAX_GARBAGE * len(signs) and signs else ""


def _shows_something(page: pypdfium2.PdfPage) -> bool:
    return next(iter(page.get_objects(max_depth=1)), None) is not None


def _recognised(page: pypdfium2.PdfPage, number: int, recognise: Recognise) -> PageText:
    read = recognise(page)
    if not read.is_sure:
        raise DataError(
            f"has a page {number} that cannot be recognised surely ({100 * read.certainty:.0f} %): "
            "scan it straight, in 300 dpi"
        )
    return read


# DOCX


def _of_docx(data: bytes) -> Document:
    """The text of the body; headers, footers, notes, comments,
    deleted and hidden text are left out.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > max(
                UNPACKED_ANYWAY, MAX_RATIO * len(data)
            ):
                raise DataError(
                    f"unpacks to more than {MAX_RATIO} times its size, as a zip bomb does"
                )
            document = _xml(archive, _body_of(archive))
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
    ) as error:
        raise DataError(f"is a damaged DOCX: {str(error)[:200]}") from None
    text = next((element for element in document.iter() if _tag(element) == "body"), None)
    if text is None:
        raise DataError("is no DOCX: it is another kind of Office file")
    try:
        blocks = list(_blocks(text))
    except RecursionError:
        raise DataError("is nested too deep") from None
    # a break that Word has rendered follows the one that the author set: nothing is between them
    return of_text(
        PAGE.join(filter(None, (page.strip() for page in "\n".join(blocks).split(PAGE))))
    )


def _xml(archive: zipfile.ZipFile, name: str) -> ElementTree.Element:
    """A part of the archive; expat reads no external entity, and a
    document type has no place in a DOCX.
    """
    data = archive.read(name)
    _require_no_entities(data)
    try:
        return ElementTree.fromstring(data)  # noqa: S314  expat bounds entities, and there are none
    except ElementTree.ParseError as error:
        raise DataError(f"is a damaged DOCX: {str(error)[:200]}") from None


def _require_no_entities(data: bytes) -> None:
    def refuse(*declared: object) -> None:
        raise DataError("declares entities in its XML, which no DOCX does")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse  # in whatever encoding the XML is
    with contextlib.suppress(expat.ExpatError):  # which ElementTree tells
        parser.Parse(data, True)


def _body_of(archive: zipfile.ZipFile) -> str:
    """The name of the part with the text, by the relations of the archive."""
    if "_rels/.rels" in archive.namelist():
        for relation in _xml(archive, "_rels/.rels"):
            if relation.get("Type", "").endswith("/officeDocument"):
                return relation.get("Target", "").lstrip("/")
    if "word/document.xml" not in archive.namelist():
        raise DataError("is no DOCX: it is another kind of zip archive")
    return "word/document.xml"


def _tag(element: ElementTree.Element) -> str:
    """The name of an element without its namespace: strict and
    transitional DOCX have different ones.
    """
    return element.tag.rpartition("}")[2]


def _get(element: ElementTree.Element, name: str) -> str:
    return next((value for key, value in element.items() if key.rpartition("}")[2] == name), "")


_LEFT_OUT = frozenset(
    ("del", "moveFrom", "Fallback", "pPr", "rPr", "sectPr", "tblPr", "trPr", "instrText", "delText")
)
_PIECES = {"tab": "\t", "cr": "\n", "noBreakHyphen": "-", "lastRenderedPageBreak": PAGE}


def _blocks(container: ElementTree.Element) -> Iterator[str]:
    """A paragraph or a row of a table a text, in reading order."""
    for element in container:
        name = _tag(element)
        if name == "p":
            yield PAGE * _is_set(element, "pPr", "pageBreakBefore") + "".join(_runs(element))
        elif name == "tbl":
            yield from (
                _row(row) for row in _below(element, "tr") if not _is_set(row, "trPr", "del")
            )
        elif name not in _LEFT_OUT:
            yield from _blocks(element)


def _is_set(element: ElementTree.Element, properties: str, name: str) -> bool:
    """True for an element with a property that is on, such as `vanish` in the `rPr` of a run."""
    marks = (
        mark for part in element if _tag(part) == properties for mark in part if _tag(mark) == name
    )
    return any(_get(mark, "val") not in ("0", "false", "off") for mark in marks)


def _below(container: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    """The elements of a name in a container, also inside controls and marked changes."""
    for element in container:
        if _tag(element) == name:
            yield element
        elif _tag(element) in ("sdt", "sdtContent", "ins", "moveTo", "customXml"):
            yield from _below(element, name)


def _row(row: ElementTree.Element) -> str:
    cells = (
        " ".join(filter(None, (text.strip() for text in _blocks(cell))))
        for cell in _below(row, "tc")
    )
    return " | ".join(cell.replace("\n", " ").replace(PAGE, " ") for cell in cells)


def _runs(paragraph: ElementTree.Element) -> Iterator[str]:
    for element in paragraph:
        name = _tag(element)
        if name == "t":
            yield element.text or ""
        elif name == "br":
            yield PAGE if _get(element, "type") == "page" else "\n"
        elif name in _PIECES:
            yield _PIECES[name]
        elif name == "txbxContent":
            yield "\n" + "\n".join(_blocks(element))
        elif name not in _LEFT_OUT and not _is_set(element, "rPr", "vanish"):
            yield from _runs(element)
