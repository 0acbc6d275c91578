"""A file of reviews as a source: what people decided, and nothing targeted in a held-out split."""

from __future__ import annotations

import json
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import production

from slmctl import config
from slmctl.config import Source
from slmctl.errors import UsageError
from slmctl.init import raw_data
from slmctl.sources import reviewed, snapshot
from slmctl.sources.reviewed import Review
from slmctl.sources.rows import read_rows

CHOICES = ("uniform", "unsure", "disagreement", "suspect")
REVIEWS = st.lists(
    st.builds(
        production.reviewed,
        id=st.sampled_from([f"r{k}" for k in range(6)]),
        after=st.sampled_from(production.LABELS),
        reviewer=st.sampled_from(["ann", "bob", "cem"]),
        chosen=st.sampled_from(CHOICES),
        decision=st.sampled_from(["accepted", "corrected", "skipped", "undone"]),
    ),
    max_size=25,
)


def parts_of(path: Path, **fields: Any) -> list[Source]:
    return snapshot.gathered(
        [Source.model_validate({"path": path, **fields})], path.parent / "runs" / ".sources"
    )


def ids_of(source: Source) -> list[str]:
    return [str(row.columns["id"]) for row in read_rows(source.local, **source.reading)]


@settings(max_examples=40, deadline=None)
@given(REVIEWS)
def test_no_targeted_row_can_be_held_out(lines: list[Review]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = production.written(
            Path(folder) / "reviewed.jsonl", [production.reviewed("first"), *lines]
        )
        free = {id for part in parts_of(path) if part.split != "train" for id in ids_of(part)}
        bound = {id for part in parts_of(path) if part.split == "train" for id in ids_of(part)}
    assert free.isdisjoint(bound)
    for id in free:
        stack: list[Review] = []
        for line in [production.reviewed("first"), *lines]:
            if line.id == id:
                stack = stack[:-1] if line.decision == "undone" else [*stack, line]
        assert stack[-1].uniform


def test_each_part_has_its_rows_and_its_split(tmp_path: Path) -> None:
    path = production.written(
        tmp_path / "reviewed.jsonl",
        [
            production.reviewed("a", "delivery", chosen="uniform"),
            production.reviewed("b", "account", chosen="unsure"),
            production.reviewed("d", decision="skipped", messages=[]),
            production.reviewed("e"),
            production.reviewed("e", decision="undone", messages=[]),
        ],
    )
    uniform, targeted = parts_of(path)
    assert (uniform.split, targeted.split, ids_of(uniform), ids_of(targeted)) == (
        None,
        "train",
        ["a"],
        ["b"],
    )
    (row,) = read_rows(uniform.local, **uniform.reading)
    assert row.columns == {
        "id": "a",
        "time": production.TIME,
        "messages": [
            {"role": "user", "content": "where is parcel a"},
            {"role": "assistant", "content": "delivery"},
        ],
    }
    assert (uniform.title, targeted.title) == ("reviewed.uniform.jsonl", "reviewed.targeted.jsonl")
    assert uniform.whole == targeted.whole
    assert stat.S_IMODE(uniform.local.stat().st_mode) == 0o600
    assert reviewed.note(path) == (
        "reviewed.jsonl: 1 row drawn by chance, 1 picked for training alone; left out: 1 skipped, "
        "1 taken back"
    )


@pytest.mark.parametrize("split", ["validation", "calibration", "test"])
def test_a_held_out_split_is_refused_for_targeted_rows_alone(tmp_path: Path, split: str) -> None:
    path = production.written(tmp_path / "reviewed.jsonl", [production.reviewed("a")])
    assert [part.split for part in parts_of(path, split=split)] == [split]
    production.written(path, [production.reviewed("b", chosen="novel")])
    with pytest.raises(
        UsageError, match=f"picked, not drawn by chance, and its source says split: {split}"
    ):
        parts_of(path, split=split)
    assert [part.split for part in parts_of(path, split="train")] == ["train", "train"]


def test_the_recipe_follows_from_the_bytes(tmp_path: Path) -> None:
    lines = [production.reviewed("a"), production.reviewed("b", chosen="unsure")]
    first = production.written(tmp_path / "one" / "reviewed.jsonl", lines)
    second = tmp_path / "two" / "other.jsonl"
    second.parent.mkdir()
    shutil.copy(first, second)
    recipes = [[config.recipe(part) for part in parts_of(path)] for path in (first, second)]
    assert recipes[0] == recipes[1]
    production.written(second, [production.reviewed("c")])
    assert [config.recipe(part) for part in parts_of(second)] != recipes[0]


def test_files_of_several_reviewers_are_found_by_a_pattern(tmp_path: Path) -> None:
    for name in ("ann", "bob"):
        production.written(tmp_path / f"{name}.jsonl", [production.reviewed(name, chosen="unsure")])
    parts = parts_of(tmp_path / "*.jsonl")
    assert [(part.split, ids_of(part)) for part in parts] == [
        ("train", ["ann"]),
        ("train", ["bob"]),
    ]


@pytest.mark.parametrize(
    "line",
    [
        {"text": "hello", "category": "billing"},
        {"decision": "accepted"},
        {"reviewer": "ann", "decision": "so"},
    ],
)
def test_other_lines_stay_what_they_are(tmp_path: Path, line: dict[str, str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(line) + "\n")
    assert not reviewed.is_reviewed(path)
    (part,) = parts_of(path)
    assert part.local == path


def test_a_torn_first_line_hides_no_review(tmp_path: Path) -> None:
    path = tmp_path / "reviewed.jsonl"
    path.write_text('{"id": "torn", "time": "2026')
    production.written(path, [production.reviewed("a")])
    assert reviewed.is_reviewed(path)
    assert [ids_of(part) for part in parts_of(path)] == [["a"]]


def test_what_gc_may_not_remove(tmp_path: Path) -> None:
    path = production.written(tmp_path / "reviewed.jsonl", [production.reviewed("a")])
    (part,) = parts_of(path)
    assert part.local.parent in snapshot.copies_of(
        Source(path=path), tmp_path / "runs" / ".sources"
    )
    assert list(
        snapshot.reviews_among([Source(path=path), Source(path=tmp_path / "none.csv")])
    ) == [path]


def test_init_sees_conversations(tmp_path: Path) -> None:
    lines = [production.reviewed(f"r{k}", production.LABELS[k % 3]) for k in range(30)]
    looked = raw_data.read(
        "reviewed.jsonl", production.written(tmp_path / "reviewed.jsonl", lines).parent
    )
    assert looked.look.rows == 30
    assert [column.name for column in looked.look.columns] == ["id", "time", "messages"]
