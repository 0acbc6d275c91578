"""The stage merge in the graph of stages: base and adapter to one model."""

from __future__ import annotations

from slmctl.config import MergeConfig
from slmctl.pipeline.estimates import BYTES_A_SECOND, KnownSizes, StageEstimate
from slmctl.pipeline.graph import BASE, Role, Stage

MERGE_BYTES = 0.4e9  # blocks of rows pass through it, whatever the model's size


class Merge(Stage[MergeConfig]):
    """Fold the adapter into the base's weights."""

    name = "merge"
    tunes = True
    takes = (BASE, Role("adapter", ("adapter",)))
    imports = ("torch",)
    uses = ("torch",)
    version = 2

    def cost(self, sizes: KnownSizes) -> StageEstimate:
        model = sizes.model
        if model is None:
            return StageEstimate()
        seconds = 1 + model.weights / BYTES_A_SECOND
        return StageEstimate(model.weights, int(MERGE_BYTES), seconds)


STAGE = Merge
