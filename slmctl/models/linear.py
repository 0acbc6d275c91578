"""Linear members as a model: on a sentence encoder and on words,
without a GGUF file that they are beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slmctl.artifacts.artifact import Artifact, FileEntry
from slmctl.errors import UsageError
from slmctl.inference import ENCODER, LINEAR, SUM_FILE
from slmctl.inference.engine import Answering
from slmctl.metrics.label_sum import LabelSum
from slmctl.model_files import memory
from slmctl.model_files.gguf_choice import (
    answering_sha256,
    head_file,
    is_tagging,
    require_measured,
    sum_files,
)
from slmctl.models.field_sum import TaggerAnswers
from slmctl.models.linear_members import LinearMembers
from slmctl.models.model import Loading, Model
from slmctl.models.tagger import Tagger


@dataclass(frozen=True)
class LinearSum(Model):
    """The linear members of a release, or of an artifact of `sum`, which answer alone.

    Attributes:
        name: Its name in gates, of the release that they compare with; empty for any other one.
    """

    takes_policy = learns_validation = True
    writes = False
    place = 6
    name: str = ""

    @property
    def kind(self) -> str:
        return "release" if self.name else LINEAR

    @property
    def title(self) -> str:
        return self.name or LINEAR

    @property
    def file(self) -> FileEntry:
        return next(
            entry
            for entry in self.artifact.manifest.files
            if entry.path == head_file(self.artifact)
        )

    @property
    def weights(self) -> FileEntry:
        size = sum((self.artifact.path / name).stat().st_size for name in sum_files(self.artifact))
        return FileEntry(self.file.path, size, answering_sha256(self.artifact))

    def bytes(self, loading: Loading) -> int:
        encoder = self.artifact.path / ENCODER
        return memory.encoder_bytes(encoder) if encoder.is_file() else memory.WORDS_BYTES

    def load(self, loading: Loading) -> Answering:
        if is_tagging(self.artifact):
            require_measured(self.artifact)
            return TaggerAnswers(Tagger(self.artifact.path))
        model = members_of(self.artifact, (self.task and self.task.labels) or None)
        if model.of_file:
            raise UsageError(
                f"the linear members in {self.artifact.path} answer beside a GGUF file alone",
                hint="slmctl predict sum, or slmctl serve with a release of both",
            )
        return LinearMembers(model, self.artifact.path)


def members_of(folder: Artifact, labels: Sequence[str] | None) -> LabelSum:
    """The members and weights in a folder.

    Args:
        labels: The task's; None for any.

    Raises:
        IntegrityError: They are damaged, of other labels, or not those that a release was measured
            with.
    """
    require_measured(folder)
    return LabelSum.read(folder.path / SUM_FILE, labels)
