"""`serve` refuses at its start settings that would do nothing, so that nobody relies on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import tiny
from support.forks import Forks

from slmctl.task.contract import Task

LABELS = Task("classify", tiny.TEMPLATE, "<|im_end|>", labels=("billing", "delivery"))
DRAFTS = Task("generate", tiny.TEMPLATE, "<|im_end|>")
REFUSE, DOCUMENTS = "serve.refuse=[ungrounded]", "serve.documents=true"


@pytest.fixture(scope="module")
def lines() -> Iterator[Forks]:
    with Forks("slmctl.cli.main", "slmctl.config", "slmctl.server.served_fleet") as forks:
        yield forks


@pytest.mark.parametrize(
    ("task", "setting", "words"),
    [
        (LABELS, REFUSE, "serve.refuse checks drafts, and no task here writes them"),
        (
            LABELS,
            DOCUMENTS,
            "serve.documents is for a task that reads documents in windows, and none here does",
        ),
        (
            DRAFTS,
            DOCUMENTS,
            "serve.documents is for a task that reads documents in windows, and none here does",
        ),
    ],
)
def test_who_sets_what_does_nothing_for_the_task_is_told_before_anything_is_served(
    lines: Forks, tmp_path: Path, task: Task, setting: str, words: str
) -> None:
    """They were served without a word: no draft was checked, and a
    document went whole to another server.
    """
    (tmp_path / "slmctl.yaml").write_text("project: desk\nbase: ./base\n")
    (tmp_path / "task").mkdir()
    task.write(tmp_path / "task")
    own = ("--engine-url", "http://127.0.0.1:9/v1", "--engine-model", "x")
    done = lines.run(
        tmp_path, "serve", str(tmp_path / "task"), *own, "--port", "0", "--set", setting
    )
    first, *others = done.stderr.splitlines()
    assert (done.code, len(others)) == (2, 1), done.stderr
    assert first.startswith(f"error: {words}")
