"""Documents are answered as rows: their names and pages come back, with the answer and the pages of its values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support import papers, tiny
from support.answered import TEXT, answer_file
from support.forks import Forks

from slmctl.inference.engine import Answer
from slmctl.models.prompts import Prompt
from slmctl.sources.rows import read_rows
from slmctl.stages.predict import row_snapshot
from slmctl.stages.predict.file_prediction import Job
from slmctl.task.contract import Task
from slmctl.task.documents import WindowForm

PLACE = {"path": "rent", "value": 400, "start": 3, "end": 6, "page": 2, "around": "a 400 b"}
TASK = Task("extract", tiny.TEMPLATE, "<|im_end|>", schema={"type": "object"}, document=WindowForm(400, 50))


class Reader:
    """An answerer that finds one value on page 2 of every document."""

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Any]]:
        for index, _ in enumerate(prompts):
            yield index, Answer('{"rent": 400}', "stop", 0.5, 1, 1, places=(PLACE, PLACE))  # type: ignore[arg-type]


def inbox(folder: Path) -> Path:
    return papers.write(folder / "inbox", {
        "a.pdf": papers.pdf(["refund my card", "or else"]), "sub/b.docx": papers.word("courier late"),
        "c.txt": "refund " * 6000, "locked.pdf": papers.pdf(["x"], password="secret"),
    })  # fmt: skip


@pytest.mark.parametrize(
    ("name", "places"),
    [("out.jsonl", [PLACE, PLACE]), ("out.xlsx", "rent: page 2"), ("out.csv", "rent: page 2"),
     ("out.parquet", "rent: page 2")],
)  # fmt: skip
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


def test_a_folder_from_the_command_line(stages: Forks, tiny_run: Path, tmp_path: Path) -> None:
    folder = papers.write(tmp_path / "inbox", {"a.pdf": papers.pdf(["refund my card"]), "empty.txt": ""})
    done = stages.run(tiny_run, "predict", "--input", str(folder), "--output", str(tmp_path / "out.jsonl"))
    tiny.ok(done)
    assert "2 rows written" in done.stderr and "1 with an error" in done.stderr
    first, second = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (first["file"], first["pages"], first["answer"] in tiny.WORDS) == ("a.pdf", 1, True)
    assert (second["file"], second["error"]) == ("empty.txt", "empty.txt is empty")
    (folder / "answers.csv").write_text("file,answer\na.pdf,x\n")  # what the model has learned from
    tiny.ok(stages.run(tiny_run, "predict", "--input", str(folder), "--output", str(tmp_path / "again.jsonl")))
    assert (tmp_path / "again.jsonl").read_text() == (tmp_path / "out.jsonl").read_text()
    inside = stages.run(tiny_run, "predict", "--input", str(folder), "--output", str(folder / "out.jsonl"))
    assert (inside.returncode, "lies in the folder of --input" in inside.stderr) == (2, True)
