"""Estimates of a stage before it runs: the disk, memory and time that it takes, from the sizes of
the base.

Constants were fitted to measurements with models of 135 M to 7 B weights on two cores. Time is the
time of the matrix products and of reading and writing files. None where nothing is known: a
download, a GPU, rows that were not counted.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from slmctl import hardware
from slmctl.config import Config
from slmctl.config.quant_type import QuantType
from slmctl.model_files import memory
from slmctl.model_files.model_shape import ModelShape

# of a process without torch, and of a row that `prepare` holds
PLAIN_BYTES, ROW_BYTES = 0.25e9, 460
BYTES_A_SECOND = 0.2e9  # of weights that are read, changed and written
TENSOR_BYTES = 8  # of a weight of the embedding in the converter
# Tokens that the engine of `predict` has room for, and the share of that room which is written: 0.6
# of SmolLM2-135M's and 0.3 of gemma-3-270m's, most of whose layers see a window.
CELLS, WRITTEN = 16 * 2048, 0.5
GENERATED = 3  # times the time of reading, where answers are texts: their tokens come one by one


@dataclass(frozen=True)
class StageEstimate:
    """Disk, memory and time of a stage.

    Attributes:
        disk_bytes: Size of its artifact and of its temporary files.
        memory_bytes: Peak of its process.
        seconds: Its time on this machine.
        measured: Artifacts that were made here have corrected the time.
    """

    disk_bytes: int | None = None
    memory_bytes: int | None = None
    seconds: float | None = None
    measured: bool = False


@dataclass(frozen=True)
class RowEstimate:
    """Rows of the sources or of the data set.

    Attributes:
        rows: All rows that came in.
        validation: Held-out rows that choose checkpoint and settings.
        test: Held-out rows for reports.
        most_test: The most test rows that there can be; None where a part of them is not known.
        most_groups: Their largest effective number of groups; None where rows have none, or it is
            not known.
        tokens: Mean tokens of a training record.
        shared: Tokens of these that all records begin with: the system prompt, and the tools that
            are listed there.
        size: Bytes of the sources.
        exact: Counted in the data set; else estimated before it is made.
    """

    rows: int
    train: int
    validation: int
    test: int
    most_test: int | None
    tokens: int
    shared: int
    size: int
    exact: bool
    most_groups: float | None = None


@dataclass(frozen=True)
class KnownSizes:
    """The inputs of every estimate; `shape` and `rows` are None where they are not known.

    Attributes:
        shape: Of the base.
        rates: GFLOP/s of matrix products on this machine by data type.
    """

    settings: Config
    shape: ModelShape | None
    rows: RowEstimate | None
    rates: Mapping[str, float]

    @functools.cached_property
    def model(self) -> ModelSizes | None:
        """Sizes of the files that the stages make; None where the base's shape is not known."""
        return ModelSizes(self.settings, self.shape) if self.shape is not None else None

    def answering_seconds(self, count: int | None) -> float | None:
        """Time in which one model answers `count` rows; None where it is not known."""
        rate = self.rates.get("float32")
        rows = self.rows
        model = self.model
        if rate is None or rows is None or count is None or model is None:
            return None
        generated = 1 if _chooses(self.settings) else GENERATED
        # the engine computes the shared prefix once
        tokens = rows.shared + count * max(rows.tokens - rows.shared, 1)
        return generated * tokens * model.products / (rate * 1e9)


class ModelSizes:
    """Bytes and weights of the files that the stages of a project make."""

    def __init__(self, settings: Config, shape: ModelShape) -> None:
        self.shape = shape
        self.weights = 2 * shape.parameters  # in 16 bits
        self.trained = settings.finetune.lora.rank * shape.channels
        types = map(QuantType, settings.quantize.types)
        each = [kind.file_bytes(shape.parameters) for kind in types]
        self.files, largest = sum(each), max(each, default=0)
        if (_chooses(settings) or settings.task.document) and memory.BF16 & hardware.cpu_flags():
            largest = max(largest, self.weights)  # which such an engine holds in 16 bits
        cells = 2 * CELLS * shape.kept_cache * WRITTEN
        # of llama.cpp's process and this one
        self.answering = int(PLAIN_BYTES + memory.ENGINE_BYTES + largest + cells)
        # operations for a token that is read
        self.products = 2 * (shape.parameters - shape.embedding)


def _chooses(settings: Config) -> bool:
    """True for a task whose answers are found by label search."""
    from slmctl.task.kinds import kind_of  # for an estimate alone

    return kind_of(settings.task.kind).chooses
