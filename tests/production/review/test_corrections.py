"""From a suspected label to a better data set: a person corrects it, and
the next data set has it where it was.
"""

from __future__ import annotations

from pathlib import Path

from support import tiny
from support.preparing import COLUMNS, prepared

from slmctl.production.review import order, review_rows
from slmctl.production.review.session import ReviewSession
from slmctl.task.contract import Task
from slmctl.task.records import SPLITS


def labels_and_splits(
    folder: Path, *sources: dict[str, object]
) -> tuple[Path, dict[str, tuple[str, str]]]:
    """A data set, and the label and the split of each text."""
    found = prepared(folder, *sources, task={"kind": "classify"})
    records = ((record, split) for split in SPLITS for record in found.sides[split])
    return found.out, {record.input: (record.answer, split) for record, split in records}


def test_a_corrected_label_is_trained_on_and_no_row_changes_its_split(tmp_path: Path) -> None:
    pairs = tiny.rows(400, seed=7)
    truth, labels = dict(pairs), sorted(tiny.WORDS)
    for k in range(10, 400, 40):  # some are training rows
        text, label = pairs[k]
        pairs[k] = (text, labels[(labels.index(label) + 1) % len(labels)])
    tickets = {"path": tiny.write_csv(tmp_path / "tickets.csv", pairs), **COLUMNS}
    out, before = labels_and_splits(tmp_path, tickets)
    task, suspects = Task.read(out), review_rows.suspects_in(out)
    planted = {text for text, label in pairs if truth[text] != label and before[text][1] == "train"}
    assert planted <= {suspect.row.text for suspect in suspects}
    queue = order.targeted_queue([], {}, task=task, suspects=suspects)
    with ReviewSession(
        queue, task=task, output=tmp_path / "reviewed.jsonl", reviewer="ann"
    ) as session:
        for suspect in queue:
            session.decide(suspect.id, truth[suspect.row.text])
    _, after = labels_and_splits(tmp_path, {"path": session.output}, tickets)
    assert {text: split for text, (_, split) in after.items()} == {
        text: split for text, (_, split) in before.items()
    }
    assert all(label == truth[text] for text, (label, split) in after.items() if split == "train")
    held_out = {text: label for text, (label, split) in before.items() if split != "train"}
    # nobody has changed a label that measures
    assert {text: after[text][0] for text in held_out} == held_out
