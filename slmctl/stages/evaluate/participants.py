"""The participants of a report, made from the config alone: what gates call them, and what they
cost.

A model that answers by several GGUF files is one participant.
"""

from __future__ import annotations

from slmctl import hardware
from slmctl.config import Config
from slmctl.inference import LINEAR, SUM
from slmctl.metrics import baseline
from slmctl.pipeline import predictions
from slmctl.pipeline.estimates import KnownSizes
from slmctl.pipeline.predictions import LORA
from slmctl.reports import IN_SUM, RELEASE
from slmctl.task.kinds import kind_of

REPORT_SECONDS = 5  # bootstrap and baselines
BESIDE_BYTES = 0.15e9  # of an encoder's process beside a model, and of its sums
SHOTS = 2  # times the time without examples in the prompt; their common beginning is read once
WHOLE_LABELS = 2  # times the time of a walk, if a base scores its labels as wholes


class Participant:
    """A model of the config under its name there; by itself one that costs next to nothing."""

    def __init__(self, name: str, settings: Config) -> None:
        self.name = name
        self.settings = settings

    def names(self) -> set[str]:
        """Its names in gates."""
        return {self.name}

    def answerings(self) -> int:
        """Count of the artifacts of predictions that it gives, one for each GGUF file."""
        return 1

    def seconds(self, sizes: KnownSizes) -> float | None:
        """Time of all its answers; None if it is not known."""
        return 0

    def memory_bytes(self, sizes: KnownSizes) -> int:
        """Peak of the process that answers."""
        return 0


class Baselines(Participant):
    """The baselines that a report makes itself, and the release, which is one of the others."""

    def names(self) -> set[str]:
        return {RELEASE, *kind_of(self.settings.task.kind).baselines}

    def answerings(self) -> int:
        return 0

    def seconds(self, sizes: KnownSizes) -> float:
        return REPORT_SECONDS


class EncoderAnswers(Participant):
    """The classifier or tagger of the stage `encode`, which answers there."""

    def names(self) -> set[str]:
        return {baseline.of_encoder(tags=self.settings.task.has("schema")).name}


class Linear(Participant):
    """Linear members that answer alone."""

    def memory_bytes(self, sizes: KnownSizes) -> int:
        return int(BESIDE_BYTES)


class Loaded(Participant):
    """The merged model, or the adapter on its base, in the memory of transformers."""

    def seconds(self, sizes: KnownSizes) -> float | None:
        return None if hardware.accelerator() else _seconds_once(sizes)

    def memory_bytes(self, sizes: KnownSizes) -> int:
        return self._memory_bytes(sizes, whole_labels=False)

    def _memory_bytes(self, sizes: KnownSizes, *, whole_labels: bool, shots: int = 0) -> int:
        if sizes.model is None:
            return 0
        prompt = 0
        if sizes.rows is not None:
            shared = sizes.rows.shared
            own = max(sizes.rows.tokens - shared, 0)
            prompt = shared + (1 + shots) * own
        return sizes.model.shape.answering_bytes(prompt, whole_labels=whole_labels)


class AskedBase(Loaded):
    """The base, with examples in its prompt, on a sample of the rows unless a gate names it."""

    def seconds(self, sizes: KnownSizes) -> float | None:
        once = super().seconds(sizes)
        if once is None or sizes.rows is None:
            return None
        sample = predictions.base_sample(self.settings)
        share = min(sample / max(sizes.rows.test, 1), 1) if sample else 1
        examples = SHOTS if self._shots() else 1
        labels = WHOLE_LABELS if self._chooses() else 1
        return share * examples * labels * once

    def memory_bytes(self, sizes: KnownSizes) -> int:
        return self._memory_bytes(sizes, whole_labels=self._chooses(), shots=self._shots())

    def _shots(self) -> int:
        return self.settings.predict.shots or 0

    def _chooses(self) -> bool:
        return kind_of(self.settings.task.kind).chooses


class Files(Participant):
    """The GGUF file of each quantization type."""

    def names(self) -> set[str]:
        chosen = ["chosen"] if self.settings.evaluate.choose is not None else []
        return {*self._types(), *chosen}

    def answerings(self) -> int:
        return len(self._types())

    def seconds(self, sizes: KnownSizes) -> float | None:
        once = _seconds_once(sizes)
        return None if once is None else self.answerings() * once

    def memory_bytes(self, sizes: KnownSizes) -> int:
        return 0 if sizes.model is None else sizes.model.answering

    def _types(self) -> list[str]:
        return self.settings.quantize.types


class AdapterFiles(Files):
    """The GGUF file of the adapter, on the file of the base in each quantization type."""

    def names(self) -> set[str]:
        return {f"{LORA}-{name}" for name in self._types()}


class Sums(Files):
    """Each GGUF file in a sum with linear models, weighed on the validation rows."""

    def names(self) -> set[str]:
        return {f"{name}{IN_SUM}" for name in self._types()}

    def seconds(self, sizes: KnownSizes) -> float | None:
        answering = super().seconds(sizes)
        if answering is None or sizes.rows is None:
            return None
        weighing = sizes.answering_seconds(sizes.rows.validation) or 0
        return answering + self.answerings() * weighing

    def memory_bytes(self, sizes: KnownSizes) -> int:
        return super().memory_bytes(sizes) + int(BESIDE_BYTES)


def _seconds_once(sizes: KnownSizes) -> float | None:
    """Time in which a model answers the test rows once."""
    return sizes.answering_seconds(sizes.rows.test if sizes.rows else None)


CLASSES: dict[str, type[Participant]] = {
    "encoder": EncoderAnswers,
    SUM: Sums,
    "base": AskedBase,
    "adapter": Loaded,
    "merged": Loaded,
    "gguf": Files,
    LORA: AdapterFiles,
}


def participants(settings: Config) -> list[Participant]:
    """The models of the config that a report measures, and the baselines."""
    if settings.publish.linear:
        measured: list[Participant] = [Linear(LINEAR, settings)]
    else:
        measured = [CLASSES[name](name, settings) for name in settings.measured]
    return [Baselines(RELEASE, settings), *measured]
