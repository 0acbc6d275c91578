"""Documents by other programs than the readers: PDF by fpdf2, DOCX by
python-docx, mails by the standard library.
"""

from __future__ import annotations

import io
import mailbox
from collections.abc import Sequence
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import docx
import fpdf
from docx.enum.text import WD_BREAK
from PIL import Image

PAGE = None  # a page break among the blocks of a DOCX


def pdf(
    pages: Sequence[str | None], *, header: str = "", footer: str = "", password: str = ""
) -> bytes:
    """A PDF: a text a page, None for a page that is a picture; `{}` in
    header and footer is the number of the page.
    """
    paper = fpdf.FPDF()
    paper.set_auto_page_break(False)
    for number, text in enumerate(pages, 1):
        paper.add_page()
        paper.set_font("helvetica", size=11)
        for line in [header.format(number)] if header else []:
            paper.cell(0, 8, line, new_x="LMARGIN", new_y="NEXT")
        if text is None:
            picture = io.BytesIO()
            Image.new("RGB", (40, 40), (9, 9, 9)).save(picture, "png")
            paper.image(picture)
        else:
            paper.multi_cell(0, 6, text)
        if footer:
            paper.set_y(-15)
            paper.cell(0, 8, footer.format(number))
    if password:
        paper.set_encryption(owner_password="owner", user_password=password)
    return bytes(paper.output())


def word(*blocks: str | Sequence[Sequence[str]] | None, header: str = "") -> bytes:
    """A DOCX: texts are paragraphs, lists of rows are tables, PAGE is a page break."""
    paper = docx.Document()
    for block in blocks:
        if block is PAGE:
            paper.add_paragraph().add_run().add_break(WD_BREAK.PAGE)
        elif isinstance(block, str):
            paper.add_paragraph(block)
        else:
            table = paper.add_table(len(block), len(block[0]))
            for row, cells in zip(table.rows, block, strict=True):
                for cell, text in zip(row.cells, cells, strict=True):
                    cell.text = text
    paper.sections[0].header.paragraphs[0].text = header
    stream = io.BytesIO()
    paper.save(stream)
    return stream.getvalue()


def mail(
    text: str = "",
    *,
    html: str = "",
    attached: Sequence[tuple[str, bytes, str]] = (),
    **headers: str,
) -> EmailMessage:
    """A mail; `attached` are names, contents and types such as application/pdf."""
    message = EmailMessage()
    for name, value in ({"subject": "Hello", "from": "ann@example.com"} | headers).items():
        message[name.replace("_", "-")] = value
    if text or not html:
        message.set_content(text)
    if html:
        (message.add_alternative if text else message.set_content)(html, subtype="html")
    for name, content, kind in attached:
        main, _, sub = kind.partition("/")
        message.add_attachment(content, maintype=main, subtype=sub, filename=name)
    return message


def write_mailbox(path: Path, mails: Sequence[EmailMessage]) -> Path:
    box = mailbox.mbox(path)
    for message in mails:
        box.add(message)
    box.close()
    return path


def write(folder: Path, files: dict[str, bytes | str | Any]) -> Path:
    """Write files by name, with the folders around them; returns the folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else bytes(content))
    return folder
