"""A teacher's labels in later stages: train side only, weighted, traced,
and declared before the public sees them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from support import endpoint, handmade, released, teacher, tiny
from support.preparing import COLUMNS, prepared

from slmctl.artifacts.artifact import Artifact, Manifest
from slmctl.config import PublishConfig
from slmctl.deduplication.row_fingerprints import FILENAME, FingerprintWriter
from slmctl.errors import GateError, IntegrityError, UsageError
from slmctl.provenance.trace import Standing, trace
from slmctl.stages.publish import publish
from slmctl.task.records import read_records, write_jsonl

TASK = {"kind": "classify", "labels": "from-data", "system": "Name the category."}


def labelled(folder: Path, rows: list[dict[str, Any]], name: str = "one") -> Artifact:
    """A labelled artifact by hand."""

    def fill(place: Path) -> None:
        write_jsonl(place / "accepted.jsonl", rows)
        with FingerprintWriter(place / FILENAME) as prints:
            gold = [{"id": "f" * 16, "input": "a gold row of the threshold"}]
            for split, some in (("train", rows), ("calibration", gold)):
                prints.add_texts(split, [row["id"] for row in some], [row["input"] for row in some])

    return handmade.make(folder / "runs" / "labelled" / name, fill, metrics={"accepted": len(rows)})


def row(k: int, text: str, label: str, weight: float = 0.9) -> dict[str, Any]:
    return {"id": f"{k:016x}", "input": text, "output": label, "weight": weight}


def test_accepted_rows_are_trained_on_and_nothing_is_measured_with_them(tmp_path: Path) -> None:
    pairs = tiny.rows(400, seed=5)
    tickets = {"path": tiny.write_csv(tmp_path / "tickets.csv", pairs[:300]), **COLUMNS}
    before = prepared(tmp_path, tickets, task=TASK)
    held_out = before.sides["test"][0]
    known = {text for text, _ in pairs[:300]}
    rows = [row(k, text, label, 0.5 + k / 1000) for k, (text, label) in enumerate(pairs[300:])]
    rows.append(row(900, held_out.input + " please", held_out.answer))  # near a test row
    # a gold row with another label: the people's stays
    rows.append(row(901, pairs[0][0], "delivery"))
    after = prepared(tmp_path, tickets, task=TASK, labelled=labelled(tmp_path, rows))
    for name in ("validation", "calibration", "test"):
        assert (after.out / f"{name}.jsonl").read_bytes() == (
            before.out / f"{name}.jsonl"
        ).read_bytes()
    records = {record.id: record for record in after.sides["train"]}
    assert {record.input for record in records.values() if record.input not in known} == {
        text for text, _ in pairs[300:]
    }
    assert records[f"{7:016x}"].messages[-1]["weight"] == 0.507
    assert records[f"{7:016x}"].source["file"] == "labelled"
    assert not records.keys() & {f"{900:016x}", f"{901:016x}"}
    assert [source["file"] for source in after.metrics["sources"]] == ["tickets.csv", "labelled"]
    nothing = prepared(tmp_path, tickets, task=TASK, labelled=labelled(tmp_path, [], name="none"))
    assert len(nothing.metrics["sources"]) == 1


def test_a_row_is_found_in_labels_and_a_gold_row_was_only_measured_with(tmp_path: Path) -> None:
    kettle = row(1, "the kettle that i bought is broken", "delivery")
    one = labelled(tmp_path, [kettle, row(2, "my bank card", "billing")])

    def fill(place: Path) -> None:
        with FingerprintWriter(place / FILENAME) as prints:
            prints.add_texts("train", ["1" * 16], [kettle["input"]])

    data = handmade.make(
        tmp_path / "runs" / "prepared" / "data", fill, inputs={"labelled": one.digest}
    )
    handmade.make(tmp_path / "runs" / "adapter" / "model", inputs={"prepared": data.digest})

    def standings(text: str) -> dict[str, Standing]:
        return {
            Path(entry.path).name: entry.standing for entry in trace(tmp_path, text=text).artifacts
        }

    used = standings("the kettle that i bought is broken")
    assert used == {"one": Standing.TRAINED, "data": Standing.TRAINED, "model": Standing.TRAINED}
    unused = standings("my bank card")  # accepted, and left out of the data set
    assert unused == {"one": Standing.TRAINED, "data": Standing.CLEAR, "model": Standing.CLEAR}
    gold = standings("a gold row of the threshold")
    assert gold == {"one": Standing.HELD_OUT, "data": Standing.HELD_OUT, "model": Standing.CLEAR}


@pytest.mark.parametrize(
    ("terms", "to", "said"),
    [
        ("", {"to": "hf:acme/desk", "public": True}, "are not declared"),
        ("private", {"to": "hf:acme/desk", "public": True}, "are declared private"),
        ("permitted", {"to": "hf:acme/desk", "public": True}, ""),
        ("", {"to": "hf:acme/desk"}, ""),
        ("", {"to": "dir:./registry"}, ""),
    ],
)
def test_the_public_gets_no_model_of_a_teacher_whose_terms_are_not_declared(
    terms: str, to: dict[str, Any], said: str, tmp_path: Path
) -> None:
    made = released.release(tmp_path)
    metrics = made.metrics | {"teachers": [{"name": "large", "terms": terms}]}
    release = Artifact(made.path, Manifest(**made.manifest.__dict__ | {"metrics": metrics}))
    section = PublishConfig.model_validate(to)
    if said:
        with pytest.raises(GateError, match=f"the terms of the teacher large.*{said}"):
            publish.require_allowed(release, section)
    else:
        publish.require_allowed(release, section)


@pytest.mark.slow
def test_a_run_labels_after_pull_and_before_prepare(tiny_base: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    with endpoint.serving(teacher.manners()) as fake:
        folder = teacher.project(
            tmp_path / "desk", fake.url, rows=40, gold=240, more="  votes: 1\n"
        )
        shutil.copytree(tiny_base, folder / "base")
        with pytest.raises(IntegrityError, match="no current artifact 'labelled'"):
            teacher.slmctl(folder, "pull")
            teacher.slmctl(folder, "prepare")
        teacher.slmctl(folder, "run", "--until", "prepare")
        asked = len(fake.bodies)
        teacher.slmctl(folder, "run", "--until", "prepare")
        assert len(fake.bodies) == asked > 200
    accepted = teacher.lines(teacher.labelled(folder) / "accepted.jsonl")
    (data,) = (folder / "runs" / "prepared").glob("[!.]*")
    train = [
        record
        for record in read_records(data / "train.jsonl")
        if record.source["file"] == "labelled"
    ]
    assert {record.input for record in train} == {entry["input"] for entry in accepted}
    with pytest.raises(UsageError, match="are not asked again"):
        teacher.slmctl(folder, "reproduce", str(teacher.labelled(folder)))
    teacher.slmctl(folder, "gc", "--yes")
    assert teacher.labelled(folder)
    assert list((folder / "runs" / ".teachers").glob("*.jsonl"))
