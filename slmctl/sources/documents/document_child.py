"""The child process that reads documents, within limits of memory, CPU time and size, without
network or other files.

    python -m slmctl.sources.documents.document_child

The request is JSON on stdin: `files`, pairs of path and name, the CPU `seconds` of each, and
`recognise`: of the pages that are pictures `none`, those that the seconds of a file allow
(`bounded`), or `all`, with so many seconds for each. Each line of stdout is a JSON value: a row, an
object `{"file": …, "fault": …}` for a document that cannot be read, and `null` after the last one
of each file.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from slmctl import child
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.errors import DataError
from slmctl.network import guard
from slmctl.sources.documents import mails, readers
from slmctl.sources.documents.readers import Document
from slmctl.sources.rows.cells import MAX_ROW, too_long

if TYPE_CHECKING:
    from pypdfium2 import PdfPage

    from slmctl.sources.documents.readers import Recognise
    from slmctl.sources.documents.recognition import PageReader, PageText

MEMORY = 2 << 30  # bytes of address space


def main() -> None:
    request = json.load(sys.stdin)
    guard.seal()
    child.end_with_parent()
    child.bound(memory=MEMORY, file_bytes=1 << 20)  # it writes no file but its log
    out = child.private_stdout()
    recognise = _recogniser(request["recognise"], request["seconds"])
    for path, name in request["files"]:
        child.renew_cpu(request["seconds"])
        for reply in _rows(Path(path), name, recognise):
            line = json.dumps(reply, ensure_ascii=False)
            if len(line) > MAX_ROW:
                line = json.dumps({"file": reply["file"], "fault": too_long(len(line))})
            out.write(line + "\n")
            child.renew_cpu(request["seconds"])  # a mailbox has many
        out.write("null\n")
        out.flush()


def _recogniser(which: str, seconds: int) -> Recognise | None:
    if which == "none":
        return None

    @functools.cache
    def reader() -> PageReader:
        from slmctl.sources.documents.recognition import PageReader  # if a page needs it

        return PageReader()

    def recognise(page: PdfPage) -> PageText:
        if which == "all":
            child.renew_cpu(seconds)
        return reader()(page)

    return recognise


def _rows(path: Path, name: str, recognise: Recognise | None) -> Iterator[JsonObject]:
    """The rows of a file: one, or one for each mail of a mailbox,
    named `archive.mbox#1` and so on.
    """
    try:
        kind = readers.kind_of(name)
        if kind == "mailbox":
            for number, read in enumerate(mails.mailbox(path, recognise), 1):
                yield _row(f"{name}#{number}", read)
        else:
            data = readers.content(path)
            read = (
                mails.read(data, recognise)
                if kind == "mail"
                else readers.read(data, kind, recognise)
            )
            yield _row(name, read)
    except DataError as error:
        yield _row(name, error)
    except MemoryError:
        yield _row(name, DataError("takes too much memory"))
    except OSError as error:
        yield _row(name, DataError(f"cannot be read: {(error.strerror or str(error)).lower()}"))


def _row(name: str, read: Document | DataError) -> JsonObject:
    if isinstance(read, DataError):
        return {"file": name, "fault": read.message}
    folders = PurePosixPath(name).parts[:-1]
    return {
        "file": name,
        "folder": folders[0] if folders else "",
        "text": read.text,
        "pages": read.pages,
        "subject": read.subject,
        "from": read.sender,
        "date": read.date,
        "bare": read.bare,
        "recognised": read.recognised,
        "certainty": read.certainty,
    }


if __name__ == "__main__":
    main()
