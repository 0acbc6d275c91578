"""Novelty of a question: True where it is less like every training row than nearly all held-out rows are.

Training rows are known by the hashes of `rows.bin` alone. The bound follows from the data set itself: 5 of 100 held-out
rows are as unlike the training rows, so some 5 of 100 questions are novel while the traffic is like the data.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from slmctl.artifacts import lineage
from slmctl.artifacts.artifact import Artifact, sha256_file
from slmctl.deduplication import minhash, row_fingerprints
from slmctl.deduplication.minhash import U64
from slmctl.deduplication.row_fingerprints import FILENAME, Fingerprints
from slmctl.errors import IntegrityError

MOST = 10_000  # training rows that a question is compared with; of more, as many at equal distances
HELD_OUT = 400  # rows that set the bound
SHARE = 0.05  # of the held-out rows that count as novel
FEW = 20  # held-out rows; fewer set no bound
USUAL = 0.2  # the bound where they do not


class Novelty:
    """The training rows of a model, to compare questions with.

    Args:
        training: Compact sketches of the training rows, `(n, WORDS)`.
        held_out: The same of rows that it was not trained on; they set the bound.
    """

    def __init__(self, training: U64, held_out: U64) -> None:
        self._training = np.ascontiguousarray(_spread(training, MOST))
        likest = [self._similarity(row) for row in _spread(held_out, HELD_OUT)]
        self.bound = float(np.quantile(likest, SHARE)) if len(likest) >= FEW else USUAL

    @classmethod
    def read(cls, path: Path) -> Novelty | None:
        """The novelty by a `rows.bin`; None where it has no training row.

        Raises:
            IntegrityError: The file is of another version, or cut off.
        """
        prints = Fingerprints(path)
        training = prints.sketches("train")
        held_out = np.concatenate([prints.sketches(split) for split in ("validation", "calibration", "test")])
        return cls(training, held_out) if len(training) else None

    def is_novel(self, text: str) -> bool:
        """True where no training row is like a question; see `CheckedRequest.question`."""
        return self._similarity(row_fingerprints.query_fingerprint(text).sketch) < self.bound

    def _similarity(self, sketch: U64) -> float:
        """The similarity of the likest training row, 0 to 1."""
        return float(minhash.estimate(self._training, sketch).max())


def data_set_of(root: Path, model: Artifact) -> Path | None:
    """The `rows.bin` of the data set that a model was trained on; None where it is not below `runs/` as it was.

    Args:
        root: The project's folder.
        model: A release, or any artifact on the way to one.
    """
    here = {entry.digest: entry for entry in lineage.readable_artifacts(root)}
    left, seen = [model], set[str]()
    for entry in left:
        if entry.kind == "prepared":
            listed = [file.sha256 for file in entry.manifest.files if file.path == FILENAME]
            path = entry.path / FILENAME
            return path if listed and path.is_file() and sha256_file(path) == f"sha256:{listed[0]}" else None
        inputs = {role: entry.manifest.inputs.get(role) for role in ("prepared", "adapter", "merged")}
        for digest in inputs.values():
            if isinstance(digest, str) and digest in here and digest not in seen:
                seen.add(digest)
                left.append(here[digest])
    return None


def of_model(root: Path, model: Artifact, rows: Path | None) -> Novelty | None:
    """The novelty of a model's questions; None where its training rows are not known here.

    Args:
        root: The project's folder.
        model: What is served.
        rows: A `rows.bin` that the config names.

    Raises:
        IntegrityError: The config names a file that is missing, of another version, or cut off.
    """
    if rows is not None and not rows.is_file():
        raise IntegrityError(f"serve.training_rows: there is no file {rows}", hint="runs/prepared/*/rows.bin is one")
    path = rows or data_set_of(root, model)
    return None if path is None else Novelty.read(path)


def _spread(rows: U64, most: int) -> U64:
    """At most so many rows, at equal distances."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
