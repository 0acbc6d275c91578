"""The form and the columns of each source, before its rows are
read; uncertain guesses are printed.
"""

from __future__ import annotations

from collections.abc import Sequence

from slmctl import console
from slmctl.config import Source
from slmctl.errors import DataError
from slmctl.sources.rows import FileForm, form_and_columns, listed


def forms_and_columns(
    sources: Sequence[Source], *, quiet: bool = False
) -> tuple[list[FileForm], tuple[tuple[str, ...], ...]]:
    """The form and the columns of each source; nothing is printed if `quiet`.

    Raises:
        DataError: A source cannot be read or holds no rows, or its parts differ in their columns.
        UsageError: A source has no such sheet or encoding.
    """
    forms: list[FileForm] = []
    all_columns: list[Sequence[str]] = []
    # of the parts of one source, the first with rows
    first: dict[str, tuple[Source, list[str]]] = {}
    remarked: set[tuple[str, str]] = set()
    for source in sources:
        form, columns = form_and_columns(source.local, **source.reading)
        if not quiet:
            console.detail(f"{source.title}: {form.words}")
            _say_guesses(source, form, remarked)
        if columns and source.whole:
            other, expected = first.setdefault(source.whole, (source, columns))
            if form.format not in ("jsonl", "json"):  # there each row has its own
                _require_same(source, columns, other, expected)
        forms.append(form)
        all_columns.append(columns)
    for k, source in enumerate(sources):
        if all_columns[k]:
            continue
        if source.whole not in first:
            what = source.whole or source.title
            hint = "a header and at least one row are needed"
            raise DataError(f"{what} holds no rows", hint=hint)
        all_columns[k] = first[source.whole][1]  # a part without rows
    return forms, tuple(map(tuple, all_columns))


def _say_guesses(source: Source, form: FileForm, remarked: set[tuple[str, str]]) -> None:
    """Print the guessed encoding and the rows skipped above the
    header, once for all parts of a source.
    """
    remarks = {}
    encoding = form.encoding
    if encoding is not None and not encoding.certain:
        remarks["encoding"] = (
            f"is taken for {encoding.title}; to be certain: encoding: {encoding.name}"
        )
    if form.header_row > 1 and source.header_row is None:
        line = "line" if form.delimiter else "row"
        remarks["header"] = (
            f"has its header in {line} {form.header_row}; what is above it is no row"
        )
    whole = source.whole or source.title
    for kind, remark in remarks.items():
        if (whole, kind) not in remarked:
            remarked.add((whole, kind))
            console.say(f"  {source.title} {remark}")


def _require_same(
    source: Source, columns: Sequence[str], other: Source, expected: Sequence[str]
) -> None:
    lacking = [column for column in expected if column not in columns]
    more = [column for column in columns if column not in expected]
    if not lacking and not more:
        return
    column = console.shown((lacking or more)[0], 60)
    what = f"lacks the column '{column}'" if lacking else f"has a column '{column}'"
    title = source.title
    raise DataError(
        f"{title} {what}, unlike {other.title}: files and sheets of one source have the same "
        "columns",
        hint=f"name them as sources of their own; the columns of {title}: {listed(columns)}",
    )
