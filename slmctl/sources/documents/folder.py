"""A folder, a pattern or a file of documents -> JSON Lines, a row a document, with the answers
joined by file name.

Children (`document_child`) read the files one after another. A file that ends its child is a row
with a fault, and the next child goes on with the file after it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import signal
import time
from collections.abc import Collection, Generator, Sequence
from pathlib import Path
from typing import IO, Literal

from slmctl import child, console
from slmctl.artifacts.artifact import canonical, state
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.config import AnswerTable, Source, SourceLimits
from slmctl.errors import DataError, SlmctlError
from slmctl.installation import pip_line
from slmctl.sources import bounded_copy
from slmctl.sources.documents import answers, readers
from slmctl.sources.documents.answers import Joined
from slmctl.sources.rows import is_several, require_file
from slmctl.sources.rows.cells import FAULT
from slmctl.sources.rows.files import MAX_FILES, files_below, known_format

CHILD = "slmctl.sources.documents.document_child"
SECONDS = 60  # of CPU time for a file
VERSION = 4  # of the readers: a copy of another version is made again
NO_TEXT = "no text: scanned?"
_NAMED = 5  # documents that cannot be read and are named


def is_documents(source: Source) -> bool:
    """True for a source of documents: its keys say so, or its files
    are documents and none is a table.
    """
    if source.path is None or source.format is not None:
        return False
    if source.answers is not None or source.documents is not None:
        return True
    if not is_several(source.local):
        return bool(readers.kind_of(source.local.name))
    try:
        _, paths = files_below(source.local)
    except (SlmctlError, OSError):
        return False
    named = [readers.kind_of(name) for name in paths]
    if not source.local.is_dir():
        return bool(named) and all(named)
    return any(named) and not any(map(known_format, paths.values()))


def files(source: Source) -> dict[str, Path]:
    """The documents of a source by name, which is the path below its folder, in order.

    Raises:
        DataError: There is no document, or there are too many files.
    """
    _, paths = _listed(source)
    named = {name: path for name, path in paths.items() if readers.kind_of(name)}
    if not named:
        raise DataError(
            f"{source.local} has no document", hint=f"known: {', '.join(readers.KINDS)}"
        )
    if len(named) > MAX_FILES:
        raise DataError(
            f"{source.local} has more than {MAX_FILES:,} documents",
            hint="name fewer: path: FOLDER/2026",
        )
    return named


def _listed(source: Source) -> tuple[Path, dict[str, Path]]:
    """Returns (the folder, all its files by name); a name that is
    not UTF-8 is written with escapes.
    """
    if not is_several(source.local):
        require_file(source.local)
        root, paths = source.local.parent, {source.local.name: source.local}
    else:
        root, paths = files_below(source.local)
    return root, {
        name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"): path
        for name, path in sorted(paths.items())
    }


def kinds(source: Source) -> set[str]:
    """The kinds of the documents of a source, values of KINDS; none where it has no document."""
    with contextlib.suppress(SlmctlError, OSError):
        return set(map(readers.kind_of, files(source)))
    return set()


def key(source: Source) -> str:
    """A hash of all that a copy depends on: names and contents of the files, the answers, and how
    they are read.

    Raises:
        DataError: There is no document, or a file cannot be read.
    """
    joined = source.answers
    try:
        contents = [[name, _digest(path, state(path))] for name, path in _all_read(source).items()]
    except OSError as error:
        raise DataError(
            f"{error.filename} cannot be read: {(error.strerror or str(error)).lower()}"
        ) from None
    form = joined.model_dump(exclude={"path"}) if isinstance(joined, AnswerTable) else joined
    parts = [VERSION, contents, form, scanned(source)]
    return hashlib.sha256(canonical(parts)).hexdigest()[:16]


def _all_read(source: Source) -> dict[str, Path]:
    """The documents of a source and the files with their answers, by name."""
    named = files(source)
    if isinstance(source.answers, AnswerTable):
        require_file(source.answers.path)
        return named | {"": source.answers.path}
    return named | (answers.json_beside(_listed(source)[1]) if source.answers is not None else {})


def changed(source: Source) -> DataError:
    """The error for documents that changed after they were hashed, or while they were read."""
    return DataError(
        f"the documents of {source.name or source.local.name} changed while they were read",
        hint="run it again when no program writes there",
    )


@functools.lru_cache(maxsize=2 * MAX_FILES)
def _digest(path: Path, state: tuple[tuple[int, ...], ...]) -> str:
    """The hash of a file's content; cached, since a project's files are listed often."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def scanned(source: Source) -> str:
    """The treatment of pages without text: `reject`, `keep` or `read`."""
    return source.documents.scanned if source.documents is not None else "reject"


def write_rows(source: Source, out: IO[bytes], limits: SourceLimits) -> None:
    """Write the documents of a source as JSONL, and say which of them, and which answers, cannot be
    used.

    Raises:
        DataError: There is no document, one changes meanwhile, the answers cannot be read or
            joined, or a limit is reached.
        ModuleNotFoundError: The package that reads PDF is not installed.
    """
    before = state(*_all_read(source).values())
    named, joined = files(source), _joined(source)
    title, keep = source.name or source.local.name, scanned(source) == "keep"
    unread: list[str] = []
    pictures = _Pictures()
    unused = 0
    end = time.monotonic() + limits.timeout_s
    left = limits.size_bytes
    count = 0
    with console.progress(f"reading {console.shown(title, 60)}", len(named), "documents") as meter:
        for reply in _replies(source, named):
            pictures.take(reply)
            own = _fault_of(reply, keep=keep)
            row = _row(reply, own, joined)
            line = json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
            count, left = count + 1, left - len(line)
            unused += FAULT in row
            if FAULT in row and (own or joined is None or row["file"] not in joined.lacking):
                unread.append(str(row[FAULT]))
            if left < 0:
                raise bounded_copy.too_large(title, limits)
            if time.monotonic() > end:
                raise bounded_copy.too_slow(title, limits, "fewer documents")
            out.write(line)
            meter.advance()
    if state(*_all_read(source).values()) != before:
        raise changed(source)
    not_used = f", {unused:,} not used" if unused else ""
    console.say(f"  {title}: {console.count(count, 'document')}{not_used}")
    pictures.say()
    _say_others(source, named, joined)
    for note in [*_first(unread), *(joined.notes() if joined is not None else ())]:
        console.say(f"  {console.shown(note, 300)}")


def _first(unread: Sequence[str]) -> list[str]:
    """The first of these sentences, and how many more there are."""
    if len(unread) <= _NAMED:
        return [*unread]
    return [*unread[:_NAMED], f"and {len(unread) - _NAMED:,} more, see rejected.jsonl"]


def _say_others(source: Source, read: Collection[str], joined: Joined | None) -> None:
    """Say which files of a folder are not read as documents."""
    others = {name: path for name, path in _listed(source)[1].items() if name not in read}
    tables = [name for name, path in others.items() if known_format(path)]
    _say_left_out("of other kinds", [name for name in others if name not in tables])
    if joined is None:
        _say_left_out("with rows, not texts,", tables)
        hidden = files_below(source.local, skipped=True)[1] if is_several(source.local) else ()
        _say_left_out("with a name that begins with '.', '_' or '~$'", sorted(hidden))


class _Pictures:
    """Pages that were recognised, and how surely."""

    def __init__(self) -> None:
        self.pages = self.bare = self.recognised = 0
        self.least = (1.0, "")

    def take(self, reply: JsonObject) -> None:
        """Count the pages of a reply, and take out what is said of them alone."""
        recognised, certainty = reply.pop("recognised", 0), reply.pop("certainty", 1.0)
        self.pages += reply.get("pages", 0)
        self.bare += reply.get("bare", 0)
        self.recognised += recognised
        self.least = min(self.least, (certainty, reply["file"]))

    def say(self) -> None:
        """Say the share of such pages and which document is the least certain, or how to have
        pages recognised.
        """
        if self.bare:
            console.say(
                "  to have scanned pages read: documents: {scanned: read} in the source, and "
                + pip_line("ocr")
            )
        if not self.recognised:
            return
        certainty, name = self.least
        text = (
            f"{self.recognised:,} of {console.count(self.pages, 'page')} recognised in pictures; "
            f"least certain: {name}, {console.percent(certainty)}"
        )
        console.say(f"  {console.shown(text, 300)}")


def _say_left_out(what: str, names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
        left_out = (
            f"{console.count(len(names), 'file')} {what} left out: "
            f"{', '.join(names[:_NAMED])}{more}"
        )
        console.say(f"  {console.shown(left_out, 300)}")


def _joined(source: Source) -> Joined | None:
    if source.answers is None:
        return None
    names = list(files(source))
    if isinstance(source.answers, AnswerTable):
        return answers.of_table(source.answers, names)
    return answers.of_json(_listed(source)[1], names)


def _fault_of(reply: JsonObject, *, keep: bool) -> str:
    """Why a document cannot be read as a whole; '' for one that can."""
    bare = reply.pop("bare", 0)
    if "fault" in reply:
        return str(reply["fault"])
    if bare and not keep:
        have = "page has" if reply["pages"] == 1 else "pages have"
        return f"{bare} of {reply['pages']} {have} {NO_TEXT}"
    return "" if str(reply.get("text", reply["file"])).strip() else "holds no text"


def _row(reply: JsonObject, fault: str, joined: Joined | None) -> JsonObject:
    """A document with its answer, or with the reason why it cannot be
    used: its own fault goes before a lack.
    """
    name = reply["file"]
    answer: JsonObject = {}
    if joined is not None:
        try:
            answer = joined.take(name)
        except DataError as error:
            if error.hint:  # an answer that two documents may have, which is a fault of the table
                raise
            fault = fault or error.message
    if fault:
        return {"file": name, FAULT: f"{name}{': ' if fault[:1].isdigit() else ' '}{fault}"}
    return reply | answer


def _replies(source: Source, named: dict[str, Path]) -> Generator[JsonObject, None, None]:
    """The replies of the children: a row a document, or its fault."""
    root = _listed(source)[0].resolve()
    waiting: list[tuple[str, str]] = []
    for name, path in named.items():
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            yield {"file": name, "fault": "is a link to a file outside of the folder"}
        else:
            waiting.append((str(path), name))
    yield from read(waiting, recognise="all" if scanned(source) == "read" else "none")


def read(
    waiting: list[tuple[str, str]],
    *,
    seconds: int = SECONDS,
    recognise: Literal["none", "bounded", "all"] = "none",
) -> Generator[JsonObject, None, None]:
    """Read documents, (path, name) each: a row a document, or its fault.

    Args:
        seconds: Of CPU time for each of them.
        recognise: Which pages that are pictures: those that these seconds allow, or all, with so
            many seconds for each.
    """
    while waiting:
        done = 0
        try:
            request = {"files": waiting, "seconds": seconds, "recognise": recognise}
            with child.output(CHILD, request=json.dumps(request).encode()) as lines:
                for line in lines:
                    if not line.endswith(b"\n"):  # a killed child may leave half a line
                        continue
                    reply = json.loads(line)
                    if reply is None:
                        done += 1
                    else:
                        yield reply
        except child.DiedError as death:
            death.require_packages()
            if done == len(waiting):
                raise
            yield {"file": waiting[done][1], "fault": _why(death)}
            done += 1
        waiting = waiting[done:]


def _why(death: child.DiedError) -> str:
    if death.code == -signal.SIGXCPU:
        return "takes too much time"
    if death.code < 0 or death.out_of_memory:
        return "takes too much memory, or is so damaged that its reader ends"
    return f"is damaged: {death.words}"
