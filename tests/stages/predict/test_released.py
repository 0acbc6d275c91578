"""A release that gates compare with: asked as it was published, and labels by their names."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from slmctl.artifacts.artifact import Artifact, Manifest
from slmctl.errors import UsageError
from slmctl.stages.predict import released
from slmctl.task.contract import Task
from slmctl.task.records import Record

TASK = Task("classify", "", "", labels=("a", "b", "new"), system="Name the topic.")


def release(folder: Path, **fields: Any) -> Artifact:
    folder.mkdir()
    dataclasses.replace(TASK, **fields).write(folder)
    facts = {"project": "desk", "version": "1.0"}
    return Artifact(folder, Manifest("published", "publish/4", "sha256:0", "", {}, {}, (), facts))


def record(system: str, text: str = "hello") -> Record:
    turns = [{"role": "system", "content": system}] if system else []
    turns += [
        {"role": "user", "content": text},
        {"role": "assistant", "content": "a", "weight": 2.0},
    ]
    return Record(id="1", messages=tuple(turns), source={"file": "x.csv", "row": 2})  # type: ignore[arg-type]


def test_labels_may_be_missing_and_not_foreign(tmp_path: Path) -> None:
    own = released.contract(release(tmp_path / "fewer", labels=("a", "b")), TASK)
    assert own.labels == ("a", "b")
    with pytest.raises(
        UsageError, match=r"desk 1\.0 answers with labels that this task has not: 'c', 'd'"
    ) as caught:
        released.contract(release(tmp_path / "other", labels=("a", "c", "d")), TASK)
    assert "task.labels.map" in caught.value.hint
    with pytest.raises(
        UsageError, match=r"desk 1\.0 is of a generate task, and this one is classify"
    ):
        released.contract(release(tmp_path / "kind", kind="generate", labels=()), TASK)


@pytest.mark.parametrize(
    ("own", "now", "row", "asked"),
    [
        ("Old words.", "Name the topic.", "Name the topic.", "Old words."),
        ("", "Name the topic.", "Name the topic.", ""),
        ("Old words.", "", "The row's own.", "Old words."),
        ("", "", "The row's own.", "The row's own."),
    ],
)
def test_the_system_prompt_is_the_one_of_the_release(
    own: str, now: str, row: str, asked: str
) -> None:
    old, task = dataclasses.replace(TASK, system=own), dataclasses.replace(TASK, system=now)
    shown = released.as_asked(record(row), old, task)
    assert [turn["content"] for turn in shown.prompt_messages if turn["role"] == "system"] == [
        asked
    ] * bool(asked)
    assert shown.answer == "a"


def test_texts_are_cleaned_as_the_release_cleans_them() -> None:
    old = dataclasses.replace(TASK, clean=("html",))
    shown = released.as_asked(record("Name the topic.", "<b>hello</b>"), old, TASK)
    assert shown.input == "hello"
