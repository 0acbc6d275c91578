"""The linear model of the report as a file: TF-IDF with logistic regression, without a process."""

from __future__ import annotations

from collections.abc import Iterable

from slmctl.artifacts.artifact import FileEntry
from slmctl.inference.engine import Answer, Answering, Outcomes, Request
from slmctl.metrics import linear_baseline
from slmctl.models.model import Loading, Model


class LinearAnswerer(Answering):
    """Answers by the linear model, from the text of each question alone."""

    def __init__(self, model: linear_baseline.LinearModel) -> None:
        self.model = model

    def close(self) -> None:
        """Nothing: it has no process."""

    def ask_all(self, requests: Iterable[Request], **how: object) -> Outcomes:
        labels, chances = self.model.answers([request.question for request in requests])
        for index, (label, chance) in enumerate(zip(labels, chances or [], strict=True)):
            yield index, Answer(label, "stop", chance, 0, 0)


class LinearFile(Model):
    """The weights of a linear model."""

    @property
    def weights(self) -> FileEntry:
        return self.artifact.manifest.files[0]

    def load(self, loading: Loading) -> Answering:
        return LinearAnswerer(linear_baseline.read(self.artifact.path))
