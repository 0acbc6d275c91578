"""From a suspected label to a better data set: a person corrects it, and the next data set has it where it was."""

from __future__ import annotations

from pathlib import Path

from support import TESTS, tiny

from slmctl.artifacts import artifact
from slmctl.config import PrepareConfig
from slmctl.production.review import order, review_rows
from slmctl.production.review.session import ReviewSession
from slmctl.sources import snapshot
from slmctl.stages.prepare import prepare
from slmctl.task.contract import Task
from slmctl.task.records import SPLITS, read_records

BASE = TESTS / "fixtures" / "0.1.0" / "base"


def prepared(folder: Path, name: str, sources: list[dict[str, object]]) -> dict[str, tuple[str, str]]:
    """Make a data set; returns the label and the split of each text."""
    section = PrepareConfig.model_validate({"task": {"kind": "classify"}, "sources": sources})
    section = section.model_copy(update={"sources": snapshot.gathered(section.sources, folder / "runs" / ".sources")})
    out = folder / name
    out.mkdir()
    prepare.run(section, base=artifact.load(BASE), out=out)
    records = {split: read_records(out / f"{split}.jsonl") for split in SPLITS}
    return {record.input: (record.answer, split) for split in SPLITS for record in records[split]}


def test_a_corrected_label_is_trained_on_and_no_row_changes_its_split(tmp_path: Path) -> None:
    pairs = tiny.rows(400, seed=7)
    truth, labels = dict(pairs), sorted(tiny.WORDS)
    for k in range(10, 400, 40):  # some are training rows
        text, label = pairs[k]
        pairs[k] = (text, labels[(labels.index(label) + 1) % len(labels)])
    tickets = {"path": tiny.write_csv(tmp_path / "tickets.csv", pairs), "input": "text", "output": "category"}
    before = prepared(tmp_path, "before", [tickets])
    task = Task.read(tmp_path / "before")
    suspects = review_rows.suspects_in(tmp_path / "before")
    planted = {text for text, label in pairs if truth[text] != label and before[text][1] == "train"}
    assert planted <= {suspect.row.text for suspect in suspects}
    queue = order.targeted_queue([], {}, task=task, suspects=suspects)
    with ReviewSession(queue, task=task, output=tmp_path / "reviewed.jsonl", reviewer="ann") as session:
        for suspect in queue:
            session.decide(suspect.id, truth[suspect.row.text])
    after = prepared(tmp_path, "after", [{"path": session.output}, tickets])
    assert {text: split for text, (_, split) in after.items()} == {text: split for text, (_, split) in before.items()}
    assert all(label == truth[text] for text, (label, split) in after.items() if split == "train")
    held_out = {text: label for text, (label, split) in before.items() if split != "train"}
    assert {text: after[text][0] for text in held_out} == held_out  # nobody has changed a label that measures
