"""The stage predict in the graph of stages: the answers of one model to the rows of a split."""

from __future__ import annotations

from collections.abc import Iterator

from slmctl.artifacts.artifact import Artifact
from slmctl.config import PredictConfig
from slmctl.errors import IntegrityError
from slmctl.pipeline import predictions
from slmctl.pipeline.graph import PREPARED, Role, Stage, StageRequest


class Predict(Stage[PredictConfig]):
    """Answer every row of one split, or of a file of yours, with one model."""

    name = "predict"
    takes = (
        Role("model", ("gguf", "base", "adapter", "merged", "published", "encoder", "sum")),
        PREPARED,
        Role("base", ("base", "gguf"), optional=True),  # an adapter answers on top of it
        Role("sum", ("sum",), optional=True),  # linear members beside the file
    )
    uses = ("llama_cpp_python", "llguidance", "torch", "transformers", "tokenizers", "peft")
    version = 9

    def default(self) -> StageRequest:
        """The request for the first GGUF file."""
        return predictions.predictions_of(self.project, "gguf")[0]

    def current(self) -> Iterator[StageRequest]:
        """The requests for every model that the config measures."""
        for model in self.project.config.measured:
            yield from predictions.predictions_of(self.project, model)

    def not_made(self, request: StageRequest, asker: str) -> IntegrityError:
        model = request.inputs["model"]
        kind = model.kind if isinstance(model, Artifact) else "a model"
        return IntegrityError(
            f"{kind} has not been measured with this config and data",
            hint=f"slmctl {asker or self.name}",
        )


STAGE = Predict
