"""The linear model of the report as a file: hashed words with logistic regression, without a process."""

from __future__ import annotations

from slmctl.artifacts.artifact import FileEntry
from slmctl.inference.engine import Answering
from slmctl.metrics.label_sum import LabelSum
from slmctl.models.linear_members import LinearMembers
from slmctl.models.model import Loading, Model


class LinearFile(Model):
    """The weights of a linear model."""

    @property
    def weights(self) -> FileEntry:
        return self.artifact.manifest.files[0]

    def load(self, loading: Loading) -> Answering:
        return LinearMembers(LabelSum.read(self.artifact.path), self.artifact.path)
