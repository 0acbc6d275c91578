"""The linear members of a project as a model: on a sentence encoder and on words, without a GGUF file."""

from __future__ import annotations

from slmctl.artifacts.artifact import FileEntry
from slmctl.inference import ENCODER, SUM_FILE
from slmctl.inference.engine import Answering
from slmctl.metrics import encoder_head
from slmctl.metrics.label_sum import LabelSum
from slmctl.model_files import memory
from slmctl.models.linear_members import LinearMembers
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
        files = {entry.path: entry for entry in self.artifact.manifest.files}
        return files.get(ENCODER) or files[SUM_FILE]

    def bytes(self, loading: Loading) -> int:
        return memory.encoder_bytes(self.path) if self.file.path == ENCODER else memory.WORDS_BYTES

    def load(self, loading: Loading) -> Answering:
        model = LabelSum.read(self.artifact.path / SUM_FILE, (self.task and self.task.labels) or None)
        return LinearMembers(model, self.artifact.path / ENCODER)
