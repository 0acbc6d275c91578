"""Pages that are pictures of text are read when the source says so, and said to be pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import papers, scans
from support.scans import Change

from slmctl.config import Source, SourceLimits
from slmctl.errors import DataError
from slmctl.sources import snapshot
from slmctl.sources.documents import readers
from slmctl.sources.documents.recognition import PageReader, PageText, in_lines
from slmctl.sources.rows import Row, read_rows

TERMS = (
    "Wartungsvertrag zwischen der Tarnwik GmbH, Größestraße 9,\n"
    "und der Ärzteverbund Köln eG\n\n"
    "§ 2 Die Vergütung beträgt 12.400,00 Euro im Jahr.\n"
    "§ 3 Der Vertrag beginnt am 3. Mai 2024 und endet mit\n"
    "einer Frist von 6 Monaten zum Jahresende."
)
WORDS = ["Größestraße", "Ärzteverbund", "12.400,00", "3. Mai 2024", "6 Monaten zum Jahresende"]
READ = {"documents": {"scanned": "read"}}


def rows(folder: Path, **source: Any) -> dict[str, Row]:
    """The rows of a folder by the name of their file."""
    described = Source.model_validate({"path": folder, **source})
    (copy,) = snapshot.gather([described], folder.parent / "copies", SourceLimits())
    return {str(row.columns["file"]): row for row in read_rows(copy.local, **copy.reading)}


@pytest.fixture(scope="module")
def reader() -> PageReader:
    return PageReader()


# With the models


def test_scanned_pages_are_read_among_others_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scanned = scans.scan(papers.pdf([TERMS]), dpi=150)
    mail = papers.mail("See the contract.", attached=[("a.pdf", scanned, "application/pdf")])
    files = {"a.pdf": scanned, "b.eml": mail, "c.pdf": papers.pdf(["a layer", TERMS])}
    read = rows(papers.write(tmp_path / "in", files), **READ)
    for name in files:
        text = str(read[name].columns["text"])
        assert [word for word in WORDS if word not in text] == [], text
    assert str(read["b.eml"].columns["text"]).startswith("See the contract.\n\f[attachment: a.pdf]")
    said = capsys.readouterr().err
    assert "2 of 5 pages recognised in pictures; least certain: " in said


def test_a_scan_is_rejected_unasked_and_the_way_to_have_it_read_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = papers.write(tmp_path / "in", {"a.pdf": papers.pdf([None]), "b.txt": "text"})
    assert rows(folder)["a.pdf"].fault == "a.pdf: 1 of 1 page has no text: scanned?"
    said = capsys.readouterr().err
    assert "to have scanned pages read: documents: {scanned: read} in the source, and pip" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [scans.turned(90), scans.turned(180), scans.turned(270), scans.turned(3), scans.faxed],
    ids=["left", "upside down", "right", "tilted", "faxed"],
)
def test_a_page_is_read_however_it_lay(change: Change) -> None:
    data = scans.scan(papers.pdf([TERMS]), dpi=200, change=change)
    read = readers.read(data, "pdf", PageReader())
    assert [word for word in WORDS if word not in read.text] == [], read.text
    assert (read.recognised, read.bare) == (1, 0) and read.certainty > 0.9


@pytest.mark.slow
def test_what_cannot_be_read_is_said_and_a_blank_page_is_none(reader: PageReader) -> None:
    coarse = scans.scan(papers.pdf([TERMS]), dpi=28)
    with pytest.raises(DataError, match=r"has a page 1 that cannot be recognised surely \(\d+ %\)"):
        readers.read(coarse, "pdf", reader)
    blank = readers.read(papers.pdf(["text", None]), "pdf", reader)
    assert (blank.text, blank.recognised, blank.pages) == ("text\f", 0, 2)


# Without


def sure(page: object) -> PageText:
    return PageText("read from the picture", 0.97)


def test_a_text_layer_of_signs_without_a_meaning_counts_as_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = iter(["\ue001\ue002\ue003\ue004 \ue005a", "50 % \ue001\ue002 of it is text"])
    monkeypatch.setattr("pypdfium2.PdfTextPage.get_text_bounded", lambda self: next(texts))
    read = readers.read(papers.pdf(["one", "two"]), "pdf", sure)
    assert read.text.split("\f") == ["read from the picture", "50 % \ue001\ue002 of it is text"]
    assert (read.recognised, read.certainty) == (1, 0.97)


@pytest.mark.parametrize("read", [PageText("x", 0.79), PageText("x", 0.9, is_sideways=True)])
def test_a_page_that_is_not_sure_is_refused(read: PageText) -> None:
    with pytest.raises(DataError, match="page 2 that cannot be recognised surely"):
        readers.read(papers.pdf(["one", None]), "pdf", lambda page: read)


def boxes(*corners: tuple[float, float, float, float], turn: float = 0.0) -> Any:
    """Boxes (left, top, width, height), turned about the origin by an angle in radians."""

    def around(left: float, top: float, width: float, height: float) -> Iterator[list[float]]:
        yield from ([left, top], [left + width, top])
        yield from ([left + width, top + height], [left, top + height])

    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return np.array([list(around(*corner)) for corner in corners]) @ rotation


@pytest.mark.parametrize("turn", [0.0, 0.06, -0.06])
def test_texts_of_a_line_stand_in_a_line(turn: float) -> None:
    found = boxes(
        (700, 104, 200, 30),
        (100, 100, 300, 30),
        (100, 150, 900, 30),
        (1200, 152, 80, 30),
        turn=turn,
    )
    assert in_lines(found, ["b", "a", "c", "d"]) == "a b\nc d"


def test_no_text_is_no_line() -> None:
    assert in_lines(np.empty((0, 4, 2)), []) == ""
