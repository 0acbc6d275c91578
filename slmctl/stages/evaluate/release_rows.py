"""Records, scored models and a release's data set -> the release compared
with each model on old and new rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from slmctl.artifacts.artifact import Artifact
from slmctl.deduplication import minhash, row_fingerprints
from slmctl.deduplication.row_fingerprints import Fingerprints
from slmctl.reports.evaluation_report import ReleaseEntry, ReleaseRows
from slmctl.stages.evaluate.paired_comparison import compare_on
from slmctl.stages.evaluate.scoring import Mask, Scored, distributions
from slmctl.task.records import SPLITS, Record


def entry(
    name: str,
    title: str,
    models: Mapping[str, Scored],
    records: Sequence[Record],
    data_set: Artifact | None,
    confidence: float,
) -> ReleaseEntry:
    """The release of a report.

    Args:
        title: Its project and version.
        models: The release by its `name`, and the models that it is compared with, scored on the
            records.
        data_set: The data set that it was trained on; None if it is not available.

    Raises:
        IntegrityError: The hashes of the data set's rows cannot be read.
    """
    made: ReleaseEntry = {"name": name, "title": title, "trained_on": 0, "rows": {}}
    if data_set is None or not (data_set.path / row_fingerprints.FILENAME).is_file():
        return made
    splits = _splits(records, data_set)
    old = np.array([bool(held & {*SPLITS}) for held in splits])
    made["trained_on"] = sum("train" in held for held in splits)
    made["rows"] = {
        title: _on(name, models, rows, confidence) for title, rows in (("old", old), ("new", ~old))
    }
    return made


def _splits(records: Sequence[Record], data_set: Artifact) -> list[frozenset[str]]:
    """The splits of a data set that hold the text of each record, whatever its answer there."""
    prints = Fingerprints(data_set.file(row_fingerprints.FILENAME))
    return prints.splits_of([minhash.digest(minhash.normalise(record.input)) for record in records])


def _on(name: str, models: Mapping[str, Scored], rows: Mask, confidence: float) -> ReleaseRows:
    if not rows.any():
        return {"n": 0, "values": {}, "differences": {}}
    drawn = distributions(models, rows)
    release = models[name]
    return {
        "n": int(rows.sum()),
        "values": {
            title: {metric: model.value(metric, rows) for metric in model.metrics}
            for title, model in models.items()
        },
        "differences": {
            title: compare_on(release, model, rows, (drawn[name], drawn[title]), confidence)
            for title, model in models.items()
            if title != name
        },
    }
