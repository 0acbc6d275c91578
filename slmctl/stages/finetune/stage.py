"""The stage finetune in the graph of stages: the training of an adapter."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slmctl import console, hardware
from slmctl.artifacts.artifact import Artifact
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.config import FinetuneConfig
from slmctl.errors import DataError, SlmctlError
from slmctl.hardware import usable_cores
from slmctl.model_files import catalogue, model_shape
from slmctl.model_files.base_model import size_label
from slmctl.model_files.model_shape import ModelShape
from slmctl.network import guard
from slmctl.pipeline import plan, runner
from slmctl.pipeline.estimates import KnownSizes, RowEstimate, StageEstimate
from slmctl.pipeline.graph import BASE, PREPARED, Doubt, Stage, StageRequest
from slmctl.task.documents import SMALLER
from slmctl.task.kinds import kind_of

SURELY = 1.25  # times the estimated tokens, which may be off by a quarter
NAMED = 3  # bases in a hint
# bytes of a trained weight: two checkpoints of itself, its best value and two moments
CHECKPOINT_WEIGHTS = 8 * 4
# time of a record in a validation, over its time in training: it has no backward pass
VALIDATION_COST = 0.5


class Finetune(Stage[FinetuneConfig]):
    """Train a LoRA adapter on the training records."""

    name = "finetune"
    tunes = True
    takes = (BASE, PREPARED)
    imports = ("torch", "transformers", "trl", "peft")
    uses = ("torch", "transformers", "tokenizers", "trl", "peft", "unsloth")
    version = 8
    resumes = True

    def completed(self, section: FinetuneConfig) -> FinetuneConfig:
        """The section with numbers in place of `auto`, from the
        data set and the size of the base.
        """
        if not section.is_auto:
            return section
        train = self.project.artifact(PREPARED).metrics["train"]
        weights = _weights(plan.shape_of_base(self.project))
        return section.resolved(train, weights, structured=self._structured)

    def checkable(self) -> FinetuneConfig:
        return self.settings

    def packages(self) -> Iterator[str]:
        yield from ["unsloth"] if self.settings.backend == "unsloth" else []

    def require_offline(self) -> None:
        if trackers := self.settings.report_to:
            guard.require(f"finetune.report_to ({', '.join(trackers)})")

    def notes(self, shape: ModelShape | None) -> Iterator[tuple[str, str]]:
        """A note on memory that is short now."""
        if shape is None or hardware.accelerator():
            return
        section = self.settings
        least = shape.training_bytes(
            _width(section), model_shape.LEAST_PIECE_TOKENS, in_4bit=section.load_in_4bit
        )
        free = hardware.available_bytes()
        if least > free:
            takes = f"finetune takes about {console.size(least)} even in small pieces"
            yield "memory", f"{takes}, and {console.size(free)} are free"

    def refusals(self, rows: RowEstimate) -> Iterator[SlmctlError]:
        """Texts that the base cannot read, or that finetune refuses by `too_long: error`."""
        rows, windows = self._in_windows(rows)
        section = self.settings
        entry = catalogue.of_source(self.project.config.base)
        context = entry.context if entry is not None else rows.tokens
        refused = section.too_long == "error" and rows.tokens > SURELY * section.max_length
        if rows.tokens <= SURELY * context and not refused:
            return
        reads = f"this base reads {context:,}, and " if entry is not None else ""
        shorter = SMALLER  # the answer to a window that is cut would hold the values behind the cut
        if windows == 1:
            shorter = (
                "cut the texts to the part that holds the answer; --set "
                "finetune.too_long=truncate, which learns the beginning alone"
            )
        entries = catalogue.entries()
        longer = [other.short_name for other in entries if other.context > SURELY * rows.tokens]
        bases = ", ".join(longer[:NAMED])
        yield DataError(
            f"the rows have some {rows.tokens:,} tokens each; {reads}finetune.max_length is "
            f"{section.max_length:,}",
            hint=f"{shorter}; --set finetune.max_length=N, which takes memory and time; or a base "
            f"that reads more: {bases} (slmctl bases)",
        )

    def _in_windows(self, rows: RowEstimate) -> tuple[RowEstimate, int]:
        """Returns (rows with the tokens of a window, windows of a
        row); long texts are learned in windows.
        """
        document = self.project.config.task.document
        if document is None or rows.tokens <= document.size:
            return rows, 1
        windows = -(-rows.tokens // (document.size - document.shared))
        return replace(rows, tokens=document.size + rows.shared), windows

    def cost(self, sizes: KnownSizes) -> StageEstimate:
        """The training, with its memory and time on the processor;
        on a GPU neither is known before.
        """
        model = sizes.model
        if model is None:
            return StageEstimate()
        shape = model.shape
        section, rows = sizes.settings.finetune, sizes.rows
        if rows is not None:
            section = section.resolved(rows.train, shape.parameters, structured=self._structured)
            rows = self._learned(rows, section)
        disk = (4 + CHECKPOINT_WEIGHTS) * model.trained
        if hardware.accelerator():
            return StageEstimate(disk)
        work = _Work.of(int(section.batch_size), rows) if rows is not None else _Work()
        peak = shape.training_bytes(_width(section), work.piece, in_4bit=section.load_in_4bit)
        rate = sizes.rates.get(section.matmul_dtype)
        if rate is None or rows is None or not rows.train or not rows.tokens:
            return StageEstimate(disk, peak)
        seen = computed_records(section, rows.train, rows.validation)
        a_record = shape.training_seconds(rate, usable_cores(), rows=1, tokens=work.row)
        return StageEstimate(disk, peak, seen * a_record)

    def _learned(self, rows: RowEstimate, section: FinetuneConfig) -> RowEstimate:
        """The rows as they are learned: cut into windows, or by `max_length`."""
        rows, windows = self._in_windows(rows)
        rows = replace(rows, train=rows.train * windows, validation=rows.validation * windows)
        if section.too_long != "error":
            rows = replace(rows, tokens=min(rows.tokens, section.max_length))
        return rows

    def took(self, made: Artifact, whole: Sequence[Artifact]) -> float | None:
        """Of a training that went on from a checkpoint, the time of all its
        steps at the speed of the later ones.
        """
        metrics = made.metrics
        if metrics.get("interrupted"):
            return None
        rate = metrics.get("tokens_per_s") or math.inf
        return max(made.manifest.seconds, metrics.get("record_tokens", 0) / rate)

    def choices(self, sizes: KnownSizes) -> str:
        section, rows = sizes.settings.finetune, sizes.rows
        if not section.is_auto or rows is None:
            return ""
        about = "" if rows.exact else "about "
        return self._choice(section, rows.train, _weights(sizes.shape), about)

    def doubt(self) -> Doubt | None:
        """A reason not to train: a cheap model leaves next to nothing to
        win. None where a training has begun.
        """
        request = self.request()
        if request.path.exists() or runner.resume_folder(request).exists():
            return None
        from slmctl.stages.finetune import nothing_to_win  # with it comes numpy

        return nothing_to_win.doubt(self.project)

    def import_first(self) -> None:
        from slmctl.stages.finetune import backend

        backend.import_first(self.settings.backend)

    def before(self) -> None:
        """Try LoRA targets that the config sets on a small copy
        of the base, before the training.
        """
        project, section = self.project, self.settings
        if section.lora.target_modules == "all-linear" or not project.config.pull.rehearse:
            return
        if not self.request().path.exists():
            from slmctl.pipeline import rehearsal

            console.say("  finetune.lora.target_modules are tried before the training")
            rehearsal.rehearsed(project.artifact(BASE).path, section.lora)

    def run(self, request: StageRequest, *, out: Path, **more: Any) -> JsonObject:
        prepared = request.inputs[PREPARED.name]
        assert isinstance(prepared, Artifact)
        train = prepared.metrics["train"]
        weights = _weights(plan.shape_of_base(self.project))
        own = self.settings
        resolved = own.resolved(train, weights, structured=self._structured)
        if own.is_auto and resolved == request.section:
            console.say(f"  {self._choice(own, train, weights)}")
        return super().run(request, out=out, **more)

    def after(self, made: Artifact, *, current: bool) -> None:
        """End what a Ctrl-C was to end that came when all was learned,
        in the last validation for example.
        """
        if not current and made.metrics.get("interrupted"):
            raise KeyboardInterrupt(
                "after finetune, whose adapter is kept\n  the same command goes on from there"
            )

    @property
    def _structured(self) -> bool:
        return kind_of(self.project.config.task.kind).structured

    def _choice(self, section: FinetuneConfig, train: int, weights: int, about: str = "") -> str:
        """The numbers for `auto`, and their reason: `5 epochs at 0.0008
        in batches of 16, by 1,277 rows ...`.
        """
        chosen = section.resolved(train, weights, structured=self._structured)
        used = round(section.train_share * train)
        size = size_label(weights) if weights else "unknown size"
        return f"{chosen.length_and_rate}, by {about}{used:,} training rows and a base of {size}"


STAGE = Finetune


def _weights(shape: ModelShape | None) -> int:
    """Number of weights of a base; 0 if unknown."""
    return shape.parameters if shape is not None else 0


def computed_records(section: FinetuneConfig, train: int, validation: int) -> float:
    """Records that a training computes, those of its validations by their smaller cost."""
    records = max(train * section.train_share, 1)
    batch = int(section.batch_size)
    steps = section.steps(records)
    half_an_epoch = math.ceil(math.ceil(records / batch) / 2)
    validations = steps / (section.validate_every or half_an_epoch) + 1
    return steps * batch + VALIDATION_COST * validations * validation


def _width(section: FinetuneConfig) -> int:
    """Bytes of a frozen weight in a product."""
    return 2 if section.matmul_dtype == "bfloat16" else 4


@dataclass(frozen=True)
class _Work:
    """Work of a training on a processor, see `stages.finetune.batches`.

    Attributes:
        row: Tokens for a record: its own, and its part of what all begin with, which every piece
            computes once.
        piece: Most tokens at once.
    """

    row: float = 0.0
    piece: int = model_shape.PIECE_TOKENS

    @classmethod
    def of(cls, batch_size: int, rows: RowEstimate) -> _Work:
        own = max(rows.tokens - rows.shared, 1)
        room = model_shape.piece_budget(rows.shared) - rows.shared
        together = min(max(room // own, 1), batch_size)
        pieces = math.ceil(batch_size / together)
        return cls(
            row=own + rows.shared * pieces / batch_size,
            piece=max(model_shape.PIECE_TOKENS, rows.shared + together * own),
        )
