"""A user's file comes back as it was, answered: every format, in
order, once, whatever happens on the way.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import itertools
import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from support import endpoint, odd_files, teacher, tiny, workbooks
from support.answered import TEXT, answer_file
from support.endpoint import fails, says
from support.forks import Forks
from support.scale import sampled
from support.servers import settles

from slmctl.artifacts.artifact import Artifact
from slmctl.errors import DataError, LockedError, NetworkError, StageError, UsageError
from slmctl.inference.engine import Answer
from slmctl.inference.supervised_child import EngineDiedError, EngineError
from slmctl.models.prompts import Prompt
from slmctl.network import endpoint_pool
from slmctl.network.endpoint_pool import EndpointPool
from slmctl.sources.rows import read_rows
from slmctl.stages.predict import file_prediction, row_answers, workbook_writer
from slmctl.stages.predict.endpoint_answerer import EndpointAnswerer
from slmctl.stages.predict.file_prediction import Job
from slmctl.stages.predict.row_answers import RowInput
from slmctl.task.contract import Task

ROWS = [
    {"id": "1", "text": "refund my card", "note": "a, b"},
    {"id": "2", "text": "", "note": 'say "hi"'},
    {"id": "3", "text": "courier\nlate", "note": ""},
    {"id": "4", "text": "=cmd()", "note": "你好"},
]
TASK = Task("generate", tiny.TEMPLATE, "<|im_end|>")


Said = Answer | EngineError


def echo(text: str) -> Said:
    return EngineError("too bad") if text == "bad" else Answer(f"<{text}>", "stop", 0.5, 1, 1)


class Echo:
    """An answerer at once: by default the answer is the question,
    and the last of a batch comes first.
    """

    def __init__(self, stop_after: int | None = None, say: Callable[[str], Said] = echo) -> None:
        self.asked: list[str] = []
        self.stop_after, self.say = stop_after, say

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Said]]:
        for index in reversed(range(len(prompts))):
            text = prompts[index].messages[-1]["content"]
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(text)
            yield index, self.say(text)


def texts(count: int) -> list[str]:
    return [f"row {k}" for k in range(count)]


def lines(path: Path, values: Sequence[str]) -> Path:
    path.write_text(
        "".join(json.dumps({"text": text, "n": k}) + "\n" for k, text in enumerate(values))
    )
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [row.columns for row in read_rows(path)]


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


# Formats


TARGETS = [
    "out.csv",
    "out.tsv",
    "out.jsonl",
    "out.parquet",
    "out.csv.gz",
    "out.jsonl.gz",
    "out.xlsx",
]


SOURCES = ["in.csv", "in.tsv", "in.jsonl", "in.parquet", "in.jsonl.gz"]
QUICK = [
    *((SOURCES[0], target) for target in TARGETS),
    *((source, TARGETS[2]) for source in SOURCES),
]


@pytest.mark.parametrize(("source", "target"), sampled(itertools.product(SOURCES, TARGETS), QUICK))
def test_every_format_in_and_out(tmp_path: Path, source: str, target: str) -> None:
    path, out = tmp_path / source, tmp_path / target
    wanted: list[dict[str, Any]] = [
        {"text": f"say {k}", "n": k, "share": k / 4, "more": "x\ty" if k else None}
        for k in range(7)
    ]
    if source.endswith(".parquet"):
        parquet.write_table(pa.Table.from_pylist(wanted), path)
    elif ".jsonl" in source:
        raw = "".join(json.dumps(row) + "\n" for row in wanted).encode()
        path.write_bytes(gzip.compress(raw) if source.endswith(".gz") else raw)
    else:
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(
                stream, list(wanted[0]), delimiter="\t" if source == "in.tsv" else ","
            )
            writer.writeheader()
            writer.writerows(wanted)
    assert answer_file(Echo(), TASK, Job(path, out, TEXT)) == (7, 0)
    given, found = read(path), read(out)
    if target == "out.xlsx":
        given = [
            {name: "" if cell is None else cell for name, cell in row.items()} for row in given
        ]
    if ".csv" in target or target == "out.tsv":  # these hold texts alone
        given = [
            {name: "" if cell is None else str(cell) for name, cell in row.items()} for row in given
        ]
    assert [{name: row[name] for name in given[0]} for row in found] == given
    assert [row["answer"] for row in found] == [f"<say {k}>" for k in range(7)]
    assert [float(row["confidence"]) for row in found] == [0.5] * 7
    assert hidden(tmp_path) == []


@pytest.mark.parametrize(
    ("encoding", "mark", "delimiter", "end"),
    [
        ("cp1252", "", ";", "\r\n"),
        ("utf-8", "\ufeff", ";", "\r\n"),
        ("utf-16-le", "\ufeff", "\t", "\n"),
        ("utf-16-be", "", ",", "\n"),
        ("utf-8", "", ",", "\n"),
        ("utf-8", "", ",", "\r"),
    ],
)
def test_csv_comes_back_in_its_form(
    tmp_path: Path, encoding: str, mark: str, delimiter: str, end: str
) -> None:
    path, out = tmp_path / "in.csv", tmp_path / "out.csv"
    lines = [
        delimiter.join(cells)
        for cells in (("id", "text"), ("1", "größer – 5 €"), ("2", '"zwei; drei\nvier"'))
    ]
    path.write_bytes((mark + end.join(lines) + end).encode(encoding))
    assert answer_file(Echo(), TASK, Job(path, out, TEXT)) == (2, 0)
    wanted = [
        delimiter.join(cells)
        for cells in (
            (lines[0], "answer", "confidence", "faults", "error"),
            (lines[1], "<größer – 5 €>", "0.5", "", ""),
            (lines[2], '"<zwei; drei\nvier>"', "0.5", "", ""),
        )
    ]
    assert out.read_bytes().decode(encoding) == mark + end.join(wanted) + end
    assert answer_file(Echo(), TASK, Job(path, tmp_path / "plain.csv", TEXT, plain=True)) == (2, 0)
    plain = (tmp_path / "plain.csv").read_text("utf-8")
    assert plain.startswith("id,text,answer,confidence,faults,error\n1,größer – 5 €,")
    answer_file(Echo(), TASK, Job(path, tmp_path / "out.tsv", TEXT))
    assert (
        (tmp_path / "out.tsv").read_bytes().decode(encoding).startswith(f"{mark}id\ttext\tanswer")
    )
    # which is UTF-8, whatever comes in
    answer_file(Echo(), TASK, Job(path, tmp_path / "out.jsonl", TEXT))
    assert next(row["answer"] for row in read(tmp_path / "out.jsonl")) == "<größer – 5 €>"


def test_drafts_have_a_column_of_faults(tmp_path: Path) -> None:
    said = {"a": "It is 17 €, or 18 €.", "b": "It is 5 €", "bad": ""}
    answers = Echo(
        say=lambda text: (
            EngineError("too bad")
            if text == "bad"
            else Answer(said[text[0]], "length" if text[0] == "b" else "stop", 0.5, 1, 1)
        )
    )
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in ("a", "b: 5 €?", "bad", ""))
    )
    assert answer_file(
        answers, dataclasses.replace(TASK, system="17 € each", must=("€$",)), Job(source, out, TEXT)
    )
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["faults"] for row in rows] == [
        "ungrounded: amount 18; missing_pattern: €$",
        "unfinished",
        None,
        None,
    ]


def test_an_answer_that_the_encoding_has_not_makes_it_utf8(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrow = Echo(say=lambda text: Answer(f"→ <{text}>", "stop", 0.5, 1, 1))
    path, out = tmp_path / "in.csv", tmp_path / "out.csv"
    path.write_bytes("id;text\r\n1;größer\r\n".encode("cp1252"))
    answer_file(arrow, TASK, Job(path, out, TEXT))
    assert out.read_bytes() == b"\xef\xbb\xbf" + (
        "id;text;answer;confidence;faults;error\r\n1;größer;→ <größer>;0.5;;\r\n".encode()
    )
    said = capsys.readouterr().err
    assert "in.csv is taken for CP1252; to be certain: --encoding cp1252" in said
    assert "written as UTF-8: an answer holds '→', which CP1252 has not" in said


def test_json_lines_come_back_in_their_form(tmp_path: Path) -> None:
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_bytes('\ufeff{"text": "größer"}\r\n'.encode("utf-16-le"))
    answer_file(Echo(), TASK, Job(path, out, TEXT))
    assert out.read_bytes().decode("utf-16-le") == (
        '\ufeff{"text": "größer", "answer": "<größer>", "confidence": 0.5, "faults": "", "error": '
        "null}\r\n"
    )


def test_a_workbook_holds_texts_and_numbers_as_they_are(tmp_path: Path) -> None:
    odd = [
        "=1+1",
        "007",
        " a ",
        "two\nlines\r\n",
        "a\x00\x0bb\ud7ff\ufffe",
        "_x0041_ <&>]]>",
        "größe 😀",
        "x" * 32_000,
    ]
    given = [
        {
            "text": text,
            "n": k,
            "big": 10**18,
            "share": k / 3,
            "yes": k > 2,
            "none": None,
            "list": [1, {"a": "ö"}],
        }
        for k, text in enumerate(odd)
    ]
    path, out = tmp_path / "in.jsonl", tmp_path / "out.xlsx"
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    assert answer_file(Echo(), TASK, Job(path, out, TEXT)) == (8, 0)
    with zipfile.ZipFile(out) as archive:
        sheet = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
        assert archive.testzip() is None
    name = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
    cells = {cell.get("r"): "".join(cell.itertext()) for cell in sheet.iter(f"{name}c")}
    assert [cells[f"A{k}"] for k in (2, 3, 4, 5, 6, 7)] == [
        "=1+1",
        "007",
        " a ",
        "two\nlines_x000D_\n",
        "a_x0000__x000B_b\ud7ff_xFFFE_",
        "_x005F_x0041_ <&>]]>",
    ]
    assert not list(sheet.iter(f"{name}f"))
    found = read(out)
    assert list(found[0]) == [*given[0], "answer", "confidence", "faults", "error"]
    assert [(row["n"], row["big"], row["yes"], row["list"]) for row in found] == [
        (k, str(10**18), k > 2, '[1, {"a": "ö"}]') for k in range(8)
    ]
    assert [row["share"] for row in found] == [k / 3 for k in range(8)]
    assert [row["text"] for row in found][6:] == odd[6:]
    assert found[7]["answer"] == f"<{odd[7]}>"
    first = out.read_bytes()
    answer_file(Echo(), TASK, Job(path, out, TEXT))
    assert out.read_bytes() == first


def test_what_a_workbook_cannot_hold_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out, echo = tmp_path / "in.jsonl", tmp_path / "out.xlsx", Echo()
    path.write_text(json.dumps({"text": "a"}) + "\n" + json.dumps({"text": "x" * 32_768}) + "\n")
    with pytest.raises(
        DataError, match=r"cannot hold 32,768 characters in 'text' of row 2: at most 32,767"
    ) as caught:
        answer_file(echo, TASK, Job(path, out, TEXT))
    assert caught.value.hint.startswith("--output answers.csv")
    path.write_text("".join(json.dumps({"text": "a"}) + "\n" for _ in range(4)))
    monkeypatch.setattr(workbook_writer, "MAX_ROWS", 4)
    with pytest.raises(DataError, match="cannot hold more than 3 rows"):
        answer_file(echo, TASK, Job(path, out, TEXT))
    monkeypatch.setattr(workbook_writer, "MAX_COLUMNS", 3)
    with pytest.raises(DataError, match="cannot hold 5 columns"):
        answer_file(echo, TASK, Job(path, out, TEXT))
    assert echo.asked == []
    assert not out.exists()
    assert [workbook_writer._letters(k) for k in (0, 25, 26, 701, 702, 16_383)] == [
        "A",
        "Z",
        "AA",
        "ZZ",
        "AAA",
        "XFD",
    ]


def test_a_sheet_can_be_named(tmp_path: Path) -> None:
    sheet = workbooks.row(1, "text") + workbooks.row(2, "b")
    path = workbooks.write_xlsx(tmp_path / "in.xlsx", {"One": workbooks.row(1, "x"), "Two": sheet})
    assert answer_file(Echo(), TASK, Job(path, tmp_path / "out.xlsx", TEXT, sheet="Two")) == (1, 0)
    assert read(tmp_path / "out.xlsx")[0]["answer"] == "<b>"


def test_parquet_keeps_the_types_that_json_knows(tmp_path: Path) -> None:
    path, out = tmp_path / "in.jsonl", tmp_path / "out.parquet"
    path.write_text(
        '{"text": "a", "n": 1, "f": 1, "b": true, "m": 1}\n{"text": "b", "n": null, "f": 2.5, "m": '
        '"x"}\n'
        '{"text": "c", "m": {"k": [1]}, "n": 9007199254740993, "id": 9007199254740993}\n'
        '{"text": "d", "id": 0.5}\n'
    )
    answer_file(Echo(), TASK, Job(path, out, TEXT))
    table = parquet.read_table(out)
    types = {field.name: str(field.type) for field in table.schema}
    assert types == {
        "text": "string",
        "n": "int64",
        "f": "double",
        "b": "bool",
        "m": "string",
        "id": "string",
        "answer": "string",
        "confidence": "double",
        "faults": "string",
        "error": "string",
    }
    assert table["m"].to_pylist() == ["1", "x", '{"k": [1]}', None]
    # no double is this number: a traceback
    assert table["id"].to_pylist() == [None, None, "9007199254740993", "0.5"]


def test_bad_and_uneven_rows_become_rows_with_every_column(tmp_path: Path) -> None:
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text(
        '{"id": 1}\nnot json\n{"text": "refund", "late": {"x": 1}}\n{"text": "bad", "late": null}\n'
    )
    assert answer_file(Echo(), TASK, Job(path, out, TEXT)) == (4, 3)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row.get("late") for row in rows] == [None, None, {"x": 1}, None]
    assert [row["answer"] for row in rows] == [None, None, "<refund>", None]
    assert rows[1]["error"].startswith("not valid JSON")
    assert [rows[k]["error"] for k in (0, 2, 3)] == ["'text' is empty", None, "too bad"]
    answer_file(Echo(), TASK, Job(path, tmp_path / "out.csv", TEXT))
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert list(table[0]) == ["id", "text", "late", "answer", "confidence", "faults", "error"]
    assert table[2]["late"] == '{"x": 1}'
    with pytest.raises(DataError, match="no column 'other'") as caught:
        answer_file(Echo(), TASK, Job(path, out, RowInput("other")))
    assert "id, text" in caught.value.hint
    with pytest.raises(UsageError, match="names no format"):
        answer_file(Echo(), TASK, Job(path, tmp_path / "out.xls", TEXT))


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("in.csv", "text\n", "holds no rows"),
        ("in.csv", "other\nx\n", "no column 'text'"),
        ("in.csv", "text,answer\na,b\n", "already has a column 'answer'"),
        ("in.doc", "text\na\n", "unknown kind"),
        ("in.csv", "text\n\n", "holds no rows"),
    ],
)
def test_files_that_cannot_be_answered_are_refused(
    tmp_path: Path, name: str, text: str, match: str
) -> None:
    (tmp_path / name).write_text(text)
    answerer = Echo()
    with pytest.raises(DataError, match=match):
        answer_file(answerer, TASK, Job(tmp_path / name, tmp_path / "out.csv", TEXT))
    assert not answerer.asked
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


@pytest.mark.parametrize("target", TARGETS)
def test_a_part_without_rows_is_a_file_of_its_kind(tmp_path: Path, target: str) -> None:
    source, out = lines(tmp_path / "in.jsonl", texts(5)), tmp_path / target
    assert answer_file(Echo(), TASK, Job(source, out, TEXT, shard=(3, 16))) == (0, 0)
    assert read(out) == []
    if ".csv" in target or target == "out.tsv":
        raw = gzip.decompress(out.read_bytes()) if target.endswith(".gz") else out.read_bytes()
        assert re.split(b"[,\t\n]", raw) == [
            b"text",
            b"n",
            b"answer",
            b"confidence",
            b"faults",
            b"error",
            b"",
        ]


MARKS = {
    "": True,
    "0": True,
    " no ": True,
    "N": True,
    "False": True,
    "f": True,
    "OFF": True,
    "y": False,
    "t": False,
    "on": False,
    "ja": False,
    "1": False,
    "TRUE": False,
    "perhaps": False,
}


@pytest.mark.parametrize("column", ["sensitive", " Sensitive "])
def test_a_row_is_sent_only_where_its_mark_says_that_it_may(tmp_path: Path, column: str) -> None:
    marks = {**MARKS, None: True, False: True, True: False, 2: False, 0.5: False}
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text(
        "".join(
            json.dumps({"text": f"row {k}", column: mark}) + "\n" for k, mark in enumerate(marks)
        )
    )
    answerer = Echo()
    answer_file(answerer, TASK, Job(path, out, RowInput("text", withhold=True)))
    assert sorted(answerer.asked) == sorted(
        f"row {k}" for k, sent in enumerate(marks.values()) if sent
    )


# Going on


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    count=st.integers(1, 40),
    chunk=st.integers(1, 9),
    stops=st.lists(st.integers(0, 40), max_size=4),
    torn=st.integers(0, 30),
)
def test_no_row_is_twice_or_missing_however_often_it_stops(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    chunk: int,
    stops: list[int],
    torn: int,
) -> None:
    monkeypatch.setattr(row_answers, "CHUNK", chunk)
    source, out = lines(tmp_path / "in.jsonl", texts(count)), tmp_path / "out.jsonl"
    out.unlink(missing_ok=True)
    journal = tmp_path / ".out.jsonl.answers"
    journal.unlink(missing_ok=True)
    for stop in (stop for stop in stops if stop < count):
        with pytest.raises(KeyboardInterrupt):
            answer_file(Echo(stop), TASK, Job(source, out, TEXT))
            raise KeyboardInterrupt  # it was nearly done, and is now
        assert out.exists() == (not journal.exists())
        if journal.exists():  # as a kill in the middle of a line leaves it
            with journal.open("ab") as stream:
                stream.write(b'{"answer": "half of a long line'[:torn])
        else:
            out.unlink()
    assert answer_file(Echo(), TASK, Job(source, out, TEXT)) == (count, 0)
    assert [row["answer"] for row in read(out)] == [f"<{text}>" for text in texts(count)]
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("change", ["nothing", "identity", "source", "column"])
def test_the_same_job_goes_on_and_another_one_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(row_answers, "CHUNK", 2)
    source, out = lines(tmp_path / "in.jsonl", texts(9)), tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        answer_file(Echo(5), TASK, Job(source, out, TEXT))
    assert len((tmp_path / ".out.jsonl.answers").read_bytes().splitlines()) == 5
    assert not out.exists()
    if change == "source":
        lines(source, [*texts(8), "changed"])
    identity = {"model": "another"} if change == "identity" else {}
    again, job = (
        Echo(),
        Job(source, out, RowInput("n") if change == "column" else TEXT, identity=identity),
    )
    answer_file(again, TASK, job)
    assert sorted(again.asked) == texts(9)[4:] if change == "nothing" else len(again.asked) == 9


def test_two_at_once_do_not_write_one_target(tmp_path: Path) -> None:
    source, out = lines(tmp_path / "in.jsonl", texts(3)), tmp_path / "out.jsonl"

    def second(text: str) -> Said:
        with pytest.raises(LockedError, match="is being written by another process"):
            answer_file(Echo(), TASK, Job(source, out, TEXT))
        return echo(text)

    assert answer_file(Echo(say=second), TASK, Job(source, out, TEXT)) == (3, 0)


@given(count=st.integers(1, 60), parts=st.integers(1, 9))
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_shards_in_order_are_the_whole(tmp_path: Path, count: int, parts: int) -> None:
    source = lines(tmp_path / "in.jsonl", texts(count))
    whole = tmp_path / "whole.jsonl"
    answer_file(Echo(), TASK, Job(source, whole, TEXT))
    joined = b""
    for part in range(1, parts + 1):
        out = tmp_path / f"part-{part}.jsonl"
        answer_file(Echo(), TASK, Job(source, out, TEXT, shard=(part, parts)))
        joined += out.read_bytes()
    assert joined == whole.read_bytes()


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/0", "a/b", "-1/3", ""])
def test_a_shard_is_a_part_of_a_whole(text: str) -> None:
    assert file_prediction.shard("3/16") == (3, 16)
    with pytest.raises(UsageError, match="wants K/N with 1 <= K <= N"):
        file_prediction.shard(text)


def test_a_row_that_ends_the_engine_has_an_error_and_only_all_of_them_are_one(
    tmp_path: Path,
) -> None:
    mortal = Echo(
        say=lambda text: EngineDiedError("the engine died") if text == "poison" else echo(text)
    )
    source, out = lines(tmp_path / "in.jsonl", ["a", "poison", "b"]), tmp_path / "out.jsonl"
    assert answer_file(mortal, TASK, Job(source, out, TEXT)) == (3, 1)
    assert [row["answer"] for row in read(out)] == ["<a>", None, "<b>"]
    with pytest.raises(StageError, match="every row ends the engine"):
        answer_file(mortal, TASK, Job(lines(source, ["poison", "poison"]), out, TEXT))


def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tracemalloc

    monkeypatch.setattr(row_answers, "CHUNK", 128)
    peaks = []
    for count in (9, 130, 900):  # the first of which imports
        source, out = (
            lines(tmp_path / "in.jsonl", [f"{'long ' * 20}{k}" for k in range(count)]),
            tmp_path / "out.csv",
        )
        answerer = Echo()
        answerer.asked = type("Nothing", (list,), {"append": lambda *_: None})()
        tracemalloc.start()
        answer_file(answerer, TASK, Job(source, out, TEXT))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] * 1.5


# The program


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, ["id", "text", "note"])
        writer.writeheader()
        writer.writerows(ROWS)
    return path


def check(rows: list[dict[str, Any]], empty: Any) -> None:
    assert [{name: row[name] for name in ROWS[0]} for row in rows] == ROWS
    assert [row["answer"] in tiny.WORDS for row in rows] == [True, False, True, True]
    assert rows[1]["error"] == "'text' is empty"
    assert [row["error"] for row in rows if row["id"] != "2"] == [empty] * 3


def test_csv_in_and_out(stages: Forks, tiny_run: Path, source: Path) -> None:
    target = source.with_name("out.csv")
    done = stages.run(tiny_run, "predict", "--input", str(source), "--output", str(target))
    assert tiny.ok(done) == ""
    assert "4 rows written" in done.stderr
    assert "1 with an error" in done.stderr
    with target.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[3]["text"] == "'=cmd()"  # a spreadsheet would have run it
    rows[3]["text"] = rows[3]["text"].removeprefix("'")
    check(rows, "")
    assert hidden(source.parent) == []


def test_a_release_alone_answers_stdin_on_stdout(
    stages: Forks, tiny_run: Path, tmp_path: Path
) -> None:
    release = tiny_run / "registry" / "tiny-desk" / "1.0"
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    args = ("predict", str(release), "--input", "-", "--output", "-", "--column", "text")
    check(
        [
            json.loads(line)
            for line in tiny.ok(stages.run(tmp_path, *args, input=text)).splitlines()
        ],
        None,
    )


def test_a_killed_run_goes_on(stages: Forks, tiny_run: Path, tmp_path: Path) -> None:
    asked = [" ".join(pair) for pair in tiny.rows(1000, seed=8)]
    source, out = lines(tmp_path / "in.jsonl", asked), tmp_path / "out.jsonl"
    args = ("predict", "--input", str(source), "--output", str(out), "--column", "text")
    child, journal = stages.start(tiny_run, *args), tmp_path / ".out.jsonl.answers"
    assert settles(
        lambda: (
            child.has_ended or (journal.exists() and len(journal.read_bytes().splitlines()) > 100)
        )
    )
    assert not child.has_ended
    child.kill()
    child.wait()
    assert not out.exists()
    done = stages.run(tiny_run, *args)
    tiny.ok(done)
    assert "rows answered by an earlier run" in done.stderr
    rows = read(out)
    assert [row["n"] for row in rows] == list(range(1000))
    assert all(row["answer"] in tiny.WORDS for row in rows)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--input", "x.csv"), "--input and --output come together"),
        (("--shard", "1/2"), "are for a file"),
        (("--input", "x.csv", "--output", "y.csv", "--shard", "3/2"), "wants K/N with 1 <= K <= N"),
        (
            ("--input", "x.csv", "--output", "y.csv", "--engine-url", "http://127.0.0.1:1/v1"),
            "come together",
        ),
        (("nonsense", "--input", "x.csv", "--output", "y.csv"), "is no model of this pipeline"),
        (("--input", "*.csv", "--output", "y.csv"), "predict answers one file"),
        (("--input", "/", "--output", "y.csv"), "predict answers one file"),
        (("--input", "x.csv", "--output", "s3://bucket/y.csv"), "predict answers one file"),
        (
            ("--input", "x.csv", "--output", "y.csv", "--split", "test"),
            "select records of a data set",
        ),
        (
            ("--input", "x.csv", "--output", "y.csv", "--prepared", "runs"),
            "select records of a data set",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(
    tiny_run: Path, args: tuple[str, ...], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        teacher.slmctl(tiny_run, "predict", *args)


# Elsewhere


def last_word(body: dict[str, Any], before: int = 0) -> endpoint.Turn:
    """A reply that is the last word of the question, with log
    probabilities where they are asked for.
    """
    word = body["messages"][-1]["content"].split()[-1]
    choice: dict[str, Any] = {
        "message": {"role": "assistant", "content": word},
        "finish_reason": "stop",
    }
    if body.get("logprobs"):
        choice["logprobs"] = {
            "content": [{"token": word, "logprob": -0.25}, {"token": "", "logprob": -0.25}]
        }
    return says(word, choices=[choice])


@pytest.fixture
def server() -> Iterator[endpoint.Fake]:
    with endpoint.serving(last_word) as fake:
        yield fake


def answerer_of(urls: list[str], task: Task) -> EndpointAnswerer:
    return EndpointAnswerer(EndpointPool(urls, "served", None, concurrency=2), task, 16)


def test_a_pool_shares_the_rows_and_sees_no_sensitive_one(
    artifacts: dict[str, Artifact], server: endpoint.Fake, tmp_path: Path
) -> None:
    task, failures = Task.read(artifacts["gguf"].path), iter([True] * 3)

    def shaky(body: dict[str, Any], before: int) -> endpoint.Turn:
        return fails(503) if next(failures, False) else last_word(body)

    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [
        {"text": f"it is about {label}", "sensitive": mark}
        for label in tiny.WORDS
        for mark in (False, "yes", None)
    ]
    rows.append({"text": "it is about nothing", "sensitive": None})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with endpoint.serving(shaky) as other:
        answerer = answerer_of([server.url, other.url], task)
        assert answer_file(answerer, task, Job(path, out, RowInput("text", withhold=True))) == (
            10,
            4,
        )
    found = read(out)
    for row in found[:9]:
        if row["sensitive"] == "yes":
            assert row["answer"] is None
            assert row["error"] == "marked sensitive, so it is not sent to an endpoint"
        else:
            assert row["answer"] == row["text"].split()[-1]
    assert "is not one of the" in found[9]["error"]
    bodies = [*server.bodies, *other.bodies]
    # an endpoint that fails is preferred no more, so how many of the failures are met depends on
    # who is faster
    failed = 3 - len(list(failures))
    assert len(bodies) == 7 + failed
    assert server.bodies
    assert failed
    assert all(body["structured_outputs"] == {"choice": list(task.labels)} for body in bodies)
    assert [row["confidence"] for row in found if row["answer"]] == pytest.approx(
        [math.exp(-0.5)] * 6
    )
    assert {body["model"] for body in bodies} == {"served"}
    assert all(body["messages"][0] == {"role": "system", "content": tiny.SYSTEM} for body in bodies)


def test_a_server_is_told_the_schema(
    server: endpoint.Fake, artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    plain, schema = (
        Task.read(artifacts["gguf"].path),
        {"type": "object", "properties": {"a": {"type": "string"}}},
    )
    task = Task(**{**plain.__dict__, "kind": "extract", "labels": (), "schema": schema})
    source, out = lines(tmp_path / "in.jsonl", ["billing"]), tmp_path / "out.jsonl"
    answer_file(
        answerer_of([server.url], task), task, Job(source, out, RowInput("text", withhold=True))
    )
    assert read(out)[0]["valid"] is False  # it says a word
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    assert server.bodies[0]["response_format"] == form


def test_the_program_asks_a_server(
    server: endpoint.Fake, stages: Forks, tiny_run: Path, tmp_path: Path
) -> None:
    source, out = (
        lines(tmp_path / "in.jsonl", ["what of billing", "what of delivery"]),
        tmp_path / "out.csv",
    )
    args = (
        "predict",
        "--input",
        str(source),
        "--output",
        str(out),
        "--engine-url",
        server.url,
        "--engine-model",
        "m",
    )
    tiny.ok(stages.run(tiny_run, *args))
    assert [row["answer"] for row in read(out)] == ["billing", "delivery"]
    lines(source, ["what of account"])
    done = stages.run(
        tiny_run,
        *args[:4],
        str(tmp_path / "none.csv"),
        *args[5:],
        "--engine-key-env",
        "NO_SUCH_KEY",
    )
    assert done.returncode == 2
    assert "NO_SUCH_KEY is not set" in done.stderr


def test_a_file_that_may_not_grow_is_said(
    server: endpoint.Fake, tiny_run: Path, tmp_path: Path
) -> None:
    source, out = lines(tmp_path / "in.jsonl", ["what of billing"] * 200), tmp_path / "out.csv"
    args = (
        "predict",
        "--input",
        str(source),
        "--output",
        str(out),
        "--engine-url",
        server.url,
        "--engine-model",
        "m",
    )
    words = "predict: a file grew larger than this process may write"
    with odd_files.growing_to(4000), pytest.raises(StageError, match=words):
        teacher.slmctl(tiny_run, *args)


def test_a_path_is_asked_with_the_settings_that_there_are(
    server: endpoint.Fake, stages: Forks, tiny_run: Path, tmp_path: Path
) -> None:
    source = lines(tmp_path / "in.jsonl", ["what of billing"])
    release = str(tiny_run / "registry" / "tiny-desk" / "1.0")
    args = (
        "--input",
        str(source),
        "--output",
        "-",
        "--column",
        "text",
        "--engine-url",
        server.url,
        "--engine-model",
        "m",
        "--set",
        "predict.max_tokens=32",
    )
    for folder in (tiny_run, tmp_path):  # with a config, and without
        tiny.ok(stages.run(folder, "predict", release, *args))
    assert [body["max_tokens"] for body in server.bodies] == [32, 32]


def test_a_pool_that_is_away_ends_the_run(
    artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(endpoint_pool, "FIRST_WAIT_S", 0.0)
    task = Task.read(artifacts["gguf"].path)
    job = Job(lines(tmp_path / "in.jsonl", texts(40)), tmp_path / "out.jsonl", TEXT)
    with pytest.raises(NetworkError, match="answered none of"):
        answer_file(answerer_of(["http://127.0.0.1:9/v1"], task), task, job)
    assert not job.target.exists()
