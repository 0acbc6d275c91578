"""prepare on reviewed rows: whatever people decided, targeted rows are
trained on and never measured with.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import production, tiny
from support.preparing import COLUMNS, prepared

from slmctl import config, console
from slmctl.config import PrepareConfig
from slmctl.deduplication.row_fingerprints import id_digits
from slmctl.pipeline import row_estimate
from slmctl.pipeline.graph import Project
from slmctl.sources.reviewed import Review
from slmctl.stages.prepare import prepare, stage
from slmctl.task.records import SPLITS

TEXTS = [text for text, _ in tiny.rows(60, seed=5)]
DECISIONS = st.lists(
    st.tuples(
        st.sampled_from(production.LABELS), st.sampled_from(["uniform", "unsure", "suspect"])
    ),
    min_size=10,
    max_size=60,
)


def splits_of(lines: list[Review], folder: Path) -> dict[str, list[str]]:
    """The ids of the records of each split, after a run over the tickets and these reviews."""
    csv = tiny.write_csv(folder / "tickets.csv", tiny.rows(120, seed=1))
    path = production.written(folder / "reviewed.jsonl", lines)
    few = {"train": 0, "validation": 0, "test": 0}
    found = prepared(
        folder, {"path": path}, {"path": csv, **COLUMNS}, task={"kind": "classify"}, min_rows=few
    )
    return {split: [record.id for record in records] for split, records in found.sides.items()}


@settings(max_examples=6, deadline=None)
@given(DECISIONS)
def test_targeted_rows_are_never_held_out(decisions: list[tuple[str, str]]) -> None:
    lines = [
        production.reviewed(
            f"r{k}", label, chosen=chosen, messages=[{"role": "user", "content": TEXTS[k]}]
        )
        for k, (label, chosen) in enumerate(decisions)
    ]
    with tempfile.TemporaryDirectory() as folder:
        splits = splits_of(lines, Path(folder))
    targeted = {id_digits(line.id) for line in lines if not line.uniform}
    assert not targeted & {id for split in SPLITS[1:] for id in splits[split]}


def test_uniform_rows_are_split_as_always(tmp_path: Path) -> None:
    lines = [
        production.reviewed(f"r{k}", messages=[{"role": "user", "content": text}])
        for k, text in enumerate(TEXTS)
    ]
    splits = splits_of(lines, tmp_path)
    uniform = {id_digits(line.id) for line in lines}
    assert all(uniform & set(splits[split]) for split in SPLITS)


def test_a_targeted_row_takes_no_place_of_a_held_out_one(tmp_path: Path) -> None:
    # a bug: the file of reviews stands first, so its targeted rows emptied the test split of their
    # equals
    tickets = tiny.rows(120, seed=1)
    other = production.reviewed("other", chosen="unsure")  # equals none of them
    (tmp_path / "alone").mkdir()
    alone = splits_of([other], tmp_path / "alone")
    lines = [
        other,
        *(
            production.reviewed(
                f"r{k}", label, chosen="unsure", messages=[{"role": "user", "content": text}]
            )
            for k, (text, label) in enumerate(tickets)
        ),
    ]
    (tmp_path / "both").mkdir()
    both = splits_of(lines, tmp_path / "both")
    assert {split: both[split] for split in SPLITS[1:]} == {
        split: alone[split] for split in SPLITS[1:]
    }
    assert len(alone["test"]) > 5
    assert len(both["train"]) == len(alone["train"])
    # of equal training rows the decision stays, which stands first
    assert set(both["train"]) & set(alone["train"]) == {id_digits(other.id)}


def test_explain_and_plan_read_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        production.reviewed(
            f"r{k}", production.LABELS[k % 3], chosen="unsure" if k % 3 else "uniform"
        )
        for k in range(30)
    ]
    production.written(tmp_path / "reviewed.jsonl", lines)
    (tmp_path / "slmctl.yaml").write_text(
        "project: desk\nbase: base\ntask: {kind: classify}\nprepare: {sources: [{path: "
        "reviewed.jsonl}]}\n"
    )
    project = Project(tmp_path, config.load(tmp_path / "slmctl.yaml"))
    console.set_level(0)
    section, base = stage.reading(project)
    assert (
        "reviewed.jsonl: 10 rows drawn by chance, 20 picked for training alone"
        in capsys.readouterr().err
    )
    assert isinstance(section, PrepareConfig)
    text = prepare.explain(section, base=base)
    assert (
        "reviewed.targeted.jsonl: messages" in text
        and "of the first 20 rows 20 are records" in text
    )
    estimate = row_estimate.of(project)
    assert estimate is not None
    assert (estimate.rows, estimate.train, estimate.test, estimate.most_test) == (30, 26, 2, 7)
