"""Folders and buckets of files come back answered, a file each, and no finished file is answered again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from support import TESTS, tiny

from slmctl import console
from slmctl.errors import DataError, UsageError
from slmctl.inference.engine import Answer, EngineError
from slmctl.sources import stores
from slmctl.sources.rows import read_rows
from slmctl.stages.predict import file_prediction, folder_prediction
from slmctl.stages.predict.file_prediction import Job
from slmctl.stages.predict.folder_prediction import FolderWork
from slmctl.stages.predict.prompts import Prompt
from slmctl.task.contract import Task

TASK = Task("generate", tiny.TEMPLATE, "<|im_end|>")
JOB = Job(Path(), Path(), "text", identity={"model": "one"})


class Echo:
    """An answerer at once: the answer is the question; it stops after some."""

    def __init__(self, stop_after: int = 1000) -> None:
        self.asked: list[str] = []
        self.stop_after = stop_after

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer | EngineError]]:
        for index, prompt in enumerate(prompts):
            if len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(prompt.messages[-1]["content"])
            yield index, Answer(f"<{self.asked[-1]}>", "stop", 0.5, 1, 1)


def answered(source: str, target: str, echo: Echo, job: Job = JOB) -> tuple[int, int]:
    with stores.listed(source) as (store, files), stores.writable(target) as out:
        work = FolderWork(store, tuple(files), out)
        return folder_prediction.answer_files(
            lambda each: file_prediction.answer_file(echo, TASK, each), TASK, work, job
        )


def write(path: Path, texts: Sequence[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pa.table({"text": list(texts)}), path)
    else:
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def texts_of(path: Path) -> list[Any]:
    return [row.columns["answer"] for row in read_rows(path)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, count in (("a.jsonl", 3), ("day=1/b.jsonl", 4), ("day=2/c.jsonl", 2)):
        write(tmp_path / "in" / name, [f"{name} {k}" for k in range(count)])
    return tmp_path


def test_each_file_comes_back_under_its_name(folder: Path) -> None:
    assert answered(f"{folder}/in", f"{folder}/out", Echo()) == (9, 0)
    names = [path.relative_to(folder / "in").as_posix() for path in sorted((folder / "in").rglob("*.jsonl"))]
    for name in names:
        assert texts_of(folder / "out" / name) == [
            f"<{row.columns['text']}>" for row in read_rows(folder / "in" / name)
        ]
    with stores.listed(f"{folder}/out") as (_, files):  # markers are no data
        assert [file.name for file in files] == names


def test_finished_files_are_passed_over_and_the_begun_one_goes_on(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        answered(f"{folder}/in", f"{folder}/out", Echo(5))
    assert sorted(path.name for path in (folder / "out").rglob("*.jsonl")) == ["a.jsonl"]
    again = Echo()
    assert answered(f"{folder}/in", f"{folder}/out", again) == (9, 0)
    assert not [text for text in again.asked if text.startswith("a.jsonl")]
    nothing = Echo()
    assert answered(f"{folder}/in", f"{folder}/out", nothing) == (9, 0)
    assert nothing.asked == []


@pytest.mark.parametrize(
    ("change", "asked"),
    [("torn", {"a.jsonl"}), ("missing", {"a.jsonl"}), ("source", {"new"}), ("marker", {"a.jsonl"}),
     ("model", {"a.jsonl", "day=1/b.jsonl", "day=2/c.jsonl"})],
)  # fmt: skip
def test_what_has_changed_is_answered_anew(folder: Path, change: str, asked: set[str]) -> None:
    answered(f"{folder}/in", f"{folder}/out", Echo())
    out, job = folder / "out" / "a.jsonl", JOB
    whole = out.read_bytes()
    if change == "torn":
        out.write_bytes(whole[:-5])
    elif change == "missing":
        out.unlink()
    elif change == "source":
        write(folder / "in" / "a.jsonl", ["new row"])
    elif change == "model":
        job = Job(Path(), Path(), "text", identity={"model": "another"})
    else:
        (folder / "out" / "_slmctl" / "a.jsonl.json").write_text("{")
    again = Echo()
    answered(f"{folder}/in", f"{folder}/out", again, job)
    assert {text.split()[0] for text in again.asked} == asked
    assert texts_of(out) == [f"<{row.columns['text']}>" for row in read_rows(folder / "in" / "a.jsonl")]


def test_a_file_that_cannot_be_answered_does_not_hold_up_the_others(folder: Path) -> None:
    (folder / "in" / "a.jsonl").write_text('{"other": 1}\n')
    with pytest.raises(DataError, match=r"1 of 3 files could not be answered \(a\.jsonl\): .* no column 'text'"):
        answered(f"{folder}/in", f"{folder}/out", Echo())
    assert sorted(path.name for path in (folder / "out").rglob("*.jsonl")) == ["b.jsonl", "c.jsonl"]


def test_sources_are_never_overwritten_and_kinds_are_known_before_the_work(folder: Path) -> None:
    echo = Echo()
    with pytest.raises(UsageError, match="is the folder of --input"):
        answered(f"{folder}/in", f"{folder}/in/", echo)
    write(folder / "odd" / "a.jsonl", ["x"]).rename(folder / "odd" / "a.db")
    with pytest.raises(UsageError, match="names no format that can be written"):
        answered(f"{folder}/odd", f"{folder}/out", echo)
    assert echo.asked == []


def test_the_plan_counts_files_rows_and_bytes(tmp_path: Path) -> None:
    sizes = [
        write(tmp_path / "in" / f"{k}.parquet", texts).stat().st_size for k, texts in enumerate((["a"], ["b", "c"]))
    ]
    with stores.listed(f"{tmp_path}/in/*.parquet") as (store, files), stores.writable(f"{tmp_path}/out/") as out:
        work = FolderWork(store, tuple(files), out)
        plan = folder_prediction.plan(work, TASK, JOB, count_rows=True)
        assert (plan.files, plan.rows, plan.bytes, plan.finished) == (2, 3, sum(sizes), 0)
        folder_prediction.answer_files(
            lambda job: file_prediction.answer_file(Echo(), TASK, job),
            TASK,
            FolderWork(store, tuple(files[:1]), out),
            JOB,
        )
        plan = folder_prediction.plan(work, TASK, JOB, count_rows=True)
        assert plan.words == f"2 files, 3 rows, {console.size(sum(sizes))}; 1 of them finished"


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_the_parts_of_a_folder_are_all_of_it(parts: int) -> None:
    files = [stores.StoredFile(f"{k}.csv", 1, "") for k in range(5)]
    split = [file for k in range(1, parts + 1) for file in folder_prediction.shared(files, (k, parts))]
    assert split == files


def test_a_bucket_is_answered_into_a_bucket(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"AWS_ENDPOINT_URL": s3, "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}.items():
        monkeypatch.setenv(key, value)
    here = f"s3://models/{tmp_path.name}"
    with stores.writable(f"{here}/in/") as store:
        for name, texts in (("a.parquet", ["x", "y"]), ("day=1/b.parquet", ["z"])):
            store.put(name, write(tmp_path / name, texts))
    with pytest.raises(KeyboardInterrupt):
        answered(f"{here}/in/**/*.parquet", f"{here}/out/", Echo(2))
    again = Echo()
    assert answered(f"{here}/in/**/*.parquet", f"{here}/out/", again) == (3, 0)
    assert again.asked == ["z"]  # the first file was finished
    with stores.listed(f"{here}/out/") as (store, files):
        assert [file.name for file in files] == ["a.parquet", "day=1/b.parquet"]
        store.fetch(files[0], tmp_path / "back.parquet")
    assert texts_of(tmp_path / "back.parquet") == ["<x>", "<y>"]


def test_the_command_plans_and_answers_a_bucket(s3: str, tmp_path: Path) -> None:
    keys = {"AWS_ENDPOINT_URL": s3, "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}
    client: Any = pytest.importorskip("boto3").client(
        "s3", endpoint_url=s3, region_name="us-east-1", aws_access_key_id="id", aws_secret_access_key="key"
    )
    for name, texts in (("a.parquet", ["refund", "parcel"]), ("b.parquet", ["late"])):
        client.upload_file(str(write(tmp_path / name, texts)), "models", f"{tmp_path.name}/in/{name}")
    release = str(TESTS / "fixtures" / "0.1.0" / "published")  # a model of 7,000 weights
    words = ["predict", release, "--column", "text", "--input", f"s3://models/{tmp_path.name}/in/*.parquet", "--output"]
    words += [f"{tmp_path}/out/", "--offline"]  # which lets this machine be asked
    planned = tiny.slmctl(tmp_path, *words, "--plan", env=tiny.environment(**keys))
    assert tiny.ok(planned) == ""
    assert "2 files, 3 rows, " in planned.stderr
    assert not (tmp_path / "out").exists()
    done = tiny.slmctl(tmp_path, *words, env=tiny.environment(**keys))
    tiny.ok(done)
    assert f"3 rows written to {tmp_path}/out/, 0 with an error" in done.stderr
    answers = [*texts_of(tmp_path / "out" / "a.parquet"), *texts_of(tmp_path / "out" / "b.parquet")]
    assert len(answers) == 3 and set(answers) <= {"account", "billing", "delivery"}
    assert "2 of them finished" in tiny.slmctl(tmp_path, *words, env=tiny.environment(**keys)).stderr
