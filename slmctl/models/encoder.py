"""The linear members of a project before they are weighed with a
GGUF file: the artifact of `encode`.
"""

from __future__ import annotations

from slmctl.artifacts.artifact import FileEntry
from slmctl.inference import ENCODER
from slmctl.metrics import baseline
from slmctl.model_files.gguf_choice import is_tagging
from slmctl.models.linear import LinearSum


class EncoderAlone(LinearSum):
    """The artifact of `encode`, which answers without another model, and counts as a baseline."""

    is_baseline = True
    place = 0

    @property
    def kind(self) -> str:
        return self.artifact.kind

    @property
    def title(self) -> str:
        return baseline.of_encoder(tags=is_tagging(self.artifact)).name

    @property
    def weights(self) -> FileEntry:
        size = sum(entry.size for entry in self.artifact.manifest.files)
        return FileEntry(
            self.artifact.path.name, size, self.artifact.digest.removeprefix("sha256:")
        )

    @property
    def file(self) -> FileEntry:
        own = next((entry for entry in self.artifact.manifest.files if entry.path == ENCODER), None)
        return own or super().file
