"""A file, a folder, a pattern, documents or a query -> a description of its
rows, which are read as in `prepare`.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slmctl.config import AnswerTable, DocumentReading, Source, SourceLimits, Sql, below
from slmctl.errors import DataError, UsageError
from slmctl.init.column_names import split_named
from slmctl.init.documents import DocumentFolder, documents_at
from slmctl.init.look import FirstLook, look
from slmctl.installation import is_installed
from slmctl.network.credentials import mask
from slmctl.sources import reviewed, snapshot, sql
from slmctl.sources.documents.folder import NO_TEXT
from slmctl.sources.rows import Row, files_of, form_of, is_several, listed, read_rows, require_file
from slmctl.sources.rows.files import FORMATS
from slmctl.sources.sql_address import with_file

MAX_SHEETS = 20  # sheets of a workbook, or tables of a database, that are read
LEAST_ROWS = 10  # of a sheet that may hold the data
QUERY_LIMITS = SourceLimits(timeout_s=120, size_gb=0.1)  # for a query of `init`
DOCUMENT_LIMITS = SourceLimits(timeout_s=1800, size_gb=1)  # for the documents of a folder
SCAN_LIMITS = SourceLimits(timeout_s=21_600, size_gb=1)  # for those with scanned pages
MAX_PARTS = 20  # most files that slmctl.yaml lists one by one because one of them is a split


@dataclass(frozen=True)
class SplitPart:
    """One of several files or sheets, of which at least one is named after a held-out split.

    Attributes:
        origin: Its keys in slmctl.yaml, in place of those of the whole source.
        split: The held-out split that it is named after; '' for rows that are split by shares.
        rows: Number of its usable rows that were counted.
    """

    origin: Mapping[str, object]
    split: str
    rows: int


@dataclass(frozen=True)
class RawData:
    """The rows of a source with their description.

    Attributes:
        title: Name of the source for the user.
        form: Format, encoding and the like, in words.
        origin: The keys of the source in slmctl.yaml, without columns; `path` and a database file
            are absolute.
        look: Description of the rows, of several sheets with the same columns together.
        rows: Reads all rows again.
        notes: Sentences about the source.
        parts: The files or sheets as separate sources, if one is held out; else empty.
        output: The columns of the answers, where the source itself names them, as `--output` has
            them.
        copies: Copies of documents by name, as `snapshot.gather` makes them.
    """

    title: str
    form: str
    origin: Mapping[str, object]
    look: FirstLook
    rows: Callable[[], Iterator[Row]] = field(repr=False)
    notes: tuple[str, ...] = ()
    parts: tuple[SplitPart, ...] = ()
    output: str | None = None
    copies: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def held_out(self) -> Counter[str]:
        """Held-out split -> number of rows in files or sheets that are named after it."""
        rows: Counter[str] = Counter()
        for part in self.parts:
            rows[part.split] += part.rows
        del rows[""]
        return rows


def read(source: str, root: Path, *, sheet: str | None = None, query: str | None = None) -> RawData:
    """Read and describe the rows of a file, a folder, a pattern or a query.

    Args:
        source: A path relative to `root`, or `sql:` with an address.
        sheet: A sheet, a table, or an array of a JSON object.
        query: The query of a `sql:` address.

    Raises:
        DataError: The rows cannot be read, or there is no header.
        NetworkError: The database cannot be reached.
        UsageError: The source does not exist, or a flag does not go with it.
    """
    if source.startswith("sql:"):
        return _of_query(source.removeprefix("sql:"), query, root)
    if query is not None:
        place = (
            "sqlite:///" + source
            if FORMATS.get(Path(source).suffix) == "sqlite"
            else "postgresql://HOST/DATABASE"
        )
        raise UsageError(
            "--query is for a database", hint=f"slmctl init sql:{place} --query SELECT…"
        )
    path = below(root, Path(source))
    if reviewed.is_reviewed(path):
        rows = _kept(Source(path=path), root)
        return RawData(
            path.name, "reviews, JSON Lines", {"path": path}, look(rows), lambda: iter(rows)
        )
    if (documents := documents_at(path, sheet)) is not None:
        return _of_documents(documents, root)
    if not is_several(path):
        require_file(path)
    parts = snapshot.gathered([Source(path=path, sheet=sheet)], root)  # files, so nothing is copied
    form = form_of(parts[0].local, **parts[0].reading)
    if sheet is None and len(form.sheets) > 1:
        return _of_sheets(path, form.sheets)
    counts: Counter[Path] = Counter()
    looked = look(_rows(parts, counts))
    _require_header(path, looked)
    origin: dict[str, object] = {"path": path} if sheet is None else {"path": path, "sheet": sheet}
    if form.encoding is not None and not form.encoding.certain and len(parts) == 1:
        # so that later versions of the file are read in the same way
        origin["encoding"] = form.encoding.name
    words = f"{len(parts)} files of {form.words}" if len(parts) > 1 else form.words
    files = files_of(path) if len(parts) > 1 else ()
    own = [
        (name, {"path": file} | ({"name": name} if "/" in name else {}), counts[file])
        for name, file in files
    ]
    return RawData(path.name, words, origin, looked, lambda: _rows(parts), parts=_parts(own))


def _rows(parts: Sequence[Source], counts: Counter[Path] | None = None) -> Iterator[Row]:
    """The rows of sources one after another; `counts` gets the number of usable rows by file."""
    for part in parts:
        for row in read_rows(part.local, **part.reading):
            if counts is not None and not row.fault:
                counts[part.local] += 1
            yield row


def _parts(files: Sequence[tuple[str, Mapping[str, object], int]]) -> tuple[SplitPart, ...]:
    """Files or sheets (name, keys, rows) as separate sources; () unless
    some, not all, are named after a split.
    """
    parts = tuple(SplitPart(origin, split_named(name), rows) for name, origin, rows in files)
    return (
        parts if len({bool(part.split) for part in parts}) == 2 and len(parts) <= MAX_PARTS else ()
    )


def _kept(source: Source, root: Path, limits: SourceLimits = QUERY_LIMITS) -> list[Row]:
    """The rows of a source that must be copied to be read; the copies are deleted afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        return list(_rows(snapshot.gather([source], Path(folder), limits, root=root)))


def _of_documents(documents: DocumentFolder, root: Path) -> RawData:
    """The documents of a folder, read as `prepare` does; scanned pages too, if a package for them
    is installed.
    """
    source = documents.source
    rows, copies = _copied(source, root, DOCUMENT_LIMITS)
    if is_installed("rapidocr") and any(row.fault.endswith(NO_TEXT) for row in rows):
        source = source.model_copy(update={"documents": DocumentReading(scanned="read")})
        rows, copies = _copied(source, root, SCAN_LIMITS)
    looked = look(rows, numbered=False)
    origin: dict[str, object] = {"path": source.local}
    if isinstance(source.answers, AnswerTable):
        origin["answers"] = {"path": source.answers.path, "file": source.answers.file}
    elif source.answers is not None:
        origin["answers"] = source.answers
    if source.documents is not None:
        origin["documents"] = source.documents.model_dump()
    useless = {("folder", "constant")} | {(column.name, "empty") for column in looked.columns}
    output = documents.output(
        [each.name for each in looked.columns if (each.name, each.kind) not in useless]
    )
    return RawData(
        source.local.name,
        documents.words,
        origin,
        looked,
        lambda: iter(rows),
        output=output,
        copies=copies,
    )


def _copied(source: Source, root: Path, limits: SourceLimits) -> tuple[list[Row], dict[str, bytes]]:
    """The rows of documents, and their copies by name."""
    with tempfile.TemporaryDirectory() as folder:
        rows = list(_rows(snapshot.gather([source], Path(folder), limits, root=root)))
        copies = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    return rows, copies


def _of_sheets(path: Path, sheets: Sequence[str]) -> RawData:
    """The sheets with the data: the largest one, and all others with the same columns."""
    looks: dict[str, FirstLook] = {}
    faults: list[str] = []
    for sheet in sheets[:MAX_SHEETS]:
        try:
            looked = look(read_rows(path, sheet=sheet))
        except DataError as error:  # a pivot or a legend may be no table
            faults.append(error.message)
            continue
        if (
            looked.rows >= LEAST_ROWS
            and len(looked.columns) > 1
            and any(c.kind == "text" for c in looked.columns)
        ):
            looks[sheet] = looked
    if not looks:
        least = (
            f"no sheet of {path.name} has a column with texts and {LEAST_ROWS} rows: "
            f"{listed(sheets)}"
        )
        raise DataError("; ".join([least, *faults]), hint="name one: --sheet NAME")
    largest = max(looks, key=lambda sheet: looks[sheet].rows)
    names = [column.name for column in looks[largest].columns]
    alike = [
        sheet
        for sheet, looked in looks.items()
        if [column.name for column in looked.columns] == names
    ]
    others = [sheet for sheet in sheets if sheet not in alike]
    parts = [Source(path=path, sheet=sheet) for sheet in alike]
    note = (
        f"of {len(sheets)} sheets or tables {listed(alike)} hold{'s' * (len(alike) == 1)} the rows"
    )
    note += f"; not used: {listed(others)}" if others else ", with the same columns"
    return RawData(
        title=path.name,
        form=form_of(path, sheet=largest).words,
        origin={"path": path, "sheet": alike[0] if len(alike) == 1 else alike},
        look=looks[largest] if len(alike) == 1 else look(_rows(parts)),
        rows=lambda: _rows(parts),
        notes=(note, *faults),
        parts=_parts([(sheet, {"sheet": sheet}, looks[sheet].rows) for sheet in alike]),
    )


def _of_query(url: str, query: str | None, root: Path) -> RawData:
    """The rows of a query, within QUERY_LIMITS."""
    if query is None:
        raise UsageError(
            "a sql: address needs --query",
            hint="--query 'SELECT text, label FROM tickets ORDER BY id'",
        )
    if mask(url) != url:
        raise UsageError(
            "the address of the database holds a password, which would stand in slmctl.yaml",
            hint="put it into a variable of the environment and write ${DB_PASSWORD} in its place",
        )
    rows = _kept(Source(sql=Sql(url=url, query=query)), root)
    here = with_file(url, lambda path: str((root / path).resolve()))
    title = f"the query on {sql.place(url).removeprefix('the ')}"
    return RawData(
        title, "SQL", {"sql": {"url": here, "query": query}}, look(rows), lambda: iter(rows)
    )


def _require_header(path: Path, looked: FirstLook) -> None:
    """Refuse a table without a header, recognised by a column
    name that is as long as a sentence.
    """
    odd = [
        column.name
        for column in looked.columns
        if len(column.name.split()) > 8 or len(column.name) > 80
    ]
    if odd:
        raise DataError(
            f"{path.name} has no header: its first row is "
            f"'{listed([column.name for column in looked.columns])}'",
            hint="add a first row with the names of the columns, such as text,label",
        )
