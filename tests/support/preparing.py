"""A run of prepare on sources as a config has them, over the kept
base: no model is trained for it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from slmctl import sensitive
from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact
from slmctl.config import PrepareConfig, Source
from slmctl.sources import snapshot
from slmctl.stages.prepare import prepare
from slmctl.stages.prepare.record_reader import ReadingPlan, RecordBatch, RecordReader
from slmctl.task.contract import Task
from slmctl.task.records import SPLITS, read_records
from support import TESTS

BASE = TESTS / "fixtures" / "0.1.0" / "base"
COLUMNS = {"input": "text", "output": "category"}


class Prepared:
    """What a run left."""

    def __init__(self, out: Path, metrics: dict[str, Any]) -> None:
        self.out, self.metrics = out, metrics
        self.sides = {split: read_records(out / f"{split}.jsonl") for split in SPLITS}
        self.rejected = [
            json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()
        ]

    @property
    def side_of(self) -> dict[str, str]:
        """The split of every input."""
        return {record.input: split for split, records in self.sides.items() for record in records}


def prepared(
    folder: Path,
    *sources: dict[str, Any],
    task: Any,
    labelled: Artifact | None = None,
    **settings: Any,
) -> Prepared:
    """Run it in a folder that the sources are gathered in."""
    out = folder / f"out{len(list(folder.iterdir()))}"
    out.mkdir()
    local = snapshot.gathered(
        [Source.model_validate(source) for source in sources], folder / "runs" / ".sources"
    )
    config = PrepareConfig.model_validate({"task": task, "sources": local, **settings})
    return Prepared(out, prepare.run(config, base=artifact.load(BASE), out=out, labelled=labelled))


def read(
    source: Source,
    rows: list[dict[str, Any]],
    task: Task,
    tokenizer: Path | None = None,
    **policy: Any,
) -> RecordBatch:
    """The records of the rows of one source, by a contract that is made by hand."""
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    sensitive_policy = sensitive.SensitivePolicy(policy, b"")
    plan = ReadingPlan((source,), (columns,), task, None, False, sensitive_policy, tokenizer)
    return RecordReader(plan).read(0, [(number, row, "") for number, row in enumerate(rows, 1)])
