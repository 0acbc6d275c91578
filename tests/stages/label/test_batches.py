"""Batches: what they bring, those that expire, fail or are forgotten, and one that is come back to by its id."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support import batches, teacher

from slmctl import config
from slmctl.errors import PausedError
from slmctl.network import guard
from slmctl.stages.label import batches as stage
from slmctl.stages.label.journal import Budget, Journal, opened
from slmctl.stages.label.teachers import EndpointTeacher, NearestExamples, WritingRequest
from slmctl.task.contract import Task

pytest.importorskip("httpx")
pytest.importorskip("sklearn")
FEW = "  votes: 1\n  examples: 2\n"
BATCHED = f"{teacher.PRICES}, batch: true"


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait as long between two questions as a courteous client does."""
    monkeypatch.setattr(stage, "FIRST_POLL_S", 0.01)


def answers(body: dict[str, Any]) -> batches.Result:
    return 200, json.loads(teacher.reply(body, teacher.answer(body))[2])


def project(folder: Path, url: str, **more: Any) -> Path:
    return teacher.project(folder, url, rows=20, gold=8, more=FEW, teacher=BATCHED, **more)


def journal(folder: Path) -> Journal:
    (path,) = (folder / "runs" / ".teachers").glob("*.jsonl")
    one = Journal(path)
    one.close()
    return one


def labelled_rows(folder: Path) -> int:
    found = teacher.labelled(folder)
    return sum(len(teacher.lines(found / f"{name}.jsonl")) for name in ("accepted", "review", "refused"))


@pytest.mark.parametrize("fates", [["completed"], ["expired", "completed"], ["failed", "completed"],
                                   ["forgotten", "completed"]], ids=lambda fates: fates[0])  # fmt: skip
def test_every_row_is_answered_once_whatever_becomes_of_the_first_batch(fates: list[str], tmp_path: Path) -> None:
    with batches.serving(answers, fates=fates) as server:
        folder = project(tmp_path, server.url)
        teacher.slmctl(folder, "label")
    assert labelled_rows(folder) == 20
    served = Counter(body["messages"][-1]["content"] for body in server.served)
    assert set(served.values()) == {1}
    one = journal(folder)
    assert (one.ledger.answered, one.ledger.doubtful, one.batches) == (len(served), 0, {})
    assert one.ledger.prompt_tokens == sum(map(teacher.tokens, server.served))
    assert len(server.batches) == len(fates)


def test_a_batch_that_takes_longer_than_the_run_is_come_back_to_by_its_id(tmp_path: Path) -> None:
    with batches.serving(answers, polls=10**9) as server:
        folder = project(tmp_path, server.url)
        with pytest.raises(PausedError, match=r"label\.max_time"):
            teacher.slmctl(folder, "label", "--set", "label.max_time=0.005")
        assert list(journal(folder).batches) == ["batch_0"]
        assert journal(folder).ledger.doubtful == 0
        server.polls = server.batches["batch_0"]["left"] = 1
        teacher.slmctl(folder, "label")
        assert list(server.batches) == ["batch_0"]  # no second one was made
    assert labelled_rows(folder) == 20


def test_answers_that_fail_in_a_batch_are_asked_again(tmp_path: Path) -> None:
    failed: set[str] = set()

    def sometimes(body: dict[str, Any]) -> batches.Result:
        text = body["messages"][-1]["content"]
        if text not in failed and teacher.chance(text, "fails") < 0.3:
            failed.add(text)
            return 500, {"error": {"message": "try again"}}
        return answers(body)

    with batches.serving(sometimes) as server:
        folder = project(tmp_path, server.url)
        teacher.slmctl(folder, "label")
    assert failed
    assert len(server.batches) == 2
    assert labelled_rows(folder) == 20
    assert journal(folder).ledger.failed == len(failed)


def test_a_ceiling_is_held_in_batches_too(tmp_path: Path) -> None:
    with batches.serving(answers) as server:
        folder = project(tmp_path, server.url)
        with pytest.raises(PausedError, match=r"label\.max_cost"):
            teacher.slmctl(folder, "label", "--max-cost", "0.003", "--set", "label.max_tokens=8")
        cost = sum(teacher.tokens(body) * 2 + 2 * 8 for body in server.served) / 1e6
        assert 0.001 < cost <= 0.003


def test_texts_in_an_open_batch_are_not_asked_for_again(tmp_path: Path) -> None:
    guard.seal()
    requests = [WritingRequest(({"role": "user", "content": f"A message {k}"},), 1 + k) for k in range(6)]

    def write(folder: Path, max_time: float | None) -> list[object]:
        section = config.load(folder / "slmctl.yaml").label
        assert section is not None
        (large,) = section.teachers
        one = Journal(tmp_path / "texts.jsonl", large.prices)
        with opened([one]):
            writer = EndpointTeacher(
                section, large, one, Budget([one], None, max_time),
                task=Task("classify", "", "", labels=("a", "b")), examples=NearestExamples([], 0), cleared={},
            )  # fmt: skip
            return list(writer.write(requests))

    with batches.serving(answers, polls=10**9) as server:
        folder = project(tmp_path / "desk", server.url)
        assert write(folder, 0.2) == [None] * 6
        server.polls = 1
        for batch in server.batches.values():
            batch["left"] = 1
        assert all(write(folder, None))
    served = Counter(body["messages"][-1]["content"] for body in server.served)
    assert served == Counter(f"A message {k}" for k in range(6))
