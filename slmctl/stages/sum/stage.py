"""The stage sum in the graph of stages: the weights of the GGUF file and of the linear members."""

from __future__ import annotations

from collections.abc import Iterator

from slmctl.config import SumConfig
from slmctl.errors import IntegrityError
from slmctl.pipeline import predictions
from slmctl.pipeline.estimates import KnownSizes, StageEstimate
from slmctl.pipeline.graph import PREPARED, Get, Inputs, Role, Stage, StageRequest


class Sum(Stage[SumConfig]):
    """Weigh GGUF file, encoder and words by validation rows, and leave out what does not help."""

    name = "sum"
    takes = (
        Role("encoder", ("encoder",)),
        PREPARED,
        Role("validation", ("predictions",), many=True),
    )
    waits_for = ("gguf",)
    imports = ("scipy",)
    uses = ("numpy", "scipy", "scikit-learn")
    version = 5

    def inputs(self, section: SumConfig, get: Get, filled: Inputs) -> Inputs:
        filled = {
            **filled,
            "encoder": filled.get("encoder") or predictions.encoder_of(self.project),
        }
        if "validation" not in filled:
            files = self.project.config.publish.tuned  # else linear members alone are weighed
            requests = (
                predictions.predictions_of(self.project, "gguf", "validation") if files else []
            )
            filled["validation"] = [get(request) for request in requests]
        return super().inputs(section, get, filled)

    def current(self) -> Iterator[StageRequest]:
        if self.project.config.encode is not None:
            yield self.default()

    def not_made(self, request: StageRequest, asker: str) -> IntegrityError:
        return IntegrityError(
            "the file and the linear members have not been weighed", hint="slmctl evaluate"
        )

    def cost(self, sizes: KnownSizes) -> StageEstimate:
        if (model := sizes.model) is None:
            return StageEstimate(disk_bytes=0)
        rows = sizes.rows
        seen = sizes.answering_seconds(rows.validation if rows else None)
        return StageEstimate(
            0, model.answering, None if seen is None else seen * len(sizes.settings.quantize.types)
        )


STAGE = Sum
