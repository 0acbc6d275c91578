"""The contracts that no generator wrote: their terms, and that they
share no run of words with the made ones.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from support import EXAMPLES, made_contracts

from slmctl.config import AnswerTable, Source, SourceLimits
from slmctl.init import project
from slmctl.sources.documents import folder, readers
from slmctl.stages.predict import row_snapshot
from slmctl.task.evidence import Evidence

FOLDER = EXAMPLES / "contracts_other_words"
ALWAYS = {"supplier", "contract_no", "start_date"}  # the schema has no null for these
LOCATED = ("supplier", "contract_no", "contact_email", "start_date", "annual_fee")
RUN = 6  # words in a row that no document shares with a made one
Row = Mapping[str, Any]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """The rows as `prepare` reads them, a document each."""
    answers = AnswerTable(path=FOLDER / "terms.csv", file="Datei")
    out = io.BytesIO()
    folder.write_rows(Source(path=FOLDER / "contracts", answers=answers), out, SourceLimits())
    return [json.loads(line) for line in out.getvalue().splitlines()]


def answer(row: Row) -> dict[str, Any]:
    """A row's terms as JSON, as the template's `output` writes them."""
    schema = json.loads((EXAMPLES / "contract_terms.schema.json").read_text(encoding="utf-8"))
    terms: dict[str, Any] = {name: row[name] or None for name in schema["properties"]}
    terms["annual_fee"] = float(row["annual_fee"]) if row["annual_fee"] else None
    terms["deliverables"] = [
        part.strip() for part in row["deliverables"].split(";") if part.strip()
    ]
    jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(
        terms
    )
    return terms


def columns(rows: list[Row]) -> dict[str, list[Any]]:
    """The answers of all rows by field."""
    answers = [answer(row) for row in rows]
    return {name: [each[name] for each in answers] for name in answers[0]}


def runs_of_words(text: str) -> Iterator[tuple[str, ...]]:
    """All runs of RUN words in a text, without case and signs."""
    words = re.findall(r"\w+", text.casefold())
    yield from zip(*(words[k:] for k in range(RUN)), strict=False)


def test_each_of_forty_documents_has_terms_that_satisfy_the_schema(rows: list[Row]) -> None:
    assert len(rows) == 40
    assert not [row for row in rows if "text" not in row], (
        "a document that is not read, or has no answer"
    )
    kinds = [Path(row["file"]).suffix for row in rows]
    assert (
        kinds.count(".eml"),
        kinds.count(".html"),
        kinds.count(".txt") + kinds.count(".md"),
    ) == (6, 6, 28)
    stated = {name: sum(bool(value) for value in column) for name, column in columns(rows).items()}
    assert stated.keys() == {
        *ALWAYS,
        "notice_period",
        "annual_fee",
        "governing_law",
        "contact_email",
        "deliverables",
    }
    for name, count in stated.items():
        assert (count == 40) if name in ALWAYS else (25 <= count <= 37), (name, count)
    assert len(set(columns(rows)["contract_no"])) == 40


def test_the_table_has_the_columns_of_the_workbook() -> None:
    workbook = pytest.importorskip("python_calamine").CalamineWorkbook
    sheet = workbook.from_filelike(
        io.BytesIO(made_contracts.files()["data/terms.xlsx"])
    ).get_sheet_by_index(0)
    with (FOLDER / "terms.csv").open(encoding="utf-8", newline="") as stream:
        head, *lines = csv.reader(stream)
    assert head == sheet.to_python()[0]
    assert [line[0] for line in lines] == sorted(
        path.name for path in (FOLDER / "contracts").iterdir()
    )


def test_values_stand_in_their_documents(rows: list[Row]) -> None:
    texts = [Evidence(row["text"]) for row in rows]
    for name, column in columns(rows).items():
        places = [
            (text, value)
            for text, values in zip(texts, column, strict=True)
            for value in (values if isinstance(values, list) else [values])
            if value
        ]
        found = sum(bool(text.spans(value)) for text, value in places)
        assert found >= (0.9 if name in LOCATED else 0.95) * len(places), (name, found, len(places))


@pytest.mark.parametrize("name", ["supplier", "notice_period", "governing_law"])
def test_terms_are_spelled_as_in_the_document(rows: list[Row], name: str) -> None:
    assert not [
        (row["file"], row[name]) for row in rows if row[name] not in " ".join(row["text"].split())
    ]


def test_half_are_german_and_a_few_are_long(rows: list[Row]) -> None:
    german = [row for row in rows if re.search(r"\b(der|die|das|nicht)\b", row["text"])]
    assert len(german) == 20
    sizes = sorted(len(row["text"]) for row in rows)
    assert 3 <= sum(size > 8000 for size in sizes) <= 5
    assert sizes[0] > 800
    assert max(row["pages"] for row in rows) == 6


def test_no_run_of_six_words_stands_in_the_made_contracts_too(rows: list[Row]) -> None:
    # the phrases of all of them
    made = {
        run
        for name, data in made_contracts.files().items()
        if name.endswith(".docx")
        for run in runs_of_words(readers.read(data, "docx").text)
    }
    assert len(made) > 10_000
    assert {
        row["file"]: run for row in rows for run in runs_of_words(row["text"]) if run in made
    } == {}


def test_people_and_numbers_are_invented(rows: list[Row]) -> None:
    for row in rows:
        hosts = re.findall(
            r"[\w.+-]+@\s?([\w.-]+\w)",
            (FOLDER / "contracts" / row["file"]).read_text(encoding="utf-8"),
        )
        assert all(
            re.fullmatch(r"example\.(com|org|net)|[\w-]+\.example", host) for host in hosts
        ), row["file"]
        assert not re.search(r"\b555-(?!01\d\d\b)", row["text"]), row["file"]


def test_predict_takes_the_folder_as_documents_and_no_project_gets_it(tmp_path: Path) -> None:
    with row_snapshot.opened(FOLDER / "contracts", tmp_path / "other.csv", None) as (
        path,
        format_name,
    ):
        assert (format_name, len(path.read_text(encoding="utf-8").splitlines())) == ("jsonl", 40)
    project.copy_template("contract-terms", tmp_path / "desk")
    held = {path.stem for path in (FOLDER / "contracts").iterdir()} | {FOLDER.name, "terms.csv"}
    assert not held & {
        name for path in (tmp_path / "desk").rglob("*") for name in (path.stem, path.name)
    }
