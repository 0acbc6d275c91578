"""The stage pull in the graph of stages: the base model, from the network unless it is a path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from slmctl import config, console
from slmctl.artifacts.artifact import Artifact
from slmctl.config import PullConfig
from slmctl.model_files import catalogue, encoder_source, model_shape
from slmctl.model_files.catalogue import CatalogueEntry
from slmctl.model_files.model_shape import LOADED_BYTES, ModelShape
from slmctl.network import guard
from slmctl.pipeline import row_estimate
from slmctl.pipeline.estimates import BYTES_A_SECOND, TENSOR_BYTES, KnownSizes, StageEstimate
from slmctl.pipeline.graph import Stage, stage_class
from slmctl.pipeline.system_errors import spoken
from slmctl.task import language

REHEARSAL_SECONDS = 25


class Pull(Stage[PullConfig]):
    """Fetch and check the base model (from the network, unless it is a path)."""

    name = "pull"
    imports = ("torch", "transformers", "tokenizers")
    uses = (*imports, "gguf")
    version = 3
    fetches_once = True

    def completed(self, section: PullConfig) -> PullConfig:
        catalogue.require_source(self.project.config.base, Path(section.base))
        catalogue.require_own_hash(section.base, section.sha256)
        return section

    def packages(self) -> Iterator[str]:
        section = self.project.config.pull
        if section.base.startswith("hf:"):
            yield "huggingface_hub"
        elif not Path(section.base).is_dir():
            yield "gguf"
        # of those for quantize none: without llama.cpp, the rehearsal leaves it out
        yield from stage_class("finetune").imports if section.rehearse else ()

    def needs_base(self) -> bool:
        return True

    def require_offline(self) -> None:
        base = self.project.config.base
        if config.is_remote(base):
            guard.require(
                f"base {base}", hint="run `slmctl pull` once without --offline, or name a path"
            )

    def downloads(self, shape: ModelShape | None) -> Iterator[tuple[str, int | None]]:
        base = self.project.config.base
        if not config.is_remote(base):
            return
        size: int | None = None
        if isinstance(shape, CatalogueEntry) and shape.package == base:
            size = shape.package_bytes
        if not size and shape is not None and base.startswith("hf:"):
            size = 2 * shape.parameters
        yield base, size or None

    def cost(self, sizes: KnownSizes) -> StageEstimate:
        """The base as it is fetched beside the one that is kept, for a
        while; the time of a download is not sizes.
        """
        model = sizes.model
        if model is None:
            return StageEstimate()
        section = sizes.settings.pull
        peak: float = model_shape.PROCESS_BYTES if section.rehearse else LOADED_BYTES
        if section.base.startswith("pypi:") or section.base.endswith(".gguf"):
            expanded = LOADED_BYTES + model.weights + TENSOR_BYTES * model.shape.embedding
            peak = max(expanded, peak)
        seconds = None
        if not config.is_remote(section.base):
            seconds = REHEARSAL_SECONDS * section.rehearse + model.weights / BYTES_A_SECOND
        return StageEstimate(2 * model.weights, int(peak), seconds)

    def options(self) -> Mapping[str, object]:
        """An alternative to the hub that fits the rows, as `init` names it in slmctl.yaml."""
        if not self.project.config.base.startswith("hf:"):
            return {}
        code = row_estimate.languages_of(self.project).main
        entry = catalogue.without_hub(code)
        name = "English alone"
        if entry.speaks(code or "en"):
            name = language.NAMES.get(code, "English")
        line = f"base: {entry.source} (it knows {name}); or name a model folder"
        return {"otherwise": f"without a hub, put this line into slmctl.yaml: {line}"}

    def after(self, made: Artifact, *, current: bool) -> None:
        """Fetch the encoder too, which later stages then need no network for."""
        project = self.project
        encode = project.config.encode
        missing = encode is not None and encoder_source.is_to_fetch(encode, project.encoders)
        if encode is not None and missing and not project.is_made("encoder"):
            with spoken("encode", project.encoders), guard.written_down(project.root, "pull"):
                encoder_source.kept(encode, project.encoders)
        if not current and config.is_remote(project.config.base):
            console.say(
                "  in another project, without a download and without pull.sha256: base: "
                f"{made.path}"
            )


STAGE = Pull
