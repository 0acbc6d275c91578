"""The stage quantize in the graph of stages: GGUF files that llama.cpp runs."""

from __future__ import annotations

from typing import Any

from slmctl import config, console
from slmctl.artifacts.artifact import Artifact
from slmctl.config import QuantizeConfig
from slmctl.config.quant_type import QuantType
from slmctl.model_files import memory
from slmctl.model_files.model_shape import LOADED_BYTES, STATE_TOKENS, STATES
from slmctl.pipeline import predictions, runner
from slmctl.pipeline.estimates import BYTES_A_SECOND, TENSOR_BYTES, KnownSizes, StageEstimate
from slmctl.pipeline.graph import PREPARED, Get, Inputs, Project, Role, Stage, StageRequest

# beside the states of the merged model: a block in float32, logits that are kept
REFERENCE_BYTES = 0.4e9
QUANTIZE_SECONDS, CHECKED_TOKENS = 5, 8000  # of the checks of each file, beside the merged model
# weights; from here on `auto` takes half the records and writes each type once, since each takes
# minutes
LARGE = 10**9


class Quantize(Stage[QuantizeConfig]):
    """Write GGUF files that llama.cpp runs."""

    name = "quantize"
    tunes = True
    takes = (
        Role("merged", ("merged",)),
        PREPARED,
        Role("adapter", ("adapter",), when="lora_gguf"),
        # of the base alone
        Role("base_files", ("gguf",), optional=True, many=True, when="lora_gguf"),
        Role("base", ("base",), optional=True),  # in place of all others: its own file is written
    )
    imports = ("torch", "transformers", "llama_cpp", "gguf")
    uses = ("llama_cpp_python", "gguf", "torch", "transformers")
    version = 6

    def inputs(self, section: QuantizeConfig, get: Get, filled: Inputs) -> Inputs:
        filled = super().inputs(section, get, filled)
        adapter = filled.get("adapter")
        if section.lora_gguf and "base_files" not in filled and isinstance(adapter, Artifact):
            filled["base_files"] = [
                get(request) for request in base_file_requests(self.project, section, adapter)
            ]
        return filled

    @property
    def converts(self) -> bool:
        return True

    def cost(self, sizes: KnownSizes) -> StageEstimate:
        """The conversion, then each type with its checks; of a small base, types that can do
        without the importance matrix are written with and without.
        """
        if (model := sizes.model) is None:
            return StageEstimate()
        section, shape = sizes.settings.quantize, model.shape
        reference = REFERENCE_BYTES + 4 * STATE_TOKENS * STATES * (
            shape.hidden + shape.intermediate
        )
        repacked = memory.repacked_bytes(section.types) * model.products / 2
        child = memory.ENGINE_BYTES + max(TENSOR_BYTES * shape.embedding, repacked)
        written = len(section.types)
        if section.importance_matrix == "auto" and shape.parameters < LARGE:
            types = map(QuantType, section.types)
            written += sum(kind.takes_matrix and not kind.needs_matrix for kind in types)
        rate, seconds = sizes.rates.get("float32"), None
        if rate is not None:
            checks = (1 + written) * CHECKED_TOKENS * model.products / (rate * 1e9)
            seconds = QUANTIZE_SECONDS + (1 + written) * model.weights / BYTES_A_SECOND + checks
        disk = model.weights + 2 * model.files
        if section.lora_gguf:  # and the base's own files, unless another adapter has left them
            disk += model.files + 2 * model.trained
        return StageEstimate(disk, int(LOADED_BYTES + max(reference, child)), seconds)

    def before(self) -> None:
        """Write the base's own GGUF file of each type, where an adapter is
        to go on it; most often they are there.
        """
        section = self.settings
        if not section.lora_gguf:
            return
        for request in base_file_requests(self.project, section, self.project.artifact("adapter")):
            outcome = runner.run(self.project, request)
            for entry in outcome.artifact.files(".gguf"):
                console.say(
                    f"  {'current' if outcome.current else 'base'}: "
                    f"{outcome.artifact.path / entry.path}"
                )


STAGE = Quantize


def base_file_requests(
    project: Project, section: QuantizeConfig, adapter: Artifact
) -> list[StageRequest]:
    """Requests for the GGUF files of the base alone that an adapter goes on, one a type.

    They say nothing of the project, so all adapters of a base find the same artifacts.

    Raises:
        IntegrityError: The base is not among this project's artifacts.
    """
    stage, inputs = Quantize(project), {"base": predictions.base_of(project, adapter)}
    sections: list[Any] = [
        config.QuantizeConfig(types=[name], importance_matrix="off")
        for name in dict.fromkeys(section.types)
    ]
    return [stage.request(inputs, each, alone=True) for each in sections]
