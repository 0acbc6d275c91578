"""Documents are answered as rows: their names and pages come back, with
the answer and the pages of its values.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import papers, tiny
from support.answered import TEXT, answer_file
from support.forks import Forks

from slmctl import console
from slmctl.inference.engine import Answer
from slmctl.models.prompts import Prompt
from slmctl.sources.rows import read_rows
from slmctl.stages.predict import row_snapshot
from slmctl.stages.predict.file_prediction import Job
from slmctl.task.contract import Task
from slmctl.task.documents import WindowForm

PLACE = {"path": "rent", "value": 400, "start": 3, "end": 6, "page": 2, "around": "a 400 b"}
TASK = Task(
    "extract", tiny.TEMPLATE, "<|im_end|>", schema={"type": "object"}, document=WindowForm(400, 50)
)


class Reader:
    """An answerer that finds one value on page 2 of every document, until it is stopped."""

    def __init__(self, text: str = '{"rent": 400}', *, stop_after: int | None = None) -> None:
        self.text, self.stop_after, self.asked = text, stop_after, 0

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Any]]:
        for index, _ in enumerate(prompts):
            if self.asked == self.stop_after:
                raise KeyboardInterrupt
            self.asked += 1
            yield index, Answer(self.text, "stop", 0.5, 1, 1, places=(PLACE, PLACE))  # type: ignore[arg-type]


def inbox(folder: Path) -> Path:
    return papers.write(
        folder / "inbox",
        {
            "a.pdf": papers.pdf(["refund my card", "or else"]),
            "sub/b.docx": papers.word("courier late"),
            "c.txt": "refund " * 6000,
            "locked.pdf": papers.pdf(["x"], password="secret"),
        },
    )


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("out.jsonl", [PLACE, PLACE]),
        ("out.xlsx", "rent: page 2"),
        ("out.csv", "rent: page 2"),
        ("out.parquet", "rent: page 2"),
    ],
)
def test_a_folder_is_answered_into_any_format(tmp_path: Path, name: str, places: object) -> None:
    target = tmp_path / name
    with row_snapshot.opened(inbox(tmp_path), target, None) as (path, format_name):
        job = Job(path, target, TEXT, format=format_name, columns=("file", "pages"))
        assert answer_file(Reader(), TASK, job) == (4, 1)
    rows = {row.columns["file"]: row.columns for row in read_rows(target)}
    assert list(rows) == ["a.pdf", "c.txt", "locked.pdf", "sub/b.docx"]
    assert {*rows["a.pdf"]} == {"file", "pages", "answer", "confidence", "valid", "places", "error"}
    assert (str(rows["a.pdf"]["pages"]), rows["a.pdf"]["places"]) == ("2", places)
    assert rows["locked.pdf"]["error"] == "locked.pdf is encrypted: its text needs a password"


@pytest.mark.parametrize("name", ["out.csv", "out.tsv"])
def test_a_file_name_moves_no_cursor_of_the_terminal_that_shows_the_table(
    tmp_path: Path, name: str
) -> None:
    papers.write(
        tmp_path / "inbox",
        {
            "a\x1b[31m.txt": "refund",
            "b\x9b2J\u202e.txt": "courier",
            "c\x07.pdf": papers.pdf(["x"], password="secret"),
        },
    )
    with row_snapshot.opened(tmp_path / "inbox", tmp_path / name, None) as (path, format_name):
        answer_file(
            Reader(),
            TASK,
            Job(path, tmp_path / name, TEXT, format=format_name, columns=("file", "pages")),
        )
    written = (tmp_path / name).read_text(encoding="utf-8")
    assert written == console.clean(written)
    rows = [row.columns for row in read_rows(tmp_path / name)]
    assert [row["file"] for row in rows] == [
        "a\\u001b[31m.txt",
        "b\\u009b2J\\u202e.txt",
        "c\\u0007.pdf",
    ]
    assert rows[2]["error"] == "c\\u0007.pdf is encrypted: its text needs a password"


TERMS = {
    "type": "object",
    "properties": {
        name: {} for name in ("rent", "open", "parties", "owner", "file", "=sum(a)", "end")
    },
}
ANSWER = json.dumps(
    {
        "rent": 400,
        "open": True,
        "parties": ["Ann GmbH", "=cmd()", 7],
        "owner": [{"name": "\ud83d"}],
        "file": "你",
        "=sum(a)": "=1+1",
    }
)
OWN = ["answer", "confidence", "valid", "places", "error"]


def answered(source: Path, target: Path, text: str = ANSWER, **more: Any) -> list[dict[str, Any]]:
    task = replace(TASK, schema=TERMS)
    with row_snapshot.opened(source, target, None) as (path, format_name):
        columns = ("file", "pages") if source.is_dir() else None
        answer_file(
            Reader(text), task, Job(path, target, TEXT, format=format_name, columns=columns, **more)
        )
    return [row.columns for row in read_rows(target)]


@pytest.mark.parametrize("name", ["out.csv", "out.tsv", "out.xlsx"])
def test_a_sheet_has_a_column_for_each_field(tmp_path: Path, name: str) -> None:
    rows = answered(inbox(tmp_path), tmp_path / name)
    mark = "" if name == "out.xlsx" else "'"  # before a cell that a spreadsheet would compute
    columns = [
        "file",
        "pages",
        "rent",
        "open",
        "parties",
        "owner",
        "answer.file",
        f"{mark}=sum(a)",
        "end",
        *OWN,
    ]
    assert list(rows[0]) == columns
    typed = name == "out.xlsx"
    assert rows[0] == {
        "file": "a.pdf",
        "pages": 2 if typed else "2",
        "rent": 400 if typed else "400",
        "open": True if typed else "true",
        "end": "",
        "parties": f"Ann GmbH; {mark}=cmd(); 7",
        "owner": '[{"name": "?"}]',
        "answer.file": "你",
        f"{mark}=sum(a)": f"{mark}=1+1",
        **{name: rows[0][name] for name in ("answer", "confidence")},
        "valid": True if typed else "true",
        "places": "rent: page 2",
        "error": "",
    }
    assert rows[2]["file"] == "locked.pdf" and rows[2]["rent"] == rows[2]["answer"] == ""


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_a_file_for_programs_has_the_object(tmp_path: Path, name: str) -> None:
    rows = answered(inbox(tmp_path), tmp_path / name)
    assert list(rows[0]) == ["file", "pages", *sorted(OWN, key=list(rows[0]).index)]
    assert rows[0]["answer"] == ANSWER


def test_fields_of_a_table_come_beside_its_own_columns(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("text;rent\ngrößer;300\n", encoding="cp1252")
    # which has no sign of the answer
    (row,) = answered(source, tmp_path / "out.csv", encoding="cp1252")
    assert (row["rent"], row["answer.rent"], row["file"]) == ("300", "400", "你")
    (row,) = answered(source, tmp_path / "cut.csv", '{"rent": 4', encoding="cp1252")
    assert (row["rent"], row["answer.rent"], row["answer"], row["valid"]) == (
        "300",
        "",
        '{"rent": 4',
        "false",
    )


def test_each_document_is_kept_as_it_ends_and_the_work_is_said_before(tmp_path: Path) -> None:
    # a folder was one chunk: its first answer was kept, and counted, when the last one had come
    source, target, said = inbox(tmp_path), tmp_path / "out.jsonl", list[str]()
    reader = Reader(stop_after=2)
    with row_snapshot.opened(source, target, None) as (path, format_name):
        job = Job(path, target, TEXT, format=format_name, columns=("file", "pages"))
        with pytest.raises(KeyboardInterrupt), console.recorded(said.append):
            answer_file(reader, TASK, job)
        parts = -(-len("refund " * 6000) // 350)
        assert said[0].startswith("  4 pages, ") and parts < int(said[0].split()[2]) < 2 * parts
        again = Reader()
        with console.recorded(said.append):
            assert answer_file(again, TASK, job) == (4, 1)
    assert again.asked == 1
    assert any("3 of 4 rows answered by an earlier run" in line for line in said)


def test_a_script_learns_what_a_folder_s_answers_lack(
    stages: Forks, tiny_run: Path, tmp_path: Path
) -> None:
    folder = papers.write(
        tmp_path / "inbox", {"a.pdf": papers.pdf(["refund my card"]), "empty.txt": ""}
    )
    done = stages.run(
        tiny_run, "predict", "--input", str(folder), "--output", str(tmp_path / "out.jsonl")
    )
    tiny.ok(done)
    assert "2 rows written" in done.stderr and "1 with an error" in done.stderr
    first, second = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (first["file"], first["pages"], first["answer"] in tiny.WORDS) == ("a.pdf", 1, True)
    assert (second["file"], second["error"]) == ("empty.txt", "empty.txt is empty")
    (folder / "answers.csv").write_text("file,answer\na.pdf,x\n")  # what the model has learned from
    tiny.ok(
        stages.run(
            tiny_run, "predict", "--input", str(folder), "--output", str(tmp_path / "again.jsonl")
        )
    )
    assert (tmp_path / "again.jsonl").read_text() == (tmp_path / "out.jsonl").read_text()
    papers.write(folder, {"notes.xlsx": "x", "old.doc": "x", "~$a.docx": "x"})
    strict = stages.run(
        tiny_run,
        "predict",
        "--input",
        str(folder),
        "--output",
        str(tmp_path / "strict.jsonl"),
        "--strict",
    )
    assert strict.returncode == 3, strict.stderr
    assert (tmp_path / "strict.jsonl").read_text() == (tmp_path / "out.jsonl").read_text()
    assert "error: 1 of 2 rows have an error" in strict.stderr
    for passed_over in (
        "1 file of other kinds left out: old.doc",
        "2 files with rows, not texts, left out: answers.csv, notes.xlsx",
        "1 file with a name that begins with '.', '_' or '~$' left out: ~$a.docx",
    ):
        assert passed_over in strict.stderr
    (folder / "empty.txt").unlink()
    done = stages.run(
        tiny_run,
        "predict",
        "--input",
        str(folder),
        "--output",
        str(tmp_path / "all.jsonl"),
        "--strict",
    )
    assert done.returncode == 0, done.stderr
    inside = stages.run(
        tiny_run, "predict", "--input", str(folder), "--output", str(folder / "out.jsonl")
    )
    assert (inside.returncode, "lies in the folder of --input" in inside.stderr) == (2, True)
