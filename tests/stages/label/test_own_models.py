"""Models of slmctl as teachers: a release on this machine, which may read
what must not leave, and its server.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support import here, teacher, tiny

from slmctl.artifacts import artifact
from slmctl.errors import StageError, UsageError
from slmctl.inference.engine import Engine, Request
from slmctl.inference.events import Event
from slmctl.models import gguf
from slmctl.stages.label import label, teachers
from slmctl.task.documents import WindowForm
from slmctl.task.records import read_records

pytest.importorskip("llama_cpp")
pytest.importorskip("llguidance")


def taught_by(folder: Path, teachers: str, *, rows: int = 12, gold: int = 20) -> Path:
    teacher.project(
        folder, "http://127.0.0.1:9/v1", rows=rows, gold=gold, more="  votes: 1\n  examples: 0\n"
    )
    text = (folder / "slmctl.yaml").read_text()
    head, _, tail = text.partition("  teachers:")
    (folder / "slmctl.yaml").write_text(
        f"{head}  teachers: [{teachers}]\n" + tail.partition("\n")[2], encoding="utf-8"
    )
    return folder


def release_of(run: Path) -> Path:
    (found,) = (run / "registry" / "tiny-desk").glob("1.0")
    return found


def test_a_release_teaches_and_reads_sensitive_rows(tiny_run: Path, tmp_path: Path) -> None:
    folder = taught_by(tmp_path, f"{{release: {release_of(tiny_run)}}}")
    with (folder / "new.csv").open("a", encoding="utf-8") as stream:
        stream.write("charged twice write to jane.doe@example.org please\n")
    teacher.slmctl(folder, "label")
    found = teacher.labelled(folder)
    rows = teacher.lines(found / "review.jsonl")
    assert len(rows) == 13
    assert not teacher.lines(found / "refused.jsonl")
    assert "jane.doe@example.org" in " ".join(row["input"] for row in rows)
    assert all(
        row["output"] in tiny.WORDS and 0 < row["votes"][0]["confidence"] <= 1 for row in rows
    )
    out = tmp_path / "out.csv"
    teacher.slmctl(
        folder,
        "predict",
        str(release_of(tiny_run)),
        "--input",
        str(folder / "new.csv"),
        "--column",
        "text",
        "--output",
        str(out),
    )
    with out.open(encoding="utf-8", newline="") as stream:
        predicted = {line["text"]: line["answer"] for line in csv.DictReader(stream)}
    # it is asked as predict asks it
    assert {row["input"]: row["output"] for row in rows} == predicted
    (facts,) = artifact.load(found).metrics["teachers"]
    assert (facts["where"], facts["cost"], facts["doubt"], facts["doubtful"]) == (
        "release",
        None,
        None,
        0,
    )
    environment = artifact.load(found).manifest.environment
    assert (environment["hosts_contacted"], environment["bytes_out"]) == ([], 0)
    before = found.stat().st_mtime_ns
    teacher.slmctl(folder, "label")
    assert teacher.labelled(folder).stat().st_mtime_ns == before


class Mortal(Engine):
    """An engine whose process is killed by each question with the word poison."""

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Callable[[], None]:
        if "poison" not in request.prompt:
            return super().submit(request, on_event)
        if self._child is not None:
            self._child.kill()
            # as the engine tells a death: when nobody can be sent to that process any more
            self._child.wait()
        on_event({"error": "the process ended", "died": True})
        return lambda: None


def test_rows_in_the_company_of_one_that_ends_the_engine_are_labelled(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf, "Engine", Mortal)
    folder = taught_by(tmp_path, f"{{release: {release_of(tiny_run)}}}")
    with (folder / "new.csv").open("a", encoding="utf-8") as stream:
        stream.write("poison for the engine\n")
    teacher.slmctl(folder, "label")
    found = teacher.labelled(folder)
    assert len(teacher.lines(found / "review.jsonl")) == 12
    (refused,) = teacher.lines(found / "refused.jsonl")
    assert refused["input"] == "poison for the engine"
    with (folder / "new.csv").open("a", encoding="utf-8") as stream:
        stream.writelines(
            f"poison {word}\n" for word in ("in the well", "of a snake", "and antidote")
        )
    monkeypatch.setattr(teachers, "MOST_DEADLY", 3)
    with pytest.raises(StageError, match="4 rows end the engine of tiny-desk"):
        teacher.slmctl(folder, "label")


def test_a_release_that_learned_windows_is_asked_in_windows(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # it was asked the whole document
    asked = list[str]()

    class Overheard(Engine):
        def submit(self, request: Request, on_event: Callable[[Event], None]) -> Callable[[], None]:
            asked.append(request.prompt)
            return super().submit(request, on_event)

    monkeypatch.setattr(gguf, "Engine", Overheard)
    contract = teachers.task_of
    monkeypatch.setattr(
        label, "task_of", lambda *of: replace(contract(*of), document=WindowForm(60, 10))
    )
    folder = taught_by(tmp_path, f"{{release: {release_of(tiny_run)}}}", rows=2)
    with (folder / "new.csv").open("a", encoding="utf-8") as stream:
        stream.write("refund my card " * 12 + "\n")
    teacher.slmctl(folder, "label")
    assert len(teacher.lines(teacher.labelled(folder) / "review.jsonl")) == 3
    assert len([prompt for prompt in asked if "card refund" in prompt]) > 2


def test_a_release_of_another_task_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    folder = taught_by(tmp_path, f"{{release: {release_of(tiny_run)}}}")
    tiny.edit_config(folder, "labels: from-data", "labels: [billing, delivery]")
    with pytest.raises(UsageError, match="answers with labels that this task has not: account"):
        teacher.slmctl(folder, "label")


def test_the_own_server_teaches_with_probabilities(tiny_run: Path, tmp_path: Path) -> None:
    with here.opened(tiny_run) as server:
        folder = taught_by(tmp_path, f"{{url: {server.url}/v1, model: tiny-desk}}")
        teacher.slmctl(folder, "label")
    rows = teacher.lines(teacher.labelled(folder) / "review.jsonl")
    assert len(rows) == 12
    assert all(0 < row["votes"][0]["confidence"] <= 1 for row in rows)
    assert all(row["output"] in tiny.WORDS for row in rows)


def test_gold_rows_that_a_release_was_trained_on_tell_nothing(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = taught_by(tmp_path, f"{{release: {release_of(tiny_run)}}}", gold=10)
    trained = read_records(next((tiny_run / "runs" / "prepared").glob("[!.]*")) / "train.jsonl")[:6]
    with (folder / "gold.csv").open("a", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows((record.input, record.answer) for record in trained)
    teacher.slmctl(folder, "label")
    assert "the data set of tiny-desk/1.0 is not here" in capsys.readouterr().err
    shutil.copytree(tiny_run / "runs" / "prepared", folder / "runs" / "prepared")
    shutil.rmtree(folder / "runs" / "labelled")
    teacher.slmctl(folder, "label")
    left_out = artifact.load(teacher.labelled(folder)).metrics["left_out"]
    # prepare may measure with one of them
    assert left_out["gold rows that tiny-desk/1.0 was trained on"] >= 5
    assert "is not here" not in capsys.readouterr().err
