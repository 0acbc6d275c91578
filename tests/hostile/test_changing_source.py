"""A source that changes while `predict` reads or answers it, and targets that must not be written.

Each answer stands beside the row that it answers, the report of rows written equals the rows in the
file, and a source read in two states ends with DataError (exit 3) and leaves nothing behind.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from support import tiny, workbooks
from support.answered import TEXT, answer_file
from support.scale import FULL, sampled

from slmctl.artifacts import atomic
from slmctl.errors import DataError, StageError, UsageError
from slmctl.inference.engine import Answer
from slmctl.models.prompts import Prompt
from slmctl.sources.rows import read_rows
from slmctl.sources.rows.cells import Row
from slmctl.stages.predict import row_answers, row_snapshot
from slmctl.stages.predict.file_prediction import Job
from slmctl.task.contract import Task

TASK = Task("generate", tiny.TEMPLATE, "<|im_end|>")
ROWS = 2000 if FULL else 60
TEXTS = [f"row {k:05}" for k in range(ROWS)]


def write(path: Path, texts: Sequence[str]) -> Path:
    """Rows `text, n` in the format that the name tells, over whatever is there, in place."""
    rows = [{"text": text, "n": str(k)} for k, text in enumerate(texts)]
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
        return path
    if kind == "xlsx":
        sheet = [
            workbooks.row(1, "text", "n"),
            *(workbooks.row(k, *row.values()) for k, row in enumerate(rows, 2)),
        ]
        return workbooks.write_xlsx(path, {"rows": "".join(sheet)})
    if kind == "jsonl":
        raw = "".join(json.dumps(row) + "\n" for row in rows)
    elif kind == "json":
        raw = json.dumps(rows)
    else:
        separator = "\t" if kind == "tsv" else ","
        raw = "".join(
            separator.join(line) + "\n"
            for line in (("text", "n"), *(tuple(row.values()) for row in rows))
        )
    path.write_bytes(gzip.compress(raw.encode()) if path.suffix == ".gz" else raw.encode())
    return path


def rewrite(path: Path) -> None:
    write(path, TEXTS[::-1])


def replace(path: Path) -> None:
    os.replace(write(path.with_name(f"new-{path.name}"), TEXTS[::-1]), path)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 4)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def append(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(path.read_bytes()[-200:])


def remove(path: Path) -> None:
    path.unlink()


def become_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def keep_its_time(path: Path) -> None:
    """Rewrite in place with the same size and the same times of
    change, as `touch -r` fakes them.
    """
    was = path.stat()
    with path.open("r+b") as stream:
        raw = stream.read()
        stream.seek(0)
        stream.write(raw.replace(b"row 0000", b"ROW 0000"))
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


CHANGES = (rewrite, replace, truncate, empty, append, remove, become_a_pipe, keep_its_time)
FORMATS = (
    "in.csv",
    "in.tsv",
    "in.jsonl",
    "in.json",
    "in.csv.gz",
    "in.jsonl.gz",
    "in.parquet",
    "in.xlsx",
)
QUICK = [*zip(FORMATS, CHANGES, strict=True)]  # each once
CROSSED = pytest.mark.parametrize(
    ("name", "change"),
    sampled(itertools.product(FORMATS, CHANGES), QUICK),
    ids=lambda part: getattr(part, "__name__", str(part)),
)


class Meddler:
    """An answerer that answers `<input>`, and does something when it has answered some rows."""

    def __init__(self, act: Callable[[], object] = lambda: None, after: int = ROWS // 3) -> None:
        self.act, self.left = act, after

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer]]:
        for index, prompt in enumerate(prompts):
            if self.left == 0:
                self.act()
            self.left -= 1
            yield index, Answer(f"<{prompt.messages[-1]['content']}>", "stop", 0.5, 1, 1)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_answers, "CHUNK", 7)


def pairs(path: Path) -> list[tuple[str, str]]:
    return [(row.columns["text"], row.columns["answer"]) for row in read_rows(path)]


ANSWERED = [(text, f"<{text}>") for text in TEXTS]


@CROSSED
def test_a_change_while_rows_are_answered_reaches_no_answer(
    tmp_path: Path, name: str, change: Callable[[Path], None]
) -> None:
    source, out = write(tmp_path / name, TEXTS), tmp_path / "out.jsonl"
    assert answer_file(Meddler(lambda: change(source)), TASK, Job(source, out, TEXT)) == (ROWS, 0)
    assert pairs(out) == ANSWERED
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


@CROSSED
def test_a_change_while_rows_are_read_is_refused(
    tmp_path: Path, name: str, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write(tmp_path / name, TEXTS), tmp_path / "out.jsonl"

    def reading(path: Path, **options: Any) -> Iterator[Row]:
        for number, row in enumerate(read_rows(path, **options)):
            if number == ROWS // 2:
                change(source)
            yield row

    monkeypatch.setattr(row_snapshot, "read_rows", reading)
    sent = Meddler()
    with pytest.raises(DataError):
        answer_file(sent, TASK, Job(source, out, TEXT))
    assert sent.left == ROWS // 3  # nothing was answered
    assert {path.name for path in tmp_path.iterdir()} <= {name}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_resumed_run_answers_the_file_as_it_is_now(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """A run that is stopped and finds another file starts over; with the same one it goes on."""
    source, out = write(tmp_path / "in.csv", TEXTS), tmp_path / "out.csv"

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer_file(Meddler(stop), TASK, Job(source, out, TEXT))
    change(source)
    if change in (empty, remove, become_a_pipe):
        with pytest.raises(DataError):
            answer_file(Meddler(), TASK, Job(source, out, TEXT))
        assert not out.exists()
        return
    count, _ = answer_file(Meddler(), TASK, Job(source, out, TEXT))
    now = [row.columns.get("text", "") for row in read_rows(source)]  # the last row may be cut
    assert [row.columns["text"] for row in read_rows(out)] == now
    assert [row.columns["answer"] for row in read_rows(out)] == [
        f"<{text}>" if text else "" for text in now
    ]
    assert len(now) == count


@settings(
    max_examples=200 if FULL else 8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    rows=st.integers(1, 60),
    parts=st.integers(1, 5),
    after=st.integers(0, 60),
    seed=st.integers(0, 2**32),
    name=st.sampled_from(FORMATS),
    target=st.sampled_from(["out.csv", "out.jsonl", "out.parquet", "out.tsv.gz"]),
)
def test_parts_answered_while_the_file_changes_are_each_right(
    tmp_path: Path, rows: int, parts: int, after: int, seed: int, name: str, target: str
) -> None:
    draw, texts = random.Random(seed), TEXTS[:rows]
    for part in range(1, parts + 1):
        source, out = write(tmp_path / name, texts), tmp_path / target
        other = draw.sample(TEXTS, draw.randrange(1, ROWS))
        change = draw.choice([lambda s=source, o=other: write(s, o), lambda s=source: truncate(s)])
        written, _ = answer_file(
            Meddler(change, after), TASK, Job(source, out, TEXT, shard=(part, parts))
        )
        kept = texts[rows * (part - 1) // parts : rows * part // parts]
        assert pairs(out) == [(text, f"<{text}>") for text in kept]
        assert written == len(kept)


def test_a_journal_with_other_rows_or_damage_costs_no_row(tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.csv", TEXTS), tmp_path / "out.csv"
    journal = row_snapshot.journal_of(out)

    def stop() -> None:
        raise KeyboardInterrupt

    damages: list[Callable[[bytes], bytes]] = [
        lambda raw: raw[:-5],
        lambda raw: raw + b"\0\0\0\n",
        lambda raw: raw + b"[]\n" * ROWS,
        lambda raw: b"\xff" + raw,
        lambda raw: b"",
    ]
    for damage in damages:
        with pytest.raises(KeyboardInterrupt):
            answer_file(Meddler(stop), TASK, Job(source, out, TEXT))
        journal.write_bytes(damage(journal.read_bytes()))
        assert answer_file(Meddler(), TASK, Job(source, out, TEXT)) == (ROWS, 0)
        assert pairs(out) == ANSWERED


# One file under two names


def same(source: Path) -> Path:
    return source


def linked(source: Path) -> Path:
    path = source.with_name("link.csv")
    path.symlink_to(source.name)
    return path


def hard_linked(source: Path) -> Path:
    path = source.with_name("hard.csv")
    path.hardlink_to(source)
    return path


def relative(source: Path) -> Path:
    return Path(os.path.relpath(source))


def by_way_of_a_folder(source: Path) -> Path:
    (source.parent / "folder").mkdir()
    return source.parent / "folder" / ".." / source.name


def through_a_linked_folder(source: Path) -> Path:
    (source.parent / "also").symlink_to(source.parent)
    return source.parent / "also" / source.name


@pytest.mark.parametrize(
    "name",
    [same, linked, hard_linked, relative, by_way_of_a_folder, through_a_linked_folder],
    ids=lambda name: name.__name__,
)
@pytest.mark.parametrize("swapped", [False, True])
def test_a_source_is_never_its_own_target(
    tmp_path: Path, name: Callable[[Path], Path], *, swapped: bool
) -> None:
    source = write(tmp_path / "in.csv", TEXTS)
    before, target = source.read_bytes(), name(source)
    asked = (target, source) if swapped else (source, target)
    with pytest.raises(UsageError, match="--input"):
        answer_file(Meddler(), TASK, Job(*asked, TEXT))
    assert source.read_bytes() == before


@pytest.mark.parametrize("beside", [row_snapshot.journal_of, atomic.draft_of])
def test_a_source_is_not_what_lies_beside_its_target(
    tmp_path: Path, beside: Callable[[Path], Path]
) -> None:
    target = tmp_path / "out.csv"
    source = write(tmp_path / "in.jsonl", TEXTS)
    source.rename(beside(target))
    before = beside(target).read_bytes()
    with pytest.raises(UsageError, match="--input"):
        answer_file(Meddler(), TASK, Job(beside(target), target, TEXT, format="jsonl"))
    assert beside(target).read_bytes() == before


# Targets that are no file


def fifo(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def device(path: Path) -> None:
    path.symlink_to("/dev/null")


def bound_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    "make", [fifo, folder, device, bound_socket], ids=lambda make: make.__name__
)
@pytest.mark.parametrize("place", ["out.csv", ".out.csv.answers", ".draft-out.csv"])
def test_what_is_no_file_is_not_replaced(
    tmp_path: Path, make: Callable[[Path], None], place: str
) -> None:
    source, path = write(tmp_path / "in.csv", TEXTS), tmp_path / place
    make(path)
    was = path.lstat()
    sent = Meddler()
    with pytest.raises(UsageError, match="cannot be written"):
        answer_file(sent, TASK, Job(source, tmp_path / "out.csv", TEXT))
    assert sent.left == ROWS // 3
    assert (path.lstat().st_mode, path.lstat().st_ino) == (was.st_mode, was.st_ino)


@pytest.mark.parametrize(
    ("target", "match"),
    [
        ("none/out.csv", "no folder"),
        ("in.csv/out.csv", "Not a directory|no folder"),
        ("a" * 250 + ".csv", "too long"),
    ],
)
def test_a_target_that_cannot_be_is_refused_before_the_work(
    tmp_path: Path, target: str, match: str
) -> None:
    source, sent = write(tmp_path / "in.csv", TEXTS), Meddler()
    with pytest.raises(UsageError, match=match):
        answer_file(sent, TASK, Job(source, tmp_path / target, TEXT))
    assert sent.left == ROWS // 3
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder of a user who is not root, as whom the test goes on:
    root may write what is read-only.
    """
    with tempfile.TemporaryDirectory() as folder:
        was, nobody = os.geteuid(), 65534
        if was == 0:
            os.chown(folder, nobody, nobody)
            os.seteuid(nobody)
        try:
            yield Path(folder)
        finally:
            os.seteuid(was)


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_read_only_target_is_refused_before_the_work(unprivileged: Path, what: str) -> None:
    source, out = write(unprivileged / "in.csv", TEXTS), unprivileged / "out" / "out.csv"
    out.parent.mkdir()
    out.write_text("precious\n")
    (out.parent if what == "folder" else out).chmod(0o555 if what == "folder" else 0o444)
    sent = Meddler()
    with pytest.raises(UsageError, match="read-only"):
        answer_file(sent, TASK, Job(source, out, TEXT))
    assert (sent.left, out.read_text()) == (ROWS // 3, "precious\n")
    out.parent.chmod(0o755)


# The program


def test_the_program_survives_a_source_that_changes(tiny_run: Path, tmp_path: Path) -> None:
    """In a process of its own, which is stopped once its first answers
    are written and goes on afterwards.
    """
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    write(source, [" ".join(pair) for pair in tiny.rows(800, seed=3)])
    texts = [row.columns["text"] for row in read_rows(source)]
    child = tiny.start(
        tiny_run, "predict", "--input", str(source), "--output", str(out), "--column", "text"
    )
    journal = row_snapshot.journal_of(out)
    while child.poll() is None and not (
        journal.exists() and len(journal.read_bytes().splitlines()) > 100
    ):
        threading.Event().wait(0.01)
    write(source, texts[::-1][:50])
    assert child.wait(120) == 0, child.communicate()
    child.communicate()
    with out.open(encoding="utf-8", newline="") as stream:
        assert [row["text"] for row in csv.DictReader(stream)] == texts


def run(folder: Path, *args: str, **more: Any) -> subprocess.CompletedProcess[str]:
    release = str(folder / "registry" / "tiny-desk" / "1.0")
    return tiny.slmctl(folder, "predict", release, "--column", "text", *args, **more)


def piped(folder: Path, here: Path, rest: str) -> subprocess.CompletedProcess[str]:
    """`slmctl predict` in a shell, with redirections in `rest`."""
    release = folder / "registry" / "tiny-desk" / "1.0"
    line = f'cd {here} && exec "$@" predict {release} --column text {rest}'
    program = tiny.command(here)
    return subprocess.run(
        ["sh", "-c", line, "sh", *program],
        capture_output=True,
        text=True,
        env=tiny.environment(),
        timeout=120,
    )


def test_pipes_are_read_once(tiny_run: Path, tmp_path: Path) -> None:
    pipe, out = tmp_path / "rows.csv", tmp_path / "out.jsonl"
    raw = write(tmp_path / "in.csv", ["a", "b"]).read_bytes()
    os.mkfifo(pipe)
    feeder = threading.Thread(target=pipe.write_bytes, args=(raw,))
    feeder.start()
    tiny.ok(run(tiny_run, "--input", str(pipe), "--output", str(out)))
    feeder.join()
    assert [row.columns["text"] for row in read_rows(out)] == ["a", "b"]


def test_redirections_to_the_other_end_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", ["a", "b"])
    before = source.read_bytes()
    with source.open("rb") as stream:
        done = run(tiny_run, "--input", "-", "--output", str(source), stdin=stream)
    assert (done.returncode, source.read_bytes()) == (2, before), done.stderr
    done = piped(tiny_run, tmp_path, f"--input {source} --output - >> {source}")
    assert (done.returncode, source.read_bytes()) == (2, before), done.stderr


@pytest.mark.parametrize(
    ("rest", "code"),
    [
        ("--input in.jsonl --output - >&-", UsageError.code),
        ("--input in.jsonl --output - > /dev/full", StageError.code),
        pytest.param("--input in.jsonl --output - > /dev/null", 0, marks=pytest.mark.slow),
        pytest.param("--input in.jsonl --output out.jsonl >&-", 0, marks=pytest.mark.slow),
        pytest.param("--input in.jsonl --output out.jsonl 2>&-", 0, marks=pytest.mark.slow),
        pytest.param("--input - --output out.jsonl <&-", DataError.code, marks=pytest.mark.slow),
        ("--input - --output out.jsonl < /dev/null", DataError.code),
    ],
)
def test_closed_and_full_streams_end_with_a_sentence(
    tiny_run: Path, tmp_path: Path, rest: str, code: int
) -> None:
    write(tmp_path / "in.jsonl", ["a"])
    done = piped(
        tiny_run,
        tmp_path,
        rest.replace("in.jsonl", str(tmp_path / "in.jsonl")).replace(
            "out.jsonl", str(tmp_path / "out.jsonl")
        ),
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert (tmp_path / "out.jsonl").exists() == (code == 0 and "out.jsonl" in rest)


KILLS = [0, 1, ROWS // 2, ROWS - 1]


@pytest.mark.usefixtures("forked_readers")
@pytest.mark.parametrize("after", sampled(range(ROWS) if FULL else KILLS, [ROWS // 2]))
def test_who_kills_predict_with_half_of_a_folder_answered_gets_the_same_file_of_the_next_run(
    tmp_path: Path, after: int
) -> None:
    (tmp_path / "docs").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "docs" / f"{number:05}.txt").write_text(text)

    def answer(target: Path, answerer: Meddler) -> None:
        with row_snapshot.opened(tmp_path / "docs", target, None) as (source, format):
            answer_file(
                answerer, TASK, Job(source, target, TEXT, format=format, columns=("file", "pages"))
            )

    whole, target = tmp_path / "whole.csv", tmp_path / "out.csv"
    answer(whole, Meddler())
    if (child := os.fork()) == 0:
        try:
            answer(target, Meddler(lambda: os.kill(os.getpid(), signal.SIGKILL), after))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    journal = row_snapshot.journal_of(target)
    kept = len(journal.read_bytes().splitlines()[1:])
    assert kept == after - after % row_answers.CHUNK and not target.exists()
    left = itertools.count()
    rest = Meddler()
    asked = rest.answer
    rest.answer = lambda prompts: asked([prompt for prompt in prompts if next(left) >= 0])  # type: ignore[method-assign]
    answer(target, rest)
    assert next(left) == ROWS - kept  # what was answered is not asked again
    assert target.read_bytes() == whole.read_bytes() and not journal.exists()
