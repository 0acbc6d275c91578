"""Every record of the sources in order: its line on disk, its measures in arrays."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt

from slmctl.deduplication.near_duplicates import Spill
from slmctl.sensitive import Tally
from slmctl.stages.prepare.policy_search import Change
from slmctl.stages.prepare.record_reader import Measures, RecordBatch, RejectedRow


class RecordTable:
    """The records that were read, some hundred bytes each in memory.

    Attributes:
        rejected: (source, row) of each unusable row, in order, with its rule and reason.
        labels: The labels, of which `label_of` holds indices; for rows with several, the lists of
            labels that occur.
        systems: System prompts that rows bring, collected until there are two.
        tally: Findings of personal data and secrets; `sensitive` is the number of their rows.
        echoes: Number of rows whose answer is their question.
        changes: Number of rows with each change.
        files: (source, number) of a row -> its document.
        spill: Normalised inputs and their signatures, on disk.
    """

    def __init__(self, folder: Path, *, several: bool = False) -> None:
        self._folder = folder
        folder.mkdir()
        self._lines: BinaryIO = (folder / "lines").open("w+b")
        self.spill = Spill(folder / "texts")
        self.rejected: list[tuple[int, RejectedRow]] = []
        self.labels: list[str] = []
        self.systems: set[str] = set()
        self.tally = Tally()
        self.sensitive = self.echoes = 0
        self.changes: Counter[Change] = Counter()
        self.files: dict[tuple[int, int], str] = {}
        self._several = several
        self._codes: dict[str, int] = {}
        self._measures: list[Measures] = []
        self._label_of: list[npt.NDArray[np.int32]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._lines.close()
        self.spill.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, batch: RecordBatch) -> None:
        self.rejected += [(batch.source, row) for row in batch.rejected]
        self.echoes += batch.echoes
        self.sensitive += batch.sensitive
        self.tally.merge(batch.tally)
        self.changes += batch.changes
        for number, file in batch.files.items():
            self.files[batch.source, number] = file
        if len(self.systems) < 2:
            self.systems |= batch.systems
        if not batch.lines:
            return
        self.spill.append(batch.texts, batch.keys, batch.compact)
        self._lines.writelines(batch.lines)
        self._measures.append(batch.measures)
        codes = [self._code(label) for label in batch.labels]
        self._label_of.append(np.array(codes, dtype=np.int32))

    def _code(self, label: str | None) -> int:
        if label is None:
            return -1
        if label not in self._codes:
            self._codes[label] = len(self.labels)
            self.labels.append(label)
        return self._codes[label]

    def __len__(self) -> int:
        return len(self.spill)

    @property
    def measures(self) -> Measures:
        """The measures of all records."""
        if len(self._measures) > 1:
            self._measures = [Measures.joined(self._measures)]
        return self._measures[0]

    @property
    def label_of(self) -> npt.NDArray[np.int32]:
        """The index of each record's label in `labels`, or -1, `(n,)`."""
        if len(self._label_of) > 1:
            self._label_of = [np.concatenate(self._label_of)]
        return self._label_of[0]

    def lines(self) -> Iterator[bytes]:
        """The line of every record in order, without its line break."""
        self._lines.flush()
        self._lines.seek(0)
        for size in self.measures.sizes.tolist():
            yield self._lines.read(size)

    def count(self, rows: Iterable[int] | np.ndarray) -> dict[str, int]:
        """The number of records of each label, among some records;
        each of a row's several labels counts.
        """
        counts: Counter[str] = Counter()
        codes = Counter(self.label_of[np.asarray(rows)].tolist())
        for code, records in codes.items():
            if code < 0:
                continue
            label = self.labels[code]
            names = json.loads(label) if self._several else [label]
            counts.update(dict.fromkeys(names, records))
        return dict(counts)
