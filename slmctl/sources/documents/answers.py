"""The answers to documents, from a table that names their files or from a JSON file beside each."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from slmctl import console
from slmctl.artifacts import bounded_json
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.config import AnswerTable
from slmctl.errors import DataError
from slmctl.normal_forms import in_normal_form
from slmctl.sources.documents import readers
from slmctl.sources.rows import columns_of, listed, read_rows
from slmctl.sources.rows.cells import MAX_DEPTH, Cell, as_text

COLUMNS = ("file", "folder", "text", "pages", "subject", "from", "date")  # of a document
JSON_COLUMN = "answer"  # of the answers in JSON files
_NAMED = 5  # names that a sentence lists
_SLIPS = 2  # characters by which two names of one file differ
_COMPARED = 300  # names on either side: a table of another folder has many


class Joined:
    """Answers by the name of a document's file: its path in the folder or its name there, with or
    without suffix.

    Args:
        title: The name of the table, for messages.
        answers: Answers by name as it is written there.
        files: The files of the documents.
        faults: Rows of the table that cannot be read, each with its place and its fault.
    """

    def __init__(
        self,
        title: str,
        answers: Mapping[str, JsonObject | DataError],
        files: Iterable[str],
        faults: Sequence[str] = (),
    ) -> None:
        self.title = title
        self._faults = faults
        self._answers = {_form(name): answer for name, answer in answers.items()}
        self._shown = {_form(name): name for name in answers}
        self._files = {_form(name) for name in files}
        self._taken: dict[str, str] = {}  # answer -> its document
        self.lacking: list[str] = []  # documents without an answer

    def take(self, name: str) -> JsonObject:
        """The answer of a document, in its columns.

        Raises:
            DataError: It has none, its JSON cannot be read, or another document has the same one.
        """
        own, *others = _forms(name)
        free = (form for form in others if form in self._answers and form not in self._files)
        key = own if own in self._answers else next(free, None)
        if key is None:
            self.lacking.append(name)
            raise DataError(f"has no answer in {self.title}")
        if (other := self._taken.setdefault(key, name)) != name:
            raise DataError(
                f"'{self._shown[key]}' in {self.title} may be the answer of {other} and of {name}",
                hint="write the path in the folder, such as 2024/contract.pdf",
            )
        answer = self._answers[key]
        if isinstance(answer, DataError):
            raise answer
        return answer

    def notes(self) -> Iterator[str]:
        """Sentences about answers that cannot be read, documents and
        answers without each other, and likely slips.
        """
        if self._faults:
            yield (
                f"{console.count(len(self._faults), 'row')} of {self.title} cannot be read; "
                f"{self._faults[0]}"
            )
        left = [shown for form, shown in self._shown.items() if form not in self._taken]
        for names, what, where in (
            (self.lacking, "document", f"without an answer in {self.title}"),
            (left, "answer", f"of {self.title} without a document"),
        ):
            if names:
                more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
                plural = "s" if len(names) > 1 else ""
                yield f"{len(names)} {what}{plural} {where}: {listed(names[:_NAMED])}{more}"
        for document, answer in list(_probable(self.lacking[:_COMPARED], left[:_COMPARED]))[
            :_NAMED
        ]:
            yield f"{document} and {answer} are probably the same: rename one"


def _form(name: str) -> str:
    """A name by which two spellings of one file are equal: case,
    slashes and composed letters aside.
    """
    return in_normal_form(name.strip().replace("\\", "/"), "NFC").casefold().removeprefix("./")


def _forms(name: str) -> list[str]:
    """The names by which an answer may call a file, the most exact one first."""
    path = PurePosixPath(_form(name))
    names = [str(path), path.name]
    return (
        names
        if "#" in path.suffix
        else [str(path), str(path.with_suffix("")), path.name, path.stem]
    )


def _probable(documents: Sequence[str], named: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(document, name of an answer) pairs that differ by a slip, where each is like no other."""
    by_numbers = defaultdict[tuple[str, ...], list[str]](list)
    for name in named:
        by_numbers[_numbers(name)].append(name)
    alike = [
        (each, name)
        for each in documents
        for name in by_numbers[_numbers(each)]
        if _is_slip(each, name)
    ]
    met = Counter(name for pair in alike for name in set(pair))
    yield from (pair for pair in alike if met[pair[0]] == met[pair[1]] == 1)


def _stem(name: str) -> str:
    """The name of a file without folder and without the suffix of a document."""
    path = PurePosixPath(_form(name))
    return path.stem if readers.kind_of(path.name) else path.name


def _numbers(name: str) -> tuple[str, ...]:
    """The numbers in a name: `contract_2` and `contract_3` differ
    by a character, and are two files.
    """
    return tuple(digits.lstrip("0") for digits in re.findall("[0-9]+", _stem(name)))


def _is_slip(name: str, other: str) -> bool:
    """True for names that differ in a few of their characters."""
    from rapidfuzz.distance import OSA  # which listing projects does not need

    stem, slips = _stem(name), OSA.distance(_stem(name), _stem(other), score_cutoff=_SLIPS)
    return slips <= min(_SLIPS, len(stem) // 3)


def of_table(answers: AnswerTable, files: Sequence[str]) -> Joined:
    """The rows of a table, without the column that names the file.

    Raises:
        DataError: The table cannot be read, lacks the column, has one of a document, or names a
            file twice.
    """
    title = answers.path.name
    columns = columns_of(answers.path, sheet=answers.sheet)
    if answers.file not in columns:
        raise DataError(
            f"{title} has no column '{answers.file}'", hint=f"its columns: {listed(columns)}"
        )
    if own := [name for name in columns if name in COLUMNS and name != answers.file]:
        raise DataError(
            f"{title} has a column '{own[0]}', as documents have", hint="give it another name there"
        )
    rows: dict[str, dict[str, Cell]] = {}
    numbers: dict[str, int] = {}
    faults: list[str] = []
    for row in read_rows(answers.path, sheet=answers.sheet):
        if row.fault:
            faults.append(f"{console.place(title, row.number)}: {row.fault}")
        if row.fault or not (name := as_text(row.columns.get(answers.file))):
            continue
        if (first := numbers.setdefault(_form(name), row.number)) != row.number:
            raise DataError(
                f"{title} names '{name}' twice, in rows {first} and {row.number}",
                hint="a document has one answer: join the rows, or remove one",
            )
        rows[name] = {
            column: row.columns.get(column, "") for column in columns if column != answers.file
        }
    return Joined(title, rows, files, faults)


def json_beside(paths: Mapping[str, Path]) -> dict[str, Path]:
    """The JSON files among the files of a folder."""
    return {name: path for name, path in paths.items() if path.suffix.lower() == ".json"}


def of_json(paths: Mapping[str, Path], files: Sequence[str]) -> Joined:
    """The JSON files as answers of the documents with the same name, or
    with the same name and `.json` after it.
    """
    answers = {
        name[: -len(".json")]: _parsed(name, path) for name, path in json_beside(paths).items()
    }
    return Joined("the JSON files beside", answers, files)


def _parsed(name: str, path: Path) -> JsonObject | DataError:
    try:
        value = json.loads(bounded_json.read_bytes(path, error=DataError, follow=True))
        if bounded_json.is_deeper(value, MAX_DEPTH):
            return DataError(f"has an answer, {name}, that is nested more than {MAX_DEPTH} deep")
    except (ValueError, RecursionError) as error:
        return DataError(f"has an answer, {name}, that is not JSON: {str(error)[:100]}")
    except DataError as error:
        return error
    return {JSON_COLUMN: value}


def matched(names: Iterable[str], files: Iterable[str]) -> int:
    """The number of files that one of the names may mean."""
    named = set(map(_form, names))
    return sum(any(form in named for form in _forms(file)) for file in files)
