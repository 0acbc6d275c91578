"""prepare on reviewed rows: whatever people decided, targeted rows are trained on and never measured with."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from support import TESTS, production, tiny

from slmctl.artifacts import artifact
from slmctl.config import PrepareConfig
from slmctl.deduplication.row_fingerprints import id_digits
from slmctl.production.records import Review
from slmctl.sources import snapshot
from slmctl.stages.prepare import prepare
from slmctl.task.records import SPLITS, read_records

BASE = TESTS / "fixtures" / "0.1.0" / "base"
TEXTS = [text for text, _ in tiny.rows(60, seed=5)]
DECISIONS = st.lists(
    st.tuples(st.sampled_from(production.LABELS), st.sampled_from(["uniform", "unsure", "suspect"])),
    min_size=10,
    max_size=60,
)


def splits_of(lines: list[Review], folder: Path) -> dict[str, list[str]]:
    """The ids of the records of each split, after a run over the tickets and these reviews."""
    csv = tiny.write_csv(folder / "tickets.csv", tiny.rows(120, seed=1))
    path = production.written(folder / "reviewed.jsonl", lines)
    sources = [{"path": path}, {"path": csv, "input": "text", "output": "category"}]
    config = PrepareConfig.model_validate(
        {"task": {"kind": "classify"}, "sources": sources, "min_rows": {"train": 0, "validation": 0, "test": 0}}
    )
    config = config.model_copy(update={"sources": snapshot.gathered(config.sources, folder / "runs" / ".sources")})
    out = folder / "out"
    out.mkdir()
    prepare.run(config, base=artifact.load(BASE), out=out)
    return {split: [record.id for record in read_records(out / f"{split}.jsonl")] for split in SPLITS}


@settings(max_examples=6, deadline=None)
@given(DECISIONS)
def test_targeted_rows_are_never_held_out(decisions: list[tuple[str, str]]) -> None:
    lines = [
        production.reviewed(f"r{k}", label, chosen=chosen, messages=[{"role": "user", "content": TEXTS[k]}])
        for k, (label, chosen) in enumerate(decisions)
    ]
    with tempfile.TemporaryDirectory() as folder:
        splits = splits_of(lines, Path(folder))
    targeted = {id_digits(line.id) for line in lines if not line.uniform}
    assert not targeted & {id for split in SPLITS[1:] for id in splits[split]}


def test_uniform_rows_are_split_as_always(tmp_path: Path) -> None:
    lines = [production.reviewed(f"r{k}", messages=[{"role": "user", "content": text}]) for k, text in enumerate(TEXTS)]
    splits = splits_of(lines, tmp_path)
    uniform = {id_digits(line.id) for line in lines}
    assert all(uniform & set(splits[split]) for split in SPLITS)
