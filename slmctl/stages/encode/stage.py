"""The stage encode in the graph of stages: linear models on a sentence
encoder and on words, or a tagger on it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from slmctl import config, console
from slmctl.artifacts import artifact, atomic, lineage
from slmctl.artifacts.artifact import Artifact
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.config import EncodeConfig
from slmctl.errors import IntegrityError
from slmctl.model_files import encoder_source, safetensors_header
from slmctl.model_files.model_shape import ModelShape
from slmctl.network import guard
from slmctl.pipeline import gathering, row_estimate
from slmctl.pipeline.estimates import PLAIN_BYTES, ROW_BYTES, KnownSizes, StageEstimate
from slmctl.pipeline.graph import PREPARED, Stage, StageRequest
from slmctl.pipeline.runner import TASK
from slmctl.sources import snapshot
from slmctl.stages.encode import tuning_bounds
from slmctl.task import language
from slmctl.task.contract import Task
from slmctl.task.records import SPLITS

# Of MiniLM-L6 (22.7 M weights) as ONNX beside its fetched form, its fits, and the tokens that it
# reads on two cores.
ENCODER_BYTES = 0.35e9
ENCODE_SECONDS, ENCODED_A_SECOND = 15, 3000  # once; texts
WEIGHTS = 23e6  # of an encoder that is not here yet


class Encode(Stage[EncodeConfig]):
    """Fit linear models on a sentence encoder and on words; for JSON, a tagger on it."""

    name = "encode"
    takes = (PREPARED,)
    imports = ("sklearn",)
    uses = ("onnxruntime", "scikit-learn", "tokenizers", "torch", "transformers")
    version = 15
    fetches_once = True

    def completed(self, section: EncodeConfig) -> EncodeConfig:
        files = snapshot.gathered(section.unlabelled, self.project.sources)
        return section.model_copy(update={"unlabelled": files})

    def checkable(self) -> EncodeConfig:
        files = list(filter(snapshot.is_file, self.settings.unlabelled))
        return self.completed(self.settings.model_copy(update={"unlabelled": files}))

    def needs_base(self) -> bool:
        return False

    def before(self) -> None:
        if self.settings.unlabelled:
            gathering.gather_sources(self.project)

    @property
    def _source(self) -> str:
        return self.settings.encoder or ""

    @property
    def _learns(self) -> bool:
        """True for an encoder that has weights which torch can train."""
        return bool(self._source) and not encoder_source.is_onnx(Path(self._source))

    def packages(self) -> Iterator[str]:
        yield from ["huggingface_hub"] if self._source.startswith("hf:") else []
        yield from ("onnx", "onnxruntime", "tokenizers") if self._source else ()
        yield from ("torch", "transformers") if self._learns else ()

    @property
    def _folder(self) -> Path:
        """The encoder's model folder, as it is kept or named; it need not exist."""
        own = encoder_source.folder_of(self.settings, self.project.encoders) / encoder_source.MODEL
        return own if own.is_dir() or config.is_remote(self._source) else Path(self._source)

    @property
    def _tunes(self) -> bool:
        """True for an encoder that may be tuned, as far as is known before it is here."""
        here = self._folder.is_dir()
        return (
            self._learns
            and self.settings.tune
            and not (here and tuning_bounds.obstacle(self._folder))
        )

    def require_offline(self) -> None:
        if encoder_source.is_to_fetch(self.settings, self.project.encoders):
            hint = "run `slmctl pull` once without --offline, or name a path"
            if encoder_source.is_kept(
                self.settings.model_copy(update={"tune": False}), self.project.encoders
            ):
                hint += "; encode: {tune: false} leaves the encoder as it is kept"
            guard.require(f"encoder {self._source}", hint=hint)

    def downloads(self, shape: ModelShape | None) -> Iterator[tuple[str, int | None]]:
        if encoder_source.is_to_fetch(self.settings, self.project.encoders):
            yield self._source, None

    def notes(self, shape: ModelShape | None) -> Iterator[tuple[str, str]]:
        """A note if most rows are in a language that the encoder of labels does not know.

        An encoder that tags values reads other languages as well, since the values stand there.
        """
        if self.project.config.task.has("schema"):
            return
        codes = encoder_source.LANGUAGES.get(self._source)
        if codes and (main := row_estimate.languages_of(self.project).main) not in ("", *codes):
            names = " and ".join(language.NAMES[code] for code in codes)
            text = f"most rows look {language.NAMES[main]}, and {self._source} knows {names} alone"
            yield "encoder", f"{text}: encode.encoder names another"

    def cost(self, sizes: KnownSizes) -> StageEstimate:
        """The encoder once, its copy converted, the vectors of the
        training rows, and the tuning on these.
        """
        if (rows := sizes.rows) is None:
            return StageEstimate()
        tokens = max(rows.tokens - rows.shared, 1)
        seconds = ENCODE_SECONDS + (rows.train + rows.validation) * tokens / ENCODED_A_SECOND
        peak = int(PLAIN_BYTES + ENCODER_BYTES + ROW_BYTES * rows.rows)
        disk = self._bytes
        if self._learns and self.project.config.task.has("schema"):
            weights = (
                safetensors_header.parameter_count(self._folder)
                if self._folder.is_dir()
                else WEIGHTS
            )
            seconds += tuning_bounds.tagging_seconds(rows.train, tokens, weights)
            return StageEstimate(
                disk + int(9 * weights), peak + tuning_bounds.memory_bytes(weights), seconds
            )
        if self._tunes and rows.validation >= tuning_bounds.FEWEST:
            here = self._folder.is_dir()
            weights = safetensors_header.parameter_count(self._folder) if here else WEIGHTS
            disk += int(18 * weights)  # four times in float32, and in int8
            peak += tuning_bounds.memory_bytes(weights)
            bounds, every = tuning_bounds, rows.train + rows.validation
            learned = (bounds.PASSES * rows.train + bounds.PASSES_WHOLE * every) * weights / WEIGHTS
            reading, steps = tokens / bounds.TOKENS_A_SECOND, bounds.STEP_SECONDS / bounds.STEP_ROWS
            most = bounds.MOST_SECONDS * (1 + bounds.PASSES_WHOLE / bounds.PASSES)
            # WORK bounds the tokens, and so the steps
            seconds += min(learned, most / reading) * (reading + steps)
        return StageEstimate(disk, peak, seconds)

    @property
    def _bytes(self) -> int:
        """Bytes that the encoder takes below runs/; of one on this
        machine its own, of a kept one none.
        """
        if not self._source or encoder_source.is_kept(self.settings, self.project.encoders):
            return 0
        local = Path(self._source)
        if local.is_dir():
            size = sum(path.stat().st_size for path in local.glob(encoder_source.WEIGHTS))
            return 3 * size  # a copy, ONNX in float32 and in int8
        return int(ENCODER_BYTES)

    def run(self, request: StageRequest, *, out: Path, **more: Any) -> JsonObject:
        """Fit the linear models, or take those of the same records, which
        another base has counted, or none yet.
        """
        if (same := self._of_same_records(request)) is None:
            return super().run(request, out=out, **more)
        for entry in same.manifest.files:
            if entry.path != TASK:
                atomic.link(same.file(entry.path), out / entry.path)
        console.say(f"  the records are those of {same.path.name}, so its linear models stay")
        return same.metrics

    def _of_same_records(self, request: StageRequest) -> Artifact | None:
        """A whole artifact of the same settings, and of a data set
        with the same records and labels.
        """
        here = {made.digest: made for made in lineage.readable_artifacts(self.project.root)}
        learned = _learned(request.inputs[PREPARED.name])
        for made in here.values():
            prepared = here.get(str(made.manifest.inputs.get(PREPARED.name)))
            alike = (made.manifest.stage, made.manifest.config) == (self.id, request.recipe)
            with contextlib.suppress(IntegrityError):  # a task.json that was damaged
                if (
                    alike
                    and prepared
                    and _learned(prepared) == learned
                    and not artifact.verify(made)
                ):
                    return made
        return None

    def options(self) -> Mapping[str, object]:
        return {"encoders": self.project.encoders}


STAGE = Encode


def _learned(prepared: Any) -> tuple[object, ...]:
    """All that linear models learn of a data set: the records' hashes,
    and the task but for the base's tokens.
    """
    task = Task.read(prepared.path)
    hashes = {entry.path: entry.sha256 for entry in prepared.manifest.files}
    records = [hashes.get(f"{split}.jsonl") for split in SPLITS]
    return (
        *records,
        task.kind,
        task.schema,
        task.labels,
        task.descriptions,
        task.clean,
        task.replace,
    )
