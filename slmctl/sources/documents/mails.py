"""Mails: their body, their headers and the documents attached to them;
mailboxes as one mail after another.
"""

from __future__ import annotations

import contextlib
import email
import email.utils
import re
from collections.abc import Iterator
from dataclasses import replace
from email.errors import HeaderParseError, MessageError
from email.header import decode_header, make_header
from email.message import Message
from pathlib import Path
from typing import TYPE_CHECKING

from slmctl.errors import DataError
from slmctl.sources.documents import readers
from slmctl.sources.documents.readers import MAX_BYTES, PAGE, Document

if TYPE_CHECKING:
    from slmctl.sources.documents.readers import Recognise

MAX_DEPTH = 20  # parts around a part: a forwarded mail with its own parts has some four
MAX_PARTS = 1_000  # of a mail
_TOO_DEEP = f"has mails or parts nested more than {MAX_DEPTH} deep"
_SECRET = ("multipart/encrypted", "application/pkcs7-mime", "application/x-pkcs7-mime")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029]")


class _Parts:
    """The parts of a mail as they are read: texts of its body, and attached documents."""

    def __init__(self, recognise: Recognise | None) -> None:
        self._recognise = recognise
        self.body: list[str] = []
        self.attached: list[tuple[str, Document]] = []
        self.left = MAX_PARTS

    def take(self, part: Message, depth: int) -> None:
        self.left -= 1
        kind, name = part.get_content_type(), _name(part)
        if depth > MAX_DEPTH or self.left < 0:
            raise DataError(
                _TOO_DEEP if depth > MAX_DEPTH else f"has more than {MAX_PARTS:,} parts"
            )
        if kind in _SECRET:
            raise DataError("is an encrypted mail")
        inner = (
            [each for each in part.get_payload() if isinstance(each, Message)]
            if part.is_multipart()
            else []
        )
        if kind == "message/rfc822" and inner:
            self.attached.append(
                (name or "mail", _with_head(_of_message(inner[0], depth + 1, self._recognise)))
            )
        elif kind == "multipart/alternative":
            self._choose(inner, depth)
        elif part.is_multipart():
            for each in inner:
                self.take(each, depth + 1)
        elif name or part.get_content_disposition() == "attachment":
            self._attach(part, name, depth)
        elif kind in ("text/plain", "text/html"):
            self.body.append(_text(part, kind))

    def _choose(self, choices: list[Message], depth: int) -> None:
        """Of the forms of one text the plain one, unless it is blank."""
        before, texts = self.body, list[list[str]]()
        for each in sorted(choices, key=lambda part: part.get_content_type() != "text/plain"):
            self.body = []
            self.take(each, depth + 1)
            texts.append(self.body)
        self.body = before + next((text for text in texts if any(map(str.strip, text))), [])

    def _attach(self, part: Message, name: str, depth: int) -> None:
        types = {"application/pdf": "pdf", "text/html": "html", "text/plain": "text"}
        kind = readers.kind_of(name) or types.get(part.get_content_type(), "")
        if not kind or kind == "mailbox":
            return
        shown = name or "attachment"
        try:
            if not (data := _bytes(part)).strip():  # Exchange adds an empty ATT00001.txt
                return
            self.attached.append((shown, self._document(data, kind, depth)))
        except DataError as error:
            raise DataError(f"has an attachment, {shown}, that {error.message}") from None

    def _document(self, data: bytes, kind: str, depth: int) -> Document:
        if kind == "mail":
            return read(data, self._recognise, depth + 1)
        return readers.read(data, kind, self._recognise)


def read(data: bytes, recognise: Recognise | None = None, depth: int = 0) -> Document:
    """A mail as one document: its body, then each attached document on pages of its own, below a
    line with its name.

    Args:
        recognise: Reads a page of an attached PDF that is a picture.

    Raises:
        DataError: It is no mail, is encrypted or nested too deep, or an attached document cannot be
            read.
    """
    readers.require_kind(data, "mail")
    try:
        message = email.message_from_bytes(data)
    except RecursionError:
        raise DataError(_TOO_DEEP) from None
    except (MessageError, ValueError, IndexError, LookupError) as error:
        raise DataError(f"is no mail: {str(error)[:200]}") from None
    if not message.keys():
        raise DataError("is no mail: it has no headers")
    return _of_message(message, depth, recognise)


def mailbox(path: Path, recognise: Recognise | None = None) -> Iterator[Document | DataError]:
    """The mails of a mailbox in the format mbox, in order, each as a
    document or as the reason why it is none.
    """
    mail = bytearray()
    size = begun = 0
    with path.open("rb") as stream:
        blank = True
        for line in iter(lambda: stream.readline(1 << 20), b""):
            if blank and line.startswith(b"From "):
                if begun:
                    yield _in_box(bytes(mail), size, recognise)
                mail.clear()
                size, begun = 0, begun + 1
            elif not begun:
                raise DataError("is no mailbox: it does not begin with 'From '")
            else:
                size += len(line)
                if size <= MAX_BYTES:
                    mail += re.sub(rb"\A>(>*From )", rb"\1", line)
            blank = line in (b"\n", b"\r\n")
    if not begun:
        raise DataError("is empty")
    yield _in_box(bytes(mail), size, recognise)


def _in_box(data: bytes, size: int, recognise: Recognise | None) -> Document | DataError:
    try:
        if size > MAX_BYTES:
            raise DataError(f"has more than {MAX_BYTES / 1e6:.0f} MB")
        return read(data, recognise)
    except DataError as error:
        return error


def _of_message(message: Message, depth: int, recognise: Recognise | None) -> Document:
    parts = _Parts(recognise)
    try:
        parts.take(message, depth)
    except RecursionError:
        raise DataError(_TOO_DEEP) from None
    attached = [f"[attachment: {name}]\n{document.text}" for name, document in parts.attached]
    whole = readers.of_text(PAGE.join(["\n".join(parts.body), *attached]))
    documents = [document for _, document in parts.attached]
    return Document(
        whole.text,
        bare=sum(document.bare for document in documents),
        subject=_header(message, "subject"),
        sender=_header(message, "from"),
        date=_date(message),
        recognised=sum(document.recognised for document in documents),
        certainty=min((document.certainty for document in documents), default=1.0),
    )


def _with_head(mail: Document) -> Document:
    """A mail inside of another, its headers as lines above its text."""
    head = [
        f"{name}: {value}"
        for name, value in (("Subject", mail.subject), ("From", mail.sender), ("Date", mail.date))
        if value
    ]
    return replace(mail, text="\n".join([*head, "", mail.text]))


def _bytes(part: Message) -> bytes:
    payload = part.get_payload(decode=True)
    return payload if isinstance(payload, bytes) else b""


def _text(part: Message, kind: str) -> str:
    data, charset = _bytes(part), part.get_content_charset()
    if not data.strip():
        return ""
    return (
        readers.of_html(data, charset).text
        if kind == "text/html"
        else readers.decoded(data, charset)
    )


def _header(message: Message, name: str) -> str:
    value = next((value for key, value in message.raw_items() if key.lower() == name), "")
    # bytes beyond ASCII, as old programs write them
    if isinstance(value, str) and not value.isascii():
        with contextlib.suppress(DataError):
            value = readers.decoded(value.encode("ascii", "surrogateescape"))
    return _words(value)


def _words(value: object) -> str:
    """A header's value in one line, its encoded words decoded."""
    text = str(value)
    with contextlib.suppress(HeaderParseError, LookupError, ValueError):
        text = str(make_header(decode_header(text)))
    return " ".join(_CONTROL.sub(" ", text).encode("utf-8", "replace").decode().split())[:1_000]


def _name(part: Message) -> str:
    """The last part of an attachment's name, so that no name stands for a path."""
    return re.split(r"[/\\]", _words(part.get_filename() or ""))[-1][:200]


def _date(message: Message) -> str:
    value = _header(message, "date")
    try:
        return email.utils.parsedate_to_datetime(value).isoformat()
    except (ValueError, TypeError, IndexError, OverflowError):
        return value
