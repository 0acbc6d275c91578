"""The encoder of a project as a model: a sentence encoder with linear models on its vectors and on TF-IDF."""

from __future__ import annotations

from slmctl.artifacts.artifact import FileEntry
from slmctl.inference import ENCODER
from slmctl.inference.engine import Answering
from slmctl.metrics import encoder_head
from slmctl.metrics.encoder_head import EncoderModel
from slmctl.model_files import memory
from slmctl.models.encoder_classifier import EncoderClassifier
from slmctl.models.model import Loading, Model


class EncoderAlone(Model):
    """The artifact of `encode`, which answers without another model."""

    takes_policy = is_baseline = True
    place = 0

    @property
    def title(self) -> str:
        return encoder_head.NAME

    @property
    def weights(self) -> FileEntry:
        size = sum(entry.size for entry in self.artifact.manifest.files)
        return FileEntry(self.artifact.path.name, size, self.artifact.digest.removeprefix("sha256:"))

    @property
    def file(self) -> FileEntry:
        return next(entry for entry in self.artifact.manifest.files if entry.path == ENCODER)

    def bytes(self, loading: Loading) -> int:
        return memory.encoder_bytes(self.path)

    def load(self, loading: Loading) -> Answering:
        return EncoderClassifier(
            self.path, EncoderModel.read(self.artifact.path, (self.task and self.task.labels) or None)
        )
