"""prepare: every row is accounted for, and no held-out row leaks into training."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
import tiny

from slmctl import similar
from slmctl.artifact import Artifact
from slmctl.config import PrepareConfig
from slmctl.data import prepare
from slmctl.errors import DataError
from slmctl.records import SPLITS, read_records
from slmctl.task import Task

CLASSIFY = {"kind": "classify", "labels": "from-data", "system": tiny.SYSTEM}


class Prepared:
    """What a run of prepare left."""

    def __init__(self, out: Path, metrics: dict[str, Any]) -> None:
        self.out, self.metrics = out, metrics
        self.sides = {split: read_records(out / f"{split}.jsonl") for split in SPLITS}
        self.rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]

    @property
    def side_of(self) -> dict[str, str]:
        return {record.input: split for split, records in self.sides.items() for record in records}


@pytest.fixture
def run(artifacts: dict[str, Artifact], tmp_path: Path) -> Any:
    """prepare on pairs of text and category."""

    def call(pairs: list[tuple[str, str]], *, task: Any = CLASSIFY, source: Any = None, **settings: Any) -> Prepared:
        folder = tmp_path / f"call{len(list(tmp_path.iterdir()))}"
        out = folder / "out"
        out.mkdir(parents=True)
        path = tiny.write_csv(folder / "tickets.csv", pairs)
        sources = [{"path": path, "input": "text", "output": "category", **(source or {})}]
        config = PrepareConfig.model_validate({"task": task, "sources": sources, **settings})
        return Prepared(out, prepare.run(config, base=artifacts["base"], out=out))

    return call


def test_rows_in_are_rows_out_and_rejected(run: Any) -> None:
    pairs = tiny.rows(200)
    bad = [("", "billing"), ("no category", ""), pairs[0], (pairs[1][0].upper() + "!", "other")]
    found = run([*pairs, *bad])
    kept = sum(len(records) for records in found.sides.values())
    assert found.metrics["rows_in"] == 204 == kept + len(found.rejected)
    places = [record.source["row"] for records in found.sides.values() for record in records]
    assert sorted([*places, *(row["source"]["row"] for row in found.rejected)]) == list(range(1, 205))


def test_each_reason_is_named(run: Any) -> None:
    pairs = tiny.rows(200)
    text, label = pairs[0]
    other = next(name for name in tiny.WORDS if name != label)
    found = run([*pairs, ("", "billing"), ("no category", ""), (text, label), (text.upper() + " !", other)])
    rules = {row["source"]["row"]: (row["rule"], row["reason"]) for row in found.rejected if row["source"]["row"] > 200}
    assert rules == {
        201: ("empty input", "'text' is empty"),
        202: ("empty answer", "'category' is empty"),
        203: ("duplicate", "same input as tickets.csv row 1"),
        204: ("conflicting duplicate", f"same input as tickets.csv row 1, which has the answer '{label}'"),
    }
    assert found.metrics["conflicts"]["pairs"] == 1
    assert found.metrics["conflicts"]["examples"][0]["answers"] == [label, other]


def test_a_label_outside_the_list_is_rejected_with_the_nearest(run: Any) -> None:
    task = {**CLASSIFY, "labels": list(tiny.WORDS)}
    found = run([*tiny.rows(200), ("a row by itself", "biling")], task=task)
    assert found.rejected[-1]["rule"] == "unknown label"
    assert "did you mean 'billing'?" in found.rejected[-1]["reason"]


def test_the_split_does_not_depend_on_order_or_on_other_rows(run: Any) -> None:
    pairs = tiny.rows(200)
    first = run(pairs).side_of
    shuffled = random.Random(1).sample(pairs, len(pairs))
    assert run(shuffled).side_of == first
    more = run([*pairs, *tiny.rows(120, seed=9)]).side_of
    moved = {text for text, side in first.items() if more.get(text, side) != side}
    assert not moved


def test_groups_stay_together(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    with (tmp_path / "tickets.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "category", "customer"])
        writer.writerows([text, label, f"C{k % 40}"] for k, (text, label) in enumerate(tiny.rows(300)))
    source = {"path": tmp_path / "tickets.csv", "input": "text", "output": "category", "group": "customer"}
    config = PrepareConfig.model_validate({"task": CLASSIFY, "sources": [source]})
    (tmp_path / "out").mkdir()
    found = Prepared(tmp_path / "out", prepare.run(config, base=artifacts["base"], out=tmp_path / "out"))
    sides: dict[str, set[str]] = {}
    for split, records in found.sides.items():
        for record in records:
            sides.setdefault(str(record.group), set()).add(split)
    assert len(sides) == 40
    assert all(len(splits) == 1 for splits in sides.values())


def test_near_duplicates_of_held_out_rows_are_kept_out_of_training(run: Any) -> None:
    pairs = tiny.rows(200)
    held_out = [record.input for record in run(pairs).sides["test"]]
    variants = [
        (text + extra, "billing") for text in held_out[:6] for extra in (" so", " ok", " at", " by", " up", " to")
    ]
    found = run([*pairs, *variants])
    assert found.metrics["near_held_out"]["left_out"] > 0
    near = [row for row in found.rejected if row["rule"] == "near a held-out row"]
    assert len(near) == found.metrics["near_held_out"]["left_out"]
    references = [similar.normalise(r.input) for split in SPLITS[1:] for r in found.sides[split]]
    for record in found.sides["train"]:  # every pair compared, in place of the hashes that prepare trusts
        assert max(similar.ratio(similar.normalise(record.input), other) for other in references) < 0.85


def test_a_source_can_be_bound_to_a_side(run: Any) -> None:
    with pytest.raises(DataError, match="no rows are left for 'train'"):
        run(tiny.rows(50), source={"split": "test"})


def test_an_unknown_column_is_refused_with_the_nearest(run: Any) -> None:
    with pytest.raises(DataError, match=r"has no column 'categry'; did you mean 'category'\?") as caught:
        run(tiny.rows(50), source={"output": "categry"})
    assert caught.value.hint == "its columns: text, category"
    assert caught.value.code == 3


@pytest.mark.parametrize(("pairs", "message"), [([], "holds no rows"), (tiny.rows(3), "no rows are left for")])
def test_too_little_data_is_refused(run: Any, pairs: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        run(pairs)
    assert caught.value.code == 3


def test_the_contract_is_written(run: Any) -> None:
    task = Task.read(run(tiny.rows(100)).out)
    assert (task.kind, task.labels, task.system) == ("classify", tuple(sorted(tiny.WORDS)), tiny.SYSTEM)
    assert (task.chat_template, task.end) == (tiny.TEMPLATE, "<|im_end|>")
    assert "<|im_start|>" in task.special_tokens


def test_the_same_bytes_under_other_hash_seeds(tiny_run: Path, desk: Path) -> None:
    first = next(tiny_run.glob("runs/prepared/*"))
    again = next(desk.glob("runs/prepared/*"))
    for path in sorted(again.iterdir(), reverse=True):
        path.unlink()
    again.rmdir()
    tiny.ok(tiny.slmctl(desk, "prepare", env=tiny.environment(PYTHONHASHSEED="4711")))
    names = {path.name for path in first.iterdir()} - {"manifest.json"}
    assert {path.name for path in again.iterdir()} - {"manifest.json"} == names
    for name in names:
        assert (again / name).read_bytes() == (first / name).read_bytes()
